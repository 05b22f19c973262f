"""The report as one HTML file that needs nothing else: targets, plots, and what it ran on; light and dark."""

from __future__ import annotations

from html import escape

from .plots import bars
from .report import Report, bound, compared, number, outcome, reasons
from .series import Measurement
from .targets import Verdict, judge_limits

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --raised: #f6f7f9; --text: #1c2024; --quiet: #60666d; --rule: #dfe3e8;
  --engine: #2f6fde; --limit: #9aa3ad; --peer: #c2691d; --good: #1a7f47; --bad: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --raised: #1d2125; --text: #e8eaed; --quiet: #a2a9b1;
  --rule: #343a40; --engine: #6b9dff; --limit: #727a83; --peer: #e0924a; --good: #58c98b; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .75rem; }
p { margin: .25rem 0; }
.quiet, .axis-text, .notes { color: var(--quiet); font-size: .875rem; }
.notes { padding-left: 1.1rem; margin: .75rem 0 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { text-align: left; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--quiet); font-weight: 500; }
.number { text-align: right; }
.number, .wanted { white-space: nowrap; }
.reached { color: var(--good); font-weight: 600; }
.missed { color: var(--bad); font-weight: 600; }
article { background: var(--raised); border: 1px solid var(--rule); border-radius: 10px; padding: 1rem 1.25rem;
  margin: 1rem 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 13px system-ui, sans-serif; fill: var(--text); }
svg .label { text-anchor: end; }
svg .axis { stroke: var(--rule); }
svg .spread { stroke: var(--text); stroke-width: 1.5; opacity: .75; }
svg .engine { fill: var(--engine); }
svg .limit { fill: var(--limit); }
svg .peer { fill: var(--peer); }
.legend { display: flex; gap: 1.25rem; flex-wrap: wrap; }
.legend span::before { content: ""; display: inline-block; width: .75rem; height: .75rem; border-radius: 3px;
  margin-right: .4rem; background: var(--colour); }
summary { cursor: pointer; color: var(--quiet); font-size: .875rem; margin-top: .5rem; }
"""


def to_html(report: Report) -> str:
    """The whole page."""
    judged = [verdict.is_reached for verdict in report.verdicts if verdict.target.bound is not None]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>durable-web benchmarks, {escape(report.started)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>durable-web benchmarks</h1>
<p>{sum(judged)} of {len(judged)} targets reached. Medians of turns that were taken in one run, on one machine; the
thin line goes from the smallest to the largest value.</p>
<p class="quiet">Run {escape(report.run)}, {escape(report.started)}, {report.seconds:.0f} s:
<code>{escape(report.command)}</code></p>
<h2>Targets</h2>
{_targets(report)}
<h2>Measurements</h2>
<p class="legend quiet"><span style="--colour: var(--engine)">durable-web</span>
<span style="--colour: var(--limit)">limit</span><span style="--colour: var(--peer)">peer</span></p>
{"".join(_measurement(each) for each in report.measurements.values())}
{_failures(report)}
<h2>What it ran on</h2>
{_facts(report)}
</body>
</html>
"""


def _targets(report: Report) -> str:
    rows = [_verdict(verdict) for verdict in report.verdicts]
    for text, limit, measured in judge_limits(report.measurements):
        is_reached = measured <= limit
        words = "reached" if is_reached else f"missed by {measured - limit:.0f} ms"
        rows.append(_target_row(text, f"under {limit:g} ms", f"{measured:.0f} ms", is_reached, words))
    head = "<tr><th>What</th><th>Target</th><th class='number'>Measured</th><th>Outcome</th></tr>"
    why = "".join(
        f"<p>Missed: {escape('; '.join(missed))}. {escape(why)}</p>" for why, missed in reasons(report).items()
    )
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>{why}'


def _verdict(verdict: Verdict) -> str:
    measured = "-" if verdict.measured is None else f"{verdict.measured:.3g}"
    return _target_row(verdict.target.text, bound(verdict), measured, verdict.is_reached, outcome(verdict))


def _target_row(text: str, wanted: str, measured: str, is_reached: bool, words: str) -> str:
    return (
        f'<tr><td>{escape(text)}</td><td class="wanted">{escape(wanted)}</td><td class="number">{escape(measured)}</td>'
        f'<td class="{_outcome_class(is_reached, words)}">{escape(words)}</td></tr>'
    )


def _outcome_class(is_reached: bool, words: str) -> str:
    if not words or words.startswith("not measured"):
        return "quiet"
    return "reached" if is_reached else "missed"


def _measurement(measurement: Measurement) -> str:
    notes = [f"{series.subject}: {series.note}" for series in measurement.series if series.note] + measurement.notes
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<article><h3>{escape(measurement.title)}</h3>{bars(measurement)}"
        f"{f'<ul class=notes>{listed}</ul>' if listed else ''}"
        f"<details><summary>Numbers</summary>{_numbers(measurement)}</details></article>"
    )


def _numbers(measurement: Measurement) -> str:
    names = ("", "median", "min", "max", "unit", "turns", "first / this")
    head = "".join(f"<th{_class(index)}>{name}</th>" for index, name in enumerate(names))
    rows = []
    for series, against in compared(measurement):
        values = [number(value) for value in (series.median, series.minimum, series.maximum)]
        cells = [series.subject, *values, series.unit, str(len(series.values)), against]
        columns = "".join(f"<td{_class(index)}>{escape(cell)}</td>" for index, cell in enumerate(cells))
        rows.append(f"<tr>{columns}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _class(column: int) -> str:
    return "" if column in (0, 4) else ' class="number"'


def _failures(report: Report) -> str:
    return "".join(
        f'<p class="missed">{escape(name)} could not be measured: {escape(why)}</p>'
        for name, why in report.failures.items()
    )


def _facts(report: Report) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in report.facts.items())
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
