"""Plain data as the classes that an annotation names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from enum import Enum
from typing import Any, cast

from .annotations import (
    alternatives_of,
    class_hints,
    field_names,
    is_class_with_data,
    is_pydantic_model,
    is_record,
    is_union,
    naming,
    reads_what_it_writes,
    resolved,
)
from .likeness import EQUAL, LOSSY, SAME, fits, how_alike
from .lowering import has_instances


def construct(value: Any, annotation: Any) -> Any:
    """``restore`` for a value that has to be what ``annotation`` names: ``None`` is no instance of a class.

    :raises TypeError, ValueError: when it does not fit.
    """
    return _construct(annotation, value) if is_class_with_data(annotation) else restore(value, annotation)


def restore(value: Any, annotation: Any, known: dict[Any, Any] | None = None) -> Any:
    """Plain data as the classes that ``annotation`` names; what it says nothing of stays as it is.

    ``known`` is what the unions below one with several candidates were read as: each is read once for all of them.

    :raises TypeError, ValueError: when the data does not fit a class that is named.
    """
    if not naming(annotation) or value is None:
        return value
    if is_class_with_data(annotation):
        return _construct(annotation, value, known)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return restore(value, arguments[0], known)
    if origin is typing.Union or origin is types.UnionType:
        if known is None or not isinstance(value, (dict, list)):
            return _restore_union(value, alternatives_of(arguments), known)
        place = id(value), id(annotation)  # unions are equal in any order, but are not read alike
        if place not in known:
            known[place] = annotation, _restore_union(value, alternatives_of(arguments), known)
        return known[place][1]
    if isinstance(value, dict) and len(arguments) == 2:
        return {restore(key, arguments[0], known): restore(item, arguments[1], known) for key, item in value.items()}
    if isinstance(value, tuple) and arguments[-1] is not Ellipsis:
        return tuple(restore(item, part, known) for item, part in zip(value, arguments, strict=False))
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(restore(item, arguments[0], known) for item in value)
    return value


def _restore_union(value: Any, alternatives: list[Any], known: dict[Any, Any] | None) -> Any:
    """The first alternative that keeps all of the data as it is; else that keeps all of it, else that fits at all."""
    candidates = _candidates(value, [_bare(part) for part in alternatives])
    if len(candidates) == 1 and not _fits_plainly(value, alternatives):
        try:
            return restore(value, candidates[0], known)
        except (TypeError, ValueError):
            return value
    known = {} if known is None else known
    best, most, rank = value, -1, -1
    # what has more fields than the data cannot keep it as it is: its turn comes when nothing else has
    for place, candidate in sorted(enumerate(candidates), key=lambda pair: _has_more(pair[1], value)):
        try:
            restored = restore(value, candidate, known)
        except (TypeError, ValueError):
            continue
        likeness = how_alike(value, restored)
        if likeness == SAME or (likeness == EQUAL and not has_instances(value)):
            return restored
        if (likeness, -place) > (most, -rank):
            best, most, rank = restored, likeness, place
    return value if most <= LOSSY and _fits_plainly(value, alternatives) else best


def _candidates(value: Any, alternatives: list[Any]) -> list[Any]:
    """The alternatives with classes that a value may be read as, by what is seen without reading it."""
    possible = [
        part for part in alternatives if naming(part) and _may_be(value, part) and not _contradicts(value, part)
    ]
    return [part for part in possible if _is_contained(value, part)] or possible


def _fits_plainly(value: Any, alternatives: list[Any]) -> bool:
    return any(not naming(part) and fits(value, part) for part in alternatives)


def _bare(annotation: Any) -> Any:
    return _bare(annotation.__origin__) if typing.get_origin(annotation) is typing.Annotated else annotation


def _may_be(value: Any, annotation: Any) -> bool:
    """Whether there is a point in constructing a dataclass from a value: its fields have the right names."""
    if not isinstance(annotation, type) or is_pydantic_model(annotation) or not is_record(annotation):
        return True
    if not isinstance(value, dict):
        return isinstance(value, annotation)
    taken = _taken(annotation)
    if taken is None:
        return True
    needed, known = taken
    return needed <= value.keys() <= known


@functools.lru_cache(maxsize=1024)
def _taken(kind: Any) -> tuple[frozenset[str], frozenset[str]] | None:
    """The fields that a dataclass cannot be constructed without, and all that it takes; None: it cannot be said."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except Exception:  # such as an annotation that cannot be evaluated
        return None
    if any(one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) for one in parameters):
        return None
    apart = _not_in_init(dataclasses.fields(cast(Any, kind)))
    needed = frozenset(one.name for one in parameters if one.default is one.empty)
    return needed, frozenset(one.name for one in parameters) | apart


def _has_more(annotation: Any, value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(annotation, type) or is_pydantic_model(annotation):
        return False
    return is_record(annotation) and not value.keys() >= set(field_names(annotation))


def _is_contained(value: Any, annotation: Any) -> bool:
    """Whether a value is in the kind of container that an annotation says, if it says one."""
    if is_class_with_data(annotation):
        return True
    if is_union(annotation):
        return any(_is_contained(value, _bare(part)) for part in typing.get_args(annotation))
    origin = typing.get_origin(annotation)
    if not isinstance(origin, type) or not isinstance(value, (dict, list, tuple, set, frozenset)):
        return False
    return isinstance(value, origin) and (not isinstance(value, dict) or len(typing.get_args(annotation)) == 2)


def _contradicts(value: Any, annotation: Any) -> bool:
    """Whether a field that a dataclass says the values of has another one, as the tag of a tagged union."""
    if isinstance(value, list):
        arguments = typing.get_args(annotation)
        return len(arguments) == 1 and any(_contradicts(item, arguments[0]) for item in value)
    if not isinstance(value, dict) or not isinstance(annotation, type) or not is_record(annotation):
        return False
    try:
        said = _said(annotation)
    except Exception:  # a forward reference to a name that is not there
        return False
    return any(_plain(value[name]) not in said[name] for name in said.keys() & value.keys())


@functools.lru_cache(maxsize=1024)
def _said(kind: Any) -> dict[str, list[Any]]:
    """The values of the fields of a dataclass that it says the values of."""
    hints = resolved(kind)
    return {
        name: [_plain(value) for value in typing.get_args(hints[name])]
        for name in field_names(kind)
        if _is_literal(hints.get(name))
    }


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _construct(kind: type, value: Any, known: dict[Any, Any] | None = None) -> Any:
    if isinstance(value, kind):
        return value
    if issubclass(kind, Enum):
        return kind(value)
    if is_pydantic_model(kind):
        return _validate_model(kind, value)
    if not isinstance(value, dict):
        raise TypeError(f"{kind.__qualname__} is constructed from a dictionary of its fields, not from {value!r}")
    hints = class_hints(kind)
    apart = _not_in_init(dataclasses.fields(kind))  # type: ignore[arg-type]
    given = {name: restore(item, hints.get(name, Any), known) for name, item in value.items()}
    instance = kind(**{name: item for name, item in given.items() if name not in apart})
    for name in apart & given.keys():
        object.__setattr__(instance, name, given[name])
    return instance


def _validate_model(kind: Any, value: Any) -> Any:
    return (
        kind.model_validate(value)
        if reads_what_it_writes(kind)
        else kind.model_validate(value, by_alias=True, by_name=True)
    )


def _not_in_init(fields: tuple[dataclasses.Field[Any], ...]) -> set[str]:
    return {field.name for field in fields if not field.init}
