"""Nothing grows for ever: what becomes of the traces of what is over."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from crashing import survive_every_death
from watching import finish

from durable_web import (
    ChildFailed,
    Concurrency,
    Context,
    Debounce,
    Engine,
    RateLimit,
    Retry,
    Singleton,
    StepFailed,
    Throttle,
    UpdateRejected,
    job,
)
from durable_web.testing import MockClock, settle

DAY = 86_400


def count(engine: Engine, table: str) -> int:
    return engine.internals.store.database.row(f"SELECT COUNT(*) FROM durable_{table}")[0]


def rows(engine: Engine) -> dict[str, int]:
    """How many rows there are in each of the engine's tables, where there are any."""
    tables = engine.internals.store.database.rows(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'durable_*'"
    )
    counts = {name.removeprefix("durable_"): count(engine, name.removeprefix("durable_")) for (name,) in tables}
    return {name: number for name, number in counts.items() if number}


# --- ids of events ---------------------------------------------------------------------------------------------------


async def test_an_event_is_known_again_for_thirty_days(running):
    clock = MockClock()

    @job("ship", on_event="paid")
    async def ship(ctx: Context, _: Any) -> None: ...

    async with running(ship, clock=clock) as engine:
        assert len(await engine.publish("paid", event_id="payment 1")) == 1
        clock.set_forward(29.9 * DAY)
        assert await engine.publish("paid", event_id="payment 1") == []
        clock.set_forward(0.2 * DAY)
        assert len(await engine.publish("paid", event_id="payment 1")) == 1


async def test_ids_of_events_are_forgotten_as_others_come(running):
    clock = MockClock()
    async with running(clock=clock) as engine:
        for number in range(100):
            await engine.publish("paid", event_id=f"early {number}")
        clock.set_forward(31 * DAY)
        for number in range(20):
            await engine.publish("paid", event_id=f"late {number}")
        assert count(engine, "events") == 20


async def test_an_event_is_published_once_whenever_the_engine_dies_also_while_it_forgets_others(running):
    clock = MockClock()

    @job("ship", on_event="paid")
    async def ship(ctx: Context, payment: str) -> str:
        return payment

    async def play(engine: Engine, key: str) -> None:
        await engine.publish("paid", key, event_id=key)
        await settle()

    async def check(engine: Engine, key: str, _: None) -> None:
        runs = await engine.runs.list(limit=1000)
        assert [run.output for run in runs if run.input == key] == [key]
        assert count(engine, "events") <= 2
        clock.set_forward(31 * DAY)

    await survive_every_death(running, [ship], play, check, clock=clock)


# --- runs ------------------------------------------------------------------------------------------------------------


async def test_of_deleted_runs_nothing_is_left_but_that_they_were_deleted(running):
    """Whatever a run can record, this one does."""
    clock = MockClock()
    rules = {
        "concurrency": Concurrency(limit=5, key="n"),
        "throttle": Throttle(5, "1m", key="n"),
        "rate_limit": RateLimit(5, "1m", key="n"),
        "debounce": Debounce("n", "1s"),
        "singleton": Singleton("n"),
    }

    @job("child", **rules)
    async def child(ctx: Context, _: dict) -> None:
        raise ValueError("out of paper")

    @job("everything", **rules)
    async def everything(ctx: Context, value: dict) -> None:
        def fail_once() -> None:
            if ctx.attempt == 1:
                raise ValueError

        await ctx.step("retried", fail_once, retry=Retry(max_attempts=2, backoff=60, jitter=0))
        await ctx.set_event("state", "begun")
        ctx.log.info("begun")
        ctx.progress(1, 2)
        await ctx.wait_for_signal("go")
        await ctx.wait_for_event("news")
        await (await ctx.on_update("change")).answer("changed")
        await (await ctx.webhook("hook")).wait(timeout=1)

    @job("asks")
    async def asks(ctx: Context, value: dict) -> None:
        for name in ("first", "second"):
            with suppress(ChildFailed):
                await ctx.run_job(name, child, value)
        await ctx.run_job("rest", everything, value)

    async with running(everything, child, asks, clock=clock) as engine:
        run = await engine.trigger(asks, {"n": 1}, labels={"of": "test"})
        await clock.advance(5)
        (other,) = await engine.runs.list(job="everything")
        for payload in "ab":
            await engine.runs.signal(other.id, "go", payload)
        await clock.advance(120)
        await engine.publish("news", event_id="n1")
        with suppress(UpdateRejected, StepFailed):
            assert await engine.runs.update(other.id, "change") == "changed"
        await clock.advance(5)
        assert (await finish(engine, run)).error.type == "ChildFailed"  # of the webhook, which was not called
        assert {"steps", "attempts", "values", "labels", "messages", "gates", "frames", "runs"} <= rows(engine).keys()
        deleted = await engine.runs.delete_many(everything=True)
        assert len(deleted) == 4
        left = rows(engine)
        assert left.pop("frames") == len(deleted)
        assert left.keys() <= {"counts", "events", "uses"}
        assert engine.internals.store.database.row("SELECT SUM(runs) FROM durable_counts")[0] == 0
        clock.set_forward(DAY)
        await engine.trigger(everything, {"n": 2})
        assert count(engine, "uses") == 1


async def test_what_is_known_of_deleted_runs_is_forgotten_as_others_are_deleted(running):
    clock = MockClock()

    @job("quick")
    async def quick(ctx: Context, _: Any) -> None: ...

    async def run_and_delete(engine: Engine, how_many: int) -> None:
        for _ in range(how_many):
            await engine.runs.delete((await finish(engine, await engine.trigger(quick))).id)

    async with running(quick, clock=clock) as engine:
        await run_and_delete(engine, 20)
        clock.set_forward(31 * DAY)
        await run_and_delete(engine, 15)
        assert rows(engine) == {"frames": 15, "counts": 2}
