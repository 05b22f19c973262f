"""The operations of a job body that do something once: steps with their attempts, transactions, recorded values.

The function of a step is called *outside*: on the real event loop, without a current task, in a copy of the context as
it was when the step was asked for. It is called at once and its outcome returned *inline* where nothing else of the run
can come in between; else its outcome joins the next commit, and is delivered when the run is at rest.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..clock import TimerHandle
from ..codec import decode, encode, readable, return_annotation, write_down
from ..errors import SerializationError, StepFailed, TransactionError, describe
from ..job import NO_RETRY, Retry
from ..model import LATEST, OperationKind, StepStatus
from ..store import StepRecord, published_as
from .history import History, Operation
from .leaving import is_of_the_engine
from .reporting import Reporting
from .run_loop import Outside, RunLoop
from .services import Services
from .tenure import Tenure, current_step

PATIENCE_SECONDS = 5.0
"""How long the run waits for a function that was called off; then it is left behind."""
LONGEST_TIMER_SECONDS = 24 * 24 * 60 * 60.0  # beyond 24.8 days a browser's timer fires at once
_HAS_EAGER_TASKS = sys.version_info >= (3, 12)
_PLAIN = frozenset({type(None), bool, int, float, str, list, dict})  # what steps mostly return: nothing to be awaited

AddUndo = Callable[[str, Callable[[Any], Any], Any, Retry], None]


class _Ending(NamedTuple):
    """How an attempt has ended: the text of the result and what it reads as, or an error."""

    text: str
    value: Any
    error: BaseException | None


class StepCall(Operation):
    """A step that the body has asked for, with its attempts.

    Attributes: ``is_busy``, ``True`` from the call of the function until what came of it is committed or dropped;
    ``is_running``, ``True`` while an attempt executes; ``task`` that executes it; ``timer`` for the next attempt, or
    until the function is left behind; ``ending`` of the last attempt; ``announced``, the attempt of which it was
    reported that it has begun.
    """

    is_busy = False
    is_running = False
    task: asyncio.Task[_Ending | None] | None = None
    timer: TimerHandle | None = None
    ending: _Ending | None = None
    announced: StepRecord | None = None

    def __init__(
        self,
        steps: Steps,
        key: str,
        kind: OperationKind,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        retry: Retry,
        annotation: Any,
        record: StepRecord | None,
        has_undo: bool,
    ) -> None:
        self.key = key
        self.kind = kind
        self.function = function
        self.arguments = arguments
        self.retry = retry
        self.annotation = annotation
        self.context = contextvars.copy_context()
        self.record = record
        """The attempt as it stands; its outcome once that is committed."""
        self.has_undo = has_undo
        self._steps = steps

    @property
    def reason(self) -> str:  # type: ignore[override]
        return f"the next attempt at {self.key!r}"

    def start(self) -> None:
        self._steps.start(self)

    def call_off(self) -> None:
        self._steps.call_off(self)

    def result(self, record: StepRecord) -> Any:
        """What the body gets for a record of the outcome.

        :raises StepFailed: when that is a failure.
        """
        ending = self.ending if record is self.record else None
        if record.status == StepStatus.FAILED:
            raise step_failed(record) from (None if ending is None else ending.error)
        return decode(record.output or "null", self.annotation) if ending is None else ending.value


class WriteCall(Operation):
    """An operation whose work is a write in the transaction that records it."""

    def __init__(
        self, steps: Steps, key: str, kind: OperationKind, make: Callable[[StepRecord], StepRecord], record: StepRecord
    ) -> None:
        super().__init__(key)
        self.kind = kind
        self.make = make
        self.record = record
        self.cause: BaseException | None = None
        """Why it has failed."""
        self._steps = steps

    def start(self) -> None:
        self._steps.start_write(self)

    def call_off(self) -> None:
        """Nothing is recorded: it is written or it is not."""


class Steps:
    """The steps of one run."""

    def __init__(
        self,
        services: Services,
        history: History,
        loop: RunLoop,
        tenure: Tenure,
        reporting: Reporting,
        retry: Retry,
        add_undo: AddUndo,
    ) -> None:
        """
        :param retry: of steps that have none of their own.
        :param add_undo: called with key, function, type of the result and retry of each step that can be undone.
        """
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._history = history
        self._loop = loop
        self._tenure = tenure
        self._reporting = reporting
        self._retry = retry
        self._add_undo = add_undo
        self._busy = 0  # functions that have not ended, and outcomes that are not committed
        self._calls: set[StepCall] = set()  # with a task
        self._executing: StepCall | None = None  # whose function is called now, synchronously
        self._retries: dict[str, tuple[StepCall, int]] = {}  # by key: what waits for its next attempt, and until when
        self._endings: dict[asyncio.Task[Any] | None, list[StepCall]] = {}  # by the task that has called them off
        self._held_up: list[tuple[Operation, list[StepCall]]] = []  # until these have ended
        self._all_ended: asyncio.Future[None] | None = None
        self._patches: dict[str, bool] = {}
        self._earlier_attempts = services.store.steps.earlier_attempts(tenure.run_id) if tenure.claim.attempt > 1 else {}
        self._queued = tenure.claim.queued  # of the steps that the claim was made for; milliseconds
        reporting.announce = self._announce_executing

    # --- what the body asks for --------------------------------------------------------------------------------------

    async def step(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        retry: Retry | None,
        undo: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The outcome of the step: as recorded, or of calling ``function(*arguments)`` now."""
        if self._tenure.is_detached or _get_running_loop() is not self._loop:
            await self._tenure.enter(name)
        key = self._history.key(name)
        retry = retry or self._retry
        if undo is not None:
            self._add_undo(key, undo, return_annotation(function), retry)
        call, record = self._ask(key, OperationKind.STEP, function, arguments, retry, undo is not None)
        return call.result(await self._history.outcome(call) if record is None else record)

    async def call(
        self,
        key: str,
        kind: OperationKind,
        function: Callable[..., Any],
        arguments: tuple[Any, ...] = (),
        retry: Retry = NO_RETRY,
        has_undo: bool = False,
    ) -> Any:
        """The outcome of a step under its key.

        :raises StepFailed: when it failed.
        :raises NonDeterminismError: when the key is recorded as another kind of operation.
        """
        call, record = self._ask(key, kind, function, arguments, retry, has_undo)
        return call.result(await self._history.outcome(call) if record is None else record)

    def _ask(
        self,
        key: str,
        kind: OperationKind,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        retry: Retry,
        has_undo: bool,
    ) -> tuple[StepCall, StepRecord | None]:
        """A call, and its outcome where that is returned at once; else it has begun, or waits for its turn."""
        record = self._history.ask(key, kind)
        call = StepCall(self, key, kind, function, arguments, retry, return_annotation(function), record, has_undo)
        if record is None:
            if self._may_be_inline():
                with self._loop.outside:
                    return call, self._call_inline(call)
            self._start_in_turn(call)
        elif record.outcome_order is not None:
            return call, record if self._history.may_return(record) else None
        elif record.status != StepStatus.CANCELLED:
            self._start_in_turn(call)
        return call, None

    async def transaction(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The outcome of calling ``function(connection, *arguments)`` in the transaction of the checkpoint."""
        await self._tenure.enter(name)
        key = self._history.key(name)
        annotation = return_annotation(function)
        context = contextvars.copy_context()
        values: list[Any] = []

        def make(record: StepRecord) -> StepRecord:
            values.clear()
            self._services.mark_step(self._tenure.run_id, key)
            text, value, error = self._transact(record, function, arguments, annotation, context)
            if error is not None:
                call.cause = error
                return record._replace(status=StepStatus.FAILED, error=describe(error))
            values.append(value)
            return record._replace(status=StepStatus.COMPLETED, output=text)

        call = self._write_call(key, OperationKind.TRANSACTION, make)
        record = await self._written(call)
        if record.status == StepStatus.FAILED:
            raise step_failed(record) from call.cause
        return values[0] if values and record is call.record else decode(record.output or "null", annotation)

    def _transact(
        self,
        record: StepRecord,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        annotation: Any,
        context: contextvars.Context,
    ) -> _Ending:
        """Call the function with the connection; what it wrote is rolled back where it fails."""
        database = self._store.database
        try:
            with database.guarded_savepoint() as connection:
                result = context.run(_as_step, record, function, (connection, *arguments))
                result = _refuse_awaitable(result, database.path)
                text, value = _write_down(result, record.name, annotation)
                database.refuse_longer(f"output of step {record.name!r}", text)
        except BaseException as error:
            if database.is_trouble(error) or not database.in_transaction or is_of_the_engine(error):
                raise
            return _Ending("", None, error)
        return _Ending(text, value, None)

    async def value(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once and replayed ever after."""
        await self._tenure.enter(name)
        key = self._history.key(name)

        def record_value(record: StepRecord) -> StepRecord:
            return record._replace(status=StepStatus.COMPLETED, output=encode(make(), path=f"value {key!r}"))

        record = await self._written(self._write_call(key, OperationKind.VALUE, record_value))
        return decode(record.output or "null")

    async def write(self, key: str, kind: OperationKind, make: Callable[[StepRecord], StepRecord]) -> StepRecord:
        """The outcome of an operation whose work is a write of the engine's: ``make``, inside the transaction."""
        return await self._written(self._write_call(key, kind, make))

    def _write_call(self, key: str, kind: OperationKind, make: Callable[[StepRecord], StepRecord]) -> WriteCall:
        return WriteCall(self, key, kind, make, self._history.ask(key, kind) or self._first_attempt(key, kind))

    async def _written(self, call: WriteCall) -> StepRecord:
        history, record = self._history, call.record
        if record.outcome_order is not None:
            return record if history.may_return(record) else await history.outcome(call)
        if self._may_be_inline():
            with Outside():
                written = self._write_inline(call)
            if written is not None:
                return written
        else:
            self._start_in_turn(call)
        return await history.outcome(call)

    async def patched(self, change_id: str) -> bool:
        """``True`` when the run came here for the first time after the code was changed.

        Only that is recorded: a run that was past this place comes to it while it replays, now and ever after.
        """
        await self._tenure.enter(change_id)
        history, key = self._history, f"patch:{change_id}"
        decision = self._patches.get(change_id)
        if decision is None:
            decision = history.ask(key, OperationKind.PATCH) is not None
        if not decision and change_id not in self._patches and not history.was_further:
            decision = True
            now = self._clock.now()
            record = self._first_attempt(key, OperationKind.PATCH)
            record = record._replace(status=StepStatus.COMPLETED, output="true", completed_at=now)
            history.keep(record)
            self._tenure.commit_now(lambda: self._record_fact(record))
        self._patches[change_id] = decision
        return decision

    def _record_fact(self, record: StepRecord) -> None:
        self._tenure.fence()
        self._store.steps.record(self._tenure.run_id, record, self._clock.now())

    async def publish(self, key: str, value: Any) -> None:
        """Publish a value of the run under a key; of the body once, of a step's function with every attempt."""
        if not isinstance(key, str) or not key:
            raise ValueError(f"An event's key is a non-empty string, not {key!r}.")
        text = encode(value, path=f"event {key!r}")
        self._store.database.refuse_longer(f"event {key!r}", text)
        record: StepRecord | None = None
        if current_step.get() is None:
            await self._tenure.enter(published_as(key))
            name = self._history.key(published_as(key))
            if self._history.ask(name, OperationKind.PUBLISH) is not None:
                return  # a replay publishes nothing again: what came after it would be taken back
            record = self._first_attempt(name, OperationKind.PUBLISH)
            record = record._replace(status=StepStatus.COMPLETED, output=text, completed_at=self._clock.now())
            self._history.keep(record)
        self._tenure.check()

        def write() -> None:
            self._tenure.fence()
            if record is not None:
                self._store.steps.note(self._tenure.run_id, record)
            if self._store.steps.stored_value(self._tenure.run_id, key) != text:
                self._store.steps.set_value(self._tenure.run_id, key, text, readable(value), self._clock.now())

        self._tenure.submit(write)

    # --- when an operation begins ------------------------------------------------------------------------------------

    def _may_be_inline(self) -> bool:
        """``True`` where nothing of the run can come between the call of a function and the return of its outcome."""
        history = self._history
        if not self._services.is_alone() or not history.is_live or history.has_undelivered or self._tenure.is_paused:
            return False
        return not self._loop.must_give_way and not (self._endings and self._own_endings())

    def _start_in_turn(self, operation: Operation) -> None:
        """Start an operation that is not inline: now, or when what it has to wait for is over."""
        history = self._history
        if not history.is_live or self._tenure.is_paused:
            history.queue(operation)
        elif endings := (self._endings and self._own_endings()):
            self._held_up.append((operation, endings))
            self._busy += 1
        elif not self._services.is_alone() or history.has_undelivered or not self._loop.must_give_way:
            with Outside():
                operation.start()
        else:
            self._busy += 1
            self._services.loop.call_soon(self._start_after_turn, operation)

    def _start_after_turn(self, operation: Operation) -> None:
        """The real loop had its turn."""
        if self._tenure.is_detached:
            return
        if self._tenure.is_paused:
            self._history.queue(operation)
        elif not operation.is_called_off:
            operation.start()
        self._end_busy()

    def _own_endings(self) -> list[StepCall]:
        """What the current task of the body has called off, and what has not ended."""
        return self._endings.get(asyncio.current_task(self._loop), [])

    def start(self, call: StepCall) -> None:
        """Begin the next attempt at a step, or wait until it is due."""
        if call.is_called_off or self._tenure.is_detached:
            return
        record = call.record
        if record is not None and record.retry_at is not None:
            if record.retry_at > self._clock.now():
                self._wait_for_attempt(call, record.retry_at)
                return
            next_attempt = {"attempt": record.attempt + 1, "retry_at": None, "error": None}
            call.record = self._begin(record._replace(**next_attempt), ready_at=record.retry_at)
        elif record is not None:
            call.record = self._begin(record)
        call.is_busy = True
        self._busy += 1
        ending = self._attempt(call)
        if ending is not None:
            self._conclude(call, ending)

    def start_write(self, call: WriteCall) -> None:
        """Perform a write with the next commit."""
        written: list[StepRecord] = []

        def write() -> None:
            written.clear()
            if not call.is_called_off:
                written.append(self._record_write(call, None))

        def committed(error: BaseException | None) -> None:
            if isinstance(error, (TransactionError, SerializationError)):
                call.cause = error
                call.make = lambda record: record._replace(status=StepStatus.FAILED, error=describe(error))
                self.start_write(call)
            elif error is not None:
                self._services.report_defect(error, self._tenure.run_id)  # type: ignore[arg-type]
            elif written:
                self._take(call, written[0])

        self._tenure.submit(write, committed)

    def _write_inline(self, call: WriteCall) -> StepRecord | None:
        """Perform a write now. Its record where the outcome is inline; ``None`` when it is delivered at rest."""
        written: list[StepRecord] = []

        def write() -> None:
            written.clear()
            written.append(self._record_write(call, self._history.last))

        try:
            self._tenure.commit_now(write)
        except (TransactionError, SerializationError) as error:
            call.cause = error
            failure = describe(error)
            call.make = lambda record: record._replace(status=StepStatus.FAILED, error=failure)
            self._tenure.commit_now(write)
        return self._take_inline(call, written[0])

    def _record_write(self, call: WriteCall, after: int | None) -> StepRecord:
        self._tenure.fence()
        finished = call.make(call.record)
        return self._record(finished, after)

    def _record_completed(self, record: StepRecord, output: str, after: int | None) -> StepRecord:
        """Inside a transaction: record that a step has completed."""
        tenure = self._tenure
        written = self._store.steps.record_completed(tenure.claim, record, output, self._clock.now(), after)
        if tenure.has_recoveries:
            tenure.outcome_recorded()
        return written

    def _record(self, finished: StepRecord, after: int | None) -> StepRecord:
        """Inside a transaction: record an outcome."""
        claim = self._tenure.claim
        written = self._store.steps.record_outcome(claim, finished, self._clock.now(), after=after)
        self._tenure.outcome_recorded()
        return written

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _first_attempt(self, key: str, kind: OperationKind, has_undo: bool = False) -> StepRecord:
        """The record of an operation that begins now, for the first time."""
        before = self._earlier_attempts.get(key, 0)
        return StepRecord(
            key,
            kind,
            StepStatus.RUNNING,
            self._history.next_position(),
            before + 1,
            before,
            None,
            None,
            None,
            self._queued,
            None,
            None,
            None,
            int(has_undo),
            self._clock.now(),
        )

    def _begin(self, record: StepRecord, ready_at: int | None = None) -> StepRecord:
        """The record of an attempt that begins now, and could have begun at ``ready_at`` (milliseconds)."""
        now = self._clock.now()
        queued = self._queued if ready_at is None else max(now - ready_at, 0)
        return record._replace(status=StepStatus.RUNNING, started_at=now, queued=queued, completed_at=None)

    def _attempt(self, call: StepCall) -> _Ending | None:
        """Call the function; ``None`` when it goes on in a task."""
        if call.record is None:
            call.record = self._first_attempt(call.key, call.kind, call.has_undo)
        elif call.has_undo and not call.record.undo:
            call.record = call.record._replace(undo=1)
        call.is_running = True
        self._services.mark_step(self._tenure.run_id, call.key)
        before, self._executing = self._executing, call
        ending = call.context.run(self._call_function, call)
        self._executing = before
        return ending

    def _call_function(self, call: StepCall) -> _Ending | None:
        """Inside the step's context."""
        current_step.set(call.record)
        try:
            result = call.function(*call.arguments)
            if type(result) in _PLAIN or not inspect.isawaitable(result):
                return _Ending(*_write_down(result, call.key, call.annotation), None)
        except BaseException as error:  # also KeyboardInterrupt and SystemExit: they fail the step
            if is_of_the_engine(error):
                self._tenure.check()
            return _Ending("", None, error)
        options = {"eager_start": True} if _HAS_EAGER_TASKS else {}
        task = asyncio.Task(self._await(call, result), loop=self._services.loop, **options)
        if task.done():
            return task.result()
        self._announce(call)
        call.task = task
        self._calls.add(call)
        task.add_done_callback(lambda ended: self._task_ended(call, result, ended))
        return None

    async def _await(self, call: StepCall, awaitable: Awaitable[Any]) -> _Ending:
        own = asyncio.current_task()
        try:
            if call.retry.timeout is None:
                result = await awaitable
            else:
                with self._time_limit(call.retry.timeout):
                    result = await awaitable
            ending = _Ending(*_write_down(result, call.key, call.annotation), None)
        except GeneratorExit as error:
            if _current_task() is not own:  # Python closes the coroutine, because it will never go on
                raise
            ending = _Ending("", None, error)
        except asyncio.CancelledError as error:
            if call.is_called_off or self._tenure.is_detached:
                raise
            ending = _Ending("", None, error)
        except BaseException as error:
            ending = _Ending("", None, error)
        if call.task is not None and not self._tenure.is_detached:  # it was suspended: nothing waits for its return
            self._calls.discard(call)
            call.task = None
            self._conclude(call, ending)
        return ending

    @contextmanager
    def _time_limit(self, seconds: float | None) -> Iterator[None]:
        """``asyncio.timeout`` on the engine's clock; a limit that no timer can count to is none."""
        if seconds is None or seconds > LONGEST_TIMER_SECONDS:
            yield
            return
        task = asyncio.current_task()
        assert task is not None
        expired: list[bool] = []
        cancelling = task.cancelling()
        timer = self._clock.call_later(seconds, lambda: expired.append(task.cancel()))
        try:
            yield
        except asyncio.CancelledError:
            if expired and task.cancelling() - 1 <= cancelling:
                raise TimeoutError(f"the attempt took longer than {seconds} s") from None
            raise
        finally:
            timer.cancel()
            if expired:  # however the function took its cancellation: it must not be found in the task later
                task.uncancel()

    def _task_ended(self, call: StepCall, awaitable: Any, task: asyncio.Task[_Ending | None]) -> None:
        """A function's task is over: of one that was cancelled, or whose run was detached, nothing was concluded."""
        if call.task is not task:
            return
        self._calls.discard(call)
        call.task = None
        if inspect.iscoroutine(awaitable):
            awaitable.close()  # of a task that was cancelled before it began
        if self._tenure.is_detached:
            self._end_call(call)
        else:
            self._conclude(call, _Ending("", None, asyncio.CancelledError()))

    # --- what comes of an attempt ------------------------------------------------------------------------------------

    def _finished(self, call: StepCall, ending: _Ending) -> StepRecord:
        """The record of how a step has ended; ``retry_at`` is set when another attempt follows."""
        record = call.record
        assert record is not None
        if ending.error is None:
            return record._replace(status=StepStatus.COMPLETED, output=ending.text)
        error = describe(ending.error)
        number = record.attempt - record.attempts_before
        if call.is_called_off or not call.retry.wants(ending.error, number):
            return record._replace(status=StepStatus.FAILED, error=error)
        delay = call.retry.delay(number) * 1000
        return record._replace(error=error, retry_at=min(self._clock.now() + round(min(LATEST, delay)), LATEST))

    def _call_inline(self, call: StepCall) -> StepRecord | None:
        """Call the function at once; its outcome where that is inline, ``None`` where it is delivered at rest."""
        self._busy += 1
        call.is_busy = True
        ending = self._attempt(call)
        if ending is None:
            return None
        call.is_running = False
        call.ending = ending
        finished = None if ending.error is None else self._finished(call, ending)
        if finished is not None and finished.retry_at is not None:
            self._commit_failed_attempt(call, finished)
            return None
        after, record = self._history.last, call.record
        assert record is not None

        def write() -> None:
            if finished is None:
                call.record = self._record_completed(record, ending.text, after)
            else:
                call.record = self._record(finished, after)

        try:
            try:
                self._tenure.commit_now(write)
            except SerializationError as too_long:
                call.record, call.ending = record, _too_long(call.key, too_long)
                finished = self._finished(call, call.ending)._replace(retry_at=None, status=StepStatus.FAILED)
                self._tenure.commit_now(write)
        finally:
            call.is_busy = False
            self._busy -= 1
        return self._take_inline(call, call.record)

    def _take_inline(self, call: StepCall | WriteCall, written: StepRecord) -> StepRecord | None:
        """Take a committed outcome; ``None`` when another one was recorded in between, and both are delivered at rest."""
        call.record = written
        self._queued = 0  # what comes after this did not wait for the claim
        if not written.inline:
            self._learn(written)
            return None
        self._history.return_inline(written)
        return written

    def _conclude(self, call: StepCall, ending: _Ending) -> None:
        """Commit what came of an attempt with the next commit; the outcome is delivered at rest."""
        call.is_running = False
        call.ending = ending
        if call.is_called_off and not self._is_kept(call, ending):
            self._end_call(call)
            return
        record = call.record
        assert record is not None
        finished = record if ending.error is None else self._finished(call, ending)
        if finished.retry_at is not None:
            self._commit_failed_attempt(call, finished)
            return
        written: list[StepRecord] = []

        def write() -> None:
            written.clear()
            if call.is_called_off and not self._is_kept(call, ending):
                return
            if ending.error is None:
                written.append(self._record_completed(finished, ending.text, None))
            else:
                written.append(self._record(finished, None))

        def committed(error: BaseException | None) -> None:
            if error is not None and ending.error is None:
                too_long = isinstance(error, SerializationError)
                self._conclude(call, _too_long(call.key, error) if too_long else _Ending("", None, error))
                return
            if error is not None:
                self._services.report_defect(error, self._tenure.run_id)  # type: ignore[arg-type]
            elif written:
                self._take(call, written[0])
            self._end_call(call)

        self._tenure.submit(write, committed, simple=True)

    def _is_kept(self, call: StepCall, ending: _Ending) -> bool:
        """``True`` when what a called-off function has returned in spite of it counts: it can be undone."""
        return call.has_undo and ending.error is None

    def _take(self, call: StepCall | WriteCall, written: StepRecord) -> None:
        call.record = written
        self._queued = 0
        self._learn(written)

    def _learn(self, written: StepRecord) -> None:
        """Take an outcome that is committed, with those that others have recorded before it."""
        if self._history.follows(written):
            self._history.learn(written)
        else:
            for record in self._store.steps.outcomes_after(self._tenure.run_id, self._history.known):
                self._history.learn(written if record.name == written.name else record)
        self._loop.wake()

    def _end_call(self, call: StepCall) -> None:
        """Nothing of the call is busy any more."""
        call.is_running = False
        if call.is_called_off and call.timer is not None:
            call.timer.cancel()
        if call.is_busy:
            call.is_busy = False
            self._end_busy()
        self._stop_holding_up(call)

    def _end_busy(self) -> None:
        self._busy -= 1
        if self._busy:
            return
        if self._all_ended is not None and not self._all_ended.done():
            self._all_ended.set_result(None)
        self._loop.wake()

    # --- the next attempt --------------------------------------------------------------------------------------------

    def _commit_failed_attempt(self, call: StepCall, waiting: StepRecord) -> None:
        run_id = self._tenure.run_id

        def write() -> None:
            self._tenure.fence()
            error = waiting.error or {}
            if not call.is_called_off:
                self._store.steps.record_attempt(run_id, waiting, error, self._clock.now())

        def committed(error: BaseException | None) -> None:
            if error is not None:
                self._services.report_defect(error, run_id)  # type: ignore[arg-type]
            self._queued = 0
            call.record = waiting
            if not call.is_called_off:
                self._history.keep(waiting)
                self._wait_for_attempt(call, waiting.retry_at or 0)
            self._end_call(call)

        self._tenure.submit(write, committed)

    def _wait_for_attempt(self, call: StepCall, due: int) -> None:
        self._retries[call.key] = call, due
        delay = max(due - self._clock.now(), 0) / 1000
        call.timer = self._clock.call_later(min(delay, LONGEST_TIMER_SECONDS), lambda: self._attempt_due(call))

    def _attempt_due(self, call: StepCall) -> None:
        """The timer of the next attempt; a parked run is woken by the time in its row."""
        if self._tenure.is_parked or self._tenure.is_detached or call.key not in self._retries:
            return
        due = self._retries[call.key][1]
        if due > self._clock.now():  # the clock was set back, or no timer counts that far
            self._wait_for_attempt(call, due)
            self._loop.wake()  # a short wait may be long now
            return
        del self._retries[call.key]
        if self._tenure.is_paused:
            self._history.queue(call)
        else:
            self.start(call)

    def resume(self) -> None:
        """The run has its lease back: begin the attempts that are due."""
        for call, _ in list(self._retries.values()):
            self._attempt_due(call)

    @property
    def next_attempt(self) -> int | None:
        """When the next attempt at a step is due, in milliseconds since 1970-01-01 UTC; ``None`` without one."""
        return min((due for _, due in self._retries.values()), default=None)

    def is_waiting(self, key: str) -> bool:
        """``True`` when a step waits for its next attempt."""
        return key in self._retries

    # --- calling off -------------------------------------------------------------------------------------------------

    def call_off(self, call: StepCall) -> None:
        """The body no longer awaits a step: cancel its function, and record that, unless it has an outcome."""
        if self._tenure.is_detached:
            return  # its function is cancelled already: a second time would disturb what cleans up
        if call.task is not None:
            call.task.cancel()
        self._retries.pop(call.key, None)
        if call.timer is not None:
            call.timer.cancel()
        if call.is_busy and call.task is not None:
            self._endings.setdefault(asyncio.current_task(self._loop), []).append(call)
            call.timer = self._clock.call_later(PATIENCE_SECONDS, lambda: self._leave_behind(call))
        record = call.record
        if record is None or record.outcome_order is not None or record.status == StepStatus.CANCELLED:
            return
        cancelled = record._replace(
            status=StepStatus.CANCELLED, retry_at=None, topic=None, completed_at=self._clock.now()
        )

        def write() -> None:
            found = self._store.steps.find(self._tenure.run_id, call.key)  # its outcome may be of this very transaction
            if found is None or found.outcome_order is None:
                self._store.steps.record(self._tenure.run_id, cancelled, self._clock.now())

        self._tenure.later(write, simple=True)

    def _leave_behind(self, call: StepCall) -> None:
        """Wait no longer for a called-off function that has not ended."""
        if self._tenure.is_detached or not call.is_busy:
            return
        seconds = f"{PATIENCE_SECONDS:g} s"
        self._reporting.note("warning", f"The function of step {call.key!r} was called off, and went on for {seconds}.")
        call.is_busy = False
        self._end_busy()
        self._stop_holding_up(call)

    def _stop_holding_up(self, call: StepCall) -> None:
        """A called-off function has ended: start what its task has asked for since."""
        if not call.is_called_off or not self._endings:
            return
        for task, calls in list(self._endings.items()):
            if call in calls:
                calls.remove(call)
                if not calls:
                    del self._endings[task]
        ready = [operation for operation, calls in self._held_up if not calls]
        self._held_up = [(operation, calls) for operation, calls in self._held_up if calls]
        for operation in ready:
            self._start_after_turn(operation)

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """``True`` when no function is executing or about to, and every outcome is committed."""
        return not self._busy

    async def all_ended(self) -> None:
        """Inside the run: return when every function has ended, or was left behind, and its outcome is committed."""
        while self._busy:
            self._all_ended = self._loop.create_future()
            await self._all_ended

    def cancel_all(self) -> None:
        """The run is no longer executed here: cancel every function that has a task."""
        for call, _ in self._retries.values():
            if call.timer is not None:
                call.timer.cancel()
        for task in self.tasks:
            task.cancel()

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks of functions that have not ended."""
        return [call.task for call in self._calls if call.task is not None]

    # --- the news that a step has begun ------------------------------------------------------------------------------

    def _announce_executing(self) -> None:
        if self._executing is not None:
            self._announce(self._executing)

    def _announce(self, call: StepCall) -> None:
        """Record with the next commit that an attempt has begun, if it still executes by then."""
        record = call.record
        if record is None or call.announced is record:
            return
        call.announced = record

        def write() -> None:
            if call.record is record and call.is_running and not call.is_called_off:
                self._tenure.fence()
                self._store.steps.record(self._tenure.run_id, record, self._clock.now())

        self._tenure.later(write, simple=True, fenced=False)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop is left
        return None


def _as_step(record: StepRecord, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a function as that of a step, in whose context this is."""
    current_step.set(record)
    return function(*arguments)


def _write_down(result: Any, name: str, annotation: Any) -> tuple[str, Any]:
    """The text of a step's result, and what it will read as from now on.

    :raises SerializationError: when there is no such text, or it does not read as the annotation says.
    """
    path = f"output of step {name!r}"
    try:
        return write_down(result, annotation, path=path)
    except SerializationError:
        raise
    except (TypeError, ValueError) as error:
        raise SerializationError(path, f"it does not fit the function's return annotation: {error}") from error


def step_failed(record: StepRecord) -> StepFailed:
    """The failure that a record is of."""
    error = record.error or {"type": "", "message": "", "traceback": ""}
    return StepFailed(record.name, error["type"], error["message"], error["traceback"])


def _too_long(key: str, error: SerializationError) -> _Ending:
    return _Ending("", None, SerializationError(f"output of step {key!r}", error.reason))


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
