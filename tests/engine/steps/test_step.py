"""Steps: called once, recorded, replayed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from watching import finish, timeline

from durable_web import Context, FatalError, RunStatus, StepFailed, StepStatus, job
from durable_web.testing import MockClock, crash


async def test_a_job_runs_its_steps_and_completes_with_its_output(running):
    @job("sum")
    async def sum_up(ctx: Context, numbers: list[int]) -> int:
        doubled = [await ctx.step(f"double {number}", lambda n: 2 * n, number) for number in numbers]
        return sum(doubled)

    async with running(sum_up) as engine:
        run = await finish(engine, await engine.trigger("sum", [1, 2, 3]))

    assert run.status == RunStatus.COMPLETED
    assert run.output == 12
    assert run.completed_steps == 3
    assert run.started_at is not None
    assert run.completed_at is not None


async def test_a_recorded_step_is_not_called_again_after_a_crash(running):
    calls: list[str] = []
    block = asyncio.Event()

    @job("two-steps")
    async def two_steps(ctx: Context, _: None) -> list[str]:
        first = await ctx.step("first", record, "first")
        if len(calls) == 1:
            block.set()
            await asyncio.Event().wait()
        return [first, await ctx.step("second", record, "second")]

    def record(name: str) -> str:
        calls.append(name)
        return name

    async with running(two_steps) as engine:
        run = await engine.trigger("two-steps")
        await block.wait()
        await crash(engine)
        calls.append("crash")
    async with running(two_steps) as engine:
        run = await finish(engine, run)

    assert calls == ["first", "crash", "second"]
    assert run.output == ["first", "second"]
    assert run.attempt == 2


@pytest.mark.parametrize(
    "value",
    [0, "", False, None, [], {}, b"\x00\xff", datetime(2026, 1, 31, 12, 30, tzinfo=UTC), (1, (2,)), {3, 4}, 1e300],
)
async def test_a_step_gives_the_same_value_first_and_replayed(running, value):
    seen: list[Any] = []

    @job("echo")
    async def echo(ctx: Context, _: None) -> None:
        seen.append(await ctx.step("value", lambda: value))
        if len(seen) == 1:
            await asyncio.Event().wait()

    async with running(echo) as engine:
        run = await engine.trigger("echo")
        while not seen:
            await asyncio.sleep(0)
        await crash(engine)
    async with running(echo) as engine:
        await finish(engine, run)

    assert seen == [value, value]
    assert [type(item) for item in seen] == [type(value)] * 2


@pytest.mark.parametrize("kind", ["enum", "list", "dict"])
async def test_what_has_no_form_of_its_own_is_plain_data_first_and_replayed(running, kind):
    seen: list[Any] = []
    point, plain = Point(1, Colour.RED), {"x": 1, "colour": "red"}
    values = {"enum": (Colour.RED, "red"), "list": ([point], [plain]), "dict": ({"at": point}, {"at": plain})}
    value, expected = values[kind]

    @job("echo")
    async def echo(ctx: Context, _: None) -> None:
        seen.append(await ctx.step("value", lambda: value))
        if len(seen) == 1:
            await asyncio.Event().wait()

    async with running(echo) as engine:
        run = await engine.trigger("echo")
        while not seen:
            await asyncio.sleep(0)
        await crash(engine)
    async with running(echo) as engine:
        await finish(engine, run)
    assert seen == [expected, expected]
    assert [repr(item) for item in seen] == [repr(expected)] * 2


async def test_what_is_handed_to_the_body_is_what_was_written_down_not_the_original(running):
    original = {"rows": [1]}

    @job("copy")
    async def copy(ctx: Context, _: None) -> bool:
        return await ctx.step("rows", lambda: original) is original

    async with running(copy) as engine:
        assert (await finish(engine, await engine.trigger("copy"))).output is False


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    colour: Colour


def make_point(x: int) -> Point:
    return Point(x, Colour.RED)


async def test_the_return_annotation_of_a_step_brings_its_dataclass_back(running):
    @job("point")
    async def point(ctx: Context, x: int) -> bool:
        return await ctx.step("make", make_point, x) == Point(x, Colour.RED)

    async with running(point) as engine:
        assert (await finish(engine, await engine.trigger("point", 7))).output is True


async def test_a_failing_step_fails_the_run_with_its_error_and_traceback(running):
    def divide() -> float:
        return 1 / 0

    @job("divide")
    async def divide_job(ctx: Context, _: None) -> None:
        await ctx.step("division", divide)

    async with running(divide_job) as engine:
        run = await finish(engine, await engine.trigger("divide"))
        (step,) = await engine.runs.steps(run.id)

    assert run.status == RunStatus.FAILED
    assert run.error.type == "StepFailed"
    assert "Step 'division' failed: ZeroDivisionError" in run.error.message
    assert "in divide" in run.error.traceback
    assert step.status == StepStatus.FAILED
    assert step.error.type == "ZeroDivisionError"


async def test_a_caught_failure_replays_as_the_same_failure_without_calling_the_function_again(running):
    calls: list[int] = []
    caught: list[tuple[str, str]] = []

    def fail() -> None:
        calls.append(1)
        raise ValueError("no good")

    @job("catch")
    async def catch(ctx: Context, _: None) -> str:
        try:
            await ctx.step("fail", fail)
        except StepFailed as error:
            caught.append((str(error), error.error_type))
        if len(caught) == 1:
            await asyncio.Event().wait()
        return "went on"

    async with running(catch) as engine:
        run = await engine.trigger("catch")
        while not caught:
            await asyncio.sleep(0)
        await crash(engine)
    async with running(catch) as engine:
        run = await finish(engine, run)

    assert run.output == "went on"
    assert len(calls) == 1
    assert caught[0] == caught[1] == ("Step 'fail' failed: ValueError: no good", "ValueError")


async def test_the_second_step_of_one_name_is_recorded_with_its_ordinal(running):
    @job("twins")
    async def twins(ctx: Context, _: None) -> list[int]:
        return [await ctx.step("fetch", lambda n: n, number) for number in (1, 2, 3)]

    async with running(twins) as engine:
        run = await finish(engine, await engine.trigger("twins"))
        assert [step.name for step in await engine.runs.steps(run.id)] == ["fetch", "fetch#2", "fetch#3"]
    assert run.output == [1, 2, 3]


@pytest.mark.parametrize("name", ["", "fetch#2", 7])
async def test_a_name_that_could_be_confused_with_another_is_refused(running, name):
    @job("named")
    async def named(ctx: Context, _: None) -> None:
        await ctx.step(name, lambda: 1)

    async with running(named) as engine:
        run = await finish(engine, await engine.trigger("named"))
    assert run.status == RunStatus.FAILED
    assert run.error.type == "ValueError"


async def test_a_recorded_name_that_comes_back_as_another_kind_fails_the_run_even_when_caught(running):
    begun = asyncio.Event()

    @job("changing")
    async def before(ctx: Context, _: None) -> None:
        await ctx.step("save", lambda: 1)
        begun.set()
        await asyncio.Event().wait()

    @job("changing")
    async def after(ctx: Context, _: None) -> str:
        try:
            await ctx.transaction("save", lambda connection: 1)
        except Exception:
            return "swallowed"
        return "never"

    async with running(before) as engine:
        run = await engine.trigger("changing")
        await begun.wait()
        await crash(engine)
    async with running(after) as engine:
        run = await finish(engine, run)
        steps = await engine.runs.steps(run.id)

    assert run.status == RunStatus.FAILED
    assert run.error.type == "NonDeterminismError"
    assert [step.status for step in steps] == [StepStatus.COMPLETED]


async def test_an_output_that_cannot_be_stored_fails_the_step_and_names_the_path(running):
    @job("lossy")
    async def lossy(ctx: Context, _: None) -> None:
        await ctx.step("fetch", lambda: {"rows": [1, object()]})

    async with running(lossy) as engine:
        run = await finish(engine, await engine.trigger("lossy"))
    assert run.status == RunStatus.FAILED
    assert "output of step 'fetch'['rows'][1] cannot be stored" in run.error.message


async def test_an_output_of_the_job_that_cannot_be_stored_fails_the_run(running):
    @job("circular")
    async def circular(ctx: Context, _: None) -> list[Any]:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    async with running(circular) as engine:
        run = await finish(engine, await engine.trigger("circular"))
    assert run.error.type == "SerializationError"
    assert "output of job 'circular'[0]" in run.error.message


async def test_branches_of_gather_and_of_a_task_group_are_recorded_by_name_in_any_order(running):
    async def fetch(number: int) -> int:
        await asyncio.sleep(0.001 * (3 - number))
        return number

    @job("branches")
    async def branches(ctx: Context, _: None) -> list[int]:
        gathered = await asyncio.gather(*(ctx.step(f"gather {n}", fetch, n) for n in range(3)))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.step(f"group {n}", fetch, n)) for n in range(3)]
        return gathered + [task.result() for task in tasks]

    async with running(branches) as engine:
        run = await finish(engine, await engine.trigger("branches"))
    assert run.output == [0, 1, 2, 0, 1, 2]
    assert run.completed_steps == 6


async def test_one_failing_branch_of_a_task_group_fails_the_run_and_calls_the_others_off(running):
    started = asyncio.Event()

    async def wait_for_ever() -> None:
        started.set()
        await asyncio.Event().wait()

    async def fail() -> None:
        await started.wait()
        raise ValueError("branch")

    @job("group")
    async def group_job(ctx: Context, _: None) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step("waits", wait_for_ever))
            group.create_task(ctx.step("fails", fail))

    async with running(group_job) as engine:
        run = await finish(engine, await engine.trigger("group"))
        statuses = {step.name: step.status for step in await engine.runs.steps(run.id)}
    assert run.status == RunStatus.FAILED
    assert run.error.type == "ExceptionGroup"
    assert statuses == {"waits": StepStatus.CANCELLED, "fails": StepStatus.FAILED}


@pytest.mark.parametrize("error", [ValueError("bad"), FatalError("worse")])
async def test_the_step_that_fails_inside_task_groups_is_the_one_that_has_failed_the_run(running, error):
    told: list[str | None] = []

    def fail() -> None:
        raise error

    async def inner(ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step("fails", fail))

    @job("groups")
    async def groups(ctx: Context, _: None) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step("completes", lambda: None))
            group.create_task(inner(ctx))

    async with running(groups) as engine:
        engine.on("run:fail", lambda event: told.append(event.failed_step_name))
        run = await finish(engine, await engine.trigger("groups"))
    assert (run.error.type, run.failed_step, told) == ("ExceptionGroup", "fails", ["fails"])


async def test_a_step_that_a_timeout_called_off_is_not_called_again_on_replay(running):
    """A replay lets it wait, until the body calls it off at the same place."""
    calls: list[int] = []
    ways: list[tuple[int, str]] = []

    async def slow() -> None:
        calls.append(1)
        await asyncio.Event().wait()

    @job("timeout")
    async def with_timeout(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.01):
                await ctx.step("slow", slow)
        except TimeoutError:
            ways.append((ctx.attempt, "gave up"))
        return await ctx.wait_for_signal("go on")

    async with running(with_timeout) as engine:
        run = await engine.trigger("timeout")
        while (await engine.runs.get(run.id)).current_step != "go on":
            await asyncio.sleep(0.001)
        await crash(engine)
    async with running(with_timeout) as engine:
        await engine.runs.signal(run.id, "go on", "done")
        run = await finish(engine, run)
        steps = {step.name: (step.status, step.attempt) for step in await engine.runs.steps(run.id)}
    assert run.output == "done"
    assert (calls, ways) == ([1], [(1, "gave up"), (2, "gave up")])
    assert steps["slow"] == (StepStatus.CANCELLED, 1)


async def test_a_fatal_error_fails_the_run_with_its_own_message(running):
    @job("fatal")
    async def fatal(ctx: Context, _: None) -> None:
        raise FatalError("the file is empty")

    async with running(fatal) as engine:
        run = await finish(engine, await engine.trigger("fatal"))
    assert (run.error.type, run.error.message) == ("FatalError", "the file is empty")


async def test_many_quick_steps_leave_room_for_other_work_on_the_event_loop(running):
    turns = 0

    @job("quick")
    async def quick(ctx: Context, _: None) -> None:
        for number in range(1000):
            await ctx.step(f"step {number}", lambda: None)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(quick) as engine:
        counting = asyncio.get_running_loop().create_task(count_turns())
        frames = await timeline(engine, await engine.trigger("quick"))
        counting.cancel()
    assert frames[-1].status == RunStatus.COMPLETED
    assert turns > 2


async def test_a_step_that_vanished_from_the_code_is_kept_in_the_history_and_otherwise_ignored(running):
    begun = asyncio.Event()

    @job("changing")
    async def before(ctx: Context, _: None) -> None:
        await ctx.step("vanishes", lambda: 1)
        await ctx.step("stays", lambda: 2)
        begun.set()
        await asyncio.Event().wait()

    @job("changing")
    async def after(ctx: Context, _: None) -> int:
        ctx.log.info("new code")
        return await ctx.step("stays", lambda: 3)

    async with running(before) as engine:
        run = await engine.trigger("changing")
        await begun.wait()
        await crash(engine)
    async with running(after) as engine:
        run = await finish(engine, run)
        assert [step.name for step in await engine.runs.steps(run.id)] == ["vanishes", "stays"]
    assert run.output == 2


async def test_the_first_steps_of_a_run_have_waited_as_long_as_the_run_and_those_after_them_not_at_all(running):
    clock = MockClock()
    gate, pause = asyncio.Event(), asyncio.Event()

    @job("long")
    async def long(ctx: Context, _: None) -> None:
        await gate.wait()

    @job("short")
    async def short(ctx: Context, _: None) -> None:
        await asyncio.gather(*(ctx.step(name, asyncio.sleep, 0) for name in ("one", "two")))
        await pause.wait()  # what the body does by itself is no waiting for a slot
        await ctx.step("three", lambda: None)

    async with running(long, short, clock=clock, max_concurrent_runs=1) as engine:
        await engine.trigger("long")
        run = await engine.trigger("short")
        await clock.advance(40)
        gate.set()
        await clock.advance(7)
        pause.set()
        run = await finish(engine, run)
        steps = await engine.runs.steps(run.id)
    assert run.queue_time == 40.0
    assert [(step.name, step.queue_time) for step in steps] == [("one", 40.0), ("two", 40.0), ("three", 0.0)]


async def test_a_step_that_its_engines_death_cut_off_has_waited_since_the_run_was_taken_back(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("cut-off")
    async def cut_off(ctx: Context, _: None) -> None:
        await ctx.step("before", lambda: None)
        await ctx.step("wait", gate.wait)

    async with running(cut_off, clock=clock) as engine:
        run = await engine.trigger("cut-off")
        await clock.advance(1)
        await crash(engine)
    await clock.advance(1000)  # no engine was running
    async with running(cut_off, clock=clock, max_concurrent_runs=0):
        await clock.advance(25)
    async with running(cut_off, clock=clock) as engine:
        gate.set()
        await finish(engine, run)
        steps = await engine.runs.steps(run.id)
    assert [(step.name, step.queue_time) for step in steps] == [("before", 0.0), ("wait", 25.0)]
