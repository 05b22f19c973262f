"""Waiting for the end of a run: ``wait_for_run`` and ``trigger_and_wait``."""

from __future__ import annotations

import asyncio

import pytest
from watching import finish

from durable_web import Context, DurableWebError, Engine, Run, RunNotFound, job
from durable_web.testing import settle


class Door:
    """A job whose runs end when the door is opened, as they are told to."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

        @job("visitor")
        async def visitor(ctx: Context, mood: str) -> str:
            await ctx.step("knock", str.upper, mood)
            await ctx.step("wait at the door", self.opened.wait)
            if mood == "bad":
                raise ValueError("not today")
            return mood

        self.job = visitor


async def begin(engine: Engine, door: Door, mood: str = "good") -> tuple[Run, asyncio.Task[Run]]:
    """A run that is executing, and a task that waits for its end."""
    run = await engine.trigger(door.job, mood)
    waiter = asyncio.create_task(engine.runs.wait(run.id))
    await settle()
    assert not waiter.done()
    return run, waiter


async def test_every_caller_that_waits_for_a_run_gets_it_as_it_has_ended(running):
    door = Door()
    async with running(door.job) as engine:
        run, first = await begin(engine, door)
        others = [asyncio.create_task(engine.runs.wait(run.id)) for _ in range(3)]
        impatient = asyncio.create_task(engine.runs.wait(run.id))
        await settle()
        impatient.cancel()
        door.opened.set()
        ended = await asyncio.gather(first, *others)
        assert {(each.id, each.status, each.output) for each in ended} == {(run.id, "completed", "good")}
        assert ended[0] == await engine.runs.wait(run.id) == await engine.runs.get(run.id)
        assert not engine.internals.endings._waiting, "nothing is kept of who has waited"


async def test_a_run_that_fails_or_is_cancelled_has_ended_too(running):
    door = Door()
    async with running(door.job) as engine:
        cancelled, first = await begin(engine, door)
        _, second = await begin(engine, door, "bad")
        await engine.runs.cancel(cancelled.id)
        door.opened.set()
        assert [(await waiter).status for waiter in (first, second)] == ["cancelled", "failed"]


async def test_a_run_that_is_retried_as_it_ends_is_waited_for_further(running):
    door = Door()
    async with running(door.job) as engine:
        run, waiter = await begin(engine, door)
        await engine.runs.cancel(run.id)
        await engine.runs.retry(run.id)
        await settle()
        assert not waiter.done()
        door.opened.set()
        assert (await waiter).status == "completed"


async def test_a_run_that_is_gone_or_was_never_there_is_not_waited_for(running):
    door = Door()
    async with running(door.job) as engine:
        run, waiter = await begin(engine, door)
        await engine.runs.cancel(run.id)
        await engine.runs.delete(run.id)
        for waiting in (waiter, engine.runs.wait("nobody")):
            with pytest.raises(RunNotFound):
                await waiting


async def test_who_waits_is_told_when_the_engine_stops(running):
    door = Door()
    async with running(door.job) as engine:
        _, waiter = await begin(engine, door)
        await engine.stop(drain=False)
        with pytest.raises(DurableWebError, match="not running"):
            await waiter


async def test_a_time_limit_leaves_the_run_as_it_is(running):
    door = Door()
    async with running(door.job) as engine:
        run = await engine.trigger(door.job, "good")
        with pytest.raises(TimeoutError):
            await engine.runs.wait(run.id, timeout=0.01)
        assert not engine.internals.endings._waiting, "nothing is kept of who has waited in vain"
        waiter = asyncio.create_task(engine.runs.wait(run.id))
        await settle()
        with pytest.raises(TimeoutError):
            await engine.runs.wait(run.id, timeout=0.01)
        door.opened.set()
        assert (await finish(engine, run)) == await waiter
