"""What is given to an engine, a job or a call is checked alike everywhere, and refused in words."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from watching import cpython_only

from durable_web import (
    ConflictError,
    Context,
    Engine,
    FatalError,
    InvalidInput,
    JobNotFound,
    Retry,
    Singleton,
    StepFailed,
    job,
)
from durable_web.testing import MockClock, engine, settle

NOT_A_NAME = ["", b"name", 5, {}, "\ud800"]


@job("waits")
async def waits(ctx: Context, _: None) -> Any:
    return await ctx.wait_for_signal("go")


@pytest.mark.parametrize("wrong", NOT_A_NAME)
async def test_names_and_ids_are_checked_alike_for_every_kind_of_message(wrong):
    async with engine(waits) as e:
        run = await e.trigger(waits)
        await settle()
        for call in (
            lambda: e.runs.signal(run.id, wrong),
            lambda: e.runs.signal(run.id, "go", signal_id=wrong),
            lambda: e.runs.update(run.id, wrong),
            lambda: e.runs.update(run.id, "go", update_id=wrong),
            lambda: e.publish(wrong),
            lambda: e.publish("topic", event_id=wrong),
            lambda: e.trigger(waits, idempotency_key=wrong),
            lambda: e.trigger(waits, concurrency_key=wrong),
            lambda: e.schedules.create(wrong, waits, every="1h"),
        ):
            with pytest.raises(ValueError, match=r"non-empty string, not|has no form in UTF-8"):
                await call()
        assert (await e.runs.get(run.id)).status == "waiting"
        assert len(await e.runs.list()) == 1


@pytest.mark.parametrize("name", ["max_concurrent_runs", "max_recoveries", "max_parked"])
@pytest.mark.parametrize("wrong", [-1, 1.5, float("nan"), float("inf"), "10", True, None])
def test_the_numbers_of_an_engine_are_whole(name, wrong):
    with pytest.raises(ValueError, match=f"^{name} of an engine is a whole number of at least 0, not "):
        Engine("unused.sqlite3", **{name: wrong})


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "30"])
def test_the_lease_of_an_engine_is_a_number_of_seconds(wrong):
    with pytest.raises(ValueError, match=r"^lease of an engine is a number of seconds, at least 0\.001, not "):
        Engine("unused.sqlite3", lease=wrong)


@pytest.mark.parametrize("filters", [{}, {"job": None}, {"labels": {}}, {"status": None, "search": None}])
@pytest.mark.parametrize("method", ["cancel_many", "retry_many", "delete_many"])
async def test_a_filter_that_is_empty_by_mistake_does_not_mean_all_runs(method, filters):
    async with engine(waits) as e:
        await e.trigger(waits)
        await settle()
        with pytest.raises(ValueError, match=rf"runs\.{method} needs a filter with a value.*everything=True"):
            await getattr(e.runs, method)(**filters)
        assert await e.runs.count() == {"waiting": 1}


async def test_a_job_without_an_input_takes_the_context_alone():
    @job("alone")
    async def alone(ctx: Context) -> str:
        return await ctx.step("work", str, "done")

    async with engine(alone) as e:
        assert (await e.trigger_and_wait(alone)).output == "done"
        assert (await e.trigger_and_wait("alone", None)).output == "done"
        with pytest.raises(InvalidInput):
            await e.trigger(alone, {"to": "nothing"})


async def test_a_job_of_a_version_is_run_in_that_version():
    def version(number: str) -> Any:
        @job("report", version=number)
        async def report(ctx: Context, _: None) -> str:
            return number

        return report

    @job("parent")
    async def parent(ctx: Context, _: None) -> list[str]:
        return [await ctx.run_job("old", old), await ctx.run_job("new", new), await ctx.run_job("latest", "report")]

    old, new = version("1"), version("2")
    async with engine(old, new, parent) as e:
        assert (await e.trigger_and_wait(old)).output == "1"
        assert (await e.trigger_and_wait("report")).output == "2"
        assert (await e.trigger_and_wait(parent)).output == ["1", "2", "2"]
        with pytest.raises(JobNotFound):
            await e.trigger(version("3"))


@pytest.mark.parametrize(
    "error", [FatalError("no"), ExceptionGroup("some", [OSError(), ExceptionGroup("more", [FatalError("no")])])]
)
async def test_a_fatal_error_ends_a_step_at_once_also_inside_groups(error):
    calls: list[int] = []

    def fails() -> None:
        calls.append(1)
        raise error

    @job("fails")
    async def failing(ctx: Context, _: None) -> str:
        with pytest.raises(StepFailed):
            await ctx.step("fails", fails, retry=Retry(max_attempts=5, backoff=0))
        return "caught"

    async with engine(failing) as e:
        assert (await e.trigger_and_wait(failing)).output == "caught"
        assert calls == [1]


@pytest.mark.parametrize("cron", ["* * * * * *", "0 30 7 * * MON", "* * * *", "", "@hourly"])
async def test_a_cron_expression_has_five_fields(cron):
    async with engine(waits) as e:
        with pytest.raises(ValueError, match="It has five fields, minute, hour, day of the month"):
            await e.schedules.create("often", waits, cron=cron)


async def test_a_run_that_sleeps_or_waits_with_a_timeout_says_when_it_goes_on():
    @job("sleeps")
    async def sleeps(ctx: Context, how: str) -> None:
        match how:
            case "sleep":
                await ctx.sleep("nap", 60)
            case "timeout":
                await ctx.wait_for_signal("never", timeout=90)
            case "for ever":
                await ctx.wait_for_signal("never")

    clock = MockClock()
    async with engine(sleeps, clock=clock) as e:
        runs = [await e.trigger(sleeps, how) for how in ("sleep", "timeout", "for ever")]
        await settle()
        wake = [(await e.runs.get(run.id)).wake_at for run in runs]
        begun = runs[0].created_at
        assert wake == [begun + timedelta(seconds=60), begun + timedelta(seconds=90), None]
        assert [run.wake_at for run in await e.runs.list(order="oldest")] == wake
        await clock.advance(61)
        assert (await e.runs.get(runs[0].id)).wake_at is None


async def test_a_fork_that_the_flow_control_refuses_says_so():
    @job("single", singleton=Singleton())
    async def single(ctx: Context, _: None) -> None:
        await ctx.step("one", str)
        await ctx.wait_for_signal("never")

    async with engine(single) as e:
        run = await e.trigger(single)
        await settle()
        with pytest.raises(ConflictError, match=f"^No run was forked from {run.id}: the flow control of job 'single'"):
            await e.runs.fork(run.id, "one")


async def test_a_step_that_is_given_a_coroutine_says_how_to_write_it():
    async def charge(amount: int) -> int:
        return amount

    @job("wrong")
    async def wrong(ctx: Context, how: str) -> None:
        await ctx.step("charge", charge(3) if how == "coroutine" else how)

    async with engine(wrong) as e:
        run = await e.trigger_and_wait(wrong, "coroutine")
        assert (run.status, run.error.type) == ("failed", "TypeError")
        assert "was given the coroutine of charge()" in run.error.message
        assert "await ctx.step('charge', charge, ...)" in run.error.message
        run = await e.trigger_and_wait(wrong, "text")
        assert run.error.message.startswith("The step 'charge' needs a function, not 'text'")
        assert await e.runs.steps(run.id) == []


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda ctx: ctx.step("charge", str), "ctx.step('charge', ...)"),
        (lambda ctx: ctx.transaction("insert", str), "ctx.transaction('insert', ...)"),
        (lambda ctx: ctx.sleep("nap", 3), "ctx.sleep('nap', ...)"),
        (lambda ctx: ctx.now(), "ctx.now(...)"),
        (lambda ctx: ctx.run_job("child", "other"), "ctx.run_job('child', ...)"),
        (lambda ctx: ctx.set_event("key", 1), "ctx.set_event('key', ...)"),
        (lambda ctx: [ctx.step("charge", str), asyncio.wait_for(ctx.sleep("nap", 3), 1).close()], "ctx.step('charge',"),
    ],
)
async def test_a_forgotten_await_fails_the_run_in_words(ask, said):
    @job("forgets")
    async def forgets(ctx: Context, _: None) -> str:
        for number in range(100):
            await ctx.step(f"step {number}", str)
        ask(ctx)
        return "done"

    async with engine(forgets) as e:
        run = await e.trigger_and_wait(forgets)
        assert (run.status, run.error.type) == ("failed", "TypeError")
        assert run.error.message.startswith("The job has never awaited ")
        assert said in run.error.message
        assert "write `await` before it" in run.error.message


async def test_a_task_that_has_not_begun_when_the_body_returns_is_not_forgotten():
    @job("leaves")
    async def leaves(ctx: Context, _: None) -> str:
        tasks.append(asyncio.ensure_future(ctx.step("left", str)))
        return "done"

    tasks: list[Any] = []
    async with engine(leaves) as e:
        assert (await e.trigger_and_wait(leaves)).status == "completed"


@cpython_only("there are no threads")
async def test_calls_from_another_thread_are_refused_with_what_to_write():
    async with engine(waits) as e:
        with pytest.raises(RuntimeError, match=r"asyncio\.run_coroutine_threadsafe\(engine\.trigger"):
            await asyncio.to_thread(asyncio.run, e.trigger(waits))
        loop = asyncio.get_running_loop()
        ask = lambda: asyncio.run_coroutine_threadsafe(e.trigger(waits), loop).result()  # noqa: E731
        assert (await asyncio.to_thread(ask)).job == "waits"
