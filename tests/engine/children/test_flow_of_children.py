"""Flow control of the runs that a run starts: some run stands for each of them, and none is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from crashing import survive_every_death
from flow_families import asking, quick, starting
from watching import cpython_only, finish

from durable_web import (
    ChildFailed,
    Context,
    Debounce,
    Engine,
    Job,
    RateLimit,
    Run,
    RunStatus,
    Singleton,
    StepStatus,
    job,
)
from durable_web._identifiers import derive
from durable_web.testing import MockClock, crash, settle


def standing(name: str = "sync", **rules: Any) -> Job:
    """A job whose runs stand at a breakpoint, and give their input back."""

    @job(name, **rules)
    async def stand(ctx: Context, value: dict) -> Any:
        await ctx.breakpoint("stand")
        return value

    return stand


async def only(engine: Engine, name: str) -> Run:
    """The one run of a job, when all is at rest."""
    await settle()
    (found,) = await engine.runs.list(job=name)
    return found


# --- singletons: the active run is used as the child ------------------------------------------------------


async def test_a_child_that_would_be_skipped_is_the_active_run(running):
    sync = standing(singleton=Singleton("user"))
    asks = asking(sync)
    async with running(asks, sync) as engine:
        first, second = [await engine.trigger(asks, {"user": "Ada", "n": n}) for n in (1, 2)]
        shared = await only(engine, "sync")
        await engine.runs.resume(shared.id)
        answers = [(await finish(engine, run)).output for run in (first, second)]
    assert shared.id == derive(first.id, "answer")
    assert answers == [{"user": "Ada", "n": 1}] * 2


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_a_parent_that_follows_another_run_goes_on_after_a_restart_in_memory_or_not(running, max_parked):
    sync = standing(singleton=Singleton())
    asks = asking(sync)
    async with running(asks, sync, max_parked=max_parked) as engine:
        run = await engine.trigger(sync, {"by": "a person"})
        follower = await engine.trigger(asks, {})
        await settle()
        assert (await engine.runs.get(follower.id)).waiting_reason == "it waits for child run 'answer'"
        await crash(engine)
    async with running(asks, sync, max_parked=max_parked) as engine:
        await settle()
        await engine.runs.resume(run.id)
        assert (await finish(engine, follower)).output == {"by": "a person"}
        assert len(await engine.runs.list(job="sync")) == 1


async def test_the_children_of_one_map_that_are_the_same_are_one_run(running):
    sync = quick(singleton=Singleton("user"))

    @job("maps")
    async def maps(ctx: Context, users: str) -> list[Any]:
        return await ctx.map("each", sync, [{"user": user, "n": n} for n, user in enumerate(users)])

    async with running(maps, sync) as engine:
        output = (await finish(engine, await engine.trigger(maps, "aab"))).output
        assert [answer["user"] for answer in output] == ["a", "a", "b"]
        assert [answer["n"] for answer in output] == [0, 0, 2]
        assert len(await engine.runs.list(job="quick")) == 2


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_a_parent_that_follows_a_run_which_does_not_complete_gets_its_id_in_every_execution(running, how):
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
        await (engine.runs.resume if how == "failed" else engine.runs.cancel)(followed.id)
        await settle()
        await engine.runs.resume(run.id)
        expected = "ValueError" if how == "failed" else "Cancelled"
        assert (await finish(engine, run)).output == expected
    assert len(caught) == 2
    assert {error.run_id for error in caught} == {followed.id}


async def test_a_parent_that_follows_a_run_gets_the_result_of_its_last_link(running):
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
            for active in await engine.runs.list(job="count-down", status="waiting"):
                await engine.runs.resume(active.id)
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
        await engine.runs.cancel(cancelled.id)
        await settle()
        assert (await engine.runs.get(followed.id)).status == RunStatus.WAITING


async def test_a_child_goes_with_its_parent_also_when_others_follow_it(running):
    sync = standing(singleton=Singleton())
    asks = asking(sync)
    async with running(asks, sync) as engine:
        owner = await engine.trigger(asks, {})
        follower = await engine.trigger(asks, {})
        await settle()
        await engine.runs.cancel(owner.id)
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
        await engine.runs.cancel(followed.id)
        assert (await finish(engine, run)).status == RunStatus.FAILED
        await engine.runs.retry(run.id)
        await settle()
        await engine.runs.resume(derive(run.id, "answer"))
        assert (await finish(engine, run)).output == {"n": 2}


async def test_a_run_that_is_started_and_not_awaited_may_be_an_active_one(running):
    sync = standing(singleton=Singleton())
    starts = starting(sync)
    async with running(starts, sync) as engine:
        active = await engine.trigger(sync, {})
        assert (await finish(engine, await engine.trigger(starts, {}))).output == active.id
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
            (active,) = await engine.runs.list(job="sync", status="waiting")
            assert len(await engine.runs.list(job="sync", status="pending")) == left - 1
            await engine.runs.resume(active.id)
        assert (await finish(engine, run)).output == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_child_cancels_the_previous_run_and_the_parent_of_that_gets_an_error(running):
    sync = standing(singleton=Singleton(mode="cancel_previous"))
    asks = asking(sync)
    async with running(asks, sync) as engine:
        first = await engine.trigger(asks, {"n": 1})
        await settle()
        second = await engine.trigger(asks, {"n": 2})
        first = await finish(engine, first)
        await settle()
        await engine.runs.resume(derive(second.id, "answer"))
        assert (await finish(engine, second)).output == {"n": 2}
        assert (await engine.runs.get(derive(first.id, "answer"))).status == RunStatus.CANCELLED
    assert first.error.type == "ChildFailed"


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
        steps = {step.name: step.output for step in await engine.runs.steps(run.id)}
        assert [steps[f"each[{n}]"] for n in range(3)] == run.output
        numbers = [answer["n"] for answer in run.output]
        made = {child.input["n"] for child in await engine.runs.list(job="quick", parent=run.id)}
        assert made == set(numbers)
        assert all(step.status == StepStatus.COMPLETED for step in await engine.runs.steps(run.id))

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
        began = sorted(child.started_at for child in await engine.runs.list(parent=run.id))
        assert len(began) == 3
        assert all((later - earlier).total_seconds() >= 10 for earlier, later in pairwise(began))

    await survive_every_death(running, [maps, note], play, check, clock=clock)


@pytest.mark.parametrize("slots", [1, 10])
async def test_a_debounced_child_is_made_once_and_answers_whenever_the_engine_dies(running, slots):
    clock = MockClock()
    save = quick(debounce=Debounce("doc", 10))
    asks = asking(save)

    async def play(engine: Engine, key: str) -> Run:
        run = await engine.trigger(asks, {"doc": key}, idempotency_key=key)
        await clock.advance(25)
        return await finish(engine, run)

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.output) == (RunStatus.COMPLETED, {"doc": key})
        (child,) = await engine.runs.list(job="quick", parent=run.id)
        assert (child.id, child.status) == (derive(run.id, "answer"), RunStatus.COMPLETED)
        assert (child.started_at - child.created_at).total_seconds() >= 10

    await survive_every_death(running, [asks, save], play, check, clock=clock, max_concurrent_runs=slots)


async def test_children_that_share_a_debounced_run_all_hear_of_it_whenever_the_engine_dies(running):
    clock = MockClock()
    save = quick(debounce=Debounce("doc", 10))

    @job("maps")
    async def maps(ctx: Context, doc: str) -> list[Any]:
        return await ctx.map("each", save, [{"doc": doc, "n": n} for n in range(3)])

    async def play(engine: Engine, key: str) -> Run:
        run = await engine.trigger(maps, key, idempotency_key=key)
        await clock.advance(25)
        return await finish(engine, run)

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert run.status == RunStatus.COMPLETED
        numbers = [answer["n"] for answer in run.output]
        made = [child.input["n"] for child in await engine.runs.list(job="quick", search=key)]
        assert sorted(set(numbers)) == sorted(made), "every run that was made has answered, and none was made twice"
        assert numbers == sorted(numbers)
        assert numbers[-1] == 2, "the last input counts"
        assert all(number >= place for place, number in enumerate(numbers)), "no answer is older than its request"

    await survive_every_death(running, [maps, save], play, check, clock=clock)


async def test_a_run_that_is_started_debounced_is_made_once_whenever_its_starter_dies(running):
    clock = MockClock()
    save = quick(debounce=Debounce("doc", 10, max_wait=15))
    starts = starting(save)

    async def play(engine: Engine, key: str) -> tuple[Run, Run]:
        run = await finish(engine, await engine.trigger(starts, {"doc": key}, idempotency_key=key))
        await clock.advance(25)
        return run, await engine.runs.wait(run.output)

    async def check(engine: Engine, key: str, runs: tuple[Run, Run]) -> None:
        starter, started = runs
        assert [run.id for run in await engine.runs.list(job="quick", search=key)] == [started.id]
        assert (starter.status, started.output) == (RunStatus.COMPLETED, {"doc": key})

    await survive_every_death(running, [starts, save], play, check, clock=clock)


async def test_a_child_that_cancels_the_previous_one_does_both_or_nothing_whenever_the_engine_dies(running):
    sync = standing(singleton=Singleton("group", mode="cancel_previous"))
    asks = asking(sync)

    async def play(engine: Engine, key: str) -> tuple[Run, Run]:
        previous = await engine.trigger(sync, {"group": key}, idempotency_key=key)
        run = await engine.trigger(asks, {"group": key}, idempotency_key=key)
        previous = await finish(engine, previous)
        await settle()
        with suppress(Exception):
            await engine.runs.resume(derive(run.id, "answer"))
        return previous, await finish(engine, run)

    async def check(engine: Engine, key: str, runs: tuple[Run, Run]) -> None:
        previous, run = runs
        assert (previous.status, run.status) == (RunStatus.CANCELLED, RunStatus.COMPLETED)
        assert run.output == {"group": key}

    await survive_every_death(running, [asks, sync], play, check)


@cpython_only("OPFS has one engine per file")
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
        await neighbour.runs.resume(followed.id)
        await clock.advance(2)
        assert (await engine.runs.get(run.id)).output == {"by": "another"}
