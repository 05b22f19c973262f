"""An order that depends on others: on a person who approves it, and on a run for every item."""

import asyncio
from datetime import timedelta

from durable_web import Context, FatalError, Retry, job


async def reserve(items: list[str]) -> str:
    await asyncio.sleep(0.3)  # each of these stands for a request to somebody outside
    return f"reservation of {len(items)} items"


async def release(reservation: str) -> None:
    await asyncio.sleep(0.3)


async def charge(cents: int) -> str:
    await asyncio.sleep(0.3)
    return f"payment of {cents} cents"


async def refund(payment: str) -> None:
    await asyncio.sleep(0.3)


async def fetch(item: str) -> str:
    await asyncio.sleep(0.3)
    if item == "vase":
        raise FatalError("the vase is broken")
    return f"parcel with a {item}"


async def send(parcels: list[str]) -> str:
    await asyncio.sleep(0.3)
    return f"sent {len(parcels)} parcels"


@job("pack", retry=Retry(max_attempts=3))
async def pack(ctx: Context, item: str) -> str:
    return await ctx.step("fetch", fetch, item)


@job("order", signals={"approval": dict})
async def order(ctx: Context, input: dict) -> str:
    await ctx.step("reserve", reserve, input["items"], compensate=release)
    await ctx.step("charge", charge, input["cents"], compensate=refund)
    approval = await ctx.wait_for_signal("approval", timeout=timedelta(days=2))
    if not approval["granted"]:
        raise FatalError(f"{approval['by']} says no")
    parcels = await ctx.map("pack", pack, input["items"], max_concurrent=2, mode="fail_fast")
    return await ctx.step("send", send, parcels)
