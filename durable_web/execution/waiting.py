"""Durable waits of a job body: sleeps, signals, events, webhooks, updates, breakpoints and child runs.

All are the same: a step of their kind that is 'running' from the commit in which the body begins to wait, and that
somebody ends. If what it waits for is there already, it is ended in that very commit, so nothing can come in between.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import os
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..codec import decode, encode
from ..errors import (
    ChildFailed,
    CircularWait,
    EventTimeout,
    SignalTimeout,
    UpdateTimeout,
    WebhookTimeout,
    describe,
    message_of,
)
from ..identifiers import derive
from ..job import Job
from ..model import LATEST, RunStatus, StepStatus, to_milliseconds
from ..store import NewRun, StepRecord
from ..triggers import Trigger

if TYPE_CHECKING:
    from .executor import Execution
    from .services import Services

SLEEP, SIGNAL, EVENT, WEBHOOK = "sleep", "signal", "event", "webhook"
UPDATE, BREAKPOINT, CHILD, START = "update", "breakpoint", "child", "start"
WAITS = frozenset({SLEEP, SIGNAL, EVENT, WEBHOOK, UPDATE, BREAKPOINT, CHILD})
_CALLED_OFF = WAITS - {WEBHOOK}  # when the body waits no longer; a webhook may be waited for again

_TIMEOUTS = {SIGNAL: SignalTimeout, EVENT: EventTimeout, WEBHOOK: WebhookTimeout, UPDATE: UpdateTimeout}

Take = Callable[[StepRecord, int], None]


class Waiting:
    """The durable waits of one execution."""

    def __init__(self, execution: Execution, services: Services) -> None:
        self._execution = execution
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._webhook_calls: dict[str, int] = {}

    # --- time --------------------------------------------------------------------------------------------------------

    async def sleep(self, name: str, seconds: float) -> None:
        """Wait for a time, counted from when it is first waited."""
        await self._sleep(name, lambda now: now + _milliseconds(seconds))

    async def sleep_until(self, name: str, moment: datetime) -> None:
        """Wait until a moment."""
        until = to_milliseconds(moment) or 0
        await self._sleep(name, lambda now: until)

    async def _sleep(self, name: str, due: Callable[[int], int]) -> None:
        def is_over(record: StepRecord, now: int) -> None:
            if (record.wake_at or 0) <= now:
                self._end(record, now)

        await self._wait(name, SLEEP, take=is_over, due=due)

    # --- messages ----------------------------------------------------------------------------------------------------

    async def signal(self, name: str, timeout: float | None, type_: Any) -> Any:
        """The payload of the first signal of that name that no other wait has taken."""
        topic = f"{SIGNAL}:{name}"
        run_id = self._execution.claim.run_id

        def take(record: StepRecord, now: int) -> None:
            message = self._store.messages.next(run_id, topic)
            if message is not None:
                self._store.messages.mark(run_id, topic, message.message_id, "taken")
                self._end(record, now, output=message.payload, message_id=message.message_id)

        record = await self._wait(name, SIGNAL, topic=topic, timeout=timeout, take=take)
        return _result(record, type_)

    async def event(self, topic: str, match: dict[str, Any] | None, timeout: float | None) -> Any:
        """The payload of the next event on a topic that matches."""
        detail = None if match is None else encode(match, path=f"match of event {topic!r}")
        record = await self._wait(topic, EVENT, topic=f"{EVENT}:{topic}", detail=detail, timeout=timeout)
        return _result(record)

    async def webhook(self, name: str) -> tuple[str, str]:
        """The recorded name of a new webhook, and its token."""
        token = urlsafe_b64encode(os.urandom(24)).decode()
        key = self._execution.names.give(name)
        with self._execution.branches.under_way():
            record = await self._begin(key, WEBHOOK, topic=f"{WEBHOOK}:{token}", detail=encode(token))
        return key, decode(record.detail or "null")

    async def webhook_body(self, name: str, timeout: float | None) -> Any:
        """What was delivered to a webhook."""
        due = self._timeout(timeout)

        def note_timeout(record: StepRecord, now: int) -> None:
            if due is not None and record.wake_at is None:
                self._store.waits.limit(self._execution.claim.run_id, record, due(now), now)

        call = self._webhook_calls[name] = self._webhook_calls.get(name, -1) + 1
        return _result(await self._wait_for(name, WEBHOOK, call, take=note_timeout))

    async def update(self, name: str, validator: Callable[[Any], Any] | None, timeout: float | None) -> tuple[str, Any]:
        """The id and the argument of the next update of that name that the validator accepts."""
        if inspect.iscoroutinefunction(validator):
            raise TypeError(f"The validator of update {name!r} must be synchronous: write `def`, not `async def`.")
        topic = f"{UPDATE}:{name}"
        run_id = self._execution.claim.run_id

        def take(record: StepRecord, now: int) -> None:
            while (message := self._store.messages.next(run_id, topic)) is not None:
                reason = _rejection(validator, message.payload)
                if reason is None:
                    self._store.messages.mark(run_id, topic, message.message_id, "taken")
                    taken = encode([message.message_id, decode(message.payload)])
                    self._end(record, now, output=taken, message_id=message.message_id)
                    return
                self._store.messages.mark(run_id, topic, message.message_id, "rejected", encode(reason))
                self._store.journal.changed.add(run_id)

        message_id, argument = _result(await self._wait(name, UPDATE, topic=topic, timeout=timeout, take=take))
        return message_id, argument

    async def answer(self, name: str, message_id: str, answer: Any) -> None:
        """Give the sender of an update its answer."""
        text = encode(answer, path=f"answer to update {name!r}")
        run_id = self._execution.claim.run_id

        def write() -> None:
            self._store.runs.fence(self._execution.claim)
            self._store.messages.mark(run_id, f"{UPDATE}:{name}", message_id, "answered", text)
            self._store.journal.changed.add(run_id)

        await self._execution.parking.has_lease()
        await self._execution.commit(write)

    async def breakpoint(self, label: str) -> None:
        """Wait until a person resumes the run."""
        await self._wait(label, BREAKPOINT)

    # --- runs --------------------------------------------------------------------------------------------------------

    def children(self, names: Iterable[str], triggers: Iterable[Trigger]) -> list[Callable[[], Awaitable[Any]]]:
        """Child runs that are started when they are called: each gives its output.

        Their names are given now, and what they are to be started with is checked; of one that has ended already, it
        is not, because the code may have changed since.
        """
        return [
            self._child(self._execution.names.give(name), trigger)
            for name, trigger in zip(names, triggers, strict=True)
        ]

    def _child(self, key: str, trigger: Trigger) -> Callable[[], Awaitable[Any]]:
        made = self._check(key, trigger)
        name = trigger.job.name if isinstance(trigger.job, Job) else trigger.job
        type_ = self._services.registry[name].output_type if name in self._services.registry else Any
        return functools.partial(self._run_child, key, made, type_)

    async def _run_child(self, key: str, made: NewRun | None, type_: Any) -> Any:
        parent = self._execution.claim.run_id

        def start(record: StepRecord, now: int) -> None:
            if made is not None and record.topic is None:  # else it follows another run, which has not ended
                self._start(dataclasses.replace(made, parent_run_id=parent, parent_step=key), record, now)

        record = await self._wait_for(key, CHILD, take=start)
        if record.status == StepStatus.FAILED:
            error = record.error or {}
            child_id = (
                derive(parent, self._execution.names.path(key)) if record.detail is None else decode(record.detail)
            )
            raise ChildFailed(key, child_id, error.get("type", ""), error.get("message", ""))
        return decode(record.output or "null", type_)

    def _start(self, child: NewRun, record: StepRecord, now: int) -> None:
        """Insert the child, or follow the run that stands for it.

        One that is there already, of before a retry, goes on, or has its output taken.
        """
        latest = self._store.runs.latest(child.id)
        if latest is None:
            self._insert(child, record, now)
        elif latest.status == RunStatus.COMPLETED:
            self._end(record, now, output=latest.output or "null")
        else:
            self._store.runs.tell_parent_step(latest.run_id, record.name)
            if latest.status.is_terminal:
                self._store.steps.forget_unsettled(latest.run_id)
                self._store.runs.reopen(latest.run_id, now, child.input if latest.run_id == child.id else None)

    def _insert(self, child: NewRun, record: StepRecord, now: int) -> None:
        run_id = self._execution.claim.run_id
        try:
            found = self._services.admit_child(child, now, True)
        except CircularWait as error:
            self._store.waits.settle(run_id, record.name, now, error=describe(error), reason="")
            return
        if found != child.id:
            self._store.family.follow(run_id, record, found)

    async def start(self, name: str, trigger: Trigger) -> str:
        """Start a run, and do not wait for it: its id, or that of the run that stands for it."""
        key = self._execution.names.give(name)
        made = self._check(key, trigger)

        def insert(record: StepRecord, now: int) -> None:
            run_id = derive(self._execution.claim.run_id, self._execution.names.path(key))
            if made is not None and not self._store.runs.exists(run_id):
                child = dataclasses.replace(made, parent_run_id=self._execution.claim.run_id)
                run_id = self._services.admit_child(child, now, False)
            self._end(record, now, output=encode(run_id))

        return _result(await self._wait_for(key, START, take=insert))

    def _check(self, key: str, trigger: Trigger) -> NewRun | None:
        """The run to be started under a name; ``None`` when it has been, and its end is recorded."""
        if self._execution.is_unwinding or self._execution.has_outcome(key):
            return None
        job, text = trigger.check(self._services.registry)
        return trigger.new_run(derive(self._execution.claim.run_id, self._execution.names.path(key)), job, text)

    # --- what they share ---------------------------------------------------------------------------------------------

    async def _wait(
        self,
        name: str,
        kind: str,
        *,
        topic: str | None = None,
        detail: str | None = None,
        timeout: float | None = None,
        due: Callable[[int], int] | None = None,
        take: Take | None = None,
    ) -> StepRecord:
        key = self._execution.names.give(name)
        due = due or self._timeout(timeout)
        return await self._wait_for(key, kind, topic=topic, detail=detail, due=due, take=take)

    async def _wait_for(self, key: str, kind: str, call: int = 0, **what: Any) -> StepRecord:
        """The record of a wait once somebody has ended it; if need be, begin it.

        :param call: which call of the body waits for it, from 0.
        """
        execution = self._execution
        execution.reach(key)
        had_ended = execution.has_outcome(key)
        with execution.branches.under_way():
            try:
                await execution.timeouts.recall(key, call)
                if self._was_called_off(key, kind):
                    execution.check()
                    await execution.parking.wait_to_be_called_off(key)
                record = await self._begin(key, kind, **what)
                while not record.is_settled:
                    await execution.parking.wait_for(key, record.wake_at, record.waiting_for or kind, call)
                    record = execution.record(key)
                    if not record.is_settled:  # a message has come that has to be looked at
                        record = await self._commit(record, what.get("take"))
            except asyncio.CancelledError:
                if kind in _CALLED_OFF and not had_ended:
                    self._call_off(execution.record(key), what.get("topic"))
                raise
        return record

    def _was_called_off(self, key: str, kind: str) -> bool:
        """Whether the body has called the wait off in an earlier execution, and so will in this one.

        It must not end before that: the body would go another way than it went. Only when nothing is left that could
        call it off, because the code has changed meanwhile, it is waited for anew.
        """
        found = self._execution.records.get(key)
        is_called_off = found is not None and found.status == StepStatus.CANCELLED and found.kind == kind
        return is_called_off and kind in _CALLED_OFF

    def _call_off(self, record: StepRecord, topic: str | None) -> None:
        """The body itself waits no longer, because of a timeout say.

        What was sent to the wait after that, and before it is known, is for the next one.
        """
        execution = self._execution
        if record.status == StepStatus.CANCELLED or execution.is_abandoned:
            return
        run_id, now = execution.claim.run_id, self._clock.now()
        execution.records[record.name] = record._replace(status=StepStatus.CANCELLED)

        def write() -> None:
            ended = self._store.family.call_off(run_id, record.name, now)
            if record.kind in (SIGNAL, UPDATE) and ended is not None and ended.detail is not None:
                self._store.messages.put_back(run_id, topic or "", ended.detail)
                if record.kind == SIGNAL:
                    self._store.waits.hand_out(run_id, topic or "", now, "a signal has come back")
                self._store.journal.changed.add(run_id)

        execution.ride_along(write)

    async def _begin(
        self,
        key: str,
        kind: str,
        *,
        topic: str | None = None,
        detail: str | None = None,
        due: Callable[[int], int] | None = None,
        take: Take | None = None,
    ) -> StepRecord:
        record = await self._execution.arrive(key, kind)
        if record.is_settled:
            return record
        record = await self._execution.may_begin(record)
        if record.topic is None:
            wake_at = record.wake_at
            if wake_at is None and due is not None:
                wake_at = min(due(self._clock.now()), LATEST)
            record = record._replace(topic=topic, detail=detail, wake_at=wake_at)
        return await self._commit(record, take)

    async def _commit(self, record: StepRecord, take: Take | None) -> StepRecord:
        """Commit that the wait has begun, or, if what it waits for is there, that it is over."""
        execution = self._execution
        run_id = execution.claim.run_id

        def write() -> None:
            self._store.runs.fence(execution.claim)
            now = self._clock.now()
            begun = self._store.waits.begin(run_id, record, now)
            if take is not None and not begun.is_settled:
                take(begun, now)

        await execution.commit(write)
        begun = execution.reload_in_body(record.name)
        if record.kind in (CHILD, START) or (begun.wake_at is not None and not begun.is_settled):
            self._services.on_timer()
            begun = execution.reload_in_body(record.name)  # it may have come just now
        return begun

    def _end(self, record: StepRecord, now: int, output: str = "null", message_id: str | None = None) -> None:
        run_id = self._execution.claim.run_id
        self._store.waits.settle(run_id, record.name, now, output=output, message_id=message_id, reason="")

    def _timeout(self, seconds: float | None) -> Callable[[int], int] | None:
        return None if seconds is None else lambda now: now + _milliseconds(seconds)


def _milliseconds(seconds: float) -> int:
    """:raises ValueError: when it is not a number of seconds."""
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise ValueError(f"A time to wait is a finite number of seconds that is not negative, not {seconds!r}.")
    return round(seconds * 1000)


def _result(record: StepRecord, type_: Any = Any) -> Any:
    if record.status == StepStatus.FAILED:
        raise _TIMEOUTS[record.kind](record.name)
    return decode(record.output or "null", type_)


def _rejection(validator: Callable[[Any], Any] | None, payload: str) -> str | None:
    """Why a validator does not accept what was sent; ``None`` when it does."""
    if validator is None:
        return None
    try:
        verdict = validator(decode(payload))
    except Exception as error:
        return message_of(error)
    return "the validator did not accept it" if verdict is False else None
