"""One run as a whole: how it begins, what ends it, and what is left when it has ended."""

from __future__ import annotations

import asyncio

from one_run import OneRun, one_run

from durable_web._execution.leaving import Detached
from durable_web.testing._clock import settle


async def test_a_run_ends_with_its_bodys_output_and_leaves_nothing_behind(database_path):
    async def body(run: OneRun) -> dict[str, int]:
        return {"n": 1}

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == {"n": 1}
        assert run.told == ["settled", "left"]


async def test_system_exit_in_a_task_of_the_body_ends_the_run_and_nothing_else(database_path):
    async def leaves() -> None:
        raise SystemExit("enough")

    async def body(run: OneRun) -> None:
        await asyncio.gather(leaves(), asyncio.get_running_loop().create_future())

    async with one_run(database_path, body) as run:
        await settle()
        assert (run.run.status, run.run.error.type, run.run.error.message) == ("failed", "SystemExit", "enough")


async def test_a_run_that_is_lost_at_its_very_end_writes_no_end(database_path):
    async def body(run: OneRun) -> str:
        run.lose()
        return "mine"

    async with one_run(database_path, body) as run:
        await settle()
        assert (run.run.status, run.run.output, run.run.generation) == ("running", None, 2)
        assert "settled" not in run.told


async def test_an_output_that_cannot_be_written_fails_the_run(database_path):
    async def body(run: OneRun) -> object:
        return object()

    async with one_run(database_path, body) as run:
        await settle()
        assert (run.run.status, run.run.error.type) == ("failed", "SerializationError")


async def test_the_body_is_told_once_that_its_run_is_no_longer_executed_here(database_path):
    seen: list[str] = []

    async def body(run: OneRun) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            try:
                await run.step("late", str)
            except Detached:
                seen.append("detached")
                raise

    async with one_run(database_path, body) as run:
        run.execution.detach(may_clean_up=True)
        run.execution.detach(may_clean_up=True)
        await settle()
        assert seen == ["cancelled", "detached"]
        assert run.told == ["left"]


async def test_a_body_that_does_not_end_when_it_is_cancelled_is_dropped_after_five_seconds(database_path):
    async def body(run: OneRun) -> None:
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                continue

    async with one_run(database_path, body) as run:
        run.execution.detach(may_clean_up=True)
        await run.clock.advance(4.9)
        assert run.told == []
        await run.clock.advance(0.2)
        assert run.told == ["left"]


async def test_a_run_is_resumed_in_memory_only_by_the_claim_after_its_own(database_path):
    async def body(run: OneRun) -> None:
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        with run.store.transaction():
            run.store.runs.wake(run.id, run.clock.now())
        claim = run.claim()
        assert run.execution.is_resumed_by(claim)
        run.execution.detach()
        assert not run.execution.is_resumed_by(claim)
