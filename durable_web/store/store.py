"""The verbs of the store: each changes the state of a run and appends the frames that tell of it.

A verb that writes must be called inside ``with store.transaction():``; its frames reach ``on_commit`` after the commit
and never before it. Verbs of an executing run begin with ``fence``, which raises ``LeaseLost`` before anything is
written when the run is no longer this engine's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..codec import decode, to_json
from ..errors import RunNotActive, RunNotFound
from ..model import ErrorInfo, Progress, Run, RunStatus, Step, StepStatus, StoredFrame, from_milliseconds
from . import queries
from .database import Database

OnCommit = Callable[[list[StoredFrame]], None]


class LeaseLost(Exception):
    """The run was cancelled, taken over or deleted: whoever executed it may not write any more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this engine may execute, and the generation under which it may write."""

    run_id: str
    job: str
    input: str
    attempt: int
    recoveries: int
    generation: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as it stands in the database; ``output`` is the codec's text, times are milliseconds."""

    name: str
    kind: str
    status: str
    position: int
    attempt: int
    output: str | None = None
    error: dict[str, str] | None = None
    started_at: int = 0
    completed_at: int | None = None


class Store:
    """Runs, steps and frames in one SQLite database."""

    def __init__(self, database: Database, on_commit: OnCommit = lambda frames: None) -> None:
        self.database = database
        self.on_commit = on_commit
        self._connection = database.connection
        self._uncommitted: list[StoredFrame] = []

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is written inside and then publish its frames, or roll all of it back."""
        try:
            with self.database.transaction():
                yield
        except BaseException:
            self._uncommitted = []
            raise
        frames, self._uncommitted = self._uncommitted, []
        if frames:
            self.on_commit(frames)

    # --- runs --------------------------------------------------------------------------------------------------------

    def insert_run(self, run_id: str, job: str, input_text: str, now: int) -> None:
        """Add a pending run."""
        self._connection.execute(queries.INSERT_RUN, {"id": run_id, "job": job, "input": input_text, "now": now})
        self._append_status(run_id, now, RunStatus.PENDING, attempt=0)

    def get_run(self, run_id: str) -> Run:
        """The run of that id.

        :raises RunNotFound: when there is none.
        """
        row = self._connection.execute(queries.GET_RUN, {"id": run_id}).fetchone()
        if row is None:
            raise RunNotFound(run_id)
        return _run(row)

    def list_runs(self, *, statuses: list[str], jobs: list[str], before: str | None, limit: int) -> list[Run]:
        """Runs, newest first, that have one of the statuses and one of the jobs (all of them, where none is named)."""
        text, parameters = queries.list_runs(statuses, jobs, before, limit)
        return [_run(row) for row in self._connection.execute(text, parameters)]

    def claim(self, owner: str, now: int, expires: int) -> Claim | None:
        """Lease the oldest pending run; ``None`` when there is none."""
        row = self._connection.execute(queries.CLAIM, {"owner": owner, "now": now, "expires": expires}).fetchone()
        if row is None:
            return None
        claim = Claim(*row)
        self._append_status(claim.run_id, now, RunStatus.LEASED, attempt=claim.attempt)
        return claim

    def renew(self, claim: Claim, expires: int) -> bool:
        """Prolong a lease; ``False`` when it is lost."""
        found = self._connection.execute(queries.RENEW, {**_key(claim), "expires": expires})
        return found.rowcount == 1

    def fence(self, claim: Claim) -> None:
        """Make sure that the run is still leased under the claim's generation.

        :raises LeaseLost: when it is not.
        """
        if self._connection.execute(queries.FENCE, _key(claim)).fetchone() is None:
            raise LeaseLost(claim.run_id)

    def settle(
        self, claim: Claim, status: RunStatus, now: int, *, output: str | None, error: dict[str, str] | None
    ) -> None:
        """End an executing run.

        :raises LeaseLost: when it is no longer this engine's.
        """
        values = {**_key(claim), "status": status, "output": output, "error": _json(error), "now": now}
        if self._connection.execute(queries.SETTLE, values).rowcount != 1:
            raise LeaseLost(claim.run_id)
        self._append_status(claim.run_id, now, status, attempt=claim.attempt, error=error)

    def release(self, claim: Claim, now: int, reason: str) -> None:
        """Give an executing run back, to be claimed again."""
        if self._connection.execute(queries.RELEASE, {**_key(claim), "now": now}).rowcount == 1:
            self._append_status(claim.run_id, now, RunStatus.PENDING, attempt=claim.attempt, reason=reason)

    def cancel(self, run_id: str, now: int) -> None:
        """Cancel an active run, and the steps that it is executing.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        row = self._connection.execute(queries.CANCEL, {"id": run_id, "now": now}).fetchone()
        if row is None:
            raise RunNotActive(run_id, self.get_run(run_id).status.value, "cancelled")
        running = self._connection.execute(queries.RUNNING_STEPS, {"run_id": run_id}).fetchall()
        self._connection.execute(queries.CANCEL_STEPS, {"run_id": run_id, "now": now})
        for name, position, attempt, started_at in running:
            body = {"name": name, "status": StepStatus.CANCELLED, "attempt": attempt, "index": position}
            self._append(run_id, now, "step_status", {**body, "duration": (now - started_at) / 1000})
        self._append_status(run_id, now, RunStatus.CANCELLED, attempt=row[0])

    def recover(self, now: int, *, everything: bool, max_recoveries: int) -> None:
        """Take back the runs whose engine has died.

        :param everything: every leased run, because no other engine is alive; else those whose lease has expired.
        :param max_recoveries: a run that was taken back that often without committing a step is dead.
        """
        expired_before = now if not everything else 1 << 62
        orphans = self._connection.execute(queries.ORPHANS, {"expired_before": expired_before}).fetchall()
        for run_id, attempt, recoveries in orphans:
            self._recover(run_id, attempt, recoveries, now, max_recoveries)

    def _recover(self, run_id: str, attempt: int, recoveries: int, now: int, max_recoveries: int) -> None:
        if recoveries < max_recoveries:
            self._connection.execute(queries.TAKE_BACK, {"id": run_id, "now": now})
            self._append_status(run_id, now, RunStatus.PENDING, attempt=attempt, reason="its engine stopped")
            return
        error = {
            "type": "CrashLoop",
            "message": f"The engine died {recoveries + 1} times on this run without completing another step.",
            "traceback": "",
        }
        self._connection.execute(queries.BURY, {"id": run_id, "error": _json(error), "now": now})
        self._append_status(run_id, now, RunStatus.DEAD, attempt=attempt, error=error)

    def reset_recoveries(self, claim: Claim) -> None:
        """Forget earlier deaths: the run has come further."""
        self._connection.execute(queries.RESET_RECOVERIES, _key(claim))

    # --- steps -------------------------------------------------------------------------------------------------------

    def load_steps(self, run_id: str) -> dict[str, StepRecord]:
        """What a run has recorded, by name, in the order of first recording."""
        rows = self._connection.execute(queries.STEPS, {"run_id": run_id})
        return {row[0]: _record(row) for row in rows}

    def get_steps(self, run_id: str) -> list[Step]:
        """The steps of a run, in the order of first recording.

        :raises RunNotFound: when there is no such run.
        """
        self.get_run(run_id)
        return [_step(record) for record in self.load_steps(run_id).values()]

    def record_step(self, claim: Claim, record: StepRecord, now: int) -> None:
        """Write a step's state and its frame; ``fence`` comes first."""
        self._connection.execute(
            queries.RECORD_STEP,
            {
                "run_id": claim.run_id,
                "name": record.name,
                "kind": record.kind,
                "status": record.status,
                "position": record.position,
                "attempt": record.attempt,
                "output": record.output,
                "error": _json(record.error),
                "started_at": record.started_at,
                "completed_at": record.completed_at,
            },
        )
        body = {"name": record.name, "status": record.status, "attempt": record.attempt, "index": record.position}
        if record.completed_at is not None:
            body["duration"] = (record.completed_at - record.started_at) / 1000
        if record.error is not None:
            body["error"] = _without_traceback(record.error)
        self._append(claim.run_id, now, "step_status", body)

    # --- logs and progress -------------------------------------------------------------------------------------------

    def append_log(self, claim: Claim, ts: int, body: dict[str, Any]) -> None:
        """Append a log line of an executing run; ``fence`` comes first."""
        self._append(claim.run_id, ts, "log", body)

    def body_lines(self, run_id: str) -> Iterator[tuple[str, str]]:
        """Level and message of every log line that a run's body, not one of its steps, has written."""
        for (text,) in self._connection.execute(queries.LOG_BODIES, {"run_id": run_id}):
            body = json.loads(text)
            if body["step"] is None:
                yield body["level"], body["message"]

    def set_progress(self, claim: Claim, now: int, progress: dict[str, Any]) -> None:
        """Note how far a run has come; ``fence`` comes first."""
        self._connection.execute(queries.SET_PROGRESS, {"id": claim.run_id, "progress": _json(progress), "now": now})
        self._append(claim.run_id, now, "progress", progress)

    # --- frames ------------------------------------------------------------------------------------------------------

    def read_frames(self, run_id: str, after_seq: int, limit: int) -> list[StoredFrame]:
        """The next frames of a run strictly after ``after_seq``."""
        rows = self._connection.execute(queries.FRAMES, {"run_id": run_id, "seq": after_seq, "limit": limit})
        return [StoredFrame(*row) for row in rows]

    def _append_status(
        self,
        run_id: str,
        ts: int,
        status: RunStatus,
        *,
        attempt: int,
        reason: str | None = None,
        error: dict[str, str] | None = None,
    ) -> None:
        body: dict[str, Any] = {"status": status, "attempt": attempt}
        if reason is not None:
            body["reason"] = reason
        if error is not None:
            body["error"] = _without_traceback(error)
        self._append(run_id, ts, "run_status", body)

    def _append(self, run_id: str, ts: int, kind: str, body: dict[str, Any]) -> None:
        text = to_json(body)
        values = {"run_id": run_id, "ts": ts, "kind": kind, "body": text}
        frame_id, seq = self._connection.execute(queries.APPEND_FRAME, values).fetchone()
        self._uncommitted.append(StoredFrame(frame_id, seq, ts, run_id, kind, text))


def _key(claim: Claim) -> dict[str, Any]:
    return {"id": claim.run_id, "generation": claim.generation}


def _json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else to_json(value)


def _without_traceback(error: dict[str, str]) -> dict[str, str]:
    return {"type": error["type"], "message": error["message"]}


def _error(text: str | None) -> ErrorInfo | None:
    return None if text is None else ErrorInfo(**json.loads(text))


def _record(row: tuple[Any, ...]) -> StepRecord:
    *head, error, started_at, completed_at = row
    return StepRecord(*head, None if error is None else json.loads(error), started_at, completed_at)


def _step(record: StepRecord) -> Step:
    return Step(
        name=record.name,
        kind=record.kind,
        status=StepStatus(record.status),
        index=record.position,
        attempt=record.attempt,
        output=None if record.output is None else decode(record.output),
        error=None if record.error is None else ErrorInfo(**record.error),
        started_at=from_milliseconds(record.started_at),
        completed_at=from_milliseconds(record.completed_at),
    )


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(queries.RUN_COLUMNS, row, strict=True))
    values["status"] = RunStatus(values["status"])
    values["input"] = decode(values["input"])
    values["output"] = None if values["output"] is None else decode(values["output"])
    values["error"] = _error(values["error"])
    values["progress"] = None if values["progress"] is None else Progress(**json.loads(values["progress"]))
    for name in ("lease_expires_at", "created_at", "started_at", "completed_at", "updated_at"):
        values[name] = from_milliseconds(values[name])
    return Run(**values)
