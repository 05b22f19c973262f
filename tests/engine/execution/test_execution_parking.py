"""Parking of one run: when it gives its slot back, what it says it waits for, and what comes in between."""

from __future__ import annotations

import asyncio

from one_run import OneRun, one_run

from durable_web import Retry
from durable_web._store import StepRecord
from durable_web.testing._clock import settle


async def test_a_run_that_waits_for_less_than_a_second_keeps_its_slot(database_path):
    async def body(run: OneRun) -> None:
        await run.execution.waits.sleep("nap", 0.9)

    async with one_run(database_path, body) as run:
        assert (run.told, run.run.status) == ([], "running")


async def test_one_that_waits_for_short_times_again_and_again_parks_in_the_end(database_path):
    def fails() -> None:
        raise OSError

    async def body(run: OneRun) -> None:
        await run.step("one", fails, retry=Retry(max_attempts=10, backoff=0.4, factor=1, jitter=0))

    async with one_run(database_path, body) as run:
        await run.clock.advance(0.5)
        assert run.told == []
        await run.clock.advance(1.0)
        assert run.told == ["parked"]


async def test_a_run_whose_function_executes_does_not_park(database_path):
    gate = asyncio.Event()

    async def body(run: OneRun) -> None:
        await asyncio.gather(run.execution.waits.sleep("nap", 60), run.step("one", gate.wait))

    async with one_run(database_path, body) as run:
        assert (run.told, run.run.status) == ([], "running")
        gate.set()
        await settle()
        assert (run.told, run.run.status) == (["parked"], "waiting")


async def test_of_many_waits_the_first_three_are_named_and_the_others_counted(database_path):
    async def body(run: OneRun) -> None:
        await asyncio.gather(*(run.execution.waits.signal(f"s{number}", None, str) for number in range(5)))

    async with one_run(database_path, body) as run:
        assert run.run.waiting_reason == "it waits for signal 's0', signal 's1', signal 's2' and 2 more"


async def test_a_run_for_which_something_came_in_the_last_moment_does_not_park(database_path):
    async def body(run: OneRun) -> str:
        return await run.execution.waits.signal("go", None, str)

    run = OneRun(database_path, body, Retry(max_attempts=1), ())
    run.is_told_of_changes = False
    begin = run.store.waits.begin

    def begin_and_end(run_id: str, record: StepRecord, now: int) -> StepRecord:
        """Another process sends the signal as soon as the wait is recorded: in the commit in which the run parks."""
        begun = begin(run_id, record, now)
        run.store.waits.settle(run_id, record.name, now, output='"just now"', reason="")
        return begun

    run.store.waits.begin = begin_and_end
    await run.execute()
    assert await run.succeeds() == "just now"
    assert "parked" not in run.told
    run.store.close()


async def test_a_body_that_awaits_nothing_of_the_engine_is_named_after_five_seconds(database_path):
    async def body(run: OneRun) -> None:
        await asyncio.get_running_loop().create_future()

    async with one_run(database_path, body) as run:
        await run.clock.advance(4.9)
        run.commits.flush()
        assert run.lines == []
        await run.clock.advance(0.2)
        run.commits.flush()
        assert "awaits nothing that the engine could give it" in run.lines[0]
        assert "test_execution_parking.py" in run.lines[0]
