"""How soon: trigger to completed, commit to page, replay to the page, and a tight logging loop."""

from __future__ import annotations

from collections.abc import Callable

from .in_browser import PEER_NOTE
from .laboratory import Laboratory
from .scale import Scale
from .series import Bench, Measurement
from .targets import PEER, SLOW_PEER

IDLE_MILLISECONDS = 150
PARTS = "sum of the parts"
_BATCH = 512
_REST = 0.00015  # seconds for which an idle engine's disk has rested at least


def measure_latency(bench: Bench, lab: Laboratory, scale: Scale) -> Measurement:
    """A one-step job on an idle engine: from the trigger on the page to `completed` on the page."""
    page = lab.engine("full", durability="full")
    workbench = lab.workbench()
    raw = lab.pyodide("raw")
    raw("open_raw", synchronous="FULL")
    commits = page.evaluate("() => engine.commitsPerRun(10)")

    def engine() -> list[float]:
        return [page.evaluate("(idle) => engine.latency(idle)", IDLE_MILLISECONDS) for _ in range(scale.latencies)]

    def peer(poll: int, count: int) -> Callable[[], list[float]]:
        def measure() -> list[float]:
            peer_page = lab.peer("latency", poll=poll)
            peer_page.evaluate("() => peer.steps(1)")
            found = [
                peer_page.evaluate("(idle) => peer.latency(idle)", IDLE_MILLISECONDS + 17 * number)
                for number in range(count)
            ]
            lab.rest_peer()
            return found

        return measure

    def parts() -> list[float]:
        commit = raw("commits", count=100, synchronous="FULL", pause=_REST) / 100
        trips = [workbench.evaluate("() => workbench.roundTrip()") for _ in range(scale.latencies)]
        return [2 * trip + commits * commit for trip in trips]

    page.evaluate("() => engine.latency(0)")
    found = Measurement("latency", "From trigger on the page to completed on the page, one step, idle engine")
    subjects = {
        "engine": engine,
        PARTS: parts,
        PEER: peer(50, scale.latencies),
        SLOW_PEER: peer(1000, max(scale.latencies // 3, 2)),
    }
    notes = {
        PARTS: f"two messages there and back over a bare port and {commits:.1f} raw commits, as many as the run makes, "
        "on a disk that rests in between, as that of an idle engine does",
        PEER: PEER_NOTE,
        SLOW_PEER: "polling every second, as it does by default",
    }
    found.series += bench.take_turns("ms", subjects, notes=notes, rounds=min(bench.rounds, 3)).values()
    return found


def measure_frames(bench: Bench, lab: Laboratory, scale: Scale) -> list[Measurement]:
    """Frames on their way to the page."""
    return [_commit_to_page(bench, lab, scale), *_logging_and_watching(bench, lab, scale)]


def _commit_to_page(bench: Bench, lab: Laboratory, scale: Scale) -> Measurement:
    page = lab.engine("normal", durability="normal")
    workbench = lab.workbench()
    count, pause = 2 * scale.latencies, 0.03

    def engine() -> list[float]:
        return page.evaluate("([count, pause]) => engine.commitToPage(count, pause)", [count, pause])

    def bare() -> list[float]:
        return workbench.evaluate("([count, pause]) => workbench.messages(count, pause)", [count, pause * 1000])

    engine()
    found = Measurement("commit-to-page", "From a commit to the page's handler")
    notes = {
        "engine": "from the COMMIT statement on; durability normal, so that no flush is in it",
        "bare message": "from postMessage in a worker to the handler, the same JSON text",
    }
    found.series += bench.take_turns("ms", {"engine": engine, "bare message": bare}, notes=notes).values()
    return found


def _logging_and_watching(bench: Bench, lab: Laboratory, scale: Scale) -> list[Measurement]:
    page = lab.engine("full", durability="full")
    workbench = lab.workbench()
    run_ids: list[str] = []

    def log() -> float:
        told = page.evaluate("(count) => engine.lines(count)", scale.frames)
        run_ids.append(told["id"])
        return told["perSecond"]

    logging = Measurement("logging", f"{scale.frames} log lines in a tight loop")
    rounds = min(bench.rounds, 3)
    logging.series += bench.take_turns("lines/s", {"engine": log}, rounds=rounds).values()

    tasks = [page.evaluate("(count) => engine.flood(count)", scale.frames) for _ in range(rounds)]
    task = Measurement("logging-task", f"The longest task of a page that shows and draws {scale.frames} log lines")
    note = f"the longest of {rounds} times; 0 where none reached 50 ms"
    task.series.append(bench.series("engine", "ms", [max(tasks)], note))

    page.evaluate("(id) => engine.watchAll(id)", run_ids[0])
    frames = page.evaluate("() => globalThis.frames")

    def engine() -> float:
        told = page.evaluate("(id) => engine.watchAll(id)", run_ids[0])
        return told["count"] * 1000 / told["milliseconds"]

    def bare() -> float:
        spent = workbench.evaluate("([frames, batch]) => workbench.batches(frames, batch)", [frames, _BATCH])
        return len(frames) * 1000 / spent

    watch = Measurement("watch", f"A finished run's {len(frames)} frames, replayed to the page")
    notes = {"bare port": f"the same objects, {_BATCH} in a message, from a worker that has them in memory"}
    watch.series += bench.take_turns("frames/s", {"engine": engine, "bare port": bare}, notes=notes).values()
    return [logging, task, watch]
