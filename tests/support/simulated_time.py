"""An event loop whose time is simulated: when nothing is ready, it jumps to its next timer instead of waiting.

So a test may say ``await asyncio.sleep(3600)``, and two executions of it are the same, call for call. The engine gets
its time from the same loop, by ``SimulatedClock``. The idea is that of trio's ``MockClock(autojump_threshold=0)``.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

START = 1_800_000_000_000
"""The wall-clock time with which every simulation begins; milliseconds since 1970-01-01 UTC."""


class _NoSelector(selectors.SelectSelector):
    """Waits for no file: where the loop would, it moves the loop's time on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("Nothing is ready, no timer is set, and the simulation has not ended.")
        self.now += max(timeout, 0.0)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop with a time of its own, in seconds from 0. Threads, sockets and processes are not waited for."""

    def __init__(self) -> None:
        self._simulated = _NoSelector()
        super().__init__(self._simulated)

    def time(self) -> float:
        return self._simulated.now


class SimulatedClock:
    """The clock of an engine on a ``SimulatedLoop``.

    Attribute: ``ahead``, the seconds by which the wall clock was set forward; timers are not affected.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ahead = 0.0
        self._loop = loop

    def now(self) -> int:
        return START + round((self._loop.time() + self.ahead) * 1000)

    def monotonic(self) -> float:
        return self._loop.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, callback)

    async def turn(self) -> None:
        await asyncio.sleep(0)


def simulate(main: Coroutine[Any, Any, None]) -> None:
    """Execute a coroutine to its end on a loop whose time is simulated."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main)
