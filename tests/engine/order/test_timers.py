"""The timers of a body's event loop are durable: due when they first were, whatever becomes of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from timed_runs import HOUR, SELDOM, an_engine

from durable_web import Context, Engine, OperationKind, Run, RunStatus, StepStatus, job
from durable_web._execution import waits
from durable_web.testing import MockClock, assert_replays, crash, crash_at, engine, record_history, restart, settle

LIVES = ("goes on", "evicted", "restarted", "crashes")


async def live_on(e: Engine, life: str) -> None:
    """What becomes of an engine while a timer runs; one that evicts has ``max_parked=0``."""
    if life == "restarted":
        await e.stop(drain=False)
        await e.start()
    elif life == "crashes":
        await restart(e)
    await settle()


# --- every timer, around a wait and around a step --------------------------------------------------------------------

Awaited = Callable[[], Awaitable[Any]]


async def by_timeout(awaited: Awaited) -> str:
    async with asyncio.timeout(HOUR):
        await awaited()
    return "in time"


async def by_timeout_at(awaited: Awaited) -> str:
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + HOUR):
        await awaited()
    return "in time"


async def by_reschedule(awaited: Awaited) -> str:
    async with asyncio.timeout(100 * HOUR) as limit:
        limit.reschedule(asyncio.get_running_loop().time() + HOUR)
        await awaited()
    return "in time"


async def by_wait_for(awaited: Awaited) -> str:
    await asyncio.wait_for(awaited(), HOUR)
    return "in time"


async def by_wait(awaited: Awaited) -> str:
    task = asyncio.ensure_future(awaited())
    done, _ = await asyncio.wait([task], timeout=HOUR)
    task.cancel()
    if not done:
        raise TimeoutError
    return "in time"


async def by_as_completed(awaited: Awaited) -> str:
    task = asyncio.ensure_future(awaited())
    try:
        for first in asyncio.as_completed([task], timeout=HOUR):
            await first
    finally:
        task.cancel()
    return "in time"


async def by_sleep(awaited: Awaited) -> str:
    tasks = [asyncio.ensure_future(awaited()), asyncio.ensure_future(asyncio.sleep(HOUR))]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if tasks[1] in done:
        raise TimeoutError
    return "in time"


async def by_call_later(awaited: Awaited) -> str:
    task = asyncio.ensure_future(awaited())
    asyncio.get_running_loop().call_later(HOUR, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise TimeoutError from None
    return "in time"


TIMERS = [
    by_timeout,
    by_timeout_at,
    by_reschedule,
    by_wait_for,
    by_wait,
    by_as_completed,
    by_sleep,
    by_call_later,
]


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("around", ["wait", "step"])
@pytest.mark.parametrize("timer", TIMERS)
async def test_a_timer_is_due_when_it_first_was(clock, timer, around, life):
    @job("limited")
    async def limited(ctx: Context, _: None) -> str:
        awaited: dict[str, Awaited] = {
            "wait": lambda: ctx.wait_for_signal("go"),
            "step": lambda: ctx.step("work", asyncio.Event().wait),
        }
        try:
            return await timer(awaited[around])
        except TimeoutError:
            return await ctx.step("note", str, "too late")

    async with an_engine(limited, clock=clock, life=life) as e:
        run = await e.trigger(limited)
        await settle()
        for _ in range(3):
            await clock.advance(0.3 * HOUR)
            await live_on(e, life)
        await clock.advance(0.1 * HOUR - 1)
        await live_on(e, life)
        assert (await e.runs.get(run.id)).is_active
        await clock.advance(1)
        await settle()
        run = await e.runs.get(run.id)
        assert (run.status, run.output, run.error) == (RunStatus.COMPLETED, "too late", None)
        (step,) = [step for step in await e.runs.steps(run.id) if step.kind == OperationKind.TIMER]
        assert step.status == StepStatus.COMPLETED
        assert (step.wake_at - run.started_at).total_seconds() == HOUR
        assert (await assert_replays(record_history(e, run.id), limited)).output == "too late"


@pytest.mark.parametrize("timer", TIMERS)
async def test_what_comes_in_time_cancels_the_timer_and_leaves_nothing_of_it(clock, timer):
    @job("limited")
    async def limited(ctx: Context, _: None) -> str:
        return await timer(lambda: ctx.wait_for_signal("go"))

    async with an_engine(limited, clock=clock) as e:
        run = await e.trigger(limited)
        await settle()
        (step,) = [step for step in await e.runs.steps(run.id) if step.kind == OperationKind.TIMER]
        assert (step.status, step.waiting_for) == (StepStatus.RUNNING, "a timer of asyncio")
        await clock.advance(0.9 * HOUR)
        await e.runs.signal(run.id, "go")
        await settle()
        run = await e.runs.get(run.id)
        assert (run.status, run.output) == (RunStatus.COMPLETED, "in time")
        if timer is not by_call_later:  # the body has left its timer, which is not cancelled
            assert [step.kind for step in await e.runs.steps(run.id)] == [OperationKind.SIGNAL]


# --- the time of a body's loop ---------------------------------------------------------------------------------------


@job("looks at the time")
async def looks_at_the_time(ctx: Context, _: None) -> list[float]:
    loop = asyncio.get_running_loop()
    seen = [loop.time()]
    await ctx.step("work", str)
    seen.append(loop.time())
    await ctx.sleep("nap", HOUR)
    seen.append(loop.time())
    await asyncio.sleep(HOUR)
    seen.append(loop.time())
    await ctx.wait_for_signal("go")
    seen.append(loop.time())
    return seen


async def test_the_time_of_the_loop_is_that_of_the_outcome_delivered_last_in_every_execution(clock):
    async with engine(looks_at_the_time, clock=clock, max_parked=0, **SELDOM) as e:
        begun = clock.now() / 1000
        run = await e.trigger(looks_at_the_time)
        await settle()
        await clock.advance(HOUR)
        await clock.advance(0.5 * HOUR)
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        await settle()
        late = clock.now() / 1000
        await e.runs.signal(run.id, "go")
        await settle()
        output = (await e.runs.get(run.id)).output
        assert output == [begun, begun, begun + HOUR, late, late]
        await restart(e)
        assert (await assert_replays(record_history(e, run.id), looks_at_the_time)).output == output


async def test_the_time_does_not_go_back_with_the_clock(clock):
    async with engine(looks_at_the_time, clock=clock, max_parked=0, **SELDOM) as e:
        begun = clock.now() / 1000
        clock.set_back(600)
        run = await e.trigger(looks_at_the_time)
        clock.set_back(600)
        await settle()
        await clock.advance(2 * HOUR + 1200)
        await e.runs.signal(run.id, "go")
        await settle()
        output = (await e.runs.get(run.id)).output
        assert output == sorted(output)
        assert output[0] == begun - 600


async def test_two_timers_fire_in_the_order_in_which_they_are_due(clock):
    @job("sleeps")
    async def sleeps(ctx: Context, _: None) -> list[str]:
        async def sleep(hours: float) -> None:
            await asyncio.sleep(hours * HOUR)
            seen.append(f"{hours}")

        seen: list[str] = []
        await asyncio.gather(*(asyncio.create_task(sleep(hours)) for hours in (3, 1, 2, 2.5, 2)))
        return seen

    for life in LIVES:
        async with an_engine(sleeps, clock=clock, life=life) as e:
            run = await e.trigger(sleeps)
            await settle()
            await clock.advance(1.5 * HOUR)
            await live_on(e, life)
            await crash(e)
            await clock.advance(10 * HOUR)  # all the others are overdue at once
            await restart(e)
            await settle()
            assert (await e.runs.get(run.id)).output == ["1", "2", "2", "2.5", "3"]


async def test_a_timer_that_begins_after_an_outage_counts_from_then(clock):
    """``loop.time()`` is an hour behind when the second timer is set: it is due by the engine's clock."""

    @job("limited")
    async def limited(ctx: Context, _: None) -> str:
        await ctx.step("first", str, 1)
        async with asyncio.timeout(60):
            return await ctx.step("second", str, "in time")

    async with engine(limited, clock=clock, **SELDOM) as e:
        run = await e.trigger(limited)
        await crash_at(e, after="first")
        await clock.advance(HOUR)
        await restart(e)
        await settle()
        run = await e.runs.get(run.id)
        assert (run.output, run.error) == ("in time", None)


async def test_a_timer_that_was_not_recorded_when_its_engine_died_begins_anew(clock):
    @job("sleeps")
    async def sleeps(ctx: Context, _: None) -> str:
        await asyncio.sleep(HOUR)
        return "slept"

    async with engine(sleeps, clock=clock, **SELDOM) as e:
        run = await e.trigger(sleeps)
        point = crash_at(e, before=1)
        await point  # the first commit after the timer was set
        assert await timers_of(e, run) == 0
        await clock.advance(0.5 * HOUR)
        await restart(e)
        await settle()
        assert await timers_of(e, run) == 1
        await clock.advance(HOUR - 1)
        assert (await e.runs.get(run.id)).is_active
        await clock.advance(1)
        assert (await e.runs.get(run.id)).output == "slept"


async def timers_of(e: Engine, run: Run) -> int:
    if not e.is_running:
        await e.start(claim=False)
    return sum(step.kind == OperationKind.TIMER for step in await e.runs.steps(run.id))


async def test_a_timer_is_recorded_with_the_next_commit_though_the_run_does_not_rest(clock):
    @job("works")
    async def works(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR):
            await ctx.step("first", str)
            await ctx.step("second", asyncio.Event().wait)
        return "in time"

    async with engine(works, clock=clock, **SELDOM) as e:
        run = await e.trigger(works)
        await crash_at(e, after="first")
        await restart(e)
        (timer,) = [step for step in await e.runs.steps(run.id) if step.kind == OperationKind.TIMER]
        assert timer.status == StepStatus.RUNNING


async def test_after_ten_thousand_timers_in_a_row_a_log_line_suggests_something_better(clock, monkeypatch):
    assert waits.MANY_TIMERS == 10_000
    monkeypatch.setattr(waits, "MANY_TIMERS", 50)

    @job("polls")
    async def polls(ctx: Context, _: None) -> None:
        for _ in range(30):
            await asyncio.sleep(60)
        await ctx.sleep("nap", 1)
        for _ in range(60):
            await asyncio.sleep(60)

    async with engine(polls, clock=clock, **SELDOM) as e:
        run = await e.trigger(polls)
        await settle()
        await clock.advance(70 * 60)
        assert await e.runs.logs(run.id) == []
        await clock.advance(40 * 60)
        (line,) = await e.runs.logs(run.id)
        assert (line.level, line.step) == ("warning", None)
        assert "has set 50 timers without another operation" in line.message
        assert (await e.runs.get(run.id)).status == RunStatus.COMPLETED


async def test_a_timer_of_a_body_that_is_undone_does_not_hold_up_its_compensation(clock):
    @job("fails")
    async def fails(ctx: Context, _: None) -> None:
        await ctx.step("work", str, 1, compensate=undone.append)
        asyncio.get_running_loop().call_later(HOUR, undone.append, "fired")
        raise ValueError

    undone: list[Any] = []
    async with engine(fails, clock=clock, **SELDOM) as e:
        run = await e.trigger(fails)
        await settle()
        assert (await e.runs.get(run.id)).status == RunStatus.FAILED
        await clock.advance(2 * HOUR)
        assert undone == ["1"]


@pytest.mark.parametrize("life", LIVES)
async def test_a_run_that_sleeps_for_less_than_a_second_keeps_its_slot_and_the_same_time(life):
    clock = MockClock()

    @job("sleeps")
    async def sleeps(ctx: Context, _: None) -> list[float]:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.5)
        return [asyncio.get_running_loop().time() - began]

    async with an_engine(sleeps, clock=clock, life=life) as e:
        run = await e.trigger(sleeps)
        await settle()
        assert (await e.runs.get(run.id)).status == RunStatus.RUNNING
        await live_on(e, life)
        await clock.advance(0.5)
        assert (await e.runs.get(run.id)).output == [0.5]
