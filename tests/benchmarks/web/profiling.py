"""Where the time of a step goes: statements, pages, and the functions that take the most time; here and in Pyodide.

With ``durability="normal"`` nothing waits for a disk, so what is left is the work itself.
"""

import collections
import cProfile
import pstats
import time
from collections.abc import Awaitable, Callable
from typing import Any

from durable_web import Engine

TOP = 12
_PARTS = (  # in this order: the first that a function's place or name holds
    ("SQLite", ("sqlite3",)),
    ("the engine", ("durable_web/", "store/")),
    ("JSON", ("json", "encoder", "decoder")),
    ("event loop", ("asyncio", "webloop", "_pyodide", "contextvars", "epoll")),
    ("dataclasses and context managers", ("dataclasses", "contextlib")),
)
_REST = "built-in functions and the rest"


async def profile(engine: Engine, execute: Callable[[int], Awaitable[Any]], count: int) -> dict[str, Any]:
    """Look at ``execute(n)``, which makes ``n`` steps, or ``n`` runs.

    :returns: ``seconds`` for each, without a profiler; ``statements`` and ``pages`` of the write-ahead log for each;
        ``turns`` of the event loop for each; ``parts``: shares of the profiled time; ``functions``: share of the
        profiled time in the function itself, calls for each, and name, by share.
    """
    connection = engine.internals.store.database.connection
    await execute(count // 4)
    began = time.perf_counter()
    await execute(count)
    seconds = (time.perf_counter() - began) / count
    few = min(count, 100)  # too few pages for SQLite to checkpoint by itself
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    seen: collections.Counter[str] = collections.Counter()
    connection.set_trace_callback(lambda statement: seen.update([" ".join(statement.split())[:40]]))
    await execute(few)
    connection.set_trace_callback(None)
    pages = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    profiler = cProfile.Profile(time.process_time)  # so that other programs do not count, where there are any
    profiler.enable()
    await execute(count)
    profiler.disable()
    statistics = pstats.Stats(profiler)
    return {
        "seconds": seconds,
        "statements": {text: number / few for text, number in seen.most_common(12) if number >= few / 2},
        "pages": pages / few,
        "turns": _calls(statistics, "_run_once", "run_handle") / count,
        "parts": _parts(statistics),
        "functions": _top(statistics, count),
    }


def _calls(statistics: pstats.Stats, *names: str) -> int:
    return sum(values[1] for (_, _, name), values in statistics.stats.items() if name in names)


def _parts(statistics: pstats.Stats) -> dict[str, float]:
    shares = dict.fromkeys([*(part for part, _ in _PARTS), _REST], 0.0)
    total = sum(values[2] for values in statistics.stats.values())
    for (file, _, function), values in statistics.stats.items():
        place = f"{file} {function}"
        part = next((part for part, marks in _PARTS if any(mark in place for mark in marks)), _REST)
        shares[part] += values[2] / total
    return shares


def _top(statistics: pstats.Stats, count: int) -> list[tuple[float, float, str]]:
    total = sum(values[2] for values in statistics.stats.values())
    longest = sorted(statistics.stats.items(), key=lambda item: -item[1][2])[:TOP]
    return [(values[2] / total, values[1] / count, _name(*place)) for place, values in longest]


def _name(file: str, line: int, function: str) -> str:
    parts = file.replace("\\", "/").split("/")
    return function if file == "~" else f"{'/'.join(parts[-2:])}:{line} {function}"
