"""An order, from the shelf to the carrier: approval by a person, a parcel by a run of its own, and a way back.

When a step fails or the run is cancelled, what was done is undone, the latest first. The warehouse, the bank and the
carrier are played by functions that take their time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from durable_web import Context, FatalError, SignalTimeout, job


@dataclass
class Item:
    name: str
    price: float
    fragile: bool = False


@dataclass
class Order:
    items: list[Item]
    approval_seconds: float = 120
    grace_seconds: float = 5
    pace: float = 0.7  # seconds that each call to the outside takes

    @property
    def total(self) -> float:
        return sum(item.price for item in self.items)


@dataclass
class Parcel:
    item: Item
    pace: float


@dataclass
class Decision:
    approved: bool
    by: str


@job("order", signals={"approval": Decision})
async def process_order(ctx: Context, order: Order) -> dict:
    await ctx.set_event("state", "preparing")
    await ctx.step("reserve stock", reserve, ctx, order, compensate=partial(release, ctx, order))
    await ctx.step("charge", charge, ctx, order, compensate=partial(refund, ctx, order))
    await approval(ctx, order)
    await ctx.set_event("state", "about to be packed")
    await ctx.sleep("time to think again", order.grace_seconds)
    await ctx.set_event("state", "being packed")
    parcels = await ctx.map("parcel", pack_parcel, [Parcel(item, order.pace) for item in order.items])
    tracking = await ctx.step("hand to carrier", hand_over, ctx, order, parcels)
    await ctx.set_event("state", "on its way")
    return {"tracking": tracking, "parcels": parcels, "total": order.total}


async def approval(ctx: Context, order: Order) -> None:
    """Waits until a person has decided, for days if need be."""
    await ctx.set_event("state", "waiting for approval")
    try:
        decision = await ctx.wait_for_signal("approval", timeout=order.approval_seconds)
    except SignalTimeout:
        raise FatalError("The order was not approved in time.") from None
    if not decision.approved:
        raise FatalError(f"The order was rejected by {decision.by}.")
    ctx.log.info(f"Approved by {decision.by}")


@job("parcel")
async def pack_parcel(ctx: Context, parcel: Parcel) -> str:
    box = await ctx.step("take a box", take_box, ctx, parcel, compensate=partial(put_box_back, ctx, parcel))
    return await ctx.step("pack", pack, ctx, parcel, box)


# --- The warehouse, the bank and the carrier --------------------------------------------------------------------------


async def reserve(ctx: Context, order: Order) -> list[str]:
    await asyncio.sleep(order.pace)
    names = [item.name for item in order.items]
    ctx.log.info(f"Reserved: {', '.join(names)}")
    return names


async def release(ctx: Context, order: Order, names: list[str]) -> None:
    await asyncio.sleep(order.pace)
    ctx.log.info(f"Back on the shelf: {', '.join(names)}")


async def charge(ctx: Context, order: Order) -> str:
    await asyncio.sleep(order.pace)
    ctx.log.info(f"Charged {order.total:.2f} €")
    return ctx.step_ref  # the same on every attempt: the bank charges once for it


async def refund(ctx: Context, order: Order, payment: str) -> None:
    await asyncio.sleep(order.pace)
    ctx.log.info(f"Refunded {order.total:.2f} €", payment=payment)


async def take_box(ctx: Context, parcel: Parcel) -> str:
    await asyncio.sleep(parcel.pace)
    return f"box for {parcel.item.name}"


async def put_box_back(ctx: Context, parcel: Parcel, box: str) -> None:
    await asyncio.sleep(parcel.pace)
    ctx.log.info(f"Put back: {box}")


async def pack(ctx: Context, parcel: Parcel, box: str) -> str:
    await asyncio.sleep(parcel.pace)
    if parcel.item.fragile:
        raise FatalError(f"{parcel.item.name} broke while it was packed.")
    ctx.log.info(f"Packed: {parcel.item.name}")
    return box


async def hand_over(ctx: Context, order: Order, parcels: list[str]) -> str:
    await asyncio.sleep(order.pace)
    ctx.log.info(f"{len(parcels)} parcels are on their way")
    return f"DW-{ctx.run_id[-6:]}"
