"""Reads delimited text of any size in chunks of records.

Pure functions from bytes to rows of text, which know nothing of jobs, steps, types or tables. A chunk is all the
records that *begin* within a range of bytes; a record may end beyond it. Two readings of the same file with the same
chunk size therefore see the same chunks.

A record that cannot be used is never dropped and never ends the reading: it becomes a `BadRow` with its line number,
the reason and the raw text. Broken quoting costs exactly one line, because reading goes on at the very next one.

    >>> layout = inspect_file("birdstrikes.csv", "utf-8")
    >>> chunk = read_layout(layout, layout["start"], 65536)
    >>> chunk.lines[0], chunk.rows[0][1], chunk.position["line"]
    (2, 'T-38A', 540)

Layouts and positions are plain JSON values, so that they can be results and arguments of steps.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

DELIMITERS = (",", ";", "\t", "|")
ENCODINGS = {"utf-8": "utf-8", "cp1252": "windows-1252", "iso8859-1": "iso-8859-1"}
HEAD_BYTES = 256 * 1024
LOOKAHEAD_BYTES = 256 * 1024
#: A record that is longer than this (in characters) is a bad row; it bounds the memory that one record can take.
MAXIMUM_RECORD = 16 * 1024 * 1024
#: SQLite's default limit is 2,000 columns in a table; one is the line number.
MAXIMUM_COLUMNS = 1999
MAXIMUM_NAME = 200

SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook (.xlsx): open it in a spreadsheet and save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls): open it in a spreadsheet and save it as CSV UTF-8"),
    (b"\xff\xfe", "UTF-16 text: save it again as CSV UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it again as CSV UTF-8"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"%PDF-", "a PDF document: export the table as CSV"),
    (b"PAR1", "a Parquet file: export it as CSV"),
    (b"SQLite format 3\0", "an SQLite database: export a table of it as CSV"),
)


class UnreadableFileError(ValueError):
    """The file as a whole cannot be imported; the message says what it is and what to do about it."""


@dataclass(frozen=True)
class Dialect:
    """How the text of a file is written down: its encoding, the field delimiter, and what ends a line."""

    encoding: str
    delimiter: str
    newline: str


@dataclass(frozen=True)
class BadRow:
    """A record that was put aside. `line` is where it begins, counted from 1.

    `kind` is one of encoding, quoting, fields, value; `reason` is a sentence for people.
    """

    line: int
    kind: str
    reason: str
    raw: str


@dataclass
class Chunk:
    """The records that begin in one range of bytes, as three parallel lists, and where the next chunk begins."""

    lines: list[int] = field(default_factory=list)
    raws: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    offset: int = 0
    line: int = 1

    @property
    def position(self) -> dict[str, int]:
        return {"offset": self.offset, "line": self.line}


class BrokenQuotingError(ValueError):
    """A quote stands where none may stand. The message is the reason that is shown."""


# --- Looking at a file ------------------------------------------------------------------------------------------------


def inspect_file(path: str, encoding: str = "utf-8") -> dict[str, Any]:
    """Returns the layout of a file: what is needed to read it, as JSON values.

    Keys: path, size (bytes), encoding, delimiter, newline, names (unique column names), and start (the position of the
    first record after the header). Raises `UnreadableFileError` when it is empty, is not text, or has no usable header.
    """
    encoding = known_encoding(encoding)
    size = file_size(path)
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        refuse_what_is_not_text(head)
        start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        newline = find_newline(head)
        declared = declared_delimiter(head[start:])
        if declared:
            delimiter, begin, line = declared[0], start + declared[1], 2
        else:
            delimiter, begin, line = find_delimiter(head[start:], len(head) == size, encoding, newline), start, 1
        dialect = Dialect(encoding, delimiter, newline)
        header = read_header(file, dialect, begin, line)
    names = column_names(header.rows[0])
    return {
        "path": path,
        "size": size,
        "encoding": encoding,
        "delimiter": delimiter,
        "newline": newline,
        "names": names,
        "start": header.position,
    }


def known_encoding(name: str) -> str:
    """Returns the usual name of one of the encodings that can be read, whatever its spelling."""
    try:
        return ENCODINGS[codecs.lookup(str(name).replace("-sig", "")).name]
    except (LookupError, ValueError):
        choices = ", ".join(ENCODINGS.values())
        raise UnreadableFileError(
            f"The encoding {name!r} is not one that can be read; choose one of {choices}."
        ) from None


def encoding_advice(encoding: str) -> str:
    others = " or ".join(name for name in ENCODINGS.values() if name != encoding)
    return f"Choose another encoding ({others}) and import it again."


def file_size(path: str) -> int:
    """Returns the size of a file in bytes, which is never 0."""
    try:
        size = Path(path).stat().st_size
    except OSError:
        raise UnreadableFileError(f"The file {Path(path).name} is not there any more; choose it again.") from None
    if size == 0:
        raise UnreadableFileError("The file is empty (0 bytes).")
    return size


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
    beginning = head[:4096]
    zeros = beginning.count(b"\0")
    if zeros * 3 > len(beginning):
        raise UnreadableFileError("This looks like UTF-16 text without a byte order mark: save it again as CSV UTF-8.")
    if zeros:
        raise UnreadableFileError("This is a binary file, not text: it has NUL bytes. Export the table as CSV UTF-8.")


def find_newline(head: bytes) -> str:
    """Returns what ends a line outside of quotes: a line feed, or the carriage return of the first Macintoshes."""
    first = re.search(rb"\r\n?|\n", re.sub(rb'"[^"]*"', b"", head))
    return "\r" if first and first[0] == b"\r" else "\n"


def declared_delimiter(head: bytes) -> tuple[str, int] | None:
    """Returns the delimiter of a first line like `sep=;` (which Excel understands), and the length of that line."""
    match = re.match(rb'"?sep=([,;\t|])"?(?:\r\n|\n|\r)', head, re.IGNORECASE)
    return (match[1].decode("ascii"), match.end()) if match else None


def find_delimiter(head: bytes, whole: bool, encoding: str, newline: str) -> str:
    """Returns the delimiter with which the most records of the head have as many fields as the header."""
    end = len(head) if whole else head.rfind(newline.encode()) + 1 or len(head)
    return max(DELIMITERS, key=lambda delimiter: consistency(head[:end], Dialect(encoding, delimiter, newline)))


def consistency(head: bytes, dialect: Dialect) -> tuple[bool, float, int]:
    """Returns a score to compare delimiters: whether the header is split, the share of records that fit it, fields."""
    file = io.BytesIO(head)
    try:
        header = read_header(file, dialect, 0, 1)
    except UnreadableFileError:
        return False, 0.0, 0
    fields = len(header.rows[0])
    chunk = read_chunk(file, dialect, header.position, len(head), fields)
    records = len(chunk.rows) + len(chunk.bad)
    return fields > 1, len(chunk.rows) / records if records else 1.0, fields


def read_header(file: BinaryIO, dialect: Dialect, offset: int, line: int) -> Chunk:
    """Reads the first record that is not a blank line. Raises `UnreadableFileError` when there is no good one."""
    position = {"offset": offset, "line": line}
    while True:
        chunk = read_chunk(file, dialect, position, 1)
        if chunk.bad:
            bad = chunk.bad[0]
            advice = f" {encoding_advice(dialect.encoding)}" if bad.kind == "encoding" else ""
            raise UnreadableFileError(f"The header in line {bad.line} cannot be read: {bad.reason}.{advice}")
        if chunk.rows:
            return chunk
        if chunk.offset == position["offset"]:
            raise UnreadableFileError("The file has no header: it holds nothing but blank lines.")
        position = chunk.position


def column_names(header: Sequence[str]) -> list[str]:
    """Returns a unique name for every column, as SQLite compares names: without regard to case."""
    if len(header) > MAXIMUM_COLUMNS:
        raise UnreadableFileError(
            f"The header has {len(header):,} columns, but an SQLite table holds at most {MAXIMUM_COLUMNS:,} of them. "
            "Leave out columns, or split the file by columns."
        )
    taken = {"source_line"}
    names = []
    following: Counter[str] = Counter()
    for number, text in enumerate(header, start=1):
        base = text.strip()[:MAXIMUM_NAME] or f"column_{number}"
        name = base
        while name.lower() in taken:
            following[base.lower()] += 1
            name = f"{base}_{following[base.lower()] + 1}"
        taken.add(name.lower())
        names.append(name)
    return names


# --- Reading records --------------------------------------------------------------------------------------------------


class Lines:
    """The physical lines of a file from an offset on, read in blocks that end with a line.

    `texts` are the lines without their line feed, and `suspicious` tells that some line may hold bytes that do not
    decode (as lone surrogates, see PEP 383) or NUL characters.
    """

    def __init__(self, file: BinaryIO, dialect: Dialect, offset: int):
        file.seek(offset)
        self._file = file
        self._dialect = dialect
        self.texts: list[str] = []
        self.end = offset
        self.overlong: set[int] = set()
        self.suspicious = False

    def read(self, size: int) -> bool:
        """Appends the lines that begin in the next `size` bytes; returns False at the end of the file."""
        data = self._file.read(size)
        if not data:
            return False
        newline = self._dialect.newline.encode()
        if not data.endswith(newline):
            data += self._rest_of_line(newline)
        self.end = self._file.tell()
        lines = self._decode(data).split(self._dialect.newline)
        if not lines[-1]:
            lines.pop()
        self.texts += lines
        if len(lines[-1]) > MAXIMUM_RECORD:
            self.overlong.add(len(self.texts) - 1)
        return True

    def _rest_of_line(self, newline: bytes) -> bytes:
        """Reads on up to the end of the line. Of a line beyond all measure, the rest is read but not kept."""
        kept = bytearray()
        while block := self._file.read(LOOKAHEAD_BYTES):
            end = block.find(newline) + 1
            if end:
                self._file.seek(end - len(block), os.SEEK_CUR)
                block = block[:end]
            if len(kept) <= 4 * MAXIMUM_RECORD:
                kept += block
            if end:
                break
        return bytes(kept)

    def _decode(self, data: bytes) -> str:
        try:
            text = data.decode(self._dialect.encoding)
        except UnicodeDecodeError:
            self.suspicious = True
            return data.decode(self._dialect.encoding, "surrogateescape")
        self.suspicious = self.suspicious or "\0" in text
        return text

    def closing(self, index: int) -> int | None:
        """Returns the line that closes the quote which is open at the end of line `index`, reading on as necessary.

        Every line before it has an even number of quotes, so that no stretch of lines is searched twice for different
        open quotes: the search is linear, also in a file where every line is broken.
        """
        length = len(self.texts[index])
        while length <= MAXIMUM_RECORD:
            index += 1
            if index == len(self.texts) and not self.read(LOOKAHEAD_BYTES):
                return None
            length += len(self.texts[index]) + 1
            if length <= MAXIMUM_RECORD and self.texts[index].count('"') % 2:
                return index
        return None

    def size(self, first: int, last: int) -> int:
        """Returns the number of bytes of some lines, their line feeds included."""
        encoding = self._dialect.encoding
        return sum(len(text.encode(encoding, "surrogateescape")) + 1 for text in self.texts[first:last])


def read_chunk(
    file: BinaryIO, dialect: Dialect, position: Mapping[str, int], size: int, fields: int | None = None
) -> Chunk:
    """Reads the records that begin in the next `size` bytes. Each good one has `fields` fields, if that is given."""
    lines = Lines(file, dialect, position["offset"])
    lines.read(size)
    end, own, index = lines.end, len(lines.texts), 0
    chunk = Chunk()
    while index < own:
        line = position["line"] + index
        raw = lines.texts[index]
        following = index + 1
        try:
            if index in lines.overlong:
                raise BrokenQuotingError(f"the line is longer than {MAXIMUM_RECORD:,} characters")
            if '"' in raw:
                raw, row, following = quoted_record(lines, index, dialect, fields)
            else:
                raw = raw[:-1] if raw[-1:] == "\r" else raw
                row = raw.split(dialect.delimiter)
        except BrokenQuotingError as error:
            chunk.bad.append(BadRow(line, "quoting", str(error), raw.removesuffix("\r")))
        else:
            if raw:
                keep_record(chunk, line, raw, row, fields, lines.suspicious)
        index = following
    chunk.offset = min(end + lines.size(own, index), lines.end)
    chunk.line = position["line"] + index
    return chunk


def read_layout(layout: Mapping[str, Any], position: Mapping[str, int], size: int) -> Chunk:
    """Reads one chunk of the file that a layout describes. Raises `UnreadableFileError` when it has changed."""
    if file_size(layout["path"]) != layout["size"]:
        raise UnreadableFileError("The file has changed while it was being imported: import it again.")
    dialect = Dialect(layout["encoding"], layout["delimiter"], layout["newline"])
    with open(layout["path"], "rb") as file:
        return read_chunk(file, dialect, position, size, len(layout["names"]))


def quoted_record(lines: Lines, index: int, dialect: Dialect, fields: int | None) -> tuple[str, list[str], int]:
    """Reads a record that has quotes, and may span lines. Returns its raw text, its fields and the following line.

    A record that spans lines is only believed when it has the right number of fields: else its first line has a quote
    that was never meant to swallow the lines below.
    """
    raw = lines.texts[index]
    last = index
    if raw.count('"') % 2:
        closing = lines.closing(index)
        if closing is None:
            raise BrokenQuotingError("a quote is opened and never closed")
        last = closing
        raw = dialect.newline.join(lines.texts[index : last + 1])
    raw = raw[:-1] if raw[-1:] == "\r" else raw
    row = split_quoted(raw, dialect.delimiter)
    if last > index and fields is not None and len(row) != fields:
        raise BrokenQuotingError("a quote is opened and not closed in this record")
    return raw, row, last + 1


def split_quoted(text: str, delimiter: str) -> list[str]:
    """Splits a record by RFC 4180: a field is quoted as a whole or not at all, and a quote inside is doubled."""
    outside, *pieces = text.split('"')
    if outside and outside[-1] != delimiter:
        raise BrokenQuotingError(stray_quote(outside, delimiter))
    row = outside[:-1].split(delimiter) if outside else []
    index = 0
    while index < len(pieces):
        parts = [pieces[index]]
        outside = pieces[index + 1]
        index += 2
        while not outside and index < len(pieces):
            parts.append(pieces[index])
            outside = pieces[index + 1]
            index += 2
        row.append('"'.join(parts))
        if outside and (outside != delimiter or index == len(pieces)):
            row += fields_between(outside, delimiter, index < len(pieces))
    return row


def fields_between(text: str, delimiter: str, more: bool) -> list[str]:
    """Splits what stands between a closing quote and the next opening one (if there are `more`) or the end."""
    if text[0] != delimiter:
        raise BrokenQuotingError(f"after a closing quote comes “{shorten(text, 40)}” instead of the delimiter")
    if not more:
        return text[1:].split(delimiter)
    if text[-1] != delimiter:
        raise BrokenQuotingError(stray_quote(text, delimiter))
    return text[1:-1].split(delimiter)


def stray_quote(text: str, delimiter: str) -> str:
    return f"a quote stands inside the unquoted field that begins with “{shorten(text.rpartition(delimiter)[2], 40)}”"


def keep_record(chunk: Chunk, line: int, raw: str, row: list[str], fields: int | None, suspicious: bool) -> None:
    """Adds a record to the good ones of a chunk, or to the bad ones with the reason."""
    if suspicious and (reason := unreadable_reason(row)):
        chunk.bad.append(BadRow(line, "encoding", reason, raw))
    elif fields is not None and len(row) != fields:
        chunk.bad.append(BadRow(line, "fields", f"{fields:,} fields expected, {len(row):,} found", raw))
    else:
        chunk.lines.append(line)
        chunk.raws.append(raw)
        chunk.rows.append(row)


def unreadable_reason(row: Iterable[str]) -> str | None:
    """Returns why a record is not text (which byte, in which column), or None if it is."""
    for number, value in enumerate(row, start=1):
        match = re.search("[\0\udc80-\udcff]", value)
        if match:
            byte = ord(match[0]) & 0xFF
            meaning = "a NUL byte" if byte == 0 else f"the byte 0x{byte:02X}, which is not text in this encoding,"
            return f"{meaning} stands in column {number}"
    return None


def readable(text: str, limit: int) -> str:
    """Returns text that can be stored and shown: bytes that are not text are escaped, and it is cut at the limit."""
    shown = text[:limit].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    return f"{shown}… ({len(text) - limit:,} more characters)" if len(text) > limit else shown


def shorten(text: str, limit: int) -> str:
    """Returns at most `limit` characters of a text, for use in a sentence."""
    return readable(text[:limit], limit) + ("…" if len(text) > limit else "")
