"""The demo's order: approved it is packed and handed over, and whatever else becomes of it, what was done is undone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from watching import IN_PYODIDE, finish

if IN_PYODIDE:
    pytest.skip("on CPython only: the demo's files are not in the other home", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[3] / "web" / "demo"))

from orders import Decision, Item, Order, pack_parcel, process_order

from durable_web import Engine, InvalidInput, Run, RunStatus
from durable_web.testing import MockClock, crash_at, engine, restart, settle, stub_steps

HOUR = 3600.0
TEA, POT, VASE = Item("Tea", 9.5), Item("Tea pot", 40), Item("Vase", 25, fragile=True)


def orders(clock: MockClock) -> Any:
    return engine(process_order, pack_parcel, clock=clock)


def order(*items: Item) -> Order:
    return Order(list(items), approval_seconds=HOUR, grace_seconds=60, pace=0)


async def place(running: Engine, *items: Item) -> Run:
    """Place an order, and let it come to where it waits for approval."""
    run = await running.trigger(process_order, order(*items))
    await settle()
    return run


async def steps(running: Engine, run: Run) -> list[str]:
    return [step.name for step in await running.runs.steps(run.id)]


async def logged(running: Engine, run: Run) -> list[str]:
    return [line.message for line in await running.runs.logs(run.id)]


UNDONE = ["compensate:charge", "compensate:reserve stock"]


async def test_an_order_that_is_approved_is_packed_in_a_run_for_each_item_and_handed_over():
    clock = MockClock()
    async with orders(clock) as running:
        run = await place(running, TEA, POT)
        assert await running.runs.value(run.id, "state") == "waiting for approval"
        assert (await running.runs.get(run.id)).waiting_reason == "it waits for signal 'approval'"
        await running.runs.signal(run.id, "approval", Decision(approved=True, by="Ada"))
        await settle()
        assert await running.runs.value(run.id, "state") == "about to be packed"
        await clock.advance(60)
        run = await finish(running, run)
        assert run.status == RunStatus.COMPLETED
        assert run.output["parcels"] == ["box for Tea", "box for Tea pot"]
        parcels = await running.runs.list(parent=run.id, order="oldest")
        assert sorted(parcel.parent_step for parcel in parcels) == ["parcel[0]", "parcel[1]"]
        assert await running.runs.value(run.id, "state") == "on its way"
        assert UNDONE[0] not in await steps(running, run)


async def test_an_order_that_is_rejected_is_refunded_and_its_items_go_back_to_the_shelf():
    async with orders(MockClock()) as running:
        run = await place(running, TEA)
        await running.runs.signal(run.id, "approval", Decision(approved=False, by="Ada"))
        run = await finish(running, run)
        assert (run.status, run.error.message) == (RunStatus.FAILED, "The order was rejected by Ada.")
        assert (await steps(running, run))[-2:] == UNDONE
        assert (await logged(running, run))[-2:] == ["Refunded 9.50 €", "Back on the shelf: Tea"]


async def test_an_order_that_is_not_approved_in_time_is_undone():
    clock = MockClock()
    async with orders(clock) as running:
        run = await place(running, TEA)
        await clock.advance(HOUR)
        run = await finish(running, run)
        assert (run.status, run.error.message) == (RunStatus.FAILED, "The order was not approved in time.")
        assert (await steps(running, run))[-2:] == UNDONE


async def test_a_parcel_that_fails_puts_its_box_back_and_undoes_the_order():
    clock = MockClock()
    async with orders(clock) as running:
        run = await place(running, TEA, VASE)
        await running.runs.signal(run.id, "approval", Decision(approved=True, by="Ada"))
        await settle()
        await clock.advance(60)
        run = await finish(running, run)
        assert run.status == RunStatus.FAILED
        assert (await steps(running, run))[-2:] == UNDONE
        parcels = {parcel.parent_step: parcel for parcel in await running.runs.list(parent=run.id)}
        assert parcels["parcel[0]"].status == RunStatus.COMPLETED
        assert "Vase broke while it was packed." in parcels["parcel[1]"].error.message
        assert "Put back: box for Vase" in await logged(running, parcels["parcel[1]"])


async def test_an_order_that_is_cancelled_while_it_could_be_thought_about_is_undone():
    async with orders(MockClock()) as running:
        run = await place(running, TEA)
        await running.runs.signal(run.id, "approval", Decision(approved=True, by="Ada"))
        await settle()
        assert (await running.runs.cancel(run.id, compensate=True)).status == RunStatus.CANCELLING
        assert (await finish(running, run)).status == RunStatus.CANCELLED
        assert (await steps(running, run))[-2:] == UNDONE


async def test_what_is_no_decision_is_refused_when_it_is_sent():
    async with orders(MockClock()) as running:
        run = await place(running, TEA)
        with pytest.raises(InvalidInput):
            await running.runs.signal(run.id, "approval", {"approved": True})
        assert (await running.runs.get(run.id)).status == RunStatus.WAITING


async def test_an_engine_that_dies_while_it_waits_and_again_in_the_middle_of_undoing_goes_on():
    async with orders(MockClock()) as running:
        refunds: list[str] = []
        stub_steps(running, {"compensate:charge": lambda *_: refunds.append("refund")})
        run = await place(running, TEA)
        await restart(running)
        await settle()
        await running.runs.signal(run.id, "approval", Decision(approved=False, by="Ada"))
        await crash_at(running, after="compensate:charge")
        await restart(running)
        assert (await finish(running, run)).status == RunStatus.FAILED
        assert refunds == ["refund"]
        assert (await logged(running, run))[-1] == "Back on the shelf: Tea"
