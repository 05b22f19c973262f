"""Continuing as a new run: one transaction, the same labels and keys, and waiting callers get the last run's result."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crashing import survive_every_death
from watching import finish, reach, timeline

from durable_web import Context, Engine, Run, RunNotActive, RunNotTerminal, RunStatus, job
from durable_web._identifiers import derive
from durable_web._model import to_wire
from durable_web.testing import settle


@job("count-down")
async def count_down(ctx: Context, number: int) -> str:
    await ctx.step("count", lambda: number)
    if number:
        ctx.continue_as_new(number - 1)
    return "lift-off"


@job("waits-for-count-down")
async def waits_for_count_down(ctx: Context, number: int) -> str:
    return await ctx.run_job("count", count_down, number)


async def chain(engine: Engine, run_id: str) -> list[Run]:
    """A run and those that it has gone on as."""
    runs = [await engine.runs.get(run_id)]
    while runs[-1].continued_as is not None:
        runs.append(await engine.runs.get(runs[-1].continued_as))
    return runs


# --- the fresh run ---------------------------------------------------------------------------------------------------


async def test_the_run_ends_and_a_fresh_one_goes_on_with_the_new_input(running):
    async with running(count_down) as engine:
        run = await engine.trigger(count_down, 2)
        last = await engine.runs.wait(run.id)
        runs = await chain(engine, run.id)
        frames = await timeline(engine, run)
        steps = [len(await engine.runs.steps(each.id)) for each in runs]
    assert (last.id, last.output) == (runs[-1].id, "lift-off")
    assert [each.input for each in runs] == [2, 1, 0]
    assert [each.status for each in runs] == [RunStatus.COMPLETED] * 3
    assert [each.output for each in runs] == [None, None, "lift-off"]
    assert steps == [1, 1, 1]
    assert frames[-1].reason == f"it goes on as {runs[1].id}"


async def test_both_runs_name_each_other_on_the_page_too(running):
    async with running(count_down) as engine:
        run = await engine.trigger(count_down, 1)
        await engine.runs.wait(run.id)
        first, last = await chain(engine, run.id)
    assert (first.continued_as, last.continued_from) == (last.id, first.id)
    assert (first.continued_from, last.continued_as) == (None, None)
    assert to_wire(first)["continuedAs"] == to_wire(last)["id"]
    assert to_wire(last)["continuedFrom"] == first.id


async def test_labels_priority_and_concurrency_key_are_carried_over_and_the_idempotency_key_stays(running):
    async with running(count_down) as engine:
        options = {"labels": {"of": "rocket"}, "priority": 3, "concurrency_key": "pad 39A", "idempotency_key": "launch"}
        run = await engine.trigger(count_down, 1, **options)
        last = await engine.runs.wait(run.id)
        again = await engine.trigger(count_down, 1, idempotency_key="launch")
    assert (last.labels, last.priority, last.concurrency_key) == ({"of": "rocket"}, 3, "pad 39A")
    assert last.idempotency_key is None
    assert again.id == run.id


async def test_a_long_chain_ends(running):
    async with running(count_down, durability="normal") as engine:
        last = await engine.trigger_and_wait(count_down, 100)
        assert last.output == "lift-off"
        assert await engine.runs.count() == {"completed": 101}


async def test_the_fresh_run_begins_under_the_latest_version(running):
    @job("grows", version="1")
    async def one(ctx: Context, number: int) -> str:
        await ctx.breakpoint("stay")
        ctx.continue_as_new(number + 1)

    @job("grows", version="2")
    async def two(ctx: Context, number: int) -> str:
        return f"version 2 with {number}"

    async with running(one) as engine:
        run = await engine.trigger(one, 1)
        await reach(engine, run.id, RunStatus.WAITING)
    async with running(one, two) as engine:
        await engine.runs.resume(run.id)
        last = await engine.runs.wait(run.id)
    assert (last.version, last.output) == ("2", "version 2 with 2")


async def test_nothing_is_undone_because_a_run_that_goes_on_has_not_failed(running):
    undone: list[str] = []

    @job("order")
    async def order(ctx: Context, number: int) -> None:
        await ctx.step("charge", lambda: f"charge {number}", compensate=undone.append)
        if number == 0:
            ctx.continue_as_new(1)
        raise ValueError("the second one fails")

    async with running(order) as engine:
        last = await engine.trigger_and_wait(order, 0)
    assert last.status == RunStatus.FAILED
    assert undone == ["charge 1"]


# --- how the body is left --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gather", "task group", "timeout"])
async def test_it_works_from_within(running, how):
    @job("branches")
    async def branches(ctx: Context, number: int) -> int:
        async def branch() -> None:
            if number:
                ctx.continue_as_new(number - 1)

        if how == "gather":
            await asyncio.gather(ctx.step("work", lambda: 1), branch())
        elif how == "task group":
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.sleep("for long", 3600 if number else 0))
                group.create_task(branch())
        else:
            async with asyncio.timeout(60):
                await branch()
        return number

    async with running(branches) as engine:
        last = await engine.trigger_and_wait(branches, 2, timeout=10)
    assert last.output == 0


async def test_a_body_cannot_swallow_it_by_catching_its_errors(running):
    @job("careful")
    async def careful(ctx: Context, number: int) -> str:
        try:
            if number:
                ctx.continue_as_new(number - 1)
        except Exception:
            return "swallowed"
        return "done"

    async with running(careful) as engine:
        assert (await engine.trigger_and_wait(careful, 1)).output == "done"


async def test_an_input_that_cannot_be_stored_fails_the_run_and_starts_none(running):
    @job("careless")
    async def careless(ctx: Context, _: Any) -> None:
        ctx.continue_as_new({"rate": float("nan")})

    async with running(careless) as engine:
        run = await finish(engine, await engine.trigger(careless))
        assert await engine.runs.count() == {"failed": 1}
    assert run.error.type == "SerializationError"
    assert "input of job 'careless'['rate']" in run.error.message


async def test_children_that_were_awaited_are_cancelled_and_the_others_belong_to_the_fresh_run(running):
    @job("endless")
    async def endless(ctx: Context, _: Any) -> None:
        await ctx.breakpoint("for ever")

    @job("moves-on")
    async def moves_on(ctx: Context, number: int) -> None:
        if number == 0:
            await ctx.start_job("aside", endless)
            waiting = asyncio.ensure_future(ctx.run_job("wait", endless))
            await ctx.wait_for_signal("enough")
            assert not waiting.done()
            ctx.continue_as_new(1)
        await ctx.breakpoint("stay")

    async with running(moves_on, endless) as engine:
        run = await engine.trigger(moves_on, 0)
        while (await engine.runs.count()).get("waiting") != 3:
            await asyncio.sleep(0.003)
        await engine.runs.signal(run.id, "enough")
        while len(runs := await chain(engine, run.id)) < 2:
            await asyncio.sleep(0.003)
        await reach(engine, runs[1].id, RunStatus.WAITING)
        awaited, aside = [await engine.runs.get(derive(run.id, step)) for step in ("wait", "aside")]
        assert (awaited.status, aside.is_active) == (RunStatus.CANCELLED, True)
        await engine.runs.cancel(runs[1].id)
        assert (await engine.runs.get(aside.id)).status == RunStatus.CANCELLED


# --- waiting callers -------------------------------------------------------------------------------------------------


async def test_a_caller_that_waits_for_the_first_link_gets_the_result_of_the_last(running):
    async with running(count_down) as engine:
        run = await engine.trigger(count_down, 3)
        waiting = asyncio.ensure_future(engine.runs.wait(run.id))
        assert (await waiting).output == "lift-off"
        assert (await engine.runs.wait(run.id)).output == "lift-off", "also long afterwards"
        assert (await engine.trigger_and_wait(count_down, 2)).output == "lift-off"


@pytest.mark.parametrize("slots", [1, 10])
async def test_a_parent_gets_the_last_ones_result(running, slots):
    async with running(waits_for_count_down, count_down, max_concurrent_runs=slots) as engine:
        run = await finish(engine, await engine.trigger(waits_for_count_down, 3))
        runs = await chain(engine, derive(run.id, "count"))
    assert run.output == "lift-off"
    assert {each.parent_run_id for each in runs} == {run.id}
    assert len(runs) == 4


async def test_a_parent_hears_of_the_last_ones_failure_and_a_retry_goes_on_from_there(running):
    allowed: list[str] = []

    @job("fails-late")
    async def fails_late(ctx: Context, number: int) -> str:
        if number:
            ctx.continue_as_new(number - 1)
        if not allowed:
            raise ValueError("the last one failed")
        return "in the end"

    @job("waits")
    async def waits(ctx: Context, _: Any) -> str:
        return await ctx.run_job("late", fails_late, 2)

    async with running(waits, fails_late) as engine:
        run = await finish(engine, await engine.trigger(waits))
        assert (run.status, run.error.type) == (RunStatus.FAILED, "ChildFailed")
        assert "the last one failed" in run.error.message
        allowed.append("yes")
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
        assert len(await chain(engine, derive(run.id, "late"))) == 3
    assert run.output == "in the end"


async def test_cancelling_the_parent_cancels_the_run_that_its_child_goes_on_as(running):
    @job("goes-on")
    async def goes_on(ctx: Context, number: int) -> None:
        if number:
            ctx.continue_as_new(number - 1)
        await ctx.breakpoint("for ever")

    @job("waits")
    async def waits(ctx: Context, _: Any) -> None:
        await ctx.run_job("on and on", goes_on, 2)

    async with running(waits, goes_on) as engine:
        run = await engine.trigger(waits)
        while (await engine.runs.count()).get("waiting") != 2:
            await asyncio.sleep(0.003)
        runs = await chain(engine, derive(run.id, "on and on"))
        await engine.runs.cancel(run.id)
        assert (await engine.runs.get(runs[-1].id)).status == RunStatus.CANCELLED


async def test_a_child_that_is_no_longer_awaited_is_cancelled_however_often_it_went_on(running):
    @job("goes-on")
    async def goes_on(ctx: Context, number: int) -> None:
        if number:
            ctx.continue_as_new(number - 1)
        await ctx.breakpoint("for ever")

    @job("gives-up")
    async def gives_up(ctx: Context, _: Any) -> str:
        waiting = asyncio.ensure_future(ctx.run_job("on and on", goes_on, 2))
        await ctx.wait_for_signal("enough")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await ctx.step("go on", lambda: "went on")

    async with running(gives_up, goes_on) as engine:
        run = await engine.trigger(gives_up)
        while (await engine.runs.count()).get("waiting") != 2:
            await asyncio.sleep(0.003)
        await engine.runs.signal(run.id, "enough")
        assert (await finish(engine, run)).output == "went on"
        assert (await chain(engine, derive(run.id, "on and on")))[-1].status == RunStatus.CANCELLED


async def test_a_run_that_went_on_has_ended_it_is_the_last_one_that_can_be_changed(running):
    async with running(count_down) as engine:
        run = await engine.trigger(count_down, 1)
        await engine.runs.wait(run.id)
        with pytest.raises(RunNotActive):
            await engine.runs.cancel(run.id)
        with pytest.raises(RunNotTerminal):
            await engine.runs.retry(run.id)


# --- crashes ---------------------------------------------------------------------------------------------------------


async def test_a_chain_that_dies_at_any_commit_has_every_link_once(running):
    async def play(engine: Engine, key: str) -> Run:
        run = await engine.trigger(count_down, 2, idempotency_key=key, labels={"key": key.replace(" ", "-")})
        await engine.runs.wait(run.id)
        return run

    async def check(engine: Engine, key: str, run: Run) -> None:
        runs = await chain(engine, run.id)
        assert [each.input for each in runs] == [2, 1, 0]
        assert runs[-1].output == "lift-off"
        assert len(await engine.runs.list(labels={"key": key.replace(" ", "-")})) == 3

    await survive_every_death(running, [count_down], play, check)


@pytest.mark.parametrize("slots", [1, 10])
async def test_a_parent_that_dies_at_any_commit_gets_the_last_ones_result(running, slots):
    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(waits_for_count_down, 2, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert run.output == "lift-off"
        assert len(await chain(engine, derive(run.id, "count"))) == 3

    jobs = [waits_for_count_down, count_down]
    await survive_every_death(running, jobs, play, check, max_concurrent_runs=slots)


async def test_a_run_that_is_cancelled_at_the_last_moment_does_not_go_on(running):
    gate = asyncio.Event()

    @job("late")
    async def late(ctx: Context, _: Any) -> None:
        await gate.wait()
        ctx.continue_as_new()

    async with running(late) as engine:
        run = await engine.trigger(late)
        await settle()
        gate.set()
        await engine.runs.cancel(run.id)
        await settle()
        assert await engine.runs.count() == {"cancelled": 1}
