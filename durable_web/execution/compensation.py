"""Sagas: undoing the completed steps of a run that does not complete, the latest first.

Each compensation is a durable step of its own, ``compensate:<name>``, so a crash in the middle goes on where it was.
After one, the job body is replayed up to where it had come, to find the functions again; it may begin nothing new.
See H. Garcia-Molina and K. Salem, "Sagas", SIGMOD 1987.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..clock import TimerHandle
from ..codec import decode
from ..errors import StepFailed
from ..job import NO_RETRY, Retry
from ..store import StepRecord

if TYPE_CHECKING:
    from .executor import Execution
    from .services import Services

COMPENSATION = "compensation"
PREFIX = "compensate:"
PATIENCE_SECONDS = 5.0  # for branches of the body that take time to come to a step that is to be undone

Undo = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compensation:
    undo: Undo
    type: Any  # as which the step's result is read
    retry: Retry


class Compensation:
    """How the steps of one execution are undone."""

    def __init__(self, execution: Execution, services: Services) -> None:
        self.is_running = execution.claim.ending is not None
        self._execution = execution
        self._store = services.store
        self._clock = services.clock
        self._found: dict[str, _Compensation] = {}
        self._place = max((record.undo for record in execution.records.values()), default=0)
        self._missing: set[str] = set()
        self._all_found = asyncio.Event()
        self._timer: TimerHandle | None = None
        if self.is_running:
            self._look_for_missing()

    # --- knowing how -------------------------------------------------------------------------------------------------

    def add(self, step: str, undo: Undo, type_: Any, retry: Retry) -> None:
        """Keep how a step is undone, should it complete; the body has come to it."""
        self._found[step] = _Compensation(undo, type_, retry)
        self._missing.discard(step)
        if not self._missing:
            self._stop_looking()

    def next_place(self) -> int:
        """The place of a step that completes now among those that can be undone: they are, the other way round."""
        self._place += 1
        return self._place

    def _look_for_missing(self) -> None:
        steps = (step.name for step in self._to_undo())
        self._missing = {name for name in steps if not self._execution.has_outcome(PREFIX + name)} - self._found.keys()

    async def all_found(self) -> None:
        """Return when the body has come to every step that is to be undone, or takes too long to.

        One branch may be at its end while another one is still on its way.
        """
        if not self._missing or self._all_found.is_set():
            return
        if self._timer is None:
            self._timer = self._clock.call_later(PATIENCE_SECONDS, self._stop_looking)
        await self._all_found.wait()

    def _stop_looking(self) -> None:
        self._all_found.set()
        if self._timer is not None:
            self._timer.cancel()

    # --- doing it ----------------------------------------------------------------------------------------------------

    async def begin(self, error: dict[str, str], failed_step: str | None) -> bool:
        """Note that the run has failed, once nothing of it is under way any more, and before anything is undone.

        ``False`` when there is nothing to undo.
        """
        execution = self._execution
        if not any(record.undo for record in execution.records.values()):
            return False
        self.is_running = True
        await execution.branches.stop()
        if not self._to_undo():
            return False

        def write() -> None:
            now = self._clock.now()
            self._store.runs.compensate(execution.claim, now, error, failed_step)
            self._store.steps.cancel_running(execution.claim.run_id, now)
            self._store.family.cancel_awaited(execution.claim.run_id, now)

        await execution.commit(write)
        execution.parking.unpause()  # the run is paused no longer, and nobody could resume it
        self._look_for_missing()
        return True

    async def run(self) -> None:
        """Undo what completed, the latest first; one that fails is recorded, and the others are undone all the same."""
        await self.all_found()
        for step in self._to_undo():
            record = self._execution.enter(PREFIX + step.name, COMPENSATION)
            retry = self._found[step.name].retry if step.name in self._found else NO_RETRY
            with suppress(StepFailed):
                await self._execution.operations.attempt(record, self._call(step), (), retry)

    def _to_undo(self) -> list[StepRecord]:
        return self._store.steps.to_compensate(self._execution.claim.run_id)

    def _call(self, step: StepRecord) -> Callable[[], Awaitable[None]]:
        """The function that undoes a step. What it returns is not kept: it need not be anything that can be stored."""

        async def undo() -> None:
            found = self._found.get(step.name)
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
    """Inside, a ``CancelledError`` that nobody has asked this task for is an ordinary failure."""
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
