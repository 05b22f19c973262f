"""Jobs that start others, for the tests of child runs."""

from __future__ import annotations

from typing import Any

from durable_web import (
    Context,
    Engine,
    Run,
    job,
)
from durable_web._identifiers import derive


@job("double")
async def double(ctx: Context, number: int) -> int:
    return await ctx.step("double", lambda: number * 2)


@job("parent")
async def parent(ctx: Context, number: int) -> int:
    return await ctx.run_job("doubled", double, number)


@job("broken")
async def broken(ctx: Context, _: Any) -> None:
    raise ValueError("out of paper")


@job("endless")
async def endless(ctx: Context, _: Any) -> None:
    await ctx.breakpoint("for ever")


@job("waits-for-endless")
async def waits_for_endless(ctx: Context, _: Any) -> None:
    await ctx.run_job("wait", endless)


async def child_of(engine: Engine, run: Run, step: str = "wait") -> Run:
    return await engine.runs.get(derive(run.id, step))
