"""The public data: runs, steps, schedules and frames, as frozen dataclasses, and their forms on the wire.

Times are aware ``datetime`` objects in UTC; durations are seconds. On the wire names are in camelCase and times are
milliseconds since 1970-01-01 UTC, as JavaScript's ``Date`` takes them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypedDict

from ._codec import readable


class RunStatus(StrEnum):
    """The status of a run."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        """``True`` when the run has ended: completed, failed, cancelled or dead."""
        return self in TERMINAL

    @property
    def is_active(self) -> bool:
        """``True`` when the run has not ended: pending, running, waiting or cancelling."""
        return self not in TERMINAL


TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.DEAD})


class StepStatus(StrEnum):
    """The status of a step."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OperationKind(StrEnum):
    """The kinds of recorded operations of a job body."""

    STEP = "step"
    TRANSACTION = "transaction"
    VALUE = "value"
    PATCH = "patch"
    PUBLISH = "publish"
    SLEEP = "sleep"
    TIMER = "timer"
    SIGNAL = "signal"
    EVENT = "event"
    WEBHOOK = "webhook"
    UPDATE = "update"
    BREAKPOINT = "breakpoint"
    CHILD = "child"
    START = "start"
    COMPENSATION = "compensation"
    CANCEL = "cancel"
    """The cancellation of the run: an outcome without a call of the body."""
    COMPENSATING = "compensating"
    """The beginning of the compensation: the steps that were completed before it are undone."""


def from_milliseconds(milliseconds: int | None) -> datetime | None:
    """Milliseconds since 1970-01-01 UTC as an aware ``datetime``; out of range, the first or the last one."""
    if milliseconds is None:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.min.replace(tzinfo=UTC) if milliseconds < 0 else datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as data: the exception's class name, its message, and its traceback where one was kept."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: ``current`` of ``total`` (``None`` where the end is unknown), in the job's own units."""

    current: float
    total: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a job for one input.

    ``attempt`` counts the times the job body was begun. ``recoveries`` counts the deaths of its engine that count
    against the run, since its last outcome. ``generation`` rises with every claim and retry; ``lease_owner`` and
    ``lease_expires_at`` are set while the run is leased, ``wake_at`` while it waits for the next attempt at a step.
    ``ready_at`` is when the run last became claimable. A ``paused`` run starts no further step; ``waiting_reason`` says
    what a waiting run waits for. ``ending`` is the final status of a cancelling run, after its compensations. A child
    run has its parent's ``parent_run_id`` and ``parent_step``; ``continued_from`` and ``continued_as`` link the runs of
    ``ctx.continue_as_new``, ``dead_letter_of`` and ``dead_letter_id`` a dead run and the one that handles it.
    ``disposition`` is set on what a trigger returns: ``"created"``, ``"idempotent"``, ``"coalesced"``, ``"skipped"`` or
    ``"debounced"``.

    ``input`` and ``output`` are the values as stored: dataclasses, enums and models as plain data. ``failed_step`` is
    the step whose failure failed the run, ``current_step`` the latest step that is recorded as running.
    ``completed_steps`` counts the completed steps that are kept: none of a completed run under
    ``preserve_steps=False``. ``last_seq`` is the number of the latest frame of the run's timeline: this object includes
    the changes of that frame and of all earlier ones. Times are aware datetimes in UTC, to the millisecond: ``run_at``
    is the earliest start, ``deadline`` the latest end, ``started_at`` the first execution, ``completed_at`` the end in
    any terminal status.
    """

    id: str
    job: str
    version: str | None
    status: RunStatus
    input: Any
    output: Any
    error: ErrorInfo | None
    failed_step: str | None
    progress: Progress | None
    labels: dict[str, str]
    idempotency_key: str | None
    concurrency_key: str | None
    priority: int
    attempt: int
    recoveries: int
    generation: int
    lease_owner: str | None
    lease_expires_at: datetime | None
    paused: bool
    waiting_reason: str | None
    ending: str | None
    parent_run_id: str | None
    parent_step: str | None
    continued_from: str | None
    continued_as: str | None
    dead_letter_of: str | None
    dead_letter_id: str | None
    run_at: datetime | None
    wake_at: datetime | None
    deadline: datetime | None
    created_at: datetime
    ready_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime
    current_step: str | None
    completed_steps: int
    last_seq: int
    disposition: str | None = None

    @property
    def is_terminal(self) -> bool:
        """``True`` when the run has ended: completed, failed, cancelled or dead."""
        return self.status.is_terminal

    @property
    def is_active(self) -> bool:
        """``True`` when the run has not ended: pending, running, waiting or cancelling."""
        return self.status.is_active

    @property
    def queue_time(self) -> float | None:
        """Seconds from when the run could first be claimed until its first claim; ``None`` before that claim."""
        if self.started_at is None:
            return None
        waited = self.started_at - max(self.created_at, self.run_at or self.created_at)
        return max(waited.total_seconds(), 0.0)  # the clock may have been set back

    def public(self) -> dict[str, Any]:
        """The run without the fields that only engines need, by field name."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields if field.name not in _INTERNAL}


_INTERNAL = frozenset({"generation", "lease_owner", "lease_expires_at", "recoveries", "ready_at", "disposition"})


class RunFilters(TypedDict, total=False):
    """The parts of a :class:`RunFilter`."""

    status: str | Iterable[str] | None
    job: Any
    labels: dict[str, str] | None
    created_after: datetime | None
    created_before: datetime | None
    search: str | None
    parent: str | None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """A filter of runs: a run passes when it passes every given part.

    :param status: one status, or several.
    :param job: one job or its name, or several.
    :param labels: labels that a run must have, all of them.
    :param created_after, created_before: aware datetimes.
    :param search: a run's id, or a text within its job's name, its input or its labels, in any case.
    :param parent: the id of the run that has started the runs.

    ``None`` is a part that is not given. An empty list of statuses or jobs passes no run.
    """

    status: str | Iterable[str] | None = None
    job: Any = None  # `Job` is defined in a module that imports this one
    labels: dict[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    search: str | None = None
    parent: str | None = None

    def __post_init__(self) -> None:
        """Copy iterables, which may be iterable only once. :raises TypeError: when ``search`` is not a text."""
        if not isinstance(self.search, str | None):
            raise TypeError(f"search is a text, such as a run's id, or None, not {self.search!r}.")
        for name in ("status", "job"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and not hasattr(value, "name"):
                object.__setattr__(self, name, tuple(value))

    @property
    def statuses(self) -> list[RunStatus] | None:
        """The statuses that pass; ``None`` for all.

        :raises ValueError: when a status is unknown.
        """
        return None if self.status is None else [RunStatus(item) for item in names(self.status)]

    @property
    def jobs(self) -> list[str] | None:
        """The names of the jobs that pass; ``None`` for all."""
        return None if self.job is None else job_names(self.job)


def names(one_or_more: str | Iterable[str] | None) -> list[str]:
    """One name, or several, as a list; empty for ``None``."""
    return [one_or_more] if isinstance(one_or_more, str) else list(one_or_more or ())


def job_names(one_or_more: Any) -> list[str]:
    """The names of one job or several, each given as a job or by its name."""
    jobs = [one_or_more] if hasattr(one_or_more, "name") else names(one_or_more)
    return [getattr(item, "name", item) for item in jobs]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed attempt at a step that is or may be tried again; ``queue_time`` is as in :class:`Step`."""

    number: int
    error: ErrorInfo
    queue_time: float
    started_at: datetime
    completed_at: datetime


@dataclass(frozen=True, slots=True)
class Step:
    """A named unit of work in a run. ``index`` is its place in the order of first recording, from 0.

    ``attempt`` is the number of the latest try; ``failed_attempts`` are those before it. ``retry_at`` is when the next
    attempt is due, while the step waits for it. ``kind`` is ``"step"``, ``"transaction"`` or ``"value"`` (``ctx.now``
    and the like), or the kind of a durable wait (``"sleep"``, ``"signal"`` ...): ``wake_at`` is when the wait is over
    or times out, ``waiting_for`` describes what the step waits for, while it waits. ``output`` is the value as stored,
    dataclasses, enums and models as plain data; ``error`` is set on a failed step, and on a step that waits for its
    next attempt.

    ``queue_time`` is how many seconds the latest attempt could have begun and waited for an engine or a slot: a retry
    counts from its due time; the first steps after a claim count the time that the run itself waited for the claim. A
    step that follows another at once has waited 0 s; what the job body does between steps is not queue time.
    """

    name: str
    kind: str
    status: StepStatus
    index: int
    attempt: int
    output: Any
    error: ErrorInfo | None
    failed_attempts: tuple[Attempt, ...]
    retry_at: datetime | None
    wake_at: datetime | None
    waiting_for: str | None
    queue_time: float
    started_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job that is triggered repeatedly: at the times of ``cron`` in ``timezone``, or ``every`` so many seconds.

    ``next_due`` is the next due time, ``last_due`` the latest that made a run, and ``last_run_id`` that run. ``skips``
    counts how often due times were skipped, ``last_skipped`` is the latest skipped time (of several that were missed at
    once, the first), and ``skip_reason`` says why. ``jitter`` is in seconds.
    """

    name: str
    job: str
    cron: str | None
    every: float | None
    timezone: str
    input: Any
    labels: dict[str, str]
    overlap: str
    catch_up: str
    jitter: float
    paused: bool
    next_due: datetime | None
    last_due: datetime | None
    last_run_id: str | None
    skips: int
    last_skipped: datetime | None
    skip_reason: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Frame:
    """One entry of a timeline; ``id`` is the global cursor, ``seq`` the run's own, both rising with commit order."""

    id: int
    seq: int
    ts: datetime
    run_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class RunStatusFrame(Frame):
    """The run's status changed. ``reason`` says why, where the status alone does not say it.

    ``current_step`` is the step that was recorded as running then: the step that the run waits for or goes on with.
    """

    status: RunStatus
    attempt: int
    current_step: str | None = None
    reason: str | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class StepStatusFrame(Frame):
    """A step began (and was still running at the next commit) or ended; ``duration`` in seconds.

    A frame with ``retry_at`` reports an attempt that failed; the next attempt is due at that time. ``type`` is the
    kind of operation: ``"step"``, ``"transaction"``, ``"sleep"``, ``"signal"`` ...; ``wake_at`` is when a wait that
    has begun is over, or times out.
    """

    name: str
    status: StepStatus
    attempt: int
    index: int
    duration: float | None = None
    error: ErrorInfo | None = None
    retry_at: datetime | None = None
    type: str = "step"
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LogFrame(Frame):
    """A line that the job wrote; ``step`` is the step that wrote it, or ``None`` for the job body."""

    level: str
    message: str
    fields: dict[str, Any]
    step: str | None
    attempt: int


@dataclass(frozen=True, slots=True)
class ProgressFrame(Frame):
    """The job reported how far it has come."""

    current: float
    total: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class ValueFrame(Frame):
    """The run published a value under a key (``ctx.set_event``); plain JSON data."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class RunDeletedFrame(Frame):
    """The run was deleted, with its timeline; only this frame is kept, for 30 days."""

    job: str
    labels: dict[str, str] = field(default_factory=dict)


FRAME_TYPES: dict[str, type[Frame]] = {
    "run_status": RunStatusFrame,
    "step_status": StepStatusFrame,
    "log": LogFrame,
    "progress": ProgressFrame,
    "event": ValueFrame,
    "run_deleted": RunDeletedFrame,
}


class StoredFrame(NamedTuple):
    """A frame as it is stored: ``body`` is the JSON object text of the fields that its kind adds."""

    id: int
    seq: int
    ts: int
    run_id: str
    kind: str
    body: str

    def to_json(self) -> str:
        """The frame's wire form, built without parsing the body."""
        head = f'{{"id":{self.id},"seq":{self.seq},"ts":{self.ts},"runId":"{self.run_id}","kind":"{self.kind}",'
        return head + self.body[1:]

    def to_frame(self) -> Frame:
        """The frame as a dataclass of its kind."""
        fields = json.loads(self.body)
        if "error" in fields:
            fields["error"] = ErrorInfo(**fields["error"])
        if self.kind == "run_status":
            fields["status"] = RunStatus(fields["status"])
            fields["current_step"] = fields.pop("currentStep", None)
        elif self.kind == "step_status":
            fields["status"] = StepStatus(fields["status"])
            fields["retry_at"] = from_milliseconds(fields.pop("retryAt", None))
            fields["wake_at"] = from_milliseconds(fields.pop("wakeAt", None))
        return FRAME_TYPES[self.kind](
            self.id, self.seq, datetime.fromtimestamp(self.ts / 1000, UTC), self.run_id, self.kind, **fields
        )


def to_wire(value: Any) -> Any:
    """A result of the engine as JSON data for a page: its times as milliseconds, values of users in readable form."""
    kind = type(value)
    if kind in _WIRE_ATOMS:
        return value
    if kind in (list, tuple):
        return [to_wire(item) for item in value]
    parts = _wire_parts(kind)  # type: ignore[arg-type]
    if parts is None:
        return readable(value)
    wire = {}
    for name, wire_name, is_time in parts:
        part = getattr(value, name)
        if type(part) not in _WIRE_ATOMS:
            part = to_milliseconds(part) if is_time else to_wire(part)
        wire[wire_name] = part
    return wire


_WIRE_ATOMS = frozenset({type(None), bool, int, str})


@functools.cache
def _wire_parts(kind: type) -> tuple[tuple[str, str, bool], ...] | None:
    """The fields of a class above: name, name on the wire, and ``True`` for a time; ``None`` for other classes."""
    if not issubclass(kind, (Run, Step, Attempt, Frame, ErrorInfo, Progress, Schedule)):
        return None
    names = [part.name for part in dataclasses.fields(kind)]
    return tuple((name, camel_case(name), name in _OWN_TIMES) for name in names)


_OWN_TIMES = frozenset(
    {
        "ts",
        "created_at",
        "ready_at",
        "started_at",
        "completed_at",
        "updated_at",
        "run_at",
        "wake_at",
        "retry_at",
        "deadline",
        "lease_expires_at",
        "next_due",
        "last_due",
        "last_skipped",
    }
)


def camel_case(name: str) -> str:
    """A field name in camelCase, as on the wire."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def to_milliseconds(moment: datetime | None) -> int | None:
    """An aware ``datetime`` as milliseconds since 1970-01-01 UTC.

    :raises ValueError: when it is not a ``datetime``, or has no time zone.
    """
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise ValueError(f"A time is a datetime, such as datetime.now(UTC) + timedelta(hours=1), not {moment!r}.")
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; use datetime.now(UTC) or datetime(..., tzinfo=UTC).")
    return min(max(round(moment.timestamp() * 1000), _EARLIEST), LATEST)


_EARLIEST = -62_135_596_800_000  # the first millisecond that a datetime in UTC can hold
LATEST = 253_402_300_799_999  # the last millisecond that a datetime can hold, that of datetime.max
