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
    RunStatus,
    SchemaVersionError,
    StorageFullError,
    job,
)
from durable_web.store import queries
from durable_web.testing import MockClock


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
        while len(engine._dispatcher.executing[run.id][0]._records) < 100:
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


async def test_what_runs_per_step_and_per_claim_uses_an_index(running):
    per_step_and_claim = {
        name: text
        for name, text in vars(queries).items()
        if name.isupper() and isinstance(text, str) and not name.startswith(("_", "INSERT"))
    }
    per_step_and_claim["LOGS"] = queries.logs(["info", "error"])[0]
    assert {"CLAIM", "FENCE", "RECORD_STEP", "APPEND_FRAME", "NEXT_DUE", "SETTLE"} <= per_step_and_claim.keys()
    assert {"FRAMES", "ALL_FRAMES", "NEWEST_FRAME", "NEWEST_SEQ", "CURRENT_STEP"} <= per_step_and_claim.keys()
    async with running() as engine:
        for name, text in per_step_and_claim.items():
            parameters = dict.fromkeys(re.findall(r":([a-z_0-9]+)", text))
            plan = engine._store.database.connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters).fetchall()
            scans = [row[3] for row in plan if row[3].startswith("SCAN") and " USING " not in row[3]]
            assert [scan for scan in scans if scan != "SCAN CONSTANT ROW"] == [], name
