"""The runs that one run starts: their ids, what they are started with, and what comes of their ends."""

from __future__ import annotations

from typing import Any

from one_run import OneRun, one_run

from durable_web import ChildFailed, RunStatus, job
from durable_web._identifiers import derive
from durable_web._store import Claim
from durable_web._triggers import Trigger
from durable_web.testing._clock import settle


@job("child")
async def child(ctx: Any, number: int) -> int:
    return number


def end(run: OneRun, child_id: str, status: str, output: str | None = None, error: str | None = None) -> None:
    """Execute a child, in no time."""
    now = run.clock.now()
    with run.store.transaction():
        claim: Claim | None = run.store.runs.claim("another", now, now + 1000, ["one"], lambda claim: None, alone=True)
        assert claim is not None
        assert claim.run_id == child_id
        info = None if error is None else {"type": "ValueError", "message": error, "traceback": ""}
        run.store.runs.settle(claim, RunStatus(status), now, output=output, error=info)


async def wake(run: OneRun) -> None:
    """Resume the parked run, as the engine's dispatcher does."""
    run.execution.resume(run.claim())
    await settle()


async def test_a_childs_id_follows_from_its_parent_and_its_key_so_that_it_is_started_once(database_path):
    async def body(run: OneRun) -> int:
        return await run.execution.children.run("part", Trigger(child, 7))

    async with one_run(database_path, body, child) as run:
        child_id = derive(run.id, "part")
        started = run.store.runs.get(child_id)
        assert (started.input, started.parent_run_id, started.parent_step) == (7, run.id, "part")
        await run.restart()
        assert run.store.runs.count("job") == {"child": 1, "one": 1}
        end(run, child_id, "completed", output="7")
        await wake(run)
        assert await run.succeeds() == 7


async def test_a_failed_child_raises_into_the_body_with_its_id_and_message(database_path):
    async def body(run: OneRun) -> list[str]:
        try:
            await run.execution.children.run("part", Trigger(child, 7))
        except ChildFailed as failure:
            return [failure.step, failure.run_id, failure.error_message]
        return []

    async with one_run(database_path, body, child) as run:
        child_id = derive(run.id, "part")
        end(run, child_id, "failed", error="no such part")
        await wake(run)
        assert await run.succeeds() == ["part", child_id, "no such part"]


async def test_a_map_starts_at_most_so_many_at_a_time_and_gives_the_outputs_in_order(database_path):
    async def body(run: OneRun) -> list[int]:
        triggers = [Trigger(child, number) for number in range(3)]
        return await run.execution.children.map("parts", triggers, 2, fail_fast=True)

    async with one_run(database_path, body, child) as run:
        assert run.store.runs.count("job")["child"] == 2
        for number in range(2):
            end(run, derive(run.id, f"parts[{number}]"), "completed", output=str(number))
        await wake(run)
        assert run.store.runs.count("job")["child"] == 3
        end(run, derive(run.id, "parts[2]"), "completed", output="2")
        await wake(run)
        assert await run.succeeds() == [0, 1, 2]


async def test_a_run_that_is_started_and_not_awaited_gives_its_id_and_has_no_step_to_tell(database_path):
    async def body(run: OneRun) -> str:
        return await run.execution.children.start("beside", Trigger(child, 1))

    async with one_run(database_path, body, child) as run:
        child_id = await run.succeeds()
        assert child_id == derive(run.id, "beside")
        assert run.store.runs.get(child_id).parent_run_id == run.id
