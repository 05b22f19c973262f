"""What type checkers know of jobs: checked by mypy and pyright, never executed.

Each `type: ignore` marks a wrong use: mypy complains where one of them is not needed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass
from typing import Any, assert_type

from durable_web import Context, Engine, Job, Run, job


@dataclass
class Order:
    number: int


@dataclass
class Receipt:
    total: float


def price(order: Order) -> float:
    return order.number * 2.0


async def charge(order: Order, amount: float) -> Receipt:
    return Receipt(amount)


def refund(receipt: Receipt) -> None: ...


def insert(connection: sqlite3.Connection, order: Order) -> int:
    return order.number


@job("order")
async def order_job(ctx: Context, order: Order) -> Receipt:
    assert_type(await ctx.step("price", price, order), float)
    assert_type(await ctx.step("charge", charge, order, 2.0), Receipt)
    assert_type(await ctx.step("charge", charge, order, 2.0, compensate=refund), Receipt)
    assert_type(await ctx.step("nap", asyncio.sleep, 1), None)
    assert_type(await ctx.transaction("insert", insert, order), int)
    assert_type(await ctx.wait_for_signal("go", type=Order), Order)
    assert_type(await ctx.wait_for_signal("go", timeout=5), Any)

    await ctx.step("price", price, 7)  # type: ignore
    await ctx.step("price", price)  # type: ignore
    await ctx.step("charge", charge, order, 2.0, compensate=price)  # type: ignore
    await ctx.transaction("insert", insert, "order")  # type: ignore

    total = await ctx.step("price", price, order)
    total.upper()  # type: ignore
    return Receipt(total)


@job("alone")
async def alone(ctx: Context) -> str:
    return "done"


@job("parent", version="2", max_concurrent=3)
async def parent(ctx: Context, orders: list[Order]) -> list[Receipt]:
    assert_type(await ctx.run_job("one", order_job, orders[0]), Receipt)
    assert_type(await ctx.run_job("alone", alone), str)
    assert_type(await ctx.run_job("by name", "order", orders[0]), Any)
    assert_type(await ctx.start_job("beside", order_job, orders[0], priority=3), str)
    assert_type(await ctx.map("all", order_job, orders, max_concurrent=2), list[Receipt])

    await ctx.run_job("one", order_job, "order")  # type: ignore
    await ctx.run_job("one", order_job, orders[0], colour="red")  # type: ignore
    await ctx.map("all", order_job, ["order"])  # type: ignore
    return await ctx.map("all", order_job, orders)


assert_type(order_job, Job[Order, Receipt])
assert_type(alone, Job[None, str])
assert_type(parent, Job[list[Order], list[Receipt]])


async def use(engine: Engine, plain: Job) -> None:
    assert_type(await engine.trigger(order_job, Order(1)), Run)
    assert_type(await engine.trigger("order", {"number": 1}), Run)
    assert_type(await engine.trigger(plain, 1), Run)
    assert_type(await engine.trigger(alone), Run)
    await engine.trigger(order_job, 7)  # type: ignore
    await engine.trigger(order_job, Order(1), colour="red")  # type: ignore
    await engine.trigger_and_wait(order_job, Order(1), priority="high")  # type: ignore
    await engine.runs.cancel_many(colour="red")  # type: ignore
