"""Several timers of asyncio around durable waits: each is due when it first was, in the order that they had."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from timed_runs import HOUR, LIVES, an_engine, ended, parked, stay
from watching import finish, reach

from durable_web import Context, OperationKind, RunStatus, job
from durable_web.testing import crash, restart, settle


@pytest.mark.parametrize("life", LIVES)
async def test_of_nested_timeouts_each_is_due_when_it_first_was(clock, life):
    @job("nested")
    async def nested(ctx: Context, _: None) -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(3 * HOUR):
                try:
                    async with asyncio.timeout(HOUR):
                        await ctx.wait_for_signal("first")
                except TimeoutError:
                    seen.append(await ctx.step("inner", lambda: "inner"))
                await ctx.wait_for_signal("second")
        except TimeoutError:
            seen.append(await ctx.step("outer", lambda: "outer"))
        return seen

    async with an_engine(nested, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(nested))
        for hours in (0.5, 0.5, 1):
            await clock.advance(hours * HOUR)
            await stay(e, life)
            await parked(e, run)
        steps = [step.name for step in await e.runs.steps(run.id) if step.kind != OperationKind.TIMER]
        assert steps == ["first", "inner", "second"]
        await clock.advance(HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == ["inner", "outer"]


async def test_of_nested_timeouts_that_are_all_overdue_the_one_that_was_due_first_fires_first(clock):
    """Both do before anything else begins."""

    @job("nested")
    async def nested(ctx: Context, _: None) -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(3 * HOUR):
                try:
                    async with asyncio.timeout(HOUR):
                        await ctx.wait_for_signal("first")
                except TimeoutError:
                    seen.append("inner")
                    await ctx.step("note", lambda: seen.append("note"))
                await ctx.wait_for_signal("second")
        except TimeoutError:
            seen.append("outer")
        return seen

    async with an_engine(nested, clock=clock) as e:
        run = await parked(e, await e.trigger(nested))
        await crash(e)
        await clock.advance(4 * HOUR)
        await restart(e)
        assert (await ended(e, run)).output == ["inner", "outer"]


async def test_an_overdue_timeout_fires_only_when_the_body_is_where_it_was(clock):
    @job("replayed")
    async def replayed(ctx: Context, _: None) -> list[str]:
        came = []
        try:
            async with asyncio.timeout(HOUR):
                for stage in ("first", "second"):
                    came.append(await ctx.wait_for_signal(stage))
                    await settle()  # a body may do other things than those of its context
                    came.append(await ctx.step(f"after {stage}", str, f"after {stage}"))
                await ctx.wait_for_signal("third")
        except TimeoutError:
            came.append(await ctx.step("too late", str, "too late"))
        return came

    async with an_engine(replayed, clock=clock) as e:
        run = await parked(e, await e.trigger(replayed))
        for stage in ("first", "second"):
            await e.runs.signal(run.id, stage, stage)
            await settle()
            await parked(e, run)
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        await settle()
        await settle()
        assert (await ended(e, run)).output == ["first", "after first", "second", "after second", "too late"]


@pytest.mark.parametrize("life", LIVES)
async def test_branches_have_timeouts_of_their_own(clock, life):
    @job("branches")
    async def branches(ctx: Context, _: None) -> list[str]:
        async def branch(hours: int) -> str:
            try:
                async with asyncio.timeout(hours * HOUR):
                    await ctx.wait_for_signal(f"signal {hours}")
            except TimeoutError:
                return await ctx.step(f"note {hours}", lambda: "too late")
            return "in time"

        return await asyncio.gather(branch(3), branch(1), branch(2))

    async with an_engine(branches, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(branches))
        await clock.advance(0.9 * HOUR)
        await stay(e, life)
        await clock.advance(0.2 * HOUR)
        assert (await parked(e, run)).completed_steps == 1
        await stay(e, life)
        await e.runs.signal(run.id, "signal 2")
        await clock.advance(1.9 * HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == ["too late", "too late", "in time"]


@pytest.mark.parametrize("life", LIVES)
async def test_of_several_plain_sleeps_beside_a_wait_each_is_over_when_it_first_was(clock, life):
    @job("sleeps")
    async def sleeps(ctx: Context, _: None) -> None:
        async def sleep(hours: float) -> None:
            await asyncio.sleep(hours * HOUR)
            await ctx.step(f"after {hours} h", clock.now)

        sleeping = [asyncio.ensure_future(sleep(hours)) for hours in (3, 1, 2)]
        await ctx.wait_for_signal("go")
        for task in sleeping:
            task.cancel()

    async with an_engine(sleeps, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(sleeps))
        begin = clock.now()
        await clock.advance(0.5 * HOUR)
        await stay(e, life)
        for _ in range(3):
            await parked(e, run)
            await clock.advance(0.9 * HOUR)
        steps = {step.name: step.output - begin for step in await e.runs.steps(run.id) if step.kind == "step"}
        assert {name: round(after / 1000 / HOUR, 2) for name, after in steps.items()} == {
            "after 1 h": 1,
            "after 2 h": 2,
            "after 3 h": 3,
        }
        await e.runs.signal(run.id, "go")
        assert (await ended(e, run)).status == RunStatus.COMPLETED


@pytest.mark.parametrize("life", LIVES)
async def test_one_timeout_goes_on_from_wait_to_wait(clock, life):
    @job("stages")
    async def stages(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(HOUR):
                for number in range(5):
                    await ctx.sleep(f"stage {number}", 0.4 * HOUR)
        except TimeoutError:
            return f"in stage {number}"
        return "never"

    async with an_engine(stages, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(stages))
        for _ in range(2):
            await clock.advance(0.45 * HOUR)
            await stay(e, life)
            await parked(e, run)
        await clock.advance(0.1 * HOUR)
        assert (await ended(e, run)).output == "in stage 2"


async def test_a_step_after_a_wait_has_no_more_time_after_a_restart_and_is_not_called_again(clock):
    began = []

    @job("both")
    async def both(ctx: Context, _: None) -> str:
        async def work() -> None:
            began.append(clock.now())
            await asyncio.get_running_loop().create_future()

        try:
            async with asyncio.timeout(HOUR):
                await ctx.wait_for_signal("go")
                await ctx.step("work", work)
        except TimeoutError:
            return "too late"
        return "never"

    async with an_engine(both, clock=clock) as e:
        run = await parked(e, await e.trigger(both))
        await e.runs.signal(run.id, "go")
        await settle()
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        assert (await ended(e, run)).output == "too late"
        assert len(began) == 1


@pytest.mark.parametrize("life", LIVES)
async def test_a_timeout_that_the_body_has_moved_is_due_when_it_was_moved_to(clock, life):
    @job("extended")
    async def extended(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(HOUR) as limit:
                await ctx.wait_for_signal("more")
                limit.reschedule(asyncio.get_running_loop().time() + 3 * HOUR)
                await ctx.wait_for_signal("go")
        except TimeoutError:
            return "too late"
        return "never"

    async with an_engine(extended, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(extended))
        await clock.advance(0.5 * HOUR)
        await stay(e, life)
        await e.runs.signal(run.id, "more")
        await parked(e, run)
        await clock.advance(2 * HOUR)
        await stay(e, life)
        await clock.advance(HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == "too late"


@pytest.mark.parametrize("life", LIVES)
async def test_a_timeout_that_is_behind_the_body_no_longer_counts(clock, life):
    @job("passed")
    async def passed(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR) as limit:
            await ctx.wait_for_signal("first")
        await ctx.wait_for_signal("second")
        return "expired" if limit.expired() else "in time"

    async with an_engine(passed, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(passed))
        await e.runs.signal(run.id, "first")
        assert (await parked(e, run)).wake_at is None
        await stay(e, life)
        await clock.advance(2 * HOUR)
        await stay(e, life)
        await e.runs.signal(run.id, "second")
        assert (await ended(e, run)).output == "in time"


@pytest.mark.parametrize("life", LIVES)
async def test_a_timeout_that_has_fired_is_not_waited_for_again(clock, life):
    @job("fired")
    async def fired(ctx: Context, _: None) -> list[Any]:
        seen = []
        for number in range(3):
            try:
                async with asyncio.timeout(HOUR):
                    seen.append(await ctx.wait_for_signal(f"signal {number}"))
            except TimeoutError:
                seen.append(await ctx.step(f"note {number}", lambda: "too late"))
        seen.append(await ctx.wait_for_signal("go"))
        return seen

    async with an_engine(fired, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(fired))
        for _ in range(3):
            await clock.advance(HOUR)
            await stay(e, life)
        assert (await parked(e, run)).wake_at is None
        await e.runs.signal(run.id, "go", "gone")
        assert (await ended(e, run)).output == ["too late", "too late", "too late", "gone"]


@pytest.mark.parametrize("life", LIVES)
async def test_a_webhook_may_be_waited_for_in_one_timeout_after_the_other(clock, life):
    @job("patient")
    async def patient(ctx: Context, _: None) -> list[Any]:
        made = await ctx.webhook("hook")
        seen = []
        for number in range(3):
            try:
                async with asyncio.timeout(HOUR):
                    await made.wait()
            except TimeoutError:
                seen.append(await ctx.step(f"remind {number}", clock.now))
        return seen

    async with an_engine(patient, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(patient))
        begin = clock.now()
        for _ in range(5):
            await clock.advance(0.5 * HOUR)
            await stay(e, life)
        await parked(e, run)
        await clock.advance(0.5 * HOUR)
        run = await ended(e, run)
        assert [round((moment - begin) / 1000 / HOUR, 2) for moment in run.output] == [1, 2, 3]


@pytest.mark.parametrize("life", LIVES)
async def test_of_two_durable_sleeps_the_first_one_wakes_the_run_inside_a_timeout(clock, life):
    @job("race")
    async def race(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR):
            long, short = (asyncio.ensure_future(ctx.sleep(f"{seconds} s", seconds)) for seconds in (100, 10))
            done, pending = await asyncio.wait([long, short], return_when=asyncio.FIRST_COMPLETED)
            for other in pending:
                other.cancel()
        return "short" if short in done else "long"

    async with an_engine(race, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(race))
        await stay(e, life)
        await clock.advance(10)
        assert (await ended(e, run)).output == "short"


async def test_the_time_is_that_of_the_wall(running):
    """No clock is moved here: the timers are those of the event loop."""

    @job("real")
    async def real(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.2):
                await ctx.wait_for_signal("go")
        except TimeoutError:
            return "too late"
        return "never"

    async with running(real) as e:
        run = await reach(e, (await e.trigger(real)).id, RunStatus.WAITING)
        await crash(e)
        await asyncio.sleep(0.3)
        await restart(e)
        assert (await finish(e, run)).output == "too late"


async def test_a_timeout_fires_by_itself_while_the_run_is_in_memory(running):
    @job("real")
    async def real(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.05):
                await ctx.wait_for_signal("go")
        except TimeoutError:
            return "too late"
        return "never"

    async with running(real) as e:
        assert (await e.trigger_and_wait(real)).output == "too late"
