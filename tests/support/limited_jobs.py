"""Jobs whose runs a test holds up, for the tests of flow control."""

from __future__ import annotations

import asyncio

from durable_web import (
    Context,
    Retry,
    job,
)
from durable_web.testing import settle


def gated(name: str = "gated", **rules):
    """A job whose runs execute until their gate is opened, and the gates by the input's ``n``."""
    gates: dict[object, asyncio.Event] = {}

    @job(name, **rules)
    async def wait(ctx: Context, value: dict) -> object:
        await ctx.step("wait at the gate", gates.setdefault(value["n"], asyncio.Event()).wait)
        return value["n"]

    return wait, gates


def quick(**rules):
    """A job whose runs end at once, and the times at which they began by the clock."""

    @job("quick", **rules)
    async def note(ctx: Context, value: object) -> object:
        return value

    return note


def parked_job(name: str = "parked", **rules):
    """A job whose runs are parked for a hundred seconds."""

    @job(name, **rules)
    async def park(ctx: Context, value: object) -> object:
        def fail_once() -> None:
            if ctx.attempt == 1:
                raise ValueError

        await ctx.step("wait", fail_once, retry=Retry(max_attempts=2, backoff=100, jitter=0))
        return value

    return park


async def statuses(engine) -> list[str]:
    await settle()
    return [run.status.value for run in await engine.runs.list(order="oldest", limit=1000)]


async def starts(engine) -> list[float]:
    """When runs began, in seconds since the clock was made."""
    runs = await engine.runs.list(order="oldest", limit=1000)
    return sorted(run.started_at.timestamp() - 1_800_000_000 for run in runs if run.started_at)
