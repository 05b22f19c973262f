"""Purging: as many as was said, the oldest first, in small batches, and only while nothing executes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from watching import finish

from durable_web import Context, Trigger, job
from durable_web.testing import MockClock, settle

BATCH = 100  # that an idle engine deletes at a time


@job("echo")
async def echo(ctx: Context, value: int) -> int:
    return value


def moment(clock: MockClock) -> datetime:
    return datetime.fromtimestamp(clock.now() / 1000, UTC)


async def test_no_more_are_purged_than_was_said_and_the_oldest_of_them(running):
    clock = MockClock()
    async with running(echo, clock=clock) as engine:
        for number in range(5):
            await finish(engine, await engine.trigger("echo", number))
            await clock.advance(60)
        assert await engine.runs.purge(moment(clock), limit=2) == 2
        assert [run.input for run in await engine.runs.list(order="oldest")] == [2, 3, 4]
        assert await engine.runs.purge(moment(clock) - timedelta(seconds=110)) == 2
        assert [run.input for run in await engine.runs.list()] == [4]


async def test_a_run_that_has_not_ended_is_never_purged(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("wait")
    async def wait(ctx: Context, _: None) -> None:
        await gate.wait()

    async with running(wait, clock=clock, retain_runs="1h", max_concurrent_runs=1) as engine:
        runs = [await engine.trigger("wait") for _ in range(2)]
        await clock.advance(7200)
        assert await engine.runs.purge(moment(clock)) == 0
        gate.set()
        assert [(await finish(engine, run)).status for run in runs] == ["completed"] * 2


async def test_an_idle_engine_purges_batch_after_batch_without_waiting_between_them(running):
    clock = MockClock()
    async with running(echo, clock=clock, retain_runs=timedelta(hours=1)) as engine:
        runs = await engine.trigger_many(Trigger("echo", number) for number in range(2 * BATCH + 50))
        for run in runs:
            await finish(engine, run)
        transactions = []
        engine.on("run:delete", lambda event: transactions.append(engine.internals.store.database.changes))
        await clock.advance(3600 - 60)
        assert len(await engine.runs.list(limit=1000)) == len(runs)
        await clock.advance(180)
        assert await engine.runs.list() == []
    assert len(set(transactions)) == 3  # events are told after each commit


async def test_nothing_is_purged_while_a_run_executes(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("wait")
    async def wait(ctx: Context, _: None) -> None:
        await gate.wait()

    async with running(echo, wait, clock=clock, retain_runs="1h") as engine:
        old = await finish(engine, await engine.trigger("echo", 1))
        await settle()
        await engine.trigger("wait")
        await clock.advance(2 * 3600)
        assert (await engine.runs.get(old.id)).is_terminal
        gate.set()
        await settle()
        await clock.advance(120)
        assert [run.job for run in await engine.runs.list()] == ["wait"]
