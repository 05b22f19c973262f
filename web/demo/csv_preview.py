"""Shows how a file would be read, before anything is imported: the guessed layout, the first rows, the types so far.

>>> preview = preview_file("people.csv", {"encoding": "windows-1252"})
>>> preview["guess"]["delimiter"], preview["columns"][0], preview["rows"][0]
(';', {'name': 'Name', 'type': 'text'}, ['Zoë', '36'])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from csv_encodings import ENCODINGS
from csv_layout import inspect_file
from csv_records import read_layout, shorten
from csv_values import choose_column, count_kinds, reading_of

PREVIEW_BYTES = 64 * 1024
PREVIEW_ROWS = 10
PREVIEW_COLUMNS = 60
CELL_CHARACTERS = 60


@dataclass(frozen=True)
class Option:
    """Something about a file that a user may know better than it can be guessed, and which values it has."""

    meaning: str
    accepts: Callable[[Any], bool]


def _is_character(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1 and value not in ("\r", "\n")


OPTIONS = {
    "encoding": Option(
        f"the name of an encoding ({', '.join(ENCODINGS.values())})", lambda value: isinstance(value, str)
    ),
    "delimiter": Option(
        "one character, or empty for a single column", lambda value: _is_character(value) and value != '"'
    ),
    "quote": Option("one character, or empty for none", _is_character),
    "header": Option(
        "false for a file without one, or the number of its line",
        lambda value: value is True or value is False or (isinstance(value, int) and value > 0),
    ),
    "decimal": Option("a point or a comma", lambda value: value in (".", ",")),
    "date_order": Option("ymd, dmy or mdy", lambda value: value in ("ymd", "dmy", "mdy")),
    "missing": Option(
        "a list of words", lambda value: isinstance(value, list) and all(isinstance(word, str) for word in value)
    ),
}


def preview_file(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns, as JSON values, how a file would be read: guess, above, columns, rows, bad_rows, beyond_ascii.

    `guess` has a value for each of the options; `beyond_ascii` has some pieces of text with characters beyond ASCII, by
    which a wrong encoding is seen, from all over the beginning of the file.
    """
    layout = inspect_file(path, **options)
    chunk, reading = read_layout(layout, layout["start"], PREVIEW_BYTES), reading_of(layout)
    shown = layout["names"][:PREVIEW_COLUMNS]
    columns = list(zip(*chunk.rows, strict=True)) or [()] * len(shown)
    types = [
        choose_column(count_kinds(cells, reading), layout["decimal"], len(cells)).type
        for cells in columns[: len(shown)]
    ]
    return {
        "size": layout["size"],
        "guess": {name: layout[name] for name in ("encoding", "delimiter", "quote", "decimal", "date_order", "missing")}
        | {"header": layout["has_header"]},
        "is_certain": layout["is_certain"],
        "above": [shorten(line, 200) for line in layout["above"][:5]],
        "columns": [
            {"name": shorten(name, CELL_CHARACTERS), "type": type_name}
            for name, type_name in zip(shown, types, strict=True)
        ],
        "column_count": len(layout["names"]),
        "rows": [
            [shorten(cell, CELL_CHARACTERS) for cell in row[:PREVIEW_COLUMNS]] for row in chunk.rows[:PREVIEW_ROWS]
        ],
        "bad_rows": [
            {"line": bad.line, "reason": bad.reason, "raw": shorten(bad.raw, 200)} for bad in chunk.bad[:PREVIEW_ROWS]
        ],
        "beyond_ascii": beyond_ascii([layout["header"], *chunk.rows]),
    }


def beyond_ascii(rows: list[list[str | None]]) -> list[str]:
    """Returns a few words with characters beyond ASCII."""
    words: dict[str, None] = {}
    for row in rows:
        for cell in row:
            if cell and not cell.isascii():
                words |= dict.fromkeys(re.findall(r"\S*[^\x00-\x7f]\S*", cell))
        if len(words) > 8:
            break
    return [shorten(word, 40) for word in list(words)[:8]]
