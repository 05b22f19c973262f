"""Sagas in trouble: undoing that fails, dies at any commit, and goes on; and runs that come back after it."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, defaultdict
from typing import Any

import pytest
from crashing import survive_every_death
from sagas import fail, saga, statuses, wait_at_breakpoint
from watching import cpython_only, finish, reach

from durable_web import Context, Engine, FatalError, Job, Retry, Run, RunStatus, StepStatus, job
from durable_web._identifiers import derive
from durable_web.testing import MockClock, crash, crash_at

QUICK = Retry(max_attempts=3, backoff=0, jitter=0)


SLOW = Retry(max_attempts=3, backoff=60, factor=1, jitter=0)


# --- trouble while undoing -------------------------------------------------------------------------------------------


async def test_an_undo_that_fails_is_recorded_and_does_not_keep_the_others_from_being_undone(running):
    undone: list[str] = []

    def refuse(name: str) -> None:
        raise ConnectionError(f"{name} cannot be undone")

    @job("stubborn")
    async def stubborn(ctx: Context, _: None) -> None:
        await ctx.step("first", lambda: "first", compensate=undone.append)
        await ctx.step("second", lambda: "second", compensate=refuse)
        await ctx.step("third", lambda: "third", compensate=undone.append)
        fail("the original error")

    async with running(stubborn) as engine:
        run = await finish(engine, await engine.trigger(stubborn))
        steps = {step.name: step for step in await engine.runs.steps(run.id)}
    assert undone == ["third", "first"]
    assert (run.status, run.error.message) == (RunStatus.FAILED, "the original error")
    assert steps["compensate:second"].status == StepStatus.FAILED
    assert steps["compensate:second"].error.message == "second cannot be undone"


async def test_an_undo_that_asks_for_a_step_itself_fails_in_words_and_the_others_are_done(running):
    undone: list[str] = []

    @job("asking")
    async def asking(ctx: Context, _: None) -> None:
        async def undo(name: str) -> None:
            await ctx.step("refund", undone.append, name)

        await ctx.step("first", lambda: "first", compensate=undone.append)
        await ctx.step("second", lambda: "second", compensate=undo)
        fail("the original error")

    async with running(asking) as engine:
        run = await finish(engine, await engine.trigger("asking"))
        assert (run.status, undone) == (RunStatus.FAILED, ["first"])
        refused = next(step for step in await engine.runs.steps(run.id) if step.name == "compensate:second")
        assert (refused.status, refused.error.type) == (StepStatus.FAILED, "NotInStep")
        assert "'refund' was called inside the function of step 'compensate:second'" in refused.error.message


async def test_an_undo_is_tried_again_as_its_step_would_be_and_keeps_its_slot_meanwhile(running):
    clock = MockClock()
    calls = Counter()

    def flaky(name: str) -> None:
        calls[name] += 1
        if calls[name] < 3:
            raise ConnectionError("not today")

    @job("retries", retry=SLOW)
    async def retries(ctx: Context, _: None) -> None:
        await ctx.step("slow", lambda: "slow", compensate=flaky)
        await ctx.step("quick", lambda: "quick", retry=QUICK, compensate=flaky)
        raise FatalError("over")

    async with running(retries, clock=clock) as engine:
        run = await engine.trigger(retries)
        await clock.advance(1)
        assert calls == {"quick": 3, "slow": 1}
        run = await engine.runs.get(run.id)
        assert (run.status, run.lease_owner is not None) == (RunStatus.CANCELLING, True)
        await clock.advance(61)
        assert calls["slow"] == 2
        await clock.advance(61)
        run = await engine.runs.get(run.id)
        steps = {step.name: step for step in await engine.runs.steps(run.id)}
    assert (run.status, calls["slow"]) == (RunStatus.FAILED, 3)
    assert [attempt.number for attempt in steps["compensate:slow"].failed_attempts] == [1, 2]


async def test_the_wait_for_the_next_attempt_at_an_undo_survives_a_restart(running):
    clock = MockClock()
    calls: list[str] = []

    def flaky(name: str) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise ConnectionError("not today")

    @job("retries", retry=SLOW)
    async def retries(ctx: Context, _: None) -> None:
        await ctx.step("do", lambda: "done", compensate=flaky)
        raise FatalError("over")

    async with running(retries, clock=clock) as engine:
        run = await engine.trigger(retries)
        await clock.advance(30)
        await crash(engine)
    async with running(retries, clock=clock) as engine:
        await clock.advance(29)
        assert len(calls) == 1
        await clock.advance(2)
        run = await engine.runs.get(run.id)
    assert (run.status, run.error.type, len(calls)) == (RunStatus.FAILED, "FatalError", 2)


async def test_an_undo_that_is_cancelled_by_what_it_calls_has_failed(running):
    undone: list[str] = []

    async def odd(_: str) -> None:
        raise asyncio.CancelledError

    @job("odd")
    async def odd_job(ctx: Context, _: None) -> None:
        await ctx.step("first", lambda: "first", compensate=undone.append)
        await ctx.step("second", lambda: "second", compensate=odd)
        fail()

    async with running(odd_job) as engine:
        run = await finish(engine, await engine.trigger(odd_job))
        assert await statuses(engine, run) == {"compensate:second": "failed", "compensate:first": "completed"}
    assert undone == ["first"]


async def test_a_step_that_the_changed_code_no_longer_reaches_is_told_of_by_name_and_the_rest_is_undone(running):
    clock = MockClock()
    undone: list[str] = []

    def order(names: list[str]) -> Job:
        return saga(undone, names, wait_at_breakpoint)

    async with running(old := order(["reserve", "charge", "ship"]), clock=clock) as engine:
        run = await engine.trigger(old)
        await reach(engine, run.id, RunStatus.WAITING)
    async with running(order(["reserve", "ship"]), clock=clock) as engine:
        await engine.runs.cancel(run.id, compensate=True)
        await clock.advance(60)
        run = await engine.runs.get(run.id)
        steps = {step.name: step for step in await engine.runs.steps(run.id)}
    assert (run.status, undone) == (RunStatus.CANCELLED, ["SHIP", "RESERVE"])
    assert steps["compensate:charge"].status == StepStatus.FAILED
    assert "no longer comes to the step 'charge'" in steps["compensate:charge"].error.message


async def test_a_branch_that_takes_time_to_come_to_its_step_is_waited_for(running):
    undone: list[str] = []

    @job("dawdles")
    async def dawdles(ctx: Context, _: None) -> None:
        async def dawdle() -> None:
            await asyncio.sleep(0.02)
            await ctx.step("late", lambda: "late", compensate=undone.append)
            await ctx.breakpoint("stay here")

        async with asyncio.TaskGroup() as group:
            group.create_task(dawdle())
            await ctx.step("early", lambda: "early", compensate=undone.append)
            await ctx.breakpoint("stay")

    async with running(dawdles) as engine:
        run = await engine.trigger(dawdles)
        while (await engine.runs.get(run.id)).completed_steps < 2:
            await asyncio.sleep(0.003)
    async with running(dawdles) as engine:
        await engine.runs.cancel(run.id, compensate=True)
        run = await finish(engine, run)
    assert (run.status, undone) == (RunStatus.CANCELLED, ["late", "early"])


async def test_a_branch_is_waited_for_also_when_the_body_has_failed_before_it_comes_to_its_step(running):
    undone: list[str] = []
    late = asyncio.Event()

    async def fail_late() -> None:
        await late.wait()
        fail()

    @job("dawdles")
    async def dawdles(ctx: Context, _: None) -> None:
        async def dawdle() -> None:
            await asyncio.sleep(0.02)
            await ctx.step("late", lambda: "late", compensate=undone.append)
            late.set()

        await asyncio.gather(dawdle(), ctx.step("fail", fail_late))

    async with running(dawdles) as engine:
        point = crash_at(engine, before="compensate:late")
        run = await engine.trigger(dawdles)
        await point
    async with running(dawdles) as engine:
        run = await finish(engine, run)
        assert await statuses(engine, run) == {"compensate:late": "completed"}
    assert (run.failed_step, undone) == ("fail", ["late", "late"])


async def test_a_child_that_the_body_does_not_come_to_any_more_is_cancelled_before_anything_is_undone(running):
    engines: list[Engine] = []
    found: list[str] = []

    @job("endless")
    async def endless(ctx: Context, _: Any) -> None:
        await ctx.breakpoint("for ever")

    async def undo(child_id: str) -> None:
        found.append((await engines[-1].runs.get(child_id)).status)

    @job("forgets")
    async def forgets(ctx: Context, _: None) -> None:
        await ctx.step("reserve", lambda: derive(ctx.run_id, "wait"), compensate=undo)
        if not engines:
            await ctx.run_job("wait", endless)
        fail()

    async with running(forgets, endless) as engine:
        run = await engine.trigger(forgets)
        while (await engine.runs.count()).get("waiting") != 2:
            await asyncio.sleep(0.003)
        await engine.stop()
    async with running(forgets, endless, max_concurrent_runs=0) as engine:
        with engine.internals.store.transaction():
            engine.internals.store.runs.wake(run.id, 0)
    async with running(forgets, endless, max_concurrent_runs=1) as engine:
        engines.append(engine)
        engine.internals.dispatcher.claim()
        run = await finish(engine, run)
    assert (run.error.message, found) == ("out of stock", ["cancelled"])


async def test_the_names_of_compensations_are_not_for_steps(running):
    @job("clever")
    async def clever(ctx: Context, _: None) -> None:
        await ctx.step("compensate:charge", lambda: 1)

    async with running(clever) as engine:
        run = await finish(engine, await engine.trigger(clever))
    assert run.error.type == "ValueError"
    assert "compensate:" in run.error.message


# --- going on after an end -------------------------------------------------------------------------------------------


async def test_what_was_undone_is_done_again_by_a_retry_and_what_was_not_is_kept(running):
    done, undone = [], []

    def do(name: str) -> str:
        done.append(name)
        return name

    @job("order")
    async def order(ctx: Context, stock: int) -> str:
        await ctx.step("look up", do, "look up")
        await ctx.step("charge", do, "charge", compensate=undone.append)
        if stock:
            await ctx.step("gift", do, "gift", compensate=undone.append)
        await ctx.step("take", lambda: None if stock else fail())
        if stock < 2:
            fail("not wrapped")
        return "shipped"

    async with running(order) as engine:
        run = await finish(engine, await engine.trigger(order, 0))
        assert (done, undone) == (["look up", "charge"], ["charge"])
        await engine.runs.retry(run.id, input=1)
        run = await finish(engine, run)
        assert (done[2:], undone[1:]) == (["charge", "gift"], ["gift", "charge"])
        await engine.runs.retry(run.id, input=2)
        run = await finish(engine, run)
        assert await statuses(engine, run) == {}
    assert (run.output, done[4:], len(undone)) == ("shipped", ["charge", "gift"], 3)


async def test_a_fork_takes_over_nothing_that_was_undone_and_undoes_nothing_that_it_took_over(running):
    done, undone = [], []

    def do(name: str) -> str:
        done.append(name)
        return name

    @job("order")
    async def order(ctx: Context, fails: bool) -> None:
        await ctx.step("charge", do, "charge", compensate=undone.append)
        await ctx.step("check", lambda: fail() if not done[2:] else None)
        fail("not wrapped")

    async with running(order) as engine:
        run = await finish(engine, await engine.trigger(order, True))
        assert (done, undone) == (["charge"], ["charge"])
        await finish(engine, await engine.runs.fork(run.id, "check"))
        assert (done, undone) == (["charge"] * 2, ["charge"] * 2)

    @job("safe")
    async def safe(ctx: Context, _: None) -> None:
        await ctx.step("charge", do, "charge", compensate=undone.append)
        await ctx.step("check", lambda: None)
        if len(await ctx.step("look", list)) == 0 and ctx.run_id != original:
            fail()

    original = ""
    async with running(safe) as engine:
        run = await engine.trigger(safe)
        original = run.id
        assert (await finish(engine, run)).status == RunStatus.COMPLETED
        assert (await finish(engine, await engine.runs.fork(run.id, "check"))).status == RunStatus.FAILED
    assert len(undone) == 2


# --- crashes ---------------------------------------------------------------------------------------------------------


class Ledger:
    """What was done and undone, by run; an undo counts twice only where it ran again after its commit."""

    def __init__(self) -> None:
        self.undone: dict[str, list[str]] = defaultdict(list)

    def undo(self, key: str, name: str) -> None:
        self.undone[key].append(name)

    def check_order(self, key: str, names: list[str]) -> None:
        """The names come in their order; each may come again only directly after itself, for want of a commit."""
        assert list(dict.fromkeys(self.undone[key])) == names
        without_repetitions = [
            name for place, name in enumerate(self.undone[key]) if place == 0 or self.undone[key][place - 1] != name
        ]
        assert without_repetitions == names, "nothing is undone again after its commit"


async def test_a_saga_that_dies_at_any_commit_undoes_everything_once_and_in_order(running):
    ledger = Ledger()

    @job("order")
    async def order(ctx: Context, key: str) -> None:
        for name in ("reserve", "charge", "ship"):
            await ctx.step(name, str, name, compensate=functools.partial(ledger.undo, key))
        await ctx.step("fail", fail)

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(order, key, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.error.type, run.failed_step) == (RunStatus.FAILED, "StepFailed", "fail")
        ledger.check_order(key, ["ship", "charge", "reserve"])
        assert list(await statuses(engine, run)) == ["compensate:ship", "compensate:charge", "compensate:reserve"]

    await survive_every_death(running, [order], play, check)


async def test_a_cancellation_with_compensation_that_dies_at_any_commit_still_undoes_everything(running):
    ledger = Ledger()

    @job("order")
    async def order(ctx: Context, key: str) -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("left", "right"):
                group.create_task(ctx.step(name, str, name, compensate=functools.partial(ledger.undo, key)))
        await ctx.breakpoint("stay")

    async def play(engine: Engine, key: str) -> Run:
        run = await engine.trigger(order, key, idempotency_key=key)
        if run.status in (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING):
            await reach(engine, run.id, RunStatus.WAITING)
            await engine.runs.cancel(run.id, compensate=True)
        return await finish(engine, run)

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.error) == (RunStatus.CANCELLED, None)
        ledger.check_order(key, ["right", "left"])

    await survive_every_death(running, [order], play, check)


async def test_an_undo_that_fails_and_is_tried_again_survives_a_death_at_any_commit(running):
    undone: dict[str, Counter] = defaultdict(Counter)

    def flaky(key: str, name: str) -> None:
        undone[key][name] += 1
        if name == "hopeless" or undone[key][name] == 1:
            raise ConnectionError("not today")

    @job("order", retry=QUICK)
    async def order(ctx: Context, key: str) -> None:
        for name in ("first", "hopeless", "last"):
            await ctx.step(name, str, name, compensate=functools.partial(flaky, key))
        raise FatalError("over")

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(order, key, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.error.type) == (RunStatus.FAILED, "FatalError")
        assert await statuses(engine, run) == {
            "compensate:last": "completed",
            "compensate:hopeless": "failed",
            "compensate:first": "completed",
        }
        assert undone[key]["hopeless"] >= 3

    await survive_every_death(running, [order], play, check)


async def test_an_engine_that_is_stopped_in_the_middle_leaves_the_rest_to_the_next(running):
    undone: list[str] = []
    held = asyncio.Event()

    async def undo(name: str) -> None:
        if not undone:
            held.set()
            undone.append("interrupted")
            await asyncio.Event().wait()
        undone.append(name)

    @job("order")
    async def order(ctx: Context, _: None) -> None:
        await ctx.step("first", lambda: "first", compensate=undo)
        await ctx.step("second", lambda: "second", compensate=undo)
        fail("the original error")

    async with running(order) as engine:
        run = await engine.trigger(order)
        await held.wait()
        await engine.stop(drain=False)
    async with running(order) as engine:
        run = await finish(engine, run)
    assert (run.status, run.error.message, run.recoveries) == (RunStatus.FAILED, "the original error", 0)
    assert undone == ["interrupted", "second", "first"]


@cpython_only("OPFS has one engine per file")
async def test_another_engine_undoes_what_a_dead_one_has_begun_to(running):
    clock = MockClock()
    undone: list[str] = []

    async def undo(name: str) -> None:
        if not undone:
            undone.append("interrupted")
            await asyncio.Event().wait()
        undone.append(name)

    @job("order")
    async def order(ctx: Context, _: None) -> None:
        await ctx.step("first", lambda: "first", compensate=undo)
        fail("the original error")

    async with running(order, clock=clock, exclusive=False) as first:
        run = await first.trigger(order)
        await clock.advance(0.1)
        assert undone == ["interrupted"]
        async with running(order, clock=clock, exclusive=False) as second:
            await crash(first)
            await clock.advance(60)
            run = await second.runs.get(run.id)
    assert (run.status, run.error.message) == (RunStatus.FAILED, "the original error")
    assert undone == ["interrupted", "first"]


@pytest.mark.parametrize("ending", ["fails", "is cancelled"])
async def test_a_timer_that_the_body_has_left_is_not_in_the_way_of_undoing_after_a_death(running, ending):
    """Its end cancels the timer, which the body itself has not called off: a replay sets it again, and never waits."""
    undone: list[str] = []

    def do(name: str) -> str:
        return name

    async def undo(name: str) -> None:
        await asyncio.sleep(0)
        undone.append(name)

    @job("left")
    async def left(ctx: Context, _: None) -> None:
        asyncio.get_running_loop().call_later(3600, undone.append, "never called")
        for name in ("one", "two", "three"):
            await ctx.step(name, do, name, compensate=undo)
        if ending == "fails":
            raise LookupError
        await ctx.wait_for_signal("never")

    async with running(left) as engine:
        point = crash_at(engine, after="compensate:three")
        run = await engine.trigger(left)
        if ending == "is cancelled":
            await reach(engine, run.id, RunStatus.WAITING)
            await engine.runs.cancel(run.id, compensate=True)
        await point
    async with running(left) as engine:
        run = await finish(engine, run)
    assert (run.status, undone) == (RunStatus("failed" if ending == "fails" else "cancelled"), ["three", "two", "one"])
