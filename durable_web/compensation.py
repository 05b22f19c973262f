"""Sagas: undoing the completed steps of a run that does not complete, the latest first.

Each compensation is a durable step of its own, ``compensate:<name>``, so a crash in the middle goes on where it was.
After one, the job body is replayed up to where it had come, to find the functions again; it may begin nothing new.
See H. Garcia-Molina and K. Salem, "Sagas", SIGMOD 1987.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import StepFailed
from .job import NO_RETRY, Retry
from .store import StepRecord

if TYPE_CHECKING:
    from .executor import Execution, Services

COMPENSATION = "compensation"
Undo = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compensation:
    step: StepRecord
    undo: Undo
    result: Any
    retry: Retry


class Compensation:
    """The completed steps of one execution that have a compensation."""

    def __init__(self, execution: Execution, services: Services) -> None:
        self.is_running = execution.claim.ending is not None
        self._execution = execution
        self._store = services.store
        self._clock = services.clock
        self._steps: dict[str, _Compensation] = {}

    def add(self, step: StepRecord, undo: Undo, result: Any, retry: Retry) -> None:
        """Keep how a step that has just completed, or is replayed, is undone."""
        self._steps[step.name] = _Compensation(step, undo, result, retry)

    @property
    def is_needed(self) -> bool:
        """Whether any step has to be undone."""
        return bool(self._steps)

    async def begin(self, error: dict[str, str], failed_step: str | None) -> None:
        """Note that the run has failed, before anything is undone."""
        self.is_running = True
        execution = self._execution

        def write() -> None:
            now = self._clock.now()
            self._store.runs.compensate(execution.claim, now, error, failed_step)
            self._store.steps.cancel_running(execution.claim.run_id, now)

        await execution.commit(write)

    async def run(self) -> None:
        """Undo what completed, the latest first; one that fails is recorded, and the others are undone all the same."""
        for step in self._store.steps.to_compensate(self._execution.claim.run_id):
            known = self._steps.get(step.name, _Compensation(step, _unknown, None, NO_RETRY))
            record = self._execution.enter(f"compensate:{step.name}", COMPENSATION)
            with suppress(StepFailed):
                await self._execution.operations.attempt(record, known.undo, (known.result,), known.retry)


def _unknown(result: Any) -> None:
    raise LookupError(
        "The job's code no longer comes to this step with a compensation, so it could not be undone. Bring the old "
        "code back and retry the run, or undo the step by hand."
    )
