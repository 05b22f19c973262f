"""The ratios that are to be reached, and whether they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .series import Measurement, ratio


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio of medians within one run.

    :param measurement: its name; ``subject`` and ``reference`` are subjects of it.
    :param bound: what the ratio is to be; ``None`` where it is shown and not judged.
    :param at_most: the ratio is to be at most ``bound`` instead of at least.
    :param inverted: the ratio is that of the reference to the subject, as for times, where less is better.
    :param tried: what stands in the way where it is missed, and what was tried.
    """

    text: str
    measurement: str
    subject: str
    reference: str
    bound: float | None
    at_most: bool = False
    inverted: bool = False
    tried: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, and what was measured; ``measured`` is ``None`` when it was not, and ``why`` says why."""

    target: Target
    measured: float | None
    why: str = ""

    @property
    def is_reached(self) -> bool:
        if self.measured is None or self.target.bound is None:
            return False
        return self.measured <= self.target.bound if self.target.at_most else self.measured >= self.target.bound

    @property
    def share(self) -> float | None:
        """How much of the target was reached: 1 or more is all of it; ``None`` where nothing is judged."""
        bound = self.target.bound
        if self.measured is None or self.measured <= 0 or bound is None:
            return None
        return bound / self.measured if self.target.at_most else self.measured / bound


FULL, NORMAL = "engine, full", "engine, normal"
RAW_FULL, RAW_NORMAL = "raw commits, full", "raw commits, normal"
PACED_RAW, PACED_COMMITS = "raw commits, full, after a pause", "raw commits, after a pause"
TEN_RUNS = "engine, 10 runs at a time"
ASYNC, SUSPENDING = "engine, async def", "engine, async def that suspends"
IN_BRANCHES = "engine, 10 branches"
PEER, TUNED_PEER, SLOW_PEER = "peer", "peer, write-ahead log", "peer, default poll"

_FLUSHES = (
    "A flush may take several times as long after a pause as right after another one; while the engine computes, the "
    "disk rests: compare the raw commits after a pause. "
)
_STEPS = _FLUSHES + (
    "The rest is computing, mostly Python's own: see the profile. Each outcome is recorded with its order, and with "
    "whether it was inline; the order has an index of its own, which is 1.2 of the 5.0 pages that a step writes. "
    "Tried, and kept: the fence and the order in the statement that writes the outcome, a short statement for what "
    "has completed, the last order and the seq of frames known, no savepoint for what fails at once, no context "
    "manager or dataclass on the way, values not read back from their text where they are plain data, watchers woken "
    "once, the frames of a transaction in one write to OPFS. Tried, and left: another primary key of the steps, which "
    "saved 0.3 pages; smaller pages; rarer checkpoints."
)
_RUNS = _FLUSHES + (
    "A run of one step is three commits: its trigger, with which it is leased, the step, and its end, with which the "
    "next one is leased. Tried, and kept besides: frames sent in the turn of their commit, callbacks that share a turn "
    "of the browser, no garbage collection among modules."
)
TARGETS = (
    Target("durable steps, full durability, against raw single-row commits", "steps", FULL, RAW_FULL, None),
    Target("the same, against raw commits that come after a pause", "steps", FULL, PACED_RAW, 0.4, tried=_STEPS),
    Target("`async def` steps that do not suspend, against synchronous ones", "steps", ASYNC, FULL, 0.8),
    Target("`async def` steps that suspend, against synchronous ones", "steps", SUSPENDING, FULL, None),
    Target("durable steps against the peer", "steps", FULL, PEER, 50, tried=_STEPS),
    Target("one-step runs against the peer", "runs", "engine", PEER, 50, tried=_RUNS),
    Target(
        "trigger to completed, against the peer at a 50 ms poll",
        "latency",
        "engine",
        PEER,
        15,
        inverted=True,
        tried=_RUNS,
    ),
    Target(
        "trigger to completed, against the sum of its parts",
        "latency",
        "engine",
        "sum of the parts",
        5,
        at_most=True,
        tried=_RUNS,
    ),
    Target("replay of 1,000 steps, against the peer", "replay", "engine", PEER, 100, inverted=True),
    Target("100 runs in parallel against one, steps", "parallel", "100 runs", "one run", 2),
    Target("steps with 100,000 finished runs against none", "growth-steps", "100,000", "0", 0.9),
    Target("repeat visit, snapshot against plain start", "repeat-visit", "snapshot", "plain", 4, inverted=True),
    Target("commit to page, against a bare message", "commit-to-page", "engine", "bare message", 3, at_most=True),
    Target("replay to the page, against the bare port", "watch", "engine", "bare port", 0.25),
    Target("CPython: steps against raw single-row commits", "desk-steps", "engine", "raw commits", None),
    Target("CPython: the same, 10 runs at a time", "desk-steps", TEN_RUNS, "raw commits", 0.5, tried=_STEPS),
    Target(
        "CPython: the same, one run, against raw commits that come after a pause",
        "desk-steps",
        "engine",
        PACED_COMMITS,
        0.55,
        tried=_STEPS,
    ),
    Target(
        "CPython: `async def` steps that do not suspend, against synchronous ones", "desk-steps", ASYNC, "engine", None
    ),
    Target(
        "CPython: `async def` steps that suspend, against synchronous ones", "desk-steps", SUSPENDING, "engine", None
    ),
    Target("CPython: steps against dbos on SQLite", "desk-steps", "engine", "dbos", 10, tried=_STEPS),
    Target("CPython: claims with 100,000 finished runs against 1,000", "desk-claim", "100,000", "1,000", 0.8),
    Target("CPython: lists with 100,000 finished runs against 1,000", "desk-list", "100,000", "1,000", 0.8),
    Target("CPython: counts with 100,000 finished runs against 1,000", "desk-count", "100,000", "1,000", 0.8),
)

LIMITS = (
    ("repeat visit, navigation to first step, snapshot", "repeat-visit", "snapshot", 1200.0),
    ("a page's longest task under a flood of lines (0: none of 50 ms)", "logging-task", "engine", 50.0),
    ("CPython: replay of 1,000 recorded steps", "desk-replay", "engine", 15.0),
    ("CPython: replay of 1,000 recorded steps in 10 branches", "desk-replay", IN_BRANCHES, 60.0),
)
"""Absolute times in milliseconds, which only mean something on a quiet machine."""


def judge(measurements: Mapping[str, Measurement]) -> list[Verdict]:
    """What became of every target."""
    return [_judge(target, measurements) for target in TARGETS]


def _judge(target: Target, measurements: Mapping[str, Measurement]) -> Verdict:
    measurement = measurements.get(target.measurement)
    if measurement is None:
        return Verdict(target, None, f"{target.measurement} was not measured in this run")
    for subject in (target.subject, target.reference):
        if subject not in measurement:
            return Verdict(target, None, "; ".join(measurement.notes) or f"{subject} was not measured in this run")
    pair = measurement[target.subject], measurement[target.reference]
    return Verdict(target, ratio(*reversed(pair)) if target.inverted else ratio(*pair))


def judge_limits(measurements: Mapping[str, Measurement]) -> list[tuple[str, float, float]]:
    """Text, limit and median of every absolute limit whose subject was measured, in milliseconds."""
    return [
        (text, limit, measurements[name][subject].median)
        for text, name, subject, limit in LIMITS
        if name in measurements and subject in measurements[name]
    ]
