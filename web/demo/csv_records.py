"""Reads delimited text of any size in chunks of records.

Pure functions from bytes to rows of text, which know nothing of jobs, steps, types or tables. A chunk is all the
records that *begin* within a range of bytes; a record may end beyond it. Two readings of the same file with the same
chunk size therefore see the same chunks.

A record that cannot be used is never dropped and never ends the reading: it becomes a `BadRow` with its line number,
the reason and the raw text. Broken quoting costs exactly one line, because reading goes on at the very next one.

Records are read leniently, as people's programs write them: a quote inside an unquoted field is a character, blanks
around a quoted field do not count, a record may lack fields at its end or have empty ones too many. The fast reading is
Python's `csv` module in its strict mode; a record that it refuses or splits wrongly is read by `split_quoted`.

    >>> layout = inspect_file("birdstrikes.csv")
    >>> chunk = read_layout(layout, layout["start"], 65536)
    >>> chunk.lines[0], chunk.rows[0][1], chunk.position["line"]
    (2, 'T-38A', 540)

Positions are plain JSON values, so that they can be results and arguments of steps.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from csv_encodings import codec_of, unit

LOOKAHEAD_BYTES = 256 * 1024
#: A record that is longer than this (in characters) is a bad row; it bounds the memory that one record can take.
MAXIMUM_RECORD = 16 * 1024 * 1024
#: How many characters of records over several lines may be tried in vain in one chunk, before only short ones are.
MOST_WASTED = 64 * 1024 * 1024
SHORT_RECORD = 64 * 1024
#: Stands for the delimiter of a file with a single column: the "unit separator", which no text has.
NO_DELIMITER = "\x1f"
#: Fields are separated by any number of blanks.
BLANKS = " "

csv.field_size_limit(MAXIMUM_RECORD)


class UnreadableFileError(ValueError):
    """The file as a whole cannot be imported; the message says what it is and what to do about it."""


class FileHasChangedError(UnreadableFileError):
    """The file is not the one any more that was looked at first."""


class BrokenQuotingError(ValueError):
    """A quote stands where none may stand. The message is the reason that is shown."""


@dataclass(frozen=True)
class Dialect:
    """How the text of a file is written down.

    `newline` is what ends a line: a line feed (with any carriage returns before it), a carriage return, or, if it is
    empty, any of them. `quote` is empty where no field is quoted. With `escape`, a quoted field has `\\"` for a quote.
    """

    encoding: str
    delimiter: str
    newline: str
    quote: str = '"'
    escape: bool = False


@dataclass(frozen=True)
class BadRow:
    """A record that was put aside. `line` is where it begins, counted from 1.

    `kind` is one of encoding, quoting, fields; `reason` is a sentence for people.
    """

    line: int
    kind: str
    reason: str
    raw: str


@dataclass
class Chunk:
    """The records that begin in one range of bytes, as two parallel lists, and where the next chunk begins.

    `short` has the lines whose record lacked fields at its end, each with how many it had; `checksum` is the CRC-32 of
    the range of bytes.
    """

    lines: list[int] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    short: list[tuple[int, int]] = field(default_factory=list)
    offset: int = 0
    line: int = 1
    checksum: int = 0

    @property
    def position(self) -> dict[str, int]:
        return {"offset": self.offset, "line": self.line}


def file_size(path: str) -> int:
    """Returns the size of a file in bytes, which is never 0."""
    try:
        size = Path(path).stat().st_size
    except OSError:
        raise FileHasChangedError(f"The file {Path(path).name} is not there any more; choose it again.") from None
    if size == 0:
        raise UnreadableFileError("The file is empty (0 bytes).")
    return size


def dialect_of(layout: Mapping[str, Any]) -> Dialect:
    """Returns the dialect that a layout describes."""
    return Dialect(*(layout[name] for name in ("encoding", "delimiter", "newline", "quote", "escape")))


def read_layout(
    layout: Mapping[str, Any], position: Mapping[str, int], size: int, checksum: int | None = None
) -> Chunk:
    """Reads one chunk of the file that a layout describes.

    Raises `FileHasChangedError` when the file has another size than at first, or the chunk another checksum.
    """
    if file_size(layout["path"]) != layout["size"]:
        raise FileHasChangedError(
            "The file was changed while it was being imported: it has another size than before. Import it again."
        )
    with open(layout["path"], "rb") as file:
        chunk = read_chunk(file, dialect_of(layout), position, size, len(layout["names"]))
    if checksum is not None and chunk.checksum != checksum:
        raise FileHasChangedError(
            f"The file was changed while it was being imported: from line {position['line']:,} on it has another text "
            "than before. Import it again."
        )
    return chunk


# --- Lines ------------------------------------------------------------------------------------------------------------


class Lines:
    """The physical lines of a file from an offset on, with their ends, read in blocks that end with a line.

    `suspicious` tells that some line may hold bytes that do not decode, which are lone surrogates then (see PEP 383).
    """

    def __init__(self, file: BinaryIO, dialect: Dialect, offset: int):
        file.seek(offset)
        self._file = file
        self._dialect = dialect
        self._codec = codec_of(dialect.encoding)
        self._unit = unit(dialect.encoding)
        self._ahead: list[tuple[int, int, bytes]] = []
        self._closing_known = (0, -1, None)
        self._wasted = 0
        self.texts: list[str] = []
        self.end = offset
        self.checksum = 0
        self.overlong: set[int] = set()
        self.suspicious = False

    def read(self, size: int) -> bool:
        """Appends the lines that begin in the next `size` bytes; returns False at the end of the file."""
        begin = self.end
        data = self._file.read(size + -size % self._unit)
        if not data:
            return False
        data += self._rest_of_line(data)
        self.end = self._file.tell()
        self.checksum = zlib.crc32(data)
        lines = self._split(self._decode(data))
        self._ahead.append((len(self.texts), begin, data))
        self.texts += lines
        if len(lines[-1]) > MAXIMUM_RECORD:
            self.overlong.add(len(self.texts) - 1)
        return True

    def _rest_of_line(self, data: bytes) -> bytes:
        """Reads on up to the end of the line. Of a line beyond all measure, the rest is read but not kept."""
        if data.endswith((self._dialect.newline or "\n").encode(self._codec)) and len(data) % self._unit == 0:
            return b""
        kept = bytearray()
        while block := self._file.read(LOOKAHEAD_BYTES):
            end = self._find_end(block)
            if end:
                self._file.seek(end - len(block), os.SEEK_CUR)
                block = block[:end]
            if len(kept) <= 4 * MAXIMUM_RECORD:
                kept += block
            if end:
                break
        return bytes(kept)

    def _find_end(self, block: bytes) -> int:
        """Returns where the first line of a block ends, or 0."""
        if not self._dialect.newline and self._unit == 1:
            match = re.search(rb"\r*\n|\r+(?=[^\r\n])", block)
            return match.end() if match else 0
        newline = (self._dialect.newline or "\n").encode(self._codec)
        at = block.find(newline)
        while at % self._unit and at >= 0:
            at = block.find(newline, at + 1)
        return at + len(newline) if at >= 0 else 0

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode(self._codec)
        except UnicodeDecodeError:
            self.suspicious = True
            if self._unit == 2:
                odd = chr(0xDC00 + data[-1]) if len(data) % 2 else ""  # half a character, at the end of the file
                return data[: len(data) // 2 * 2].decode(self._codec, "surrogatepass") + odd
            return data.decode(self._codec, "surrogateescape")

    def _split(self, text: str) -> list[str]:
        if self._dialect.newline == "\n":
            return io.StringIO(text, newline="\n").readlines()
        if self._dialect.newline == "\r":
            lines = [line + "\r" for line in text.split("\r")]
            lines[-1] = lines[-1][:-1]
            return lines if lines[-1] else lines[:-1]
        return re.findall(r"[^\r\n]*(?:\r*\n|\r)|[^\r\n]+", text)

    def offset(self, index: int) -> int:
        """Returns the offset at which line `index` begins."""
        if index == len(self.texts):
            return self.end
        first, begin, data = next(block for block in reversed(self._ahead) if block[0] <= index)
        if self._unit == 2:
            return begin + sum(len(text.encode(self._codec, "surrogatepass")) for text in self.texts[first:index])
        pattern = {"\n": rb"\n", "\r": rb"\r"}.get(self._dialect.newline, rb"\r*\n|\r")
        ends = re.finditer(pattern, data)
        for _ in range(index - first):
            begin_of_next = next(ends).end()
        return begin + (begin_of_next if index > first else 0)

    # Between two lines, of which the first opens a quote, the answer is the same for all lines that stay inside of it.

    def closing(self, index: int) -> int | None:
        """Returns the line that closes the quote which is open at the end of line `index`, reading on as necessary.

        Whether a line that begins inside of quotes ends inside of them depends on nothing but the line. So each line is
        looked at once, and the search is linear, also in a file where every line opens a quote.
        """
        first, last, answer = self._closing_known
        if first <= index + 1 <= last:
            return answer
        closing = re.compile(_patterns(self._dialect).closing)
        length, line = len(self.texts[index]), index
        while length <= MAXIMUM_RECORD:
            line += 1
            if line == len(self.texts) and not self.read(LOOKAHEAD_BYTES):
                self._closing_known = (index + 1, line, None)
                return None
            length += len(self.texts[line])
            if not _ends_inside(self.texts[line].rstrip("\r\n"), self._dialect, closing):
                self._closing_known = (index + 1, line, line)
                return line
        self._closing_known = (index + 1, (index + line) // 2, None)
        return None

    def joined(self, first: int, last: int) -> str | None:
        """Returns some lines as one text, or None when that has been tried in vain too often."""
        text = "".join(self.texts[first : last + 1])
        self._wasted += len(text)
        return None if self._wasted > MOST_WASTED and len(text) > SHORT_RECORD else text

    def believe(self, text: str) -> None:
        """Notes that a joined text was a record."""
        self._wasted -= len(text)


# --- Records ----------------------------------------------------------------------------------------------------------


def read_chunk(
    file: BinaryIO, dialect: Dialect, position: Mapping[str, int], size: int, fields: int | None = None
) -> Chunk:
    """Reads the records that begin in the next `size` bytes. Each good one has `fields` fields, if that is given."""
    lines = Lines(file, dialect, position["offset"])
    lines.read(size)
    reader = Reader(lines, dialect, position["line"], fields)
    chunk = reader.read(len(lines.texts), lines.checksum)
    if lines.suspicious:
        put_unreadable_aside(chunk, dialect)
    return chunk


class Reader:
    """Makes records of lines: as long as all goes well by the `csv` module, and one by one after something odd."""

    def __init__(self, lines: Lines, dialect: Dialect, first_line: int, fields: int | None):
        self._lines = lines
        self._dialect = dialect
        self._first_line = first_line
        self._fields = fields
        self._chunk = Chunk()
        self._blank = re.compile(r"[ \t\r\n]*" if dialect.delimiter != "\t" else r"[ \r\n]*").fullmatch

    def read(self, own: int, checksum: int) -> Chunk:
        """Reads all records that begin in the first `own` lines."""
        chunk, index, patience = self._chunk, 0, 1
        is_simple = self._is_simple(own)
        while index < own:
            if is_simple:
                index = self._read_fast(index, own)
            for _ in range(patience):
                if index < own:
                    index = self._read_one(index)
            patience *= 2
        chunk.offset = self._lines.offset(index)
        chunk.line = self._first_line + index
        chunk.checksum = checksum
        return chunk

    def _is_simple(self, own: int) -> bool:
        """Tells whether the `csv` module reads these lines as `split_quoted` does, as long as it accepts them."""
        dialect = self._dialect
        if dialect.escape or dialect.delimiter == BLANKS or not self._lines.texts or self._lines.overlong:
            return False
        if not dialect.quote:
            return True
        text = "".join(self._lines.texts[:own])
        may_have_blanks = any(f"{blank}{dialect.quote}" in text for blank in " \t")  # a search for the pattern is slow
        return not (may_have_blanks and _patterns(dialect).blank_before_quote.search(text))

    def _read_fast(self, index: int, own: int) -> int:
        """Reads records as long as they are in order; returns the first line that it has not read."""
        chunk, fields = self._chunk, self._fields
        texts = self._lines.texts if index == 0 and own == len(self._lines.texts) else self._lines.texts[index:own]
        quoting = csv.QUOTE_MINIMAL if self._dialect.quote else csv.QUOTE_NONE
        reader = csv.reader(
            texts,
            delimiter=self._dialect.delimiter,
            quotechar=self._dialect.quote or None,
            quoting=quoting,
            strict=True,
        )
        rows: list[list[str]] = []
        try:
            rows.extend(reader)
            is_whole = True
        except csv.Error:
            is_whole = False
        line = self._first_line + index
        if is_whole and len(rows) == len(texts) and {len(row) for row in rows} == {fields}:
            chunk.rows += rows
            chunk.lines += range(line, line + len(rows))
            return own
        return index + self._keep_while_in_order(texts, line, rows)

    def _keep_while_in_order(self, texts: list[str], line: int, rows: list[list[str]]) -> int:
        """Keeps records up to the first one that needs a closer look; returns how many lines they have."""
        chunk, fields, at = self._chunk, self._fields, 0
        for row in rows:
            begin, at = at, self._end_of_record(texts, at, row)
            if not row:
                continue
            if len(row) != fields and (fields is not None or self._blank(texts[begin])):
                return begin
            chunk.rows.append(row)
            chunk.lines.append(line + begin)
        return at

    def _end_of_record(self, texts: list[str], at: int, row: list[str]) -> int:
        """Returns the line after a record: it has as many lines more as there are line ends in its fields."""
        newline = self._dialect.newline
        if not newline:
            return at + 1 + sum(len(re.findall(r"\r*\n|\r", value)) for value in row if "\n" in value or "\r" in value)
        return at + 1 + sum(value.count(newline) for value in row if newline in value)

    def _read_one(self, index: int) -> int:
        """Reads one record, with all that may be wrong with it; returns the following line."""
        line, raw = self._first_line + index, self._lines.texts[index].rstrip("\r\n")
        try:
            raw, row, following = self._record(index, raw)
        except BrokenQuotingError as error:
            self._chunk.bad.append(BadRow(line, "quoting", str(error), raw))
            return index + 1
        if raw and not (self._fields != 1 and following == index + 1 and self._blank(raw)):
            self._keep(line, raw, row, following > index + 1)
        return following

    def _record(self, index: int, raw: str) -> tuple[str, list[str], int]:
        dialect, fields = self._dialect, self._fields
        if index in self._lines.overlong:
            raise BrokenQuotingError(f"the line is longer than {MAXIMUM_RECORD:,} characters")
        row, is_open = split_quoted(raw, dialect)
        if not is_open:
            return raw, row, index + 1
        closing = self._lines.closing(index)
        if closing is not None:
            text = self._lines.joined(index, closing)
            if text is not None:
                text = text.rstrip("\r\n")
                spanning, _ = split_quoted(text, dialect)
                if fields is None or len(spanning) == fields or is_padded(spanning, fields):
                    self._lines.believe(text)
                    return text, spanning, closing + 1
        literal = literal_fields(raw, dialect)
        if (fields is None or len(literal) == fields) and not any(map(self._opens, literal)):
            return raw, literal, index + 1
        if closing is None:
            raise BrokenQuotingError("a quote is opened and never closed")
        raise BrokenQuotingError("a quote is opened and not closed in this record")

    def _opens(self, value: str) -> bool:
        """Tells of a field that begins with a quote and has no other to go with it."""
        quote = self._dialect.quote
        return value.lstrip().startswith(quote) and value.count(quote) % 2 == 1

    def _keep(self, line: int, raw: str, row: list[str], is_spanning: bool) -> None:
        """Adds a record to the good ones, or to the bad ones with the reason."""
        chunk, fields = self._chunk, self._fields
        if fields is not None and len(row) != fields:
            if len(row) > fields and not is_padded(row, fields):
                chunk.bad.append(BadRow(line, "fields", f"{fields:,} fields expected, {len(row):,} found", raw))
                return
            if len(row) < fields:
                chunk.short.append((line, len(row)))
            row = row[:fields] + [""] * (fields - len(row))
        chunk.lines.append(line)
        chunk.rows.append(row)


def is_padded(row: list[str], fields: int) -> bool:
    """Tells whether a record has too many fields, but none that is not empty."""
    return len(row) > fields and not any(value.strip(" \t") for value in row[fields:])


# --- Fields -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patterns:
    """Regular expressions for the quoted fields of one dialect, none of which goes back over what it has read."""

    quoted: re.Pattern[str]
    opening: re.Pattern[str]
    closing: re.Pattern[str]
    blank_before_quote: re.Pattern[str]


@cache
def _patterns(dialect: Dialect) -> Patterns:
    quote, delimiter = re.escape(dialect.quote), re.escape(dialect.delimiter)
    blank = "[ \t]" if dialect.delimiter not in (BLANKS, "\t") else "[ ]" if dialect.delimiter == "\t" else "(?!)"
    end = rf"(?={delimiter}|\Z)" if dialect.delimiter != BLANKS else r"(?=[ \t]|\Z)"
    escaped = rf"\\[\\{quote}]|" if dialect.escape else ""
    inside = rf"(?>[^{quote}\\]+|{escaped}\\|{quote}{quote}|{quote}(?!{quote}|{blank}*{end}))*+"
    return Patterns(
        re.compile(rf"{blank}*{quote}({inside}){quote}{blank}*{end}"),
        re.compile(rf"{blank}*{quote}"),
        re.compile(rf"{inside}{quote}{blank}*{end}"),
        re.compile(rf"(?:\A|[\r\n]|{delimiter}){blank}+{quote}"),
    )


def split_quoted(text: str, dialect: Dialect) -> tuple[list[str], bool]:
    """Splits a record into its fields; tells whether its last one is open, a quoted field without its closing quote.

    A quoted field ends with a quote that the delimiter or the end of the record follows. A quote inside of it is
    doubled (or escaped, if the dialect says so); one that is not, and does not end the field, is a character.
    """
    if not dialect.quote or dialect.quote not in text:
        return unquoted_fields(text, dialect), False
    if dialect.delimiter == BLANKS:
        return _split_at_blanks(text, dialect)
    patterns, delimiter, row, at = _patterns(dialect), dialect.delimiter, [], 0
    while True:
        match = patterns.quoted.match(text, at)
        if match:
            row.append(unquoted(match[1], dialect))
            end = match.end()
        elif patterns.opening.match(text, at):
            row.append(text[at:])
            return row, True
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            row.append(text[at:end])
        if end >= len(text):
            return row, False
        at = end + len(delimiter)


def _split_at_blanks(text: str, dialect: Dialect) -> tuple[list[str], bool]:
    patterns, row, at = _patterns(dialect), [], 0
    text = text.strip(" \t")
    while at < len(text):
        match = patterns.quoted.match(text, at)
        if match:
            row.append(unquoted(match[1], dialect))
        elif patterns.opening.match(text, at):
            return [*row, text[at:]], True
        else:
            match = re.compile(r"[^ \t]+").match(text, at)
            row.append(match[0])
        at = re.compile(r"[ \t]*").match(text, match.end()).end()
    return row, False


def unquoted(value: str, dialect: Dialect) -> str:
    """Returns what stands between the quotes of a field, without what only a quoted field needs."""
    if dialect.escape and "\\" in value:
        value = re.sub(rf"\\([\\{re.escape(dialect.quote)}])", r"\1", value)
    return value.replace(dialect.quote * 2, dialect.quote)


def unquoted_fields(text: str, dialect: Dialect) -> list[str]:
    return text.split() if dialect.delimiter == BLANKS else text.split(dialect.delimiter)


def literal_fields(text: str, dialect: Dialect) -> list[str]:
    """Splits a record at every delimiter, as its quotes are in no order; fields quoted as a whole lose them."""
    fields = unquoted_fields(text, dialect)
    quoted = _patterns(dialect).quoted
    matches = [quoted.fullmatch(value) for value in fields]
    return [unquoted(match[1], dialect) if match else value for match, value in zip(matches, fields, strict=True)]


def _ends_inside(text: str, dialect: Dialect, closing: re.Pattern[str]) -> bool:
    """Tells whether a line that begins inside of quotes ends inside of them."""
    match = closing.match(text)
    if not match:
        return True
    rest = text[match.end() + len(dialect.delimiter) :] if match.end() < len(text) else None
    return rest is not None and split_quoted(rest, dialect)[1]


# --- What is not text -------------------------------------------------------------------------------------------------


def put_unreadable_aside(chunk: Chunk, dialect: Dialect) -> None:
    """Makes bad rows of the records of a chunk that have bytes which are not text."""
    reasons = [unreadable_reason(row, dialect) for row in chunk.rows]
    for line, row, reason in zip(chunk.lines, chunk.rows, reasons, strict=True):
        if reason:
            chunk.bad.append(BadRow(line, "encoding", reason, written(row, dialect)))
    good = [index for index, reason in enumerate(reasons) if not reason]
    chunk.rows = [chunk.rows[index] for index in good]
    chunk.lines = [chunk.lines[index] for index in good]
    chunk.bad.sort(key=lambda bad: bad.line)


def written(row: Iterable[str], dialect: Dialect) -> str:
    """Returns a record as text again, which `Reader` reads as that record."""
    buffer = io.StringIO()
    delimiter = dialect.delimiter
    csv.writer(buffer, delimiter=delimiter, quotechar=dialect.quote or '"', lineterminator="").writerow(row)
    return buffer.getvalue()


def unreadable_reason(row: Iterable[str], dialect: Dialect) -> str | None:
    """Returns why a record is not text (which byte, in which column), or None if it is."""
    for number, value in enumerate(row, start=1):
        match = re.search("[\ud800-\udfff]", value)
        if match:
            code = ord(match[0])
            name = (
                f"byte 0x{code & 0xFF:02X}" if code >= 0xDC80 and unit(dialect.encoding) == 1 else f"code 0x{code:04X}"
            )
            return f"the {name}, which is not text in this encoding, stands in column {number}"
    return None


def readable(text: str, limit: int) -> str:
    """Returns text that can be stored and shown: bytes that are not text are escaped, and it is cut at the limit."""
    shown = text[:limit].encode("utf-8", "surrogateescape" if _is_escaped(text[:limit]) else "backslashreplace")
    shown = shown.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    return f"{shown}… ({len(text) - limit:,} more characters)" if len(text) > limit else shown


def _is_escaped(text: str) -> bool:
    return not re.search("[\ud800-\udc7f\udd00-\udfff]", text)


def shorten(text: str, limit: int) -> str:
    """Returns at most `limit` characters of a text, for use in a sentence."""
    return readable(text[:limit], limit) + ("…" if len(text) > limit else "")
