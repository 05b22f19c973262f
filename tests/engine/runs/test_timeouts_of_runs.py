"""What timers around durable waits mean for runs: when they wake, what they write, retry and undo."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest
from timed_runs import HOUR, LIVES, WAITS, an_engine, by_timeout, child, ended, limited, parked, stay
from watching import finish

from durable_web import ChildFailed, Context, NonDeterminismError, OperationKind, RunStatus, job
from durable_web.testing import engine, restart, settle


async def test_a_run_is_woken_when_a_timeout_is_due(clock):
    async with an_engine(limited, clock=clock) as e:
        run = await parked(e, await e.trigger(limited, "signal"))
        timer = next(step for step in await e.runs.steps(run.id) if step.kind == OperationKind.TIMER)
        assert timer.wake_at == run.created_at + timedelta(hours=1)
        await clock.advance(HOUR)
        assert (await ended(e, run)).completed_at == timer.wake_at


async def test_nothing_is_written_for_a_run_that_waits_without_a_timer(clock):
    @job("plain")
    async def plain(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("go")

    async with an_engine(plain, limited, clock=clock) as e:
        run = await parked(e, await e.trigger(plain))
        assert run.wake_at is None
        assert [(step.kind, step.wake_at) for step in await e.runs.steps(run.id)] == [("signal", None)]


@pytest.mark.parametrize("seconds", [None, float("inf")])
async def test_a_timeout_that_is_never_due_wakes_no_run(clock, seconds):
    @job("unlimited")
    async def unlimited(ctx: Context, _: None) -> str:
        async with asyncio.timeout(seconds):
            return await ctx.wait_for_signal("go")

    async with an_engine(unlimited, clock=clock) as e:
        run = await parked(e, await e.trigger(unlimited))
        assert run.wake_at is None
        await restart(e)
        await e.runs.signal(run.id, "go", "gone")
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
        run = await e.trigger(polls)
        await settle()
        later = await e.trigger(other)
        await clock.advance(1.1)
        assert (await ended(e, later)).output == "had a slot"
        await e.runs.signal(run.id, "go")
        assert (await finish(e, run)).status == RunStatus.COMPLETED


async def test_a_retried_run_has_its_time_again(clock):
    @job("strict")
    async def strict(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR):
            await ctx.wait_for_signal("first")
            return await ctx.wait_for_signal("second")

    async with an_engine(strict, clock=clock) as e:
        run = await parked(e, await e.trigger(strict))
        await e.runs.signal(run.id, "first")
        await clock.advance(HOUR)
        assert (await ended(e, run)).status == "failed"
        await e.runs.retry(run.id)
        await clock.advance(0.9 * HOUR)
        await parked(e, run)
        await e.runs.signal(run.id, "second", "done")
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
        await e.runs.cancel(run.id, compensate=True)
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
            await e.runs.signal(run.id, name)
            await parked(e, run)
        await restart(e)
        await e.runs.signal(run.id, "end")
        run = await ended(e, run)
        assert [(step.name, step.status) for step in await e.runs.steps(run.id)] == [
            ("go", "completed"),
            ("stop", "completed"),
            ("end", "completed"),
        ]


async def test_a_child_that_a_timeout_has_called_off_is_not_started_again(clock):
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
        (made,) = await e.runs.list(job="child")
        assert made.status == "cancelled"
        await e.runs.signal(run.id, "go")
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


@pytest.mark.parametrize("kind", [kind for kind in WAITS if kind not in ("webhook", "attempt")])
async def test_a_wait_that_the_code_no_longer_calls_off_fails_the_run_and_keeps_its_history(clock, kind):
    async with an_engine(impatient, child, clock=clock) as e:
        run = await parked(e, await e.trigger(impatient, kind))
        await clock.advance(HOUR)
        assert (await parked(e, run)).waiting_reason == "it waits for signal 'then'"
        before = await e.runs.steps(run.id)
        await restart(e, patient, child)
        await e.runs.signal(run.id, "then")
        run = await ended(e, run)
        assert (run.status, run.error.type) == ("failed", "NonDeterminismError")
        assert "that was called off" in run.error.message
        (then,) = [step for step in before if step.name == "then"]
        after = await e.runs.steps(run.id)
        assert [step for step in after if step.name != "then"] == [step for step in before if step != then]


async def test_beside_a_wait_that_the_code_no_longer_calls_off_nothing_new_begins(clock):
    @job("changing")
    async def changed(ctx: Context, _: str) -> None:
        async def other() -> None:
            with suppress(NonDeterminismError):
                await ctx.wait_for_signal("go")
            await ctx.step("new", lambda: None)

        await asyncio.gather(other(), ctx.sleep("long", 1000 * HOUR))

    async with an_engine(impatient, clock=clock) as e:
        run = await parked(e, await e.trigger(impatient, "signal"))
        await clock.advance(HOUR)
        await parked(e, run)
        await restart(e, changed)
        await e.runs.signal(run.id, "then")
        assert (await ended(e, run)).error.type == "NonDeterminismError"
        assert "new" not in [step.name for step in await e.runs.steps(run.id)]


async def test_a_webhook_that_the_code_no_longer_calls_off_is_waited_for_further(clock):
    @job("called back")
    async def impatient(ctx: Context, _: None) -> str:
        hook = await ctx.webhook("hook")
        await ctx.set_event("token", hook.token)
        try:
            async with asyncio.timeout(HOUR):
                await hook.wait()
        except TimeoutError:
            await ctx.wait_for_signal("then")
        return "impatient"

    @job("called back")
    async def patient(ctx: Context, _: None) -> str:
        return await (await ctx.webhook("hook")).wait()

    async with an_engine(impatient, clock=clock) as e:
        run = await parked(e, await e.trigger(impatient))
        await clock.advance(HOUR)
        await parked(e, run)
        await restart(e, patient)
        await e.runs.signal(run.id, "then")
        assert (await parked(e, run)).waiting_reason == "it waits for webhook 'hook'"
        await e.deliver_webhook(await e.runs.value(run.id, "token"), "patient")
        assert (await ended(e, run)).output == "patient"
