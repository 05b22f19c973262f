"""A person's retry: the same run goes on, with every counter at its beginning, by the rules for every other run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from watching import finish, reach

from durable_web import ConflictError, Context, InvalidInput, RunNotTerminal, RunStatus, job
from durable_web.testing import MockClock, crash, settle


def failing() -> tuple[object, list[bool]]:
    """A job that fails while there is something in the list."""
    broken = [True]

    @job("work")
    async def work(ctx: Context, number: int) -> int:
        def check() -> int:
            if broken:
                raise ValueError("broken")
            return number

        return await ctx.step("check", check)

    return work, broken


async def test_a_dead_run_that_is_retried_has_all_its_recoveries_again(running):
    """As long as it dies, it is dead only after as many deaths as the first time."""

    @job("deadly")
    async def deadly(ctx: Context, _: None) -> None:
        await ctx.step("hang", asyncio.Event().wait)

    async def die(times: int) -> None:
        for _ in range(times):
            async with running(deadly, max_recoveries=1) as engine:
                await settle()
                await crash(engine)

    async with running(deadly, max_recoveries=1) as engine:
        run = await engine.trigger("deadly")
        await settle()
        await crash(engine)
    await die(1)
    async with running(deadly, max_recoveries=1, max_concurrent_runs=0) as engine:
        assert (await engine.runs.get(run.id)).status == RunStatus.DEAD
        assert (await engine.runs.retry(run.id)).recoveries == 0
    await die(1)
    async with running(deadly, max_recoveries=1, max_concurrent_runs=0) as engine:
        run = await engine.runs.get(run.id)
        assert (run.status, run.recoveries, run.error) == (RunStatus.PENDING, 1, None)
    await die(1)
    async with running(deadly, max_recoveries=1) as engine:
        assert (await engine.runs.get(run.id)).status == RunStatus.DEAD


async def test_a_run_whose_deadline_has_passed_goes_on_without_one(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("slow")
    async def slow(ctx: Context, _: None) -> str:
        await ctx.step("wait", gate.wait)
        return "done"

    async with running(slow, clock=clock) as engine:
        deadline = datetime.fromtimestamp(clock.now() / 1000, UTC) + timedelta(seconds=30)
        run = await engine.trigger("slow", deadline=deadline)
        await clock.advance(31)
        assert (await engine.runs.get(run.id)).error.type == "DeadlineExceeded"
        assert (await engine.runs.retry(run.id)).deadline is None
        await clock.advance(31)
        gate.set()
        assert (await finish(engine, run)).output == "done"


async def test_the_timeout_of_a_job_counts_from_the_retry(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("slow", timeout=60)
    async def slow(ctx: Context, _: None) -> str:
        await ctx.step("wait", gate.wait)
        return "done"

    async with running(slow, clock=clock) as engine:
        run = await engine.trigger("slow")
        await clock.advance(61)
        assert (await engine.runs.get(run.id)).error.type == "DeadlineExceeded"
        await engine.runs.retry(run.id)
        await clock.advance(50)
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        await clock.advance(11)
        assert (await engine.runs.get(run.id)).error.type == "DeadlineExceeded"
        gate.set()


async def test_at_most_one_run_of_a_job_and_a_concurrency_key_is_pending_also_by_a_retry(running):
    work, broken = failing()
    async with running(work) as engine:
        failed = await finish(engine, await engine.trigger("work", 1, concurrency_key="k"))
        other_key = await finish(engine, await engine.trigger("work", 2, concurrency_key="another"))
        later = datetime.now(UTC) + timedelta(days=1)
        pending = await engine.trigger("work", 3, concurrency_key="k", run_at=later)
        for attempt in (engine.runs.retry(failed.id), engine.runs.retry(failed.id, input=4)):
            with pytest.raises(ConflictError) as caught:
                await attempt
            assert caught.value.run_id == pending.id
        assert await engine.runs.get(failed.id) == failed  # nothing of the retry is written
        broken.clear()
        assert await engine.runs.retry_many(everything=True) == [other_key.id]  # those that may not be are passed over
        await engine.runs.cancel(pending.id)
        await engine.runs.retry(failed.id)
        assert (await finish(engine, failed)).output == 1


@dataclass
class Letter:
    to: str


@dataclass
class Parcel:
    weight: int


async def test_another_input_is_held_to_the_version_under_which_the_run_goes_on(running):
    bodies: list[Any] = []

    @job("send", version="1")
    async def first(ctx: Context, letter: Letter) -> None:
        bodies.append(letter)
        if letter.to == "nobody":
            raise ValueError("there is no such person")

    @job("send", version="2")
    async def second(ctx: Context, parcel: Parcel) -> None: ...

    async with running(first) as engine:
        run = await finish(engine, await engine.trigger("send", {"to": "nobody"}))
        engine.register(second)
        with pytest.raises(InvalidInput, match="weight"):
            await engine.runs.retry(run.id, input={"weight": 1})
        assert await engine.runs.get(run.id) == run
        run = await finish(engine, await engine.runs.retry(run.id, input={"to": "Ada"}))
        assert (run.status, run.version, bodies) == ("completed", "1", [Letter("nobody"), Letter("Ada")])


async def test_another_input_for_a_version_that_is_not_here_is_checked_when_it_is(running):
    @job("send", version="1")
    async def first(ctx: Context, letter: Letter) -> None:
        raise ValueError(letter.to)

    @job("send", version="2")
    async def second(ctx: Context, parcel: Parcel) -> None: ...

    async with running(first) as engine:
        run = await finish(engine, await engine.trigger("send", {"to": "nobody"}))
    async with running(second) as engine:
        await engine.runs.retry(run.id, input={"to": "Ada"})
        engine.register(first)
        assert (await finish(engine, run)).error.message == "Ada"


async def test_another_input_is_validated_before_anything_is_written(running):
    work, _ = failing()
    typed = job("work", input=Positive)(work.function)
    async with running(typed) as engine:
        run = await finish(engine, await engine.trigger("work", 1))
        with pytest.raises(InvalidInput, match="above 0"):
            await engine.runs.retry(run.id, input=-1)
        assert await engine.runs.get(run.id) == run
    async with running(work) as engine:
        with pytest.raises(InvalidInput, match="The input of job 'work' does not fit"):
            await engine.runs.retry(run.id, input=object())
        assert await engine.runs.get(run.id) == run


class Adapter:
    """Stands for a TypeAdapter of pydantic, which Pyodide would have to fetch."""

    def validate_python(self, value: int) -> int:
        if value <= 0:
            raise ValueError("it is to be above 0")
        return value


Positive = Adapter()


async def test_what_is_active_or_has_completed_is_not_retried(running):
    work, broken = failing()
    broken.clear()
    gate = asyncio.Event()

    @job("wait")
    async def wait(ctx: Context, _: None) -> None:
        await ctx.step("wait", gate.wait)

    async with running(work, wait) as engine:
        completed = await finish(engine, await engine.trigger("work", 1))
        active = await engine.trigger("wait")
        await reach(engine, active.id, "running")
        for run in (completed, active):
            for attempt in (engine.runs.retry(run.id), engine.runs.retry(run.id, input=1)):
                with pytest.raises(RunNotTerminal):
                    await attempt
        assert (await engine.runs.get(completed.id)) == completed
        gate.set()
