"""Sagas: what a run has done is undone, the latest first, when it fails or is cancelled so."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sagas import fail, saga, statuses, wait_at_breakpoint
from watching import finish, reach, timeline

from durable_web import Context, RunStatus, StepFailed, StepStatus, job
from durable_web._identifiers import derive
from durable_web.testing import MockClock, crash, settle

# --- when, and in which order ----------------------------------------------------------------------------------------


async def test_a_run_that_fails_undoes_its_steps_the_latest_first_and_ends_with_its_own_error(running):
    undone: list[str] = []
    async with running(order := saga(undone, ["reserve", "charge", "ship"])) as engine:
        run = await engine.trigger(order)
        frames = await timeline(engine, run)
        run = await engine.runs.get(run.id)
        steps = await engine.runs.steps(run.id)
    assert undone == ["SHIP", "CHARGE", "RESERVE"]
    assert (run.status, run.error.type, run.failed_step) == (RunStatus.FAILED, "StepFailed", "fail")
    assert "out of stock" in run.error.message
    compensations = [step for step in steps if step.kind == "compensation"]
    assert [step.name for step in compensations] == ["compensate:ship", "compensate:charge", "compensate:reserve"]
    assert {step.status for step in compensations} == {StepStatus.COMPLETED}
    assert [frame.status for frame in frames if frame.kind == "run_status"] == [
        RunStatus.PENDING,
        RunStatus.RUNNING,
        RunStatus.CANCELLING,
        RunStatus.FAILED,
    ]
    told = [frame.name for frame in frames if frame.kind == "step_status" and frame.type == "compensation"]
    assert told == [step.name for step in compensations]


async def test_the_undo_gets_what_the_step_returned_as_its_annotation_says(running):
    got: list[datetime] = []

    def book() -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC)

    @job("book")
    async def book_job(ctx: Context, _: None) -> None:
        await ctx.step("book", book, compensate=got.append)
        fail()

    async with running(book_job) as engine:
        await finish(engine, await engine.trigger(book_job))
    assert got == [datetime(2030, 1, 1, tzinfo=UTC)]


async def test_steps_side_by_side_are_undone_in_the_reverse_order_of_their_completion(running):
    undone: list[str] = []
    turns = [asyncio.Event() for _ in range(4)]

    async def wait(number: int) -> str:
        await turns[number].wait()
        turns[(number + 2) % 4].set()  # 1, 3; then 0, 2 is set by hand
        return str(number)

    @job("parallel")
    async def parallel(ctx: Context, _: None) -> None:
        await asyncio.gather(
            *(ctx.step(f"step {number}", wait, number, compensate=undone.append) for number in range(4))
        )
        fail()

    async with running(parallel) as engine:
        run = await engine.trigger(parallel)
        turns[1].set()
        while (await engine.runs.get(run.id)).completed_steps < 2:
            await asyncio.sleep(0.003)
        turns[2].set()
        await finish(engine, run)
    assert undone == ["0", "2", "3", "1"]


async def test_an_undo_may_be_asynchronous_and_return_what_cannot_be_stored(running):
    undone: list[str] = []

    async def undo(result: str) -> object:
        await asyncio.sleep(0)
        undone.append(result)
        return object()

    @job("asynchronous")
    async def asynchronous(ctx: Context, _: None) -> None:
        await ctx.step("do", lambda: "done", compensate=undo)
        fail()

    async with running(asynchronous) as engine:
        run = await finish(engine, await engine.trigger(asynchronous))
        assert await statuses(engine, run) == {"compensate:do": "completed"}
    assert undone == ["done"]


async def test_a_step_that_failed_or_has_no_compensation_is_not_undone(running):
    undone: list[str] = []

    @job("partly")
    async def partly(ctx: Context, _: None) -> None:
        await ctx.step("plain", lambda: "plain")
        await ctx.step("kept", lambda: "kept", compensate=undone.append)
        await ctx.step("failing", fail, compensate=undone.append)

    async with running(partly) as engine:
        run = await finish(engine, await engine.trigger(partly))
    assert (undone, run.failed_step) == (["kept"], "failing")


async def test_a_failure_that_is_caught_undoes_nothing(running):
    undone: list[str] = []

    async def catch(ctx: Context) -> None:
        with pytest.raises(StepFailed):
            await ctx.step("fail", fail)

    async with running(order := saga(undone, ["reserve"], catch)) as engine:
        run = await finish(engine, await engine.trigger(order))
        assert await statuses(engine, run) == {}
    assert (run.status, undone) == (RunStatus.COMPLETED, [])


async def test_a_run_that_completes_undoes_nothing(running):
    undone: list[str] = []
    async with running(order := saga(undone, ["reserve"], lambda ctx: asyncio.sleep(0))) as engine:
        run = await finish(engine, await engine.trigger(order))
    assert (run.status, undone) == (RunStatus.COMPLETED, [])


async def test_code_that_no_longer_matches_its_history_undoes_nothing_and_keeps_the_history(running):
    undone: list[str] = []

    async def change(ctx: Context) -> None:
        if ctx.attempt == 1:
            await ctx.step("pay", lambda: 1)
            await asyncio.Event().wait()
        await ctx.sleep("pay", 1)

    order = saga(undone, ["reserve"], change)
    async with running(order) as engine:
        run = await engine.trigger(order)
        while (await engine.runs.get(run.id)).completed_steps < 2:
            await asyncio.sleep(0.003)
        await crash(engine)
    async with running(order) as engine:
        run = await finish(engine, run)
        assert [step.name for step in await engine.runs.steps(run.id)] == ["reserve", "pay"]
    assert (run.status, run.error.type, undone) == (RunStatus.FAILED, "NonDeterminismError", [])


async def test_a_step_of_another_branch_is_cancelled_first_and_undone_if_it_completed(running):
    told: list[str] = []

    begun: list[str] = []
    both_begun = asyncio.Event()

    def begin(step: str) -> None:
        begun.append(step)
        if len(begun) == 2:
            both_begun.set()

    async def fail_then() -> None:
        await both_begun.wait()
        fail()

    async def insist() -> str:
        begin("insist")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("asked to stop")
        await asyncio.sleep(0.003)
        told.append("came to its end")
        return "insisted"

    async def obey() -> str:
        begin("obey")
        try:
            await asyncio.Event().wait()
        finally:
            told.append("obeyed")
        return "never"

    @job("branches")
    async def branches(ctx: Context, _: None) -> None:
        await ctx.step("first", lambda: "first", compensate=told.append)
        await asyncio.gather(
            ctx.step("insist", insist, compensate=told.append),
            ctx.step("obey", obey, compensate=told.append),
            ctx.sleep("sleep", 3600),
            ctx.step("fail", fail_then),
        )

    async with running(branches) as engine:
        run = await finish(engine, await engine.trigger(branches))
        steps = {step.name: step.status for step in await engine.runs.steps(run.id)}
    assert sorted(told[:2]) == ["asked to stop", "obeyed"]
    assert told[2:] == ["came to its end", "insisted", "first"]
    assert run.failed_step == "fail"
    assert (steps["insist"], steps["obey"], steps["sleep"]) == ("completed", "cancelled", "cancelled")


async def test_a_deadline_that_passes_undoes_what_was_done(running):
    clock = MockClock()
    undone: list[str] = []
    async with running(order := saga(undone, ["reserve"], wait_at_breakpoint), clock=clock) as engine:
        run = await engine.trigger(order, deadline=datetime.fromtimestamp(clock.now() / 1000 + 60, UTC))
        await clock.advance(59)
        assert undone == []
        await clock.advance(2)
        run = await engine.runs.get(run.id)
    assert (run.status, run.error.type, undone) == (RunStatus.FAILED, "DeadlineExceeded", ["RESERVE"])


async def test_a_run_that_fails_while_it_is_paused_undoes_its_steps_all_the_same(running):
    gate = asyncio.Event()
    undone: list[str] = []

    async def fail_when_told(ctx: Context) -> None:
        async def wait_and_fail() -> None:
            await gate.wait()
            fail()

        await ctx.step("fail", wait_and_fail)

    async with running(order := saga(undone, ["reserve", "charge"], fail_when_told)) as engine:
        run = await engine.trigger(order)
        await settle()
        await engine.runs.pause(run.id)
        gate.set()
        run = await finish(engine, run)
    assert (run.status, run.paused, undone) == (RunStatus.FAILED, False, ["CHARGE", "RESERVE"])


# --- cancelling ------------------------------------------------------------------------------------------------------


async def test_cancelling_with_compensation_returns_at_once_and_ends_as_cancelled(running):
    undone: list[str] = []
    async with running(order := saga(undone, ["reserve", "charge"], wait_at_breakpoint)) as engine:
        run = await engine.trigger(order)
        await reach(engine, run.id, RunStatus.WAITING)
        returned = await engine.runs.cancel(run.id, compensate=True)
        assert (returned.status, returned.ending, undone) == (RunStatus.CANCELLING, "cancelled", [])
        run = await finish(engine, run)
    assert (run.status, run.error, run.ending) == (RunStatus.CANCELLED, None, None)
    assert undone == ["CHARGE", "RESERVE"]


async def test_cancelling_without_compensation_undoes_nothing(running):
    undone: list[str] = []
    async with running(order := saga(undone, ["reserve"], wait_at_breakpoint)) as engine:
        run = await engine.trigger(order)
        await reach(engine, run.id, RunStatus.WAITING)
        assert (await engine.runs.cancel(run.id)).status == RunStatus.CANCELLED
    assert undone == []


async def test_a_run_that_has_nothing_to_undo_is_cancelled_at_once(running):
    async with running(order := saga([], [], wait_at_breakpoint)) as engine:
        run = await engine.trigger(order)
        await reach(engine, run.id, RunStatus.WAITING)
        assert (await engine.runs.cancel(run.id, compensate=True)).status == RunStatus.CANCELLED


async def test_an_executing_step_has_ended_before_anything_is_undone(running):
    told: list[str] = []
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            told.append("cleaned up")

    async with running(order := saga(told, ["reserve"], lambda ctx: ctx.step("work", work))) as engine:
        run = await engine.trigger(order)
        await begun.wait()
        await engine.runs.cancel(run.id, compensate=True)
        run = await finish(engine, run)
    assert told == ["cleaned up", "RESERVE"]
    assert run.status == RunStatus.CANCELLED


async def test_a_second_cancellation_with_compensation_changes_nothing_and_one_without_stops_it(running):
    gate, undone = asyncio.Event(), []

    async def undo(name: str) -> None:
        await gate.wait()
        undone.append(name)

    @job("held")
    async def held(ctx: Context, name: str) -> None:
        await ctx.step("first", lambda: f"{name} first", compensate=undone.append)
        await ctx.step("second", lambda: f"{name} second", compensate=undo)
        fail("the original error")

    async with running(held) as engine:
        patient, stopped = [await engine.trigger(held, name) for name in ("patient", "stopped")]
        for run in (patient, stopped):
            await reach(engine, run.id, RunStatus.CANCELLING)
        assert (await engine.runs.cancel(patient.id, compensate=True)).status == RunStatus.CANCELLING
        assert (await engine.runs.cancel(stopped.id)).status == RunStatus.CANCELLED
        gate.set()
        patient = await finish(engine, patient)
        stopped = await engine.runs.get(stopped.id)
    assert (patient.status, patient.error.message) == (RunStatus.FAILED, "the original error")
    assert stopped.status == RunStatus.CANCELLED
    assert undone == ["patient second", "patient first"]


async def test_children_that_have_something_to_undo_do_so_too(running):
    undone: list[str] = []

    @job("deliver")
    async def deliver(ctx: Context, name: str) -> None:
        await ctx.step("load", lambda: f"load {name}", compensate=undone.append)
        await ctx.breakpoint("on the road")

    @job("order")
    async def order(ctx: Context, _: None) -> None:
        await ctx.step("reserve", lambda: "reserve", compensate=undone.append)
        await ctx.start_job("aside", deliver, "aside")
        await ctx.run_job("deliver", deliver, "awaited")

    async with running(order, deliver) as engine:
        run = await engine.trigger(order)
        ids = [run.id, derive(run.id, "aside"), derive(run.id, "deliver")]
        for id in ids:
            while id not in [found.id for found in await engine.runs.list(status="waiting")]:
                await asyncio.sleep(0.003)
        await engine.runs.cancel(run.id, compensate=True)
        ended = [(await engine.runs.wait(id, timeout=5)).status for id in ids]
    assert ended == [RunStatus.CANCELLED] * 3
    assert sorted(undone) == ["load aside", "load awaited", "reserve"]


async def test_a_child_that_its_failing_parent_waits_for_undoes_what_it_has_done(running):
    undone: list[str] = []
    loaded = asyncio.Event()

    @job("deliver")
    async def deliver(ctx: Context, _: None) -> None:
        await ctx.step("load", lambda: "load", compensate=undone.append)
        loaded.set()
        await ctx.breakpoint("on the road")

    @job("order")
    async def order(ctx: Context, _: None) -> None:
        await ctx.step("reserve", lambda: "reserve", compensate=undone.append)

        async def fail_when_loaded() -> None:
            await loaded.wait()
            fail()

        await asyncio.gather(ctx.run_job("deliver", deliver), ctx.step("fail", fail_when_loaded))

    async with running(order, deliver) as engine:
        run = await finish(engine, await engine.trigger(order))
        child = await engine.runs.wait(derive(run.id, "deliver"), timeout=5)
    assert (run.status, child.status) == (RunStatus.FAILED, RunStatus.CANCELLED)
    assert sorted(undone) == ["load", "reserve"]


async def test_a_paused_run_can_be_cancelled_with_compensation(running):
    undone: list[str] = []
    async with running(order := saga(undone, ["reserve"], wait_at_breakpoint)) as engine:
        run = await engine.trigger(order)
        await reach(engine, run.id, RunStatus.WAITING)
        await engine.runs.pause(run.id)
        await engine.runs.cancel(run.id, compensate=True)
        run = await finish(engine, run)
    assert (run.status, run.paused, undone) == (RunStatus.CANCELLED, False, ["RESERVE"])
