"""The steps of one run: how their functions are called, and what comes of each attempt."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest
from one_run import OneRun, one_run

from durable_web import FatalError, Retry, StepFailed

colour: ContextVar[str] = ContextVar("colour", default="none")


async def test_a_step_is_marked_before_its_function_is_called(database_path):
    async def body(run: OneRun) -> list[str]:
        return await run.step("one", lambda: list(run.marked))

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == ["one"]


async def test_a_function_runs_outside_in_a_copy_of_the_context_of_the_moment_it_was_asked_for(database_path):
    def look(loop: object) -> list[object]:
        colour.set("red")
        return [asyncio.get_running_loop() is loop, asyncio.current_task() is None]

    async def body(run: OneRun) -> object:
        colour.set("blue")
        found = await run.step("look", look, run.services.loop)
        return [*found, colour.get()]

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == [True, True, "blue"]


async def test_a_failed_attempt_is_recorded_and_the_next_one_is_due_by_the_clock(database_path):
    calls: list[str] = []

    def fails_once() -> str:
        calls.append("called")
        if len(calls) == 1:
            raise OSError("not yet")
        return "now"

    async def body(run: OneRun) -> str:
        return await run.step("one", fails_once, retry=Retry(max_attempts=2, backoff=0.5, jitter=0))

    async with one_run(database_path, body) as run:
        assert run.records["one"].retry_at == run.clock.now() + 500
        await run.clock.advance(0.49)
        assert len(calls) == 1
        await run.clock.advance(0.02)
        assert await run.succeeds() == "now"
        assert [attempt.error.message for attempt in run.store.steps.get(run.id)[0].failed_attempts] == ["not yet"]


async def test_a_fatal_error_ends_the_step_at_once(database_path):
    calls: list[str] = []

    def fails() -> None:
        calls.append("called")
        raise FatalError("no")

    async def body(run: OneRun) -> str:
        with pytest.raises(StepFailed, match="no"):
            await run.step("one", fails, retry=Retry(max_attempts=5))
        return "caught"

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == "caught"
        assert len(calls) == 1


async def test_the_first_execution_returns_what_a_replay_will(database_path):
    returned: list[object] = []

    async def body(run: OneRun) -> None:
        returned.append(await run.step("one", lambda: {"pair": [1, 2]}))
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        await run.restart()
        assert returned == [{"pair": [1, 2]}] * 2
        assert run.marked == ["one"]  # called once


async def test_an_attempt_that_takes_too_long_by_the_clock_fails_with_a_timeout(database_path):
    async def body(run: OneRun) -> str:
        try:
            await run.step("slow", asyncio.Event().wait, retry=Retry(max_attempts=1, timeout=3))
        except StepFailed as failure:
            return failure.error_type
        return "completed"

    async with one_run(database_path, body) as run:
        await run.clock.advance(2.9)
        assert run.run.status == "running"
        await run.clock.advance(0.2)
        assert await run.succeeds() == "TimeoutError"


async def test_what_its_task_asks_for_next_waits_until_a_called_off_function_has_ended(database_path):
    gate = asyncio.Event()

    async def refuses_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await gate.wait()

    async def body(run: OneRun) -> str:
        with pytest.raises(asyncio.CancelledError):
            await run.step("called off", refuses_to_end)
        return await run.step("next", str, "went on")

    async with one_run(database_path, body) as run:
        await run.cancel_body()
        run.commits.flush()
        assert run.records["called off"].status == "cancelled"
        assert "next" not in run.records
        gate.set()
        assert await run.succeeds() == "went on"


async def test_a_function_that_was_called_off_and_does_not_end_is_left_behind_after_five_seconds(database_path):
    gate = asyncio.Event()

    async def refuses_to_end() -> None:
        while not gate.is_set():
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def body(run: OneRun) -> str:
        with pytest.raises(asyncio.CancelledError):
            await run.step("endless", refuses_to_end)
        return await run.step("next", str, "went on")

    async with one_run(database_path, body) as run:
        await run.cancel_body()
        await run.clock.advance(4.9)
        assert "next" not in run.records
        await run.clock.advance(0.2)
        assert await run.succeeds() == "went on"
        assert any("'endless' was called off" in line for line in run.lines)
        gate.set()
        for task in run.execution.steps.tasks:
            task.cancel()


async def test_a_name_is_counted_over_the_whole_run(database_path):
    async def body(run: OneRun) -> None:
        for _ in range(3):
            await run.step("same", str)

    async with one_run(database_path, body) as run:
        await run.succeeds()
        assert list(run.records) == ["same", "same#2", "same#3"]
