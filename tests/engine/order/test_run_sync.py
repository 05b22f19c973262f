"""Inside Pyodide, synchronous code may wait for a promise (``pyodide.ffi.run_sync``) while other code executes."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest
from watching import IN_PYODIDE, finish

from durable_web import Context, RunStatus, job
from durable_web.testing import settle

pytestmark = pytest.mark.skipif(not IN_PYODIDE, reason="inside Pyodide only: CPython has no run_sync")


def slept(value: Any) -> Any:
    """Wait for a promise in the middle of synchronous code, and return the value."""
    from pyodide.ffi import run_sync

    return run_sync(asyncio.sleep(0.01, value))


async def test_steps_of_two_runs_that_wait_for_promises_do_not_disturb_each_other(running):
    @job("waits")
    async def waits(ctx: Context, number: int) -> list[int]:
        return [await ctx.step(f"step {index}", slept, number + index) for index in range(5)]

    async with running(waits) as engine:
        runs = [await engine.trigger(waits, number) for number in (10, 20)]
        assert [(await finish(engine, run)).output for run in runs] == [[*range(10, 15)], [*range(20, 25)]]


async def test_other_runs_go_on_when_a_transaction_that_waits_for_a_promise_is_over(running):
    def write(connection: sqlite3.Connection) -> str:
        connection.execute("CREATE TABLE IF NOT EXISTS item (value)")
        return slept("written")

    @job("writes")
    async def writes(ctx: Context, number: int) -> list[str]:
        first = await ctx.transaction("write", write)
        return [first, await ctx.step("after", slept, "stepped")]

    async with running(writes) as engine:
        runs = [await engine.trigger(writes, number) for number in range(3)]
        ended = [await finish(engine, run) for run in runs]
    assert [run.output for run in ended] == [["written", "stepped"]] * 3


async def test_a_validator_may_wait_for_a_promise(running):
    @job("asks")
    async def asks(ctx: Context, _: None) -> str:
        update = await ctx.on_update("name", validator=lambda name: slept(name != "nobody"))
        await update.answer(f"Hello, {update.argument}!")
        return update.argument

    async with running(asks) as engine:
        run = await engine.trigger(asks)
        await settle()
        assert await engine.runs.update(run.id, "name", "Ada", timeout=10) == "Hello, Ada!"
        assert (await finish(engine, run)).output == "Ada"


async def test_a_run_that_is_cancelled_while_its_step_waits_for_a_promise_ends(running):
    @job("waits")
    async def waits(ctx: Context, _: None) -> None:
        while True:
            await ctx.step("wait", slept, None)

    async with running(waits) as engine:
        run = await engine.trigger(waits)
        await settle()
        await engine.runs.cancel(run.id)
        assert (await finish(engine, run)).status == RunStatus.CANCELLED
