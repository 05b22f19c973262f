"""Databases of earlier versions: migrated in one transaction, and their runs go on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from watching import finish, on_a_desk_only, timeline

from durable_web import Context, RunStatus, job
from durable_web.store import SCHEMA_VERSION, database

VERSION_1 = Path(__file__).with_name("schema_1.sql")


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
        (run,) = await engine.list_runs()
        run = await finish(engine, run)
        assert (run.status, run.output, called) == (RunStatus.COMPLETED, 3, [])
        seqs = [frame.seq for frame in await timeline(engine, run)]
        assert seqs == list(range(1, len(seqs) + 1))


async def test_a_run_of_an_earlier_version_is_given_what_it_has_recorded_in_branches_and_in_steps(
    running, database_path
):
    """Names were counted over the whole body, and nothing more was recorded."""
    make_version_1(database_path)
    recorded = {"begin a": 1, "begin b": 1, "parse": "A", "parse#2": "B", "load": 1, "load#2": 2, "part": 3}
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

        async def outer() -> int:
            return await ctx.step("part", called.append, "part")

        await ctx.step("first", called.append, "first")
        parsed = await asyncio.gather(branch("a"), branch("b"))
        loaded = [await asyncio.wait_for(ctx.step("load", called.append, "load"), 5) for _ in range(2)]
        return [*parsed, *loaded, await ctx.step("outer", outer), await ctx.step("part", lambda: "new")]

    async with running(two) as engine:
        (run,) = await engine.list_runs()
        run = await finish(engine, run)
        assert (run.output, called) == (["A", "B", 1, 2, 3, "new"], [])
        assert [step.name for step in await engine.get_steps(run.id)] == ["first", *recorded, "outer", "part#2"]


@on_a_desk_only("opens the file beside the engine")
async def test_a_migrated_database_is_built_like_a_new_one(running, database_path):
    make_version_1(database_path)
    async with running():
        pass
    migrated = structure(database_path)
    Path(database_path).unlink()
    async with running():
        pass
    assert migrated == structure(database_path)


@on_a_desk_only("opens the file beside the engine")
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
        assert engine._store.database._user_version() == SCHEMA_VERSION
