"""One run, executed: replay, steps, attempts, parking, settling.

The job function is called from the top. A step whose outcome is recorded gives that outcome back; any other is called,
and its outcome committed before the job body sees it. When the run is taken away from this engine (cancelled, lease
lost, engine stopping, storage full), everything that the body may still try through its context raises ``Unwind``,
and nothing of it is written.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .clock import Clock, TimerHandle
from .codec import decode, encode, readable, return_annotation
from .commits import GroupCommit
from .errors import NonDeterminismError, SerializationError, StepFailed, StorageError, TransactionError, describe
from .files import Files
from .job import Job, Retry
from .model import RunStatus, StepStatus
from .reports import Reports, current_step
from .store import Claim, LeaseLost, StepRecord, Store

TURN_SECONDS = 0.03  # how long quick steps may keep the event loop from turning
PARK_SECONDS = 1.0  # a shorter wait keeps the slot: parking costs three commits
LONGEST_TIMER_SECONDS = 24 * 24 * 60 * 60.0  # beyond 24.8 days a browser's timer fires at once
STEP = "step"
TRANSACTION = "transaction"
VALUE = "value"

_ORDINAL = re.compile(r"#\d+$")
_FAILURES = (Exception, KeyboardInterrupt, SystemExit)


class Unwind(BaseException):
    """Leaves a job body whose run is no longer this engine's. Not an ``Exception``: a body must not catch it."""


@dataclass(frozen=True, slots=True)
class Services:
    """What an execution needs of its engine."""

    store: Store
    commits: GroupCommit
    clock: Clock
    files: Files
    preserve_steps: bool
    is_alone: Callable[[], bool]  # whether this is the only run executing
    on_parked: Callable[[Execution], None]
    on_wanted: Callable[[Execution], None]  # a parked body wants to go on before its time
    on_storage_trouble: Callable[[Claim, StorageError], None]


@dataclass(slots=True)
class _Wait:
    until: int
    over: asyncio.Future[None]


class Execution:
    """A claimed run, on its way through its job function."""

    def __init__(self, services: Services, claim: Claim, job: Job) -> None:
        self.claim = claim
        self.cancelled = False
        self._job = job
        self._store = services.store
        self._commits = services.commits
        self._services = services
        self._clock = services.clock
        self._records = services.store.steps.load(claim.run_id)
        self._unvisited = {name for name, record in self._records.items() if record.is_settled}
        self._last_position = max((record.position for record in self._records.values()), default=-1)
        self._ending: set[str] = set()  # steps whose outcome is on its way into the next commit
        self._earlier_attempts = services.store.steps.earlier_attempts(claim.run_id) if claim.attempt > 1 else {}
        self._ordinals: dict[str, int] = {}
        self._recoveries = claim.recoveries
        self._queued = claim.queued  # of the steps that the claim was made for
        self._abandoned = False
        self._broken: NonDeterminismError | None = None
        self._in_flight = 0
        self._waits: list[_Wait] = []
        self._wake_timer: TimerHandle | None = None
        self._held: list[Callable[[], None]] = []
        self._resumed: asyncio.Event | None = None  # set again when a parked run has its lease back
        self._unannounced: StepRecord | None = None
        self._task: asyncio.Task[Any] | None = None
        self._tasks: list[asyncio.Task[Any] | None] = []  # of the steps under way
        self._last_turn = time.perf_counter()
        self.reports = Reports(self, services)

    # --- the run -----------------------------------------------------------------------------------------------------

    async def run(self, context: Any) -> None:
        """Execute the job function and settle the run; raises nothing that a job can cause."""
        if self._abandoned:
            return
        self._task = asyncio.current_task()
        try:
            input_value = self._job.validate_input(decode(self.claim.input, self._job.input_type))
            output = self._job.validate_output(await self._job.function(context, input_value))
            text = encode(output, path=f"output of job {self._job.name!r}")
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit, Unwind) as error:
            await self._fail(self._broken or error)
            return
        if self._broken is not None:
            await self._fail(self._broken)
        else:
            await self._end(RunStatus.COMPLETED, output=text)

    async def _fail(self, error: BaseException) -> None:
        failed_step = error.step if isinstance(error, StepFailed) else None
        await self._end(RunStatus.FAILED, error=_describe_failure(error), failed_step=failed_step)

    async def _end(self, status: RunStatus, **outcome: Any) -> None:
        if self._resumed is not None and not self._abandoned:
            await self._has_lease()
        if not self._abandoned:
            self._settle(status, **outcome)

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
    ) -> None:
        self.reports.write_progress()

        def write() -> None:
            now = self._clock.now()
            if any(record.status == StepStatus.RUNNING for record in self._records.values()):
                self._store.runs.fence(self.claim)
                self._store.steps.cancel_running(self.claim.run_id, now)
            self._store.runs.settle(self.claim, status, now, output=output, error=error, failed_step=failed_step)
            if status == RunStatus.COMPLETED and not self._services.preserve_steps:
                self._store.steps.delete(self.claim.run_id)

        try:
            self._commits.commit_now(write)
        except LeaseLost:
            pass  # cancelled or taken over at the last moment: theirs is the outcome
        except StorageError as trouble:
            self._services.on_storage_trouble(self.claim, trouble)
        finally:
            self._abandoned = True
            self._cancel_tasks()

    def abandon(self, *, cancelled: bool = False) -> None:
        """Stop executing: the run is no longer ours. What the body still tries is refused."""
        self._abandoned = True
        self.cancelled = self.cancelled or cancelled
        self.reports.stop()
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        if self._resumed is not None:
            self._resumed.set()
        self._cancel_tasks()

    def _cancel_tasks(self) -> None:
        """Tell the job body, and every step that it has under way in other tasks, to stop."""
        current = asyncio.current_task()
        for task in {self._task, *self._tasks}:
            if task is not None and task is not current:
                task.cancel()

    def check(self) -> None:
        """Raise ``Unwind`` when the run is no longer ours."""
        if self._abandoned:
            raise Unwind(self.claim.run_id)

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _wait_until(self, moment: int) -> None:
        """Wait in memory; when every branch of the run waits long enough, the run is parked and its slot is free."""
        if moment <= self._clock.now():
            return
        wait = _Wait(moment, asyncio.get_running_loop().create_future())
        self._waits.append(wait)
        self._in_flight -= 1
        self._arm()
        asyncio.get_running_loop().call_soon(self._park_if_idle)
        try:
            await wait.over
        finally:
            self._in_flight += 1
            if wait in self._waits:
                self._waits.remove(wait)
        await self._has_lease()

    def _arm(self) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._wake_timer = None
        if self._waits and self._resumed is None:
            until = min(wait.until for wait in self._waits)
            delay = min((until - self._clock.now()) / 1000, LONGEST_TIMER_SECONDS)
            self._wake_timer = self._clock.call_later(delay, self._on_wake_timer)

    def _on_wake_timer(self) -> None:
        self._end_waits()
        asyncio.get_running_loop().call_soon(self._park_if_idle)  # the clock was set back: a short wait may be long now

    def _end_waits(self) -> None:
        now = self._clock.now()
        for wait in self._waits:
            if wait.until <= now and not wait.over.done():
                wait.over.set_result(None)
        self._waits = [wait for wait in self._waits if not wait.over.done()]
        self._arm()

    def _land(self) -> None:
        """One branch fewer is in flight; if the others all wait, the run can be parked."""
        self._in_flight -= 1
        if self._waits and not self._in_flight and not self._abandoned:
            asyncio.get_running_loop().call_soon(self._park_if_idle)

    def _park_if_idle(self) -> None:
        if self._abandoned or self._resumed is not None or self._in_flight or not self._waits:
            return
        until = min(wait.until for wait in self._waits)
        if until - self._clock.now() < PARK_SECONDS * 1000:
            return
        self.reports.write_progress()
        try:
            self._commits.commit_now(
                lambda: self._store.runs.park(self.claim, self._clock.now(), until, "a step waits to be tried again")
            )
        except LeaseLost:
            self.abandon()
            return
        except StorageError as trouble:
            self.abandon()
            self._services.on_storage_trouble(self.claim, trouble)
            return
        self._resumed = asyncio.Event()
        self._arm()
        self._services.on_parked(self)

    def is_resumed_by(self, claim: Claim) -> bool:
        """Whether nobody has executed, or retried, the run since it was parked here."""
        return not self._abandoned and claim.generation == self.claim.generation + 1

    def resume(self, claim: Claim) -> None:
        """Go on after parking, under a new claim."""
        self.claim = claim
        self._queued = claim.queued
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.set()
        held, self._held = self._held, []
        for write in held:
            self._commits.later(write)
        self._end_waits()

    async def _has_lease(self) -> None:
        """Return once the run is leased; a parked one asks to be woken before its time."""
        resumed = self._resumed
        if resumed is not None:
            self._services.on_wanted(self)
            await resumed.wait()
        self.check()

    # --- steps -------------------------------------------------------------------------------------------------------

    async def step(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], retry: Retry | None
    ) -> Any:
        """The outcome of the step: as recorded, or of calling ``function(*arguments)`` now."""
        record = self._enter(name, STEP)
        annotation = return_annotation(function)
        if record.is_settled:
            return _replay(record, annotation)
        record = await self._with_lease(record)
        self._in_flight += 1
        task = asyncio.current_task()
        self._tasks.append(task)
        try:
            return await self._attempts(record, function, arguments, retry or self._job.retry, annotation)
        finally:
            self._tasks.remove(task)
            self._land()

    async def _attempts(
        self,
        record: StepRecord,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        retry: Retry,
        annotation: Any,
    ) -> Any:
        if record.retry_at is not None:
            record = await self._wait_for_attempt(record)
        while True:
            text, value, error = await self._attempt(record, function, arguments, retry.timeout, annotation)
            self.check()
            if error is None:
                await self._commit_step(record, StepStatus.COMPLETED, output=text)
                return value
            if not retry.wants(error, record.attempt - record.attempts_before):
                await self._commit_step(record, StepStatus.FAILED, error=describe(error))
                raise _step_failed(self._records[record.name]) from error
            record = await self._wait_for_attempt(await self._commit_failed_attempt(record, error, retry))

    async def _wait_for_attempt(self, record: StepRecord) -> StepRecord:
        """Wait until the next attempt is due, and begin it."""
        try:
            await self._wait_until(record.retry_at or 0)
        except asyncio.CancelledError:
            self._interrupt(dataclasses.replace(record, retry_at=None))
            raise
        next_attempt = dataclasses.replace(record, attempt=record.attempt + 1, retry_at=None, error=None)
        return self._begin(next_attempt, ready_at=record.retry_at)

    async def _attempt(
        self,
        record: StepRecord,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        timeout: float | None,
        annotation: Any,
    ) -> tuple[str, Any, BaseException | None]:
        """Call the function once: the text of its result and what that reads as, or why there is none."""
        token = current_step.set(record)
        try:
            result = function(*arguments)
            if inspect.isawaitable(result):
                self.announce()
                async with self._time_limit(timeout):
                    result = await result
            return *_write_down(result, record.name, annotation), None
        except _FAILURES as error:
            return "", None, error
        except asyncio.CancelledError:
            self._interrupt(record)
            raise
        finally:
            current_step.reset(token)

    @asynccontextmanager
    async def _time_limit(self, seconds: float | None) -> AsyncIterator[None]:
        """``asyncio.timeout`` on the engine's clock; a limit that no timer can count to is none."""
        task = asyncio.current_task()
        if seconds is None or seconds > LONGEST_TIMER_SECONDS or task is None:
            yield
            return
        expired: list[bool] = []
        cancelling = task.cancelling()
        timer = self._clock.call_later(seconds, lambda: expired.append(task.cancel()))
        try:
            yield
        except asyncio.CancelledError:
            if expired and task.uncancel() <= cancelling:
                raise TimeoutError(f"the attempt took longer than {seconds} s") from None
            raise
        else:
            if expired:  # the function swallowed the cancellation, and came to a result all the same
                task.uncancel()
        finally:
            timer.cancel()

    async def _commit_failed_attempt(self, record: StepRecord, error: BaseException, retry: Retry) -> StepRecord:
        described = describe(error)
        retry_at = self._clock.now() + round(retry.delay(record.attempt - record.attempts_before) * 1000)
        waiting = dataclasses.replace(record, error=described, retry_at=retry_at)

        def write() -> None:
            self._store.runs.fence(self.claim)
            self._store.steps.record_attempt(self.claim.run_id, waiting, described, self._clock.now())

        await self._commit(write)
        self._records[record.name] = waiting
        self._queued = 0
        return waiting

    async def transaction(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The outcome of calling ``function(connection, *arguments)`` in the transaction of the checkpoint."""
        record = self._enter(name, TRANSACTION)
        annotation = return_annotation(function)
        if record.is_settled:
            return _replay(record, annotation)
        record = await self._with_lease(record)
        token = current_step.set(record)
        self._ending.add(record.name)
        context = contextvars.copy_context()  # a group may be committed from within another run's step
        outcome: list[Any] = []

        def write() -> None:
            outcome.clear()
            self._store.runs.fence(self.claim)
            try:
                with self._store.database.guarded_savepoint() as connection:
                    result = context.run(function, connection, *arguments)
                    result = _refuse_awaitable(result, self._store.database.path)
                    text, value = _write_down(result, record.name, annotation)
            except _FAILURES as error:
                if self._store.database.is_trouble(error):
                    raise
                outcome.append(error)
                self._record(record, StepStatus.FAILED, error=describe(error))
            else:
                outcome.append(value)
                self._record(record, StepStatus.COMPLETED, output=text)

        try:
            await self._commit(write)
        finally:
            current_step.reset(token)
        recorded = self._records[record.name]
        if recorded.status == StepStatus.FAILED:
            raise _step_failed(recorded) from outcome[0]
        return outcome[0]

    async def value(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once and replayed ever after."""
        record = self._enter(name, VALUE)
        if record.is_settled:
            return _replay(record, Any)
        record = await self._with_lease(record)
        text = encode(make(), path=f"value {record.name!r}")
        await self._commit_step(record, StepStatus.COMPLETED, output=text)
        return decode(text)

    async def publish(self, key: str, value: Any) -> None:
        """Publish a value of the run under a key, for others to read live."""
        if not isinstance(key, str) or not key:
            raise ValueError(f"An event's key is a non-empty string, not {key!r}.")
        text = encode(value, path=f"event {key!r}")
        await self._has_lease()

        def write() -> None:
            self._store.runs.fence(self.claim)
            if self._store.steps.stored_value(self.claim.run_id, key) == text:
                return  # a replay publishes what is published already
            self._store.steps.set_value(self.claim.run_id, key, text, readable(value), self._clock.now())

        await self._commit(write)

    def _enter(self, name: str, kind: str) -> StepRecord:
        """The record under which this call of ``name`` goes: the one that is there, or a new running one."""
        self.check()
        if not isinstance(name, str) or not name or _ORDINAL.search(name):
            raise ValueError(
                f"A step's name is a non-empty string that does not end in '#' and a number, not {name!r}: "
                "the second step of one name is recorded as name#2."
            )
        ordinal = self._ordinals[name] = self._ordinals.get(name, 0) + 1
        key = name if ordinal == 1 else f"{name}#{ordinal}"
        found = self._records.get(key)
        self._unvisited.discard(key)
        if found is None:
            self._last_position += 1
            before = self._earlier_attempts.get(key, 0)
            return self._begin(StepRecord(key, kind, StepStatus.RUNNING, self._last_position, before + 1, before))
        if found.kind != kind:
            self._broken = NonDeterminismError(key, found.kind, kind)
            raise self._broken
        if found.is_settled or found.retry_at is not None:
            return found
        was_called_off = found.status == StepStatus.CANCELLED
        return self._begin(dataclasses.replace(found, attempt=found.attempt + was_called_off, completed_at=None))

    async def _with_lease(self, record: StepRecord) -> StepRecord:
        """Return once the run is leased; a step that a parked one asked for begins only then."""
        was_parked = self._resumed is not None
        await self._has_lease()
        if not was_parked or record.retry_at is not None:
            return record
        return self._begin(record, ready_at=record.started_at)

    def _begin(self, record: StepRecord, ready_at: int | None = None) -> StepRecord:
        """Let an attempt begin now; it could have begun at ``ready_at``, or when the run could have been claimed."""
        now = self._clock.now()
        queued = self._queued if ready_at is None else max(now - ready_at, 0)
        begun = dataclasses.replace(record, status=StepStatus.RUNNING, started_at=now, queued=queued)
        self._records[begun.name] = self._unannounced = begun
        return begun

    def ride_along(self, write: Callable[[], None]) -> None:
        """Let a write ride along with the next commit; one of a parked run waits until that has its lease back."""

        def fenced() -> None:
            self._store.runs.fence(self.claim)
            write()

        if self._resumed is None:
            self._commits.later(fenced)
        else:
            self._held.append(fenced)

    @property
    def is_replaying(self) -> bool:
        """Whether the body is still on its way through what an earlier attempt recorded."""
        return bool(self._unvisited)

    def announce(self) -> None:
        """Let the news that the latest step has begun ride along with the next commit, if it still runs by then."""
        record, self._unannounced = self._unannounced, None
        if record is None:
            return

        def write() -> None:
            if self._records[record.name] is record and record.name not in self._ending:
                self._store.steps.record(self.claim.run_id, record, self._clock.now())

        self.ride_along(write)

    async def _commit_step(self, record: StepRecord, status: StepStatus, **outcome: Any) -> None:
        self._ending.add(record.name)

        def write() -> None:
            self._store.runs.fence(self.claim)
            self._record(record, status, **outcome)

        await self._commit(write)

    def _record(self, record: StepRecord, status: StepStatus, **outcome: Any) -> None:
        now = self._clock.now()
        finished = dataclasses.replace(record, status=status, completed_at=now, **outcome)
        if self._recoveries:
            self._store.runs.reset_recoveries(self.claim)
            self._recoveries = 0
        self._store.steps.record(self.claim.run_id, finished, now)
        self._records[record.name] = finished
        self._queued = 0  # what comes after this did not wait for the claim

    def _interrupt(self, record: StepRecord) -> None:
        """The body itself called the step off, by a timeout say: it is cancelled, and a replay would run it again."""
        if self._abandoned:
            return
        cancelled = dataclasses.replace(record, status=StepStatus.CANCELLED, completed_at=self._clock.now())
        self._records[record.name] = cancelled
        self.ride_along(lambda: self._store.steps.record(self.claim.run_id, cancelled, self._clock.now()))

    async def _commit(self, write: Callable[[], None]) -> None:
        """Commit at once when nobody could share the commit, else together with the others of this turn."""
        self.check()
        self._unannounced = None
        is_alone = self._services.is_alone() and self._in_flight <= 1 and asyncio.current_task() is self._task
        self._in_flight += 1  # a run is not parked while it commits
        try:
            if is_alone:
                self._commits.commit_now(write)
                await self._let_the_loop_turn()
            else:
                await self._commits.commit(write)
        except LeaseLost:
            self.abandon()
        except StorageError as trouble:
            if isinstance(trouble, TransactionError):
                raise
            self.abandon()
            self._services.on_storage_trouble(self.claim, trouble)
        finally:
            self._land()
        self.check()

    async def _let_the_loop_turn(self) -> None:
        if time.perf_counter() - self._last_turn > TURN_SECONDS:
            await self._clock.turn()
            self._last_turn = time.perf_counter()

    def time(self) -> datetime:
        """The wall-clock time, in UTC."""
        return datetime.fromtimestamp(self._clock.now() / 1000, UTC)

    def reference(self) -> str:
        """What the step that asks is called, among all steps of all runs."""
        step = current_step.get()
        return self.claim.run_id if step is None else f"{self.claim.run_id}/{step.name}"


def _write_down(result: Any, name: str, annotation: Any) -> tuple[str, Any]:
    """The text of a step's result, and what it will read as from now on.

    :raises SerializationError: when there is no such text, or it does not read as the annotation says.
    """
    path = f"output of step {name!r}"
    text = encode(result, path=path)
    try:
        return text, decode(text, annotation)
    except (TypeError, ValueError) as error:
        raise SerializationError(path, f"it does not fit the function's return annotation: {error}") from error


def _replay(record: StepRecord, annotation: Any) -> Any:
    if record.status == StepStatus.FAILED:
        raise _step_failed(record)
    return decode(record.output or "null", annotation)


def _step_failed(record: StepRecord) -> StepFailed:
    error = record.error or {"type": "", "message": "", "traceback": ""}
    return StepFailed(record.name, error["type"], error["message"], error["traceback"])


def _describe_failure(error: BaseException) -> dict[str, str]:
    """An error that ends a run; a failed step's traceback is that of the step, first time and replayed alike."""
    described = describe(error)
    if isinstance(error, StepFailed):
        described["traceback"] = error.error_traceback
    return described


def _refuse_awaitable(result: Any, path: str) -> Any:
    if not inspect.isawaitable(result):
        return result
    if inspect.iscoroutine(result):
        result.close()
    raise TransactionError(
        path,
        "A function given to ctx.transaction must be synchronous (`def`, not `async def`): an open transaction cannot "
        "be left at an await. Do what must be awaited in a step before, and pass its result.",
    )
