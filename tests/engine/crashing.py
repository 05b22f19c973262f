"""Dying at every commit: a scenario is played again and again, and each time its engine dies at another commit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from durable_web import Engine, Job, StorageError
from durable_web.testing import crash

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
    async with dying(running(*jobs, max_recoveries=LIVES, **options), when, number) as (engine, died):
        playing = asyncio.ensure_future(play(engine, key))
        await asyncio.wait([playing, died], timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        assert playing.done() or died.done(), f"it hangs, {key}"
        playing.cancel()
        await asyncio.wait([playing])
        return died.done()


@asynccontextmanager
async def dying(running: Any, when: str, number: int) -> AsyncIterator[tuple[Engine, asyncio.Future[None]]]:
    """An engine that dies before or after its commit of that number, and what tells of it."""
    async with running as engine:
        died = asyncio.get_running_loop().create_future()
        _die_at(engine, when, number, died)
        yield engine, died
        if died.done():
            await crash(engine)


def _die_at(engine: Engine, when: str, number: int, died: asyncio.Future[None]) -> None:
    database = engine._store.database
    transaction, commits = database.transaction, itertools.count(1)

    def die() -> None:
        if not died.done():
            died.set_result(None)
        raise StorageError(database.path, "the engine is dead")

    @contextmanager
    def deadly() -> Iterator[None]:
        if died.done():
            die()
        is_last = False
        with transaction():
            before = database.connection.total_changes
            yield
            if database.connection.total_changes > before:
                is_last = next(commits) == number
                if is_last and when == "before":
                    die()
        if is_last:
            die()

    database.transaction = deadly
