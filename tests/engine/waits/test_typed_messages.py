"""What is sent to runs is checked by the engine of the sender, before anything is stored, and converted for the job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from durable_web import Context, InvalidInput, UpdateRejected, job
from durable_web.testing import engine, restart, settle


@dataclass
class Price:
    amount: Decimal
    since: date


def at_most_100(price: Price) -> bool:
    if price.amount < 0:
        raise ValueError("a price is not negative")
    return price.amount <= 100


@job(
    "shop",
    signals={"close": date},
    updates={"price": Price},
    events={"delivery": Price},
    validators={"price": at_most_100},
)
async def shop(ctx: Context, kind: str) -> list[Any]:
    match kind:
        case "update":
            update = await ctx.on_update("price")
            await update.answer(f"{type(update.argument).__name__} {update.argument.amount + 1}")
            got = update.argument
        case "event":
            got = await ctx.wait_for_event("delivery")
        case _:
            got = await ctx.wait_for_signal("close")
    return [type(got).__name__, str(got)]


GOOD = {"amount": "12.50", "since": "2026-12-01"}


async def parked(e: Any, kind: str) -> Any:
    run = await e.trigger(shop, kind)
    await settle()
    assert (await e.runs.get(run.id)).status == "waiting"
    return run


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_an_update_is_converted_to_its_declared_type(is_restarted):
    async with engine(shop) as e:
        run = await parked(e, "update")
        if is_restarted:
            await restart(e)
            await settle()
        assert await e.runs.update(run.id, "price", GOOD) == "Price 13.50"
        assert (await e.runs.wait(run.id)).output[0] == "Price"


@pytest.mark.parametrize(
    ("argument", "error", "said"),
    [
        ({"amount": "much", "since": "2026-12-01"}, InvalidInput, "amount"),
        ({"amount": "1"}, InvalidInput, "since"),
        ([1], InvalidInput, "update 'price'"),
        ({"amount": "101", "since": "2026-12-01"}, UpdateRejected, "the validator did not accept it"),
        ({"amount": "-1", "since": "2026-12-01"}, UpdateRejected, "a price is not negative"),
    ],
)
async def test_an_update_that_does_not_fit_is_refused_before_anything_is_stored(argument, error, said):
    async with engine(shop) as e:
        run = await parked(e, "update")
        before = (await e.runs.get(run.id)).last_seq
        with pytest.raises(error, match=said):
            await e.runs.update(run.id, "price", argument, update_id="one")
        assert (await e.runs.get(run.id)).last_seq == before
        assert await e.runs.update(run.id, "price", GOOD, update_id="one") == "Price 13.50"  # its id is not used up


async def test_an_event_that_does_not_fit_a_job_which_declares_it_reaches_no_run():
    async with engine(shop) as e:
        run = await parked(e, "event")
        with pytest.raises(InvalidInput, match="event 'delivery'"):
            await e.publish("delivery", {"amount": "much"}, event_id="one")
        assert (await e.runs.get(run.id)).status == "waiting"
        assert await e.publish("delivery", GOOD, event_id="one") == [run.id]
        assert (await e.runs.wait(run.id)).output[0] == "Price"


async def test_a_signal_is_converted_to_its_declared_type():
    async with engine(shop) as e:
        run = await parked(e, "signal")
        with pytest.raises(InvalidInput, match="signal 'close'"):
            await e.runs.signal(run.id, "close", "tomorrow")
        await e.runs.signal(run.id, "close", "2026-12-24")
        assert (await e.runs.wait(run.id)).output == ["date", "2026-12-24"]


def test_a_validator_is_a_synchronous_function():
    async def later(price: Price) -> bool:
        return True

    with pytest.raises(TypeError, match="must be synchronous"):
        job("wrong", validators={"price": later})
    with pytest.raises(TypeError, match="a function of its argument"):
        job("wrong", validators={"price": 3})
