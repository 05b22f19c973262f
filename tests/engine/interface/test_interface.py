"""The interface that applications are written against: names, the order of parameters, and defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

import durable_web
from durable_web import Context, Engine, Retry, Run, RunFilter, Trigger, job


def parameters(function: Any) -> dict[str, Any]:
    """The parameters of a function with their defaults; ``...`` for those without."""
    found = inspect.signature(function).parameters.values()
    return {
        ("*" if each.kind == each.KEYWORD_ONLY else "") + each.name: ... if each.default is each.empty else each.default
        for each in found
        if each.name != "self"
    }


def test_an_engine_is_made_with_these_defaults():
    found = parameters(Engine)
    assert list(found)[:2] == ["path", "jobs"]
    wanted = {
        "*max_concurrent_runs": 10,
        "*lease": 30,
        "*durability": "full",
        "*preserve_steps": True,
        "*retain_runs": None,
        "*clock": None,
    }
    assert {name: found[name] for name in wanted} == wanted
    assert found["*max_recoveries"] >= 0


def test_a_job_is_declared_with_these_options():
    found = parameters(job)
    wanted = ["name", *(f"*{name}" for name in ("version", "input", "output", "retry", "timeout", "max_concurrent"))]
    assert list(found)[: len(wanted)] == wanted
    assert {found[name] for name in wanted[1:]} == {None}


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("start", {}),
        ("stop", {"drain": True}),
        ("run_until_idle", {"max_runs": None}),
        ("run_one", {}),
        ("trigger", {"job": ..., "input": None}),
        ("trigger_many", {"triggers": ...}),
        ("trigger_and_wait", {"job": ..., "input": None, "*timeout": None, "*on_progress": None, "*on_log": None}),
        ("on", {"type": ..., "listener": ...}),
        ("off", {"type": ..., "listener": ...}),
        ("on_error", {"handler": ...}),
        ("register", {"jobs": ...}),
    ],
)
def test_an_engine_has_these_methods(method, wanted):
    found = parameters(getattr(Engine, method))
    assert {name: found.get(name, "missing") for name in wanted} == wanted


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("wait", {"run_id": ..., "*timeout": None, "*on_progress": None, "*on_log": None}),
        ("get", {"run_id": ...}),
        ("list", {"*status": None, "*job": None, "*order": "newest", "*limit": 50, "*cursor": None}),
        ("count", {"by": "status"}),
        ("steps", {"run_id": ...}),
        ("value", {"run_id": ..., "key": ...}),
        ("cancel", {"run_id": ...}),
        ("retrigger", {"run_id": ...}),
        ("fork", {"run_id": ..., "from_step": ...}),
        ("delete", {"run_id": ...}),
        ("purge", {"older_than": ..., "limit": 500}),
        ("cancel_many", {"filters": ...}),
        ("retry_many", {"filters": ...}),
        ("delete_many", {"filters": ...}),
    ],
)
def test_the_runs_of_an_engine_have_these_methods(method, wanted):
    found = parameters(getattr(Engine("never made", []).runs, method))
    assert {name: found.get(name, "missing") for name in wanted} == wanted


def test_a_run_is_retried_on_its_input_or_on_another():
    assert list(parameters(Engine("never made", []).runs.retry)) == ["run_id", "*input"]


def test_a_trigger_has_these_options():
    assert {field.name: field.default for field in fields(Trigger) if field.name not in ("job", "labels")} == {
        "input": None,
        "idempotency_key": None,
        "concurrency_key": None,
        "coalesce": None,
        "priority": 0,
        "run_at": None,
        "deadline": None,
    }


def test_runs_are_chosen_by_these_filters():
    wanted = {"status", "job", "labels", "created_after", "created_before", "search"}
    assert wanted <= {field.name for field in fields(RunFilter)}


def test_a_run_carries_these_fields():
    wanted = """
        id job version status input output error progress labels idempotency_key concurrency_key priority current_step
        completed_steps lease_owner lease_expires_at generation recoveries created_at run_at started_at completed_at
        updated_at
    """
    assert set(wanted.split()) <= {field.name for field in fields(Run)}
    assert all(hasattr(Run, name) for name in ("is_terminal", "is_active", "public"))


def test_a_job_body_has_these_at_hand():
    wanted = """
        step transaction progress set_event now uuid random run_id attempt cancelled raise_if_cancelled step_ref
    """
    assert all(hasattr(Context, name) for name in wanted.split())
    assert list(parameters(Retry)) == [
        "max_attempts",
        "backoff",
        "factor",
        "max_delay",
        "jitter",
        "retry_on",
        "timeout",
    ]


def test_what_is_public_is_there_and_sorted():
    assert list(durable_web.__all__) == sorted(durable_web.__all__)
    assert all(hasattr(durable_web, name) for name in durable_web.__all__)


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1), (None, 2)])
async def test_durability_is_full_unless_another_is_asked_for(running, durability, synchronous):
    options = {} if durability is None else {"durability": durability}
    async with running(**options) as engine:
        database = engine.internals.store.database
        assert database.row("PRAGMA synchronous")[0] == synchronous  # FULL: flushed at every commit
        assert database.row("PRAGMA journal_mode")[0] == "wal"
