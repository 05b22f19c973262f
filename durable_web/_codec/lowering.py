"""Values in the terms that JSON has, and back: tagged, where JSON itself would bend them.

What is no JSON value is written as ``{"$durable": tag, "value": ...}``, or as the plain data of its class; what has no
such form is ``Refused``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from .annotations import is_class_with_data, is_pydantic_model, is_record, reads_what_it_writes

TAG = "$durable"
ATOMS = frozenset({str, int, bool, type(None)})


class Refused(Exception):
    """Unwinds the walk to an offending value, collecting the way there, innermost part first."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []


def lower(value: Any, ancestors: set[int]) -> Any:
    """``value`` in terms that JSON keeps apart; the value itself where it is JSON already."""
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise Refused(f"{value!r} has no form in JSON; use None or a string.")
        return value
    if kind is dict or kind is list:
        return _lower_container(value, kind, ancestors)
    if kind in TAGGED:
        tag, write = TAGGED[kind]
        return {TAG: tag, "value": write(value)}
    if kind in _TAGGED_SEQUENCES:
        items = sorted(value, key=repr) if kind is not tuple else value
        lowered = _lower_container(list(items), list, ancestors)
        if kind is not tuple:
            _refuse_unlike_members(lowered)
        return {TAG: kind.__name__, "value": lowered}
    return lower(plain_data(value), ancestors)


def _lower_container(value: Any, kind: type, ancestors: set[int]) -> Any:
    identity = id(value)
    if identity in ancestors:
        raise Refused("it contains itself.")
    ancestors.add(identity)
    lowered = _lower_list(value, ancestors) if kind is list else _lower_dict(value, ancestors)
    ancestors.discard(identity)
    return lowered


def _lower_list(items: list[Any], ancestors: set[int]) -> list[Any]:
    lowered = []
    for index, item in enumerate(items):
        try:
            lowered.append(item if type(item) in ATOMS else lower(item, ancestors))
        except Refused as refused:
            refused.path.append(f"[{index}]")
            raise
    return lowered


def _lower_dict(items: dict[Any, Any], ancestors: set[int]) -> dict[str, Any]:
    lowered = {}
    plain_keys = TAG not in items
    for key, item in items.items():
        plain_keys = plain_keys and type(key) is str
        try:
            lowered[key] = item if type(item) in ATOMS else lower(item, ancestors)
        except Refused as refused:
            refused.path.append(f"[{key!r}]")
            raise
    if plain_keys:
        return lowered
    pairs = [[lower(key, ancestors), item] for key, item in lowered.items()]
    _refuse_unlike_members([key for key, _ in pairs])
    return {TAG: "dict", "value": pairs}


def _refuse_unlike_members(lowered: list[Any]) -> None:
    """Refuse members of a set, or keys, that come back as a list or a dictionary, or as one."""
    try:
        members = {json.loads(json.dumps(item), object_hook=raise_tagged) for item in lowered}
    except TypeError:
        raise Refused(
            "a dataclass or a model in a set, or as a key, would come back as a dictionary, which cannot be there."
        ) from None
    if len(members) < len(lowered):
        raise Refused(
            "an enum member and its value, or two with the same value, would fall together in the set or as keys; "
            "use the members' names."
        )


def plain_data(value: Any) -> Any:
    """The data of an enum member, a dataclass instance or a pydantic model."""
    kind = type(value)
    if isinstance(value, Enum):
        return value.value
    if is_record(kind):  # type: ignore[arg-type]
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if is_pydantic_model(kind):
        refuses_more = kind.model_config.get("extra") == "forbid"  # such as the computed fields, which pages may want
        return value.model_dump(by_alias=reads_what_it_writes(kind), round_trip=refuses_more)  # type: ignore[arg-type]
    raise Refused(
        f"a {kind.__module__}.{kind.__qualname__} cannot be read back as what it was; "
        + (
            _advice_for(kind)
            or "return JSON values, dates, Decimal, UUID, bytes, tuples, sets, enums, dataclasses or pydantic models."
        )
    )


def _advice_for(kind: type) -> str | None:
    if kind in (bytearray, memoryview):
        return "return bytes(value)."
    if kind.__name__ == "JsNull":
        return "it is JavaScript's null: return None."
    if any(base.__name__ == "JsProxy" for base in kind.__mro__):
        return "it belongs to JavaScript: return value.to_py(), and of a buffer value.to_bytes()."
    return None


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
        raise Refused("its time zone has no name; use datetime.timezone or zoneinfo.ZoneInfo.")
    return {"wall": value.replace(tzinfo=None, fold=0).isoformat(), "zone": zone, "fold": value.fold}


def _read_datetime(value: str | dict[str, Any]) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    zone = None if value["zone"] is None else ZoneInfo(value["zone"])
    return datetime.fromisoformat(value["wall"]).replace(tzinfo=zone, fold=value["fold"])


def _write_time(value: time) -> str | dict[str, Any]:
    if not (value.tzinfo is None or type(value.tzinfo) is timezone):
        raise Refused("a time of day in a named zone has no offset that could be kept; use a datetime.")
    return {"wall": value.isoformat(), "fold": 1} if value.fold else value.isoformat()


def _read_time(value: str | dict[str, Any]) -> time:
    return time.fromisoformat(value) if isinstance(value, str) else time.fromisoformat(value["wall"]).replace(fold=1)


TAGGED: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode()),
    datetime: ("datetime", _write_datetime),
    date: ("date", date.isoformat),
    time: ("time", _write_time),
    timedelta: ("timedelta", _write_timedelta),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
}
_TAGGED_SEQUENCES = (tuple, set, frozenset)


def raise_tagged(item: dict[str, Any]) -> Any:
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


def has_instances(value: Any) -> bool:
    """Whether a value is, or has in its containers, an enum member, a dataclass instance or a model."""
    if type(value) in ATOMS:
        return False
    if isinstance(value, dict):
        return any(has_instances(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(has_instances, value))
    return is_class_with_data(type(value))


def shown(value: Any) -> str:
    """What ``repr`` says of a value; and where that fails, that it does."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__qualname__} that cannot be shown>"
