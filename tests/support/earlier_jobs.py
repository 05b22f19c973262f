"""The jobs of which an earlier version has recorded runs, in databases/: databases/make.py says how.

What a step's function is called with is kept in ``called``, so that a test sees which steps were called again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from durable_web import Context, Retry, job

LONG = 3600.0
called: list[str] = []
repaired: set[str] = set()
"""What hung, failed, or is refused now, and does not any more: nothing while the runs are recorded."""


def note(step: str) -> str:
    """The function of most steps: returns what it is called with."""
    called.append(step)
    return step


async def take_a_moment(step: str) -> str:
    """The function of a step that takes some milliseconds."""
    called.append(step)
    await asyncio.sleep(0.01)
    return step


async def stay(step: str) -> str:
    """The function of a step during which the engine died."""
    called.append(step)
    if step not in repaired:
        await asyncio.sleep(LONG)
    return step


def fail(step: str) -> str:
    """The function of a step that failed."""
    called.append(step)
    if step not in repaired:
        raise ConnectionError(f"{step} is out of order")
    return step


# --- sequential runs --------------------------------------------------------------------------------------------------


@job("interrupted")
async def interrupted(ctx: Context, _: Any) -> list[str]:
    return [await ctx.step(name, note, name) for name in ("one", "two", "three")]


@job("asleep")
async def asleep(ctx: Context, _: Any) -> list[str]:
    before = await ctx.step("before", note, "before")
    await ctx.set_event("stage", "asleep")
    await ctx.sleep("nap", LONG)
    return [before, await ctx.step("after", note, "after")]


@job("signalled")
async def signalled(ctx: Context, _: Any) -> list[str]:
    before = await ctx.step("before", note, "before")
    payload = await ctx.wait_for_signal("go")
    return [before, payload, await ctx.step("after", note, "after")]


@job("retrying", retry=Retry(max_attempts=3, backoff=LONG, max_delay=LONG, jitter=0.0))
async def retrying(ctx: Context, _: Any) -> list[str]:
    return [await ctx.step("before", note, "before"), await ctx.step("flaky", fail, "flaky")]


@job("called-back")
async def called_back(ctx: Context, _: Any) -> list[Any]:
    """The webhook is called while the run waits for the event."""
    first, second = await ctx.webhook("first"), await ctx.webhook("second")
    await ctx.set_event("tokens", [first.token, second.token])
    asked = await ctx.step("ask", note, "ask")
    news = await ctx.wait_for_event("news")
    return [asked, news, await first.wait(), await ctx.step("after", note, "after"), await second.wait()]


@job("child")
async def child(ctx: Context, name: str) -> str:
    await ctx.step("begin", note, f"{name} begins")
    await ctx.wait_for_signal("go")
    return await ctx.step("end", note, f"{name} ends")


@job("parent")
async def parent(ctx: Context, _: Any) -> list[str]:
    before = await ctx.step("before", note, "before")
    return [before, await ctx.run_job("only", child, "only"), await ctx.step("after", note, "after")]


@job("one-branch")
async def one_branch(ctx: Context, _: Any) -> list[str]:
    """What a task does is awaited before anything else begins, as with asyncio.wait_for on Python 3.11."""

    async def branch(name: str) -> str:
        await ctx.step("load", take_a_moment, f"load {name}")
        await asyncio.sleep(0.01)
        return await ctx.step("store", take_a_moment, f"store {name}")

    stored = []
    for name in ("a", "b"):
        stored.append(await asyncio.create_task(branch(name)))
        await asyncio.sleep(0.01)
    await ctx.sleep("nap", LONG)
    return [*stored, await ctx.step("load", note, "load more")]


@job("patched")
async def before_the_patch(ctx: Context, _: Any) -> list[str]:
    taken = [await ctx.step("one", note, "one"), await ctx.step("two", note, "two")]
    await ctx.wait_for_signal("go")
    return taken


@job("patched")
async def patched(ctx: Context, _: Any) -> list[str]:
    taken = [await ctx.step("one", note, "one")]
    if await ctx.patched("between"):
        taken.append(await ctx.step("between", note, "between"))
    taken.append(await ctx.step("two", note, "two"))
    await ctx.wait_for_signal("go")
    if await ctx.patched("afterwards"):
        taken.append(await ctx.step("afterwards", note, "afterwards"))
    await ctx.sleep("nap", LONG)
    return taken


@job("undone")
async def undone(ctx: Context, ends: str) -> None:
    """Fails, or is cancelled while it sleeps, and is then compensated."""
    for name in ("a", "b", "c"):
        await ctx.step(name, note, name, compensate=undo)
    if ends == "fails":
        await ctx.step("fail", fail, "fail")
    await ctx.sleep("nap", LONG)


def undo(step: str) -> None:
    called.append(f"undo {step}")


@job("failed")
async def failed(ctx: Context, _: Any) -> list[str]:
    return [await ctx.step(name, note, name) for name in ("one", "two")] + [await ctx.step("last", fail, "last")]


# --- runs with two operations busy at once ----------------------------------------------------------------------------


@job("gathered")
async def gathered(ctx: Context, _: Any) -> list[str]:
    return await asyncio.gather(ctx.step("quick", take_a_moment, "quick"), ctx.step("slow", stay, "slow"))


@job("parent-of-gathered")
async def parent_of_gathered(ctx: Context, _: Any) -> list[str]:
    before = await ctx.step("before", note, "before")
    return [before, *await ctx.run_job("only", gathered)]


@job("quick-branches")
async def quick_branches(ctx: Context, _: Any) -> list[str]:
    """Each branch has ended within a millisecond or two."""

    async def branch(name: str) -> str:
        await ctx.step("load", note, f"load {name}")
        return await ctx.step("store", note, f"store {name}")

    stored = await asyncio.gather(branch("a"), branch("b"))
    await ctx.sleep("nap", LONG)
    return [*stored, await ctx.step("after", note, "after")]


@job("nested")
async def nested(ctx: Context, _: Any) -> list[str]:
    """A step's function asked for a step; that is refused now, so the job does not."""

    async def outer() -> str:
        if "nested" not in repaired:
            await ctx.step("inner", note, "inner")
        return note("outer")

    taken = [await ctx.step("outer", outer)]
    await ctx.sleep("nap", LONG)
    return taken


@job("called-off")
async def called_off(ctx: Context, _: Any) -> list[str]:
    taken = []
    try:
        async with asyncio.timeout(0.01):
            await ctx.wait_for_signal("go")
    except TimeoutError:
        taken.append(await ctx.step("instead", note, "instead"))
    await ctx.sleep("nap", LONG)
    return [*taken, await ctx.step("after", note, "after")]


@job("mapped")
async def mapped(ctx: Context, _: Any) -> list[str]:
    return await ctx.map("each", child, ["a", "b", "c"])


@job("failed-in-branches")
async def failed_in_branches(ctx: Context, _: Any) -> list[str]:
    steps = [ctx.step(name, take_a_moment, name) for name in ("one", "two")]
    return [*await asyncio.gather(*steps), await ctx.step("last", fail, "last")]


JOBS = (
    interrupted,
    asleep,
    signalled,
    retrying,
    called_back,
    child,
    parent,
    one_branch,
    patched,
    undone,
    failed,
    gathered,
    parent_of_gathered,
    quick_branches,
    nested,
    called_off,
    mapped,
    failed_in_branches,
)
