"""The engine and raw commits on CPython: engine_process.py FOLDER, then questions on the standard input."""

import asyncio
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import history
import jobs
import profiling
from conversation import answer

from durable_web import Engine, Trigger

FOLDER = Path(sys.argv[1])
_loop = asyncio.new_event_loop()
_raw = sqlite3.connect(FOLDER / "raw.sqlite3", isolation_level=None)
_engines: dict[str, Engine] = {}


def fill(name: str, runs: int) -> dict[str, int]:
    """Make a database with finished runs."""
    return _loop.run_until_complete(history.fill(_path(name), runs, exclusive=False))


def open_engine(name: str, **options: Any) -> None:
    """Start an engine on a database of that name."""
    engine = _engines[name] = Engine(_path(name), [jobs.steps, jobs.replayed, jobs.replayed_in_branches], **options)
    _loop.run_until_complete(engine.start())


def commits(count: int, pause: float = 0.0) -> float:
    """Seconds for so many transactions of one row each.

    :param pause: seconds of computing before each of them, which do not count.
    """
    began = time.perf_counter()
    for number in range(count):
        if pause:
            until = time.perf_counter() + pause
            while time.perf_counter() < until:
                pass
        _raw.execute("BEGIN IMMEDIATE")
        _raw.execute("INSERT INTO row (text) VALUES (?)", (str(number),))
        _raw.execute("COMMIT")
    return time.perf_counter() - began - count * pause


def runs(name: str, count: int, steps: int, function: str = "synchronous") -> float:
    """Seconds for so many runs of so many steps each, triggered at once.

    :param function: of the steps, as the job ``steps`` names it.
    """
    trigger = Trigger("steps", {"count": steps, "function": function})

    async def execute() -> None:
        made = await _engines[name].trigger_many([trigger] * count)
        for run in made:
            await _engines[name].runs.wait(run.id)

    return _timed(execute())


def triggered(name: str, count: int) -> float:
    """Seconds for so many one-step runs, each triggered when the one before has ended: mostly claims."""

    async def execute() -> None:
        for _ in range(count):
            await _engines[name].trigger_and_wait("steps", {"count": 1})

    return _timed(execute())


def record(name: str, job: str, count: int) -> str:
    """Record steps in a run of that job, for ``replay``; its id."""
    run = _loop.run_until_complete(_engines[name].trigger_and_wait(job, {"count": count}))
    return run.id


def replay(name: str, run_id: str) -> float:
    """Seconds from retrying that run until it has ended again."""

    async def execute() -> None:
        await _engines[name].retry(run_id)
        await _engines[name].runs.wait(run_id)

    return _timed(execute())


def lists(name: str, count: int) -> float:
    """Seconds for so many pages of runs."""

    async def execute() -> None:
        for _ in range(count):
            await _engines[name].runs.list(limit=20)
            await _engines[name].runs.list(limit=20, status="completed")

    return _timed(execute())


def counts(name: str, count: int) -> float:
    """Seconds for counting so many times."""

    async def execute() -> None:
        for _ in range(count):
            await _engines[name].runs.count()

    return _timed(execute())


def profile(name: str, count: int, runs: bool) -> dict[str, Any]:
    """Where the time of so many steps goes, or of so many one-step runs."""
    engine = _engines[name]

    async def execute(number: int) -> None:
        for _ in range(number if runs else 1):
            await engine.trigger_and_wait("steps", {"count": 1 if runs else number})

    return _loop.run_until_complete(profiling.profile(engine, execute, count))


def _path(name: str) -> str:
    return str(FOLDER / f"{name}.sqlite3")


def _timed(work: Any) -> float:
    began = time.perf_counter()
    _loop.run_until_complete(work)
    return time.perf_counter() - began


for pragma in ("journal_mode = WAL", "synchronous = FULL"):
    _raw.execute(f"PRAGMA {pragma}")
_raw.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
answer(
    {
        function.__name__: function
        for function in (fill, open_engine, commits, runs, triggered, record, replay, lists, counts, profile)
    }
)
