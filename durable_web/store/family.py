"""Runs that belong together: a child's end ends its parent's wait; a cancelled run's children are cancelled."""

from __future__ import annotations

from ..model import RunStatus
from .journal import Journal
from .runs import Ended, Runs
from .steps import Steps
from .waits import Waits


class Family:
    """What the end of one run means for others."""

    def __init__(self, journal: Journal, runs: Runs, steps: Steps, waits: Waits) -> None:
        self._journal = journal
        self._runs = runs
        self._steps = steps
        self._waits = waits

    def end(self, ended: Ended, now: int) -> None:
        """A run has ended: cancel the children that it was waiting for, and end its parent's wait for it."""
        for child_id in self._runs.active_children(ended.run_id, awaited=True):
            self.cancel(child_id, now)
        if ended.parent_run_id is None or ended.parent_step is None:
            return
        error = None
        if ended.status != RunStatus.COMPLETED:
            message = f"The child run {ended.run_id} was cancelled."
            error = ended.error or {"type": "Cancelled", "message": message, "traceback": ""}
        self._waits.settle(
            ended.parent_run_id,
            ended.parent_step,
            now,
            output=ended.output,
            error=error,
            reason=f"child run {ended.parent_step!r} has ended",
        )

    def cancel(self, run_id: str, now: int, *, compensate: bool = False) -> None:
        """Cancel an active run, and every active run that it has started.

        :param compensate: let runs that have steps to compensate do so before they end.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        self._steps.cancel_running(run_id, now)
        if not (compensate and self._runs.begin_compensation(run_id, RunStatus.CANCELLED, now)):
            self._runs.cancel(run_id, now)
        self._journal.changed.add(run_id)
        for child_id in self._runs.active_children(run_id):
            self.cancel(child_id, now, compensate=compensate)
