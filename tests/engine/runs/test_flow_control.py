"""Flow control: what becomes of a trigger that comes too soon, and how all of it goes together."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limited_jobs import gated, parked_job, quick, starts, statuses
from watching import cpython_only, finish

from durable_web import (
    Concurrency,
    ConflictError,
    Context,
    Debounce,
    Engine,
    InvalidInput,
    RateLimit,
    RateLimited,
    Run,
    RunStatus,
    Singleton,
    Throttle,
    Trigger,
    job,
)
from durable_web._store import flow, schedules
from durable_web.testing import MockClock, crash, settle

# --- rate limit ------------------------------------------------------------------------------------------------------


async def test_a_trigger_beyond_the_rate_limit_is_refused_with_when_there_is_room_again(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(2, "1m", key="user"))
    async with running(note, clock=clock) as engine:
        await engine.trigger(note, {"user": "a"})
        await clock.advance(20)
        await engine.trigger(note, {"user": "a"})
        with pytest.raises(RateLimited, match="room again in 40 s") as caught:
            await engine.trigger(note, {"user": "a"})
        assert (caught.value.job, caught.value.key, caught.value.retry_after) == ("quick", "a", 40)
        await engine.trigger(note, {"user": "b"})
        await clock.advance(40)
        await engine.trigger(note, {"user": "a"})
        assert len(await engine.runs.list()) == 4


async def test_a_rate_limit_survives_restarts_and_deleted_runs_and_holds_for_many_at_once(running):
    clock = MockClock()
    note = quick(rate_limit=RateLimit(2, "1m"))
    async with running(note, clock=clock) as engine:
        await engine.runs.delete((await finish(engine, await engine.trigger(note))).id)
        await crash(engine)
    async with running(note, clock=clock) as engine:
        with pytest.raises(RateLimited):
            await engine.trigger_many([Trigger(note), Trigger(note)])
        assert await engine.runs.list() == []
        await engine.trigger(note)
        with pytest.raises(RateLimited):
            await engine.trigger(note)


async def test_a_trigger_that_is_given_an_existing_run_does_not_count(running):
    note = quick(rate_limit=RateLimit(1, "1m"))
    async with running(note, clock=MockClock()) as engine:
        first = await engine.trigger(note, 1, idempotency_key="k")
        again = await engine.trigger(note, 1, idempotency_key="k")
        assert (again.id, again.disposition) == (first.id, "idempotent")
        with pytest.raises(RateLimited):
            await engine.trigger(note, 1, idempotency_key="l")


@pytest.mark.parametrize(
    "rules",
    [{"rate_limit": RateLimit(1, 1, key=str)}, {"throttle": Throttle(1, 1, key=str)}],
    ids=["rate limit", "throttle"],
)
async def test_uses_that_have_expired_are_forgotten(running, rules):
    clock = MockClock()
    note = quick(**rules)
    async with running(note, clock=clock) as engine:
        for n in range(50):
            await engine.trigger(note, n)
        await clock.advance(2)
        for n in range(20):
            await engine.trigger(note, n)
        await settle()
        [(left,)] = engine.internals.store.database.connection.execute("SELECT COUNT(*) FROM durable_uses").fetchall()
        assert left == 20


# --- debounce --------------------------------------------------------------------------------------------------------


async def test_a_debounced_run_begins_when_triggers_have_stopped_and_has_the_last_input(running):
    clock = MockClock()
    note = quick(debounce=Debounce("doc", 10))
    async with running(note, clock=clock) as engine:
        first = await engine.trigger(note, {"doc": 1, "text": "a"})
        assert first.disposition == "created"
        for text in "bcd":
            await clock.advance(8)
            again = await engine.trigger(note, {"doc": 1, "text": text})
            assert (again.id, again.disposition, again.status) == (first.id, "debounced", RunStatus.PENDING)
        other = await engine.trigger(note, {"doc": 2, "text": "x"})
        await clock.advance(9.9)
        assert await statuses(engine) == ["pending", "pending"]
        await clock.advance(0.1)
        assert (await engine.runs.get(first.id)).output == {"doc": 1, "text": "d"}
        assert (await engine.runs.get(other.id)).output == {"doc": 2, "text": "x"}
        assert (await engine.trigger(note, {"doc": 1, "text": "e"})).disposition == "created"


async def test_a_debounced_run_begins_at_the_latest_when_its_longest_wait_is_over(running):
    clock = MockClock()
    note = quick(debounce=Debounce(None, wait="10s", max_wait="25s"))
    async with running(note, clock=clock) as engine:
        run = await engine.trigger(note, 0)
        for n in range(1, 4):
            await clock.advance(8)
            await engine.trigger(note, n)
        await clock.advance(1)
        assert ((await engine.runs.get(run.id)).output, await starts(engine)) == (3, [25.0])


async def test_a_debounced_run_survives_a_crash_and_begins_on_time(running):
    clock = MockClock()
    note = quick(debounce=Debounce(None, 10))
    async with running(note, clock=clock) as engine:
        run = await engine.trigger(note, 1)
        await clock.advance(5)
        await engine.trigger(note, 2)
        await crash(engine)
    async with running(note, clock=clock) as engine:
        await clock.advance(9)
        assert (await engine.trigger(note, 3)).id == run.id
        await clock.advance(9.5)
        assert await statuses(engine) == ["pending"]
        await clock.advance(1)
        assert (await engine.runs.get(run.id)).output == 3


async def test_a_run_that_was_debounced_is_due_only_once(running):
    clock = MockClock()
    wait, gates = gated(debounce=Debounce(None, 10), concurrency=Concurrency(limit=1))
    async with running(wait, clock=clock) as engine:
        first = await engine.trigger(wait, {"n": 1})
        await clock.advance(10)
        second = await engine.trigger(wait, {"n": 2})
        await clock.advance(10)
        third = await engine.trigger(wait, {"n": 3})
        assert len({first.id, second.id, third.id}) == 3, "one that is due, and waits for its slot, takes no more"
        assert await statuses(engine) == ["running", "pending", "pending"]
        await clock.advance(10)
        for n in (1, 2, 3):
            gates.setdefault(n, asyncio.Event()).set()
        assert await statuses(engine) == ["completed"] * 3


# --- singleton -------------------------------------------------------------------------------------------------------


async def test_while_a_singleton_is_active_even_parked_a_trigger_is_given_it(running):
    clock = MockClock()
    park = parked_job(singleton=Singleton("id"))
    events = []
    async with running(park, clock=clock) as engine:
        engine.on("run:coalesced", events.append)
        first = await engine.trigger(park, {"id": 1})
        assert await statuses(engine) == ["waiting"]
        again = await engine.trigger(park, {"id": 1, "more": True})
        assert (again.id, again.disposition, again.input) == (first.id, "skipped", {"id": 1})
        assert [(event.run_id, event.skipped_input) for event in events] == [(first.id, {"id": 1, "more": True})]
        assert (await engine.trigger(park, {"id": 2})).disposition == "created"
        await clock.advance(101)
        assert (await engine.trigger(park, {"id": 1})).disposition == "created"


async def test_queued_singletons_follow_one_another_in_order(running):
    clock = MockClock()
    park = parked_job(singleton=Singleton(mode="queue"))
    async with running(park, clock=clock) as engine:
        await engine.trigger_many([Trigger(park, n) for n in range(3)])
        assert await statuses(engine) == ["waiting", "pending", "pending"]
        await crash(engine)
    async with running(park, clock=clock) as engine:
        await clock.advance(101)
        assert await statuses(engine) == ["completed", "waiting", "pending"]
        await clock.advance(202)
        assert await statuses(engine) == ["completed"] * 3


async def test_a_new_singleton_cancels_the_one_before_and_begins(running):
    wait, gates = gated(singleton=Singleton(mode="cancel_previous"))
    async with running(wait) as engine:
        for n in range(3):
            run = await engine.trigger(wait, {"n": n})
            assert run.disposition == "created"
        assert await statuses(engine) == ["cancelled", "cancelled", "running"]
        assert len(engine.internals.dispatcher.executing) == 1
        gates[2].set()
        assert (await finish(engine, run)).output == 2


async def test_the_previous_singleton_is_not_cancelled_when_the_new_one_cannot_be_made(running):
    wait, gates = gated(singleton=Singleton(mode="cancel_previous"))
    async with running(wait) as engine:
        first = await engine.trigger(wait, {"n": 0}, concurrency_key="k")
        await settle()
        wanted = [Trigger(wait, {"n": 1}, concurrency_key="c"), Trigger(wait, {"n": 2}, concurrency_key="c")]
        with pytest.raises(ConflictError):
            await engine.trigger_many(wanted)
        assert await statuses(engine) == ["running"]
        gates[0].set()
        assert (await finish(engine, first)).output == 0


async def test_a_cancelled_parked_singleton_makes_way_at_once_even_after_a_restart(running):
    clock = MockClock()
    park = parked_job(singleton=Singleton(mode="queue"))
    async with running(park, clock=clock) as engine:
        runs = await engine.trigger_many([Trigger(park, n) for n in range(2)])
        await settle()
        await crash(engine)
    async with running(park, clock=clock) as engine:
        await engine.runs.cancel(runs[0].id)
        assert await statuses(engine) == ["cancelled", "waiting"]


async def test_a_singleton_that_is_retried_beside_another_waits_for_its_end(running):
    wait, gates = gated(singleton=Singleton())
    async with running(wait) as engine:
        first = await engine.trigger(wait, {"n": 1})
        await settle()
        await engine.runs.cancel(first.id)
        await engine.trigger(wait, {"n": 2})
        await settle()
        await engine.runs.retry(first.id)
        assert await statuses(engine) == ["pending", "running"]
        gates[2].set()
        assert await statuses(engine) == ["running", "completed"]
        gates[1].set()
        await settle()


# --- together, and with keys of the trigger --------------------------------------------------------------------------


async def test_what_the_trigger_says_comes_before_what_the_job_says(running):
    clock = MockClock()
    wait, _ = gated(singleton=Singleton(), rate_limit=RateLimit(1, "1h"))
    async with running(wait, clock=clock) as engine:
        first = await engine.trigger(wait, {"n": 1}, idempotency_key="i", concurrency_key="c", run_at=None)
        again = await engine.trigger(wait, {"n": 2}, idempotency_key="i")
        assert (again.id, again.disposition) == (first.id, "idempotent")
        joined = await engine.trigger(wait, {"n": 3}, concurrency_key="c", coalesce="active")
        assert (joined.id, joined.disposition) == (first.id, "coalesced")
        skipped = await engine.trigger(wait, {"n": 4}, idempotency_key="j")
        assert (skipped.id, skipped.disposition, skipped.idempotency_key) == (first.id, "skipped", "i")
        await engine.runs.cancel(first.id)
        with pytest.raises(RateLimited):
            await engine.trigger(wait, {"n": 5}, idempotency_key="j")


async def test_a_concurrency_key_of_the_trigger_holds_beside_the_flow_control_of_the_job(running):
    wait, gates = gated(concurrency=Concurrency(limit=2))
    async with running(wait) as engine:
        await engine.trigger(wait, {"n": 1}, concurrency_key="c")
        await settle()
        await engine.trigger(wait, {"n": 2}, concurrency_key="c")
        await engine.trigger(wait, {"n": 3})
        assert (await statuses(engine)).count("running") == 1 or (await statuses(engine))[1] == "pending"
        gates[1].set()
        assert await statuses(engine) == ["completed", "running", "running"]
        gates[2].set()
        gates[3].set()
        await settle()


async def test_a_debounced_singleton_is_joined_while_it_waits_and_given_back_while_it_executes(running):
    clock = MockClock()
    wait, gates = gated(debounce=Debounce(None, 10), singleton=Singleton())
    async with running(wait, clock=clock) as engine:
        run = await engine.trigger(wait, {"n": 1})
        assert (await engine.trigger(wait, {"n": 2})).disposition == "debounced"
        await clock.advance(10)
        given = await engine.trigger(wait, {"n": 3})
        assert (given.id, given.disposition, given.input) == (run.id, "skipped", {"n": 2})
        gates[2].set()
        assert (await finish(engine, run)).output == 2


async def test_run_at_comes_before_the_gates(running):
    clock = MockClock()
    wait, gates = gated(concurrency=Concurrency(limit=1))
    async with running(wait, clock=clock) as engine:
        later = (await engine.trigger(wait, {"n": 0})).created_at.fromtimestamp(1_800_000_010).astimezone()
        await engine.trigger(wait, {"n": 1}, run_at=later, priority=9)
        await engine.trigger(wait, {"n": 2})
        gates.setdefault(0, asyncio.Event()).set()
        assert await statuses(engine) == ["completed", "pending", "running"]
        await clock.advance(10)
        assert await statuses(engine) == ["completed", "pending", "running"]
        gates[2].set()
        assert await statuses(engine) == ["completed", "running", "completed"]
        gates[1].set()
        await settle()


async def test_a_key_is_a_path_or_a_function_of_the_input_as_its_type_has_it(running):
    @dataclass
    class Order:
        customer: str
        lines: list

    rules = {"path": "customer", "item": "lines.0", "function": lambda order: len(order.lines)}
    jobs = []
    for name, key in rules.items():

        @job(name, input=Order, singleton=Singleton(key))
        async def each(ctx: Context, order: Order) -> None:
            await asyncio.Event().wait()

        jobs.append(each)
    async with running(*jobs) as engine:
        for item in jobs:
            assert (await engine.trigger(item, Order("a", ["x"]))).disposition == "created"
            assert (await engine.trigger(item, Order("a", ["x"]))).disposition == "skipped"
            assert (await engine.trigger(item, Order("b", ["y", "z"]))).disposition == "created"
        await engine.stop(drain=False)


async def test_an_input_without_its_key_is_refused_and_nothing_is_made(running):
    note = quick(concurrency=Concurrency(limit=1, key="customer.id"))
    async with running(note) as engine:
        for wrong in ({}, {"customer": 5}, None):
            with pytest.raises(InvalidInput, match=r"key 'customer\.id' is not in it"):
                await engine.trigger(note, wrong)
        with pytest.raises(InvalidInput, match="has to be a text or a number"):
            await engine.trigger(note, {"customer": {"id": [1]}})
        assert await engine.runs.list() == []


def test_limits_that_make_no_sense_are_refused_where_they_are_written():
    for make in (
        lambda: Concurrency(limit=0),
        lambda: Throttle(1, 0),
        lambda: RateLimit(True, 1),
        lambda: Debounce(None, "soon"),
        lambda: Singleton(mode="often"),
    ):
        with pytest.raises(ValueError, match=r"limit|per|duration|mode"):
            make()


async def test_a_deleted_run_leaves_no_gate_behind(running):
    note = quick(concurrency=Concurrency(limit=1), singleton=Singleton(mode="queue"))
    async with running(note) as engine:
        await engine.runs.delete((await finish(engine, await engine.trigger(note))).id)
        for table in ("gates", "held"):
            rows = engine.internals.store.database.connection.execute(f"SELECT * FROM durable_{table}").fetchall()
            assert rows == []


async def test_what_flow_control_and_schedules_ask_per_claim_and_due_time_uses_an_index(running):
    texts = {
        f"{module.__name__} {name}": text
        for module in (flow, schedules)
        for name, text in vars(module).items()
        if name.isupper() and isinstance(text, str) and not name.startswith(("_", "INSERT"))
    }
    async with running() as engine:
        for name, text in texts.items():
            parameters = dict.fromkeys(re.findall(r":([a-z_]+)", text))
            plan = engine.internals.store.database.connection.execute(
                f"EXPLAIN QUERY PLAN {text}", parameters
            ).fetchall()
            details = [row[3] for row in plan]
            scans = [detail for detail in details if detail.startswith("SCAN") and " USING " not in detail]
            sorts = [detail for detail in details if "TEMP B-TREE" in detail]
            allowed = {"SCAN CONSTANT ROW", *(["SCAN durable_schedules"] if name.endswith(" LIST") else [])}
            assert [scan for scan in scans if scan not in allowed] == [], name
            assert sorts == [] or name.endswith((" GATES", " DUE")), name


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("trigger"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.sampled_from(["end", "cancel", "retry"]), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("advance"), st.sampled_from([1, 4, 11]), st.just(0)),
        st.tuples(st.just("crash"), st.just(0), st.just(0)),
    ),
    min_size=10,
    max_size=40,
)


@cpython_only("a few hundred histories, each with event loops of its own")
@pytest.mark.parametrize("singleton", [None, Singleton("a", mode="queue")])
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_whatever_happens_no_limit_is_exceeded_and_no_run_is_forgotten(singleton, actions):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_Check(str(Path(folder) / "database.sqlite3"), singleton).run(actions))


class _Check:
    """One job under several limits at once, and what must hold after each action."""

    def __init__(self, path: str, singleton: Singleton | None) -> None:
        self.path = path
        self.clock = MockClock()
        self.gates: dict[str, asyncio.Event] = {}
        self.began: dict[int, list[float]] = {}

        @job(
            "limited",
            concurrency=Concurrency(limit=2, key="a"),
            throttle=Throttle(3, 10, key="b"),
            singleton=singleton,
        )
        async def limited(ctx: Context, value: dict) -> None:
            gate = self.gates[ctx.run_id] = asyncio.Event()  # of this execution: none belongs to two
            await gate.wait()

        self.job = limited
        self.is_singleton = singleton is not None

    async def run(self, actions: list[tuple[str, int, int]]) -> None:
        engine = await self.start()
        for action, first, second in actions:
            runs = await engine.runs.list(order="oldest", limit=1000)
            if action == "trigger":
                await engine.trigger(self.job, {"a": first, "b": second})
            elif action == "advance":
                await self.clock.advance(first)
            elif action == "crash":
                await crash(engine)
                self.gates.clear()
                engine = await self.start()
            elif runs:
                await self.change(engine, action, runs[first % len(runs)])
            await settle()
            await self.check(engine)
        await self.end(engine)

    async def start(self) -> Engine:
        engine = Engine(self.path, [self.job], clock=self.clock, exclusive=True)
        await engine.start()
        return engine

    async def change(self, engine: Engine, action: str, run: Run) -> None:
        if action == "end" and run.status == RunStatus.RUNNING:
            self.gates[run.id].set()
        elif action == "cancel" and run.is_active:
            await engine.runs.cancel(run.id)
        elif action == "retry" and run.status == RunStatus.CANCELLED:
            await engine.runs.retry(run.id)

    async def check(self, engine: Engine) -> None:
        runs = await engine.runs.list(limit=1000)
        executing = Counter(run.input["a"] for run in runs if run.status == RunStatus.RUNNING)
        assert max(executing.values(), default=0) <= (1 if self.is_singleton else 2)
        for group in range(3):
            frames = [frame for run in runs if run.input["b"] == group for frame in await history(engine, run)]
            began = sorted(frames)
            assert all(later - earlier >= 10_000 for earlier, later in zip(began, began[3:], strict=False))

    async def end(self, engine: Engine) -> None:
        """Let everything end: no run may be left waiting."""
        for _ in range(40):
            for gate in self.gates.values():
                gate.set()
            await self.clock.advance(10)
        assert not [run.id for run in await engine.runs.list(limit=1000) if run.is_active]
        await engine.stop()


async def history(engine: Engine, run: Run) -> list[int]:
    """When a run began: its first execution, and the first after each retry by hand."""
    began, is_new = [], True
    for frame in engine.internals.store.read_frames(run.id, 0, 1000):
        if frame.kind == "run_status":
            body = json.loads(frame.body)
            if body.get("reason") == "retried":
                is_new = True
            elif body["status"] == "running" and is_new:
                began.append(frame.ts)
                is_new = False
    return began
