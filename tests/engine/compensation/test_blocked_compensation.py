"""A run that has to undo its steps and waits for the version of its job that can: no other run waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

from watching import finish, reach

from durable_web import Concurrency, Context, Engine, Job, Run, RunStatus, job
from durable_web.testing import crash, settle


class Releases:
    """A job before and after a release; the older code undoes its first step."""

    def __init__(self, **limits: Any) -> None:
        self.undone: list[str] = []
        self.may_undo = asyncio.Event()
        self.limits = limits

    def release(self, version: str) -> Job:
        @job("order", version=version, **self.limits)
        async def order(ctx: Context, _: Any) -> str:
            await ctx.step("charge", lambda: version, compensate=self.refund)
            await ctx.step("hang", asyncio.Event().wait)
            return version

        return order

    async def refund(self, what: str) -> None:
        await self.may_undo.wait()
        self.undone.append(what)


async def cancel_and_release(running: Any, releases: Releases, **options: Any) -> Run:
    """A run of the older version that was to be undone when the engine stopped.

    A death would count against it, because a step of it was executing: then it would be executed alone.
    """
    async with running(releases.release("1")) as engine:
        run = await engine.trigger("order", **options)
        await settle()
        await engine.runs.cancel(run.id, compensate=True)
        await settle()
        await engine.stop(drain=False)
    return run


async def is_blocked(engine: Engine, run: Run) -> bool:
    await settle()
    found = await engine.runs.get(run.id)
    return found.status == RunStatus.CANCELLING and (found.waiting_reason or "").startswith("blocked")


async def test_it_does_not_count_as_one_that_executes(running):
    releases = Releases(max_concurrent=1)
    run = await cancel_and_release(running, releases)
    async with running(releases.release("2")) as engine:
        assert await is_blocked(engine, run)
        await reach(engine, (await engine.trigger("order")).id, RunStatus.RUNNING)
        await crash(engine)


async def test_it_leaves_its_slot_to_others(running):
    releases = Releases(concurrency=Concurrency(limit=1))
    run = await cancel_and_release(running, releases)
    async with running(releases.release("2")) as engine:
        waiting = await engine.trigger("order")
        assert await is_blocked(engine, run)
        await reach(engine, waiting.id, RunStatus.RUNNING)
        assert (await engine.runs.get((await engine.trigger("order")).id)).status == RunStatus.PENDING
        await crash(engine)


async def test_it_leaves_its_concurrency_key_to_others(running):
    releases = Releases()
    run = await cancel_and_release(running, releases, concurrency_key="account")
    async with running(releases.release("2")) as engine:
        assert await is_blocked(engine, run)
        await reach(engine, (await engine.trigger("order", concurrency_key="account")).id, RunStatus.RUNNING)
        await crash(engine)


async def test_when_its_version_is_registered_it_is_undone_beside_the_run_that_has_taken_its_place(running):
    releases = Releases(max_concurrent=1, concurrency=Concurrency(limit=1))
    run = await cancel_and_release(running, releases)
    async with running(releases.release("2")) as engine:
        other = await engine.trigger("order")
        await reach(engine, other.id, RunStatus.RUNNING)
        engine.register(releases.release("1"))
        releases.may_undo.set()
        assert (await finish(engine, run)).status == RunStatus.CANCELLED
        assert (await engine.runs.get(other.id)).status == RunStatus.RUNNING
        await crash(engine)
    assert releases.undone == ["1"]


async def test_while_it_is_undone_it_counts_as_one_that_executes(running):
    releases = Releases(max_concurrent=1)
    async with running(releases.release("1")) as engine:
        run = await engine.trigger("order")
        await settle()
        await engine.runs.cancel(run.id, compensate=True)
        other = await engine.trigger("order")
        await settle()
        assert (await engine.runs.get(other.id)).status == RunStatus.PENDING
        releases.may_undo.set()
        await finish(engine, run)
        await reach(engine, other.id, RunStatus.RUNNING)
        await crash(engine)
