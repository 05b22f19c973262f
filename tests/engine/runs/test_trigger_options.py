"""Idempotency, concurrency, coalescing, labels, priority and time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

import pytest
from watching import finish

from durable_web import ConflictError, Context, InvalidInput, JobNotFound, Retry, Run, RunStatus, Trigger, job
from durable_web.testing import MockClock, crash, settle


@job("echo")
async def echo(ctx: Context, value: object) -> object:
    return value


def gated(name: str = "gated"):
    """A job whose runs end when their gate is opened, and the gates by input."""
    gates: dict[object, asyncio.Event] = {}

    @job(name)
    async def wait(ctx: Context, value: object) -> object:
        await gates.setdefault(value, asyncio.Event()).wait()
        return value

    return wait, gates


async def test_an_idempotency_key_gives_the_same_run_for_ever(running):
    @job("other")
    async def other(ctx: Context, _: None) -> None: ...

    async with running(echo, other) as engine:
        first = await engine.trigger("echo", 1, idempotency_key="k")
        assert first.disposition == "created"
        await finish(engine, first)
        again = await engine.trigger("echo", 2, idempotency_key="k")
        assert (again.id, again.disposition, again.input) == (first.id, "idempotent", 1)
        assert (await engine.trigger("other", None, idempotency_key="k")).disposition == "created"
        assert len(await engine.runs.list()) == 2


async def test_two_runs_with_one_concurrency_key_never_execute_at_the_same_time(running):
    wait, gates = gated()
    wait_too, gates_too = gated("gated too")
    async with running(wait, wait_too) as engine:
        first = await engine.trigger("gated", 1, concurrency_key="k")
        second = await engine.trigger("gated too", 2, concurrency_key="k")
        keyless = await engine.trigger("gated", 3)
        await settle()
        statuses = [(await engine.runs.get(run.id)).status for run in (first, second, keyless)]
        assert statuses == ["running", "pending", "running"]
        gates[1].set()
        await finish(engine, first)
        await settle()
        assert (await engine.runs.get(second.id)).status == RunStatus.RUNNING
        gates_too[2].set()
        gates[3].set()


async def test_a_second_pending_run_with_a_concurrency_key_conflicts_or_coalesces(running):
    wait, _ = gated()
    events = []
    async with running(wait) as engine:
        engine.on("run:coalesced", events.append)
        leased = await engine.trigger("gated", 1, concurrency_key="k")
        pending = await engine.trigger("gated", 2, concurrency_key="k")
        with pytest.raises(ConflictError) as caught:
            await engine.trigger("gated", 3, concurrency_key="k")
        assert caught.value.run_id == pending.id
        skipped = await engine.trigger("gated", 4, concurrency_key="k", coalesce="skip", labels={"a": "b"})
        assert (skipped.id, skipped.disposition, skipped.input, skipped.labels) == (pending.id, "coalesced", 2, {})
        assert [(e.run_id, e.skipped_input, e.skipped_labels) for e in events] == [(pending.id, 4, {"a": "b"})]
        await engine.runs.cancel(pending.id)
        active = await engine.trigger("gated", 5, concurrency_key="k", coalesce="active")
        assert (active.id, active.disposition) == (leased.id, "coalesced")
        assert (await engine.trigger("gated", 6, concurrency_key="k", coalesce="skip")).disposition == "created"
        with pytest.raises(ValueError, match="needs a concurrency_key"):
            await engine.trigger("gated", 7, coalesce="skip")
        await engine.stop(drain=False)


async def test_coalescing_with_what_is_active_takes_the_pending_run_else_the_leased_else_the_waiting_one(running):
    clock = MockClock()

    @job("flaky")
    async def flaky(ctx: Context, how: str) -> None:
        def fail() -> None:
            raise ConnectionError

        await (ctx.step("fail", fail, retry=Retry(backoff=60)) if how == "waits" else asyncio.Event().wait())

    async with running(flaky, clock=clock) as engine:

        async def coalesced() -> Run:
            run = await engine.trigger("flaky", "another", concurrency_key="k", coalesce="active")
            return await engine.runs.get(run.id)

        waiting = await engine.trigger("flaky", "waits", concurrency_key="k")
        await settle()
        found = await coalesced()
        assert (found.id, found.status) == (waiting.id, RunStatus.WAITING)
        leased = await engine.trigger("flaky", "lasts", concurrency_key="k")
        found = await coalesced()
        assert (found.id, found.status) == (leased.id, RunStatus.RUNNING)
        pending = await engine.trigger("flaky", "lasts", concurrency_key="k")
        found = await coalesced()
        assert (found.id, found.status) == (pending.id, RunStatus.PENDING)
        await engine.stop(drain=False)


async def test_a_run_without_a_key_passes_one_whose_key_is_taken(running):
    wait, _ = gated()
    async with running(wait, echo) as engine:
        await engine.trigger("gated", 1, concurrency_key="k")
        blocked = await engine.trigger("gated", 2, concurrency_key="k", priority=9)
        assert (await finish(engine, await engine.trigger("echo", 3))).output == 3
        assert (await engine.runs.get(blocked.id)).status == RunStatus.PENDING
        await engine.stop(drain=False)


async def test_a_trigger_that_is_given_an_existing_run_by_its_idempotency_key_is_no_event(running):
    heard: list[str] = []
    async with running(echo) as engine:
        for type in ("run:trigger", "run:coalesced"):
            engine.on(type, lambda event: heard.append(event.type))
        first = await finish(engine, await engine.trigger("echo", 1, idempotency_key="i"))
        again = await engine.trigger("echo", 2, idempotency_key="i")
    assert (again.id, again.disposition, again.output) == (first.id, "idempotent", 1)
    assert heard == ["run:trigger"]


async def test_idempotency_is_looked_at_before_coalescing(running):
    wait, _ = gated()
    async with running(wait) as engine:
        first = await engine.trigger("gated", 1, concurrency_key="k", idempotency_key="i")
        second = await engine.trigger("gated", 2, concurrency_key="k")
        again = await engine.trigger("gated", 3, concurrency_key="k", idempotency_key="i", coalesce="skip")
        assert (again.id, again.disposition) == (first.id, "idempotent")
        assert second.id != first.id
        await engine.stop(drain=False)


async def test_many_are_triggered_all_or_none_and_by_the_same_rules(running):
    async with running(echo, max_concurrent_runs=1) as engine:
        with pytest.raises(JobNotFound):
            await engine.trigger_many([Trigger("echo", 1), Trigger("ecco", 2)])
        with pytest.raises(ConflictError):
            await engine.trigger_many([Trigger("echo", n, concurrency_key="k") for n in (1, 2)])
        assert await engine.runs.list() == []
        runs = await engine.trigger_many(
            [
                Trigger("echo", 1, idempotency_key="i"),
                Trigger("echo", 2, idempotency_key="i"),
                Trigger("echo", 3, concurrency_key="k"),
                Trigger("echo", 4, concurrency_key="k", coalesce="skip"),
            ]
        )
        assert [run.disposition for run in runs] == ["created", "idempotent", "created", "coalesced"]
        assert [run.input for run in runs] == [1, 1, 3, 3]


async def test_higher_priority_goes_first_then_the_oldest(running):
    order: list[str] = []

    @job("note")
    async def note(ctx: Context, name: str) -> None:
        order.append(name)

    async with running(note, max_concurrent_runs=1) as engine:
        runs = await engine.trigger_many(
            [Trigger("note", f"{priority} {number}", priority=priority) for number in (1, 2) for priority in (0, 5, -5)]
        )
        for run in runs:
            await finish(engine, run)
    assert order == ["5 1", "5 2", "0 1", "0 2", "-5 1", "-5 2"]


async def test_a_scheduled_run_begins_when_its_time_has_come_also_after_a_restart(running):
    clock = MockClock()
    later = datetime.fromtimestamp(clock.now() / 1000, UTC) + timedelta(hours=1)
    async with running(echo, clock=clock) as engine:
        run = await engine.trigger("echo", 1, run_at=later)
        await clock.advance(3599)
        assert (await engine.runs.get(run.id)).status == RunStatus.PENDING
        await crash(engine)
    async with running(echo, clock=clock) as engine:
        clock.set_back(100)
        await clock.advance(3)
        assert (await engine.runs.get(run.id)).status == RunStatus.PENDING
        await clock.advance(100)
        run = await engine.runs.get(run.id)
        assert run.status == RunStatus.COMPLETED
        assert 0 <= run.queue_time < 1.1
        with pytest.raises(ValueError, match="no time zone"):
            await engine.trigger("echo", 1, run_at=datetime(2030, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("state", ["pending", "running", "waiting"])
async def test_a_run_that_has_not_ended_by_its_deadline_fails(running, state):
    clock = MockClock()
    moment = datetime.fromtimestamp(clock.now() / 1000, UTC)

    def fail() -> None:
        raise ConnectionError

    @job("slow")
    async def slow(ctx: Context, _: None) -> None:
        if state == "waiting":
            await ctx.step("call", fail, retry=Retry(backoff=1000))
        await asyncio.Event().wait()

    async with running(slow, clock=clock) as engine:
        run_at = moment + timedelta(hours=1) if state == "pending" else None
        run = await engine.trigger("slow", deadline=moment + timedelta(seconds=30), run_at=run_at)
        await clock.advance(29)
        assert (await engine.runs.get(run.id)).status == state
        await clock.advance(2)
        run = await finish(engine, run)
    assert run.status == RunStatus.FAILED
    assert run.error.type == "DeadlineExceeded"


async def test_the_timeout_of_a_job_counts_from_its_first_execution(running):
    clock = MockClock()

    @job("slow", timeout=60)
    async def slow(ctx: Context, _: None) -> None:
        await asyncio.Event().wait()

    async with running(slow, clock=clock) as engine:
        run = await engine.trigger("slow")
        await clock.advance(40)
        await crash(engine)
    async with running(slow, clock=clock) as engine:
        await clock.advance(19)
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        await clock.advance(2)
        assert (await engine.runs.get(run.id)).error.type == "DeadlineExceeded"


async def test_runs_are_found_by_their_labels_all_of_them(running):
    async with running(echo) as engine:
        for number, labels in enumerate([{"a": "1"}, {"a": "1", "b/c": "2"}, {"b/c": "2"}]):
            await finish(engine, await engine.trigger("echo", number, labels=labels))

        async def found(**filters):
            return [run.input for run in await engine.runs.list(order="oldest", **filters)]

        assert await found(labels={"a": "1"}) == [0, 1]
        assert await found(labels={"a": "1", "b/c": "2"}) == [1]
        assert await found(labels={"a": "3"}) == []
        assert await found(search="B/C") == [1, 2]
        assert await found(job=echo, labels={"a": "1"}) == await found(job=[echo, "none"], labels={"a": "1"}) == [0, 1]
        for wrong in ({"ü": "x"}, {"": "x"}, {"a": 1}):
            with pytest.raises(ValueError, match="label"):
                await engine.trigger("echo", labels=wrong)


@pytest.mark.parametrize(
    "search", ["ärger", "ÄRGER mit", 'DER "straße"', "a\\b", "c\td", "\ud800", '{"subject":', "grün", "Team"]
)
async def test_runs_are_found_by_a_text_in_any_case_and_with_any_characters(running, search):
    subject = 'Ärger mit der "Straße", a\\b und c\td'
    async with running(echo) as engine:
        lonely = "\ud800" in search
        wanted = {"subject": subject + "\ud800" * lonely}
        run = await engine.trigger("echo", wanted, labels={"team": "Grün"})
        await finish(engine, await engine.trigger("echo", {"other": "subject"}))
        assert [found.id for found in await engine.runs.list(search=search)] == [run.id]
        assert await engine.runs.list(search=search + "?") == []


async def test_no_more_runs_of_a_job_execute_than_it_allows(running):
    executing = most = 0

    @job("one", max_concurrent=1)
    async def one(ctx: Context, _: None) -> None:
        nonlocal executing, most
        executing += 1
        most = max(most, executing)
        await asyncio.sleep(0)
        executing -= 1

    async with running(one, echo) as engine:
        runs = await engine.trigger_many([*[Trigger("one")] * 6, Trigger("echo", 1)])
        assert (await finish(engine, runs[-1])).output == 1
        for run in runs:
            await finish(engine, run)
    assert most == 1


async def test_an_input_that_does_not_fit_the_declared_type_is_refused(running):
    class Colour(Enum):
        RED = "red"

    @dataclass
    class Paint:
        colour: Colour

    async def paint(ctx: Context, wanted) -> str:
        return wanted.colour.name

    Paint.__annotations__["colour"] = Colour
    async with running(job("paint", input=Paint)(paint)) as engine:
        assert (await finish(engine, await engine.trigger("paint", Paint(Colour.RED)))).output == "RED"
        for wrong in ({"colour": "blue"}, {"color": "red"}, 5, None):
            with pytest.raises(InvalidInput, match="input of job 'paint'"):
                await engine.trigger("paint", wrong)


async def test_waiting_for_a_run_hears_its_progress_and_lines_and_may_time_out(running):
    wait, gates = gated()

    @job("talk")
    async def talk(ctx: Context, _: None) -> str:
        ctx.log.info("hello")
        ctx.progress(1, 2)
        return "done"

    progress, lines = [], []
    async with running(talk, wait) as engine:
        run = await engine.trigger_and_wait("talk", on_progress=progress.append, on_log=lines.append)
        assert run.output == "done"
        assert [(item.current, item.total) for item in progress] == [(1, 2)]
        assert [line.message for line in lines] == ["hello"]
        run = await engine.trigger("gated", 1)
        with pytest.raises(TimeoutError):
            await engine.runs.wait(run.id, timeout=0.01)
        gates[1].set()
        assert (await engine.runs.wait(run.id)).output == 1
