"""The chart of one column, drawn as SVG: how its numbers are distributed, its dates by year, its most frequent values.

A drawing says nothing to someone who cannot see it, so each has one sentence in its place, and the table of what it is
drawn from.
"""

import math

from elements import make, make_svg, make_table
from wording import compact, count, number

HEIGHT = 260
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 10, 30
ROW_HEIGHT = 40
#: As in csv_import.py: where dates span so many years or more, several are counted together.
MOST_YEARS = 40
WIDEST_BAR = 72
CHARACTER_WIDTH = 7.5
LABEL_WIDTH = 84


def draw(place, column, width):
    """Replace what is in ``place`` by the chart of a column of an import's output, ``width`` pixels wide."""
    title, heads, bars = _bars(column)
    if not bars:
        place.replaceChildren(make("p", {"class": "muted chart-empty"}, _nothing(column)))
        return
    highest = max(bars, key=lambda bar: bar["count"])
    sentence = f"{title}. Most: {highest['label']}, with {count(highest['count'], 'row')}."
    paint = _paint_rows if column["type"] in ("text", "boolean") else _paint_columns
    drawing = paint(bars, width)
    drawing.setAttribute("role", "img")
    drawing.setAttribute("aria-label", sentence)
    place.replaceChildren(make("figcaption", None, title), drawing, _table(title, heads, bars))


def is_telling(column):
    """Whether its chart shows more than that all values differ."""
    return len(_bars(column)[2]) > 1 and max(bar["count"] for bar in _bars(column)[2]) > 1


def _bars(column):
    """The chart's title, the heads of its table, and its bars."""
    if "histogram" in column:
        bars = [_bin(bin, column["type"] == "integer") for bin in column["histogram"]]
        return "Rows by value", (column["name"], "Rows"), bars
    if "years" in column:
        period, bars = _years(column)
        title = "Rows by year" if period == 1 else f"Rows by {period:,} years, from the one that is named"
        return title, ("Year", "Rows"), bars
    bars = [{"label": _shown(item["value"]), "count": item["count"]} for item in column.get("top", ())]
    complete = len(bars) == column["distinct"]
    return "All values" if complete else "Most frequent values", (column["name"], "Rows"), bars


def _bin(bin, is_integer):
    """A bin of numbers, up to but without its upper end; of integers, those from the first to the last."""
    first, last = bin["from"], bin["to"] - 1 if is_integer else bin["to"]
    label = number(first) if first == last else f"{number(first)} to {number(last)}"
    return {"label": label, "tick": compact(first), "is_range": first != last, "count": bin["count"]}


def _years(column):
    """The number of years that were counted together, and the bars, also of the years that do not occur."""
    counts = {item["year"]: item["count"] for item in column["years"]}
    if not counts:
        return 1, []
    first, last = int(column["min"][:4]), int(column["max"][:4])
    period = 1
    while (last - first) // period >= MOST_YEARS:
        period *= 10
    years = range(first // period * period, last + 1, period)
    return period, [{"label": str(year), "tick": str(year), "count": counts.get(year, 0)} for year in years]


def _nothing(column):
    if not column["count"]:
        return "This column has no values."
    return "Charts are made for the first 100 columns only. The figures of this one are exact all the same."


def _shown(value):
    if value is True or value is False:
        return "true" if value else "false"
    return str(value)


# --- Upright bars, for numbers and years ------------------------------------------------------------------------------


def _paint_columns(bars, width):
    ticks = _ticks(max(bar["count"] for bar in bars))
    plot_width, plot_height = width - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    step = plot_width / len(bars)
    drawing = make_svg("svg", {"width": width, "height": HEIGHT, "viewBox": f"0 0 {width} {HEIGHT}"})
    for tick in ticks:
        y = TOP + plot_height * (1 - tick / ticks[-1])
        line = {"class": "chart-line", "x1": LEFT, "x2": width - RIGHT, "y1": _round(y), "y2": _round(y)}
        label = {"class": "chart-label", "x": LEFT - 8, "y": _round(y + 4), "text-anchor": "end"}
        drawing.append(make_svg("line", line), make_svg("text", label, compact(tick)))
    every = max(1, math.ceil(56 / step))
    for index, bar in enumerate(bars):
        height = max(plot_height * bar["count"] / ticks[-1], 1.5 if bar["count"] else 0)
        bar_width = min(step * 0.84, WIDEST_BAR)
        middle = LEFT + step * (index + 0.5)
        place = {
            "class": "chart-bar",
            "x": _round(middle - bar_width / 2),
            "y": _round(TOP + plot_height - height),
            "width": _round(bar_width),
            "height": _round(height),
            "rx": 2,
        }
        drawing.append(make_svg("rect", place, _tip(bar)))
        if index % every == 0:
            x = middle - bar_width / 2 if bar.get("is_range") else middle  # where a range begins
            label = {"class": "chart-label", "x": _round(x), "y": HEIGHT - 10, "text-anchor": "middle"}
            drawing.append(make_svg("text", label, bar["tick"]))
    return drawing


def _ticks(highest):
    """Round numbers from 0 to at least the highest count."""
    raw = max(highest, 1) / 4
    magnitude = 10 ** math.floor(math.log10(raw))
    step = max(1, next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw))
    return [step * index for index in range(math.ceil(highest / step) + 1)]


# --- Lying bars, for values that are text -----------------------------------------------------------------------------


def _paint_rows(bars, width):
    highest = max(bar["count"] for bar in bars)
    height = ROW_HEIGHT * len(bars)
    drawing = make_svg("svg", {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"})
    room = int((width - LABEL_WIDTH) / CHARACTER_WIDTH)
    for index, bar in enumerate(bars):
        y = ROW_HEIGHT * index
        label = bar["label"] if len(bar["label"]) <= room else bar["label"][: room - 1] + "…"
        track = {"class": "chart-track", "x": 0, "y": y + 22, "width": width, "height": 8, "rx": 4}
        length = track.copy()
        length["class"] = "chart-bar"
        length["width"] = _round(max(3, width * bar["count"] / highest))
        amount = {"class": "chart-label", "x": width, "y": y + 14, "text-anchor": "end"}
        drawing.append(
            make_svg("rect", track),
            make_svg("rect", length, _tip(bar)),
            make_svg("text", {"class": "chart-value", "x": 0, "y": y + 14}, label),
            make_svg("text", amount, number(bar["count"])),
        )
    return drawing


# --- Both -------------------------------------------------------------------------------------------------------------


def _tip(bar):
    return make_svg("title", None, f"{bar['label']}: {count(bar['count'], 'row')}")


def _table(title, heads, bars):
    rows = [[bar["label"], number(bar["count"])] for bar in bars]
    return make("details", None, make("summary", None, "As a table"), make_table(title, heads, rows, numeric=(1,)))


def _round(value):
    return f"{value:.1f}"
