"""Schedules: each due time once, whatever happens in between."""

from __future__ import annotations

import itertools
import sys
from datetime import UTC, datetime, timedelta

import pytest
from watching import cpython_only, finish

from durable_web import (
    Context,
    Engine,
    InvalidInput,
    JobNotFound,
    LibraryMissing,
    RateLimit,
    Retry,
    RunStatus,
    ScheduleNotFound,
    Singleton,
    job,
)
from durable_web._recurrence import Recurrence
from durable_web.testing import MockClock, crash, settle

HOUR = 3600.0
QUIET = {"lease": 1e6}  # beats seldom, so that days pass quickly
START = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)  # what MockClock begins with: a Friday
SCHEDULED_AT = "durable/scheduled-at"


@job("tick")
async def tick(ctx: Context, value: object) -> object:
    return value


@job("retrying")
async def retrying(ctx: Context, _: None) -> None:
    """Is active for a hundred seconds, and parked meanwhile."""

    def fail_once() -> None:
        if not failed:
            failed.append(True)
            raise ValueError

    failed = [True] if ctx.attempt > 1 else []
    await ctx.step("wait", fail_once, retry=Retry(max_attempts=2, backoff=100, jitter=0))


async def scheduled_times(engine: Engine, **filters) -> list[str]:
    """The due times that have become runs, in the order in which they did."""
    runs = await engine.runs.list(order="oldest", limit=1000, **filters)
    return [datetime.fromisoformat(run.labels[SCHEDULED_AT]).strftime("%d. %H:%M") for run in runs]


def milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def times(recurrence: Recurrence, after: str, count: int) -> list[str]:
    """The next times, each worked out from the one before, as the engine does."""
    moment, found = milliseconds(after), []
    for _ in range(count):
        moment = recurrence.next_after(moment)
        found.append(datetime.fromtimestamp(moment / 1000, UTC).strftime("%m-%d %H:%M"))
    return found


def cron(expression: str, timezone: str = "UTC") -> Recurrence:
    return Recurrence(expression, None, 0, timezone)


# --- times -----------------------------------------------------------------------------------------------------------


async def test_a_schedule_triggers_at_crons_times_with_its_input_and_labels(running):
    clock = MockClock()
    async with running(tick, clock=clock, **QUIET) as engine:
        await engine.schedules.create("daily", tick, cron="30 9 * * *", input={"a": 1}, labels={"kind": "report"})
        await clock.advance(1.5 * HOUR - 1)
        assert await engine.runs.list() == []
        await clock.advance(1)
        [run] = await engine.runs.list()
        assert (run.status, run.output) == (RunStatus.COMPLETED, {"a": 1})
        assert run.labels == {
            "kind": "report",
            "durable/schedule": "daily",
            "durable/scheduled-at": "2027-01-15T09:30:00+00:00",
        }
        await clock.advance(48 * HOUR)
        assert await scheduled_times(engine) == ["15. 09:30", "16. 09:30", "17. 09:30"]


async def test_every_counts_from_when_the_schedule_was_made(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        made = await engine.schedules.create("often", "tick", every=timedelta(minutes=20))
        assert (made.every, made.next_due) == (1200.0, START + timedelta(minutes=20))
        await clock.advance(HOUR)
        assert await scheduled_times(engine) == ["15. 08:20", "15. 08:40", "15. 09:00"]


async def test_a_schedule_in_a_zone_goes_by_its_clocks(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        made = await engine.schedules.create("morning", tick, cron="0 7 * * *", timezone="America/New_York")
        assert made.next_due == datetime(2027, 1, 15, 12, 0, tzinfo=UTC)


def test_a_time_that_the_change_of_clocks_leaves_out_comes_right_after_it():
    found = times(cron("30 2 * * *", "Europe/Berlin"), "2027-03-26T12:00:00+00:00", 3)
    assert found == ["03-27 01:30", "03-28 01:00", "03-29 00:30"]


def test_a_time_that_the_change_of_clocks_repeats_comes_once():
    rule = cron("30 1 * * *", "Europe/London")
    assert times(rule, "2026-10-24T12:00:00+00:00", 2) == ["10-25 00:30", "10-26 01:30"]
    assert times(rule, "2026-10-25T00:45:00+00:00", 1) == ["10-26 01:30"]
    assert times(rule, "2026-10-25T01:15:00+00:00", 1) == ["10-26 01:30"], "not the first one again"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("*/15 2 * * *", "0,15,30,45 2 * * *"),
        ("* 2 * * *", "0-59 2 * * *"),
        ("*/20 1-3 * * *", "0,20,40 1,2,3 * * *"),
        ("5-50/15 2 * * SUN", "5,20,35,50 2 * * 0"),
        ("*/30 0-23/2 * * *", "0,30 0-23/2 * * *"),
    ],
)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_an_expression_that_names_hours_gives_the_same_times_however_its_minutes_are_spelled(one, other, zone):
    for start in (
        "2026-03-07T00:00:00+00:00",
        "2026-03-28T00:00:00+00:00",
        "2026-04-04T00:00:00+00:00",
        "2026-10-03T00:00:00+00:00",
        "2026-10-24T00:00:00+00:00",
        "2026-10-31T00:00:00+00:00",
    ):
        assert times(cron(one, zone), start, 40) == times(cron(other, zone), start, 40)


def test_what_comes_every_half_hour_goes_on_through_a_change_of_clocks():
    rule = cron("*/30 * * * *", "Europe/London")
    found = times(rule, "2026-10-25T00:00:00+00:00", 4)
    assert found == ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"]


@pytest.mark.parametrize("expression", ["*/7 * * * *", "30 2 * * *", "15 1,2,3 * * *", "0 0 1 * *", "0 12 29 2 *"])
def test_the_latest_time_is_the_last_of_those_that_come_one_after_the_other(expression):
    rule = cron(expression, "Europe/Berlin")
    first = rule.next_after(milliseconds("2027-03-01T00:00:00+00:00"))
    now = max(first, milliseconds("2027-03-28T01:10:00+00:00"))
    latest, following = first, rule.next_after(first)
    while following <= now:
        latest, following = following, rule.next_after(following)
    assert rule.latest_until(first, now) == latest


# --- being away ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "made"),
    [("none", []), ("latest", ["15. 11:00"]), ("all", ["15. 09:00", "15. 10:00", "15. 11:00"])],
)
async def test_due_times_without_a_running_engine_are_made_up_for_as_the_schedule_says(running, catch_up, made):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, cron="0 * * * *", catch_up=catch_up, overlap="allow")
    await clock.advance(3.5 * HOUR)
    async with running(tick, clock=clock) as engine:
        await settle()
        assert await scheduled_times(engine) == made
        [schedule] = await engine.schedules.list()
        assert schedule.next_due == START + timedelta(hours=4)
        if catch_up != "all":
            assert schedule.skips > 0
            assert schedule.skip_reason == "missed"
        await clock.advance(0.5 * HOUR)
        assert await scheduled_times(engine) == [*made, "15. 12:00"]


@pytest.mark.parametrize("timing", [{"cron": "0 * * * *"}, {"every": "1h"}])
@pytest.mark.parametrize("overlap", ["skip", "queue", "allow"])
async def test_all_missed_due_times_are_made_up_for_whatever_overlap_is(running, timing, overlap):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, catch_up="all", overlap=overlap, **timing)
    await clock.advance(3.5 * HOUR)
    async with running(tick, clock=clock) as engine:
        await settle()
        assert await engine.runs.count() == {"completed": 3}
        (schedule,) = await engine.schedules.list()
        assert (schedule.skips, schedule.skip_reason) == (0, None)


async def test_a_due_time_that_has_just_gone_by_is_not_missed(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, every="1h")
    await clock.advance(HOUR + 30)
    async with running(tick, clock=clock) as engine:
        await settle()
        assert await scheduled_times(engine) == ["15. 09:00"]


async def test_thousands_of_missed_times_are_made_up_for_in_several_transactions(running):
    clock = MockClock()
    async with running(tick, clock=clock, max_concurrent_runs=0) as engine:
        await engine.schedules.create("minutely", tick, every="1m", catch_up="all", overlap="allow")
    await clock.advance(2000 * 60)
    async with running(tick, clock=clock, max_concurrent_runs=0) as engine:
        assert sum((await engine.runs.count()).values()) == 100
        await clock.advance(1)
        assert sum((await engine.runs.count()).values()) == 2000


async def test_a_crash_between_the_due_time_and_its_run_neither_loses_nor_doubles_it(running, monkeypatch):
    clock = MockClock()

    def die(*arguments):
        raise KeyboardInterrupt

    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, every="1h", catch_up="all", overlap="allow")
        with monkeypatch.context() as patch:
            patch.setattr(engine.internals.store.schedules, "note_run", die)
            with pytest.raises(KeyboardInterrupt):
                await clock.advance(HOUR)
        await crash(engine)
    async with running(tick, clock=clock) as engine:
        await settle()
        assert await scheduled_times(engine) == ["15. 09:00"]
        await crash(engine)
    async with running(tick, clock=clock) as engine:
        await settle()
        assert await scheduled_times(engine) == ["15. 09:00"]


@cpython_only("OPFS has one engine per file")
async def test_two_engines_on_one_file_make_one_run_of_each_due_time(running):
    clock = MockClock()
    async with (
        running(tick, clock=clock, exclusive=False) as first,
        running(tick, clock=clock, exclusive=False) as second,
    ):
        await first.schedules.create("minutely", tick, every="1m")
        await clock.advance(1)
        await second.schedules.create("minutely", tick, every="1m")
        await clock.advance(300)
        assert await scheduled_times(second) == [f"15. 08:0{minute}" for minute in range(1, 6)]


async def test_a_clock_that_goes_back_triggers_neither_early_nor_twice(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, every="1h")
        await clock.advance(HOUR)
        clock.set_back(1800)
        await clock.advance(HOUR)
        assert await scheduled_times(engine) == ["15. 09:00"]
        await clock.advance(0.5 * HOUR)
        assert await scheduled_times(engine) == ["15. 09:00", "15. 10:00"]


# --- overlap ---------------------------------------------------------------------------------------------------------


async def test_while_a_run_is_active_a_due_time_is_passed_over_and_that_is_noted(running):
    clock = MockClock()
    async with running(retrying, clock=clock) as engine:
        await engine.schedules.create("busy", retrying, every="1m")
        await clock.advance(130)
        [run] = await engine.runs.list()
        assert run.status == RunStatus.WAITING
        [schedule] = await engine.schedules.list()
        assert (schedule.skips, schedule.last_skipped) == (1, START + timedelta(seconds=120))
        assert schedule.skip_reason == f"run {run.id} was active"
        await clock.advance(60)
        assert await scheduled_times(engine) == ["15. 08:01", "15. 08:03"]


async def test_queued_due_times_follow_one_another_and_never_overlap(running):
    clock = MockClock()
    async with running(retrying, clock=clock) as engine:
        await engine.schedules.create("busy", retrying, every="1m", overlap="queue")
        await clock.advance(150)
        runs = await engine.runs.list(order="oldest")
        assert [run.status for run in runs] == [RunStatus.WAITING, RunStatus.PENDING]
        await clock.advance(20)
        runs = await engine.runs.list(order="oldest")
        assert [run.status for run in runs] == [RunStatus.COMPLETED, RunStatus.WAITING]
        await engine.schedules.delete("busy")
        await clock.advance(300)
        runs = await engine.runs.list(order="oldest")
        assert {run.status for run in runs} == {RunStatus.COMPLETED}
        assert all(a.completed_at <= b.started_at for a, b in itertools.pairwise(runs))


async def test_overlapping_runs_execute_side_by_side_where_that_is_allowed(running):
    clock = MockClock()
    async with running(retrying, clock=clock) as engine:
        await engine.schedules.create("busy", retrying, every="1m", overlap="allow")
        await clock.advance(130)
        assert [run.status for run in await engine.runs.list()] == [RunStatus.WAITING] * 2


# --- jitter ----------------------------------------------------------------------------------------------------------


async def test_jitter_puts_runs_off_by_what_their_due_time_decides_also_across_a_restart(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("spread", tick, every="1h", jitter=600, overlap="allow")
        await clock.advance(HOUR)
        [run] = await engine.runs.list()
        delay = (run.run_at - START - timedelta(hours=1)).total_seconds()
        assert 0 < delay < 600
        assert run.status == RunStatus.PENDING
        await crash(engine)
    async with running(tick, clock=clock, **QUIET) as engine:
        await clock.advance(delay - 1)
        assert (await engine.runs.get(run.id)).status == RunStatus.PENDING
        await clock.advance(2)
        assert (await engine.runs.get(run.id)).status == RunStatus.COMPLETED
        await clock.advance(20 * HOUR)
        delays = {(run.run_at - datetime.fromisoformat(run.labels[SCHEDULED_AT])) for run in await engine.runs.list()}
        assert len(delays) > 10, "and is another for each due time"


# --- managing --------------------------------------------------------------------------------------------------------


async def test_schedules_survive_a_restart_and_are_listed_by_name(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("b", tick, every="1h", input=[1, 2])
        await engine.schedules.create(
            "a", tick, cron="0 9 * * MON", timezone="Asia/Tokyo", catch_up="latest", jitter="1m"
        )
        before = await engine.schedules.list()
        await crash(engine)
    async with running(tick, clock=clock) as engine:
        assert await engine.schedules.list() == before
    assert [(each.name, each.cron, each.timezone, each.jitter) for each in before] == [
        ("a", "0 9 * * MON", "Asia/Tokyo", 60.0),
        ("b", None, "UTC", 0.0),
    ]


async def test_registering_again_changes_the_schedule_and_keeps_its_due_time_unless_the_timing_changed(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        first = await engine.schedules.create("hourly", tick, every="1h", input=1)
        await clock.advance(1800)
        again = await engine.schedules.create("hourly", tick, every="60m", input=2)
        assert (again.next_due, again.created_at) == (first.next_due, first.created_at)
        await clock.advance(1800)
        assert [run.output for run in await engine.runs.list()] == [2]
        changed = await engine.schedules.create("hourly", tick, every="2h", input=2)
        assert changed.next_due == START + timedelta(hours=3)
        assert len(await engine.schedules.list()) == 1


async def test_a_paused_schedule_triggers_nothing_and_goes_on_with_the_next_due_time(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, every="1h", catch_up="all")
        assert (await engine.schedules.pause("hourly")).paused
        await clock.advance(2.5 * HOUR)
        assert (await engine.schedules.create("hourly", tick, every="1h", catch_up="all")).paused
        resumed = await engine.schedules.resume("hourly")
        assert (resumed.paused, resumed.next_due) == (False, START + timedelta(hours=3))
        await clock.advance(HOUR)
        assert await scheduled_times(engine) == ["15. 11:00"]


async def test_a_deleted_schedule_triggers_nothing_and_its_runs_stay(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, every="1h")
        await clock.advance(HOUR)
        await engine.schedules.delete("hourly")
        await clock.advance(HOUR)
        assert len(await engine.runs.list()) == 1
        assert await engine.schedules.list() == []
        for act in (engine.schedules.pause, engine.schedules.resume, engine.schedules.delete):
            with pytest.raises(ScheduleNotFound, match="no schedule 'hourly'"):
                await act("hourly")


async def test_what_cannot_be_a_schedule_is_refused_with_what_to_write(running):
    @job("strict")
    async def strict(ctx: Context, number: int) -> None: ...

    async with running(tick, clock=MockClock()) as engine:
        for options, problem in (
            ({}, "either cron"),
            ({"cron": "* * * * *", "every": "1h"}, "either cron"),
            ({"cron": "soon"}, "five fields"),
            ({"cron": "0 0 30 2 *"}, "day-of-month"),
            ({"cron": "* * * * *", "timezone": "Europe/Atlantis"}, "no time zone"),
            ({"every": "1h", "timezone": "Europe/Berlin"}, "leave timezone out"),
            ({"every": "soon"}, "duration"),
            ({"every": 0}, "at least a millisecond"),
            ({"every": "1h", "overlap": "maybe"}, "overlap is one of"),
            ({"every": "1h", "labels": {"ü": "x"}}, "label key"),
        ):
            with pytest.raises(ValueError, match=problem):
                await engine.schedules.create("wrong", tick, **options)
        with pytest.raises(JobNotFound):
            await engine.schedules.create("wrong", "tock", every="1h")
        assert await engine.schedules.list() == []


async def test_cron_without_its_library_says_what_to_install_and_every_needs_none(running, monkeypatch):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("cron", tick, cron="0 * * * *")
    monkeypatch.setitem(sys.modules, "cronsim", None)
    troubles = []
    engine = Engine(engine.path, [tick], clock=clock, exclusive=True)
    engine.on("worker:error", troubles.append)
    async with engine:
        with pytest.raises(LibraryMissing, match=r"pip install 'durable-web\[schedules\]'"):
            await engine.schedules.create("another", tick, cron="0 * * * *")
        await engine.schedules.create("every", tick, every="1h")
        await clock.advance(HOUR)
        assert [run.labels["durable/schedule"] for run in await engine.runs.list()] == ["every"]
        assert [trouble.error.type for trouble in troubles] == ["LibraryMissing"]


async def test_libraries_are_asked_for_only_when_a_schedule_needs_them_and_before_it_is_due(running):
    asked = []

    async def install(libraries: list[str]) -> None:
        asked.append(libraries)

    clock = MockClock()
    async with running(tick, clock=clock, install=install) as engine:
        await engine.schedules.create("every", tick, every="1h")
        assert asked == []
        await engine.schedules.create("cron", tick, cron="0 * * * *")
        assert asked.pop() == ["cronsim"]
        await engine.schedules.create("zoned", tick, cron="0 * * * *", timezone="Europe/Berlin")
        assert asked.pop() == ["cronsim", "tzdata"]
    async with running(tick, clock=clock, install=install) as engine:
        assert asked == [["cronsim", "tzdata"]]
        await engine.schedules.delete("cron")
        await engine.schedules.pause("zoned")
        asked.clear()
    async with running(tick, clock=clock, install=install) as engine:
        assert asked == []


async def test_an_engine_without_the_job_leaves_its_due_times_to_one_that_has_it(running):
    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, every="1h", catch_up="latest")
    async with running(retrying, clock=clock) as engine:
        await clock.advance(HOUR)
        assert await engine.runs.list() == []
    async with running(tick, clock=clock) as engine:
        await settle()
        assert await scheduled_times(engine) == ["15. 09:00"]


async def test_a_due_time_whose_run_the_job_refuses_is_passed_over_and_the_next_one_tried(running):
    clock = MockClock()

    @job("limited", rate_limit=RateLimit(1, "90m"))
    async def limited(ctx: Context, _: None) -> None: ...

    troubles = []
    async with running(limited, clock=clock) as engine:
        engine.on("worker:error", troubles.append)
        await engine.schedules.create("hourly", limited, every="1h")
        await clock.advance(3 * HOUR)
        assert await scheduled_times(engine) == ["15. 09:00", "15. 11:00"]
        [schedule] = await engine.schedules.list()
        assert "room again in 1800 s" in schedule.skip_reason
        assert [trouble.error.type for trouble in troubles] == ["RateLimited"]


async def test_the_flow_control_of_the_job_holds_for_scheduled_runs_too(running):
    clock = MockClock()

    @job("alone", singleton=Singleton(mode="cancel_previous"))
    async def alone(ctx: Context, _: None) -> None:
        await retrying.function(ctx, _)

    async with running(alone, clock=clock) as engine:
        await engine.schedules.create("minutely", alone, every="1m", overlap="allow")
        await clock.advance(130)
        runs = await engine.runs.list(order="oldest")
        assert [run.status for run in runs] == [RunStatus.CANCELLED, RunStatus.WAITING]
        await engine.schedules.delete("minutely")
        await clock.advance(200)
        assert (await finish(engine, runs[1])).status == RunStatus.COMPLETED


async def test_an_input_that_the_changed_job_no_longer_takes_is_reported_and_does_not_stop_the_engine(running):
    from dataclasses import dataclass

    @dataclass
    class Wanted:
        number: int

    @job("tick", input=Wanted)
    async def stricter(ctx: Context, wanted) -> int:
        return wanted.number

    clock = MockClock()
    async with running(tick, clock=clock) as engine:
        await engine.schedules.create("hourly", tick, every="1h", input="text")
    async with running(stricter, clock=clock) as engine:
        with pytest.raises(InvalidInput):
            await engine.schedules.create("hourly", stricter, every="1h", input="text")
        await clock.advance(HOUR)
        [schedule] = await engine.schedules.list()
        assert "does not fit its declared type" in schedule.skip_reason
        await engine.schedules.create("hourly", stricter, every="1h", input={"number": 7})
        await clock.advance(HOUR)
        assert [run.output for run in await engine.runs.list()] == [7]
