"""The jobs of the demo: `import-csv` reads a CSV file of any size into a table, `export-csv` writes a table as CSV, and
`forget-import` removes what an import has made.

An import reads the file twice, in chunks, one step per chunk. The first reading learns what the columns hold; the
second inserts the rows. The rows of a chunk, and those put aside because something is wrong with them, are committed in
one transaction with the step's checkpoint: whenever the tab dies, no row is lost and none is there twice. Everything
that a step needs is in the results of the steps before it, nothing in this module.

    await engine.trigger("import-csv", {"path": "/durable/files/birdstrikes.csv", "name": "birdstrikes.csv"})

Input of `import-csv`: path, name, and optionally chunk_bytes, and what the user knows of the file better than
`csv_layout` guesses it: encoding, delimiter, quote, header, decimal, date_order and missing (a list of words).

Output of `import-csv`, JSON values below 200 KB:

    {
      "name": "birdstrikes.csv", "size": 1223329, "encoding": "utf-8", "delimiter": ",", "above": [],
      "table": "csv_01j...", "rows": 10000,
      "bad_table": "csv_01j..._bad", "bad_rows": 0, "short_rows": 0, "odd_cells": 0,
      "columns": [
        {"name": "Speed", "type": "integer", "count": 7164, "nulls": 2836, "distinct": 122,      # or "number"
         "odd": 0, "missing": {"NA": 12},
         "min": 0, "max": 350, "mean": 153.535, "standard_deviation": 43.518,
         "histogram": [{"from": 0, "to": 22, "count": 27}, ...]},
        {"name": "Flight Date", "type": "date", "count": 10000, "nulls": 0, "distinct": 3625,
         "min": "1990-01-08", "max": "2002-07-25", "years": [{"year": 1990, "count": 463}, ...]},
        {"name": "Wildlife Size", "type": "text", "count": 10000, "nulls": 0, "distinct": 3,     # or "boolean"
         "top": [{"value": "Small", "count": 4910}, ...]},
        ...
      ],
      "first_odd_cells": [{"line": 9, "column": "Speed", "text": "fast"}, ...],
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
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from csv_import import (
    DETAILED_COLUMNS,
    NotAnImportError,
    complete_import,
    create_tables,
    drop_tables,
    export_table,
    imported_columns,
    insert_rows,
    mend_record,
    reason_of,
    refuse_wrong_encoding,
    scan_chunk,
    summarise_column,
    table_name,
    text_columns,
    typed_chunk,
)
from csv_layout import described, inspect_file
from csv_preview import OPTIONS, preview_file
from csv_records import FileHasChangedError, UnreadableFileError
from csv_values import Column, choose_column, merge_kinds

from durable_web import Context, FatalError, StepFailed, job

SMALLEST_CHUNK = 32 * 1024
LARGEST_CHUNK = 4 * 1024 * 1024
#: A file is cut into about this many chunks, so that also a small one shows how it goes on after a crash.
CHUNKS = 40
#: About how many cells one summary step reads, so that a page hears from the run every now and then.
CELLS_PER_SUMMARY = 200_000
#: How many log lines tell of records that were put aside, and how many of odd cells.
LOGGED = 20
MISSING_WORDS_SHOWN = 5
#: By how much there may be more rows than the part of the file that was read lets expect.
MARGIN = 2


class FileChangedError(FatalError):
    """The file was edited, truncated, replaced or deleted while it was being imported. Nothing of it is kept."""


@job("import-csv")
async def import_csv(ctx: Context, input: dict) -> dict:
    """Imports a CSV file into a table of its own. Input and output are described at the top of this module."""
    source = checked_source(input)
    table = table_name(ctx.run_id)
    with clear_errors():
        layout = await ctx.step("inspect", inspect_step, ctx, source)
        size = source["chunk_bytes"] or chunk_size(layout["size"])
        pace = Pace(work(layout))
        kinds, rows, checksums = await scan(ctx, layout, size, pace)
        columns = [choose_column(found, layout["decimal"], rows) for found in kinds]
        await ctx.transaction("create tables", create_step, ctx, table, source["name"], layout, columns)
        try:
            counts, odd, odd_cells = await insert(ctx, layout, columns, table, size, checksums, pace)
        except StepFailed as error:
            if error.error_type == FileChangedError.__name__:
                await ctx.transaction("drop tables", drop_step, ctx, table)
            raise
        summaries = await summarise(ctx, layout, columns, table, counts["rows"], odd, pace)
        samples = await ctx.transaction("finish", finish_step, ctx, layout, table, columns, counts)
    for summary, found in zip(summaries, kinds, strict=True):
        summary["missing"] = missing_words(found) if summary["type"] != "text" else {}
    return {
        "name": source["name"],
        **{key: layout[key] for key in ("size", "encoding", "delimiter", "above")},
        "table": table,
        "bad_table": f"{table}_bad",
        **counts,
        "columns": summaries,
        "first_odd_cells": odd_cells,
        **samples,
    }


@job("preview-csv")
async def preview_csv(ctx: Context, input: dict) -> dict:
    """Tells how `import-csv` would read a file, and shows its first rows. Nothing is imported."""
    with clear_errors():
        return await ctx.step("preview", preview_step, checked_source(input))


@job("mend-record")
async def mend(ctx: Context, input: dict) -> dict:
    """Imports a record that was put aside, with the text that the user has mended it to."""
    table, text, line = required_text(input, "table"), required_text(input, "text"), input.get("line")
    if type(line) is not int:
        raise FatalError(f"line is a whole number, not {line!r}.")
    with clear_errors():
        return await ctx.transaction("mend", mend_step, ctx, table, line, text)


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
    """Removes the tables of an import and its file; the page that triggers this job deletes the run afterwards."""
    table = table_name(required_text(input, "run_id"))
    dropped = await ctx.transaction("drop tables", drop_step, ctx, table)
    if input.get("file"):
        await ctx.step("delete file", ctx.files.remove, required_text(input, "file"))
    return {"tables": dropped}


# --- Input and errors -------------------------------------------------------------------------------------------------


def checked_source(input: dict) -> dict[str, Any]:
    """Returns {path, name, options, chunk_bytes} of an import. Raises `FatalError` when the input is not usable."""
    path = required_text(input, "path")
    chunk_bytes = input.get("chunk_bytes")
    if chunk_bytes is not None and (type(chunk_bytes) is not int or not 1 <= chunk_bytes <= LARGEST_CHUNK):
        raise FatalError(f"chunk_bytes is a whole number from 1 to {LARGEST_CHUNK:,}, not {chunk_bytes!r}.")
    return {
        "path": path,
        "name": str(input.get("name") or path.rpartition("/")[2]),
        "options": {name: checked_option(name, input.get(name)) for name in OPTIONS},
        "chunk_bytes": chunk_bytes,
    }


def checked_option(name: str, value: Any) -> Any:
    if value is not None and not OPTIONS[name].accepts(value):
        raise FatalError(f"{name} is {OPTIONS[name].meaning}, not {value!r}.")
    return value


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
    except FileHasChangedError as error:
        raise FileChangedError(str(error)) from None
    except (UnreadableFileError, NotAnImportError) as error:
        raise FatalError(str(error)) from None
    except StepFailed as error:
        for known in (FileChangedError, FatalError):
            if error.error_type == known.__name__:
                raise known(error.error_message) from None
        raise


# --- Progress ---------------------------------------------------------------------------------------------------------


def work(layout: dict[str, Any]) -> float:
    """Returns what the progress of an import counts up to: two readings of the file, and half of one for statistics."""
    return 2.5 * layout["size"]


class Pace:
    """How long the rest will take, by how long the work since this process began with it took."""

    def __init__(self, total: float):
        self._total = total
        self._begin: tuple[float, float] | None = None

    def begin(self, done: float) -> None:
        """Notes how much was done when this process began to work."""
        if self._begin is None:
            self._begin = (time.monotonic(), done)

    def left(self, done: float) -> str:
        """Returns such as ", about 3 minutes left", or nothing as long as that cannot be known."""
        since, before = self._begin or (0.0, done)
        seconds = time.monotonic() - since
        if done <= before or seconds < 2 or done >= self._total:
            return ""
        rest = (self._total - done) * seconds / (done - before)
        amount, unit = (rest / 60, "minute") if rest >= 90 else (rest, "second")
        amount = max(1, round(amount))
        return f", about {amount} {unit}{'' if amount == 1 else 's'} left"


def megabytes(amount: float) -> str:
    return f"{amount / 1e6:,.1f}"


def chunk_size(size: int) -> int:
    """Returns how many bytes one step reads of a file of that size."""
    return min(max(size // CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK)


# --- Reading the file, twice ------------------------------------------------------------------------------------------


@clear_errors()
def preview_step(source: dict[str, Any]) -> dict[str, Any]:
    return preview_file(source["path"], source["options"])


@clear_errors()
def inspect_step(ctx: Context, source: dict[str, Any]) -> dict[str, Any]:
    layout = inspect_file(source["path"], **source["options"])
    ctx.log.info(
        f"{source['name']}: {layout['size']:,} bytes of {layout['encoding']}, "
        f"{len(layout['names']):,} columns, delimiter {described(layout)}"
    )
    if layout["above"]:
        ctx.log.warning(f"{len(layout['above']):,} lines above the table are no part of it", lines=layout["above"][:5])
    if not layout["is_certain"]:
        ctx.log.warning(f"The encoding is a guess: {layout['encoding']}")
    ctx.progress(0, work(layout), "Looking at the file")
    return layout


async def scan(
    ctx: Context, layout: dict[str, Any], size: int, pace: Pace
) -> tuple[list[dict[str, int]], int, list[int]]:
    """Reads the whole file to learn what every column holds.

    Returns the counts of kinds of every column, the number of rows, and the checksums of the chunks.
    """
    position = layout["start"]
    columns: list[dict[str, int]] = [{} for _ in layout["names"]]
    rows, bad, unreadable, first_unreadable = 0, 0, 0, None
    checksums: list[int] = []
    most_rows = layout["size"]
    while position["offset"] < layout["size"]:
        name = f"scan {len(checksums) + 1}"
        known = text_columns(columns, most_rows)
        found = await ctx.step(name, scan_step, ctx, layout, position, size, known, rows, pace)
        position = found["position"]
        checksums.append(found["checksum"])
        columns = merge_kinds(columns, found["columns"])
        rows += found["rows"]
        bad += found["bad"]
        unreadable += found["unreadable"]
        first_unreadable = first_unreadable or found["first_unreadable"]
        share = (position["offset"] - layout["start"]["offset"]) / (layout["size"] - layout["start"]["offset"])
        refuse_wrong_encoding(layout, (rows + bad) / share, unreadable, first_unreadable)
        most_rows = round(MARGIN * (rows + bad) / share)
    return columns, rows, checksums


@clear_errors()
def scan_step(
    ctx: Context,
    layout: dict[str, Any],
    position: dict[str, int],
    size: int,
    known_text: list[int],
    rows: int,
    pace: Pace,
) -> dict[str, Any]:
    pace.begin(position["offset"])
    found = scan_chunk(layout, position, size, frozenset(known_text))
    done = found["position"]["offset"]
    lines = f"lines {position['line']:,} to {found['position']['line'] - 1:,}"
    ctx.log.debug(f"Looked at {lines}: {found['rows']:,} rows, {found['bad']:,} bad")
    read = f"{megabytes(done)} of {megabytes(layout['size'])} MB, {rows + found['rows']:,} rows"
    ctx.progress(done, work(layout), f"Finding out the types of the columns: {read}{pace.left(done)}")
    return found


def create_step(
    connection: sqlite3.Connection, ctx: Context, table: str, name: str, layout: dict[str, Any], columns: list[Column]
) -> None:
    create_tables(connection, table, name, layout, columns)
    found = [f"{name[:60]}: {column.type}" for name, column in zip(layout["names"], columns, strict=True)]
    more = f" and {len(found) - 20:,} more" if len(found) > 20 else ""
    ctx.log.info(f"Types found: {', '.join(found[:20])}{more}")


async def insert(
    ctx: Context,
    layout: dict[str, Any],
    columns: list[Column],
    table: str,
    size: int,
    checksums: list[int],
    pace: Pace,
) -> tuple[dict[str, int], Counter[int], list[dict[str, Any]]]:
    """Reads the whole file again and inserts its rows, each chunk in one transaction with its checkpoint.

    Returns {rows, bad_rows, short_rows, odd_cells}, the number of odd cells by column, and the first odd cells.
    """
    position = layout["start"]
    counts = {"rows": 0, "bad_rows": 0, "short_rows": 0, "odd_cells": 0}
    odd: Counter[int] = Counter()
    odd_cells: list[dict[str, Any]] = []
    for number, checksum in enumerate(checksums, start=1):
        inserted = await ctx.transaction(
            f"rows {number}", insert_step, ctx, layout, columns, table, position, size, checksum, counts, pace
        )
        position = inserted["position"]
        counts = {key: counts[key] + inserted[key] for key in counts}
        odd.update({int(index): count for index, count in inserted["odd"].items()})
        odd_cells += inserted["first_odd"]
    return counts, odd, odd_cells[:LOGGED]


@clear_errors()
def insert_step(
    connection: sqlite3.Connection,
    ctx: Context,
    layout: dict[str, Any],
    columns: list[Column],
    table: str,
    position: dict[str, int],
    size: int,
    checksum: int,
    counts: dict[str, int],
    pace: Pace,
) -> dict[str, Any]:
    pace.begin(layout["size"] + position["offset"])
    typed = typed_chunk(layout, columns, position, size, checksum)
    insert_rows(connection, table, typed.rows, typed.bad)
    for row in typed.bad[: max(0, LOGGED - counts["bad_rows"])]:
        ctx.log.warning(f"Line {row.line:,} is put aside: {row.reason}", line=row.line, kind=row.kind)
    first_odd = typed.odd[: max(0, LOGGED - counts["odd_cells"])]
    names = layout["names"]
    for line, index, text in first_odd:
        ctx.log.warning(
            f"Line {line:,}: {reason_of(text, names[index], columns[index])}; it is kept as text", line=line
        )
    for line, fields in typed.short[: max(0, LOGGED - counts["short_rows"])]:
        ctx.log.warning(f"Line {line:,} has {fields:,} fields of {len(names):,}; the others are empty", line=line)
    following, done = typed.position, layout["size"] + typed.position["offset"]
    lines = f"lines {position['line']:,} to {following['line'] - 1:,}"
    ctx.log.info(f"{len(typed.rows):,} rows inserted from {lines}", rows=len(typed.rows), bad_rows=len(typed.bad))
    inserted = f"{megabytes(following['offset'])} of {megabytes(layout['size'])} MB"
    rows = f"{counts['rows'] + len(typed.rows):,} rows inserted"
    ctx.progress(done, work(layout), f"{rows}, {inserted}{pace.left(done)}")
    return {
        "position": following,
        "rows": len(typed.rows),
        "bad_rows": len(typed.bad),
        "short_rows": len(typed.short),
        "odd_cells": len(typed.odd),
        "odd": {str(index): count for index, count in Counter(index for _, index, _ in typed.odd).items()},
        "first_odd": [{"line": line, "column": names[index], "text": text[:300]} for line, index, text in first_odd],
    }


# --- The result -------------------------------------------------------------------------------------------------------


async def summarise(
    ctx: Context,
    layout: dict[str, Any],
    columns: list[Column],
    table: str,
    rows: int,
    odd: Counter[int],
    pace: Pace,
) -> list[dict[str, Any]]:
    """Computes the statistics of all columns, a few of them in each step."""
    described = [
        (name, column.type, odd[index])
        for index, (name, column) in enumerate(zip(layout["names"], columns, strict=True))
    ]
    together = max(1, CELLS_PER_SUMMARY // max(rows, 1))
    summaries: list[dict[str, Any]] = []
    for number, first in enumerate(range(0, len(described), together), start=1):
        some = described[first : first + together]
        detailed = DETAILED_COLUMNS - first
        shares = (first / len(described), (first + len(some)) / len(described))
        summaries += await ctx.transaction(
            f"summary {number}", summary_step, ctx, layout, table, some, detailed, shares, rows, pace
        )
    return summaries


def summary_step(
    connection: sqlite3.Connection,
    ctx: Context,
    layout: dict[str, Any],
    table: str,
    columns: list[tuple[str, str, int]],
    detailed: int,
    shares: tuple[float, float],
    rows: int,
    pace: Pace,
) -> list[dict[str, Any]]:
    before, after = ((2 + share / 2) * layout["size"] for share in shares)
    pace.begin(before)
    named = ", ".join(name[:60] for name, _, _ in columns[:20])
    ctx.log.info(f"Computing the statistics of {named}")
    summaries = [
        summarise_column(connection, table, name, type_name, index < detailed, odd)
        for index, (name, type_name, odd) in enumerate(columns)
    ]
    ctx.progress(after, work(layout), f"Statistics of {named}: {rows:,} rows{pace.left(after)}")
    return summaries


def missing_words(kinds: dict[str, int]) -> dict[str, int]:
    """Returns the words for a missing value that a column has, the most frequent ones, with how often it has them."""
    words = {name.partition(":")[2]: count for name, count in kinds.items() if name.startswith("missing:")}
    return dict(sorted(words.items(), key=lambda item: -item[1])[:MISSING_WORDS_SHOWN])


def finish_step(
    connection: sqlite3.Connection,
    ctx: Context,
    layout: dict[str, Any],
    table: str,
    columns: list[Column],
    counts: dict[str, int],
) -> dict[str, Any]:
    samples = complete_import(connection, table, columns)
    message = f"{counts['rows']:,} rows imported, {counts['bad_rows']:,} put aside"
    ctx.log.info(message)
    ctx.progress(work(layout), work(layout), message)
    return samples


@clear_errors()
def mend_step(connection: sqlite3.Connection, ctx: Context, table: str, line: int, text: str) -> dict[str, Any]:
    mended = mend_record(connection, table, line, text)
    if mended["is_mended"]:
        ctx.log.info(f"Line {line:,} is imported after all")
    return mended


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
