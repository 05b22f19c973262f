"""Waiting for the end of a run, whoever ends it; its timeline is not read for that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ..store import Store


class Endings:
    """Those who wait until a run of one store has ended."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._has_changed: dict[str, asyncio.Event] = {}
        self._is_closed = False

    async def wait(self, run_id: str) -> None:
        """Return when a run may have ended: at once when it has, is gone, or was never there, or the engine stops."""
        standing = None if self._is_closed else self._store.runs.standing(run_id)
        if standing is None or standing[0].is_terminal:
            return
        has_changed = self._has_changed.get(run_id)
        if has_changed is None:
            has_changed = self._has_changed[run_id] = asyncio.Event()
        await has_changed.wait()

    def look_again(self, run_ids: Iterable[str] | None = None) -> None:
        """Let those who wait for the end of these runs, or of any, look whether it has come."""
        for run_id in list(self._has_changed) if run_ids is None else run_ids:
            has_changed = self._has_changed.pop(run_id, None)
            if has_changed is not None:
                has_changed.set()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._is_closed = True
        self.look_again()
