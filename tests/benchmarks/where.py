"""Where the time goes: a profile of a step and of a one-step run, in Pyodide and on CPython."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .laboratory import Laboratory
from .on_desk import Process
from .scale import Scale
from .series import Bench, Measurement

_KINDS = (("step", False, 4), ("one-step run", True, 1))


def profile_in_browser(bench: Bench, lab: Laboratory, scale: Scale) -> list[Measurement]:
    """In a worker's Pyodide, on OPFS."""
    call = lab.pyodide("profile")
    call("open_engine", max_concurrent_runs=10, durability="normal")
    found = _profile(bench, "profile", "Pyodide", call, scale)
    call("close_engine")
    return found


def profile_on_desk(bench: Bench, folder: str, scale: Scale) -> list[Measurement]:
    """On CPython, over a file in ``folder``."""
    process = Process(sys.executable, "engine_process.py", folder)
    try:
        process.ask("open_engine", name="profile", durability="normal")

        def call(question: str, **parameters: Any) -> Any:
            return process.ask(question, name="profile", **parameters)

        return _profile(bench, "desk-profile", "CPython", call, scale)
    finally:
        process.close()


def _profile(
    bench: Bench, name: str, home: str, call: Callable[..., dict[str, Any]], scale: Scale
) -> list[Measurement]:
    found = []
    for what, runs, times in _KINDS:
        told = call("profile", count=scale.steps * times, runs=runs)
        measurement = Measurement(
            f"{name}-{what.replace(' ', '-')}",
            f"{home}: where the time of a {what} goes, durability normal: "
            f"{told['seconds'] * 1e6:,.0f} µs without the profiler",
        )
        measurement.series = [bench.series(part, "%", [100 * share]) for part, share in told["parts"].items()]
        statements = ", ".join(f"{number:.1f} x {text}" for text, number in told["statements"].items())
        measurement.notes = [
            f"{told['pages']:.1f} pages of the write-ahead log; {told['turns']:.2f} turns of the event loop",
            f"Statements: {statements}",
            *(f"{share:.1%}, {calls:.1f} calls: {function}" for share, calls, function in told["functions"]),
        ]
        found.append(measurement)
    return found
