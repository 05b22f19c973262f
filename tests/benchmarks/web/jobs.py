"""The jobs that are measured; those of the peers do the same."""

import asyncio
import time

from durable_web import Context, job


async def _absolute(number: int) -> int:
    """Does not suspend."""
    return abs(number)


async def _absolute_later(number: int) -> int:
    """Suspends once."""
    await asyncio.sleep(0)
    return abs(number)


_FUNCTIONS = {"synchronous": abs, "async": _absolute, "suspending": _absolute_later}


@job("steps")
async def steps(ctx: Context, input: dict) -> int:
    """So many small steps, one after the other, of one of ``_FUNCTIONS``."""
    function = _FUNCTIONS[input.get("function", "synchronous")]
    total = 0
    for number in range(input["count"]):
        total += await ctx.step(f"step {number}", function, number)
    return total


@job("replayed")
async def replayed(ctx: Context, input: dict) -> None:
    """Fails after its steps, so that a retry replays all of them."""
    for number in range(input["count"]):
        await ctx.step(f"step {number}", abs, number)
    raise RuntimeError("once more")


@job("replayed in branches")
async def replayed_in_branches(ctx: Context, input: dict) -> None:
    """Like ``replayed``, in 10 branches at a time; each step suspends, so its outcome is delivered at rest."""
    await asyncio.gather(*(_branch(ctx, f"branch {number}", input["count"] // 10) for number in range(10)))
    raise RuntimeError("once more")


async def _branch(ctx: Context, name: str, count: int) -> None:
    for number in range(count):
        await ctx.step(f"{name}, step {number}", _absolute_later, number)


@job("interrupted")
async def interrupted(ctx: Context, input: None) -> None:
    """Waits after its first step until its engine dies, and goes on with the next engine."""
    await ctx.step("before", abs, 0)
    if ctx.attempt == 1:
        await asyncio.Event().wait()
    await ctx.step("after", abs, 0)


@job("paced")
async def paced(ctx: Context, input: dict) -> list[float]:
    """Steps that pause; when each of their commits began, in milliseconds since 1970.

    A pause in the body would be a durable timer, whose frame is sent a moment before that of the step: that would wait.
    """
    from js import performance

    commits: list[float] = []
    is_of_a_step = False  # else the engine has renewed its lease, or a step has begun

    def note(statement: str) -> None:
        nonlocal is_of_a_step
        if statement.startswith("COMMIT"):
            if is_of_a_step:
                commits.append(performance.timeOrigin + performance.now())
            is_of_a_step = False
        elif "durable_steps" in statement and "'completed'" in statement:
            is_of_a_step = True

    await ctx.transaction("listen", lambda connection: connection.set_trace_callback(note))
    for number in range(input["count"]):
        await ctx.step(f"step {number}", asyncio.sleep, input["pause"])
    await ctx.transaction("listen no more", lambda connection: connection.set_trace_callback(None))
    return commits


@job("lines")
async def lines(ctx: Context, input: dict) -> float:
    """Log lines in a tight loop, in one step; the seconds that it took."""
    return await ctx.step("write", _write_lines, ctx, input["count"])


def _write_lines(ctx: Context, count: int) -> float:
    began = time.perf_counter()
    for number in range(count):
        ctx.log.info("a line of the log", number=number)
    return time.perf_counter() - began
