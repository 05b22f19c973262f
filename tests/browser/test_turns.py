"""The worker's event loop: its callbacks share turns, and none holds up another."""

JOBS = """
import asyncio
import time
from durable_web import job

@job("waits in the middle")
async def waits_in_the_middle(ctx, _):
    told = []

    async def synchronous():
        told.append("begins")
        time.sleep(0.05)
        told.append("ends")

    async def turns():
        for number in range(3):
            await asyncio.sleep(0)
            told.append(number)

    async def both():
        await asyncio.gather(synchronous(), turns(), turns())
        return told

    return await ctx.step("both", both)

@job("order")
async def order(ctx, _):
    told = []
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def first():
        told.append("first")
        loop.call_soon(told.append, "next turn")
        loop.call_soon(done.set_result, None)

    loop.call_soon(first)
    loop.call_soon(told.append, "cancelled").cancel()
    loop.call_soon(told.append, "second")
    await done
    return told
"""

OUTPUT = """async (job) => {
    await connected(["./jobs.py"]);
    return (await finished((await durable.trigger(job)).id)).run.output;
}"""


def test_callbacks_are_called_in_order_and_what_they_make_ready_comes_after_the_others(browser, client_url):
    page = browser().open(client_url(JOBS))
    assert page.evaluate(OUTPUT, "order") == ["first", "second", "next turn"]


def test_synchronous_code_that_waits_for_a_promise_holds_up_no_other(browser, client_url):
    page = browser().open(client_url(JOBS))
    assert page.evaluate(OUTPUT, "waits in the middle") == ["begins", 0, 0, 1, 1, 2, 2, "ends"]
