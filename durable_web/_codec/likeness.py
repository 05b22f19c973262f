"""Comparing values: what is the same, what is of a kind, and how much of the data was kept."""

from __future__ import annotations

import inspect
import typing
from enum import Enum
from typing import Any

from .annotations import field_names, is_class_with_data, is_union
from .lowering import Refused, lower

LOSSY, CONVERTED, EQUAL, SAME = range(4)


def how_alike(value: Any, restored: Any) -> int:
    """How much of the data is in what was made of it: from ``LOSSY`` to ``SAME``."""
    if same(value, restored):
        return SAME
    try:
        again = lower(restored, set())
        if _equal(value, again):
            return EQUAL
        data = lower(value, set())
        if _equal(data, again):
            return EQUAL
    except (Refused, TypeError, ValueError):
        return LOSSY
    return CONVERTED if type(data) in (dict, list) and _keeps(data, again) else LOSSY


def _equal(data: Any, again: Any) -> bool:
    """Whether two values are the same JSON, in whatever order the keys are."""
    kind = type(data)
    if kind is not type(again):
        return False
    if kind is dict:
        return data.keys() == again.keys() and all(_equal(item, again[key]) for key, item in data.items())
    if kind is list:
        return len(data) == len(again) and all(map(_equal, data, again))
    return bool(data == again)


def _keeps(data: Any, again: Any) -> bool:
    """Whether all that is there is there again, converted and with more beside it as it may be."""
    if type(data) is dict and type(again) is dict:
        return data.keys() <= again.keys() and all(_keeps(item, again[key]) for key, item in data.items())
    if type(data) is list and type(again) is list:
        return len(data) == len(again) and all(map(_keeps, data, again))
    return type(data) not in (dict, list)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, and of the same types throughout."""
    if left is right:
        return True
    kind = type(left)
    if kind is not type(right):
        return False
    if kind is dict:
        return len(left) == len(right) and same(list(left.items()), list(right.items()))
    if kind in (list, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if kind in (set, frozenset):
        return left == right and {type(item) for item in left} == {type(item) for item in right}
    if is_class_with_data(kind) and not issubclass(kind, Enum):
        return all(same(getattr(left, name, None), getattr(right, name, None)) for name in field_names(kind))  # type: ignore[arg-type]
    return bool(left == right)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what an annotation says already, as far as can be seen."""
    if annotation in (Any, object) or (value is None and annotation in (None, type(None))):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if is_union(annotation):
        return any(fits(value, part) for part in arguments)
    if origin is typing.Literal:
        return any(same(value, part) for part in arguments)
    kind = origin or annotation
    if not isinstance(kind, type) or (type(value) is not kind and not _is_of(value, kind)):
        return False
    if not arguments:
        return True
    if isinstance(value, dict) and len(arguments) == 2:
        return all(fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items())
    if isinstance(value, tuple) and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(fits(item, arguments[0]) for item in value)
    return True


def _is_of(value: Any, kind: type) -> bool:
    """Whether a plain value is of a kind that only says what it can do, such as ``Sequence``."""
    return inspect.isabstract(kind) and isinstance(value, kind) and not is_class_with_data(type(value))
