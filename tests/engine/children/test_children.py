"""Child runs: started once, awaited, and what comes of them."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from families import broken, child_of, double, endless, parent, waits_for_endless
from watching import finish, reach, timeline

from durable_web import (
    ChildFailed,
    Context,
    InvalidInput,
    JobNotFound,
    RunStatus,
    StepStatus,
    job,
)
from durable_web._identifiers import derive
from durable_web._model import to_wire
from durable_web.testing import MockClock, crash, settle

# --- what comes of it ------------------------------------------------------------------------------------------------


async def test_a_run_gets_the_output_of_its_child(running):
    async with running(parent, double) as engine:
        run = await finish(engine, await engine.trigger(parent, 4))
        child = await child_of(engine, run, "doubled")
    assert run.output == 8
    assert (child.job, child.input, child.output) == ("double", 4, 8)
    assert (child.parent_run_id, child.parent_step) == (run.id, "doubled")


async def test_a_page_sees_who_started_a_run(running):
    async with running(parent, double) as engine:
        run = await finish(engine, await engine.trigger(parent, 4))
        wire = to_wire(await child_of(engine, run, "doubled"))
    assert (wire["parentRunId"], wire["parentStep"]) == (run.id, "doubled")


async def test_the_runs_that_a_run_has_started_are_listed_by_its_id(running):
    async with running(parent, double) as engine:
        run = await finish(engine, await engine.trigger(parent, 4))
        await engine.trigger(double, 5)
        assert await engine.runs.list(parent=run.id) == [await child_of(engine, run, "doubled")]


async def test_the_output_has_the_type_that_the_childs_job_declares(running):
    @job("when")
    async def when(ctx: Context, _: None) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC)

    @job("asks")
    async def asks(ctx: Context, _: None) -> int:
        return (await ctx.run_job("when", "when")).year

    async with running(when, asks) as engine:
        assert (await finish(engine, await engine.trigger(asks))).output == 2030


async def test_a_child_that_fails_raises_and_a_replay_raises_the_same(running):
    caught: list[ChildFailed] = []

    @job("catches")
    async def catches(ctx: Context, _: None) -> str:
        try:
            await ctx.run_job("print", broken)
        except ChildFailed as error:
            caught.append(error)
        if len(caught) < 2:
            await asyncio.Event().wait()
        return "caught"

    async with running(catches, broken) as engine:
        run = await engine.trigger(catches)
        while not caught:
            await asyncio.sleep(0.003)
        await crash(engine)
    async with running(catches, broken) as engine:
        run = await finish(engine, run)
    assert run.output == "caught"
    assert len(caught) == 2
    for error in caught:
        assert (error.step, error.run_id) == ("print", derive(run.id, "print"))
        assert (error.error_type, error.error_message) == ("ValueError", "out of paper")
    assert str(caught[0]) == str(caught[1])
    assert "out of paper" in str(caught[0])


async def test_a_child_failure_that_is_not_caught_fails_the_parent(running):
    @job("careless")
    async def careless(ctx: Context, _: None) -> None:
        await ctx.run_job("print", broken)

    async with running(careless, broken) as engine:
        run = await finish(engine, await engine.trigger(careless))
    assert (run.status, run.error.type) == (RunStatus.FAILED, "ChildFailed")


async def test_a_child_that_is_cancelled_ends_the_wait(running):
    async with running(waits_for_endless, endless) as engine:
        run = await engine.trigger(waits_for_endless)
        await reach(engine, run.id, RunStatus.WAITING)
        await engine.runs.cancel(derive(run.id, "wait"))
        run = await finish(engine, run)
    assert (run.status, run.error.type) == (RunStatus.FAILED, "ChildFailed")
    assert "Cancelled" in run.error.message


async def test_a_child_whose_deadline_passes_ends_the_wait(running):
    clock = MockClock()

    @job("impatient")
    async def impatient(ctx: Context, _: None) -> str:
        deadline = await ctx.now() + timedelta(seconds=60)
        try:
            await ctx.run_job("wait", endless, deadline=deadline)
        except ChildFailed as error:
            return error.error_type
        return "in time"

    async with running(impatient, endless, clock=clock) as engine:
        run = await engine.trigger(impatient)
        await clock.advance(59)
        assert (await engine.runs.get(run.id)).status == RunStatus.WAITING
        await clock.advance(2)
        assert (await finish(engine, run)).output == "DeadlineExceeded"


async def test_a_child_whose_deadline_has_passed_when_it_starts_ends_the_wait(running):
    @job("too-late")
    async def too_late(ctx: Context, _: None) -> str:
        try:
            await ctx.run_job("wait", endless, deadline=datetime(2020, 1, 1, tzinfo=UTC))
        except ChildFailed as error:
            return error.error_type
        return "in time"

    async with running(too_late, endless) as engine:
        assert (await finish(engine, await engine.trigger(too_late))).output == "DeadlineExceeded"


async def test_a_child_that_is_dead_ends_the_wait(running):
    @job("kills-its-engine")
    async def kills_its_engine(ctx: Context, _: None) -> None:
        await ctx.step("hang", asyncio.Event().wait)

    @job("survivor")
    async def survivor(ctx: Context, _: None) -> str:
        try:
            await ctx.run_job("wait", kills_its_engine)
        except ChildFailed as error:
            return error.error_type
        return "alive"

    jobs = (survivor, kills_its_engine)
    async with running(*jobs, max_recoveries=1) as engine:
        run = await engine.trigger(survivor)
        await reach(engine, run.id, RunStatus.WAITING)
        await settle()
        await crash(engine)
    for _ in range(2):
        async with running(*jobs, max_recoveries=1) as engine:
            with suppress(TimeoutError):
                run = await engine.runs.wait(run.id, timeout=0.1)
            await crash(engine)
    assert run.output == "CrashLoop"


@pytest.mark.parametrize("comes_later", [True, False])
async def test_a_child_that_goes_with_its_dead_parent_is_cancelled_and_not_dead_itself(running, comes_later):
    """Both were executing when their engine died, the parent a step; their ids say which is taken back first."""

    @job("hangs")
    async def hangs(ctx: Context, _: None) -> None:
        await asyncio.Event().wait()

    @job("waits")
    async def waits(ctx: Context, _: None) -> None:
        names = (str(number) for number in itertools.count())
        name = next(name for name in names if (derive(ctx.run_id, name) > ctx.run_id) == comes_later)
        await asyncio.gather(ctx.run_job(name, hangs), ctx.step("hang", asyncio.Event().wait))

    async with running(waits, hangs, max_recoveries=0) as engine:
        run = await engine.trigger(waits)
        await settle()
        await crash(engine)
    async with running(waits, hangs, max_recoveries=0) as engine:
        (child,) = await engine.runs.list(job="hangs")
        ended = [frame.status for frame in await timeline(engine, child) if frame.kind == "run_status"][2:]
        assert (await engine.runs.get(run.id)).status == RunStatus.DEAD
    assert ended == ([RunStatus.CANCELLED] if comes_later else [RunStatus.PENDING, RunStatus.CANCELLED])


async def test_a_parent_that_hears_of_its_dead_child_comes_further_and_is_not_dead_with_it(running):
    """Both were executing when their engine died for the first time; the child is taken back first."""

    begun: list[str] = []

    async def hang() -> None:
        begun.append("hang")
        await asyncio.Event().wait()

    @job("hangs")
    async def hangs(ctx: Context, _: None) -> None:
        await ctx.step("hang", hang)

    @job("waits")
    async def waits(ctx: Context, _: None) -> str:
        names = (str(number) for number in itertools.count())
        name = next(name for name in names if derive(ctx.run_id, name) < ctx.run_id)
        nap = asyncio.ensure_future(ctx.step("hang", asyncio.Event().wait))
        try:
            return await ctx.run_job(name, hangs)
        except ChildFailed as error:
            return error.error_type
        finally:
            nap.cancel()

    for deaths in range(2):
        async with running(waits, hangs, max_recoveries=1) as engine:
            run = await engine.trigger(waits, idempotency_key="once")
            while len(begun) == deaths:
                await asyncio.sleep(0)
            await crash(engine)
    async with running(waits, hangs, max_recoveries=1) as engine:
        run = await finish(engine, run)
    assert (run.status, run.output) == (RunStatus.COMPLETED, "CrashLoop")


async def test_an_input_that_does_not_fit_is_the_parents_error_and_starts_nothing(running):
    @dataclass
    class Letter:
        text: str

    @job("print", input=Letter)
    async def print_letter(ctx: Context, letter: Letter) -> None: ...

    @job("careless")
    async def careless(ctx: Context, _: None) -> str:
        with pytest.raises(InvalidInput):
            await ctx.run_job("print", print_letter, {"ink": "black"})
        with pytest.raises(JobNotFound):
            await ctx.run_job("nobody", "nobody")
        with pytest.raises(TypeError, match="idempotency_key"):
            await ctx.run_job("doubled", double, 1, idempotency_key="x")
        return "caught"

    async with running(careless, double, print_letter) as engine:
        assert (await finish(engine, await engine.trigger(careless))).output == "caught"
        assert len(await engine.runs.list()) == 1


async def test_a_child_takes_labels_priority_and_a_time_to_begin(running):
    clock = MockClock()
    run_at = datetime.fromtimestamp(clock.now() / 1000 + 3600, UTC)

    @job("plans")
    async def plans(ctx: Context, _: None) -> int:
        return await ctx.run_job("later", double, 21, labels={"kind": "night"}, priority=7, run_at=run_at)

    async with running(plans, double, clock=clock) as engine:
        run = await engine.trigger(plans)
        await clock.advance(3599)
        child = await child_of(engine, run, "later")
        assert (child.status, child.priority, child.run_at) == (RunStatus.PENDING, 7, run_at)
        assert [found.id for found in await engine.runs.list(labels={"kind": "night"})] == [child.id]
        await clock.advance(2)
        assert (await finish(engine, run)).output == 42


# --- how it waits ----------------------------------------------------------------------------------------------------


async def test_while_it_waits_the_parent_is_parked_and_tells_for_what(running):
    async with running(waits_for_endless, endless) as engine:
        run = await engine.trigger(waits_for_endless)
        run = await reach(engine, run.id, RunStatus.WAITING)
        (step,) = await engine.runs.steps(run.id)
        await reach(engine, derive(run.id, "wait"), RunStatus.WAITING)
        await engine.runs.resume(derive(run.id, "wait"))
        frames = await timeline(engine, run)
    assert run.waiting_reason == "it waits for child run 'wait'"
    assert (step.kind, step.status, step.waiting_for) == ("child", StepStatus.RUNNING, "child run 'wait'")
    kinds = [(frame.type, frame.status) for frame in frames if frame.kind == "step_status"]
    assert kinds == [("child", "running"), ("child", "completed")]


async def test_with_one_slot_a_parent_and_its_descendants_do_not_block_each_other(running):
    @job("nest")
    async def nest(ctx: Context, depth: int) -> int:
        return 0 if depth == 0 else 1 + await ctx.run_job("below", "nest", depth - 1)

    async with running(nest, max_concurrent_runs=1) as engine:
        assert (await finish(engine, await engine.trigger(nest, 6))).output == 6


async def test_children_in_a_gather_and_in_a_task_group_run_side_by_side(running):
    all_four = asyncio.Barrier(4)

    @job("meet")
    async def meet(ctx: Context, number: int) -> int:
        await ctx.step("meet the others", all_four.wait)
        return number

    @job("invites")
    async def invites(ctx: Context, _: None) -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.run_job(f"task {number}", meet, number)) for number in range(2)]
            gathered = await asyncio.gather(*(ctx.run_job(f"gather {number}", meet, number) for number in (2, 3)))
        return [task.result() for task in tasks] + gathered

    async with running(invites, meet) as engine:
        assert (await finish(engine, await engine.trigger(invites))).output == [0, 1, 2, 3]


async def test_the_second_child_of_one_name_is_another_one(running):
    @job("twice")
    async def twice(ctx: Context, _: None) -> list[int]:
        return [await ctx.run_job("doubled", double, number) for number in (1, 2)]

    async with running(twice, double) as engine:
        run = await finish(engine, await engine.trigger(twice))
        assert (await child_of(engine, run, "doubled#2")).input == 2
    assert run.output == [2, 4]


async def test_what_was_a_step_and_comes_back_as_a_child_fails_the_run(running):
    @job("changes")
    async def changes(ctx: Context, _: None) -> None:
        if ctx.attempt == 1:
            await ctx.step("work", lambda: 1)
            await asyncio.Event().wait()
        await ctx.run_job("work", double, 1)

    async with running(changes, double) as engine:
        run = await engine.trigger(changes)
        while (await engine.runs.get(run.id)).completed_steps < 1:
            await asyncio.sleep(0.003)
        await crash(engine)
    async with running(changes, double) as engine:
        run = await finish(engine, run)
        assert len(await engine.runs.list()) == 1
    assert (run.status, run.error.type) == (RunStatus.FAILED, "NonDeterminismError")


@pytest.mark.parametrize("max_parked", [0, 10])
async def test_a_parent_goes_on_whether_it_stayed_in_memory_or_not(running, max_parked):
    begun: list[int] = []

    @job("counts")
    async def counts(ctx: Context, _: None) -> None:
        begun.append(ctx.attempt)
        await ctx.run_job("wait", endless)

    async with running(counts, endless, max_parked=max_parked) as engine:
        run = await engine.trigger(counts)
        await reach(engine, run.id, RunStatus.WAITING)
        await reach(engine, derive(run.id, "wait"), RunStatus.WAITING)
        await engine.runs.resume(derive(run.id, "wait"))
        assert (await finish(engine, run)).status == RunStatus.COMPLETED
    assert len(begun) == (2 if max_parked == 0 else 1)


async def test_a_child_that_has_ended_needs_its_job_no_longer(running):
    begun: list[int] = []

    @job("remembers")
    async def remembers(ctx: Context, _: None) -> int:
        begun.append(ctx.attempt)
        doubled = await ctx.run_job("doubled", "double", 4)
        if len(begun) == 1:
            await ctx.step("stop here", asyncio.Event().wait)
        return doubled

    async with running(remembers, double) as engine:
        run = await engine.trigger(remembers)
        while (await engine.runs.get(run.id)).completed_steps < 1:
            await asyncio.sleep(0.003)
        await crash(engine)
    async with running(remembers) as engine:
        run = await finish(engine, run)
    assert run.output == 8
