"""Jobs that wait for signals."""

from __future__ import annotations

from durable_web import Context, SignalTimeout, job


@job("one")
async def one(ctx: Context, timeout: float | None) -> str:
    try:
        return await ctx.wait_for_signal("go", timeout=timeout)
    except SignalTimeout as late:
        return f"{type(late).__name__} of {late.name}"


@job("several")
async def several(ctx: Context, count: int) -> list:
    return [await ctx.wait_for_signal("go") for _ in range(count)]


@job("later")
async def later(ctx: Context, _: None) -> list:
    """Begins to wait when signals have come already."""
    await ctx.sleep("nap", 100)
    return [await ctx.wait_for_signal("go"), await ctx.wait_for_signal("go")]
