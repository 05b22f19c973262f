"""Sleeping: due times are fixed once, kept across restarts, and never early."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from watching import finish, timeline

from durable_web import Context, NonDeterminismError, Retry, RunStatus, job
from durable_web._model import from_milliseconds, to_wire
from durable_web.testing import crash, engine, restart, settle

DAY = 24 * 3600
PATIENT = {"lease": 1e9}  # heartbeats would be a million a year


@job("nap")
async def nap(ctx: Context, seconds: float) -> str:
    await ctx.sleep("nap", seconds)
    return "awake"


@job("until")
async def until(ctx: Context, when: datetime) -> str:
    await ctx.sleep_until("until", when)
    return "awake"


async def status(e, run) -> RunStatus:
    return (await e.runs.get(run.id)).status


async def test_a_sleep_ends_when_its_time_has_come_and_not_before(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 60)
        await clock.advance(59.999)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(0.001)
        assert (await e.runs.get(run.id)).output == "awake"


async def test_a_duration_may_be_a_timedelta(clock):
    @job("days")
    async def days(ctx: Context, _: None) -> None:
        await ctx.sleep("days", timedelta(days=2))

    async with engine(days, clock=clock) as e:
        run = await e.trigger(days)
        await settle()
        (step,) = await e.runs.steps(run.id)
        assert step.wake_at == from_milliseconds(clock.now()) + timedelta(days=2)


async def test_sleeping_until_a_moment(clock):
    async with engine(until, clock=clock) as e:
        run = await e.trigger(until, from_milliseconds(clock.now()) + timedelta(hours=1))
        await clock.advance(3599)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(1)
        assert await status(e, run) == RunStatus.COMPLETED


async def test_a_moment_that_has_passed_and_a_duration_of_nothing_are_not_waited_for(clock):
    async with engine(nap, until, clock=clock) as e:
        for run in (await e.trigger(until, datetime(2001, 1, 1, tzinfo=UTC)), await e.trigger(nap, 0)):
            await finish(e, run)
            assert [frame.status for frame in await timeline(e, run) if frame.kind == "run_status"] == [
                "pending",
                "running",
                "completed",
            ]


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "an hour"])
async def test_a_duration_that_is_none_fails_the_run_and_says_so(wrong):
    @job("wrong")
    async def wrong_sleep(ctx: Context, _: None) -> None:
        await ctx.sleep("wrong", wrong)

    async with engine(wrong_sleep) as e:
        run = await e.trigger_and_wait(wrong_sleep)
        assert run.error.type == "ValueError"
        assert "finite number of seconds" in run.error.message
        assert await e.runs.steps(run.id) == []


async def test_a_moment_without_a_time_zone_is_refused():
    @job("naive")
    async def naive(ctx: Context, _: None) -> None:
        await ctx.sleep_until("naive", datetime(2030, 1, 1))  # noqa: DTZ001

    async with engine(naive) as e:
        assert "has no time zone" in (await e.trigger_and_wait(naive)).error.message


# --- restarts --------------------------------------------------------------------------------------------------------


async def test_the_due_time_is_fixed_when_the_sleep_first_begins(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 100)
        await settle()
        due = (await e.runs.steps(run.id))[0].wake_at
        for _ in range(3):
            await clock.advance(30)
            await restart(e)
            await settle()
            assert (await e.runs.steps(run.id))[0].wake_at == due
        await clock.advance(9.999)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(0.001)
        assert await status(e, run) == RunStatus.COMPLETED


async def test_a_sleep_that_is_overdue_after_a_restart_ends_at_once(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 100)
        await settle()
        await crash(e)
        await clock.advance(DAY)
        await restart(e)
        await settle()
        assert (await e.runs.get(run.id)).output == "awake"


async def test_years_are_fine(clock):
    async with engine(nap, clock=clock, **PATIENT) as e:
        run = await e.trigger(nap, 3 * 365 * DAY)
        await clock.advance(3 * 365 * DAY - 1)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(1)
        assert await status(e, run) == RunStatus.COMPLETED


async def test_a_sleep_beyond_all_calendars_lasts_to_the_end_of_the_last_one():
    async with engine(nap) as e:
        run = await e.trigger(nap, 1e300)
        await settle()
        (step,) = await e.runs.steps(run.id)
        assert step.wake_at.year == 9999
        assert to_wire(step)["wakeAt"] == step.wake_at.timestamp() * 1000


# --- the wall clock --------------------------------------------------------------------------------------------------


async def test_when_the_clock_goes_back_nothing_is_early(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 100)
        await settle()
        clock.set_back(1000)
        await clock.advance(1099)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(1)
        assert await status(e, run) == RunStatus.COMPLETED


async def test_when_the_clock_goes_back_during_a_sleep_too_short_to_park_nothing_is_early(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 0.5)
        await settle()
        clock.set_back(100)
        await clock.advance(100)
        assert not (await e.runs.get(run.id)).is_terminal
        await clock.advance(1)
        assert await status(e, run) == RunStatus.COMPLETED


async def test_when_the_clock_goes_forward_the_sleep_ends_with_the_next_heartbeat(clock):
    async with engine(nap, clock=clock, lease=30) as e:
        run = await e.trigger(nap, DAY)
        await settle()
        clock.set_forward(DAY)
        await clock.advance(10)
        assert await status(e, run) == RunStatus.COMPLETED


# --- slots and timers ------------------------------------------------------------------------------------------------


async def test_a_sleeping_run_holds_no_slot_and_no_lease(clock):
    async with engine(nap, clock=clock, max_concurrent_runs=1) as e:
        first = await e.trigger(nap, 100)
        await settle()
        run = await e.runs.get(first.id)
        assert (run.status, run.lease_owner) == (RunStatus.WAITING, None)
        await e.trigger(nap, 0)
        await settle()
        assert await e.runs.count() == {"waiting": 1, "completed": 1}


async def test_a_sleep_too_short_to_be_worth_parking_keeps_the_slot(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 0.9)
        await settle()
        assert await status(e, run) == RunStatus.RUNNING
        await clock.advance(0.9)
        assert await status(e, run) == RunStatus.COMPLETED


async def test_many_sleeps_need_one_timer_for_the_earliest(clock):
    async with engine(nap, clock=clock, **PATIENT) as e:
        for seconds in (300, 100, 200):
            await e.trigger(nap, seconds)
        await settle()
        alive = [timer for _, _, timer in clock._timers if timer.callback is not None]
        heartbeat, due = 1, 1
        assert len(alive) == heartbeat + due
        for completed in (1, 2, 3):
            await clock.advance(100)
            assert (await e.runs.count())["completed"] == completed


async def test_more_sleeps_than_one_transaction_ends_all_end(clock):
    async with engine(nap, clock=clock, max_parked=0, max_concurrent_runs=1000, **PATIENT) as e:
        runs = 1203
        for _ in range(runs):
            await e.trigger(nap, 100)
        await settle()
        assert await e.runs.count() == {"waiting": runs}
        await clock.advance(100)
        assert await e.runs.count() == {"completed": runs}


# --- with asyncio ----------------------------------------------------------------------------------------------------


@job("race")
async def race(ctx: Context, _: None) -> list[str]:
    async def after(name: str, seconds: float) -> str:
        await ctx.sleep(name, seconds)
        return name

    sleeps = [asyncio.ensure_future(after("long", 100)), asyncio.ensure_future(after("short", 1))]
    done, pending = await asyncio.wait(sleeps, return_when=asyncio.FIRST_COMPLETED)
    for sleep in pending:
        sleep.cancel()
    return sorted(sleep.result() for sleep in done)


@pytest.mark.parametrize("kept", [0, 1, 1000])
async def test_the_first_of_two_sleeps_wakes_the_run(clock, kept):
    async with engine(race, nap, clock=clock, max_parked=kept) as e:
        run = await e.trigger(race)
        for _ in range(2):
            await e.trigger(nap, 50)  # which drive it out of memory
        await clock.advance(0.999)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(0.001)
        assert (await e.runs.get(run.id)).output == ["short"]
        assert [step.status for step in await e.runs.steps(run.id)] == ["cancelled", "completed"]


async def test_the_first_of_two_sleeps_wakes_the_run_also_after_a_restart(clock):
    async with engine(race, clock=clock) as e:
        run = await e.trigger(race)
        await clock.advance(0.5)
        await restart(e)
        await clock.advance(0.499)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(0.001)
        assert (await e.runs.get(run.id)).output == ["short"]


async def test_sleeps_side_by_side_in_gather_and_in_a_task_group(clock):
    @job("side-by-side")
    async def side_by_side(ctx: Context, _: None) -> None:
        await asyncio.gather(ctx.sleep("nap", 60), ctx.sleep("nap", 30))
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.sleep("nap", 10))
            group.create_task(ctx.sleep("nap", 20))

    async with engine(side_by_side, clock=clock) as e:
        run = await e.trigger(side_by_side)
        await clock.advance(79)
        assert await status(e, run) == RunStatus.WAITING
        await clock.advance(1)
        assert await status(e, run) == RunStatus.COMPLETED
        assert [step.name for step in await e.runs.steps(run.id)] == ["nap", "nap#2", "nap#3", "nap#4"]


async def test_a_sleep_inside_asyncio_timeout_is_called_off(clock):
    @job("impatient")
    async def impatient(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.01):
                await ctx.sleep("too long", 3600)
        except TimeoutError:
            return await ctx.step("give up", str, "gave up")
        return "slept"

    async with engine(impatient, clock=clock) as e:
        run = await e.trigger(impatient)
        await clock.advance(0.01)
        assert (await finish(e, run)).output == "gave up"
        steps = {step.name: (step.kind, step.status) for step in await e.runs.steps(run.id)}
    assert steps == {
        "timer:1": ("timer", "completed"),
        "too long": ("sleep", "cancelled"),
        "give up": ("step", "completed"),
    }


async def test_a_sleep_that_was_called_off_does_not_end_in_a_later_execution(clock):
    """By then its time has passed; the body still goes the way that it went."""
    ways: list[str] = []

    @job("called-off")
    async def called_off(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.01):
                await ctx.sleep("too long", 3600)
            ways.append("slept")
        except TimeoutError:
            ways.append("gave up")
        await ctx.wait_for_signal("go on")
        return ways[-1]

    async with engine(called_off, clock=clock) as e:
        run = await e.trigger(called_off)
        await clock.advance(0.01)
        assert (await e.runs.get(run.id)).current_step == "go on"
        await crash(e)
        await clock.advance(DAY)
        await restart(e)
        await e.runs.signal(run.id, "go on")
        assert (await finish(e, run)).output == "gave up"
    assert set(ways) == {"gave up"}


async def test_a_run_with_an_executing_step_keeps_its_slot_until_all_branches_wait(clock):
    gate = asyncio.Event()

    @job("mixed")
    async def mixed(ctx: Context, _: None) -> None:
        await asyncio.gather(ctx.sleep("nap", 60), ctx.step("work", gate.wait))

    async with engine(mixed, clock=clock) as e:
        run = await e.trigger(mixed)
        await settle()
        assert await status(e, run) == RunStatus.RUNNING
        gate.set()
        await settle()
        assert await status(e, run) == RunStatus.WAITING


async def test_a_body_that_ends_during_a_sleep_leaves_no_timer_behind(clock):
    gate = asyncio.Event()

    @job("ends")
    async def ends(ctx: Context, _: None) -> str:
        branch = asyncio.ensure_future(ctx.sleep("forgotten", 100))
        await ctx.step("work", gate.wait)
        return f"done, {'still sleeping' if not branch.done() else 'slept'}"

    tasks = asyncio.all_tasks()
    async with engine(ends, clock=clock) as e:
        run = await e.trigger(ends)
        await settle()
        gate.set()
        assert (await finish(e, run)).output == "done, still sleeping"
        frames = await timeline(e, run)
        await clock.advance(1000)
        assert await timeline(e, run) == frames
        assert {step.name: step.status for step in await e.runs.steps(run.id)} == {
            "forgotten": "cancelled",
            "work": "completed",
        }
        assert asyncio.all_tasks() == tasks


async def test_a_retry_and_a_sleep_wait_side_by_side(clock):
    attempts: list[int] = []

    def fail_first() -> str:
        attempts.append(len(attempts) + 1)
        if len(attempts) == 1:
            raise ValueError("not yet")
        return "done"

    @job("both", retry=Retry(max_attempts=2, backoff=50, jitter=0))
    async def both(ctx: Context, _: None) -> str:
        result, _ = await asyncio.gather(ctx.step("flaky", fail_first), ctx.sleep("nap", 100))
        return result

    async with engine(both, clock=clock) as e:
        run = await e.trigger(both)
        await settle()
        run = await e.runs.get(run.id)
        assert run.waiting_reason == "it waits for the next attempt at 'flaky', the end of sleep 'nap'"
        await clock.advance(50)
        assert attempts == [1, 2]
        await clock.advance(50)
        assert (await e.runs.get(run.id)).output == "done"


# --- being seen ------------------------------------------------------------------------------------------------------


async def test_steps_and_timeline_tell_that_it_is_a_sleep_and_until_when(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 60)
        await settle()
        due = from_milliseconds(clock.now() + 60_000)
        (step,) = await e.runs.steps(run.id)
        assert (step.kind, step.status, step.wake_at) == ("sleep", "running", due)
        assert step.waiting_for == "the end of sleep 'nap'"
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for the end of sleep 'nap'"
        await clock.advance(60)
        begun, ended = [frame for frame in await timeline(e, run) if frame.kind == "step_status"]
        assert (begun.type, begun.status, begun.wake_at) == ("sleep", "running", due)
        assert (ended.type, ended.status, ended.duration) == ("sleep", "completed", 60)
        (step,) = await e.runs.steps(run.id)
        assert (step.status, step.waiting_for) == ("completed", None)
        assert (await e.runs.get(run.id)).waiting_reason is None


async def test_a_cancelled_sleep_is_told_as_one(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 60)
        await settle()
        await e.runs.cancel(run.id)
        *_, cancelled = [frame for frame in await timeline(e, run) if frame.kind == "step_status"]
        assert (cancelled.type, cancelled.status) == ("sleep", "cancelled")
        await clock.advance(100)
        assert await status(e, run) == RunStatus.CANCELLED
        assert (await e.runs.steps(run.id))[0].status == "cancelled"


async def test_a_recorded_sleep_that_comes_back_as_a_step_fails_the_run_and_keeps_its_history(clock):
    @job("nap")
    async def changed(ctx: Context, seconds: float) -> str:
        await ctx.step("nap", str, "no nap")
        return "awake"

    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap, 60)
        await settle()
        await restart(e, changed)
        await clock.advance(60)
        failed = await e.runs.get(run.id)
        assert failed.error.type == NonDeterminismError.__name__
        assert "'nap' is recorded as a sleep, but the code now calls it as a step" in failed.error.message
        assert [(step.kind, step.status) for step in await e.runs.steps(run.id)] == [("sleep", "completed")]


async def test_a_run_that_dies_while_a_branch_sleeps_is_not_woken_again(clock):
    @job("deadly")
    async def deadly(ctx: Context, _: None) -> None:
        await asyncio.gather(ctx.sleep("nap", 100), ctx.step("kill", asyncio.Event().wait))

    async with engine(deadly, clock=clock, max_recoveries=0) as e:
        run = await e.trigger(deadly)
        await settle()
        await restart(e)
        assert await status(e, run) == RunStatus.DEAD
        frames = await timeline(e, run)
        await clock.advance(1000)
        assert await timeline(e, run) == frames
        assert {step.status for step in await e.runs.steps(run.id)} == {"cancelled"}
