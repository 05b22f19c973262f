"""Group commit: what is written in the same turn of the event loop shares one transaction, and so one flush.

A write is a function that calls verbs of the store. It may wait for its commit (``commit``), be committed on the spot
(``commit_now``), or ride along with the next commit, within a bounded delay (``later``): log lines, progress and the
news that a step has begun do, so that they cost no flush of their own.

A write that fails fails alone. Where it may do so after it has written something, it has a savepoint to go back to;
one that is ``simple`` fails, if it does, at its first statement, as by the fence: a savepoint is two statements.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..clock import Clock, TimerHandle
from ..errors import StorageError
from ..store import LeaseLost, Store

Write = Callable[[], None]
RIDE_ALONG_SECONDS = 0.05


@dataclass(slots=True)
class _Pending:
    write: Write
    simple: bool
    committed: asyncio.Future[None] | None = None
    error: BaseException | None = None  # of this write alone; nothing of it was written


class GroupCommit:
    """Gathers writes into transactions of one store."""

    def __init__(self, store: Store, clock: Clock, on_failure: Callable[[BaseException], None]) -> None:
        """``on_failure`` hears of writes that failed while nobody was waiting for them."""
        self._store = store
        self._clock = clock
        self._on_failure = on_failure
        self._pending: deque[_Pending] = deque()
        self._timer: TimerHandle | None = None
        self._turn: asyncio.Handle | None = None
        self._last_flush = clock.monotonic()

    def later(self, write: Write, *, simple: bool = False) -> None:
        """Let ``write`` ride along with the next commit, at the latest after 50 ms.

        :param simple: when the write fails, nothing of it is written yet.

        Where synchronous code keeps the event loop from turning, the delay is checked here, so that its progress can
        be seen while it runs.
        """
        self._pending.append(_Pending(write, simple))
        if self._store.database.in_transaction:
            return  # inside a transaction function: the commit that follows takes it along
        if self._timer is None:
            self._last_flush = self._clock.monotonic()
            self._timer = self._clock.call_later(RIDE_ALONG_SECONDS, self._flush_unwaited)
        elif self._clock.monotonic() - self._last_flush >= RIDE_ALONG_SECONDS:
            self._flush_unwaited()

    async def commit(self, write: Write, *, simple: bool = False) -> None:
        """Commit ``write`` together with everything else that is ready in this turn of the event loop.

        :param simple: when the write fails, nothing of it is written yet.
        :raises LeaseLost: when the write was refused because the run is no longer ours; nothing of it was written.
        :raises StorageFullError: when there is no room; nothing of the group was written.
        """
        loop = asyncio.get_running_loop()
        committed = loop.create_future()
        self._pending.append(_Pending(write, simple, committed))
        if self._turn is None:
            self._turn = loop.call_soon(self._flush_unwaited)
        await committed

    def commit_now(self, write: Write, *, simple: bool = False) -> None:
        """Commit ``write``, and whatever is pending, before returning. Takes and raises what ``commit`` does."""
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

        :raises StorageError: when the transaction failed; those who waited for a part of it are told the same.
        """
        self._disarm()
        if self._pending:
            self._commit()

    def _commit(self, first: Write | None = None) -> None:
        """Commit ``first``, which raises what it raises, and everything that is pending."""
        group: list[_Pending] = []
        try:
            with self._store.transaction():
                if first is not None:
                    first()
                while self._pending:  # a write may itself cause log lines
                    group.append(self._pending.popleft())
                    self._perform(group[-1])
        except BaseException as error:
            if group or first is None or self._store.database.is_trouble(error):
                group += self._pending
                self._pending.clear()
                _settle(group, error)
            elif self._pending:
                self.flush()  # what the first one has caused before it failed
            raise
        if group:
            self._finish(group)

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

    def _finish(self, group: list[_Pending]) -> None:
        """Tell those who waited, and of those failures that nobody waited for."""
        _settle(group, None)
        for item in group:
            if item.committed is None and item.error is not None and not isinstance(item.error, LeaseLost):
                self._on_failure(item.error)

    def discard(self) -> None:
        """Forget what is pending: the engine has ended, and whoever waits for it is being cancelled."""
        self._disarm()
        self._pending.clear()

    def _flush_unwaited(self) -> None:
        try:
            self.flush()
        except Exception as error:
            self._on_failure(error)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._turn is not None:
            self._turn.cancel()
        self._timer = self._turn = None


def _settle(group: list[_Pending], error: BaseException | None) -> None:
    for item in group:
        if item.committed is None or item.committed.done():
            continue
        outcome = item.error or error
        if outcome is None:
            item.committed.set_result(None)
        else:
            item.committed.set_exception(outcome)
