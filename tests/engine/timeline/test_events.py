"""Notifications: sent after the commit, to every listener; one that fails does not affect the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from watching import finish

from durable_web import Context, Engine, Retry, is_domain_event, job
from durable_web.testing import MockClock, crash, settle

ALL = [
    "run:trigger", "run:coalesced", "run:complete", "run:fail", "run:cancel", "run:delete", "run:dead", "run:leased",
    "run:lease-renewed", "run:waiting", "run:progress", "step:start", "step:complete", "step:fail", "step:cancel",
    "log:write", "worker:error",
]  # fmt: skip


def fail() -> None:
    raise ValueError("no")


@job("work")
async def work(ctx: Context, mode: str) -> str:
    ctx.log.info("at work", mode=mode)
    ctx.progress(1, 2)
    await ctx.step("step", fail if mode == "fail" else mode.upper)
    if mode == "wait":
        await ctx.step("wait", asyncio.Event().wait)
    return mode


async def test_a_run_is_told_from_its_trigger_to_its_end_with_its_fields(running):
    heard = []
    async with running(work) as engine:
        for type in ALL:
            engine.on(type, heard.append)
        run = await finish(engine, await engine.trigger("work", "fine", labels={"a": "b"}))
    assert [event.type for event in heard] == [
        "run:trigger", "run:leased", "log:write", "run:progress", "step:complete", "run:complete",
    ]  # fmt: skip
    assert [event.sequence for event in heard] == list(range(1, 7))
    assert {(event.run_id, event.job_name, event.labels["a"]) for event in heard} == {(run.id, "work", "b")}
    trigger, leased, line, progress, step, complete = heard
    assert (trigger.input, leased.input) == ("fine", "fine")
    assert leased.lease_expires_at > leased.timestamp
    assert (line.step_name, line.level, line.message, line.data) == (None, "info", "at work", {"mode": "fine"})
    assert progress.progress["total"] == 2
    assert (step.step_name, step.step_index, step.output) == ("step", 0, "FINE")
    assert complete.output == "fine"
    assert complete.duration >= 0
    with pytest.raises(AttributeError, match="no field 'skipped_input'"):
        complete.skipped_input  # noqa: B018


async def test_failure_cancellation_and_deletion_are_told(running):
    clock = MockClock()
    heard = []
    async with running(work, clock=clock) as engine:
        for type in (
            "run:fail",
            "run:cancel",
            "run:delete",
            "step:start",
            "step:fail",
            "step:cancel",
            "run:lease-renewed",
        ):
            engine.on(type, heard.append)
        failed = await finish(engine, await engine.trigger("work", "fail"))
        waiting = await engine.trigger("work", "wait")
        await clock.advance(11)
        await engine.runs.cancel(waiting.id)
        await engine.runs.delete(failed.id)
    assert [event.type for event in heard] == [
        "step:fail", "run:fail", "step:start", "run:lease-renewed", "step:cancel", "run:cancel", "run:delete",
    ]  # fmt: skip
    assert heard[0].error.message == "no"
    assert (heard[1].failed_step_name, heard[1].error.type) == ("step", "StepFailed")
    assert (heard[-1].run_id, heard[-1].job_name) == (failed.id, "work")


async def test_a_listener_hears_of_what_is_committed_already(running):
    stored = []
    async with running(work) as engine:
        engine.on("run:complete", lambda event: stored.append(engine.internals.store.runs.get(event.run_id).status))
        await finish(engine, await engine.trigger("work", "fine"))
    assert stored == ["completed"]


async def test_a_listener_that_fails_goes_to_the_error_handler_and_affects_no_other(running):
    errors, heard = [], []

    def raises(event: object) -> None:
        raise RuntimeError("synchronous")

    async def rejects(event: object) -> None:
        raise RuntimeError("asynchronous")

    async with running(work) as engine:
        engine.on_error(lambda error, event: errors.append((str(error), event.type)))
        for listener in (raises, rejects, heard.append):
            engine.on("run:complete", listener)
        run = await finish(engine, await engine.trigger("work", "fine"))
        await settle()
    assert run.status == "completed"
    assert len(heard) == 1
    assert errors == [("synchronous", "run:complete"), ("asynchronous", "run:complete")]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("type", ["run:trigger", "run:leased", "step:complete", "run:complete"])
async def test_a_listener_that_raises_what_ends_programs_ends_neither_the_engine_nor_the_run(running, kind, type):
    errors = []

    def leaves(event: object) -> None:
        raise kind("listening")

    async with running(work) as engine:
        engine.on(type, leaves)
        engine.on_error(lambda error, event: errors.append((error.__class__, event.type)))
        run = await finish(engine, await engine.trigger("work", "fine"))
        assert (await finish(engine, await engine.trigger("work", "too"))).output == "too"
    assert (run.status, run.recoveries) == ("completed", 0)
    assert errors == [(kind, type)] * 2


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_an_asynchronous_listener_that_raises_what_ends_programs_does_not_end_the_event_loop(running, kind):
    errors = []

    async def leaves(event: object) -> None:
        raise kind("listening")

    async with running(work) as engine:
        engine.on("run:complete", leaves)
        engine.on_error(lambda error, event: errors.append(error.__class__))
        await finish(engine, await engine.trigger("work", "fine"))
        await settle()
    assert errors == [kind]


async def test_a_listener_that_was_removed_hears_nothing_and_an_unknown_event_is_refused(running):
    heard = []
    async with running(work) as engine:
        engine.on("run:complete", heard.append)
        engine.off("run:complete", heard.append)
        await finish(engine, await engine.trigger("work", "fine"))
        with pytest.raises(ValueError, match="no event 'run:finished'"):
            engine.on("run:finished", heard.append)
        with pytest.raises(TypeError, match="a function of an event"):
            engine.on("run:complete", None)
    assert heard == []


def test_what_became_of_runs_is_domain_and_how_is_operational():
    assert [type for type in ALL if is_domain_event(type)] == ALL[:7]


async def test_waiting_and_dying_are_reported_and_a_run_whose_job_is_gone_does_not_fail(running):
    clock = MockClock()
    heard: list[Any] = []

    @job("flaky")
    async def flaky(ctx: Context, _: None) -> None:
        await ctx.step("step", fail, retry=Retry(max_attempts=2, backoff=60))

    @job("deadly")
    async def deadly(ctx: Context, _: None) -> None:
        await ctx.step("hang", asyncio.Event().wait)

    async with running(flaky, deadly, clock=clock) as engine:
        engine.on("run:waiting", heard.append)
        await engine.trigger("flaky")
        await engine.trigger("deadly")
        await settle()
        await crash(engine)
    engine = Engine(engine.path, [deadly], clock=clock, exclusive=True, max_recoveries=0)
    engine.on("run:dead", heard.append)
    engine.on("run:fail", heard.append)
    async with engine:
        await clock.advance(70)
        (flaky_run,) = await engine.runs.list(job="flaky")
        assert flaky_run.waiting_reason == "blocked: the job 'flaky' is not registered"
    assert [(event.type, event.job_name) for event in heard] == [
        ("run:waiting", "flaky"),
        ("run:dead", "deadly"),
    ]
    assert heard[1].error.type == "CrashLoop"
