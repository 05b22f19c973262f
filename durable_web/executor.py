"""One run, executed: replay, steps, settling.

The job function is called from the top. A step whose outcome is recorded gives that outcome back; any other is called,
and its outcome committed before the job body sees it. When the run is taken away from this engine (cancelled, lease
lost, engine stopping, storage full), everything that the body may still try through its context raises ``Unwind``,
and nothing of it is written.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .clock import Clock, TimerHandle
from .codec import decode, encode, printable, return_annotation
from .commits import GroupCommit
from .errors import NonDeterminismError, StepFailed, StorageError, TransactionError, describe
from .files import Files
from .job import Job
from .model import RunStatus, StepStatus
from .store import Claim, LeaseLost, StepRecord, Store

PROGRESS_SECONDS = 0.1
TURN_SECONDS = 0.01  # how long quick steps may keep the event loop from turning
STEP = "step"
TRANSACTION = "transaction"

_ORDINAL = re.compile(r"#\d+$")
_FAILURES = (Exception, KeyboardInterrupt, SystemExit)
_current_step: ContextVar[StepRecord | None] = ContextVar("durable_web_current_step", default=None)


class Unwind(BaseException):
    """Leaves a job body whose run is no longer this engine's. Not an ``Exception``: a body must not catch it."""


@dataclass(frozen=True, slots=True)
class Services:
    """What an execution needs of its engine."""

    store: Store
    commits: GroupCommit
    clock: Clock
    files: Files
    is_alone: Callable[[], bool]  # whether this is the only run executing
    on_storage_trouble: Callable[[Claim, StorageError], None]


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
        self._records = services.store.load_steps(claim.run_id)
        self._unvisited = {name for name, record in self._records.items() if record.status in ("completed", "failed")}
        self._ending: set[str] = set()  # steps whose outcome is on its way into the next commit
        self._told = Counter(services.store.body_lines(claim.run_id) if claim.attempt > 1 else ())
        self._ordinals: dict[str, int] = {}
        self._recoveries = claim.recoveries
        self._abandoned = False
        self._broken: NonDeterminismError | None = None
        self._in_flight = 0
        self._unannounced: StepRecord | None = None
        self._progress: dict[str, Any] | None = None
        self._progress_at = float("-inf")
        self._progress_timer: TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._last_turn = time.perf_counter()

    # --- the run -----------------------------------------------------------------------------------------------------

    async def run(self, context: Any) -> None:
        """Execute the job function and settle the run; raises nothing that a job can cause."""
        if self._abandoned:
            return
        self._task = asyncio.current_task()
        try:
            output = await self._job.function(context, decode(self.claim.input, self._job.input_type))
            text = encode(output, path=f"output of job {self._job.name!r}")
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit, Unwind) as error:
            outcome = RunStatus.FAILED, None, _describe_failure(self._broken or error)
        else:
            outcome = RunStatus.COMPLETED, text, None
            if self._broken is not None:
                outcome = RunStatus.FAILED, None, _describe_failure(self._broken)
        if not self._abandoned:
            self._settle(*outcome)

    def fail(self, error: Exception) -> None:
        """Settle the run as failed without executing it."""
        self._settle(RunStatus.FAILED, None, _describe_failure(error))

    def _settle(self, status: RunStatus, output: str | None, error: dict[str, str] | None) -> None:
        self._write_progress()
        try:
            self._commits.commit_now(
                lambda: self._store.settle(self.claim, status, self._clock.now(), output=output, error=error)
            )
        except LeaseLost:
            pass  # cancelled or taken over at the last moment: theirs is the outcome
        except StorageError as trouble:
            self._services.on_storage_trouble(self.claim, trouble)
        finally:
            self._abandoned = True

    def abandon(self, *, cancelled: bool = False) -> None:
        """Stop executing: the run is no longer ours. What the body still tries is refused."""
        self._abandoned = True
        self.cancelled = self.cancelled or cancelled
        if self._progress_timer is not None:
            self._progress_timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def check(self) -> None:
        """Raise ``Unwind`` when the run is no longer ours."""
        if self._abandoned:
            raise Unwind(self.claim.run_id)

    # --- steps -------------------------------------------------------------------------------------------------------

    async def step(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The outcome of the step: as recorded, or of calling ``function(*arguments)`` now."""
        record = self._enter(name, STEP)
        annotation = return_annotation(function)
        if record.status in ("completed", "failed"):
            return _replay(record, annotation)
        self._in_flight += 1
        token = _current_step.set(record)
        try:
            result = function(*arguments)
            if inspect.isawaitable(result):
                self._announce()
                result = await result
            text = encode(result, path=f"output of step {record.name!r}")
        except _FAILURES as error:
            self.check()
            await self._commit_step(record, StepStatus.FAILED, error=describe(error))
            raise _step_failed(self._records[record.name]) from error
        except asyncio.CancelledError:
            self._interrupt(record)
            raise
        else:
            await self._commit_step(record, StepStatus.COMPLETED, output=text)
            return decode(text, annotation)
        finally:
            _current_step.reset(token)
            self._in_flight -= 1

    async def transaction(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The outcome of calling ``function(connection, *arguments)`` in the transaction of the checkpoint."""
        record = self._enter(name, TRANSACTION)
        annotation = return_annotation(function)
        if record.status in ("completed", "failed"):
            return _replay(record, annotation)
        token = _current_step.set(record)
        self._ending.add(record.name)
        failure: list[BaseException] = []

        def write() -> None:
            self._store.fence(self.claim)
            try:
                with self._store.database.guarded_savepoint() as connection:
                    result = _refuse_awaitable(function(connection, *arguments), self._store.database.path)
                    text = encode(result, path=f"output of step {record.name!r}")
            except _FAILURES as error:
                if not self._store.database.in_transaction:  # SQLite rolled all of it back: the disk is full
                    raise
                failure.append(error)
                self._record(record, StepStatus.FAILED, error=describe(error))
            else:
                self._record(record, StepStatus.COMPLETED, output=text)

        try:
            await self._commit(write)
        finally:
            _current_step.reset(token)
        recorded = self._records[record.name]
        if failure:
            raise _step_failed(recorded) from failure[0]
        return decode(recorded.output or "null", annotation)

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
            record = StepRecord(key, kind, StepStatus.RUNNING, len(self._records), 1, started_at=self._clock.now())
        elif found.kind != kind:
            self._broken = NonDeterminismError(key, found.kind, kind)
            raise self._broken
        elif found.status in ("completed", "failed"):
            return found
        else:
            record = dataclasses.replace(
                found, status=StepStatus.RUNNING, attempt=found.attempt + 1, started_at=self._clock.now()
            )
        self._records[key] = self._unannounced = record
        return record

    def _announce(self) -> None:
        """Let the news that the latest step has begun ride along with the next commit, if it still runs by then."""
        record, self._unannounced = self._unannounced, None
        if record is None:
            return

        def write() -> None:
            if self._records[record.name] is record and record.name not in self._ending:
                self._store.fence(self.claim)
                self._store.record_step(self.claim, record, self._clock.now())

        self._commits.later(write)

    async def _commit_step(self, record: StepRecord, status: StepStatus, **outcome: Any) -> None:
        self._ending.add(record.name)

        def write() -> None:
            self._store.fence(self.claim)
            self._record(record, status, **outcome)

        await self._commit(write)

    def _record(self, record: StepRecord, status: StepStatus, **outcome: Any) -> None:
        now = self._clock.now()
        finished = dataclasses.replace(record, status=status, completed_at=now, **outcome)
        if self._recoveries:
            self._store.reset_recoveries(self.claim)
            self._recoveries = 0
        self._store.record_step(self.claim, finished, now)
        self._records[record.name] = finished

    def _interrupt(self, record: StepRecord) -> None:
        """The body itself called the step off, by a timeout say: it is cancelled, and a replay would run it again."""
        if self._abandoned:
            return
        cancelled = dataclasses.replace(record, status=StepStatus.CANCELLED, completed_at=self._clock.now())
        self._records[record.name] = cancelled

        def write() -> None:
            self._store.fence(self.claim)
            self._store.record_step(self.claim, cancelled, self._clock.now())

        self._commits.later(write)

    async def _commit(self, write: Callable[[], None]) -> None:
        """Commit at once when nobody could share the commit, else together with the others of this turn."""
        self.check()
        self._unannounced = None
        try:
            if self._services.is_alone() and self._in_flight <= 1 and asyncio.current_task() is self._task:
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
        self.check()

    async def _let_the_loop_turn(self) -> None:
        if time.perf_counter() - self._last_turn > TURN_SECONDS:
            await asyncio.sleep(0)
            self._last_turn = time.perf_counter()

    # --- logs and progress -------------------------------------------------------------------------------------------

    def _was_told(self, level: str, message: str) -> bool:
        """Whether an earlier attempt wrote this line of the body already; each such line is passed over once."""
        self._told[level, message] -= 1
        return self._told[level, message] >= 0

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """Write a durable line, attached to the step that writes it."""
        self.check()
        step = _current_step.get()
        if step is None and self._was_told(level, str(message)):
            return
        ts = self._clock.now()
        body = {
            "level": level,
            "message": str(message),
            "fields": {name: printable(value) for name, value in fields.items()},
            "step": None if step is None else step.name,
            "attempt": self.claim.attempt if step is None else step.attempt,
        }
        self._announce()
        self._commits.later(lambda: self._append_log(ts, body))

    def _append_log(self, ts: int, body: dict[str, Any]) -> None:
        self._store.fence(self.claim)
        self._store.append_log(self.claim, ts, body)

    def progress(self, current: float, total: float | None, message: str | None) -> None:
        """Keep the latest progress; write at most one frame in 100 ms, and the last one always."""
        self.check()
        if self._unvisited and _current_step.get() is None:
            return  # still on the way through what an earlier attempt recorded, and told
        self._progress = {"current": current, "total": total, "message": message}
        wait = self._progress_at + PROGRESS_SECONDS - self._clock.monotonic()
        if wait <= 0:
            self._announce()
            self._write_progress()
        elif self._progress_timer is None:
            self._progress_timer = self._clock.call_later(wait, self._write_progress)

    def _write_progress(self) -> None:
        if self._progress_timer is not None:
            self._progress_timer.cancel()
            self._progress_timer = None
        if self._progress is None or self._abandoned:
            return
        progress, self._progress = self._progress, None
        self._progress_at = self._clock.monotonic()
        now = self._clock.now()

        def write() -> None:
            self._store.fence(self.claim)
            self._store.set_progress(self.claim, now, progress)

        self._commits.later(write)


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
