"""Turns of the worker's event loop that cost little.

Pyodide's loop asks the browser for a turn of its own for every callback, and for two where Python may wait for a
promise in the middle of synchronous code (JSPI). Here all callbacks that are ready share one turn, and so does what
they make ready, for a few milliseconds; then the browser's other tasks go first, messages of pages above all.

A callback that waits for a promise in the middle of synchronous code (``pyodide.ffi.run_sync``) holds up no other: the
browser was asked for another turn before it began, in which the rest goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

TURN_SECONDS = 0.004


class SharedTurns:
    """Takes the callbacks of a loop of Pyodide's."""

    def __init__(self, loop: Any, ask: Callable[[], None], give_way: Callable[[], None]) -> None:
        """
        :param ask: asks the browser to call ``take`` in a turn of its own, soon.
        :param give_way: asks it to call ``go_on`` when it has executed the tasks that are queued now.
        """
        self._loop = loop
        self._ask = ask
        self._give_way = give_way
        self._ready: deque[asyncio.Handle] = deque()
        self._has_asked = False
        self._gives_way = False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """Stands in for the loop's method of that name."""
        handle = asyncio.Handle(callback, args, self._loop, context)
        self._ready.append(handle)
        self._need_turn()
        return handle

    def take(self) -> None:
        """Call what is ready, and what that makes ready, until it has taken long enough."""
        self._has_asked = False
        if self._gives_way:  # it was asked for before the time was over
            return
        self._loop._install_running_loop()
        self._loop._install_asyncgen_hooks()
        until = time.perf_counter() + TURN_SECONDS
        while self._ready:
            handle = self._ready.popleft()
            if self._ready:
                self._need_turn()
            if not handle.cancelled():
                handle._run()
            if self._ready and time.perf_counter() > until:
                if not self._gives_way:
                    self._gives_way = True
                    self._give_way()
                return

    def go_on(self) -> None:
        """Go on with what is left."""
        self._gives_way = False
        if self._ready:
            self._need_turn()

    def _need_turn(self) -> None:
        if not self._has_asked and not self._gives_way:
            self._has_asked = True
            self._ask()


def share_turns(ask: Callable[[Any], None], give_way: Callable[[Any], None]) -> None:
    """Let the callbacks of the running loop share turns.

    :param ask: asks the browser to call a function in a turn of its own, soon, so that it may wait for promises.
    :param give_way: asks it to call a function when the browser has executed the tasks that are queued now.
    """
    from pyodide.ffi import create_proxy

    loop = asyncio.get_running_loop()
    turns = SharedTurns(loop, lambda: ask(take), lambda: give_way(go_on))
    take = create_proxy(turns.take)
    go_on = create_proxy(turns.go_on)
    loop.call_soon = turns.call_soon  # type: ignore[method-assign, assignment]
