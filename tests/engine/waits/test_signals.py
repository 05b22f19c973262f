"""Signals: kept until a wait takes them, first in, first out, each once; and time limits on waiting for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest
from signalled import later, one, several
from watching import cpython_only, finish, timeline

from durable_web import Context, Engine, InvalidInput, RunNotActive, RunNotFound, RunStatus, SerializationError, job
from durable_web.testing import crash_at, engine, restart, settle

# --- delivery --------------------------------------------------------------------------------------------------------


async def test_a_waiting_run_goes_on_with_the_payload():
    async with engine(one) as e:
        run = await e.trigger(one)
        await settle()
        assert await e.runs.signal(run.id, "go", {"by": "Ada"}) is True
        assert (await finish(e, run)).output == {"by": "Ada"}


async def test_a_signal_without_a_payload_carries_none():
    async with engine(several) as e:
        run = await e.trigger(several, 1)
        await e.runs.signal(run.id, "go")
        assert (await finish(e, run)).output == [None]


async def test_signals_that_come_before_the_wait_are_kept_first_in_first_out(clock):
    async with engine(later, clock=clock) as e:
        run = await e.trigger(later)
        for number in (1, 2):
            await e.runs.signal(run.id, "go", number)
        await restart(e)
        await clock.advance(100)
        assert (await finish(e, run)).output == [1, 2]


async def test_a_signal_before_the_run_has_begun_is_kept():
    async with engine(several, max_concurrent_runs=0) as e:
        run = await e.trigger(several, 1)
        await e.runs.signal(run.id, "go", 1)
        assert await e.run_until_idle() == 0
    async with engine(several) as e:
        run = await e.trigger(several, 1)
        await e.runs.signal(run.id, "go", "early")  # nothing has executed yet
        assert (await finish(e, run)).output == ["early"]


async def test_two_signals_at_once_are_both_taken_in_order():
    async with engine(several) as e:
        run = await e.trigger(several, 2)
        await settle()
        await asyncio.gather(e.runs.signal(run.id, "go", "first"), e.runs.signal(run.id, "go", "second"))
        assert (await finish(e, run)).output == ["first", "second"]


async def test_signals_of_other_names_are_left_alone():
    async with engine(one) as e:
        run = await e.trigger(one)
        await settle()
        await e.runs.signal(run.id, "stop", "no")
        await settle()
        assert not (await e.runs.get(run.id)).is_terminal
        await e.runs.signal(run.id, "go", "yes")
        assert (await finish(e, run)).output == "yes"


async def test_two_branches_that_wait_for_one_name_get_one_each_in_the_order_of_waiting():
    @job("branches")
    async def branches(ctx: Context, _: None) -> list:
        return await asyncio.gather(ctx.wait_for_signal("go"), ctx.wait_for_signal("go"))

    async with engine(branches) as e:
        run = await e.trigger(branches)
        await settle()
        await e.runs.signal(run.id, "go", 1)
        await settle()
        await restart(e)
        await e.runs.signal(run.id, "go", 2)
        assert (await finish(e, run)).output == [1, 2]


@pytest.mark.parametrize("moment", ["before it waits", "while it waits", "after it was taken"])
async def test_a_second_signal_of_the_same_id_is_not_delivered(moment, clock):
    async with engine(later, clock=clock) as e:
        run = await e.trigger(later)
        await e.runs.signal(run.id, "go", 1, signal_id="a")
        if moment == "before it waits":
            assert await e.runs.signal(run.id, "go", 1, signal_id="a") is False
        await clock.advance(100)
        if moment == "while it waits":
            assert await e.runs.signal(run.id, "go", 1, signal_id="a") is False
        await restart(e)
        if moment == "after it was taken":
            assert await e.runs.signal(run.id, "go", 1, signal_id="a") is False
        await settle()
        assert not (await e.runs.get(run.id)).is_terminal
        await e.runs.signal(run.id, "go", 2, signal_id="b")
        assert (await finish(e, run)).output == [1, 2]


async def test_the_same_id_under_another_name_or_to_another_run_is_another_signal():
    async with engine(one) as e:
        runs = [await e.trigger(one), await e.trigger(one)]
        assert [await e.runs.signal(run.id, "go", 1, signal_id="a") for run in runs] == [True, True]
        runs.append(await e.trigger(one))
        assert await e.runs.signal(runs[2].id, "stop", 1, signal_id="a") is True
        assert await e.runs.signal(runs[2].id, "go", 1, signal_id="a") is True


async def test_a_signal_between_the_look_and_the_parking_is_not_lost():
    """At every turn of the event loop between the beginning of the run and its being parked."""
    for turns in range(60):
        async with engine(one) as e:
            run = await e.trigger(one)
            for _ in range(turns):
                await asyncio.sleep(0)
            await e.runs.signal(run.id, "go", turns)
            await settle()
            assert (await e.runs.get(run.id)).output == turns


async def test_a_signal_to_a_run_that_has_ended_is_an_error_and_to_none_as_well():
    async with engine(one) as e:
        run = await e.trigger(one)
        await e.runs.cancel(run.id)
        with pytest.raises(RunNotActive, match="cannot be signalled: it has already ended as 'cancelled'"):
            await e.runs.signal(run.id, "go")
        with pytest.raises(RunNotFound):
            await e.runs.signal("no-such-run", "go")


async def test_a_payload_that_cannot_be_stored_is_refused_and_delivers_nothing():
    async with engine(one) as e:
        run = await e.trigger(one)
        with pytest.raises(SerializationError, match="payload of signal 'go'"):
            await e.runs.signal(run.id, "go", object(), signal_id="a")
        assert await e.runs.signal(run.id, "go", "fine", signal_id="a") is True
        assert (await finish(e, run)).output == "fine"


# --- types -----------------------------------------------------------------------------------------------------------


@dataclass
class Approval:
    by: str
    amount: int


@job("typed", signals={"approve": Approval})
async def typed(ctx: Context, _: None) -> str:
    approval = await ctx.wait_for_signal("approve")
    return f"{type(approval).__name__} by {approval.by}"


async def test_a_declared_type_is_checked_on_delivery_and_constructed_for_the_job():
    async with engine(typed) as e:
        run = await e.trigger(typed)
        with pytest.raises(InvalidInput, match="signal 'approve'"):
            await e.runs.signal(run.id, "approve", {"by": "Ada"}, signal_id="a")
        await settle()
        assert not (await e.runs.get(run.id)).is_terminal
        await e.runs.signal(run.id, "approve", {"by": "Ada", "amount": 3}, signal_id="a")
        assert (await finish(e, run)).output == "Approval by Ada"


async def test_an_instance_may_be_sent_too_and_is_read_as_the_type_after_a_restart(clock):
    @job("typed", signals={"approve": Approval})
    async def patient(ctx: Context, _: None) -> str:
        approval = await ctx.wait_for_signal("approve")
        await ctx.sleep("nap", 60)
        return f"{type(approval).__name__} by {approval.by}"

    async with engine(patient, clock=clock) as e:
        run = await e.trigger(patient)
        await e.runs.signal(run.id, "approve", Approval("Ada", 3))
        await settle()
        await restart(e)
        await clock.advance(60)
        assert (await finish(e, run)).output == "Approval by Ada"


async def test_a_type_can_be_given_where_it_is_waited_for():
    @job("given")
    async def given(ctx: Context, _: None) -> int:
        return (await ctx.wait_for_signal("approve", type=Approval)).amount

    async with engine(given) as e:
        run = await e.trigger(given)
        await e.runs.signal(run.id, "approve", {"by": "Ada", "amount": 3})
        assert (await finish(e, run)).output == 3


# --- triggering with a signal ----------------------------------------------------------------------------------------


async def test_a_run_is_triggered_with_a_signal_in_one_transaction(clock):
    async with engine(several, clock=clock) as e:
        point = crash_at(e, after=1)
        with pytest.raises(Exception, match="made to crash"):
            await e.trigger_with_signal(several, 1, "go", "with it")
        assert point.is_reached
        await restart(e)
        (run,) = await e.runs.list()
        assert (await finish(e, run)).output == ["with it"]


async def test_a_run_that_stands_for_the_trigger_gets_the_signal():
    async with engine(several) as e:
        first = await e.trigger_with_signal(several, 2, "go", 1, idempotency_key="once")
        second = await e.trigger_with_signal(several, 2, "go", 2, idempotency_key="once")
        assert (second.id, second.disposition) == (first.id, "idempotent")
        assert (await finish(e, first)).output == [1, 2]


async def test_when_the_signal_is_refused_nothing_is_triggered():
    async with engine(typed, one) as e:
        with pytest.raises(InvalidInput):
            await e.trigger_with_signal(typed, None, "approve", "not an approval")
        assert await e.runs.list() == []
        ended = await e.trigger_with_signal(one, None, "go", idempotency_key="once")
        await finish(e, ended)
        with pytest.raises(RunNotActive):
            await e.trigger_with_signal(one, None, "go", idempotency_key="once")


async def test_a_run_that_is_triggered_with_a_signal_for_later_begins_then(clock):
    async with engine(several, clock=clock) as e:
        run_at = (await e.trigger(several, 0)).created_at + timedelta(hours=1)
        run = await e.trigger_with_signal(several, 1, "go", "with it", run_at=run_at)
        await clock.advance(3599)
        assert (await e.runs.get(run.id)).status == RunStatus.PENDING
        await clock.advance(1)
        assert (await e.runs.get(run.id)).output == ["with it"]


# --- another engine on the same file ---------------------------------------------------------------------------------


@cpython_only("OPFS has one engine per file")
@pytest.mark.parametrize("kept", [0, 1000])
async def test_a_signal_from_another_engine_wakes_the_run_within_a_second(database_path, clock, kept):
    async with (
        Engine(database_path, [one], clock=clock, max_parked=kept) as executing,
        Engine(database_path, [one], clock=clock, max_concurrent_runs=0) as other,
    ):
        run = await executing.trigger(one)
        await settle()
        await other.runs.signal(run.id, "go", "from elsewhere")
        await clock.advance(1)
        assert (await executing.runs.get(run.id)).output == "from elsewhere"


# --- being seen ------------------------------------------------------------------------------------------------------


async def test_steps_and_timeline_tell_what_is_waited_for_and_until_when(clock):
    async with engine(one, clock=clock) as e:
        run = await e.trigger(one, 60)
        await settle()
        (step,) = await e.runs.steps(run.id)
        assert (step.kind, step.waiting_for) == ("signal", "signal 'go'")
        assert step.wake_at.timestamp() * 1000 == clock.now() + 60_000
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for signal 'go'"
        await e.runs.signal(run.id, "go", "now")
        frames = [frame for frame in await timeline(e, run) if frame.kind == "step_status"]
        assert [(frame.type, frame.status) for frame in frames] == [("signal", "running"), ("signal", "completed")]
        assert (await e.runs.steps(run.id))[0].output == "now"
        reasons = [frame.reason for frame in await timeline(e, run) if frame.kind == "run_status"]
        assert reasons == [None, None, "it waits for signal 'go'", "signal 'go' has come", None, None]


async def test_of_many_reasons_the_first_are_named():
    @job("many")
    async def many(ctx: Context, _: None) -> None:
        await asyncio.gather(*(ctx.wait_for_signal(name) for name in "abcde"))

    async with engine(many) as e:
        run = await e.trigger(many)
        await settle()
        run = await e.runs.get(run.id)
        assert run.waiting_reason == "it waits for signal 'a', signal 'b', signal 'c' and 2 more"


async def test_a_signal_that_comes_back_as_another_kind_fails_the_run():
    @job("one")
    async def changed(ctx: Context, timeout: float | None) -> None:
        await ctx.sleep("go", 60)

    async with engine(one) as e:
        run = await e.trigger(one)
        await settle()
        await restart(e, changed)
        await e.runs.signal(run.id, "go")
        assert (await finish(e, run)).error.type == "NonDeterminismError"
