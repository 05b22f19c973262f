"""Durable waits of a job body: sleeps, timers, signals, events, webhooks, updates and breakpoints.

All are the same: a row of their kind that is 'running' from the commit in which the body begins to wait, and that the
engine, or the sender of what it waits for, ends. If that is there already, the wait is ended in that very commit, so
nothing can come in between. A body begins to wait when it asks; that is recorded with the run's next commit.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from .._codec import decode, encode
from .._errors import EventTimeout, SignalTimeout, UpdateTimeout, WebhookTimeout
from .._jobs import check_validator, rejection
from .._model import LATEST, OperationKind, StepStatus, to_milliseconds
from .._store import StepRecord
from .history import History, Operation
from .outcomes import Outcomes
from .reporting import Reporting
from .run_loop import RunLoop, RunTimer
from .services import Services
from .tenure import Tenure

REFUSALS = 1000
"""How often the body of a cancelled run is refused a wait; after that it stands still, so that it does not loop."""
MANY_TIMERS = 10_000
"""After so many timers without another operation, a log line suggests something better."""
_TIMEOUTS = {
    OperationKind.SIGNAL: SignalTimeout,
    OperationKind.EVENT: EventTimeout,
    OperationKind.WEBHOOK: WebhookTimeout,
    OperationKind.UPDATE: UpdateTimeout,
}

Take = Callable[[StepRecord, int], None]
"""Inside a transaction: end a wait that has begun, if what it waits for is there; the time is in milliseconds."""


class Wait(Operation):
    """Something that a body waits for."""

    def __init__(
        self, waits: Waits, record: StepRecord, reason: str, take: Take | None, topic: str | None = None
    ) -> None:
        super().__init__(record.name)
        self.kind = OperationKind(record.kind)
        self.reason = reason
        self.record = record
        self.take = take
        self.topic = topic or ""
        """Of a wait for messages: where they are; the record of one that has ended has no topic any more."""
        self.is_recorded = False
        """``True`` once it is recorded that it has begun."""
        self._waits = waits

    def start(self) -> None:
        self._waits.begin(self)

    def call_off(self) -> None:
        self._waits.call_off(self)


class TimerWait(Wait):
    """A timer that a body has set on its event loop, with ``asyncio.sleep`` or ``asyncio.timeout``."""

    def __init__(self, waits: Waits, record: StepRecord, timer: RunTimer, loop: RunLoop) -> None:
        super().__init__(waits, record, "a timer of asyncio", None)
        self._timer = timer
        self._loop = loop

    def deliver(self, record: StepRecord) -> None:
        self.is_called_off = True  # cancelling the timer from here on changes nothing that is recorded
        self._loop.fire(self._timer)


class Waits:
    """The durable waits of one run."""

    def __init__(
        self,
        services: Services,
        history: History,
        loop: RunLoop,
        tenure: Tenure,
        reporting: Reporting,
        outcomes: Outcomes,
    ) -> None:
        self.is_cancelled = False
        """``True`` once the run is cancelled."""
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._history = history
        self._loop = loop
        self._tenure = tenure
        self._reporting = reporting
        self._outcomes = outcomes
        self._dues: list[tuple[int, str]] = []  # a heap: when, and the key
        self._updates: dict[str, Wait] = {}  # open ones, whose messages the run itself has to look at
        self._timers_in_a_row = 0
        self._refusals = 0
        self._unrecorded = 0  # waits whose beginning is not written yet

    # --- time --------------------------------------------------------------------------------------------------------

    async def sleep(self, name: str, seconds: float) -> None:
        """Wait for a time, counted from when it is first asked for."""
        milliseconds = _milliseconds(seconds)
        await self._wait(name, OperationKind.SLEEP, self._clock.now() + milliseconds)

    async def sleep_until(self, name: str, moment: datetime) -> None:
        """Wait until a moment."""
        await self._wait(name, OperationKind.SLEEP, to_milliseconds(moment) or 0)

    def add_timer(self, timer: RunTimer) -> None:
        """The body has set a timer on its event loop; it is due by the engine's clock."""
        if self._tenure.is_detached:  # the body cleans up: nothing is recorded any more
            delay = max(timer.when() - self._loop.time(), 0.0)
            self._clock.call_later(delay, lambda: self._fire_unrecorded(timer))
            return
        key = self._history.timer_key()
        found = self._history.record(key)
        if found is not None and found.outcome_order is not None and self._history.may_return(found):
            self._loop.fire(timer)  # the body had not asked for it when its outcome was due to be delivered
            return
        due = found.wake_at if found is not None else None
        if due is None:
            delay = min(max(timer.when() - self._loop.time(), 0.0) * 1000, LATEST)
            due = min(self._clock.now() + round(delay), LATEST)
        record = found or self._new_record(key, OperationKind.TIMER, due)
        timer.operation = wait = TimerWait(self, record, timer, self._loop)
        self._history.open(wait)
        self._note_due(wait)
        self._start(wait, found)
        self._count_timer()

    def _fire_unrecorded(self, timer: RunTimer) -> None:
        if not timer.cancelled() and not self._loop.is_closed():
            self._loop.fire(timer)
            self._loop.wake()

    def _count_timer(self) -> None:
        self._timers_in_a_row += 1
        if self._timers_in_a_row == MANY_TIMERS:
            self._reporting.note(
                "warning",
                f"The job body has set {MANY_TIMERS:,} timers without another operation. Each is recorded: use "
                "ctx.sleep, a schedule, or ctx.continue_as_new instead of a loop of asyncio.sleep.",
            )

    def cancel_timer(self, timer: RunTimer) -> None:
        """The body has cancelled a timer."""
        wait = timer.operation
        if wait is None or wait.is_called_off or self._tenure.is_detached:
            return
        wait.is_called_off = True
        self._history.close(wait)
        self.call_off(wait)

    # --- messages ----------------------------------------------------------------------------------------------------

    async def signal(self, name: str, timeout: float | None, type_: Any) -> Any:
        """The payload of the first signal of that name that no other wait has taken."""
        topic = f"{OperationKind.SIGNAL}:{name}"
        run_id = self._tenure.run_id

        def take(record: StepRecord, now: int) -> None:
            message = self._store.messages.next(run_id, topic)
            if message is not None:
                self._store.messages.mark(run_id, topic, message.message_id, "taken")
                self._end(record, now, output=message.payload, message_id=message.message_id)

        due = self._timeout(timeout)
        record = await self._wait(name, OperationKind.SIGNAL, due, f"signal {name!r}", take, topic=topic)
        return _result(record, type_)

    async def event(self, topic: str, match: dict[str, Any] | None, timeout: float | None) -> Any:
        """The payload of the next event on a topic that matches."""
        detail = None if match is None else encode(match, path=f"match of event {topic!r}")
        reason, found_by = f"an event on {topic!r}", f"{OperationKind.EVENT}:{topic}"
        due = self._timeout(timeout)
        return _result(await self._wait(topic, OperationKind.EVENT, due, reason, topic=found_by, detail=detail))

    async def webhook(self, name: str) -> tuple[str, str]:
        """The key of a new webhook, and its token; it is committed when this returns, and can be called."""
        await self._tenure.enter(name)
        key = self._history.key(name)
        record = self._history.ask(key, OperationKind.WEBHOOK)
        if record is None:
            token = urlsafe_b64encode(os.urandom(24)).decode()
            record = self._new_record(key, OperationKind.WEBHOOK, None, f"webhook:{token}", encode(token))
            self._history.keep(record)
            begun = record
            self._tenure.commit_now(lambda: self._record_begun(begun))
        return key, decode(record.detail or "null")

    async def webhook_body(self, key: str, timeout: float | None) -> Any:
        """What was delivered to a webhook. The time counts from the first call that has a ``timeout``."""
        await self._tenure.enter(key)
        record = self._history.record(key)
        assert record is not None
        due = self._timeout(timeout)

        def note_timeout(begun: StepRecord, now: int) -> None:
            if due is not None and begun.wake_at is None:
                self._store.waits.limit(self._tenure.run_id, begun, due, now)

        if record.wake_at is None and due is not None:
            record = record._replace(wake_at=due)
        return _result(await self._outcome(Wait(self, record, f"webhook {key!r}", note_timeout)))

    async def update(self, name: str, validator: Callable[[Any], Any] | None, timeout: float | None) -> tuple[str, Any]:
        """The id and the argument of the next update of that name that the validator accepts."""
        check_validator(name, validator)
        topic = f"{OperationKind.UPDATE}:{name}"
        run_id = self._tenure.run_id

        def take(record: StepRecord, now: int) -> None:
            while (message := self._store.messages.next(run_id, topic)) is not None:
                reason = rejection(validator, decode(message.payload))
                if reason is None:
                    self._store.messages.mark(run_id, topic, message.message_id, "taken")
                    taken = encode([message.message_id, decode(message.payload)])
                    self._end(record, now, output=taken, message_id=message.message_id)
                    return
                self._store.messages.mark(run_id, topic, message.message_id, "rejected", encode(reason))
                self._store.journal.changed.add(run_id)

        due = self._timeout(timeout)
        record = await self._wait(name, OperationKind.UPDATE, due, f"update {name!r}", take, topic=topic)
        message_id, argument = _result(record)
        return message_id, argument

    async def answer(self, name: str, message_id: str, answer: Any) -> None:
        """Give the sender of an update its answer; it is committed with the others of this turn."""
        text = encode(answer, path=f"answer to update {name!r}")
        self._tenure.check()
        run_id = self._tenure.run_id

        def write() -> None:
            self._tenure.fence()
            self._store.messages.mark(run_id, f"{OperationKind.UPDATE}:{name}", message_id, "answered", text)
            self._store.journal.changed.add(run_id)

        self._tenure.submit(write)

    async def breakpoint(self, label: str) -> None:
        """Wait until the run is resumed."""
        await self._wait(label, OperationKind.BREAKPOINT, None, f"breakpoint {label!r} to be resumed")

    # --- what they share ---------------------------------------------------------------------------------------------

    async def _wait(
        self,
        name: str,
        kind: OperationKind,
        due: int | None,
        reason: str = "",
        take: Take | None = None,
        *,
        topic: str | None = None,
        detail: str | None = None,
    ) -> StepRecord:
        await self._tenure.enter(name)
        key = self._history.key(name)
        return await self.wait_for(key, kind, due, reason or f"the end of {kind} {key!r}", take, topic, detail)

    async def wait_for(
        self,
        key: str,
        kind: OperationKind,
        due: int | None,
        reason: str,
        take: Take | None = None,
        topic: str | None = None,
        detail: str | None = None,
    ) -> StepRecord:
        """The outcome of a wait under its key; if it was never asked for, it begins now.

        :param due: when it is over, or times out; milliseconds since 1970-01-01 UTC.
        :param reason: what the run waits for, in words.
        :param topic: by which it is found by what ends it.
        :param detail: what else ends it, as the codec's text.
        """
        record = self._history.ask(key, kind)
        if record is None:
            record = self._new_record(key, kind, None if due is None else min(due, LATEST), topic, detail)
        return await self._outcome(Wait(self, record, reason, take, topic))

    async def _outcome(self, wait: Wait) -> StepRecord:
        self._timers_in_a_row = 0
        record = self._history.record(wait.key)
        if record is not None and record.outcome_order is not None:
            return record if self._history.may_return(record) else await self._history.outcome(wait)
        if self.is_cancelled and wait.kind != OperationKind.SLEEP:
            await self._refuse()
        self._note_due(wait)
        if wait.kind == OperationKind.UPDATE:
            self._updates[wait.key] = wait
        if record is None or record.status != StepStatus.CANCELLED:
            self._start(wait, record)
        try:
            return await self._history.outcome(wait)
        finally:
            self._updates.pop(wait.key, None)

    async def _refuse(self) -> NoReturn:
        """Let a task of a cancelled run wait for nothing; one that catches that in a loop stands still in the end.

        :raises CancelledError: the first ``REFUSALS`` times.
        """
        self._refusals += 1
        if self._refusals > REFUSALS:
            await self._loop.create_future()
        raise asyncio.CancelledError

    def _new_record(
        self, key: str, kind: OperationKind, due: int | None, topic: str | None = None, detail: str | None = None
    ) -> StepRecord:
        return StepRecord(
            key,
            kind,
            StepStatus.RUNNING,
            self._history.next_position(),
            1,
            wake_at=due,
            topic=topic,
            detail=detail,
            started_at=self._clock.now(),
        )

    def _start(self, wait: Wait, found: StepRecord | None) -> None:
        """Begin to wait, now or when the run is live, and not paused; one that has begun needs it for what it may take.

        A pause does not hold up a timer: what it may bring about does not begin.
        """
        if found is not None and wait.take is None:
            wait.is_recorded = True
        elif wait.kind == OperationKind.CHILD:
            self._outcomes.start_in_turn(wait)  # not beside a function that the task has called off
        elif self._history.is_live and (wait.kind == OperationKind.TIMER or not self._tenure.is_paused):
            self.begin(wait)
        else:
            self._history.queue(wait)

    def begin(self, wait: Wait) -> None:
        """Record with the next commit that the body waits; if what it waits for is there, the wait ends in that."""

        def write() -> None:
            if not wait.is_called_off:
                self.record_begun(wait)

        def committed(error: BaseException | None) -> None:
            self._unrecorded -= 1
            if error is not None:
                self._history.fail(wait, error)

        self._unrecorded += 1
        self._tenure.later(write, committed, simple=wait.take is None, fenced=False)

    def record_begun(self, wait: Wait) -> None:
        """Inside a transaction: record that a wait has begun, and end it, if what it waits for is there."""
        begun = self._record_begun(wait.record)
        wait.is_recorded = True
        if wait.take is not None and begun.status == StepStatus.RUNNING:
            wait.take(begun, self._clock.now())
        due = begun.wake_at or wait.record.wake_at
        if due is not None and due <= self._clock.now():
            self._store.waits.settle_overdue(self._tenure.run_id, self._clock.now())
        elif due is not None:
            self._services.on_due(due)

    def _record_begun(self, record: StepRecord) -> StepRecord:
        self._tenure.fence()
        return self._store.waits.begin(self._tenure.run_id, record, self._clock.now())

    def call_off(self, wait: Wait) -> None:
        """The body waits no longer. What was sent to the wait, and not delivered, is for the next one.

        A webhook may be waited for again.
        """
        if self._tenure.is_detached or wait.kind == OperationKind.WEBHOOK:
            return
        record = self._history.record(wait.key)
        if record is not None and record.status == StepStatus.CANCELLED:
            return

        def write() -> None:
            if wait.is_recorded or record is not None:
                self._tenure.fence()
                self._record_call_off(wait)

        self._tenure.later(write, lambda error: None, simple=wait.kind == OperationKind.TIMER, fenced=False)

    def _record_call_off(self, wait: Wait) -> None:
        run_id, now = self._tenure.run_id, self._clock.now()
        if wait.kind == OperationKind.TIMER:
            self._store.steps.forget_timer(run_id, wait.key)
            return
        ended = self._store.family.call_off(run_id, wait.key, now)
        topic = wait.topic
        if wait.kind in (OperationKind.SIGNAL, OperationKind.UPDATE) and ended is not None and ended.detail is not None:
            self._store.messages.put_back(run_id, topic, ended.detail)
            if wait.kind == OperationKind.SIGNAL:
                self._store.waits.hand_out(run_id, topic, now, "a signal has come back")
            self._store.journal.changed.add(run_id)

    def _end(self, record: StepRecord, now: int, output: str = "null", message_id: str | None = None) -> None:
        run_id = self._tenure.run_id
        self._store.waits.settle(run_id, record.name, now, output=output, message_id=message_id, reason="")

    def _timeout(self, seconds: float | None) -> int | None:
        return None if seconds is None else min(self._clock.now() + _milliseconds(seconds), LATEST)

    # --- for the run -------------------------------------------------------------------------------------------------

    def look_at_messages(self) -> None:
        """A message may have come that the run itself has to look at: an update, whose validator decides."""
        if self._tenure.is_parked or self._tenure.is_paused:
            return
        for wait in list(self._updates.values()):
            if self._history.is_live and self._store.waits.has_message(self._tenure.run_id, wait.topic):
                self.begin(wait)

    def refuse_what_comes_from_outside(self) -> None:
        """The run is cancelled: its body may clean up, and wait for a time, but for nothing else."""
        self.is_cancelled = True

    @property
    def has_unrecorded(self) -> bool:
        """``True`` when a wait has begun, and that is not written yet."""
        return self._unrecorded > 0

    @property
    def open_updates(self) -> list[Wait]:
        """The updates that the body waits for."""
        return list(self._updates.values())

    def _note_due(self, wait: Wait) -> None:
        due = wait.record.wake_at
        if due is not None:
            heapq.heappush(self._dues, (due, wait.key))

    @property
    def next_due(self) -> int | None:
        """When the first wait of the body is over, in milliseconds since 1970-01-01 UTC; ``None`` without one."""
        while self._dues and not self._history.is_open(self._dues[0][1]):
            heapq.heappop(self._dues)
        return self._dues[0][0] if self._dues else None


def _milliseconds(seconds: float) -> int:
    """:raises ValueError: when it is not a number of seconds."""
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise ValueError(f"A time to wait is a finite number of seconds that is not negative, not {seconds!r}.")
    return round(min(seconds * 1000, LATEST))


def _result(record: StepRecord, type_: Any = Any) -> Any:
    if record.status == StepStatus.FAILED:
        raise _TIMEOUTS[OperationKind(record.kind)](record.name)
    return decode(record.output or "null", type_)
