"""Runs that wait for hours on a clock that is moved, and engines in which they stay in memory, or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from durable_web import Context, Engine, Job, Retry, Run, RunStatus, job
from durable_web.testing import MockClock, engine, restart, settle

HOUR = 3600
SELDOM = {"lease": 1e9}
LIVES = ("goes on", "restarted", "evicted")


async def stay(e: Engine, life: str) -> None:
    """Let what is at rest stay in memory, or not."""
    if life == "restarted":
        await restart(e)
    await settle()


def an_engine(*jobs: Job, clock: MockClock, life: str = "goes on") -> Any:
    """An engine that keeps what is parked in memory, or not; its heart beats seldom, for hours go by."""
    return engine(*jobs, clock=clock, max_parked=0 if life == "evicted" else 100, **SELDOM)


async def parked(e: Engine, run: Run) -> Run:
    """The run, once it is at rest, and waits."""
    await settle()
    run = await e.runs.get(run.id)
    assert run.status == RunStatus.WAITING, (run.status, run.error)
    return run


async def ended(e: Engine, run: Run) -> Run:
    """The run, once it is at its end."""
    await settle()
    run = await e.runs.get(run.id)
    assert run.status.is_terminal, run.waiting_reason
    return run


@job("child")
async def child(ctx: Context, number: int) -> int:
    await ctx.sleep("nap", 100 * HOUR)
    return number


async def hook(ctx: Context) -> Any:
    return await (await ctx.webhook("hook")).wait()


WAITS: dict[str, Callable[[Context], Awaitable[Any]]] = {
    "sleep": lambda ctx: ctx.sleep("nap", 100 * HOUR),
    "signal": lambda ctx: ctx.wait_for_signal("go"),
    "signal in time": lambda ctx: ctx.wait_for_signal("go", timeout=100 * HOUR),
    "event": lambda ctx: ctx.wait_for_event("news"),
    "webhook": hook,
    "update": lambda ctx: ctx.on_update("change"),
    "breakpoint": lambda ctx: ctx.breakpoint("here"),
    "child": lambda ctx: ctx.run_job("child", child, 1),
    "map": lambda ctx: ctx.map("children", child, [1, 2, 3], max_concurrent=2),
    "attempt": lambda ctx: ctx.step("flaky", fail, retry=Retry(backoff=100 * HOUR, max_delay=100 * HOUR)),
}


def fail() -> None:
    raise ConnectionError("away")


@job("limited")
async def limited(ctx: Context, kind: str) -> str:
    try:
        async with asyncio.timeout(HOUR):
            await WAITS[kind](ctx)
    except TimeoutError:
        return await ctx.step("note", lambda: "too late")
    return "in time"


async def by_timeout(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(HOUR):
            return await waiting
    except TimeoutError:
        return "too late"
