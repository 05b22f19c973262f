"""One run, executed: replay, steps, attempts, parking, settling.

The job function is called from the top. A step whose outcome is recorded gives that outcome back; any other is called,
and its outcome committed before the job body sees it. When the run is taken away from this engine (cancelled, lease
lost, engine stopping, storage full), everything that the body may still try through its context raises ``Unwind``,
and nothing of it is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

from ..codec import check_reading, decode, encode
from ..errors import NonDeterminismError, SerializationError, StepFailed, StorageError, TransactionError, describe
from ..job import Job
from ..model import RunStatus, StepStatus
from ..store import Claim, LeaseLost, NewRun, StepRecord
from .branches import Branches
from .compensation import COMPENSATION, Compensation
from .leaving import ContinueAsNew, Unwind, failed_step, is_closing, own_reason
from .naming import Names, is_of_step
from .operations import Operations
from .parking import Parking
from .reports import Reports, current_step
from .services import Services
from .timeouts import Timeouts
from .waiting import WAITS, Waiting

TURN_SECONDS = 0.03  # how long quick steps may keep the event loop from turning


class Execution:
    """A claimed run, on its way through its job function."""

    def __init__(self, services: Services, claim: Claim, job: Job) -> None:
        self.claim = claim
        self.cancelled = False
        self.job = job
        self.webhook_url = services.webhook_url
        self._store = services.store
        self._commits = services.commits
        self._services = services
        self._clock = services.clock
        self.records = services.store.steps.load(claim.run_id) if claim.has_steps else {}
        of_body = [record for record in self.records.values() if not is_of_step(record.place)]
        self._unreached = {record.name for record in of_body if record.kind != COMPENSATION}
        self._unvisited = {record.name for record in of_body if record.is_settled}
        self._last_position = max((record.position for record in self.records.values()), default=-1)
        self.ending: set[str] = set()  # steps whose outcome is on its way into the next commit
        self._earlier_attempts = services.store.steps.earlier_attempts(claim.run_id) if claim.attempt > 1 else {}
        self._recoveries = claim.recoveries
        self.queued = claim.queued  # of the steps that the claim was made for
        self._abandoned = False
        self._is_taken_away = False  # while it let go of its branches
        self._broken: NonDeterminismError | None = None
        self.unannounced: StepRecord | None = None
        self._task: asyncio.Task[Any] | None = None
        self.names = Names(self)
        self.branches = Branches(self)
        self._last_turn = time.perf_counter()
        self.timeouts = Timeouts(self, services)
        self.parking = Parking(self, services)
        self.operations = Operations(self, services)
        self.waiting = Waiting(self, services)
        self.compensation = Compensation(self, services)
        self.reports = Reports(self, services)

    # --- the run -----------------------------------------------------------------------------------------------------

    async def run(self, context: Any) -> None:
        """Execute the job function and settle the run; raises nothing that a job can cause."""
        if self._abandoned:
            return
        self._task = asyncio.current_task()
        failure: BaseException | None = None
        text = ""
        try:
            input_value = self.job.validate_input(decode(self.claim.input))
            output, path = await self.job.function(context, input_value), f"output of job {self.job.name!r}"
            text = encode(self.job.validate_output(output), path=path)
            check_reading(output, self.job.output_type, path=path)
            self._store.database.refuse_longer(path, text, self.claim.input)
        except BaseException as error:
            if is_closing([self._task]):  # it has not failed
                raise
            failure = own_reason(error)
        with suppress(Unwind, asyncio.CancelledError):  # it may be taken away while it is being compensated
            await self._end(self._broken or failure, text)

    async def _end(self, failure: BaseException | None, output: str) -> None:
        """Settle the run as it came out, after compensating what has to be."""
        if not self._abandoned:
            await self.parking.has_lease()
        if self._abandoned:
            return
        if self.claim.ending is not None:
            await self.compensation.run()
            self._settle(RunStatus(self.claim.ending), error=self.claim.error, failed_step=self.claim.failed_step)
        elif isinstance(failure, ContinueAsNew):
            await self._leave_branches()
            self._settle(RunStatus.COMPLETED, successor=failure.successor)
        elif failure is None:
            await self._leave_branches()
            self._settle(RunStatus.COMPLETED, output=output)
        else:
            await self._fail(failure)

    async def _fail(self, failure: BaseException) -> None:
        error = _describe_failure(failure)
        step = failed_step(failure)
        if self._broken is None and await self.compensation.begin(error, step):
            await self.compensation.run()
        else:
            await self._leave_branches()
        self._settle(RunStatus.FAILED, error=error, failed_step=step)

    async def _leave_branches(self) -> None:
        """Let go of what other branches have under way, so that whoever is next sees nothing of it.

        What they still try is refused, but the lease is kept, unless the run is taken away meanwhile.
        """
        if self.branches.tasks:
            self._abandoned = True
            await self.branches.stop()
            if self._is_taken_away:
                self.unwind()

    def fail(self, error: Exception) -> None:
        """Settle the run as failed without executing it."""
        self._settle(RunStatus.FAILED, error=_describe_failure(error))

    def _settle(
        self,
        status: RunStatus,
        *,
        output: str | None = None,
        error: dict[str, str] | None = None,
        failed_step: str | None = None,
        successor: NewRun | None = None,
    ) -> None:
        self.reports.take_over()
        self.reports.write_progress()

        def write() -> None:
            now = self._clock.now()
            if any(record.status == StepStatus.RUNNING for record in self.records.values()):
                self._store.runs.fence(self.claim)
                self._store.steps.cancel_running(self.claim.run_id, now)
            self._store.runs.settle(
                self.claim,
                status,
                now,
                output=output,
                error=error,
                failed_step=failed_step,
                continued_as=None if successor is None else successor.id,
            )
            if successor is not None:
                self._store.runs.insert(successor, now)
                self._store.flow.copy(self.claim.run_id, successor.id)
            if status == RunStatus.COMPLETED and not self._services.preserve_steps:
                self._store.steps.delete(self.claim.run_id)
            if not self.branches.tasks:  # else these have to stop first
                self._services.claim(self.claim.run_id)  # whoever is next begins without a commit of its own

        try:
            self._commits.commit_now(write)
        except LeaseLost:
            pass  # cancelled or taken over at the last moment: theirs is the outcome
        except StorageError as trouble:
            self._services.on_storage_trouble(self.claim, trouble)
        except SerializationError as too_long:
            if error is not None and error["type"] == "SerializationError":
                raise
            self._settle(RunStatus.FAILED, error=describe(too_long), failed_step=failed_step)
        else:
            if not self.branches.tasks:
                self._services.on_settled(self)
        finally:
            self._abandoned = True
            self.branches.cancel()

    def abandon(self, *, cancelled: bool = False) -> None:
        """Stop executing: the run is no longer ours. What the body still tries is refused."""
        self.cancelled = self.cancelled or cancelled
        if self._abandoned:
            self._is_taken_away = True
            return  # a second cancellation would only disturb what is cleaning up after the first
        self._abandoned = True
        self.reports.stop()
        self.parking.stop()
        self.branches.cancel_all()

    def check(self) -> None:
        """Raise ``Unwind`` when the run is no longer ours."""
        if self._abandoned:
            self.unwind()

    def unwind(self) -> NoReturn:
        """Leave the body, or a branch of it for whose end nobody may be waiting any more."""
        with suppress(RuntimeError):  # in another thread, which has no task
            task = asyncio.current_task()
            if task is not None:
                self.branches.excuse(task)
                if task is not self._task:
                    task.add_done_callback(_retrieve)
        raise Unwind(self.claim.run_id)

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that executes the job function; ``None`` until it begins."""
        return self._task

    @property
    def is_abandoned(self) -> bool:
        """Whether the run is no longer ours."""
        return self._abandoned

    @property
    def may_park(self) -> bool:
        """Whether the run may give its lease up while it waits; one that is compensated keeps it."""
        return not self._abandoned and not self.compensation.is_running

    def is_resumed_by(self, claim: Claim) -> bool:
        """Whether nobody has executed, or retried, the run since it was parked here."""
        return not self._abandoned and claim.generation == self.claim.generation + 1 and claim.ending is None

    def resume(self, claim: Claim) -> None:
        """Go on after parking, under a new claim."""
        self.claim = claim
        self.queued = claim.queued
        self.parking.unpause()
        self.look_at_waits()
        self.parking.resume()

    def look_at_waits(self) -> None:
        """Let the branches go on whose durable wait somebody has ended, or that have a message to look at."""
        awaited = self.parking.awaited
        if awaited:
            ended = self._store.waits.ended(self.claim.run_id, awaited)
            for name in ended:
                self.reload(name)
            self.parking.notice(set(ended))

    # --- steps -------------------------------------------------------------------------------------------------------

    async def may_begin(self, record: StepRecord) -> StepRecord:
        """Return once the run is not paused, and leased; what a parked run asked for begins only then.

        For a branch that is under way.
        """
        if self.timeouts.are_early and not self.is_replaying:
            self.timeouts.bring_forward()
        if self.parking.is_open:
            has_waited = False
            self.check()
        else:
            has_waited = await self.parking.may_begin()
        if self.is_unwinding and record.kind != COMPENSATION:
            self.unwind()
        if not has_waited or record.retry_at is not None:
            return record
        return self.begin(record, ready_at=record.started_at)

    def record(self, key: str) -> StepRecord:
        """What is recorded under a key that has been entered."""
        return self.records[key]

    def has_outcome(self, key: str) -> bool:
        """Whether an outcome is recorded under a key."""
        return key in self.records and self.records[key].is_settled

    def reload(self, key: str) -> StepRecord:
        """The same, as it now is in the store."""
        found = self._store.steps.find(self.claim.run_id, key)
        if found is not None:
            self.records[key] = found
        return self.records[key]

    def reload_in_body(self, key: str) -> StepRecord:
        """``reload`` for a branch of the body: where it cannot be read, the run is left, as when a commit fails."""
        try:
            return self.reload(key)
        except StorageError as trouble:
            self.abandon()
            self._services.on_storage_trouble(self.claim, trouble)
            self.unwind()

    @property
    def is_unwinding(self) -> bool:
        """Whether the body is only replayed to find out how its completed steps are undone."""
        return self.claim.ending is not None or self.compensation.is_running

    async def arrive(self, key: str, kind: str) -> StepRecord:
        """``enter``, unless the run is to be compensated, and the body has come to what it has not done.

        :raises Unwind: when it has; but not before its other branches have come as far.
        :raises RuntimeError: when it is a compensation that asks: it is a durable step itself.
        """
        if self.is_unwinding and not self.has_outcome(key):
            self.check()
            step = current_step.get()
            if step is not None and step.kind == COMPENSATION:
                raise RuntimeError(
                    f"A compensation is one durable step, and cannot ask for {key!r} while it undoes another. Do it in "
                    "plain code, which may be called again, or give the step to be undone several of its own."
                )
            await self.compensation.all_found()
            self.unwind()
        return self.enter(key, kind)

    def enter(self, key: str, kind: str) -> StepRecord:
        """The record of that key: the one that is there, or a new running one.

        :raises NonDeterminismError: when it is recorded as another kind of operation.
        :raises Unwind: when the run is no longer ours.
        """
        self.check()
        found = self.records.get(key)
        self._unreached.discard(key)
        self._unvisited.discard(key)
        if found is None:
            self._last_position += 1
            before = self._earlier_attempts.get(key, 0)
            record = StepRecord(
                key,
                kind,
                StepStatus.RUNNING,
                self._last_position,
                before + 1,
                before,
                queued=self.queued,
                started_at=self._clock.now(),
                place=self.names.place(key),
            )
            self.records[key] = self.unannounced = record
            return record
        if found.kind != kind:
            self._broken = NonDeterminismError(key, found.kind, kind)
            raise self._broken
        if found.is_settled or found.retry_at is not None:
            return found
        if kind in WAITS and found.status == StepStatus.RUNNING:
            return found
        off = found.status == StepStatus.CANCELLED  # called off: an attempt that has not failed
        attempt, before = found.attempt + off, found.attempts_before + off
        return self.begin(found._replace(attempt=attempt, attempts_before=before, completed_at=None))

    def reach(self, key: str) -> None:
        """Note that the body has come to an operation, be it only to wait until it calls that off again."""
        self._unreached.discard(key)

    def begin(self, record: StepRecord, ready_at: int | None = None) -> StepRecord:
        """Let an attempt begin now; it could have begun at ``ready_at``, or when the run could have been claimed."""
        now = self._clock.now()
        queued = self.queued if ready_at is None else max(now - ready_at, 0)
        begun = record._replace(status=StepStatus.RUNNING, started_at=now, queued=queued)
        return self.put(begun)

    def put(self, record: StepRecord) -> StepRecord:
        """Keep how a step that runs now stands; that it has begun is told with the next commit."""
        self.records[record.name] = self.unannounced = record
        return record

    def ride_along(self, write: Callable[[], None], *, simple: bool = False) -> None:
        """Let a write ride along with the next commit; one of a parked run waits until that has its lease back.

        :param simple: as ``GroupCommit.later`` has it.
        """

        def fenced() -> None:
            self._store.runs.fence(self.claim)
            write()

        if self.parking.is_parked:
            self.parking.hold(fenced)
        else:
            self._commits.later(fenced, simple=simple)

    @property
    def is_replaying(self) -> bool:
        """Whether the body is still on its way through what an earlier attempt recorded."""
        return bool(self._unvisited)

    @property
    def was_further(self) -> bool:
        """Whether an earlier attempt had come further than the body has now, if only to the beginning of a step."""
        return bool(self._unreached)

    def announce(self) -> None:
        """Let the news that the latest step has begun ride along with the next commit, if it still runs by then."""
        record, self.unannounced = self.unannounced, None
        if record is None:
            return

        def write() -> None:
            if self.records[record.name] is record and record.name not in self.ending:
                self._store.steps.record(self.claim.run_id, record, self._clock.now())

        self.ride_along(write, simple=True)

    def commit_step(self, record: StepRecord, status: StepStatus, **outcome: Any) -> Awaitable[None]:
        """Commit how a step has ended."""
        self.ending.add(record.name)
        completed = record if status == StepStatus.COMPLETED else None
        return self.commit(lambda: self.record_outcome(record, status, **outcome), simple=True, completed=completed)

    def record_outcome(self, record: StepRecord, status: StepStatus, **outcome: Any) -> None:
        """Write how a step has ended.

        :raises LeaseLost: when the run is no longer this engine's; nothing is written.
        """
        now = self._clock.now()
        if record.undo and status == StepStatus.COMPLETED:
            outcome["undo"] = self.compensation.next_place()
        finished = record._replace(status=status, completed_at=now, **outcome)
        self._store.steps.record_fenced(self.claim, finished, now)
        if self._recoveries:
            self._store.runs.reset_recoveries(self.claim)
            self._recoveries = 0
        self.records[record.name] = finished
        self.queued = 0  # what comes after this did not wait for the claim

    def interrupt(self, record: StepRecord) -> None:
        """The body itself called the step off, by a timeout say: it is cancelled, and a replay would run it again."""
        if self._abandoned:
            return
        now = self._clock.now()
        cancelled = record._replace(status=StepStatus.CANCELLED, topic=None, completed_at=now)
        self.records[record.name] = cancelled

        def write() -> None:
            self._store.steps.record(self.claim.run_id, cancelled, now)

        self.ride_along(write, simple=True)

    async def commit(
        self, write: Callable[[], None], *, simple: bool = False, completed: StepRecord | None = None
    ) -> None:
        """Commit at once when nobody could share the commit, else together with the others of this turn.

        :param simple: as ``GroupCommit.commit`` has it.
        :param completed: the step whose output is written, and which fails when that is too long.
        """
        self.check()
        self.unannounced = None
        is_alone = self._services.is_alone() and self.parking.in_flight <= 1 and asyncio.current_task() is self._task
        self.parking.in_flight += 1  # a run is not parked while it commits
        try:
            if is_alone:
                self._commits.commit_now(write, simple=simple)
                if time.perf_counter() - self._last_turn > TURN_SECONDS:
                    await self._clock.turn()
                    self._last_turn = time.perf_counter()
            else:
                await self._commits.commit(write, simple=simple)
        except LeaseLost:
            self.abandon()
        except StorageError as trouble:
            if isinstance(trouble, TransactionError):
                raise
            self.abandon()
            self._services.on_storage_trouble(self.claim, trouble)
        except SerializationError as too_long:
            if completed is None:
                raise
            error = describe(SerializationError(f"output of step {completed.name!r}", too_long.reason))
            await self.commit_step(completed, StepStatus.FAILED, error=error)
            raise StepFailed(completed.name, error["type"], error["message"], error["traceback"]) from too_long
        finally:
            self.parking.land()
        self.check()

    def time(self) -> datetime:
        """The wall-clock time, in UTC."""
        return datetime.fromtimestamp(self._clock.now() / 1000, UTC)

    def reference(self) -> str:
        """What the step that asks is called, among all steps of all runs."""
        step = current_step.get()
        return self.claim.run_id if step is None else f"{self.claim.run_id}/{self.names.path(step.name)}"


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at how a task has ended, so that asyncio does not report that nobody did."""
    if not task.cancelled():
        task.exception()


def _describe_failure(error: BaseException) -> dict[str, str]:
    """An error that ends a run; a failed step's traceback is that of the step, first time and replayed alike."""
    described = describe(error)
    if isinstance(error, StepFailed):
        described["traceback"] = error.error_traceback
    return described
