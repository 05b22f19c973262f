"""What annotations say: the classes that they name, the choices that they leave, and what functions return."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
import weakref
from collections.abc import Callable
from enum import Enum
from typing import Any

NOTHING, CLASSES, UNIONS = range(3)


def naming(annotation: Any) -> int:
    """What ``annotation`` names at any depth: classes that ``restore`` would construct, or a choice of them."""
    try:
        return _naming(annotation)
    except TypeError:  # an unhashable annotation, such as Literal[[...]] inside Annotated
        return NOTHING


@functools.lru_cache(maxsize=1024)
def _naming(annotation: Any) -> int:
    if not _names_class(annotation):
        return NOTHING
    return UNIONS if _leaves_choice(annotation, set()) else CLASSES


def _names_class(annotation: Any) -> bool:
    return is_class_with_data(annotation) or any(map(_names_class, typing.get_args(annotation)))


def _leaves_choice(annotation: Any, seen: set[type]) -> bool:
    if is_class_with_data(annotation):
        if annotation in seen:
            return False
        seen.add(annotation)
        return any(_leaves_choice(part, seen) for part in field_types(annotation).values())
    arguments = typing.get_args(annotation)
    if is_union(annotation) and len(alternatives_of(arguments)) > 1 and _names_class(annotation):
        return True
    return any(_leaves_choice(part, seen) for part in arguments)


def is_union(annotation: Any) -> bool:
    """Whether it is ``X | Y`` or ``Union[X, Y]``."""
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def alternatives_of(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments of a union without ``None``."""
    return [part for part in arguments if part is not type(None)]


def field_types(kind: Any) -> dict[str, Any]:
    """The annotations of the fields of a dataclass or a pydantic model, by their names; an enum has none."""
    if is_pydantic_model(kind):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = class_hints(kind)
    return {name: hints.get(name, Any) for name in field_names(kind)}  # type: ignore[arg-type]


@functools.lru_cache(maxsize=1024)
def field_names(kind: Any) -> tuple[str, ...]:
    """The names of the fields of a dataclass or a pydantic model."""
    return tuple(kind.model_fields if is_pydantic_model(kind) else (field.name for field in dataclasses.fields(kind)))


# --- classes with data ------------------------------------------------------------------------------------------------


def is_pydantic_model(kind: Any) -> bool:
    """Whether it is a class that validates and writes itself, as pydantic's models do; pydantic is not imported."""
    return isinstance(kind, type) and _is_model(kind)


def is_class_with_data(annotation: Any) -> bool:
    """Whether it is an enum, a dataclass or a pydantic model."""
    return isinstance(annotation, type) and _has_data(annotation)


# Remembered, because every part of every value asks for them.
@functools.lru_cache(maxsize=1024)
def _is_model(kind: type) -> bool:
    return hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


@functools.lru_cache(maxsize=1024)
def _has_data(kind: type) -> bool:
    return issubclass(kind, Enum) or is_record(kind) or _is_model(kind)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=1024)
def is_record(kind: type) -> bool:
    """Whether it is a dataclass."""
    return dataclasses.is_dataclass(kind)


@functools.lru_cache(maxsize=1024)
def reads_what_it_writes(kind: Any) -> bool:
    """Whether a pydantic model is validated under the aliases under which it is written; else by its fields' names."""
    is_older = "by_name" not in inspect.signature(kind.model_validate).parameters  # than pydantic 2.11
    return is_older or _have_one_alias(kind, set())


def _have_one_alias(annotation: Any, seen: set[type]) -> bool:
    """Whether no field of the pydantic models that are named, and of theirs, has one alias to be read and another."""
    if not is_pydantic_model(annotation):
        return all(_have_one_alias(part, seen) for part in typing.get_args(annotation))
    if annotation in seen:
        return True
    seen.add(annotation)
    fields = annotation.model_fields.values()
    return all(
        field.validation_alias == field.serialization_alias and _have_one_alias(field.annotation, seen)
        for field in fields
    )


# --- resolving --------------------------------------------------------------------------------------------------------


def type_hints(owner: Any) -> dict[str, Any]:
    """The resolved annotations of a function or class; empty where they cannot be resolved."""
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except Exception:  # a forward reference to a name that is not there
        return {}


def class_hints(kind: Any) -> dict[str, Any]:
    """The resolved annotations of a class; empty as long as they cannot be resolved."""
    try:
        return resolved(kind)
    except Exception:  # as above; it may be there the next time
        return {}


@functools.lru_cache(maxsize=1024)
def resolved(kind: Any) -> dict[str, Any]:
    """The resolved annotations of a class.

    :raises Exception: when they cannot be resolved, as with a forward reference to a name that is not there.
    """
    return typing.get_type_hints(kind, include_extras=True)


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
