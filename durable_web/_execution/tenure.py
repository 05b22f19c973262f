"""The tenure of one run: its claim, and with it the right to write.

Every write of an executing run is fenced by the generation of its claim. When the run is taken away (cancelled, lease
lost, engine stopping, storage in trouble), it is *detached*: nothing of it is written any more.
"""

from __future__ import annotations

import dataclasses
import sys
from asyncio import _get_running_loop
from collections.abc import Callable
from contextvars import ContextVar

from .._errors import NotInStep, StorageError, TransactionError
from .._model import RunStatus
from .._store import Claim, LeaseLost, StepRecord, Store
from .commits import Done, GroupCommit, Write
from .leaving import Detached
from .run_loop import RunLoop

REFUSALS = 3
"""How often a body that catches everything is told that its run is no longer executed; after that it stands still."""

current_step: ContextVar[StepRecord | None] = ContextVar("durable_web_current_step", default=None)
"""The step whose function is executed; of the body, ``None``."""

Committed = Callable[[BaseException | None], None]
"""Called after a commit: with ``None``, or with the error of the write itself. Not called when the run was detached."""


class Tenure:
    """The claim on one run.

    :param on_lost: called when a write was refused because the run is no longer this engine's.
    :param on_trouble: called with the claim when the storage is in trouble.
    """

    def __init__(
        self,
        store: Store,
        commits: GroupCommit,
        loop: RunLoop,
        claim: Claim,
        on_lost: Callable[[], None],
        on_trouble: Callable[[Claim, StorageError], None],
    ) -> None:
        self.claim = claim
        self.is_detached = False
        """``True`` when the run is no longer executed here."""
        self.is_parked = False
        """``True`` while the run waits without a slot and a lease."""
        self.is_paused = False
        """``True`` while no further step may begin."""
        self.is_cancelled = False
        """``True`` when the run was cancelled; for synchronous code that wants to stop early."""
        self.unsettled = 0
        """How many commits of the run have begun and not ended."""
        self._store = store
        self._commits = commits
        self._loop = loop
        self._refusals = 0
        self._on_lost = on_lost
        self._on_trouble = on_trouble
        self.has_recoveries = bool(claim.recoveries or claim.interruptions)
        """``True`` when deaths of the engine since the last outcome of the run are recorded."""
        self._held: list[tuple[Write, Done | None]] = []  # while the run is parked

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.claim.run_id

    def check(self) -> None:
        """:raises Detached: when the run is no longer executed here; as ``enter`` does."""
        if self.is_detached:
            raise self._refusal()

    def _refusal(self) -> BaseException:
        """What is raised into a body whose run is no longer executed here.

        When Python closes a dropped body that asks in a ``finally``, any other exception than its own would be
        reported as unraisable.
        """
        is_closing = isinstance(sys.exc_info()[1], GeneratorExit)
        return GeneratorExit() if is_closing else Detached(self.claim.run_id)

    async def enter(self, operation: str) -> None:
        """The body asks for an operation.

        :raises NotInStep: when it is not the body that asks.
        :raises Detached: when the run is no longer executed here; after ``REFUSALS`` times it never returns.
        :raises GeneratorExit: when Python closes the dropped body, which asks in a ``finally``.
        """
        if self.is_detached:  # asked first: the garbage collector closes a dropped body on any loop
            refusal = self._refusal()
            self._refusals += 1
            if self._refusals > REFUSALS and isinstance(refusal, Detached):
                await self._loop.create_future()
            raise refusal
        if _get_running_loop() is not self._loop:
            step = current_step.get()
            raise NotInStep(operation, None if step is None else step.name)

    def detach(self) -> None:
        """Write nothing of the run any more."""
        self.is_detached = True
        self._held.clear()

    def set_paused(self, is_paused: bool) -> None:
        """Let no further step begin, or let steps begin again."""
        self.is_paused = is_paused

    def cancel(self) -> None:
        """The run was cancelled."""
        self.is_cancelled = True

    def end_as(self, ending: str | None, error: dict[str, str] | None, failed_step: str | None) -> None:
        """The run is to be compensated, and then ends so."""
        self.claim = dataclasses.replace(self.claim, ending=ending, error=error, failed_step=failed_step)

    def park(self) -> None:
        """The run gave its lease back, and waits."""
        self.is_parked = True

    def resume(self, claim: Claim) -> None:
        """The run goes on under a new claim."""
        self.claim = claim
        self.is_parked = False
        held, self._held = self._held, []
        for write, done in held:
            self._commits.later(write, done)

    def fence(self) -> None:
        """Inside a transaction. :raises LeaseLost: when the run is no longer this engine's; nothing is written."""
        self._store.runs.fence(self.claim)

    def outcome_recorded(self) -> None:
        """Inside a transaction: an outcome of the run is recorded, so earlier deaths of its engine are forgotten."""
        if self.has_recoveries:
            self._store.runs.reset_recoveries(self.claim)
            self.has_recoveries = False

    def later(
        self, write: Write, committed: Committed | None = None, *, simple: bool = False, fenced: bool = True
    ) -> None:
        """Commit a write with the next commit; one of a parked run waits until that has its lease back.

        :param committed: with it, the run does not go on without the write: it is detached when that is lost.
        :param simple: as ``GroupCommit.later`` has it.
        :param fenced: without, the write fences itself.
        """
        if self.is_detached:
            return

        def with_fence() -> None:
            self.fence()
            write()

        item = with_fence if fenced else write
        done = None if committed is None else lambda error: self._done(error, committed)
        if self.is_parked:
            self._held.append((item, done))
        else:
            self._commits.later(item, done, simple=simple)

    def submit(self, write: Write, committed: Committed | None = None, *, simple: bool = False) -> None:
        """Commit a write, which fences itself, with the others of this turn of the event loop.

        :param simple: as ``GroupCommit.submit`` has it.
        """
        self.unsettled += 1

        def done(error: BaseException | None) -> None:
            self.unsettled -= 1
            self._done(error, committed)
            if not self.unsettled:
                self._loop.wake()

        self._commits.submit(write, done, simple=simple)

    def _done(self, error: BaseException | None, committed: Committed | None) -> None:
        """A commit is over: pass on what concerns the write, and detach the run where it cannot go on."""
        if self.is_detached:
            return
        if isinstance(error, LeaseLost):
            self._on_lost()
        elif isinstance(error, StorageError) and not isinstance(error, TransactionError):
            self._trouble(error)
        elif committed is not None:
            try:
                committed(error)
            except StorageError as trouble:  # what is recorded could not be read
                self._trouble(trouble)

    def commit_now(self, write: Write, *, simple: bool = False) -> None:
        """Commit a write, which fences itself, and what is pending, before returning.

        :raises Detached: when the run is no longer this engine's, or the storage is in trouble.
        """
        self.check()
        try:
            self._commits.commit_now(write, simple=simple)
        except LeaseLost:
            self._on_lost()
        except TransactionError:
            raise
        except StorageError as error:
            self._trouble(error)
        self.check()

    def _trouble(self, error: StorageError) -> None:
        if self.is_detached:
            return
        claim = self.claim
        self._on_lost()
        self._on_trouble(claim, error)

    def is_cancelling(self) -> bool:
        """``True`` when the run is to be compensated, and then ends as its row says."""
        standing = self._store.runs.standing(self.run_id)
        return standing is not None and standing[0] == RunStatus.CANCELLING
