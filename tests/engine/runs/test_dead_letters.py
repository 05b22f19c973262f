"""Dead letters: a run that kills its engine again and again is put aside, and handed to a job that looks after it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from watching import cpython_only, finish, reach

from durable_web import (
    Context,
    Debounce,
    Engine,
    Job,
    RateLimit,
    RateLimited,
    Run,
    RunStatus,
    Singleton,
    Throttle,
    job,
)
from durable_web._model import to_wire
from durable_web.testing import MockClock, SimulatedCrash, crash, crash_at, settle


@job("letters")
async def letters(ctx: Context, letter: dict) -> dict:
    return letter


def deadly(dead_letter: Job | str | None = None, name: str = "deadly", deaths: int = 1000) -> Job:
    """A job that hangs until its engine dies, so many times."""

    @job(name, dead_letter=dead_letter)
    async def deadly_job(ctx: Context, _: Any) -> str:
        if ctx.attempt <= deaths:
            await ctx.step("hang", asyncio.Event().wait)
        return "alive"

    return deadly_job


async def die(running: Any, *jobs: Job, run: Run | None = None, **options: Any) -> Run:
    """Let an engine die once over a run of the first job, or over that run."""
    async with running(*jobs, **options) as engine:
        run = await engine.trigger(jobs[0], {"order": 7}) if run is None else run
        await reach(engine, run.id, RunStatus.RUNNING)
        await settle()
        await crash(engine)
    return run


async def handlers(engine: Engine) -> list[Run]:
    await settle()
    return await engine.runs.list(job="letters")


# --- what is started -------------------------------------------------------------------------------------------------


async def test_a_run_that_dies_too_often_is_handed_to_the_job_that_its_own_names(running):
    bad = deadly(letters)
    run = await die(running, bad, max_recoveries=1)
    await die(running, bad, run=run, max_recoveries=1)
    async with running(bad, max_recoveries=1) as engine:
        run = await engine.runs.get(run.id)
        (handler,) = await handlers(engine)
        handler = await finish(engine, handler)
    assert (run.status, run.error.type) == (RunStatus.DEAD, "CrashLoop")
    assert handler.input["run_id"] == run.id
    assert handler.input["job"] == "deadly"
    assert handler.input["input"] == {"order": 7}
    assert handler.input["error"]["type"] == "CrashLoop"
    assert "died 2 times" in handler.input["error"]["message"]
    assert handler.output == handler.input


async def test_both_runs_name_each_other_on_the_page_too(running):
    bad = deadly(letters)
    run = await die(running, bad, max_recoveries=0)
    async with running(bad, max_recoveries=0) as engine:
        (handler,) = await handlers(engine)
        run = await engine.runs.get(run.id)
    assert (run.dead_letter_id, handler.dead_letter_of) == (handler.id, run.id)
    assert (to_wire(run)["deadLetterId"], to_wire(handler)["deadLetterOf"]) == (handler.id, run.id)
    assert handler.idempotency_key == f"dlq:{run.id}"


@pytest.mark.parametrize("handler", [letters, "letters"])
async def test_the_engines_own_handler_is_for_jobs_that_have_none(running, handler):
    bad, named = deadly(), deadly("letters", name="named")
    options = {"max_recoveries": 0, "dead_letter": handler}
    runs = [await die(running, item, letters, **options) for item in (bad, named)]
    async with running(bad, named, letters, **options) as engine:
        assert sorted(found.input["run_id"] for found in await handlers(engine)) == sorted(run.id for run in runs)


async def test_without_a_handler_a_dead_run_is_only_kept(running):
    run = await die(running, bad := deadly(), max_recoveries=0)
    async with running(bad, letters, max_recoveries=0) as engine:
        assert await handlers(engine) == []
        run = await engine.runs.get(run.id)
    assert (run.status, run.dead_letter_id) == (RunStatus.DEAD, None)


async def test_a_handler_that_is_not_registered_is_reported_and_fails_nothing_else(running, database_path):
    told: list[str] = []
    run = await die(running, bad := deadly("nobody"), max_recoveries=0)
    engine = Engine(database_path, [bad], max_recoveries=0, exclusive=True)
    engine.on("worker:error", lambda event: told.append(event.error.message))
    async with engine:
        assert (await engine.runs.get(run.id)).status == RunStatus.DEAD
    assert "No job named 'nobody' is registered" in told[0]


async def test_a_handler_that_fails_or_dies_itself_starts_no_other(running):
    @job("letters")
    async def deadly_letters(ctx: Context, letter: dict) -> None:
        await ctx.step("hang", asyncio.Event().wait)

    bad = deadly()
    options = {"max_recoveries": 0, "dead_letter": deadly_letters}
    await die(running, bad, **options)
    async with running(bad, **options) as engine:
        await reach(engine, (await handlers(engine))[0].id, RunStatus.RUNNING)
        await crash(engine)
    async with running(bad, **options) as engine:
        (handler,) = await handlers(engine)
        assert handler.status == RunStatus.DEAD
        assert handler.dead_letter_id is None


async def bury(running: Any, bad: Job, count: int = 1, **options: Any) -> list[Run]:
    """Let an engine die over each of so many runs of a job, before a handler of theirs is executed."""
    runs = []
    for _ in range(count):
        async with running(bad, max_recoveries=0, max_concurrent_runs=1, **options) as engine:
            runs = runs or [await engine.trigger(bad, {"n": n}, priority=1) for n in range(count)]
            await settle()
            await crash(engine)
    return runs


# --- no letter is lost, and none goes round in a circle --------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        {"singleton": Singleton(mode="skip")},
        {"singleton": Singleton(mode="queue")},
        {"singleton": Singleton(mode="cancel_previous")},
        {"debounce": Debounce("job", "1m")},
        {"debounce": Debounce("job", "1m"), "rate_limit": RateLimit(1, "1h")},
        {"rate_limit": RateLimit(1, "1h")},
        {"throttle": Throttle(1, "1h")},
        {"singleton": Singleton("input.customer")},
        {"rate_limit": RateLimit(1, "1h", key="input.customer")},
    ],
    ids=[
        "skip",
        "queue",
        "cancel previous",
        "debounce",
        "debounce and rate limit",
        "rate limit",
        "throttle",
        "singleton without its key",
        "rate limit without its key",
    ],
)
async def test_every_dead_run_is_handled_by_itself_whatever_the_flow_control_of_its_handler(running, rule):
    clock = MockClock()

    @job("letters", **rule)
    async def handle(ctx: Context, letter: dict) -> str:
        await ctx.sleep("take care", 5)
        return letter["run_id"]

    bad = deadly(handle)
    runs = await bury(running, bad, 3, clock=clock)
    async with running(bad, max_recoveries=0, clock=clock) as engine:
        await clock.advance(3 * 3600)
        found = await engine.runs.list(job="letters")
        assert [handler.status for handler in found] == [RunStatus.COMPLETED] * 3
        assert sorted(handler.output for handler in found) == sorted(run.id for run in runs)


async def test_a_trigger_of_the_handler_does_not_replace_a_letter_that_waits_for_room(running):
    clock = MockClock()

    @job("letters", debounce=Debounce(None, "1m"), rate_limit=RateLimit(1, "1h"))
    async def handle(ctx: Context, letter: dict) -> Any:
        return letter.get("run_id")

    bad = deadly(handle)
    runs = await bury(running, bad, 2, clock=clock)
    async with running(bad, max_recoveries=0, clock=clock) as engine:
        with pytest.raises(RateLimited):
            await engine.trigger(handle, {})
        await clock.advance(3 * 3600)
        found = await engine.runs.list(job="letters")
        assert sorted(handler.output for handler in found) == [run.id for run in runs]


async def test_a_new_run_of_the_handler_does_not_cancel_one_that_handles_a_dead_run(running):
    @job("letters", singleton=Singleton(mode="cancel_previous"))
    async def handle(ctx: Context, letter: dict) -> None:
        await ctx.breakpoint("take care")

    bad = deadly(handle)
    (run,) = await bury(running, bad)
    async with running(bad, max_recoveries=0) as engine:
        (letter,) = await handlers(engine)
        later = await engine.trigger(handle, {})
        latest = await engine.trigger(handle, {})
        await settle()
        statuses = [(await engine.runs.get(each.id)).status for each in (letter, later, latest)]
    assert letter.dead_letter_of == run.id
    assert statuses == [RunStatus.WAITING, RunStatus.CANCELLED, RunStatus.PENDING]


async def test_a_key_that_is_not_in_the_letter_is_told_of_and_the_letter_is_handled(running, database_path):
    told: list[str] = []

    @job("letters", singleton=Singleton("customer"))
    async def handle(ctx: Context, letter: dict) -> str:
        return letter["run_id"]

    bad = deadly(handle)
    (run,) = await bury(running, bad)
    engine = Engine(database_path, [bad], max_recoveries=0, exclusive=True)
    engine.on("worker:error", lambda event: told.append(event.error.message))
    async with engine:
        (handler,) = await handlers(engine)
        assert handler.output == run.id
    assert "'customer' is not in it" in told[0]


async def test_two_jobs_that_handle_each_others_dead_runs_do_not_go_on_for_ever(running):
    tick, tock = deadly("tock", name="tick"), deadly("tick", name="tock")
    async with running(tick, tock, max_recoveries=0) as engine:
        await engine.trigger(tick)
        await settle()
        await crash(engine)
    for _ in range(3):
        async with running(tick, tock, max_recoveries=0) as engine:
            await settle()
            await crash(engine)
    async with running(tick, tock, max_recoveries=0) as engine:
        runs = await engine.runs.list(order="oldest")
    assert [(run.job, run.status) for run in runs] == [("tick", RunStatus.DEAD), ("tock", RunStatus.DEAD)]


async def test_a_job_does_not_handle_its_own_dead_runs(running):
    own = deadly("own", name="own")
    (run,) = await bury(running, own)
    async with running(own, max_recoveries=0) as engine:
        await settle()
        assert [found.id for found in await engine.runs.list()] == [run.id]


@pytest.mark.parametrize("how", ["child", "continue"])
async def test_what_a_handler_starts_or_goes_on_as_is_not_handed_over_either(running, how):
    bad = deadly("handle", name="bad")

    @job("handle", dead_letter="handle-more")
    async def handle(ctx: Context, letter: dict) -> None:
        if how == "child":
            await ctx.run_job("once more", bad, letter["input"])
        elif "run_id" in letter:
            ctx.continue_as_new({})
        else:
            await ctx.step("hang", asyncio.Event().wait)

    @job("handle-more")
    async def handle_more(ctx: Context, letter: dict) -> None:
        await ctx.breakpoint("never")

    jobs = [bad, handle, handle_more]
    async with running(*jobs, max_recoveries=0) as engine:
        await engine.trigger(bad)
        await settle()
        await crash(engine)
    for _ in range(3):
        async with running(*jobs, max_recoveries=0) as engine:
            await settle()
            await crash(engine)
    async with running(*jobs, max_recoveries=0) as engine:
        assert await engine.runs.list(job="handle-more") == []
        assert len(await engine.runs.list(job="handle")) == (1 if how == "child" else 2)


# --- coming back -----------------------------------------------------------------------------------------------------


async def test_a_dead_run_can_be_retried(running):
    run = await die(running, bad := deadly(letters, deaths=1), max_recoveries=0)
    async with running(bad, max_recoveries=0) as engine:
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
    assert (run.status, run.output, run.error) == (RunStatus.COMPLETED, "alive", None)


async def test_a_run_that_dies_again_after_a_retry_is_not_handed_over_again(running):
    run = await die(running, bad := deadly(letters), max_recoveries=0)
    async with running(bad, max_recoveries=0) as engine:
        (first,) = await handlers(engine)
        await engine.runs.retry(run.id)
        await settle()
        await crash(engine)
    async with running(bad, max_recoveries=0) as engine:
        run = await engine.runs.get(run.id)
        assert [handler.id for handler in await handlers(engine)] == [first.id]
    assert (run.status, run.dead_letter_id) == (RunStatus.DEAD, first.id)


async def test_a_dead_run_undoes_nothing_because_it_may_come_back(running):
    undone: list[str] = []

    @job("order")
    async def order(ctx: Context, _: Any) -> None:
        await ctx.step("charge", lambda: "charge", compensate=undone.append)
        await ctx.step("hang", asyncio.Event().wait)

    run = await die(running, order, max_recoveries=0)
    async with running(order, max_recoveries=0) as engine:
        run = await engine.runs.get(run.id)
    assert (run.status, undone) == (RunStatus.DEAD, [])


# --- crashes ---------------------------------------------------------------------------------------------------------


@cpython_only("OPFS has one engine per file")
async def test_engines_that_share_a_file_hand_a_dead_run_over_once(running):
    clock = MockClock()
    bad = deadly(letters)
    options = {"max_recoveries": 0, "clock": clock, "exclusive": False}
    async with running(bad, **options) as first:
        run = await first.trigger(bad)
        await clock.advance(1)
        async with running(bad, **options) as second, running(bad, **options) as third:
            await crash(first)
            await clock.advance(120)
            assert (await second.runs.get(run.id)).status == RunStatus.DEAD
            (handler,) = await third.runs.list(job="letters")
            assert handler.status == RunStatus.COMPLETED


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_engine_that_dies_while_it_hands_a_dead_run_over_has_done_all_of_it_or_nothing(
    running, database_path, when
):
    run = await die(running, bad := deadly(letters), max_recoveries=0)
    engine = Engine(database_path, [bad], max_recoveries=0, exclusive=True)
    point = crash_at(engine, **{when: RunStatus.DEAD})
    with pytest.raises(SimulatedCrash):
        await engine.start()
    assert point.is_reached
    async with running(bad, max_recoveries=0) as engine:
        (handler,) = await handlers(engine)
        handler = await finish(engine, handler)
        run = await engine.runs.get(run.id)
    assert (run.status, run.dead_letter_id) == (RunStatus.DEAD, handler.id)
    assert handler.status == RunStatus.COMPLETED
