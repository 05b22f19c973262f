"""Time limits on waiting for signals, waits that are called off, and waits among tasks."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from signalled import one
from watching import finish

from durable_web import Context, Engine, RunStatus, SignalTimeout, job
from durable_web.testing import crash, crash_at, engine, restart, settle

# --- time limits -----------------------------------------------------------------------------------------------------


async def test_without_a_signal_the_wait_times_out(clock):
    async with engine(one, clock=clock) as e:
        run = await e.trigger(one, 60)
        await clock.advance(59.9)
        assert not (await e.runs.get(run.id)).is_terminal
        await clock.advance(0.1)
        assert (await e.runs.get(run.id)).output == "SignalTimeout of go"


async def test_a_signal_timeout_is_a_timeout_error_and_fails_the_run_that_does_not_catch_it(clock):
    @job("strict")
    async def strict(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("go", timeout=timedelta(minutes=1))

    async with engine(strict, clock=clock) as e:
        run = await e.trigger(strict)
        await clock.advance(60)
        run = await e.runs.get(run.id)
        assert (run.status, run.error.type) == (RunStatus.FAILED, "SignalTimeout")
        assert run.error.message == "What 'go' waited for did not come in time."
    assert issubclass(SignalTimeout, TimeoutError)


async def test_a_signal_in_time_calls_the_timeout_off(clock):
    async with engine(one, clock=clock) as e:
        run = await e.trigger(one, 60)
        await clock.advance(59.9)
        await e.runs.signal(run.id, "go", "in time")
        await clock.advance(1)
        assert (await e.runs.get(run.id)).output == "in time"


async def test_a_signal_after_the_timeout_is_kept_for_the_next_wait(clock):
    @job("twice")
    async def twice(ctx: Context, _: None) -> list:
        try:
            first = await ctx.wait_for_signal("go", timeout=60)
        except SignalTimeout:
            first = "too late"
        await ctx.sleep("nap", 60)
        return [first, await ctx.wait_for_signal("go")]

    async with engine(twice, clock=clock) as e:
        run = await e.trigger(twice)
        await clock.advance(60)
        await e.runs.signal(run.id, "go", "for the next")
        await restart(e)
        await clock.advance(60)
        assert (await finish(e, run)).output == ["too late", "for the next"]


@pytest.mark.parametrize(("first", "output"), [("signal", "in time"), ("timeout", "SignalTimeout of go")])
async def test_of_a_signal_and_a_timeout_at_the_same_moment_the_first_one_counts(clock, first, output):
    """The engine is down when both are due; whichever comes first when it is up again has won."""
    async with engine(one, clock=clock) as e:
        run = await e.trigger(one, 60)
        await settle()
        if first == "signal":
            await clock.advance(59.999)
            await crash_at_signal(e, run)
        await crash(e)
        await clock.advance(60)
        await restart(e)
        if first == "timeout":
            await e.runs.signal(run.id, "go", "too late")
        assert (await finish(e, run)).output == output


async def crash_at_signal(e: Engine, run) -> None:
    """The signal is delivered, and the engine dies before the run has noticed."""
    point = crash_at(e, after="go")
    with pytest.raises(Exception, match="made to crash"):
        await e.runs.signal(run.id, "go", "in time")
    assert point.is_reached


async def test_a_timeout_of_nothing_takes_what_is_there_and_waits_for_nothing(clock):
    async with engine(one, clock=clock) as e:
        empty = await e.trigger(one, 0)
        await settle()
        assert (await e.runs.get(empty.id)).output == "SignalTimeout of go"
        run = await e.trigger(one, 0)
        await e.runs.signal(run.id, "go", "there")
        await settle()
        assert (await e.runs.get(run.id)).output == "there"


async def test_the_time_limit_is_counted_from_the_first_beginning_across_restarts(clock):
    async with engine(one, clock=clock) as e:
        run = await e.trigger(one, 60)
        for _ in range(2):
            await clock.advance(29)
            await restart(e)
        await clock.advance(2)
        assert (await e.runs.get(run.id)).output == "SignalTimeout of go"


# --- waits that are called off ---------------------------------------------------------------------------------------


@job("called-off")
async def called_off(ctx: Context, _: None) -> list:
    """Waits for the first of a short sleep and a signal, then for the signal alone."""
    nap = asyncio.ensure_future(ctx.sleep("nap", 60))
    signal = asyncio.ensure_future(ctx.wait_for_signal("go", timeout=1000))
    done, pending = await asyncio.wait({nap, signal}, return_when=asyncio.FIRST_COMPLETED)
    for branch in pending:
        branch.cancel()
    first = await signal if signal in done else "nap"
    return [first, await ctx.wait_for_signal("go")]


@pytest.mark.parametrize("kept", [0, 1000])
async def test_a_wait_that_was_called_off_takes_no_signal(clock, kept):
    async with engine(called_off, clock=clock, max_parked=kept) as e:
        run = await e.trigger(called_off)
        await clock.advance(60)
        await e.runs.signal(run.id, "go", "for the second wait")
        assert (await finish(e, run)).output == ["nap", "for the second wait"]


async def test_a_wait_that_was_called_off_takes_no_signal_in_a_later_execution_either(clock):
    async with engine(called_off, clock=clock) as e:
        run = await e.trigger(called_off)
        await clock.advance(60)
        await crash(e)
        await e.start(claim=False)
        await e.runs.signal(run.id, "go", "for the second wait")
        await restart(e)
        assert (await finish(e, run)).output == ["nap", "for the second wait"]


async def test_a_signal_in_the_moment_in_which_the_wait_is_called_off_is_for_the_next_wait():
    """The body has given up, and nothing of that is committed yet."""
    for turns in range(8):
        given_up = asyncio.Event()

        @job("gives-up")
        async def gives_up(ctx: Context, _: None, given_up=given_up) -> list:
            branch = asyncio.ensure_future(ctx.wait_for_signal("go"))
            await ctx.step("work", given_up.wait)
            branch.cancel()
            await asyncio.wait([branch])
            first = "given up" if branch.cancelled() else branch.result()
            return [first, await ctx.wait_for_signal("go", timeout=3600)]

        async with engine(gives_up) as e:
            run = await e.trigger(gives_up)
            await settle()
            given_up.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            await e.runs.signal(run.id, "go", "kept")
            await settle()
            await crash(e)
            await restart(e)
            run = await e.runs.get(run.id)
            if not run.is_terminal:  # the first wait has taken it
                await e.runs.signal(run.id, "go", "another")
                await settle()
                run = await e.runs.get(run.id)
            assert run.output in (["given up", "kept"], ["kept", "another"])


@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_signal_that_comes_back_goes_before_a_newer_one(is_committed):
    branches: list[asyncio.Future] = []

    @job("gives-back")
    async def gives_back(ctx: Context, _: None) -> list:
        branches[:] = [asyncio.ensure_future(ctx.wait_for_signal("go")) for _ in range(2)]
        await asyncio.wait(branches)
        return [branches[1].result(), await ctx.wait_for_signal("go")]

    async with engine(gives_back) as e:
        run = await e.trigger(gives_back)
        await settle()
        await e.runs.signal(run.id, "go", "older")
        branches[0].cancel()  # it has the signal, and does not know yet
        await asyncio.wait(branches[:1])
        if is_committed:
            e.internals.dispatcher.commits.flush()
        await e.runs.signal(run.id, "go", "newer")
        await e.runs.signal(run.id, "go", "newest")
        assert branches[0].cancelled()
        assert (await finish(e, run)).output == ["older", "newer"]


async def test_a_wait_that_times_out_has_missed_no_signal_that_came_back(clock):
    branches: list[asyncio.Future] = []

    @job("gives-back")
    async def gives_back(ctx: Context, _: None) -> list:
        branches[:] = [asyncio.ensure_future(ctx.wait_for_signal("go", timeout=60)) for _ in range(2)]
        await asyncio.wait(branches)
        return branches[1].result()

    async with engine(gives_back, clock=clock) as e:
        run = await e.trigger(gives_back)
        await settle()
        await e.runs.signal(run.id, "go", "older")
        branches[0].cancel()
        await asyncio.wait(branches[:1])
        clock.set_forward(60)
        e.internals.dispatcher.look_at_the_time()
        assert (await finish(e, run)).output == "older"


# --- with asyncio ----------------------------------------------------------------------------------------------------


async def test_a_signal_inside_asyncio_timeout_and_wait_for(clock):
    @job("limits")
    async def limits(ctx: Context, _: None) -> list:
        outcomes = []
        async with asyncio.timeout(3600):
            outcomes.append(await ctx.wait_for_signal("go"))
        outcomes.append(await asyncio.wait_for(ctx.wait_for_signal("go"), 3600))
        try:
            await asyncio.wait_for(ctx.wait_for_signal("never"), 0.01)
        except TimeoutError:
            outcomes.append("never")
        return outcomes

    async with engine(limits, clock=clock) as e:
        run = await e.trigger(limits)
        for number in (1, 2):
            await e.runs.signal(run.id, "go", number)
        await clock.advance(0.01)
        assert (await finish(e, run)).output == [1, 2, "never"]


async def test_a_failing_branch_of_a_task_group_calls_the_waits_of_the_others_off():
    @job("group")
    async def group_job(ctx: Context, _: None) -> str:
        async def fail() -> None:
            await ctx.wait_for_signal("fail")
            raise ValueError("failed")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.wait_for_signal("go"))
                group.create_task(fail())
        except ExceptionGroup as failures:
            return str(failures.exceptions[0])
        return "not reached"

    async with engine(group_job) as e:
        run = await e.trigger(group_job)
        await settle()
        await restart(e)
        await e.runs.signal(run.id, "fail")
        assert (await finish(e, run)).output == "failed"
        assert {step.name: step.status for step in await e.runs.steps(run.id)} == {
            "go": "cancelled",
            "fail": "completed",
        }


async def test_waits_in_other_tasks_are_ended_when_a_run_leaves_memory():
    @job("detached")
    async def detached(ctx: Context, _: None) -> None:
        branches = [asyncio.ensure_future(ctx.wait_for_signal(name)) for name in ("a", "b")]
        await asyncio.wait(branches, return_when=asyncio.FIRST_COMPLETED)

    tasks = asyncio.all_tasks()
    async with engine(detached, max_parked=0) as e:
        await e.trigger(detached)
        await settle()
        assert asyncio.all_tasks() == tasks
