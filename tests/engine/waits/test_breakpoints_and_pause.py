"""People hold a run: breakpoints in its code, and pausing it from outside."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from watching import cpython_only, finish, timeline

from durable_web import Context, Engine, Retry, RunNotActive, RunNotFound, RunStatus, SignalTimeout, job
from durable_web.testing import crash, engine, restart, settle


@job("stops")
async def stops(ctx: Context, _: None) -> str:
    await ctx.breakpoint("look")
    return await ctx.step("after", str, "looked")


gates: dict[str, asyncio.Event] = {}
begun: list[str] = []


@pytest.fixture(autouse=True)
def fresh():
    begun.clear()
    gates.clear()
    gates.update({name: asyncio.Event() for name in ("1", "2", "3")})


async def at_the_gate(name: str) -> str:
    begun.append(name)
    await gates[name].wait()
    return name


@job("steps")
async def steps(ctx: Context, _: None) -> list[str]:
    return [await ctx.step(name, at_the_gate, name) for name in gates]


@job("nap")
async def nap(ctx: Context, _: None) -> str:
    await ctx.sleep("nap", 60)
    return await ctx.step("after", str, "awake")


# --- breakpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1000])
async def test_a_run_stands_at_a_breakpoint_until_it_is_resumed(kept):
    async with engine(stops, max_parked=kept) as e:
        run = await e.trigger(stops)
        await settle()
        assert (await e.runs.get(run.id)).status == RunStatus.WAITING
        await restart(e)
        await settle()
        assert [step.status for step in await e.runs.steps(run.id)] == ["running"]
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == "looked"


async def test_each_breakpoint_is_resumed_by_itself():
    @job("two")
    async def two(ctx: Context, _: None) -> str:
        await ctx.breakpoint("look")
        await ctx.breakpoint("look")
        return "through"

    async with engine(two) as e:
        run = await e.trigger(two)
        await e.runs.resume(run.id)  # it has not come to one yet: this does nothing
        await settle()
        await e.runs.resume(run.id)
        await settle()
        assert [(step.name, step.status) for step in await e.runs.steps(run.id)] == [
            ("look", "completed"),
            ("look#2", "running"),
        ]
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == "through"


async def test_breakpoints_side_by_side_are_resumed_together():
    @job("both")
    async def both(ctx: Context, _: None) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.breakpoint("here"))
            group.create_task(ctx.breakpoint("there"))
        return "through"

    async with engine(both) as e:
        run = await e.trigger(both)
        await settle()
        assert (
            await e.runs.get(run.id)
        ).waiting_reason == "it waits for breakpoint 'here' to be resumed, breakpoint 'there' to be resumed"
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == "through"


async def test_a_breakpoint_can_be_given_up():
    @job("impatient")
    async def impatient(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.01):
                await ctx.breakpoint("look")
        except TimeoutError:
            return "nobody looked"
        return "looked"

    async with engine(impatient) as e:
        assert (await e.trigger_and_wait(impatient)).output == "nobody looked"


async def test_steps_and_timeline_tell_that_it_stands_at_a_breakpoint():
    async with engine(stops) as e:
        run = await e.trigger(stops)
        await settle()
        (step,) = await e.runs.steps(run.id)
        assert (step.kind, step.waiting_for) == ("breakpoint", "breakpoint 'look' to be resumed")
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for breakpoint 'look' to be resumed"
        await e.runs.resume(run.id)
        frames = await timeline(e, run)
        assert [(frame.type, frame.status) for frame in frames if frame.kind == "step_status"][:2] == [
            ("breakpoint", "running"),
            ("breakpoint", "completed"),
        ]
        reasons = [frame.reason for frame in frames if frame.kind == "run_status"]
        assert "breakpoint 'look' is resumed" in reasons


# --- pausing ---------------------------------------------------------------------------------------------------------


async def test_a_paused_run_finishes_its_step_and_starts_no_further_one():
    async with engine(steps) as e:
        run = await e.trigger(steps)
        await settle()
        assert (await e.runs.pause(run.id)).paused is True
        gates["1"].set()
        await settle()
        assert begun == ["1"]
        run = await e.runs.get(run.id)
        assert (run.status, run.waiting_reason) == (RunStatus.WAITING, "it waits for the run to be resumed")
        assert [step.status for step in await e.runs.steps(run.id) if step.status != "running"] == ["completed"]
        for gate in gates.values():
            gate.set()
        assert (await e.runs.resume(run.id)).paused is False
        assert (await finish(e, run)).output == ["1", "2", "3"]
        assert begun == ["1", "2", "3"]


async def test_a_paused_run_starts_no_child_and_answers_no_update():
    @job("parent")
    async def parent(ctx: Context, _: None) -> str:
        await ctx.step("1", at_the_gate, "1")
        update, output = await asyncio.gather(ctx.on_update("change"), ctx.run_job("child", child))
        await update.answer("answered")
        return output

    @job("child")
    async def child(ctx: Context, _: None) -> str:
        return "output of the child"

    async with engine(parent, child) as e:
        run = await e.trigger(parent)
        await settle()
        await e.runs.pause(run.id)
        gates["1"].set()
        with pytest.raises(TimeoutError):
            await e.runs.update(run.id, "change", update_id="a", timeout=0.01)
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for the run to be resumed"
        assert await e.runs.list(job="child") == []
        await e.runs.resume(run.id)
        assert await e.runs.update(run.id, "change", update_id="a") == "answered"
        assert (await finish(e, run)).output == "output of the child"


async def test_a_breakpoint_to_which_a_paused_run_has_come_is_not_resumed_with_the_run():
    @job("stops-later")
    async def stops_later(ctx: Context, _: None) -> str:
        await ctx.step("1", at_the_gate, "1")
        await ctx.breakpoint("look")
        return "looked"

    async with engine(stops_later) as e:
        run = await e.trigger(stops_later)
        await settle()
        await e.runs.pause(run.id)
        gates["1"].set()
        await settle()
        await e.runs.resume(run.id)
        await settle()
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for breakpoint 'look' to be resumed"
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == "looked"


async def test_a_paused_run_that_would_wait_for_a_short_time_holds_no_slot_and_its_time_goes_by(clock):
    @job("short")
    async def short(ctx: Context, _: None) -> str:
        await ctx.step("1", at_the_gate, "1")
        try:
            return await ctx.wait_for_signal("go", timeout=0.5)
        except SignalTimeout:
            return "too late"

    async with engine(short, stops, clock=clock, max_concurrent_runs=1) as e:
        run = await e.trigger(short)
        await settle()
        await e.runs.pause(run.id)
        gates["1"].set()
        other = await e.trigger(stops)
        await settle()
        assert (await e.runs.get(other.id)).waiting_reason == "it waits for breakpoint 'look' to be resumed"
        await clock.advance(10)
        assert (await e.runs.get(run.id)).status == RunStatus.WAITING
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == "too late"


async def test_a_run_that_is_resumed_before_it_has_come_to_its_next_step_does_not_notice():
    async with engine(steps) as e:
        run = await e.trigger(steps)
        await settle()
        await e.runs.pause(run.id)
        await e.runs.resume(run.id)
        for gate in gates.values():
            gate.set()
        assert (await finish(e, run)).output == ["1", "2", "3"]
        statuses = [frame.status for frame in await timeline(e, run) if frame.kind == "run_status"]
        assert RunStatus.WAITING not in statuses


async def test_a_paused_run_that_is_pending_does_not_begin():
    async with engine(steps, max_concurrent_runs=1) as e:
        first, second = await e.trigger(steps), await e.trigger(steps)
        await e.runs.pause(second.id)
        for gate in gates.values():
            gate.set()
        await finish(e, first)
        await settle()
        assert (await e.runs.get(second.id)).status == RunStatus.PENDING
        await e.runs.resume(second.id)
        assert (await finish(e, second)).output == ["1", "2", "3"]


async def test_a_paused_run_holds_no_slot():
    async with engine(steps, stops, max_concurrent_runs=1) as e:
        run = await e.trigger(steps)
        await e.runs.pause(run.id)  # it was claimed at once, and has begun no step
        other = await e.trigger(stops)
        await settle()
        assert begun == []
        assert (await e.runs.get(other.id)).waiting_reason == "it waits for breakpoint 'look' to be resumed"


@pytest.mark.parametrize("resumed_after", [50, 200])
async def test_a_paused_run_that_is_scheduled_begins_when_it_is_due_and_resumed(clock, resumed_after):
    async with engine(stops, nap, clock=clock) as e:
        now = (await e.trigger(stops)).created_at
        run = await e.trigger(nap, run_at=now + timedelta(seconds=100))
        await e.runs.pause(run.id)
        await clock.advance(resumed_after)
        assert (await e.runs.get(run.id)).attempt == 0
        await e.runs.resume(run.id)
        await settle()
        assert (await e.runs.get(run.id)).attempt == (1 if resumed_after > 100 else 0)
        await clock.advance(50)
        assert (await e.runs.get(run.id)).attempt == 1


async def test_a_run_that_is_paused_while_it_sleeps_stays_where_it_is_when_the_sleep_is_over(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap)
        await settle()
        await e.runs.pause(run.id)
        await clock.advance(100)
        assert [(step.name, step.status) for step in await e.runs.steps(run.id)] == [("nap", "completed")]
        assert not (await e.runs.get(run.id)).is_terminal
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == "awake"


async def test_resuming_a_run_that_sleeps_does_not_end_the_sleep(clock):
    async with engine(nap, clock=clock) as e:
        run = await e.trigger(nap)
        await settle()
        await e.runs.pause(run.id)
        await e.runs.resume(run.id)
        await clock.advance(59)
        run = await e.runs.get(run.id)
        assert (run.status, run.waiting_reason) == (RunStatus.WAITING, "it waits for the end of sleep 'nap'")
        await clock.advance(1)
        assert (await e.runs.get(run.id)).output == "awake"


async def test_signals_reach_a_paused_run_and_are_there_when_it_is_resumed():
    @job("signalled")
    async def signalled(ctx: Context, _: None) -> list:
        first = await ctx.wait_for_signal("go")
        return [first, await ctx.step("after", str, "after")]

    async with engine(signalled) as e:
        run = await e.trigger(signalled)
        await settle()
        await e.runs.pause(run.id)
        await e.runs.signal(run.id, "go", "sent")
        await settle()
        assert not (await e.runs.get(run.id)).is_terminal
        await restart(e)
        await settle()
        assert [step.name for step in await e.runs.steps(run.id)] == ["go"]
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == ["sent", "after"]


async def test_a_paused_run_makes_no_further_attempt_at_a_step(clock):
    attempts: list[int] = []

    def fail() -> None:
        attempts.append(1)
        raise ValueError("no")

    @job("failing", retry=Retry(max_attempts=3, backoff=10, factor=1, jitter=0))
    async def failing(ctx: Context, _: None) -> None:
        await ctx.step("fail", fail)

    async with engine(failing, clock=clock) as e:
        run = await e.trigger(failing)
        await settle()
        await e.runs.pause(run.id)
        await clock.advance(100)
        assert len(attempts) == 1
        await e.runs.resume(run.id)
        await settle()
        assert len(attempts) == 2
        await clock.advance(10)
        assert (await e.runs.get(run.id)).status == RunStatus.FAILED


async def test_branches_side_by_side_are_all_held_and_all_go_on():
    @job("branches")
    async def branches(ctx: Context, _: None) -> list:
        async def branch(name: str) -> str:
            await ctx.step(name, at_the_gate, name)
            return await ctx.step(f"{name} again", str, name)

        return await asyncio.gather(*map(branch, gates))

    async with engine(branches) as e:
        run = await e.trigger(branches)
        await settle()
        await e.runs.pause(run.id)
        for gate in gates.values():
            gate.set()
        await settle()
        assert (await e.runs.get(run.id)).status == RunStatus.WAITING
        assert (await e.runs.get(run.id)).completed_steps == 3
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == ["1", "2", "3"]


async def test_recorded_values_and_transactions_are_held_too():
    @job("kinds")
    async def kinds(ctx: Context, _: None) -> None:
        await ctx.step("1", at_the_gate, "1")
        await ctx.now()
        await ctx.transaction("rows", lambda connection: None)
        await ctx.sleep("nap", 0)

    async with engine(kinds) as e:
        run = await e.trigger(kinds)
        await settle()
        await e.runs.pause(run.id)
        gates["1"].set()
        await settle()
        assert [step.name for step in await e.runs.steps(run.id) if step.status == "completed"] == ["1"]
        await e.runs.resume(run.id)
        await finish(e, run)
        assert [step.name for step in await e.runs.steps(run.id)] == ["1", "now", "rows", "nap"]


@pytest.mark.parametrize("how", ["crash", "stop"])
async def test_a_run_stays_paused_across_a_restart(how):
    async with engine(steps) as e:
        run = await e.trigger(steps)
        await settle()
        await e.runs.pause(run.id)
        await (crash(e) if how == "crash" else e.stop(drain=False))
        await restart(e)
        await settle()
        assert begun == ["1"]
        assert (await e.runs.get(run.id)).paused is True
        for gate in gates.values():
            gate.set()
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == ["1", "2", "3"]
        assert begun == ["1", "1", "2", "3"]


async def test_a_paused_run_that_has_left_memory_goes_on():
    async with engine(steps, max_parked=0) as e:
        run = await e.trigger(steps)
        await settle()
        await e.runs.pause(run.id)
        for gate in gates.values():
            gate.set()
        await settle()
        assert e.internals.dispatcher.parked == {}
        await e.runs.resume(run.id)
        assert (await finish(e, run)).output == ["1", "2", "3"]
        assert begun == ["1", "2", "3"]


async def test_a_deadline_counts_while_a_run_is_paused(clock):
    async with engine(steps, clock=clock) as e:
        now = (await e.trigger(steps)).created_at
        runs = [await e.trigger(steps, deadline=now + timedelta(seconds=60)) for _ in range(2)]
        await e.runs.pause(runs[0].id)
        await settle()
        await e.runs.pause(runs[1].id)
        await clock.advance(60)
        assert [(await e.runs.get(run.id)).error.type for run in runs] == ["DeadlineExceeded"] * 2


async def test_a_paused_run_can_be_cancelled_and_is_not_paused_when_it_is_retried():
    async with engine(steps) as e:
        run = await e.trigger(steps)
        await settle()
        await e.runs.pause(run.id)
        gates["1"].set()
        await settle()
        await e.runs.cancel(run.id)
        assert (await e.runs.get(run.id)).status == RunStatus.CANCELLED
        for gate in gates.values():
            gate.set()
        await e.runs.retry(run.id)
        assert (await finish(e, run)).output == ["1", "2", "3"]


async def test_a_paused_run_may_end_when_it_has_no_further_step():
    async with engine(steps) as e:
        run = await e.trigger(steps)
        gates["1"].set()
        gates["2"].set()
        await settle()
        await e.runs.pause(run.id)
        gates["3"].set()
        assert (await finish(e, run)).output == ["1", "2", "3"]


async def test_pausing_twice_and_resuming_twice_is_pausing_and_resuming():
    async with engine(stops, steps) as e:
        run = await e.trigger(steps)
        await settle()
        for _ in range(2):
            await e.runs.pause(run.id)
        gates["1"].set()
        await settle()
        for gate in gates.values():
            gate.set()
        for _ in range(2):
            await e.runs.resume(run.id)
        assert (await finish(e, run)).output == ["1", "2", "3"]


async def test_a_run_that_has_ended_can_neither_be_paused_nor_resumed():
    async with engine(stops) as e:
        run = await e.trigger(stops)
        await e.runs.cancel(run.id)
        with pytest.raises(RunNotActive, match="cannot be paused"):
            await e.runs.pause(run.id)
        with pytest.raises(RunNotActive, match="cannot be resumed"):
            await e.runs.resume(run.id)
        for call in (e.runs.pause, e.runs.resume):
            with pytest.raises(RunNotFound):
                await call("no-such-run")


async def test_the_timeline_tells_of_pausing_and_resuming():
    async with engine(steps) as e:
        run = await e.trigger(steps)
        await settle()
        await e.runs.pause(run.id)
        await e.runs.resume(run.id)
        for gate in gates.values():
            gate.set()
        frames = [frame for frame in await timeline(e, run) if frame.kind == "run_status"]
        told = [(frame.status, frame.reason) for frame in frames if frame.reason]
        assert told == [("running", "it is paused"), ("running", "it is resumed")]


@cpython_only("OPFS has one engine per file")
async def test_another_engine_can_pause_and_resume_a_run_within_a_second(database_path, clock):
    async with (
        Engine(database_path, [steps], clock=clock) as executing,
        Engine(database_path, [steps], clock=clock, max_concurrent_runs=0) as other,
    ):
        run = await executing.trigger(steps)
        await settle()
        await other.runs.pause(run.id)
        await clock.advance(1)
        for gate in gates.values():
            gate.set()
        await clock.advance(1)
        assert begun == ["1"]
        await other.runs.resume(run.id)
        await clock.advance(1)
        assert (await executing.runs.get(run.id)).output == ["1", "2", "3"]
