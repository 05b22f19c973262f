"""The operations of a job body whose work is a write: transactions, recorded values, and what is published.

The write is part of the transaction that records the outcome. What is published, and the answer of ``ctx.patched``, are
facts: they have no outcome to wait for.
"""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable
from typing import Any

from .._codec import decode, encode, readable, return_annotation
from .._errors import SerializationError, TransactionError, describe
from .._model import OperationKind, StepStatus
from .._store import StepRecord, published_as
from .history import History, Operation
from .leaving import is_of_the_engine
from .outcomes import Outcomes
from .run_loop import Outside
from .services import Services
from .steps import Ending, as_step, step_failed, write_result
from .tenure import Tenure, current_step

Make = Callable[[StepRecord], StepRecord]
"""Inside a transaction: do the work of an operation, and give the record of how it has ended."""


class WriteCall(Operation):
    """An operation whose work is a write in the transaction that records it."""

    def __init__(
        self,
        writes: Writes,
        key: str,
        kind: OperationKind,
        make: Make,
        record: StepRecord,
    ) -> None:
        super().__init__(key)
        self.kind = kind
        self.make = make
        self.record = record
        self.cause: BaseException | None = None
        """Why it has failed."""
        self._writes = writes

    def start(self) -> None:
        self._writes.start(self)

    def call_off(self) -> None:
        """Nothing is recorded: it is written or it is not."""


class Writes:
    """The operations of one run whose work is a write."""

    def __init__(self, services: Services, history: History, tenure: Tenure, outcomes: Outcomes) -> None:
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._history = history
        self._tenure = tenure
        self._outcomes = outcomes
        self._patches: dict[str, bool] = {}

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
    ) -> Ending:
        """Call the function with the connection; what it wrote is rolled back where it fails."""
        database = self._store.database
        try:
            with database.guarded_savepoint() as connection:
                result = context.run(as_step, record, function, (connection, *arguments))
                result = _refuse_awaitable(result, database.path)
                text, value = write_result(result, record.name, annotation)
                database.refuse_longer(f"output of step {record.name!r}", text)
        except BaseException as error:
            if database.is_trouble(error) or not database.in_transaction or is_of_the_engine(error):
                raise
            return Ending("", None, error)
        return Ending(text, value, None)

    async def value(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once and replayed ever after."""
        await self._tenure.enter(name)
        key = self._history.key(name)

        def record_value(record: StepRecord) -> StepRecord:
            return record._replace(status=StepStatus.COMPLETED, output=encode(make(), path=f"value {key!r}"))

        record = await self._written(self._write_call(key, OperationKind.VALUE, record_value))
        return decode(record.output or "null")

    async def write(self, key: str, kind: OperationKind, make: Make) -> StepRecord:
        """The outcome of an operation whose work is a write of the engine's: ``make``, inside the transaction."""
        return await self._written(self._write_call(key, kind, make))

    def _write_call(self, key: str, kind: OperationKind, make: Make) -> WriteCall:
        return WriteCall(self, key, kind, make, self._history.ask(key, kind) or self._outcomes.first_attempt(key, kind))

    async def _written(self, call: WriteCall) -> StepRecord:
        history, record = self._history, call.record
        if record.outcome_order is not None:
            return record if history.may_return(record) else await history.outcome(call)
        if self._outcomes.may_be_inline():
            with Outside():
                written = self._write_inline(call)
            if written is not None:
                return written
        else:
            self._outcomes.start_in_turn(call)
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
            record = self._outcomes.first_attempt(key, OperationKind.PATCH)
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
            record = self._outcomes.first_attempt(name, OperationKind.PUBLISH)
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

    def start(self, call: WriteCall) -> None:
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
                self.start(call)
            elif error is not None:
                self._history.fail(call, error)
            elif written:
                call.record = written[0]
                self._outcomes.take(written[0])

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
        call.record = written[0]
        return self._outcomes.take_inline(written[0])

    def _record_write(self, call: WriteCall, after: int | None) -> StepRecord:
        self._tenure.fence()
        finished = call.make(call.record)
        return self._outcomes.record(finished, after)


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
