"""What the engine tells about: runs, steps and frames, as frozen dataclasses, and their forms on the wire.

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
from typing import Any, NamedTuple

from .codec import readable


class RunStatus(StrEnum):
    """Where a run stands."""

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
        """Whether the run has ended: completed, failed, cancelled or dead."""
        return self in TERMINAL

    @property
    def is_active(self) -> bool:
        """Whether the run has not ended: pending, running, waiting or cancelling."""
        return self not in TERMINAL


TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.DEAD})


class StepStatus(StrEnum):
    """Where a step stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OperationKind(StrEnum):
    """What a job body asked of its context, as it is recorded."""

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
    """The cancellation of the run: an outcome that no body asked for."""
    COMPENSATING = "compensating"
    """The beginning of the compensation: what was completed before it is undone."""


def from_milliseconds(milliseconds: int | None) -> datetime | None:
    """Milliseconds since 1970-01-01 UTC as an aware ``datetime``; beyond what one can tell, the first or last one."""
    if milliseconds is None:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.min.replace(tzinfo=UTC) if milliseconds < 0 else datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What went wrong: the exception's class name, its message, and its traceback where one was kept."""

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
    ``ready_at`` is when it could last have been claimed. A ``paused`` run starts no further step; ``waiting_reason``
    says for what a waiting one waits. ``ending`` is what a cancelling run ends as when its steps are compensated. A
    child run has its parent's ``parent_run_id`` and ``parent_step``; ``continued_from`` and ``continued_as`` link the
    runs of ``ctx.continue_as_new``, ``dead_letter_of`` and ``dead_letter_id`` a dead run and the one that handles it.
    ``disposition`` is set on what a trigger returns: ``"created"``, ``"idempotent"``, ``"coalesced"``, ``"skipped"`` or
    ``"debounced"``.

    ``input`` and ``output`` are the values as stored: dataclasses, enums and models as plain data. ``failed_step`` is
    the step whose failure failed the run, ``current_step`` the latest one that is seen to run. ``completed_steps``
    counts those that are kept: none of a completed run under ``preserve_steps=False``. ``last_seq`` is the
    number of the latest frame of the run's timeline: what that and all before it tell is in here. Times are aware
    datetimes in UTC, to the millisecond: ``run_at`` not before which, ``deadline`` until when, ``started_at`` of the
    first execution, ``completed_at`` of the end, whichever it was.
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
        """Whether the run has ended: completed, failed, cancelled or dead."""
        return self.status.is_terminal

    @property
    def is_active(self) -> bool:
        """Whether the run has not ended: pending, running, waiting or cancelling."""
        return self.status.is_active

    @property
    def queue_time(self) -> float | None:
        """Seconds from when the run could first be claimed until it was; ``None`` when it was not yet."""
        if self.started_at is None:
            return None
        waited = self.started_at - max(self.created_at, self.run_at or self.created_at)
        return max(waited.total_seconds(), 0.0)  # the clock may have been set back

    def public(self) -> dict[str, Any]:
        """The run without what only engines need, by field name."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields if field.name not in _INTERNAL}


_INTERNAL = frozenset({"generation", "lease_owner", "lease_expires_at", "recoveries", "ready_at", "disposition"})


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are meant: those that pass every part that is given.

    :param status: one status, or several.
    :param job: one job or its name, or several.
    :param labels: labels that a run must have, all of them.
    :param created_after, created_before: aware datetimes.
    :param search: a run's id, or a text within its job's name, its input or its labels, in any case.
    :param parent: the id of the run that has started them.

    ``None`` is a part that is not given. No run has one of no statuses, or is of one of no jobs: an empty list there,
    which a program may have come to, passes none.
    """

    status: str | Iterable[str] | None = None
    job: Any = None  # of a floor above this one
    labels: dict[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    search: str | None = None
    parent: str | None = None

    def __post_init__(self) -> None:
        """Take down what can be gone through only once. :raises TypeError: when ``search`` is no text."""
        if not isinstance(self.search, str | None):
            raise TypeError(f"search is a text, such as a run's id, or None, not {self.search!r}.")
        for name in ("status", "job"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and not hasattr(value, "name"):
                object.__setattr__(self, name, tuple(value))

    @property
    def statuses(self) -> list[RunStatus] | None:
        """The statuses that are meant; ``None`` for all.

        :raises ValueError: when a status is unknown.
        """
        return None if self.status is None else [RunStatus(item) for item in names(self.status)]

    @property
    def jobs(self) -> list[str] | None:
        """The names of the jobs that are meant; ``None`` for all."""
        return None if self.job is None else job_names(self.job)


def names(one_or_more: str | Iterable[str] | None) -> list[str]:
    """One name, or several, as a list; empty for ``None``."""
    return [one_or_more] if isinstance(one_or_more, str) else list(one_or_more or ())


def job_names(one_or_more: Any) -> list[str]:
    """The names of one job or more, each of them given as it is, or by its name."""
    jobs = [one_or_more] if hasattr(one_or_more, "name") else names(one_or_more)
    return [getattr(item, "name", item) for item in jobs]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed attempt at a step, which another one followed or may follow; ``queue_time`` as in :class:`Step`."""

    number: int
    error: ErrorInfo
    queue_time: float
    started_at: datetime
    completed_at: datetime


@dataclass(frozen=True, slots=True)
class Step:
    """A named unit of work in a run. ``index`` is its place in the order of first recording, from 0.

    ``attempt`` is the number of the latest try; ``failed_attempts`` are those before it. ``retry_at`` is when the next
    one is due, while the step waits for it. ``kind`` is ``"step"``, ``"transaction"`` or ``"value"`` (``ctx.now`` and
    the like), or that of a durable wait (``"sleep"``, ``"signal"`` ...): ``wake_at`` is when that is over or times out,
    ``waiting_for`` says in words what it waits for, while it does. ``output`` is the value as stored, dataclasses,
    enums and models as plain data; ``error`` is set on a failed step, and on one that waits for its next attempt.

    ``queue_time`` is how many seconds the latest attempt could have begun and waited for an engine or a slot: a retry
    since it was due; the first steps after the run was claimed as long as the run itself had to wait to be claimed. A
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
    """When a job is triggered again and again: at ``cron``'s times in ``timezone``, or ``every`` so many seconds.

    ``next_due`` is the next due time, ``last_due`` the latest that made a run, and ``last_run_id`` that run. ``skips``
    counts how often due times were passed over, ``last_skipped`` is the latest of these (of several that were missed at
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
    """The run's status changed. ``reason`` says why, where the status alone does not.

    ``current_step`` is the step that was recorded as running then: the one that a run waits for or goes on with.
    """

    status: RunStatus
    attempt: int
    current_step: str | None = None
    reason: str | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class StepStatusFrame(Frame):
    """A step began (and was still running at the next commit) or ended; ``duration`` in seconds.

    A frame with ``retry_at`` tells of an attempt that failed and will be followed by another one then. ``type`` is the
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
    """The run was deleted, and its timeline with it; this frame alone is left, for a while."""

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
    """A frame as the store has it: ``body`` is the JSON object text of the fields that its kind adds."""

    id: int
    seq: int
    ts: int
    run_id: str
    kind: str
    body: str

    def to_json(self) -> str:
        """The frame's wire form, spliced without parsing the body."""
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
    """What the engine returns as JSON data for a page: its own times as milliseconds, values of users as readable."""
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
    """The fields of one of our own classes: their names, those on the wire, and whether they are times."""
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
    """A name of ours as it is on the wire."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def to_milliseconds(moment: datetime | None) -> int | None:
    """An aware ``datetime`` as milliseconds since 1970-01-01 UTC.

    :raises ValueError: when it is none, or has no time zone.
    """
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise ValueError(f"A time is a datetime, such as datetime.now(UTC) + timedelta(hours=1), not {moment!r}.")
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; use datetime.now(UTC) or datetime(..., tzinfo=UTC).")
    return min(max(round(moment.timestamp() * 1000), _EARLIEST), LATEST)


_EARLIEST = -62_135_596_800_000  # the first millisecond that a datetime in UTC can tell
LATEST = 253_402_300_799_999  # the last millisecond that a datetime can tell, to which datetime.max belongs
