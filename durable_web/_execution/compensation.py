"""Sagas: undoing the completed steps of a run that does not complete, the latest first.

Compensation begins when the functions that the body called off have ended, and their outcomes are recorded; that is an
outcome itself: what was completed before it is undone. Each compensation is a durable step of its own,
``compensate:<name>``, so a crash in the middle goes on where it was: the body is replayed, ends as it ended, and the
compensations that are recorded are passed. See H. Garcia-Molina and K. Salem, "Sagas", SIGMOD 1987.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from .._codec import decode
from .._errors import StepFailed
from .._jobs import NO_RETRY, Retry
from .._model import OperationKind, StepStatus
from .._store import StepRecord
from .history import COMPENSATE, History
from .services import Services
from .steps import Steps
from .tenure import Tenure
from .writes import Writes

COMPENSATING = "compensating:"
"""The key under which the beginning of the compensation is recorded."""

Undo = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compensation:
    undo: Undo
    type: Any  # as which the step's result is read
    retry: Retry


class Undos:
    """How the steps of one run are undone, by their keys; filled while the body asks for them."""

    def __init__(self) -> None:
        self._found: dict[str, _Compensation] = {}

    def add(self, step: str, undo: Undo, type_: Any, retry: Retry) -> None:
        """Keep how a step is undone, should it complete."""
        self._found[step] = _Compensation(undo, type_, retry)

    def find(self, step: str) -> _Compensation | None:
        """How a step is undone; ``None`` when the body did not come to it."""
        return self._found.get(step)


class Compensation:
    """How the completed steps of one run are undone."""

    def __init__(
        self, services: Services, history: History, tenure: Tenure, steps: Steps, writes: Writes, undos: Undos
    ) -> None:
        self._store = services.store
        self._clock = services.clock
        self._history = history
        self._tenure = tenure
        self._steps = steps
        self._writes = writes
        self._undos = undos

    @property
    def is_needed(self) -> bool:
        """``True`` when a step has completed that is to be undone; valid once every function has ended."""
        return bool(self._to_undo(None))

    async def begin(self, failure: tuple[dict[str, str], str | None] | None) -> int:
        """Record that compensation begins; returns the order up to which outcomes are undone.

        :param failure: the error and the step that have failed the run; ``None`` when it was cancelled, which is
            recorded already.
        """

        def make(record: StepRecord) -> StepRecord:
            now = self._clock.now()
            self._steps.drop_late_results()
            if failure is not None and not self._tenure.is_cancelling():
                self._store.runs.compensate(self._tenure.claim, now, *failure)
            self._store.steps.cancel_running(self._tenure.run_id, now)
            self._store.family.cancel_awaited(self._tenure.run_id, now)
            return record._replace(status=StepStatus.COMPLETED, output="null")

        record = await self._writes.write(COMPENSATING, OperationKind.COMPENSATING, make)
        return record.outcome_order or 0

    async def run(self, until: int) -> None:
        """Undo what completed before ``until``, the latest first; one that fails is recorded, the others are undone."""
        for step in self._to_undo(until):
            found = self._undos.find(step.name)
            retry = NO_RETRY if found is None else found.retry
            with suppress(StepFailed):
                key = COMPENSATE + step.name
                await self._steps.call(key, OperationKind.COMPENSATION, self._call(step, found), (), retry)

    def _to_undo(self, until: int | None) -> list[StepRecord]:
        completed = [
            record
            for record in self._history.records()
            if record.undo and record.status == StepStatus.COMPLETED and record.outcome_order is not None
            if until is None or record.outcome_order < until
        ]
        return sorted(completed, key=lambda record: -(record.outcome_order or 0))

    def _call(self, step: StepRecord, found: _Compensation | None) -> Callable[[], Awaitable[None]]:
        """The function that undoes a step. What it returns is not kept: it need not be anything that can be stored."""

        async def undo() -> None:
            if found is None:
                raise LookupError(
                    f"The job's code no longer comes to the step {step.name!r} with a compensation, so it could not be "
                    "undone. Undo it by hand; or bring the old code back, retry the run, and cancel it with "
                    "compensate=True."
                )
            with _no_cancellation_of_its_own():
                outcome = found.undo(decode(step.output or "null", found.type))
                if inspect.isawaitable(outcome):
                    await outcome

        return undo


@contextmanager
def _no_cancellation_of_its_own() -> Iterator[None]:
    """Inside, a ``CancelledError`` without a request to cancel this task is an ordinary failure."""
    asked = _cancellations()
    try:
        yield
    except asyncio.CancelledError as error:
        if _cancellations() > asked:
            raise
        raise RuntimeError("the function was cancelled by what it called") from error


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
