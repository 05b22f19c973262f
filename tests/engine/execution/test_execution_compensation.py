"""The compensation of one run: what is undone, in which order, and what a failure of that changes."""

from __future__ import annotations

from typing import Any

from one_run import OneRun, one_run

from durable_web.testing._clock import settle


async def test_what_completed_is_undone_latest_first_with_the_results_that_were_recorded(database_path):
    undone: list[Any] = []

    async def body(run: OneRun) -> None:
        await run.step("a", lambda: {"n": 1}, undo=undone.append)
        await run.step("b", lambda: {"n": 2}, undo=undone.append)
        await run.step("plain", str)
        raise ValueError("it fails")

    async with one_run(database_path, body) as run:
        await settle()
        assert undone == [{"n": 2}, {"n": 1}]
        assert (run.run.status, run.run.error.message) == ("failed", "it fails")
        assert [key for key in run.records if key.startswith("compensate:")] == ["compensate:b", "compensate:a"]


async def test_one_that_fails_is_recorded_and_the_others_are_undone(database_path):
    undone: list[Any] = []

    def fails(result: Any) -> None:
        raise OSError("cannot be undone")

    async def body(run: OneRun) -> None:
        await run.step("a", str, "a", undo=undone.append)
        await run.step("b", str, "b", undo=fails)
        raise ValueError("it fails")

    async with one_run(database_path, body) as run:
        await settle()
        assert undone == ["a"]
        assert run.records["compensate:b"].status == "failed"


async def test_a_death_in_the_middle_undoes_nothing_twice(database_path):
    undone: list[Any] = []

    async def body(run: OneRun) -> None:
        def undo_b(result: Any) -> None:
            undone.append(result)
            if len(undone) == 1:
                run.execution.detach()  # the engine dies before this is recorded

        await run.step("a", str, "a", undo=undone.append)
        await run.step("b", str, "b", undo=undo_b)
        raise ValueError("it fails")

    async with one_run(database_path, body) as run:
        await settle()
        assert (undone, run.run.status) == (["b"], "cancelling")
        await run.restart()
        assert undone == ["b", "b", "a"]  # the one that was not recorded is called again
        assert run.run.status == "failed"


async def test_a_compensation_whose_code_is_gone_fails_in_words_and_the_others_are_undone(database_path):
    undone: list[Any] = []
    is_old = True

    async def body(run: OneRun) -> None:
        await run.step("a", str, "a", undo=undone.append)
        if is_old:
            await run.step("b", str, "b", undo=undone.append)
            await run.execution.waits.signal("go", None, str)
        raise ValueError("it fails")

    async with one_run(database_path, body) as run:
        is_old = False
        await run.restart()
        await settle()
        assert undone == ["a"]
        assert "no longer comes to the step 'b'" in run.records["compensate:b"].error["message"]


async def test_a_run_without_anything_to_undo_is_not_compensated(database_path):
    async def body(run: OneRun) -> None:
        await run.step("a", str)
        raise ValueError("it fails")

    async with one_run(database_path, body) as run:
        await settle()
        assert run.run.status == "failed"
        assert "compensating:" not in run.records
