"""Random bodies with timers around their waits go the same way, whether they stay in memory or are restarted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from timed_runs import LIVES, an_engine
from watching import on_a_desk_only

from durable_web import Context, job
from durable_web.testing import MockClock, restart, settle

UNIT = 20_000
Node = list[Any]  # ["wait"], ["limit", seconds, nodes], ["both", nodes, nodes]


async def play(ctx: Context, nodes: list[Node], place: str, seen: list[str]) -> None:
    """Do what a program says; ``place`` names where in it."""
    for number, (kind, *rest) in enumerate(nodes):
        here = f"{place}.{number}"
        if kind == "wait":
            await ctx.wait_for_signal(here)
            await ctx.step(f"note {here}", str, here)
        elif kind == "both":
            await asyncio.gather(
                *(play(ctx, half, f"{here}{side}", seen) for side, half in zip("lr", rest, strict=True))
            )
        else:
            try:
                async with asyncio.timeout(rest[0]):
                    await play(ctx, rest[1], here, seen)
            except TimeoutError:
                await ctx.step(f"late {here}", str, here)
                seen.append(f"late {here}")
        seen.append(here)


@job("program")
async def program(ctx: Context, nodes: list[Node]) -> list[str]:
    seen: list[str] = []
    await play(ctx, nodes, "", seen)
    return sorted(seen)


def some(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[list[Node]]:
    return st.lists(nodes, min_size=1, max_size=3)


programs = some(
    st.recursive(
        st.just(["wait"]),
        lambda nodes: st.one_of(
            st.tuples(st.just("limit"), st.integers(0, 9), some(nodes)).map(list),
            st.tuples(st.just("both"), some(nodes), some(nodes)).map(list),
        ),
        max_leaves=8,
    )
)


def set_apart(nodes: list[Node], numbers: Iterator[int]) -> list[Node]:
    """Let no two limits be due at the same moment, nor when something happens."""
    return [
        [kind, rest[0] * UNIT + 2 ** next(numbers), set_apart(rest[1], numbers)]
        if kind == "limit"
        else [kind, *(set_apart(half, numbers) for half in rest)]
        for kind, *rest in nodes
    ]


happenings = st.lists(st.one_of(st.integers(1, 6), st.just("signal")), max_size=15)  # units go by, a signal is sent


async def history(nodes: list[Node], happens: list[int | str], life: str) -> dict[str, Any]:
    """What comes of a program: every step and wait with its status, and what the body has seen."""
    clock = MockClock()
    async with an_engine(program, clock=clock, life=life) as e:
        run = await e.trigger(program, set_apart(nodes, itertools.count()))
        for happening in happens:
            await settle()
            if isinstance(happening, int):
                await clock.advance(happening * UNIT)
            elif waiting := [step for step in await e.get_steps(run.id) if step.waiting_for is not None]:
                await e.signal(run.id, min(step.name for step in waiting))
            await settle()
            if life == "restarted":
                await restart(e)
        await settle()
        run = await e.get_run(run.id)
        steps = {step.name: step.status for step in await e.get_steps(run.id)}
        return {"status": run.status, "output": run.output, "steps": steps, "error": run.error}


@patch("durable_web.testing.clock.TURNS", 500)  # to go through all that was called off takes many
@on_a_desk_only("forty programs, thrice each, take minutes there")
@settings(max_examples=40)
@given(nodes=programs, happens=happenings)
def test_a_body_goes_the_same_way_whatever_becomes_of_its_engine(nodes, happens):
    async def check() -> None:
        expected = await history(nodes, happens, "goes on")
        for life in LIVES[1:]:
            assert await history(nodes, happens, life) == expected, life

    asyncio.run(check())
