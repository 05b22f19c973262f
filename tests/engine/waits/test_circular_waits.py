"""A singleton that would wait for itself is told so, instead of waiting for ever."""

from __future__ import annotations

from typing import Any

import pytest
from flow_families import asking
from watching import finish

from durable_web import (
    ChildFailed,
    Context,
    Job,
    RunStatus,
    Singleton,
    job,
)
from durable_web.testing import settle

# --- circles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["skip", "queue", "cancel_previous"])
@pytest.mark.parametrize("depth", [0, 1])
async def test_a_singleton_that_would_wait_for_itself_is_told_so_instead_of_waiting_for_ever(running, mode, depth):
    @job("sync", singleton=Singleton(mode=mode))
    async def sync(ctx: Context, value: Any) -> Any:
        return await ctx.run_job("again", "between" if depth else sync, value)

    async with running(sync, asking(sync, "between")) as engine:
        run = await finish(engine, await engine.trigger(sync, {}))
        assert [found.id for found in await engine.runs.list(job="sync")] == [run.id]
    assert run.status == RunStatus.FAILED
    assert "CircularWait" in run.error.message


async def test_two_singletons_that_would_follow_each_other_do_not_wait_for_ever(running):
    """Both are active already, and neither is the other's child."""

    def other(name: str, wanted: str) -> Job:
        @job(name, singleton=Singleton())
        async def one(ctx: Context, _: Any) -> str:
            await ctx.breakpoint("stand")
            try:
                return await ctx.run_job("other", wanted)
            except ChildFailed as error:
                return error.error_type

        return one

    async with running(other("left", "right"), other("right", "left")) as engine:
        left, right = await engine.trigger("left"), await engine.trigger("right")
        for run in (left, right):
            await settle()
            await engine.runs.resume(run.id)
        assert (await finish(engine, right)).output == "CircularWait"
        assert (await finish(engine, left)).output == "CircularWait"  # what the right one has returned


async def test_a_replay_is_told_of_a_circle_again_though_there_is_none_any_more(running):
    told: list[str] = []

    @job("sync", singleton=Singleton("group"))
    async def sync(ctx: Context, value: dict) -> str:
        try:
            await ctx.run_job("again", sync, value)
        except ChildFailed as error:
            told.append(error.error_type)
        await ctx.breakpoint("afterwards")
        return "ended"

    async with running(sync, max_parked=0) as engine:
        run = await engine.trigger(sync, {"group": 1})
        await settle()
        await engine.runs.resume(run.id)
        assert (await finish(engine, run)).output == "ended"
    assert told == ["CircularWait"] * 2


async def test_a_singleton_may_start_its_next_run_itself_when_it_does_not_wait_for_it(running):
    @job("sync", singleton=Singleton(mode="queue"))
    async def sync(ctx: Context, number: int) -> int:
        if number:
            await ctx.start_job("next", sync, number - 1)
        return number

    async with running(sync) as engine:
        await engine.trigger(sync, 2)
        await settle()
        assert sorted(run.output for run in await engine.runs.list(status="completed")) == [0, 1, 2]
