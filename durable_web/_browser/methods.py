"""The methods of an engine that a page may call, by their names on the wire.

A page gives parameters by name, in camelCase, and times in milliseconds since 1970-01-01 UTC; the names in Python are
the same in snake_case. An unknown parameter is rejected, with its name in camelCase.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Coroutine
from typing import Any

from .._engine import Engine
from .._errors import InvalidOption
from .._model import from_milliseconds
from .._triggers import Trigger

NAMES = (
    *("trigger", "triggerWithSignal", "publish", "deliverWebhook"),
    *("runs.get", "runs.list", "runs.count", "runs.steps", "runs.logs", "runs.value"),
    *("runs.signal", "runs.update", "runs.pause", "runs.resume", "runs.cancel"),
    *("runs.retry", "runs.retrigger", "runs.fork", "runs.delete"),
    *("schedules.create", "schedules.list", "schedules.pause", "schedules.resume", "schedules.delete"),
)
TIMES = frozenset({"runAt", "deadline", "createdAfter", "createdBefore"})
_CAPITAL = re.compile(r"[A-Z]")
_AFTER_UNDERSCORE = re.compile(r"_([a-z])")


class Method:
    """A method as a page calls it.

    :param name: on the wire, such as ``"runs.get"``.
    """

    def __init__(self, name: str, function: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.name = name
        self._function = function
        parameters = list(inspect.signature(function).parameters.values())
        names = [each.name for each in parameters if each.kind != each.VAR_KEYWORD]
        if len(names) < len(parameters):  # `**options` are the options of a trigger
            names += [field.name for field in dataclasses.fields(Trigger)]
        self.parameters = {camel_case(each): each for each in names}
        """The parameters' names in Python, by their names on the wire."""
        self._required = [
            camel_case(each.name) for each in parameters if each.default is each.empty and each.kind != each.VAR_KEYWORD
        ]

    async def call(self, parameters: dict[str, Any]) -> Any:
        """Call the method.

        :param parameters: by name, as a page gives them.
        :raises InvalidOption: when the method has no such parameter, one is missing, or a time is not a number.
        """
        given = {}
        for name, value in parameters.items():
            if name not in self.parameters:
                raise InvalidOption(name, self._refusal(name))
            given[self.parameters[name]] = _time(name, value) if name in TIMES else value
        for name in self._required:
            if name not in parameters:
                raise InvalidOption(name, f"{self.name} needs the parameter {name!r}, which is missing or undefined.")
        return await self._function(**given)

    def _refusal(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.parameters, n=1, cutoff=0.7)
        known = ", ".join(sorted(self.parameters))
        advice = f"Did you mean {close[0]!r}?" if close else f"It has {known}."
        return f"{self.name} has no parameter {name!r}. {advice}"


def methods_of(engine: Engine) -> dict[str, Method]:
    """The methods of an engine, by their names on the wire."""
    found = {}
    for name in NAMES:
        owner: Any = engine
        for part in snake_case(name).split("."):
            owner = getattr(owner, part)
        found[name] = Method(name, owner)
    return found


def camel_case(name: str) -> str:
    """Convert a name from snake_case to camelCase."""
    return _AFTER_UNDERSCORE.sub(lambda found: found[1].upper(), name)


def snake_case(name: str) -> str:
    """Convert a name from camelCase to snake_case."""
    return _CAPITAL.sub(lambda found: f"_{found[0].lower()}", name)


def _time(name: str, value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        message = f"{name} is a time in milliseconds since 1970-01-01 UTC, as Date.now() gives it, not {value!r}."
        raise InvalidOption(name, message)
    return from_milliseconds(value)  # type: ignore[arg-type]
