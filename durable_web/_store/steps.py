"""Steps, their failed attempts, log lines, progress and published values. ``runs.fence`` comes before every write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, cast

from .._codec import decode, readable, to_json
from .._model import Attempt, ErrorInfo, OperationKind, Step, StepStatus, from_milliseconds
from .database import Database
from .journal import Claim, Journal, without_traceback
from .runs import LeaseLost
from .sql import steps as queries

CANCEL = "cancel:"
"""The name under which the cancellation of a run is recorded."""
REMEMBERED_RUNS = 1000
_INTERNAL = frozenset({OperationKind.CANCEL, OperationKind.COMPENSATING})
"""What is listed nowhere: the run's own frames say it."""
_PUBLISHED = re.compile(r"event (.*?)(?:#\d+)?", re.DOTALL)


def published_as(key: str) -> str:
    """The name of the step that publishes a value under a key."""
    return f"event {key}"


class StepRecord(NamedTuple):
    """A step as it stands in the database; ``output`` is the codec's text, times are milliseconds."""

    name: str
    kind: str
    status: str
    position: int
    attempt: int
    attempts_before: int = 0
    output: str | None = None
    error: dict[str, str] | None = None
    retry_at: int | None = None
    queued: int = 0
    wake_at: int | None = None
    topic: str | None = None
    detail: str | None = None
    undo: int = 0
    started_at: int = 0
    completed_at: int | None = None
    outcome_order: int | None = None  # the place of the outcome among those of the run
    inline: int = 0  # 1 when the outcome was returned at once

    @property
    def is_settled(self) -> bool:
        """``True`` when it has ended by itself, and was not called off."""
        return self.status in (StepStatus.COMPLETED, StepStatus.FAILED)

    @property
    def waiting_for(self) -> str | None:
        """For what it waits, in words; ``None`` when it does not wait."""
        if self.status != StepStatus.RUNNING:
            return None
        if self.retry_at is not None:
            return f"the next attempt at {self.name!r}"
        what = (self.topic or "").partition(":")[2]
        return _WAITS[self.kind].format(name=self.name, what=what) if self.kind in _WAITS else None


_WAITS = {
    "sleep": "the end of sleep {name!r}",
    "signal": "signal {what!r}",
    "event": "an event on {what!r}",
    "webhook": "webhook {name!r}",
    "update": "update {what!r}",
    "breakpoint": "breakpoint {name!r} to be resumed",
    "child": "child run {name!r}",
    "timer": "a timer of asyncio",
}


_TIMED = frozenset({OperationKind.SLEEP, OperationKind.TIMER})
"""What does not end before it is due."""


class Steps:
    """The verbs on what a run records while it executes."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal
        self._last_outcomes: dict[str, tuple[int, int]] = {}  # order and time, as far as they are known here
        self._data_version = 0  # of the database, when they were read

    def load(self, run_id: str) -> dict[str, StepRecord]:
        """What a run has recorded, by name, in the order of first recording."""
        rows = self._database.rows(queries.STEPS, {"run_id": run_id})
        return {row[0]: _record(row) for row in rows}

    def find(self, run_id: str, name: str) -> StepRecord | None:
        """What a run has recorded under one name."""
        row = self._database.row(queries.STEP, {"run_id": run_id, "name": name})
        return None if row is None else _record(row)

    def get(self, run_id: str) -> list[Step]:
        """The steps of a run, in the order of first recording, with their failed attempts."""
        attempts: dict[str, list[Attempt]] = {}
        for name, *values in self._database.rows(queries.ATTEMPTS, {"run_id": run_id}):
            attempts.setdefault(name, []).append(_attempt(values))
        records = [record for record in self.load(run_id).values() if record.kind not in _INTERNAL]
        return [_step(record, tuple(attempts.get(record.name, ()))) for record in records]

    def outcomes_after(self, run_id: str, outcome_order: int) -> list[StepRecord]:
        """The outcomes of a run with a higher order, in their order."""
        values = {"run_id": run_id, "outcome_order": outcome_order}
        return [_record(row) for row in self._database.rows(queries.OUTCOMES_AFTER, values)]

    def has_outcome_after(self, run_id: str, outcome_order: int) -> bool:
        """``True`` when another outcome than an inline one was recorded with a higher order."""
        values = {"run_id": run_id, "outcome_order": outcome_order}
        return self._database.row(queries.HAS_OUTCOME_AFTER, values) is not None

    def record(self, run_id: str, record: StepRecord, now: int) -> None:
        """Write a step's state, its frame and its event."""
        self.note(run_id, record)
        self.tell_of(run_id, record, now)

    def note(self, run_id: str, record: StepRecord) -> None:
        """Write a step's state, without a frame."""
        self._database.execute(queries.RECORD_STEP, _values(run_id, record))

    def record_outcome(self, claim: Claim, record: StepRecord, now: int, *, after: int | None = None) -> StepRecord:
        """Write an outcome of an executing run, with the run's next order, its frame and its notification.

        :param after: the order after which the outcome is inline: no other one was recorded since.
        :returns: the record with its order; its time is not before that of the outcome before it.
        :raises LeaseLost: when the run is no longer this engine's; nothing is written.
        """
        record = self._with_fence(claim, record, now, after)
        if record.kind not in _INTERNAL:
            self.tell_of(claim.run_id, record, now)
        return record

    def _with_fence(self, claim: Claim, record: StepRecord, now: int, after: int | None) -> StepRecord:
        run_id = claim.run_id
        last, time = self._last(run_id)
        at = now if now > time else time
        record = record._replace(completed_at=at, outcome_order=last + 1, inline=int(last == after))
        values = (*_values(run_id, record), run_id, claim.generation)
        if self._database.execute(queries.RECORD_STEP_FENCED, values).rowcount != 1:
            raise LeaseLost(run_id)
        self._last_outcomes[run_id] = last + 1, at
        return record

    def record_completed(
        self, claim: Claim, record: StepRecord, output: str, now: int, after: int | None
    ) -> StepRecord:
        """``record_outcome`` of a step that has begun and now completes: what nearly every step comes to."""
        run_id = claim.run_id
        name, kind, _, position, attempt, before, _, _, _, queued, _, _, _, undo, started_at, _, _, _ = record
        last, time = self._last(run_id)
        at, order, inline = now if now > time else time, last + 1, int(last == after)
        done = (name, kind, position, attempt, before, output, queued, undo, started_at, at, order, inline)
        values = (*done, run_id, claim.generation)
        if self._database.execute(queries.RECORD_COMPLETED_FENCED, values).rowcount != 1:
            raise LeaseLost(run_id)
        self._last_outcomes[run_id] = order, at
        nothing = None
        record = StepRecord(
            name,
            kind,
            StepStatus.COMPLETED,
            position,
            attempt,
            before,
            output,
            nothing,
            nothing,
            queued,
            nothing,
            nothing,
            nothing,
            undo,
            started_at,
            at,
            order,
            inline,
        )
        self.tell_of(run_id, record, now)
        return record

    def settle(self, run_id: str, record: StepRecord, now: int) -> StepRecord:
        """Write an outcome that does not come from the run's execution, with the run's next order, and its frame."""
        record = self._number(run_id, record, now)
        self.record(run_id, record, now)
        self._remember(run_id, record)
        return record

    def record_cancel(self, run_id: str, now: int) -> None:
        """Write that the run is cancelled: an outcome that takes its place in the order."""
        record = StepRecord(CANCEL, OperationKind.CANCEL, StepStatus.COMPLETED, -1, 1, started_at=now)
        record = self._number(run_id, record, now)
        self.note(run_id, record)
        self._remember(run_id, record)

    def _number(self, run_id: str, record: StepRecord, now: int) -> StepRecord:
        last, time = self._last(run_id)
        at = max(now, time, record.wake_at or 0 if record.kind in _TIMED else 0)
        return record._replace(completed_at=at, outcome_order=last + 1, inline=0)

    def _remember(self, run_id: str, record: StepRecord) -> None:
        self._last_outcomes[run_id] = record.outcome_order or 0, record.completed_at or 0

    def _last(self, run_id: str) -> tuple[int, int]:
        """Inside a transaction: order and time of a run's last outcome; what is known of them is read anew when another
        connection has written, which none can while the transaction is open.
        """
        if not self._database.is_exclusive:
            version = self._database.data_version()
            if version != self._data_version:
                self._last_outcomes.clear()
                self._data_version = version
        return self._last_outcomes.get(run_id) or self._read_last_outcome(run_id)

    def _read_last_outcome(self, run_id: str) -> tuple[int, int]:
        if len(self._last_outcomes) > REMEMBERED_RUNS:
            self._last_outcomes.clear()
        order, completed_at = self._database.row(queries.LAST_OUTCOME, {"run_id": run_id})
        found = self._last_outcomes[run_id] = (0, 0) if order is None else (order, completed_at)
        return found

    def forget_orders(self) -> None:
        """What was written may have been rolled back: read the last orders anew."""
        self._last_outcomes.clear()

    def tell_of(self, run_id: str, record: StepRecord, now: int) -> None:
        """Tell of a step's state: its frame and its event."""
        body: dict[str, Any] = {
            "name": record.name,
            "status": record.status,
            "attempt": record.attempt,
            "index": record.position,
        }
        if record.kind != "step":
            body["type"] = record.kind
        if record.wake_at is not None and record.status == StepStatus.RUNNING:
            body["wakeAt"] = record.wake_at
        if record.completed_at is not None:
            body["duration"] = _seconds(record.started_at, record.completed_at)
        if record.error is not None:
            body["error"] = without_traceback(record.error)
        if record.retry_at is not None:
            body["retryAt"] = record.retry_at
        self._journal.append(run_id, now, "step_status", body)
        if self._journal.is_listening:
            self._tell(run_id, record, now)

    def record_attempt(self, run_id: str, record: StepRecord, error: dict[str, str], now: int) -> None:
        """Keep a failed attempt that another one will follow; ``record`` says when."""
        values = {
            "run_id": run_id,
            "name": record.name,
            "attempt": record.attempt,
            "error": to_json(error),
            "queued": record.queued,
            "started_at": record.started_at,
            "now": now,
        }
        self._database.execute(queries.RECORD_ATTEMPT, values)
        self.record(run_id, record, now)

    def cancel_running(self, run_id: str, now: int) -> None:
        """Mark what a run was executing as cancelled."""
        running = self._database.rows(queries.RUNNING_STEPS, {"run_id": run_id})
        self._database.execute(queries.CANCEL_STEPS, {"run_id": run_id, "now": now})
        for name, kind, position, attempt, started_at in running:
            body = {"name": name, "status": StepStatus.CANCELLED, "attempt": attempt, "index": position}
            if kind != "step":
                body["type"] = kind
            self._journal.append(run_id, now, "step_status", {**body, "duration": _seconds(started_at, now)})
            self._journal.tell("step:cancel", run_id, now, step_name=name, step_index=position)

    def forget_unsettled(self, run_id: str) -> None:
        """Forget the steps that did not complete, or were undone, so that they are called again.

        Their failed attempts stay listed. What was published after the first of them may depend on them, and is
        published again: a webhook's token, say. Timers begin anew.
        """
        values = {"run_id": run_id}
        self._database.execute(queries.KEEP_LAST_FAILURES, values)
        self._database.execute(queries.FORGET_LATER_PUBLICATIONS, values)
        self._database.execute(queries.FORGET_UNSETTLED_STEPS, values)
        self._database.execute(queries.FORGET_TIMERS, values)
        self._last_outcomes.pop(run_id, None)

    def forget_timer(self, run_id: str, name: str) -> None:
        """Forget a timer that was cancelled before it fired."""
        self._database.execute(queries.FORGET_TIMER, {"run_id": run_id, "name": name})

    def delete(self, run_id: str) -> None:
        """Delete everything that a run has recorded in its steps; its timeline stays."""
        for text in queries.DELETE_STEPS:
            self._database.execute(text, {"run_id": run_id})
        self._last_outcomes.pop(run_id, None)

    def copy_before(self, source_run_id: str, run_id: str, record: StepRecord, now: int) -> None:
        """Give a run the outcomes that another recorded before that of ``record``, and has not undone.

        They stay the other one's to undo. What was published before, the run publishes too.
        """
        values = {"source_run_id": source_run_id, "run_id": run_id, "position": record.position}
        self._database.execute(queries.COPY_STEPS, {**values, "outcome_order": record.outcome_order})
        for copied in self.load(run_id).values():
            key = _PUBLISHED.fullmatch(copied.name) if copied.kind == OperationKind.PUBLISH else None
            if key is not None and copied.output is not None:
                self.set_value(run_id, key[1], copied.output, readable(decode(copied.output)), now)

    def append_log(self, run_id: str, ts: int, body: dict[str, Any]) -> None:
        """Append a log line."""
        self._journal.append(run_id, ts, "log", body)
        self._journal.tell(
            "log:write",
            run_id,
            ts,
            step_name=body["step"],
            level=body["level"],
            message=body["message"],
            data=body["fields"],
        )

    def body_lines(self, run_id: str) -> Iterator[tuple[str, str]]:
        """Level and message of every log line that a run's body, not one of its steps, has written."""
        for (text,) in self._database.rows(queries.LOG_BODIES, {"run_id": run_id}):
            body = json.loads(text)
            if body["step"] is None:
                yield body["level"], body["message"]

    def set_progress(self, run_id: str, now: int, progress: dict[str, Any]) -> None:
        """Note how far a run has come."""
        self._database.execute(queries.SET_PROGRESS, {"id": run_id, "progress": to_json(progress), "now": now})
        self._journal.append(run_id, now, "progress", progress)
        self._journal.tell("run:progress", run_id, now, progress=progress)

    def set_value(self, run_id: str, key: str, value: str, readable: Any, now: int) -> None:
        """Publish a value of a run under a key; ``value`` is the codec's text, ``readable`` what frames carry."""
        self._database.execute(queries.SET_VALUE, {"run_id": run_id, "key": key, "value": value, "now": now})
        self._journal.append(run_id, now, "event", {"key": key, "value": readable})

    def stored_value(self, run_id: str, key: str) -> str | None:
        """The latest value that a run has published under a key, as the codec's text."""
        row = self._database.row(queries.GET_VALUE, {"run_id": run_id, "key": key})
        return None if row is None else row[0]

    def get_value(self, run_id: str, key: str, default: Any) -> Any:
        """The latest value that a run has published under a key."""
        text = self.stored_value(run_id, key)
        return default if text is None else decode(text)

    def earlier_attempts(self, run_id: str) -> dict[str, int]:
        """The number of the last attempt at each step that has no record any more, because its run was retried."""
        return dict(self._database.rows(queries.EARLIER_ATTEMPTS, {"run_id": run_id}))

    def _tell(self, run_id: str, record: StepRecord, now: int) -> None:
        common = {"step_name": record.name, "step_index": record.position}
        duration = _seconds(record.started_at, now if record.completed_at is None else record.completed_at)
        if record.status == StepStatus.COMPLETED:
            output = None if record.output is None else decode(record.output)
            self._journal.tell("step:complete", run_id, now, **common, output=output, duration=duration)
        elif record.status == StepStatus.FAILED or record.retry_at is not None:
            self._journal.tell("step:fail", run_id, now, **common, error=_error(record.error), duration=duration)
        elif record.status == StepStatus.CANCELLED:
            self._journal.tell("step:cancel", run_id, now, **common)
        else:
            self._journal.tell("step:start", run_id, now, **common)


def _values(run_id: str, record: StepRecord) -> tuple[Any, ...]:
    """A row of durable_steps, in the order of its columns."""
    if record.error is not None:
        record = record._replace(error=to_json(record.error))  # type: ignore[arg-type]
    return (run_id, *record)


def _seconds(start: int, end: int) -> float:
    """What lies between two times; none when the clock was set back meanwhile."""
    return max(end - start, 0) / 1000


def _error(error: dict[str, str] | None) -> ErrorInfo | None:
    return None if error is None else ErrorInfo(**error)


def _record(row: tuple[Any, ...]) -> StepRecord:
    error = None if row[7] is None else json.loads(row[7])
    return StepRecord._make((*row[:7], error, *row[8:]))


def _attempt(values: list[Any]) -> Attempt:
    number, error, queued, started_at, completed_at = values
    return Attempt(
        number=number,
        error=ErrorInfo(**json.loads(error)),
        queue_time=queued / 1000,
        started_at=cast(datetime, from_milliseconds(started_at)),
        completed_at=cast(datetime, from_milliseconds(completed_at)),
    )


def _step(record: StepRecord, attempts: tuple[Attempt, ...]) -> Step:
    return Step(
        name=record.name,
        kind=record.kind,
        status=StepStatus(record.status),
        index=record.position,
        attempt=record.attempt,
        output=None if record.output is None else decode(record.output),
        error=_error(record.error),
        failed_attempts=attempts,
        retry_at=from_milliseconds(record.retry_at),
        wake_at=from_milliseconds(record.wake_at),
        waiting_for=record.waiting_for,
        queue_time=record.queued / 1000,
        started_at=cast(datetime, from_milliseconds(record.started_at)),
        completed_at=from_milliseconds(record.completed_at),
    )
