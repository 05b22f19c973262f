"""Group commit: what is written in the same turn of the event loop shares one transaction, and so one flush.

A write is a function that calls verbs of the store. It is committed on the spot (``commit_now``), with everything else
of this turn of the event loop (``submit``), or with the next commit, within a bounded delay (``later``): log lines,
progress and the news that a step has begun do, so that they cost no flush of their own.

A write that fails fails alone. Where it may do so after it has written something, it has a savepoint to go back to;
one that is ``simple`` fails, if it does, at its first statement, as by the fence: a savepoint is two statements.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .._clock import Clock, TimerHandle
from .._errors import StorageError
from .._store import LeaseLost, Store
from .run_loop import Outside, is_outside

Write = Callable[[], object]
Done = Callable[[BaseException | None], None]
"""Called after the transaction, with the reason why nothing of the write was written, or ``None``."""
RIDE_ALONG_SECONDS = 0.05
BATCH = 500
"""How many writes of a turn share a transaction at most: the other work of the loop has its turn in between."""


@dataclass(slots=True)
class _Pending:
    write: Write
    simple: bool
    done: Done | None = None
    error: BaseException | None = None  # of this write alone; nothing of it was written


class GroupCommit:
    """Gathers writes into transactions of one store."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        on_failure: Callable[[BaseException], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """
        :param on_failure: called with the failure of a write that has no ``done``.
        :param loop: whose turns are meant.
        """
        self._store = store
        self._clock = clock
        self._on_failure = on_failure
        self._loop = loop
        self._context = contextvars.copy_context()  # not that of the step that happens to be committed first
        self._pending: deque[_Pending] = deque()
        self._timer: TimerHandle | None = None
        self._turn: asyncio.Handle | None = None
        self._last_flush = clock.monotonic()

    @property
    def is_crowded(self) -> bool:
        """``True`` when more is pending than one transaction takes."""
        return len(self._pending) > BATCH

    def later(self, write: Write, done: Done | None = None, *, simple: bool = False) -> None:
        """Commit ``write`` with the next commit, at the latest after 50 ms.

        :param done: as ``submit`` has it.
        :param simple: when the write fails, nothing of it is written yet.

        Where synchronous code keeps the event loop from turning, the delay is checked here, so that its progress can
        be seen while it runs.
        """
        self._pending.append(_Pending(write, simple, done))
        if self._store.database.in_transaction:
            return  # inside a transaction function: its commit comes next
        if self._timer is None:
            self._last_flush = self._clock.monotonic()
            self._timer = self._clock.call_later(RIDE_ALONG_SECONDS, self._flush_unwaited)
        elif self._clock.monotonic() - self._last_flush >= RIDE_ALONG_SECONDS:
            self._flush_unwaited()

    def submit(self, write: Write, done: Done | None = None, *, simple: bool = False) -> None:
        """Commit ``write`` together with everything else that is ready in this turn of the event loop.

        :param done: called after the commit with ``None``; or with ``LeaseLost`` when the write was refused because the
            run is no longer this engine's, ``StorageError`` when the storage is in trouble, or its own error. Nothing
            of it was written then.
        :param simple: when the write fails, nothing of it is written yet.
        """
        self._pending.append(_Pending(write, simple, done))
        self.flush_soon()

    def flush_soon(self) -> None:
        """Commit what is pending in the next turn of the event loop."""
        if self._turn is None:
            self._turn = self._loop.call_soon(self._flush_turn, context=self._context.copy())

    def commit_now(self, write: Write, *, simple: bool = False) -> None:
        """Commit ``write``, and whatever is pending, before returning.

        :raises LeaseLost: when the write was refused because the run is no longer ours; nothing of it was written.
        :raises StorageError: when the storage is in trouble; nothing of the group was written.
        """
        if not self._pending:  # as for most steps: no bookkeeping of a group
            self._commit(write)
            return
        own = _Pending(write, simple)
        self._pending.append(own)
        try:
            self.flush()
        except StorageError as error:
            if own.error is None:
                raise
            self._on_failure(error)  # of what was to be committed with it
        if own.error is not None:
            raise own.error

    def flush(self) -> None:
        """Commit everything that is pending.

        :raises StorageError: when the transaction failed; each ``done`` of a part of it is called with the same.
        """
        self._disarm()
        if self._pending:
            self._commit()

    def _commit(self, first: Write | None = None, at_most: int | None = None) -> None:
        """Commit ``first``, which raises what it raises, and what is pending, up to a limit."""
        if is_outside():
            self._commit_outside(first, at_most)
            return
        with Outside():
            self._commit_outside(first, at_most)

    def _commit_outside(self, first: Write | None, at_most: int | None) -> None:
        group: list[_Pending] = []
        try:
            with self._store.transaction():
                if first is not None:
                    first()
                while self._pending and (at_most is None or len(group) < at_most):  # a write may cause log lines
                    group.append(self._pending.popleft())
                    self._perform(group[-1])
        except BaseException as error:
            if group or first is None or self._store.database.is_trouble(error):
                group += self._pending
                self._pending.clear()
                self._finish(group, error)
            elif self._pending:
                self.flush()  # what the first one has caused before it failed
            raise
        if group:
            self._finish(group, None)

    def _perform(self, item: _Pending) -> None:
        """Write one item; when it fails, it fails alone, unless the storage itself is in trouble."""
        changes = self._store.database.changes
        mark = self._store.journal.mark()
        try:
            if item.simple:
                item.write()
            else:
                with self._store.part():
                    item.write()
        except BaseException as error:
            if self._store.database.is_trouble(error):
                raise
            if item.simple and self._store.database.changes != changes:
                raise self._half_written(error) from error
            item.error = error
            if not self._store.database.in_transaction:
                raise self._rolled_back() from error
            self._store.journal.forget_since(mark)

    def _rolled_back(self) -> StorageError:
        return StorageError(
            self._store.database.path,
            "A function given to ctx.transaction rolled the engine's transaction back, so nothing of what was to be "
            "committed with it was written. Other runs of which that was a part go on from their last step.",
        )

    def _half_written(self, error: BaseException) -> StorageError:
        """A defect of the engine: the group is rolled back, because this write alone cannot be."""
        return StorageError(
            self._store.database.path,
            f"A write failed in the middle ({type(error).__name__}: {error}), so nothing of what was to be committed "
            "with it was written. Its runs go on from their last step; please report this.",
        )

    def _finish(self, group: list[_Pending], error: BaseException | None) -> None:
        """Report how each write of a transaction has come out."""
        for item in group:
            outcome = item.error or error
            if item.done is not None:
                try:
                    item.done(outcome)
                except Exception as failure:  # of one write: the others are reported all the same
                    self._on_failure(failure)
            elif item.error is not None and error is None and not isinstance(item.error, LeaseLost):
                self._on_failure(item.error)

    def discard(self) -> None:
        """Forget what is pending: the engine has ended."""
        self._disarm()
        self._pending.clear()

    def _flush_turn(self) -> None:
        if self._store.database.in_transaction:  # a transaction function waits for a promise in Pyodide (run_sync)
            self._turn = self._loop.call_soon(self._flush_turn, context=self._context.copy())
            return
        self._disarm()
        if self._pending:
            self._report_failure(BATCH)
        if self._pending:
            self.flush_soon()

    def _flush_unwaited(self) -> None:
        self._disarm()
        if self._pending:
            self._report_failure(None)

    def _report_failure(self, at_most: int | None) -> None:
        try:
            self._commit(None, at_most)
        except Exception as error:
            self._on_failure(error)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._turn is not None:
            self._turn.cancel()
        self._timer = self._turn = None
