"""What a past costs: the same questions to databases with and without many finished runs; memory and bytes per step."""

from __future__ import annotations

from collections.abc import Callable

from .laboratory import Laboratory
from .scale import Scale
from .series import Bench, Measurement

_WANTED = 100_000
_QUESTIONS = {
    "growth-steps": ("Durable steps, with so many finished runs in the database", "steps/s"),
    "growth-runs": ("One-step runs, with so many finished runs in the database", "runs/s"),
    "growth-latency": ("Trigger to completed, with so many finished runs in the database", "ms"),
    "growth-replay": ("Replay of recorded steps, with so many finished runs in the database", "ms"),
}


def measure_growth(bench: Bench, lab: Laboratory, scale: Scale) -> list[Measurement]:
    """Steps, runs, latency and replay over databases of different pasts.

    With durability normal: what a flush takes does not depend on what is in the database, and differs more from one
    moment to the next than what is to be seen here.
    """
    counted = {past: _fill(lab, past) for past in scale.pasts}
    pages = {past: lab.engine(_name(past), durability="normal") for past in scale.pasts}
    recorded = {past: page.evaluate("(count) => engine.record(count)", scale.replayed) for past, page in pages.items()}

    def ask(question: str, past: int) -> Callable[[], float | list[float]]:
        page = pages[past]
        match question:
            case "growth-steps":
                return lambda: scale.steps * 1000 / page.evaluate("(count) => engine.steps(count)", scale.steps)
            case "growth-runs":
                return lambda: scale.runs * 1000 / page.evaluate("(count) => engine.runs(count)", scale.runs)
            case "growth-latency":
                return lambda: [page.evaluate("() => engine.latency(100)") for _ in range(scale.latencies)]
            case _:
                return lambda: page.evaluate("(id) => engine.replay(id)", recorded[past])

    found = []
    for question, (title, unit) in _QUESTIONS.items():
        subjects = {_label(past): ask(question, past) for past in scale.pasts}
        if question == "growth-steps":  # the first of them warms up for the others
            for measure in subjects.values():
                measure()
        measurement = Measurement(question, title)
        notes = {_label(past): f"{counted[past]['frames']:,} frames" for past in scale.pasts if past}
        if scale.pasts[-1] < _WANTED:
            measurement.notes.append(f"a {scale.name} run goes no further than {scale.pasts[-1]:,} finished runs")
        rounds = bench.rounds if question == "growth-steps" else min(bench.rounds, 3)
        measurement.series += bench.take_turns(unit, subjects, notes=notes, rounds=rounds).values()
        found.append(measurement)
    for past in scale.pasts:
        lab.close_engine(_name(past))
    return found


def measure_memory(bench: Bench, lab: Laboratory, scale: Scale) -> list[Measurement]:
    """The worker's memory, and the database, before and after many steps."""
    call = lab.pyodide("memory")
    call("open_engine", max_concurrent_runs=10)
    batch = 1000
    call("runs", count=1, steps=batch)
    before = call("sizes")
    for _ in range(scale.memory_steps // batch):
        call("runs", count=1, steps=batch)
    after = call("sizes")
    call("close_engine")
    lab.end_pyodide("memory")
    memory = Measurement("memory", f"WebAssembly memory of the worker, before and after {scale.memory_steps:,} steps")
    for subject, sizes in (("before", before), ("after", after)):
        memory.series.append(bench.series(subject, "MB", [sizes["memory"] / 1e6]))
    grown = (after["database"] - before["database"]) / scale.memory_steps
    size = Measurement("bytes-per-step", "Database bytes per step, its frame included")
    size.series.append(bench.series("engine", "bytes", [grown], "small outputs, in runs of 1,000 steps"))
    return [memory, size]


def _fill(lab: Laboratory, past: int) -> dict[str, int]:
    name = _name(past)
    counted = lab.pyodide(name)("fill", runs=past) if past else {"frames": 0}
    if past:
        lab.end_pyodide(name)
    return counted


def _name(past: int) -> str:
    return f"past-{past}"


def _label(past: int) -> str:
    return f"{past:,}"
