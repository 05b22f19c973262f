"""Retrying steps: when, how often, and through what."""

from __future__ import annotations

import asyncio

import pytest
from watching import finish, timeline

from durable_web import Context, FatalError, Retry, RunStatus, StepFailed, StepStatus, job
from durable_web._model import to_wire
from durable_web.testing import MockClock, crash, settle

QUICK = Retry(max_attempts=3, backoff=0, jitter=0)
SLOW = Retry(max_attempts=3, backoff=60, factor=2, jitter=0)


def failing(times: int, calls: list[int]):
    """A function that fails the first `times` times."""

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise ConnectionError(f"failure {len(calls)}")
        return "came through"

    return call


async def test_a_failed_step_is_tried_again_and_its_failed_attempts_are_listed(running):
    calls: list[int] = []

    @job("flaky")
    async def flaky(ctx: Context, _: None) -> str:
        return await ctx.step("call", failing(2, calls), retry=QUICK)

    async with running(flaky) as engine:
        run = await finish(engine, await engine.trigger("flaky"))
        (step,) = await engine.runs.steps(run.id)
    assert run.output == "came through"
    assert (step.attempt, step.status, step.error, step.retry_at) == (3, StepStatus.COMPLETED, None, None)
    assert [(attempt.number, attempt.error.message) for attempt in step.failed_attempts] == [
        (1, "failure 1"),
        (2, "failure 2"),
    ]
    assert "in call" in step.failed_attempts[0].error.traceback


async def test_when_the_attempts_are_exhausted_the_last_failure_is_recorded_and_raised(running):
    calls: list[int] = []

    @job("hopeless", retry=QUICK)
    async def hopeless(ctx: Context, _: None) -> str:
        with pytest.raises(StepFailed, match="failure 3"):
            await ctx.step("call", failing(9, calls))
        return "caught"

    async with running(hopeless) as engine:
        run = await finish(engine, await engine.trigger("hopeless"))
    assert run.output == "caught"
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("error", "retry_on", "calls_made"),
    [
        (FatalError("no"), Exception, 1),
        (ValueError("no"), ConnectionError, 1),
        (ValueError("no"), (ConnectionError, ValueError), 3),
        (ValueError("no"), [ConnectionError, ValueError], 3),
        (ValueError("no"), {ConnectionError}, 1),
        (ValueError("no"), (kind for kind in (ConnectionError, ValueError)), 3),
        (ValueError("no"), lambda error: "no" not in str(error), 1),
    ],
)
async def test_only_what_is_worth_it_is_tried_again(running, error, retry_on, calls_made):
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise error

    @job("picky")
    async def picky(ctx: Context, _: None) -> None:
        await ctx.step("call", fail, retry=Retry(max_attempts=3, backoff=0, retry_on=retry_on))

    async with running(picky) as engine:
        await finish(engine, await engine.trigger("picky"))
    assert len(calls) == calls_made


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
async def test_a_predicate_that_raises_wants_no_other_attempt_and_ends_nothing_else(running, kind):
    calls: list[int] = []

    def leave(error: BaseException) -> bool:
        raise kind("deciding")

    @job("undecided")
    async def undecided(ctx: Context, _: None) -> str:
        retry = Retry(max_attempts=3, backoff=0, retry_on=leave)
        (failure,) = await asyncio.gather(ctx.step("call", failing(1, calls), retry=retry), return_exceptions=True)
        return str(failure)

    async with running(undecided) as engine:
        run = await finish(engine, await engine.trigger("undecided"))
    assert run.output == "Step 'call' failed: ConnectionError: failure 1"


async def test_a_predicate_whose_answer_would_have_to_be_awaited_wants_no_other_attempt():
    async def look_up(message: str) -> bool:
        return True

    assert not Retry(retry_on=lambda error: look_up(str(error))).wants(ConnectionError(), 1)


async def test_an_attempt_that_is_due_beyond_what_a_datetime_can_tell_is_due_at_the_end_of_time(running):
    @job("patient")
    async def patient(ctx: Context, _: None) -> None:
        await ctx.step("call", failing(1, []), retry=Retry(backoff=1e300, max_delay=1e300))

    async with running(patient, clock=MockClock()) as engine:
        run = await engine.trigger("patient")
        await settle()
        (step,) = await engine.runs.steps(run.id)
        assert (step.status, step.retry_at.year) == (StepStatus.RUNNING, 9999)
        assert (await engine.runs.get(run.id)).status == RunStatus.WAITING


async def test_a_long_wait_parks_the_run_frees_its_slot_and_grows_with_every_attempt(running):
    clock = MockClock()
    calls: list[int] = []

    @job("flaky")
    async def flaky(ctx: Context, _: None) -> str:
        return await ctx.step("call", failing(2, calls), retry=SLOW)

    @job("other")
    async def other(ctx: Context, _: None) -> str:
        return "had the slot"

    async with running(flaky, other, clock=clock, max_concurrent_runs=1) as engine:
        run = await engine.trigger("flaky")
        await settle()
        waiting = await engine.runs.get(run.id)
        assert waiting.status == RunStatus.WAITING
        assert waiting.lease_owner is None
        assert waiting.wake_at.timestamp() * 1000 == clock.now() + 60_000
        assert (await finish(engine, await engine.trigger("other"))).output == "had the slot"

        await clock.advance(59)
        assert len(calls) == 1
        await clock.advance(2)
        assert len(calls) == 2
        await clock.advance(118)
        assert len(calls) == 2
        await clock.advance(2)
        frames = await timeline(engine, run)
    assert len(calls) == 3
    assert [frame.status for frame in frames if frame.kind == "run_status"] == [
        "pending", "running", "waiting", "pending", "running", "waiting", "pending", "running", "completed",
    ]  # fmt: skip


async def test_the_wait_survives_a_restart_and_what_is_overdue_then_goes_on_at_once(running):
    clock = MockClock()
    calls: list[int] = []

    @job("flaky")
    async def flaky(ctx: Context, _: None) -> str:
        await ctx.step("before", lambda: calls.append(100))
        return await ctx.step("call", failing(2, calls), retry=SLOW)

    async with running(flaky, clock=clock) as engine:
        run = await engine.trigger("flaky")
        await settle()
        await crash(engine)
    assert calls == [100, 1]
    async with running(flaky, clock=clock) as engine:
        assert (await engine.runs.get(run.id)).status == RunStatus.WAITING
        await clock.advance(61)
        run = await engine.runs.get(run.id)
    assert calls == [100, 1, 1]
    assert (run.status, run.output, run.recoveries) == (RunStatus.COMPLETED, "came through", 0)


async def test_a_branch_that_waits_does_not_park_a_run_that_still_works(running):
    clock = MockClock()
    calls: list[int] = []
    gate = asyncio.Event()

    @job("branches")
    async def branches(ctx: Context, _: None) -> list[object]:
        return await asyncio.gather(ctx.step("flaky", failing(1, calls), retry=SLOW), ctx.step("works", gate.wait))

    async with running(branches, clock=clock) as engine:
        run = await engine.trigger("branches")
        await clock.advance(30)
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        await clock.advance(31)
        assert len(calls) == 2
        gate.set()
        run = await finish(engine, run)
    assert run.output == ["came through", True]


async def test_a_parked_run_whose_body_goes_on_by_itself_gets_its_lease_back_first(running):
    clock = MockClock()
    calls: list[int] = []
    gate = asyncio.Event()

    @job("both")
    async def both(ctx: Context, _: None) -> list[object]:
        async def another() -> str:
            await gate.wait()  # nothing that the engine knows of
            ctx.log.info("woken from outside")
            return await ctx.step("another", lambda: "done meanwhile")

        return await asyncio.gather(ctx.step("flaky", failing(1, calls), retry=SLOW), another())

    async with running(both, clock=clock) as engine:
        run = await engine.trigger("both")
        await settle()
        assert (await engine.runs.get(run.id)).status == RunStatus.WAITING
        gate.set()
        await clock.advance(1)
        assert [step.name for step in await engine.runs.steps(run.id) if step.status == "completed"] == ["another"]
        await clock.advance(60)
        frames = await timeline(engine, run)
        run = await engine.runs.get(run.id)
    assert run.output == ["came through", "done meanwhile"]
    assert [frame.message for frame in frames if frame.kind == "log"] == ["woken from outside"]


async def test_a_waiting_run_can_be_cancelled_and_one_too_many_is_replayed_when_it_wakes(running):
    clock = MockClock()
    begun: list[int] = []

    @job("flaky")
    async def flaky(ctx: Context, number: int) -> int:
        begun.append(number)

        def call() -> int:
            if ctx.attempt == 1:
                raise ConnectionError
            return number

        return await ctx.step("call", call, retry=SLOW)

    async with running(flaky, clock=clock, max_parked=2) as engine:
        runs = [await engine.trigger("flaky", number) for number in range(5)]
        await settle()
        assert len(engine.internals.dispatcher.parked) == 2
        assert (await engine.runs.cancel(runs[0].id)).status == RunStatus.CANCELLED
        await clock.advance(61)
        ended = [await engine.runs.get(run.id) for run in runs]
    assert [run.status for run in ended] == ["cancelled", *["completed"] * 4]
    assert [run.output for run in ended[1:]] == [1, 2, 3, 4]
    assert begun == [0, 1, 2, 3, 4, 1, 2], "the two that were parked last stayed in memory"


async def test_an_attempt_that_takes_too_long_fails_and_is_tried_again(running):
    clock = MockClock()
    calls: list[int] = []

    async def slow() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "quick now"

    @job("slow")
    async def slow_job(ctx: Context, _: None) -> str:
        return await ctx.step("call", slow, retry=Retry(max_attempts=2, backoff=0, timeout=5))

    async with running(slow_job, clock=clock) as engine:
        run = await engine.trigger("slow")
        await clock.advance(4)
        assert len(calls) == 1
        await clock.advance(2)
        run = await engine.runs.get(run.id)
        (step,) = await engine.runs.steps(run.id)
    assert run.output == "quick now"
    assert step.failed_attempts[0].error.type == "TimeoutError"


@pytest.mark.parametrize("how", ["raises", "returns", "fails in a group"])
async def test_nothing_of_the_cancellation_of_a_slow_attempt_is_left_in_its_task(running, how):
    clock = MockClock()

    async def slow() -> str:
        try:
            if how == "fails in a group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(clean_up_badly())
                    await asyncio.Event().wait()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if how == "raises":
                raise ConnectionError("could not close") from None
        return "in the end"

    async def clean_up_badly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("could not close")

    def fail() -> None:
        raise ValueError("bad")

    @job("slow")
    async def slow_job(ctx: Context, _: None) -> list:
        said = None
        try:
            said = await ctx.step("slow", slow, retry=Retry(max_attempts=1, timeout=5))
        except StepFailed as error:
            said = error.error_type
        left = asyncio.current_task().cancelling()
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("bad", fail))
        return [said, left, await ctx.step("after", lambda: "went on")]

    async with running(slow_job, clock=clock) as engine:
        run = await engine.trigger("slow")
        await clock.advance(5)
        run = await finish(engine, run)
    said = {"raises": "ConnectionError", "returns": "in the end", "fails in a group": "ExceptionGroup"}[how]
    assert run.output == [said, 0, "went on"]


async def test_the_queue_time_of_a_retry_counts_from_when_it_was_due(running):
    clock = MockClock()
    gate = asyncio.Event()
    calls: list[int] = []

    @job("flaky")
    async def flaky(ctx: Context, _: None) -> str:
        return await ctx.step("call", failing(1, calls), retry=SLOW)

    @job("long")
    async def long(ctx: Context, _: None) -> None:
        await ctx.step("wait", gate.wait)

    async with running(flaky, long, clock=clock, max_concurrent_runs=1) as engine:
        run = await engine.trigger("flaky")
        await settle()
        await engine.trigger("long")
        await clock.advance(90)  # 30 s beyond the time of the second attempt, for want of a slot
        gate.set()
        await settle()
        (step,) = await engine.runs.steps(run.id)
    assert (step.status, step.queue_time) == ("completed", 30.0)
    assert [attempt.queue_time for attempt in step.failed_attempts] == [0.0]
    assert to_wire(step)["queueTime"] == 30.0
    assert to_wire(step)["failedAttempts"][0]["queueTime"] == 0.0


async def test_two_steps_that_wait_for_different_times_have_queued_for_different_times(running):
    clock = MockClock()
    gate = asyncio.Event()

    @job("two")
    async def two(ctx: Context, _: None) -> None:
        late = Retry(max_attempts=2, backoff=100, jitter=0)
        await asyncio.gather(
            ctx.step("early", failing(1, []), retry=SLOW),
            ctx.step("late", failing(1, []), retry=late),
        )

    @job("long")
    async def long(ctx: Context, _: None) -> None:
        await ctx.step("wait", gate.wait)

    async with running(two, long, clock=clock, max_concurrent_runs=1) as engine:
        run = await engine.trigger("two")
        await settle()
        await engine.trigger("long")
        await clock.advance(120)
        gate.set()
        await settle()
        steps = await engine.runs.steps(run.id)
    assert [(step.name, step.queue_time) for step in steps] == [("early", 60.0), ("late", 20.0)]


async def test_a_step_asked_for_while_its_run_is_parked_has_waited_for_the_slot(running):
    clock = MockClock()
    gates = {"long": asyncio.Event(), "another": asyncio.Event()}

    @job("both")
    async def both(ctx: Context, _: None) -> None:
        async def another() -> None:
            await gates["another"].wait()  # nothing that the engine knows of
            await ctx.step("another", lambda: None)

        await asyncio.gather(ctx.step("flaky", failing(1, []), retry=SLOW), another())

    @job("long")
    async def long(ctx: Context, _: None) -> None:
        await ctx.step("wait", gates["long"].wait)

    async with running(both, long, clock=clock, max_concurrent_runs=1) as engine:
        run = await engine.trigger("both")
        await settle()
        await engine.trigger("long")
        await clock.advance(5)
        gates["another"].set()
        await clock.advance(20)
        gates["long"].set()
        await settle()
        another = (await engine.runs.steps(run.id))[1]
    assert (another.name, another.status, another.queue_time) == ("another", "completed", 20.0)


async def test_a_persons_retry_grants_every_attempt_anew_also_through_a_crash(running):
    clock = MockClock()
    calls: list[int] = []

    @job("hopeless")
    async def hopeless(ctx: Context, _: None) -> None:
        await ctx.step("call", failing(99, calls), retry=SLOW)

    async with running(hopeless, clock=clock) as engine:
        run = await engine.trigger("hopeless")
        await clock.advance(200)
        assert (await engine.runs.get(run.id)).status == RunStatus.FAILED
        assert len(calls) == 3
        await engine.runs.retry(run.id)
        await settle()
        assert len(calls) == 4
        await crash(engine)
    async with running(hopeless, clock=clock) as engine:
        await clock.advance(59)
        assert len(calls) == 4  # the waits begin anew as well: 60 s and then 120 s
        await clock.advance(2)
        assert len(calls) == 5
        await crash(engine)
    async with running(hopeless, clock=clock) as engine:
        await clock.advance(200)
        (step,) = await engine.runs.steps(run.id)
    assert len(calls) == 6
    assert (step.status, step.attempt) == (StepStatus.FAILED, 6)
    assert [attempt.number for attempt in step.failed_attempts] == [1, 2, 3, 4, 5]


def test_the_delay_grows_is_bounded_and_jitters_by_a_fraction():
    exact = Retry(backoff=1, factor=2, max_delay=5, jitter=0)
    assert [exact.delay(attempt) for attempt in (1, 2, 3, 4)] == [1, 2, 4, 5]
    jittered = {Retry(backoff=10, jitter=0.5).delay(1) for _ in range(50)}
    assert len(jittered) > 1
    assert all(5 <= delay <= 15 for delay in jittered)
    with pytest.raises(ValueError, match="max_attempts"):
        Retry(max_attempts=0)


async def test_an_engine_that_stops_does_not_wait_for_runs_that_become_parked(running):
    clock = MockClock()

    @job("parks")
    async def parks(ctx: Context, _: None) -> None:
        await ctx.step("call", failing(1, []), retry=SLOW)

    async with running(parks, clock=clock) as engine:
        run = await engine.trigger("parks")
    async with running(parks, clock=clock) as engine:
        assert (await engine.runs.get(run.id)).status == RunStatus.WAITING
