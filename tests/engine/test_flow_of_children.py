"""Flow control of the runs that a run starts: some run stands for each of them, and none is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from crashing import survive_every_death
from watching import finish, on_a_desk_only

from durable_web import (
    ChildFailed,
    Context,
    Debounce,
    Engine,
    Job,
    RateLimit,
    RateLimited,
    Run,
    RunStatus,
    Singleton,
    StepStatus,
    Throttle,
    job,
)
from durable_web.identifiers import derive
from durable_web.testing import MockClock, crash, settle


def standing(name: str = "sync", **rules: Any) -> Job:
    """A job whose runs stand at a breakpoint, and give their input back."""

    @job(name, **rules)
    async def stand(ctx: Context, value: dict) -> Any:
        await ctx.breakpoint("stand")
        return value

    return stand


def quick(**rules: Any) -> Job:
    @job("quick", **rules)
    async def note(ctx: Context, value: Any) -> Any:
        return value

    return note


def asking(child: Job | str, name: str = "asks") -> Job:
    """A job that waits for a child run for its own input."""

    @job(name)
    async def ask(ctx: Context, value: Any) -> Any:
        return await ctx.run_job("answer", child, value)

    return ask


def starting(child: Job | str) -> Job:
    """A job that starts a run for its own input, and gives back its id."""

    @job("starts")
    async def start(ctx: Context, value: Any) -> str:
        return await ctx.start_job("begin", child, value)

    return start


async def only(engine: Engine, name: str) -> Run:
    """The one run of a job, when all is at rest."""
    await settle()
    (found,) = await engine.list_runs(job=name)
    return found


# --- singletons: the run that is under way stands for the child ------------------------------------------------------


async def test_a_child_that_would_be_skipped_is_the_run_that_is_under_way(running):
    sync = standing(singleton=Singleton("user"))
    asks = asking(sync)
    async with running(asks, sync) as engine:
        first, second = [await engine.trigger(asks, {"user": "Ada", "n": n}) for n in (1, 2)]
        shared = await only(engine, "sync")
        await engine.resume(shared.id)
        answers = [(await finish(engine, run)).output for run in (first, second)]
    assert shared.id == derive(first.id, "answer")
    assert answers == [{"user": "Ada", "n": 1}] * 2


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_whoever_follows_a_run_goes_on_after_a_restart_whether_it_stayed_in_memory_or_not(running, max_parked):
    sync = standing(singleton=Singleton())
    asks = asking(sync)
    async with running(asks, sync, max_parked=max_parked) as engine:
        run = await engine.trigger(sync, {"by": "a person"})
        follower = await engine.trigger(asks, {})
        await settle()
        assert (await engine.get_run(follower.id)).waiting_reason == "it waits for child run 'answer'"
        await crash(engine)
    async with running(asks, sync, max_parked=max_parked) as engine:
        await settle()
        await engine.resume(run.id)
        assert (await finish(engine, follower)).output == {"by": "a person"}
        assert len(await engine.list_runs(job="sync")) == 1


async def test_the_children_of_one_map_that_are_the_same_are_one_run(running):
    sync = quick(singleton=Singleton("user"))

    @job("maps")
    async def maps(ctx: Context, users: str) -> list[Any]:
        return await ctx.map("each", sync, [{"user": user, "n": n} for n, user in enumerate(users)])

    async with running(maps, sync) as engine:
        output = (await finish(engine, await engine.trigger(maps, "aab"))).output
        assert [answer["user"] for answer in output] == ["a", "a", "b"]
        assert [answer["n"] for answer in output] == [0, 0, 2]
        assert len(await engine.list_runs(job="quick")) == 2


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_whoever_follows_a_run_that_does_not_complete_is_told_which_and_a_replay_is_told_the_same(running, how):
    caught: list[ChildFailed] = []

    @job("sync", singleton=Singleton())
    async def sync(ctx: Context, _: Any) -> None:
        await ctx.breakpoint("stand")
        raise ValueError("out of paper")

    @job("asks")
    async def asks(ctx: Context, _: Any) -> str:
        try:
            await ctx.run_job("answer", sync)
        except ChildFailed as error:
            caught.append(error)
        await ctx.breakpoint("afterwards")
        return caught[-1].error_type

    async with running(asks, sync, max_parked=0) as engine:
        followed = await engine.trigger(sync)
        run = await engine.trigger(asks)
        await settle()
        await (engine.resume if how == "failed" else engine.cancel)(followed.id)
        await settle()
        await engine.resume(run.id)
        expected = "ValueError" if how == "failed" else "Cancelled"
        assert (await finish(engine, run)).output == expected
    assert len(caught) == 2
    assert {error.run_id for error in caught} == {followed.id}


async def test_whoever_follows_a_run_gets_the_result_of_the_last_one_as_which_it_goes_on(running):
    @job("count-down", singleton=Singleton())
    async def count_down(ctx: Context, number: int) -> str:
        await ctx.breakpoint("stand")
        if number:
            ctx.continue_as_new(number - 1)
        return "lift-off"

    asks = asking(count_down)
    async with running(asks, count_down) as engine:
        await engine.trigger(count_down, 2)
        run = await engine.trigger(asks, 5)
        for _ in range(3):
            await settle()
            for active in await engine.list_runs(job="count-down", status="waiting"):
                await engine.resume(active.id)
        assert (await finish(engine, run)).output == "lift-off"


async def test_a_run_that_is_followed_has_nothing_to_fear_from_its_followers(running):
    sync = standing(singleton=Singleton())

    @job("hurries")
    async def hurries(ctx: Context, value: Any) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await ctx.run_job("answer", sync, value)
        return "went on"

    async with running(hurries, asks := asking(sync), sync) as engine:
        followed = await engine.trigger(sync, {"by": "a person"})
        cancelled = await engine.trigger(asks, {})
        assert (await finish(engine, await engine.trigger(hurries, {}))).output == "went on"
        await engine.cancel(cancelled.id)
        await settle()
        assert (await engine.get_run(followed.id)).status == RunStatus.WAITING


async def test_a_child_goes_with_its_parent_also_when_others_follow_it(running):
    sync = standing(singleton=Singleton())
    asks = asking(sync)
    async with running(asks, sync) as engine:
        owner = await engine.trigger(asks, {})
        follower = await engine.trigger(asks, {})
        await settle()
        await engine.cancel(owner.id)
        told = (await finish(engine, follower)).error
        assert (await only(engine, "sync")).status == RunStatus.CANCELLED
    assert told.type == "ChildFailed"
    assert "was cancelled" in told.message


async def test_a_follower_that_is_retried_has_a_child_of_its_own_when_the_other_run_has_ended(running):
    sync = standing(singleton=Singleton())
    asks = asking(sync)
    async with running(asks, sync) as engine:
        followed = await engine.trigger(sync, {"n": 1})
        run = await engine.trigger(asks, {"n": 2})
        await settle()
        await engine.cancel(followed.id)
        assert (await finish(engine, run)).status == RunStatus.FAILED
        await engine.retry(run.id)
        await settle()
        await engine.resume(derive(run.id, "answer"))
        assert (await finish(engine, run)).output == {"n": 2}


async def test_a_run_that_is_started_and_not_awaited_may_be_one_that_is_under_way(running):
    sync = standing(singleton=Singleton())
    starts = starting(sync)
    async with running(starts, sync) as engine:
        under_way = await engine.trigger(sync, {})
        assert (await finish(engine, await engine.trigger(starts, {}))).output == under_way.id
        assert (await only(engine, "sync")).parent_run_id is None


async def test_queued_children_follow_one_another(running):
    sync = standing(singleton=Singleton(mode="queue"))

    @job("maps")
    async def maps(ctx: Context, count: int) -> list[Any]:
        return await ctx.map("each", sync, [{"n": n} for n in range(count)])

    async with running(maps, sync) as engine:
        run = await engine.trigger(maps, 3)
        for left in (3, 2, 1):
            await settle()
            (under_way,) = await engine.list_runs(job="sync", status="waiting")
            assert len(await engine.list_runs(job="sync", status="pending")) == left - 1
            await engine.resume(under_way.id)
        assert (await finish(engine, run)).output == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_child_cancels_the_previous_run_and_whoever_waits_for_that_is_told(running):
    sync = standing(singleton=Singleton(mode="cancel_previous"))
    asks = asking(sync)
    async with running(asks, sync) as engine:
        first = await engine.trigger(asks, {"n": 1})
        await settle()
        second = await engine.trigger(asks, {"n": 2})
        first = await finish(engine, first)
        await settle()
        await engine.resume(derive(second.id, "answer"))
        assert (await finish(engine, second)).output == {"n": 2}
        assert (await engine.get_run(derive(first.id, "answer"))).status == RunStatus.CANCELLED
    assert first.error.type == "ChildFailed"


# --- circles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["skip", "queue", "cancel_previous"])
@pytest.mark.parametrize("depth", [0, 1])
async def test_a_singleton_that_would_wait_for_itself_is_told_so_instead_of_waiting_for_ever(running, mode, depth):
    @job("sync", singleton=Singleton(mode=mode))
    async def sync(ctx: Context, value: Any) -> Any:
        return await ctx.run_job("again", "between" if depth else sync, value)

    async with running(sync, asking(sync, "between")) as engine:
        run = await finish(engine, await engine.trigger(sync, {}))
        assert [found.id for found in await engine.list_runs(job="sync")] == [run.id]
    assert run.status == RunStatus.FAILED
    assert "CircularWait" in run.error.message


async def test_two_singletons_that_would_follow_each_other_do_not_wait_for_ever(running):
    """Each is under way already, and neither is the other's child."""

    def other(name: str, wanted: str) -> Job:
        @job(name, singleton=Singleton())
        async def one(ctx: Context, _: Any) -> str:
            await ctx.breakpoint("stand")
            try:
                return await ctx.run_job("other", wanted)
            except ChildFailed as error:
                return error.error_type

        return one

    async with running(other("left", "right"), other("right", "left")) as engine:
        left, right = await engine.trigger("left"), await engine.trigger("right")
        for run in (left, right):
            await settle()
            await engine.resume(run.id)
        assert (await finish(engine, right)).output == "CircularWait"
        assert (await finish(engine, left)).output == "CircularWait"  # what the right one has returned


async def test_a_replay_is_told_of_a_circle_again_though_there_is_none_any_more(running):
    told: list[str] = []

    @job("sync", singleton=Singleton("group"))
    async def sync(ctx: Context, value: dict) -> str:
        try:
            await ctx.run_job("again", sync, value)
        except ChildFailed as error:
            told.append(error.error_type)
        await ctx.breakpoint("afterwards")
        return "ended"

    async with running(sync, max_parked=0) as engine:
        run = await engine.trigger(sync, {"group": 1})
        await settle()
        await engine.resume(run.id)
        assert (await finish(engine, run)).output == "ended"
    assert told == ["CircularWait"] * 2


async def test_a_singleton_may_start_its_next_run_itself_when_it_does_not_wait_for_it(running):
    @job("sync", singleton=Singleton(mode="queue"))
    async def sync(ctx: Context, number: int) -> int:
        if number:
            await ctx.start_job("next", sync, number - 1)
        return number

    async with running(sync) as engine:
        await engine.trigger(sync, 2)
        await settle()
        assert sorted(run.output for run in await engine.list_runs(status="completed")) == [0, 1, 2]


# --- debounce --------------------------------------------------------------------------------------------------------


async def test_children_that_are_debounced_share_the_run_that_has_the_last_input(running):
    clock = MockClock()
    save = quick(debounce=Debounce("doc", 10))
    asks = asking(save)
    async with running(asks, save, clock=clock) as engine:
        first = await engine.trigger(asks, {"doc": 1, "text": "a"})
        await clock.advance(8)
        second = await engine.trigger(asks, {"doc": 1, "text": "b"})
        await clock.advance(8)
        third = await engine.trigger(save, {"doc": 1, "text": "c"})
        await clock.advance(9.9)
        assert (await only(engine, "quick")).status == RunStatus.PENDING
        await clock.advance(0.1)
        outputs = [(await finish(engine, run)).output for run in (first, second, third)]
    assert third.disposition == "debounced"
    assert outputs == [{"doc": 1, "text": "c"}] * 3


async def test_a_run_that_is_started_and_debounced_has_the_id_of_the_one_that_waits(running):
    clock = MockClock()
    save = quick(debounce=Debounce(None, 10))
    starts = starting(save)
    async with running(starts, save, clock=clock) as engine:
        ids = [(await finish(engine, await engine.trigger(starts, n))).output for n in range(2)]
        await clock.advance(10)
        run = await only(engine, "quick")
    assert ids == [run.id] * 2
    assert run.output == 1


# --- rate limit ------------------------------------------------------------------------------------------------------


async def test_children_beyond_the_rate_limit_begin_when_there_is_room_and_none_is_lost(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(2, "10s"))

    @job("maps")
    async def maps(ctx: Context, count: int) -> list[int]:
        return await ctx.map("each", note, range(count))

    async with running(maps, note, clock=clock) as engine:
        run = await engine.trigger(maps, 5)
        counts = []
        for _ in range(3):
            await settle()
            counts.append(len(await engine.list_runs(job="quick", status="completed")))
            await clock.advance(10)
        assert (await finish(engine, run)).output == [0, 1, 2, 3, 4]
    assert counts == [2, 4, 5]


async def test_a_child_that_waits_for_room_takes_it_before_whoever_comes_from_outside(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(1, "10s"))
    asks = asking(note)
    async with running(asks, note, clock=clock) as engine:
        await engine.trigger(note, "first")
        run = await engine.trigger(asks, "second")
        await settle()
        with pytest.raises(RateLimited) as refused:
            await engine.trigger(note, "third")
        assert refused.value.retry_after == 20
        await clock.advance(10)
        assert (await finish(engine, run)).output == "second"
        with pytest.raises(RateLimited) as refused:
            await engine.trigger(note, "third")
        assert refused.value.retry_after == 10
        await clock.advance(10)
        await engine.trigger(note, "third")


async def test_a_run_that_is_started_beyond_the_rate_limit_says_when_it_begins(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(1, "10s", key="user"))
    starts = starting(note)
    async with running(starts, note, clock=clock) as engine:
        ids = [(await finish(engine, await engine.trigger(starts, {"user": user}))).output for user in "aab"]
        await settle()
        runs = [await engine.get_run(run_id) for run_id in ids]
        assert [run.status for run in runs] == ["completed", "pending", "completed"]
        assert runs[1].run_at.timestamp() * 1000 == clock.now() + 10_000
        await clock.advance(10)
        assert (await engine.get_run(ids[1])).status == RunStatus.COMPLETED


async def test_a_child_that_waits_for_room_is_cancelled_with_its_parent(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(1, "10s"))
    asks = asking(note)
    async with running(asks, note, clock=clock) as engine:
        await engine.trigger(note)
        run = await engine.trigger(asks, 1)
        await settle()
        await engine.cancel(run.id)
        await clock.advance(60)
        assert (await engine.get_run(derive(run.id, "answer"))).status == RunStatus.CANCELLED


async def test_a_child_waits_for_room_and_for_its_throttle(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(2, "10s"), throttle=Throttle(1, "8s"))

    @job("maps")
    async def maps(ctx: Context, count: int) -> list[int]:
        return await ctx.map("each", note, range(count))

    async with running(maps, note, clock=clock) as engine:
        start = clock.now()
        run = await engine.trigger(maps, 4)
        await clock.advance(60)
        assert (await finish(engine, run)).output == [0, 1, 2, 3]
        began = [child.started_at.timestamp() * 1000 - start for child in await engine.list_runs(job="quick")]
    assert sorted(began) == [0, 8000, 16000, 24000]


async def test_a_run_that_goes_on_as_a_fresh_one_is_not_made_anew_for_the_rate_limit(running):
    @job("count-down", rate_limit=RateLimit(1, "1h"))
    async def count_down(ctx: Context, number: int) -> str:
        if number:
            ctx.continue_as_new(number - 1)
        return "lift-off"

    async with running(count_down, clock=MockClock()) as engine:
        assert (await engine.trigger_and_wait(count_down, 3)).output == "lift-off"
        with pytest.raises(RateLimited):
            await engine.trigger(count_down, 0)


async def test_a_run_that_goes_on_as_a_fresh_one_keeps_its_turn(running):
    ended: list[str] = []

    @job("count-down", singleton=Singleton(mode="queue"))
    async def count_down(ctx: Context, value: list) -> None:
        who, number = value
        ended.append(f"{who} {number}")
        if number:
            ctx.continue_as_new([who, number - 1])

    async with running(count_down) as engine:
        runs = [await engine.trigger(count_down, [who, 1]) for who in "ab"]
        for run in runs:
            await engine.wait_for_run(run.id)
    assert ended == ["a 1", "a 0", "b 1", "b 0"]


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 10])
async def test_followers_and_the_run_they_follow_survive_a_death_at_any_commit(running, slots):
    sync = quick(singleton=Singleton("group"))

    @job("maps")
    async def maps(ctx: Context, group: str) -> list[Any]:
        return await ctx.map("each", sync, [{"group": group, "n": n} for n in range(3)])

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(maps, key, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert run.status == RunStatus.COMPLETED
        steps = {step.name: step.output for step in await engine.get_steps(run.id)}
        assert [steps[f"each[{n}]"] for n in range(3)] == run.output
        numbers = [answer["n"] for answer in run.output]
        made = {child.input["n"] for child in await engine.list_runs(job="quick", parent=run.id)}
        assert made == set(numbers)
        assert all(step.status == StepStatus.COMPLETED for step in await engine.get_steps(run.id))

    await survive_every_death(running, [maps, sync], play, check, max_concurrent_runs=slots)


async def test_a_death_at_any_commit_neither_loses_nor_doubles_a_child_that_waits_for_room(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(1, "10s", key="group"))

    @job("maps")
    async def maps(ctx: Context, group: str) -> list[Any]:
        return await ctx.map("each", note, [{"group": group, "n": n} for n in range(3)])

    async def play(engine: Engine, key: str) -> Run:
        run = await engine.trigger(maps, key, idempotency_key=key)
        await clock.advance(25)
        return await finish(engine, run)

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert [answer["n"] for answer in run.output] == [0, 1, 2]
        began = sorted(child.started_at for child in await engine.list_runs(parent=run.id))
        assert len(began) == 3
        assert all((later - earlier).total_seconds() >= 10 for earlier, later in pairwise(began))

    await survive_every_death(running, [maps, note], play, check, clock=clock)


async def test_a_child_that_cancels_the_previous_one_does_both_or_nothing_whenever_the_engine_dies(running):
    sync = standing(singleton=Singleton("group", mode="cancel_previous"))
    asks = asking(sync)

    async def play(engine: Engine, key: str) -> tuple[Run, Run]:
        previous = await engine.trigger(sync, {"group": key}, idempotency_key=key)
        run = await engine.trigger(asks, {"group": key}, idempotency_key=key)
        previous = await finish(engine, previous)
        await settle()
        with suppress(Exception):
            await engine.resume(derive(run.id, "answer"))
        return previous, await finish(engine, run)

    async def check(engine: Engine, key: str, runs: tuple[Run, Run]) -> None:
        previous, run = runs
        assert (previous.status, run.status) == (RunStatus.CANCELLED, RunStatus.COMPLETED)
        assert run.output == {"group": key}

    await survive_every_death(running, [asks, sync], play, check)


@on_a_desk_only("OPFS has one engine per file")
async def test_a_follower_in_one_engine_goes_on_when_the_run_ends_in_another(running):
    clock = MockClock()
    sync = standing(singleton=Singleton())
    asks = asking(sync)
    async with (
        running(asks, sync, clock=clock, exclusive=False) as engine,
        running(asks, sync, clock=clock, exclusive=False) as neighbour,
    ):
        followed = await neighbour.trigger(sync, {"by": "another"})
        await settle()
        run = await engine.trigger(asks, {})
        await clock.advance(2)
        await neighbour.resume(followed.id)
        await clock.advance(2)
        assert (await engine.get_run(run.id)).output == {"by": "another"}
