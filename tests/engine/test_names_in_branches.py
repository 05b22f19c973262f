"""Branches, and steps, that use the same names: each is given its own again, in whatever order they come."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from watching import finish

from durable_web import Context, NonDeterminismError, Retry, job
from durable_web.testing import crash, crash_at, restart, settle


def in_turns(*turns: int) -> Callable[[], Any]:
    """A function that takes so many turns of the event loop when it is called first, second ..."""
    remaining = itertools.chain(turns, itertools.repeat(0))

    async def wait() -> None:
        for _ in range(next(remaining)):
            await asyncio.sleep(0)

    return wait


async def test_branches_that_finish_in_another_order_get_their_own_values_again(running):
    seen: list[list[Any]] = []
    waits = {"slow": in_turns(5), "quick": in_turns(0)}

    @job("pages")
    async def pages(ctx: Context, _: None) -> list[Any]:
        async def page(name: str) -> list[Any]:
            await ctx.step(f"fetch {name}", waits[name])
            return [await ctx.uuid(), await ctx.step("parse", str.upper, name), await ctx.random()]

        seen.append(await asyncio.gather(page("slow"), page("quick")))
        if len(seen) == 1:
            await asyncio.Event().wait()
        return seen[-1]

    async with running(pages) as e:
        run = await e.trigger("pages")
        while not seen:
            await settle()
        names = [step.name for step in await e.get_steps(run.id)]
        assert sorted(names) == [
            "fetch quick",
            "fetch slow",
            "parse",
            "parse#2",
            "random",
            "random#2",
            "uuid",
            "uuid#2",
        ]
        await crash(e)
        await restart(e)
        assert (await finish(e, run)).output == seen[0]
        assert [step.name for step in await e.get_steps(run.id)] == names
    assert [parsed for _, parsed, _ in seen[0]] == ["SLOW", "QUICK"]


async def test_what_one_branch_has_recorded_is_not_given_to_another_that_asks_first(running):
    """The engine dies when the quick branch has parsed, and the slow one has not begun to."""

    @job("pages")
    async def pages(ctx: Context, _: None) -> list[str]:
        async def page(name: str) -> str:
            await ctx.step(f"fetch {name}", lambda: 1)
            if name == "slow" and ctx.attempt == 1:
                await asyncio.Event().wait()
            return await ctx.step("parse", str.upper, name)

        return await asyncio.gather(page("slow"), page("quick"))

    async with running(pages) as e:
        point = crash_at(e, after="parse")
        run = await e.trigger("pages")
        await point
        await restart(e)
        assert (await finish(e, run)).output == ["SLOW", "QUICK"]
        steps = {step.name: step.output for step in await e.get_steps(run.id)}
        assert steps == {"fetch slow": 1, "fetch quick": 1, "parse": "QUICK", "parse#2": "SLOW"}


async def test_the_reference_of_a_step_in_a_branch_is_the_same_before_it_is_recorded(running):
    references: list[dict[str, str]] = []

    @job("charges")
    async def charges(ctx: Context, _: None) -> None:
        told: dict[str, str] = {}
        references.append(told)
        ready = {name: asyncio.Event() for name in ("a", "b")}

        async def charge(name: str) -> None:
            told[name] = ctx.step_ref
            if len(references) == 1:
                await asyncio.Event().wait()

        async def branch(name: str) -> None:
            await ctx.step(f"prepare {name}", lambda: 1)
            await ready[name].wait()
            await ctx.step("charge", charge, name)

        branches = asyncio.gather(branch("a"), branch("b"))
        for name in ("b", "a") if len(references) == 1 else ("a", "b"):
            await settle()
            ready[name].set()
        await branches

    async with running(charges) as e:
        run = await e.trigger("charges")
        while not references or len(references[0]) < 2:
            await settle()
        await crash(e)
        await restart(e)
        await finish(e, run)
    assert references[0] == references[1]
    assert references[0] == {name: f"{run.id}/prepare {name} .. charge" for name in ("a", "b")}


async def test_what_a_step_asks_for_itself_does_not_count_for_the_body(running):
    """A replay does not call the step's function."""
    outcomes: list[Any] = []

    @job("nested")
    async def nested(ctx: Context, _: None) -> Any:
        async def load() -> list[Any]:
            await ctx.set_event("state", "loading")
            return [await ctx.uuid(), await ctx.step("fetch", lambda: "inner")]

        outcomes.append([await ctx.step("load", load), await ctx.uuid(), await ctx.step("fetch", lambda: "outer")])
        if len(outcomes) == 1:
            await asyncio.Event().wait()
        await ctx.set_event("state", "loaded")
        return outcomes[-1]

    async with running(nested) as e:
        run = await e.trigger("nested")
        while not outcomes:
            await settle()
        await crash(e)
        await restart(e)
        run = await finish(e, run)
        assert run.output == outcomes[0]
        assert run.output[0][1:] + run.output[2:] == ["inner", "outer"]
        assert await e.get_event(run.id, "state") == "loaded"
        assert [step.name for step in await e.get_steps(run.id)] == [
            *("load", "event state", "uuid", "fetch", "uuid#2", "fetch#2", "event state#2")
        ]


async def test_every_attempt_at_a_step_asks_anew(running):
    """What failed in one attempt is tried again in the next, and what it publishes is told."""
    calls: list[str] = []

    @job("stubborn")
    async def stubborn(ctx: Context, _: None) -> list[Any]:
        async def inner() -> str:
            calls.append(ctx.step_ref.partition("/")[2])
            if len(calls) < 3:
                raise ConnectionError
            return "up"

        async def outer() -> str:
            await ctx.set_event("attempts", len(calls))
            return await ctx.step("inner", inner)

        return [await ctx.step("outer", outer, retry=Retry(4, backoff=0)), await ctx.step("inner", lambda: "own")]

    async with running(stubborn) as e:
        run = await finish(e, await e.trigger("stubborn"))
        assert run.output == ["up", "own"]
        assert await e.get_event(run.id, "attempts") == 2
    assert calls == ["outer >> inner", "outer >>2 inner", "outer >>3 inner"]


async def test_an_attempt_that_is_interrupted_has_what_it_had(running):
    seen: list[Any] = []

    @job("interrupted")
    async def interrupted(ctx: Context, _: None) -> int:
        async def work() -> int:
            seen.append([await ctx.uuid(), await ctx.step("part", lambda: len(seen))])
            if len(seen) == 1:
                raise ConnectionError
            if len(seen) == 2:
                await asyncio.Event().wait()
            return len(seen)

        return await ctx.step("work", work, retry=Retry(2, backoff=0))

    async with running(interrupted) as e:
        run = await e.trigger("interrupted")
        while len(seen) < 2:
            await settle()
        await crash(e)
        await restart(e)
        assert (await finish(e, run)).output == 3
    assert seen[1] == seen[2] != seen[0]


async def test_a_persons_retry_keeps_what_a_failed_step_had_completed(running):
    called: list[str] = []

    @job("charging")
    async def charging(ctx: Context, _: None) -> int:
        async def outer() -> int:
            await ctx.step("charge", called.append, "charge")
            return await ctx.step("ship", ship)

        def ship() -> int:
            called.append("ship")
            if called.count("ship") == 1:
                raise ConnectionError
            return 1

        return await ctx.step("outer", outer)

    async with running(charging) as e:
        run = await finish(e, await e.trigger("charging"))
        assert run.status == "failed"
        await e.retry(run.id)
        assert (await finish(e, run)).output == 1
    assert called == ["charge", "ship", "ship"]


async def test_a_step_that_was_called_off_keeps_what_it_had_completed(running, clock):
    called: list[str] = []

    @job("limited")
    async def limited(ctx: Context, _: None) -> int:
        async def outer() -> int:
            await ctx.step("charge", called.append, "charge")
            if ctx.attempt == 1:
                await asyncio.Event().wait()
            return 1

        if ctx.attempt > 1:
            return await ctx.step("outer", outer)
        branch = asyncio.ensure_future(ctx.step("outer", outer))
        while not called:
            await asyncio.sleep(0)
        branch.cancel()
        await asyncio.wait({branch})
        await ctx.step("note", called.append, "note")
        await asyncio.Event().wait()
        return 0

    async with running(limited, clock=clock) as e:
        run = await e.trigger("limited")
        while len(called) < 2:
            await settle()
        await settle()
        assert [step.status.value for step in await e.get_steps(run.id)] == ["cancelled", "completed", "completed"]
        await crash(e)
        await restart(e)
        assert (await finish(e, run)).output == 1
    assert called == ["charge", "note"]


async def test_a_change_after_a_step_that_has_asked_for_something_is_new_to_the_run(running):
    began = asyncio.Event()

    @job("patched")
    async def patched(ctx: Context, _: None) -> bool:
        async def outer() -> int:
            return await ctx.step("inner", lambda: 1)

        await ctx.step("outer", outer)
        if ctx.attempt == 1:
            began.set()
            await asyncio.Event().wait()
        return await ctx.patched("change")

    async with running(patched) as e:
        run = await e.trigger("patched")
        await began.wait()
        await crash(e)
        await restart(e)
        assert (await finish(e, run)).output is True


async def test_names_with_the_marks_of_paths_are_told_apart_from_these(running):
    @job("marks")
    async def marks(ctx: Context, _: None) -> list[str]:
        async def nested() -> str:
            return await ctx.step("b", lambda: ctx.step_ref)

        return [await ctx.step("a >> b", lambda: ctx.step_ref), await ctx.step("a", nested)]

    async with running(marks) as e:
        run = await finish(e, await e.trigger("marks"))
    assert run.output == [f"{run.id}/a%20>> b", f"{run.id}/a >> b"]


async def test_a_task_that_serves_two_runs_carries_nothing_from_one_to_the_other(running):
    called: list[str] = []
    requests: asyncio.Queue[Any] = asyncio.Queue()

    def call(name: str, step: str) -> str:
        called.append(f"{name} {step}")
        return step

    async def serve() -> None:
        while True:
            ctx, name, done = await requests.get()
            done.set_result([await ctx.step(step, call, name, step) for step in ("x", "y")])

    @job("served")
    async def served(ctx: Context, name: str) -> list[str]:
        done = asyncio.get_running_loop().create_future()
        requests.put_nowait((ctx, name, done))
        outcomes = await done
        if name == "B" and ctx.attempt == 1:
            await asyncio.Event().wait()
        return outcomes

    async with running(served) as e:
        server = asyncio.create_task(serve())
        try:
            assert (await finish(e, await e.trigger("served", "A"))).output == ["x", "y"]
            run = await e.trigger("served", "B")
            while len(called) < 4:
                await settle()
            await settle()
            await crash(e)
            await restart(e)
            assert (await finish(e, run)).output == ["x", "y"]
        finally:
            server.cancel()
    assert called == ["A x", "A y", "B x", "B y"]


async def test_children_of_branches_stay_theirs_when_the_run_is_retried(running):
    fails = True

    @job("child")
    async def child(ctx: Context, name: str) -> list[str]:
        found = await ctx.step("find", lambda: f"data of {name}")
        if fails:
            raise ValueError(name)
        return [name, found]

    @job("parent")
    async def parent(ctx: Context, _: None) -> list[Any]:
        async def branch(name: str, wait: Callable[[], Any]) -> Any:
            await ctx.step(f"begin {name}", wait)
            return await ctx.run_job("child", child, name)

        branches = [branch("slow", in_turns(40)), branch("quick", in_turns(0))]
        outcomes = await asyncio.gather(*branches, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    async with running(parent, child) as e:
        run = await finish(e, await e.trigger("parent"))
        assert run.status == "failed"
        fails = False
        await e.retry(run.id)
        run = await finish(e, run)
        assert run.output == [["slow", "data of slow"], ["quick", "data of quick"]]
        assert len(await e.list_runs(job="child")) == 2


async def test_a_step_that_moves_into_a_branch_or_out_of_one_is_not_called_again(running):
    called: list[str] = []

    @job("moving")
    async def moving(ctx: Context, _: None) -> list[int]:
        def call(name: str) -> int:
            called.append(name)
            return len(called)

        async def two(name: str) -> list[int]:
            return [await ctx.step(f"{name} 1", call, f"{name} 1"), await ctx.step(f"{name} 2", call, f"{name} 2")]

        if ctx.attempt == 1:
            first = await two("a")
            (second,) = await asyncio.gather(two("b"))
            await asyncio.Event().wait()
        else:
            (first,) = await asyncio.gather(two("a"))
            second = await two("b")
        return [*first, *second]

    async with running(moving) as e:
        run = await e.trigger("moving")
        while len(called) < 4:
            await settle()
        await settle()
        await crash(e)
        await restart(e)
        assert (await finish(e, run)).output == [1, 2, 3, 4]
    assert called == ["a 1", "a 2", "b 1", "b 2"]


async def test_a_fork_has_what_the_branches_have_recorded(running):
    called: list[str] = []

    @job("pages")
    async def pages(ctx: Context, _: None) -> list[str]:
        async def page(name: str, wait: Callable[[], Any]) -> str:
            await ctx.step(f"fetch {name}", wait)
            return await ctx.step("parse", lambda: called.append(name) or name)

        found = await asyncio.gather(page("slow", in_turns(5)), page("quick", in_turns(0)))
        return [*found, await ctx.step("end", lambda: "end")]

    async with running(pages) as e:
        run = await finish(e, await e.trigger("pages"))
        fork = await finish(e, await e.fork(run.id, "end"))
    assert fork.output == run.output == ["slow", "quick", "end"]
    assert called == ["quick", "slow"]


async def test_a_name_that_comes_back_as_another_kind_in_its_branch_is_refused(running):
    @job("changed")
    async def changed(ctx: Context, _: None) -> None:
        async def branch(name: str) -> None:
            await ctx.step(f"begin {name}", lambda: 1)
            if ctx.attempt == 1:
                await ctx.step("go on", lambda: 1)
                await asyncio.Event().wait()
            await ctx.sleep("go on", 0)

        await asyncio.gather(branch("a"), branch("b"))

    async with running(changed) as e:
        run = await e.trigger("changed")
        while len(await e.get_steps(run.id)) < 4:
            await settle()
        await crash(e)
        await restart(e)
        run = await finish(e, run)
    assert run.error.type == NonDeterminismError.__name__


@pytest.mark.parametrize("same", [True, False])
async def test_first_operations_of_branches_are_counted_in_the_order_in_which_these_were_made(running, same):
    seen: list[Any] = []

    @job("many")
    async def many(ctx: Context, _: None) -> list[int]:
        waits = [in_turns(count) for count in ((3, 1, 2) if not seen else (1, 2, 3))]

        async def one(number: int) -> int:
            await ctx.step("load" if same else f"load {number}", waits[number])
            return await ctx.step("work", lambda: number)

        seen.append(await asyncio.gather(*map(one, range(3))))
        if len(seen) == 1:
            await asyncio.Event().wait()
        return seen[-1]

    async with running(many) as e:
        run = await e.trigger("many")
        while not seen:
            await settle()
        await crash(e)
        await restart(e)
        assert (await finish(e, run)).output == seen[0] == [0, 1, 2]
