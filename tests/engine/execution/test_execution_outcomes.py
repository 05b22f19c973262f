"""How outcomes are recorded and taken, and when an operation may begin."""

from __future__ import annotations

import asyncio

from one_run import OneRun, one_run

from durable_web import OperationKind, StepStatus
from durable_web.testing._clock import settle


async def test_an_operation_is_inline_only_while_its_run_is_the_only_one_executing(database_path):
    seen: list[bool] = []

    async def body(run: OneRun) -> None:
        outcomes = run.execution._outcomes
        seen.append(outcomes.may_be_inline())
        run.is_alone = False
        seen.append(outcomes.may_be_inline())
        run.is_alone = True
        run.execution.tenure.set_paused(True)
        seen.append(outcomes.may_be_inline())
        run.execution.tenure.set_paused(False)
        run.execution.history.hold_back()
        seen.append(outcomes.may_be_inline())
        run.execution.history.go_live()
        seen.append(outcomes.may_be_inline())

    async with one_run(database_path, body):
        assert seen == [True, False, False, False, True]


async def test_whether_an_outcome_was_inline_is_recorded(database_path):
    async def body(run: OneRun) -> None:
        await run.step("inline", str)
        run.is_alone = False
        await run.step("delivered", str)

    async with one_run(database_path, body) as run:
        await run.succeeds()
        records = run.records
        assert (bool(records["inline"].inline), bool(records["delivered"].inline)) == (True, False)
        assert (records["inline"].outcome_order, records["delivered"].outcome_order) == (1, 2)


async def test_an_outcome_that_others_recorded_first_is_read_and_delivered_first(database_path):
    gate, delivered = asyncio.Event(), []

    async def waits(run: OneRun) -> None:
        delivered.append(await run.execution.waits.signal("go", None, str))

    async def steps(run: OneRun) -> None:
        await run.step("one", gate.wait)
        delivered.append("step")

    async def body(run: OneRun) -> None:
        await asyncio.gather(waits(run), steps(run))

    async with one_run(database_path, body) as run:
        run.is_told_of_changes = False
        with run.store.transaction():
            run.store.waits.settle(run.id, "go", run.clock.now(), output='"signal"', reason="")
        gate.set()
        await run.succeeds()
        assert delivered == ["signal", "step"]
        assert [run.records[key].outcome_order for key in ("go", "one")] == [1, 2]


async def test_a_record_of_a_first_attempt_has_the_next_position_and_no_outcome(database_path):
    async def body(run: OneRun) -> None:
        await run.step("one", str)
        record = run.execution._outcomes.first_attempt("two", OperationKind.STEP)
        assert (record.position, record.attempt, record.status) == (1, 1, StepStatus.RUNNING)
        assert record.outcome_order is None

    async with one_run(database_path, body) as run:
        await run.succeeds()


async def test_a_run_is_idle_when_every_function_has_ended_and_every_outcome_is_committed(database_path):
    gate = asyncio.Event()

    async def body(run: OneRun) -> None:
        await run.step("slow", gate.wait)

    async with one_run(database_path, body) as run:
        assert not run.execution._outcomes.is_idle
        gate.set()
        await settle()
        assert run.execution._outcomes.is_idle
        await run.succeeds()
