"""What timers around durable waits mean for runs: when they wake, what they write, retry and undo."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from timed_runs import HOUR, LIVES, WAITS, an_engine, by_timeout, child, ended, limited, parked, stay
from watching import finish

from durable_web import ChildFailed, Context, Engine, Run, RunStatus, job
from durable_web.testing import engine, restart


async def test_a_run_is_woken_when_a_timeout_is_due(clock):
    async with an_engine(limited, clock=clock) as e:
        run = await parked(e, await e.trigger(limited, "signal"))
        assert abs(run.wake_at - run.created_at - timedelta(hours=1)) < timedelta(seconds=1)


async def test_nothing_is_written_for_a_run_that_waits_without_a_timer(clock):
    @job("plain")
    async def plain(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("go")

    async with an_engine(plain, limited, clock=clock) as e:
        run = await parked(e, await e.trigger(plain))
        assert run.wake_at is None
        assert [record.timeouts for record in e._store.steps.load(run.id).values()] == [None]


@pytest.mark.parametrize("seconds", [None, float("inf")])
async def test_a_timeout_that_is_never_due_wakes_nobody(clock, seconds):
    @job("unlimited")
    async def unlimited(ctx: Context, _: None) -> str:
        async with asyncio.timeout(seconds):
            return await ctx.wait_for_signal("go")

    async with an_engine(unlimited, clock=clock) as e:
        run = await parked(e, await e.trigger(unlimited))
        assert run.wake_at is None
        await restart(e)
        await e.signal(run.id, "go", "gone")
        assert (await ended(e, run)).output == "gone"


async def test_a_body_that_looks_again_and_again_beside_its_wait_keeps_no_slot(clock):
    @job("polls")
    async def polls(ctx: Context, _: None) -> None:
        async def poll() -> None:
            while True:
                await asyncio.sleep(0.003)

        polling = asyncio.ensure_future(poll())
        await ctx.wait_for_signal("go")
        polling.cancel()

    @job("other")
    async def other(ctx: Context, _: None) -> str:
        return "had a slot"

    async with engine(polls, other, clock=clock, max_concurrent_runs=1) as e:
        run = await parked(e, await e.trigger(polls))
        assert run.wake_at - run.created_at >= timedelta(seconds=1)
        assert (await e.trigger_and_wait(other)).output == "had a slot"
        await e.signal(run.id, "go")
        assert (await finish(e, run)).status == RunStatus.COMPLETED


async def test_a_retried_run_has_its_time_again(clock):
    @job("strict")
    async def strict(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR):
            await ctx.wait_for_signal("first")
            return await ctx.wait_for_signal("second")

    async with an_engine(strict, clock=clock) as e:
        run = await parked(e, await e.trigger(strict))
        await e.signal(run.id, "first")
        await clock.advance(HOUR)
        assert (await ended(e, run)).status == "failed"
        await e.retry(run.id)
        await clock.advance(0.9 * HOUR)
        await parked(e, run)
        await e.signal(run.id, "second", "done")
        assert (await ended(e, run)).output == "done"


@pytest.mark.parametrize("life", LIVES)
async def test_what_was_done_after_a_timeout_is_undone_as_well(clock, life):
    undone = []

    @job("saga")
    async def saga(ctx: Context, _: None) -> None:
        await ctx.step("before", lambda: "before", compensate=undone.append)
        try:
            async with asyncio.timeout(HOUR):
                await ctx.wait_for_signal("first")
        except TimeoutError:
            await ctx.step("after", lambda: "after", compensate=undone.append)
        await ctx.wait_for_signal("second")

    async with an_engine(saga, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(saga))
        await clock.advance(2 * HOUR)
        await stay(e, life)
        await parked(e, run)
        await e.cancel(run.id, compensate=True)
        assert (await ended(e, run)).status == "cancelled"
        assert undone == ["after", "before"]


async def test_a_wait_that_has_ended_stays_ended_when_it_is_called_off_in_a_later_execution(clock):
    @job("stopped")
    async def stopped(ctx: Context, _: None) -> str:
        branch = asyncio.ensure_future(by_timeout(ctx.wait_for_signal("go")))
        await asyncio.sleep(0)
        await ctx.wait_for_signal("stop")
        branch.cancel()
        await asyncio.wait([branch])
        return await ctx.wait_for_signal("end")

    async with an_engine(stopped, clock=clock) as e:
        run = await parked(e, await e.trigger(stopped))
        for name in ("go", "stop"):
            await e.signal(run.id, name)
            await parked(e, run)
        await restart(e)
        await e.signal(run.id, "end")
        run = await ended(e, run)
        assert [(step.name, step.status) for step in await e.get_steps(run.id)] == [
            ("go", "completed"),
            ("stop", "completed"),
            ("end", "completed"),
        ]


async def test_a_child_that_a_timeout_has_called_off_is_started_by_nobody_again(clock):
    @job("parent")
    async def parent(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(HOUR):
                await ctx.run_job("child", child, 1)
        except (TimeoutError, ChildFailed) as error:
            await ctx.wait_for_signal("go")
            return type(error).__name__
        return "never"

    async with an_engine(parent, child, clock=clock) as e:
        run = await parked(e, await e.trigger(parent))
        await clock.advance(HOUR)
        await restart(e)
        await parked(e, run)
        (made,) = await e.list_runs(job="child")
        assert made.status == "cancelled"
        await e.signal(run.id, "go")
        assert (await ended(e, run)).output == "TimeoutError"


# --- what is called off no longer ------------------------------------------------------------------------------------


@job("changing")
async def impatient(ctx: Context, kind: str) -> str:
    try:
        async with asyncio.timeout(HOUR):
            await WAITS[kind](ctx)
    except TimeoutError:
        await ctx.wait_for_signal("then")
    return "impatient"


@job("changing")
async def patient(ctx: Context, kind: str) -> str:
    await WAITS[kind](ctx)
    return "patient"


async def send_update(e: Engine, run: Run) -> None:
    with suppress(TimeoutError):
        await e.update(run.id, "change", timeout=0)


async def nothing(e: Engine, run: Run) -> None:
    """Time ends it."""


ENDS: dict[str, Callable[[Engine, Run], Awaitable[Any]]] = {
    "sleep": nothing,
    "signal": lambda e, run: e.signal(run.id, "go"),
    "signal in time": lambda e, run: e.signal(run.id, "go"),
    "event": lambda e, run: e.publish("news"),
    "update": send_update,
    "breakpoint": lambda e, run: e.resume(run.id),
    "child": nothing,
    "map": nothing,
}


@pytest.mark.parametrize("kind", ENDS)
async def test_a_wait_that_the_code_no_longer_calls_off_is_waited_for_anew(clock, kind):
    async with an_engine(impatient, child, clock=clock) as e:
        run = await parked(e, await e.trigger(impatient, kind))
        await clock.advance(HOUR)
        assert (await parked(e, run)).waiting_reason == "it waits for signal 'then'"
        await restart(e, patient, child)
        await e.signal(run.id, "then")
        assert "called off" not in (await parked(e, run)).waiting_reason
        await e.stop(drain=True)
        await e.start()
        await ENDS[kind](e, run)
        await clock.advance(300 * HOUR)
        assert (await ended(e, run)).output == "patient"
