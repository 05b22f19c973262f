"""Numbers that were measured in turns, and what may be said of them: medians, and ratios within one run.

>>> bench = Bench(rounds=5)
>>> steps = bench.take_turns("steps per second", {"engine": measure_engine, "raw commits": measure_raw})
>>> steps["engine"].median
1900.0
>>> ratio(steps["engine"], steps["raw commits"])
0.5
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class DifferentRunsError(ValueError):
    """Two numbers of different runs were to be compared. What the machine did in between is not known."""


@dataclass(frozen=True, slots=True)
class Series:
    """What one subject showed, turn by turn.

    :param run: the id of the benchmark run; numbers of different runs are never compared.
    :param unit: such as ``"steps/s"`` or ``"ms"``.
    :param values: one for each turn, in the order of measuring.
    :param note: what has to be known to judge the number.
    """

    run: str
    subject: str
    unit: str
    values: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        """The middle value; the mean of the two in the middle where their number is even."""
        return statistics.median(self.values)

    @property
    def minimum(self) -> float:
        return min(self.values)

    @property
    def maximum(self) -> float:
        return max(self.values)


def ratio(one: Series, other: Series) -> float:
    """The median of one by the median of the other.

    :raises DifferentRunsError: when they were not measured in the same run.
    :raises ValueError: when their units differ.
    """
    if one.run != other.run:
        raise DifferentRunsError(
            f"{one.subject!r} was measured in run {one.run} and {other.subject!r} in run {other.run}: only numbers of "
            "one run can be compared. Measure both again, in one run."
        )
    if one.unit != other.unit:
        raise ValueError(f"{one.subject!r} is in {one.unit} and {other.subject!r} in {other.unit}.")
    return one.median / other.median


@dataclass(slots=True)
class Measurement:
    """One question, and what its subjects showed."""

    name: str
    title: str
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, subject: str) -> Series:
        for series in self.series:
            if series.subject == subject:
                return series
        raise KeyError(f"{self.name} has no subject {subject!r}, only {[series.subject for series in self.series]}")

    def __contains__(self, subject: str) -> bool:
        return any(series.subject == subject for series in self.series)


class Bench:
    """One run of the benchmarks.

    :param rounds: how many turns each subject has.
    :param tell: called with a line of progress before each turn.

    Measurements add to ``facts`` what they find out of what they run on.
    """

    def __init__(self, rounds: int, *, tell: Callable[[str], None] = lambda line: None) -> None:
        self.run = secrets.token_hex(6)
        self.rounds = rounds
        self.facts: dict[str, str] = {}
        self._tell = tell

    def take_turns(
        self,
        unit: str,
        subjects: Mapping[str, Callable[[], float | list[float]]],
        *,
        rounds: int | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> dict[str, Series]:
        """Measure every subject once in each round; every other round goes backwards, so that none always comes first.

        A subject gives one number, or a list of them.
        """
        values: dict[str, list[float]] = {name: [] for name in subjects}
        for number in range(self.rounds if rounds is None else rounds):
            for name in subjects if number % 2 == 0 else reversed(subjects):
                self._tell(f"round {number + 1}, {name}")
                shown = subjects[name]()
                values[name] += shown if isinstance(shown, list) else [shown]
        told = notes or {}
        return {name: self.series(name, unit, measured, told.get(name, "")) for name, measured in values.items()}

    def series(self, subject: str, unit: str, values: list[float], note: str = "") -> Series:
        """What one subject of this run showed."""
        return Series(self.run, subject, unit, tuple(values), note)
