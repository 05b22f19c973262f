"""Updates: validated before the run sees them, and answered by it."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from watching import cpython_only, finish, timeline

from durable_web import (
    Context,
    DurableWebError,
    Engine,
    RunNotActive,
    RunNotFound,
    RunStatus,
    SerializationError,
    UpdateRejected,
    UpdateTimeout,
    job,
)
from durable_web._model import from_milliseconds
from durable_web.testing import crash, crash_at, engine, restart, settle


def positive(amount: int) -> None:
    if amount <= 0:
        raise ValueError(f"{amount} is not positive")


@job("account")
async def account(ctx: Context, count: int) -> list:
    """Takes so many deposits, and answers with the balance."""
    deposits = []
    for _ in range(count):
        update = await ctx.on_update("deposit", positive)
        deposits.append(update.argument)
        await update.answer(sum(deposits))
    return deposits


@job("silent")
async def silent(ctx: Context, ending: str) -> None:
    await ctx.on_update("deposit")
    if ending == "fails":
        raise ValueError("no")
    if ending == "waits":
        await ctx.wait_for_signal("never")


# --- the answer ------------------------------------------------------------------------------------------------------


async def test_the_caller_gets_the_runs_answer():
    async with engine(account) as e:
        run = await e.trigger(account, 2)
        assert await e.runs.update(run.id, "deposit", 5) == 5
        assert await e.runs.update(run.id, "deposit", 7) == 12
        assert (await finish(e, run)).output == [5, 7]


async def test_an_update_that_comes_before_the_run_asks_for_it_is_kept_first_in_first_out():
    async with engine(account) as e:
        run = await e.trigger(account, 3)
        answers = await asyncio.gather(*(e.runs.update(run.id, "deposit", amount) for amount in (1, 2, 3)))
        assert answers == [1, 3, 6]
        assert (await finish(e, run)).output == [1, 2, 3]


async def test_an_answer_of_nothing_is_one_too():
    @job("thankless")
    async def thankless(ctx: Context, _: None) -> None:
        await (await ctx.on_update("deposit")).answer()

    async with engine(thankless) as e:
        run = await e.trigger(thankless)
        assert await e.runs.update(run.id, "deposit") is None


async def test_the_first_answer_counts():
    @job("twice")
    async def twice(ctx: Context, _: None) -> None:
        update = await ctx.on_update("deposit")
        await update.answer("first")
        await update.answer("second")

    async with engine(twice) as e:
        run = await e.trigger(twice)
        assert await e.runs.update(run.id, "deposit", update_id="a") == "first"
        await finish(e, run)
        assert await e.runs.update(run.id, "deposit", update_id="a") == "first"


async def test_an_answer_may_take_steps_and_a_long_wait(clock):
    @job("slow")
    async def slow(ctx: Context, _: None) -> None:
        update = await ctx.on_update("deposit")
        checked = await ctx.step("check", str, update.argument)
        await ctx.sleep("nap", 3600)
        await update.answer(f"{checked} is fine")

    async with engine(slow, clock=clock, max_parked=0) as e:
        run = await e.trigger(slow)
        asking = asyncio.ensure_future(e.runs.update(run.id, "deposit", 5))
        await clock.advance(3599)
        assert not asking.done()
        await clock.advance(1)
        assert await asking == "5 is fine"


# --- rejections ------------------------------------------------------------------------------------------------------


async def test_what_the_validator_rejects_never_reaches_the_run_and_the_caller_is_told_why():
    async with engine(account) as e:
        run = await e.trigger(account, 1)
        with pytest.raises(UpdateRejected, match="-5 is not positive") as caught:
            await e.runs.update(run.id, "deposit", -5)
        assert (caught.value.run_id, caught.value.name, caught.value.reason) == (
            run.id,
            "deposit",
            "-5 is not positive",
        )
        await settle()
        (step,) = await e.runs.steps(run.id)
        assert (step.status, step.output) == ("running", None)
        assert (await e.runs.get(run.id)).status == RunStatus.WAITING
        assert await e.runs.update(run.id, "deposit", 5) == 5
        assert (await finish(e, run)).output == [5]


async def test_a_validator_may_also_return_false():
    @job("picky")
    async def picky(ctx: Context, _: None) -> int:
        update = await ctx.on_update("deposit", lambda amount: amount > 10)
        await update.answer("taken")
        return update.argument

    async with engine(picky) as e:
        run = await e.trigger(picky)
        with pytest.raises(UpdateRejected, match="the validator did not accept it"):
            await e.runs.update(run.id, "deposit", 5)
        assert await e.runs.update(run.id, "deposit", 11) == "taken"


async def test_of_several_that_came_before_the_run_asked_the_wrong_ones_are_passed_over():
    async with engine(account) as e:
        run = await e.trigger(account, 1)
        outcomes = await asyncio.gather(
            *(e.runs.update(run.id, "deposit", amount) for amount in (-1, -2, 3)), return_exceptions=True
        )
        assert [str(outcome)[-18:] for outcome in outcomes[:2]] == ["-1 is not positive", "-2 is not positive"]
        assert outcomes[2] == 3


async def test_an_asynchronous_validator_is_refused_and_the_error_says_what_to_write():
    @job("wrong")
    async def wrong(ctx: Context, _: None) -> None:
        async def validate(amount: int) -> None: ...

        await ctx.on_update("deposit", validate)

    async with engine(wrong) as e:
        assert "must be synchronous: write `def`" in (await e.trigger_and_wait(wrong)).error.message


# --- no answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["completes", "fails", "is cancelled", "passes its deadline"])
async def test_when_the_run_ends_without_answering_the_caller_is_told(ending, clock):
    async with engine(silent, clock=clock) as e:
        deadline = from_milliseconds(clock.now() + 60_000) if ending == "passes its deadline" else None
        run = await e.trigger(silent, ending if ending in ("completes", "fails") else "waits", deadline=deadline)
        asking = asyncio.ensure_future(e.runs.update(run.id, "deposit", 5))
        await settle()
        if ending == "is cancelled":
            await e.runs.cancel(run.id)
        await clock.advance(60)
        with pytest.raises(UpdateRejected, match="the run ended without answering it"):
            await asking


async def test_an_update_to_a_run_that_has_ended_is_an_error_and_to_none_as_well():
    async with engine(account) as e:
        run = await e.trigger(account, 0)
        await finish(e, run)
        with pytest.raises(RunNotActive, match="cannot be updated"):
            await e.runs.update(run.id, "deposit", 5)
        with pytest.raises(RunNotFound):
            await e.runs.update("no-such-run", "deposit", 5)


async def test_an_argument_that_cannot_be_stored_is_refused():
    async with engine(account) as e:
        run = await e.trigger(account, 1)
        with pytest.raises(SerializationError, match="argument of update 'deposit'"):
            await e.runs.update(run.id, "deposit", object())


async def test_waiting_for_the_answer_has_a_time_limit_and_the_update_stays_sent():
    async with engine(account) as e:
        run = await e.trigger(account, 1)
        await e.runs.pause(run.id)
        with pytest.raises(TimeoutError):
            await e.runs.update(run.id, "deposit", 5, update_id="a", timeout=0.01)
        await e.runs.resume(run.id)
        assert await e.runs.update(run.id, "deposit", 5, update_id="a") == 5


async def test_a_caller_whose_engine_stops_is_told_so_and_may_ask_again():
    async with engine(silent, account) as e:
        run = await e.trigger(account, 1)
        await e.runs.pause(run.id)
        asking = asyncio.ensure_future(e.runs.update(run.id, "deposit", 5, update_id="a"))
        await settle()
        await crash(e)
        with pytest.raises(DurableWebError, match="give the next engine the same update_id"):
            await asking
        await restart(e)
        await e.runs.resume(run.id)
        assert await e.runs.update(run.id, "deposit", 5, update_id="a") == 5


# --- once ------------------------------------------------------------------------------------------------------------


async def test_an_update_of_the_same_id_is_not_sent_again_and_has_the_same_answer():
    async with engine(account) as e:
        run = await e.trigger(account, 2)
        assert await e.runs.update(run.id, "deposit", 5, update_id="a") == 5
        assert await e.runs.update(run.id, "deposit", 5, update_id="a") == 5
        await restart(e)
        assert await e.runs.update(run.id, "deposit", 5, update_id="a") == 5
        assert await e.runs.update(run.id, "deposit", 7, update_id="b") == 12
        assert (await finish(e, run)).output == [5, 7]
        assert await e.runs.update(run.id, "deposit", 7, update_id="b") == 12  # also when the run has ended


async def test_two_callers_with_the_same_id_both_get_the_answer():
    async with engine(account) as e:
        run = await e.trigger(account, 1)
        same = [e.runs.update(run.id, "deposit", 5, update_id="a") for _ in range(3)]
        assert await asyncio.gather(*same) == [5, 5, 5]


async def test_a_rejected_update_of_the_same_id_stays_rejected():
    async with engine(account) as e:
        run = await e.trigger(account, 1)
        for _ in range(2):
            with pytest.raises(UpdateRejected, match="-5 is not positive"):
                await e.runs.update(run.id, "deposit", -5, update_id="a")
            await restart(e)


async def test_an_answer_that_was_given_and_not_told_is_told_after_a_restart(clock):
    @job("naps")
    async def naps(ctx: Context, _: None) -> None:
        update = await ctx.on_update("deposit")
        await update.answer(update.argument * 2)
        await ctx.step("after", str, "after")
        await ctx.sleep("nap", 60)

    async with engine(naps, clock=clock) as e:
        run = await e.trigger(naps)
        point = crash_at(e, before="after")
        asking = asyncio.ensure_future(e.runs.update(run.id, "deposit", 5, update_id="a"))
        await point
        await asyncio.wait([asking])
        asking.exception()
        await restart(e)
        assert await e.runs.update(run.id, "deposit", 5, update_id="a") == 10


# --- time limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(["update", "timeout"])))
async def test_of_an_update_and_a_timeout_the_first_one_counts(clock, order):
    @job("patient")
    async def patient(ctx: Context, _: None) -> str:
        try:
            update = await ctx.on_update("deposit", positive, timeout=60)
        except UpdateTimeout as late:
            return f"{type(late).__name__} of {late.name}"
        await update.answer("taken")
        return "in time"

    async with engine(patient, clock=clock) as e:
        run = await e.trigger(patient)
        with pytest.raises(UpdateRejected, match="not positive"):
            await e.runs.update(run.id, "deposit", -1)  # which does not prolong it
        for what in order:
            if what == "timeout":
                await clock.advance(60)
            elif order[0] == "update":
                assert await e.runs.update(run.id, "deposit", 1) == "taken"
            else:
                with pytest.raises(RunNotActive):
                    await e.runs.update(run.id, "deposit", 1)
        assert (await finish(e, run)).output == ("in time" if order[0] == "update" else "UpdateTimeout of deposit")


# --- with asyncio, other engines -------------------------------------------------------------------------------------


async def test_updates_of_two_names_side_by_side():
    @job("two")
    async def two(ctx: Context, _: None) -> list:
        async def take(name: str) -> str:
            update = await ctx.on_update(name)
            await update.answer(name)
            return update.argument

        return await asyncio.gather(take("street"), take("city"), take("city"))

    async with engine(two) as e:
        run = await e.trigger(two)
        await settle()
        assert await e.runs.update(run.id, "city", "Ulm") == "city"
        await restart(e)
        assert await e.runs.update(run.id, "street", "Main") == "street"
        assert await e.runs.update(run.id, "city", "Bonn") == "city"
        assert (await finish(e, run)).output == ["Main", "Ulm", "Bonn"]


@cpython_only("OPFS has one engine per file")
@pytest.mark.parametrize("kept", [0, 1000])
async def test_a_caller_of_another_engine_is_answered_within_a_second(database_path, clock, kept):
    async with (
        Engine(database_path, [account], clock=clock, max_parked=kept) as executing,
        Engine(database_path, [account], clock=clock, max_concurrent_runs=0) as other,
    ):
        run = await executing.trigger(account, 1)
        await settle()
        rejected = asyncio.ensure_future(other.runs.update(run.id, "deposit", -5))
        await clock.advance(1)
        with pytest.raises(UpdateRejected, match="-5 is not positive"):
            await rejected
        asking = asyncio.ensure_future(other.runs.update(run.id, "deposit", 5))
        await clock.advance(1)
        assert await asking == 5


@cpython_only("OPFS has one engine per file")
async def test_a_caller_of_another_engine_is_told_when_the_run_ends_without_answering(database_path, clock):
    async with (
        Engine(database_path, [silent], clock=clock) as executing,
        Engine(database_path, [silent], clock=clock, max_concurrent_runs=0) as other,
    ):
        run = await executing.trigger(silent, "completes")
        asking = asyncio.ensure_future(other.runs.update(run.id, "deposit", 5))
        await clock.advance(1)
        with pytest.raises(UpdateRejected, match="ended without answering"):
            await asking


# --- being seen ------------------------------------------------------------------------------------------------------


async def test_steps_and_timeline_tell_what_is_waited_for():
    async with engine(account) as e:
        run = await e.trigger(account, 1)
        await settle()
        (step,) = await e.runs.steps(run.id)
        assert (step.kind, step.name, step.waiting_for) == ("update", "deposit", "update 'deposit'")
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for update 'deposit'"
        await e.runs.update(run.id, "deposit", 5)
        frames = [frame for frame in await timeline(e, run) if frame.kind == "step_status"]
        assert [(frame.type, frame.status) for frame in frames] == [("update", "running"), ("update", "completed")]
