"""What a body may do, and what it is refused, on a real engine: every execution of it goes the same way.

DESIGN.md, section 5, says how: a run has an event loop of its own, steps are called outside of it, and outcomes are
delivered in the order in which they were recorded. ``test_order.py`` has more of the order, ``test_timers.py`` of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from watching import cpython_only, finish

from durable_web import (
    Context,
    Engine,
    NotInStep,
    RunStatus,
    StepFailed,
    StepStatus,
    job,
)
from durable_web.testing import assert_replays, crash_at, engine, record_history, restart, settle

SELDOM = {"lease": 1e9}


async def soon(value: Any = None, turns: int = 3) -> Any:
    """The function of a step that takes some turns of the real loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def output_of(e: Engine, run: Any) -> Any:
    run = await finish(e, run)
    assert run.status == RunStatus.COMPLETED, (run.status, run.error)
    return run.output


async def log_of(e: Engine, run_id: str) -> list[str]:
    return [line.message for line in await e.runs.logs(run_id)]


# --- what a body leaves ----------------------------------------------------------------------------------------------


@job("catches")
async def catches(ctx: Context, _: None) -> list[str]:
    seen = [await ctx.step("first", str, "first", compensate=undone.append)]
    try:
        await ctx.wait_for_signal("never")
    except asyncio.CancelledError:
        seen.append(await ctx.step("after", soon, "after", compensate=undone.append))
    try:
        await ctx.wait_for_signal("never again")
    except asyncio.CancelledError:
        seen.append(await ctx.step("last", str, "last"))
    return seen


undone: list[str] = []


async def test_a_body_that_catches_its_cancellation_may_do_steps_and_waits_for_nothing_from_outside(clock):
    undone.clear()
    async with engine(catches, clock=clock, **SELDOM) as e:
        run = await e.trigger(catches)
        await settle()
        assert (await e.runs.cancel(run.id, compensate=True)).status == RunStatus.CANCELLING
        run = await finish(e, run)
        assert (run.status, run.output) == (RunStatus.CANCELLED, None)
        statuses = {step.name: step.status for step in await e.runs.steps(run.id)}
        assert (statuses["after"], statuses["last"]) == (StepStatus.COMPLETED, StepStatus.COMPLETED)
        assert undone == ["after", "first"]


async def test_a_body_that_catches_every_cancellation_keeps_nothing_else_from_executing(clock):
    @job("stands")
    async def stands(ctx: Context, _: None) -> None:
        await ctx.step("first", str, 1, compensate=str)
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await ctx.wait_for_signal("never")

    @job("other")
    async def other(ctx: Context, _: None) -> str:
        return await ctx.step("work", soon, "done")

    async with engine(stands, other, clock=clock, **SELDOM) as e:
        run = await e.trigger(stands)
        await settle()
        await e.runs.cancel(run.id, compensate=True)
        assert (await e.trigger_and_wait(other)).output == "done"
        await clock.advance(6)
        (line,) = await log_of(e, run.id)
        assert __file__ in line
        assert (await e.runs.cancel(run.id)).status == RunStatus.CANCELLED


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # "coroutine ignored GeneratorExit"
@pytest.mark.parametrize("life", ["evicted", "crashed"])
async def test_a_body_that_catches_everything_stands_still_once_its_run_is_executed_elsewhere(clock, life):
    @job("stands")
    async def stands(ctx: Context, _: None) -> None:
        while True:
            try:
                asked.append(await ctx.wait_for_signal("never"))
            except BaseException as error:
                asked.append(type(error).__name__)

    asked: list[str] = []
    async with engine(stands, clock=clock, max_parked=0 if life == "evicted" else 1, **SELDOM) as e:
        run = await e.trigger(stands)
        await settle()
        if life == "crashed":
            await restart(e)
            await settle()
        first = list(asked)
        assert first[:4] == ["Detached"] * 4  # what was thrown where it stood, and three refusals
        assert set(first[4:]) <= {"GeneratorExit"}
        gc.collect()
        assert (await e.runs.get(run.id)).status == RunStatus.WAITING


async def test_what_a_dropped_body_awaits_in_its_clean_up_is_refused_at_every_level(clock):
    @job("nested")
    async def nested(ctx: Context, levels: int) -> None:
        async def level(number: int) -> None:
            try:
                if number:
                    await asyncio.create_task(level(number - 1))
                else:
                    await ctx.wait_for_signal("go")
            finally:
                for _ in range(2):
                    with contextlib.suppress(Exception):
                        await ctx.step("clean up", called.append, number)

        await level(levels)

    called: list[int] = []
    async with engine(nested, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(nested, 7)
        await settle()
        gc.collect()
        assert called == []
        await e.runs.signal(run.id, "go")
        await settle()
        assert called == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


async def test_a_task_that_the_body_leaves_is_cancelled_and_cleans_up_before_the_run_ends():
    @job("leaves")
    async def leaves(ctx: Context, _: None) -> str:
        async def branch() -> None:
            try:
                await ctx.wait_for_signal("never")
            finally:
                await ctx.step("clean up", soon)

        _left = asyncio.ensure_future(branch())
        return await ctx.step("work", soon, "done")

    async with engine(leaves) as e:
        run = await e.trigger(leaves)
        assert await output_of(e, run) == "done"
        statuses = {step.name: step.status for step in await e.runs.steps(run.id)}
        assert statuses == {"never": "cancelled", "clean up": "completed", "work": "completed"}
        assert (await assert_replays(record_history(e, run.id), leaves)).output == "done"


async def test_generators_that_were_left_by_break_are_closed_at_the_end_in_the_order_in_which_they_began():
    @job("breaks")
    async def breaks(ctx: Context, _: None) -> str:
        async def rows(name: str) -> AsyncIterator[int]:
            try:
                yield await ctx.step(f"row of {name}", soon, 1)
                yield 2
            finally:
                await ctx.step("close", called.append, name)

        for name in "abc":
            async for _row in rows(name):
                break
        return await ctx.step("work", soon, "done")

    called: list[str] = []
    async with engine(breaks) as e:
        run = await e.trigger(breaks)
        await crash_at(e, after="close#2")
        await restart(e)
        assert await output_of(e, run) == "done"
        assert called == ["a", "b", "c"]
        steps = sorted(await e.runs.steps(run.id), key=lambda step: step.completed_at)
        assert [step.name for step in steps if step.name.startswith("close")] == ["close", "close#2", "close#3"]
        await assert_replays(record_history(e, run.id), breaks)
        assert len(called) == 3


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
async def test_an_exit_in_a_task_fails_its_run_and_the_engine_goes_on(error):
    @job("exits")
    async def exits(ctx: Context, where: str) -> None:
        async def leave() -> None:
            await ctx.step("before", str, compensate=undone.append)
            raise error(3)

        if where == "task":
            await asyncio.gather(leave(), ctx.wait_for_signal("never"))
        await leave()

    @job("other")
    async def other(ctx: Context, _: None) -> str:
        await ctx.sleep("nap", 0.01)
        return await ctx.step("work", soon, "done")

    undone: list[str] = []
    async with engine(exits, other) as e:
        beside = await e.trigger(other)
        for where in ("task", "body"):
            run = await finish(e, await e.trigger(exits, where))
            assert (run.status, run.error.type) == (RunStatus.FAILED, error.__name__)
        assert undone == ["", ""]
        assert await output_of(e, beside) == "done"


# --- what a step sees, and what is seen of it ------------------------------------------------------------------------

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


async def test_what_a_step_sets_in_context_variables_is_not_seen_by_the_body_in_no_execution():
    def set_it() -> int:
        before = variable.get()
        variable.set(9)
        return before

    async def set_it_later() -> int:
        await asyncio.sleep(0)
        return set_it()

    @job("sets")
    async def sets(ctx: Context, _: None) -> list[int]:
        variable.set(5)
        seen = [await ctx.step("plain", set_it), variable.get(), await ctx.step("later", set_it_later), variable.get()]
        executions.append(seen)
        await ctx.step("end", str)
        return seen

    executions: list[list[int]] = []
    async with engine(sets) as e:
        run = await e.trigger(sets)
        await crash_at(e, before="end")
        await restart(e)
        assert await output_of(e, run) == [5, 5, 5, 5]
        assert executions == [[5, 5, 5, 5]] * 2
        assert variable.get() == 0


async def test_a_step_is_called_on_the_real_loop_without_a_task_and_an_asynchronous_one_in_a_task_of_it():
    def look() -> list[bool]:
        return [
            asyncio.get_running_loop() is real,
            asyncio.current_task() is None,
            sys.get_asyncgen_hooks() == hooks,
        ]

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def look_later() -> list[bool]:
        async for _ in numbers():  # left: it belongs to the real loop, which closes it
            break
        await asyncio.sleep(0)
        task = asyncio.current_task()
        return [asyncio.get_running_loop() is real, type(task) is asyncio.Task, sys.get_asyncgen_hooks() == hooks]

    @job("looks")
    async def looks(ctx: Context, _: None) -> list[list[bool]]:
        task = asyncio.current_task()
        found = [await ctx.step("look", look), await ctx.step("look later", look_later)]
        found.append(await asyncio.create_task(ctx.step("look in a branch", look)))
        found.append([asyncio.current_task() is task, asyncio.get_running_loop() is not real])
        return found

    real, hooks = asyncio.get_running_loop(), sys.get_asyncgen_hooks()
    async with engine(looks) as e:
        assert await output_of(e, await e.trigger(looks)) == [[True] * 3, [True] * 3, [True] * 3, [True] * 2]


@pytest.mark.parametrize("operation", ["step", "sleep", "signal", "child", "value"])
async def test_operations_inside_the_function_of_a_step_are_refused(operation):
    asks: dict[str, Callable[[Context], Awaitable[Any]]] = {
        "step": lambda ctx: ctx.step("inner", str),
        "sleep": lambda ctx: ctx.sleep("inner", 1),
        "signal": lambda ctx: ctx.wait_for_signal("inner"),
        "child": lambda ctx: ctx.run_job("inner", "asks"),
        "value": lambda ctx: ctx.random("inner"),
    }

    @job("asks")
    async def asks_inside(ctx: Context, _: None) -> list[str]:
        async def inside() -> Any:
            await asyncio.sleep(0)
            return await asks[operation](ctx)

        try:
            await ctx.step("outer", inside)
        except StepFailed as failure:
            return [failure.error_type, failure.error_message]
        return []

    async with engine(asks_inside) as e:
        kind, message = await output_of(e, await e.trigger(asks_inside))
        assert kind == "NotInStep"
        assert "'inner' was called inside the function of step 'outer'" in message
        assert [step.name for step in await e.runs.steps((await e.runs.list())[0].id)] == ["outer"]


@cpython_only("there are no threads")
async def test_operations_are_refused_in_a_thread_of_a_step_too():
    @job("threads")
    async def threads(ctx: Context, _: None) -> str:
        def inside() -> str:
            try:
                asyncio.run(ctx.step("inner", str))
            except NotInStep as error:
                return str(error)
            return ""

        return await ctx.step("outer", asyncio.to_thread, inside)

    async with engine(threads) as e:
        assert "inside the function of step 'outer'" in await output_of(e, await e.trigger(threads))


async def test_what_is_no_operation_may_be_asked_for_inside_a_step(clock):
    @job("reports")
    async def reports(ctx: Context, _: None) -> bool:
        async def inside() -> bool:
            ctx.log.info("a line")
            ctx.progress(1, 2)
            await ctx.set_event("state", "inside")
            return ctx.cancelled

        return await ctx.step("outer", inside)

    async with engine(reports, clock=clock) as e:
        run = await e.trigger_and_wait(reports)
        assert run.output is False
        assert await log_of(e, run.id) == ["a line"]
        assert await e.runs.value(run.id, "state") == "inside"
        assert run.progress.current == 1


# --- libraries -------------------------------------------------------------------------------------------------------


@cpython_only("anyio is not installed there")
async def test_task_groups_and_cancel_scopes_of_anyio_go_the_same_way_in_every_execution(clock):
    anyio = pytest.importorskip("anyio")

    @job("scopes")
    async def scopes(ctx: Context, _: None) -> list[Any]:
        seen: list[Any] = []

        async def branch(name: str) -> None:
            try:
                seen.append(await ctx.step(name, soon, name))
                await ctx.wait_for_signal(f"never {name}")
            finally:
                with anyio.CancelScope(shield=True):
                    seen.append(await ctx.step("clean up", soon, f"{name} is clean"))

        async with anyio.create_task_group() as group:
            for name in "abc":
                group.start_soon(branch, name)
            await ctx.sleep("nap", 60)
            group.cancel_scope.cancel()
        with anyio.move_on_after(60) as scope:
            await ctx.wait_for_signal("never")
        seen.append(scope.cancelled_caught)
        with anyio.fail_after(60):
            await anyio.sleep(30)
        try:
            with anyio.fail_after(60):
                await ctx.step("too long", asyncio.Event().wait)
        except TimeoutError:
            seen.append("too late")
        lock = anyio.Lock()
        async with lock, anyio.create_task_group() as group:
            group.start_soon(branch, "d")
            await ctx.step("wait a little", soon, None, 20)
            group.cancel_scope.cancel()
        return seen

    async with engine(scopes, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(scopes)
        for _ in range(20):
            await clock.advance(15)
            await restart(e)
        output = await output_of(e, run)
        assert sorted(map(str, output[3:6])) == ["a is clean", "b is clean", "c is clean"]
        assert output[:3] == ["a", "b", "c"]
        assert output[6:] == [True, "too late", "d", "d is clean"]
        assert (await assert_replays(record_history(e, run.id), scopes)).output == output


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks_of_a_body_go_the_same_way_in_every_execution(clock):
    @job("eager")
    async def eager(ctx: Context, _: None) -> list[Any]:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        seen: list[Any] = []

        async def branch(number: int) -> int:
            seen.append(f"begins {number}")
            try:
                await ctx.step("same", soon, number)
                await asyncio.sleep(60)
            finally:
                seen.append(await ctx.step("clean up", soon, number))
            return number

        tasks = [asyncio.create_task(branch(number)) for number in range(6)]
        seen.append("all have begun")
        assert all(hash(task) == task.number for task in tasks)  # type: ignore[attr-defined]
        await asyncio.wait(tasks, timeout=30)
        _, pending = await asyncio.wait(tasks, timeout=0)
        for task in pending:
            task.cancel()
        await asyncio.wait(tasks)
        return seen

    async with engine(eager, clock=clock, max_parked=0, **SELDOM) as e:
        run = await e.trigger(eager)
        for _ in range(5):
            await clock.advance(15)
            await restart(e)
        output = await output_of(e, run)
        assert output[:7] == [*(f"begins {number}" for number in range(6)), "all have begun"]
        for _ in range(5):
            assert (await assert_replays(record_history(e, run.id), eager)).output == output


@cpython_only("uvloop is an event loop of Unix")
def test_a_run_executes_on_uvloop_as_on_any_other_loop():
    uvloop = pytest.importorskip("uvloop")

    @job("works")
    async def works(ctx: Context, _: None) -> list[Any]:
        async def branch(number: int) -> Any:
            async with asyncio.timeout(10):
                return await ctx.step("same", asyncio.sleep, 0.001 * number, number)

        several = await asyncio.gather(*map(branch, range(5)), ctx.step("plain", str, 1))
        await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(0.01):
                await ctx.step("too long", asyncio.sleep, 100)
        except TimeoutError:
            several.append("too late")
        return [*several, await ctx.step("thread", asyncio.to_thread, threading.active_count) > 1]

    async def main() -> None:
        assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        async with engine(works) as e:
            run = await e.trigger(works)
            assert await output_of(e, run) == [0, 1, 2, 3, 4, "1", "too late", True]
            await assert_replays(record_history(e, run.id), works)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_a_library_that_keeps_objects_of_the_real_loop_is_used_in_steps_of_any_run():
    """As a client of HTTP does, with its pool of connections and its locks."""

    class Client:
        def __init__(self) -> None:
            self.lock = asyncio.Lock()
            self.requests: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
            self.worker = asyncio.ensure_future(self.work())

        async def work(self) -> None:
            while True:
                number, answer = await self.requests.get()
                await asyncio.sleep(0)
                answer.set_result(number * 2)

        async def get(self, number: int) -> int:
            async with self.lock, asyncio.timeout(10):
                answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                await self.requests.put((number, answer))
                return await answer

    @job("asks")
    async def asks(ctx: Context, first: int) -> list[int]:
        return await asyncio.gather(*(ctx.step(f"get {first + n}", client.get, first + n) for n in range(5)))

    client = Client()
    async with engine(asks) as e:
        runs = [await e.trigger(asks, first) for first in (0, 10, 20)]
        assert await output_of(e, runs[0]) == [0, 2, 4, 6, 8]
        assert await output_of(e, runs[1]) == [20, 22, 24, 26, 28]
        assert await output_of(e, runs[2]) == [40, 42, 44, 46, 48]
    client.worker.cancel()


async def test_a_lock_that_two_bodies_share_fails_by_asyncios_own_rule():
    """A primitive belongs to the loop that first had to wait in it, and each run has a loop of its own."""

    @job("locks")
    async def locks(ctx: Context, _: None) -> str:
        async with lock:
            return await ctx.step("work", soon, "done", 20)

    @job("locks twice")
    async def locks_twice(ctx: Context, _: None) -> list[str]:
        return await asyncio.gather(locks.function(ctx, None), locks.function(ctx, None))

    lock = asyncio.Lock()
    async with engine(locks, locks_twice) as e:
        first = await e.trigger(locks_twice)
        await asyncio.sleep(0)
        second = await finish(e, await e.trigger(locks))
        assert (second.status, second.error.type) == (RunStatus.FAILED, "RuntimeError")
        assert "different event loop" in second.error.message
        assert await output_of(e, first) == ["done", "done"]


# --- what a body is refused ------------------------------------------------------------------------------------------


async def open_a_socket() -> Any:
    return await asyncio.open_connection("localhost", 9)


async def start_a_process() -> Any:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", "")


async def go_to_a_thread() -> Any:
    return await asyncio.to_thread(threading.get_ident)


async def use_the_executor() -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, threading.get_ident)


async def call_from_a_thread() -> Any:
    return asyncio.get_running_loop().call_soon_threadsafe(str)


@pytest.mark.parametrize("ask", [open_a_socket, start_a_process, go_to_a_thread, use_the_executor, call_from_a_thread])
async def test_what_a_replay_could_not_repeat_is_refused_in_a_body(ask):
    @job("asks")
    async def asks(ctx: Context, _: None) -> None:
        await ask()

    async with engine(asks) as e:
        run = await finish(e, await e.trigger(asks))
        assert (run.status, run.error.type) == (RunStatus.FAILED, "NotInBody")
        assert "is not recorded, so a replay could differ; do it in a step" in run.error.message
        assert f'"{__file__}", line {ask.__code__.co_firstlineno + 1}' in run.error.traceback


@cpython_only("there are no threads, sockets and processes")
async def test_the_same_works_in_a_step():
    async def echo(reader: Any, writer: Any) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def ask(port: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer.decode()

    async def start() -> str:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(5)", stdout=subprocess.PIPE)
        return (await process.communicate())[0].decode().strip()

    @job("asks")
    async def asks(ctx: Context, port: int) -> list[Any]:
        is_other = await ctx.step("thread", asyncio.to_thread, lambda: threading.get_ident() != here)
        both = await asyncio.gather(ctx.step("socket", ask, port), ctx.step("process", start))
        return [is_other, *both]

    here = threading.get_ident()
    server = await asyncio.start_server(echo, "127.0.0.1", 0, family=socket.AF_INET)
    async with engine(asks) as e:
        port = server.sockets[0].getsockname()[1]
        assert await output_of(e, await e.trigger(asks, port)) == [True, "hello\n", "5"]
    server.close()


async def test_as_completed_over_coroutines_is_refused_and_over_tasks_has_the_recorded_order():
    @job("completes")
    async def completes(ctx: Context, tasks: bool) -> list[int]:
        many: list[Any] = [ctx.step("same", soon, number, 9 - number) for number in range(5)]
        if tasks:
            many = [asyncio.create_task(each) for each in many]
        try:
            return [await each for each in asyncio.as_completed(many)]
        finally:
            for each in [] if tasks else many:
                each.close()

    async with engine(completes) as e:
        run = await finish(e, await e.trigger(completes, False))
        assert run.error.type == "NotInBody"
        assert "give it tasks" in run.error.message
        run = await e.trigger(completes, True)
        output = await output_of(e, run)
        assert sorted(output) == [0, 1, 2, 3, 4]
        for _ in range(5):
            assert (await assert_replays(record_history(e, run.id), completes)).output == output


async def test_a_body_that_polls_fails_and_is_told_where():
    @job("polls")
    async def polls(ctx: Context, _: None) -> None:
        task = asyncio.create_task(ctx.step("work", soon))
        while not task.done():
            await asyncio.sleep(0)

    async with engine(polls) as e:
        run = await finish(e, await e.trigger(polls))
        assert (run.status, run.error.type) == (RunStatus.FAILED, "BodyNeverRests")
        assert f"{__file__}:{polls.function.__code__.co_firstlineno + 4}" in run.error.message
