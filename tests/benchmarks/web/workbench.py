"""What is measured inside Pyodide without a page; pyodide-worker.js calls it, with and for JSON text."""

import asyncio
import json
import platform
import sqlite3
import time
from typing import Any

import history
import jobs
import profiling

from durable_web import Engine

_opened: dict[str, sqlite3.Connection] = {}
_engines: dict[str, Engine] = {}


async def call(method: str, text: str) -> str:
    """Call the function of that name with the keywords in ``text``."""
    result = globals()[method](**json.loads(text))
    return json.dumps(await result if asyncio.iscoroutine(result) else result)


def versions(folder: str) -> dict[str, str]:
    """Of what runs in here."""
    return {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}


def open_raw(folder: str, synchronous: str) -> None:
    """A database like the engine's, with one table."""
    raw = _opened["raw"] = sqlite3.connect(f"{folder}/database.sqlite3", isolation_level=None)
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", f"synchronous = {synchronous}"):
        raw.execute(f"PRAGMA {pragma}")
    raw.execute("CREATE TABLE IF NOT EXISTS row (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")


def commits(folder: str, count: int, synchronous: str, pause: float = 0.0) -> float:
    """Milliseconds for so many transactions of one row each.

    :param pause: seconds of computing before each of them, which do not count.
    """
    raw = _opened["raw"]
    raw.execute(f"PRAGMA synchronous = {synchronous}")
    began = time.perf_counter()
    for number in range(count):
        if pause:
            until = time.perf_counter() + pause
            while time.perf_counter() < until:
                pass
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("INSERT INTO row (text) VALUES (?)", (str(number),))
        raw.execute("COMMIT")
    return (time.perf_counter() - began - count * pause) * 1000


async def open_engine(folder: str, max_concurrent_runs: int, durability: str = "full") -> None:
    """An engine for so many runs at a time."""
    engine = _engines["engine"] = Engine(
        f"{folder}/database.sqlite3",
        [jobs.steps],
        durability=durability,
        exclusive=True,
        max_concurrent_runs=max_concurrent_runs,
    )
    await engine.start()


async def close_engine(folder: str) -> None:
    """Close the engine's database."""
    await _engines["engine"].stop()


async def runs(folder: str, count: int, steps: int) -> float:
    """Milliseconds for so many runs of so many steps, as many at a time as the engine was opened for."""
    engine = _engines["engine"]
    began = time.perf_counter()
    made = [await engine.trigger("steps", {"count": steps}) for _ in range(count)]
    for run in made:
        await engine.runs.wait(run.id)
    return (time.perf_counter() - began) * 1000


async def profile(folder: str, count: int, runs: bool) -> dict[str, Any]:
    """Where the time of so many steps goes, or of so many one-step runs."""
    engine = _engines["engine"]

    async def execute(number: int) -> None:
        for _ in range(number if runs else 1):
            await engine.trigger_and_wait("steps", {"count": 1 if runs else number})

    return await profiling.profile(engine, execute, count)


async def sizes(folder: str) -> dict[str, int]:
    """Bytes of the WebAssembly memory, and of the database's pages."""
    from pyodide_js import _module

    connection = _engines["engine"].internals.store.database.connection
    pages, page_size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return {"memory": _module.HEAPU8.length, "database": pages * page_size}


async def fill(folder: str, runs: int) -> dict[str, int]:
    """Put so many finished runs, with ten frames each, into the engine's database, and close it."""
    return await history.fill(f"{folder}/database.sqlite3", runs, exclusive=True)
