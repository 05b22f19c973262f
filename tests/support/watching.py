"""Following runs, in whichever home the tests run."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from durable_web import Context, Engine, Frame, Run, job

IN_PYODIDE = sys.platform == "emscripten"


def cpython_only(why: str) -> pytest.MarkDecorator:
    """Leaves a test out inside Pyodide, and says why."""
    return pytest.mark.skipif(IN_PYODIDE, reason=f"on CPython only: {why}")


async def finish(engine: Engine, run: Run) -> Run:
    """Wait until a run has ended, and return it as it then stands."""
    async for _ in engine.runs.watch(run.id):
        pass
    return await engine.runs.get(run.id)


async def timeline(engine: Engine, run: Run, from_seq: int = 0) -> list[Any]:
    """All frames of a run, to its end."""
    return [frame async for frame in engine.runs.watch(run.id, from_seq)]


async def reach(engine: Engine, run_id: str, status: str) -> Run:
    """Wait until a run stands at a status, and return it."""
    async for frame in engine.runs.watch(run_id):
        if frame.kind == "run_status" and frame.status == status:
            break
    return await engine.runs.get(run_id)


@job("talk")
async def talk(ctx: Context, lines: int) -> None:
    for number in range(lines):
        ctx.log.info(f"line {number}")
        await ctx.step(f"step {number}", lambda: None)


async def take(frames: AsyncIterator[Frame], count: int) -> list[Any]:
    """The next frames of a watch, which is left then."""
    taken = []
    async with aclosing(frames):
        while len(taken) < count:
            taken.append(await anext(frames))
    return taken
