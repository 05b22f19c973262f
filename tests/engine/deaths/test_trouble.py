"""A failure reaches the runs and callers that it concerns, no others, and nothing hangs."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum

import pytest
from watching import cpython_only, finish

from durable_web import Context, Retry, RunStatus, StepFailed, StorageError, job
from durable_web._execution.commits import GroupCommit, Write
from durable_web._store import LeaseLost
from durable_web.testing import MockClock, crash, settle


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no words")


async def together(ctx: Context, gate: asyncio.Event) -> None:
    """Two branches, so that the run's commits join a group."""
    await asyncio.gather(*(ctx.step(name, gate.wait) for name in ("one", "two")))


@cpython_only("another connection would need shared memory")
async def test_a_group_that_cannot_begin_ends_every_wait_for_it_and_the_runs_go_on_later(running, database_path):
    clock = MockClock()
    gate = asyncio.Event()
    states: list[str] = []

    @job("group")
    async def group(ctx: Context, _: None) -> str:
        await together(ctx, gate)
        return "done"

    options = {"exclusive": False, "clock": clock, "on_state": lambda state, message: states.append(state)}
    async with running(group, **options) as engine:
        runs = [await engine.trigger("group") for _ in range(2)]
        await settle()
        engine.internals.store.database.connection.execute("PRAGMA busy_timeout = 1")
        foreign = sqlite3.connect(database_path, isolation_level=None)
        foreign.execute("BEGIN IMMEDIATE")
        gate.set()
        await settle()
        assert states == ["storage_error"]
        foreign.execute("ROLLBACK")
        foreign.close()
        await clock.advance(5)
        assert [(await finish(engine, run)).output for run in runs] == ["done"] * 2
    assert states[-1] == "running"


async def test_a_claim_that_failed_is_tried_again(running, monkeypatch):
    clock = MockClock()
    states: list[str] = []

    @job("echo")
    async def echo(ctx: Context, value: int) -> int:
        return value

    async with running(echo, clock=clock, on_state=lambda state, message: states.append(state)) as engine:
        runs = engine.internals.store.runs
        claim = runs.claim

        def fail(*arguments: object, **options: object) -> None:
            raise StorageError("path", "the disk is busy")

        run = await engine.trigger("echo", 7, run_at=datetime.fromtimestamp(clock.now() / 1000 + 1, UTC))
        monkeypatch.setattr(runs, "claim", fail)
        await clock.advance(1)
        assert states == ["storage_error"]
        monkeypatch.setattr(runs, "claim", claim)
        await clock.advance(3)
        assert (await engine.runs.get(run.id)).output == 7
    assert states == ["storage_error", "running"]


async def test_an_io_error_never_reaches_the_job_and_never_loses_the_checkpoint(running, monkeypatch):
    clock = MockClock()
    caught: list[Exception] = []

    @job("careless")
    async def careless(ctx: Context, _: None) -> str:
        try:
            return await ctx.step("step", lambda: "result")
        except Exception as error:
            caught.append(error)
            return "went on without a checkpoint"

    async with running(careless, clock=clock) as engine:
        steps = engine.internals.store.steps
        record = steps.record

        def fail(*arguments: object) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        monkeypatch.setattr(steps, "record", fail)
        run = await engine.trigger("careless")
        await settle()
        monkeypatch.setattr(steps, "record", record)
        await clock.advance(5)
        run = await engine.runs.get(run.id)
        assert [step.status for step in await engine.runs.steps(run.id)] == ["completed"]
    assert (run.output, caught) == ("result", [])


async def test_what_could_not_be_committed_is_never_told_of(running, monkeypatch):
    heard: list[str] = []

    @job("echo")
    async def echo(ctx: Context, _: None) -> None: ...

    async with running(echo, max_concurrent_runs=0) as engine:
        engine.on("run:trigger", lambda event: heard.append(event.run_id))
        database = engine.internals.store.database

        def fail() -> None:
            database.roll_back()
            raise StorageError("path", "the disk is busy")

        with monkeypatch.context() as broken:
            broken.setattr(database, "commit", fail)
            with pytest.raises(StorageError, match="busy"):
                await engine.trigger("echo")
        run = await engine.trigger("echo")
        assert heard == [run.id]


async def test_what_was_rolled_back_leaves_no_gap_in_a_timeline(running):
    @job("echo")
    async def echo(ctx: Context, _: None) -> None: ...

    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo"))
        store = engine.internals.store

        def fail() -> None:
            store.steps.set_value(run.id, "key", "1", 1, 0)
            raise ZeroDivisionError

        with suppress(ZeroDivisionError), store.transaction():
            fail()
        with store.transaction():
            with suppress(ZeroDivisionError), store.part():
                fail()
            store.steps.set_value(run.id, "key", "2", 2, 0)
        frames = store.read_frames(run.id, 0, 100)
        assert [frame.seq for frame in frames] == list(range(1, run.last_seq + 2))


async def test_a_write_that_fails_fails_alone(running):
    gate = asyncio.Event()

    def insert_and_leave(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (value)")
        raise asyncio.CancelledError

    @job("innocent")
    async def innocent(ctx: Context, _: None) -> str:
        await together(ctx, gate)
        return "unharmed"

    @job("guilty")
    async def guilty(ctx: Context, _: None) -> None:
        await ctx.step("gate", gate.wait)
        await ctx.transaction("leave", insert_and_leave)

    async with running(innocent, guilty) as engine:
        runs = [await engine.trigger(name) for name in ("innocent", "guilty", "innocent")]
        await settle()
        gate.set()
        ended = [await finish(engine, run) for run in runs]
        tables = engine.internals.store.database.connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'half'")
        assert tables.fetchall() == []
    assert [run.status for run in ended] == ["completed", "failed", "completed"]


def outcomes_of(commits: GroupCommit, *writes: Write, simple: bool = False) -> asyncio.Future[list[Exception | None]]:
    """How writes of one turn come out: ``None`` of one that is committed."""
    outcomes = [asyncio.get_running_loop().create_future() for _ in writes]
    for write, outcome in zip(writes, outcomes, strict=True):
        commits.submit(write, outcome.set_result, simple=simple)
    return asyncio.gather(*outcomes)


async def test_a_simple_write_that_loses_its_lease_leaves_the_rest_of_its_group_alone(running):
    async with running() as engine:
        commits, store = engine.internals.dispatcher.commits, engine.internals.store

        def lose() -> None:
            raise LeaseLost("theirs")

        def note(key: str) -> None:
            store.steps.set_value("run", key, "1", 1, 0)

        outcomes = await outcomes_of(commits, lambda: note("first"), lose, lambda: note("last"), simple=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), LeaseLost, type(None)]
        assert [store.steps.stored_value("run", key) for key in ("first", "last")] == ["1", "1"]


async def test_of_a_group_with_a_write_that_stops_half_way_nothing_is_written(running):
    async with running() as engine:
        commits, store = engine.internals.dispatcher.commits, engine.internals.store

        def note(key: str) -> None:
            store.steps.set_value("run", key, "1", 1, 0)

        def stop_half_way() -> None:
            note("half")
            raise ZeroDivisionError

        group = [lambda: note("first"), stop_half_way, lambda: note("last")]
        outcomes = await outcomes_of(commits, *group, simple=True)
        assert [type(outcome) for outcome in outcomes] == [StorageError] * 3
        assert "ZeroDivisionError" in str(outcomes[0])
        assert [store.steps.stored_value("run", key) for key in ("first", "half", "last")] == [None] * 3

        outcomes = await outcomes_of(commits, *group)
        assert [type(outcome) for outcome in outcomes] == [type(None), ZeroDivisionError, type(None)]
        assert [store.steps.stored_value("run", key) for key in ("first", "half", "last")] == ["1", None, "1"]


async def test_a_wait_for_a_group_that_finds_its_database_closed_raises(running):
    async with running() as engine:
        commits = engine.internals.dispatcher.commits
        engine.internals.store.close()
        outcomes = await asyncio.wait_for(outcomes_of(commits, lambda: None, lambda: None), 5)
        await crash(engine)
    assert [type(outcome) for outcome in outcomes] == [sqlite3.ProgrammingError] * 2


async def test_an_error_without_words_is_still_recorded(running):
    def fail() -> None:
        raise Unspeakable

    @job("unspeakable")
    async def unspeakable(ctx: Context, _: None) -> None:
        await ctx.step("fail", fail)

    async with running(unspeakable) as engine:
        run = await finish(engine, await engine.trigger("unspeakable"))
    assert run.status == RunStatus.FAILED
    assert "Unspeakable" in run.error.message


@pytest.mark.parametrize("current", [Decimal(1), "1", float("nan"), float("inf"), None])
async def test_progress_that_is_no_number_is_refused_where_it_is_reported(running, current):
    @job("report")
    async def report(ctx: Context, _: None) -> None:
        ctx.progress(current)

    async with running(report) as engine:
        run = await finish(engine, await engine.trigger("report"))
    assert run.error.type in ("TypeError", "ValueError")
    assert "ctx.progress" in run.error.message


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: int


def wrong_colour() -> Colour:
    return "green"  # type: ignore[return-value]


@pytest.mark.parametrize(
    "function",
    [wrong_colour, lambda: {Point(1)}, lambda: {Point(1): 2}],
    ids=["enum", "set", "key"],
)
async def test_a_result_that_would_not_read_back_fails_its_step_and_nothing_else(running, function):
    @job("unreadable")
    async def unreadable(ctx: Context, _: None) -> str:
        with pytest.raises(StepFailed, match="SerializationError"):
            await ctx.step("make", function)
        return "went on"

    async with running(unreadable) as engine:
        run = await finish(engine, await engine.trigger("unreadable"))
        assert [item.id for item in await engine.runs.list()] == [run.id]
    assert run.output == "went on"


async def test_an_error_handler_that_fails_itself_changes_nothing_else(running):
    def fail(*arguments: object) -> None:
        raise RuntimeError("in the handler")

    @job("step")
    async def step(ctx: Context, _: None) -> str:
        return await ctx.step("step", lambda: "fine")

    async with running(step) as engine:
        engine.on_error(fail)
        engine.on("step:complete", fail)
        assert (await finish(engine, await engine.trigger("step"))).output == "fine"


async def test_transaction_functions_run_in_the_context_of_their_own_step(running):
    references: dict[str, str] = {}

    @job("refer")
    async def refer(ctx: Context, _: None) -> None:
        def note(connection: sqlite3.Connection, name: str) -> None:
            references[name] = ctx.step_ref

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(ctx.transaction(name, note, name))

    async with running(refer) as engine:
        run = await finish(engine, await engine.trigger("refer"))
    assert references == {name: f"{run.id}/{name}" for name in ("a", "b", "c")}


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 99",
        "ATTACH ':memory:' AS other",
        "DROP INDEX durable_runs_by_job",
        "CREATE TABLE durable_mine (value)",
        "CREATE TRIGGER mine AFTER INSERT ON durable_frames BEGIN SELECT 1; END",
    ],
)
async def test_a_transaction_function_cannot_harm_the_engines_side_of_the_database(running, statement):
    def harm(connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.execute(statement)

    @job("harm")
    async def harm_job(ctx: Context, _: None) -> str:
        with pytest.raises(StepFailed, match="TransactionError"):
            await ctx.transaction("harm", harm)
        return await ctx.step("after", lambda: "as before")

    async with running(harm_job) as engine:
        assert (await finish(engine, await engine.trigger("harm"))).output == "as before"
    async with running(harm_job) as engine:
        assert len(await engine.runs.list()) == 1


def back_up(connection: sqlite3.Connection) -> None:
    with closing(sqlite3.connect(":memory:")) as target:
        connection.backup(target)


@pytest.mark.parametrize(
    "harm",
    [
        lambda connection: connection.close(),
        lambda connection: connection.set_authorizer(None),
        lambda connection: connection.set_progress_handler(lambda: 1, 1),
        lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 10),
        back_up,
        lambda connection: connection.rollback(),
        lambda connection: connection.execute("VACUUM"),
    ],
    ids=["close", "set_authorizer", "set_progress_handler", "setlimit", "backup", "rollback", "vacuum"],
)
async def test_a_transaction_function_cannot_take_the_connection_away_from_the_engine(running, harm):
    @job("harm")
    async def harm_job(ctx: Context, _: None) -> str:
        with pytest.raises(StepFailed, match=r"only lent|transaction"):
            await ctx.transaction("harm", harm)
        return await ctx.step("after", lambda: "as before")

    async with running(harm_job) as engine:
        assert (await finish(engine, await engine.trigger("harm"))).output == "as before"
        assert (await finish(engine, await engine.trigger("harm"))).output == "as before"


async def test_a_run_parks_also_when_the_branch_that_kept_it_busy_ends_after_the_wait_began(running):
    clock = MockClock()
    gate = asyncio.Event()

    def fail() -> None:
        raise ConnectionError

    @job("branches")
    async def branches(ctx: Context, _: None) -> None:
        await asyncio.gather(ctx.step("flaky", fail, retry=Retry(backoff=3600)), ctx.step("busy", gate.wait))

    async with running(branches, clock=clock) as engine:
        run = await engine.trigger("branches")
        await clock.advance(1)
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        gate.set()
        await settle()
        assert (await engine.runs.get(run.id)).status == RunStatus.WAITING


async def test_every_executing_step_is_cancelled_when_the_run_is_cancelled_or_fails(running):
    clock = MockClock()
    stopped: list[str] = []

    async def linger(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(name)

    def fail() -> None:
        raise ValueError

    @job("tasks")
    async def tasks(ctx: Context, mode: str) -> None:
        lingering = asyncio.create_task(ctx.step("linger", linger, mode))
        await asyncio.sleep(0)
        if mode == "fail":
            await ctx.step("fail", fail)
        await asyncio.wait([lingering])

    async with running(tasks, clock=clock) as engine:
        cancelled, failed = [await engine.trigger("tasks", mode) for mode in ("cancel", "fail")]
        await clock.advance(1)
        await engine.runs.cancel(cancelled.id)
        await settle()
        assert sorted(stopped) == ["cancel", "fail"]
        for run in (cancelled, failed):
            assert [s.name for s in await engine.runs.steps(run.id) if s.status == "running"] == []


async def test_an_exclusive_engine_that_slept_beyond_its_leases_still_owns_its_runs(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("sleep")
    async def sleep(ctx: Context, _: None) -> int:
        await ctx.step("wait", gate.wait)
        return ctx.attempt

    async with running(sleep, clock=clock, lease=30) as engine:
        run = await engine.trigger("sleep")
        await settle()
        clock._elapsed += 100_000  # the lid was closed: time went on, timers did not
        await clock.advance(60)
        gate.set()
        assert (await finish(engine, run)).output == 1


async def test_runs_are_found_by_when_they_were_created(running):
    clock = MockClock()
    start = datetime.fromtimestamp(clock.now() / 1000, UTC)

    @job("echo")
    async def echo(ctx: Context, value: int) -> int:
        return value

    async with running(echo, clock=clock) as engine:
        for number in range(3):
            await finish(engine, await engine.trigger("echo", number))
            await clock.advance(60)
        middle = start + timedelta(seconds=30)
        assert [run.input for run in await engine.runs.list(created_before=middle)] == [0]
        assert [run.input for run in await engine.runs.list(created_after=middle, order="oldest")] == [1, 2]
        assert len(await engine.runs.delete_many(created_before=middle)) == 1
        with pytest.raises(ValueError, match="no time zone"):
            await engine.runs.list(created_after=datetime(2030, 1, 1))  # noqa: DTZ001


async def test_an_event_that_was_not_published_before_the_crash_is_published_by_the_replay(running):
    from durable_web.testing import crash

    reached = asyncio.Event()

    @job("publish")
    async def publish(ctx: Context, _: None) -> None:
        async def other() -> None:
            await ctx.step("other", lambda: None)
            if ctx.attempt == 1:
                reached.set()
                await asyncio.Event().wait()

        async def publisher() -> None:
            if ctx.attempt == 1:
                await asyncio.Event().wait()
            await ctx.set_event("stage", "published")

        await asyncio.gather(publisher(), other())

    async with running(publish) as engine:
        run = await engine.trigger("publish")
        await reached.wait()
        await crash(engine)
    async with running(publish) as engine:
        await finish(engine, run)
        assert await engine.runs.value(run.id, "stage") == "published"
