"""The durable waits of one run: recorded with its next commit, ended by what they wait for, called off."""

from __future__ import annotations

import asyncio

import pytest
from one_run import OneRun, one_run

from durable_web import SignalTimeout
from durable_web.testing._clock import settle


def send(run: OneRun, name: str, payload: str, message_id: str) -> None:
    """Send a signal, as the engine's delivery does."""
    with run.store.transaction():
        now = run.clock.now()
        run.store.messages.send(run.id, f"signal:{name}", message_id, f'"{payload}"', now)
        run.store.waits.hand_out(run.id, f"signal:{name}", now, "a signal has come")


async def wake(run: OneRun) -> None:
    """Resume the parked run, as the engine's dispatcher does when it is claimed again."""
    run.execution.resume(run.claim())
    await settle()


async def test_a_wait_is_recorded_as_running_when_the_run_parks(database_path):
    async def body(run: OneRun) -> str:
        return await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        assert (run.told, run.run.status) == (["parked"], "waiting")
        assert run.records["go"].status == "running"
        assert run.run.waiting_reason == "it waits for signal 'go'"
        send(run, "go", "now", "1")
        await wake(run)
        assert await run.succeeds() == "now"


async def test_what_is_there_already_ends_the_wait_in_the_commit_that_begins_it(database_path):
    gate = asyncio.Event()

    async def body(run: OneRun) -> str:
        await run.step("first", gate.wait)
        return await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        send(run, "go", "early", "1")
        gate.set()
        assert await run.succeeds() == "early"
        assert "parked" not in run.told


async def test_a_sleep_is_due_when_it_was_first_asked_for_and_kept_by_a_restart(database_path):
    async def body(run: OneRun) -> None:
        await run.execution.waits.sleep("nap", 60)

    async with one_run(database_path, body) as run:
        due = run.clock.now() + 60_000
        assert run.records["nap"].wake_at == due
        assert run.execution.waits.next_due == due
        await run.clock.advance(20)
        await run.restart()
        assert run.records["nap"].wake_at == due


async def test_an_overdue_wait_is_ended_when_the_replay_goes_live(database_path):
    async def body(run: OneRun) -> str:
        await run.execution.waits.sleep("nap", 60)
        return "awake"

    async with one_run(database_path, body) as run:
        await run.clock.advance(100)
        await run.restart()
        assert await run.succeeds() == "awake"


async def test_a_timeout_is_recorded_as_a_failure_of_the_wait(database_path):
    async def body(run: OneRun) -> str:
        try:
            return await run.execution.waits.signal("go", 5.0, str)
        except SignalTimeout:
            return "too late"

    async with one_run(database_path, body) as run:
        await run.clock.advance(6)
        await run.restart()
        assert await run.succeeds() == "too late"
        assert run.records["go"].status == "failed"


async def test_a_signal_that_ended_a_wait_which_the_body_called_off_goes_back_to_the_head_of_its_queue(database_path):
    gate = asyncio.Event()

    async def body(run: OneRun) -> list[str]:
        task = asyncio.ensure_future(run.execution.waits.signal("go", None, str))
        await run.step("until", gate.wait)
        task.cancel()
        await asyncio.wait([task])
        run.is_told_of_changes = False
        send(run, "go", "first", "1")  # by another process, before it is committed that the wait was called off
        send(run, "go", "second", "2")
        run.is_told_of_changes = True
        return [await run.execution.waits.signal("go", None, str) for _ in range(2)]

    async with one_run(database_path, body) as run:
        run.commits.flush()
        gate.set()
        assert await run.succeeds() == ["first", "second"]
        assert run.records["go"].status == "cancelled"


async def test_timers_have_keys_of_their_own(database_path):
    async def body(run: OneRun) -> None:
        await asyncio.sleep(60)

    async with one_run(database_path, body) as run:
        record = run.records["timer:1"]
        assert (record.kind, record.wake_at) == ("timer", run.clock.now() + 60_000)


async def test_a_cancelled_run_is_refused_every_wait_but_a_sleep(database_path):
    seen: list[str] = []

    async def body(run: OneRun) -> None:
        run.execution.waits.refuse_what_comes_from_outside()
        with pytest.raises(asyncio.CancelledError):
            await run.execution.waits.signal("go", None, str)
        seen.append("refused")
        await run.execution.waits.sleep("nap", 0)
        seen.append("slept")

    async with one_run(database_path, body):
        await settle()
        assert seen == ["refused", "slept"]


@pytest.mark.parametrize("wrong", [-1, float("inf"), float("nan"), "1"])
async def test_a_time_that_is_no_finite_number_of_seconds_is_refused(database_path, wrong):
    async def body(run: OneRun) -> str:
        with pytest.raises(ValueError, match="finite number of seconds"):
            await run.execution.waits.sleep("nap", wrong)
        return "refused"

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == "refused"
