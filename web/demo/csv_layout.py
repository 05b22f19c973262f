"""Looks at the beginning of a file and guesses how its table is written down: the layout.

A layout is what is needed to read a file, as JSON values:

    {
      "path": "/durable/files/people.csv", "size": 1223329,
      "encoding": "utf-8", "is_certain": True,      # whether the encoding is known, or guessed
      "delimiter": ",", "newline": "\\n", "quote": "\"", "escape": False,
      "decimal": ".", "date_order": "ymd",
      "missing": None,                              # the words for a missing value, or None for the usual ones
      "above": ["Report of May"],                   # lines above the header that are no part of the table
      "has_header": True,
      "header": ["name", "", "name"],               # its texts; None for a column that the header does not name
      "names": ["name", "column_2", "name_2"],      # unique names for the same columns
      "start": {"offset": 24, "line": 3}            # where the first record begins
    }

Each guess can be replaced by what the user knows: see `inspect_file`.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

from csv_encodings import ENCODINGS, byte_order_mark, codec_of, guess_encoding, unit, usual_name
from csv_records import (
    BLANKS,
    NO_DELIMITER,
    BadRow,
    Chunk,
    Dialect,
    UnreadableFileError,
    file_size,
    is_padded,
    read_chunk,
)
from csv_values import LOCAL_DATE

DELIMITERS = (",", ";", "\t", "|")
HEAD_BYTES = 256 * 1024
#: How much of the head is read with each dialect that may be the right one.
TRIAL_BYTES = 48 * 1024
#: How many lines above the header may be no part of the table.
MOST_ABOVE = 30
#: Lines with characters beyond ASCII are looked for in this many blocks of a megabyte, spread over the file.
SAMPLED_BLOCKS = 24
#: SQLite's default limit is 2,000 columns in a table; one is the line number, one the texts beside the values.
MAXIMUM_COLUMNS = 1998
MAXIMUM_NAME = 1000
#: All names of a table together, in characters: they have to fit into one statement.
NAMES_TOGETHER = 200_000

SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook (.xlsx): open it in a spreadsheet and save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls): open it in a spreadsheet and save it as CSV UTF-8"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"%PDF-", "a PDF document: export the table as CSV"),
    (b"PAR1", "a Parquet file: export it as CSV"),
    (b"SQLite format 3\0", "an SQLite database: export a table of it as CSV"),
)


@dataclass(frozen=True)
class Trial:
    """What a dialect makes of the beginning of a file: its records, how many fields most have, and how well it fits."""

    dialect: Dialect
    lines: list[int]
    rows: list[list[str]]
    bad: list[BadRow]
    width: int
    header: int
    worth: float


def inspect_file(
    path: str,
    encoding: str | None = None,
    delimiter: str | None = None,
    quote: str | None = None,
    header: bool | int | None = None,
    decimal: str | None = None,
    date_order: str | None = None,
    missing: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns the layout of a file. What is given is taken as it is, unless a byte order mark says something else.

    `delimiter` is one character, "" for none, or " " for any number of blanks; `quote` is a character or ""; `header`
    is False for a file without one, or the number of its line. Raises `UnreadableFileError` when the file is empty, is
    not text, or has no usable header.
    """
    size = file_size(path)
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        refuse_what_is_not_text(head)
        mark = byte_order_mark(head)
        if encoding and not mark:
            name, is_certain, start = known_encoding(encoding), True, 0
        else:
            guess = guess_encoding(head, sample_beyond_ascii(file, head, size))
            name, is_certain, start = guess.name, guess.is_certain, guess.mark
        head = head[start:]
        declared = declared_delimiter(head, name)
        if declared:
            delimiter, start = delimiter or declared[0], start + declared[1]
            head = head[declared[1] :]
        first_line = 2 if declared else 1
        best = best_trial(head, len(head) + start == size, name, first_line, delimiter, quote, header)
        found = find_header(file, best, start, first_line, header)
    return {
        "path": path,
        "size": size,
        "encoding": name,
        "is_certain": is_certain,
        "delimiter": best.dialect.delimiter,
        "newline": best.dialect.newline,
        "quote": best.dialect.quote,
        "escape": best.dialect.escape,
        "decimal": decimal or find_decimal_mark(best),
        "date_order": date_order or find_date_order(best),
        "missing": None if missing is None else list(missing),
        **found,
    }


def known_encoding(name: str) -> str:
    """Returns the usual name of one of the encodings that can be read, whatever its spelling."""
    known = usual_name(name)
    if known is None:
        choices = ", ".join(ENCODINGS.values())
        raise UnreadableFileError(f"The encoding {name!r} is not one that can be read; choose one of {choices}.")
    return known


def refuse_what_is_not_text(head: bytes) -> None:
    """Raises `UnreadableFileError` for what people mistake for a CSV file, saying what it is."""
    for signature, meaning in SIGNATURES:
        if head.startswith(signature):
            raise UnreadableFileError(f"This is not a CSV file but {meaning}.")
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise UnreadableFileError(
            "This is not a CSV file but a web page (HTML): the download went wrong, or needs a login."
        )
    if re.match(rb'\s*(\[\s*)?\{\s*"', head):
        raise UnreadableFileError("This is not a CSV file but JSON: convert it to CSV first.")
    guess = guess_encoding(head)
    controls = re.findall(rb"[\0-\x08\x0e-\x1a\x1c-\x1e]", head[:4096])
    if unit(guess.name) == 1 and len(controls) > 1 and len(controls) * 20 > len(head[:4096]):
        raise UnreadableFileError(
            "This is a binary file, not text: it has NUL bytes or other control characters. "
            "Export the table as CSV UTF-8."
        )


def sample_beyond_ascii(file: BinaryIO, head: bytes, size: int) -> bytes:
    """Returns lines from all over the file that have bytes beyond ASCII, up to the size of the head."""
    block_bytes = 1024 * 1024
    blocks = -(-size // block_bytes)
    sample = bytearray()
    for number in range(min(blocks, SAMPLED_BLOCKS)):
        file.seek(number * blocks // min(blocks, SAMPLED_BLOCKS) * block_bytes)
        block = file.read(block_bytes)
        if not block.isascii():
            lines = block.split(b"\n")[1 if number else 0 : -1]
            sample += b"\n".join(line for line in lines if not line.isascii())[:HEAD_BYTES] + b"\n"
        if len(sample) >= HEAD_BYTES:
            break
    return bytes(sample)


def declared_delimiter(head: bytes, encoding: str) -> tuple[str, int] | None:
    """Returns the delimiter of a first line like `sep=;` (Excel understands it), and how many bytes that line has."""
    text = head[:64].decode(codec_of(encoding), "replace")
    match = re.match(r'"?sep=([^\r\n"])"?(?:\r\n|\n|\r)', text, re.IGNORECASE)
    return (match[1], len(match[0].encode(codec_of(encoding)))) if match else None


# --- Trials -----------------------------------------------------------------------------------------------------------


def best_trial(
    head: bytes,
    is_whole: bool,
    encoding: str,
    first_line: int,
    delimiter: str | None,
    quote: str | None,
    header: bool | int | None,
) -> Trial:
    """Returns what the dialect that fits best makes of the head of a file."""
    head = head[:TRIAL_BYTES] if len(head) > TRIAL_BYTES else head
    is_whole = is_whole and len(head) < TRIAL_BYTES
    text = head[: len(head) // unit(encoding) * unit(encoding)].decode(codec_of(encoding), "replace")
    if not is_whole:
        end = max(text.rfind("\n"), text.rfind("\r")) + 1
        head = head[: len(text[:end].encode(codec_of(encoding), "replace"))] if end and unit(encoding) == 2 else head
        head = head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1] or head if unit(encoding) == 1 else head
    trials = [try_dialect(head, dialect, first_line, header) for dialect in dialects(text, encoding, delimiter, quote)]
    return max(trials, key=lambda trial: trial.worth)


def dialects(text: str, encoding: str, delimiter: str | None, quote: str | None) -> Iterator[Dialect]:
    """Returns the dialects that a text may be in, the likelier ones first."""
    delimiters = [*DELIMITERS, BLANKS, NO_DELIMITER] if delimiter is None else [delimiter or NO_DELIMITER]
    quotes = ['"'] if quote is None else [quote]
    if quote is None and '"' not in text and re.search(r"(?:^|[,;\t|])'[^'\r\n]*'(?:[,;\t|]|$)", text, re.MULTILINE):
        quotes = ['"', "'"]
    for newline in newlines(text):
        for mark in quotes:
            escapes = [False, True] if mark and f"\\{mark}" in text else [False]
            for escape in escapes:
                yield from (Dialect(encoding, one, newline, mark, escape) for one in delimiters)


def newlines(text: str) -> list[str]:
    """Returns what may end a line: line feeds, where there are any, and carriage returns that stand alone."""
    outside = re.sub(r'"[^"]*"', "", text)
    if not re.search(r"\r(?!\r*\n)", outside):
        return ["\n"]
    return ["\n", ""] if "\n" in outside else ["\r"]


def try_dialect(head: bytes, dialect: Dialect, first_line: int, header: bool | int | None) -> Trial:
    chunk = read_chunk(io.BytesIO(head), dialect, {"offset": 0, "line": first_line}, len(head))
    rows, lines = chunk.rows, chunk.lines
    if not rows:
        return Trial(dialect, lines, rows, chunk.bad, 1, 0, -1.0 - len(chunk.bad))
    width = usual_width(rows)
    index = 0
    if not isinstance(header, int) or header is True:
        index = header_index(rows, lines, width, dialect.delimiter == BLANKS)
    if isinstance(header, int) and not isinstance(header, bool):
        index = next((index for index, line in enumerate(lines) if line >= header), 0)
    return Trial(dialect, lines, rows, chunk.bad, width, index, worth_of(rows[index:], len(chunk.bad), width, dialect))


def usual_width(rows: Sequence[Sequence[str]]) -> int:
    """Returns how many fields most records have; of several numbers that are equally frequent, that of the header."""
    counts = Counter(len(row) for row in rows)
    most = max(counts.values())
    return next(len(row) for row in rows if counts[len(row)] == most)


_TYPED = re.compile(
    r"\s*(?:[-+]?(?:[0-9]+(?:[.,][0-9]+)*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[%€$]?"
    r"|[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}(?:[T ][0-9:.,]+(?:Z|[+-][0-9:]+)?)?|[0-9]{1,2}:[0-9]{2}(?::[0-9.]+)?"
    r"|true|false|n/?a|null|nan)\s*",
    re.IGNORECASE | re.ASCII,
)


def worth_of(rows: Sequence[Sequence[str]], bad: int, width: int, dialect: Dialect) -> float:
    """Returns how well a dialect fits: the share of records with the usual number of fields, and of typed cells."""
    fitting = sum(
        1.0 if len(row) == width else 0.8 if is_padded(row, width) or 1 < len(row) < width else 0.0 for row in rows
    ) / (len(rows) + bad)
    cells = [cell for row in rows[1:200] for cell in row if cell]
    typed = sum(map(bool, map(_TYPED.fullmatch, cells))) / len(cells) if cells else 0.0
    odd = sum("\r" in cell or (dialect.escape is False and '\\"' in cell) for cell in cells) / max(1, len(cells))
    if dialect.quote != "'":
        odd += sum(len(cell) > 1 and cell[0] == cell[-1] == "'" for cell in cells) / max(1, len(cells)) / 4
    worth = 0.3 * typed - 0.5 * odd
    if width == 1:
        if re.search(r'\w"?[,;\t|]"?\w', rows[0][0]):
            worth -= 0.6
        return worth + (0.75 if dialect.delimiter == NO_DELIMITER else 0.7 - 0.5 * (1 - fitting))
    if len(rows[0]) == 1:
        worth -= 0.3
    if dialect.delimiter == BLANKS:
        return worth + fitting - (0.3 if typed > 0.4 else 0.6)
    return worth + fitting


# --- The header -------------------------------------------------------------------------------------------------------


def header_index(
    rows: Sequence[Sequence[str]], lines: Sequence[int], width: int, is_prose_above_blanks: bool = False
) -> int:
    """Returns which record is the header: the first one that is neither a comment nor a title above the table.

    With `is_prose_above_blanks`, fields are separated by blanks, and any other text above has some number of "fields".
    """
    index = 0
    is_regular = sum(len(row) == width for row in rows) * 5 >= len(rows) * 4
    while index + 1 < min(len(rows), MOST_ABOVE) and (
        is_above(rows, lines, width, index)
        or (is_prose_above_blanks and is_regular and abs(len(rows[index]) - width) > 1)
    ):
        index += 1
    return index


def is_above(rows: Sequence[Sequence[str]], lines: Sequence[int], width: int, index: int) -> bool:
    row, following = rows[index], rows[index + 1]
    filled = [cell for cell in row if cell.strip()]
    if row[0].lstrip()[:1] in ("#", "%") and filled:
        return len(row) != width or following[0].lstrip()[:1] == "#" or not any(map(is_typed, following))
    if width == 1 or len(filled) != 1 or filled[0] != row[0] or is_typed(row[0]):
        return False
    names = [cell for cell in following if cell.strip()]
    after = rows[index + 1 : index + 12]
    if len(names) < 2 or any(map(is_typed, names)) or sum(len(other) == width for other in after) * 2 < len(after):
        return len(names) == 1 and index + 2 < len(rows) and is_above(rows, lines, width, index + 1)
    has_gap = lines[index + 1] > lines[index] + 1
    is_prose = sum(cell[:1] == " " for cell in following[1:]) * 2 > len(following) - 1
    return has_gap or (len(names) > 2 and not is_prose)


def is_typed(cell: str) -> bool:
    return bool(_TYPED.fullmatch(cell))


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Tells whether the first record names the columns: not if it has numbers and dates where all other records do."""
    first, rest = rows[0], rows[1:100]
    typed = [index for index, cell in enumerate(first) if cell.strip() and is_typed(cell)]
    if not typed or is_series([first[index].strip() for index in typed]):
        return True
    for index in range(len(first)):
        others = [row[index] for row in rest if index < len(row) and row[index].strip()]
        if others and all(map(is_typed, others)) and index not in typed and first[index].strip():
            return True
    return False


def is_series(cells: Sequence[str]) -> bool:
    """Tells of the years, months or numbers that columns may be named after: whole numbers at equal distances."""
    if len(cells) < 2 or not all(re.fullmatch(r"[0-9]{1,4}", cell) for cell in cells):
        return False
    steps = {int(following) - int(cell) for cell, following in pairwise(cells)}
    return len(steps) == 1 and min(steps) > 0 and (len(cells) > 2 or len(cells[0]) == 4)


def find_header(
    file: BinaryIO, trial: Trial, offset: int, first_line: int, header: bool | int | None
) -> dict[str, Any]:
    """Returns above, has_header, header, names and start of a layout."""
    if not trial.rows or (trial.bad and trial.bad[0].line < trial.lines[trial.header] and header is None):
        raise_without_header(trial)
    rows, width = trial.rows[trial.header :], trial.width
    named = header is not False and (header is not None or has_header(rows))
    line = trial.lines[trial.header]
    position = position_of(file, trial.dialect, offset, first_line, line)
    above = lines_above(file, trial.dialect, offset, position["offset"])
    if not named:
        width = max(width, 1)
        texts: list[str | None] = [None] * width
        return {"above": above, "has_header": False, "header": texts, "names": column_names(texts), "start": position}
    texts = header_texts(rows, width)
    first = read_chunk(file, trial.dialect, position, 1)
    return {
        "above": above,
        "has_header": True,
        "header": texts,
        "names": column_names(texts),
        "start": first.position,
    }


def header_texts(rows: Sequence[Sequence[str]], width: int) -> list[str | None]:
    """Returns the header's texts, with None for each column that it does not name: the names of R's rows come first."""
    texts: list[str | None] = list(rows[0])
    like = [row for row in rows[1:] if len(row) == width]
    if width > len(texts) and len(like) * 5 >= len(rows[1:]) * 4:
        if all(is_padded(row, len(texts)) for row in like):
            return texts
        if width == len(texts) + 1 and len(texts) > 1:
            return [None, *texts]
        return texts + [None] * (width - len(texts))
    if width == len(texts) - 1 and not texts[-1] and width > 1:
        return texts[:-1]
    return texts


def raise_without_header(trial: Trial) -> None:
    if trial.bad:
        bad = trial.bad[0]
        advice = " Choose another encoding and import it again." if bad.kind == "encoding" else ""
        raise UnreadableFileError(f"The header in line {bad.line} cannot be read: {bad.reason}.{advice}")
    raise UnreadableFileError("The file has no header: it holds nothing but blank lines.")


def position_of(file: BinaryIO, dialect: Dialect, offset: int, first_line: int, line: int) -> dict[str, int]:
    """Returns the position of a line that a record begins with."""
    position = {"offset": offset, "line": first_line}
    while position["line"] < line:
        chunk: Chunk = read_chunk(file, dialect, position, 1)
        position = chunk.position
    return position


def lines_above(file: BinaryIO, dialect: Dialect, offset: int, end: int) -> list[str]:
    file.seek(offset)
    text = file.read(end - offset).decode(codec_of(dialect.encoding), "replace")
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def column_names(header: Sequence[str | None]) -> list[str]:
    """Returns a unique name for every column, as SQLite compares names: without regard to case."""
    if len(header) > MAXIMUM_COLUMNS:
        raise UnreadableFileError(
            f"The header has {len(header):,} columns, but an SQLite table holds at most {MAXIMUM_COLUMNS:,} of them. "
            "Leave out columns, or split the file by columns."
        )
    limit = min(MAXIMUM_NAME, NAMES_TOGETHER // max(1, len(header)))
    taken = {"source_line", "source_text"}
    names = []
    following: Counter[str] = Counter()
    for number, text in enumerate(header, start=1):
        base = (text or "").strip().replace("\0", " ")[:limit] or f"column_{number}"
        name = base
        while name.lower() in taken:
            following[base.lower()] += 1
            name = f"{base}_{following[base.lower()] + 1}"
        taken.add(name.lower())
        names.append(name)
    return names


# --- Numbers ----------------------------------------------------------------------------------------------------------


def find_decimal_mark(trial: Trial) -> str:
    """Returns a comma when the cells have decimals with commas and none with points, else a point."""
    cells = [cell.strip() for row in trial.rows[trial.header + 1 : trial.header + 1000] for cell in row]
    commas = sum(bool(re.fullmatch(r"-?[0-9]+,[0-9]+", cell, re.ASCII)) for cell in cells)
    points = sum(bool(re.fullmatch(r"-?[0-9]+\.[0-9]+", cell, re.ASCII)) for cell in cells)
    return "," if commas > points else "."


def find_date_order(trial: Trial) -> str:
    """Returns "dmy" or "mdy" where dates as in 31/01/2026 say so, else "ymd": then such dates are text."""
    orders = Counter()
    for row in trial.rows[trial.header + 1 : trial.header + 1000]:
        for match in filter(None, map(LOCAL_DATE.fullmatch, map(str.strip, row))):
            first, mark, second = int(match[1]), match[2], int(match[3])
            orders["dmy" if first > 12 or mark == "." else "mdy" if second > 12 else "ymd"] += 1
    return max(("dmy", "mdy"), key=orders.__getitem__) if orders["dmy"] != orders["mdy"] else "ymd"


def described(layout: Mapping[str, Any]) -> str:
    """Returns the delimiter of a layout in words."""
    names = {"\t": "tab", BLANKS: "blanks", NO_DELIMITER: "none"}
    return names.get(layout["delimiter"], layout["delimiter"])
