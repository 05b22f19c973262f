"""Every durable wait, with a crash before and after each of its commits: the run goes on as if nothing had happened.

A scenario is a job and what the world outside does to its run. It is lived through once for every commit and side,
with the engine dying there and coming back; and again where waiting runs are not kept in memory, and where what comes
from outside comes by another engine on the same file.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from watching import cpython_only

from durable_web import (
    Context,
    DurableWebError,
    Engine,
    EventTimeout,
    Job,
    Retry,
    Run,
    SignalTimeout,
    StepFailed,
    UpdateRejected,
    WebhookTimeout,
    job,
)
from durable_web.testing import CrashPoint, MockClock, SimulatedCrash, crash, crash_at, engine, restart, settle

ROUND_SECONDS = 50
MOST_ROUNDS = 40
LEGAL = {
    None: {"pending"},
    "pending": {"pending", "running"},
    "running": {"running", "completed", "waiting", "pending"},
    "waiting": {"waiting", "pending"},
}


@dataclass
class World:
    """One life of a scenario: its engine, and what it has seen of it."""

    engine: Engine
    outside: Engine  # by which the world outside reaches the run; the same one, or another on the same file
    clock: MockClock
    calls: Counter[str] = field(default_factory=Counter)
    answers: list[Any] = field(default_factory=list)
    pending_answer: asyncio.Future[Any] | None = None
    was_paused: bool = False

    async def step(self, ctx: Context, name: str, result: Any = None) -> Any:
        """A step that must not be called once it is committed."""

        def call() -> Any:
            self.calls[name] += 1
            record = self.engine.internals.store.steps.find(ctx.run_id, name)
            assert record is None or record.status == "running", f"{name} is called again after its commit"
            return result if result is not None else name

        return await ctx.step(name, call)

    async def waiting(self, run: Run) -> set[str]:
        """The names of what the run waits for."""
        return {step.name for step in await self.outside.runs.steps(run.id) if step.status == "running"}

    async def update(self, run: Run, argument: Any, update_id: str) -> None:
        """Send an update, or ask for its answer again after a crash; the answer is noted when it comes."""
        if self.pending_answer is not None and self.pending_answer.done():
            error = self.pending_answer.exception()
            if error is None or isinstance(error, UpdateRejected):
                self.answers.append((update_id, self.pending_answer.result() if error is None else error.reason))
            self.pending_answer = None
        if self.pending_answer is None and update_id not in dict(self.answers):
            self.pending_answer = asyncio.ensure_future(
                self.outside.runs.update(run.id, "address", argument, update_id=update_id)
            )


Body = Callable[[World, Context], Awaitable[Any]]
Outside = Callable[[World, Run], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """A job body, what happens outside meanwhile (again and again, until the run has ended), and the output."""

    body: Body
    output: Any
    outside: Outside | None = None
    on_event: str = ""
    signal_first: bool = False
    taken: int = 0  # of the signals that are sent


SCENARIOS: dict[str, Scenario] = {}


def scenario(output: Any, **options: Any) -> Callable[[Body], Scenario]:
    def add(body: Body) -> Scenario:
        made = SCENARIOS[body.__name__] = Scenario(body, output, **options)
        return made

    return add


# --- what the world outside does -------------------------------------------------------------------------------------


async def approve(world: World, run: Run) -> None:
    await world.outside.runs.signal(run.id, "approve", "by Ada", signal_id="1")
    await world.outside.runs.signal(run.id, "approve", "by Bob", signal_id="2")


async def publish_payment(world: World, run: Run) -> None:
    if "paid" in await world.waiting(run):
        await world.outside.publish("paid", {"order": {"id": 7, "currency": "EUR"}, "amount": 5}, event_id="1")
        await world.outside.publish("paid", {"order": {"id": 8}, "amount": 6}, event_id="2")


async def call_webhook(world: World, run: Run) -> None:
    token = await world.outside.runs.value(run.id, "token")
    if token is not None:
        await world.outside.deliver_webhook(token, {"paid": True})


async def send_updates(world: World, run: Run) -> None:
    if not world.answers:
        await world.update(run, "", "empty")
    if world.answers:
        await world.update(run, "Main Street", "good")


async def resume_at_breakpoints(world: World, run: Run) -> None:
    if await world.waiting(run):
        await world.outside.runs.resume(run.id)


async def pause_once(world: World, run: Run) -> None:
    """Pause the run as early as can be, and let it go on in a later round."""
    paused = (await world.outside.runs.get(run.id)).paused
    if paused:
        await world.outside.runs.resume(run.id)
    elif not world.was_paused:
        await world.outside.runs.pause(run.id)
        world.was_paused = True


# --- scenarios -------------------------------------------------------------------------------------------------------


@scenario("before after")
async def a_sleep(world: World, ctx: Context) -> str:
    before = await world.step(ctx, "before")
    await ctx.sleep("nap", 100)
    return f"{before} {await world.step(ctx, 'after')}"


@scenario(["1", "2"])
async def sleeps_side_by_side(world: World, ctx: Context) -> list[str]:
    async def nap(name: str, seconds: float) -> str:
        await ctx.sleep(f"nap {name}", seconds)
        return await world.step(ctx, name)

    return await asyncio.gather(nap("1", 120), nap("2", 70))


@scenario(["by Ada", "by Bob"], outside=approve, taken=2)
async def two_signals(world: World, ctx: Context) -> list[str]:
    first = await ctx.wait_for_signal("approve", timeout=timedelta(days=1))
    await world.step(ctx, "between")
    return [first, await ctx.wait_for_signal("approve")]


@scenario(["by Ada", "by Bob"], outside=approve, taken=2)
async def signals_before_the_wait(world: World, ctx: Context) -> list[str]:
    await ctx.sleep("nap", 120)
    return [await ctx.wait_for_signal("approve"), await ctx.wait_for_signal("approve")]


@scenario(["with it", "by Ada", "by Bob"], outside=approve, signal_first=True, taken=3)
async def a_run_that_begins_with_a_signal(world: World, ctx: Context) -> list[str]:
    return [await ctx.wait_for_signal("approve") for _ in range(3)]


@scenario("too late")
async def a_signal_that_does_not_come(world: World, ctx: Context) -> str:
    try:
        return await ctx.wait_for_signal("approve", timeout=120)
    except SignalTimeout:
        return await world.step(ctx, "late", "too late")


@scenario({"order": {"id": 7, "currency": "EUR"}, "amount": 5}, outside=publish_payment)
async def an_event(world: World, ctx: Context) -> Any:
    payload = await ctx.wait_for_event("paid", match={"order": {"id": 7}})
    await world.step(ctx, "after")
    return payload


@scenario("too late", outside=publish_payment)
async def an_event_that_does_not_match(world: World, ctx: Context) -> str:
    try:
        return await ctx.wait_for_event("paid", match={"order": {"id": 9}}, timeout=120)
    except EventTimeout:
        return await world.step(ctx, "late", "too late")


@scenario({"amount": 5}, on_event="ordered")
async def a_run_that_an_event_starts(world: World, ctx: Context) -> Any:
    await world.step(ctx, "first")
    await ctx.sleep("nap", 60)
    return {"amount": 5}


@scenario({"paid": True}, outside=call_webhook)
async def a_webhook(world: World, ctx: Context) -> Any:
    hook = await ctx.webhook("payment")
    await ctx.set_event("token", hook.token)
    await world.step(ctx, "ask")
    body = await hook.wait(timeout=1000)
    await world.step(ctx, "after")
    return body


@scenario("too late")
async def a_webhook_that_is_not_called(world: World, ctx: Context) -> str:
    hook = await ctx.webhook("payment")
    try:
        return await hook.wait(timeout=60)
    except WebhookTimeout:
        return await world.step(ctx, "late", "too late")


def not_empty(argument: str) -> None:
    if not argument:
        raise ValueError("an address is not empty")


@scenario("Main Street", outside=send_updates)
async def an_update(world: World, ctx: Context) -> str:
    update = await ctx.on_update("address", not_empty)
    checked = await world.step(ctx, "check", f"{update.argument} is fine")
    await update.answer(checked)
    await ctx.sleep("nap", 120)
    return update.argument


@scenario("both", outside=resume_at_breakpoints)
async def breakpoints(world: World, ctx: Context) -> str:
    await ctx.breakpoint("first")
    await world.step(ctx, "between")
    await ctx.breakpoint("second")
    return "both"


@scenario("1 2", outside=pause_once)
async def a_pause(world: World, ctx: Context) -> str:
    first = await world.step(ctx, "1")
    await ctx.sleep("nap", 60)
    return f"{first} {await world.step(ctx, '2')}"


@scenario(["by Ada", None, "step", "failed twice"], outside=approve, taken=1)
async def everything_at_once(world: World, ctx: Context) -> list[Any]:
    def fail() -> None:
        world.calls["fail"] += 1
        raise ValueError("failed twice")

    async def failing() -> str:
        try:
            return await ctx.step("fail", fail, retry=Retry(max_attempts=2, backoff=30, jitter=0))
        except StepFailed as failure:
            return failure.error_message

    async with asyncio.TaskGroup() as group:
        branches = [
            group.create_task(ctx.wait_for_signal("approve")),
            group.create_task(ctx.sleep("nap", 90)),
            group.create_task(world.step(ctx, "step")),
            group.create_task(failing()),
        ]
    return [branch.result() for branch in branches]


@scenario(["nap", "by Ada", "by Bob"], outside=approve, taken=2)
async def the_first_of_two(world: World, ctx: Context) -> list[str]:
    """What is called off takes no signal away from who waits for it later."""
    nap = asyncio.ensure_future(ctx.sleep("nap", 60))
    approval = asyncio.ensure_future(ctx.wait_for_signal("never"))
    _, pending = await asyncio.wait({nap, approval}, return_when=asyncio.FIRST_COMPLETED)
    for branch in pending:
        branch.cancel()
    await world.step(ctx, "between")
    assert pending == {approval}
    return ["nap", await ctx.wait_for_signal("approve"), await ctx.wait_for_signal("approve")]


@scenario("group failed, by Ada", outside=approve, taken=1)
async def a_group_that_fails(world: World, ctx: Context) -> str:
    async def fail_later() -> None:
        await ctx.sleep("nap", 60)
        raise ValueError("group")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.wait_for_event("never"))
            group.create_task(ctx.breakpoint("never reached"))
            group.create_task(fail_later())
    except* ValueError as failures:
        failed = str(failures.exceptions[0])
    return f"{failed} failed, {await ctx.wait_for_signal('approve')}"


# --- living through them ---------------------------------------------------------------------------------------------


def scenario_job(made: Scenario, world: Callable[[], World]) -> Job:
    @job("scenario", on_event=made.on_event or ())
    async def run_scenario(ctx: Context, _: Any) -> Any:
        return await made.body(world(), ctx)

    return run_scenario


async def live_through(world: World, made: Scenario, point: CrashPoint) -> Run:
    """Let the world outside do its part until the run has ended, bringing the engine back when it has died."""
    run: Run | None = None
    for _ in range(MOST_ROUNDS):
        try:
            if run is None:
                run = await begin(world, made)
            await settle()
            run = await world.outside.runs.get(run.id)
            if run.is_terminal and world.pending_answer is None:
                return run
            if made.outside is not None and not run.is_terminal:
                await made.outside(world, run)
            await world.clock.advance(ROUND_SECONDS)
        except DurableWebError as error:
            is_of_the_crash = isinstance(error, SimulatedCrash) or "not running" in str(error)
            if not point.is_reached or not is_of_the_crash:
                raise
        if point.is_reached and not world.engine.is_running:
            await point
            await restart(world.engine)
    pytest.fail(f"The run does not come to its end; its steps are {await world.engine.runs.steps(run.id)}")


async def begin(world: World, made: Scenario) -> Run:
    """Trigger the run, or find it when that has happened already."""
    if made.on_event:
        await world.outside.publish(made.on_event, {"amount": 5}, event_id="ordered")
        return (await world.outside.runs.list())[0]
    if made.signal_first:
        return await world.outside.trigger_with_signal(
            "scenario", None, "approve", "with it", signal_id="0", idempotency_key="once"
        )
    return await world.outside.trigger("scenario", idempotency_key="once")


async def check(world: World, made: Scenario, run: Run) -> None:
    assert (run.status, run.output) == ("completed", made.output)
    assert len(await world.outside.runs.list()) == 1
    frames = [frame.to_frame() for frame in world.outside.internals.store.read_frames(run.id, 0, 10_000)]
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    status, ended = None, Counter()
    for frame in frames:
        assert status != "completed", "something came after the end"
        if frame.kind == "run_status":
            assert frame.status in LEGAL[status], f"{status} -> {frame.status}"
            status = frame.status.value
        elif frame.kind == "step_status" and frame.status in ("completed", "failed"):
            ended[frame.name] += 1
    assert status == "completed"
    assert set(ended.values()) <= {1}
    steps = await world.outside.runs.steps(run.id)
    assert {step.status for step in steps} <= {"completed", "failed", "cancelled"}
    taken = world.outside.internals.store.database.rows("SELECT status FROM durable_messages WHERE status = 'taken'")
    assert len(taken) == made.taken
    if made.outside is send_updates:
        assert world.answers == [("empty", "an address is not empty"), ("good", "Main Street is fine")]


@asynccontextmanager
async def one_engine(made: Scenario, **options: Any) -> AsyncIterator[World]:
    clock = MockClock()
    world: World
    async with engine(scenario_job(made, lambda: world), clock=clock, **options) as e:
        world = World(e, e, clock)
        yield world


async def sweep(made: Scenario, open_world: Callable[[], Any], sides: Iterable[str] = ("before", "after")) -> int:
    """Live through a scenario with a crash at each commit of it, before and after; how many commits there are."""
    for number in itertools.count(1):
        for side in sides:
            async with open_world() as world:
                point = crash_at(world.engine, **{side: number})
                try:
                    run = await live_through(world, made, point)
                    await check(world, made, run)
                except BaseException as error:
                    error.add_note(f"when the engine crashes {side} commit {number}")
                    raise
                if not point.is_reached:
                    return number - 1
    raise AssertionError


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_crash_before_or_after_any_commit_changes_nothing(name):
    made = SCENARIOS[name]
    assert await sweep(made, lambda: one_engine(made)) >= 4


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_crash_changes_nothing_where_waiting_runs_are_not_kept_in_memory(name):
    made = SCENARIOS[name]
    assert await sweep(made, lambda: one_engine(made, max_parked=0)) >= 4


@cpython_only("OPFS has one engine per file")
@pytest.mark.parametrize("name", [name for name, made in SCENARIOS.items() if made.outside is not None])
async def test_a_crash_changes_nothing_where_what_comes_from_outside_comes_by_another_engine(name, tmp_path):
    made = SCENARIOS[name]
    numbers = itertools.count()

    @asynccontextmanager
    async def two_engines() -> AsyncIterator[World]:
        path, clock = tmp_path / f"{next(numbers)}.sqlite3", MockClock()
        world: World
        options = {"clock": clock, "durability": "normal"}
        async with AsyncExitStack() as stack:
            executing = Engine(path, [scenario_job(made, lambda: world)], **options)
            reaching = Engine(path, [scenario_job(made, lambda: world)], max_concurrent_runs=0, **options)
            for each in (executing, reaching):
                await each.start()
                stack.push_async_callback(crash, each)
            world = World(executing, reaching, clock)
            yield world

    assert await sweep(made, two_engines, sides=["after"]) >= 4
