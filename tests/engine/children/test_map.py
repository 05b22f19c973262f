"""Fan-out: a child run for each input, with a limit, and one list or one group of failures."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from crashing import survive_every_death
from watching import finish, reach

from durable_web import ChildFailed, Context, Engine, Run, RunStatus, job
from durable_web._identifiers import derive
from durable_web.testing import crash


@job("square")
async def square(ctx: Context, number: int) -> int:
    return number * number


@job("picky")
async def picky(ctx: Context, number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


@job("endless")
async def endless(ctx: Context, _: object) -> None:
    await ctx.breakpoint("for ever")


@job("squares")
async def squares(ctx: Context, numbers: list[int]) -> list[int]:
    return await ctx.map("square", square, numbers)


async def test_the_results_are_in_the_order_of_the_inputs_whatever_ends_first(running):
    gates = {number: asyncio.Event() for number in range(3)}

    @job("gated")
    async def gated(ctx: Context, number: int) -> str:
        await gates[number].wait()
        for gate in gates.values():
            gate.set()
        return f"result {number}"

    @job("maps")
    async def maps(ctx: Context, _: None) -> list[str]:
        return await ctx.map("gate", gated, [0, 1, 2])

    async with running(maps, gated) as engine:
        run = await engine.trigger(maps)
        await reach(engine, run.id, RunStatus.WAITING)
        gates[2].set()
        assert (await finish(engine, run)).output == ["result 0", "result 1", "result 2"]


async def test_each_input_has_a_child_that_is_named_after_its_place(running):
    async with running(squares, square) as engine:
        run = await finish(engine, await engine.trigger(squares, [3, 4]))
        children = [await engine.runs.get(derive(run.id, f"square[{place}]")) for place in range(2)]
        names = {step.name for step in await engine.runs.steps(run.id)}
    assert run.output == [9, 16]
    assert [(child.input, child.parent_run_id) for child in children] == [(3, run.id), (4, run.id)]
    assert names == {"square[0]", "square[1]"}


async def test_no_inputs_give_no_results_and_start_nothing(running):
    async with running(squares, square) as engine:
        run = await finish(engine, await engine.trigger(squares, []))
        assert len(await engine.runs.list()) == 1
    assert run.output == []


async def test_the_inputs_may_come_from_a_generator(running):
    @job("generates")
    async def generates(ctx: Context, count: int) -> list[int]:
        return await ctx.map("square", square, (number for number in range(count)))

    async with running(generates, square) as engine:
        assert (await finish(engine, await engine.trigger(generates, 4))).output == [0, 1, 4, 9]


async def test_a_thousand_children_cost_few_commits_to_start(running):
    @job("fans-out")
    async def fans_out(ctx: Context, count: int) -> int:
        return sum(await ctx.map("square", square, range(count), max_concurrent=None))

    async with running(fans_out, square, max_concurrent_runs=1, durability="normal") as engine:
        engine.internals.dispatcher.claim(1)  # the parent alone
        commits: list[str] = []
        engine.internals.store.database.connection.set_trace_callback(
            lambda text: commits.append(text) if "COMMIT" in text else None
        )
        run = await engine.trigger(fans_out, 1000)
        await reach(engine, run.id, RunStatus.WAITING)
        engine.internals.store.database.connection.set_trace_callback(None)
        assert await engine.runs.count() == {"waiting": 1, "pending": 1000}
        assert len(commits) <= 25, "trigger, claim, the children of each slice of the drain, park"
        engine.internals.dispatcher.claim()
        assert (await finish(engine, run)).output == sum(number * number for number in range(1000))


async def test_no_more_than_so_many_run_at_a_time(running):
    active = Counter()

    @job("counted")
    async def counted(ctx: Context, number: int) -> int:
        active["now"] += 1
        active["most"] = max(active["most"], active["now"])
        await asyncio.sleep(0.003)
        active["now"] -= 1
        return number

    @job("limits")
    async def limits(ctx: Context, _: None) -> list[int]:
        return await ctx.map("counted", counted, range(10), max_concurrent=3)

    async with running(limits, counted) as engine:
        run = await finish(engine, await engine.trigger(limits))
    assert run.output == list(range(10))
    assert active["most"] == 3


async def test_a_limit_holds_across_a_restart(running):
    open_now = asyncio.Event()

    @job("gated")
    async def gated(ctx: Context, number: int) -> int:
        if number:
            await ctx.step("gate", open_now.wait)
        return number

    @job("limits")
    async def limits(ctx: Context, _: None) -> list[int]:
        return await ctx.map("gated", gated, range(6), max_concurrent=2)

    async def active(engine: Engine) -> list[int]:
        return sorted(run.input for run in await engine.runs.list(job="gated") if run.is_active)

    async with running(limits, gated) as engine:
        run = await engine.trigger(limits)
        while await active(engine) != [1, 2]:
            await asyncio.sleep(0.003)
        await crash(engine)
    async with running(limits, gated) as engine:
        while (await engine.runs.get(run.id)).status != RunStatus.WAITING:
            await asyncio.sleep(0.003)
        assert await active(engine) == [1, 2]
        open_now.set()
        assert (await finish(engine, run)).output == list(range(6))


async def test_two_maps_of_one_name_do_not_mix_their_children_however_they_are_interleaved(running):
    @job("twice")
    async def twice(ctx: Context, _: None) -> list[list[int]]:
        return await asyncio.gather(
            ctx.map("square", square, [1, 2, 3], max_concurrent=1), ctx.map("square", square, [4, 5, 6])
        )

    async with running(twice, square) as engine:
        run = await finish(engine, await engine.trigger(twice))
        inputs = {child.parent_step: child.input for child in await engine.runs.list(parent=run.id)}
        assert (len(inputs), inputs["square[2]"] + inputs["square[2]#2"]) == (6, 3 + 6)
    assert run.output == [[1, 4, 9], [16, 25, 36]]


async def test_all_children_end_and_every_failure_is_in_the_group(running):
    caught: list[ExceptionGroup] = []

    @job("maps")
    async def maps(ctx: Context, _: None) -> str:
        try:
            await ctx.map("picky", picky, range(5))
        except* ChildFailed as group:
            caught.append(group)
        return "caught"

    async with running(maps, picky) as engine:
        run = await finish(engine, await engine.trigger(maps))
        statuses = Counter(child.status for child in await engine.runs.list(job="picky"))
    assert run.output == "caught"
    assert statuses == {RunStatus.COMPLETED: 3, RunStatus.FAILED: 2}
    assert [(error.step, error.error_message) for error in caught[0].exceptions] == [
        ("picky[1]", "1 is odd"),
        ("picky[3]", "3 is odd"),
    ]
    assert "2 of 5 runs of 'picky' did not complete" in str(caught[0])


async def test_a_group_that_is_not_caught_fails_the_run_and_says_of_what(running):
    @job("maps")
    async def maps(ctx: Context, _: None) -> None:
        await ctx.map("picky", picky, range(3))

    async with running(maps, picky) as engine:
        run = await finish(engine, await engine.trigger(maps))
    assert (run.status, run.error.type) == (RunStatus.FAILED, "ExceptionGroup")
    assert "1 of 3 runs of 'picky' did not complete" in run.error.message
    assert "1 is odd" in run.error.traceback


async def test_fail_fast_cancels_the_others_at_the_first_failure(running):
    @job("fails-second")
    async def fails_second(ctx: Context, number: int) -> None:
        if number == 1:
            raise ValueError("one failed")
        await ctx.breakpoint("for ever")

    @job("maps")
    async def maps(ctx: Context, _: None) -> list[str]:
        with pytest.raises(ExceptionGroup) as caught:
            await ctx.map("try", fails_second, range(4), mode="fail_fast", max_concurrent=3)
        return await ctx.step("note", lambda: [str(error.error_message) for error in caught.value.exceptions])

    async with running(maps, fails_second) as engine:
        run = await finish(engine, await engine.trigger(maps))
        children = {child.input: child.status for child in await engine.runs.list(job="fails-second")}
    assert run.output == ["one failed"]
    assert children == {0: RunStatus.CANCELLED, 1: RunStatus.FAILED, 2: RunStatus.CANCELLED}


async def test_a_map_that_is_no_longer_awaited_cancels_its_children(running):
    @job("gives-up")
    async def gives_up(ctx: Context, _: None) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await ctx.map("wait", endless, range(5))
        return await ctx.step("go on", lambda: "went on")

    async with running(gives_up, endless) as engine:
        run = await finish(engine, await engine.trigger(gives_up))
        statuses = {child.status for child in await engine.runs.list(job="endless")}
    assert run.output == "went on"
    assert statuses == {RunStatus.CANCELLED}


async def test_an_input_that_cannot_be_stored_is_an_error_before_anything_starts(running):
    @job("keep")
    async def keep(ctx: Context, value: Any) -> None: ...

    @job("maps")
    async def maps(ctx: Context, _: None) -> None:
        await ctx.map("keep", keep, [1, float("nan")])

    async with running(maps, keep) as engine:
        run = await finish(engine, await engine.trigger(maps))
        assert len(await engine.runs.list()) == 1
    assert (run.status, run.error.type) == (RunStatus.FAILED, "SerializationError")


@pytest.mark.parametrize("options", [{"mode": "some"}, {"max_concurrent": 0}])
async def test_a_mode_or_a_limit_that_is_none_is_refused(running, options):
    @job("maps")
    async def maps(ctx: Context, _: None) -> None:
        await ctx.map("square", square, [1], **options)

    async with running(maps, square) as engine:
        run = await finish(engine, await engine.trigger(maps))
    assert run.error.type == "ValueError"


async def test_cancelling_the_run_cancels_all_children(running):
    @job("maps")
    async def maps(ctx: Context, _: None) -> None:
        await ctx.map("wait", endless, range(30))

    async with running(maps, endless) as engine:
        run = await engine.trigger(maps)
        while (await engine.runs.count()).get("waiting") != 31:
            await asyncio.sleep(0.003)
        await engine.runs.cancel(run.id)
        assert await engine.runs.count() == {"cancelled": 31}


@pytest.mark.parametrize(("max_concurrent", "slots"), [(None, 10), (2, 10), (2, 1)])
async def test_a_map_that_dies_at_any_commit_starts_every_child_once(running, max_concurrent, slots):
    @job("maps")
    async def maps(ctx: Context, key: str) -> list[int]:
        return await ctx.map("square", square, [1, 2, 3, 4], max_concurrent=max_concurrent, labels={"of": "map"})

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(maps, key, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert (run.status, run.output) == (RunStatus.COMPLETED, [1, 4, 9, 16])
        children = [child for child in await engine.runs.list(labels={"of": "map"}) if child.parent_run_id == run.id]
        assert sorted(child.input for child in children) == [1, 2, 3, 4]

    await survive_every_death(running, [maps, square], play, check, max_concurrent_runs=slots)


async def test_a_map_with_failures_that_dies_at_any_commit_raises_the_same_group(running):
    @job("maps")
    async def maps(ctx: Context, key: str) -> list[str]:
        try:
            await ctx.map("picky", picky, range(4))
        except ExceptionGroup as group:
            return await ctx.step("note", sorted, [error.error_message for error in group.exceptions])
        return []

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(maps, key, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert run.output == ["1 is odd", "3 is odd"]

    await survive_every_death(running, [maps, picky], play, check)
