"""Runs: triggering, claiming, settling, taking back, and everything else that changes a run's status."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..codec import decode, to_json
from ..errors import RunNotActive, RunNotFound, RunNotTerminal
from ..flow import Gate
from ..model import ErrorInfo, Progress, Run, RunFilter, RunStatus, from_milliseconds
from . import queries
from .flow import Flow
from .journal import Journal

_FOR_EVER = 1 << 62


class LeaseLost(Exception):
    """The run was cancelled, taken over or deleted: whoever executed it may not write any more."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this engine may execute, and the generation under which it may write."""

    run_id: str
    job: str
    version: str | None
    input: str
    attempt: int
    recoveries: int
    generation: int
    lease_expires_at: int = 0
    deadline: int | None = None


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
    gates: tuple[Gate, ...] = ()


class Runs:
    """The verbs on runs."""

    def __init__(self, connection: sqlite3.Connection, journal: Journal) -> None:
        self._connection = connection
        self._journal = journal
        self._flow = Flow(connection)

    # --- making ------------------------------------------------------------------------------------------------------

    def insert(self, run: NewRun, now: int) -> None:
        """Add a pending run."""
        is_due = run.run_at is None or run.run_at <= now
        values = {
            "id": run.id,
            "job": run.job,
            "version": run.version,
            "input": run.input,
            "labels": to_json(run.labels),
            "idempotency_key": run.idempotency_key,
            "concurrency_key": run.concurrency_key,
            "priority": run.priority,
            "due": is_due,
            "run_at": run.run_at,
            "deadline": run.deadline,
            "ready_at": now if is_due else run.run_at,
            "now": now,
        }
        self._connection.execute(queries.INSERT_RUN, values)
        labels = [{"key": key, "value": value, "run_id": run.id} for key, value in run.labels.items()]
        self._connection.executemany(queries.INSERT_LABEL, labels)
        if run.gates:
            self._flow.enter(run.id, run.gates)
        self._journal.append_status(run.id, now, RunStatus.PENDING, attempt=0)
        if self._journal.is_listening:
            self._journal.tell("run:trigger", run.id, now, input=decode(run.input))

    def find_by_idempotency_key(self, job: str, key: str) -> str | None:
        """The id of the run of ``job`` that was triggered with that key, in whatever state it is."""
        return self._value(queries.FIND_BY_IDEMPOTENCY_KEY, {"job": job, "key": key})

    def find_by_concurrency_key(self, job: str, key: str, statuses: Iterable[str], besides: str = "") -> str | None:
        """The id of a run of ``job`` with that key in the first of ``statuses`` in which there is one.

        :param besides: the id of a run that is not meant.
        """
        for status in statuses:
            wanted = {"job": job, "key": key, "status": status, "besides": besides}
            found = self._value(queries.FIND_BY_CONCURRENCY_KEY, wanted)
            if found is not None:
                return found
        return None

    # --- reading -----------------------------------------------------------------------------------------------------

    def get(self, run_id: str) -> Run:
        """The run of that id.

        :raises RunNotFound: when there is none.
        """
        row = self._connection.execute(queries.GET_RUN, {"id": run_id}).fetchone()
        if row is None:
            raise RunNotFound(run_id)
        return _run(row)

    def exists(self, run_id: str) -> bool:
        """Whether there is such a run."""
        return self._value(queries.RUN_EXISTS, {"id": run_id}) is not None

    def standing(self, run_id: str) -> tuple[RunStatus, int] | None:
        """The status and the generation of a run; ``None`` when it is gone."""
        row = self._connection.execute(queries.RUN_STANDING, {"id": run_id}).fetchone()
        return None if row is None else (RunStatus(row[0]), row[1])

    def list(self, wanted: RunFilter, *, oldest_first: bool, after: str | None, limit: int) -> list[Run]:
        """Runs that pass the filter, from the one after the id ``after`` on."""
        text, parameters = queries.list_runs(wanted, oldest_first, after, limit)
        return [_run(row) for row in self._connection.execute(text, parameters)]

    def count(self, by: str) -> dict[str, int]:
        """How many runs there are for each value of the column ``by``."""
        return dict(self._connection.execute(queries.count_runs(by)).fetchall())

    def identity(self, run_id: str) -> tuple[str, dict[str, str]]:
        """The job's name and the labels of a run; empty when it is gone."""
        row = self._connection.execute(queries.RUN_IDENTITY, {"id": run_id}).fetchone()
        return ("", {}) if row is None else (row[0], json.loads(row[1]))

    # --- executing ---------------------------------------------------------------------------------------------------

    def claim(self, owner: str, now: int, expires: int, saturated: list[str]) -> Claim | None:
        """Lease the pending run whose turn it is; ``None`` when there is none.

        :param saturated: jobs of which no further run may execute now.
        """
        text, parameters = queries.claim(saturated)
        row = self._connection.execute(text, {"owner": owner, "now": now, "expires": expires, **parameters}).fetchone()
        if row is None:
            return None
        claim = Claim(*row)
        self._journal.append_status(claim.run_id, now, RunStatus.LEASED, attempt=claim.attempt)
        if self._journal.is_listening:
            fields = {"lease_owner": owner, "lease_expires_at": from_milliseconds(expires)}
            self._journal.tell("run:leased", claim.run_id, now, input=decode(claim.input), **fields)
        return claim

    def count_leased(self, job: str) -> int:
        """How many runs of a job are executing, in all engines on this file."""
        return self._value(queries.COUNT_LEASED, {"job": job})

    def renew(self, claim: Claim, now: int, expires: int, *, exclusive: bool) -> bool:
        """Prolong a lease; ``False`` when it is lost or, unless nobody else can claim, has expired."""
        values = {**_key(claim), "now": 0 if exclusive else now, "expires": expires}
        if self._connection.execute(queries.RENEW, values).rowcount != 1:
            return False
        self._journal.tell("run:lease-renewed", claim.run_id, now, lease_expires_at=from_milliseconds(expires))
        return True

    def limit_duration(self, claim: Claim, deadline: int) -> None:
        """Bring the deadline of an executing run forward."""
        self._connection.execute(queries.LIMIT_DURATION, {**_key(claim), "deadline": deadline})

    def fence(self, claim: Claim) -> None:
        """Make sure that the run is still leased under the claim's generation.

        :raises LeaseLost: when it is not.
        """
        if self._connection.execute(queries.FENCE, _key(claim)).fetchone() is None:
            raise LeaseLost(claim.run_id)

    def reset_recoveries(self, claim: Claim) -> None:
        """Forget earlier deaths: the run has come further."""
        self._connection.execute(queries.RESET_RECOVERIES, _key(claim))

    def park(self, claim: Claim, now: int, wake_at: int, reason: str) -> None:
        """Let an executing run wait, without a lease, until ``wake_at``.

        :raises LeaseLost: when it is no longer this engine's.
        """
        if self._connection.execute(queries.PARK, {**_key(claim), "wake_at": wake_at, "now": now}).rowcount != 1:
            raise LeaseLost(claim.run_id)
        self._journal.append_status(claim.run_id, now, RunStatus.WAITING, attempt=claim.attempt, reason=reason)
        self._journal.tell("run:waiting", claim.run_id, now)

    def settle(
        self,
        claim: Claim,
        status: RunStatus,
        now: int,
        *,
        output: str | None,
        error: dict[str, str] | None,
        failed_step: str | None = None,
    ) -> None:
        """End an executing run.

        :raises LeaseLost: when it is no longer this engine's.
        """
        values = {
            **_key(claim),
            "status": status,
            "output": output,
            "error": _json(error),
            "failed_step": failed_step,
            "now": now,
        }
        row = self._connection.execute(queries.SETTLE, values).fetchone()
        if row is None:
            raise LeaseLost(claim.run_id)
        self._journal.append_status(claim.run_id, now, status, attempt=claim.attempt, error=error)
        if not self._journal.is_listening:
            return
        if status == RunStatus.COMPLETED:
            duration = (now - row[0]) / 1000
            self._journal.tell("run:complete", claim.run_id, now, output=decode(output or "null"), duration=duration)
        else:
            info = None if error is None else ErrorInfo(**error)
            self._journal.tell("run:fail", claim.run_id, now, error=info, failed_step_name=failed_step)

    def release(self, claim: Claim, now: int, reason: str) -> None:
        """Give an executing run back, to be claimed again; does nothing when it is no longer this engine's."""
        if self._connection.execute(queries.RELEASE, {**_key(claim), "now": now}).rowcount == 1:
            self._journal.append_status(claim.run_id, now, RunStatus.PENDING, attempt=claim.attempt, reason=reason)

    # --- time --------------------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """When the next scheduled run, waiting run or deadline is due; ``None`` when there is none."""
        return self._value(queries.NEXT_DUE, {})

    def wake_due(self, now: int) -> None:
        """Make the scheduled and the waiting runs whose time has come claimable."""
        self._connection.execute(queries.MAKE_DUE, {"now": now})
        for run_id, attempt in self._connection.execute(queries.WAKE, {"now": now}).fetchall():
            self._journal.append_status(run_id, now, RunStatus.PENDING, attempt=attempt, reason="its wait is over")

    def wake(self, run_id: str, now: int) -> None:
        """Make a waiting run claimable before its time."""
        row = self._connection.execute(queries.WAKE_ONE, {"id": run_id, "now": now}).fetchone()
        if row is not None:
            self._journal.append_status(run_id, now, RunStatus.PENDING, attempt=row[0], reason="it goes on early")

    def overdue(self, now: int) -> list[str]:
        """The ids of the active runs whose deadline has passed."""
        return [row[0] for row in self._connection.execute(queries.OVERDUE, {"now": now})]

    def expire(self, run_id: str, now: int) -> None:
        """Fail an active run because its deadline has passed."""
        error = {"type": "DeadlineExceeded", "message": "The run's deadline passed before it ended.", "traceback": ""}
        row = self._connection.execute(queries.EXPIRE, {"id": run_id, "now": now, "error": _json(error)}).fetchone()
        self._journal.append_status(run_id, now, RunStatus.FAILED, attempt=row[0], error=error)
        self._journal.tell("run:fail", run_id, now, error=ErrorInfo(**error), failed_step_name=None)

    def recover(self, now: int, *, everything: bool, max_recoveries: int) -> None:
        """Take back the runs whose engine has died.

        :param everything: every leased run, because no other engine is alive; else those whose lease has expired.
        :param max_recoveries: a run that was taken back that often without committing a step is dead.
        """
        expired_before = _FOR_EVER if everything else now
        orphans = self._connection.execute(queries.ORPHANS, {"expired_before": expired_before}).fetchall()
        for run_id, attempt, recoveries in orphans:
            if recoveries < max_recoveries:
                self._connection.execute(queries.TAKE_BACK, {"id": run_id, "now": now})
                self._journal.append_status(
                    run_id, now, RunStatus.PENDING, attempt=attempt, reason="its engine stopped"
                )
            else:
                self._bury(run_id, attempt, recoveries, now)

    def _bury(self, run_id: str, attempt: int, recoveries: int, now: int) -> None:
        error = {
            "type": "CrashLoop",
            "message": f"The engine died {recoveries + 1} times on this run without completing another step.",
            "traceback": "",
        }
        self._connection.execute(queries.BURY, {"id": run_id, "error": _json(error), "now": now})
        self._journal.append_status(run_id, now, RunStatus.DEAD, attempt=attempt, error=error)
        self._journal.tell("run:dead", run_id, now, error=ErrorInfo(**error))

    # --- people ------------------------------------------------------------------------------------------------------

    def cancel(self, run_id: str, now: int) -> None:
        """Cancel an active run.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        row = self._connection.execute(queries.CANCEL, {"id": run_id, "now": now}).fetchone()
        if row is None:
            raise RunNotActive(run_id, self.get(run_id).status.value, "cancelled")
        self._journal.append_status(run_id, now, RunStatus.CANCELLED, attempt=row[0])
        self._journal.tell("run:cancel", run_id, now)

    def reopen(self, run_id: str, now: int, input_text: str | None) -> None:
        """Let a run that has failed, died or was cancelled go on; with ``input_text``, on another input.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active or has completed.
        """
        row = self._connection.execute(queries.REOPEN, {"id": run_id, "input": input_text, "now": now}).fetchone()
        if row is None:
            raise RunNotTerminal(run_id, self.get(run_id).status.value, "retried")
        self._journal.append_status(run_id, now, RunStatus.PENDING, attempt=row[0], reason="retried")

    def delete(self, run_id: str, now: int) -> None:
        """Delete a run that has ended, and everything of it.

        One frame stays behind, so that the numbers of the deleted ones are not given out again; it is replaced by the
        next deletion's.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active.
        """
        run = self.get(run_id)
        if not run.is_terminal:
            raise RunNotTerminal(run_id, run.status.value, "deleted")
        self._journal.append(run_id, now, "run_deleted", {"job": run.job})
        for text in queries.DELETE_RUN:
            self._connection.execute(text, {"run_id": run_id})
        self._journal.tell("run:delete", run_id, now, job_name=run.job, labels=run.labels)

    def ended_before(self, moment: int, limit: int) -> list[str]:
        """The ids of the runs that ended longest ago, before ``moment``."""
        return [row[0] for row in self._connection.execute(queries.ENDED_BEFORE, {"moment": moment, "limit": limit})]

    def _value(self, text: str, parameters: dict[str, Any]) -> Any:
        row = self._connection.execute(text, parameters).fetchone()
        return None if row is None else row[0]


def _key(claim: Claim) -> dict[str, Any]:
    return {"id": claim.run_id, "generation": claim.generation}


def _json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else to_json(value)


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(queries.RUN_COLUMNS, row, strict=True))
    values["status"] = RunStatus(values["status"])
    values["input"] = decode(values["input"])
    values["output"] = None if values["output"] is None else decode(values["output"])
    values["error"] = None if values["error"] is None else ErrorInfo(**json.loads(values["error"]))
    values["progress"] = None if values["progress"] is None else Progress(**json.loads(values["progress"]))
    values["labels"] = json.loads(values["labels"])
    for name in queries.TIMES:
        values[name] = from_milliseconds(values[name])
    return Run(**values)
