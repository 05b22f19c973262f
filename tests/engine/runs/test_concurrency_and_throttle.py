"""Flow control: how many runs of a group execute, or begin, at a time."""

from __future__ import annotations

import asyncio

from limited_jobs import gated, parked_job, quick, starts, statuses
from watching import cpython_only, finish

from durable_web import (
    Concurrency,
    Context,
    RunStatus,
    Throttle,
    Trigger,
    job,
)
from durable_web.testing import MockClock, crash, settle

# --- concurrency -----------------------------------------------------------------------------------------------------


async def test_no_more_runs_of_a_group_execute_than_its_limit_and_groups_do_not_disturb_each_other(running):
    wait, gates = gated(concurrency=Concurrency(limit=2, key="user.id"))
    async with running(wait) as engine:
        inputs = [{"n": n, "user": {"id": user}} for n, user in enumerate("aaabbb")]
        runs = await engine.trigger_many([Trigger(wait, value) for value in inputs])
        assert await statuses(engine) == ["running", "running", "pending"] * 2
        gates[4].set()
        assert await statuses(engine) == ["running", "running", "pending", "running", "completed", "running"]
        for n in range(6):
            gates.setdefault(n, asyncio.Event()).set()
        assert [(await finish(engine, run)).output for run in runs] == list(range(6))


async def test_a_parked_run_holds_no_slot_and_takes_one_again_to_go_on(running):
    clock = MockClock()
    park = parked_job(concurrency=Concurrency(limit=1))
    async with running(park, clock=clock) as engine:
        await engine.trigger_many([Trigger(park, n) for n in range(3)])
        assert await statuses(engine) == ["waiting"] * 3
        wait = await engine.runs.list(order="oldest")
        await clock.advance(101)
        assert await statuses(engine) == ["completed"] * 3
        assert len(wait) == 3


async def test_a_run_that_wakes_waits_until_a_slot_is_free(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("mixed", concurrency=Concurrency(limit=1))
    async def mixed(ctx: Context, kind: str) -> str:
        if kind == "park":
            await parked_job().function(ctx, None)
        else:
            await ctx.step("hold", gate.wait)
        return kind

    async with running(mixed, clock=clock) as engine:
        await engine.trigger_many([Trigger(mixed, "park"), Trigger(mixed, "hold")])
        assert await statuses(engine) == ["waiting", "running"]
        await clock.advance(101)
        assert await statuses(engine) == ["pending", "running"]
        gate.set()
        assert await statuses(engine) == ["completed", "completed"]


async def test_a_free_slot_goes_to_the_run_of_the_highest_priority_then_to_the_oldest(running):
    order = []

    @job("ordered", concurrency=Concurrency(limit=1))
    async def ordered(ctx: Context, name: str) -> None:
        order.append(name)
        await ctx.step("let others have a turn", asyncio.sleep, 0)

    async with running(ordered) as engine:
        wanted = [("a", 0), ("b", 0), ("c", 5), ("d", 5)]
        runs = await engine.trigger_many([Trigger(ordered, name, priority=priority) for name, priority in wanted])
        for run in runs:
            await finish(engine, run)
    assert order == ["c", "d", "a", "b"]


async def test_a_slot_is_free_again_when_its_run_fails_is_cancelled_or_its_engine_dies(running):
    wait, gates = gated(concurrency=Concurrency(limit=1))
    async with running(wait) as engine:
        runs = await engine.trigger_many([Trigger(wait, {"n": n}) for n in range(3)])
        assert await statuses(engine) == ["running", "pending", "pending"]
        await engine.runs.cancel(runs[0].id)
        assert await statuses(engine) == ["cancelled", "running", "pending"]
        await crash(engine)
    gates.clear()
    async with running(wait) as engine:
        assert await statuses(engine) == ["cancelled", "running", "pending"]
        await engine.runs.retry(runs[0].id)
        assert (await statuses(engine)).count("running") == 1
        for n in range(3):
            gates.setdefault(n, asyncio.Event()).set()
        assert await statuses(engine) == ["completed"] * 3


@cpython_only("OPFS has one engine per file")
async def test_two_engines_on_one_file_keep_to_one_limit(running):
    clock = MockClock()
    executing = most = 0

    @job("shared", concurrency=Concurrency(limit=3))
    async def shared(ctx: Context, _: object) -> None:
        nonlocal executing, most
        executing += 1
        most = max(most, executing)
        for turn in range(10):
            await ctx.step(f"turn {turn}", asyncio.sleep, 0)
        executing -= 1

    async with (
        running(shared, clock=clock, exclusive=False) as first,
        running(shared, clock=clock, exclusive=False) as second,
    ):
        for engine in (first, second):
            await engine.trigger_many([Trigger(shared, n) for n in range(15)])
        await clock.advance(20)
        assert await statuses(first) == ["completed"] * 30
    assert most == 3


# --- throttle --------------------------------------------------------------------------------------------------------


async def test_no_more_runs_of_a_group_begin_within_a_period_than_its_limit(running):
    clock = MockClock()
    note = quick(throttle=Throttle(2, "10s", key=lambda value: value % 2))
    async with running(note, clock=clock) as engine:
        await engine.trigger_many([Trigger(note, n * 2) for n in range(5)])
        await engine.trigger(note, 1)
        await settle()
        assert await starts(engine) == [0, 0, 0]
        await clock.advance(9.9)
        assert len(await starts(engine)) == 3
        await clock.advance(20)
        assert await starts(engine) == [0, 0, 0, 10, 10, 20]


async def test_a_throttle_counts_real_starts_so_that_a_restart_does_not_let_all_begin_at_once(running):
    clock = MockClock()
    note = quick(throttle=Throttle(1, 10))
    async with running(note, clock=clock) as engine:
        await engine.trigger_many([Trigger(note, n) for n in range(4)])
        await settle()
        await crash(engine)
    await clock.advance(1000)
    async with running(note, clock=clock) as engine:
        await clock.advance(25)
        assert await starts(engine) == [0, 1000, 1010, 1020]


async def test_a_run_that_is_retried_by_hand_starts_anew_and_counts_even_in_the_same_moment(running):
    clock = MockClock()
    wait, gates = gated(throttle=Throttle(2, 10))
    async with running(wait, clock=clock) as engine:
        run = await engine.trigger(wait, {"n": 1})
        for _ in range(2):
            await settle()
            await engine.runs.cancel(run.id)
            await engine.runs.retry(run.id)
        assert await statuses(engine) == ["pending"]
        await clock.advance(10)
        assert await statuses(engine) == ["running"]
        gates[1].set()
        await settle()


async def test_a_run_that_goes_on_after_a_wait_is_no_start(running):
    clock = MockClock()
    park = parked_job(throttle=Throttle(1, "1h"))
    async with running(park, clock=clock) as engine:
        run = await engine.trigger(park, 1)
        await clock.advance(101)
        assert (await engine.runs.get(run.id)).status == RunStatus.COMPLETED


async def test_a_throttle_counts_starts_however_long_the_runs_take(running):
    clock = MockClock()
    wait, gates = gated(throttle=Throttle(1, 10))
    async with running(wait, clock=clock) as engine:
        await engine.trigger_many([Trigger(wait, {"n": n}) for n in range(3)])
        await clock.advance(15)
        assert await statuses(engine) == ["running", "running", "pending"]
        await clock.advance(5)
        assert await starts(engine) == [0, 10, 20]
        for n in range(3):
            gates[n].set()
        await settle()


async def test_a_run_that_leaves_a_throttled_queue_makes_room_for_the_next(running):
    clock = MockClock()
    note = quick(throttle=Throttle(1, 10))
    async with running(note, clock=clock) as engine:
        runs = await engine.trigger_many([Trigger(note, n) for n in range(4)])
        await settle()
        await engine.runs.cancel(runs[1].id)
        await clock.advance(25)
        assert await starts(engine) == [0, 10, 20]


@cpython_only("OPFS has one engine per file")
async def test_two_engines_on_one_file_keep_to_one_throttle(running):
    clock = MockClock()
    note = quick(throttle=Throttle(2, 10))
    async with (
        running(note, clock=clock, exclusive=False) as first,
        running(note, clock=clock, exclusive=False) as second,
    ):
        for engine in (first, second):
            await engine.trigger_many([Trigger(note, n) for n in range(4)])
        await clock.advance(45)
        began = await starts(first)
    assert len(began) == 8
    assert all(later - earlier >= 10 for earlier, later in zip(began, began[2:], strict=False))


async def test_no_more_begin_than_the_throttle_allows_when_the_clock_goes_back(running):
    clock = MockClock()
    note = quick(throttle=Throttle(1, 10))
    async with running(note, clock=clock) as engine:
        await engine.trigger_many([Trigger(note, n) for n in range(2)])
        await settle()
        clock.set_back(5)
        await clock.advance(14)
        assert len(await starts(engine)) == 1
        await clock.advance(1)
        assert len(await starts(engine)) == 2


async def test_a_throttle_and_a_concurrency_hold_together_whatever_closes_first(running):
    clock = MockClock()
    wait, gates = gated(throttle=Throttle(2, 10), concurrency=Concurrency(limit=1))
    async with running(wait, clock=clock) as engine:
        await engine.trigger_many([Trigger(wait, {"n": n}) for n in range(4)])
        assert (await statuses(engine)).count("running") == 1
        gates[0].set()
        assert await statuses(engine) == ["completed", "running", "pending", "pending"]
        gates[1].set()
        assert await statuses(engine) == ["completed", "completed", "pending", "pending"]
        await clock.advance(10)
        assert await statuses(engine) == ["completed", "completed", "running", "pending"]
        await clock.advance(30)
        gates[2].set()
        assert await statuses(engine) == ["completed", "completed", "completed", "running"]
        gates[3].set()
        await settle()


async def test_groups_that_share_a_slot_do_not_block_each_other_at_their_throttles(running):
    clock = MockClock()
    note = quick(throttle=Throttle(2, 100, key="user"), concurrency=Concurrency(limit=1))
    async with running(note, clock=clock) as engine:
        runs = await engine.trigger_many([Trigger(note, {"user": user}) for user in "aaab"])
        await settle()
        done = [run.status == RunStatus.COMPLETED for run in [await engine.runs.get(each.id) for each in runs]]
        assert done == [True, True, False, True]
