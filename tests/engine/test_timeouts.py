"""Timers of asyncio around durable waits: they are due when they first were, whatever becomes of the engine."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from crashing import survive_every_death
from hypothesis import given, settings
from hypothesis import strategies as st
from watching import finish, on_a_desk_only, reach

from durable_web import ChildFailed, Context, Engine, Job, Retry, Run, RunStatus, job
from durable_web.testing import MockClock, crash, engine, restart, settle

HOUR = 3600
SELDOM = {"lease": 1e9}
LIVES = ("goes on", "restarted", "evicted")


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


async def stay(e: Engine, life: str) -> None:
    """Let what is at rest stay in memory, or not."""
    if life == "restarted":
        await restart(e)
    await settle()


def an_engine(*jobs: Job, clock: MockClock, life: str = "goes on") -> Any:
    """An engine that keeps what is parked in memory, or not; its heart beats seldom, for hours go by."""
    return engine(*jobs, clock=clock, max_parked=0 if life == "evicted" else 100, **SELDOM)


async def parked(e: Engine, run: Run) -> Run:
    """The run, once it is at rest, and waits."""
    await settle()
    run = await e.get_run(run.id)
    assert run.status == RunStatus.WAITING, (run.status, run.error)
    return run


async def ended(e: Engine, run: Run) -> Run:
    """The run, once it is at its end."""
    await settle()
    run = await e.get_run(run.id)
    assert run.status.is_terminal, run.waiting_reason
    return run


# --- every wait ------------------------------------------------------------------------------------------------------


@job("child")
async def child(ctx: Context, number: int) -> int:
    await ctx.sleep("nap", 100 * HOUR)
    return number


async def hook(ctx: Context) -> Any:
    return await (await ctx.webhook("hook")).wait()


WAITS: dict[str, Callable[[Context], Awaitable[Any]]] = {
    "sleep": lambda ctx: ctx.sleep("nap", 100 * HOUR),
    "signal": lambda ctx: ctx.wait_for_signal("go"),
    "signal in time": lambda ctx: ctx.wait_for_signal("go", timeout=100 * HOUR),
    "event": lambda ctx: ctx.wait_for_event("news"),
    "webhook": hook,
    "update": lambda ctx: ctx.on_update("change"),
    "breakpoint": lambda ctx: ctx.breakpoint("here"),
    "child": lambda ctx: ctx.run_job("child", child, 1),
    "map": lambda ctx: ctx.map("children", child, [1, 2, 3], max_concurrent=2),
    "attempt": lambda ctx: ctx.step("flaky", fail, retry=Retry(backoff=100 * HOUR, max_delay=100 * HOUR)),
}


def fail() -> None:
    raise ConnectionError("away")


@job("limited")
async def limited(ctx: Context, kind: str) -> str:
    try:
        async with asyncio.timeout(HOUR):
            await WAITS[kind](ctx)
    except TimeoutError:
        return await ctx.step("note", lambda: "too late")
    return "in time"


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("kind", WAITS)
async def test_a_timeout_around_a_wait_is_due_when_it_first_was(clock, kind, life):
    async with an_engine(limited, child, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(limited, kind))
        for _ in range(3):
            await clock.advance(0.3 * HOUR)
            await stay(e, life)
            await parked(e, run)
        await clock.advance(0.1 * HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == "too late"
        assert {made.status for made in await e.list_runs(job="child")} <= {"cancelled"}


@pytest.mark.parametrize("kind", WAITS)
async def test_a_timeout_that_was_due_while_no_engine_was_there_fires_at_once(clock, kind):
    async with an_engine(limited, child, clock=clock) as e:
        run = await parked(e, await e.trigger(limited, kind))
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        assert (await ended(e, run)).output == "too late"


@pytest.mark.parametrize("life", LIVES)
async def test_what_comes_in_time_comes_in_time(clock, life):
    async with an_engine(limited, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(limited, "signal"))
        await clock.advance(0.9 * HOUR)
        await stay(e, life)
        await e.signal(run.id, "go")
        assert (await ended(e, run)).output == "in time"


async def test_what_came_in_time_counts_though_the_run_goes_on_only_when_that_is_over(clock):
    async with an_engine(limited, clock=clock) as e:
        run = await parked(e, await e.trigger(limited, "signal"))
        await e.pause(run.id)
        await e.signal(run.id, "go")
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        await e.resume(run.id)
        assert (await ended(e, run)).output == "in time"


@pytest.mark.parametrize("kind", ["signal", "child", "attempt"])
async def test_a_timeout_survives_death_at_any_moment(running, kind):
    clock = MockClock()

    async def play(e: Engine, key: str) -> Run:
        run = await e.trigger(limited, kind, idempotency_key=key)
        while run.is_active:
            await clock.advance(600)
            run = await e.get_run(run.id)
        return run

    async def check(e: Engine, key: str, run: Run) -> None:
        assert run.output == "too late"
        statuses = [frame async for frame in e.watch(run.id) if frame.kind == "run_status"]
        waiting = next(frame.ts for frame in statuses if frame.status == "waiting")
        assert abs(run.completed_at - waiting - timedelta(hours=1)) < timedelta(seconds=1)

    await survive_every_death(running, [limited, child], play, check, clock=clock, **SELDOM)


# --- every timer -----------------------------------------------------------------------------------------------------


async def by_timeout(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(HOUR):
            return await waiting
    except TimeoutError:
        return "too late"


async def by_timeout_at(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + HOUR):
            return await waiting
    except TimeoutError:
        return "too late"


async def by_wait_for(waiting: Awaitable[Any]) -> str:
    try:
        return await asyncio.wait_for(waiting, HOUR)
    except TimeoutError:
        return "too late"


async def by_wait(waiting: Awaitable[Any]) -> str:
    task = asyncio.ensure_future(waiting)
    done, _ = await asyncio.wait([task], timeout=HOUR)
    task.cancel()
    return task.result() if done else "too late"


async def by_a_sleep_beside_it(waiting: Awaitable[Any]) -> str:
    task, sleep = asyncio.ensure_future(waiting), asyncio.ensure_future(asyncio.sleep(HOUR, "too late"))
    done, pending = await asyncio.wait([task, sleep], return_when=asyncio.FIRST_COMPLETED)
    for other in pending:
        other.cancel()
    return done.pop().result()


async def by_a_sleep_meanwhile(waiting: Awaitable[Any]) -> str:
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(HOUR)
    task.cancel()
    return "too late"


async def in_a_task_group(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(HOUR), asyncio.TaskGroup() as group:
            task = group.create_task(waiting)
    except TimeoutError:
        return "too late"
    return task.result()


async def in_gather(waiting: Awaitable[Any]) -> str:
    try:
        async with asyncio.timeout(HOUR):
            return (await asyncio.gather(waiting, asyncio.sleep(0)))[0]
    except TimeoutError:
        return "too late"


async def in_a_task_of_a_task(waiting: Awaitable[Any]) -> str:
    async def inner() -> str:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(by_timeout(waiting))
        return task.result()

    return await asyncio.create_task(inner())


async def shielded(waiting: Awaitable[Any]) -> str:
    task = asyncio.ensure_future(waiting)
    try:
        async with asyncio.timeout(HOUR):
            return await asyncio.shield(task)
    except TimeoutError:
        task.cancel()
        return "too late"


@asynccontextmanager
async def an_hour() -> AsyncIterator[None]:
    async with asyncio.timeout(HOUR):
        yield


async def by_a_context_manager(waiting: Awaitable[Any]) -> str:
    try:
        async with an_hour():
            return await waiting
    except TimeoutError:
        return "too late"


async def by_an_exit_stack(waiting: Awaitable[Any]) -> str:
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(asyncio.timeout(HOUR))
            return await waiting
    except TimeoutError:
        return "too late"


async def in_an_asynchronous_generator(waiting: Awaitable[Any]) -> str:
    async def results() -> AsyncIterator[Any]:
        yield await by_timeout(waiting)

    async for result in results():
        return result
    return "never"


TIMERS = [
    by_timeout,
    by_timeout_at,
    by_wait_for,
    by_wait,
    by_a_sleep_beside_it,
    by_a_sleep_meanwhile,
    in_a_task_group,
    in_gather,
    in_a_task_of_a_task,
    shielded,
    by_a_context_manager,
    by_an_exit_stack,
    in_an_asynchronous_generator,
]


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("limit", TIMERS, ids=lambda limit: limit.__name__)
async def test_every_timer_of_asyncio_is_due_when_it_first_was(clock, limit, life):
    @job("timed")
    async def timed(ctx: Context, _: None) -> str:
        return await limit(ctx.wait_for_signal("go"))

    async with an_engine(timed, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(timed))
        for _ in range(3):
            await clock.advance(0.3 * HOUR)
            await stay(e, life)
            await parked(e, run)
        await clock.advance(0.1 * HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == "too late"


# --- where there is more than one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("life", LIVES)
async def test_of_nested_timeouts_each_is_due_when_it_first_was(clock, life):
    @job("nested")
    async def nested(ctx: Context, _: None) -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(3 * HOUR):
                try:
                    async with asyncio.timeout(HOUR):
                        await ctx.wait_for_signal("first")
                except TimeoutError:
                    seen.append(await ctx.step("inner", lambda: "inner"))
                await ctx.wait_for_signal("second")
        except TimeoutError:
            seen.append(await ctx.step("outer", lambda: "outer"))
        return seen

    async with an_engine(nested, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(nested))
        for hours in (0.5, 0.5, 1):
            await clock.advance(hours * HOUR)
            await stay(e, life)
            await parked(e, run)
        assert [step.name for step in await e.get_steps(run.id)] == ["first", "inner", "second"]
        await clock.advance(HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == ["inner", "outer"]


async def test_of_nested_timeouts_that_are_all_overdue_the_one_that_was_due_first_fires_first(clock):
    @job("nested")
    async def nested(ctx: Context, _: None) -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(3 * HOUR):
                try:
                    async with asyncio.timeout(HOUR):
                        await ctx.wait_for_signal("first")
                except TimeoutError:
                    seen.append(await ctx.step("inner", lambda: "inner"))
                await ctx.wait_for_signal("second")
        except TimeoutError:
            seen.append("outer")
        return seen

    async with an_engine(nested, clock=clock) as e:
        run = await parked(e, await e.trigger(nested))
        await crash(e)
        await clock.advance(4 * HOUR)
        await restart(e)
        assert (await ended(e, run)).output == ["inner", "outer"]


async def test_an_overdue_timeout_fires_only_when_the_body_is_where_it_was(clock):
    @job("replayed")
    async def replayed(ctx: Context, _: None) -> list[str]:
        came = []
        try:
            async with asyncio.timeout(HOUR):
                for stage in ("first", "second"):
                    came.append(await ctx.wait_for_signal(stage))
                    await settle()  # a body may do other things than those of its context
                    came.append(await ctx.step(f"after {stage}", str, f"after {stage}"))
                await ctx.wait_for_signal("third")
        except TimeoutError:
            came.append(await ctx.step("too late", str, "too late"))
        return came

    async with an_engine(replayed, clock=clock) as e:
        run = await parked(e, await e.trigger(replayed))
        for stage in ("first", "second"):
            await e.signal(run.id, stage, stage)
            await settle()
            await parked(e, run)
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        await settle()
        await settle()
        assert (await ended(e, run)).output == ["first", "after first", "second", "after second", "too late"]


@pytest.mark.parametrize("life", LIVES)
async def test_branches_have_timeouts_of_their_own(clock, life):
    @job("branches")
    async def branches(ctx: Context, _: None) -> list[str]:
        async def branch(hours: int) -> str:
            try:
                async with asyncio.timeout(hours * HOUR):
                    await ctx.wait_for_signal(f"signal {hours}")
            except TimeoutError:
                return await ctx.step(f"note {hours}", lambda: "too late")
            return "in time"

        return await asyncio.gather(branch(3), branch(1), branch(2))

    async with an_engine(branches, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(branches))
        await clock.advance(0.9 * HOUR)
        await stay(e, life)
        await clock.advance(0.2 * HOUR)
        assert (await parked(e, run)).completed_steps == 1
        await stay(e, life)
        await e.signal(run.id, "signal 2")
        await clock.advance(1.9 * HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == ["too late", "too late", "in time"]


@pytest.mark.parametrize("life", LIVES)
async def test_of_several_plain_sleeps_beside_a_wait_each_is_over_when_it_first_was(clock, life):
    @job("sleeps")
    async def sleeps(ctx: Context, _: None) -> None:
        async def sleep(hours: float) -> None:
            await asyncio.sleep(hours * HOUR)
            await ctx.step(f"after {hours} h", clock.now)

        sleeping = [asyncio.ensure_future(sleep(hours)) for hours in (3, 1, 2)]
        await ctx.wait_for_signal("go")
        for task in sleeping:
            task.cancel()

    async with an_engine(sleeps, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(sleeps))
        begin = clock.now()
        await clock.advance(0.5 * HOUR)
        await stay(e, life)
        for _ in range(3):
            await parked(e, run)
            await clock.advance(0.9 * HOUR)
        steps = {step.name: step.output - begin for step in await e.get_steps(run.id) if step.kind == "step"}
        assert {name: round(after / 1000 / HOUR, 2) for name, after in steps.items()} == {
            "after 1 h": 1,
            "after 2 h": 2,
            "after 3 h": 3,
        }
        await e.signal(run.id, "go")
        assert (await ended(e, run)).status == RunStatus.COMPLETED


@pytest.mark.parametrize("life", LIVES)
async def test_one_timeout_goes_on_from_wait_to_wait(clock, life):
    @job("stages")
    async def stages(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(HOUR):
                for number in range(5):
                    await ctx.sleep(f"stage {number}", 0.4 * HOUR)
        except TimeoutError:
            return f"in stage {number}"
        return "never"

    async with an_engine(stages, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(stages))
        for _ in range(2):
            await clock.advance(0.45 * HOUR)
            await stay(e, life)
            await parked(e, run)
        await clock.advance(0.1 * HOUR)
        assert (await ended(e, run)).output == "in stage 2"


async def test_a_step_after_a_wait_has_no_more_time_after_a_restart(clock):
    began = []

    @job("both")
    async def both(ctx: Context, _: None) -> str:
        async def work() -> None:
            began.append(clock.now())
            await asyncio.get_running_loop().create_future()

        try:
            async with asyncio.timeout(HOUR):
                await ctx.wait_for_signal("go")
                await ctx.step("work", work)
        except TimeoutError:
            return "too late"
        return "never"

    async with an_engine(both, clock=clock) as e:
        run = await parked(e, await e.trigger(both))
        await e.signal(run.id, "go")
        await settle()
        await crash(e)
        await clock.advance(2 * HOUR)
        await restart(e)
        assert (await ended(e, run)).output == "too late"
        assert len(began) == 2


@pytest.mark.parametrize("life", LIVES)
async def test_a_timeout_that_the_body_has_moved_is_due_when_it_was_moved_to(clock, life):
    @job("extended")
    async def extended(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(HOUR) as limit:
                await ctx.wait_for_signal("more")
                limit.reschedule(asyncio.get_running_loop().time() + 3 * HOUR)
                await ctx.wait_for_signal("go")
        except TimeoutError:
            return "too late"
        return "never"

    async with an_engine(extended, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(extended))
        await clock.advance(0.5 * HOUR)
        await stay(e, life)
        await e.signal(run.id, "more")
        await parked(e, run)
        await clock.advance(2 * HOUR)
        await stay(e, life)
        await clock.advance(HOUR - 1)
        await parked(e, run)
        await clock.advance(1)
        assert (await ended(e, run)).output == "too late"


@pytest.mark.parametrize("life", LIVES)
async def test_a_timeout_that_is_behind_the_body_no_longer_counts(clock, life):
    @job("passed")
    async def passed(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR) as limit:
            await ctx.wait_for_signal("first")
        await ctx.wait_for_signal("second")
        return "expired" if limit.expired() else "in time"

    async with an_engine(passed, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(passed))
        await e.signal(run.id, "first")
        assert (await parked(e, run)).wake_at is None
        await stay(e, life)
        await clock.advance(2 * HOUR)
        await stay(e, life)
        await e.signal(run.id, "second")
        assert (await ended(e, run)).output == "in time"


@pytest.mark.parametrize("life", LIVES)
async def test_a_timeout_that_has_fired_is_not_waited_for_again(clock, life):
    @job("fired")
    async def fired(ctx: Context, _: None) -> list[Any]:
        seen = []
        for number in range(3):
            try:
                async with asyncio.timeout(HOUR):
                    seen.append(await ctx.wait_for_signal(f"signal {number}"))
            except TimeoutError:
                seen.append(await ctx.step(f"note {number}", lambda: "too late"))
        seen.append(await ctx.wait_for_signal("go"))
        return seen

    async with an_engine(fired, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(fired))
        for _ in range(3):
            await clock.advance(HOUR)
            await stay(e, life)
        assert (await parked(e, run)).wake_at is None
        await e.signal(run.id, "go", "gone")
        assert (await ended(e, run)).output == ["too late", "too late", "too late", "gone"]


@pytest.mark.parametrize("life", LIVES)
async def test_a_webhook_may_be_waited_for_in_one_timeout_after_the_other(clock, life):
    @job("patient")
    async def patient(ctx: Context, _: None) -> list[Any]:
        made = await ctx.webhook("hook")
        seen = []
        for number in range(3):
            try:
                async with asyncio.timeout(HOUR):
                    await made.wait()
            except TimeoutError:
                seen.append(await ctx.step(f"remind {number}", clock.now))
        return seen

    async with an_engine(patient, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(patient))
        begin = clock.now()
        for _ in range(5):
            await clock.advance(0.5 * HOUR)
            await stay(e, life)
        await parked(e, run)
        await clock.advance(0.5 * HOUR)
        run = await ended(e, run)
        assert [round((moment - begin) / 1000 / HOUR, 2) for moment in run.output] == [1, 2, 3]


@pytest.mark.parametrize("life", LIVES)
async def test_of_two_durable_sleeps_the_first_one_wakes_the_run_inside_a_timeout(clock, life):
    @job("race")
    async def race(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR):
            long, short = (asyncio.ensure_future(ctx.sleep(f"{seconds} s", seconds)) for seconds in (100, 10))
            done, pending = await asyncio.wait([long, short], return_when=asyncio.FIRST_COMPLETED)
            for other in pending:
                other.cancel()
        return "short" if short in done else "long"

    async with an_engine(race, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(race))
        await stay(e, life)
        await clock.advance(10)
        assert (await ended(e, run)).output == "short"


async def test_the_time_is_that_of_the_wall(running):
    """No clock is moved here: the timers are those of the event loop."""

    @job("real")
    async def real(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.2):
                await ctx.wait_for_signal("go")
        except TimeoutError:
            return "too late"
        return "never"

    async with running(real) as e:
        run = await reach(e, (await e.trigger(real)).id, RunStatus.WAITING)
        await crash(e)
        await asyncio.sleep(0.3)
        await restart(e)
        assert (await finish(e, run)).output == "too late"


async def test_a_timeout_fires_by_itself_while_the_run_is_in_memory(running):
    @job("real")
    async def real(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.05):
                await ctx.wait_for_signal("go")
        except TimeoutError:
            return "too late"
        return "never"

    async with running(real) as e:
        assert (await e.trigger_and_wait(real)).output == "too late"


# --- whatever the body is --------------------------------------------------------------------------------------------

UNIT = 20_000
Node = list[Any]  # ["wait"], ["limit", seconds, nodes], ["both", nodes, nodes]


async def play(ctx: Context, nodes: list[Node], place: str, seen: list[str]) -> None:
    """Do what a program says; ``place`` names where in it."""
    for number, (kind, *rest) in enumerate(nodes):
        here = f"{place}.{number}"
        if kind == "wait":
            await ctx.wait_for_signal(here)
            await ctx.step(f"note {here}", str, here)
        elif kind == "both":
            await asyncio.gather(
                *(play(ctx, half, f"{here}{side}", seen) for side, half in zip("lr", rest, strict=True))
            )
        else:
            try:
                async with asyncio.timeout(rest[0]):
                    await play(ctx, rest[1], here, seen)
            except TimeoutError:
                await ctx.step(f"late {here}", str, here)
                seen.append(f"late {here}")
        seen.append(here)


@job("program")
async def program(ctx: Context, nodes: list[Node]) -> list[str]:
    seen: list[str] = []
    await play(ctx, nodes, "", seen)
    return sorted(seen)


def some(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[list[Node]]:
    return st.lists(nodes, min_size=1, max_size=3)


programs = some(
    st.recursive(
        st.just(["wait"]),
        lambda nodes: st.one_of(
            st.tuples(st.just("limit"), st.integers(0, 9), some(nodes)).map(list),
            st.tuples(st.just("both"), some(nodes), some(nodes)).map(list),
        ),
        max_leaves=8,
    )
)


def set_apart(nodes: list[Node], numbers: Iterator[int]) -> list[Node]:
    """Let no two limits be due at the same moment, nor when something happens."""
    return [
        [kind, rest[0] * UNIT + 2 ** next(numbers), set_apart(rest[1], numbers)]
        if kind == "limit"
        else [kind, *(set_apart(half, numbers) for half in rest)]
        for kind, *rest in nodes
    ]


happenings = st.lists(st.one_of(st.integers(1, 6), st.just("signal")), max_size=15)  # units go by, a signal is sent


async def history(nodes: list[Node], happens: list[int | str], life: str) -> dict[str, Any]:
    """What comes of a program: every step and wait with its status, and what the body has seen."""
    clock = MockClock()
    async with an_engine(program, clock=clock, life=life) as e:
        run = await e.trigger(program, set_apart(nodes, itertools.count()))
        for happening in happens:
            await settle()
            if isinstance(happening, int):
                await clock.advance(happening * UNIT)
            elif waiting := [step for step in await e.get_steps(run.id) if step.waiting_for is not None]:
                await e.signal(run.id, min(step.name for step in waiting))
            await settle()
            if life == "restarted":
                await restart(e)
        await settle()
        run = await e.get_run(run.id)
        steps = {step.name: step.status for step in await e.get_steps(run.id)}
        return {"status": run.status, "output": run.output, "steps": steps, "error": run.error}


@patch("durable_web.testing.clock.TURNS", 500)  # to go through all that was called off takes many
@on_a_desk_only("forty programs, thrice each, take minutes there")
@settings(max_examples=40)
@given(nodes=programs, happens=happenings)
def test_a_body_goes_the_same_way_whatever_becomes_of_its_engine(nodes, happens):
    async def check() -> None:
        expected = await history(nodes, happens, "goes on")
        for life in LIVES[1:]:
            assert await history(nodes, happens, life) == expected, life

    asyncio.run(check())


# --- what it means for runs ------------------------------------------------------------------------------------------


async def test_a_run_is_woken_when_a_timeout_is_due(clock):
    async with an_engine(limited, clock=clock) as e:
        run = await parked(e, await e.trigger(limited, "signal"))
        assert abs(run.wake_at - run.created_at - timedelta(hours=1)) < timedelta(seconds=1)


async def test_nothing_is_written_for_a_run_that_waits_without_a_timer(clock):
    @job("plain")
    async def plain(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("go")

    async with an_engine(plain, limited, clock=clock) as e:
        run = await parked(e, await e.trigger(plain))
        assert run.wake_at is None
        assert [record.timeouts for record in e._store.steps.load(run.id).values()] == [None]


@pytest.mark.parametrize("seconds", [None, float("inf")])
async def test_a_timeout_that_is_never_due_wakes_nobody(clock, seconds):
    @job("unlimited")
    async def unlimited(ctx: Context, _: None) -> str:
        async with asyncio.timeout(seconds):
            return await ctx.wait_for_signal("go")

    async with an_engine(unlimited, clock=clock) as e:
        run = await parked(e, await e.trigger(unlimited))
        assert run.wake_at is None
        await restart(e)
        await e.signal(run.id, "go", "gone")
        assert (await ended(e, run)).output == "gone"


async def test_a_body_that_looks_again_and_again_beside_its_wait_keeps_no_slot(clock):
    @job("polls")
    async def polls(ctx: Context, _: None) -> None:
        async def poll() -> None:
            while True:
                await asyncio.sleep(0.003)

        polling = asyncio.ensure_future(poll())
        await ctx.wait_for_signal("go")
        polling.cancel()

    @job("other")
    async def other(ctx: Context, _: None) -> str:
        return "had a slot"

    async with engine(polls, other, clock=clock, max_concurrent_runs=1) as e:
        run = await parked(e, await e.trigger(polls))
        assert run.wake_at - run.created_at >= timedelta(seconds=1)
        assert (await e.trigger_and_wait(other)).output == "had a slot"
        await e.signal(run.id, "go")
        assert (await finish(e, run)).status == RunStatus.COMPLETED


async def test_a_retried_run_has_its_time_again(clock):
    @job("strict")
    async def strict(ctx: Context, _: None) -> str:
        async with asyncio.timeout(HOUR):
            await ctx.wait_for_signal("first")
            return await ctx.wait_for_signal("second")

    async with an_engine(strict, clock=clock) as e:
        run = await parked(e, await e.trigger(strict))
        await e.signal(run.id, "first")
        await clock.advance(HOUR)
        assert (await ended(e, run)).status == "failed"
        await e.retry(run.id)
        await clock.advance(0.9 * HOUR)
        await parked(e, run)
        await e.signal(run.id, "second", "done")
        assert (await ended(e, run)).output == "done"


@pytest.mark.parametrize("life", LIVES)
async def test_what_was_done_after_a_timeout_is_undone_as_well(clock, life):
    undone = []

    @job("saga")
    async def saga(ctx: Context, _: None) -> None:
        await ctx.step("before", lambda: "before", compensate=undone.append)
        try:
            async with asyncio.timeout(HOUR):
                await ctx.wait_for_signal("first")
        except TimeoutError:
            await ctx.step("after", lambda: "after", compensate=undone.append)
        await ctx.wait_for_signal("second")

    async with an_engine(saga, clock=clock, life=life) as e:
        run = await parked(e, await e.trigger(saga))
        await clock.advance(2 * HOUR)
        await stay(e, life)
        await parked(e, run)
        await e.cancel(run.id, compensate=True)
        assert (await ended(e, run)).status == "cancelled"
        assert undone == ["after", "before"]


async def test_a_wait_that_has_ended_stays_ended_when_it_is_called_off_in_a_later_execution(clock):
    @job("stopped")
    async def stopped(ctx: Context, _: None) -> str:
        branch = asyncio.ensure_future(by_timeout(ctx.wait_for_signal("go")))
        await asyncio.sleep(0)
        await ctx.wait_for_signal("stop")
        branch.cancel()
        await asyncio.wait([branch])
        return await ctx.wait_for_signal("end")

    async with an_engine(stopped, clock=clock) as e:
        run = await parked(e, await e.trigger(stopped))
        for name in ("go", "stop"):
            await e.signal(run.id, name)
            await parked(e, run)
        await restart(e)
        await e.signal(run.id, "end")
        run = await ended(e, run)
        assert [(step.name, step.status) for step in await e.get_steps(run.id)] == [
            ("go", "completed"),
            ("stop", "completed"),
            ("end", "completed"),
        ]


async def test_a_child_that_a_timeout_has_called_off_is_started_by_nobody_again(clock):
    @job("parent")
    async def parent(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(HOUR):
                await ctx.run_job("child", child, 1)
        except (TimeoutError, ChildFailed) as error:
            await ctx.wait_for_signal("go")
            return type(error).__name__
        return "never"

    async with an_engine(parent, child, clock=clock) as e:
        run = await parked(e, await e.trigger(parent))
        await clock.advance(HOUR)
        await restart(e)
        await parked(e, run)
        (made,) = await e.list_runs(job="child")
        assert made.status == "cancelled"
        await e.signal(run.id, "go")
        assert (await ended(e, run)).output == "TimeoutError"


# --- what is called off no longer ------------------------------------------------------------------------------------


@job("changing")
async def impatient(ctx: Context, kind: str) -> str:
    try:
        async with asyncio.timeout(HOUR):
            await WAITS[kind](ctx)
    except TimeoutError:
        await ctx.wait_for_signal("then")
    return "impatient"


@job("changing")
async def patient(ctx: Context, kind: str) -> str:
    await WAITS[kind](ctx)
    return "patient"


async def send_update(e: Engine, run: Run) -> None:
    with suppress(TimeoutError):
        await e.update(run.id, "change", timeout=0)


async def nothing(e: Engine, run: Run) -> None:
    """Time ends it."""


ENDS: dict[str, Callable[[Engine, Run], Awaitable[Any]]] = {
    "sleep": nothing,
    "signal": lambda e, run: e.signal(run.id, "go"),
    "signal in time": lambda e, run: e.signal(run.id, "go"),
    "event": lambda e, run: e.publish("news"),
    "update": send_update,
    "breakpoint": lambda e, run: e.resume(run.id),
    "child": nothing,
    "map": nothing,
}


@pytest.mark.parametrize("kind", ENDS)
async def test_a_wait_that_the_code_no_longer_calls_off_is_waited_for_anew(clock, kind):
    async with an_engine(impatient, child, clock=clock) as e:
        run = await parked(e, await e.trigger(impatient, kind))
        await clock.advance(HOUR)
        assert (await parked(e, run)).waiting_reason == "it waits for signal 'then'"
        await restart(e, patient, child)
        await e.signal(run.id, "then")
        assert "called off" not in (await parked(e, run)).waiting_reason
        await e.stop(drain=True)
        await e.start()
        await ENDS[kind](e, run)
        await clock.advance(300 * HOUR)
        assert (await ended(e, run)).output == "patient"
