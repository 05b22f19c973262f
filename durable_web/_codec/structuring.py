"""Data from outside as what an annotation says, converted and checked: JSON has no dates, decimals, tuples or sets.

Used where data enters: inputs, signals, updates and events. What is recorded is read back by ``restore``.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any
from uuid import UUID

from .annotations import class_hints, is_pydantic_model, is_record, is_union
from .lowering import shown
from .restoring import construct, restore

_LISTS = {list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection}
_MAPPINGS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


MOST_SHOWN = 100
"""Characters of a value that a message shows."""


class Misfit(ValueError):
    """A part of the data does not fit; ``path`` leads to it, outermost last."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []
        super().__init__(reason)

    def __str__(self) -> str:
        place = "".join(reversed(self.path)).removeprefix(".")
        return f"{place}: {self.reason}" if place else self.reason


def structure(value: Any, annotation: Any) -> Any:
    """The value as ``annotation`` says; one that is of the type already stays as it is.

    Of a union, the first alternative that the value is of, else the first to which it can be converted. What an
    annotation says that is not understood here, such as a class without fields, is not checked.

    :raises ValueError: when a part does not fit; the message begins with its place, such as ``items[0].price: ...``.
    """
    if annotation is None or annotation is type(None):
        return value  # the annotation of an input that is not used
    return _structure(value, annotation)


def _structure(value: Any, annotation: Any) -> Any:
    if annotation is Any or isinstance(annotation, (str, typing.TypeVar, typing.ForwardRef)):
        return value
    if isinstance(annotation, typing.NewType):
        return _structure(value, annotation.__supertype__)
    read = _READERS.get(annotation) if type(annotation) is type else None
    if read is not None:
        return read(value)
    if is_union(annotation):
        return _structure_union(value, annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is not None:
        return _structure_generic(value, origin, arguments)
    if typing.is_typeddict(annotation):
        return _structure_typed_dict(value, annotation)
    if not isinstance(annotation, type) or isinstance(value, annotation):
        return value
    if is_pydantic_model(annotation) or issubclass(annotation, Enum):
        return construct(value, annotation)
    if is_record(annotation):  # type: ignore[arg-type]
        return _structure_record(value, annotation)
    if annotation in (list, tuple, set, frozenset):
        return annotation(_expect(value, (list, tuple, set, frozenset), "a list"))
    if annotation is dict:
        return _expect(value, dict, "an object")
    return value


def _structure_union(value: Any, annotation: Any) -> Any:
    alternatives = typing.get_args(annotation)
    if value is None and type(None) in alternatives:
        return None
    members = [each for each in alternatives if each is not type(None)]
    for member in members:
        if isinstance(member, type) and type(value) is member:
            return value
    if any(map(is_pydantic_model, members)):  # a model may take the data and leave a part of it out
        restored = restore(value, annotation)
        if restored is not value:
            return restored
    reasons = []
    for member in members:
        try:
            return _structure(value, member)
        except (TypeError, ValueError) as misfit:
            reasons.append(misfit)
    if len(reasons) == 1:
        raise reasons[0]
    raise Misfit(f"{_shown(value)} is none of {', '.join(map(_name, alternatives))}")


def _structure_generic(value: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    if origin is typing.Annotated:
        return _structure(value, arguments[0])
    if origin is typing.Literal:
        if any(value == each and type(value) is type(each) for each in arguments):
            return value
        raise Misfit(f"{_shown(value)} is none of {', '.join(map(repr, arguments))}")
    if origin in _MAPPINGS and len(arguments) == 2:
        items = _expect(value, collections.abc.Mapping, "an object").items()
        return {_structure(key, arguments[0]): _at(f"[{key!r}]", item, arguments[1]) for key, item in items}
    if origin is tuple:
        return _structure_tuple(_expect(value, (list, tuple), "a list"), arguments)
    if origin in (set, frozenset) or origin in _LISTS:
        items = _expect(value, (list, tuple, set, frozenset), "a list")
        made = [_at(f"[{index}]", item, arguments[0]) for index, item in enumerate(items)]
        if origin in (set, frozenset):
            return origin(made)
        return tuple(made) if isinstance(value, tuple) and origin is not list else made
    return value


def _structure_tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise Misfit(f"it has {len(value)} parts, not {len(arguments)}")
    return tuple(_at(f"[{index}]", item, part) for index, (item, part) in enumerate(zip(value, arguments, strict=True)))


def _structure_record(value: Any, kind: Any) -> Any:
    data = _expect(value, dict, f"an object with the fields of {kind.__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in data:
        if name not in fields:
            raise Misfit(f"{kind.__name__} has no field {name!r}; it has {', '.join(fields)}")
    for name, field in fields.items():
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_needed and field.init and name not in data:
            raise Misfit(f"the field {name!r} of {kind.__name__} is missing")
    hints = class_hints(kind)
    return construct({name: _at(f".{name}", item, hints.get(name, Any)) for name, item in data.items()}, kind)


def _structure_typed_dict(value: Any, kind: Any) -> dict[str, Any]:
    data = _expect(value, dict, "an object")
    for name in kind.__required_keys__ - data.keys():
        raise Misfit(f"the field {name!r} of {kind.__name__} is missing")
    hints = class_hints(kind)
    return {name: _at(f".{name}", item, _bare(hints.get(name, Any))) for name, item in data.items()}


def _bare(annotation: Any) -> Any:
    is_marked = typing.get_origin(annotation) in (typing.Required, typing.NotRequired)
    return typing.get_args(annotation)[0] if is_marked else annotation


def _at(place: str, value: Any, annotation: Any) -> Any:
    try:
        return _structure(value, annotation)
    except Misfit as misfit:
        misfit.path.append(place)
        raise
    except (TypeError, ValueError) as error:
        refused = Misfit(str(error))
        refused.path.append(place)
        raise refused from error


def _expect(value: Any, kinds: Any, words: str) -> Any:
    if not isinstance(value, kinds):
        raise Misfit(f"{_shown(value)} is not {words}")
    return value


def _shown(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _name(annotation: Any) -> str:
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


# --- single values ----------------------------------------------------------------------------------------------------


def _read_int(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Misfit(f"{_shown(value)} is not a whole number")
    return value


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Misfit(f"{_shown(value)} is not a number")
    return float(value)


def _read_decimal(value: Any) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Misfit(f"{_shown(value)} is not a decimal number")
    try:
        return Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise Misfit(f"{_shown(value)} is not a decimal number") from None


def _read_timedelta(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Misfit(f"{_shown(value)} is not a number of seconds")
    return timedelta(seconds=value)


def _of_type(kind: type, words: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise Misfit(f"{_shown(value)} is not {words}")
        return value

    return read


def _from_text(kind: type, parse: Callable[[str], Any], words: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, kind) and not (kind is date and isinstance(value, datetime)):
            return value
        if isinstance(value, str):
            try:
                return parse(value)
            except ValueError:
                pass
        raise Misfit(f"{_shown(value)} is not {words}")

    return read


_READERS: dict[Any, Callable[[Any], Any]] = {
    int: _read_int,
    float: _read_float,
    Decimal: _read_decimal,
    timedelta: _read_timedelta,
    bool: _of_type(bool, "true or false"),
    str: _of_type(str, "a text"),
    type(None): _of_type(types.NoneType, "null"),
    datetime: _from_text(datetime, datetime.fromisoformat, "a time such as 2026-12-24T18:00:00Z"),
    date: _from_text(date, date.fromisoformat, "a date such as 2026-12-24"),
    time: _from_text(time, time.fromisoformat, "a time of day such as 18:00"),
    UUID: _from_text(UUID, UUID, "a UUID"),
}
