"""Steps, runs, replay and group commit in Chromium, against raw commits and the peer."""

from __future__ import annotations

from collections.abc import Callable

from .laboratory import Laboratory
from .scale import Scale
from .series import Bench, Measurement
from .targets import ASYNC, FULL, NORMAL, PACED_RAW, PEER, RAW_FULL, RAW_NORMAL, SUSPENDING, TUNED_PEER

SAHPOOL_FULL, SAHPOOL_NORMAL = "official SQLite, opfs-sahpool, full", "official SQLite, opfs-sahpool, normal"
PEER_NOTE = "set up as its documentation says, polling every 50 ms"
TUNED_NOTE = "the same with locking_mode=EXCLUSIVE and journal_mode=WAL, which its documentation does not mention"
PACE = 0.0001
PACE_NOTE = (
    f"{PACE * 1e6:.0f} µs of computing before each, fewer than before a step, do not count: a disk may take "
    "longer over a flush when the one before is not just over"
)
ASYNC_NOTE = (
    "does not suspend: from Python 3.12 on its task starts eagerly; 3.11 has no eager tasks, there it costs a turn"
)
SUSPENDING_NOTE = "asyncio.sleep(0) in each: the outcome joins the commit of its turn, and is delivered at rest"
_MANY = 100  # runs at a time, for the group commit


def measure_steps(bench: Bench, lab: Laboratory, scale: Scale) -> Measurement:
    """Durable steps per second, one run of small steps, and what limits them."""
    raw = lab.pyodide("raw")
    raw("open_raw", synchronous="FULL")
    bench.facts |= {f"{name} in Pyodide": version for name, version in raw("versions").items()}
    bench.facts["SQLite on opfs-sahpool"] = lab.official_sqlite("FULL")("version")

    def engine(durability: str, function: str = "synchronous") -> Callable[[], float]:
        page = lab.engine(durability, durability=durability)
        call, values = "([count, name]) => engine.steps(count, name)", [scale.steps, function]
        return lambda: _per_second(scale.steps, page.evaluate(call, values))

    commits = 5 * scale.steps  # of which each is so quick that it takes more of them to be measured

    def raw_commits(synchronous: str, pause: float = 0.0) -> Callable[[], float]:
        return lambda: _per_second(commits, raw("commits", count=commits, synchronous=synchronous, pause=pause))

    def official(synchronous: str) -> Callable[[], float]:
        call = lab.official_sqlite(synchronous)
        return lambda: _per_second(commits, call("commits", count=commits))

    def peer(tuned: bool) -> Callable[[], float]:
        def measure() -> float:
            page = lab.peer(f"steps-{tuned}", tuned=tuned)
            page.evaluate("() => peer.steps(5)")
            spent = page.evaluate("(count) => peer.steps(count)", scale.peer_steps)
            lab.rest_peer()
            return _per_second(scale.peer_steps, spent)

        return measure

    subjects = {
        FULL: engine("full"),
        ASYNC: engine("full", "async"),
        SUSPENDING: engine("full", "suspending"),
        RAW_FULL: raw_commits("FULL"),
        PACED_RAW: raw_commits("FULL", PACE),
        SAHPOOL_FULL: official("FULL"),
        NORMAL: engine("normal"),
        RAW_NORMAL: raw_commits("NORMAL"),
        SAHPOOL_NORMAL: official("NORMAL"),
    }
    _warm_up(subjects)
    subjects |= {PEER: peer(tuned=False), TUNED_PEER: peer(tuned=True)}
    notes = {
        ASYNC: ASYNC_NOTE,
        SUSPENDING: SUSPENDING_NOTE,
        PEER: PEER_NOTE,
        TUNED_PEER: TUNED_NOTE,
        RAW_FULL: "sqlite3 in Pyodide, on the engine's own file system",
        PACED_RAW: PACE_NOTE,
    }
    found = Measurement("steps", f"Durable steps: one run of {scale.steps} small steps")
    found.series += bench.take_turns("steps/s", subjects, notes=notes).values()
    _tell_smaller(found, scale.peer_steps, scale.steps, "steps")
    return found


def measure_runs(bench: Bench, lab: Laboratory, scale: Scale) -> Measurement:
    """One-step runs per second, triggered and executed."""
    page = lab.engine("full", durability="full")
    at_once = {PEER: 1, "peer, 10 at a time": 10, "peer, 100 at a time": 100}

    def engine() -> float:
        return _per_second(scale.runs, page.evaluate("(count) => engine.runs(count)", scale.runs))

    def peer(number: int) -> Callable[[], float]:
        def measure() -> float:
            peer_page = lab.peer(f"runs-{number}", at_once=number)
            spent = peer_page.evaluate("(count) => peer.runs(count)", scale.peer_runs)
            lab.rest_peer()
            return _per_second(scale.peer_runs, spent)

        return measure

    _warm_up({"engine": engine})
    subjects = {"engine": engine} | {name: peer(number) for name, number in at_once.items()}
    found = Measurement("runs", f"One-step runs: {scale.runs} triggered from the page and executed")
    found.series += bench.take_turns("runs/s", subjects, notes={PEER: PEER_NOTE}, rounds=min(bench.rounds, 3)).values()
    _tell_smaller(found, scale.peer_runs, scale.runs, "runs")
    return found


def measure_parallel(bench: Bench, lab: Laboratory, scale: Scale) -> list[Measurement]:
    """Group commit: the same steps in one run and in many at a time; and one-step runs so many at a time."""
    call = lab.pyodide("parallel")
    steps_each = max(scale.steps // 25, 4)

    def at_once(slots: int, runs: int, steps: int) -> Callable[[], float]:
        def measure() -> float:
            call("open_engine", max_concurrent_runs=slots)
            spent = call("runs", count=runs, steps=steps)
            call("close_engine")
            return _per_second(runs * steps, spent)

        return measure

    group = {
        "one run": at_once(_MANY, 1, _MANY * steps_each),
        "100 runs": at_once(_MANY, _MANY, steps_each),
    }
    slots = {f"{number} at a time": at_once(number, scale.runs, 1) for number in (1, 10, 100)}
    _warm_up(group)
    parallel = Measurement("parallel", f"Group commit: {_MANY * steps_each} steps in one run, and in 100 at a time")
    parallel.series += bench.take_turns("steps/s", group).values()
    many = Measurement("runs-at-once", f"One-step runs inside the worker: {scale.runs}, so many at a time")
    many.series += bench.take_turns("runs/s", slots).values()
    lab.end_pyodide("parallel")
    return [parallel, many]


def measure_replay(bench: Bench, lab: Laboratory, scale: Scale) -> Measurement:
    """Replay of recorded steps: a run that goes on after all of them."""
    page = lab.engine("full", durability="full")
    run_id = page.evaluate("(count) => engine.record(count)", scale.replayed)
    lease = 2_000
    lab.peer("replay", lease=lease).evaluate("(count) => peer.record(count)", scale.peer_replayed)

    def engine() -> float:
        return page.evaluate("(id) => engine.replay(id)", run_id)

    def peer() -> float:
        told = lab.peer("replay", lease=lease).evaluate("() => peer.replay()")
        if told["calls"]:
            raise RuntimeError(f"The peer called {told['calls']} steps again instead of replaying them.")
        return told["milliseconds"] * scale.replayed / scale.peer_replayed

    _warm_up({"engine": engine})
    found = Measurement("replay", f"Replay of {scale.replayed} recorded steps")
    notes = {
        "engine": "from the page's retry() to the end of the run seen on the page",
        PEER: "inside the job: from its beginning to the last recorded step",
    }
    found.series += bench.take_turns("ms", {"engine": engine, PEER: peer}, notes=notes, rounds=3).values()
    if scale.peer_replayed != scale.replayed:
        found.notes.append(f"The peer replayed {scale.peer_replayed} steps; its time is scaled up.")
    lab.peer("after-replay")  # the run that it replays never ends by itself
    lab.rest_peer()
    return found


def _per_second(count: int, milliseconds: float) -> float:
    return count * 1000 / milliseconds


def _warm_up(subjects: dict[str, Callable[[], float]]) -> None:
    for measure in subjects.values():
        measure()


def _tell_smaller(found: Measurement, peer: int, engine: int, what: str) -> None:
    if peer != engine:
        found.notes.append(f"The peer made {peer} {what} a turn instead of {engine}, to save time.")
