"""Child runs are cancelled with the run that waits for them, and go on when that is retried."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from families import broken, child_of, double, endless, waits_for_endless
from watching import finish, reach

from durable_web import (
    ChildFailed,
    Context,
    RunStatus,
    StepStatus,
    job,
)
from durable_web._identifiers import derive
from durable_web.testing import MockClock, settle

# --- cancelling ------------------------------------------------------------------------------------------------------


async def test_cancelling_a_run_cancels_its_children_and_theirs_awaited_or_not(running):
    @job("grandparent")
    async def grandparent(ctx: Context, _: None) -> None:
        await ctx.start_job("aside", waits_for_endless)
        await ctx.run_job("wait", waits_for_endless)

    async with running(grandparent, waits_for_endless, endless) as engine:
        run = await engine.trigger(grandparent)
        children = [derive(run.id, "wait"), derive(run.id, "aside")]
        ids = [run.id, *children, *(derive(child, "wait") for child in children)]
        for id in ids:
            while id not in [found.id for found in await engine.runs.list(status="waiting")]:
                await asyncio.sleep(0.003)
        await engine.runs.cancel(run.id)
        statuses = [(await engine.runs.get(id)).status for id in ids]
    assert statuses == [RunStatus.CANCELLED] * 5


async def test_a_child_in_the_middle_of_a_step_is_told_that_its_parent_was_cancelled(running):
    begun, told = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    @job("works")
    async def works(ctx: Context, _: None) -> None:
        await ctx.step("work", work)

    @job("waits")
    async def waits(ctx: Context, _: None) -> None:
        await ctx.run_job("wait", works)

    async with running(waits, works) as engine:
        run = await engine.trigger(waits)
        await begun.wait()
        await engine.runs.cancel(run.id)
        await asyncio.wait_for(told.wait(), 5)
        assert (await child_of(engine, run)).status == RunStatus.CANCELLED


@pytest.mark.parametrize("how", ["timeout", "task"])
async def test_a_child_that_is_no_longer_awaited_is_cancelled(running, how):
    @job("gives-up")
    async def gives_up(ctx: Context, _: None) -> str:
        waiting = asyncio.ensure_future(ctx.run_job("wait", endless))
        if how == "timeout":
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await waiting
        else:
            await ctx.run_job("doubled", double, 1)
            waiting.cancel()
            await asyncio.wait([waiting])
        return await ctx.step("go on", lambda: "went on")

    async with running(gives_up, endless, double) as engine:
        run = await finish(engine, await engine.trigger(gives_up))
        child = await child_of(engine, run)
        steps = {step.name: step.status for step in await engine.runs.steps(run.id)}
    assert run.output == "went on"
    assert child.status == RunStatus.CANCELLED
    assert steps["wait"] == StepStatus.CANCELLED


async def test_a_child_that_is_called_off_while_it_is_being_started_does_not_go_on(running):
    @job("changes-its-mind")
    async def changes_its_mind(ctx: Context, _: None) -> str:
        waiting = asyncio.ensure_future(ctx.run_job("wait", endless))
        await asyncio.sleep(0)  # its start is on its way into the next commit
        waiting.cancel()
        await asyncio.wait([waiting])
        return await ctx.step("go on", lambda: "went on")

    async with running(changes_its_mind, endless) as engine:
        run = await finish(engine, await engine.trigger(changes_its_mind))
        children = [found for found in await engine.runs.list() if found.id != run.id]
    assert run.output == "went on"
    assert [child.status for child in children] in ([], [RunStatus.CANCELLED])


async def test_a_run_that_fails_cancels_the_children_it_waits_for_and_no_others(running):
    @job("fails")
    async def fails(ctx: Context, _: None) -> None:
        aside = await ctx.start_job("aside", endless)
        assert aside
        await asyncio.gather(ctx.run_job("wait", endless), ctx.run_job("print", broken))

    async with running(fails, endless, broken) as engine:
        run = await finish(engine, await engine.trigger(fails))
        awaited, aside = await child_of(engine, run), await child_of(engine, run, "aside")
    assert run.status == RunStatus.FAILED
    assert (awaited.status, aside.is_active) == (RunStatus.CANCELLED, True)


async def test_a_run_that_completes_without_its_child_leaves_none_behind(running):
    @job("hurries")
    async def hurries(ctx: Context, _: None) -> str:
        waiting = asyncio.ensure_future(ctx.run_job("wait", endless))
        await ctx.run_job("doubled", double, 1)
        assert not waiting.done()
        return "done"

    async with running(hurries, endless, double) as engine:
        run = await finish(engine, await engine.trigger(hurries))
        child = await child_of(engine, run)
    assert (run.output, child.status) == ("done", RunStatus.CANCELLED)


async def test_a_run_that_runs_out_of_time_takes_its_child_with_it_also_one_with_the_same_deadline(running):
    clock = MockClock()
    deadline = datetime.fromtimestamp(clock.now() / 1000 + 60, UTC)

    @job("strict")
    async def strict(ctx: Context, _: None) -> None:
        await ctx.run_job("wait", endless, deadline=deadline)

    async with running(strict, endless, clock=clock) as engine:
        run = await engine.trigger(strict, deadline=deadline)
        await clock.advance(61)
        run, child = await engine.runs.get(run.id), await child_of(engine, run)
        frames = [frame.to_frame() for frame in engine.internals.store.read_frames(child.id, 0, 100)]
    assert (run.status, run.error.type) == (RunStatus.FAILED, "DeadlineExceeded")
    ends = [frame.status for frame in frames if frame.kind == "run_status" and frame.status.is_terminal]
    assert ends == [child.status], "it ends once"


# --- going on after an end -------------------------------------------------------------------------------------------


async def test_retrying_the_parent_retries_the_child_which_keeps_its_completed_steps(running):
    calls: list[str] = []

    def first() -> str:
        calls.append("first")
        return "first"

    def second() -> str:
        calls.append("second")
        if len(calls) == 2:
            raise ConnectionError("not today")
        return "second"

    @job("two-steps")
    async def two_steps(ctx: Context, _: None) -> list[str]:
        return [await ctx.step("first", first), await ctx.step("second", second)]

    @job("asks")
    async def asks(ctx: Context, _: None) -> list[str]:
        return await ctx.run_job("wait", two_steps)

    async with running(asks, two_steps) as engine:
        run = await finish(engine, await engine.trigger(asks))
        assert run.status == RunStatus.FAILED
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
        assert len(await engine.runs.list()) == 2
    assert run.output == ["first", "second"]
    assert calls == ["first", "second", "second"]


async def test_a_child_that_completed_without_its_parent_is_not_run_again(running):
    calls: list[int] = []

    @job("once")
    async def once(ctx: Context, _: None) -> str:
        if not calls:
            calls.append(1)
            raise ConnectionError("not today")
        calls.append(2)
        return "done"

    @job("asks")
    async def asks(ctx: Context, _: None) -> str:
        return await ctx.run_job("wait", once)

    async with running(asks, once) as engine:
        run = await finish(engine, await engine.trigger(asks))
        await engine.runs.retry(derive(run.id, "wait"))
        await finish(engine, await child_of(engine, run))
        assert (await engine.runs.get(run.id)).status == RunStatus.FAILED
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
    assert run.output == "done"
    assert calls == [1, 2]


async def test_a_child_that_was_deleted_meanwhile_is_started_again(running):
    calls: list[int] = []

    @job("flaky")
    async def flaky(ctx: Context, _: None) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("not today")
        return "done"

    @job("asks")
    async def asks(ctx: Context, _: None) -> str:
        return await ctx.run_job("wait", flaky)

    async with running(asks, flaky) as engine:
        run = await finish(engine, await engine.trigger(asks))
        await engine.runs.delete(derive(run.id, "wait"))
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
    assert (run.output, len(calls)) == ("done", 2)


async def test_what_becomes_of_a_child_later_does_not_disturb_a_parent_that_has_its_answer(running):
    @job("catches")
    async def catches(ctx: Context, _: None) -> str:
        with suppress(ChildFailed):
            await ctx.run_job("wait", endless)
        await ctx.breakpoint("stay")
        return "done"

    async with running(catches, endless) as engine:
        run = await engine.trigger(catches)
        await reach(engine, run.id, RunStatus.WAITING)
        child_id = derive(run.id, "wait")
        await engine.runs.cancel(child_id)
        while (await engine.runs.get(run.id)).waiting_reason != "it waits for breakpoint 'stay' to be resumed":
            await asyncio.sleep(0.003)
        await engine.runs.retry(child_id)
        await reach(engine, child_id, RunStatus.WAITING)
        await engine.runs.resume(child_id)
        await finish(engine, await engine.runs.get(child_id))
        (wait, _) = await engine.runs.steps(run.id)
        assert wait.status == StepStatus.FAILED
        await engine.runs.cancel(run.id)


async def test_a_child_that_was_retried_by_hand_is_not_cancelled_when_its_parent_ends(running):
    @job("asks")
    async def asks(ctx: Context, _: None) -> str:
        with suppress(ChildFailed):
            await ctx.run_job("wait", endless)
        await ctx.breakpoint("afterwards")
        return "went on without it"

    async with running(asks, endless) as engine:
        run = await engine.trigger(asks)
        await settle()
        child = await child_of(engine, run)
        await engine.runs.cancel(child.id)
        await engine.runs.retry(child.id)
        await settle()
        await engine.runs.resume(run.id)
        assert (await finish(engine, run)).output == "went on without it"
        assert (await child_of(engine, run)).status == RunStatus.WAITING


async def test_a_run_that_is_started_outlives_its_starter(running):
    @job("starts")
    async def starts(ctx: Context, _: None) -> str:
        return await ctx.start_job("aside", endless)

    async with running(starts, endless) as engine:
        run = await finish(engine, await engine.trigger(starts))
        started = await reach(engine, run.output, RunStatus.WAITING)
        assert started.parent_run_id == run.id
        assert started.parent_step is None
        await engine.runs.resume(started.id)
        assert (await finish(engine, started)).status == RunStatus.COMPLETED
