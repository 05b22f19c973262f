"""Published values: what a run says of itself while it goes on, read live, in order, and never taken back."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from crashing import survive_every_death
from watching import finish, timeline

from durable_web import (
    Context,
    Engine,
    Retry,
    Run,
    RunNotFound,
    RunStatus,
    SerializationError,
    StepFailed,
    StepStatus,
    job,
)
from durable_web.testing import crash, settle


async def published(engine: Engine, run: Run) -> list[tuple[str, Any]]:
    """Key and value of what the timeline of a run tells, in order, until it ends."""
    return [(frame.key, frame.value) for frame in await timeline(engine, run) if frame.kind == "event"]


@job("ship")
async def ship(ctx: Context, _: Any) -> str:
    await ctx.set_event("state", "preparing")
    await ctx.step("prepare", lambda: None)
    await ctx.set_event("state", "packed")
    await ctx.wait_for_signal("go")
    await ctx.set_event("state", "done")
    return "shipped"


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_a_value_is_read_live_and_the_last_one_after_the_end(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await settle()
        assert await engine.runs.value(run.id, "state") == "packed"
        await engine.runs.signal(run.id, "go")
        await finish(engine, run)
        assert await engine.runs.value(run.id, "state") == "done"


async def test_the_last_value_outlives_the_engine_and_the_steps(running):
    async with running(ship, preserve_steps=False) as engine:
        run = await engine.trigger(ship)
        await engine.runs.signal(run.id, "go")
        await finish(engine, run)
        assert await engine.runs.steps(run.id) == []
    async with running() as engine:
        assert await engine.runs.value(run.id, "state") == "done"


async def test_what_was_never_published_reads_as_the_default_and_what_is_none_as_none(running):
    @job("quiet")
    async def quiet(ctx: Context, _: Any) -> None:
        await ctx.set_event("answer", None)

    async with running(quiet) as engine:
        run = await finish(engine, await engine.trigger(quiet))
        assert await engine.runs.value(run.id, "state") is None
        assert await engine.runs.value(run.id, "state", "unset") == "unset"
        assert await engine.runs.value(run.id, "answer", "unset") is None


async def test_only_a_run_that_is_there_can_be_asked(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await engine.runs.signal(run.id, "go")
        await finish(engine, run)
        await engine.runs.delete(run.id)
        for gone in (run.id, "nobody"):
            with pytest.raises(RunNotFound):
                await engine.runs.value(gone, "state")
        assert engine.internals.store.database.rows("SELECT * FROM durable_values") == []


async def test_the_value_of_a_run_that_failed_or_was_cancelled_can_be_read(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await settle()
        await engine.runs.cancel(run.id)
        assert await engine.runs.value(run.id, "state") == "packed"


@dataclasses.dataclass
class Parcel:
    weight: float


@pytest.mark.parametrize(
    ("value", "read", "told"),
    [
        ({"n": [1, None, 2.5, True]}, {"n": [1, None, 2.5, True]}, {"n": [1, None, 2.5, True]}),
        (datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC), "2030-01-01T00:00:00+00:00"),
        (timedelta(minutes=1), timedelta(minutes=1), 60),
        ((1, 2), (1, 2), [1, 2]),
        (b"raw", b"raw", "cmF3"),
        (Parcel(1.5), {"weight": 1.5}, {"weight": 1.5}),
    ],
    ids=["json", "datetime", "timedelta", "tuple", "bytes", "dataclass"],
)
async def test_a_value_is_read_as_it_was_and_told_as_plain_data(running, value, read, told):
    @job("says")
    async def says(ctx: Context, _: Any) -> None:
        await ctx.set_event("value", value)

    async with running(says) as engine:
        run = await engine.trigger(says)
        assert await published(engine, run) == [("value", told)]
        assert await engine.runs.value(run.id, "value") == read


# --- the timeline ----------------------------------------------------------------------------------------------------


async def test_the_timeline_tells_every_change_where_it_happened(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await engine.runs.signal(run.id, "go")
        frames = await timeline(engine, run)
    told = [
        frame.value if frame.kind == "event" else frame.name for frame in frames if frame.kind[:4] in ("even", "step")
    ]
    assert list(dict.fromkeys(told)) == ["preparing", "prepare", "packed", "go", "done"]


async def test_a_value_that_has_not_changed_is_not_told_again(running):
    @job("repeats")
    async def repeats(ctx: Context, _: Any) -> None:
        for value in (1, 1, 1.0, 2, 1):
            await ctx.set_event("value", value)

    async with running(repeats) as engine:
        run = await engine.trigger(repeats)
        values = [value for _, value in await published(engine, run)]
    assert [(value, type(value)) for value in values] == [(1, int), (1.0, float), (2, int), (1, int)]


@pytest.mark.parametrize("how", ["gather", "task group"])
async def test_branches_publish_side_by_side_and_the_last_commit_counts(running, how):
    @job("branches")
    async def branches(ctx: Context, _: Any) -> None:
        async def branch(name: str) -> None:
            await ctx.set_event(name, 0)
            await ctx.step(name, lambda: None)
            await ctx.set_event(name, 1)
            await ctx.set_event("both", name)

        if how == "gather":
            await asyncio.gather(branch("a"), branch("b"))
        else:
            async with asyncio.TaskGroup() as group:
                for name in "ab":
                    group.create_task(branch(name))

    async with running(branches) as engine:
        run = await engine.trigger(branches)
        told = await published(engine, run)
        for name in "ab":
            assert [value for key, value in told if key == name] == [0, 1]
        assert await engine.runs.value(run.id, "both") == [value for key, value in told if key == "both"][-1]


async def test_a_paused_run_publishes_nothing_until_it_is_resumed(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await settle()
        await engine.runs.pause(run.id)
        await engine.runs.signal(run.id, "go")
        await settle()
        assert await engine.runs.value(run.id, "state") == "packed"
        await engine.runs.resume(run.id)
        await finish(engine, run)
        assert await engine.runs.value(run.id, "state") == "done"


async def test_a_run_that_was_paused_in_a_step_publishes_what_comes_before_its_next_one(running):
    gate = asyncio.Event()

    @job("says-and-works")
    async def says_and_works(ctx: Context, _: Any) -> None:
        await ctx.step("first", gate.wait)
        await ctx.set_event("state", "between")
        await ctx.step("second", lambda: None)

    async with running(says_and_works) as engine:
        run = await engine.trigger(says_and_works)
        await settle()
        await engine.runs.pause(run.id)
        gate.set()
        await settle()
        assert await engine.runs.value(run.id, "state") == "between"
        assert [step.name for step in await engine.runs.steps(run.id)] == ["first", "event state"]
        await engine.runs.resume(run.id)
        assert (await finish(engine, run)).status == RunStatus.COMPLETED


async def test_the_function_of_a_step_publishes_with_every_attempt(running):
    @job("tries")
    async def tries(ctx: Context, _: Any) -> None:
        attempts: list[int] = []

        async def attempt() -> None:
            attempts.append(len(attempts) + 1)
            await ctx.set_event("state", "trying")
            await ctx.set_event("state", f"attempt {len(attempts)}")
            if len(attempts) == 1:
                raise ConnectionError("away")

        await ctx.step("try", attempt, retry=Retry(max_attempts=2, backoff=0.001))

    async with running(tries) as engine:
        told = [value for _, value in await published(engine, await engine.trigger(tries))]
    assert told == ["trying", "attempt 1", "trying", "attempt 2"]


# --- replay ----------------------------------------------------------------------------------------------------------


async def test_published_values_do_not_go_back_in_time_on_a_replay(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await settle()
        await crash(engine)
    async with running(ship) as engine:
        await engine.runs.signal(run.id, "go")
        assert [value for _, value in await published(engine, run)] == ["preparing", "packed", "done"]
        assert await engine.runs.value(run.id, "state") == "done"


async def test_what_is_recorded_stays_though_a_replay_comes_to_another_value(running):
    """A body that is not deterministic would take the newer value back otherwise."""

    @job("tells-attempt")
    async def tells_attempt(ctx: Context, _: Any) -> None:
        await ctx.set_event("state", f"attempt {ctx.attempt}")
        await ctx.set_event("state", "begun")
        await ctx.breakpoint("stay")

    async with running(tells_attempt) as engine:
        run = await engine.trigger(tells_attempt)
        await settle()
        await crash(engine)
    async with running(tells_attempt) as engine:
        await settle()
        assert await engine.runs.value(run.id, "state") == "begun"
        await engine.runs.resume(run.id)
        assert await published(engine, run) == [("state", "attempt 1"), ("state", "begun")]
        assert await engine.runs.value(run.id, "state") == "begun"


@pytest.mark.parametrize("max_parked", [0, 1000])
async def test_every_value_is_told_once_whenever_the_engine_dies(running, max_parked):
    async def play(engine: Engine, key: str) -> Run:
        run = await engine.trigger(ship, idempotency_key=key)
        with suppress(Exception):
            await engine.runs.signal(run.id, "go", signal_id="go")
        return await finish(engine, run)

    async def check(engine: Engine, key: str, run: Run) -> None:
        assert run.output == "shipped"
        assert [value for _, value in await published(engine, run)] == ["preparing", "packed", "done"]
        assert await engine.runs.value(run.id, "state") == "done"

    await survive_every_death(running, [ship], play, check, max_parked=max_parked)


async def test_branches_that_publish_survive_a_death_at_any_commit(running):
    @job("branches")
    async def branches(ctx: Context, _: Any) -> None:
        async def branch(name: str) -> None:
            for value in range(3):
                await ctx.set_event(name, value)
                await ctx.step(f"{name} step", lambda: None)

        await asyncio.gather(branch("a"), branch("b"))

    async def play(engine: Engine, key: str) -> Run:
        return await finish(engine, await engine.trigger(branches, idempotency_key=key))

    async def check(engine: Engine, key: str, run: Run) -> None:
        told = await published(engine, run)
        for name in "ab":
            assert [value for key, value in told if key == name] == [0, 1, 2]
            assert await engine.runs.value(run.id, name) == 2

    await survive_every_death(running, [branches], play, check)


@pytest.mark.parametrize("first", ["event", "step"])
async def test_a_name_that_comes_back_as_another_kind_fails_the_run(running, first):
    def either(what: str) -> Any:
        @job("changes")
        async def changes(ctx: Context, _: Any) -> None:
            if what == "event":
                await ctx.set_event("state", "begun")
            else:
                await ctx.step("event state", lambda: "begun")
            await ctx.breakpoint("stay")

        return changes

    async with running(either(first)) as engine:
        run = await engine.trigger("changes")
        await settle()
        await crash(engine)
    async with running(either("step" if first == "event" else "event")) as engine:
        await engine.runs.resume(run.id)
        run = await finish(engine, run)
    assert (run.status, run.error.type) == (RunStatus.FAILED, "NonDeterminismError")


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_a_value_that_cannot_be_stored_is_the_bodys_error_and_the_one_before_stays(running):
    @job("says")
    async def says(ctx: Context, _: Any) -> str:
        await ctx.set_event("value", 1)
        for wrong in (float("nan"), object(), ...):
            with pytest.raises(SerializationError, match="event 'value'"):
                await ctx.set_event("value", wrong)
        await ctx.set_event("other", 2)
        return "went on"

    async with running(says) as engine:
        run = await engine.trigger(says)
        assert await published(engine, run) == [("value", 1), ("other", 2)]
        assert (await engine.runs.get(run.id)).output == "went on"
        assert await engine.runs.value(run.id, "value") == 1


@pytest.mark.parametrize("key", ["", None, 1, "state#2"])
async def test_a_key_is_a_non_empty_string_without_a_number_of_ours(running, key):
    @job("says")
    async def says(ctx: Context, _: Any) -> None:
        with pytest.raises(ValueError, match="non-empty string"):
            await ctx.set_event(key, 1)

    async with running(says) as engine:
        assert (await finish(engine, await engine.trigger(says))).status == RunStatus.COMPLETED


async def test_nothing_of_a_cancelled_run_is_published_any_more(running):
    tried = asyncio.Event()

    @job("stubborn")
    async def stubborn(ctx: Context, _: Any) -> None:
        await ctx.set_event("state", "begun")
        try:
            await ctx.step("hang", asyncio.Event().wait)
        finally:
            tried.set()
            await ctx.set_event("state", "cancelled")

    async with running(stubborn) as engine:
        run = await engine.trigger(stubborn)
        await settle()
        await engine.runs.cancel(run.id)
        await tried.wait()
        await settle()
        assert await engine.runs.value(run.id, "state") == "begun"


# --- runs that go on -------------------------------------------------------------------------------------------------


async def test_a_retried_run_keeps_what_it_has_published_and_adds_to_it(running):
    @job("flaky")
    async def flaky(ctx: Context, _: Any) -> None:
        await ctx.set_event("state", "begun")
        await ctx.set_event("state", "trying")

        def work() -> None:
            if ctx.attempt == 1:
                raise ValueError("out of paper")

        await ctx.step("work", work)
        await ctx.set_event("state", "done")

    async with running(flaky) as engine:
        run = await finish(engine, await engine.trigger(flaky))
        assert run.status == RunStatus.FAILED
        assert await engine.runs.value(run.id, "state") == "trying"
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
        assert run.status == RunStatus.COMPLETED
        assert [value for _, value in await published(engine, run)] == ["begun", "trying", "done"]


async def test_a_retried_run_publishes_again_what_came_of_a_step_that_is_called_again(running):
    @job("flaky")
    async def flaky(ctx: Context, _: Any) -> None:
        def work() -> str:
            if ctx.attempt == 1:
                raise ValueError("out of paper")
            return "printed"

        try:
            state = await ctx.step("work", work)
        except StepFailed as failure:
            state = failure.error_message
        await ctx.set_event("state", state)
        if ctx.attempt == 1:
            raise ValueError("give up")

    async with running(flaky) as engine:
        run = await finish(engine, await engine.trigger(flaky))
        assert await engine.runs.value(run.id, "state") == "out of paper"
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
        assert [value for _, value in await published(engine, run)] == ["out of paper", "printed"]


async def test_a_fork_has_the_values_that_were_published_before_the_step(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await engine.runs.signal(run.id, "go")
        await finish(engine, run)
        early = await engine.runs.fork(run.id, "prepare")
        late = await engine.runs.fork(run.id, "go")
        await settle()
        for fork, told in ((early, ["preparing", "packed"]), (late, ["preparing", "packed"])):
            assert await engine.runs.value(fork.id, "state") == "packed"
            await engine.runs.signal(fork.id, "go")
            assert [value for _, value in await published(engine, fork)] == [*told, "done"]


async def test_a_fork_can_be_asked_for_a_value_before_it_goes_on(running):
    async with running(ship) as engine:
        run = await engine.trigger(ship)
        await engine.runs.signal(run.id, "go")
        await finish(engine, run)
        await crash(engine)
    async with running(max_concurrent_runs=0) as engine:
        engine.register(ship)
        fork = await engine.runs.fork(run.id, "go")
        assert await engine.runs.value(fork.id, "state") == "packed"
        early = await engine.runs.fork(run.id, "prepare")
        assert await engine.runs.value(early.id, "state") == "preparing"


async def test_a_run_that_goes_on_as_a_fresh_one_leaves_its_values_behind(running):
    @job("count-down")
    async def count_down(ctx: Context, number: int) -> None:
        if number:
            await ctx.set_event("left", number)
            ctx.continue_as_new(number - 1)

    async with running(count_down) as engine:
        run = await engine.trigger(count_down, 1)
        last = await engine.runs.wait(run.id)
        assert await engine.runs.value(run.id, "left") == 1
        assert await engine.runs.value(last.id, "left", "unset") == "unset"


async def test_what_a_run_publishes_while_its_steps_are_undone_is_what_it_had_published(running):
    """The body is only replayed then: it comes to nothing new."""

    @job("order")
    async def order(ctx: Context, _: Any) -> None:
        await ctx.set_event("state", "charging")
        await ctx.step("charge", lambda: "charge", compensate=lambda charge: None)
        await ctx.set_event("state", "charged")
        await ctx.breakpoint("stay")
        await ctx.set_event("state", "never")

    async with running(order, max_parked=0) as engine:
        run = await engine.trigger(order)
        await settle()
        await engine.runs.cancel(run.id, compensate=True)
        assert await published(engine, run) == [("state", "charging"), ("state", "charged")]
        steps = {step.name: step.status for step in await engine.runs.steps(run.id)}
        assert steps["compensate:charge"] == StepStatus.COMPLETED
        assert await engine.runs.value(run.id, "state") == "charged"
