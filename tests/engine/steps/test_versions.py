"""Code that changes under active runs: patches within one version, and versions side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from crashing import survive_every_death
from watching import cpython_only, finish, reach, timeline

from durable_web import Context, DuplicateJobError, Engine, Job, Run, RunStatus, job
from durable_web.testing import MockClock, crash, settle


def mail(*, changed: bool, stop: Callable[[Context], Any] | None = None, before: bool = False) -> Job:
    """A job before and after it was changed to send by another provider; it stops somewhere, to be changed there."""

    @job("mail")
    async def send_mail(ctx: Context, _: Any) -> list[str]:
        sent = [await ctx.step("write", lambda: "written")]
        if stop is not None and before:
            await stop(ctx)
        if changed and await ctx.patched("new provider"):
            sent.append(await ctx.step("send by new provider", lambda: "new"))
        else:
            sent.append(await ctx.step("send", lambda: "old"))
        if stop is not None and not before:
            await stop(ctx)
        return sent

    return send_mail


async def stay(ctx: Context) -> None:
    await ctx.breakpoint("stay")


async def hang(ctx: Context) -> None:
    if ctx.attempt == 1:
        await asyncio.Event().wait()


# --- patches ---------------------------------------------------------------------------------------------------------


async def test_a_new_run_goes_the_new_way_and_records_that_it_does(running):
    async with running(changed := mail(changed=True)) as engine:
        run = await finish(engine, await engine.trigger(changed))
        steps = await engine.runs.steps(run.id)
    assert run.output == ["written", "new"]
    assert [(step.name, step.kind, step.output) for step in steps][1] == ("patch:new provider", "patch", True)


async def test_a_run_that_was_past_the_change_goes_on_in_the_old_way(running):
    async with running(old := mail(changed=False, stop=stay)) as engine:
        run = await engine.trigger(old)
        await reach(engine, run.id, RunStatus.WAITING)
    async with running(mail(changed=True, stop=stay)) as engine:
        await engine.runs.resume(run.id)
        assert (await finish(engine, run)).output == ["written", "old"]


async def test_a_run_that_had_not_come_there_goes_the_new_way(running):
    async with running(old := mail(changed=False, stop=stay, before=True)) as engine:
        run = await engine.trigger(old)
        await reach(engine, run.id, RunStatus.WAITING)
    async with running(mail(changed=True, stop=stay, before=True)) as engine:
        await engine.runs.resume(run.id)
        assert (await finish(engine, run)).output == ["written", "new"]


async def test_a_run_that_only_waits_for_something_behind_the_change_was_past_it(running):
    @job("waits")
    async def old(ctx: Context, _: None) -> str:
        await ctx.wait_for_signal("go")
        return "old"

    @job("waits")
    async def new(ctx: Context, _: None) -> str:
        is_new = await ctx.patched("say which")
        await ctx.wait_for_signal("go")
        return "new" if is_new else "old"

    async with running(old) as engine:
        run = await engine.trigger(old)
        await reach(engine, run.id, RunStatus.WAITING)
    async with running(new) as engine:
        await engine.runs.signal(run.id, "go")
        assert (await finish(engine, run)).output == "old"


async def test_a_run_that_was_in_the_middle_of_a_step_behind_the_change_was_past_it(running):
    clock = MockClock()

    @job("works")
    async def old(ctx: Context, _: None) -> str:
        return await ctx.step("work", asyncio.Event().wait)

    @job("works")
    async def new(ctx: Context, _: None) -> str:
        if await ctx.patched("faster"):
            return await ctx.step("work faster", lambda: "new")
        return await ctx.step("work", lambda: "old")

    async with running(old, clock=clock) as engine:
        run = await engine.trigger(old)
        await clock.advance(0.1)  # until it is known that the step has begun
        await crash(engine)
    async with running(new, clock=clock) as engine:
        assert (await finish(engine, run)).output == "old"


async def test_the_answer_is_the_same_in_every_later_execution(running):
    answers: list[bool] = []

    @job("asks")
    async def asks(ctx: Context, _: None) -> None:
        answers.append(await ctx.patched("change"))
        await ctx.step("work", lambda: 1)
        if ctx.attempt < 4:
            await asyncio.Event().wait()

    async with running(asks) as engine:
        run = await engine.trigger(asks)
        await settle()
        await crash(engine)
    for _ in range(3):
        async with running(asks) as engine:
            await settle()
            await crash(engine)
    async with running(asks) as engine:
        assert (await finish(engine, run)).status == RunStatus.COMPLETED
    assert set(answers) == {True}
    assert len(answers) >= 4


async def test_a_loop_that_had_begun_goes_on_in_the_old_way_to_its_end(running):
    def loop(*, changed: bool) -> Job:
        @job("loop")
        async def loop_job(ctx: Context, _: None) -> list[str]:
            done = []
            for number in range(4):
                is_new = changed and await ctx.patched("better")
                done.append(await ctx.step("work", lambda new=is_new: "new" if new else "old"))
                if number == 1:
                    await ctx.breakpoint("stay")
            return done

        return loop_job

    async with running(old := loop(changed=False)) as engine:
        run = await engine.trigger(old)
        await reach(engine, run.id, RunStatus.WAITING)
    async with running(new := loop(changed=True)) as engine:
        await engine.runs.resume(run.id)
        assert (await finish(engine, run)).output == ["old"] * 4
        fresh = await engine.trigger(new)
        await reach(engine, fresh.id, RunStatus.WAITING)
        await engine.runs.resume(fresh.id)
        assert (await finish(engine, fresh)).output == ["new"] * 4


async def test_branches_that_ask_at_the_same_time_get_one_answer_and_one_record(running):
    @job("branches")
    async def branches(ctx: Context, _: None) -> list[bool]:
        async def branch(number: int) -> bool:
            answer = await ctx.patched("change")
            await ctx.step(f"work {number}", lambda: number)
            return answer

        return await asyncio.gather(*(branch(number) for number in range(20)))

    async with running(branches) as engine:
        run = await engine.trigger(branches)
        frames = await timeline(engine, run)
        assert (await engine.runs.get(run.id)).output == [True] * 20
    assert [frame.status for frame in frames if frame.kind == "step_status" and frame.type == "patch"] == ["completed"]


async def test_a_patch_that_dies_at_any_commit_gives_one_answer(running):
    answers: dict[str, set[bool]] = {}

    @job("asks")
    async def asks(ctx: Context, key: str) -> bool:
        await ctx.step("before", lambda: 1)
        answer = await ctx.patched("change")
        await ctx.step("after" if answer else "after in the old way", lambda: 1)
        answers.setdefault(key, set()).add(answer)
        return answer

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(asks, key, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert run.output is True
        assert answers[key] == {True}

    await survive_every_death(running, [asks], play, check)


async def test_what_was_done_before_the_change_is_undone_in_the_old_way(running):
    undone: list[str] = []

    def order(*, changed: bool) -> Job:
        @job("order")
        async def order_job(ctx: Context, _: None) -> None:
            if changed and await ctx.patched("new way"):
                await ctx.step("charge anew", lambda: "new", compensate=undone.append)
            else:
                await ctx.step("charge", lambda: "old", compensate=undone.append)
            await ctx.breakpoint("stay")

        return order_job

    async with running(old := order(changed=False)) as engine:
        run = await engine.trigger(old)
        await reach(engine, run.id, RunStatus.WAITING)
        await engine.stop()
    async with running(order(changed=True), max_concurrent_runs=0) as engine:
        await engine.runs.cancel(run.id, compensate=True)
    async with running(order(changed=True)) as engine:
        run = await finish(engine, run)
    assert (run.status, undone) == (RunStatus.CANCELLED, ["old"])


# --- versions --------------------------------------------------------------------------------------------------------


def versioned(version: str | None, undone: list[str] | None = None) -> Job:
    @job("report", version=version)
    async def report(ctx: Context, _: Any) -> str | None:
        if undone is not None:
            await ctx.step("do", lambda: version, compensate=undone.append)
        await ctx.breakpoint("stay")
        return await ctx.step("sign", lambda: version)

    return report


ONE, TWO = versioned("1"), versioned("2")


async def stopped_at_the_breakpoint(running: Callable[..., Any], item: Job, **options: Any) -> Run:
    """A run of that job that stands at its breakpoint, and no engine."""
    async with running(item, **options) as engine:
        run = await engine.trigger(item)
        return await reach(engine, run.id, RunStatus.WAITING)


async def test_the_version_that_was_registered_last_is_triggered(running):
    async with running(ONE, TWO) as engine:
        assert (await engine.trigger("report")).version == "2"
    async with running(TWO, ONE) as engine:
        assert (await engine.trigger("report")).version == "1"
        engine.register(TWO)
        assert (await engine.trigger("report")).version == "1", "registering the same once more changes nothing"


async def test_one_version_of_a_job_has_one_definition(running):
    with pytest.raises(DuplicateJobError, match="another version"):
        Engine("unused", [ONE, versioned("1")])
    async with running(ONE, TWO) as engine:
        with pytest.raises(DuplicateJobError):
            engine.register(versioned("2"))


async def test_a_run_goes_on_under_the_version_with_which_it_began(running):
    run = await stopped_at_the_breakpoint(running, ONE)
    async with running(ONE, TWO) as engine:
        await engine.runs.resume(run.id)
        run = await finish(engine, run)
    assert (run.version, run.output) == ("1", "1")


@pytest.mark.parametrize("began", ["1", None])
async def test_without_its_version_a_run_waits_and_says_so_and_never_goes_on_under_another(running, began):
    run = await stopped_at_the_breakpoint(running, versioned(began))
    async with running(TWO) as engine:
        await engine.runs.resume(run.id)
        await settle()
        blocked = await engine.runs.get(run.id)
        frames = [frame.to_frame() for frame in engine.internals.store.read_frames(run.id, 0, 1000)]
        assert (blocked.status, blocked.attempt) == (RunStatus.WAITING, 1)
        assert blocked.waiting_reason.startswith("blocked: the job 'report' is not registered ")
        assert frames[-1].reason == blocked.waiting_reason
        engine.register(versioned(began))
        assert (await finish(engine, run)).output == began


async def test_a_blocked_run_goes_on_with_the_next_engine_that_has_its_version(running):
    run = await stopped_at_the_breakpoint(running, ONE)
    async with running(TWO) as engine:
        await engine.runs.resume(run.id)
        await settle()
    async with running(TWO, ONE) as engine:
        assert (await finish(engine, run)).output == "1"


async def test_a_run_that_never_began_is_blocked_without_having_begun(running):
    async with running(ONE, max_concurrent_runs=0) as engine:
        run = await engine.trigger(ONE)
    async with running(TWO) as engine:
        await settle()
        run = await engine.runs.get(run.id)
    assert (run.status, run.attempt, run.started_at) == (RunStatus.WAITING, 0, None)


async def test_a_blocked_run_can_be_cancelled_paused_and_run_out_of_time(running):
    clock = MockClock()
    async with running(ONE, clock=clock, max_concurrent_runs=0) as engine:
        cancelled, paused = [await engine.trigger(ONE) for _ in range(2)]
        late = await engine.trigger(ONE, deadline=_moment(clock, 60))
    async with running(TWO, clock=clock) as engine:
        await settle()
        assert (await engine.runs.cancel(cancelled.id)).status == RunStatus.CANCELLED
        await engine.runs.pause(paused.id)
        await clock.advance(61)
        assert (await engine.runs.get(late.id)).error.type == "DeadlineExceeded"
        engine.register(ONE)
        await settle()
        assert (await engine.runs.get(paused.id)).attempt == 0
        await engine.runs.resume(paused.id)
        await settle()
        assert (await engine.runs.get(paused.id)).current_step == "stay"


def _moment(clock: MockClock, seconds: float) -> datetime:
    return datetime.fromtimestamp(clock.now() / 1000 + seconds, UTC)


async def test_a_run_that_is_retried_keeps_its_version_and_a_new_one_from_it_has_the_latest(running):
    run = await stopped_at_the_breakpoint(running, ONE)
    async with running(ONE, TWO) as engine:
        assert (await engine.runs.fork(run.id, "stay")).version == "2"
        assert (await engine.runs.retrigger(run.id)).version == "2"
        await engine.runs.cancel(run.id)
        assert (await engine.runs.retry(run.id)).version == "1"
        await engine.stop(drain=False)


async def test_a_retried_run_whose_version_is_gone_is_blocked(running):
    run = await stopped_at_the_breakpoint(running, ONE)
    async with running(TWO) as engine:
        await engine.runs.cancel(run.id)
        await engine.runs.retry(run.id)
        await settle()
        assert (await engine.runs.get(run.id)).waiting_reason.startswith("blocked")


async def test_a_compensation_waits_for_its_version_too(running):
    undone: list[str] = []
    run = await stopped_at_the_breakpoint(running, one := versioned("1", undone))
    async with running(TWO) as engine:
        await engine.runs.cancel(run.id, compensate=True)
        await settle()
        held = await engine.runs.get(run.id)
        assert (held.status, held.waiting_reason[:8], undone) == (RunStatus.CANCELLING, "blocked:", [])
        engine.register(one)
        assert (await finish(engine, run)).status == RunStatus.CANCELLED
    assert undone == ["1"]


async def test_a_compensation_waits_for_a_job_that_is_not_registered_at_all(running):
    undone: list[str] = []
    run = await stopped_at_the_breakpoint(running, one := versioned("1", undone))
    async with running() as engine:
        await engine.runs.cancel(run.id, compensate=True)
        await settle()
        assert (await engine.runs.get(run.id)).waiting_reason == "blocked: the job 'report' is not registered"
    async with running(one) as engine:
        assert (await finish(engine, run)).status == RunStatus.CANCELLED
    assert undone == ["1"]


@cpython_only("OPFS has one engine per file")
async def test_engines_with_different_versions_on_one_file_each_execute_their_own_and_come_to_rest(running):
    clock = MockClock()

    @job("quick", version="1")
    async def quick_one(ctx: Context, _: None) -> str:
        return "1"

    @job("quick", version="2")
    async def quick_two(ctx: Context, _: None) -> str:
        return "2"

    async with (
        running(quick_one, clock=clock, exclusive=False, max_concurrent_runs=1) as first,
        running(quick_two, clock=clock, exclusive=False, max_concurrent_runs=1) as second,
    ):
        runs = [await engine.trigger("quick") for _ in range(5) for engine in (second, first)]
        await clock.advance(10)
        ended = [await first.runs.get(run.id) for run in runs]
        assert [(run.status, run.version, run.output) for run in ended] == [
            ("completed", version, version) for _ in range(5) for version in ("2", "1")
        ]


@cpython_only("OPFS has one engine per file")
async def test_a_run_that_cannot_begin_is_not_thrown_to_and_fro_between_engines(running):
    clock = MockClock()

    @job("busy", version="1", max_concurrent=1)
    async def busy(ctx: Context, seconds: float) -> None:
        await ctx.step("work", asyncio.Event().wait)

    @job("busy", version="2")
    async def other(ctx: Context, _: None) -> None: ...

    async with (
        running(busy, clock=clock, exclusive=False) as first,
        running(other, clock=clock, exclusive=False) as second,
    ):
        await first.trigger(busy, 1)
        waiting = await first.trigger(busy, 1)
        await clock.advance(5)
        before = len(first.internals.store.read_frames(waiting.id, 0, 1000))
        await clock.advance(60)
        assert len(first.internals.store.read_frames(waiting.id, 0, 1000)) == before
        for engine in (first, second):
            await engine.stop(drain=False)


async def test_blocking_and_going_on_survive_a_death_at_any_commit(running):
    @job("signs", version="1")
    async def old(ctx: Context, _: Any) -> str:
        return await ctx.step("sign", lambda: "1")

    @job("signs", version="2")
    async def new(ctx: Context, _: Any) -> str:
        return await ctx.step("sign", lambda: "2")

    async def play(engine: Engine, key: str) -> Run:
        if not (runs := await engine.runs.list(labels={"key": key.replace(" ", "-")})):
            engine.register(old)
            registry = engine.registry
            registry._jobs["signs"] = old
            run = await engine.trigger("signs", labels={"key": key.replace(" ", "-")})
            registry._jobs["signs"] = new
            del registry._versions["signs", "1"]
            runs = [run]
        await settle()
        engine.register(old)
        return await finish(engine, runs[0])

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.version, run.output) == ("1", "1")

    await survive_every_death(running, [new], play, check)


@pytest.mark.parametrize("order", ["signal", "time"])
async def test_a_wait_that_was_called_off_is_no_sign_of_having_been_further(running, order):
    """A replay comes to that wait, and calls it off again, before it comes to the change."""

    @job("race")
    async def race(ctx: Context, _: None) -> bool:
        branches = [asyncio.ensure_future(ctx.wait_for_signal("go")), asyncio.ensure_future(ctx.sleep("nap", 10))]
        _, pending = await asyncio.wait(branches, return_when=asyncio.FIRST_COMPLETED)
        for branch in pending:
            branch.cancel()
        await ctx.wait_for_signal("now")
        return await ctx.patched("change")

    clock = MockClock()
    async with running(race, clock=clock, max_parked=0) as engine:
        run = await engine.trigger("race")
        await settle()
        await (engine.runs.signal(run.id, "go") if order == "signal" else clock.advance(10))
        await settle()
        await engine.runs.signal(run.id, "now")
        assert (await finish(engine, run)).output is True


async def test_a_timer_that_fired_before_the_change_fires_again_when_the_changed_code_comes_to_it(running):
    """The changed code asks for something new first, so the recorded outcome of the timer is passed over."""

    def naps(*, changed: bool) -> Job:
        @job("naps")
        async def nap(ctx: Context, _: None) -> str:
            if changed:
                await ctx.step("new", lambda: None)
            await asyncio.sleep(60)
            await ctx.breakpoint("stay")
            return "awake"

        return nap

    clock = MockClock()
    async with running(naps(changed=False), clock=clock) as engine:
        run = await engine.trigger("naps")
        await clock.advance(61)
        await crash(engine)
    async with running(naps(changed=True), clock=clock) as engine:
        await settle()
        await engine.runs.resume(run.id)
        assert (await finish(engine, run)).output == "awake"
