"""Retry, retrigger, fork, delete, purge, count, and executing by hand."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from watching import cpython_only, finish, timeline

from durable_web import (
    ConflictError,
    Context,
    Engine,
    Retry,
    RunNotFound,
    RunNotTerminal,
    RunStatus,
    Singleton,
    Trigger,
    job,
)
from durable_web.testing import MockClock, crash, settle


def breakable():
    """A job of three steps whose second fails while `broken` holds something, and the calls that were made."""
    broken: list[bool] = [True]
    calls: list[str] = []

    @job("three")
    async def three(ctx: Context, base: int) -> list[int]:
        def call(name: str, number: int) -> int:
            calls.append(name)
            if name == "second" and broken:
                raise ValueError("broken")
            return number

        return [await ctx.step(name, call, name, base + n) for n, name in enumerate(["first", "second", "third"])]

    return three, broken, calls


async def test_retry_goes_on_from_the_failed_step_of_the_same_run(running):
    three, broken, calls = breakable()
    async with running(three) as engine:
        run = await finish(engine, await engine.trigger("three", 10))
        assert (run.status, run.failed_step) == ("failed", "second")
        broken.clear()
        assert (await engine.runs.retry(run.id)).status in ("pending", "running")
        run = await finish(engine, run)
        frames = await timeline(engine, run)
        with pytest.raises(RunNotTerminal, match="It is done"):
            await engine.runs.retry(run.id)
    assert run.output == [10, 11, 12]
    assert (run.error, run.failed_step) == (None, None)
    assert calls == ["first", "second", "second", "third"]
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))


async def test_retry_with_another_input_keeps_the_completed_steps(running):
    three, broken, _ = breakable()
    async with running(three) as engine:
        run = await finish(engine, await engine.trigger("three", 10))
        broken.clear()
        await engine.runs.retry(run.id, input=100)
        run = await finish(engine, run)
    assert run.output == [10, 101, 102]
    assert run.input == 100


async def test_steps_keep_places_of_their_own_when_a_retry_calls_the_failed_ones_again(running):
    broken = [True]

    def call(name: str) -> str:
        if name == "bad" and broken:
            raise ValueError
        return name

    @job("branches")
    async def branches(ctx: Context, _: None) -> None:
        await asyncio.gather(*(ctx.step(name, call, name) for name in ("bad", "good")), return_exceptions=True)
        await ctx.step("last", call, "bad")

    async with running(branches) as engine:
        run = await finish(engine, await engine.trigger("branches"))
        broken.clear()
        await engine.runs.retry(run.id)
        await finish(engine, run)
        places = {step.name: step.index for step in await engine.runs.steps(run.id)}
    assert len(set(places.values())) == len(places) == 3


async def test_a_cancelled_run_can_be_retried(running):
    gate = asyncio.Event()

    @job("wait")
    async def wait(ctx: Context, _: None) -> str:
        await ctx.step("wait", gate.wait)
        return "went on"

    async with running(wait) as engine:
        run = await engine.trigger("wait")
        await settle()
        with pytest.raises(RunNotTerminal, match="Cancel it first"):
            await engine.runs.retry(run.id)
        await engine.runs.cancel(run.id)
        await engine.runs.retry(run.id)
        gate.set()
        assert (await finish(engine, run)).output == "went on"


async def test_retrigger_makes_a_new_run_with_the_same_input_and_labels(running):
    three, broken, calls = breakable()
    broken.clear()
    async with running(three) as engine:
        first = await engine.trigger(
            "three", 1, labels={"a": "b"}, idempotency_key="i", concurrency_key="c", priority=3
        )
        await finish(engine, first)
        again = await engine.runs.retrigger(first.id)
        await finish(engine, again)
        again = await engine.runs.get(again.id)
    assert again.id != first.id
    assert (again.input, again.labels, again.concurrency_key, again.priority) == (1, {"a": "b"}, "c", 3)
    assert again.idempotency_key is None
    assert len(calls) == 6


async def test_fork_starts_with_the_steps_before_the_one_named(running):
    three, broken, calls = breakable()
    broken.clear()
    async with running(three) as engine:
        first = await finish(engine, await engine.trigger("three", 1))
        fork = await finish(engine, await engine.runs.fork(first.id, "second"))
        with pytest.raises(ValueError, match="no step 'fourth'"):
            await engine.runs.fork(first.id, "fourth")
        assert (await engine.runs.get(first.id)).output == [1, 2, 3]
    assert fork.output == [1, 2, 3]
    assert calls == ["first", "second", "third", "second", "third"]


async def test_deleting_takes_everything_of_a_run_that_has_ended_and_gives_out_no_frame_number_twice(running):
    three, _, _ = breakable()
    gate = asyncio.Event()

    @job("wait")
    async def wait(ctx: Context, _: None) -> None:
        await gate.wait()

    async with running(three, wait) as engine:
        run = await finish(engine, await engine.trigger("three", 1, labels={"a": "b"}))
        last = (await timeline(engine, run))[-1].id
        await engine.runs.delete(run.id)
        with pytest.raises(RunNotFound):
            await engine.runs.get(run.id)
        with pytest.raises(RunNotFound):
            await engine.runs.delete(run.id)
        database = engine.internals.store.database.connection
        left = {
            table: database.execute(f"SELECT COUNT(*) FROM {table} WHERE run_id = ?", (run.id,)).fetchone()[0]
            for table in ("durable_steps", "durable_attempts", "durable_labels", "durable_values")
        }
        assert set(left.values()) == {0}
        active = await engine.trigger("wait")
        with pytest.raises(RunNotTerminal, match="Cancel it first"):
            await engine.runs.delete(active.id)
        gate.set()
        assert min(frame.id for frame in await timeline(engine, active)) > last
        await engine.runs.delete_many(status="completed")
        left = database.execute("SELECT run_id, kind FROM durable_frames ORDER BY id").fetchall()
        assert left == [(run.id, "run_deleted"), (active.id, "run_deleted")]


async def test_that_a_run_was_deleted_is_known_for_thirty_days(running):
    three, _, _ = breakable()
    clock = MockClock()
    day = 24 * 60 * 60
    async with running(three, clock=clock) as engine:
        deleted = []
        for _ in range(5):
            run = await finish(engine, await engine.trigger("three", 1))
            await engine.runs.delete(run.id)
            deleted.append(run.id)
            clock.set_forward(10 * day)
        tombstones = engine.internals.store.read_all_frames(0, 100)
    assert [frame.run_id for frame in tombstones] == deleted[1:]


async def test_old_runs_are_purged_by_hand_and_when_the_engine_is_idle(running):
    clock = MockClock()

    @job("echo")
    async def echo(ctx: Context, value: int) -> int:
        return value

    async with running(echo, clock=clock, retain_runs="1h") as engine:
        for number in range(3):
            await finish(engine, await engine.trigger("echo", number))
            await clock.advance(60)
        middle = datetime.fromtimestamp(clock.now() / 1000, UTC) - timedelta(seconds=130)
        assert await engine.runs.purge(middle) == 1
        assert len(await engine.runs.list()) == 2
        await clock.advance(3600)
        assert await engine.runs.list() == []
    with pytest.raises(ValueError, match="30d"):
        Engine("unused.sqlite3", retain_runs="a month")


async def test_runs_are_counted_and_changed_in_bulk(running):
    three, broken, _ = breakable()
    async with running(three) as engine:
        for _ in range(3):
            await finish(engine, await engine.trigger("three", 1, labels={"batch": "1"}))
        await finish(engine, await engine.trigger("three", 2))
        assert await engine.runs.count() == {"failed": 4}
        broken.clear()
        retried = await engine.runs.retry_many(labels={"batch": "1"})
        for run_id in retried:
            await engine.runs.wait(run_id)
        assert await engine.runs.count() == {"failed": 1, "completed": 3}
        assert await engine.runs.count(by="job") == {"three": 4}
        assert len(await engine.runs.delete_many(status=["completed"])) == 3
        assert await engine.runs.cancel_many(everything=True) == []
        with pytest.raises(ValueError, match="not by 'input'"):
            await engine.runs.count(by="input")


@pytest.mark.parametrize("nothing", [[], (), iter(())])
@pytest.mark.parametrize("part", ["status", "job"])
async def test_a_filter_with_an_empty_list_passes_no_run(running, part, nothing):
    three, _, _ = breakable()
    async with running(three) as engine:
        await finish(engine, await engine.trigger("three", 1))
        filters = {part: nothing}
        assert await engine.runs.list(**filters) == []
        assert await engine.runs.delete_many(**filters) == []
        assert await engine.runs.retry_many(**filters) == []
        assert await engine.runs.cancel_many(**filters) == []
        assert await engine.runs.count() == {"failed": 1}


async def test_a_filter_that_can_be_gone_through_only_once_holds_for_every_page(running, monkeypatch):
    monkeypatch.setattr("durable_web._engine.runs.BULK_BATCH", 1)
    three, broken, _ = breakable()
    async with running(three) as engine:
        for _ in range(2):
            await finish(engine, await engine.trigger("three", 1))
        broken.clear()
        for _ in range(2):
            await finish(engine, await engine.trigger("three", 1))
        assert len(await engine.runs.delete_many(status=(status for status in ["failed"]))) == 2
        assert await engine.runs.count() == {"completed": 2}


async def test_runs_are_executed_by_hand(running, database_path):
    @job("echo")
    async def echo(ctx: Context, value: int) -> int:
        return value

    engine = Engine(database_path, [echo], exclusive=True)
    await engine.start(claim=False)
    runs = await engine.trigger_many([Trigger("echo", number) for number in range(5)])
    await settle()
    assert await engine.runs.count() == {"pending": 5}
    assert await engine.run_one()
    assert (await engine.runs.get(runs[0].id)).status == RunStatus.COMPLETED
    assert await engine.runs.count() == {"pending": 4, "completed": 1}
    assert await engine.run_until_idle(max_runs=2) == 2
    assert await engine.run_until_idle() == 2
    assert not await engine.run_one()
    await engine.stop()


async def test_a_run_tells_the_public_what_is_not_only_for_engines(running):
    three, broken, _ = breakable()
    broken.clear()
    async with running(three) as engine:
        run = await finish(engine, await engine.trigger("three", 1))
    public = run.public()
    assert public["output"] == [1, 2, 3]
    internal = {"generation", "lease_owner", "lease_expires_at", "recoveries", "ready_at", "disposition"}
    assert public.keys() == {field.name for field in dataclasses.fields(run)} - internal


async def test_time_randomness_and_identifiers_are_the_same_on_every_execution(running):
    seen = []
    clock = MockClock()

    @job("chance")
    async def chance(ctx: Context, _: None) -> None:
        seen.append((await ctx.now(), await ctx.uuid(), await ctx.random(), await ctx.uuid()))
        if len(seen) == 1:
            await asyncio.Event().wait()

    async with running(chance, clock=clock) as engine:
        run = await engine.trigger("chance")
        await settle()
        await clock.advance(5)
        await crash(engine)
    async with running(chance, clock=clock) as engine:
        await finish(engine, run)
    assert seen[0] == seen[1]
    assert seen[0][1] != seen[0][3]
    assert seen[0][0].tzinfo is UTC


async def test_a_step_has_a_reference_that_is_the_same_on_every_attempt(running):
    references: list[str] = []

    @job("charge")
    async def charge(ctx: Context, _: None) -> str:
        def call() -> None:
            references.append(ctx.step_ref)
            if len(references) == 1:
                raise ConnectionError

        await ctx.step("charge", call, retry=Retry(backoff=0))
        return ctx.step_ref

    async with running(charge) as engine:
        run = await finish(engine, await engine.trigger("charge"))
    assert references == [f"{run.id}/charge"] * 2
    assert run.output == run.id


async def test_without_preserving_them_the_steps_of_a_completed_run_are_deleted_and_those_of_a_failed_one_kept(running):
    three, broken, _ = breakable()
    async with running(three, preserve_steps=False) as engine:
        run = await finish(engine, await engine.trigger("three", 1))
        assert len(await engine.runs.steps(run.id)) == 2
        broken.clear()
        await engine.runs.retry(run.id)
        run = await finish(engine, run)
        assert (run.output, run.completed_steps) == ([1, 2, 3], 0)  # those that are kept are counted
        assert await engine.runs.steps(run.id) == []


async def test_many_are_cancelled_though_a_parent_takes_its_children_with_it(running):
    @job("child")
    async def child(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("never")

    @job("parent")
    async def parent(ctx: Context, _: None) -> None:
        await ctx.run_job("child", child)

    async with running(parent, child) as engine:
        for _ in range(2):
            run = await engine.trigger("parent")
            while len(await engine.runs.list(parent=run.id, status="waiting")) < 1:
                await asyncio.sleep(0.003)
        await engine.runs.cancel_many(everything=True)
        assert await engine.runs.count() == {"cancelled": 4}


async def test_a_fork_that_flow_control_does_not_allow_writes_into_no_other_run(running):
    @job("single", singleton=Singleton("user", mode="skip"))
    async def single(ctx: Context, input: dict) -> str:
        first = await ctx.step("first", lambda: input["word"])
        if input.get("waits"):
            await ctx.wait_for_signal("go")
        return await ctx.step("second", lambda: first)

    async with running(single) as engine:
        old = await finish(engine, await engine.trigger("single", {"user": 1, "word": "old"}))
        active = await engine.trigger("single", {"user": 1, "word": "new", "waits": True})
        with pytest.raises(ConflictError):
            await engine.runs.fork(old.id, "second")
        await engine.runs.signal(active.id, "go")
        assert (await finish(engine, active)).output == "new"


async def test_a_list_can_leave_out_what_its_runs_hold(running):
    @job("echo")
    async def echo(ctx: Context, text: str) -> str:
        return text

    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo", "hello", labels={"of": "echo"}))
        assert await engine.runs.list() == [run]
        (listed,) = await engine.runs.list(payloads=False, labels={"of": "echo"}, search="hello")
    assert (listed.input, listed.output) == (None, None)
    assert dataclasses.replace(listed, input="hello", output="hello") == run


async def test_a_run_tells_up_to_which_frame_it_is_known(running):
    three, _, _ = breakable()
    async with running(three) as engine:
        run = await engine.trigger("three", 10)
        assert run.last_seq == 1
        run = await finish(engine, run)
        assert run.last_seq == (await timeline(engine, run))[-1].seq
        (listed,) = await engine.runs.list()
        assert listed.last_seq == run.last_seq


async def test_executing_by_hand_ends_with_the_engine_and_executes_nothing_once_that_is_stopping(running):
    begun: list[int] = []

    @job("wait")
    async def wait(ctx: Context, _: None) -> None:
        begun.append(ctx.attempt)
        await ctx.step("wait", asyncio.Event().wait)

    async with running(wait) as engine:
        run = await engine.trigger("wait")
        executing = asyncio.ensure_future(engine.run_until_idle())
        await settle()
        await engine.stop(drain=False)
        assert await executing == 0  # it was executing already
        await settle()
    async with running(max_concurrent_runs=0) as engine:
        run = await engine.runs.get(run.id)
    assert (run.status, run.attempt, run.recoveries) == (RunStatus.PENDING, 1, 0)
    assert begun == [1]


async def test_a_cancelled_call_to_execute_by_hand_leaves_nothing_executing(database_path):
    @job("wait")
    async def wait(ctx: Context, gate: str) -> None:
        if gate == "closed":
            await asyncio.Event().wait()

    engine = Engine(database_path, [wait], exclusive=True)
    await engine.start(claim=False)
    waiting = await engine.trigger("wait", "closed")
    executing = asyncio.ensure_future(engine.run_until_idle())
    await settle()
    executing.cancel()
    await settle()
    later = await engine.trigger("wait", "open")
    await settle()
    assert (await engine.runs.get(waiting.id)).status == RunStatus.RUNNING
    assert (await engine.runs.get(later.id)).status == RunStatus.PENDING
    await engine.stop(drain=False)


@pytest.mark.parametrize("drain", [True, False])
async def test_an_engine_may_be_stopped_by_several_at_a_time(running, drain):
    gate = asyncio.Event()

    @job("wait")
    async def wait(ctx: Context, _: None) -> str:
        await gate.wait()
        return await ctx.step("end", lambda: "done")

    async with running(wait) as engine:
        await engine.trigger("wait")
        await settle()
        stopping = asyncio.gather(*(engine.stop(drain=drain) for _ in range(3)))
        await settle()
        gate.set()
        assert await stopping == [None] * 3


@cpython_only("a page has one event loop")
def test_one_engine_may_be_started_in_one_event_loop_after_the_other(database_path):
    @job("echo")
    async def echo(ctx: Context, value: int) -> int:
        await asyncio.sleep(0)
        return value

    engine = Engine(database_path, [echo])

    async def execute(number: int) -> int:
        async with engine:
            run = await engine.trigger("echo", number)
            await engine.run_until_idle()
            return (await engine.runs.get(run.id)).output

    assert [asyncio.run(execute(number)) for number in range(2)] == [0, 1]
