"""Time, as the engine sees it.

The engine never asks the operating system what time it is: it asks its clock. ``SystemClock`` is the real one;
``durable_web.testing.MockClock`` stands still until a test moves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    """A timer that has been set and may be called off."""

    def cancel(self) -> None:
        """Call the timer off; does nothing when it has fired already."""


class Clock(Protocol):
    """What the engine needs to know of time."""

    def now(self) -> int:
        """Wall-clock time in milliseconds since 1970-01-01 UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> TimerHandle:
        """Call ``callback`` on the running event loop after ``delay`` seconds, at most 24 days."""

    async def turn(self) -> None:
        """Let everything else go first that is ready, messages from outside included."""


class SystemClock:
    """The computer's clock and the event loop's timers."""

    def now(self) -> int:
        """``time.time_ns`` in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """``time.monotonic``, in seconds."""
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> TimerHandle:
        """``call_later`` of the running event loop, in seconds; of a job body's loop, that of the real one."""
        loop = asyncio.get_running_loop()
        return getattr(loop, "real", loop).call_later(delay, callback)

    async def turn(self) -> None:
        """One turn of the event loop."""
        await asyncio.sleep(0)
