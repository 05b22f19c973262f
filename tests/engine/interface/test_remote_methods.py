"""The methods that a page may call: the same names in every language, and what they do not know is refused."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from watching import cpython_only

from durable_web import Context, Engine, InvalidOption, job
from durable_web._browser.methods import NAMES, camel_case, methods_of, snake_case
from durable_web.testing import engine

WIRE_CALL = re.compile(r'call\(\s*"([\w.]+)"')


@job("echo")
async def echo(ctx: Context, value: Any) -> Any:
    return value


async def call(running: Engine, name: str, /, **parameters: Any) -> Any:
    return await methods_of(running)[name].call(parameters)


async def test_a_method_takes_its_parameters_in_camel_case_and_times_in_milliseconds():
    async with engine(echo) as running:
        run = await call(running, "trigger", job="echo", input=1, runAt=4_000_000_000_000, idempotencyKey="a")
        assert run.run_at == datetime.fromtimestamp(4_000_000_000, UTC)
        assert (await call(running, "runs.list", createdBefore=4_000_000_000_000.5))[0].idempotency_key == "a"


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("trigger", {"job": "echo", "idempotencykey": "a"}, "Did you mean 'idempotencyKey'?"),
        ("trigger", {"job": "echo", "idempotency_key": "a"}, "Did you mean 'idempotencyKey'?"),
        ("triggerWithSignal", {"job": "echo", "input": 1, "name": "go", "signalID": "a"}, "Did you mean 'signalId'?"),
        ("triggerWithSignal", {"job": "echo", "input": 1, "name": "go", "label": {}}, "Did you mean 'labels'?"),
        ("runs.list", {"states": ["failed"]}, "Did you mean 'status'?"),
        ("runs.cancel", {"runId": "a", "undo": True}, "It has compensate, runId."),
        ("schedules.create", {"name": "a", "job": "echo", "catchup": "all"}, "Did you mean 'catchUp'?"),
    ],
)
async def test_a_parameter_that_a_method_does_not_have_is_refused_in_the_pages_spelling(name, parameters, said):
    async with engine(echo) as running:
        with pytest.raises(InvalidOption, match=re.escape(said)) as refused:
            await call(running, name, **parameters)
        assert refused.value.name in parameters
        assert str(refused.value).startswith(f"{name} has no parameter ")
        assert await running.runs.list() == []


@pytest.mark.parametrize(
    ("name", "parameters", "missing"),
    [
        ("runs.get", {}, "runId"),
        ("runs.fork", {"runId": "a"}, "fromStep"),
        ("trigger", {"input": 1}, "job"),
        ("triggerWithSignal", {"job": "echo", "input": 1}, "name"),
    ],
)
async def test_a_parameter_that_is_missing_is_named_in_the_pages_spelling(name, parameters, missing):
    async with engine(echo) as running:
        with pytest.raises(InvalidOption, match=f"^{name} needs the parameter '{missing}'"):
            await call(running, name, **parameters)


@pytest.mark.parametrize("wrong", ["2030-01-01", True, [1], {}])
@pytest.mark.parametrize("name", ["runAt", "deadline"])
async def test_what_is_no_time_is_refused(name, wrong):
    async with engine(echo) as running:
        with pytest.raises(InvalidOption, match=rf"^{name} is a time in milliseconds since 1970"):
            await call(running, "trigger", job="echo", **{name: wrong})
        assert await running.runs.list() == []


def test_names_go_from_one_language_to_the_other_and_back():
    for name in NAMES:
        assert camel_case(snake_case(name)) == name


@cpython_only("it reads the sources of the page")
def test_javascript_and_the_pages_python_call_these_methods_and_no_others():
    from environment import ROOT

    others = re.compile(r"^(files|debug|engine)\.|^close$")
    for sources in (["web/client/calls.js", "web/durable-web.js"], ["web/durable_page.py"]):
        text = "".join((ROOT / name).read_text(encoding="utf-8") for name in sources)
        called = {name for name in WIRE_CALL.findall(text) if not others.search(name)}
        assert called == set(NAMES)


def page_signatures() -> dict[str, set[str]]:
    """The parameters of the page's Python, by the names on the wire of the methods that it calls."""
    from environment import ROOT

    found = {}
    for node in ast.walk(ast.parse((ROOT / "web" / "durable_page.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.AsyncFunctionDef) and (called := WIRE_CALL.search(ast.unparse(node).replace("'", '"'))):
            given = [*node.args.args, *node.args.kwonlyargs]
            found[called[1]] = {each.arg for each in given} - {"self"}
            assert node.args.kwarg is None, f"{called[1]}: each option is named, so that a misspelt one is refused"
    return found


def javascript_options(name: str) -> set[str]:
    """The options that a type of the client names."""
    from environment import ROOT

    text = "".join((ROOT / "web" / file).read_text(encoding="utf-8") for file in ("durable-web.js", "client/calls.js"))
    (body,) = re.findall(rf"@typedef \{{\{{((?:(?!@typedef).)*?)\}}\}} {name}\b", text, re.DOTALL)
    flat = re.sub(r"<[^<>]*>|\"[^\"]*\"", "", body)
    return set(re.findall(r"(\w+)\?:", flat))


@cpython_only("it reads the sources of the page")
async def test_the_pages_python_names_every_parameter_as_the_engine_does():
    async with engine(echo) as running:
        for name, given in page_signatures().items():
            if name in NAMES:
                assert given == set(methods_of(running)[name].parameters.values()), name


@cpython_only("it reads the sources of the page")
@pytest.mark.parametrize(
    ("type_name", "method", "besides"),
    [
        ("TriggerOptions", "trigger", {"job", "input"}),
        ("Filter", "runs.list", set()),
        ("ScheduleOptions", "schedules.create", {"name", "job"}),
    ],
)
async def test_javascripts_options_are_the_parameters_of_the_engine(type_name, method, besides):
    async with engine(echo) as running:
        assert javascript_options(type_name) == set(methods_of(running)[method].parameters) - besides
