"""Child runs beyond a rate limit begin when there is room."""

from __future__ import annotations

import pytest
from flow_families import asking, quick, starting
from watching import finish

from durable_web import (
    Context,
    RateLimit,
    RateLimited,
    RunStatus,
    Singleton,
    Throttle,
    job,
)
from durable_web._identifiers import derive
from durable_web.testing import MockClock, settle

# --- rate limit ------------------------------------------------------------------------------------------------------


async def test_children_beyond_the_rate_limit_begin_when_there_is_room_and_none_is_lost(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(2, "10s"))

    @job("maps")
    async def maps(ctx: Context, count: int) -> list[int]:
        return await ctx.map("each", note, range(count))

    async with running(maps, note, clock=clock) as engine:
        run = await engine.trigger(maps, 5)
        counts = []
        for _ in range(3):
            await settle()
            counts.append(len(await engine.runs.list(job="quick", status="completed")))
            await clock.advance(10)
        assert (await finish(engine, run)).output == [0, 1, 2, 3, 4]
    assert counts == [2, 4, 5]


async def test_a_child_that_waits_for_room_takes_it_before_a_trigger_from_outside(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(1, "10s"))
    asks = asking(note)
    async with running(asks, note, clock=clock) as engine:
        await engine.trigger(note, "first")
        run = await engine.trigger(asks, "second")
        await settle()
        with pytest.raises(RateLimited) as refused:
            await engine.trigger(note, "third")
        assert refused.value.retry_after == 20
        await clock.advance(10)
        assert (await finish(engine, run)).output == "second"
        with pytest.raises(RateLimited) as refused:
            await engine.trigger(note, "third")
        assert refused.value.retry_after == 10
        await clock.advance(10)
        await engine.trigger(note, "third")


async def test_a_run_that_is_started_beyond_the_rate_limit_says_when_it_begins(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(1, "10s", key="user"))
    starts = starting(note)
    async with running(starts, note, clock=clock) as engine:
        ids = [(await finish(engine, await engine.trigger(starts, {"user": user}))).output for user in "aab"]
        await settle()
        runs = [await engine.runs.get(run_id) for run_id in ids]
        assert [run.status for run in runs] == ["completed", "pending", "completed"]
        assert runs[1].run_at.timestamp() * 1000 == clock.now() + 10_000
        await clock.advance(10)
        assert (await engine.runs.get(ids[1])).status == RunStatus.COMPLETED


async def test_a_child_that_waits_for_room_is_cancelled_with_its_parent(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(1, "10s"))
    asks = asking(note)
    async with running(asks, note, clock=clock) as engine:
        await engine.trigger(note)
        run = await engine.trigger(asks, 1)
        await settle()
        await engine.runs.cancel(run.id)
        await clock.advance(60)
        assert (await engine.runs.get(derive(run.id, "answer"))).status == RunStatus.CANCELLED


async def test_a_child_waits_for_room_and_for_its_throttle(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(2, "10s"), throttle=Throttle(1, "8s"))

    @job("maps")
    async def maps(ctx: Context, count: int) -> list[int]:
        return await ctx.map("each", note, range(count))

    async with running(maps, note, clock=clock) as engine:
        start = clock.now()
        run = await engine.trigger(maps, 4)
        await clock.advance(60)
        assert (await finish(engine, run)).output == [0, 1, 2, 3]
        began = [child.started_at.timestamp() * 1000 - start for child in await engine.runs.list(job="quick")]
    assert sorted(began) == [0, 8000, 16000, 24000]


async def test_a_run_that_goes_on_as_a_fresh_one_is_not_made_anew_for_the_rate_limit(running):
    @job("count-down", rate_limit=RateLimit(1, "1h"))
    async def count_down(ctx: Context, number: int) -> str:
        if number:
            ctx.continue_as_new(number - 1)
        return "lift-off"

    async with running(count_down, clock=MockClock()) as engine:
        assert (await engine.trigger_and_wait(count_down, 3)).output == "lift-off"
        with pytest.raises(RateLimited):
            await engine.trigger(count_down, 0)


async def test_a_run_that_goes_on_as_a_fresh_one_keeps_its_turn(running):
    ended: list[str] = []

    @job("count-down", singleton=Singleton(mode="queue"))
    async def count_down(ctx: Context, value: list) -> None:
        who, number = value
        ended.append(f"{who} {number}")
        if number:
            ctx.continue_as_new([who, number - 1])

    async with running(count_down) as engine:
        runs = [await engine.trigger(count_down, [who, 1]) for who in "ab"]
        for run in runs:
            await engine.runs.wait(run.id)
    assert ended == ["a 1", "a 0", "b 1", "b 0"]
