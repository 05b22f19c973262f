"""Published events: every run that waits for one and matches is reached, once, in one transaction."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

import pytest
from watching import cpython_only, finish, timeline

from durable_web import (
    Context,
    Engine,
    EventTimeout,
    InvalidInput,
    RunStatus,
    SerializationError,
    Singleton,
    job,
)
from durable_web._engine.delivery import includes
from durable_web.testing import SimulatedCrash, crash_at, engine, restart, settle


@job("paid")
async def paid(ctx: Context, match: dict | None) -> object:
    return await ctx.wait_for_event("paid", match=match)


@dataclass
class Payment:
    amount: int


async def outputs(e: Engine, runs: list) -> list:
    await settle()
    return [(await e.runs.get(run.id)).output for run in runs]


# --- who is reached --------------------------------------------------------------------------------------------------


async def test_an_event_reaches_every_run_that_waits_for_its_topic():
    async with engine(paid) as e:
        runs = [await e.trigger(paid) for _ in range(3)]
        await settle()
        assert await e.publish("refunded", 1) == []
        assert await e.publish("paid", 5) == [run.id for run in runs]
        assert await outputs(e, runs) == [5, 5, 5]


async def test_an_event_reaches_only_those_that_match():
    matches = [None, {}, {"order": 7}, {"order": 8}, {"order": 7, "by": {"name": "Ada"}}, {"by": {"name": "Bob"}}]
    async with engine(paid) as e:
        runs = [await e.trigger(paid, match) for match in matches]
        await settle()
        await e.publish("paid", {"order": 7, "by": {"name": "Ada", "age": 36}})
        found = await outputs(e, runs)
    assert [output is not None for output in found] == [True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("whole", "part", "expected"),
    [
        ({"a": 1}, {}, True),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": 0}, {"a": False}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": None}, {"a": None}, True),
        ({}, {"a": None}, False),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 1}}}, True),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, False),
        ({"a": 5}, {"a": {"b": 1}}, False),
        ({"a": [1, 2]}, {"a": [1, 2]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, False),
        ({"a": [True]}, {"a": [1]}, False),
        ([1], {"a": 1}, False),
        (5, {}, False),
        ("text", "text", True),
    ],
)
def test_matching_is_subset_equality_of_objects_at_every_depth_and_equality_of_all_else(whole, part, expected):
    assert includes(whole, part) is expected


async def test_a_run_that_does_not_wait_yet_is_not_reached(clock):
    @job("late")
    async def late(ctx: Context, _: None) -> object:
        await ctx.sleep("nap", 60)
        return await ctx.wait_for_event("paid")

    async with engine(late, clock=clock) as e:
        run = await e.trigger(late)
        await settle()
        assert await e.publish("paid", "too early") == []
        await clock.advance(60)
        assert await e.publish("paid", "in time") == [run.id]
        assert await outputs(e, [run]) == ["in time"]


async def test_two_waits_of_one_run_are_both_reached_and_the_run_is_named_once():
    @job("both")
    async def both(ctx: Context, _: None) -> list:
        return await asyncio.gather(
            ctx.wait_for_event("paid", match={"order": 7}),
            ctx.wait_for_event("paid"),
            ctx.wait_for_event("refunded"),
        )

    async with engine(both) as e:
        run = await e.trigger(both)
        await settle()
        assert await e.publish("paid", {"order": 7}) == [run.id]
        await restart(e)
        await e.publish("refunded", 1)
        assert (await finish(e, run)).output == [{"order": 7}, {"order": 7}, 1]
        assert [step.name for step in await e.runs.steps(run.id)] == ["paid", "paid#2", "refunded"]


async def test_a_run_that_was_cancelled_is_not_reached():
    async with engine(paid) as e:
        run = await e.trigger(paid)
        await settle()
        await e.runs.cancel(run.id)
        assert await e.publish("paid", 5) == []
        assert (await e.runs.get(run.id)).status == RunStatus.CANCELLED


async def test_each_wait_takes_one_event():
    @job("twice")
    async def twice(ctx: Context, _: None) -> list:
        return [await ctx.wait_for_event("paid"), await ctx.wait_for_event("paid")]

    async with engine(twice) as e:
        run = await e.trigger(twice)
        await settle()
        await e.publish("paid", 1)
        assert await e.publish("paid", "before it waits again") == []
        await settle()
        await e.publish("paid", 2)
        assert (await finish(e, run)).output == [1, 2]


# --- once ------------------------------------------------------------------------------------------------------------


async def test_an_event_of_the_same_id_is_not_delivered_again():
    async with engine(paid) as e:
        first = await e.trigger(paid)
        await settle()
        assert await e.publish("paid", 1, event_id="a") == [first.id]
        second = await e.trigger(paid)
        await settle()
        assert await e.publish("paid", 1, event_id="a") == []
        await restart(e)
        assert await e.publish("paid", 1, event_id="a") == []
        assert await e.publish("paid", 2, event_id="b") == [second.id]
        assert await outputs(e, [first, second]) == [1, 2]


async def test_publishing_is_one_transaction():
    @job("ship", on_event="paid")
    async def ship(ctx: Context, payload: object) -> object:
        return payload

    for side, expected in (("before", {"waiting": 3}), ("after", {"pending": 4})):
        async with engine(paid, ship) as e:
            for _ in range(3):
                await e.trigger(paid)
            await settle()
            crash_at(e, **{side: 1})
            with pytest.raises(SimulatedCrash):
                await e.publish("paid", 5, event_id="a")
            await e.start(claim=False)
            assert await e.runs.count() == expected
            reached = await e.publish("paid", 5, event_id="a")
            assert len(reached) == (4 if side == "before" else 0)


async def test_a_payload_that_a_job_refuses_is_not_delivered_and_uses_up_no_id():
    @job("ship", on_event="paid")
    async def ship(ctx: Context, payment: Payment) -> int:
        return payment.amount

    async with engine(paid, ship) as e:
        run = await e.trigger(paid)
        await settle()
        with pytest.raises(InvalidInput):
            await e.publish("paid", {"price": 5}, event_id="a")
        with pytest.raises(SerializationError, match="payload of event 'paid'"):
            await e.publish("paid", object(), event_id="a")
        assert await e.runs.count() == {"waiting": 1}
        assert len(await e.publish("paid", {"amount": 5}, event_id="a")) == 2
        assert await outputs(e, [run]) == [{"amount": 5}]


# --- jobs that an event starts ---------------------------------------------------------------------------------------


async def test_an_event_starts_the_jobs_that_are_declared_for_it():
    started: list[tuple[str, object]] = []

    def declared(name: str, topics: str | list[str]):
        @job(name, on_event=topics)
        async def on_event(ctx: Context, payload: object) -> None:
            started.append((name, payload))

        return on_event

    async with engine(declared("ship", "paid"), declared("count", ["paid", "refunded"]), declared("other", "x")) as e:
        run_ids = await e.publish("paid", 5)
        for run_id in run_ids:
            await finish(e, await e.runs.get(run_id))
        assert sorted(started) == [("count", 5), ("ship", 5)]
        await e.publish("refunded", 6)
        await settle()
        assert started[2:] == [("count", 6)]


async def test_an_event_of_the_same_id_starts_nothing_again():
    @job("ship", on_event="paid")
    async def ship(ctx: Context, payload: object) -> object:
        return payload

    async with engine(ship) as e:
        assert len(await e.publish("paid", 5, event_id="a")) == 1
        assert await e.publish("paid", 5, event_id="a") == []
        assert len(await e.publish("paid", 5)) == 1
        await settle()
        assert await e.runs.count() == {"completed": 2}


async def test_flow_control_counts_for_runs_that_an_event_starts():
    @job("ship", on_event="paid", singleton=Singleton())
    async def ship(ctx: Context, payload: object) -> object:
        await asyncio.Event().wait()

    async with engine(ship) as e:
        first = await e.publish("paid", 1)
        assert await e.publish("paid", 2) == first
        assert len(await e.runs.list()) == 1


# --- time limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(["event", "timeout"])))
async def test_of_an_event_and_a_timeout_the_first_one_counts(clock, order):
    @job("patient")
    async def patient(ctx: Context, _: None) -> object:
        try:
            return await ctx.wait_for_event("paid", match={"order": 7}, timeout=60)
        except EventTimeout as late:
            return f"{type(late).__name__} of {late.name}"

    async with engine(patient, clock=clock) as e:
        run = await e.trigger(patient)
        await settle()
        for what in order:
            if what == "event":
                await e.publish("paid", {"order": 7})
            else:
                await clock.advance(60)
        assert (await finish(e, run)).output == ({"order": 7} if order[0] == "event" else "EventTimeout of paid")


# --- with asyncio, restarts, other engines ---------------------------------------------------------------------------


async def test_a_wait_that_was_called_off_is_not_reached():
    @job("first")
    async def first(ctx: Context, _: None) -> object:
        branches = [asyncio.ensure_future(ctx.wait_for_event(topic)) for topic in ("paid", "refunded")]
        done, pending = await asyncio.wait(branches, return_when=asyncio.FIRST_COMPLETED)
        for branch in pending:
            branch.cancel()
        return [branch.result() for branch in done] + [await ctx.wait_for_signal("go on")]

    async with engine(first) as e:
        run = await e.trigger(first)
        await settle()
        await e.publish("refunded", 1)
        await settle()
        assert await e.publish("paid", 2) == []
        await restart(e)
        await settle()
        assert await e.publish("paid", 3) == []
        await e.runs.signal(run.id, "go on", "on")
        assert (await finish(e, run)).output == [1, "on"]


@pytest.mark.parametrize("kept", [0, 1000])
async def test_an_event_reaches_runs_that_are_not_in_memory(kept):
    async with engine(paid, max_parked=kept) as e:
        run = await e.trigger(paid, {"order": 7})
        await settle()
        await restart(e)
        await e.publish("paid", {"order": 7})
        assert (await finish(e, run)).output == {"order": 7}


@cpython_only("OPFS has one engine per file")
async def test_an_event_that_another_engine_publishes_wakes_the_runs_within_a_second(database_path, clock):
    async with (
        Engine(database_path, [paid], clock=clock) as executing,
        Engine(database_path, [paid], clock=clock, max_concurrent_runs=0) as other,
    ):
        run = await executing.trigger(paid)
        await settle()
        await other.publish("paid", "from elsewhere")
        await clock.advance(1)
        assert (await executing.runs.get(run.id)).output == "from elsewhere"


# --- being seen ------------------------------------------------------------------------------------------------------


async def test_steps_and_timeline_tell_what_is_waited_for():
    async with engine(paid) as e:
        run = await e.trigger(paid, {"order": 7})
        await settle()
        (step,) = await e.runs.steps(run.id)
        assert (step.kind, step.name, step.waiting_for) == ("event", "paid", "an event on 'paid'")
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for an event on 'paid'"
        await e.publish("paid", {"order": 7})
        frames = [frame for frame in await timeline(e, run) if frame.kind == "step_status"]
        assert [(frame.type, frame.status) for frame in frames] == [("event", "running"), ("event", "completed")]
        reasons = [frame.reason for frame in await timeline(e, run) if frame.kind == "run_status"]
        assert "an event on 'paid' has come" in reasons
