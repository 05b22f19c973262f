"""The jobs of the demo: `import-csv` reads a CSV file of any size into a table, `export-csv` writes a table as CSV, and
`forget-import` removes what an import has made.

An import reads the file twice, in chunks, one step per chunk. The first reading learns what the columns hold; the
second inserts the rows. The rows of a chunk, and those put aside because something is wrong with them, are committed in
one transaction with the step's checkpoint: whenever the tab dies, no row is lost and none is there twice. Everything
that a step needs is in the results of the steps before it, nothing in this module.

    await engine.trigger("import-csv", {"path": "/durable/files/birdstrikes.csv", "name": "birdstrikes.csv"})

Input of `import-csv`: path, name, and optionally encoding (utf-8, windows-1252 or iso-8859-1) and chunk_bytes.

Output of `import-csv`, JSON values below 200 KB:

    {
      "name": "birdstrikes.csv", "size": 1223329, "encoding": "utf-8", "delimiter": ",",
      "table": "csv_01j...", "rows": 10000,
      "bad_table": "csv_01j..._bad", "bad_rows": 0,
      "columns": [
        {"name": "Speed", "type": "integer", "count": 7164, "nulls": 2836, "distinct": 122,      # or "number"
         "min": 0, "max": 350, "mean": 153.535, "standard_deviation": 43.518,
         "histogram": [{"from": 0, "to": 22, "count": 27}, ...]},
        {"name": "Flight Date", "type": "date", "count": 10000, "nulls": 0, "distinct": 3625,
         "min": "1990-01-08", "max": "2002-07-25", "years": [{"year": 1990, "count": 463}, ...]},
        {"name": "Wildlife Size", "type": "text", "count": 10000, "nulls": 0, "distinct": 3,     # or "boolean"
         "top": [{"value": "Small", "count": 4910}, ...]},
        ...
      ],
      "preview": [["BARKSDALE AIR FORCE BASE ARPT", "T-38A", ...], ...],                         # the first 20 rows
      "first_bad_rows": [{"line": 17, "kind": "fields", "reason": "14 fields expected, 13 found", "raw": "..."}, ...]
    }

Integers that JavaScript cannot hold exactly are given as text. Where dates span more than 40 years, they are counted by
10, 100 or 1,000 years. A column without values has None for min, max and mean, and empty lists; the lists of columns
beyond the first 100 are empty too.

Input of `export-csv`: table (a "table" or "bad_table" from above) and name (of the file to make).
Output of `export-csv`: {"path": "/durable/files/cleaned.csv", "name": "cleaned.csv", "rows": 10000, "size": 1223331}.

Input of `forget-import`: run_id (of an import that has ended) and optionally file (the name of its durable file).
Output of `forget-import`: {"tables": 2}, the number of tables that were dropped.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from csv_import import (
    DETAILED_COLUMNS,
    NotAnImportError,
    choose_type,
    complete_import,
    create_tables,
    drop_tables,
    export_table,
    imported_columns,
    insert_rows,
    merge_kinds,
    refuse_wrong_encoding,
    scan_chunk,
    summarise_column,
    table_name,
    text_columns,
    typed_chunk,
)
from csv_records import UnreadableFileError, inspect_file

from durable_web import Context, FatalError, StepFailed, job

SMALLEST_CHUNK = 32 * 1024
LARGEST_CHUNK = 4 * 1024 * 1024
#: A file is cut into about this many chunks, so that also a small one shows how it goes on after a crash.
CHUNKS = 40
#: About how many cells one summary step reads, so that a page hears from the run every now and then.
CELLS_PER_SUMMARY = 200_000
LOGGED_BAD_ROWS = 20


@job("import-csv")
async def import_csv(ctx: Context, input: dict) -> dict:
    """Imports a CSV file into a table of its own. Input and output are described at the top of this module."""
    with clear_errors():
        source = checked_source(input)
        layout = await ctx.step("inspect", inspect_step, ctx, source)
        size = source["chunk_bytes"] or chunk_size(layout["size"])
        types = await scan(ctx, layout, size)
        table = table_name(ctx.run_id)
        await ctx.transaction("create tables", create_step, ctx, table, source["name"], layout, types)
        counts = await insert(ctx, layout, types, table, size)
        columns = await summarise(ctx, layout, types, table, counts["rows"])
        samples = await ctx.transaction("finish", finish_step, ctx, layout, table, types, counts)
    return {
        "name": source["name"],
        "size": layout["size"],
        "encoding": layout["encoding"],
        "delimiter": layout["delimiter"],
        "table": table,
        "bad_table": f"{table}_bad",
        **counts,
        "columns": columns,
        **samples,
    }


@job("export-csv")
async def export_csv(ctx: Context, input: dict) -> dict:
    """Writes a table that `import-csv` has made as a CSV file. A kill in between starts the file again, from empty."""
    table, name = required_text(input, "table"), required_text(input, "name")
    with clear_errors():
        await ctx.transaction("check table", check_step, table)
        path = await ctx.step("create file", ctx.files.create, name)
        written = await ctx.transaction("write file", export_step, ctx, table, path)
    return {"path": path, "name": name, **written}


@job("forget-import")
async def forget_import(ctx: Context, input: dict) -> dict:
    """Removes the tables of an import and its file. The run itself is deleted by whoever triggers this, afterwards."""
    table = table_name(required_text(input, "run_id"))
    dropped = await ctx.transaction("drop tables", drop_step, ctx, table)
    if input.get("file"):
        await ctx.step("delete file", ctx.files.remove, required_text(input, "file"))
    return {"tables": dropped}


# --- Input and errors -------------------------------------------------------------------------------------------------


def checked_source(input: dict) -> dict[str, Any]:
    """Returns {path, name, encoding, chunk_bytes} of an import. Raises `FatalError` when the input is not usable."""
    path = required_text(input, "path")
    chunk_bytes = input.get("chunk_bytes")
    if chunk_bytes is not None and (type(chunk_bytes) is not int or not 1 <= chunk_bytes <= LARGEST_CHUNK):
        raise FatalError(f"chunk_bytes is a whole number from 1 to {LARGEST_CHUNK:,}, not {chunk_bytes!r}.")
    return {
        "path": path,
        "name": str(input.get("name") or path.rpartition("/")[2]),
        "encoding": input.get("encoding") or "utf-8",
        "chunk_bytes": chunk_bytes,
    }


def required_text(input: Any, key: str) -> str:
    value = input.get(key) if isinstance(input, dict) else None
    if not isinstance(value, str) or not value:
        raise FatalError(f"The input of this job is an object in which {key!r} is a non-empty text.")
    return value


@contextmanager
def clear_errors() -> Iterator[None]:
    """Makes of what is wrong with the file or the table a `FatalError`, which is not tried again.

    Around a step function it raises that error; around the body it takes the step's name off it again, so that the run
    ends with the one plain sentence that a person needs.
    """
    try:
        yield
    except (UnreadableFileError, NotAnImportError) as error:
        raise FatalError(str(error)) from None
    except StepFailed as error:
        if error.error_type == FatalError.__name__:
            raise FatalError(error.error_message) from None
        raise


def work(layout: dict[str, Any]) -> float:
    """Returns what the progress of an import counts up to: two readings of the file, and half of one for statistics."""
    return 2.5 * layout["size"]


def chunk_size(size: int) -> int:
    """Returns how many bytes one step reads of a file of that size."""
    return min(max(size // CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)


# --- Reading the file, twice ------------------------------------------------------------------------------------------


@clear_errors()
def inspect_step(ctx: Context, source: dict[str, Any]) -> dict[str, Any]:
    layout = inspect_file(source["path"], source["encoding"])
    delimiter = {"\t": "tab"}.get(layout["delimiter"], layout["delimiter"])
    ctx.log.info(
        f"{source['name']}: {layout['size']:,} bytes of {layout['encoding']}, "
        f"{len(layout['names']):,} columns, delimiter {delimiter}"
    )
    ctx.progress(0, work(layout), "Looking at the file")
    return layout


async def scan(ctx: Context, layout: dict[str, Any], size: int) -> list[str]:
    """Reads the whole file to learn the type of every column."""
    position = layout["start"]
    columns: list[dict[str, int]] = [{} for _ in layout["names"]]
    rows, unreadable, first_unreadable, number = 0, 0, None, 0
    while position["offset"] < layout["size"]:
        number += 1
        most_rows = layout["size"] // len(columns)
        found = await ctx.step(
            f"scan {number}", scan_step, ctx, layout, position, size, text_columns(columns, most_rows)
        )
        position = found["position"]
        columns = merge_kinds(columns, found["columns"])
        rows += found["rows"] + found["bad"]
        unreadable += found["unreadable"]
        first_unreadable = first_unreadable or found["first_unreadable"]
        share = (position["offset"] - layout["start"]["offset"]) / (layout["size"] - layout["start"]["offset"])
        refuse_wrong_encoding(layout, rows / share, unreadable, first_unreadable)
    return [choose_type(kinds) for kinds in columns]


@clear_errors()
def scan_step(
    ctx: Context, layout: dict[str, Any], position: dict[str, int], size: int, known_text: list[int]
) -> dict[str, Any]:
    found = scan_chunk(layout, position, size, frozenset(known_text))
    lines = f"lines {position['line']:,} to {found['position']['line'] - 1:,}"
    ctx.log.debug(f"Looked at {lines}: {found['rows']:,} rows, {found['bad']:,} bad")
    ctx.progress(found["position"]["offset"], work(layout), f"Finding out the types of the columns: {lines}")
    return found


def create_step(
    connection: sqlite3.Connection, ctx: Context, table: str, name: str, layout: dict[str, Any], types: list[str]
) -> None:
    create_tables(connection, table, name, layout["names"], types)
    found = [f"{column[:60]}: {type_name}" for column, type_name in zip(layout["names"], types, strict=True)]
    more = f" and {len(found) - 20:,} more" if len(found) > 20 else ""
    ctx.log.info(f"Types found: {', '.join(found[:20])}{more}")


async def insert(ctx: Context, layout: dict[str, Any], types: list[str], table: str, size: int) -> dict[str, int]:
    """Reads the whole file again and inserts its rows, each chunk in one transaction with its checkpoint."""
    position = layout["start"]
    counts = {"rows": 0, "bad_rows": 0}
    number = 0
    while position["offset"] < layout["size"]:
        number += 1
        inserted = await ctx.transaction(
            f"rows {number}", insert_step, ctx, layout, types, table, position, size, counts
        )
        position = inserted["position"]
        counts = {key: counts[key] + inserted[key] for key in counts}
    return counts


@clear_errors()
def insert_step(
    connection: sqlite3.Connection,
    ctx: Context,
    layout: dict[str, Any],
    types: list[str],
    table: str,
    position: dict[str, int],
    size: int,
    counts: dict[str, int],
) -> dict[str, Any]:
    rows, bad, following = typed_chunk(layout, types, position, size)
    insert_rows(connection, table, rows, bad)
    for row in bad[: max(0, LOGGED_BAD_ROWS - counts["bad_rows"])]:
        ctx.log.warning(f"Line {row.line:,} is put aside: {row.reason}", line=row.line, kind=row.kind)
    lines = f"lines {position['line']:,} to {following['line'] - 1:,}"
    ctx.log.info(f"{len(rows):,} rows inserted from {lines}", rows=len(rows), bad_rows=len(bad))
    inserted = f"{counts['rows'] + len(rows):,} rows inserted"
    ctx.progress(layout["size"] + following["offset"], work(layout), inserted)
    return {"position": following, "rows": len(rows), "bad_rows": len(bad)}


# --- The result -------------------------------------------------------------------------------------------------------


async def summarise(
    ctx: Context, layout: dict[str, Any], types: list[str], table: str, rows: int
) -> list[dict[str, Any]]:
    """Computes the statistics of all columns, a few of them in each step."""
    columns = list(zip(layout["names"], types, strict=True))
    together = max(1, CELLS_PER_SUMMARY // max(rows, 1))
    summaries: list[dict[str, Any]] = []
    for number, first in enumerate(range(0, len(columns), together), start=1):
        some = columns[first : first + together]
        detailed = DETAILED_COLUMNS - first
        share = (first + len(some)) / len(columns)
        summaries += await ctx.transaction(f"summary {number}", summary_step, ctx, layout, table, some, detailed, share)
    return summaries


def summary_step(
    connection: sqlite3.Connection,
    ctx: Context,
    layout: dict[str, Any],
    table: str,
    columns: list[tuple[str, str]],
    detailed: int,
    share: float,
) -> list[dict[str, Any]]:
    named = ", ".join(name[:60] for name, _ in columns[:20])
    ctx.log.info(f"Computing the statistics of {named}")
    summaries = [
        summarise_column(connection, table, name, type_name, index < detailed)
        for index, (name, type_name) in enumerate(columns)
    ]
    ctx.progress((2 + share / 2) * layout["size"], work(layout), f"Statistics of {named}")
    return summaries


def finish_step(
    connection: sqlite3.Connection,
    ctx: Context,
    layout: dict[str, Any],
    table: str,
    types: list[str],
    counts: dict[str, int],
) -> dict[str, Any]:
    samples = complete_import(connection, table, types)
    message = f"{counts['rows']:,} rows imported, {counts['bad_rows']:,} put aside"
    ctx.log.info(message)
    ctx.progress(work(layout), work(layout), message)
    return samples


# --- Export -----------------------------------------------------------------------------------------------------------


@clear_errors()
def check_step(connection: sqlite3.Connection, table: str) -> int:
    return len(imported_columns(connection, table))


@clear_errors()
def export_step(connection: sqlite3.Connection, ctx: Context, table: str, path: str) -> dict[str, int]:
    written = export_table(connection, table, path)
    ctx.log.info(f"{written['rows']:,} rows written, {written['size']:,} bytes")
    ctx.progress(written["rows"], written["rows"], "Written")
    return written


# --- Forgetting -------------------------------------------------------------------------------------------------------


def drop_step(connection: sqlite3.Connection, ctx: Context, table: str) -> int:
    dropped = drop_tables(connection, table)
    ctx.log.info(f"{dropped} tables dropped")
    return dropped
