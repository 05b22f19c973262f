"""Runs: inserting, claiming, settling, recovering, and every other change of a run's status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from .._codec import decode, to_json
from .._errors import RunNotActive, RunNotTerminal, SerializationError
from .._model import ErrorInfo, RunStatus, from_milliseconds
from .database import Database
from .flow import Flow
from .journal import MOST_INTERRUPTIONS, Claim, Journal
from .new_run import Lease, NewRun, row_of
from .reading import RunReading
from .sql import runs as queries

DELETED_RUNS_KEPT = 30 * 24 * 60 * 60 * 1000
"""How long the frame of a deleted run is kept, in milliseconds."""

_FOR_EVER = 1 << 62
_MIGRATION = "migration"  # the owner of the leases, in migrations/5.sql, of the runs that cannot go on
_RECORDED_EARLIER = {
    "type": "RecordedByEarlierVersion",
    "message": "The run was recorded by an earlier version of durable-web, which did not record in which order "
    "operations ended that were busy at once, so it cannot go on where it was. Its timeline says what was done and "
    "undone. Retry the run: it begins anew on its input.",
    "traceback": "",
}


class EngineDeaths(Protocol):
    """How engines ended whose runs are taken back; ``owner`` is the owner of their leases."""

    def has_died(self, owner: str) -> bool:
        """``True`` when the engine has died, and was not shut down cleanly."""
        ...

    def culprit(self, owner: str, lease_expires_at: int) -> tuple[str, str] | None:
        """The id of the run, and the key of its step, against which the death counts; ``None`` for no run."""


class LeaseLost(Exception):
    """The run was cancelled, taken over or deleted: the engine that executed it may not write any more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has just ended, as its waiters need it; ``output`` is the codec's text."""

    run_id: str
    parent_run_id: str | None
    parent_step: str | None
    status: RunStatus
    output: str | None = None
    error: dict[str, str] | None = None
    continued_as: str | None = None


def following(run_id: str) -> str:
    """The topic of waits that end with a run which is not a child of the waiting run."""
    return f"run:{run_id}"


class Runs(RunReading):
    """The verbs on runs.

    ``on_end`` is called, in the transaction, with every run that ends; ``on_cancelling`` with the id of a run that is
    to be compensated, and ``before_burial`` with the id of a run that is marked dead next.
    """

    on_end: Callable[[Ended, int], None] = staticmethod(lambda ended, now: None)
    on_cancelling: Callable[[str, int], None] = staticmethod(lambda run_id, now: None)
    before_burial: Callable[[str, int], None] = staticmethod(lambda run_id, now: None)

    def __init__(self, database: Database, journal: Journal) -> None:
        super().__init__(database)
        self._journal = journal
        self._flow = Flow(database)

    # --- making ------------------------------------------------------------------------------------------------------

    def insert(self, run: NewRun, now: int, lease: Lease | None = None) -> None:
        """Add a pending run.

        :param lease: claim it in the same moment, if it is due, without gates, and without a concurrency key. For
            callers that know that no other run is to be claimed first.
        """
        if lease is not None and (not run.is_due(now) or run.gates or run.concurrency_key is not None):
            lease = None
        self._journal.forget_run(run.id)
        try:
            self._database.execute(queries.INSERT_RUN, row_of(run, now, lease))
        except SerializationError as too_long:
            raise SerializationError(f"input of job {run.job!r}", too_long.reason) from too_long
        if run.labels:
            labels = [{"key": key, "value": value, "run_id": run.id} for key, value in run.labels.items()]
            self._database.executemany(queries.INSERT_LABEL, labels)
        if run.gates:
            self._flow.enter(run.id, run.gates)
        self._journal.append_status(run.id, now, RunStatus.PENDING, attempt=0)
        if self._journal.is_listening:
            self._journal.tell("run:trigger", run.id, now, input=decode(run.input))
        if lease is None:
            self._journal.has_claimable = True
        else:
            expires, deadline = lease.expires_at, run.deadline
            claim = Claim(
                run.id,
                run.job,
                run.version,
                run.input,
                1,
                0,
                1,
                expires,
                deadline,
                run.concurrency_key,
                started_at=now,
                has_steps=False,
            )
            self._note_claim(claim, lease.owner, now)

    def find_by_idempotency_key(self, job: str, key: str) -> str | None:
        """The id of the run of ``job`` that was triggered with that key, whatever its status."""
        found: str | None = self._value(queries.FIND_BY_IDEMPOTENCY_KEY, {"job": job, "key": key})
        return found

    def find_by_concurrency_key(self, job: str, key: str, statuses: Iterable[str], besides: str = "") -> str | None:
        """The id of a run of ``job`` with that key in the first of ``statuses`` in which there is one.

        :param besides: the id of a run that does not count.
        """
        for status in statuses:
            wanted = {"job": job, "key": key, "status": status, "besides": besides}
            found = self._value(queries.FIND_BY_CONCURRENCY_KEY, wanted)
            if found is not None:
                return cast(str, found)
        return None

    # --- executing ---------------------------------------------------------------------------------------------------

    def claim(
        self,
        owner: str,
        now: int,
        expires: int,
        saturated: list[str],
        find_obstacle: Callable[[Claim], str | None],
        *,
        alone: bool,
    ) -> Claim | None:
        """Lease the pending run whose turn it is; ``None`` when there is none.

        :param alone: ``True`` when the engine executes nothing else. A suspect run is only claimed then; until then no
            run behind it is claimed either.
        :param saturated: jobs of which no further run may execute now.
        :param find_obstacle: returns the reason why this engine cannot execute a run, or ``None``. With a reason the
            run is blocked, and the next run is tried.
        """
        text, parameters = queries.claim(saturated)
        parameters |= {"owner": owner, "now": now, "expires": expires}
        parameters |= {"alone": alone, "most_interruptions": MOST_INTERRUPTIONS}
        while True:
            row = self._database.row(text, parameters)
            if row is None:
                return None
            *values, error, failed_step, has_steps, interruptions = row
            info = None if error is None else json.loads(error)
            claim = Claim(*values, info, failed_step, bool(has_steps), interruptions)  # type: ignore[call-arg]
            obstacle = find_obstacle(claim)
            if obstacle is None:
                break
            self._block(claim, now, f"blocked: {obstacle}")
        self._note_claim(claim, owner, now)
        return claim

    def _note_claim(self, claim: Claim, owner: str, now: int) -> None:
        status, reason = RunStatus.RUNNING, None
        if claim.ending is not None:
            status, reason = RunStatus.CANCELLING, "it is compensated"
        self._journal.append_status(claim.run_id, now, status, attempt=claim.attempt, reason=reason)
        if self._journal.is_listening:
            fields = {"lease_owner": owner, "lease_expires_at": from_milliseconds(claim.lease_expires_at)}
            self._journal.tell("run:leased", claim.run_id, now, input=_decoded(claim.input), **fields)
        self._journal.claims.append(claim)
        self._journal.has_claims = True

    def has_claimable(self) -> bool:
        """``True`` when a run may be claimable: read without a transaction, and never ``False`` when there is one."""
        return bool(self._value(queries.HAS_CLAIMABLE, {}))

    def count_executing(self, job: str) -> int:
        """How many runs of a job are executing, in all engines on this file; a blocked run is not executing."""
        found: int = self._value(queries.COUNT_EXECUTING, {"job": job})
        return found

    def renew(self, claim: Claim, now: int, expires: int, *, exclusive: bool) -> bool:
        """Prolong a lease; ``False`` when it is lost or, unless no other engine can claim, has expired.

        An expired lease is not prolonged, because another engine may be about to claim the run. After a refusal the
        engine takes the expired run back in the same transaction (``recover``), so the fence rejects its own later
        writes too.
        """
        values = {**_key(claim), "now": 0 if exclusive else now, "expires": expires}
        if self._database.execute(queries.RENEW, values).rowcount != 1:
            return False
        self._journal.tell("run:lease-renewed", claim.run_id, now, lease_expires_at=from_milliseconds(expires))
        return True

    def limit_duration(self, claim: Claim, deadline: int) -> None:
        """Bring the deadline of an executing run forward."""
        self._database.execute(queries.LIMIT_DURATION, {**_key(claim), "deadline": deadline})

    def fence(self, claim: Claim) -> None:
        """Make sure that the run is still leased under the claim's generation.

        The time does not matter here. A lease is lost when another engine claims the run, or when its renewal is
        refused; both change the row, under the same lock as every write, so what passes the fence is written before
        another engine can have begun. A lease that has only expired (a laptop that slept, with no other engine) is not
        lost: rejecting the owner's result would run the step again, and clocks that disagree would decide which engine
        may write. Expiry says when a run may be claimed, the generation says which engine may write.

        :raises LeaseLost: when the run is not.
        """
        if self._database.row(queries.FENCE, _key(claim)) is None:
            raise LeaseLost(claim.run_id)

    def reset_recoveries(self, claim: Claim) -> None:
        """Reset the count of deaths after an outcome of the run; other runs may execute beside it again."""
        self._database.execute(queries.RESET_RECOVERIES, _key(claim))
        self._journal.has_claimable = True

    def forget_recoveries(self, run_id: str) -> None:
        """Reset the count of deaths because a wait of the run has ended, which is an outcome."""
        if self._database.execute(queries.FORGET_RECOVERIES, {"id": run_id}).rowcount:
            self._journal.has_claimable = True

    def is_suspect(self, run_id: str) -> bool:
        """``True`` when a run may have killed its engine, and has had no outcome since."""
        return bool(self._value(queries.IS_SUSPECT, {"id": run_id, "most_interruptions": MOST_INTERRUPTIONS}))

    def park(self, claim: Claim, now: int, wake_at: int | None, reason: str) -> None:
        """Let an executing run wait, without a lease, until ``wake_at`` or until one of its waits has ended.

        :raises LeaseLost: when it is no longer this engine's.
        """
        values = {**_key(claim), "wake_at": wake_at, "reason": reason, "now": now}
        if self._database.execute(queries.PARK, values).rowcount != 1:
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
        continued_as: str | None = None,
    ) -> None:
        """End an executing run; with ``continued_as``, its waiters now wait for that run.

        :raises LeaseLost: when it is no longer this engine's.
        """
        values = {
            **_key(claim),
            "status": status,
            "output": output,
            "error": _json(error),
            "failed_step": failed_step,
            "continued_as": continued_as,
            "now": now,
            "expected": RunStatus.RUNNING if claim.ending is None else RunStatus.CANCELLING,
            "followed_as": following(claim.run_id),
        }
        row = self._database.row(queries.SETTLE, values)
        if row is None:
            raise LeaseLost(claim.run_id)
        reason = None if continued_as is None else f"it goes on as {continued_as}"
        self._journal.append_status(claim.run_id, now, status, attempt=claim.attempt, reason=reason, error=error)
        started_at, parent_run_id, parent_step, has_relatives = row
        if parent_run_id is not None or has_relatives:  # tested here: in RETURNING, SQLite 3.40 takes NULL for NOT NULL
            self.on_end(Ended(claim.run_id, parent_run_id, parent_step, status, output, error, continued_as), now)
        if not self._journal.is_listening:
            return
        if status == RunStatus.CANCELLED:
            self._journal.tell("run:cancel", claim.run_id, now)
        elif status == RunStatus.COMPLETED:
            duration = max(now - started_at, 0) / 1000
            self._journal.tell("run:complete", claim.run_id, now, output=decode(output or "null"), duration=duration)
        else:
            info = None if error is None else ErrorInfo(**error)
            self._journal.tell("run:fail", claim.run_id, now, error=info, failed_step_name=failed_step)

    def release(self, claim: Claim, now: int, reason: str) -> None:
        """Release the lease of an executing run, so that it is claimed again; does nothing when the lease is lost."""
        row = self._database.row(queries.RELEASE, {**_key(claim), "now": now})
        if row is not None:
            self._journal.append_status(claim.run_id, now, RunStatus(row[0]), attempt=claim.attempt, reason=reason)

    # --- time --------------------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """The time when the next scheduled run, waiting run or deadline is due; ``None`` when there is none."""
        found: int | None = self._value(queries.NEXT_DUE, {})
        return found

    def wake_due(self, now: int) -> None:
        """Make the scheduled and the waiting runs whose time has come claimable."""
        self._database.execute(queries.MAKE_DUE, {"now": now})
        for run_id, attempt in self._database.rows(queries.WAKE, {"now": now}):
            self._journal.append_status(run_id, now, RunStatus.PENDING, attempt=attempt, reason="its wait is over")

    def wake(self, run_id: str, now: int, reason: str = "it goes on early", *, generation: int | None = None) -> None:
        """Make a waiting run claimable; does nothing when it does not wait, or has another generation."""
        row = self._database.row(queries.WAKE_ONE, {"id": run_id, "generation": generation, "now": now})
        if row is not None:
            self._journal.append_status(run_id, now, RunStatus.PENDING, attempt=row[0], reason=reason)
            self._journal.has_claimable = True

    def _block(self, claim: Claim, now: int, reason: str) -> None:
        """Undo the claim of a run, and block it until its version of the job is registered."""
        status, attempt = self._database.row(queries.BLOCK, {**_key(claim), "reason": reason, "now": now})
        if status == RunStatus.CANCELLING:  # when the status changes, the triggers free the slot
            self._flow.free_slot(claim.run_id)
        self._journal.append_status(claim.run_id, now, RunStatus(status), attempt=attempt, reason=reason)

    def unblock(self, job: str, version: str | None, now: int, at_most: int = -1) -> bool:
        """Unblock runs of this version of a job, all of them by default; ``False`` when there is none."""
        values = {"job": job, "version": version, "now": now, "limit": at_most}
        unblocked = self._database.rows(queries.UNBLOCK, values)
        for run_id, status, attempt in unblocked:
            reason = "its version of the job is registered"
            self._journal.append_status(run_id, now, RunStatus(status), attempt=attempt, reason=reason)
            self._journal.has_claimable = True
        return bool(unblocked)

    def pause(self, run_id: str, now: int) -> None:
        """Pause a run: it starts no further step until it is resumed.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended or is being compensated.
        """
        row = self._database.row(queries.PAUSE, {"id": run_id, "now": now})
        if row is None:
            raise RunNotActive(run_id, self.get(run_id).status.value, "paused")
        if row[0] == RunStatus.PENDING:
            self._flow.withdraw(run_id)
        self._journal.append_status(run_id, now, RunStatus(row[0]), attempt=row[1], reason="it is paused")
        self._journal.changed.add(run_id)

    def unpause(self, run_id: str, now: int) -> None:
        """Resume a paused run: it may start steps again. Does nothing when it is not paused."""
        row = self._database.row(queries.UNPAUSE, {"id": run_id, "now": now})
        if row is None:
            return
        if row[0] == RunStatus.WAITING:
            self.wake(run_id, now, "it is resumed")
        else:
            self._journal.append_status(run_id, now, RunStatus(row[0]), attempt=row[1], reason="it is resumed")
            self._journal.has_claimable = True
        self._journal.changed.add(run_id)

    def overdue(self, now: int) -> list[str]:
        """The ids of the active runs whose deadline has passed."""
        return [row[0] for row in self._database.rows(queries.OVERDUE, {"now": now})]

    def expire(self, run_id: str, now: int, error: dict[str, str]) -> None:
        """Fail an active run because its deadline has passed; does nothing when it has ended meanwhile."""
        row = self._database.row(queries.EXPIRE, {"id": run_id, "now": now, "error": _json(error)})
        if row is None:
            return
        self._journal.append_status(run_id, now, RunStatus.FAILED, attempt=row[0], error=error)
        self.on_end(Ended(run_id, row[1], row[2], RunStatus.FAILED, error=error), now)
        self._journal.tell("run:fail", run_id, now, error=ErrorInfo(**error), failed_step_name=None)

    def begin_compensation(self, run_id: str, ending: RunStatus, now: int, error: dict[str, str] | None = None) -> bool:
        """Begin to compensate the steps of an active run before it ends; ``False`` when it has none to compensate.

        The beginning is an outcome of the run, with a number in the order. The engine that executes the run compensates
        it.
        """
        values = {"id": run_id, "ending": ending, "error": _json(error), "now": now}
        row = self._database.row(queries.BEGIN_COMPENSATION, values)
        if row is None:
            return False
        reason = "it is to be compensated"
        self._journal.append_status(run_id, now, RunStatus.CANCELLING, attempt=row[0], reason=reason, error=error)
        self.on_cancelling(run_id, now)
        self._journal.changed.add(run_id)
        self._journal.has_claimable = True
        return True

    def ending(self, run_id: str) -> tuple[str | None, dict[str, str] | None, str | None]:
        """Of a run that is compensated: the status that it ends with, its error, and the step whose failure failed the
        run."""
        ending, error, step = self._database.row(queries.ENDING, {"id": run_id}) or (None, None, None)
        return ending, None if error is None else json.loads(error), step

    def compensate(self, claim: Claim, now: int, error: dict[str, str], failed_step: str | None) -> None:
        """Record that an executing run has failed, and is compensated before it ends.

        :raises LeaseLost: when it is no longer this engine's.
        """
        values = {**_key(claim), "ending": RunStatus.FAILED, "error": _json(error), "failed_step": failed_step}
        if self._database.execute(queries.COMPENSATE, {**values, "now": now}).rowcount != 1:
            raise LeaseLost(claim.run_id)
        self._journal.append_status(
            claim.run_id, now, RunStatus.CANCELLING, attempt=claim.attempt, reason="it is compensated", error=error
        )

    def recover(
        self, now: int, *, everything: bool, max_recoveries: int, deaths: EngineDeaths
    ) -> list[tuple[str, str, str, dict[str, str]]]:
        """Take back the runs whose engine has died; returns id, job, input and error of those that are dead now.

        :param everything: every leased run, because no other engine is alive; else those whose lease has expired.
        :param max_recoveries: a run against which more deaths than this count since its last outcome is dead.
        :param deaths: how their engines ended.
        """
        expired_before = _FOR_EVER if everything else now
        orphans = self._database.rows(queries.ORPHANS, {"expired_before": expired_before})
        dead = []
        for (run_id,) in orphans:
            orphan = self._database.row(queries.ORPHAN, {"id": run_id})
            if orphan is None:
                continue  # it was cancelled with its parent, which is dead
            attempt, recoveries, owner, lease_expires_at = orphan
            if owner == _MIGRATION:
                dead.append(self._bury(run_id, attempt, _RECORDED_EARLIER, now))
                continue
            step = self._open_step(run_id, deaths.culprit(owner, lease_expires_at))
            if step is not None and recoveries >= max_recoveries:
                dead.append(self._bury(run_id, attempt, _crash_loop(recoveries + 1, step), now))
            else:
                self._take_back(run_id, attempt, step, now, died=deaths.has_died(owner))
        return dead

    def has_leases(self, owner: str) -> bool:
        """``True`` when runs are leased by an engine, alive or dead."""
        return bool(self._value(queries.HAS_LEASES, {"owner": owner}))

    def _open_step(self, run_id: str, culprit: tuple[str, str] | None) -> str | None:
        """The step of this run that a death counts against; ``None`` when it is another run's, or has an outcome."""
        if culprit is None or culprit[0] != run_id:
            return None
        return None if self._value(queries.HAS_OUTCOME, {"id": run_id, "step": culprit[1]}) else culprit[1]

    def _take_back(self, run_id: str, attempt: int, step: str | None, now: int, *, died: bool) -> None:
        """Make a run claimable whose engine has ended; with ``step``, the death counts against the run."""
        values = {"id": run_id, "now": now, "counts": step is not None, "died": died}
        (status,) = self._database.row(queries.TAKE_BACK, values)
        reason = "its engine stopped" if step is None else f"its engine stopped in the step {step!r}"
        self._journal.append_status(run_id, now, RunStatus(status), attempt=attempt, reason=reason)

    def _bury(self, run_id: str, attempt: int, error: dict[str, str], now: int) -> tuple[str, str, str, dict[str, str]]:
        self.before_burial(run_id, now)
        values = {"id": run_id, "error": _json(error), "now": now}
        job, input_text, parent, parent_step = self._database.row(queries.BURY, values)
        self._journal.append_status(run_id, now, RunStatus.DEAD, attempt=attempt, error=error)
        self._journal.tell("run:dead", run_id, now, error=ErrorInfo(**error))
        self.on_end(Ended(run_id, parent, parent_step, RunStatus.DEAD, error=error), now)
        return run_id, job, input_text, error

    def link_dead_letter(self, run_id: str, dead_letter_id: str) -> None:
        """Record which run handles a dead one."""
        self._database.execute(queries.LINK_DEAD_LETTER, {"id": run_id, "dead_letter_id": dead_letter_id})

    # --- managing ----------------------------------------------------------------------------------------------------

    def cancel(self, run_id: str, now: int) -> None:
        """Cancel an active run.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        row = self._database.row(queries.CANCEL, {"id": run_id, "now": now})
        if row is None:
            raise RunNotActive(run_id, self.get(run_id).status.value, "cancelled")
        self._journal.append_status(run_id, now, RunStatus.CANCELLED, attempt=row[0])
        self._journal.tell("run:cancel", run_id, now)
        self.on_end(Ended(run_id, row[1], row[2], RunStatus.CANCELLED), now)

    def active_children(self, run_id: str) -> list[str]:
        """The ids of the active child runs of a run, without those that are cancelling, the oldest first."""
        return [row[0] for row in self._database.rows(queries.ACTIVE_CHILDREN, {"id": run_id})]

    def awaited_children(self, run_id: str) -> list[str]:
        """The ids of the active child runs that a run waits for, or was waiting for when it ended.

        A child whose result the run has, and which was retried by hand since, is not among them.
        """
        return [row[0] for row in self._database.rows(queries.AWAITED_CHILDREN, {"id": run_id})]

    def tell_parent_step(self, child_id: str, step: str) -> None:
        """Change the step of the parent that a child ends: after a retry the step may have another name."""
        self._database.execute(queries.TELL_PARENT_STEP, {"id": child_id, "step": step})

    def active_child(self, run_id: str, step: str) -> str | None:
        """The id of the active child run that a run waits for under a step's name; ``None`` when there is none."""
        rows = self._database.rows(queries.ACTIVE_CHILDREN, {"id": run_id})
        return next((child_id for child_id, name in rows if name == step), None)

    def adopt_children(self, run_id: str, successor_id: str) -> None:
        """Make the active children that a run does not wait for the children of its successor."""
        self._database.execute(queries.ADOPT_CHILDREN, {"id": run_id, "successor_id": successor_id})

    def reopen(self, run_id: str, now: int, input_text: str | None) -> None:
        """Retry a run that has failed, died or was cancelled; with ``input_text``, on another input.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active or has completed.
        """
        row = self._database.row(queries.REOPEN, {"id": run_id, "input": input_text, "now": now})
        if row is None:
            raise RunNotTerminal(run_id, self.get(run_id).status.value, "retried")
        self._journal.append_status(run_id, now, RunStatus.PENDING, attempt=row[0], reason="retried")
        self._journal.has_claimable = True

    def delete(self, run_id: str, now: int) -> None:
        """Delete a run that has ended, with all of its rows.

        One frame, which reports the deletion to later watchers, is kept for 30 days. It also keeps the numbers of the
        deleted frames from being assigned again.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active.
        """
        run = self.get(run_id)
        if not run.is_terminal:
            raise RunNotTerminal(run_id, run.status.value, "deleted")
        self._journal.append(run_id, now, "run_deleted", {"job": run.job, "labels": run.labels})
        for text in queries.DELETE_RUN:
            self._database.execute(text, {"run_id": run_id, "forget_before": now - DELETED_RUNS_KEPT})
        self._journal.forget_run(run_id)
        self._journal.tell("run:delete", run_id, now, job_name=run.job, labels=run.labels)

    def ended_before(self, moment: int, limit: int) -> list[str]:
        """The ids of the runs that ended longest ago, before ``moment``."""
        return [row[0] for row in self._database.rows(queries.ENDED_BEFORE, {"moment": moment, "limit": limit})]


def _decoded(text: str) -> Any:
    """A stored input; ``None`` where it cannot be decoded. When the run is executed, it fails with the reason."""
    try:
        return decode(text)
    except Exception:
        return None


def _crash_loop(deaths: int, step: str) -> dict[str, str]:
    times = "times" if deaths > 1 else "time"
    return {
        "type": "CrashLoop",
        "message": f"The engine died {deaths} {times} in a row while it executed this run, at last in the step "
        f"{step!r}.",
        "traceback": "",
    }


def _key(claim: Claim) -> dict[str, Any]:
    return {"id": claim.run_id, "generation": claim.generation}


def _json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else to_json(value)
