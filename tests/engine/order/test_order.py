"""In which order things happen in a run, the first time and in every replay: on a real engine, with all that disturbs.

DESIGN.md, section 5, has the rules. ``test_bodies.py`` says what a body may do, ``test_random_bodies.py`` tries it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Coroutine
from typing import Any

import pytest
from watching import cpython_only, finish

from durable_web import (
    Context,
    Engine,
    Run,
    RunNotActive,
    RunStatus,
    StepStatus,
    Trigger,
    job,
)
from durable_web._execution import run_loop
from durable_web._store import StepRecord
from durable_web.testing import MockClock, assert_replays, crash_at, engine, record_history, restart, settle

SELDOM = {"lease": 1e9}
HOUR = 3600


async def soon(value: Any = None, turns: int = 3) -> Any:
    """The function of a step that takes some turns of the real loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def output_of(e: Engine, run: Run) -> Any:
    run = await finish(e, run)
    assert run.status == RunStatus.COMPLETED, (run.status, run.error)
    return run.output


def recorded(e: Engine, run: Run) -> list[StepRecord]:
    """The outcomes of a run in their order."""
    records = e.internals.store.steps.load(run.id).values()
    return sorted((record for record in records if record.outcome_order), key=lambda record: record.outcome_order or 0)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Call what does not wait, from synchronous code: here, another process."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


# --- inline, or at rest ----------------------------------------------------------------------------------------------


async def test_a_synchronous_step_of_a_run_that_executes_alone_is_inline_and_a_suspended_one_is_not(monkeypatch):
    monkeypatch.setattr(run_loop, "SLICE_SECONDS", 1000)

    @job("works")
    async def works(ctx: Context, _: None) -> None:
        await ctx.step("plain", str)
        await ctx.step("suspended", soon)
        await ctx.random()
        await asyncio.gather(ctx.step("left", str), ctx.step("right", str))

    async with engine(works) as e:
        run = await e.trigger(works)
        await finish(e, run)
        assert [(record.name, record.inline) for record in recorded(e, run)] == [
            ("plain", 1),
            ("suspended", 0),
            ("random", 1),
            ("left", 1),
            ("right", 1),
        ]


async def test_while_two_runs_execute_both_have_their_turn_and_no_step_is_inline():
    @job("counts")
    async def counts(ctx: Context, name: str) -> None:
        for number in range(5):
            await ctx.step(f"{number}", called.append, f"{name}{number}")

    called: list[str] = []
    async with engine(counts) as e:
        runs = await e.trigger_many([Trigger(counts, name) for name in "ab"])
        for run in runs:
            await finish(e, run)
        assert called == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4"]
        for run in runs:
            assert [record.inline for record in recorded(e, run)] == [0] * 5
            await assert_replays(record_history(e, run.id), counts)


async def test_a_run_that_has_to_give_way_is_delivered_its_outcome_at_rest(monkeypatch):
    monkeypatch.setattr(run_loop.RunLoop, "must_give_way", True)

    @job("works")
    async def works(ctx: Context, _: None) -> list[str]:
        async def branch(name: str) -> None:
            for number in range(3):
                seen.append(await ctx.step("same", str, f"{name}{number}"))  # noqa: PERF401 - the order is what is tested

        seen: list[str] = []
        await asyncio.gather(branch("a"), branch("b"))
        return seen

    async with engine(works) as e:
        run = await e.trigger(works)
        output = await output_of(e, run)
        assert output == ["a0", "b0", "a1", "b1", "a2", "b2"]
        assert [record.inline for record in recorded(e, run)] == [0] * 6
        monkeypatch.undo()
        assert (await assert_replays(record_history(e, run.id), works)).output == output


@cpython_only("OPFS has one engine per file")
@pytest.mark.parametrize("kind", ["step", "transaction", "value"])
async def test_a_signal_that_another_process_records_during_a_step_comes_before_the_outcome_of_the_step(running, kind):
    """The step is the second outcome after the one delivered last: it is not inline, and both are delivered at rest."""

    @job("works")
    async def works(ctx: Context, _: None) -> list[str]:
        async def listen() -> None:
            seen.append(await ctx.wait_for_signal("go"))

        async def work() -> None:
            await ctx.step("first", soon)
            match kind:
                case "step":
                    await ctx.step("second", signal)
                case "transaction":
                    await ctx.step("second", signal)
                    await ctx.transaction("third", lambda connection: None)
                case "value":
                    await ctx.step("second", signal)
                    await ctx.random()
            seen.append("work")

        seen: list[str] = []
        await asyncio.gather(listen(), work())
        return seen

    def signal() -> None:
        at_once(other.runs.signal(run.id, "go", "signal"))

    async with running(works, exclusive=False) as e, running(works, exclusive=False, max_concurrent_runs=0) as other:
        run = await e.trigger(works)
        assert await asyncio.wait_for(output_of(e, run), 10) == ["signal", "work"]
        first, go, second, *_ = recorded(e, run)
        assert [first.name, go.name, second.name] == ["first", "go", "second"]
        assert (go.inline, second.inline) == (0, 0)
        assert (await assert_replays(record_history(e, run.id), works)).output == ["signal", "work"]


async def test_outcomes_that_share_a_commit_are_delivered_one_after_another():
    """What the first one lets the body do is done before the second one is delivered."""

    @job("works")
    async def works(ctx: Context, _: None) -> list[str]:
        async def branch(name: str) -> None:
            await ctx.step(name, soon)
            seen.append(f"{name} goes on")
            for _ in range(3):
                await asyncio.sleep(0)
            seen.append(f"{name} rests")
            await ctx.step(f"{name} again", soon)

        seen: list[str] = []
        await asyncio.gather(*map(branch, "abc"))
        return seen

    async with engine(works) as e:
        run = await e.trigger(works)
        expected = [f"{name} {what}" for name in "abc" for what in ("goes on", "rests")]
        assert await output_of(e, run) == expected
        assert (await assert_replays(record_history(e, run.id), works)).output == expected


async def test_an_outcome_that_was_recorded_and_not_delivered_is_delivered_in_its_place_by_the_next_engine(clock):
    @job("works")
    async def works(ctx: Context, _: None) -> list[str]:
        async def branch(name: str) -> None:
            seen.append(await ctx.step(name, gates[name].wait) and name)
            seen.append(await ctx.step("next", called.append, name) or f"next of {name}")

        seen: list[str] = []
        await asyncio.gather(*map(branch, "ab"))
        return seen

    called: list[str] = []
    gates = {name: asyncio.Event() for name in "ab"}
    async with engine(works, clock=clock, **SELDOM) as e:
        run = await e.trigger(works)
        await settle()
        point = crash_at(e, after="b")
        gates["b"].set()
        await point
        await restart(e)
        await settle()
        assert called == ["b"]
        gates["a"].set()
        assert await output_of(e, run) == ["b", "next of b", "a", "next of a"]
        assert called == ["b", "a"]


async def test_nothing_is_delivered_before_the_body_begins(clock):
    """A run that was cancelled and is retried waits until a function of the execution before it has ended."""

    @job("works")
    async def works(ctx: Context, _: None) -> list[str]:
        async def branch(name: str) -> None:
            seen.append(await ctx.step(name, soon, name, turns[name]))

        seen: list[str] = []
        await asyncio.gather(*map(branch, turns))
        await ctx.step("slow to end", slow_to_end)
        return [*seen, await ctx.wait_for_signal("go")]

    async def slow_to_end() -> None:
        while not is_free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await is_free.wait()

    turns = {"slow": 20, "quick": 2}
    is_free = asyncio.Event()
    async with engine(works, clock=clock, **SELDOM) as e:
        run = await e.trigger(works)
        await settle()
        await e.runs.cancel(run.id)
        await e.runs.retry(run.id)
        await e.runs.pause(run.id)  # with each of these the engine looks at what is new of the run
        await e.runs.resume(run.id)
        await e.runs.signal(run.id, "go", "signal")
        await settle()
        is_free.set()
        assert await asyncio.wait_for(output_of(e, run), 10) == ["quick", "slow", "signal"]


async def test_sets_of_tasks_have_the_same_order_in_every_replay():
    @job("gathers")
    async def gathers(ctx: Context, _: None) -> list[Any]:
        seen: list[Any] = []

        async def branch(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append([number, await ctx.step("clean up", soon, number)])

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(6):
                    group.create_task(branch(number))
                await ctx.step("begin", soon)
                raise LookupError
        except* LookupError:
            pass
        tasks = [asyncio.create_task(branch(number)) for number in range(6)]
        _, pending = await asyncio.wait(
            [*tasks, asyncio.create_task(ctx.step("one", soon))], return_when="FIRST_COMPLETED"
        )
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)
        return seen

    async with engine(gathers) as e:
        run = await e.trigger(gathers)
        output = await output_of(e, run)
        assert sorted(number for number, _ in output) == sorted([*range(6), *range(6)])
        kept = []
        for _ in range(8):
            kept += [asyncio.ensure_future(soon()) for _ in range(13)]  # tasks lie at other addresses now
            assert (await assert_replays(record_history(e, run.id), gathers)).output == output
        await asyncio.gather(*kept)


# --- what is called off ----------------------------------------------------------------------------------------------


async def test_a_function_that_refuses_to_end_holds_up_its_own_task_alone_and_for_five_seconds(clock):
    @job("works")
    async def works(ctx: Context, _: None) -> list[str]:
        async def impatient() -> None:
            try:
                async with asyncio.timeout(1):
                    await ctx.step("refuses", refuse)
            except TimeoutError:
                seen.append("called off")  # the task goes on at once
                await ctx.step("after", seen.append, "after")

        async def other() -> None:
            for number in range(3):
                await ctx.step("other", soon)
                seen.append(f"other {number}")
            await ctx.wait_for_signal("go")
            await ctx.step("more", seen.append, "more of the other")

        seen.clear()
        await asyncio.gather(impatient(), other())
        return seen

    async def refuse() -> None:
        while not is_free.is_set():
            try:
                await is_free.wait()
            except asyncio.CancelledError:
                continue

    seen: list[str] = []
    is_free = asyncio.Event()
    async with engine(works, clock=clock, **SELDOM) as e:
        run = await e.trigger(works)
        await settle()
        await clock.advance(1)
        assert seen == ["other 0", "other 1", "other 2", "called off"]
        await e.runs.signal(run.id, "go")
        await settle()
        assert seen[4:] == ["more of the other"]
        await clock.advance(4.9)
        assert seen[5:] == []
        assert await e.runs.logs(run.id) == []
        await clock.advance(0.1)
        assert seen[5:] == ["after"]
        (line,) = await e.runs.logs(run.id)
        assert line.message == "The function of step 'refuses' was called off, and went on for 5 s."
        assert (await e.runs.get(run.id)).status == RunStatus.COMPLETED
        assert [record.name for record in recorded(e, run)][-2:] == ["more", "after"]
        is_free.set()
        await settle()
        assert {step.name: step.status for step in await e.runs.steps(run.id)}["refuses"] == StepStatus.CANCELLED


async def test_what_a_task_asks_for_next_begins_when_its_called_off_function_has_ended(clock):
    @job("works")
    async def works(ctx: Context, _: None) -> None:
        try:
            async with asyncio.timeout(1):
                await ctx.step("slow to end", slow_to_end)
        except TimeoutError:
            await ctx.step("after", called.append, "after")

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            called.append("is called off")
            await gate.wait()
            called.append("has ended")

    called: list[str] = []
    gate = asyncio.Event()
    async with engine(works, clock=clock, **SELDOM) as e:
        await e.trigger(works)
        await settle()
        await clock.advance(2)
        assert called == ["is called off"]
        gate.set()
        await settle()
        assert called == ["is called off", "has ended", "after"]


@pytest.mark.parametrize("has_undo", [False, True])
async def test_what_a_function_returns_although_it_was_called_off_counts_only_where_it_can_be_undone(clock, has_undo):
    @job("works")
    async def works(ctx: Context, _: None) -> None:
        try:
            async with asyncio.timeout(1):
                await ctx.step("charge", charge, compensate=undone.append if has_undo else None)
        except TimeoutError:
            await ctx.step("after", soon)
        raise ValueError

    async def charge() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "charged"

    undone: list[str] = []
    async with engine(works, clock=clock, **SELDOM) as e:
        run = await e.trigger(works)
        await settle()
        await clock.advance(1)
        assert (await e.runs.get(run.id)).status == RunStatus.FAILED
        status = {step.name: step.status for step in await e.runs.steps(run.id)}["charge"]
        assert (status, undone) == (("completed", ["charged"]) if has_undo else ("cancelled", []))


async def test_what_a_function_returns_that_was_left_behind_does_not_count_once_compensation_has_begun(clock):
    """What completed before that is undone, and what is recorded as completed has been undone."""

    @job("works")
    async def works(ctx: Context, _: None) -> None:
        await ctx.step("book", str, "booked", compensate=undo)
        task = asyncio.create_task(ctx.step("charge", charge, compensate=undone.append))
        await ctx.step("other", soon)
        task.cancel()
        raise ValueError

    async def charge() -> str:
        while not is_free.is_set():
            try:
                await is_free.wait()
            except asyncio.CancelledError:
                continue
        return "charged"

    async def undo(value: str) -> None:
        is_free.set()
        await soon(turns=20)
        undone.append(value)

    undone: list[str] = []
    is_free = asyncio.Event()
    async with engine(works, clock=clock, **SELDOM) as e:
        run = await e.trigger(works)
        await settle()
        assert (await e.runs.get(run.id)).is_active
        await clock.advance(5)
        assert (await e.runs.get(run.id)).status == RunStatus.FAILED
        assert undone == ["booked"]
        assert {step.name: step.status for step in await e.runs.steps(run.id)}["charge"] == StepStatus.CANCELLED


async def test_a_step_that_was_called_off_is_not_called_again_in_a_replay_and_is_called_off_at_the_same_place(clock):
    @job("works")
    async def works(ctx: Context, _: None) -> list[str]:
        async def branch() -> None:
            try:
                await ctx.step("called off", work)
            except asyncio.CancelledError:
                seen.append("called off")
                raise

        seen: list[str] = []
        task = asyncio.create_task(branch())
        seen.append(await ctx.step("first", soon, "first"))
        task.cancel()
        seen.append(await ctx.step("second", soon, "second"))
        await ctx.sleep("nap", HOUR)
        return seen

    async def work() -> None:
        called.append("work")
        await asyncio.Event().wait()

    called: list[str] = []
    async with engine(works, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(works)
        await settle()
        await clock.advance(0.5 * HOUR)
        await restart(e)
        await settle()
        await clock.advance(0.5 * HOUR)
        assert await output_of(e, run) == ["first", "called off", "second"]
        assert called == ["work"]


@pytest.mark.parametrize("life", ["goes on", "crashes"])
async def test_a_signal_that_ended_a_wait_which_the_body_had_called_off_is_for_the_next_wait(clock, life):
    """The timer is recorded first, and the signal before the timer is delivered."""

    @job("waits")
    async def waits(ctx: Context, _: None) -> list[Any]:
        seen: list[Any] = []
        try:
            async with asyncio.timeout(HOUR):
                seen.append(await ctx.wait_for_signal("go"))
        except TimeoutError:
            seen.append("too late")
        seen.append(await ctx.step("between", soon, "between"))
        seen.append(await ctx.wait_for_signal("go"))
        seen.append(await ctx.wait_for_signal("go"))
        return seen

    async with engine(waits, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(waits)
        await settle()
        await e.runs.pause(run.id)
        await clock.advance(2 * HOUR)
        for number in (1, 2):
            await e.runs.signal(run.id, "go", number)
        assert [record.kind for record in recorded(e, run)] == ["timer", "signal"]
        await e.runs.resume(run.id)
        if life == "crashes":
            await crash_at(e, before="between")
            await restart(e)
        assert await output_of(e, run) == ["too late", "between", 1, 2]


# --- many ------------------------------------------------------------------------------------------------------------


@cpython_only("twelve thousand steps take long there")
async def test_twelve_thousand_tasks_may_begin_at_once():
    @job("many")
    async def many(ctx: Context, count: int) -> int:
        return sum(await asyncio.gather(*(ctx.step(f"{number}", soon, 1, 1) for number in range(count))))

    async with engine(many, durability="normal") as e:
        run = await e.trigger(many, 12_000)
        assert await output_of(e, run) == 12_000
        assert (await assert_replays(record_history(e, run.id), many, patience=30)).output == 12_000


@cpython_only("what other tests have left is freed there at any moment")
async def test_of_thousands_of_runs_that_wait_a_few_bodies_are_in_memory_and_each_run_wakes_once():
    @job("waits")
    async def waits(ctx: Context, number: int) -> None:
        woken.append(await ctx.wait_for_signal("go"))

    woken: list[int] = []
    count, kept = 3000, 300
    options = {"clock": MockClock(), "max_parked": kept, "max_concurrent_runs": 100, "durability": "normal", **SELDOM}
    async with engine(waits, **options) as e:
        runs: list[Run] = []
        before, sizes = bodies_in_memory(), []
        for first in range(0, count, 1000):
            runs += await e.trigger_many([Trigger(waits, number) for number in range(first, first + 1000)])
            while (await e.runs.count()).get("waiting", 0) < len(runs):
                await settle()
            sizes.append(bodies_in_memory() - before)
        assert sizes == [kept] * 3
        for number, run in enumerate(runs):
            await e.runs.signal(run.id, "go", number)
        while (await e.runs.count()).get("completed", 0) < count:
            await settle()
        assert sorted(woken) == list(range(count))


def bodies_in_memory() -> int:
    gc.collect()
    return sum(isinstance(item, run_loop.RunLoop) for item in gc.get_objects())


# --- a run that rests ------------------------------------------------------------------------------------------------


async def test_a_run_at_rest_with_nothing_to_wait_for_keeps_its_slot_and_says_after_five_seconds_where_it_stands(clock):
    @job("stands")
    async def stands(ctx: Context, _: None) -> str:
        await ctx.step("work", soon)
        await event.wait()
        return await ctx.step("more", soon, "done")

    event = asyncio.Event()
    async with engine(stands, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(stands)
        await settle()
        await clock.advance(4.9)
        assert await e.runs.logs(run.id) == []
        await clock.advance(0.2)
        (line,) = await e.runs.logs(run.id)
        assert (line.level, line.step) == ("warning", None)
        assert f"{__file__}:{stands.function.__code__.co_firstlineno + 3}" in line.message
        assert (await e.runs.get(run.id)).status == RunStatus.RUNNING
        await clock.advance(600)
        assert len(await e.runs.logs(run.id)) == 1
        event.set()  # other code of the process
        assert await output_of(e, run) == "done"


# --- messages of a chain of links ------------------------------------------------------------------------------------


@job("chain")
async def chain(ctx: Context, link: int) -> list[Any]:
    """Three links: each takes one signal, answers one update, and continues with what is left."""
    taken = [await ctx.wait_for_signal("go")]
    update = await ctx.on_update("change")
    await update.answer([link, update.argument])
    if link < 2:
        ctx.continue_as_new(link + 1)
    taken.append(await ctx.wait_for_signal("go"))
    return taken


async def test_no_signal_and_no_update_is_lost_when_a_run_continues_as_new(clock):
    async with engine(chain, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(chain, 0)
        for number in range(4):
            assert await e.runs.signal(run.id, "go", number, signal_id=f"signal {number}")
        answers = [
            asyncio.ensure_future(e.runs.update(run.id, "change", number, update_id=f"update {number}"))
            for number in range(3)
        ]
        last = await e.runs.wait(run.id)
        assert last.id != run.id
        assert last.output == [2, 3]
        assert await asyncio.gather(*answers) == [[0, 0], [1, 1], [2, 2]]


async def test_a_signal_of_an_id_that_an_earlier_link_has_taken_is_a_repetition_and_messages_reach_the_last_link(clock):
    async with engine(chain, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(chain, 0)
        assert await e.runs.signal(run.id, "go", 0, signal_id="first")
        assert await e.runs.update(run.id, "change", "a", update_id="update") == [0, "a"]
        await settle()
        assert (await e.runs.get(run.id)).continued_as is not None
        assert not await e.runs.signal(run.id, "go", 9, signal_id="first")
        assert await e.runs.update(run.id, "change", "b", update_id="update") == [0, "a"]  # the answer to the first
        assert await e.runs.signal(run.id, "go", 1, signal_id="second")
        assert await e.runs.update(run.id, "change", "b") == [1, "b"]
        await settle()
        assert not await e.runs.signal(run.id, "go", 9, signal_id="second")
        for number in (2, 3):
            assert await e.runs.signal(run.id, "go", number)
        assert await e.runs.update(run.id, "change", "c") == [2, "c"]
        assert (await e.runs.wait(run.id)).output == [2, 3]
        with pytest.raises(RunNotActive):
            await e.runs.signal(run.id, "go", 4)


@cpython_only("OPFS has one engine per file")
async def test_a_signal_that_comes_while_the_body_continues_as_new_is_for_the_next_link(running):
    """It ends a wait that the body has left, and is not delivered any more."""

    @job("links")
    async def links(ctx: Context, link: int) -> Any:
        if link:
            return await ctx.wait_for_signal("go")
        _left = asyncio.ensure_future(ctx.wait_for_signal("go"))
        await ctx.step("work", soon)
        await ctx.sleep("nap", 0.01)  # it is recorded by now that the body waits
        at_once(other.runs.signal(ctx.run_id, "go", "kept"))
        return ctx.continue_as_new(1)

    async with running(links, exclusive=False) as e, running(links, exclusive=False, max_concurrent_runs=0) as other:
        run = await e.trigger(links, 0)
        last = await asyncio.wait_for(e.runs.wait(run.id), 10)
        assert (last.continued_from, last.output) == (run.id, "kept")
