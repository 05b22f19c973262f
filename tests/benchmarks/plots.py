"""Plots as inline SVG: a bar for each subject's median, a line from its minimum to its maximum, the number beside it.

Colours are CSS custom properties of the page, so that a plot follows its light or dark theme.
"""

from __future__ import annotations

import math
from html import escape

from .report import number
from .series import Measurement, Series

WIDTH, ROW, LABEL, BAR, TOP = 760, 30, 270, 340, 6
_WIDE = 40.0  # a wider range is plotted on a logarithmic axis
_LIMITS = ("raw commits", "official SQLite", "bare", "sum of the parts")
_PEERS = ("peer", "dbos")


def role(subject: str) -> str:
    """Whether a subject is the engine, a peer or a limit: the class of its bar."""
    if subject.startswith(_LIMITS):
        return "limit"
    return "peer" if subject.startswith(_PEERS) else "engine"


def bars(measurement: Measurement) -> str:
    """The plot of one measurement."""
    axis = _Axis(measurement)
    rows = [_row(number, series, axis) for number, series in enumerate(measurement.series)]
    height = TOP + ROW * len(rows)
    told = "; ".join(f"{series.subject}: {_value(series)}" for series in measurement.series)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(told)}">'
        f'<line class="axis" x1="{LABEL}" y1="0" x2="{LABEL}" y2="{height}"/>{"".join(rows)}</svg>'
        f'<p class="axis-text">{axis.text}</p>'
    )


class _Axis:
    """From values to pixels; logarithmic where the values are far apart."""

    def __init__(self, measurement: Measurement) -> None:
        positive = [value for series in measurement.series for value in series.values if value > 0]
        self._top = max(positive, default=1.0)
        low = min(positive, default=1.0)
        self._bottom = 10 ** math.floor(math.log10(low)) / 2 if self._top / low > _WIDE else 0.0
        unit = measurement.series[0].unit
        self.text = f"{unit}, {'logarithmic' if self._bottom else 'from 0'}; {_better(unit)}"

    def __call__(self, value: float) -> float:
        """How far to the right of the axis' beginning, in the plot's units."""
        if value <= self._bottom:
            return 0.0
        if not self._bottom:
            return BAR * value / self._top
        return BAR * math.log(value / self._bottom) / math.log(self._top / self._bottom)


def _better(unit: str) -> str:
    if unit == "%":
        return "of the profiled time"
    return "more is better" if unit.endswith("/s") else "less is better"


def _row(index: int, series: Series, axis: _Axis) -> str:
    y = TOP + ROW * index
    middle = y + ROW / 2 - 3
    low, median, high = (axis(value) for value in (series.minimum, series.median, series.maximum))
    text = LABEL + max(high, median) + 8
    return (
        f'<text class="label" x="{LABEL - 10}" y="{middle + 4:.0f}">{escape(series.subject)}</text>'
        f'<rect class="{role(series.subject)}" x="{LABEL}" y="{y}" '
        f'width="{max(median, 1):.1f}" height="{ROW - 8}" rx="3"/>'
        f'<line class="spread" x1="{LABEL + low:.1f}" y1="{middle:.1f}" x2="{LABEL + high:.1f}" y2="{middle:.1f}"/>'
        f'<text class="value" x="{text:.1f}" y="{middle + 4:.0f}">{escape(_value(series))}</text>'
    )


def _value(series: Series) -> str:
    return f"{number(series.median)} {series.unit}"
