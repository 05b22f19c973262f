"""What the values of a column are: its type, and how a stored value is written as the text that it was.

A column is an integer, a number, a date (or date with time), true or false, or else text. No value is bent: each text
is either exactly what `Column.write` makes of the stored value, or it is kept beside it.

    >>> column = choose_column(count_kinds(["2.50", "3.10", "NA"]))
    >>> column.type, column.decimals, column.missing
    ('number', 2, 'NA')
    >>> convert_column(["2.50", "3.1", "", "?", "many"], column)
    Converted(values=[2.5, 3.1, None, None, None], beside={1: '3.1', 2: '', 3: '?', 4: 'many'}, odd=[4])
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from functools import partial
from typing import Any

#: A column has a type when at least this share of its values, missing ones left out, have it.
TYPE_SHARE = 0.99
LARGEST_INTEGER = 2**63 - 1
#: What people write where there is no value, in lower case. In a column of text these words are text.
MISSING_WORDS = (
    *("na", "n/a", "#n/a", "#n/a n/a", "#na", "<na>", "null", "(null)", "\\n", "nan", "-nan", "none", "-", "--"),
    *(".", "?", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
)
#: The kinds of value, of which `count_kinds` tells how many there are. The other counts tell how they are written.
KINDS = ("integer", "huge", "code", "plus", "exponent", "number", "infinity", "date", "boolean", "text")
ARTICLES = {"integer": "an integer", "number": "a number", "date": "an ISO date", "boolean": "true or false"}
_SHORT_WORD = 20

VALUE = re.compile(
    r"""
      (?P<integer>  -? (?: 0 | [1-9][0-9]{0,18} ) )
    | (?P<huge>     -? [1-9][0-9]{19,} )
    | (?P<code>     -? 0[0-9]+ (?: \.[0-9]* )? )
    | (?P<plus>     \+ (?: [0-9]+ (?: \.[0-9]* )? | \.[0-9]+ ) (?: [eE][+-]?[0-9]+ )? )
    | (?P<exponent> -? [1-9][0-9]* [eE] [0-9]+ )
    | (?P<number>   -? (?: (?: 0 | [1-9][0-9]* ) (?: \.[0-9]* )? | \.[0-9]+ ) (?: [eE][+-]?[0-9]+ )? )
    | (?P<infinity> [+-]? inf(?:inity)? )
    | (?P<date>     [0-9]{4}-[0-9]{2}-[0-9]{2}
                    (?: [T ][0-9]{2}:[0-9]{2} (?: :[0-9]{2} (?: \.[0-9]{1,9} )? )?
                        (?: Z | [+-][0-9]{2} (?: :?[0-9]{2} )? )? )? )
    | (?P<boolean>  true | false )
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
FIRST_CHARACTERS = frozenset("+-.0123456789tTfFiI")
#: A whole column of values at once, each followed by a line feed.
INTEGERS = re.compile(r"(?:-?(?:0|[1-9][0-9]{0,17})\n)++", re.ASCII)
DECIMALS = re.compile(r"(?:-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?\n)++", re.ASCII)
LOCAL_DATE = re.compile(r"([0-9]{1,2})([./-])([0-9]{1,2})\2([0-9]{4})", re.ASCII)
DATES = re.compile(r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}\n)++", re.ASCII)
_SECONDS = re.compile(r"(:[0-9]{2})(\.[0-9]{1,9})")
_VERSION = re.compile(r"[0-9]{1,2}\.(?:0|[1-9][0-9]?)")


@dataclass(frozen=True)
class Column:
    """The type of a column, and how most of its values are written.

    `decimals` is how many of them a number has, or None where it has as many as it needs; `missing`, `true` and `false`
    are the texts of what is stored as NULL, 1 and 0; `mark` is the decimal mark. `dates` is empty for dates as in
    2026-01-31, and else their order and mark, with a 0 if days and months have two digits: "dmy/0" for 31/01/2026.
    """

    type: str
    decimals: int | None = None
    missing: str = ""
    true: str = "true"
    false: str = "false"
    mark: str = "."
    dates: str = ""

    def write(self, value: Any) -> str:
        """Returns the text of a stored value."""
        if value is None:
            return self.missing
        if self.type == "boolean":
            return self.true if value else self.false
        if isinstance(value, float):
            text = repr(value) if self.decimals is None else f"{value:.{self.decimals}f}"
            return text if self.mark == "." else text.replace(".", self.mark)
        if self.dates and self.type == "date" and len(value) == 10:
            return _write_date(value, self.dates)
        return str(value)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """What decides how values are read: the decimal mark, the order of dates that do not begin with the year (or "ymd"
    for none), and which words, in lower case, stand for a missing value."""

    mark: str = "."
    date_order: str = "ymd"
    missing: frozenset[str] = frozenset(MISSING_WORDS)


DEFAULT = Reading()


def reading_of(layout: Mapping[str, Any]) -> Reading:
    """Returns how the values of a file are read, by its layout."""
    words = layout.get("missing")
    return Reading(
        layout["decimal"], layout["date_order"], DEFAULT.missing if words is None else frozenset(map(str.lower, words))
    )


# --- Values -----------------------------------------------------------------------------------------------------------


def interpret(value: str, reading: Reading = DEFAULT) -> tuple[str, Any]:
    """Returns the kind of a value, and the value as it is stored when a column has a type for that kind.

    A "code" is a row of digits with a leading zero, such as a zip code. "plus" begins with a plus sign, as a telephone
    number does, and "exponent" is an integer with an exponent that has no sign, as part numbers have it (12E3): whether
    these are numbers is decided by the rest of the column. "huge" integers have more than 64 bits.
    """
    text = value.strip()
    if not text or text.lower() in reading.missing:
        return "missing", None
    if reading.date_order != "ymd" and (match := LOCAL_DATE.fullmatch(text)):
        iso = _iso_date(match, reading.date_order)
        return ("date", iso) if is_date(iso) else ("text", value)
    if reading.mark != ".":
        if "." in text:
            return _interpret_date(text) or ("text", value)
        text = text.replace(reading.mark, ".")
    if text[:1] not in FIRST_CHARACTERS or not (match := VALUE.fullmatch(text)):
        return "text", value
    kind = match.lastgroup
    if kind in ("integer", "huge"):
        number = int(text) if len(text) < 30 else LARGEST_INTEGER + 1
        if abs(number) <= LARGEST_INTEGER:
            return "integer", number
        return ("huge", float(text)) if len(text) < 300 else ("text", value)
    if kind in ("plus", "exponent", "number"):
        number = float(text)
        if not math.isfinite(number):
            return "text", value
        is_whole = kind == "plus" and text[1:].isdecimal() and number <= LARGEST_INTEGER
        return kind, int(text) if is_whole else number
    if kind == "infinity":
        return kind, -math.inf if text[0] == "-" else math.inf
    if kind == "date":
        return _interpret_date(text) or ("text", value)
    if kind == "boolean":
        return kind, int(text.lower() == "true")
    return kind, value


def _interpret_date(text: str) -> tuple[str, str] | None:
    match = VALUE.fullmatch(text)
    return ("date", text) if match and match.lastgroup == "date" and is_date(text) else None


def _iso_date(match: re.Match[str], order: str) -> str:
    first, _, second, year = match.groups()
    day, month = (first, second) if order == "dmy" else (second, first)
    return f"{year}-{month:0>2}-{day:0>2}"


def _write_date(iso: str, dates: str) -> str:
    year, month, day = iso.split("-")
    if not dates.endswith("0"):
        month, day = month.lstrip("0"), day.lstrip("0")
    parts = (day, month, year) if dates.startswith("dmy") else (month, day, year)
    return dates[3].join(parts)


def is_date(text: str) -> bool:
    """Tells whether a date of the right form exists. Fractions of a second may have one to nine digits."""
    try:
        datetime.fromisoformat(_SECONDS.sub(r"\1", text))
    except ValueError:
        return False
    return True


def count_kinds(values: Sequence[str], reading: Reading = DEFAULT, known_text: bool = False) -> dict[str, int]:
    """Returns how many values of a column are of which kind, and how they are written. Empty ones do not count."""
    if known_text:
        return {"text": len(values) - values.count("")}
    counts = Counter(values)
    empty = counts.pop("", 0)
    if not counts:
        return {}
    if reading.mark == "." and (quick := _count_quickly(counts, len(values) - empty)):
        return quick
    kinds: Counter[str] = Counter()
    for value, count in counts.items():
        kind, stored = interpret(value, reading)
        kinds[kind] += count
        for form in _forms(kind, value, stored, reading):
            kinds[form] += count
    return dict(kinds)


def _count_quickly(counts: Mapping[str, int], total: int) -> dict[str, int] | None:
    """Counts the kinds of a column of nothing but ordinary integers, or numbers of which each is written alike."""
    joined = "\n".join(counts) + "\n"
    if joined.count("\n") != len(counts):
        return None
    if INTEGERS.fullmatch(joined):
        return {"integer": total} | ({"negative": 1} if "-" in joined else {})
    if len(max(counts, key=len)) < 17 and DECIMALS.fullmatch(joined):
        return _count_decimals(counts)
    if DATES.fullmatch(joined) and _are_dates(counts):
        return {"date": total}
    return None


def _are_dates(texts: Iterable[str]) -> bool:
    try:
        return all(map(date.fromisoformat, texts))
    except ValueError:
        return False


def _count_decimals(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts values that are integers, or decimals of so few digits that a number reproduces them all."""
    kinds: Counter[str] = Counter()
    for text, count in counts.items():
        whole, _, digits = text.partition(".")
        if not digits:
            kinds["integer"] += count
            continue
        kinds["number"] += count
        kinds[f"decimals:{len(digits)}"] += count
        if digits[-1] != "0" or digits == "0":
            kinds["shortest"] += count
        if len(text) < 6 and _VERSION.fullmatch(text):
            kinds["version"] += count
            kinds["version:1" if len(digits) == 1 else "version:10" if digits[-1] == "0" else "version:"] += count
        if whole[0] == "-":
            kinds["negative"] += count
    return dict(kinds)


def _forms(kind: str, value: str, stored: Any, reading: Reading) -> list[str]:
    """Returns how a value is written, as names of counts."""
    forms = []
    if kind in ("missing", "boolean") and len(value) <= _SHORT_WORD:
        forms.append(f"{'missing' if kind == 'missing' else 'true' if stored else 'false'}:{value}")
    if kind in ("integer", "number") and value.lstrip()[:1] == "-":
        forms.append("negative")
    if kind == "date" and (match := LOCAL_DATE.fullmatch(value)):
        padded = "0" if len(value) == 10 else ""
        forms.append(f"dates:{reading.date_order}{match[2]}{padded}")
    if kind == "number":
        text = value.replace(reading.mark, ".")
        if repr(stored) == text:
            forms.append("shortest")
        decimals = len(text.partition(".")[2])
        if f"{stored:.{decimals}f}" == text and decimals:
            forms.append(f"decimals:{decimals}")
        if _VERSION.fullmatch(text):
            forms.append("version")
            forms += ["version:1"] if decimals == 1 else ["version:10"] if text[-1] == "0" else []
    return forms


def merge_kinds(columns: Sequence[dict[str, int]], more: Sequence[Mapping[str, int]]) -> list[dict[str, int]]:
    """Returns the sums of two scans' counts, column by column."""
    return [dict(Counter(one) + Counter(other)) for one, other in zip(columns, more, strict=True)]


# --- Columns ----------------------------------------------------------------------------------------------------------


def choose_type(kinds: Mapping[str, int]) -> str:
    """Returns the narrowest type that (nearly) all values fit.

    One code makes a column text, to keep its zeros; so do plus signs without any negative number, and exponents without
    as many other numbers, and integers beyond 64 bits without any decimal. Decimals of which some end with a zero and
    others do not are versions (3.9, 3.10) when they look like nothing else.
    """
    values = sum(kinds.get(kind, 0) for kind in KINDS)
    plus, exponent, huge, number = (kinds.get(kind, 0) for kind in ("plus", "exponent", "huge", "number"))
    if not values or kinds.get("code") or is_version(kinds):
        return "text"
    if (plus and not kinds.get("negative")) or exponent > number or (huge and not number):
        return "text"
    fractions = number + exponent + huge + kinds.get("infinity", 0)
    if kinds.get("integer", 0) + plus + fractions >= TYPE_SHARE * values:
        return "number" if fractions else "integer"
    return next((name for name in ("date", "boolean") if kinds.get(name, 0) >= TYPE_SHARE * values), "text")


def is_version(kinds: Mapping[str, int]) -> bool:
    values = sum(kinds.get(kind, 0) for kind in KINDS)
    return kinds.get("version", 0) == values and bool(kinds.get("version:10")) and bool(kinds.get("version:1"))


def is_surely_text(kinds: Mapping[str, int], most_rows: int) -> bool:
    """Tells of a column that is text: too many values fit no type, even if there will be `most_rows` in all."""
    return bool(kinds.get("code")) or kinds.get("text", 0) > (1 - TYPE_SHARE) * most_rows + 1


def choose_column(kinds: Mapping[str, int], mark: str = ".", rows: int = 0) -> Column:
    """Returns the type of a column, and how most of its values are written. `rows` is how many values there are."""
    type_name = choose_type(kinds)
    if type_name == "text":
        return Column("text")
    words = {"missing:": rows - sum(kinds.get(kind, 0) for kind in ("missing", *KINDS))} if rows else {}
    words |= {name: count for name, count in kinds.items() if name.startswith("missing:")}
    decimals = {name: count for name, count in kinds.items() if name.startswith("decimals:")}
    fixed = max(decimals, key=decimals.__getitem__, default=None)
    return Column(
        type_name,
        int(fixed.partition(":")[2]) if fixed and decimals[fixed] > kinds.get("shortest", 0) else None,
        _most_frequent(words, "missing:"),
        _most_frequent(kinds, "true:"),
        _most_frequent(kinds, "false:"),
        mark,
        _most_frequent(kinds, "dates:") if any(name.startswith("dates:") for name in kinds) else "",
    )


def _most_frequent(counts: Mapping[str, int], prefix: str) -> str:
    names = [name for name in counts if name.startswith(prefix)]
    best = max(names, key=counts.__getitem__, default=prefix + prefix.removesuffix(":"))
    return best.removeprefix(prefix) if names or prefix != "missing:" else ""


@dataclass(frozen=True)
class Converted:
    """The stored values of some cells of a column, by index the texts that `Column.write` does not make of them, and
    the indexes of those that are odd: neither of the column's type nor missing."""

    values: list[Any]
    beside: dict[int, str] = field(default_factory=dict)
    odd: list[int] = field(default_factory=list)


def convert_column(texts: Sequence[str], column: Column, reading: Reading = DEFAULT) -> Converted:
    """Returns some cells of a column as they are stored. In a column of text, only an empty cell is NULL."""
    if column.type == "text":
        return Converted([text or None for text in texts] if "" in texts else list(texts))
    quick = _convert_quickly(texts, column)
    if quick is not None:
        return Converted(quick)
    known: dict[str, Any] = {}
    beside, odd = set(), set()
    accepted = ACCEPTED[column.type]
    for text in set(texts):
        kind, stored = interpret(text, reading)
        if kind not in accepted and kind != "missing":
            odd.add(text)
        known[text] = stored if kind in accepted else None
        if text in odd or column.write(known[text]) != text:
            beside.add(text)
    values = [known[text] for text in texts]
    if not beside:
        return Converted(values)
    kept = {index: text for index, text in enumerate(texts) if text in beside}
    return Converted(values, kept, [index for index, text in kept.items() if text in odd])


#: The kinds that each type takes.
ACCEPTED = {
    "integer": {"integer", "plus"},
    "number": {"integer", "huge", "plus", "exponent", "number", "infinity"},
    "date": {"date"},
    "boolean": {"boolean"},
}


def _convert_quickly(texts: Sequence[str], column: Column) -> list[Any] | None:
    """Converts ordinary numbers all at once: None if there is any other value among them."""
    if column.type in ("text", "boolean") or column.mark != "." or column.dates:
        return None
    joined = "\n".join(texts) + "\n"
    if column.type == "date":
        is_quick = DATES.fullmatch(joined) and joined.count("\n") == len(texts) and _are_dates(set(texts))
        return list(texts) if is_quick else None
    if column.type == "integer" or "." not in joined:
        if INTEGERS.fullmatch(joined) and joined.count("\n") == len(texts) and "-0\n" not in joined:
            return list(map(int, texts))
        return None
    if not DECIMALS.fullmatch(joined) or joined.count("\n") != len(texts):
        return None
    values = [float(text) if "." in text else int(text) for text in texts]
    write: Callable[[Any], str] = repr if column.decimals is None else partial(_with_decimals, column.decimals)
    return values if "\n".join(map(write, values)) + "\n" == joined else None


def _with_decimals(decimals: int, value: float) -> str:
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def convert_row(texts: Iterable[str], columns: Sequence[Column], reading: Reading) -> list[Converted]:
    """Returns the cells of a single row as they are stored."""
    return [convert_column([text], column, reading) for text, column in zip(texts, columns, strict=True)]
