"""Wait for the end of a run without reading its timeline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .._store import Store


class Endings:
    """Waiters for the end of runs of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}  # by run id
        self._is_closed = False

    async def wait(self, run_id: str) -> None:
        """Return when the run has ended or does not exist, or when the engine stops."""
        standing = None if self._is_closed else self._store.runs.standing(run_id)
        if standing is None or standing[0].is_terminal:
            return
        waiting = self._waiting.setdefault(run_id, set())
        may_have_ended = asyncio.get_running_loop().create_future()
        waiting.add(may_have_ended)
        try:
            await may_have_ended
        finally:
            waiting.discard(may_have_ended)
            if not waiting and self._waiting.get(run_id) is waiting:
                del self._waiting[run_id]

    def look_again(self, run_ids: Iterable[str] | None = None) -> None:
        """Recheck the waiters for these runs, or for all runs, after a commit."""
        for run_id in list(self._waiting) if run_ids is None else run_ids:
            for may_have_ended in self._waiting.pop(run_id, ()):
                if not may_have_ended.done():
                    may_have_ended.set_result(None)

    def close(self) -> None:
        """Release every waiter, because the engine stops."""
        self._is_closed = True
        self.look_again()
