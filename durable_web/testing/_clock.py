"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

TURNS = 100


class _Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class MockClock:
    """A clock that moves only with its methods ``advance``, ``set_back`` and ``set_forward``.

    >>> clock = MockClock()
    >>> async with engine(reminder, clock=clock) as e:
    ...     run = await e.trigger(reminder)  # which sleeps for an hour
    ...     await clock.advance(3600)
    ...     assert (await e.runs.get(run.id)).status == "completed"

    :param now: the wall-clock time to begin with, in milliseconds since 1970-01-01 UTC.
    """

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self._elapsed = 0.0
        self._start = now
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()

    def now(self) -> int:
        """The wall-clock time, in milliseconds since 1970-01-01 UTC."""
        return self._start + round(self._elapsed * 1000)

    def monotonic(self) -> float:
        """The seconds by which ``advance`` has moved the clock."""
        return self._elapsed

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        """Call ``callback`` when ``advance`` has moved the clock by ``delay`` seconds."""
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self._elapsed + max(delay, 0.0), next(self._order), timer))
        return timer

    async def turn(self) -> None:
        """One turn of the event loop; the clock stands still."""
        await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Move the clock by ``seconds``, fire the timers in order, and wait until the tasks that they wake have run."""
        until = self._elapsed + seconds
        await settle()
        while self._timers and self._timers[0][0] <= until:
            due, _, timer = heapq.heappop(self._timers)
            self._elapsed = max(self._elapsed, due)
            if timer.callback is not None:
                timer.callback()
                await settle()
        self._elapsed = until

    def set_back(self, seconds: float) -> None:
        """Turn the wall clock back, as a user or a time server may; timers are not affected."""
        self._start -= round(seconds * 1000)

    def set_forward(self, seconds: float) -> None:
        """Turn the wall clock forward, as when a computer wakes from sleep; timers are not affected."""
        self.set_back(-seconds)


async def settle() -> None:
    """Turn the event loop until all ready tasks have run."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
