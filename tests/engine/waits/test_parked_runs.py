"""Ten thousand runs that wait: they are in the database, a few of them in memory, and cost the others nothing."""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from watching import cpython_only, finish

from durable_web import Context, Engine, RunStatus, Trigger, job
from durable_web._execution.run import Execution
from durable_web.testing import MockClock, crash, engine, settle

MANY = 10_000
KEPT = 50
START = 1_800_000_000_000
PATIENT = {"lease": 1e9, "exclusive": True, "durability": "normal", "max_concurrent_runs": 1000}


@job("waits")
async def waits(ctx: Context, number: int) -> str:
    """Waits for a signal, and longer the higher its number is."""
    branches = [
        asyncio.ensure_future(ctx.wait_for_signal("go")),
        asyncio.ensure_future(ctx.sleep("nap", 3600 + number)),
    ]
    done, _ = await asyncio.wait(branches, return_when=asyncio.FIRST_COMPLETED)
    return "signal" if branches[0] in done else "nap"


async def park(e: Engine, count: int) -> None:
    """Make so many runs, and let them come to wait."""
    for first in range(0, count, 1000):
        await e.trigger_many([Trigger(waits, number) for number in range(first, min(first + 1000, count))])
        while (await e.runs.count()).get("waiting", 0) < min(first + 1000, count):
            await settle()


def alive() -> int:
    """How many executions are in memory."""
    gc.collect()
    return sum(isinstance(item, Execution) for item in gc.get_objects())


@cpython_only("what other tests have left is freed there at any moment")
@pytest.mark.parametrize("kept", [0, 1, KEPT])
async def test_no_more_waiting_runs_are_in_memory_than_the_engine_may_keep(kept):
    before = alive()  # what earlier tests of this process have left
    async with engine(waits, clock=MockClock(), max_parked=kept, **PATIENT) as e:
        await park(e, 300)
        assert len(e.internals.dispatcher.parked) == kept
        assert alive() - before == kept
        body_and_branches = 3
        loops = [execution.loop for execution in e.internals.dispatcher.parked.values()]
        assert sum(len(asyncio.all_tasks(loop)) for loop in loops) == kept * body_and_branches


async def test_the_runs_that_have_waited_longest_leave_memory_first():
    async with engine(waits, clock=MockClock(), max_parked=10, **PATIENT) as e:
        await park(e, 100)
        kept = {(await e.runs.get(run_id)).input for run_id in e.internals.dispatcher.parked}
    assert kept == set(range(90, 100))


async def test_functions_that_were_made_in_a_job_keep_nothing_of_it_in_memory():
    @job("closures")
    async def closures(ctx: Context, _: None) -> None:
        def work() -> str:
            return ctx.run_id

        await ctx.step("function", work)
        await ctx.step("lambda", lambda: ctx.run_id)

    before = alive()
    async with engine(closures) as e:
        for _ in range(10):
            await e.trigger_and_wait(closures)
        await settle()
        assert alive() == before


# --- ten thousand ----------------------------------------------------------------------------------------------------

cpython = cpython_only("it takes minutes there to make ten thousand runs")


@pytest.fixture(scope="module")
def parked(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Databases in which that many runs wait."""
    folder = tmp_path_factory.mktemp("parked")
    before = alive()

    async def make(count: int) -> Path:
        async with Engine(
            folder / f"{count}.sqlite3", [waits], clock=MockClock(START), max_parked=KEPT, **PATIENT
        ) as e:
            await park(e, count)
            assert alive() - before <= KEPT
            await e.stop(drain=False)
        return folder / f"{count}.sqlite3"

    return {count: asyncio.run(make(count)) for count in (10, MANY)}


@pytest.fixture
def reopened(parked: dict[int, Path], tmp_path: Path) -> Callable[[int], Engine]:
    """An engine, not yet started, on a copy of a database in which that many runs wait."""

    def reopen(count: int) -> Engine:
        shutil.copy(parked[count], tmp_path / f"{count}.sqlite3")
        return Engine(tmp_path / f"{count}.sqlite3", [waits], clock=MockClock(START), max_parked=KEPT, **PATIENT)

    return reopen


class Work:
    """What SQLite does for an engine, in instructions of its virtual machine: the same on every machine."""

    def __init__(self, e: Engine) -> None:
        self.instructions = 0
        open_store = e.settings.open_store

        def open_and_count():
            store = open_store()
            store.database.connection.set_progress_handler(self._count, 1)
            return store

        e.settings.open_store = open_and_count

    def _count(self) -> None:
        self.instructions += 1

    @contextmanager
    def measured(self, into: list[int]) -> Iterator[None]:
        before = self.instructions
        yield
        into.append(self.instructions - before)


@cpython
async def test_starting_does_not_depend_on_how_many_runs_wait(reopened):
    work: list[int] = []
    before = alive()
    for count in (10, MANY):
        e = reopened(count)
        with Work(e).measured(work):
            await e.start()
            await settle()
        assert await e.runs.count() == {"waiting": count}
        assert alive() == before
        await crash(e)
    few, many = work
    assert 0 < many < 1.2 * few


@cpython
async def test_what_a_signal_costs_does_not_depend_on_how_many_runs_wait(reopened):
    work: list[int] = []
    for count in (10, MANY):
        e = reopened(count)
        counter = Work(e)
        await e.start()
        (run,) = await e.runs.list(limit=1)
        with counter.measured(work):
            await e.runs.signal(run.id, "go")
            await settle()
        assert (await e.runs.get(run.id)).output == "signal"
        await crash(e)
    few, many = work
    assert 0 < many < 1.2 * few


@cpython
async def test_one_timer_wakes_the_one_that_is_due(reopened):
    work: list[int] = []
    for count in (10, MANY):
        e = reopened(count)
        counter, clock = Work(e), e.settings.clock
        await e.start()
        await settle()
        heartbeat, due = 1, 1
        assert len([timer for _, _, timer in clock._timers if timer.callback is not None]) == heartbeat + due
        with counter.measured(work):
            await clock.advance(3600)
        assert await e.runs.count() == {"waiting": count - 1, "completed": 1}
        (run,) = await e.runs.list(status=RunStatus.COMPLETED)
        assert (run.input, run.output) == (0, "nap")
        await crash(e)
    few, many = work
    assert 0 < many < 1.2 * few


@cpython
async def test_all_of_them_go_on_when_their_time_has_come_while_the_engine_was_closed(reopened):
    before = alive()
    e = reopened(MANY)
    e.settings.clock.set_forward(3600 + MANY)
    await e.start()
    while (await e.runs.count()).get("completed") != MANY:
        await e.settings.clock.advance(0)
    assert alive() - before <= KEPT
    assert (await finish(e, (await e.runs.list(limit=1))[0])).output == "nap"
    await crash(e)
