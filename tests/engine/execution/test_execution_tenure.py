"""The claim on a run: what may be written under it, when, and what happens when it is lost."""

from __future__ import annotations

import asyncio

import pytest
from one_run import OneRun, one_run

from durable_web import StorageError
from durable_web._execution.leaving import Detached
from durable_web._execution.tenure import REFUSALS
from durable_web._store import LeaseLost
from durable_web.testing._clock import settle


async def stays(run: OneRun) -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_deferred_write_is_fenced_and_a_refusal_ends_the_execution(database_path):
    async with one_run(database_path, stays) as run:
        run.lose()
        run.execution.tenure.later(lambda: run.store.steps.append_log(run.id, 0, {"message": "late"}), lambda _: None)
        run.commits.flush()
        assert run.execution.is_detached
        assert run.lines == []


async def test_a_write_of_a_parked_run_waits_until_the_run_has_its_lease_back(database_path):
    async def waits(run: OneRun) -> None:
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, waits) as run:
        assert (run.told, run.run.status) == (["parked"], "waiting")
        written: list[str] = []
        run.execution.tenure.later(lambda: written.append("now"))
        run.commits.flush()
        assert written == []
        with run.store.transaction():
            run.store.runs.wake(run.id, run.clock.now())
        run.execution.resume(run.claim())
        run.commits.flush()
        assert written == ["now"]


async def test_a_detached_run_writes_nothing_neither_what_is_new_nor_what_was_held_back(database_path):
    async with one_run(database_path, stays) as run:
        tenure, written = run.execution.tenure, []
        tenure.park()
        tenure.later(lambda: written.append("held back"))
        tenure.detach()
        tenure.later(lambda: written.append("new"))
        run.commits.flush()
        with pytest.raises(Detached):
            tenure.commit_now(lambda: written.append("at once"))
        assert written == []


async def test_what_a_dropped_body_asks_for_raises_three_times_and_then_never_returns(database_path):
    refused: list[str] = []

    async def stubborn(run: OneRun) -> None:
        while True:
            try:
                await run.step("anything", str)
            except Detached:
                refused.append("Detached")
            except asyncio.CancelledError:
                refused.append("CancelledError")
            if len(refused) > 100:
                raise AssertionError("it goes on for ever")
            run.execution.tenure.detach()

    async with one_run(database_path, stubborn):
        await settle()
    assert refused.count("Detached") == REFUSALS == 3


async def test_a_run_goes_on_only_when_all_of_its_submitted_writes_are_committed(database_path):
    async with one_run(database_path, stays) as run:
        tenure, seen = run.execution.tenure, []
        tenure.submit(lambda: None, lambda error: seen.append(tenure.unsettled))
        tenure.submit(lambda: None, lambda error: seen.append(tenure.unsettled))
        assert tenure.unsettled == 2
        await settle()
        assert (seen, tenure.unsettled) == ([1, 0], 0)


async def test_the_error_of_a_write_is_passed_on_and_a_lost_lease_is_not(database_path):
    async with one_run(database_path, stays) as run:
        errors: list[BaseException | None] = []

        def fails() -> None:
            raise ValueError("of this write alone")

        def is_refused() -> None:
            raise LeaseLost(run.id)

        run.execution.tenure.submit(fails, errors.append)
        await settle()
        assert [str(error) for error in errors] == ["of this write alone"]
        assert not run.execution.is_detached
        run.execution.tenure.submit(is_refused, errors.append)
        await settle()
        assert len(errors) == 1
        assert run.execution.is_detached


async def test_storage_in_trouble_ends_the_execution_and_is_reported_with_the_claim(database_path):
    async with one_run(database_path, stays) as run:
        trouble = StorageError(database_path, "the disk is full")

        def fails() -> None:
            raise trouble

        with pytest.raises(Detached):
            run.execution.tenure.commit_now(fails)
        assert run.troubles == [trouble]
        assert run.execution.is_detached


async def test_the_first_outcome_after_a_death_resets_the_count_once(database_path):
    async with one_run(database_path, stays) as run:
        tenure = run.execution.tenure
        assert not tenure.has_recoveries
        with run.store.transaction():
            tenure.outcome_recorded()  # writes nothing where nothing is recorded
        tenure.has_recoveries = True
        with run.store.transaction():
            tenure.outcome_recorded()
        assert not tenure.has_recoveries
        assert run.run.recoveries == 0


async def test_a_body_that_python_closes_ends_quietly_though_it_asks_for_more(database_path):
    """As when an event loop is closed before the engine could drop the bodies of its runs."""
    asked: list[str] = []

    async def asks_in_finally(run: OneRun) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            asked.append("late")
            await run.step("late", str)

    async with one_run(database_path, stays) as run:
        body = asks_in_finally(run)
        body.send(None)
        run.execution.detach()
        body.close()  # raises whatever else than GeneratorExit comes of it
        assert asked == ["late"]
