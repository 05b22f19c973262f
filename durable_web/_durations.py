"""Durations as arguments: a ``timedelta``, a number of seconds, or a text such as ``"30d"``."""

from __future__ import annotations

import re
from datetime import timedelta

Duration = timedelta | float | str

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def to_timedelta(value: Duration) -> timedelta:
    """A duration as a ``timedelta``; texts are a whole number and one of s, m, h, d, w.

    :raises ValueError: when ``value`` is not a duration.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return timedelta(seconds=value)
    found = re.fullmatch(r"(\d+)([smhdw])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            f'A duration is a timedelta, a number of seconds, or a text such as "30d" or "12h", not {value!r}.'
        )
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        raise ValueError(f"{value!r} is longer than a timedelta can be.") from None


def duration_in_milliseconds(value: Duration) -> int:
    """A duration in milliseconds; raises what ``to_timedelta`` raises."""
    return round(to_timedelta(value).total_seconds() * 1000)
