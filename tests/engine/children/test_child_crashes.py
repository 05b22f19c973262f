"""Child runs whose engine dies: started once, awaited across everything, heard of once."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from crashing import survive_every_death
from families import broken, child_of, double, endless, parent, waits_for_endless
from watching import cpython_only, finish

from durable_web import (
    ChildFailed,
    Context,
    Engine,
    Retry,
    Run,
    RunStatus,
    StepStatus,
    job,
)
from durable_web._identifiers import derive
from durable_web.testing import MockClock, SimulatedCrash, crash, crash_at, settle

# --- crashes ---------------------------------------------------------------------------------------------------------


async def test_the_start_of_a_child_and_the_record_of_it_are_one_transaction(running, database_path):
    seen: set[bool] = set()
    for when in ("before", "after"):
        for number in range(1, 6):
            async with running(parent, double) as engine:
                point = crash_at(engine, **{when: number})
                with suppress(SimulatedCrash):
                    run = await engine.trigger(parent, 4, idempotency_key=f"{when} {number}")
                await point
            looker = Engine(database_path, exclusive=True)
            await looker.start(claim=False)
            for run in await looker.runs.list(job="parent"):
                is_recorded = any(step.kind == "child" for step in await looker.runs.steps(run.id))
                is_started = any(found.parent_run_id == run.id for found in await looker.runs.list(job="double"))
                assert is_recorded == is_started
                seen.add(is_recorded)
            await looker.stop()
    assert seen == {True, False}


@pytest.mark.parametrize("slots", [1, 10])  # with one the child needs the slot that its parent gives back
async def test_a_parent_that_dies_at_any_commit_has_one_child_and_its_output(running, slots):
    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(parent, 4, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.output) == (RunStatus.COMPLETED, 8)
        assert [step.name for step in await engine.runs.steps(run.id)] == ["doubled"]
        assert (await child_of(engine, run, "doubled")).completed_steps == 1

    await survive_every_death(running, [parent, double], play, check, max_concurrent_runs=slots)


@pytest.mark.parametrize("slots", [1, 10])  # with one the child needs the slot that its parent gives back
async def test_a_parent_that_dies_at_any_commit_hears_of_its_childs_failure(running, slots):
    @job("catches")
    async def catches(ctx: Context, _: None) -> str:
        try:
            await ctx.run_job("print", broken)
        except ChildFailed as error:
            return await ctx.step("note", str, error.error_message)
        return "printed"

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(catches, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.output) == (RunStatus.COMPLETED, "out of paper")

    await survive_every_death(running, [catches, broken], play, check, max_concurrent_runs=slots)


async def test_a_run_that_is_started_and_not_awaited_is_started_once_whenever_its_starter_dies(running):
    @job("starts")
    async def starts(ctx: Context, number: int) -> str:
        return await ctx.start_job("start", double, number)

    async def play(engine: Engine, key: str) -> Run:
        run = await finish(engine, await engine.trigger(starts, 5, idempotency_key=key))
        await engine.runs.wait(run.output)
        return run

    async def check(engine: Engine, key: str, run: Run) -> None:
        started = await engine.runs.get(run.output)
        assert (started.id, started.output) == (derive(run.id, "start"), 10)
        (step,) = await engine.runs.steps(run.id)
        assert (step.kind, step.status, step.output) == ("start", StepStatus.COMPLETED, started.id)

    await survive_every_death(running, [starts, double], play, check)


async def test_a_family_is_cancelled_whole_or_not_at_all_whenever_the_engine_dies(running):
    @job("grandparent")
    async def grandparent(ctx: Context, _: None) -> None:
        await ctx.run_job("wait", waits_for_endless)

    async def play(engine: Engine, key: str) -> list[Run]:
        run = await engine.trigger(grandparent, idempotency_key=key)
        ids = [run.id, child_id := derive(run.id, "wait"), derive(child_id, "wait")]
        if run.is_active:
            for id in ids:
                while (await engine.runs.list(search=id) or [run])[0].status in (RunStatus.PENDING, RunStatus.RUNNING):
                    await asyncio.sleep(0.003)
            await engine.runs.cancel(run.id)
        return [await engine.runs.get(id) for id in ids]

    async def check(engine: Engine, key: str, family: list[Run]) -> None:
        assert [run.status for run in family] == [RunStatus.CANCELLED] * 3

    await survive_every_death(running, [grandparent, waits_for_endless, endless], play, check)


@cpython_only("OPFS has one engine per file")
async def test_a_parent_whose_engine_dies_hears_of_a_child_that_runs_in_another_engine(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("slow")
    async def slow(ctx: Context, _: None) -> str:
        await ctx.step("wait", gate.wait)
        return "done elsewhere"

    @job("asks")
    async def asks(ctx: Context, _: None) -> str:
        return await ctx.run_job("wait", slow)

    async with running(asks, slow, clock=clock, exclusive=False, max_concurrent_runs=10) as other:
        async with running(asks, slow, clock=clock, exclusive=False, max_concurrent_runs=0) as first:
            run = await first.trigger(asks)
            await clock.advance(1)  # the other engine notices it
            assert (
                await first.runs.get(derive(run.id, "wait"))
            ).lease_owner == other.internals.dispatcher.claiming.owner
            assert (await first.runs.get(run.id)).status == RunStatus.WAITING
            await crash(first)
        other.internals.dispatcher.claim(0)
        gate.set()
        await settle()
        async with running(asks, slow, clock=clock, exclusive=False) as second:
            await clock.advance(1)
            run = await finish(second, run)
        assert run.output == "done elsewhere"


@cpython_only("OPFS has one engine per file")
async def test_a_parent_in_one_engine_goes_on_when_its_child_ends_in_another(running):
    clock = MockClock()

    @job("asks")
    async def asks(ctx: Context, number: int) -> int:
        doubled = await ctx.run_job("doubled", "double", number)
        return doubled + 1

    async with running(asks, double, clock=clock, exclusive=False) as first:
        first.internals.dispatcher.claim(1)  # the parent, and nothing more
        run = await first.trigger(asks, 4)
        await clock.advance(0.1)
        assert (await first.runs.get(run.id)).status == RunStatus.WAITING
        first.internals.dispatcher.claim(0)
        async with running(asks, double, clock=clock, exclusive=False) as second:
            second.internals.dispatcher.claim(1)
            await clock.advance(0.1)
            assert (await second.runs.get(derive(run.id, "doubled"))).status == RunStatus.COMPLETED
            first.internals.dispatcher.claim()
            await clock.advance(2)
            assert (await finish(first, run)).output == 9


@cpython_only("OPFS has one engine per file")
async def test_a_child_that_ends_in_another_engine_just_before_its_parent_is_parked_is_not_missed(running):
    clock = MockClock()  # stands still: neither engine looks for what the other one has done
    gate = asyncio.Event()

    async def fail_at_the_gate() -> None:
        await gate.wait()
        raise ConnectionError

    @job("asks")
    async def asks(ctx: Context, number: int) -> int:
        retry = Retry(max_attempts=2, backoff=100)
        holding = asyncio.create_task(ctx.step("keep the slot until the gate opens", fail_at_the_gate, retry=retry))
        doubled: int = await ctx.run_job("doubled", double, number)
        holding.cancel()
        return doubled

    options = {"clock": clock, "exclusive": False}
    async with running(asks, double, **options) as first, running(asks, double, **options) as second:
        first.internals.dispatcher.claim(1)
        second.internals.dispatcher.claim(0)
        run = await first.trigger(asks, 4)
        await settle()
        second.internals.dispatcher.claim(1)
        await settle()
        assert (await first.runs.get(derive(run.id, "doubled"))).status == RunStatus.COMPLETED
        assert (await first.runs.get(run.id)).status == RunStatus.RUNNING
        gate.set()
        await settle()
        frames = [frame.to_frame() for frame in first.internals.store.read_frames(run.id, 0, 100)]
    assert [frame.status for frame in frames if frame.kind == "run_status"] == ["pending", "running", "completed"]
