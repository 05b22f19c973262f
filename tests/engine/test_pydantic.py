"""Pydantic models as inputs, outputs and step results; on CPython only, since Pyodide would have to fetch pydantic."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from watching import finish

import durable_web
from durable_web import Context, InvalidInput, job

pydantic = pytest.importorskip("pydantic")


class Order(pydantic.BaseModel):
    item: str
    count: int = 1
    on: date | None = None


async def find_order(number: int) -> Order:
    return Order(item=f"item {number}", on=date(2026, 1, 31))


async def test_a_model_is_validated_when_triggered_and_constructed_for_the_job_and_its_steps(running):
    @job("order")
    async def order_job(ctx: Context, order: Order) -> Order:
        found = await ctx.step("find", find_order, order.count)
        assert isinstance(found, Order)
        assert isinstance(order, Order)
        return Order(item=found.item, count=order.count, on=found.on)

    async with running(order_job) as engine:
        for given in (Order(item="pen", count=2), {"item": "pen", "count": 2}):
            run = await finish(engine, await engine.trigger("order", given))
            assert run.output == {"item": "item 2", "count": 2, "on": date(2026, 1, 31)}
        for wrong in ({"item": "pen", "count": "many"}, {"count": 1}, 7):
            with pytest.raises(InvalidInput, match="input of job 'order'"):
                await engine.trigger("order", wrong)


async def test_a_type_adapter_validates_inputs_and_outputs(running):
    @job("sum", input=pydantic.TypeAdapter(list[int]), output=pydantic.TypeAdapter(pydantic.PositiveInt))
    async def add_up(ctx: Context, numbers) -> int:
        return sum(numbers)

    async with running(add_up) as engine:
        assert (await finish(engine, await engine.trigger("sum", ["1", 2]))).output == 3
        with pytest.raises(InvalidInput):
            await engine.trigger("sum", ["one"])
        run = await finish(engine, await engine.trigger("sum", [-5]))
    assert run.error.type == "InvalidInput"
    assert "output of job 'sum'" in run.error.message


def test_pydantic_is_not_imported_unless_it_is_used():
    script = "import durable_web, sys; sys.exit('pydantic' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(durable_web.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
