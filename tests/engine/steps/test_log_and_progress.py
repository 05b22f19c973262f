"""Log lines and progress: durable, attached, throttled, and told once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from watching import cpython_only, finish, timeline

from durable_web import Context, Trigger, job
from durable_web.testing import MockClock, crash


async def test_a_line_is_attached_to_the_step_that_wrote_it_also_in_concurrent_branches(running):
    @job("log")
    async def log_job(ctx: Context, _: None) -> None:
        async def work(name: str) -> None:
            await asyncio.sleep(0)
            ctx.log.warning(f"in {name}", branch=name)

        ctx.log.debug("before")
        await asyncio.gather(*(ctx.step(name, work, name) for name in ("a", "b")))
        ctx.log.error("after")

    async with running(log_job) as engine:
        frames = await timeline(engine, await engine.trigger("log"))
    lines = [(frame.level, frame.message, frame.fields, frame.step) for frame in frames if frame.kind == "log"]
    assert lines[0] == ("debug", "before", {}, None)
    assert sorted(lines[1:3]) == [("warning", "in a", {"branch": "a"}, "a"), ("warning", "in b", {"branch": "b"}, "b")]
    assert lines[3] == ("error", "after", {}, None)


async def test_a_field_that_cannot_be_stored_is_kept_as_its_repr_and_fails_nothing(running):
    @job("odd")
    async def odd(ctx: Context, _: None) -> None:
        ctx.log.info("odd \ud800 \x00 <b>", what=object, number=float("nan"), text="\udfff")

    async with running(odd) as engine:
        frames = await timeline(engine, await engine.trigger("odd"))
    (line,) = [frame for frame in frames if frame.kind == "log"]
    assert line.message == "odd \ud800 \x00 <b>"
    assert line.fields == {"what": "<class 'object'>", "number": "nan", "text": "\udfff"}


async def test_the_message_may_also_be_given_by_its_name_or_left_out(running):
    @job("named")
    async def named(ctx: Context, _: None) -> None:
        ctx.log.debug(message="hello", rows=1)
        ctx.log.info(rows=2)
        ctx.log.warning("said", message="a field")
        ctx.log.error()
        ctx.log.info(None)

    async with running(named) as engine:
        frames = await timeline(engine, await engine.trigger("named"))
    assert [(frame.level, frame.message, frame.fields) for frame in frames if frame.kind == "log"] == [
        ("debug", "hello", {"rows": 1}),
        ("info", "", {"rows": 2}),
        ("warning", "said", {"message": "a field"}),
        ("error", "", {}),
        ("info", "None", {}),
    ]


class Unsayable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@dataclass
class Half:
    left: int
    right: int


async def test_no_line_fails_a_job_whatever_is_in_it(running):
    @job("odd")
    async def odd(ctx: Context, _: None) -> str:
        half = Half.__new__(Half)
        half.left = 1
        ctx.log.info(Unsayable())
        ctx.log.warning("odd", who=Unsayable(), half=half, many=[Unsayable()], big=10**5000)
        ctx.log.error("odd", message=1, self=2, level=3, fields=4)
        ctx.progress(1, message=Unsayable())
        return "done"

    async with running(odd) as engine:
        run = await finish(engine, await engine.trigger("odd"))
        lines = [frame async for frame in engine.runs.watch(run.id) if frame.kind == "log"]
    said = "<Unsayable that cannot be shown>"
    assert (run.error, run.output, run.progress.message) == (None, "done", said)
    assert lines[0].message == said
    half, many, big = "<Half that cannot be shown>", "<list that cannot be shown>", "<int that cannot be shown>"
    assert lines[1].fields == {"who": said, "half": half, "many": many, "big": big}
    assert lines[2].fields == {"message": 1, "self": 2, "level": 3, "fields": 4}


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan")], ids=["huge", "inf", "nan"])
async def test_progress_that_no_number_of_a_page_can_tell_is_refused_in_words(running, value):
    @job("far")
    async def far(ctx: Context, _: None) -> None:
        with pytest.raises(ValueError, match="current is a finite number"):
            ctx.progress(value)
        with pytest.raises(ValueError, match="total is a finite number"):
            ctx.progress(1, value)

    async with running(far) as engine:
        assert (await finish(engine, await engine.trigger("far"))).error is None


async def test_lines_of_the_body_are_not_repeated_while_it_replays(running):
    @job("story")
    async def story(ctx: Context, _: None) -> None:
        ctx.log.info("one")
        await ctx.step("first", lambda: None)
        ctx.log.info("two")
        await ctx.step("second", lambda: None)
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        ctx.log.info("three")

    async with running(story) as engine:
        run = await engine.trigger("story")
        while (await engine.runs.get(run.id)).completed_steps < 2:
            await asyncio.sleep(0)
        await crash(engine)
    async with running(story) as engine:
        frames = await timeline(engine, run)
    assert [frame.message for frame in frames if frame.kind == "log"] == ["one", "two", "three"]


async def test_a_line_that_was_written_after_the_last_committed_step_is_not_repeated_either(running):
    clock = MockClock()

    @job("story")
    async def story(ctx: Context, _: None) -> None:
        await ctx.step("first", lambda: None)
        ctx.log.info("between")
        ctx.log.info("between")
        ctx.log.info(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    async with running(story, clock=clock) as engine:
        run = await engine.trigger("story")
        await clock.advance(0.1)
        await crash(engine)
    async with running(story, clock=clock) as engine:
        frames = await timeline(engine, run)
    lines = [frame.message for frame in frames if frame.kind == "log"]
    assert lines == ["between", "between", "attempt 1", "attempt 2"]


async def test_progress_in_a_tight_loop_writes_few_frames_and_the_last_one_always(running):
    clock = MockClock()

    @job("loop")
    async def loop(ctx: Context, _: None) -> None:
        for number in range(1000):
            ctx.progress(number + 1, 1000, f"row {number + 1}")

    async with running(loop, clock=clock) as engine:
        run = await finish(engine, await engine.trigger("loop"))
        frames = [frame for frame in await timeline(engine, run) if frame.kind == "progress"]
    assert [frame.current for frame in frames] == [1, 1000]
    assert (run.progress.current, run.progress.total, run.progress.message) == (1000, 1000, "row 1000")


async def test_progress_appears_every_100_ms_while_the_job_waits(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("slow")
    async def slow(ctx: Context, _: None) -> None:
        for number in range(5):
            ctx.progress(number)
        await gate.wait()

    async with running(slow, clock=clock) as engine:
        run = await engine.trigger("slow")
        await clock.advance(0.06)
        assert (await engine.runs.get(run.id)).progress.current == 0
        await clock.advance(0.1)
        assert (await engine.runs.get(run.id)).progress.current == 4
        gate.set()
        await finish(engine, run)


async def test_synchronous_code_that_never_yields_is_still_heard(running):
    """Its lines are committed while it runs: 50 ms after the last commit, measured when it says something."""
    clock = MockClock()
    heard: list[int] = []

    @job("busy")
    async def busy(ctx: Context, _: None) -> None:
        def work() -> None:
            for number in range(4):
                ctx.log.info(f"line {number}")
                clock._elapsed += 0.03
                heard.append(sum("line" in frame.body for frame in engine.internals.store.read_frames(run.id, 0, 100)))

        await ctx.step("work", work)

    async with running(busy, clock=clock) as engine:
        run = await engine.trigger("busy")
        await finish(engine, run)
        frames = await timeline(engine, run)
    assert heard == [0, 0, 3, 3]
    steps = [(frame.name, frame.status) for frame in frames if frame.kind == "step_status"]
    assert steps == [("work", "running"), ("work", "completed")]


async def test_a_slow_step_is_seen_to_run_and_a_quick_one_only_to_complete(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("mixed")
    async def mixed(ctx: Context, _: None) -> None:
        await ctx.step("quick", lambda: ctx.log.info("a line does not make it slow"))
        await ctx.step("slow", gate.wait)

    async with running(mixed, clock=clock) as engine:
        run = await engine.trigger("mixed")
        await clock.advance(0.06)
        assert (await engine.runs.get(run.id)).current_step == "slow"
        gate.set()
        frames = await timeline(engine, run)
    steps = [(frame.name, frame.status) for frame in frames if frame.kind == "step_status"]
    assert steps == [("quick", "completed"), ("slow", "running"), ("slow", "completed")]


# --- other threads ---------------------------------------------------------------------------------------------------


@cpython_only("there are no threads")
async def test_a_step_that_works_in_a_thread_tells_from_there_what_it_does(running):
    @job("threaded")
    async def threaded(ctx: Context, _: None) -> list[int]:
        def work(branch: str) -> int:
            rows: list[int] = []
            for number in range(3):
                ctx.log.info(f"{branch}: line {number}", rows=rows)
                rows.append(number)  # a line tells what was there when it was written
                ctx.progress(number + 1, 3, branch)
            return len(rows)

        return await asyncio.gather(*(ctx.step(name, asyncio.to_thread, work, name) for name in ("a", "b")))

    async with running(threaded) as engine:
        run = await finish(engine, await engine.trigger("threaded"))
        frames = await timeline(engine, run)
    assert run.output == [3, 3]
    assert (run.progress.current, run.progress.total) == (3, 3)
    for name in ("a", "b"):
        of_step = [frame for frame in frames if name in (getattr(frame, "step", ""), getattr(frame, "name", ""))]
        told = [(frame.message, frame.fields["rows"]) for frame in of_step if frame.kind == "log"]
        assert told == [(f"{name}: line {number}", list(range(number))) for number in range(3)]
        assert of_step[-1].status == "completed"


@cpython_only("there are no threads")
async def test_a_thread_that_tells_something_while_the_event_loop_is_busy_fails_nothing(running):
    clock = MockClock()
    troubles: list[Any] = []

    async def in_turn(number: int) -> int:
        await asyncio.sleep(0)
        return number

    @job("busy")
    async def busy(ctx: Context, _: None) -> None:
        def work() -> None:
            clock._elapsed += 0.1  # what rides along is overdue
            ctx.log.info("from the thread")
            ctx.progress(1)

        def start_and_wait() -> None:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

        ctx.log.info("from the loop")
        await ctx.step("work", start_and_wait)

    @job("other")
    async def other(ctx: Context, _: None) -> list[int]:
        return await asyncio.gather(*(ctx.step(f"step {number}", in_turn, number) for number in range(3)))

    async with running(busy, other, clock=clock) as engine:
        engine.on("worker:error", troubles.append)
        runs = await engine.trigger_many([Trigger(job) for job in (other, busy, other)])
        others = [await finish(engine, run) for run in (runs[0], runs[2])]
        run = await finish(engine, runs[1])
        lines = [line.message for line in await engine.runs.logs(run.id)]
    assert [run.output for run in others] == [[0, 1, 2], [0, 1, 2]]
    assert (run.status, run.progress.current, lines) == ("completed", 1, ["from the loop", "from the thread"])
    assert troubles == []


@cpython_only("there are no threads")
async def test_a_line_of_the_body_is_not_repeated_by_a_thread_either(running):
    def in_a_thread(function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        thread.join()

    @job("story")
    async def story(ctx: Context, _: None) -> None:
        for line in ("one", "two"):
            in_a_thread(ctx.log.info, line)
        await ctx.step("step", lambda: None)
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    async with running(story) as engine:
        run = await engine.trigger("story")
        while (run := await engine.runs.get(run.id)).completed_steps < 1:
            assert run.is_active
            await asyncio.sleep(0)
        await crash(engine)
    async with running(story) as engine:
        frames = await timeline(engine, run)
    assert [frame.message for frame in frames if frame.kind == "log"] == ["one", "two"]


@cpython_only("there are no threads")
@pytest.mark.parametrize("tell", ["log", "progress", "raise_if_cancelled"])
async def test_a_thread_whose_run_was_cancelled_can_see_it_and_leaves(running, tell):
    begun, left = asyncio.Event(), asyncio.Event()
    gate = threading.Event()
    told: list[object] = []
    loop = asyncio.get_running_loop()

    @job("threaded")
    async def threaded(ctx: Context, _: None) -> None:

        def work() -> None:
            ctx.raise_if_cancelled()  # not yet
            loop.call_soon_threadsafe(begun.set)
            gate.wait(10)
            told.append(ctx.cancelled)
            try:
                {"log": lambda: ctx.log.info("late"), "progress": lambda: ctx.progress(1)}.get(
                    tell, ctx.raise_if_cancelled
                )()
            except Exception as error:  # what leaves a job cannot be caught by accident
                told.append(error)
            except BaseException:
                told.append("unwound")
                raise
            finally:
                loop.call_soon_threadsafe(left.set)

        await ctx.step("work", asyncio.to_thread, work)

    async with running(threaded) as engine:
        run = await engine.trigger("threaded")
        await begun.wait()
        await engine.runs.cancel(run.id)
        gate.set()
        await left.wait()
        frames = await timeline(engine, run)
    assert told == [True, "unwound"]
    assert [frame for frame in frames if frame.kind in ("log", "progress")] == []
    assert frames[-1].status == "cancelled"
