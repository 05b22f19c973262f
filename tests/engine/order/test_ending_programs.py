"""A job may raise what is no ``Exception``: it ends its step and its run, and neither the engine nor the program."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from watching import finish

from durable_web import Context, RunStatus, StepFailed, StepStatus, job
from durable_web.testing import crash, settle


class Leave(BaseException):
    """Of a library that ends what it is called by."""


KINDS = [KeyboardInterrupt, SystemExit, GeneratorExit, Leave]


def leaving(kind: type[BaseException]) -> Any:
    """A job that raises it where its input says, and one that does not."""

    def leave(*_: object) -> None:
        raise kind("enough")

    async def leave_later() -> None:
        await asyncio.sleep(0)
        leave()

    @job("leave")
    async def leave_job(ctx: Context, place: str) -> None:
        match place:
            case "body":
                leave()
            case "step":
                await ctx.step("leave", leave)
            case "asynchronous step":
                await ctx.step("leave", leave_later)
            case "branch":
                await asyncio.gather(ctx.step("leave", leave_later), ctx.step("stay", lambda: 1))
            case "transaction":
                await ctx.transaction("leave", leave)
            case "transaction in a branch":
                await asyncio.gather(ctx.transaction("leave", leave), ctx.step("stay", lambda: 1))

    return leave_job


@job("stay")
async def stay(ctx: Context, _: None) -> str:
    return await ctx.step("stay", lambda: "still here")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", ["body", "step", "asynchronous step", "branch", "transaction", "transaction in a branch"]
)
async def test_a_job_that_raises_what_ends_programs_does_not_end_the_engine(running, kind, place):
    async with running(leaving(kind), stay) as engine:
        left = await finish(engine, await engine.trigger("leave", place))
        assert (left.status, left.attempt, left.recoveries) == (RunStatus.FAILED, 1, 0)
        assert kind.__name__ in left.error.message + left.error.type
        failed = [step for step in await engine.runs.steps(left.id) if step.name == "leave"]
        assert [(step.status, step.error.type) for step in failed] == [(StepStatus.FAILED, kind.__name__)] * (
            place != "body"
        )
        assert (await finish(engine, await engine.trigger("stay"))).output == "still here"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_step_that_ended_so_has_failed_and_may_be_caught(running, kind):
    @job("catch")
    async def catch(ctx: Context, _: None) -> str:
        def leave() -> None:
            raise kind("enough")

        try:
            await ctx.step("leave", leave)
        except StepFailed as failed:
            return await ctx.step("note", str, failed.error_type)
        return "came back"

    async with running(catch) as engine:
        assert (await finish(engine, await engine.trigger("catch"))).output == kind.__name__


@pytest.mark.parametrize("kind", KINDS)
async def test_an_undo_that_raises_it_does_not_keep_the_others_from_being_undone(running, kind):
    undone: list[str] = []

    def undo(name: str) -> None:
        undone.append(name)
        if name == "second":
            raise kind("enough")

    @job("saga")
    async def saga(ctx: Context, _: None) -> None:
        for name in ("first", "second"):
            await ctx.step(name, str, name, compensate=undo)
        raise ValueError("no")

    async with running(saga) as engine:
        run = await finish(engine, await engine.trigger("saga"))
    assert (run.status, run.error.message, undone) == (RunStatus.FAILED, "no", ["second", "first"])


@pytest.mark.parametrize("place", ["step", "body"])
async def test_a_body_that_python_closes_has_not_failed_and_goes_on_with_the_next_engine(running, place):
    """As when an event loop is dropped with every task in it."""
    wait = asyncio.Event().wait

    @job("forgotten")
    async def forgotten(ctx: Context, _: None) -> str:
        if ctx.attempt == 1:
            await (ctx.step("wait", wait) if place == "step" else wait())
        return "went on"

    async with running(forgotten) as engine:
        run = await engine.trigger("forgotten")
        await settle()
        (body,) = asyncio.all_tasks(engine.internals.dispatcher.executing[run.id].loop)
        body.get_coro().close()
        await settle()
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        await crash(engine)
    async with running(forgotten) as engine:
        assert (await finish(engine, run)).output == "went on"
