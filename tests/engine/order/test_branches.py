"""Branches of a body that use the same names: each is given its own again, in whatever order they come."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from watching import finish

from durable_web import Context, job
from durable_web.testing import crash, engine, restart, settle


def in_turns(*turns: int) -> Callable[[], Any]:
    """A function that takes so many turns of the event loop when it is called first, second ..."""
    remaining = itertools.chain(turns, itertools.repeat(0))

    async def wait() -> None:
        for _ in range(next(remaining)):
            await asyncio.sleep(0)

    return wait


async def test_branches_that_finish_in_another_order_get_their_own_values_again():
    seen: list[list[Any]] = []
    waits = {"slow": in_turns(40), "quick": in_turns(0, 40)}

    @job("pages")
    async def pages(ctx: Context, _: None) -> list[Any]:
        async def page(name: str) -> list[Any]:
            await ctx.step(f"fetch {name}", waits[name])
            return [await ctx.uuid(), await ctx.step("parse", str.upper, name), await ctx.random()]

        seen.append(await asyncio.gather(page("slow"), page("quick")))
        await ctx.wait_for_signal("go on")
        return seen[-1]

    async with engine(pages) as e:
        run = await e.trigger(pages)
        while not seen:
            await settle()
        await restart(e)
        await e.runs.signal(run.id, "go on")
        assert (await finish(e, run)).output == seen[0]
        steps = {step.name: step.output for step in await e.runs.steps(run.id)}
    assert seen[0] == seen[1]
    assert [parsed for _, parsed, _ in seen[0]] == ["SLOW", "QUICK"]
    assert (steps["parse"], steps["parse#2"]) == ("QUICK", "SLOW")


async def test_the_reference_of_a_step_in_a_branch_is_the_same_before_it_is_recorded():
    references: list[dict[str, str]] = []
    gates = {name: asyncio.Event() for name in "ab"}

    @job("charges")
    async def charges(ctx: Context, _: None) -> None:
        of_this_execution: dict[str, str] = {}
        references.append(of_this_execution)

        async def charge(name: str) -> None:
            of_this_execution[name] = ctx.step_ref
            if ctx.attempt == 1:
                await asyncio.Event().wait()

        async def branch(name: str) -> None:
            await ctx.step(f"prepare {name}", gates[name].wait)
            await ctx.step("charge", charge, name)

        await asyncio.gather(branch("a"), branch("b"))

    async with engine(charges) as e:
        run = await e.trigger(charges)
        for name in "ba":
            await settle()
            gates[name].set()
        await settle()
        await crash(e)
        await restart(e)
        await finish(e, run)
    assert references == [{"b": f"{run.id}/charge", "a": f"{run.id}/charge#2"}] * 2


async def test_children_of_branches_stay_theirs_when_the_run_is_retried():
    fails = True

    @job("child")
    async def child(ctx: Context, name: str) -> list[str]:
        found = await ctx.step("find", lambda: f"data of {name}")
        if fails:
            raise ValueError(name)
        return [name, found]

    @job("parent")
    async def parent(ctx: Context, _: None) -> list[Any]:
        async def branch(name: str, wait: Callable[[], Any]) -> Any:
            await ctx.step(f"begin {name}", wait)
            return await ctx.run_job("child", child, name)

        branches = [branch("slow", in_turns(40)), branch("quick", in_turns(0))]
        outcomes = await asyncio.gather(*branches, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    async with engine(parent, child) as e:
        run = await finish(e, await e.trigger(parent))
        assert run.status == "failed"
        fails = False
        await e.runs.retry(run.id)
        run = await finish(e, run)
        assert run.output == [["slow", "data of slow"], ["quick", "data of quick"]]
        assert len(await e.runs.list(job="child")) == 2


async def test_a_step_that_moves_into_a_branch_or_out_of_one_is_not_called_again():
    called: list[str] = []

    @job("moving")
    async def moving(ctx: Context, _: None) -> list[int]:
        def call(name: str) -> int:
            called.append(name)
            return len(called)

        async def two(name: str) -> list[int]:
            return [await ctx.step(f"{name} 1", call, f"{name} 1"), await ctx.step(f"{name} 2", call, f"{name} 2")]

        if ctx.attempt == 1:
            first = await two("a")
            (second,) = await asyncio.gather(two("b"))
            await ctx.wait_for_signal("go on")
        else:
            (first,) = await asyncio.gather(two("a"))
            second = await two("b")
        return [*first, *second]

    async with engine(moving) as e:
        run = await e.trigger(moving)
        await settle()
        await crash(e)
        await e.start()
        await e.runs.signal(run.id, "go on")
        assert (await finish(e, run)).output == [1, 2, 3, 4]
    assert called == ["a 1", "a 2", "b 1", "b 2"]


async def test_a_fork_has_what_the_branches_have_recorded():
    called: list[str] = []

    @job("pages")
    async def pages(ctx: Context, _: None) -> list[str]:
        async def page(name: str, wait: Callable[[], Any]) -> str:
            await ctx.step(f"fetch {name}", wait)
            return await ctx.step("parse", lambda: called.append(name) or name)

        found = await asyncio.gather(page("slow", in_turns(40)), page("quick", in_turns(0)))
        return [*found, await ctx.step("end", lambda: "end")]

    async with engine(pages) as e:
        run = await finish(e, await e.trigger(pages))
        fork = await finish(e, await e.runs.fork(run.id, "end"))
    assert fork.output == run.output == ["slow", "quick", "end"]
    assert called == ["quick", "slow"]
