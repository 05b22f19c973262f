"""The operations of a job body that run code once: steps with their attempts, transactions, recorded values."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ..codec import decode, encode, readable, return_annotation, write_down
from ..errors import SerializationError, StepFailed, TransactionError, describe
from ..job import Retry
from ..model import LATEST, StepStatus
from ..store import PUBLISH, StepRecord, published_as
from ..triggers import Trigger
from .compensation import Undo
from .leaving import ContinueAsNew, is_closing, is_of_the_engine
from .parking import LONGEST_TIMER_SECONDS
from .reports import current_step

if TYPE_CHECKING:
    from .executor import Execution
    from .services import Services

STEP, TRANSACTION, VALUE, PATCH = "step", "transaction", "value", "patch"

_PLAIN = frozenset({type(None), bool, int, float, str, list, dict})  # what steps mostly return: nothing to be awaited


class Operations:
    """Steps, transactions and values of one execution."""

    def __init__(self, execution: Execution, services: Services) -> None:
        self._execution = execution
        self._store = services.store
        self._clock = services.clock
        self._services = services
        self._patches: dict[str, bool] = {}

    async def step(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        retry: Retry | None,
        undo: Undo | None = None,
    ) -> Any:
        """The outcome of the step: as recorded, or of calling ``function(*arguments)`` now."""
        execution = self._execution
        key = execution.names.give(name)
        record = await execution.arrive(key, STEP) if execution.is_unwinding else execution.enter(key, STEP)
        retry = retry or execution.job.retry
        if undo is not None:
            execution.compensation.add(key, undo, return_annotation(function), retry)
        return await self.attempt(record, function, arguments, retry, has_undo=undo is not None)

    async def attempt(
        self,
        record: StepRecord,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        retry: Retry,
        *,
        has_undo: bool = False,
    ) -> Any:
        """The outcome under ``record``: as it is there, or of attempts made now."""
        execution = self._execution
        annotation = return_annotation(function)
        if record.is_settled:
            if record.timeouts is not None:
                with execution.branches.under_way():
                    await execution.timeouts.recall(record.name)
            return _replay(record, annotation)
        if has_undo:
            record = execution.put(record._replace(undo=1))
        with execution.branches.under_way():
            record = await execution.may_begin(record)
            return await self._attempts(record, function, arguments, retry, annotation)

    async def _attempts(
        self,
        record: StepRecord,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        retry: Retry,
        annotation: Any,
    ) -> Any:
        execution = self._execution
        if record.retry_at is not None:
            record = await self._wait_for_attempt(record)
        while True:
            text, value, error = await self._attempt(record, function, arguments, retry.timeout, annotation)
            if error is None:
                await execution.commit_step(record, StepStatus.COMPLETED, output=text)
                return value
            execution.check()
            if not retry.wants(error, record.attempt - record.attempts_before):
                await execution.commit_step(record, StepStatus.FAILED, error=describe(error))
                raise _step_failed(execution.records[record.name]) from error
            record = await self._wait_for_attempt(await self._commit_failed_attempt(record, error, retry))

    async def _wait_for_attempt(self, record: StepRecord) -> StepRecord:
        """Wait until the next attempt is due, and begin it."""
        try:
            await self._execution.timeouts.recall(record.name)
            reason = f"the next attempt at {record.name!r}"
            await self._execution.parking.wait_until(record.retry_at or 0, record.name, reason)
            await self._execution.parking.may_begin()
        except asyncio.CancelledError:
            self._execution.interrupt(record._replace(retry_at=None))
            raise
        next_attempt = record._replace(attempt=record.attempt + 1, retry_at=None, error=None)
        return self._execution.begin(next_attempt, ready_at=record.retry_at)

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
            if type(result) not in _PLAIN and inspect.isawaitable(result):
                self._execution.announce()
                self._execution.names.homes[record.name] = asyncio.current_task()
                async with self._time_limit(timeout):
                    result = await result
            return *_write_down(result, record.name, annotation), None
        except Exception as error:
            return "", None, error
        except asyncio.CancelledError:
            self._execution.interrupt(record)
            raise
        except BaseException as error:  # such as KeyboardInterrupt and SystemExit
            if is_of_the_engine(error) or is_closing(self._execution.branches.tasks):
                raise
            return "", None, error
        finally:
            self._execution.names.homes.pop(record.name, None)
            try:  # noqa: SIM105 (every step comes here)
                current_step.reset(token)
            except ValueError:  # Python closes the coroutine, and does so in another context
                pass

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
            if expired and task.cancelling() - 1 <= cancelling:
                raise TimeoutError(f"the attempt took longer than {seconds} s") from None
            raise
        finally:
            timer.cancel()
            if expired:  # however the function took its cancellation: nobody is to find it in the task later
                task.uncancel()

    async def _commit_failed_attempt(self, record: StepRecord, error: BaseException, retry: Retry) -> StepRecord:
        described = describe(error)
        delay = retry.delay(record.attempt - record.attempts_before) * 1000
        retry_at = min(self._clock.now() + round(min(LATEST, delay)), LATEST)
        waiting = record._replace(error=described, retry_at=retry_at)

        def write() -> None:
            self._store.runs.fence(self._execution.claim)
            self._store.steps.record_attempt(self._execution.claim.run_id, waiting, described, self._clock.now())

        await self._execution.commit(write)
        self._execution.records[record.name] = waiting
        self._execution.queued = 0
        return waiting

    async def transaction(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The outcome of calling ``function(connection, *arguments)`` in the transaction of the checkpoint."""
        record = await self._execution.arrive(self._execution.names.give(name), TRANSACTION)
        annotation = return_annotation(function)
        if record.is_settled:
            return _replay(record, annotation)
        with self._execution.branches.under_way():
            record = await self._execution.may_begin(record)
        token = current_step.set(record)
        self._execution.ending.add(record.name)
        context = contextvars.copy_context()  # a group may be committed from within another run's step
        outcome: list[Any] = []

        def write() -> None:
            outcome.clear()
            self._store.runs.fence(self._execution.claim)
            try:
                with self._store.database.guarded_savepoint() as connection:
                    result = context.run(function, connection, *arguments)
                    result = _refuse_awaitable(result, self._store.database.path)
                    text, value = _write_down(result, record.name, annotation)
                    self._store.database.refuse_longer(f"output of step {record.name!r}", text)
            except BaseException as error:
                database = self._store.database
                if database.is_trouble(error) or not database.in_transaction or is_of_the_engine(error):
                    raise
                outcome.append(error)
                self._execution.record_outcome(record, StepStatus.FAILED, error=describe(error))
            else:
                outcome.append(value)
                self._execution.record_outcome(record, StepStatus.COMPLETED, output=text)

        try:
            await self._execution.commit(write)
        except TransactionError as error:  # it has ended the transaction in which its failure would be recorded
            outcome[:] = [error]
            await self._execution.commit_step(record, StepStatus.FAILED, error=describe(error))
        finally:
            with suppress(ValueError):
                current_step.reset(token)
        recorded = self._execution.records[record.name]
        if recorded.status == StepStatus.FAILED:
            raise _step_failed(recorded) from outcome[0]
        return outcome[0]

    async def value(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once and replayed ever after."""
        record = await self._execution.arrive(self._execution.names.give(name), VALUE)
        if record.is_settled:
            return _replay(record, Any)
        with self._execution.branches.under_way():
            record = await self._execution.may_begin(record)
        text = encode(make(), path=f"value {record.name!r}")
        await self._execution.commit_step(record, StepStatus.COMPLETED, output=text)
        return decode(text)

    async def patched(self, change_id: str) -> bool:
        """Whether the run came here for the first time after the code was changed.

        Of branches that come here at the same time the first one decides.
        """
        execution, key = self._execution, f"patch:{change_id}"
        if execution.has_outcome(key):
            return decode(execution.enter(key, PATCH).output or "null")
        decision = self._patches.setdefault(change_id, not execution.was_further)
        if execution.is_unwinding and not decision:
            return False  # only to find what is to be undone: nothing is recorded any more
        record = await execution.arrive(key, PATCH)
        with execution.branches.under_way():
            record = await execution.may_begin(record)
        if key not in execution.ending:  # what another branch has written comes first in the next commit as well
            await execution.commit_step(record, StepStatus.COMPLETED, output=encode(decision))
        return decision

    async def publish(self, key: str, value: Any) -> None:
        """Publish a value of the run under a key, for others to read live."""
        if not isinstance(key, str) or not key:
            raise ValueError(f"An event's key is a non-empty string, not {key!r}.")
        text = encode(value, path=f"event {key!r}")
        record = await self._execution.arrive(self._execution.names.give(published_as(key)), PUBLISH)
        if record.is_settled:
            return  # a replay publishes nothing again: what came after it would be taken back
        with self._execution.branches.under_way():
            record = await self._execution.may_begin(record)

        def write() -> None:
            self._store.runs.fence(self._execution.claim)
            now = self._clock.now()
            published = record._replace(status=StepStatus.COMPLETED, output=text, completed_at=now)
            self._execution.records[record.name] = published
            self._store.steps.note(self._execution.claim.run_id, published)
            if self._store.steps.stored_value(self._execution.claim.run_id, key) != text:
                self._store.steps.set_value(self._execution.claim.run_id, key, text, readable(value), now)

        await self._execution.commit(write)

    def continue_as_new(self, input: Any) -> NoReturn:
        """Leave the body; the run ends, and a fresh one starts."""
        execution = self._execution
        execution.check()
        if execution.is_unwinding:
            execution.unwind()
        run = self._store.runs.get(execution.claim.run_id)
        trigger = Trigger(run.job, input, labels=run.labels, priority=run.priority)
        job, text = trigger.check(self._services.registry)
        raise ContinueAsNew(
            dataclasses.replace(
                trigger.new_run(self._services.new_id(), job, text),
                concurrency_key=run.concurrency_key,
                gates=(),  # it gets those of this run, also the ones that a schedule has added
                parent_run_id=run.parent_run_id,
                parent_step=run.parent_step,
                continued_from=run.id,
            )
        )


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


def _replay(record: StepRecord, annotation: Any) -> Any:
    if record.status == StepStatus.FAILED:
        raise _step_failed(record)
    return decode(record.output or "null", annotation)


def _step_failed(record: StepRecord) -> StepFailed:
    error = record.error or {"type": "", "message": "", "traceback": ""}
    return StepFailed(record.name, error["type"], error["message"], error["traceback"])


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
