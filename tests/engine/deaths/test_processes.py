"""Several engines on one file: each sees what others write, and keys, leases and limits hold across them.

Everything that time decides is tested with two engines in this process, on one clock that stands still until it is
moved.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, defaultdict
from typing import Any

import pytest
from watching import cpython_only

import durable_web
from durable_web import Context, Engine, Job, RunStatus, Trigger, job
from durable_web.testing import MockClock, settle

pytestmark = cpython_only("OPFS has one engine per file")

LEASE = 30


class Gates:
    """Lets each step of the jobs under test go on when the test says so, and tells who has come how far."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.stopped: list[Any] = []
        self._events: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)

    def open(self, *names: Any) -> None:
        for name in names:
            self._events[name].set()

    async def pass_through(self, name: Any) -> Any:
        self.begun.append(name)
        try:
            await self._events[name].wait()
        except asyncio.CancelledError:
            self.stopped.append(name)
            raise
        return name


@pytest.fixture
def gates() -> Gates:
    return Gates()


@pytest.fixture
def gated(gates):
    """A job with one step, which waits for the gate named after the run's input and the attempt at the run."""

    @job("gated")
    async def gated_job(ctx: Context, name: str) -> list[Any]:
        return await ctx.step("pass", gates.pass_through, (name, ctx.attempt))

    return gated_job


@pytest.fixture
def pair(running):
    """``pair(job, clock)``: two engines on one file."""

    def start(item: Any, clock: MockClock, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None):
        shared = {"clock": clock, "exclusive": False, "lease": LEASE}
        return running(item, **{**shared, **(first or {})}), running(item, **{**shared, **(second or {})})

    return start


IDLE = {"max_concurrent_runs": 0}


def silence(engine: Engine) -> None:
    """Let an engine neither renew its leases nor look at the file, as when its event loop is held up."""
    for timer in engine.internals.dispatcher._timers.values():
        timer.cancel()


def hold_up_commits(engine: Engine) -> None:
    """Let what is gathered wait for a commit that something else brings about, as when the event loop is held up."""
    engine.internals.dispatcher.commits._turn = asyncio.get_running_loop().call_later(3600, lambda: None)


def gathered(engine: Engine) -> int:
    """How many writes wait for the commit, but those that only ride along."""
    return len([item for item in engine.internals.dispatcher.commits._pending if item.done is not None])


def stored_frames(engine: Engine, run_id: str) -> list[Any]:
    return [frame.to_frame() for frame in engine.internals.store.read_frames(run_id, 0, 1000)]


async def follow(engine: Engine, run_id: str) -> list[Any]:
    return [frame async for frame in engine.runs.watch(run_id)]


# --- noticing each other ---------------------------------------------------------------------------------------------


async def test_a_run_triggered_on_one_engine_is_executed_by_an_idle_one_within_a_second(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, first=IDLE)
    async with first as idle, second as busy:
        run = await idle.trigger("gated", "a")
        assert not gates.begun
        await clock.advance(1)
        assert gates.begun == [("a", 1)]
        gates.open(("a", 1))
        await settle()
        assert (await busy.runs.get(run.id)).status == RunStatus.COMPLETED


async def test_a_run_scheduled_on_one_engine_is_executed_by_another_when_its_time_has_come(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, first=IDLE)
    async with first as idle, second:
        await idle.trigger("gated", "a", run_at=durable_web._model.from_milliseconds(clock.now() + 5000))
        await clock.advance(4.9)
        assert not gates.begun
        await clock.advance(0.1)
        assert gates.begun == [("a", 1)]
        gates.open(("a", 1))


async def test_a_wait_for_a_run_ends_within_a_second_of_its_end_on_another_engine(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, first=IDLE)
    async with first as idle, second:
        run = await idle.trigger("gated", "a")
        waiter = asyncio.create_task(idle.runs.wait(run.id))
        await clock.advance(1)
        gates.open(("a", 1))
        await clock.advance(1)
        assert waiter.done()
        assert waiter.result().output == ("a", 1)


async def test_every_engine_sees_every_frame_once_and_in_order_whichever_engine_wrote_it(pair, gates):
    @job("chatty")
    async def chatty(ctx: Context, _: None) -> str:
        for number in range(3):
            ctx.log.info(f"on the way to {number}, attempt {ctx.attempt}")
            await ctx.step(f"step {number}", gates.pass_through, (number, ctx.attempt))
        return "done"

    clock = MockClock()
    gates.open((0, 1), (1, 2), (2, 3))
    first, second = pair(chatty, clock, second=IDLE)
    async with first as executing, second as other:
        run = await other.trigger("chatty")
        watchers = [asyncio.create_task(follow(engine, run.id)) for engine in (executing, other)]
        await clock.advance(1)
        assert gates.begun == [(0, 1), (1, 1)]

        await other.runs.cancel(run.id)  # the watchers may end here ...
        await other.runs.retry(run.id)
        again = [asyncio.create_task(follow(engine, run.id)) for engine in (executing, other)]  # ... and these begin
        await clock.advance(1)
        assert gates.begun[2:] == [(1, 2), (2, 2)]
        await executing.runs.cancel(run.id)
        gates.open((2, 2))
        await clock.advance(1)
        await other.runs.retry(run.id)
        last = [asyncio.create_task(follow(engine, run.id)) for engine in (executing, other)]
        await clock.advance(1)
        assert gates.begun[4:] == [(2, 3)]

        truth = stored_frames(executing, run.id)
        assert [frame.seq for frame in truth] == list(range(1, len(truth) + 1))
        assert truth[-1].status == RunStatus.COMPLETED
        for seen in [*watchers, *again, *last]:
            assert seen.done()
            assert seen.result() == truth[: len(seen.result())]
            assert seen.result()[-1].status in (RunStatus.CANCELLED, RunStatus.COMPLETED)
        assert all(seen.result() == truth for seen in last)


async def test_watchers_are_served_while_two_engines_write_to_one_run_in_turns(pair, gates):
    @job("counter")
    async def counter(ctx: Context, _: None) -> None:
        for number in range(6):
            await ctx.step(f"{number}", gates.pass_through, number)

    clock = MockClock()
    async with (pairs := pair(counter, clock))[0] as one, pairs[1] as two:
        run = await one.trigger("counter")
        watchers = [asyncio.create_task(follow(engine, run.id)) for engine in (one, two)]
        for number in range(6):
            append_line((one, two)[number % 2], run.id, clock.now(), f"between {number}")
            await clock.advance(0.1 * number)  # now before, now after the other engine has looked
            gates.open(number)
            await settle()
        await clock.advance(1)
        truth = stored_frames(one, run.id)
        assert [frame.seq for frame in truth] == list(range(1, len(truth) + 1))
        assert [frame.message for frame in truth if frame.kind == "log"] == [f"between {n}" for n in range(6)]
        for watcher in watchers:
            assert watcher.done()
            assert watcher.result() == truth


def append_line(engine: Engine, run_id: str, ts: int, message: str) -> None:
    """What only the executing engine writes in earnest, written by any."""
    with engine.internals.store.transaction():
        line = {"level": "info", "message": message, "fields": {}, "step": None, "attempt": 1}
        engine.internals.store.steps.append_log(run_id, ts, line)


async def test_a_watch_ends_when_the_run_is_deleted_on_another_engine_before_its_end_was_seen(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, second=IDLE)
    async with first as executing, second as other:
        runs = [await executing.trigger("gated", name) for name in "ab"]
        watchers = [asyncio.create_task(follow(other, run.id)) for run in runs]
        await clock.advance(1)
        gates.open(("a", 1), ("b", 1))
        await settle()
        for run in runs:
            await executing.runs.delete(run.id)
        await clock.advance(1)
        for watcher in watchers:
            assert watcher.done()
            assert [frame.kind for frame in watcher.result()[:2]] == ["run_status", "run_status"]


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_an_engine_whose_lease_has_expired_writes_neither_success_nor_failure(pair, gates):
    @job("either")
    async def either(ctx: Context, how: str) -> int:
        await gates.pass_through((how, ctx.attempt))
        if how == "fails in the body":
            raise ValueError("too late")
        return await ctx.step("step", step, how, ctx.attempt)

    def step(how: str, attempt: int) -> int:
        if how == "fails in a step" and attempt == 1:
            raise ValueError("too late")
        return attempt

    clock = MockClock()
    hows = ("succeeds", "fails in a step", "fails in the body")
    first, second = pair(either, clock)
    async with first as stale:
        runs = [await stale.trigger("either", how) for how in hows]
        await settle()
        silence(stale)
        async with second as heir:
            await clock.advance(LEASE + LEASE / 3)
            assert sorted(gates.begun) == sorted((how, attempt) for how in hows for attempt in (1, 2))
            before = [stored_frames(heir, run.id) for run in runs]
            gates.open(*((how, 1) for how in hows))
            await clock.advance(1)
            assert [stored_frames(heir, run.id) for run in runs] == before
            assert not stale.internals.dispatcher.executing
            gates.open(*((how, 2) for how in hows))
            await settle()
            ended = [await heir.runs.get(run.id) for run in runs]
    assert [run.status for run in ended] == [RunStatus.COMPLETED, RunStatus.COMPLETED, RunStatus.FAILED]
    assert [run.output for run in ended] == [2, 2, None]
    assert [run.generation for run in ended] == [2, 2, 2]


async def test_renewal_is_refused_after_expiry_even_when_no_engine_has_taken_the_run_yet(pair, gated):
    clock = MockClock()
    first, _ = pair(gated, clock)
    async with first as engine:
        run = await engine.trigger("gated", "a")
        await settle()
        silence(engine)
        claim = engine.internals.dispatcher.executing[run.id].claim
        assert _renew(engine, claim, clock.now() + LEASE * 1000 - 1)
        assert not _renew(engine, claim, clock.now() + LEASE * 1000)
        await engine.stop(drain=False)


def _renew(engine: Engine, claim: Any, at: int) -> bool:
    with engine.internals.store.transaction():
        expires = engine.internals.store.runs.get(claim.run_id).lease_expires_at.timestamp() * 1000
        return engine.internals.store.runs.renew(claim, at, int(expires), exclusive=False)


async def test_an_engine_that_finds_its_own_lease_expired_stops_the_step_and_begins_anew(pair, gated, gates):
    clock = MockClock()
    first, _ = pair(gated, clock)
    async with first as engine:
        run = await engine.trigger("gated", "a")
        await settle()
        silence(engine)
        await clock.advance(LEASE + 1)
        engine.internals.dispatcher._beat()
        await settle()
        assert gates.stopped == [("a", 1)]
        assert gates.begun == [("a", 1), ("a", 2)]
        gates.open(("a", 1), ("a", 2))
        await settle()
        assert (await engine.runs.get(run.id)).output == ("a", 2)


async def test_what_an_owner_finishes_after_its_lease_expired_counts_while_no_engine_took_the_run(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock)
    async with first as owner:
        run = await owner.trigger("gated", "a")
        await settle()
        silence(owner)
        await clock.advance(LEASE * 10)
        gates.open(("a", 1))
        await settle()
        assert (await owner.runs.get(run.id)).status == RunStatus.COMPLETED
        async with second as other:
            await clock.advance(LEASE * 10)
            run = await other.runs.get(run.id)
    assert (run.output, run.attempt, run.recoveries) == (("a", 1), 1, 0)
    assert gates.begun == [("a", 1)]


@pytest.mark.parametrize("late", [0, 0.001, 1])
async def test_from_the_moment_in_which_renewal_is_refused_nothing_of_the_old_execution_is_written(pair, gates, late):
    @job("busy")
    async def busy(ctx: Context, name: str) -> Any:
        if ctx.attempt > 1:
            return "anew"
        await gates.pass_through(name)
        ctx.log.info("not to be written")
        ctx.progress(1)
        return await asyncio.gather(*(ctx.step(step, asyncio.sleep, 0, "not to be written") for step in ("one", "two")))

    clock = MockClock()
    first, _ = pair(busy, clock)
    async with first as engine:
        run = await engine.trigger("busy", "a")
        await settle()
        silence(engine)
        await clock.advance(LEASE + late)
        before = len(stored_frames(engine, run.id))
        hold_up_commits(engine)
        gates.open("a")
        await settle()
        assert gathered(engine) == 2
        engine.internals.dispatcher._beat()
        await settle()
        frames = stored_frames(engine, run.id)[before:]
        assert (await engine.runs.get(run.id)).output == "anew"
        assert await engine.runs.steps(run.id) == []
    assert [frame.status for frame in frames] == ["pending", "running", "completed"]


async def test_what_a_sleeping_owner_was_about_to_commit_is_refused_once_its_run_was_taken_elsewhere(pair, gates):
    def write_row(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE stale (value)")

    @job("busy")
    async def busy(ctx: Context, name: str) -> Any:
        await gates.pass_through((name, ctx.attempt))
        ctx.log.info(f"line of {ctx.attempt}")
        ctx.progress(ctx.attempt)
        branches = [ctx.step("step", lambda: ctx.attempt), ctx.set_event("value", ctx.attempt), ctx.uuid()]
        if ctx.attempt == 1:
            branches.append(ctx.transaction("rows", write_row))
        await asyncio.gather(*branches)
        return ctx.attempt

    asleep, clock = MockClock(), MockClock()
    first, second = pair(busy, clock, first={"clock": asleep})
    async with first as sleeper:
        run = await sleeper.trigger("busy", "a")
        beside = await sleeper.trigger("busy", "beside it")  # else it would commit each step before the next begins
        await settle()
        hold_up_commits(sleeper)  # the lid is closed
        gates.open(("a", 1))
        await settle()
        assert gathered(sleeper) == 4
        async with second as heir:
            await clock.advance(LEASE * 2)
            assert (await heir.runs.get(run.id)).attempt == 2
            await heir.runs.cancel(beside.id)
            before = stored_frames(heir, run.id)
            await asleep.advance(LEASE * 2)  # the lid is opened
            assert not sleeper.internals.dispatcher.executing
            assert await heir.runs.steps(run.id) == []
            assert stored_frames(heir, run.id) == before
            gates.open(("a", 2))
            await settle()
            frames = stored_frames(heir, run.id)
            run = await heir.runs.get(run.id)
            assert await heir.runs.value(run.id, "value") == 2
            tables = heir.internals.store.database.connection.execute(
                "SELECT 1 FROM sqlite_schema WHERE name = 'stale'"
            )
            assert tables.fetchall() == []
    assert (run.status, run.output, run.generation) == (RunStatus.COMPLETED, 2, 2)
    lines = [frame.message for frame in frames if frame.kind == "log" and frame.level == "info"]
    assert lines == ["line of 2"]


async def test_a_parked_body_that_wants_to_go_on_cannot_wake_a_run_that_waits_elsewhere_by_now(pair, gates):
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ValueError("not yet")

    @job("both", retry=durable_web.Retry(max_attempts=9, backoff=100, factor=10, max_delay=1000, jitter=0))
    async def both(ctx: Context, _: None) -> None:
        async def another() -> None:
            await gates.pass_through(ctx.attempt)
            await ctx.step("another", lambda: None)

        await asyncio.gather(ctx.step("flaky", fail), another())

    clock = MockClock()
    first, second = pair(both, clock)
    async with first as stale:
        run = await stale.trigger("both")
        await settle()
        assert (await stale.runs.get(run.id)).status == RunStatus.WAITING
        silence(stale)
        async with second as heir:
            await clock.advance(101)
            waiting = await heir.runs.get(run.id)
            assert (len(calls), waiting.status, waiting.generation) == (2, RunStatus.WAITING, 2)
            gates.open(1)
            await settle()
            assert (await heir.runs.get(run.id)) == waiting
            await stale.stop(drain=False)
            await heir.runs.cancel(run.id)


async def test_a_step_whose_run_is_cancelled_on_another_engine_is_told_to_stop(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, second=IDLE)
    async with first as executing, second as other:
        run = await executing.trigger("gated", "a")
        await clock.advance(1)
        await other.runs.cancel(run.id)
        await clock.advance(LEASE / 3)
        assert gates.stopped == [("a", 1)]
        assert not executing.internals.dispatcher.executing
        assert stored_frames(other, run.id)[-1].status == RunStatus.CANCELLED


async def test_a_step_is_told_to_stop_when_its_run_was_cancelled_and_retried_on_another_engine(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, second=IDLE)
    async with first as executing, second as other:
        run = await executing.trigger("gated", "a")
        await clock.advance(1)
        await other.runs.cancel(run.id)
        await other.runs.retry(run.id)
        await clock.advance(LEASE)
        assert gates.begun == [("a", 1), ("a", 2)]
        assert gates.stopped == [("a", 1)]
        gates.open(("a", 2))
        await settle()
        assert (await executing.runs.get(run.id)).output == ("a", 2)


async def test_a_run_that_came_further_on_another_engine_is_not_resumed_from_memory(pair, gates):
    """Parked here, gone on there, claimed here again: what was executed there must not be executed again."""
    calls: Counter[str] = Counter()

    def flaky(name: str) -> str:
        calls[name] += 1
        if calls[name] == 1:
            raise ValueError("not yet")
        return name

    @job("flaky", retry=durable_web.Retry(backoff=60, jitter=0))
    async def flaky_job(ctx: Context, _: None) -> list[str]:
        return [await ctx.step(name, flaky, name) for name in ("one", "two", "three")]

    clock = MockClock()
    first, second = pair(flaky_job, clock)
    async with first as here, second as there:
        run = await here.trigger("flaky")
        await settle()
        assert calls == {"one": 1}
        with_slots, without = here.internals.dispatcher, there.internals.dispatcher
        for _ in range(3):
            with_slots, without = without, with_slots
            without.claim(0)
            with_slots.claim()
            await clock.advance(61)
            with_slots.claim()
            await settle()
        await clock.advance(121)
        assert (await here.runs.get(run.id)).output == ["one", "two", "three"]
        assert calls == {"one": 2, "two": 2, "three": 2}


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_max_concurrent_of_a_job_holds_across_engines(pair, gates):
    @job("limited", max_concurrent=3)
    async def limited(ctx: Context, number: int) -> None:
        await gates.pass_through(number)

    clock = MockClock()
    first, second = pair(limited, clock, first={"max_concurrent_runs": 1})
    async with first as one, second as two:
        await one.trigger_many(Trigger("limited", number) for number in range(8))
        for ended in range(8):
            await clock.advance(1)
            assert gates.begun == list(range(min(ended + 3, 8)))
            assert len(one.internals.dispatcher.executing) + len(two.internals.dispatcher.executing) == min(
                3, 8 - ended
            )
            gates.open(ended)
            await settle()
        assert await one.runs.count() == {"completed": 8}


async def test_runs_with_one_key_do_not_overlap_across_jobs_and_engines(pair, running, gates):
    async def keyed(ctx: Context, name: str) -> None:
        await gates.pass_through(name)

    jobs = [job(name)(keyed) for name in ("a", "b", "c")]
    clock = MockClock()
    shared = {"clock": clock, "exclusive": False, "lease": LEASE}
    async with running(*jobs, **shared) as one, running(*jobs, **shared) as two:
        await one.trigger("a", "a", concurrency_key="key")
        await two.trigger("b", "b", concurrency_key="key")
        await two.trigger("c", "c", concurrency_key="other key")
        await clock.advance(1)
        assert sorted(gates.begun) == ["a", "c"]
        gates.open("a", "c")
        await clock.advance(1)
        assert sorted(gates.begun) == ["a", "b", "c"]
        gates.open("b")


async def test_two_engines_with_different_jobs_share_a_file_and_each_run_waits_for_the_one_that_has_its_job(
    database_path,
):
    def answering(name: str) -> Job:
        @job(name)
        async def answer(ctx: Context, number: int) -> list[Any]:
            return [name, await ctx.step("number", lambda: number)]

        return answer

    one, two = answering("one"), answering("two")
    async with Engine(database_path, [one]) as first, Engine(database_path, [two]) as second:
        runs = [await first.trigger(one, number) for number in range(20)]
        runs += [await second.trigger(two, number) for number in range(20)]
        ended = [await first.runs.wait(run.id) for run in runs]
        assert [run.output for run in ended] == [[name, number] for name in ("one", "two") for number in range(20)]
        assert await second.runs.count(by="status") == {"completed": 40}
