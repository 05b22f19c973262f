"""The wall clock jumps, back and forth: nothing begins early, nothing is forgotten, nothing is negative."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from watching import cpython_only, finish, timeline

from durable_web import Context, Retry, RunStatus, job
from durable_web.testing import MockClock, crash, settle

HOUR = 3600
JUMP = 300


@pytest.fixture
def calls() -> list[int]:
    return []


@pytest.fixture
def flaky(calls):
    """A job whose step fails once, and is due again after the seconds that it is given."""

    @job("flaky")
    async def flaky_job(ctx: Context, backoff: float) -> int:
        def call() -> int:
            calls.append(1)
            if len(calls) == 1:
                raise ConnectionError
            return len(calls)

        return await ctx.step("call", call, retry=Retry(max_attempts=2, backoff=backoff, max_delay=backoff, jitter=0))

    return flaky_job


async def test_a_clock_that_is_set_back_does_not_let_a_waiting_step_begin_early(running, flaky, calls):
    clock = MockClock()
    async with running(flaky, clock=clock) as engine:
        run = await engine.trigger("flaky", 60)
        await clock.advance(30)
        clock.set_back(HOUR)
        await clock.advance(HOUR + 29)
        assert (len(calls), (await engine.runs.get(run.id)).status) == (1, RunStatus.WAITING)
        await clock.advance(2)
        assert (await engine.runs.get(run.id)).output == 2


async def test_a_short_wait_that_the_clock_made_long_gives_its_slot_away(running, flaky, calls):
    clock = MockClock()
    async with running(flaky, clock=clock) as engine:
        run = await engine.trigger("flaky", 0.5)
        await settle()
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        clock.set_back(HOUR)
        await clock.advance(1)
        assert (len(calls), (await engine.runs.get(run.id)).status) == (1, RunStatus.WAITING)
        await clock.advance(HOUR)
        assert (await engine.runs.get(run.id)).output == 2


async def test_what_came_due_while_the_computer_slept_begins_with_the_next_heartbeat(running, flaky):
    clock = MockClock()
    async with running(flaky, clock=clock, lease=30) as engine:
        run = await engine.trigger("flaky", HOUR)
        await clock.advance(1)
        clock.set_forward(2 * HOUR)  # and no timer has counted meanwhile
        await clock.advance(10)
        assert (await engine.runs.get(run.id)).output == 2


async def test_a_scheduled_run_and_a_deadline_follow_the_wall_clock(running, flaky):
    @job("endless")
    async def endless(ctx: Context, _: None) -> None:
        await asyncio.Event().wait()

    clock = MockClock()
    noon = datetime.fromtimestamp(clock.now() / 1000, UTC) + timedelta(hours=1)
    async with running(flaky, endless, clock=clock) as engine:
        scheduled = await engine.trigger("flaky", 0, run_at=noon)
        limited = await engine.trigger("endless", deadline=noon)
        clock.set_back(HOUR)
        await clock.advance(HOUR + HOUR - 1)
        assert (await engine.runs.get(scheduled.id)).status == RunStatus.PENDING
        assert (await engine.runs.get(limited.id)).status == RunStatus.RUNNING
        await clock.advance(2)
        assert (await engine.runs.get(scheduled.id)).status == RunStatus.COMPLETED
        assert (await engine.runs.get(limited.id)).error.type == "DeadlineExceeded"


async def test_what_is_due_in_a_year_sets_no_timer_that_a_browser_could_not_count(running, flaky):
    class BrowserClock(MockClock):
        """A browser counts milliseconds in 32 bits: a longer timer fires at once, again and again."""

        def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
            assert delay < 2**31 / 1000, "this timer would fire at once"
            return super().call_later(delay, callback)

    gate = asyncio.Event()
    attempts: list[int] = []
    in_a_month = Retry(max_attempts=2, backoff=720 * HOUR, max_delay=720 * HOUR, jitter=0, timeout=720 * HOUR)

    async def come_through() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError
        return "came through"

    @job("busy")
    async def busy_job(ctx: Context, _: None) -> list[Any]:
        return await asyncio.gather(ctx.step("late", come_through, retry=in_a_month), ctx.step("busy", gate.wait))

    clock = BrowserClock()
    in_a_year = datetime.fromtimestamp(clock.now() / 1000, UTC) + timedelta(days=365)
    async with running(flaky, busy_job, clock=clock, lease=1_000_000) as engine:
        run = await engine.trigger("flaky", 0, run_at=in_a_year)
        waiting = await engine.trigger("flaky", 365 * 24 * HOUR)
        await settle()
        assert (await engine.runs.get(waiting.id)).status == RunStatus.WAITING
        busy = await engine.trigger("busy")
        await clock.advance(365 * 24 * HOUR + 10)
        assert (await engine.runs.get(run.id)).status == RunStatus.COMPLETED
        gate.set()
        assert (await finish(engine, busy)).output == ["came through", True]


async def test_durations_are_never_negative(running):
    gate = asyncio.Event()

    @job("long")
    async def long(ctx: Context, _: None) -> None:
        await ctx.step("wait", gate.wait)

    clock = MockClock()
    told: list[float] = []
    async with running(long, clock=clock, max_concurrent_runs=1) as engine:
        engine.on("run:complete", lambda event: told.append(event.duration))
        engine.on("step:complete", lambda event: told.append(event.duration))
        first, second = await engine.trigger("long"), await engine.trigger("long")
        await clock.advance(10)
        clock.set_back(HOUR)
        gate.set()
        frames = await timeline(engine, first)
        second = await finish(engine, second)
        (step,) = await engine.runs.steps(second.id)
    assert told == [0.0] * 4
    assert [frame.duration for frame in frames if frame.kind == "step_status" and frame.status == "completed"] == [0.0]
    assert (second.queue_time, step.queue_time) == (0.0, 0.0)


async def test_runs_triggered_after_the_clock_was_set_back_still_come_after_those_before(running):
    order: list[int] = []

    @job("note")
    async def note(ctx: Context, number: int) -> None:
        order.append(number)

    clock = MockClock()
    async with running(note, clock=clock, max_concurrent_runs=1) as engine:
        await engine.trigger("note", 1)
        clock.set_back(HOUR)
        await finish(engine, await engine.trigger("note", 2))
        assert [run.input for run in await engine.runs.list()] == [2, 1]
    assert order == [1, 2]


@cpython_only("OPFS has one engine per file")
async def test_an_owner_keeps_its_lease_when_the_clock_is_set_back_and_others_take_the_run_only_after_it_ends(running):
    begun: list[int] = []
    gate = asyncio.Event()

    async def wait(attempt: int) -> int:
        begun.append(attempt)
        await gate.wait()
        return attempt

    @job("long")
    async def long(ctx: Context, _: None) -> int:
        return await ctx.step("wait", wait, ctx.attempt)

    clock = MockClock()
    options = {"clock": clock, "exclusive": False, "lease": 30}
    async with running(long, **options) as owner, running(long, **options) as other:
        run = await owner.trigger("long")
        await clock.advance(1)
        clock.set_back(JUMP)
        await clock.advance(2 * JUMP)  # heartbeats go on meanwhile, and renew
        assert begun == [1]
        renewed = (await other.runs.get(run.id)).lease_expires_at.timestamp() * 1000
        assert clock.now() < renewed <= clock.now() + 30_000

        holder = owner if owner.internals.dispatcher.executing else other
        await crash(holder)
        clock.set_back(JUMP)
        heir = other if holder is owner else owner
        await clock.advance(JUMP - 30)
        assert begun == [1]  # the lease of the dead lasts longer: by the wall clock it has not ended
        await clock.advance(60)
        assert begun == [1, 2]
        gate.set()
        assert (await finish(heir, run)).output == 2


@cpython_only("OPFS has one engine per file")
async def test_a_run_whose_lease_a_jump_of_the_clock_ended_is_executed_once_more_and_recorded_once(running):
    begun: list[int] = []
    gates = {1: asyncio.Event(), 2: asyncio.Event()}

    async def wait(attempt: int) -> int:
        begun.append(attempt)
        await gates[attempt].wait()
        return attempt

    @job("long")
    async def long(ctx: Context, _: None) -> int:
        return await ctx.step("wait", wait, ctx.attempt)

    clock = MockClock()
    options = {"clock": clock, "exclusive": False, "lease": 30}
    async with running(long, **options) as one, running(long, **options):
        run = await one.trigger("long")
        await clock.advance(1)
        clock.set_forward(HOUR)
        await clock.advance(10)
        assert begun == [1, 2]
        gates[1].set()
        await settle()
        assert (await one.runs.get(run.id)).status == RunStatus.RUNNING
        gates[2].set()
        run = await finish(one, run)
    assert (run.output, run.generation) == (2, 2)
