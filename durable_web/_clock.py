"""The engine's clock and timers.

The engine reads the time only from its clock. ``SystemClock`` is the real clock;
``durable_web.testing.MockClock`` stands still until a test moves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    """A timer that has been set and can be cancelled."""

    def cancel(self) -> None:
        """Cancel the timer; does nothing when it has fired already."""


class Clock(Protocol):
    """The interface of the engine's clock."""

    def now(self) -> int:
        """Wall-clock time in milliseconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> TimerHandle:
        """Call ``callback`` on the running event loop after ``delay`` seconds, at most 24 days."""
        ...

    async def turn(self) -> None:
        """Let all other ready tasks run first, including messages from outside."""


class SystemClock:
    """The computer's clock and the event loop's timers."""

    def now(self) -> int:
        """``time.time_ns`` in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """``time.monotonic``, in seconds."""
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> TimerHandle:
        """``call_later`` of the running event loop, in seconds; inside a job body, of the real event loop."""
        loop = asyncio.get_running_loop()
        return getattr(loop, "real", loop).call_later(delay, callback)

    async def turn(self) -> None:
        """One turn of the event loop."""
        await asyncio.sleep(0)
