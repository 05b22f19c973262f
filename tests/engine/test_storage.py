"""The database file: opening, refusing, filling up, and how little is written."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from watching import finish, on_a_desk_only, timeline

import durable_web
from durable_web import (
    Context,
    DatabaseReadOnlyError,
    Engine,
    NotADatabaseError,
    Retry,
    RunFilter,
    RunStatus,
    SchemaVersionError,
    StorageError,
    StorageFullError,
    job,
)
from durable_web.store import messages, queries, waits
from durable_web.testing import MockClock, settle


@job("steps")
async def steps(ctx: Context, count: int) -> int:
    for number in range(count):
        await ctx.step(f"step {number}", abs, number)
    return count


def commits_of(engine: Engine) -> list[str]:
    """Collects the commits that the engine makes from here on."""
    commits: list[str] = []
    engine._store.database.connection.set_trace_callback(
        lambda text: commits.append(text) if "COMMIT" in text else None
    )
    return commits


async def test_a_step_costs_one_commit(running):
    async with running(steps) as engine:
        commits = commits_of(engine)
        await finish(engine, await engine.trigger("steps", 100))
    trigger_claim_and_settle = 5
    assert 100 < len(commits) <= 100 + trigger_claim_and_settle


async def test_branches_that_complete_in_the_same_turn_share_a_commit(running):
    gate = asyncio.Event()

    @job("branches")
    async def branches(ctx: Context, count: int) -> None:
        await asyncio.gather(*(ctx.step(f"branch {number}", gate.wait) for number in range(count)))

    async with running(branches) as engine:
        run = await engine.trigger("branches", 100)
        while len(engine._dispatcher.executing[run.id][0].records) < 100:
            await asyncio.sleep(0)
        commits = commits_of(engine)
        gate.set()
        await finish(engine, run)
    assert len(commits) <= 4


@on_a_desk_only("writes a file that is no database past SQLite")
async def test_a_file_that_is_not_a_database_is_refused_and_left_untouched(tmp_path: Path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear SQLite, I am not one of yours. " * 100)
    before = path.read_bytes()
    with pytest.raises(NotADatabaseError, match="not an SQLite database"):
        await Engine(path).start()
    assert path.read_bytes() == before


@on_a_desk_only("writes a database past the engine")
async def test_a_database_of_a_newer_version_is_refused_and_left_untouched(tmp_path: Path):
    path = tmp_path / "newer.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1000")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError, match="schema version 1000") as caught:
        await Engine(path).start()
    assert caught.value.found == 1000
    assert path.read_bytes() == before


@on_a_desk_only("there are no folders to be missing")
async def test_a_database_in_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DatabaseReadOnlyError, match="folder exists"):
        await Engine(tmp_path / "missing" / "jobs.sqlite3").start()


@on_a_desk_only("there are no permissions to be missing")
def test_a_database_that_may_not_be_written_is_refused_with_what_to_check(tmp_path_factory):
    """In a process of its own, which gives up root's right to write anywhere."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    sqlite3.connect(folder / "jobs.sqlite3").close()
    script = """
import asyncio, os, sys
from durable_web import Engine
if os.geteuid() == 0:
    os.setuid(65534)
else:
    os.chmod(os.path.dirname(sys.argv[1]), 0o555)
try:
    asyncio.run(Engine(sys.argv[1]).start())
except Exception as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(durable_web.__file__).parents[1])}
    command = [sys.executable, "-c", script, str(folder / "jobs.sqlite3")]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    folder.chmod(0o755)
    shutil.rmtree(folder)
    assert told.stdout.startswith("DatabaseReadOnlyError"), told.stderr
    assert "may write both the file and the folder" in told.stdout


async def test_the_applications_own_tables_live_in_the_same_file_untouched(running):
    def create(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE mine (value)")

    @job("own")
    async def own(ctx: Context, _: None) -> None:
        await ctx.transaction("create", create)

    async with running(own) as engine:
        await finish(engine, await engine.trigger("own"))
        tables = engine._store.database.connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table'"
        ).fetchall()
    names = {name for (name,) in tables}
    assert names - {"mine"} == {name for name in names if name.startswith("durable_")}


async def test_when_the_storage_is_full_nothing_is_lost_and_the_run_goes_on_when_there_is_room(running):
    clock = MockClock()
    states: list[str] = []

    @job("grow")
    async def grow(ctx: Context, _: None) -> int:
        for number in range(50):
            await ctx.step(f"step {number}", lambda: "x" * 20_000)
        return ctx.attempt

    async with running(grow, clock=clock, on_state=lambda state, message: states.append(state)) as engine:
        connection = engine._store.database.connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 60}")
        run = await engine.trigger("grow")
        while not states:
            await asyncio.sleep(0)
        assert states == ["storage_full"]
        committed = (await engine.get_run(run.id)).completed_steps
        assert 0 < committed < 50

        await clock.advance(1)
        assert (await engine.get_run(run.id)).status == RunStatus.LEASED

        connection.execute("PRAGMA max_page_count = 1000000")
        await clock.advance(60)
        frames = await timeline(engine, run)
        run = await engine.get_run(run.id)
    assert run.status == RunStatus.COMPLETED
    assert states[-1] == "running"
    completed = [frame.name for frame in frames if frame.kind == "step_status" and frame.status == "completed"]
    assert completed == [f"step {number}" for number in range(50)]


async def test_a_trigger_that_finds_no_room_says_so_and_leaves_no_run(running):
    async with running(steps) as engine:
        connection = engine._store.database.connection
        connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StorageFullError, match="storage is full"):
            await engine.trigger("steps", "x" * 1_000_000)
        connection.execute("PRAGMA max_page_count = 1000000")
        assert await engine.list_runs() == []
        assert (await finish(engine, await engine.trigger("steps", 1))).output == 1


class Damage:
    """Overwrites a database file beneath its engine, from the second page on, and mends it again."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine._store.database.connection
        self._path = Path(engine.path)
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._healthy = self._path.read_bytes()

    def do(self) -> None:
        self._write(self._healthy[:4096] + b"\xff" * (len(self._healthy) - 4096))

    def mend(self) -> None:
        self._write(self._healthy)

    def _write(self, content: bytes) -> None:
        with self._path.open("r+b") as file:
            file.write(content)
        self._connection.execute("PRAGMA shrink_memory")  # what SQLite has read already does not hide it


@on_a_desk_only("writes to the file past the engine")
async def test_whatever_reads_a_damaged_file_raises_a_storage_error_and_a_mended_one_is_read_again(running):
    async with running(steps) as engine:
        run = await finish(engine, await engine.trigger("steps", 3))
        damage = Damage(engine)
        reads = {
            "get_run": lambda: engine.get_run(run.id),
            "list_runs": engine.list_runs,
            "list_runs by search": lambda: engine.list_runs(search="step"),
            "count_runs": engine.count_runs,
            "get_steps": lambda: engine.get_steps(run.id),
            "get_event": lambda: engine.get_event(run.id, "key"),
            "watch": lambda: timeline(engine, run),
            "fork": lambda: engine.fork(run.id, "step 1"),
            "trigger": lambda: engine.trigger("steps", 1, idempotency_key="key"),
            "purge_runs": lambda: engine.purge_runs(run.created_at),
        }
        for name, read in reads.items():
            damage.do()
            with pytest.raises(StorageError, match="PRAGMA integrity_check") as caught:
                await read()
            assert caught.value.path == engine.path, name
            assert isinstance(caught.value.__cause__, sqlite3.Error)
        damage.mend()
        assert await engine.get_run(run.id) == run


@on_a_desk_only("writes to the file past the engine")
async def test_an_engine_that_cannot_read_reports_it_and_goes_on_when_it_can_again(running):
    clock = MockClock()
    states: list[str] = []
    told: list[str] = []

    @job("flaky")
    async def flaky(ctx: Context, _: None) -> int:
        def call() -> int:
            if ctx.attempt == 1:
                raise ConnectionError
            return ctx.attempt

        return await ctx.step("call", call, retry=Retry(backoff=60, jitter=0))

    options = {"clock": clock, "max_parked": 0, "on_state": lambda state, message: states.append(state)}
    async with running(flaky, **options) as engine:
        engine.on("worker:error", lambda event: told.append(event.context))
        run = await engine.trigger("flaky")
        await settle()
        damage = Damage(engine)
        damage.do()
        await clock.advance(60)
        assert set(states) == {"storage_error"}
        assert "waking runs" in told
        damage.mend()
        await clock.advance(60)
        assert (await engine.get_run(run.id)).output == 2
    assert states[-1] == "running"


@on_a_desk_only("writes to the file past the engine")
async def test_a_damaged_file_is_refused_when_the_engine_starts(running, database_path):
    async with running(steps) as engine:
        await finish(engine, await engine.trigger("steps", 3))
        damage = Damage(engine)
    damage._path.write_bytes(damage._healthy[:4096] + b"\xff" * (len(damage._healthy) - 4096))
    with pytest.raises(StorageError, match="PRAGMA integrity_check"):
        await Engine(database_path).start()


async def test_a_run_whose_records_cannot_be_read_is_given_back_and_executed_later(running, monkeypatch):
    @job("pauses")
    async def pauses(ctx: Context, how_many: int) -> int:
        await ctx.step("before", str, how_many)
        await ctx.sleep("pause", 60)
        return how_many

    clock = MockClock()
    states: list[str] = []
    options = {"clock": clock, "max_parked": 0, "on_state": lambda state, message: states.append(state)}
    async with running(pauses, **options) as engine:
        load = engine._store.steps.load

        def fail(run_id: str) -> None:
            raise StorageError(engine.path, "the disk is busy")

        monkeypatch.setattr(engine._store.steps, "load", fail)
        run = await engine.trigger("pauses", 2)
        await clock.advance(60)
        assert states == ["storage_error"]
        monkeypatch.setattr(engine._store.steps, "load", load)
        await clock.advance(3)
        assert (await engine.get_run(run.id)).output == 2
    assert states == ["storage_error", "running"]


RUN, STEP, FRAME = "durable_runs by id", "durable_steps by primary key", "durable_frames by durable_frames_by_run"
RUNNING = "durable_steps by durable_steps_running"
QUERIES = {
    name: text
    for module in (queries.runs, queries.listing, queries.steps, queries.frames)
    for name, text in vars(module).items()
    if name.isupper() and not name.startswith("_") and isinstance(text, str)
}

PLANS = {
    "CLAIM": {RUN, STEP, "candidate by durable_runs_to_claim", "other by durable_runs_by_concurrency_key"},
    "CLAIM_BUT_SATURATED": {
        RUN,
        STEP,
        "candidate by durable_runs_to_claim",
        "other by durable_runs_by_concurrency_key",
    },
    "HAS_CLAIMABLE": {
        "durable_runs by durable_runs_to_claim",
        "durable_held by durable_held_by_gate",
        "durable_runs by durable_runs_blocked",
    },
    "COUNT_EXECUTING": {"durable_counts by primary key", "durable_runs by durable_runs_undoing"},
    "FIND_BY_IDEMPOTENCY_KEY": {"durable_runs by durable_runs_by_idempotency_key"},
    "FIND_BY_CONCURRENCY_KEY": {"durable_runs by durable_runs_by_concurrency_key"},
    "NEXT_DUE": {
        "durable_runs by durable_runs_scheduled",
        "durable_runs by durable_runs_waiting",
        "durable_runs by durable_runs_deadlines",
        "durable_steps by durable_steps_due",
    },
    "MAKE_DUE": {"durable_runs by durable_runs_scheduled"},
    "WAKE": {"durable_runs by durable_runs_waiting"},
    "OVERDUE": {"durable_runs by durable_runs_deadlines"},
    "ORPHANS": {"durable_runs by durable_runs_by_status"},
    "ENDED_BEFORE": {"durable_runs by durable_runs_completed"},
    "FENCE": {RUN},
    "RENEW": {RUN},
    "SETTLE": {RUN, "child by durable_runs_by_parent", "durable_steps by durable_steps_by_topic"},
    "PARK": {RUN},
    "WAKE_ONE": {RUN},
    "RELEASE": {RUN},
    "CANCEL": {RUN},
    "RESET_RECOVERIES": {RUN},
    "FORGET_RECOVERIES": {RUN},
    "LIMIT_DURATION": {RUN},
    "SET_PROGRESS": {RUN},
    "RUN_EXISTS": {RUN},
    "RUN_IDENTITY": {RUN},
    "RUN_STANDING": {RUN},
    "GET_RUN": {RUN, STEP, RUNNING, FRAME},
    "STEPS": {STEP},
    "RUNNING_STEPS": {RUNNING},
    "CANCEL_STEPS": {STEP},
    "EARLIER_ATTEMPTS": {STEP, "durable_attempts by primary key"},
    "ATTEMPTS": {"durable_attempts by primary key"},
    "RECORD_STEP": set(),
    "RECORD_STEP_FENCED": {RUN},
    "RECORD_COMPLETED_FENCED": {RUN},
    "RECORD_ATTEMPT": set(),
    "GET_VALUE": {"durable_values by primary key"},
    "SET_VALUE": set(),
    "APPEND_FRAME": set(),
    "FRAMES": {FRAME},
    "ALL_FRAMES": {"durable_frames by primary key"},
    "NEWEST_SEQ": {FRAME},
    "CURRENT_STEP": {RUNNING},
    "STEP": {STEP},
    "RUN_OUTCOME": {RUN},
    "ACTIVE_CHILDREN": {"durable_runs by durable_runs_by_parent"},
    "AWAITED_CHILDREN": {"child by durable_runs_by_parent", STEP},
    "ADOPT_CHILDREN": {"durable_runs by durable_runs_by_parent"},
    "BLOCK": {RUN},
    "UNBLOCK": {RUN, "durable_runs by durable_runs_blocked"},
    "COMPENSATE": {RUN},
    "BEGIN_COMPENSATION": {RUN, STEP},
    "TO_COMPENSATE": {STEP},
    "EXPIRE": {RUN},
    "BURY": {RUN},
    "ORPHAN": {RUN},
    "REOPEN": {RUN},
    "LINK_DEAD_LETTER": {RUN},
    "SERVES_DEAD_LETTER": {RUN, "later by id", "earlier by id"},
    "FORGET_UNSETTLED_STEPS": {STEP},
    "FORGET_LATER_PUBLICATIONS": {STEP},
    "COPY_STEPS": {STEP},
}
# An index for the order would cost every step a write; and of runs that are leased, blocked or the children of one
# there are only few.
SORTED_FEW = {"STEPS", "ORPHANS", "ACTIVE_CHILDREN", "AWAITED_CHILDREN", "UNBLOCK", "TO_COMPENSATE"}


def plan_of(connection: sqlite3.Connection, text: str) -> tuple[set[str], list[str]]:
    """The tables that a statement reads, each with the index it goes by, and what in its plan is no look-up."""
    names = re.findall(r":([a-z_0-9]+)", text)
    parameters = dict.fromkeys(names) if names else (None,) * text.count("?")
    reads: set[str] = set()
    others: list[str] = []
    for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters):
        found = re.match(
            r"(?:SEARCH|SCAN) (\w+) USING (?:COVERING )?(?:INDEX (\w+)|((?:INTEGER )?PRIMARY KEY))", detail
        )
        if found is not None:
            index = re.sub(r"^sqlite_autoindex_durable_runs_1$", "id", found[2] or "primary key")
            reads.add(f"{found[1]} by {index}")
        elif detail.startswith(("SCAN", "SEARCH durable", "USE TEMP B-TREE")):
            others.append(detail)
    return reads, [detail for detail in others if detail != "SCAN CONSTANT ROW"]


@pytest.mark.parametrize("name", PLANS)
async def test_what_runs_per_step_and_per_claim_goes_by_the_index_made_for_it(running, name):
    text = queries.runs.claim(["one", "another"])[0] if name == "CLAIM_BUT_SATURATED" else QUERIES[name]
    async with running() as engine:
        reads, others = plan_of(engine._store.database.connection, text)
    assert reads == PLANS[name]
    others = [other for other in others if other not in RECURSIVE]
    assert others == (["USE TEMP B-TREE FOR ORDER BY"] if name in SORTED_FEW else [])


RECURSIVE = {"SCAN origin", "SCAN waiting"}  # what a recursive statement has found so far: no table


PENDING, MESSAGE = "durable_messages by durable_messages_pending", "durable_messages by durable_messages_by_id"
TOPIC = "durable_steps by durable_steps_by_topic"
PLANS_OF_WAITS = {
    "DUE": {"durable_steps by durable_steps_due"},
    "BY_TOPIC": {TOPIC},
    "BY_TOPIC_IN_RUN": {TOPIC},
    "TOPIC_STATUS": {TOPIC},
    "FOLLOW_ON": {TOPIC},
    "WAITING_FOR": {"child by id", "step by durable_steps_by_topic"},
    "BREAKPOINTS": {RUNNING},
    "SEND": set(),
    "NEXT": {PENDING},
    "MARK": {MESSAGE},
    "PUT_BACK": {MESSAGE},
    "OUTCOME": {MESSAGE},
    "PUBLISH": set(),
    "FORGET_EVENTS": {"durable_events by primary key", "durable_events by durable_events_by_time"},
}
SORTED_WAITS = {"BY_TOPIC", "BY_TOPIC_IN_RUN"}  # the few runs that an event reaches, the few waits of one run


@pytest.mark.parametrize("name", PLANS_OF_WAITS)
async def test_what_runs_per_wait_and_per_delivery_goes_by_the_index_made_for_it(running, name):
    async with running() as engine:
        text = getattr(waits if hasattr(waits, name) else messages, name)
        reads, others = plan_of(engine._store.database.connection, text)
    assert reads == PLANS_OF_WAITS[name]
    others = [other for other in others if other not in RECURSIVE]
    assert all(other.startswith("USE TEMP B-TREE") and name in SORTED_WAITS for other in others)


async def test_waits_that_have_ended_are_no_longer_found_by_their_topic(running):
    """Else an event would look at everybody who has ever waited for it."""

    @job("paid")
    async def paid(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("go")
        await ctx.wait_for_event("paid")

    async with running(paid) as engine:
        run = await engine.trigger("paid")
        await engine.signal(run.id, "go")
        while not await engine.publish("paid"):
            await asyncio.sleep(0.003)
        await finish(engine, run)
        assert engine._store.database.rows("SELECT name FROM durable_steps WHERE topic IS NOT NULL") == []


async def test_listing_the_runs_that_a_run_has_started_goes_by_the_index_made_for_it(running):
    text, _ = queries.listing.list_runs(RunFilter(parent="a run"), oldest_first=False, after=None, limit=50)
    async with running() as engine:
        reads, _ = plan_of(engine._store.database.connection, text)
    assert "durable_runs by durable_runs_by_parent" in reads


async def test_looking_which_waits_have_ended_costs_a_look_up_for_each(running):
    async with running() as engine:
        reads, others = plan_of(engine._store.database.connection, waits.ENDED)
    assert reads == {"step by primary key", "durable_messages by durable_messages_pending"}
    assert others == ["SCAN wait VIRTUAL TABLE INDEX 1:"]


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "id"),
        ({"job": "one"}, "durable_runs_by_job"),
        ({"status": "completed"}, "durable_runs_by_status"),
    ],
)
async def test_a_page_of_runs_is_read_in_the_order_of_an_index(running, filters, index):
    text, _ = queries.listing.list_runs(RunFilter(**filters), False, "01", 50)
    async with running() as engine:
        reads, others = plan_of(engine._store.database.connection, text)
    assert reads == {f"durable_runs by {index}", STEP, RUNNING, FRAME}
    assert others == []


async def test_no_statement_by_name_scans_a_table(running):
    async with running() as engine:
        for name, text in QUERIES.items():
            _, others = plan_of(engine._store.database.connection, text)
            scans = [detail for detail in others if detail.startswith("SCAN")]
            assert [detail for detail in scans if detail not in RECURSIVE] == [], name
