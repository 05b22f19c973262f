"""From records of text to typed rows in SQLite tables, and what the tables hold: the parts of the job `import-csv`.

Pure functions over a file, a position or an SQLite connection; `jobs.py` makes durable steps of them. A column is an
integer, a number, a date (or date with time), true or false, or else text; a record with a value that does not fit its
column is put aside in a second table, beside those that `csv_records` could not read.

    >>> layout = inspect_file("birdstrikes.csv", "utf-8")
    >>> scan = scan_chunk(layout, layout["start"], 65536)
    >>> choose_type(scan["columns"][3])
    'date'
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from csv_records import BadRow, UnreadableFileError, encoding_advice, read_layout, readable, shorten

#: A column has the narrowest type that this share of its non-empty values fits.
TYPE_SHARE = 0.99
#: Up to this share of rows that do not decode are bad rows; beyond it, the encoding is wrong.
UNREADABLE_SHARE = 0.01
#: How much of a bad row's raw text is kept, in characters.
RAW_CHARACTERS = 10_000
#: JavaScript, which shows the results, holds integers exactly only up to here; larger ones are shown as text.
LARGEST_SHOWN_INTEGER = 2**53 - 1
BINS = 16
TOP_VALUES = 10
MOST_YEARS = 40
#: Columns beyond this many are summarised without histograms and top values, to keep a result small.
DETAILED_COLUMNS = 100
SAMPLE_ROWS = 20
SAMPLE_CHARACTERS = 60_000
CELL_CHARACTERS = 80

# --- What the values are ----------------------------------------------------------------------------------------------

VALUE = re.compile(
    r"""
      (?P<integer> [+-]? (?: 0 | [1-9][0-9]{0,18} ) )
    | (?P<number>  [+-]? (?: (?: 0 | [1-9][0-9]* ) (?: \.[0-9]* )? | \.[0-9]+ ) (?: [eE][+-]?[0-9]+ )? )
    | (?P<code>    0[0-9]+ )
    | (?P<date>    [0-9]{4}-[0-9]{2}-[0-9]{2}
                   (?: [T ][0-9]{2}:[0-9]{2} (?: :[0-9]{2} (?: \.[0-9]{1,6} )? )? (?: Z | [+-][0-9]{2}:?[0-9]{2} )? )? )
    | (?P<boolean> true | false )
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
FIRST_CHARACTERS = frozenset("+-.0123456789tTfF")
LARGEST_INTEGER = 2**63 - 1
#: The types from narrow to wide, and the kinds of value that each of them takes.
TYPES = {
    "integer": {"integer"},
    "number": {"integer", "number"},
    "date": {"date"},
    "boolean": {"boolean"},
}
ARTICLES = {"integer": "an integer", "number": "a number", "date": "an ISO date", "boolean": "true or false"}


def interpret(value: str) -> tuple[str, Any]:
    """Returns the kind of a non-empty value, and the value as it is stored when a column has a type for that kind.

    A "code" is a row of digits with a leading zero, such as a zip code: it would lose the zero as an integer. Integers
    beyond 64 bits would lose digits as numbers, so they are text; so are "nan" and "inf", and dates that do not exist.
    """
    text = value.strip()
    if text[:1] not in FIRST_CHARACTERS or not (match := VALUE.fullmatch(text)):
        return "text", value
    kind = match.lastgroup
    if kind == "integer":
        number = int(text)
        return (kind, number) if -LARGEST_INTEGER <= number <= LARGEST_INTEGER else ("text", value)
    if kind == "number":
        return interpret_number(text) or ("text", value)
    if kind == "date":
        return (kind, text) if is_date(text) else ("text", value)
    if kind == "boolean":
        return kind, int(text.lower() == "true")
    return kind, value


def interpret_number(text: str) -> tuple[str, float] | None:
    if text.lstrip("+-").isdecimal():
        return None
    number = float(text)
    return ("number", number) if math.isfinite(number) else None


def is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def count_kinds(values: Sequence[str], known_text: bool) -> dict[str, int]:
    """Returns how many of the values of a column are of which kind. Empty values are not counted."""
    if known_text:
        return {"text": len(values) - values.count("")}
    kinds: Counter[str] = Counter()
    for value, count in Counter(values).items():
        if value:
            kinds[interpret(value)[0]] += count
    return dict(kinds)


def choose_type(kinds: Mapping[str, int]) -> str:
    """Returns the narrowest type that (nearly) all values fit. One code makes a column text, to keep its zeros."""
    values = sum(kinds.values())
    if values and not kinds.get("code"):
        for name, accepted in TYPES.items():
            if sum(kinds.get(kind, 0) for kind in accepted) >= TYPE_SHARE * values:
                return name
    return "text"


# --- The two readings -------------------------------------------------------------------------------------------------


def scan_chunk(
    layout: Mapping[str, Any], position: Mapping[str, int], size: int, known_text: Iterable[int] = ()
) -> dict[str, Any]:
    """Reads one chunk to learn the columns' types. Columns whose indexes are in `known_text` are not looked at closely.

    Returns, as JSON values: position (of the next chunk), rows, bad, unreadable (how many of the bad rows have bytes
    that do not decode), first_unreadable (a sentence, or None), and columns (for each, a count of values by kind).
    """
    chunk = read_layout(layout, position, size)
    columns = list(zip(*chunk.rows, strict=True)) or [()] * len(layout["names"])
    unreadable = [bad for bad in chunk.bad if bad.kind == "encoding"]
    return {
        "position": chunk.position,
        "rows": len(chunk.rows),
        "bad": len(chunk.bad),
        "unreadable": len(unreadable),
        "first_unreadable": f"in line {unreadable[0].line:,}, {unreadable[0].reason}" if unreadable else None,
        "columns": [count_kinds(column, index in known_text) for index, column in enumerate(columns)],
    }


def merge_kinds(columns: Sequence[dict[str, int]], more: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """Returns the sums of two scans' counts, column by column."""
    return [dict(Counter(one) + Counter(other)) for one, other in zip(columns, more, strict=True)]


def text_columns(columns: Sequence[Mapping[str, int]], most_rows: int) -> list[int]:
    """Returns the columns that are text whatever comes: too many values fit no type, even with `most_rows` in all."""

    def is_text(kinds: Mapping[str, int]) -> bool:
        return bool(kinds.get("code")) or kinds.get("text", 0) > (1 - TYPE_SHARE) * most_rows + 1

    return [index for index, kinds in enumerate(columns) if is_text(kinds)]


def refuse_wrong_encoding(layout: Mapping[str, Any], rows: float, unreadable: int, first: str | None) -> None:
    """Raises `UnreadableFileError` when so many rows do not decode that it is not the rows that are wrong."""
    if unreadable > UNREADABLE_SHARE * rows:
        encoding = layout["encoding"]
        advice = encoding_advice(encoding)
        raise UnreadableFileError(
            f"The file is not {encoding} text: {first}, and {unreadable:,} rows are affected. {advice}"
        )


def typed_chunk(
    layout: Mapping[str, Any], types: Sequence[str], position: Mapping[str, int], size: int
) -> tuple[list[tuple[Any, ...]], list[BadRow], dict[str, int]]:
    """Reads one chunk as rows ready to insert: (line, value, value ...), the bad rows, and the next position."""
    chunk = read_layout(layout, position, size)
    reasons: dict[int, list[str]] = {}
    converted = []
    for name, type_name, column in zip(layout["names"], types, zip(*chunk.rows, strict=True), strict=False):
        values, misfits = convert_column(column, type_name)
        converted.append(values)
        for index in misfits:
            reason = f"“{shorten(column[index], 60)}” in column “{shorten(name, 60)}” is not {ARTICLES[type_name]}"
            reasons.setdefault(index, []).append(reason)
    rows = list(zip(chunk.lines, *converted, strict=True)) if converted else []
    bad = [BadRow(chunk.lines[index], "value", "; ".join(why[:3]), chunk.raws[index]) for index, why in reasons.items()]
    if reasons:
        rows = [row for index, row in enumerate(rows) if index not in reasons]
    return rows, sorted(chunk.bad + bad, key=lambda row: row.line), chunk.position


def convert_column(column: Sequence[str], type_name: str) -> tuple[list[Any], list[int]]:
    """Returns a column's values as they are stored (empty ones as None), and the indexes of those that do not fit."""
    if type_name == "text":
        return [value or None for value in column], []
    accepted = TYPES[type_name]
    known: dict[str, Any] = {"": None}
    misfits = set()
    for value in set(column):
        if value:
            kind, stored = interpret(value)
            known[value] = stored
            if kind not in accepted:
                misfits.add(value)
    indexes = [index for index, value in enumerate(column) if value in misfits] if misfits else []
    return [known[value] for value in column], indexes


# --- The tables -------------------------------------------------------------------------------------------------------

#: Lists the tables that imports have made. `columns` is JSON, [[name, type], ...]; `complete` is 1 when all is in.
REGISTRY = """
CREATE TABLE IF NOT EXISTS csv_imports (
    table_name TEXT PRIMARY KEY,
    file_name  TEXT NOT NULL,
    columns    TEXT NOT NULL,
    complete   INTEGER NOT NULL DEFAULT 0
)
"""
BAD_COLUMNS = [["source_line", "integer"], ["kind", "text"], ["reason", "text"], ["raw", "text"]]
STORAGE = {"integer": "INTEGER", "number": "NUMERIC", "boolean": "INTEGER", "date": "TEXT", "text": "TEXT"}


class NotAnImportError(ValueError):
    """A table is not one that an import has made and completed."""


def table_name(run_id: str) -> str:
    """Returns the name of the table for the rows of a run. Its bad rows are in the table of that name with `_bad`."""
    return "csv_" + re.sub("[^a-z0-9]", "", run_id.lower())


def quote(name: str) -> str:
    """Returns a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def create_tables(
    connection: sqlite3.Connection, table: str, file_name: str, names: Sequence[str], types: Sequence[str]
) -> None:
    """Creates the two tables of an import. The line in the file is the key of both: no row can be there twice."""
    columns = [[name, type_name] for name, type_name in zip(names, types, strict=True)]
    declared = "".join(f", {quote(name)} {STORAGE[type_name]}" for name, type_name in columns)
    connection.execute(REGISTRY)
    connection.execute(f"CREATE TABLE {quote(table)} (source_line INTEGER PRIMARY KEY{declared})")
    connection.execute(
        f"CREATE TABLE {quote(table + '_bad')} (source_line INTEGER PRIMARY KEY, kind TEXT, reason TEXT, raw TEXT)"
    )
    connection.executemany(
        "INSERT INTO csv_imports (table_name, file_name, columns) VALUES (?, ?, ?)",
        [(table, file_name, json.dumps(columns)), (table + "_bad", file_name, json.dumps(BAD_COLUMNS))],
    )


def drop_tables(connection: sqlite3.Connection, table: str) -> int:
    """Drops the two tables of an import, as far as they are there; returns how many were."""
    connection.execute(REGISTRY)
    names = connection.execute("SELECT table_name FROM csv_imports WHERE table_name IN (?, ?)", (table, f"{table}_bad"))
    found = [name for (name,) in names.fetchall()]
    for name in found:
        connection.execute(f"DROP TABLE {quote(name)}")
        connection.execute("DELETE FROM csv_imports WHERE table_name = ?", (name,))
    return len(found)


def insert_rows(
    connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]], bad: Iterable[BadRow]
) -> None:
    """Inserts the good and the bad rows of one chunk."""
    if rows:
        places = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {quote(table)} VALUES ({places})", rows)
    connection.executemany(
        f"INSERT INTO {quote(table + '_bad')} VALUES (?, ?, ?, ?)",
        [(row.line, row.kind, row.reason, readable(row.raw, RAW_CHARACTERS)) for row in bad],
    )


def complete_import(connection: sqlite3.Connection, table: str, types: Sequence[str]) -> dict[str, Any]:
    """Marks an import as complete and returns the first rows and the first bad rows, to be shown."""
    connection.execute(
        "UPDATE csv_imports SET complete = 1 WHERE table_name IN (?, ?)",
        (table, table + "_bad"),
    )
    first = connection.execute(f"SELECT * FROM {quote(table)} ORDER BY source_line LIMIT {SAMPLE_ROWS}").fetchall()
    bad = connection.execute(
        f"SELECT source_line, kind, reason, raw FROM {quote(table + '_bad')} ORDER BY source_line LIMIT {SAMPLE_ROWS}"
    ).fetchall()
    return {
        "preview": within_budget([shown_row(row[1:], types) for row in first]),
        "first_bad_rows": [
            {"line": line, "kind": kind, "reason": reason, "raw": shorten(raw, 300)} for line, kind, reason, raw in bad
        ],
    }


def within_budget(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Returns as many of the rows as can be shown in a result that stays small, but at least one if there are any."""
    kept, size = [], 0
    for row in rows:
        size += len(json.dumps(row))
        if kept and size > SAMPLE_CHARACTERS:
            break
        kept.append(row)
    return kept


def shown_row(row: Sequence[Any], types: Sequence[str]) -> list[Any]:
    return [shown(value, type_name) for value, type_name in zip(row, types, strict=True)]


def shown(value: Any, type_name: str) -> Any:
    """Returns a stored value as a JSON value that a page can show: short, and exact."""
    if value is None:
        return None
    if type_name == "boolean":
        return bool(value)
    if isinstance(value, str):
        return shorten(value, CELL_CHARACTERS)
    if isinstance(value, int) and abs(value) > LARGEST_SHOWN_INTEGER:
        return str(value)
    return value


# --- What the columns hold --------------------------------------------------------------------------------------------


def summarise_column(
    connection: sqlite3.Connection, table: str, name: str, type_name: str, detailed: bool = True
) -> dict[str, Any]:
    """Returns a column's statistics as JSON values.

    Always: name, type, count (of values), nulls, distinct. For integers and numbers also min, max, mean,
    standard_deviation (of a sample; None for less than two values) and histogram [{from, to, count}]; for dates min,
    max and years [{year, count}]; for all else top [{value, count}]. Without `detailed` these lists are empty.
    """
    source, column = quote(table), quote(name)
    count, nulls = connection.execute(f"SELECT COUNT({column}), COUNT(*) - COUNT({column}) FROM {source}").fetchone()
    summary = {"name": name, "type": type_name, "count": count, "nulls": nulls}
    if type_name in ("integer", "number"):
        return summary | summarise_numbers(connection, source, column, type_name, detailed)
    if type_name == "date":
        return summary | summarise_dates(connection, source, column, detailed)
    return summary | summarise_values(connection, source, column, type_name, detailed)


def summarise_numbers(
    connection: sqlite3.Connection, source: str, column: str, type_name: str, detailed: bool
) -> dict[str, Any]:
    low, high, mean, distinct = connection.execute(
        f"SELECT MIN({column}), MAX({column}), AVG({column}), COUNT(DISTINCT {column}) FROM {source}"
    ).fetchone()
    summary = {
        "distinct": distinct,
        "min": shown(low, type_name),
        "max": shown(high, type_name),
        "mean": finite(mean),
        "standard_deviation": None,
        "histogram": [],
    }
    if mean is None or not math.isfinite(mean) or not math.isfinite(float(high) - float(low)):
        return summary
    width, bins = histogram_bins(low, high, type_name)
    counted = connection.execute(
        f"""
        SELECT MIN(CAST(({column} - :low) / :width AS INTEGER), :last),
               COUNT(*),
               SUM(({column} - :mean) * ({column} - :mean))
        FROM {source}
        WHERE {column} IS NOT NULL
        GROUP BY 1
        """,
        {"low": low, "width": width, "last": bins - 1, "mean": mean},
    ).fetchall()
    count = sum(row[1] for row in counted)
    if count > 1:
        summary["standard_deviation"] = finite(math.sqrt(math.fsum(row[2] for row in counted) / (count - 1)))
    if detailed:
        counts = {row[0]: row[1] for row in counted}
        summary["histogram"] = [
            {"from": low + width * index, "to": low + width * (index + 1), "count": counts.get(index, 0)}
            for index in range(bins)
        ]
    return summary


def histogram_bins(low: float, high: float, type_name: str) -> tuple[float, int]:
    """Returns the width and the number of equal bins: whole numbers for integers, a single bin for a single value."""
    if low == high:
        return 1, 1
    if type_name == "integer":
        width = -((low - high - 1) // BINS)
        return width, (high - low) // width + 1
    width = (float(high) - float(low)) / BINS
    return (width, BINS) if width else (float(high) - float(low), 1)


def finite(number: float | None) -> float | None:
    """Returns a number, or None where it is too large to be one: JSON knows no infinity."""
    return number if number is not None and math.isfinite(number) else None


def summarise_dates(connection: sqlite3.Connection, source: str, column: str, detailed: bool) -> dict[str, Any]:
    low, high, distinct = connection.execute(
        f"SELECT MIN({column}), MAX({column}), COUNT(DISTINCT {column}) FROM {source}"
    ).fetchone()
    years = []
    if detailed and low:
        years = connection.execute(
            f"""
            SELECT CAST(SUBSTR({column}, 1, 4) AS INTEGER) / :period * :period, COUNT(*)
            FROM {source}
            WHERE {column} IS NOT NULL
            GROUP BY 1
            ORDER BY 1
            """,
            {"period": year_period(int(low[:4]), int(high[:4]))},
        ).fetchall()
    return {
        "distinct": distinct,
        "min": low,
        "max": high,
        "years": [{"year": year, "count": count} for year, count in years],
    }


def year_period(first: int, last: int) -> int:
    """Returns over how many years dates are counted together, so that there are not too many counts: 1, 10, 100 ..."""
    period = 1
    while (last - first) // period >= MOST_YEARS:
        period *= 10
    return period


def summarise_values(
    connection: sqlite3.Connection, source: str, column: str, type_name: str, detailed: bool
) -> dict[str, Any]:
    rows = connection.execute(
        f"""
        SELECT {column}, COUNT(*), COUNT(*) OVER ()
        FROM {source}
        WHERE {column} IS NOT NULL
        GROUP BY 1
        ORDER BY 2 DESC, 1
        LIMIT {TOP_VALUES}
        """
    ).fetchall()
    top = [{"value": shown(value, type_name), "count": count} for value, count, _ in rows]
    return {"distinct": rows[0][2] if rows else 0, "top": top if detailed else []}


# --- Writing a table down ---------------------------------------------------------------------------------------------


def imported_columns(connection: sqlite3.Connection, table: str) -> list[list[str]]:
    """Returns [[name, type], ...] of a table that an import has made. Raises `NotAnImportError` for any other table."""
    connection.execute(REGISTRY)
    row = connection.execute("SELECT columns, complete FROM csv_imports WHERE table_name = ?", (table,)).fetchone()
    if row is None:
        raise NotAnImportError(f"{table!r} is not a table that import-csv has made, so it is not exported.")
    if not row[1]:
        raise NotAnImportError(f"The import into {table!r} is not complete yet: export it when its run has completed.")
    return json.loads(row[0])


def export_table(connection: sqlite3.Connection, table: str, path: str) -> dict[str, int]:
    """Writes a table as CSV (UTF-8, RFC 4180) into an existing file, from its beginning, and waits until it is safe.

    Returns {rows, size}. Cells are written as they are, also those that a spreadsheet would take for a formula.
    """
    columns = imported_columns(connection, table)
    rows = connection.execute(
        f"SELECT {', '.join(exported(*column) for column in columns)} FROM {quote(table)} ORDER BY source_line"
    )
    with open(path, "wb") as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(name for name, _ in columns)
        writer.writerows(rows)
        text.flush()
        os.fsync(file.fileno())
        size = file.tell()
        text.detach()
    count = connection.execute(f"SELECT COUNT(*) FROM {quote(table)}").fetchone()[0]
    return {"rows": count, "size": size}


def exported(name: str, type_name: str) -> str:
    """Returns the SQL expression for a column as it is exported."""
    if type_name == "boolean":
        return f"CASE {quote(name)} WHEN 1 THEN 'true' WHEN 0 THEN 'false' END"
    return quote(name)
