"""The database file: opening, refusing, filling up, and how little is written."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from watching import cpython_only, finish, timeline

import durable_web
from durable_web import (
    Context,
    DatabaseReadOnlyError,
    Engine,
    NotADatabaseError,
    Retry,
    RunStatus,
    SchemaVersionError,
    StorageError,
    StorageFullError,
    job,
)
from durable_web.testing import MockClock, settle


@job("steps")
async def steps(ctx: Context, count: int) -> int:
    for number in range(count):
        await ctx.step(f"step {number}", abs, number)
    return count


def commits_of(engine: Engine) -> list[str]:
    """Collects the commits that the engine makes from here on."""
    commits: list[str] = []
    engine.internals.store.database.connection.set_trace_callback(
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
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        await gate.wait()

    @job("branches")
    async def branches(ctx: Context, count: int) -> None:
        await asyncio.gather(*(ctx.step(f"branch {number}", work, number) for number in range(count)))

    async with running(branches) as engine:
        run = await engine.trigger("branches", 100)
        while len(begun) < 100:
            await asyncio.sleep(0)
        commits = commits_of(engine)
        gate.set()
        await finish(engine, run)
    assert len(commits) <= 4


@cpython_only("writes a file that is no database past SQLite")
async def test_a_file_that_is_not_a_database_is_refused_and_left_untouched(tmp_path: Path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear SQLite, I am not one of yours. " * 100)
    before = path.read_bytes()
    with pytest.raises(NotADatabaseError, match="not an SQLite database"):
        await Engine(path).start()
    assert path.read_bytes() == before


@cpython_only("writes a database past the engine")
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


@cpython_only("there are no folders to be missing")
async def test_a_database_in_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DatabaseReadOnlyError, match="folder exists"):
        await Engine(tmp_path / "missing" / "jobs.sqlite3").start()


@cpython_only("there are no permissions to be missing")
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
        tables = engine.internals.store.database.connection.execute(
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
        connection = engine.internals.store.database.connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 60}")
        run = await engine.trigger("grow")
        while not states:
            await asyncio.sleep(0)
        assert states == ["storage_full"]
        committed = (await engine.runs.get(run.id)).completed_steps
        assert 0 < committed < 50

        await clock.advance(1)
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING

        connection.execute("PRAGMA max_page_count = 1000000")
        await clock.advance(60)
        frames = await timeline(engine, run)
        run = await engine.runs.get(run.id)
    assert run.status == RunStatus.COMPLETED
    assert states[-1] == "running"
    completed = [frame.name for frame in frames if frame.kind == "step_status" and frame.status == "completed"]
    assert completed == [f"step {number}" for number in range(50)]


async def test_a_trigger_that_finds_no_room_says_so_and_leaves_no_run(running):
    async with running(steps) as engine:
        connection = engine.internals.store.database.connection
        connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StorageFullError, match="storage is full"):
            await engine.trigger("steps", 1, labels={"text": "x" * 1_000_000})
        connection.execute("PRAGMA max_page_count = 1000000")
        assert await engine.runs.list() == []
        assert (await finish(engine, await engine.trigger("steps", 1))).output == 1


class Damage:
    """Overwrites a database file beneath its engine, from the second page on, and mends it again."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.internals.store.database.connection
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


@cpython_only("writes to the file past the engine")
async def test_whatever_reads_a_damaged_file_raises_a_storage_error_and_a_mended_one_is_read_again(running):
    async with running(steps) as engine:
        run = await finish(engine, await engine.trigger("steps", 3))
        damage = Damage(engine)
        reads = {
            "get_run": lambda: engine.runs.get(run.id),
            "list_runs": engine.runs.list,
            "list_runs by search": lambda: engine.runs.list(search="step"),
            "count_runs": engine.runs.count,
            "get_steps": lambda: engine.runs.steps(run.id),
            "get_event": lambda: engine.runs.value(run.id, "key"),
            "watch": lambda: timeline(engine, run),
            "fork": lambda: engine.runs.fork(run.id, "step 1"),
            "trigger": lambda: engine.trigger("steps", 1, idempotency_key="key"),
            "purge_runs": lambda: engine.runs.purge(run.created_at),
        }
        for name, read in reads.items():
            damage.do()
            with pytest.raises(StorageError, match="PRAGMA integrity_check") as caught:
                await read()
            assert caught.value.path == engine.path, name
            assert isinstance(caught.value.__cause__, sqlite3.Error)
        damage.mend()
        assert await engine.runs.get(run.id) == run


@cpython_only("writes to the file past the engine")
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
        assert (await engine.runs.get(run.id)).output == 2
    assert states[-1] == "running"


@cpython_only("writes to the file past the engine")
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
        load = engine.internals.store.steps.load

        def fail(run_id: str) -> None:
            raise StorageError(engine.path, "the disk is busy")

        monkeypatch.setattr(engine.internals.store.steps, "load", fail)
        run = await engine.trigger("pauses", 2)
        await clock.advance(60)
        assert states == ["storage_error"]
        monkeypatch.setattr(engine.internals.store.steps, "load", load)
        await clock.advance(3)
        assert (await engine.runs.get(run.id)).output == 2
    assert states == ["storage_error", "running"]
