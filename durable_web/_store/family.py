"""Parents and children: propagate the end of a run to its parent, and the cancellation of a run to its children.

A call of ``runs.cancel`` says for the run and for its children whether they compensate their steps. A child that the
engine cancels, because its parent has failed or has stopped waiting for the child, compensates its steps before it
ends. A child that is already compensating is not interrupted.

A run may also follow a run that it has not started: flow control may return an existing run in place of a new child.
The follower's wait ends with the followed run, and the follower never cancels the followed run.
"""

from __future__ import annotations

from .._codec import encode
from .._model import RunStatus
from .journal import Journal
from .runs import Ended, Runs, following
from .steps import StepRecord, Steps
from .waits import Waits

DEADLINE_EXCEEDED = {
    "type": "DeadlineExceeded",
    "message": "The run's deadline passed before it ended.",
    "traceback": "",
}


class Family:
    """The effects of a run's end or cancellation on other runs."""

    def __init__(self, journal: Journal, runs: Runs, steps: Steps, waits: Waits) -> None:
        self._journal = journal
        self._runs = runs
        self._steps = steps
        self._waits = waits

    def end(self, ended: Ended, now: int) -> None:
        """Handle the end of a run: cancel the children that it was waiting for, and end its parent's wait."""
        if ended.status != RunStatus.CANCELLED:  # `cancel` has handled its children
            self.cancel_awaited(ended.run_id, now)
        if ended.continued_as is not None:
            self._runs.adopt_children(ended.run_id, ended.continued_as)
            self._waits.follow_on(ended.run_id, ended.continued_as)
            return
        for follower_id, step, _ in self._waits.find(following(ended.run_id)):
            self._end_wait(follower_id, step, ended, now)
        if ended.parent_run_id is not None and ended.parent_step is not None:
            self._end_wait(ended.parent_run_id, ended.parent_step, ended, now)

    def _end_wait(self, parent_run_id: str, step: str, ended: Ended, now: int) -> None:
        error = None
        if ended.status != RunStatus.COMPLETED:
            message = f"The child run {ended.run_id} was cancelled."
            error = ended.error or {"type": "Cancelled", "message": message, "traceback": ""}
        reason = f"child run {step!r} has ended"
        self._waits.settle(parent_run_id, step, now, output=ended.output, error=error, reason=reason)

    def follow(self, run_id: str, record: StepRecord, followed_id: str) -> None:
        """Let a wait for a child end with an existing run, which flow control has returned in place of the child."""
        self._steps.note(run_id, record._replace(topic=following(followed_id), detail=encode(followed_id)))

    def waiting_for(self, run_id: str) -> set[str]:
        """The ids of a run and of all runs that wait for its end, directly or not."""
        return self._waits.waiting_for(run_id)

    def cancel_awaited(self, run_id: str, now: int) -> None:
        """Cancel the active runs for whose end a run waits."""
        for child_id in self._runs.awaited_children(run_id):
            self.cancel(child_id, now, compensate=True)

    def call_off(self, run_id: str, name: str, now: int) -> StepRecord | None:
        """Cancel a wait that the body has stopped waiting for; when it is a wait for a child, cancel the child.

        Returns the record of the wait as it was; ``None`` when the wait never began.
        """
        found = self._waits.call_off(run_id, name, now)
        child_id = self._runs.active_child(run_id, name) if found is not None and found.kind == "child" else None
        if child_id is not None:
            self.cancel(child_id, now, compensate=True)
        return found

    def expire(self, run_id: str, now: int) -> None:
        """Fail an active run because its deadline has passed, after its compensations."""
        if not self._runs.begin_compensation(run_id, RunStatus.FAILED, now, DEADLINE_EXCEEDED):
            self._steps.cancel_running(run_id, now)
            self._runs.expire(run_id, now, DEADLINE_EXCEEDED)
        self.cancel_awaited(run_id, now)

    def cancel(self, run_id: str, now: int, *, compensate: bool = False) -> None:
        """Cancel an active run, and every active run that it has started.

        :param compensate: compensate the steps of the runs before they end; a run that is compensating already goes on.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        standing = self._runs.standing(run_id)
        if compensate and standing is not None and standing[0] == RunStatus.CANCELLING:
            return
        if not (compensate and self._runs.begin_compensation(run_id, RunStatus.CANCELLED, now)):
            self._steps.cancel_running(run_id, now)
            self._runs.cancel(run_id, now)
        self._journal.changed.add(run_id)
        for child_id in self._runs.active_children(run_id):
            self.cancel(child_id, now, compensate=compensate)
