"""Events: notifications of listeners in the same process, right after the commit that caused them.

Domain events report the states of runs, and are for applications; operational events report the work of the engine.
Names are as they are on the wire. When a listener raises, or an asynchronous listener fails, its error goes to the
error handler, and the other listeners are called all the same.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ._model import ErrorInfo, camel_case, to_milliseconds, to_wire
from ._store import Fact

DOMAIN = frozenset({"run:trigger", "run:coalesced", "run:complete", "run:fail", "run:cancel", "run:delete", "run:dead"})
OPERATIONAL = frozenset(
    {
        "run:leased",
        "run:lease-renewed",
        "run:waiting",
        "run:progress",
        "step:start",
        "step:complete",
        "step:fail",
        "step:cancel",
        "log:write",
        "worker:error",
    }
)


_TIMES = frozenset({"timestamp", "lease_expires_at"})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    ``timestamp`` is its time in UTC. ``run_id`` is ``None`` only for an error that concerns no run; ``job_name`` and
    ``labels`` are then empty. ``sequence`` counts this engine's events from 1. The fields that the type adds are in
    ``fields``, and are attributes as well: ``run:trigger`` has input; ``run:coalesced`` skipped_input, skipped_labels;
    ``run:complete`` output, duration; ``run:fail`` error, failed_step_name; ``run:dead`` error; ``run:leased`` input,
    lease_owner, lease_expires_at; ``run:lease-renewed`` lease_expires_at; ``run:progress`` progress; ``step:start`` and
    ``step:cancel`` step_name, step_index; ``step:complete`` also output, duration; ``step:fail`` also error, duration;
    ``log:write`` step_name, level, message, data; ``worker:error`` error, context. Durations are seconds.
    """

    type: str
    timestamp: datetime
    sequence: int
    run_id: str | None
    job_name: str
    labels: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """The event as JSON data for the wire: names in camelCase, times in milliseconds since 1970-01-01 UTC."""
        own = ("type", "timestamp", "sequence", "run_id", "job_name", "labels")
        parts = {name: getattr(self, name) for name in own} | self.fields
        return {
            camel_case(name): to_milliseconds(value) if name in _TIMES else to_wire(value)
            for name, value in parts.items()
        }

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(f"an event {self.type!r} has no field {name!r}") from None


Listener = Callable[[Event], Awaitable[None] | None]
ErrorHandler = Callable[[BaseException, Event], None]


def is_domain_event(event: Event | str) -> bool:
    """``True`` when an event, or a type of event, reports the state of a run, and not the work of the engine."""
    return (event if isinstance(event, str) else event.type) in DOMAIN


class Events:
    """The listeners, by type of event."""

    def __init__(self, identify: Callable[[str], tuple[str, dict[str, str]]]) -> None:
        """``identify`` returns the job's name and the labels of a run."""
        self._identify = identify
        self._listeners: dict[str, list[Listener]] = {}
        self._sequence = itertools.count(1)
        self._tasks: set[asyncio.Future[None]] = set()
        self.on_error: ErrorHandler = _log_failure

    @property
    def is_listening(self) -> bool:
        return any(self._listeners.values())

    def add(self, type: str, listener: Listener) -> None:
        """Add a listener for a type of event.

        :raises ValueError, TypeError: when there is no such type, or the listener cannot be called.
        """
        if not callable(listener):
            raise TypeError(f"A listener is a function of an event, not {listener!r}.")
        if type not in DOMAIN | OPERATIONAL:
            raise ValueError(f"There is no event {type!r}; there are {', '.join(sorted(DOMAIN | OPERATIONAL))}.")
        self._listeners.setdefault(type, []).append(listener)

    def remove(self, type: str, listener: Listener) -> None:
        """Remove a listener; does nothing when the listener was not added."""
        if listener in self._listeners.get(type, ()):
            self._listeners[type].remove(listener)

    def publish(self, facts: list[Fact]) -> None:
        """Call the listeners with the committed events, in order."""
        for fact in facts:
            self._tell(fact.type, fact.ts, fact.run_id, dict(fact.fields))

    def report(self, error: BaseException, context: str, now: int, run_id: str | None = None) -> None:
        """Report an error of the engine itself."""
        info = ErrorInfo(type(error).__name__, str(error))
        self._tell("worker:error", now, run_id, {"error": info, "context": context})

    def _tell(self, type: str, ts: int, run_id: str | None, fields: dict[str, Any]) -> None:
        listeners = self._listeners.get(type)
        if not listeners:
            return
        job_name, labels = ("", {}) if run_id is None else self._identify(run_id)
        job_name, labels = fields.pop("job_name", job_name), fields.pop("labels", labels)
        moment = datetime.fromtimestamp(ts / 1000, UTC)
        event = Event(type, moment, next(self._sequence), run_id, job_name, labels, fields)
        for listener in list(listeners):
            self._call(listener, event)

    def _call(self, listener: Listener, event: Event) -> None:
        try:
            result = listener(event)
        except BaseException as error:  # never raised: the event is already committed
            self._handle(error, event)
            return
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(self._finish(result, event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, result: Awaitable[None], event: Event) -> None:
        """Wait for an asynchronous listener, and catch its ``SystemExit``, which would end asyncio's event loop."""
        try:
            await result
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self._handle(error, event)

    def _handle(self, error: BaseException, event: Event) -> None:
        try:
            self.on_error(error, event)
        except BaseException as worse:
            _log_failure(worse, event)


def _log_failure(error: BaseException, event: Event) -> None:
    logging.getLogger("durable_web").error("A listener to %r failed", event.type, exc_info=error)
