"""Webhooks: a token that cannot be guessed, and what is delivered to it, once."""

from __future__ import annotations

import asyncio
import re

import pytest
from watching import cpython_only, finish, timeline

from durable_web import (
    Context,
    Engine,
    RunStatus,
    SerializationError,
    WebhookNotFound,
    WebhookTimeout,
    job,
)
from durable_web.testing import crash_at, engine, restart, settle


@job("payment")
async def payment(ctx: Context, timeout: float | None) -> object:
    hook = await ctx.webhook("payment")
    await ctx.set_event("token", hook.token)
    await ctx.set_event("url", hook.url)
    try:
        return await hook.wait(timeout=timeout)
    except WebhookTimeout as late:
        return f"{type(late).__name__} of {late.name}"


async def token_of(e: Engine, run) -> str:
    await settle()
    return await e.runs.value(run.id, "token")


async def test_what_is_delivered_is_what_the_run_gets():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        assert await e.deliver_webhook(await token_of(e, run), {"paid": True}) is True
        assert (await finish(e, run)).output == {"paid": True}


async def test_a_token_is_long_random_fit_for_an_address_and_each_runs_own():
    async with engine(payment) as e:
        tokens = [await token_of(e, await e.trigger(payment)) for _ in range(50)]
    assert len(set(tokens)) == 50
    bits = 24 * 8
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", token) and len(token) * 6 == bits for token in tokens)


async def test_a_token_stays_the_same_across_restarts():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        token = await token_of(e, run)
        await restart(e)
        await settle()
        await e.deliver_webhook(token, 1)
        assert (await finish(e, run)).output == 1
        assert await e.runs.value(run.id, "token") == token


async def test_the_address_is_what_the_engine_makes_of_the_token():
    async with engine(payment, webhook_url=lambda token: f"https://example.org/hooks/{token}") as e:
        run = await e.trigger(payment)
        token = await token_of(e, run)
        assert await e.runs.value(run.id, "url") == f"https://example.org/hooks/{token}"


async def test_without_a_builder_there_is_no_address():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        await settle()
        assert await e.runs.value(run.id, "url", "unset") is None


async def test_what_is_delivered_before_the_wait_is_kept(clock):
    @job("slow")
    async def slow(ctx: Context, _: None) -> object:
        hook = await ctx.webhook("payment")
        await ctx.set_event("token", hook.token)
        await ctx.sleep("nap", 60)
        return await hook.wait(timeout=0)

    async with engine(slow, clock=clock) as e:
        run = await e.trigger(slow)
        await e.deliver_webhook(await token_of(e, run), "early")
        await restart(e)
        await clock.advance(60)
        assert (await finish(e, run)).output == "early"


async def test_a_second_delivery_is_noticed_and_changes_nothing():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        token = await token_of(e, run)
        assert await e.deliver_webhook(token, 1) is True
        assert await e.deliver_webhook(token, 2) is False
        assert (await finish(e, run)).output == 1
        assert await e.deliver_webhook(token, 3) is False


@pytest.mark.parametrize("token", ["", "wrong", "%", "webhook:", "A" * 32])
async def test_a_wrong_token_is_refused(token):
    async with engine(payment) as e:
        await e.trigger(payment)
        await settle()
        with pytest.raises(WebhookNotFound, match="token is wrong"):
            await e.deliver_webhook(token, 1)


async def test_a_token_of_a_run_that_has_ended_without_it_is_refused():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        token = await token_of(e, run)
        await e.runs.cancel(run.id)
        with pytest.raises(WebhookNotFound, match="its run has ended"):
            await e.deliver_webhook(token, 1)
        assert (await e.runs.get(run.id)).status == RunStatus.CANCELLED


async def test_a_body_that_cannot_be_stored_is_refused_and_the_run_goes_on_waiting():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        token = await token_of(e, run)
        with pytest.raises(SerializationError, match="body of the webhook"):
            await e.deliver_webhook(token, object())
        assert await e.deliver_webhook(token, b"bytes are fine") is True
        assert (await finish(e, run)).output == b"bytes are fine"


async def test_waiting_twice_gives_the_same_body():
    @job("twice")
    async def twice(ctx: Context, _: None) -> list:
        hook = await ctx.webhook("payment")
        await ctx.set_event("token", hook.token)
        return [await hook.wait(), await hook.wait()]

    async with engine(twice) as e:
        run = await e.trigger(twice)
        await e.deliver_webhook(await token_of(e, run), 1)
        assert (await finish(e, run)).output == [1, 1]


async def test_a_retried_run_that_had_not_been_called_gets_another_token():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        token = await token_of(e, run)
        await e.runs.cancel(run.id)
        await e.runs.retry(run.id)
        await settle()
        fresh = await e.runs.value(run.id, "token")
        assert fresh != token
        await e.deliver_webhook(fresh, 1)
        assert (await finish(e, run)).output == 1


# --- time limits -----------------------------------------------------------------------------------------------------


async def test_the_time_limit_counts_from_the_first_waiting(clock):
    async with engine(payment, clock=clock) as e:
        run = await e.trigger(payment, 60)
        await clock.advance(30)
        await restart(e)
        await clock.advance(29)
        assert not (await e.runs.get(run.id)).is_terminal
        await clock.advance(1)
        assert (await e.runs.get(run.id)).output == "WebhookTimeout of payment"


async def test_what_comes_after_the_time_limit_is_refused_and_what_comes_before_counts(clock):
    async with engine(payment, clock=clock) as e:
        late, early = await e.trigger(payment, 60), await e.trigger(payment, 60)
        tokens = [await token_of(e, run) for run in (late, early)]
        await e.deliver_webhook(tokens[1], "in time")
        await clock.advance(60)
        with pytest.raises(WebhookNotFound):
            await e.deliver_webhook(tokens[0], "late")
        assert (await e.runs.get(late.id)).output == "WebhookTimeout of payment"
        assert (await e.runs.get(early.id)).output == "in time"


async def test_a_wait_that_was_called_off_can_be_begun_again():
    @job("patient")
    async def patient(ctx: Context, _: None) -> object:
        hook = await ctx.webhook("payment")
        await ctx.set_event("token", hook.token)
        try:
            async with asyncio.timeout(0.01):
                await hook.wait()
        except TimeoutError:
            await ctx.step("remind", str, "reminded")
        return await hook.wait()

    async with engine(patient) as e:
        run = await e.trigger(patient)
        while (await e.runs.get(run.id)).completed_steps < 1:
            await asyncio.sleep(0.003)
        await e.deliver_webhook(await token_of(e, run), "at last")
        assert (await finish(e, run)).output == "at last"


# --- with asyncio, other engines -------------------------------------------------------------------------------------


async def test_webhooks_side_by_side():
    @job("two")
    async def two(ctx: Context, _: None) -> list:
        hooks = [await ctx.webhook("payment"), await ctx.webhook("payment")]
        await ctx.set_event("token", [hook.token for hook in hooks])
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(hook.wait(timeout=3600)) for hook in hooks]
        return [wait.result() for wait in waits]

    async with engine(two) as e:
        run = await e.trigger(two)
        tokens = await token_of(e, run)
        await e.deliver_webhook(tokens[1], 2)
        await settle()
        await restart(e)
        await e.deliver_webhook(tokens[0], 1)
        assert (await finish(e, run)).output == [1, 2]
        steps = await e.runs.steps(run.id)
        assert [step.name for step in steps if step.kind == "webhook"] == ["payment", "payment#2"]


@cpython_only("OPFS has one engine per file")
async def test_a_delivery_to_another_engine_wakes_the_run_within_a_second(database_path, clock):
    async with (
        Engine(database_path, [payment], clock=clock) as executing,
        Engine(database_path, [payment], clock=clock, max_concurrent_runs=0) as other,
    ):
        run = await executing.trigger(payment)
        await other.deliver_webhook(await token_of(executing, run), "from elsewhere")
        await clock.advance(1)
        assert (await executing.runs.get(run.id)).output == "from elsewhere"


async def test_a_delivery_whose_sender_is_not_told_may_be_repeated():
    async with engine(payment) as e:
        run = await e.trigger(payment)
        token = await token_of(e, run)
        crash_at(e, after="payment")
        with pytest.raises(Exception, match="made to crash"):
            await e.deliver_webhook(token, 1)
        await restart(e)
        assert await e.deliver_webhook(token, 1) is False
        assert (await finish(e, run)).output == 1


# --- being seen ------------------------------------------------------------------------------------------------------


async def test_steps_and_timeline_tell_that_it_is_a_webhook_and_never_its_token(clock):
    async with engine(payment, clock=clock) as e:
        run = await e.trigger(payment, 60)
        await settle()
        (step,) = [step for step in await e.runs.steps(run.id) if step.kind == "webhook"]
        assert (step.kind, step.waiting_for) == ("webhook", "webhook 'payment'")
        assert step.wake_at.timestamp() * 1000 == clock.now() + 60_000
        assert (await e.runs.get(run.id)).waiting_reason == "it waits for webhook 'payment'"
        await clock.advance(60)
        frames = [frame for frame in await timeline(e, run) if frame.kind == "step_status"]
        assert [(frame.type, frame.status) for frame in frames][::2] == [("webhook", "running"), ("webhook", "failed")]
        assert frames[1].wake_at == step.wake_at
        assert frames[-1].error.type == "WebhookTimeout"
        token = await e.runs.value(run.id, "token")
        assert token not in str(frames)
        assert token not in str((await e.runs.steps(run.id))[0])
