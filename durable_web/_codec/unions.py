"""Looking whether a value that can be written comes back as what it is, where its annotation leaves a choice."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable
from enum import Enum
from itertools import repeat
from typing import Any

from .annotations import UNIONS, alternatives_of, field_types, is_pydantic_model, is_union, naming
from .likeness import fits, same
from .lowering import Refused, has_instances, lower, raise_tagged, shown
from .restoring import restore

UNREAD: Any = object()


def refuse_misread(value: Any, annotation: Any, read: Any = UNREAD) -> None:
    """Refuse a value that would be read back as another one under ``annotation``, which names a union of classes.

    Plain data is meant to become one of the classes, unless the union has a place for it as it is. ``read`` is what
    the value is read back as, where that is known.

    :raises Refused: when it would.
    :raises TypeError, ValueError: when it does not read as ``annotation`` says.
    """
    if value is None or naming(annotation) != UNIONS or (read is not UNREAD and same(value, read)):
        return
    _refuse_unlike(value, annotation, read)


def _refuse_unlike(value: Any, annotation: Any, read: Any) -> None:
    """The same for what is not known to be read back unchanged."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        _refuse_part(value, arguments[0], read)
    elif is_union(annotation):
        _refuse_misread_choice(value, annotation, read)
    elif is_pydantic_model(annotation):
        _refuse_misread_model(value, annotation, read)
    elif dataclasses.is_dataclass(annotation):
        for name, part in field_types(annotation).items():
            _refuse_part(_field(value, name), part, _field(read, name), f"[{name!r}]")
    elif isinstance(value, dict) and len(arguments) == 2:
        for (key, item), (key_read, item_read) in zip(value.items(), _pairs(read, value), strict=True):
            _refuse_part(key, arguments[0], key_read)
            _refuse_part(item, arguments[1], item_read, f"[{key!r}]")
    elif isinstance(value, (list, tuple)):
        parts = repeat(arguments[0]) if arguments[-1] is Ellipsis or isinstance(value, list) else arguments
        for index, (item, part, item_read) in enumerate(zip(value, parts, _items(read, value), strict=False)):
            _refuse_part(item, part, item_read, f"[{index}]")
    elif isinstance(value, (set, frozenset)):
        for item in value:
            _refuse_part(item, arguments[0])


def _field(value: Any, name: str) -> Any:
    if value is UNREAD:
        return UNREAD
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _pairs(read: Any, value: dict[Any, Any]) -> Iterable[tuple[Any, Any]]:
    is_alike = type(read) is dict and len(read) == len(value)
    return read.items() if is_alike else repeat((UNREAD, UNREAD), len(value))


def _items(read: Any, value: Any) -> Iterable[Any]:
    return read if type(read) is type(value) and len(read) == len(value) else repeat(UNREAD, len(value))


def _refuse_part(value: Any, annotation: Any, read: Any = UNREAD, place: str = "") -> None:
    try:
        refuse_misread(value, annotation, read)
    except Refused as refused:
        refused.path.append(place)
        raise


def _refuse_misread_choice(value: Any, annotation: Any, read: Any) -> None:
    parts = alternatives_of(typing.get_args(annotation))
    if len(parts) == 1:
        _refuse_part(value, parts[0], read)
        return
    fitting = [part for part in parts if fits(value, part)]
    if not fitting and not has_instances(value):
        return
    data = UNREAD
    if read is UNREAD:
        data = _as_data(value)
        read = restore(data, annotation)
    if _comes_back(value, read):
        return
    for part in fitting:
        is_chosen = part is type(read)
        if not is_chosen:
            data = _as_data(value) if data is UNREAD else data
            is_chosen = same(read, restore(data, part))
        if is_chosen:
            refuse_misread(value, part, read)
            return
    raise _misread(value, read, annotation)


def _refuse_misread_model(value: Any, kind: Any, read: Any) -> None:
    """The same for the fields of a pydantic model, which reads them itself."""
    if type(value) is not kind:
        return
    read = restore(_as_data(value), kind) if read is UNREAD else read
    for name, part in field_types(kind).items():
        item, again = getattr(value, name, None), getattr(read, name, None)
        if naming(part) == UNIONS and not _comes_back(item, again):
            refused = _misread(item, again, part)
            refused.path.append(f"[{name!r}]")
            raise refused


def read_back(value: Any, annotation: Any) -> Any:
    """What a value that can be written is read back as; ``UNREAD`` where it does not read as that."""
    try:
        return restore(_as_data(value), annotation)
    except (TypeError, ValueError):
        return UNREAD


def _as_data(value: Any) -> Any:
    """A value as it is read where nothing names a class."""
    return json.loads(json.dumps(lower(value, set())), object_hook=raise_tagged)


def _comes_back(value: Any, read: Any) -> bool:
    """Whether it is the same, or has members of a ``StrEnum`` or ``IntEnum`` where there were their equal values."""
    if type(value) is type(read) and isinstance(value, (dict, list, tuple, set, frozenset)):
        if len(value) != len(read):
            return False
        if isinstance(value, dict):
            return all(map(_comes_back, value.items(), read.items()))
        if isinstance(value, (list, tuple)):
            return all(map(_comes_back, value, read))
        known = {item: item for item in value}
        return all(item in known and _comes_back(known[item], item) for item in read)
    if isinstance(read, Enum) and type(value) in (str, int):
        return isinstance(read, type(value)) and read == value
    return same(value, read)


def _misread(value: Any, read: Any, annotation: Any) -> Refused:
    if _has_member(value) or _has_member(read):
        advice = "Return the member itself and annotate only its enum, or annotate only the plain values."
    else:
        advice = (
            'Give each class of the union a field such as `kind: Literal["dog"] = "dog"`, or name only the one that is '
            "meant; for an input or an output, a pydantic TypeAdapter with a discriminator does too."
        )
    return Refused(
        f"under {annotation} it would be read back as {_short(read)}, not as {_short(value)}, because nothing in the "
        f"data tells them apart. {advice}"
    )


def _has_member(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_member(part) for pair in value.items() for part in pair)
    return any(map(_has_member, value)) if isinstance(value, (list, tuple, set, frozenset)) else isinstance(value, Enum)


def _short(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
