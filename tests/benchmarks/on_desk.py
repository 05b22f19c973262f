"""CPython, over ordinary files: the engine against raw commits and against dbos, and against itself with a past."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from environment import BUILD, ROOT

from .in_browser import ASYNC_NOTE, SUSPENDING_NOTE
from .peers import HERE, WEB
from .scale import Scale
from .series import Bench, Measurement
from .targets import ASYNC, IN_BRANCHES, PACED_COMMITS, SUSPENDING, TEN_RUNS

DBOS, TUNED_DBOS = "dbos", "dbos, write-ahead log"
_PASTS = (1_000, 10_000, 100_000)
_PACE = 0.00004  # less than a step computes
_MANY = 100


class Process:
    """A process that answers questions."""

    def __init__(self, python: Path | str, script: str, *arguments: str | Path) -> None:
        path = os.pathsep.join(str(place) for place in (ROOT, WEB, HERE / "desk"))
        self._process = subprocess.Popen(
            [str(python), str(HERE / "desk" / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ask(self, question: str, **parameters: Any) -> Any:
        """Ask, and wait for the answer.

        :raises RuntimeError: when the process has ended instead; it has said why on the standard error.
        """
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        asked.write(json.dumps([question, parameters]) + "\n")
        asked.flush()
        line = answered.readline()
        if not line:
            raise RuntimeError(f"{self._process.args[1]} ended with code {self._process.wait()} over {question!r}.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _processes(dbos_python: Path) -> Iterator[dict[str, Process]]:
    """The engine's process and those of dbos, on a folder of their own on the repository's disk."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        started = {
            "engine": Process(sys.executable, "engine_process.py", folder),
            DBOS: Process(dbos_python, "dbos_process.py", folder, "DELETE"),
            TUNED_DBOS: Process(dbos_python, "dbos_process.py", folder, "WAL"),
        }
        for process in started.values():
            stack.callback(process.close)
        yield started


def measure_desk(bench: Bench, dbos_python: Path, scale: Scale) -> list[Measurement]:
    """Everything that is measured on CPython."""
    with _processes(dbos_python) as running:
        engine = running["engine"]
        engine.ask("open_engine", name="empty", max_concurrent_runs=_MANY)
        return [
            _steps(bench, running, scale),
            _runs(bench, running, scale),
            _parallel(bench, engine, scale),
            _replay(bench, engine, scale),
            *_growth(bench, engine, scale),
        ]


def _steps(bench: Bench, running: dict[str, Process], scale: Scale) -> Measurement:
    count = 2 * scale.steps
    engine = running["engine"]

    def one_run(function: str) -> float:
        return count / engine.ask("runs", name="empty", count=1, steps=count, function=function)

    subjects: dict[str, Callable[[], float]] = {
        "engine": lambda: one_run("synchronous"),
        ASYNC: lambda: one_run("async"),
        SUSPENDING: lambda: one_run("suspending"),
        TEN_RUNS: lambda: count / engine.ask("runs", name="empty", count=10, steps=count // 10),
        "raw commits": lambda: count / engine.ask("commits", count=count),
        PACED_COMMITS: lambda: count / engine.ask("commits", count=count, pause=_PACE),
    }
    for name in (DBOS, TUNED_DBOS):
        subjects[name] = lambda name=name: scale.steps / running[name].ask("steps", count=scale.steps)
    for measure in subjects.values():
        measure()
    notes = {
        ASYNC: ASYNC_NOTE,
        SUSPENDING: SUSPENDING_NOTE,
        TEN_RUNS: "as many as an engine executes at a time when it is told nothing else; they share their flushes",
        PACED_COMMITS: f"{_PACE * 1e6:.0f} µs of computing before each, which do not count",
        DBOS: "as it comes, with a rollback journal",
        TUNED_DBOS: "the same, with journal_mode=WAL set from outside",
    }
    found = Measurement("desk-steps", f"CPython: durable steps, one run of {count} small steps")
    found.series += bench.take_turns("steps/s", subjects, notes=notes).values()
    found.notes.append(f"dbos made {scale.steps} steps a turn.")
    return found


def _runs(bench: Bench, running: dict[str, Process], scale: Scale) -> Measurement:
    engine = running["engine"]
    subjects: dict[str, Callable[[], float]] = {
        "engine": lambda: scale.runs / engine.ask("runs", name="empty", count=scale.runs, steps=1)
    }
    for name in (DBOS, TUNED_DBOS):
        subjects[name] = lambda name=name: scale.runs / running[name].ask("runs", count=scale.runs)
    found = Measurement("desk-runs", f"CPython: {scale.runs} one-step runs")
    found.series += bench.take_turns("runs/s", subjects).values()
    return found


def _parallel(bench: Bench, engine: Process, scale: Scale) -> Measurement:
    each = max(scale.steps // 10, 10)
    subjects = {
        "one run": lambda: _MANY * each / engine.ask("runs", name="empty", count=1, steps=_MANY * each),
        "100 runs": lambda: _MANY * each / engine.ask("runs", name="empty", count=_MANY, steps=each),
    }
    found = Measurement("desk-parallel", f"CPython: {_MANY * each} steps in one run, and in 100 at a time")
    found.series += bench.take_turns("steps/s", subjects).values()
    return found


def _replay(bench: Bench, engine: Process, scale: Scale) -> Measurement:
    def replay(job: str) -> Callable[[], float]:
        run_id = engine.ask("record", name="empty", job=job, count=scale.replayed)
        return lambda: 1000 * engine.ask("replay", name="empty", run_id=run_id)

    subjects = {"engine": replay("replayed"), IN_BRANCHES: replay("replayed in branches")}
    notes = {IN_BRANCHES: "each step suspends, so the outcomes of the branches alternate, and are delivered at rest"}
    found = Measurement("desk-replay", f"CPython: replay of {scale.replayed} recorded steps")
    found.series += bench.take_turns("ms", subjects, notes=notes).values()
    return found


def _growth(bench: Bench, engine: Process, scale: Scale) -> list[Measurement]:
    labels = {past: f"{past:,}" for past in _PASTS}
    for past, label in labels.items():
        engine.ask("fill", name=label, runs=past)
        engine.ask("open_engine", name=label)
    questions = {
        "desk-claim": ("trigger, claim and end one-step runs, one after the other", "runs/s", "triggered", 200),
        "desk-list": ("list 20 runs, of any status and of one", "lists/s", "lists", 400),
        "desk-count": ("count the runs by status", "counts/s", "counts", 4000),
    }
    found = []
    for name, (title, unit, question, count) in questions.items():
        subjects = {
            label: lambda label=label, question=question, count=count: (
                count / engine.ask(question, name=label, count=count)
            )
            for label in labels.values()
        }
        for measure in subjects.values():
            measure()
        measurement = Measurement(name, f"CPython: {title}, with so many finished runs in the database")
        measurement.series += bench.take_turns(unit, subjects).values()
        found.append(measurement)
    return found
