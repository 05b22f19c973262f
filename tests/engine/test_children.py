"""Child runs: started once, awaited across everything, and cancelled with whoever waits for them."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from crashing import dying, survive_every_death
from watching import finish, on_a_desk_only, reach, timeline

from durable_web import (
    ChildFailed,
    Context,
    Engine,
    InvalidInput,
    JobNotFound,
    Run,
    RunStatus,
    StepStatus,
    StorageError,
    job,
)
from durable_web.identifiers import derive
from durable_web.model import to_wire
from durable_web.testing import MockClock, crash, settle


@job("double")
async def double(ctx: Context, number: int) -> int:
    return await ctx.step("double", lambda: number * 2)


@job("parent")
async def parent(ctx: Context, number: int) -> int:
    return await ctx.run_job("doubled", double, number)


@job("broken")
async def broken(ctx: Context, _: Any) -> None:
    raise ValueError("out of paper")


@job("endless")
async def endless(ctx: Context, _: Any) -> None:
    await ctx.breakpoint("for ever")


@job("waits-for-endless")
async def waits_for_endless(ctx: Context, _: Any) -> None:
    await ctx.run_job("wait", endless)


async def child_of(engine: Engine, run: Run, step: str = "wait") -> Run:
    return await engine.get_run(derive(run.id, step))


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
        assert await engine.list_runs(parent=run.id) == [await child_of(engine, run, "doubled")]


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


async def test_a_child_failure_that_nobody_catches_fails_the_parent(running):
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
        await engine.cancel(derive(run.id, "wait"))
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
        assert (await engine.get_run(run.id)).status == RunStatus.WAITING
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
        await asyncio.Event().wait()

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
        await crash(engine)
    for _ in range(2):
        async with running(*jobs, max_recoveries=1) as engine:
            with suppress(TimeoutError):
                run = await engine.wait_for_run(run.id, timeout=0.1)
            await crash(engine)
    assert run.output == "CrashLoop"


@pytest.mark.parametrize("comes_later", [True, False])
async def test_a_child_that_goes_with_its_dead_parent_is_cancelled_and_not_dead_itself(running, comes_later):
    """Both were executing when their engine died; which of the two is taken back first depends on their ids."""

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
        (child,) = await engine.list_runs(job="hangs")
        ended = [frame.status for frame in await timeline(engine, child) if frame.kind == "run_status"][2:]
        assert (await engine.get_run(run.id)).status == RunStatus.DEAD
    assert ended == ([RunStatus.CANCELLED] if comes_later else [RunStatus.DEAD])


async def test_a_parent_that_hears_of_its_dead_child_comes_further_and_is_not_dead_with_it(running):
    """Both were executing when their engine died for the last time; the child is taken back first."""

    @job("hangs")
    async def hangs(ctx: Context, _: None) -> None:
        await asyncio.Event().wait()

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

    for _ in range(2):
        async with running(waits, hangs, max_recoveries=1) as engine:
            run = await engine.trigger(waits, idempotency_key="once")
            await settle()
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
        assert len(await engine.list_runs()) == 1


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
        assert [found.id for found in await engine.list_runs(labels={"kind": "night"})] == [child.id]
        await clock.advance(2)
        assert (await finish(engine, run)).output == 42


# --- how it waits ----------------------------------------------------------------------------------------------------


async def test_while_it_waits_the_parent_is_parked_and_tells_for_what(running):
    async with running(waits_for_endless, endless) as engine:
        run = await engine.trigger(waits_for_endless)
        run = await reach(engine, run.id, RunStatus.WAITING)
        (step,) = await engine.get_steps(run.id)
        await engine.resume(derive(run.id, "wait"))
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
    both = asyncio.Barrier(4)

    @job("meet")
    async def meet(ctx: Context, number: int) -> int:
        await both.wait()
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
        while (await engine.get_run(run.id)).completed_steps < 1:
            await asyncio.sleep(0.003)
        await crash(engine)
    async with running(changes, double) as engine:
        run = await finish(engine, run)
        assert len(await engine.list_runs()) == 1
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
        await engine.resume(derive(run.id, "wait"))
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
        while (await engine.get_run(run.id)).completed_steps < 1:
            await asyncio.sleep(0.003)
        await crash(engine)
    async with running(remembers) as engine:
        run = await finish(engine, run)
    assert run.output == 8


# --- crashes ---------------------------------------------------------------------------------------------------------


async def test_the_start_of_a_child_and_the_record_of_it_are_one_transaction(running, database_path):
    seen: set[bool] = set()
    for when in ("before", "after"):
        for number in range(1, 6):
            async with dying(running(parent, double), when, number) as (engine, point):
                with suppress(StorageError):
                    run = await engine.trigger(parent, 4, idempotency_key=f"{when} {number}")
                await point
            looker = Engine(database_path, exclusive=True)
            await looker.start(claim=False)
            for run in await looker.list_runs(job="parent"):
                is_recorded = any(step.kind == "child" for step in await looker.get_steps(run.id))
                is_started = any(found.parent_run_id == run.id for found in await looker.list_runs(job="double"))
                assert is_recorded == is_started
                seen.add(is_recorded)
            await looker.stop()
    assert seen == {True, False}


@pytest.mark.parametrize("slots", [1, 10])  # with one the parent is parked, with ten the child is faster
async def test_a_parent_that_dies_at_any_commit_has_one_child_and_its_output(running, slots):
    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(parent, 4, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.output) == (RunStatus.COMPLETED, 8)
        assert [step.name for step in await engine.get_steps(run.id)] == ["doubled"]
        assert (await child_of(engine, run, "doubled")).completed_steps == 1

    await survive_every_death(running, [parent, double], play, check, max_concurrent_runs=slots)


@pytest.mark.parametrize("slots", [1, 10])  # with one the parent is parked, with ten the child is faster
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
        await engine.wait_for_run(run.output)
        return run

    async def check(engine: Engine, key: str, run: Run) -> None:
        started = await engine.get_run(run.output)
        assert (started.id, started.output) == (derive(run.id, "start"), 10)
        (step,) = await engine.get_steps(run.id)
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
                while (await engine.list_runs(search=id) or [run])[0].status in (RunStatus.PENDING, RunStatus.LEASED):
                    await asyncio.sleep(0.003)
            await engine.cancel(run.id)
        return [await engine.get_run(id) for id in ids]

    async def check(engine: Engine, key: str, family: list[Run]) -> None:
        assert [run.status for run in family] == [RunStatus.CANCELLED] * 3

    await survive_every_death(running, [grandparent, waits_for_endless, endless], play, check)


@on_a_desk_only("OPFS has one engine per file")
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
            assert (await first.get_run(derive(run.id, "wait"))).lease_owner == other._dispatcher._owner
            assert (await first.get_run(run.id)).status == RunStatus.WAITING
            await crash(first)
        other._dispatcher.claim(0)
        gate.set()
        await settle()
        async with running(asks, slow, clock=clock, exclusive=False) as second:
            await clock.advance(1)
            run = await finish(second, run)
        assert run.output == "done elsewhere"


@on_a_desk_only("OPFS has one engine per file")
async def test_a_parent_in_one_engine_goes_on_when_its_child_ends_in_another(running):
    clock = MockClock()

    @job("asks")
    async def asks(ctx: Context, number: int) -> int:
        doubled = await ctx.run_job("doubled", "double", number)
        return doubled + 1

    async with running(asks, double, clock=clock, exclusive=False) as first:
        first._dispatcher.claim(1)  # the parent, and nothing more
        run = await first.trigger(asks, 4)
        await clock.advance(0.1)
        assert (await first.get_run(run.id)).status == RunStatus.WAITING
        first._dispatcher.claim(0)
        async with running(asks, double, clock=clock, exclusive=False) as second:
            second._dispatcher.claim(1)
            await clock.advance(0.1)
            assert (await second.get_run(derive(run.id, "doubled"))).status == RunStatus.COMPLETED
            first._dispatcher.claim()
            await clock.advance(2)
            assert (await finish(first, run)).output == 9


@on_a_desk_only("OPFS has one engine per file")
async def test_a_child_that_ends_in_another_engine_just_before_its_parent_is_parked_is_not_missed(running):
    clock = MockClock()  # stands still: neither engine looks for what the other one has done
    options = {"clock": clock, "exclusive": False}
    async with running(parent, double, **options) as first, running(parent, double, **options) as second:
        first._dispatcher.claim(1)
        second._dispatcher.claim(0)
        run = await first.trigger(parent, 4)
        while not await first.list_runs(job="double"):
            await asyncio.sleep(0)
        second._dispatcher.claim(1)
        assert (await first.get_run(run.id)).status == RunStatus.LEASED
        await settle()
        frames = [frame.to_frame() for frame in first._store.read_frames(run.id, 0, 100)]
    assert [frame.status for frame in frames if frame.kind == "run_status"] == ["pending", "leased", "completed"]


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
            while id not in [found.id for found in await engine.list_runs(status="waiting")]:
                await asyncio.sleep(0.003)
        await engine.cancel(run.id)
        statuses = [(await engine.get_run(id)).status for id in ids]
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
        await engine.cancel(run.id)
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
        steps = {step.name: step.status for step in await engine.get_steps(run.id)}
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
        children = [found for found in await engine.list_runs() if found.id != run.id]
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
        run, child = await engine.get_run(run.id), await child_of(engine, run)
        frames = [frame.to_frame() for frame in engine._store.read_frames(child.id, 0, 100)]
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
        await engine.retry(run.id)
        run = await finish(engine, run)
        assert len(await engine.list_runs()) == 2
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
        await engine.retry(derive(run.id, "wait"))
        await finish(engine, await child_of(engine, run))
        assert (await engine.get_run(run.id)).status == RunStatus.FAILED
        await engine.retry(run.id)
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
        await engine.delete_run(derive(run.id, "wait"))
        await engine.retry(run.id)
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
        await engine.cancel(child_id)
        while (await engine.get_run(run.id)).waiting_reason != "it waits for breakpoint 'stay' to be resumed":
            await asyncio.sleep(0.003)
        await engine.retry(child_id)
        await reach(engine, child_id, RunStatus.WAITING)
        await engine.resume(child_id)
        await finish(engine, await engine.get_run(child_id))
        (wait, _) = await engine.get_steps(run.id)
        assert wait.status == StepStatus.FAILED
        await engine.cancel(run.id)


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
        await engine.cancel(child.id)
        await engine.retry(child.id)
        await settle()
        await engine.resume(run.id)
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
        await engine.resume(started.id)
        assert (await finish(engine, started)).status == RunStatus.COMPLETED
