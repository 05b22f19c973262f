"""Writing values down as JSON text, and reading them back unchanged.

What a job or a step returns must be the same value on the first execution and on every replay, so a value that JSON
would alter is either tagged or refused, never bent. JSON values stand for themselves. Tagged, as
``{"$durable": tag, "value": ...}``: bytes, datetime, date, time, timedelta, Decimal, UUID, tuple, set, frozenset, and
dictionaries with other than string keys. Enums, dataclasses and pydantic models are written as their plain data and
come back as such, or as the class that the reader names (``decode(text, annotation)``). Where that leaves a choice, it
is the one that keeps all of the data; a value that would come back as another one is refused.

>>> decode(encode({"when": date(2026, 1, 31), "size": (3, 4)}))
{'when': datetime.date(2026, 1, 31), 'size': (3, 4)}
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, time, timedelta
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from typing import Any

from .._errors import SerializationError
from .annotations import UNIONS, naming, return_annotation, type_hints
from .lowering import ATOMS, TAG, TAGGED, Refused, lower, plain_data, raise_tagged, shown
from .restoring import construct, restore
from .structuring import structure
from .unions import UNREAD, read_back, refuse_misread

__all__ = [
    "check_reading",
    "construct",
    "decode",
    "encode",
    "from_json",
    "printable",
    "readable",
    "refuse_surrogates",
    "return_annotation",
    "shown",
    "structure",
    "to_json",
    "type_hints",
    "write_down",
]


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(value: Any, annotation: Any = Any, *, path: str = "value") -> str:
    """Write ``value`` down as JSON text.

    ``annotation`` is what it will be read as. ``path`` names the value in errors, for example ``"output of step
    'fetch'"``.

    :raises SerializationError: when the value, or a part of it, could not be read back unchanged.
    """
    text = _encode(value, path)[0]
    if annotation is not Any:
        check_reading(value, annotation, path=path)
    return text


def write_down(value: Any, annotation: Any = Any, *, path: str = "value") -> tuple[str, Any]:
    """``encode``, and what ``decode`` makes of it, for callers that go on with the value as it is written down.

    :raises SerializationError: when there is no such text.
    :raises TypeError, ValueError: when it does not read as ``annotation`` says.
    """
    text, lowered = _encode(value, path)
    # `lowered` is a copy of its own already, and what JSON would read
    read = json.loads(text, object_hook=raise_tagged) if TAG in text else lowered
    named = naming(annotation)
    if not named:
        return text, read
    try:
        restored = restore(read, annotation)
    except (TypeError, ValueError, RecursionError):
        check_reading(value, annotation, path=path)  # which may know more of it
        raise
    if named == UNIONS:
        check_reading(value, annotation, path=path, read=restored)
    return text, restored


def check_reading(value: Any, annotation: Any, *, path: str, read: Any = UNREAD) -> None:
    """Look whether a value that can be written is read back as itself under an annotation that leaves a choice.

    ``read`` is what it is read back as, where that is known.

    :raises SerializationError: when it is not.
    """
    if naming(annotation) != UNIONS:
        return
    try:
        refuse_misread(value, annotation, read_back(value, annotation) if read is UNREAD else read)
    except Refused as refused:
        raise _refusal(path, refused) from None
    except RecursionError:
        raise SerializationError(path, "it is nested too deeply.") from None
    except (TypeError, ValueError) as error:
        raise SerializationError(path, f"it does not read as {annotation}: {error}") from error


def _encode(value: Any, path: str) -> tuple[str, Any]:
    """The text of a value, and the value in JSON's own terms; containers are copies."""
    try:
        lowered = value if type(value) in ATOMS else lower(value, set())
        return to_json(lowered), lowered
    except Refused as refused:
        raise _refusal(path, refused) from None
    except RecursionError:
        raise SerializationError(path, "it is nested too deeply.") from None
    except ValueError as error:  # an integer beyond sys.get_int_max_str_digits()
        raise SerializationError(path, f"{error}.") from None


def _refusal(path: str, refused: Refused) -> SerializationError:
    return SerializationError(path + "".join(reversed(refused.path)), refused.reason)


# Made once: `json.dumps` with options of its own makes an encoder on every call, and every step calls it twice.
_AS_IT_IS = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ESCAPED = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
# What `_AS_IT_IS.encode` makes anew on every call, made once too; its `None` is the memory of what contains itself.
_write = c_make_encoder and c_make_encoder(
    None, _AS_IT_IS.default, encode_basestring, None, ":", ",", False, False, False
)  # no C, as in PyPy: None


def to_json(value: Any) -> str:
    """Compact JSON text that SQLite can hold: lone surrogates, which UTF-8 has no form for, are escaped."""
    text = _AS_IT_IS.encode(value) if _write is None or type(value) is str else "".join(_write(value, 0))
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _ESCAPED.encode(value)
    return text


def check_name(what: str, name: object) -> None:
    """:raises ValueError: when a name, a key or an id is not a non-empty text with a form in UTF-8."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} is a non-empty string, not {name!r}.")
    refuse_surrogates(what, name)


def refuse_surrogates(name: str, text: str | None) -> None:
    """:raises ValueError: when a text has lone surrogates, for which UTF-8, and so the database, has no form."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {text!r}, which has no form in UTF-8.") from None


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(text: str, annotation: Any = Any) -> Any:
    """Read back what ``encode`` wrote.

    Where ``annotation`` names enums, dataclasses or pydantic models, also inside ``list``, ``dict``, ``tuple`` and
    unions, their data becomes instances of them again: of several, of the one that keeps all of the data.
    """
    value = json.loads(text, object_hook=raise_tagged) if TAG in text else from_json(text)
    return restore(value, annotation) if naming(annotation) else value


def from_json(text: str) -> Any:
    """What ``json.loads`` makes of a text; in a third of the time where there are no blanks around it, as in ours."""
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except StopIteration:  # there is nothing, or a blank: `loads` knows what to do
        pass
    return json.loads(text)


_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def readable(value: Any) -> Any:
    """``value`` as plain JSON data for a reader without our tags, such as a page: dates as ISO text, sets as lists."""
    kind = type(value)
    if kind is dict:
        return {str(key): readable(item) for key, item in value.items()}
    if kind in (list, tuple, set, frozenset):
        return [readable(item) for item in value]
    if kind is timedelta:
        return value.total_seconds()
    if kind in (datetime, time):
        return value.isoformat()
    if kind in TAGGED:
        return TAGGED[kind][1](value)
    if kind in ATOMS or kind is float:
        return value
    return readable(plain_data(value))


def printable(value: Any) -> Any:
    """``value`` as plain JSON data for a log line: readable where it can be stored, else what ``repr`` says of it."""
    try:
        encode(value)
        return readable(value)
    except Exception:  # also one of its own, as of an object of which only a part is there yet
        return shown(value)
