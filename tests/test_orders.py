"""The README's order, word for word: approved, refused, forgotten, broken, cancelled, and with a crash on the way."""

import importlib.util
import re
import sys
from datetime import timedelta
from types import ModuleType

import pytest

from durable_web import Engine, Run, RunStatus
from durable_web.testing import MockClock, crash_at, engine, restart
from environment import ROOT

ORDER = {"items": ["lamp", "chair", "book"], "cents": 12_900}
GRANTED = {"granted": True, "by": "Ada"}
UNDONE = ["compensate:charge", "compensate:reserve"]


@pytest.fixture
def orders(tmp_path) -> ModuleType:
    """The module that the README shows."""
    readme = (ROOT / "README.md").read_text("utf-8")
    (text,) = re.findall(r"^```python orders[.]py\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    path = tmp_path / "orders.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("orders", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["orders"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["orders"]


async def waits(shop: Engine, run: Run) -> Run:
    """Wait until the order waits for its approval."""
    async for frame in shop.watch(run.id):
        if frame.kind == "run_status" and frame.status == RunStatus.WAITING:
            break
    return await shop.get_run(run.id)


async def undone(shop: Engine, run: Run) -> list[str]:
    return [step.name for step in await shop.get_steps(run.id) if step.kind == "compensation" and step.error is None]


async def test_an_order_that_is_approved_is_packed_by_its_children_and_sent(orders):
    async with engine(orders.order, orders.pack) as shop:
        run = await shop.trigger(orders.order, ORDER)
        assert (await waits(shop, run)).waiting_reason == "it waits for signal 'approval'"
        await shop.signal(run.id, "approval", GRANTED)
        run = await shop.wait_for_run(run.id)
        assert run.output == "sent 3 parcels"
        assert await shop.count_runs("job") == {"order": 1, "pack": 3}


async def test_an_order_that_is_refused_gives_the_money_and_the_goods_back(orders):
    async with engine(orders.order, orders.pack) as shop:
        run = await shop.trigger(orders.order, ORDER)
        await shop.signal(run.id, "approval", {"granted": False, "by": "Ada"})
        run = await shop.wait_for_run(run.id)
        assert (run.status, run.error.message) == (RunStatus.FAILED, "Ada says no")
        assert await undone(shop, run) == UNDONE


async def test_an_order_that_nobody_approves_within_two_days_is_undone(orders):
    clock = MockClock()
    async with engine(orders.order, orders.pack, clock=clock, lease=86_400) as shop:
        run = await shop.trigger(orders.order, ORDER)
        await waits(shop, run)
        await clock.advance(timedelta(days=2).total_seconds() - 1)
        assert (await shop.get_run(run.id)).status == RunStatus.WAITING
        await clock.advance(2)
        run = await shop.wait_for_run(run.id)
        assert (run.status, run.error.type) == (RunStatus.FAILED, "SignalTimeout")
        assert await undone(shop, run) == UNDONE


async def test_an_order_of_something_that_breaks_is_undone_and_says_what_broke(orders):
    async with engine(orders.order, orders.pack) as shop:
        run = await shop.trigger_with_signal(orders.order, {**ORDER, "items": ["lamp", "vase"]}, "approval", GRANTED)
        run = await shop.wait_for_run(run.id)
        assert run.error.type == "ExceptionGroup"
        assert "the vase is broken" in run.error.traceback
        assert await undone(shop, run) == UNDONE


async def test_an_order_can_be_cancelled_and_undone(orders):
    async with engine(orders.order, orders.pack) as shop:
        run = await shop.trigger(orders.order, ORDER)
        await waits(shop, run)
        assert (await shop.cancel(run.id, compensate=True)).status == RunStatus.CANCELLING
        run = await shop.wait_for_run(run.id)
        assert (run.status, await undone(shop, run)) == (RunStatus.CANCELLED, UNDONE)


@pytest.mark.parametrize("point", ["reserve", "charge", "approval", "pack[1]", "send"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_order_survives_a_crash_on_its_way(orders, point, when):
    async with engine(orders.order, orders.pack) as shop:
        crash = crash_at(shop, **{when: point})
        run = await shop.trigger_with_signal(orders.order, ORDER, "approval", GRANTED)
        await crash
        await restart(shop)
        assert (await shop.wait_for_run(run.id)).output == "sent 3 parcels"
        assert await shop.count_runs("job") == {"order": 1, "pack": 3}


@pytest.mark.parametrize("point", UNDONE)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_order_survives_a_crash_while_it_is_undone(orders, point, when):
    async with engine(orders.order, orders.pack) as shop:
        crash = crash_at(shop, **{when: point})
        refusal = {"granted": False, "by": "Ada"}
        run = await shop.trigger_with_signal(orders.order, ORDER, "approval", refusal)
        await crash
        await restart(shop)
        run = await shop.wait_for_run(run.id)
        assert (run.status, run.error.message) == (RunStatus.FAILED, "Ada says no")
        assert await undone(shop, run) == UNDONE


def test_the_demo_shows_the_same_order(orders):
    assert (ROOT / "web/demo/orders.py").read_text("utf-8") == (ROOT / orders.__file__).read_text("utf-8")
