"""Looking whether a value that can be written comes back as what it is, where its annotation leaves a choice."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from .lowering import Refused, has_instances, is_pydantic_model, lower, raise_tagged, shown
from .restoring import UNIONS, field_types, fits, is_union, naming, restore, same


def refuse_misread(value: Any, annotation: Any) -> None:
    """Refuse a value that would be read back as another one under ``annotation``, which names a union of classes.

    Plain data is meant to become one of the classes, unless the union has a place for it as it is.

    :raises Refused: when it would.
    :raises TypeError, ValueError: when it does not read as ``annotation`` says.
    """
    if value is None or naming(annotation) != UNIONS:
        return
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        refuse_misread(value, arguments[0])
    elif is_union(annotation):
        _refuse_misread_choice(value, annotation)
    elif is_pydantic_model(annotation):
        _refuse_misread_model(value, annotation)
    elif dataclasses.is_dataclass(annotation):
        for name, part in field_types(annotation).items():
            item = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
            _refuse_part(item, part, f"[{name!r}]")
    elif isinstance(value, dict) and len(arguments) == 2:
        for key, item in value.items():
            _refuse_part(key, arguments[0], "")
            _refuse_part(item, arguments[1], f"[{key!r}]")
    elif isinstance(value, tuple) and arguments[-1] is not Ellipsis:
        for index, (item, part) in enumerate(zip(value, arguments, strict=False)):
            _refuse_part(item, part, f"[{index}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_part(item, arguments[0], f"[{index}]")
    elif isinstance(value, (set, frozenset)):
        for item in value:
            _refuse_part(item, arguments[0], "")


def _refuse_part(value: Any, annotation: Any, place: str) -> None:
    try:
        refuse_misread(value, annotation)
    except Refused as refused:
        refused.path.append(place)
        raise


def _refuse_misread_choice(value: Any, annotation: Any) -> None:
    data = _as_data(value)
    read = restore(data, annotation)
    fitting = [part for part in typing.get_args(annotation) if fits(value, part)]
    for part in fitting:
        if same(read, restore(data, part)):
            refuse_misread(value, part)
            return
    if fitting or (has_instances(value) and not same(value, read)):
        raise _misread(value, read, annotation)


def _refuse_misread_model(value: Any, kind: Any) -> None:
    """The same for the fields of a pydantic model, which reads them itself."""
    if type(value) is not kind:
        return
    read = restore(_as_data(value), kind)
    for name, part in field_types(kind).items():
        item, again = getattr(value, name, None), getattr(read, name, None)
        if naming(part) == UNIONS and not same(item, again):
            refused = _misread(item, again, part)
            refused.path.append(f"[{name!r}]")
            raise refused


def _as_data(value: Any) -> Any:
    """A value as it is read where nothing names a class."""
    return json.loads(json.dumps(lower(value, set())), object_hook=raise_tagged)


def _misread(value: Any, read: Any, annotation: Any) -> Refused:
    return Refused(
        f"under {annotation} it would be read back as {_short(read)}, not as {_short(value)}, because nothing in the "
        'data tells them apart. Give each class of the union a field such as `kind: Literal["dog"] = "dog"`, or name '
        "only the one that is meant; for an input or an output, a pydantic TypeAdapter with a discriminator does too."
    )


def _short(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
