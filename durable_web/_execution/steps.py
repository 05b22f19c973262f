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

from .._clock import TimerHandle
from .._codec import decode, return_annotation, write_down
from .._errors import SerializationError, StepFailed, describe
from .._jobs import NO_RETRY, Retry
from .._model import LATEST, OperationKind, StepStatus
from .._store import StepRecord
from .history import History, Operation
from .leaving import is_of_the_engine
from .outcomes import Outcomes
from .reporting import Reporting
from .run_loop import RunLoop
from .services import Services
from .tenure import Tenure, current_step

PATIENCE_SECONDS = 5.0
"""How long the run waits for a function that was called off; then it is left behind."""
LONGEST_TIMER_SECONDS = 24 * 24 * 60 * 60.0  # beyond 24.8 days a browser's timer fires at once
_HAS_EAGER_TASKS = sys.version_info >= (3, 12)
_PLAIN = frozenset({type(None), bool, int, float, str, list, dict})  # what steps mostly return: nothing to be awaited

AddUndo = Callable[[str, Callable[[Any], Any], Any, Retry], None]


class Ending(NamedTuple):
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
    task: asyncio.Task[Ending | None] | None = None
    timer: TimerHandle | None = None
    ending: Ending | None = None
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


class Steps:
    """The steps of one run."""

    def __init__(
        self,
        services: Services,
        history: History,
        loop: RunLoop,
        tenure: Tenure,
        reporting: Reporting,
        outcomes: Outcomes,
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
        self._outcomes = outcomes
        self._retry = retry
        self._add_undo = add_undo
        self._calls: set[StepCall] = set()  # with a task
        self._executing: StepCall | None = None  # whose function is called now, synchronously
        self._retries: dict[str, tuple[StepCall, int]] = {}  # by key: what waits for its next attempt, and until when
        self._drops_late_results = False
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
        if not callable(function):
            raise _not_a_function(name, function)
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
            if self._outcomes.may_be_inline():
                with self._loop.outside:
                    return call, self._call_inline(call)
            self._outcomes.start_in_turn(call)
        elif record.outcome_order is not None:
            return call, record if self._history.may_return(record) else None
        elif record.status != StepStatus.CANCELLED:
            self._outcomes.start_in_turn(call)
        return call, None

    def start(self, call: StepCall) -> None:
        """Begin the next attempt at a step, or wait until it is due."""
        if call.is_called_off or self._tenure.is_detached:
            return
        record = call.record
        if record is not None and record.retry_at is not None:
            if record.retry_at > self._clock.now():
                self._wait_for_attempt(call, record.retry_at)
                return
            again = record._replace(attempt=record.attempt + 1, retry_at=None, error=None)
            call.record = self._outcomes.begin_attempt(again, ready_at=record.retry_at)
        elif record is not None:
            call.record = self._outcomes.begin_attempt(record)
        call.is_busy = True
        self._outcomes.begin_busy()
        ending = self._attempt(call)
        if ending is not None:
            self._conclude(call, ending)

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _attempt(self, call: StepCall) -> Ending | None:
        """Call the function; ``None`` when it goes on in a task."""
        if call.record is None:
            call.record = self._outcomes.first_attempt(call.key, call.kind, call.has_undo)
        elif call.has_undo and not call.record.undo:
            call.record = call.record._replace(undo=1)
        call.is_running = True
        self._services.mark_step(self._tenure.run_id, call.key)
        before, self._executing = self._executing, call
        ending = call.context.run(self._call_function, call)
        self._executing = before
        return ending

    def _call_function(self, call: StepCall) -> Ending | None:
        """Inside the step's context."""
        current_step.set(call.record)
        try:
            result = call.function(*call.arguments)
            if type(result) in _PLAIN or not inspect.isawaitable(result):
                return Ending(*write_result(result, call.key, call.annotation), None)
        except BaseException as error:  # also KeyboardInterrupt and SystemExit: they fail the step
            if is_of_the_engine(error):
                self._tenure.check()
            return Ending("", None, error)
        options: Any = {"eager_start": True} if _HAS_EAGER_TASKS else {}
        task = asyncio.Task(self._await(call, result), loop=self._services.loop, **options)
        if task.done():
            return task.result()
        self._announce(call)
        call.task = task
        self._calls.add(call)
        if self._tenure.is_detached:  # the function has cancelled its own run before it was suspended
            task.cancel()
            self._loop.cancel_outside()
        task.add_done_callback(lambda ended: self._task_ended(call, result, ended))
        return None

    async def _await(self, call: StepCall, awaitable: Awaitable[Any]) -> Ending:
        own = asyncio.current_task()
        try:
            if call.retry.timeout is None:
                result = await awaitable
            else:
                with self._time_limit(call.retry.timeout):
                    result = await awaitable
            ending = Ending(*write_result(result, call.key, call.annotation), None)
        except GeneratorExit as error:
            if _current_task() is not own:  # Python closes the coroutine, because it will never go on
                raise
            ending = Ending("", None, error)
        except asyncio.CancelledError as error:
            if call.is_called_off or self._tenure.is_detached:
                raise
            ending = Ending("", None, error)
        except BaseException as error:
            ending = Ending("", None, error)
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

    def _task_ended(self, call: StepCall, awaitable: Any, task: asyncio.Task[Ending | None]) -> None:
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
            self._conclude(call, Ending("", None, asyncio.CancelledError()))

    # --- what comes of an attempt ------------------------------------------------------------------------------------

    def _finished(self, call: StepCall, ending: Ending) -> StepRecord:
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
        self._outcomes.begin_busy()
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
                call.record = self._outcomes.record_completed(record, ending.text, after)
            else:
                call.record = self._outcomes.record(finished, after)

        try:
            try:
                self._tenure.commit_now(write)
            except SerializationError as too_long:
                call.record, call.ending = record, _too_long(call.key, too_long)
                finished = self._finished(call, call.ending)._replace(retry_at=None, status=StepStatus.FAILED)
                self._tenure.commit_now(write)
        finally:
            call.is_busy = False
            self._outcomes.end_busy()
        assert call.record is not None
        return self._outcomes.take_inline(call.record)

    def _conclude(self, call: StepCall, ending: Ending) -> None:
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
                written.append(self._outcomes.record_completed(finished, ending.text, None))
            else:
                written.append(self._outcomes.record(finished, None))

        def committed(error: BaseException | None) -> None:
            if error is not None and ending.error is None:
                if isinstance(error, SerializationError):
                    self._conclude(call, _too_long(call.key, error))
                else:
                    self._conclude(call, Ending("", None, error))
                return
            if error is not None:
                self._history.fail(call, error)
            elif written:
                call.record = written[0]
                self._outcomes.take(written[0])
            self._end_call(call)

        self._tenure.submit(write, committed, simple=True)

    def _is_kept(self, call: StepCall, ending: Ending) -> bool:
        """``True`` when what a called-off function has returned in spite of it counts: it can be undone."""
        return call.has_undo and ending.error is None and not self._drops_late_results

    def drop_late_results(self) -> None:
        """Compensation begins: what a function that was left behind returns from now on does not count."""
        self._drops_late_results = True

    def _end_call(self, call: StepCall) -> None:
        """Nothing of the call is busy any more."""
        call.is_running = False
        if call.is_called_off and call.timer is not None:
            call.timer.cancel()
        if call.is_busy:
            call.is_busy = False
            self._outcomes.end_busy()
        self._outcomes.stop_holding_up(call)

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
                self._services.report_defect(error, run_id)
            self._outcomes.attempt_failed()
            call.record = waiting
            if not call.is_called_off:
                self._history.keep(waiting)
                self._wait_for_attempt(call, waiting.retry_at or 0)
            self._end_call(call)

        self._tenure.submit(write, committed)

    def _wait_for_attempt(self, call: StepCall, due: int) -> None:
        if call.timer is not None:
            call.timer.cancel()
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
            self._outcomes.hold_up(call)
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
        self._outcomes.end_busy()
        self._outcomes.stop_holding_up(call)

    # --- the end -----------------------------------------------------------------------------------------------------

    def cancel_all(self) -> None:
        """The run is no longer executed here: cancel every function that has a task."""
        for call, _ in self._retries.values():
            if call.timer is not None:
                call.timer.cancel()
        for task in self.tasks:
            task.cancel()

    @property
    def has_late_undo(self) -> bool:
        """``True`` while a function executes that was called off, and whose result counts all the same."""
        return any(call.has_undo and call.is_called_off for call in self._calls)

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


def _not_a_function(name: str, given: object) -> TypeError:
    if inspect.iscoroutine(given):
        called = given.cr_code.co_name
        given.close()
        return TypeError(
            f"The step {name!r} was given the coroutine of {called}(), which has been called already. Give the "
            f"function and its arguments: await ctx.step({name!r}, {called}, ...)."
        )
    return TypeError(f"The step {name!r} needs a function, not {given!r}: await ctx.step(name, function, ...).")


def as_step(record: StepRecord, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a function as that of a step, in whose context this is."""
    current_step.set(record)
    return function(*arguments)


def write_result(result: Any, name: str, annotation: Any) -> tuple[str, Any]:
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


def _too_long(key: str, error: SerializationError) -> Ending:
    return Ending("", None, SerializationError(f"output of step {key!r}", error.reason))
