"""Databases of earlier versions: migrated in one transaction; which of their runs were sequential, and can go on."""

from __future__ import annotations

import asyncio
import functools
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from earlier_databases import NAMES, restore
from watching import cpython_only, finish, timeline

from durable_web import Context, RunStatus, SchemaVersionError, job
from durable_web._store import SCHEMA_VERSION, Database, database

VERSION_1 = Path(__file__).parents[2] / "support" / "schema_1.sql"


def make_version_1(path: str) -> None:
    """A database as version 1 left it when its process was killed in the middle of a run."""
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1.read_text("utf-8"))
    connection.execute("PRAGMA user_version = 1")
    connection.execute(
        "INSERT INTO durable_runs (id, job, status, input, attempt, generation, lease_owner, lease_expires_at, "
        "created_at, ready_at, started_at, updated_at) "
        "VALUES ('01J0000000000000000000000A', 'two', 'leased', 'null', 1, 1, 'gone', 1, 1, 1, 1, 1)"
    )
    connection.execute(
        "INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, output, started_at, completed_at) "
        "VALUES ('01J0000000000000000000000A', 'first', 'step', 'completed', 0, 1, '1', 1, 1)"
    )
    connection.execute(
        "INSERT INTO durable_frames (run_id, seq, ts, kind, body) "
        """VALUES ('01J0000000000000000000000A', 1, 1, 'run_status', '{"status":"pending","attempt":0}')"""
    )
    connection.commit()
    connection.close()


def structure(path: str) -> dict[str, object]:
    """Every table with its columns, in any order, and every index and trigger as it was made."""
    connection = sqlite3.connect(path)
    try:
        made = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        found: dict[str, object] = {}
        for kind, name, text in made:
            columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
            found[name] = {tuple(column[1:5]) for column in columns} if kind == "table" else " ".join(text.split())
        return found
    finally:
        connection.close()


async def test_a_run_of_an_earlier_version_goes_on_from_its_last_step(running, database_path):
    make_version_1(database_path)
    called: list[str] = []

    @job("two")
    async def two(ctx: Context, _: None) -> int:
        first = await ctx.step("first", lambda: called.append("first"))
        await ctx.sleep("nap", 0)
        return first + await ctx.step("second", lambda: 2)

    async with running(two) as engine:
        (run,) = await engine.runs.list()
        run = await finish(engine, run)
        assert (run.status, run.output, called) == (RunStatus.COMPLETED, 3, [])
        seqs = [frame.seq for frame in await timeline(engine, run)]
        assert seqs == list(range(1, len(seqs) + 1))


async def test_a_run_of_an_earlier_version_is_given_what_it_has_recorded_in_branches(running, database_path):
    """Names were counted over the whole body, and nothing more was recorded."""
    make_version_1(database_path)
    recorded = {"begin a": 1, "begin b": 1, "parse": "A", "parse#2": "B", "load": 1, "load#2": 2}
    with closing(sqlite3.connect(database_path)) as connection:
        connection.executemany(
            "INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, output, started_at, "
            "completed_at) VALUES ('01J0000000000000000000000A', ?, 'step', 'completed', ?, 1, ?, 1, 1)",
            [(name, position, json.dumps(value)) for position, (name, value) in enumerate(recorded.items(), 1)],
        )
        connection.commit()
    called: list[str] = []

    @job("two")
    async def two(ctx: Context, _: None) -> list[object]:
        async def branch(name: str) -> str:
            await ctx.step(f"begin {name}", called.append, name)
            return await ctx.step("parse", called.append, name)

        await ctx.step("first", called.append, "first")
        parsed = await asyncio.gather(branch("a"), branch("b"))
        loaded = [await asyncio.wait_for(ctx.step("load", called.append, "load"), 5) for _ in range(2)]
        return [*parsed, *loaded, await ctx.step("load", lambda: "new")]

    async with running(two) as engine:
        (run,) = await engine.runs.list()
        run = await finish(engine, run)
        assert (run.output, called) == (["A", "B", 1, 2, "new"], [])
        assert [step.name for step in await engine.runs.steps(run.id)] == ["first", *recorded, "load#3"]


@cpython_only("opens the file beside the engine")
@pytest.mark.parametrize("make_earlier", [make_version_1, functools.partial(restore, "asleep")], ids=["1", "4"])
async def test_a_migrated_database_is_built_like_a_new_one(running, database_path, make_earlier):
    make_earlier(database_path)
    async with running():
        pass
    migrated = structure(database_path)
    Path(database_path).unlink()
    async with running():
        pass
    assert migrated == structure(database_path)


@cpython_only("opens the file beside the engine")
async def test_a_migration_that_fails_leaves_the_database_as_it_was(running, database_path, monkeypatch):
    make_version_1(database_path)
    before = structure(database_path)
    monkeypatch.setattr(database, "_statements", lambda script: iter(["DROP TABLE durable_labels", "NONSENSE"]))
    with pytest.raises(sqlite3.OperationalError, match="NONSENSE"):
        async with running():
            pass
    assert structure(database_path) == before
    monkeypatch.undo()
    async with running() as engine:
        assert engine.internals.store.database._user_version() == SCHEMA_VERSION


# --- refusing to migrate ----------------------------------------------------------------------------------------------


@cpython_only("reads the file beside the engine")
@pytest.mark.parametrize(("make_earlier", "version"), [(make_version_1, 1), (functools.partial(restore, "asleep"), 4)])
async def test_an_engine_that_may_not_migrate_refuses_an_earlier_database_and_leaves_it_untouched(
    running, database_path, make_earlier, version
):
    make_earlier(database_path)
    with closing(sqlite3.connect(database_path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = Path(database_path).read_bytes()
    with pytest.raises(SchemaVersionError, match="make a backup, then open the file once without migrate") as caught:
        async with running(migrate=False):
            pass
    assert (caught.value.found, caught.value.supported) == (version, SCHEMA_VERSION)
    assert Path(database_path).read_bytes() == before
    assert [path.name for path in Path(database_path).parent.iterdir()] == ["database.sqlite3"]
    async with running() as engine:
        assert len(await engine.runs.list()) == 1


async def test_an_engine_that_may_not_migrate_makes_a_new_database_and_opens_one_of_today(running, database_path):
    for _ in range(2):
        async with running(migrate=False) as engine:
            assert await engine.runs.list() == []


# --- which runs were sequential ---------------------------------------------------------------------------------------

SEQUENTIAL, UNORDERED = True, False
RUN = "01J0000000000000000000000A"
Row = dict[str, Any]


def row(name: str, started_at: int, completed_at: int | None, place: str | None = None, **more: Any) -> Row:
    """A row of durable_steps as version 4 wrote it."""
    status = "running" if completed_at is None else "completed"
    columns = {"name": name, "kind": "step", "status": status, "attempt": 1, "output": "1", "place": place}
    return {**columns, "started_at": started_at, "completed_at": completed_at, **more}


def migrate(path: str, rows: list[Row], others: Sequence[str] = (), **run: Any) -> dict[str, tuple[int, int]]:
    """Migrate a database with one run. Order and time of its outcomes, in their order, by name; empty when unordered.

    :param others: further statements, which make the rest of what is recorded of the run.
    :param run: columns of its row that are not the usual ones.
    """
    restore_empty(path)
    columns = {"id": RUN, "job": "any", "status": "pending", "input": "null", "attempt": 1, **run}
    times = dict.fromkeys(["created_at", "ready_at", "updated_at"], 1)
    with closing(sqlite3.connect(path)) as connection, connection:
        insert(connection, "durable_runs", {**columns, **times})
        for position, step in enumerate(rows):
            insert(connection, "durable_steps", {"run_id": RUN, "position": position, **step})
        for statement in others:
            connection.execute(statement)
    with closing(Database(path, exclusive=True)) as migrated:
        found = migrated.rows(
            "SELECT name, outcome_order, completed_at FROM durable_steps WHERE outcome_order IS NOT NULL ORDER BY 2"
        )
        (owner,) = migrated.row("SELECT lease_owner FROM durable_runs")
    orders = {name: (order, at) for name, order, at in found}
    assert [order for order, _ in orders.values()] == list(range(1, len(orders) + 1))
    assert [at for _, at in orders.values()] == sorted(at for _, at in orders.values())
    assert (owner == "migration") == (not orders)
    return orders


def restore_empty(path: str) -> None:
    restore("interrupted", path)
    with closing(sqlite3.connect(path)) as connection, connection:
        for table in ("durable_runs", "durable_steps", "durable_frames", "durable_counts"):
            connection.execute(f"DELETE FROM {table}")


def insert(connection: sqlite3.Connection, table: str, values: Row) -> None:
    names = ", ".join(values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", list(values.values()))


def frame(seq: int, ts: int, kind: str, **body: Any) -> str:
    text = json.dumps(body).replace("'", "''")
    return f"INSERT INTO durable_frames (run_id, seq, ts, kind, body) VALUES ('{RUN}', {seq}, {ts}, '{kind}', '{text}')"


def attempt(name: str, number: int, started_at: int, completed_at: int) -> str:
    return (
        "INSERT INTO durable_attempts (run_id, name, attempt, error, started_at, completed_at) "
        f"VALUES ('{RUN}', '{name}', {number}, '{{}}', {started_at}, {completed_at})"
    )


CASES: dict[str, tuple[bool, list[Row]]] = {
    "one after the other": (SEQUENTIAL, [row("a", 1, 2), row("b", 3, 4)]),
    "quick steps of the body, in one millisecond": (SEQUENTIAL, [row("a", 1, 1), row("b", 1, 1)]),
    "of version 3": (SEQUENTIAL, [row("a", 1, 1, "?"), row("b", 1, 2, "?")]),
    "one during another": (UNORDERED, [row("a", 1, 5), row("b", 2, 3)]),
    "one after the beginning of another that never ended": (UNORDERED, [row("a", 1, None), row("b", 2, 3)]),
    "the last one never ended": (SEQUENTIAL, [row("a", 1, 2), row("b", 2, None)]),
    "asked for later, begun earlier": (UNORDERED, [row("a", 5, 6), row("b", 1, 2)]),
    "a task of the body in the millisecond of the body": (UNORDERED, [row("a", 1, 2), row("b", 2, 3, "1 *")]),
    "a task of the body after the body": (SEQUENTIAL, [row("a", 1, 2), row("b", 3, 4, "1 *")]),
    "the body in the millisecond of its task": (SEQUENTIAL, [row("a", 1, 2, "1 *"), row("b", 2, 3)]),
    "quick steps of one task": (SEQUENTIAL, [row("a", 1, 1, "1 *"), row("b", 1, 1, "1 by a"), row("c", 1, 2)]),
    "two tasks that take turns": (
        UNORDERED,
        [row("a", 1, 2, "1 *"), row("b", 3, 4, "1 *"), row("c", 5, 6, "1 by a"), row("d", 7, 8, "1 by b")],
    ),
    "a task and the body that take turns": (
        UNORDERED,
        [row("a", 1, 2, "1 *"), row("b", 3, 4), row("c", 5, 6, "1 by a")],
    ),
    "two tasks of which the first was over": (
        SEQUENTIAL,
        [row("a", 1, 2, "1 *"), row("b", 3, 4, "1 by a"), row("a#2", 5, 6, "2 *"), row("b#2", 7, 8, "1 by a#2")],
    ),
    "a task of a task": (
        SEQUENTIAL,
        [row("a", 1, 2, "1 *"), row("b", 3, 4, "1 by* a"), row("c", 5, 6, "1 by a .. * b"), row("d", 7, 8, "1 by a")],
    ),
    "a task of a task, and this, that take turns": (
        UNORDERED,
        [row("a", 1, 2, "1 *"), row("b", 3, 4, "1 by* a"), row("c", 5, 6, "1 by a"), row("d", 7, 8, "1 by a .. * b")],
    ),
    "a patch between the steps of a task": (
        SEQUENTIAL,
        [row("a", 1, 2, "1 *"), row("patch:p", 3, 3, kind="patch", output="true"), row("b", 4, 5, "1 by a")],
    ),
    "a step in a step": (UNORDERED, [row("a", 1, 1), row("b", 1, 1, "1 in1 a")]),
    "a step in the task of a step": (UNORDERED, [row("a", 1, 1), row("b", 1, 1, "1 in1* a")]),
    "children one after the other": (SEQUENTIAL, [row("a", 1, 2, kind="child"), row("b", 3, 4, kind="child")]),
    "children in one millisecond": (UNORDERED, [row("a[0]", 1, 1, kind="child"), row("a[1]", 1, 1, kind="child")]),
    "a child in the millisecond of the step before": (SEQUENTIAL, [row("a", 1, 1), row("b", 1, 2, kind="child")]),
    "a child in a task, under the name that it has now": (
        SEQUENTIAL,
        [row("a", 1, 2), row("b#2", 3, None, "2 *", kind="child")],
    ),
    "a child in a task, that could not be found again": (
        UNORDERED,
        [row("a", 1, 2, "1 *"), row("b", 3, None, "1 by a", kind="child")],
    ),
    "a child that could not be found again, and need not": (
        SEQUENTIAL,
        [row("a", 1, 2, "1 *"), row("b", 3, 4, "1 by a", kind="child")],
    ),
    "called off": (UNORDERED, [row("a", 1, 2), row("b", 3, 4, status="cancelled")]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_counts_as_sequential_only_where_it_was_so_for_certain(database_path, case):
    is_sequential, rows = CASES[case]
    outcomes = [row["name"] for row in rows if row["status"] == "completed" and row["kind"] != "patch"]
    assert list(migrate(database_path, rows)) == (outcomes if is_sequential else [])


def test_a_run_is_sequential_though_something_was_busy_when_it_ended(database_path):
    rows = [row("a", 1, 2), row("nap", 3, 4, kind="sleep", status="cancelled")]
    ended = frame(1, 4, "run_status", status="failed")
    assert list(migrate(database_path, rows, [ended], status="failed", lease_owner="")) == ["a"]


def test_a_step_that_was_retried_began_with_its_first_attempt(database_path):
    rows = [row("a", 2, 6), row("b", 7, 8, "1 *", attempt=2)]
    assert migrate(database_path, rows, [attempt("b", 1, 3, 4)]) == {}


def test_attempts_that_were_before_a_retry_of_the_run_do_not_count(database_path):
    rows = [row("a", 2, 6), row("b", 9, 10, attempt=3, attempts_before=1)]
    assert list(migrate(database_path, rows, [attempt("b", 1, 3, 4), attempt("b", 2, 7, 8)])) == ["a", "b"]


def test_a_step_that_was_begun_again_after_a_crash_was_busy_beside_what_ended_before_that(database_path):
    rows = [row("a", 1, 5), row("b", 10, 12, "1 *")]
    frames = [
        frame(1, 2, "step_status", name="b", status="running", index=1),
        frame(2, 5, "step_status", name="a", status="completed", index=0),
        frame(3, 12, "step_status", name="b", status="completed", index=1),
    ]
    assert migrate(database_path, rows, frames, attempt=2) == {}


def test_frames_of_before_a_retry_say_nothing_of_positions_that_were_given_again(database_path):
    frames = [
        frame(1, 1, "step_status", name="b", status="running", index=1),
        frame(2, 2, "step_status", name="b", status="failed", index=1),
        frame(3, 3, "run_status", status="pending", reason="retried"),
        frame(4, 5, "step_status", name="a", status="completed", index=0),
    ]
    assert list(migrate(database_path, [row("a", 4, 5)], frames, attempt=2)) == ["a"]


def test_a_webhook_has_its_place_by_the_time_of_its_call(database_path):
    rows = [row("hook", 1, 6, kind="webhook"), row("a", 2, 3), row("b", 4, 7), row("c", 8, 9)]
    assert list(migrate(database_path, rows)) == ["a", "hook", "b", "c"]


def test_times_follow_the_order_also_where_the_clock_was_set_back(database_path):
    rows = [row("a", 5, 6), row("b", 7, 3), row("c", 8, 9)]
    assert migrate(database_path, rows) == {"a": (1, 6), "b": (2, 6), "c": (3, 9)}


def test_patches_and_publications_are_no_outcomes_and_a_patch_that_did_not_apply_is_forgotten(database_path):
    rows = [
        row("patch:old", 1, 1, kind="patch", output="false"),
        row("patch:new", 1, 1, kind="patch", output="true"),
        row("event stage", 2, 2, kind="publish"),
        row("a", 3, 4),
    ]
    assert list(migrate(database_path, rows)) == ["a"]
    with closing(Database(database_path, exclusive=True)) as migrated:
        kept = migrated.rows("SELECT name FROM durable_steps ORDER BY position")
    assert kept == [("patch:new",), ("event stage",), ("a",)]


@pytest.mark.parametrize(
    ("ending", "error", "kinds"),
    [
        ("cancelled", None, ["cancel:", "compensating:"]),
        ("failed", {"type": "DeadlineExceeded"}, ["cancel:", "compensating:"]),
        ("failed", {"type": "StepFailed"}, ["compensating:"]),
    ],
)
def test_the_cancellation_and_the_beginning_of_the_compensation_have_a_place_in_the_order(
    database_path, ending, error, kinds
):
    rows = [
        row("a", 1, 2, undo=1),
        row("b", 3, 4, undo=2),
        row("nap", 5, 6, kind="sleep", status="cancelled"),
        row("compensate:b", 7, 8, kind="compensation"),
    ]
    cancelled = frame(1, 6, "run_status", status="cancelling", reason="it is to be compensated")
    run = {"status": "cancelling", "ending": ending, "error": None if error is None else json.dumps(error)}
    orders = migrate(database_path, rows, [cancelled], **run)
    assert list(orders) == ["a", "b", *kinds, "compensate:b"]
    assert orders.get("cancel:", (3, 6)) == (3, 6)


@pytest.mark.parametrize("name", NAMES)
def test_a_database_of_version_4_stays_sound(database_path, name):
    restore(name, database_path)
    with closing(Database(database_path, exclusive=True)) as migrated:
        assert migrated.row("PRAGMA integrity_check")[0] == "ok"
        counted = migrated.rows("SELECT job, status, COUNT(*) FROM durable_runs GROUP BY job, status ORDER BY 1, 2")
        assert migrated.rows("SELECT * FROM durable_counts WHERE runs > 0 ORDER BY job, status") == counted
        for table, column in (("sqlite_schema", "sql"), ("durable_frames", "body"), ("durable_runs", "status")):
            assert migrated.rows(f"SELECT {column} FROM {table} WHERE {column} LIKE '%leased%'") == []
