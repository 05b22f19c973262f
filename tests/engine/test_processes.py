"""Several engines on one file: every run executed once, keys and limits hold across them, each sees what others write.

Two processes share a file and one of them is killed again and again; everything that time decides is tested with two
engines in this process, on one clock that stands still until it is moved.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from watching import IN_PYODIDE, finish

import durable_web
from durable_web import Context, Engine, RunStatus, job
from durable_web.testing import MockClock, settle
from durable_web.triggers import Trigger

pytestmark = pytest.mark.skipif(IN_PYODIDE, reason="OPFS has one engine per file")

LEASE = 30


class Gates:
    """Lets each step of the jobs under test go on when the test says so, and tells who has come how far."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.stopped: list[Any] = []
        self._events: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)

    def open(self, *names: Any) -> None:
        for name in names:
            self._events[name].set()

    async def pass_through(self, name: Any) -> Any:
        self.begun.append(name)
        try:
            await self._events[name].wait()
        except asyncio.CancelledError:
            self.stopped.append(name)
            raise
        return name


@pytest.fixture
def gates() -> Gates:
    return Gates()


@pytest.fixture
def gated(gates):
    """A job with one step, which waits for the gate named after the run's input and the attempt at the run."""

    @job("gated")
    async def gated_job(ctx: Context, name: str) -> list[Any]:
        return await ctx.step("pass", gates.pass_through, (name, ctx.attempt))

    return gated_job


@pytest.fixture
def pair(running):
    """``pair(job, clock)``: two engines on one file."""

    def start(item: Any, clock: MockClock, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None):
        shared = {"clock": clock, "exclusive": False, "lease": LEASE}
        return running(item, **shared, **(first or {})), running(item, **shared, **(second or {}))

    return start


IDLE = {"max_concurrent_runs": 0}


def silence(engine: Engine) -> None:
    """Let an engine neither renew its leases nor look at the file, as when its event loop is held up."""
    for timer in engine._dispatcher._timers.values():
        timer.cancel()


def stored_frames(engine: Engine, run_id: str) -> list[Any]:
    return [frame.to_frame() for frame in engine._store.read_frames(run_id, 0, 1000)]


async def follow(engine: Engine, run_id: str) -> list[Any]:
    return [frame async for frame in engine.watch(run_id)]


# --- noticing each other ---------------------------------------------------------------------------------------------


async def test_a_run_triggered_on_one_engine_is_executed_by_an_idle_one_within_a_second(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, first=IDLE)
    async with first as idle, second as busy:
        run = await idle.trigger("gated", "a")
        assert not gates.begun
        await clock.advance(1)
        assert gates.begun == [("a", 1)]
        gates.open(("a", 1))
        await settle()
        assert (await busy.get_run(run.id)).status == RunStatus.COMPLETED


async def test_a_run_scheduled_on_one_engine_is_executed_by_another_when_its_time_has_come(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, first=IDLE)
    async with first as idle, second:
        await idle.trigger("gated", "a", run_at=durable_web.model.from_milliseconds(clock.now() + 5000))
        await clock.advance(4.9)
        assert not gates.begun
        await clock.advance(0.1)
        assert gates.begun == [("a", 1)]
        gates.open(("a", 1))


async def test_a_wait_for_a_run_ends_within_a_second_of_its_end_on_another_engine(pair, gated, gates):
    clock = MockClock()
    first, second = pair(gated, clock, first=IDLE)
    async with first as idle, second:
        run = await idle.trigger("gated", "a")
        waiter = asyncio.create_task(idle.wait_for_run(run.id))
        await clock.advance(1)
        gates.open(("a", 1))
        await clock.advance(1)
        assert waiter.done()
        assert waiter.result().output == ("a", 1)


async def test_every_engine_sees_every_frame_once_and_in_order_whoever_wrote_it(pair, gates):
    @job("chatty")
    async def chatty(ctx: Context, _: None) -> str:
        for number in range(3):
            ctx.log.info(f"on the way to {number}, attempt {ctx.attempt}")
            await ctx.step(f"step {number}", gates.pass_through, (number, ctx.attempt))
        return "done"

    clock = MockClock()
    gates.open((0, 1), (1, 2), (2, 3))
    first, second = pair(chatty, clock, second=IDLE)
    async with first as executing, second as other:
        run = await other.trigger("chatty")
        watchers = [asyncio.create_task(follow(engine, run.id)) for engine in (executing, other)]
        await clock.advance(1)
        assert gates.begun == [(0, 1), (1, 1)]

        await other.cancel(run.id)  # the watchers may end here ...
        await other.retry(run.id)
        again = [asyncio.create_task(follow(engine, run.id)) for engine in (executing, other)]  # ... and these begin
        await clock.advance(1)
        assert gates.begun[2:] == [(1, 2), (2, 2)]
        await executing.cancel(run.id)
        gates.open((2, 2))
        await clock.advance(1)
        await other.retry(run.id)
        last = [asyncio.create_task(follow(engine, run.id)) for engine in (executing, other)]
        await clock.advance(1)
        assert gates.begun[4:] == [(2, 3)]

        truth = stored_frames(executing, run.id)
        assert [frame.seq for frame in truth] == list(range(1, len(truth) + 1))
        assert truth[-1].status == RunStatus.COMPLETED
        for seen in [*watchers, *again, *last]:
            assert seen.done()
            assert seen.result() == truth[: len(seen.result())]
            assert seen.result()[-1].status in (RunStatus.CANCELLED, RunStatus.COMPLETED)
        assert all(seen.result() == truth for seen in last)


async def test_a_watcher_is_served_while_two_engines_write_to_one_run_in_turns(pair, gates):
    @job("counter")
    async def counter(ctx: Context, _: None) -> None:
        for number in range(6):
            await ctx.step(f"{number}", gates.pass_through, number)

    clock = MockClock()
    first, second = pair(counter, clock, first={"max_parked": 0}, second={"max_parked": 0})
    async with first as one, second as two:
        run = await one.trigger("counter")
        watchers = [asyncio.create_task(follow(engine, run.id)) for engine in (one, two)]
        for number in range(6):
            gates.open(number)
            await clock.advance(0.3)
            engine = (one, two)[number % 2]
            store = engine._store  # an entry that another engine than the executing one appends, in between
            with store.transaction():
                store.steps.append_log(run.id, clock.now(), _line(f"between {number}"))
        await clock.advance(1)
        truth = stored_frames(one, run.id)
        assert [frame.seq for frame in truth] == list(range(1, len(truth) + 1))
        for watcher in watchers:
            ended = next(i for i, frame in enumerate(truth) if getattr(frame, "status", "") == "completed" and i > 5)
            assert watcher.done()
            assert watcher.result() == truth[: len(watcher.result())]
            assert len(watcher.result()) > ended - 2


def _line(message: str) -> dict[str, Any]:
    return {"level": "info", "message": message, "fields": {}, "step": None, "attempt": 1}
