"""Dying at every commit: a scenario is played again and again, and each time its engine dies at another commit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from durable_web import Engine, Job
from durable_web.testing import CrashPoint, crash_at

Play = Callable[[Engine, str], Awaitable[Any]]
Check = Callable[[Engine, str, Any], Awaitable[None]]
LIVES = 3  # of which the last one lasts
PATIENCE_SECONDS = 20


async def survive_every_death(
    running: Callable[..., Any], jobs: list[Job], play: Play, check: Check, **options: Any
) -> None:
    """Play with engines that die before, then after, their first commit, their second ... until none is left.

    ``play(engine, key)`` triggers with the idempotency key, and waits for what is to be seen; it is called again by the
    next engine. After a death at its ``n``-th commit, the next engine dies at its ``n``-th too, and the last one lives;
    ``check(engine, key, played)`` looks at what has become of it. Commits that change nothing are not counted.
    """
    for when in ("before", "after"):
        for number in itertools.count(1):
            key = f"{when} {number}"
            deaths = [await _live(running, jobs, play, key, when, number, options) for _ in range(LIVES - 1)]
            async with running(*jobs, max_recoveries=LIVES, **options) as engine:
                await check(engine, key, await asyncio.wait_for(play(engine, key), PATIENCE_SECONDS))
            if not any(deaths):
                break
        assert number > 1, "no engine ever died"


async def _live(
    running: Callable[..., Any], jobs: list[Job], play: Play, key: str, when: str, number: int, options: dict[str, Any]
) -> bool:
    """Let an engine play until it dies; whether it did."""
    async with running(*jobs, max_recoveries=LIVES, **options) as engine:
        point = crash_at(engine, **{when: number})
        playing, dead = asyncio.ensure_future(play(engine, key)), asyncio.ensure_future(_death(point))
        await asyncio.wait([playing, dead], timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        assert playing.done() or dead.done(), f"it hangs, {key}"
        for task in (playing, dead):
            task.cancel()
        await asyncio.wait([playing, dead])
        if point.is_reached:
            await point
        return point.is_reached


async def _death(point: CrashPoint) -> None:
    await point
