"""Batch the callbacks of the worker's event loop, so that several share one turn of the browser.

Pyodide's loop asks the browser for a separate turn for every callback, and for two where Python may wait for a promise
in the middle of synchronous code (JSPI). Here all ready callbacks share one turn, with the callbacks that they make
ready, for a few milliseconds; then the browser's other tasks go first, above all the messages of pages.

A callback that waits for a promise in the middle of synchronous code (``pyodide.ffi.run_sync``) blocks no other
callback: before it begins, the browser is asked for another turn, in which the other callbacks go on.
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
    """Runs the callbacks of a Pyodide event loop in shared turns."""

    def __init__(self, loop: Any, ask: Callable[[], None], give_way: Callable[[], None]) -> None:
        """
        :param ask: asks the browser to call ``take`` soon, in a new turn.
        :param give_way: asks the browser to call ``go_on`` when it has executed the tasks that are queued now.
        """
        self._loop = loop
        self._ask = ask
        self._give_way = give_way
        self._ready: deque[asyncio.Handle] = deque()
        self._has_asked = False
        self._gives_way = False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """Replacement of the loop's method ``call_soon``."""
        handle = asyncio.Handle(callback, args, self._loop, context)
        self._ready.append(handle)
        self._need_turn()
        return handle

    def take(self) -> None:
        """Run the ready callbacks, and those that they make ready, until the time of the turn is used up."""
        self._has_asked = False
        if self._gives_way:  # requested before the time was used up
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
        """Run the remaining callbacks."""
        self._gives_way = False
        if self._ready:
            self._need_turn()

    def _need_turn(self) -> None:
        if not self._has_asked and not self._gives_way:
            self._has_asked = True
            self._ask()


def share_turns(ask: Callable[[Any], None], give_way: Callable[[Any], None]) -> None:
    """Make the callbacks of the running loop share turns.

    :param ask: asks the browser to call a function soon, in a new turn, so that it may wait for promises.
    :param give_way: asks the browser to call a function when the browser has executed the tasks that are queued now.
    """
    from pyodide.ffi import create_proxy

    loop = asyncio.get_running_loop()
    turns = SharedTurns(loop, lambda: ask(take), lambda: give_way(go_on))
    take = create_proxy(turns.take)
    go_on = create_proxy(turns.go_on)
    loop.call_soon = turns.call_soon  # type: ignore[method-assign, assignment]
