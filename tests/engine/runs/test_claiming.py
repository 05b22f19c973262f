"""Runs that are leased in the transaction that makes them, or makes room for them: limits, order, and strangers."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import weakref
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from watching import cpython_only, finish, reach, timeline

from durable_web import Concurrency, Context, Engine, Event, Job, RunStatus, Singleton, StorageError, Trigger, job
from durable_web.testing import MockClock, crash, engine, restart, settle


@job("gone")
async def gone(ctx: Context, _: int) -> None:
    """Its code is not there any more when its runs are executed."""


def limited(most: Counter[str]) -> object:
    @job("here")
    async def here(ctx: Context, _: int) -> None:
        most["now"] += 1
        most["most"] = max(most["most"], most["now"])
        await ctx.step("let the others begin", asyncio.sleep, 0)
        most["now"] -= 1

    return here


async def test_thousands_of_runs_of_a_job_that_is_gone_wait_and_the_others_keep_to_the_limit(running):
    most: Counter[str] = Counter()
    here = limited(most)
    async with running(gone, here, max_concurrent_runs=0) as e:
        for number in range(2000):
            await e.trigger("gone", number)
        runs = [await e.trigger("here", number) for number in range(20)]
    async with running(here, max_concurrent_runs=4) as e:
        for run in runs:
            await finish(e, run)
        assert await e.runs.count(by="status") == {"completed": 20, "waiting": 2000}
    assert most["most"] == 4


async def test_runs_that_cannot_be_executed_do_not_count_among_those_that_were_executed(running):
    async with running(gone, max_concurrent_runs=0) as e:
        for number in range(10):
            await e.trigger("gone", number)
    e = Engine(e.path, exclusive=True)
    await e.start(claim=False)
    assert await e.run_until_idle(max_runs=3) == 0
    await e.stop()


async def test_what_a_listener_triggers_finds_the_slot_of_what_it_is_told_of_taken(running):
    most: Counter[str] = Counter()
    here = limited(most)
    async with running(here, max_concurrent_runs=1) as e:

        def trigger_another(event: Event) -> None:
            if event.fields["input"] < 5:
                with suppress(StopIteration):  # at once, as a task of an eager task factory
                    e.trigger(here, event.fields["input"] + 1).send(None)

        e.on("run:trigger", trigger_another)
        await e.trigger(here, 0)
        for run in await e.runs.list():
            await finish(e, run)
        assert await e.runs.count() == {"completed": 6}
    assert most["most"] == 1


async def test_no_run_sees_context_variables_that_another_has_set(running):
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    @job("tenants")
    async def tenants(ctx: Context, name: str) -> None:
        seen.append(tenant.get())
        tenant.set(name)

    async with running(tenants, max_concurrent_runs=1) as e:
        tenant.set("who triggers")
        for run in [await e.trigger(tenants, name) for name in ("Ada", "Grace", "Hedy")]:
            await finish(e, run)
    assert seen == ["nobody"] * 3


async def test_a_run_that_a_step_triggers_is_not_taken_for_a_part_of_that_step(running):
    @job("inner")
    async def inner(ctx: Context, _: None) -> str:
        ctx.log.info("from the body")
        return ctx.step_ref

    @job("outer")
    async def outer(ctx: Context, _: None) -> str:
        async def trigger() -> str:
            return (await e.trigger(inner)).id

        return await ctx.step("trigger", trigger)

    async with running(inner, outer) as e:
        run = await finish(e, await e.runs.get((await e.trigger_and_wait(outer)).output))
        assert run.output == run.id
        assert [frame.step for frame in await timeline(e, run) if frame.kind == "log"] == [None]


@pytest.mark.parametrize("options", [{"concurrency_key": "one"}, {}], ids=["key", "slot"])
async def test_the_next_run_begins_when_every_branch_of_the_run_before_has_ended(running, options):
    told: list[str] = []

    @job("branches")
    async def branches(ctx: Context, number: int) -> None:
        async def hold() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(100):
                    await asyncio.sleep(0)  # as a client does that closes its connection
                told.append(f"{number} lets go")

        async def fail() -> None:
            await asyncio.sleep(0)
            raise ValueError(number)

        told.append(f"{number} begins")
        await asyncio.gather(ctx.step("hold", hold), ctx.step("fail", fail))

    async with running(branches, max_concurrent_runs=10 if options else 1) as e:
        first = await e.trigger(branches, 1, **options)
        await settle()
        second = await e.trigger(branches, 2, **options)
        for run in (first, second):
            await finish(e, run)
        await e.stop()
    assert told == ["1 begins", "1 lets go", "2 begins", "2 lets go"]


def letting_go(told: list[str], gate: asyncio.Event, **options: Any) -> Job:
    """A job whose first run lets go of what it holds only when the gate is opened."""

    @job("prints", **options)
    async def prints(ctx: Context, number: int) -> int:
        async def hold() -> None:
            try:
                if number == 1 and "1 lets go" not in told:
                    await asyncio.Event().wait()
            finally:
                if number == 1:
                    await gate.wait()
                told.append(f"{number} lets go")

        told.append(f"{number} begins")
        await ctx.step("hold", hold)
        return number

    return prints


KEPT_APART = {
    "one key": ({}, {"concurrency_key": "printer"}),
    "one at a time": ({"max_concurrent": 1}, {}),
    "one of its group at a time": ({"concurrency": Concurrency(limit=1)}, {}),
}


@pytest.mark.parametrize(("limits", "options"), KEPT_APART.values(), ids=KEPT_APART)
@pytest.mark.parametrize("end", ["cancelled", "overdue"])
async def test_what_may_not_overlap_begins_when_the_one_that_was_told_to_stop_has_let_go(end, limits, options):
    told: list[str] = []
    gate, clock = asyncio.Event(), MockClock()
    prints = letting_go(told, gate, **limits)
    async with engine(prints, clock=clock) as e:
        deadline = datetime.fromtimestamp(clock.now() / 1000, UTC) + timedelta(seconds=60) if end == "overdue" else None
        first = await e.trigger(prints, 1, deadline=deadline, **options)
        await settle()
        if end == "overdue":
            await clock.advance(60)
        else:
            await e.runs.cancel(first.id)
        assert (await e.runs.get(first.id)).is_terminal
        second = await e.trigger(prints, 2, **options)
        await settle()
        assert told == ["1 begins"]
        gate.set()
        assert (await finish(e, second)).output == 2
    assert told == ["1 begins", "1 lets go", "2 begins", "2 lets go"]


async def test_a_singleton_that_replaces_another_begins_when_that_has_let_go(running):
    told: list[str] = []
    gate = asyncio.Event()
    prints = letting_go(told, gate, singleton=Singleton(mode="cancel_previous"))
    async with running(prints) as e:
        await e.trigger(prints, 1)
        await settle()
        second = await e.trigger(prints, 2)
        await settle()
        assert told == ["1 begins"]
        gate.set()
        await finish(e, second)
    assert told == ["1 begins", "1 lets go", "2 begins", "2 lets go"]


async def test_what_may_overlap_does_not_wait_for_one_that_was_told_to_stop(running):
    told: list[str] = []
    gate = asyncio.Event()
    prints = letting_go(told, gate)
    async with running(prints) as e:
        first = await e.trigger(prints, 1, concurrency_key="one printer")
        await settle()
        await e.runs.cancel(first.id)
        await finish(e, await e.trigger(prints, 2, concurrency_key="another printer"))
        await finish(e, await e.trigger(prints, 3))
        assert "1 lets go" not in told
        gate.set()


async def test_a_run_that_is_retried_while_it_lets_go_begins_again_when_it_has(running):
    told: list[str] = []
    gate = asyncio.Event()
    prints = letting_go(told, gate)
    async with running(prints) as e:
        run = await e.trigger(prints, 1)
        await settle()
        await e.runs.cancel(run.id)
        await e.runs.retry(run.id)
        await settle()
        assert told == ["1 begins"]
        gate.set()
        assert (await finish(e, run)).output == 1
    assert told == ["1 begins", "1 lets go", "1 begins", "1 lets go"]


async def test_one_that_waits_for_another_to_let_go_can_be_cancelled_and_the_next_one_still_waits(running):
    told: list[str] = []
    gate = asyncio.Event()
    prints = letting_go(told, gate)
    async with running(prints) as e:
        runs = []
        for number in (1, 2, 3):
            runs.append(await e.trigger(prints, number, concurrency_key="printer"))
            await settle()
            if number < 3:
                await e.runs.cancel(runs[-1].id)
        assert told == ["1 begins"]
        gate.set()
        await finish(e, runs[2])
    assert told == ["1 begins", "1 lets go", "3 begins", "3 lets go"]


async def test_a_parked_run_goes_on_when_the_one_with_its_key_has_let_go(running):
    told: list[str] = []
    gate = asyncio.Event()
    prints = letting_go(told, gate)

    @job("waits")
    async def waits(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("go")
        told.append("the parked one goes on")

    async with running(prints, waits) as e:
        parked = await e.trigger(waits, concurrency_key="printer")
        await reach(e, parked.id, "waiting")
        first = await e.trigger(prints, 1, concurrency_key="printer")
        await settle()
        await e.runs.signal(parked.id, "go")
        await e.runs.cancel(first.id)
        await settle()
        assert told == ["1 begins"]
        gate.set()
        await finish(e, parked)
    assert told == ["1 begins", "1 lets go", "the parked one goes on"]


@pytest.mark.parametrize("what", ["cancel", "stop", "crash"])
async def test_a_run_that_is_taken_away_while_its_branches_let_go_is_left_as_it_is(running, what, caplog):
    gate, told = asyncio.Event(), []

    @job("branches")
    async def branches(ctx: Context, _: None) -> str:
        async def hold() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await gate.wait()

        async def branch() -> None:
            try:
                await ctx.step("hold", hold)
            finally:
                with suppress(BaseException):  # it would begin when the function that was called off has ended
                    await ctx.step("more", told.append, "more")

        if ctx.attempt == 1:
            holding = asyncio.ensure_future(branch())
            await ctx.step("first", asyncio.sleep, 0)
            assert not holding.done()
        return "done"

    async with running(branches) as e:
        run = await e.trigger(branches)
        await settle()
        assert (await e.runs.get(run.id)).status == "running"
        if what == "cancel":
            await e.runs.cancel(run.id)
        asyncio.get_running_loop().call_later(0.01, gate.set)
        await (crash(e) if what == "crash" else e.stop(drain=what == "cancel"))
    async with running(branches) as e:
        ended = await finish(e, run)
    assert (ended.status, ended.output) == (("cancelled", None) if what == "cancel" else ("completed", "done"))
    assert ended.attempt == (1 if what == "cancel" else 2)
    assert told == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("type", ["run:trigger", "run:complete"])
async def test_a_listener_that_asks_a_cancelled_future_costs_no_run(running, type):
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    failures: list[BaseException] = []

    @job("echo")
    async def echo(ctx: Context, value: int) -> int:
        return value

    async with running(echo, max_concurrent_runs=1) as e:
        e.on(type, lambda event: cancelled.result())
        e.on_error(lambda error, event: failures.append(error))
        for run in [await e.trigger(echo, number) for number in range(4)]:
            assert (await finish(e, run)).status == RunStatus.COMPLETED
    assert [isinstance(error, asyncio.CancelledError) for error in failures] == [True] * 4


async def test_a_run_whose_input_cannot_be_read_any_more_fails_alone(running):
    @job("echo")
    async def echo(ctx: Context, value: int) -> int:
        return value

    async with running(echo, max_concurrent_runs=1) as e:
        e.on("run:leased", lambda event: None)
        run, damaged, last = [await e.trigger(echo, number) for number in range(3)]
        with e.internals.store.transaction():
            e.internals.store.database.execute("UPDATE durable_runs SET input = '{' WHERE id = :id", {"id": damaged.id})
        for each in (run, damaged, last):
            await timeline(e, each)
        assert await e.runs.count(by="status") == {"completed": 2, "failed": 1}


class Stranger:
    """Answers for itself when it is asked what it is, as lazy objects and proxies do."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("this must not be asked")


@pytest.mark.parametrize("has_died", [False, True])
@pytest.mark.parametrize("strange", ["proxy", "lazy"])
async def test_what_a_body_holds_is_not_asked_what_it_is_when_its_timers_are_looked_for(strange, has_died):
    class Thing:
        pass

    @job("holds")
    async def holds(ctx: Context, _: None) -> str:
        held = weakref.proxy(Thing()) if strange == "proxy" else Stranger()  # noqa: F841
        async with asyncio.timeout(3600):
            return await ctx.wait_for_signal("go")

    async with engine(holds) as e:
        run = await e.trigger(holds)
        await settle()
        assert (await e.runs.get(run.id)).status == RunStatus.WAITING
        if has_died:
            await restart(e)
            await settle()
        await e.runs.signal(run.id, "go", "gone")
        assert (await finish(e, run)).output == "gone"


@cpython_only("two engines on one file")
async def test_a_child_that_is_made_again_after_another_engine_has_deleted_it_is_told_of_in_order(running):
    broken = True

    @job("child")
    async def child(ctx: Context, _: None) -> None:
        if broken:
            raise ValueError("not yet")
        for number in range(3):
            ctx.log.info(str(number))

    @job("parent")
    async def parent(ctx: Context, _: None) -> None:
        await ctx.run_job("child", child)

    async with running(child, parent, exclusive=False) as first, running(child, parent, exclusive=False) as second:
        first.internals.dispatcher.claim(0), second.internals.dispatcher.claim(0)
        run = await first.trigger(parent)
        first.internals.dispatcher.claim()
        await finish(first, run)
        (made,) = [each for each in await first.runs.list() if each.job == "child"]
        first.internals.dispatcher.claim(0)
        broken = False
        second.internals.dispatcher.claim()
        await second.runs.retry(made.id)
        await finish(second, made)
        await second.runs.delete(made.id)
        second.internals.dispatcher.claim(0)
        first.internals.dispatcher.claim()
        await first.runs.retry(run.id)
        await finish(first, run)
        seqs = [frame.seq for frame in first.internals.store.read_all_frames(0, 1000) if frame.run_id == made.id]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert len(seqs) > 5


async def test_a_wait_that_cannot_be_read_is_taken_up_again_instead_of_failing(monkeypatch):
    @job("parent")
    async def parent(ctx: Context, _: None) -> str:
        return await ctx.wait_for_signal("go")

    clock = MockClock()
    async with engine(parent, clock=clock) as e:
        outcomes_after = e.internals.store.steps.outcomes_after

        def fail(run_id: str, order: int) -> None:
            monkeypatch.setattr(e.internals.store.steps, "outcomes_after", outcomes_after)
            raise StorageError("path", "the disk is busy")

        run = await e.trigger(parent)
        await settle()
        monkeypatch.setattr(e.internals.store.steps, "outcomes_after", fail)
        await e.runs.signal(run.id, "go", "on")
        await settle()
        assert e.internals.store.steps.outcomes_after is outcomes_after
        await clock.advance(5)
        assert (await finish(e, run)).output == "on"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": {"b": "2", "a": "1"}, "priority": 3},
        {"idempotency_key": "once", "concurrency_key": "alone"},
        {"run_at": datetime(2100, 1, 1, tzinfo=UTC), "deadline": datetime(2101, 1, 1, tzinfo=UTC)},
        {"run_at": datetime(2000, 1, 1, tzinfo=UTC)},
    ],
)
@pytest.mark.parametrize("slots", [0, 1])
async def test_a_trigger_tells_of_the_run_as_it_stands_when_it_is_made(running, options, slots):
    @job("typed", version="2")
    async def typed(ctx: Context, when: datetime) -> None: ...

    async with running(typed, max_concurrent_runs=slots) as e:
        told = await e.trigger(typed, datetime(2026, 3, 29, 2, 30, tzinfo=UTC), **options)
        stands = await e.runs.get(told.id)
        if slots == 0:
            assert told == dataclasses.replace(stands, disposition="created")
        else:  # it may be leased by now
            assert (told.status, told.attempt, told.last_seq) == (RunStatus.PENDING, 0, 1)
            assert (told.input, told.labels, told.ready_at) == (stands.input, stands.labels, stands.ready_at)


async def test_a_run_that_is_running_as_it_is_made_is_as_any_other_that_is_running(running):
    opened = asyncio.Event()

    @job("both")
    async def both(ctx: Context, _: None) -> None:
        await opened.wait()

    def row(e: Engine, run_id: str) -> dict[str, object]:
        cursor = e.internals.store.database.execute("SELECT * FROM durable_runs WHERE id = ?", (run_id,))
        names = [column[0] for column in cursor.description]
        return {name: value for name, value in zip(names, cursor.fetchone(), strict=True) if name != "id"}

    async with running(both, clock=MockClock(), max_concurrent_runs=2) as e:
        at_once = await e.trigger(both)
        assert (await e.runs.get(at_once.id)).status == RunStatus.RUNNING
        later, _ = await e.trigger_many([Trigger(both), Trigger(both)])
        assert row(e, at_once.id) == row(e, later.id)
        opened.set()
        at_once_told, later_told = [await timeline(e, run) for run in (at_once, later)]
        assert [(frame.seq, frame.status, frame.attempt) for frame in at_once_told] == [
            (frame.seq, frame.status, frame.attempt) for frame in later_told
        ]


@cpython_only("two engines share the file")
async def test_no_run_is_running_as_it_is_made_before_another_whose_turn_it_is_and_that_another_engine_has_made(
    running,
):
    order: list[str] = []

    @job("in order")
    async def in_order(ctx: Context, name: str) -> None:
        order.append(name)

    async with (
        running(in_order, exclusive=False, max_concurrent_runs=0) as other,
        running(in_order, exclusive=False, max_concurrent_runs=1) as e,
    ):
        await other.trigger(in_order, "urgent", priority=1)
        await finish(e, await e.trigger(in_order, "not urgent"))
    assert order == ["urgent", "not urgent"]
