"""What an import came to: figures, a chart of every column, the columns, the first rows, and the rows put aside."""

import chart
import js
from elements import find, listen, make, make_table, show, write
from notices import start
from wording import MISSING, count, number, size

#: Head, the key by which the columns are sorted, and whether it is a number. No key: sorting by it would mean nothing.
COLUMN_HEADS = (
    ("Column", "name", False),
    ("Type", "type", False),
    ("Missing", "nulls", True),
    ("Distinct", "distinct", True),
    ("Minimum", None, True),
    ("Mean", None, True),
    ("Maximum", None, True),
)
NARROWEST_CHART = 240
#: What is worth being shown first.
CHART_KINDS = ("years", "histogram", "top")
FACTS = (
    ("Values", "count"),
    ("Missing", "nulls"),
    ("Kept as text", "odd"),
    ("Distinct", "distinct"),
    ("Minimum", "min"),
    ("Mean", "mean"),
    ("Maximum", "max"),
    ("Standard deviation", "standard_deviation"),
)


class ResultView:
    """Shows the output of one import. Calls ``mend(output, line, text)``, asynchronous, to import a mended record."""

    def __init__(self, output, mend):
        self._mend = mend
        self._columns = output["columns"]
        self._sorted_by = None
        self._is_descending = False
        self._show_figures(output)
        self._fill_selector()
        self._show_columns()
        self._show_preview(output)
        self._show_odd_cells(output)
        self._show_bad_rows(output)
        self.draw_chart()

    def _show_figures(self, output):
        figures = [
            ("Rows imported", number(output["rows"])),
            ("Rows put aside", number(output["bad_rows"])),
            ("Columns", number(len(self._columns))),
            ("File", size(output["size"])),
        ]
        if output.get("odd_cells"):
            figures.append(("Cells kept as text", number(output["odd_cells"])))
        if output.get("short_rows"):
            figures.append(("Rows without their last fields", number(output["short_rows"])))
        find("figures").replaceChildren(*_pairs(figures))
        show("bad", output["bad_rows"] > 0)
        show("download-bad", output["bad_rows"] > 0)

    # --- the chart ----------------------------------------------------------------------------------------------------

    def _fill_selector(self):
        names = [column["name"] for column in self._columns]
        options = [make("option", {"value": index}, name) for index, name in enumerate(names)]
        selector = find("chart-column")
        selector.replaceChildren(*options)
        telling = [index for index, column in enumerate(self._columns) if chart.is_telling(column)]
        best = [index for kind in CHART_KINDS for index in telling if self._columns[index].get(kind)]
        selector.value = str(best[0] if best else 0)

    def draw_chart(self):
        """Draw the chart of the selected column, as wide as there is room."""
        column = self._columns[int(find("chart-column").value)]
        place = find("chart")
        chart.draw(place, column, max(NARROWEST_CHART, int(place.clientWidth)))
        facts = [("Type", column["type"])]
        facts += [(label, number(column[key])) for label, key in FACTS if key in column]
        missing = column.get("missing") or {}
        if any(missing):
            words = [f"{word} ({number(amount)})" for word, amount in missing.items() if word.strip()]
            facts.append(("Written for missing", ", ".join(words)))
        find("chart-facts").replaceChildren(*_pairs(facts))

    # --- the columns --------------------------------------------------------------------------------------------------

    def _show_columns(self):
        rows = []
        for index, column in self._columns_in_order():
            figures = [number(column.get(key)) for key in ("nulls", "distinct", "min", "mean", "max")]
            rows.append([self._chart_button(index, column["name"]), column["type"]] + figures)  # noqa: RUF005
        heads = [self._sort_button(label, key) if key else label for label, key, _ in COLUMN_HEADS]
        numeric = [index for index, head in enumerate(COLUMN_HEADS) if head[2]]
        table = make_table("The columns of the imported table. The buttons in the head sort it.", heads, rows, numeric)
        if self._sorted_by is not None:
            head = table.querySelector(f'[data-key="{self._sorted_by}"]').parentElement
            head.setAttribute("aria-sort", "descending" if self._is_descending else "ascending")
        find("columns").replaceChildren(table)

    def _columns_in_order(self):
        """Pairs of index and column, as sorted by the person, or else as in the file."""
        key = self._sorted_by
        order = list(enumerate(self._columns))
        if key in ("name", "type"):
            order.sort(key=lambda item: item[1][key].lower(), reverse=self._is_descending)
        elif key is not None:
            order.sort(key=lambda item: item[1][key], reverse=self._is_descending)
        return order

    def _chart_button(self, index, name):
        button = make("button", {"type": "button", "class": "link"}, name)

        def choose(event):
            find("chart-column").value = str(index)
            self.draw_chart()
            find("chart-column").focus()

        listen(button, "click", choose)
        return button

    def _sort_button(self, label, key):
        button = make("button", {"type": "button", "class": "sort", "data-key": key}, label)

        def sort(event):
            self._is_descending = not self._is_descending if self._sorted_by == key else False
            self._sorted_by = key
            self._show_columns()
            find("columns").querySelector(f'[data-key="{key}"]').focus()

        listen(button, "click", sort)
        return button

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _show_preview(self, output):
        names = [column["name"] for column in self._columns]
        numeric = [index for index, column in enumerate(self._columns) if column["type"] in ("integer", "number")]
        rows = [[_shown(value) for value in row] for row in output["preview"]]
        table = make_table(f"The first {count(len(rows), 'row')}", names, rows, numeric)
        find("preview").replaceChildren(table)

    def _show_odd_cells(self, output):
        cells, total = output.get("first_odd_cells") or [], output.get("odd_cells") or 0
        show("odd", total > 0)
        text = (
            "They are not of their column's type, so they have no value there; their text is kept, also in a download."
        )
        if len(cells) < total:
            text += f" These are the first {len(cells)} of {number(total)}."
        write("odd-text", text)
        rows = [[number(cell["line"]), cell["column"], make("code", None, cell["text"])] for cell in cells]
        find("odd-cells").replaceChildren(make_table("Cells kept as text", ("Line", "Column", "Text"), rows))

    def _show_bad_rows(self, output):
        first, total = output["first_bad_rows"], output["bad_rows"]
        text = "They are kept in a table of their own, with the line in the file and the reason. Mend one to import it."
        if len(first) < total:
            text += f" These are the first {len(first)} of {number(total)}."
        write("bad-text", text)
        rows = [[number(row["line"]), row["reason"], self._mendable(output, row)] for row in first]
        find("bad-rows").replaceChildren(make_table("Rows put aside", ("Line", "Reason", "Text in the file"), rows))

    def _mendable(self, output, row):
        """The text of a record, to be mended; what is too long or not text is only shown."""
        if row["kind"] == "encoding" or row["raw"].endswith("\u2026") or "\n" in row["raw"]:
            return make("code", None, row["raw"])
        label = f"Text of line {row['line']}"
        text = make("input", {"type": "text", "value": row["raw"], "aria-label": label})
        button = make("button", {"type": "button", "class": "button button-secondary button-small"}, "Import")
        button.setAttribute("aria-label", f"Import line {row['line']}")
        outcome = make("span", {"role": "status"})
        place = make("div", {"class": "mend"}, text, button, outcome)

        async def mend():
            mended = await self._mend(output, row["line"], text.value)
            if mended["is_mended"]:
                text.disabled = button.disabled = True
            outcome.textContent = "Imported" if mended["is_mended"] else mended["reason"]

        listen(button, "click", lambda event: start(mend()))
        return place


def _pairs(items):
    return [make("div", None, make("dt", None, term), make("dd", None, text)) for term, text in items]


def _shown(value):
    """A cell of the preview: exactly what is in the table, with no separators put in."""
    if value is None:
        return MISSING
    if value is True or value is False:
        return "true" if value else "false"
    return value if isinstance(value, str) else js.JSON.stringify(value)
