"""What was found, as a table in the terminal and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .series import DifferentRunsError, Measurement, Series, ratio
from .targets import Verdict, judge, judge_limits


@dataclass(slots=True)
class Report:
    """One run of the benchmarks.

    :param run: its id; every number that is added must carry it.
    :param started: date and time, ISO 8601 in UTC.
    :param facts: what it ran on, by name.
    :param failures: measurements that could not be made, and why.
    """

    run: str
    started: str
    command: str
    scale: str
    facts: dict[str, str]
    seconds: float = 0.0
    measurements: dict[str, Measurement] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, measurement: Measurement) -> None:
        """Add what was measured.

        :raises DifferentRunsError: when it was measured in another run.
        """
        for series in measurement.series:
            if series.run != self.run:
                raise DifferentRunsError(
                    f"{measurement.name} was measured in run {series.run}, and this is the report of run {self.run}."
                )
        self.measurements[measurement.name] = measurement

    @property
    def verdicts(self) -> list[Verdict]:
        """What became of the targets whose measurement was made, or failed."""
        is_whole = bool(self.failures)
        return [each for each in judge(self.measurements) if is_whole or each.target.measurement in self.measurements]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it. There is no way back: reports are not compared with each other."""
        return {
            "run": self.run,
            "started": self.started,
            "seconds": round(self.seconds, 1),
            "command": self.command,
            "scale": self.scale,
            "facts": self.facts,
            "targets": [_verdict(verdict) for verdict in self.verdicts],
            "limits": [
                {"text": text, "limit": limit, "measured": measured, "unit": "ms"}
                for text, limit, measured in judge_limits(self.measurements)
            ],
            "measurements": [_measurement(each) for each in self.measurements.values()],
            "failures": self.failures,
        }

    def to_text(self) -> str:
        """The report for a terminal."""
        return "\n".join([*_facts(self), *_numbers(self.measurements), *_targets(self), *_failures(self)])

    def to_markdown(self) -> str:
        """The targets and where the run was made, as the README shows them."""
        facts = "; ".join(f"{name} {value}" for name, value in self.facts.items())
        lines = [
            f"`{self.command}`, {self.started[:10]}. {facts}.",
            "",
            "| what | target | measured | |",
            "| --- | --- | --- | --- |",
        ]
        lines += (f"| {text} | {bound} | {measured} | {how} |" for text, bound, measured, how in _judged(self))
        for why, missed in reasons(self).items():
            lines += ["", f"Missed: {'; '.join(missed)}. {why}"]
        return "\n".join([*lines, ""])


def reasons(report: Report) -> dict[str, list[str]]:
    """Why targets were missed, and what was tried, with the targets of which that is true."""
    found: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        if verdict.share is not None and not verdict.is_reached and verdict.target.tried:
            found.setdefault(verdict.target.tried, []).append(verdict.target.text)
    return found


def outcome(verdict: Verdict) -> str:
    """In a few words, whether a target was reached, or by how much it was missed; empty without a bound."""
    if verdict.measured is not None and verdict.target.bound is None:
        return ""
    if verdict.measured is None or verdict.share is None:
        return f"not measured: {verdict.why}"
    return "reached" if verdict.is_reached else f"missed: {verdict.share:.0%} of it"


def bound(verdict: Verdict) -> str:
    """What a target asks for; empty without a bound."""
    if verdict.target.bound is None:
        return ""
    return f"{'at most' if verdict.target.at_most else 'at least'} {verdict.target.bound:g}"


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def compared(measurement: Measurement) -> list[tuple[Series, str]]:
    """Every series, with its ratio to the first."""
    first = measurement.series[0]
    return [
        (series, "" if series is first or not series.median else f"{ratio(first, series):.3g}")
        for series in measurement.series
    ]


def _facts(report: Report) -> list[str]:
    width = max((len(name) for name in report.facts), default=0)
    return [
        f"Run {report.run}, {report.started}, {report.seconds:.0f} s: {report.command}",
        *(f"  {name:<{width}}  {value}" for name, value in report.facts.items()),
    ]


def _numbers(measurements: Mapping[str, Measurement]) -> list[str]:
    lines = []
    for measurement in measurements.values():
        lines += ["", measurement.title, f"  {'':<42} {'median':>10} {'min':>10} {'max':>10}  {'unit':<9} first/this"]
        for series, against in compared(measurement):
            values = (number(value) for value in (series.median, series.minimum, series.maximum))
            numbers = " ".join(f"{value:>10}" for value in values)
            lines.append(f"  {series.subject:<42} {numbers}  {series.unit:<9} {against:>10}".rstrip())
        lines += [f"  {note}" for note in measurement.notes]
    return lines


def _targets(report: Report) -> list[str]:
    if not report.verdicts:
        return []
    lines = ["", "Targets (ratios of medians within this run)"]
    lines += (
        f"  {text:<72} {bound:<13} {measured:>7}  {how}".rstrip() for text, bound, measured, how in _judged(report)
    )
    for why, missed in reasons(report).items():
        lines += [
            "",
            *(f"  Missed: {text}." for text in missed),
            *textwrap.wrap(why, 110, initial_indent="  ", subsequent_indent="  "),
        ]
    return lines


def _judged(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """Of every target and limit: what it is about, what it asks for, what was measured, and whether that is enough."""
    for verdict in report.verdicts:
        measured = "-" if verdict.measured is None else f"{verdict.measured:.3g}"
        yield verdict.target.text, bound(verdict), measured, outcome(verdict)
    for text, limit, found in judge_limits(report.measurements):
        how = "reached" if found <= limit else f"missed by {found - limit:.0f} ms"
        yield text, f"under {limit:g} ms", f"{found:.0f} ms", how


def _failures(report: Report) -> list[str]:
    return ["", *(f"{name} could not be measured: {why}" for name, why in report.failures.items())]


def _verdict(verdict: Verdict) -> dict[str, Any]:
    target = verdict.target
    return {
        "text": target.text,
        "measurement": target.measurement,
        "subject": target.subject,
        "reference": target.reference,
        "bound": target.bound,
        "atMost": target.at_most,
        "measured": verdict.measured,
        "reached": None if target.bound is None else verdict.is_reached,
        "outcome": outcome(verdict),
    }


def _measurement(measurement: Measurement) -> dict[str, Any]:
    return {
        "name": measurement.name,
        "title": measurement.title,
        "notes": measurement.notes,
        "series": [
            {
                "subject": series.subject,
                "unit": series.unit,
                "median": series.median,
                "min": series.minimum,
                "max": series.maximum,
                "values": list(series.values),
                "note": series.note,
            }
            for series in measurement.series
        ],
    }
