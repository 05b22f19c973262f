"""A run that is about to be inserted: its data, its row, and the ``Run`` that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._codec import decode, to_json
from .._flow_control import Gate
from .._model import Run, RunStatus, from_milliseconds


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run that is to be inserted; ``input`` is the codec's text, times are milliseconds."""

    id: str
    job: str
    version: str | None
    input: str
    labels: dict[str, str]
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    priority: int = 0
    run_at: int | None = None
    deadline: int | None = None
    parent_run_id: str | None = None
    parent_step: str | None = None
    continued_from: str | None = None
    dead_letter_of: str | None = None
    gates: tuple[Gate, ...] = ()

    def is_due(self, now: int) -> bool:
        """``True`` when the run has no start time, or its start time has come."""
        return self.run_at is None or self.run_at <= now


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of a run that is claimed as it is inserted, because nothing keeps it from being executed."""

    owner: str
    expires_at: int


def row_of(run: NewRun, now: int, lease: Lease | None) -> tuple[Any, ...]:
    """The parameters of ``INSERT_RUN``."""
    standing: tuple[Any, ...] = (RunStatus.PENDING, 0, 0, None, None, None)
    if lease is not None:
        standing = (RunStatus.RUNNING, 1, 1, lease.owner, lease.expires_at, now)
    is_due = run.is_due(now)
    return (
        run.id,
        run.job,
        run.version,
        run.input,
        to_json(run.labels),
        run.idempotency_key,
        run.concurrency_key,
        run.priority,
        run.run_at,
        run.deadline,
        run.parent_run_id,
        run.parent_step,
        run.continued_from,
        run.dead_letter_of,
        is_due,
        now if is_due else run.run_at,
        now,
        now,
        *standing,
    )


def as_made(run: NewRun, now: int) -> Run:
    """The run right after its insertion, as ``get`` would return it."""
    created_at, run_at = from_milliseconds(now), from_milliseconds(run.run_at)
    assert created_at is not None
    return Run(
        id=run.id,
        job=run.job,
        version=run.version,
        status=RunStatus.PENDING,
        input=decode(run.input),
        output=None,
        error=None,
        failed_step=None,
        progress=None,
        labels=dict(run.labels),
        idempotency_key=run.idempotency_key,
        concurrency_key=run.concurrency_key,
        priority=run.priority,
        attempt=0,
        recoveries=0,
        generation=0,
        lease_owner=None,
        lease_expires_at=None,
        paused=False,
        waiting_reason=None,
        ending=None,
        parent_run_id=run.parent_run_id,
        parent_step=run.parent_step,
        continued_from=run.continued_from,
        continued_as=None,
        dead_letter_of=run.dead_letter_of,
        dead_letter_id=None,
        run_at=run_at,
        wake_at=None,
        deadline=from_milliseconds(run.deadline),
        created_at=created_at,
        ready_at=created_at if run_at is None or run.is_due(now) else run_at,
        started_at=None,
        completed_at=None,
        updated_at=created_at,
        current_step=None,
        completed_steps=0,
        last_seq=1,
        disposition="created",
    )
