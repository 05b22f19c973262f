"""Timers of asyncio around durable waits: they are due when they first were, whatever becomes of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from crashing import survive_every_death
from timed_runs import HOUR, LIVES, SELDOM, WAITS, an_engine, by_timeout, child, ended, limited, parked, stay

from durable_web import Context, Engine, Run, job
from durable_web.testing import MockClock, crash, restart

# --- every wait ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("kind", WAITS)
async def test_a_timeout_around_a_wait_is_due_when_it_first_was(clock, kind, life):
    async with an_engine(limited, child, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(limited, kind))
        for _ in range(3):
            await clock.advance(0.3 * HOUR)
            await stay(e, life)
            await parked(e, run)
        await clock.advance(0.1 * HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == "too late"
        assert {made.status for made in await e.runs.list(job="child")} <= {"cancelled"}


@pytest.mark.parametrize("kind", WAITS)
async def test_a_timeout_that_was_due_while_no_engine_was_there_fires_at_once(clock, kind):
    async with an_engine(limited, child, clock=clock) as e:
        run = await parked(e, await e.trigger(limited, kind))
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        assert (await ended(e, run)).output == "too late"


@pytest.mark.parametrize("life", LIVES)
async def test_what_comes_in_time_comes_in_time(clock, life):
    async with an_engine(limited, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(limited, "signal"))
        await clock.advance(0.9 * HOUR)
        await stay(e, life)
        await e.runs.signal(run.id, "go")
        assert (await ended(e, run)).output == "in time"


async def test_what_came_in_time_counts_though_the_run_goes_on_only_when_that_is_over(clock):
    async with an_engine(limited, clock=clock) as e:
        run = await parked(e, await e.trigger(limited, "signal"))
        await e.runs.pause(run.id)
        await e.runs.signal(run.id, "go")
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        await e.runs.resume(run.id)
        assert (await ended(e, run)).output == "in time"


@pytest.mark.parametrize("kind", ["signal", "child", "attempt"])
async def test_a_timeout_survives_death_at_any_moment(running, kind):
    clock = MockClock()

    async def play(e: Engine, key: str) -> Run:
        run = await e.trigger(limited, kind, idempotency_key=key)
        while run.is_active:
            await clock.advance(600)
            run = await e.runs.get(run.id)
        return run

    async def check(e: Engine, key: str, run: Run) -> None:
        assert run.output == "too late"
        statuses = [frame async for frame in e.runs.watch(run.id) if frame.kind == "run_status"]
        waiting = next(frame.ts for frame in statuses if frame.status == "waiting")
        assert abs(run.completed_at - waiting - timedelta(hours=1)) < timedelta(seconds=1)

    await survive_every_death(running, [limited, child], play, check, clock=clock, **SELDOM)


# --- every timer -----------------------------------------------------------------------------------------------------


async def by_timeout_at(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + HOUR):
            return await waiting
    except TimeoutError:
        return "too late"


async def by_wait_for(waiting: Awaitable[Any]) -> str:
    try:
        return await asyncio.wait_for(waiting, HOUR)
    except TimeoutError:
        return "too late"


async def by_wait(waiting: Awaitable[Any]) -> str:
    task = asyncio.ensure_future(waiting)
    done, _ = await asyncio.wait([task], timeout=HOUR)
    task.cancel()
    return task.result() if done else "too late"


async def by_a_sleep_beside_it(waiting: Awaitable[Any]) -> str:
    task, sleep = asyncio.ensure_future(waiting), asyncio.ensure_future(asyncio.sleep(HOUR, "too late"))
    done, pending = await asyncio.wait([task, sleep], return_when=asyncio.FIRST_COMPLETED)
    for other in pending:
        other.cancel()
    return done.pop().result()


async def by_a_sleep_meanwhile(waiting: Awaitable[Any]) -> str:
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(HOUR)
    task.cancel()
    return "too late"


async def in_a_task_group(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(HOUR), asyncio.TaskGroup() as group:
            task = group.create_task(waiting)
    except TimeoutError:
        return "too late"
    return task.result()


async def in_gather(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(HOUR):
            return (await asyncio.gather(waiting, asyncio.sleep(0)))[0]
    except TimeoutError:
        return "too late"


async def in_a_task_of_a_task(waiting: Awaitable[Any]) -> str:
    async def inner() -> str:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(by_timeout(waiting))
        return task.result()

    return await asyncio.create_task(inner())


async def shielded(waiting: Awaitable[Any]) -> str:
    task = asyncio.ensure_future(waiting)
    try:
        async with asyncio.timeout(HOUR):
            return await asyncio.shield(task)
    except TimeoutError:
        task.cancel()
        return "too late"


@asynccontextmanager
async def an_hour() -> AsyncIterator[None]:
    async with asyncio.timeout(HOUR):
        yield


async def by_a_context_manager(waiting: Awaitable[Any]) -> str:
    try:
        async with an_hour():
            return await waiting
    except TimeoutError:
        return "too late"


async def by_an_exit_stack(waiting: Awaitable[Any]) -> str:
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(asyncio.timeout(HOUR))
            return await waiting
    except TimeoutError:
        return "too late"


async def in_an_asynchronous_generator(waiting: Awaitable[Any]) -> str:
    async def results() -> AsyncIterator[Any]:
        yield await by_timeout(waiting)

    async for result in results():
        return result
    return "never"


TIMERS = [
    by_timeout,
    by_timeout_at,
    by_wait_for,
    by_wait,
    by_a_sleep_beside_it,
    by_a_sleep_meanwhile,
    in_a_task_group,
    in_gather,
    in_a_task_of_a_task,
    shielded,
    by_a_context_manager,
    by_an_exit_stack,
    in_an_asynchronous_generator,
]


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("limit", TIMERS, ids=lambda limit: limit.__name__)
async def test_every_timer_of_asyncio_is_due_when_it_first_was(clock, limit, life):
    @job("timed")
    async def timed(ctx: Context, _: None) -> str:
        return await limit(ctx.wait_for_signal("go"))

    async with an_engine(timed, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(timed))
        for _ in range(3):
            await clock.advance(0.3 * HOUR)
            await stay(e, life)
            await parked(e, run)
        await clock.advance(0.1 * HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == "too late"
