"""What is too long for SQLite is refused in words, and leaves no unfinished run behind."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest
from watching import finish

from durable_web import Context, Engine, SerializationError, StepFailed, Trigger, job
from durable_web.testing import crash

LONG = "x" * 200_000
SAID = "cannot be stored: it is longer than the 100,000 bytes"


@job("echo")
async def echo(ctx: Context, value: Any) -> Any:
    return value


def shorten(engine: Engine) -> None:
    """Make a gigabyte, as SQLite has it, a hundred kilobytes."""
    engine.internals.store.database.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)


async def test_an_input_is_refused_before_anything_is_written(running):
    async with running(echo) as engine:
        shorten(engine)
        with pytest.raises(SerializationError, match=f"input of job 'echo' {SAID}"):
            await engine.trigger_many([Trigger(echo, 1), Trigger(echo, LONG)])
        assert await engine.runs.list() == []


@pytest.mark.parametrize("beside", [0, 2])
async def test_a_step_fails_and_replays_as_failed(running, beside):
    calls: list[str] = []

    def make() -> str:
        calls.append("made")
        return LONG

    @job("make")
    async def make_long(ctx: Context, _: None) -> str:
        others = [ctx.step(f"beside {number}", lambda: 1) for number in range(beside)]
        failed, *results = await asyncio.gather(ctx.step("long", make), *others, return_exceptions=True)
        assert isinstance(failed, StepFailed)
        assert results == [1] * beside
        if ctx.attempt == 1:
            calls.append("stop")
            await asyncio.Event().wait()
        return str(failed)

    async with running(make_long) as engine:
        shorten(engine)
        run = await engine.trigger("make")
        while "stop" not in calls:
            await asyncio.sleep(0)
        await crash(engine)
    async with running(make_long) as engine:
        run = await finish(engine, run)
        step = (await engine.runs.steps(run.id))[0]
    assert run.output == f"Step 'long' failed: SerializationError: {step.error.message}"
    assert step.error.message.startswith(f"output of step 'long' {SAID}")
    assert (step.status, calls) == ("failed", ["made", "stop"])


async def test_a_step_that_is_alone_fails_its_job(running):
    @job("make")
    async def make_long(ctx: Context, _: None) -> str:
        return await ctx.step("long", lambda: LONG)

    async with running(make_long) as engine:
        shorten(engine)
        run = await finish(engine, await engine.trigger("make"))
    assert (run.status, run.failed_step, run.error.type) == ("failed", "long", "StepFailed")
    assert f"output of step 'long' {SAID}" in run.error.message


async def test_a_transaction_fails_and_leaves_no_row(running):
    def fill(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO item VALUES (1)")
        return LONG

    @job("table")
    async def table(ctx: Context, _: None) -> int:
        await ctx.transaction("create", lambda connection: connection.execute("CREATE TABLE item (value)") and None)
        with pytest.raises(StepFailed, match=f"output of step 'fill' {SAID}"):
            await ctx.transaction("fill", fill)
        return await ctx.transaction("count", lambda c: c.execute("SELECT count(*) FROM item").fetchone()[0])

    async with running(table) as engine:
        shorten(engine)
        run = await finish(engine, await engine.trigger("table"))
        assert (run.status, run.output) == ("completed", 0)
        assert [step.status.value for step in await engine.runs.steps(run.id)] == ["completed", "failed", "completed"]


async def test_a_job_fails_and_undoes_what_it_has_done(running):
    undone: list[str] = []

    @job("make")
    async def make_long(ctx: Context, _: None) -> str:
        await ctx.step("one", lambda: "one", compensate=undone.append)
        return LONG

    async with running(make_long, echo) as engine:
        shorten(engine)
        run = await finish(engine, await engine.trigger("make"))
        assert (run.status, run.error.type, undone) == ("failed", "SerializationError", ["one"])
        assert f"output of job 'make' {SAID}" in run.error.message
        assert (await finish(engine, await engine.trigger("echo", 1))).output == 1


async def test_an_output_that_is_too_long_only_with_the_input_fails_the_job_too(running):
    async with running(echo) as engine:
        shorten(engine)
        run = await finish(engine, await engine.trigger("echo", "x" * 60_000))
        assert (run.status, run.error.type) == ("failed", "SerializationError")


async def test_whatever_else_is_too_long_leaves_no_run_behind(running):
    @job("shout")
    async def shout(ctx: Context, _: None) -> None:
        raise ValueError(LONG)

    @job("again")
    async def again(ctx: Context, _: Any) -> None:
        ctx.continue_as_new(LONG)

    async with running(shout, again) as engine:
        shorten(engine)
        for name in ("shout", "again"):
            run = await finish(engine, await engine.trigger(name))
            assert (run.status, run.error.type) == ("failed", "SerializationError")
            assert SAID in run.error.message


async def test_a_number_that_is_too_long_is_no_id(running):
    async with running(echo) as engine:
        with pytest.raises(TypeError, match=r"A number of that size is nothing .* Give a run, .* by its id"):
            await engine.runs.get(2**70)
