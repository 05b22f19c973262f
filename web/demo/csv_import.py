"""From records of text to typed rows in SQLite tables, and what the tables hold: the parts of the job `import-csv`.

Pure functions over a file, a position or an SQLite connection; `jobs.py` makes durable steps of them. How records are
read is in `csv_records`, how values are in `csv_values`. A cell whose text is not what its column makes of the stored
value has that text beside it, in the last column of its row (`source_text`, a JSON object by the column's index).
Records that cannot be read are put aside in a second table.

    >>> layout = inspect_file("birdstrikes.csv")
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csv_records import (
    BadRow,
    Chunk,
    UnreadableFileError,
    dialect_of,
    read_chunk,
    read_layout,
    readable,
    shorten,
)
from csv_values import (
    ARTICLES,
    MISSING_WORDS,
    Column,
    Converted,
    convert_column,
    count_kinds,
    is_surely_text,
    reading_of,
)

#: Up to this share of rows that do not decode are put aside; beyond it, the encoding is wrong.
UNREADABLE_SHARE = 0.01
#: How much of the raw text of a record that was put aside is kept, in characters.
RAW_CHARACTERS = 1_000_000
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
EXPORTED_AT_ONCE = 2_000

# --- The two readings -------------------------------------------------------------------------------------------------


def scan_chunk(
    layout: Mapping[str, Any], position: Mapping[str, int], size: int, known_text: Iterable[int] = ()
) -> dict[str, Any]:
    """Reads one chunk to learn the columns' types. Columns whose indexes are in `known_text` are not looked at closely.

    Returns, as JSON values: position (of the next chunk), checksum, rows, bad, unreadable (how many of the bad rows
    have bytes that do not decode), first_unreadable (a sentence, or None), and columns (for each, a count of values by
    kind).
    """
    chunk, reading = read_layout(layout, position, size), reading_of(layout)
    columns = list(zip(*chunk.rows, strict=True)) or [()] * len(layout["names"])
    unreadable = [bad for bad in chunk.bad if bad.kind == "encoding"]
    return {
        "position": chunk.position,
        "checksum": chunk.checksum,
        "rows": len(chunk.rows),
        "bad": len(chunk.bad),
        "unreadable": len(unreadable),
        "first_unreadable": f"in line {unreadable[0].line:,}, {unreadable[0].reason}" if unreadable else None,
        "columns": [count_kinds(column, reading, index in known_text) for index, column in enumerate(columns)],
    }


def text_columns(columns: Sequence[Mapping[str, int]], most_rows: int) -> list[int]:
    """Returns the columns that are text, if there are not more than `most_rows` in all."""
    return [index for index, kinds in enumerate(columns) if is_surely_text(kinds, most_rows)]


def refuse_wrong_encoding(layout: Mapping[str, Any], rows: float, unreadable: int, first: str | None) -> None:
    """Raises `UnreadableFileError` when so many rows do not decode that it is not the rows that are wrong."""
    if unreadable > UNREADABLE_SHARE * rows:
        encoding = layout["encoding"]
        raise UnreadableFileError(
            f"The file is not {encoding} text: {first}, and {unreadable:,} rows are affected. "
            "Choose another encoding and import it again."
        )


@dataclass
class Typed:
    """One chunk as rows ready to insert: (line, value, value ..., texts beside the values as JSON or None).

    `odd` has, for each odd cell, its line, the index of its column and its text.
    """

    rows: list[tuple[Any, ...]]
    bad: list[BadRow] = field(default_factory=list)
    odd: list[tuple[int, int, str]] = field(default_factory=list)
    short: list[tuple[int, int]] = field(default_factory=list)
    position: dict[str, int] = field(default_factory=dict)


def typed_chunk(
    layout: Mapping[str, Any], columns: Sequence[Column], position: Mapping[str, int], size: int, checksum: int | None
) -> Typed:
    """Reads one chunk as rows ready to insert."""
    chunk = read_layout(layout, position, size, checksum)
    typed = typed_rows(chunk, columns, layout)
    typed.position = chunk.position
    return typed


def typed_rows(chunk: Chunk, columns: Sequence[Column], layout: Mapping[str, Any]) -> Typed:
    """Returns the records of a chunk as rows ready to insert."""
    if not chunk.rows:
        return Typed([], chunk.bad)
    reading = reading_of(layout)
    texts = list(zip(*chunk.rows, strict=True))
    converted = [convert_column(cells, column, reading) for cells, column in zip(texts, columns, strict=True)]
    beside = texts_beside(converted, len(chunk.rows))
    rows = list(zip(chunk.lines, *(one.values for one in converted), beside, strict=True))
    odd = [(chunk.lines[at], index, one.beside[at]) for index, one in enumerate(converted) for at in one.odd]
    return Typed(rows, chunk.bad, sorted(odd), chunk.short)


def texts_beside(converted: Sequence[Converted], rows: int) -> list[str | None]:
    """Returns for each row the texts that are kept beside its values, as JSON."""
    beside: dict[int, dict[int, str]] = {}
    for index, one in enumerate(converted):
        for at, text in one.beside.items():
            beside.setdefault(at, {})[index] = text
    kept: list[str | None] = [None] * rows
    for at, texts in beside.items():
        kept[at] = json.dumps(texts, ensure_ascii=False)
    return kept


def reason_of(text: str, name: str, column: Column) -> str:
    """Returns what is odd about a cell."""
    return f"“{shorten(text, 60)}” in column “{shorten(name, 60)}” is not {ARTICLES[column.type]}"


# --- The tables -------------------------------------------------------------------------------------------------------

#: Lists the tables that imports have made. `columns` is JSON: {"columns": [{"name", "header", and the fields of a
#: `Column`}, ...], "layout": how the file was read}; `complete` is 1 when all is in.
REGISTRY = """
CREATE TABLE IF NOT EXISTS csv_imports (
    table_name TEXT PRIMARY KEY,
    file_name  TEXT NOT NULL,
    columns    TEXT NOT NULL,
    complete   INTEGER NOT NULL DEFAULT 0
)
"""
#: A number column has no affinity, so that 1 and 1.0 stay what they are.
STORAGE = {"integer": " INTEGER", "number": "", "date": " TEXT", "boolean": " INTEGER", "text": " TEXT"}
BAD_COLUMNS = ("source_line", "kind", "reason", "raw")


class NotAnImportError(ValueError):
    """A table is not one that an import has made and completed."""


def table_name(run_id: str) -> str:
    """Returns the name of the table for the rows of a run. Its bad rows are in the table of that name with `_bad`."""
    return "csv_" + re.sub("[^a-z0-9]", "", run_id.lower())


def quote(name: str) -> str:
    """Returns a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def create_tables(
    connection: sqlite3.Connection, table: str, file_name: str, layout: Mapping[str, Any], columns: Sequence[Column]
) -> None:
    """Creates the two tables of an import. The line in the file is the key of both: no row can be there twice."""
    names = layout["names"]
    declared = "".join(f", {quote(name)}{STORAGE[column.type]}" for name, column in zip(names, columns, strict=True))
    connection.execute(REGISTRY)
    connection.execute(f"CREATE TABLE {quote(table)} (source_line INTEGER PRIMARY KEY{declared}, source_text TEXT)")
    connection.execute(
        f"CREATE TABLE {quote(table + '_bad')} (source_line INTEGER PRIMARY KEY, kind TEXT, reason TEXT, raw TEXT)"
    )
    described = [
        {"name": name, "header": header} | column.as_json()
        for name, header, column in zip(names, layout["header"], columns, strict=True)
    ]
    bad = [{"name": name, "header": name} | Column("text").as_json() for name in BAD_COLUMNS]
    connection.executemany(
        "INSERT INTO csv_imports (table_name, file_name, columns) VALUES (?, ?, ?)",
        [
            (table, file_name, json.dumps({"columns": described, "layout": {**layout, "names": None, "header": None}})),
            (table + "_bad", file_name, json.dumps({"columns": bad, "layout": {"has_header": True}})),
        ],
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


def complete_import(connection: sqlite3.Connection, table: str, columns: Sequence[Column]) -> dict[str, Any]:
    """Marks an import as complete and returns the first rows and the first bad rows, to be shown."""
    connection.execute(
        "UPDATE csv_imports SET complete = 1 WHERE table_name IN (?, ?)",
        (table, table + "_bad"),
    )
    first = connection.execute(f"SELECT * FROM {quote(table)} ORDER BY source_line LIMIT {SAMPLE_ROWS}").fetchall()
    return {
        "preview": within_budget([shown_row(row[1:-1], row[-1], columns) for row in first]),
        "first_bad_rows": first_bad_rows(connection, table),
    }


def first_bad_rows(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    """Returns the first records that were put aside, to be shown."""
    bad = connection.execute(
        f"SELECT source_line, kind, reason, raw FROM {quote(table + '_bad')} ORDER BY source_line LIMIT {SAMPLE_ROWS}"
    ).fetchall()
    return [{"line": line, "kind": kind, "reason": reason, "raw": shorten(raw, 300)} for line, kind, reason, raw in bad]


def within_budget(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Returns as many of the rows as can be shown in a result that stays small, but at least one if there are any."""
    kept, size = [], 0
    for row in rows:
        size += len(json.dumps(row))
        if kept and size > SAMPLE_CHARACTERS:
            break
        kept.append(row)
    return kept


def shown_row(row: Sequence[Any], beside: str | None, columns: Sequence[Column]) -> list[Any]:
    """Returns the values of a row as a page can show them; where an odd cell has none, its text."""
    texts = json.loads(beside) if beside else {}
    cells = [shown(value, column.type) for value, column in zip(row, columns, strict=True)]
    for index, text in texts.items():
        if cells[int(index)] is None and text.strip().lower() not in MISSING_WORDS:
            cells[int(index)] = shorten(text, CELL_CHARACTERS) if text.strip() else None
    return cells


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
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


# --- What the columns hold --------------------------------------------------------------------------------------------


def summarise_column(
    connection: sqlite3.Connection, table: str, name: str, type_name: str, detailed: bool = True, odd: int = 0
) -> dict[str, Any]:
    """Returns a column's statistics as JSON values. `odd` is how many of its cells have only a text.

    Always: name, type, count (of values), nulls, odd, distinct. For integers and numbers also min, max, mean,
    standard_deviation (of a sample; None for less than two values) and histogram [{from, to, count}]; for dates min,
    max and years [{year, count}]; for all else top [{value, count}]. Without `detailed` these lists are empty.
    """
    source, column = quote(table), quote(name)
    count, nulls = connection.execute(f"SELECT COUNT({column}), COUNT(*) - COUNT({column}) FROM {source}").fetchone()
    summary = {"name": name, "type": type_name, "count": count, "nulls": nulls - odd, "odd": odd}
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
    if low is not None and (math.isinf(low) or math.isinf(high)):
        low, high, mean = connection.execute(
            f"SELECT MIN({column}), MAX({column}), AVG({column}) FROM {source} WHERE {FINITE.format(column)}"
        ).fetchone()
    if mean is None or not math.isfinite(mean) or not math.isfinite(float(high) - float(low)):
        return summary
    width, bins = histogram_bins(low, high, type_name)
    counted = connection.execute(
        f"""
        SELECT MIN(CAST(({column} - :low) / :width AS INTEGER), :last),
               COUNT(*),
               SUM(({column} - :mean) * ({column} - :mean))
        FROM {source}
        WHERE {FINITE.format(column)}
        GROUP BY 1
        """,
        {"low": low, "width": width, "last": bins - 1, "mean": mean},
    ).fetchall()
    count = sum(row[1] for row in counted)
    if count > 1 and summary["mean"] is not None:
        summary["standard_deviation"] = finite(math.sqrt(math.fsum(row[2] for row in counted) / (count - 1)))
    if detailed:
        counts = {row[0]: row[1] for row in counted}
        summary["histogram"] = [
            {"from": low + width * index, "to": low + width * (index + 1), "count": counts.get(index, 0)}
            for index in range(bins)
        ]
    return summary


#: What holds for a number that is not infinite.
FINITE = "{0} BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"


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


def imported_columns(connection: sqlite3.Connection, table: str) -> dict[str, Any]:
    """Returns {"columns": [...], "layout": {...}} of a table that an import has made.

    Raises `NotAnImportError` for any other table. What an earlier release has imported has neither a layout nor texts
    beside the values.
    """
    connection.execute(REGISTRY)
    row = connection.execute("SELECT columns, complete FROM csv_imports WHERE table_name = ?", (table,)).fetchone()
    if row is None:
        raise NotAnImportError(f"{table!r} is not a table that import-csv has made, so it is not exported.")
    if not row[1]:
        raise NotAnImportError(f"The import into {table!r} is not complete yet: export it when its run has completed.")
    found = json.loads(row[0])
    if isinstance(found, list):
        columns = [{"name": name, "header": name} | Column(type_name).as_json() for name, type_name in found]
        return {"columns": columns, "layout": None}
    return found


def columns_of(described: Iterable[Mapping[str, Any]]) -> list[Column]:
    """Returns the columns that a registry describes."""
    return [
        Column(**{key: value for key, value in column.items() if key not in ("name", "header")}) for column in described
    ]


def export_table(connection: sqlite3.Connection, table: str, path: str) -> dict[str, int]:
    """Writes a table as CSV (UTF-8, RFC 4180) into an existing file, from its beginning, and waits until it is safe.

    Returns {rows, size}. Header and cells have the texts that they had in the file, also those that a spreadsheet would
    take for a formula.
    """
    found = imported_columns(connection, table)
    layout, columns = found["layout"], columns_of(found["columns"])
    names = ", ".join(quote(column["name"]) for column in found["columns"])
    has_texts = layout is not None and "delimiter" in layout
    rows = connection.execute(
        f"SELECT {names}, {'source_text' if has_texts else 'NULL'} FROM {quote(table)} ORDER BY source_line"
    )
    count = 0
    with open(path, "wb") as file:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=False)
        writer = csv.writer(text)
        if layout is None or layout["has_header"]:
            writer.writerow(column["header"] for column in found["columns"] if column["header"] is not None)
        while some := rows.fetchmany(EXPORTED_AT_ONCE):
            writer.writerows(exported_rows(some, columns))
            count += len(some)
        text.flush()
        os.fsync(file.fileno())
        size = file.tell()
        text.detach()
    return {"rows": count, "size": size}


def exported_rows(rows: Sequence[tuple[Any, ...]], columns: Sequence[Column]) -> list[list[str]]:
    """Returns the texts that some rows, each with the texts beside its values at the end, had in the file."""
    *stored, beside = zip(*rows, strict=True)
    written = [exported_cells(values, column) for values, column in zip(stored, columns, strict=True)]
    texts = [list(row) for row in zip(*written, strict=True)]
    for row, kept in zip(texts, beside, strict=True):
        if kept is not None:
            for index, text in json.loads(kept).items():
                row[int(index)] = text
    return texts


def exported_cells(values: Sequence[Any], column: Column) -> Sequence[str]:
    if column.type in ("text", "date", "integer") and not column.missing and not column.dates:
        return values  # the csv module writes them as they are
    return list(map(column.write, values))


# --- Records that were put aside --------------------------------------------------------------------------------------


def mend_record(connection: sqlite3.Connection, table: str, line: int, text: str) -> dict[str, Any]:
    """Imports a record that was put aside, with the text that the user has mended it to.

    Returns {"is_mended", "reason", "bad_rows"}: the reason why the text cannot be read either, or None, and how many
    records are still put aside.
    """
    found = imported_columns(connection, table)
    layout = found["layout"]
    bad = quote(f"{table}_bad")
    if not connection.execute(f"SELECT COUNT(*) FROM {bad} WHERE source_line = ?", (line,)).fetchone()[0]:
        raise NotAnImportError(f"There is no record of line {line:,} that was put aside.")
    dialect = dialect_of(layout | {"encoding": "utf-8", "newline": "\n"})
    file = io.BytesIO(text.encode("utf-8", "replace"))
    chunk = read_chunk(
        file, dialect, {"offset": 0, "line": line}, len(text.encode("utf-8", "replace")) + 1, len(found["columns"])
    )
    reason = chunk.bad[0].reason if chunk.bad else None if len(chunk.rows) == 1 else "this is not one record"
    if reason is None:
        insert_rows(connection, table, typed_rows(chunk, columns_of(found["columns"]), layout).rows, [])
        connection.execute(f"DELETE FROM {bad} WHERE source_line = ?", (line,))
    left = connection.execute(f"SELECT COUNT(*) FROM {bad}").fetchone()[0]
    return {"is_mended": reason is None, "reason": reason, "bad_rows": left}
