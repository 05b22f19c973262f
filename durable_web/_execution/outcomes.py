"""How the outcomes of one run are recorded and taken, and when its operations may begin.

An operation that the body asks for begins at once where it can be *inline*: nothing of the run is called between its
beginning and the return of its outcome. Else it begins when its turn has come, its outcome joins the next commit, and
it is delivered when the run is at rest.
"""

from __future__ import annotations

import asyncio

from .._model import OperationKind, StepStatus
from .._store import StepRecord
from .history import History, Operation
from .run_loop import Outside, RunLoop
from .services import Services
from .tenure import Tenure


class Outcomes:
    """The outcomes of one run on their way into its history."""

    def __init__(self, services: Services, history: History, loop: RunLoop, tenure: Tenure) -> None:
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._history = history
        self._loop = loop
        self._tenure = tenure
        self._busy = 0  # functions that have not ended, and outcomes that are not committed
        self._endings: dict[asyncio.Task[object] | None, list[Operation]] = {}  # by the task that has called them off
        self._held_up: list[tuple[Operation, list[Operation]]] = []  # until these have ended
        self._all_ended: asyncio.Future[None] | None = None
        is_first = tenure.claim.attempt == 1
        self._earlier_attempts = {} if is_first else services.store.steps.earlier_attempts(tenure.run_id)
        self._queued = tenure.claim.queued  # of the steps that the claim was made for; milliseconds

    # --- when an operation begins ------------------------------------------------------------------------------------

    def may_be_inline(self) -> bool:
        """``True`` where nothing of the run can come between the call of a function and the return of its outcome."""
        history = self._history
        if not self._services.is_alone() or not history.is_live or history.has_undelivered or self._tenure.is_paused:
            return False
        return not self._loop.must_give_way and not (self._endings and self._own_endings())

    def start_in_turn(self, operation: Operation) -> None:
        """Start an operation that is not inline: now, or when what it has to wait for is over."""
        history = self._history
        if not history.is_live or self._tenure.is_paused:
            history.queue(operation)
        elif self._endings and (endings := self._own_endings()):
            self._held_up.append((operation, endings))
            self.begin_busy()
        elif not self._services.is_alone() or history.has_undelivered or not self._loop.must_give_way:
            with Outside():
                operation.start()
        else:
            self.begin_busy()
            self._services.loop.call_soon(self._start_after_turn, operation)

    def _start_after_turn(self, operation: Operation) -> None:
        """The real loop had its turn."""
        if self._tenure.is_detached:
            return
        if self._tenure.is_paused:
            self._history.queue(operation)
        elif not operation.is_called_off:
            operation.start()
        self.end_busy()

    def _own_endings(self) -> list[Operation]:
        """What the current task of the body has called off, and what has not ended."""
        return self._endings.get(asyncio.current_task(self._loop), [])

    # --- what is recorded --------------------------------------------------------------------------------------------

    def first_attempt(self, key: str, kind: OperationKind, has_undo: bool = False) -> StepRecord:
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

    def begin_attempt(self, record: StepRecord, ready_at: int | None = None) -> StepRecord:
        """The record of an attempt that begins now, and could have begun at ``ready_at`` (milliseconds)."""
        now = self._clock.now()
        queued = self._queued if ready_at is None else max(now - ready_at, 0)
        return record._replace(status=StepStatus.RUNNING, started_at=now, queued=queued, completed_at=None)

    def record_completed(self, record: StepRecord, output: str, after: int | None) -> StepRecord:
        """Inside a transaction: record that a step has completed."""
        tenure = self._tenure
        written = self._store.steps.record_completed(tenure.claim, record, output, self._clock.now(), after)
        if tenure.has_recoveries:
            tenure.outcome_recorded()
        return written

    def record(self, finished: StepRecord, after: int | None) -> StepRecord:
        """Inside a transaction: record an outcome."""
        claim = self._tenure.claim
        written = self._store.steps.record_outcome(claim, finished, self._clock.now(), after=after)
        self._tenure.outcome_recorded()
        return written

    # --- what is committed -------------------------------------------------------------------------------------------

    def take_inline(self, written: StepRecord) -> StepRecord | None:
        """Take a committed outcome; ``None`` when another one came in between, and both are delivered at rest."""
        if not written.inline:
            self.take(written)
            return None
        self._queued = 0  # what comes after this did not wait for the claim
        self._history.return_inline(written)
        return written

    def take(self, written: StepRecord) -> None:
        """Take an outcome that is committed, with those that others have recorded before it."""
        self._queued = 0
        if self._history.follows(written):
            self._history.learn(written)
        else:
            for record in self._store.steps.outcomes_after(self._tenure.run_id, self._history.known):
                self._history.learn(written if record.name == written.name else record)
        self._loop.wake()

    def attempt_failed(self) -> None:
        """An attempt that another one follows is committed: what comes now did not wait for the claim."""
        self._queued = 0

    def resume(self) -> None:
        """The run has its lease back: what begins now has waited for that."""
        self._queued = self._tenure.claim.queued

    # --- what is busy ------------------------------------------------------------------------------------------------

    def begin_busy(self) -> None:
        """A function is called, or is about to be."""
        self._busy += 1

    def end_busy(self) -> None:
        """A function has ended and its outcome is committed, or dropped."""
        self._busy -= 1
        if self._busy:
            return
        if self._all_ended is not None and not self._all_ended.done():
            self._all_ended.set_result(None)
        self._loop.wake()

    @property
    def is_idle(self) -> bool:
        """``True`` when no function is executing or about to, and every outcome is committed."""
        return not self._busy

    async def all_ended(self) -> None:
        """Inside the run: return when every function has ended, or was left behind, and its outcome is committed."""
        while self._busy:
            self._all_ended = self._loop.create_future()
            await self._all_ended

    # --- what was called off, and has not ended ----------------------------------------------------------------------

    def hold_up(self, call: Operation) -> None:
        """Let what the current task of the body asks for next wait until a function that it called off has ended."""
        self._endings.setdefault(asyncio.current_task(self._loop), []).append(call)

    def stop_holding_up(self, call: Operation) -> None:
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
