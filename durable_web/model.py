"""What the engine tells about: runs, steps and frames, as frozen dataclasses, and their forms on the wire.

Times are aware ``datetime`` objects in UTC; durations are seconds. On the wire names are in camelCase and times are
milliseconds since 1970-01-01 UTC, as JavaScript's ``Date`` takes them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from .codec import readable


class RunStatus(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    LEASED = "leased"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL

    @property
    def is_active(self) -> bool:
        return self not in TERMINAL


TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.DEAD})


class StepStatus(StrEnum):
    """Where a step stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def from_milliseconds(milliseconds: int | None) -> datetime | None:
    """Milliseconds since 1970-01-01 UTC as an aware ``datetime``."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


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

    ``attempt`` counts the times the job body was begun. ``recoveries`` counts the deaths of the engine that it was
    executing on since a step was last committed. ``generation`` rises with every claim; ``lease_owner`` and
    ``lease_expires_at`` are set while the run is leased.
    """

    id: str
    job: str
    status: RunStatus
    input: Any
    output: Any
    error: ErrorInfo | None
    progress: Progress | None
    attempt: int
    recoveries: int
    generation: int
    lease_owner: str | None
    lease_expires_at: datetime | None
    current_step: str | None
    completed_steps: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime

    @property
    def is_terminal(self) -> bool:
        return self.status.is_terminal

    @property
    def is_active(self) -> bool:
        return self.status.is_active


@dataclass(frozen=True, slots=True)
class Step:
    """A named unit of work in a run. ``index`` is its place in the order of first recording, from 0."""

    name: str
    kind: str
    status: StepStatus
    index: int
    attempt: int
    output: Any
    error: ErrorInfo | None
    started_at: datetime
    completed_at: datetime | None


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
    """The run's status changed. ``reason`` says why, where the status alone does not."""

    status: RunStatus
    attempt: int
    reason: str | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class StepStatusFrame(Frame):
    """A step began (and was still running at the next commit) or ended; ``duration`` in seconds."""

    name: str
    status: StepStatus
    attempt: int
    index: int
    duration: float | None = None
    error: ErrorInfo | None = None


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


FRAME_TYPES: dict[str, type[Frame]] = {
    "run_status": RunStatusFrame,
    "step_status": StepStatusFrame,
    "log": LogFrame,
    "progress": ProgressFrame,
}


@dataclass(frozen=True, slots=True)
class StoredFrame:
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
        elif self.kind == "step_status":
            fields["status"] = StepStatus(fields["status"])
        return FRAME_TYPES[self.kind](
            self.id, self.seq, datetime.fromtimestamp(self.ts / 1000, UTC), self.run_id, self.kind, **fields
        )


def to_wire(value: Any) -> Any:
    """A run, a step, or a list of them, as JSON data for a page."""
    if isinstance(value, list):
        return [to_wire(item) for item in value]
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {_camel_case(field.name): to_wire(getattr(value, field.name)) for field in fields}
    if isinstance(value, datetime):
        return int(value.timestamp() * 1000)
    return readable(value)


def _camel_case(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)
