"""Triggering, registering and listing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from watching import finish

from durable_web import (
    Context,
    DuplicateJobError,
    DurableWebError,
    Engine,
    JobNotFound,
    Retry,
    RunNotFound,
    SerializationError,
    job,
)


@job("echo")
async def echo(ctx: Context, value: object) -> object:
    return value


async def test_a_run_can_be_read_back_by_its_id(running):
    async with running(echo) as engine:
        run = await engine.trigger(echo, {"a": 1})
        assert (await engine.runs.get(run.id)).input == {"a": 1}
        with pytest.raises(RunNotFound):
            await engine.runs.get("nobody")


async def test_an_unknown_job_is_an_error_that_names_the_known_ones(running):
    async with running(echo) as engine:
        with pytest.raises(JobNotFound, match="No job named 'ecco' is registered \\(registered: echo\\)"):
            await engine.trigger("ecco")


async def test_an_input_that_cannot_be_stored_is_an_error_that_names_the_path(running):
    async with running(echo) as engine:
        with pytest.raises(SerializationError, match=r"input of job 'echo'\['when'\]\[0\]"):
            await engine.trigger("echo", {"when": [float("nan")]})
        assert await engine.runs.list() == []


async def test_runs_begin_in_the_order_in_which_they_were_triggered(running):
    order: list[int] = []

    @job("note")
    async def note(ctx: Context, number: int) -> None:
        order.append(number)

    async with running(note, max_concurrent_runs=1) as engine:
        runs = [await engine.trigger("note", number) for number in range(50)]
        await finish(engine, runs[-1])
    assert order == list(range(50))


async def test_no_more_runs_execute_at_a_time_than_there_are_slots(running):
    executing = most = 0

    @job("slot")
    async def slot(ctx: Context, _: None) -> None:
        nonlocal executing, most
        executing += 1
        most = max(most, executing)
        await asyncio.sleep(0.001)
        executing -= 1

    async with running(slot, max_concurrent_runs=3) as engine:
        runs = [await engine.trigger("slot") for _ in range(12)]
        for run in runs:
            await finish(engine, run)
    assert most == 3


async def test_lists_are_newest_first_filtered_and_in_pages(running):
    @job("fail")
    async def fail(ctx: Context, _: None) -> None:
        raise ValueError

    async with running(echo, fail) as engine:
        runs = [await engine.trigger(name) for name in ("echo", "fail", "echo", "fail", "echo")]
        for run in runs:
            await finish(engine, run)
        ids = [run.id for run in reversed(runs)]
        assert [run.id for run in await engine.runs.list()] == ids
        assert [run.id for run in await engine.runs.list(job="fail")] == [ids[1], ids[3]]
        assert [run.id for run in await engine.runs.list(status="completed")] == ids[::2]
        assert [run.id for run in await engine.runs.list(status=["failed", "dead"], job=["echo"])] == []
        first = await engine.runs.list(limit=2)
        assert [run.id for run in await engine.runs.list(limit=2, cursor=first[-1].id)] == ids[2:4]
        oldest = await engine.runs.list(order="oldest", limit=2)
        next_page = await engine.runs.list(order="oldest", limit=2, cursor=oldest[-1].id)
        assert [run.id for run in oldest + next_page] == ids[::-1][:4]
        for wrong in ({"status": "finished"}, {"limit": 0}):
            with pytest.raises(ValueError, match=r"finished|limit"):
                await engine.runs.list(**wrong)


async def test_the_same_job_twice_is_fine_and_another_of_its_name_is_not(running):
    @job("echo")
    async def other(ctx: Context, _: None) -> None: ...

    async with running(echo) as engine:
        engine.register(echo)
        with pytest.raises(DuplicateJobError, match="Two different jobs are named 'echo'"):
            engine.register(other)


@pytest.mark.parametrize(
    "options",
    [
        {"input": dict},
        {"output": dict},
        {"retry": Retry()},
        {"timeout": 1.0},
        {"max_concurrent": 1},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_a_definition_that_differs_in_anything_but_its_version_is_another_one(running, options):
    async def function(ctx: Context, value: list) -> list: ...

    same = [job("one", input=list, output=list)(function) for _ in range(2)]
    another = job("one", **{"input": list, "output": list, **options})(function)
    async with running(*same) as engine:
        with pytest.raises(DuplicateJobError, match="'one'"):
            engine.register(another)
        engine.register(*same)


def test_what_is_not_a_job_is_refused_when_it_is_declared():
    with pytest.raises(TypeError, match="async"):
        job("sync")(lambda ctx, value: None)
    with pytest.raises(TypeError, match="two arguments"):

        @job("three")
        async def three(ctx: Context, one: int, two: int) -> None: ...

    with pytest.raises(TypeError, match="needs a name"):
        job(echo.function)
    with pytest.raises(TypeError, match="is not a job"):
        Engine("unused.sqlite3", [echo.function])


async def test_an_input_annotated_with_a_dataclass_arrives_as_one(running):
    @dataclass
    class Order:
        item: str
        count: int

    async def place(ctx: Context, order) -> str:
        return f"{type(order).__name__} of {order.count} {order.item}"

    place.__annotations__["order"] = Order
    async with running(job("order")(place)) as engine:
        run = await finish(engine, await engine.trigger("order", Order("apples", 3)))
    assert run.output == "Order of 3 apples"


async def test_an_engine_that_is_not_running_says_so(running):
    engine = Engine("unused.sqlite3", [echo])
    with pytest.raises(DurableWebError, match="not running"):
        await engine.trigger("echo")
    async with running() as engine:
        with pytest.raises(RuntimeError, match="running already"):
            await engine.start()
