"""Writing values down as JSON text, and reading them back unchanged.

What a job or a step returns must be the same value on the first execution and on every replay, so a value that JSON
would alter is either tagged or refused, never bent. JSON values stand for themselves. Tagged, as
``{"$durable": tag, "value": ...}``: bytes, datetime, date, time, timedelta, Decimal, UUID, tuple, set, frozenset, and
dictionaries with other than string keys. Enums, dataclasses and pydantic models are written as their plain data and
come back as such, or as the class that the reader names (``decode(text, annotation)``).

>>> decode(encode({"when": date(2026, 1, 31), "size": (3, 4)}))
{'when': datetime.date(2026, 1, 31), 'size': (3, 4)}
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import inspect
import json
import math
import types
import typing
import weakref
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from json.encoder import c_make_encoder, encode_basestring
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from .errors import SerializationError

TAG = "$durable"
_ATOMS = frozenset({str, int, bool, type(None)})


class _Refused(Exception):
    """Unwinds the walk to an offending value, collecting the way there, innermost part first."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(value: Any, *, path: str = "value") -> str:
    """Write ``value`` down as JSON text.

    ``path`` names the value in errors, for example ``"output of step 'fetch'"``.

    :raises SerializationError: when the value, or a part of it, could not be read back unchanged.
    """
    return _encode(value, path)[0]


def write_down(value: Any, annotation: Any = Any, *, path: str = "value") -> tuple[str, Any]:
    """``encode``, and what ``decode`` makes of it, for whoever goes on with the value as it is written down.

    :raises SerializationError: when there is no such text.
    :raises TypeError, ValueError: when it does not read as ``annotation`` says.
    """
    text, lowered = _encode(value, path)
    if TAG in text:
        return text, decode(text, annotation)
    return text, restore(lowered, annotation)  # a copy of its own already, and what JSON would read


def _encode(value: Any, path: str) -> tuple[str, Any]:
    """The text of a value, and the value in JSON's own terms; containers are copies."""
    try:
        lowered = value if type(value) in _ATOMS else _lower(value, set())
        return to_json(lowered), lowered
    except _Refused as refused:
        raise SerializationError(path + "".join(reversed(refused.path)), refused.reason) from None
    except RecursionError:
        raise SerializationError(path, "it is nested too deeply.") from None
    except ValueError as error:  # an integer beyond sys.get_int_max_str_digits()
        raise SerializationError(path, f"{error}.") from None


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


def refuse_surrogates(name: str, text: str | None) -> None:
    """:raises ValueError: when a text has lone surrogates, for which UTF-8, and so the database, has no form."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {text!r}, which has no form in UTF-8.") from None


def _lower(value: Any, ancestors: set[int]) -> Any:
    """``value`` in terms that JSON keeps apart; the value itself where it is JSON already."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise _Refused(f"{value!r} has no form in JSON; use None or a string.")
        return value
    if kind is dict or kind is list:
        return _lower_container(value, kind, ancestors)
    if kind in _TAGGED:
        tag, write = _TAGGED[kind]
        return {TAG: tag, "value": write(value)}
    if kind in _TAGGED_SEQUENCES:
        items = sorted(value, key=repr) if kind is not tuple else value
        lowered = _lower_container(list(items), list, ancestors)
        if kind is not tuple:
            for item in lowered:
                _refuse_unhashable(item)
        return {TAG: kind.__name__, "value": lowered}
    return _lower(_plain_data(value), ancestors)


def _lower_container(value: Any, kind: type, ancestors: set[int]) -> Any:
    identity = id(value)
    if identity in ancestors:
        raise _Refused("it contains itself.")
    ancestors.add(identity)
    lowered = _lower_list(value, ancestors) if kind is list else _lower_dict(value, ancestors)
    ancestors.discard(identity)
    return lowered


def _lower_list(items: list[Any], ancestors: set[int]) -> list[Any]:
    lowered = []
    for index, item in enumerate(items):
        try:
            lowered.append(item if type(item) in _ATOMS else _lower(item, ancestors))
        except _Refused as refused:
            refused.path.append(f"[{index}]")
            raise
    return lowered


def _lower_dict(items: dict[Any, Any], ancestors: set[int]) -> dict[str, Any]:
    lowered = {}
    plain_keys = TAG not in items
    for key, item in items.items():
        plain_keys = plain_keys and type(key) is str
        try:
            lowered[key] = item if type(item) in _ATOMS else _lower(item, ancestors)
        except _Refused as refused:
            refused.path.append(f"[{key!r}]")
            raise
    if plain_keys:
        return lowered
    pairs = [[_lower(key, ancestors), item] for key, item in lowered.items()]
    for key, _ in pairs:
        _refuse_unhashable(key)
    return {TAG: "dict", "value": pairs}


def _refuse_unhashable(lowered: Any) -> None:
    """Refuse a member of a set, or a key, that comes back as a list or a dictionary."""
    try:
        hash(json.loads(json.dumps(lowered), object_hook=_raise_tagged))
    except TypeError:
        raise _Refused(
            "a dataclass or a model in a set, or as a key, would come back as a dictionary, which cannot be there."
        ) from None


def _plain_data(value: Any) -> Any:
    """The data of an enum member, a dataclass instance or a pydantic model."""
    kind = type(value)
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if _is_pydantic_model(kind):
        refuses_more = kind.model_config.get("extra") == "forbid"  # such as the computed fields, which pages may want
        return value.model_dump(by_alias=_reads_what_it_writes(kind), round_trip=refuses_more)
    raise _Refused(
        f"a {kind.__module__}.{kind.__qualname__} cannot be read back as what it was; "
        "return JSON values, dates, Decimal, UUID, bytes, tuples, sets, enums, dataclasses or pydantic models."
    )


def _write_timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _write_datetime(value: datetime) -> str | dict[str, Any]:
    if value.tzinfo is None and not value.fold:
        return value.isoformat()
    if type(value.tzinfo) is timezone:
        return value.isoformat()
    zone = getattr(value.tzinfo, "key", None)
    if value.tzinfo is not None and not isinstance(zone, str):
        if value.tzinfo.utcoffset(None) is not None:  # always the same, as in what pydantic has parsed
            return value.isoformat()
        raise _Refused("its time zone has no name; use datetime.timezone or zoneinfo.ZoneInfo.")
    return {"wall": value.replace(tzinfo=None, fold=0).isoformat(), "zone": zone, "fold": value.fold}


def _read_datetime(value: str | dict[str, Any]) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    zone = None if value["zone"] is None else ZoneInfo(value["zone"])
    return datetime.fromisoformat(value["wall"]).replace(tzinfo=zone, fold=value["fold"])


def _write_time(value: time) -> str | dict[str, Any]:
    if not (value.tzinfo is None or type(value.tzinfo) is timezone):
        raise _Refused("a time of day in a named zone has no offset that could be kept; use a datetime.")
    return {"wall": value.isoformat(), "fold": 1} if value.fold else value.isoformat()


def _read_time(value: str | dict[str, Any]) -> time:
    return time.fromisoformat(value) if isinstance(value, str) else time.fromisoformat(value["wall"]).replace(fold=1)


_TAGGED: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode()),
    datetime: ("datetime", _write_datetime),
    date: ("date", date.isoformat),
    time: ("time", _write_time),
    timedelta: ("timedelta", _write_timedelta),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
}
_TAGGED_SEQUENCES = (tuple, set, frozenset)


# --- reading ---------------------------------------------------------------------------------------------------------


def decode(text: str, annotation: Any = Any) -> Any:
    """Read back what ``encode`` wrote.

    Where ``annotation`` names enums, dataclasses or pydantic models, also inside ``list``, ``dict``, ``tuple`` and
    optional types, their data becomes instances of them again.
    """
    value = json.loads(text, object_hook=_raise_tagged) if TAG in text else from_json(text)
    return restore(value, annotation) if names_classes(annotation) else value


def from_json(text: str) -> Any:
    """What ``json.loads`` makes of a text; in a third of the time where there are no blanks around it, as in ours."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:  # there is nothing, or a blank: `loads` knows what to do
        end = -1
    return value if end == len(text) else json.loads(text)


_scan = json.JSONDecoder().scan_once


def _raise_tagged(item: dict[str, Any]) -> Any:
    tag = item.get(TAG)
    return item if tag is None else _READERS[tag](item["value"])


_READERS: dict[str, Callable[[Any], Any]] = {
    "bytes": base64.b64decode,
    "datetime": _read_datetime,
    "date": date.fromisoformat,
    "time": _read_time,
    "timedelta": lambda value: timedelta(*value),
    "decimal": Decimal,
    "uuid": UUID,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
}


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
    if kind in _TAGGED:
        return _TAGGED[kind][1](value)
    if kind in _ATOMS or kind is float:
        return value
    return readable(_plain_data(value))


def printable(value: Any) -> Any:
    """``value`` as plain JSON data for a log line: readable where it can be stored, else what ``repr`` says of it."""
    try:
        encode(value)
    except SerializationError:
        return repr(value)
    return readable(value)


# --- restoring classes from annotations ------------------------------------------------------------------------------


def _is_pydantic_model(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def _is_class_with_data(annotation: Any) -> bool:
    return isinstance(annotation, type) and (
        issubclass(annotation, Enum) or dataclasses.is_dataclass(annotation) or _is_pydantic_model(annotation)
    )


@functools.lru_cache(maxsize=1024)
def _names_classes(annotation: Any) -> bool:
    return _is_class_with_data(annotation) or any(names_classes(part) for part in typing.get_args(annotation))


def names_classes(annotation: Any) -> bool:
    """Whether ``annotation`` names, at any depth, a class that :func:`restore` would construct."""
    try:
        return _names_classes(annotation)
    except TypeError:  # an unhashable annotation, such as Literal[[...]] inside Annotated
        return False


def construct(value: Any, annotation: Any) -> Any:
    """``restore`` for a value that has to be what ``annotation`` names: ``None`` is no instance of a class.

    :raises TypeError, ValueError: when it does not fit.
    """
    return _construct(annotation, value) if _is_class_with_data(annotation) else restore(value, annotation)


def restore(value: Any, annotation: Any) -> Any:
    """Plain data as the classes that ``annotation`` names; what it says nothing of stays as it is.

    :raises TypeError, ValueError: when the data does not fit a class that is named.
    """
    if not names_classes(annotation) or value is None:
        return value
    if _is_class_with_data(annotation):
        return _construct(annotation, value)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return restore(value, arguments[0])
    if origin is typing.Union or origin is types.UnionType:
        return _restore_union(value, arguments)
    if isinstance(value, dict) and len(arguments) == 2:
        return {restore(key, arguments[0]): restore(item, arguments[1]) for key, item in value.items()}
    if isinstance(value, tuple) and arguments[-1] is not Ellipsis:
        return tuple(restore(item, part) for item, part in zip(value, arguments, strict=False))
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(restore(item, arguments[0]) for item in value)
    return value


def _restore_union(value: Any, alternatives: tuple[Any, ...]) -> Any:
    for alternative in alternatives:
        if names_classes(alternative):
            try:
                return restore(value, alternative)
            except (TypeError, ValueError):
                continue
    return value


def _construct(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if issubclass(kind, Enum):
        return kind(value)
    if _is_pydantic_model(kind):
        return _validate_model(kind, value)
    if not isinstance(value, dict):
        raise TypeError(f"{kind.__qualname__} is constructed from a dictionary of its fields, not from {value!r}")
    hints = type_hints(kind)
    fields = dataclasses.fields(kind)
    given = {name: restore(item, hints.get(name, Any)) for name, item in value.items()}
    instance = kind(**{name: item for name, item in given.items() if name not in _not_in_init(fields)})
    for name in _not_in_init(fields) & given.keys():
        object.__setattr__(instance, name, given[name])
    return instance


@functools.lru_cache(maxsize=1024)
def _reads_what_it_writes(kind: Any) -> bool:
    """Whether a pydantic model is validated under the aliases under which it is written; else by its fields' names."""
    is_older = "by_name" not in inspect.signature(kind.model_validate).parameters  # than pydantic 2.11
    return is_older or _have_one_alias(kind, set())


def _have_one_alias(annotation: Any, seen: set[type]) -> bool:
    """Whether no field of the pydantic models that are named, and of theirs, has one alias to be read and another."""
    if not _is_pydantic_model(annotation):
        return all(_have_one_alias(part, seen) for part in typing.get_args(annotation))
    if annotation in seen:
        return True
    seen.add(annotation)
    fields = annotation.model_fields.values()
    return all(
        field.validation_alias == field.serialization_alias and _have_one_alias(field.annotation, seen)
        for field in fields
    )


def _validate_model(kind: Any, value: Any) -> Any:
    return (
        kind.model_validate(value)
        if _reads_what_it_writes(kind)
        else kind.model_validate(value, by_alias=True, by_name=True)
    )


def _not_in_init(fields: tuple[dataclasses.Field[Any], ...]) -> set[str]:
    return {field.name for field in fields if not field.init}


def type_hints(owner: Any) -> dict[str, Any]:
    """The resolved annotations of a function or class; empty where they cannot be resolved."""
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except Exception:  # a forward reference to a name that is not there
        return {}


# Weakly, because a function made in a job body holds on to everything that the body has in hand.
_return_annotations: weakref.WeakKeyDictionary[Callable[..., Any], Any] = weakref.WeakKeyDictionary()


def _return_annotation(function: Callable[..., Any]) -> Any:
    function = getattr(function, "__func__", function)  # of a bound method, which is a new one each time
    if not getattr(function, "__annotations__", None):
        return Any
    if function not in _return_annotations:
        _return_annotations[function] = type_hints(function).get("return", Any)
    return _return_annotations[function]


def return_annotation(function: Callable[..., Any]) -> Any:
    """What ``function`` is annotated to return, or ``Any``; looks through ``functools.partial`` and decorators."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        return _return_annotation(inspect.unwrap(function) if hasattr(function, "__wrapped__") else function)
    except TypeError:  # an unhashable callable
        return Any
