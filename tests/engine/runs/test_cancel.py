"""Cancelling: the status is committed first, and nothing of the run is written after it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from watching import cpython_only, finish, timeline

from durable_web import Context, RunNotActive, RunNotFound, RunStatus, StepStatus, job
from durable_web.testing import MockClock, settle


async def test_a_run_is_cancelled_in_the_middle_of_a_step(running):
    begun = asyncio.Event()
    clock = MockClock()

    async def wait_for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    @job("wait")
    async def wait_job(ctx: Context, _: None) -> None:
        await ctx.step("wait", wait_for_ever)
        await ctx.step("never", lambda: None)

    async with running(wait_job, clock=clock) as engine:
        run = await engine.trigger("wait")
        await begun.wait()
        await clock.advance(0.1)
        assert (await engine.runs.cancel(run.id)).status == RunStatus.CANCELLED
        frames = await timeline(engine, run)
        (step,) = await engine.runs.steps(run.id)
    assert step.status == StepStatus.CANCELLED
    assert [getattr(frame, "status", "") for frame in frames][-2:] == [StepStatus.CANCELLED, RunStatus.CANCELLED]


async def test_a_pending_run_is_cancelled_and_never_begins(running):
    @job("never")
    async def never(ctx: Context, _: None) -> None:
        raise AssertionError("it must not begin")

    @job("block")
    async def block(ctx: Context, _: None) -> None:
        await asyncio.Event().wait()

    async with running(never, block, max_concurrent_runs=1) as engine:
        blocker = await engine.trigger("block")
        run = await engine.trigger("never")
        await engine.runs.cancel(run.id)
        await engine.runs.cancel(blocker.id)
        run = await finish(engine, run)
    assert run.status == RunStatus.CANCELLED
    assert run.attempt == 0


async def test_a_job_that_swallows_the_cancellation_stays_cancelled_and_can_do_nothing_more(running):
    begun = asyncio.Event()
    tried: list[str] = []

    @job("stubborn")
    async def stubborn(ctx: Context, _: None) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert ctx.cancelled
        for attempt in (lambda: ctx.log.info("still here"), lambda: ctx.progress(1)):
            try:
                attempt()
            except Exception:
                tried.append("was told by an Exception")
            except BaseException:
                tried.append("unwound")
        with contextlib.suppress(BaseException):  # the worst that a job can do
            await ctx.step("more", lambda: tried.append("step called"))
        return "done anyway"

    async with running(stubborn) as engine:
        run = await engine.trigger("stubborn")
        await begun.wait()
        await engine.runs.cancel(run.id)
        while engine.internals.dispatcher.executing:
            await asyncio.sleep(0)
        run = await engine.runs.get(run.id)
    assert run.status == RunStatus.CANCELLED
    assert run.output is None
    assert tried == ["unwound", "unwound"]


async def test_only_an_active_run_can_be_cancelled(running):
    @job("done")
    async def done(ctx: Context, _: None) -> None: ...

    async with running(done) as engine:
        run = await finish(engine, await engine.trigger("done"))
        with pytest.raises(RunNotActive, match="already ended as 'completed'"):
            await engine.runs.cancel(run.id)
        with pytest.raises(RunNotFound):
            await engine.runs.cancel("nobody")
        assert (await engine.runs.get(run.id)).status == RunStatus.COMPLETED


async def test_a_job_that_raises_cancelled_error_by_itself_has_failed(running):
    @job("odd")
    async def odd(ctx: Context, _: None) -> None:
        raise asyncio.CancelledError

    async with running(odd) as engine:
        run = await finish(engine, await engine.trigger("odd"))
    assert run.status == RunStatus.FAILED
    assert run.error.type == "CancelledError"


async def test_a_run_that_is_deleted_while_its_code_still_runs_does_not_come_back(running):
    begun, gate = asyncio.Event(), asyncio.Event()

    @job("stubborn")
    async def stubborn(ctx: Context, _: None) -> str:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await gate.wait()
        return "done anyway"

    async with running(stubborn) as engine:
        run = await engine.trigger("stubborn")
        await begun.wait()
        await engine.runs.cancel(run.id)
        await engine.runs.delete(run.id)
        gate.set()
        while engine.internals.dispatcher.executing:
            await asyncio.sleep(0)
        assert await engine.runs.list() == []
        assert await engine.runs.count() == {}


async def test_lines_written_before_the_cancellation_are_kept_and_come_before_it(running):
    written = asyncio.Event()

    async def write_and_wait(ctx: Context) -> None:
        ctx.log.info("so far")
        written.set()
        await asyncio.Event().wait()

    @job("talkative")
    async def talkative(ctx: Context, _: None) -> None:
        await ctx.step("wait", write_and_wait, ctx)

    async with running(talkative, clock=MockClock()) as engine:
        run = await engine.trigger("talkative")
        await written.wait()
        await engine.runs.cancel(run.id)  # while the line still rides along with no commit: the clock stands still
        frames = [frame async for frame in engine.runs.watch(run.id)]
    told = [getattr(frame, "message", getattr(frame, "status", "")) for frame in frames]
    assert told == ["pending", "running", "running", "so far", "cancelled", "cancelled"]


async def test_a_job_can_leave_by_itself_when_its_run_was_cancelled(running):
    noticed: list[bool] = []
    gate = asyncio.Event()

    @job("polite")
    async def polite(ctx: Context, _: None) -> None:
        ctx.raise_if_cancelled()  # not yet
        with contextlib.suppress(asyncio.CancelledError):
            await gate.wait()
        noticed.append(ctx.cancelled)
        try:
            ctx.raise_if_cancelled()
        except Exception:
            noticed.append(False)  # what leaves a job cannot be caught by accident
        noticed.append(False)

    async with running(polite) as engine:
        run = await engine.trigger("polite")
        await asyncio.sleep(0)
        assert (run.is_active, run.is_terminal) == (True, False)
        run = await engine.runs.cancel(run.id)
        while engine.internals.dispatcher.executing:
            await asyncio.sleep(0)
        assert (await engine.runs.get(run.id)) == run
    assert (run.status, run.is_active, run.is_terminal) == (RunStatus.CANCELLED, False, True)
    assert noticed == [True]


@pytest.mark.parametrize("where", ["body", "step", "branch", "filter"])
async def test_a_job_that_cancels_its_own_run_is_told_and_frees_its_slot(running, where):
    told: list[str] = []

    async def cancel(ctx: Context) -> None:
        await (engine.runs.cancel_many(job="own") if where == "filter" else engine.runs.cancel(ctx.run_id))
        told.append((await engine.runs.get(ctx.run_id)).status)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("told")
            raise

    @job("own")
    async def own(ctx: Context, _: None) -> None:
        match where:
            case "body" | "filter":
                await cancel(ctx)
            case "step":
                await ctx.step("cancel", cancel, ctx)
            case "branch":
                await asyncio.gather(ctx.step("cancel", cancel, ctx), ctx.step("wait", asyncio.Event().wait))

    @job("next")
    async def next_job(ctx: Context, _: None) -> None: ...

    async with running(own, next_job, max_concurrent_runs=1) as engine:
        run = await engine.trigger("own")
        following = await engine.trigger("next")
        await settle()
        assert (await engine.runs.get(following.id)).status == RunStatus.COMPLETED
        assert (await engine.runs.get(run.id)).status == RunStatus.CANCELLED
    assert told == [RunStatus.CANCELLED, "told"]


async def test_a_run_that_a_listener_cancels_in_the_middle_of_a_commit_may_clean_up_in_peace(running):
    cleaned_up = asyncio.Event()

    @job("heard")
    async def heard(ctx: Context, _: None) -> None:
        try:
            await ctx.step("heard", lambda: None)
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    def cancel(event: object) -> None:
        with contextlib.suppress(StopIteration):
            engine.runs.cancel(event.run_id).send(None)

    async with running(heard) as engine:
        engine.on("step:complete", cancel)
        run = await engine.trigger("heard")
        await settle()
        run = await engine.runs.get(run.id)
    assert (run.status, cleaned_up.is_set()) == (RunStatus.CANCELLED, True)


@cpython_only("OPFS has one engine per file")
@pytest.mark.parametrize("how", ["completes", "fails", "step", "transaction", "parks", "line"])
async def test_what_a_run_comes_to_before_it_hears_of_its_cancellation_elsewhere_is_not_recorded(running, how):
    clock = MockClock()  # which stands still, so no timer looks for changes of the other engine
    gate = asyncio.Event()
    after: list[str] = []

    @job("late")
    async def late(ctx: Context, _: None) -> str:
        await gate.wait()
        match how:
            case "fails":
                raise ValueError("late")
            case "step":
                await ctx.step("late", lambda: 1)
            case "transaction":
                await ctx.transaction("late", lambda connection: connection.execute("CREATE TABLE late (x)") and 1)
            case "parks":
                await ctx.wait_for_signal("late")
            case "line":
                ctx.log.info("late")
                await ctx.step("late", lambda: 1)
        after.append("went on")
        return "done"

    options = {"clock": clock, "exclusive": False}
    async with running(late, **options) as engine, running(max_concurrent_runs=0, **options) as neighbour:
        run = await engine.trigger("late")
        await settle()
        cancelled = await neighbour.runs.cancel(run.id)
        gate.set()
        await settle()
        assert await engine.runs.get(run.id) == cancelled
        assert [step for step in await engine.runs.steps(run.id) if step.status != StepStatus.CANCELLED] == []
        assert [frame for frame in await timeline(engine, run) if frame.kind == "log"] == []
        tables = engine.internals.store.database.rows("SELECT name FROM sqlite_schema WHERE name = 'late'")
        assert tables == []
    assert after == (["went on"] if how == "completes" else [])
    assert cancelled.status == RunStatus.CANCELLED
