"""Jobs that start others under flow control."""

from __future__ import annotations

from typing import Any

from durable_web import (
    Context,
    Job,
    job,
)


def quick(**rules: Any) -> Job:
    @job("quick", **rules)
    async def note(ctx: Context, value: Any) -> Any:
        return value

    return note


def asking(child: Job | str, name: str = "asks") -> Job:
    """A job that waits for a child run for its own input."""

    @job(name)
    async def ask(ctx: Context, value: Any) -> Any:
        return await ctx.run_job("answer", child, value)

    return ask


def starting(child: Job | str) -> Job:
    """A job that starts a run for its own input, and gives back its id."""

    @job("starts")
    async def start(ctx: Context, value: Any) -> str:
        return await ctx.start_job("begin", child, value)

    return start
