"""Jobs whose steps can be undone, for the tests of compensation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from durable_web import Context, Engine, Job, Run, job


def fail(message: str = "out of stock") -> None:
    raise ValueError(message)


def saga(undone: list[str], names: list[str], then: Callable[[Context], Any] | None = None, **options: Any) -> Job:
    """A job whose steps can be undone, and that then fails, or does something else."""

    @job("saga", **options)
    async def run_saga(ctx: Context, _: Any) -> str:
        for name in names:
            await ctx.step(name, str.upper, name, compensate=undone.append)
        if then is None:
            await ctx.step("fail", fail)
        else:
            await then(ctx)
        return "done"

    return run_saga


async def wait_at_breakpoint(ctx: Context) -> None:
    await ctx.breakpoint("stay")


async def statuses(engine: Engine, run: Run) -> dict[str, str]:
    """The status of every compensation of a run."""
    steps = await engine.runs.steps(run.id)
    return {step.name: step.status for step in steps if step.kind == "compensation"}
