"""Runs that an earlier version recorded: sequential ones go on, others are dead, and begin anew when retried."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from earlier_databases import restore
from earlier_jobs import JOBS, LONG, called, repaired
from watching import cpython_only, finish

from durable_web import Context, Engine, Run, RunStatus, job

REASON = "recorded by an earlier version"


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    called.clear()
    repaired.clear()
    yield
    called.clear()
    repaired.clear()


async def the_run(engine: Engine, of: str) -> Run:
    (run,) = [run for run in await engine.runs.list() if run.job == of]
    return run


async def goes(engine: Engine, run: Run, status: str) -> None:
    """Wait until a run has that status now; its timeline tells of earlier times as well."""
    while (await engine.runs.get(run.id)).status != status:
        await asyncio.sleep(0.01)


# --- sequential runs go on, and call no function of a recorded step again ---------------------------------------------


async def test_a_run_that_was_between_two_steps_goes_on_with_the_next_one(running, database_path):
    restore("interrupted", database_path)
    async with running(*JOBS) as engine:
        run = await finish(engine, await the_run(engine, "interrupted"))
        assert (run.status, run.output, called) == (RunStatus.COMPLETED, ["one", "two", "three"], ["three"])


async def test_a_run_that_slept_goes_on_when_its_time_has_come(running, database_path, clock):
    restore("asleep", database_path)
    async with running(*JOBS, clock=clock) as engine:
        run = await finish(engine, await the_run(engine, "asleep"))
        assert (run.output, called) == (["before", "after"], ["after"])
        assert await engine.runs.value(run.id, "stage") == "asleep"


async def test_a_run_that_waited_for_a_signal_goes_on_with_it(running, database_path):
    restore("signalled", database_path)
    async with running(*JOBS) as engine:
        run = await the_run(engine, "signalled")
        await engine.runs.signal(run.id, "go", "now")
        assert ((await finish(engine, run)).output, called) == (["before", "now", "after"], ["after"])


async def test_a_step_that_waited_for_its_next_attempt_has_it_and_keeps_count(running, database_path, clock):
    restore("retrying", database_path)
    repaired.add("flaky")
    async with running(*JOBS, clock=clock) as engine:
        run = await finish(engine, await the_run(engine, "retrying"))
        assert (run.output, called) == (["before", "flaky"], ["flaky"])
        (flaky,) = [step for step in await engine.runs.steps(run.id) if step.name == "flaky"]
        assert (flaky.attempt, len(flaky.failed_attempts)) == (2, 1)


async def test_a_run_with_webhooks_gets_the_call_of_one_and_waits_for_that_of_the_other(running, database_path):
    restore("called-back", database_path)
    async with running(*JOBS) as engine:
        run = await the_run(engine, "called-back")
        (_, second) = await engine.runs.value(run.id, "tokens")
        await engine.publish("news", "good")
        await goes(engine, run, "waiting")
        await engine.deliver_webhook(second, "called again")
        run = await finish(engine, run)
        assert run.output == ["ask", "good", "called back", "after", "called again"]
        assert called == ["after"]


async def test_a_run_that_waited_for_its_child_gets_its_output(running, database_path):
    restore("parent", database_path)
    async with running(*JOBS) as engine:
        child = await the_run(engine, "child")
        await engine.runs.signal(child.id, "go")
        run = await finish(engine, await the_run(engine, "parent"))
        assert (run.output, called) == (["before", "only ends", "after"], ["only ends", "after"])
        assert len(await engine.runs.list()) == 2


async def test_a_run_whose_tasks_were_busy_one_after_the_other_goes_on(running, database_path, clock):
    restore("one-branch", database_path)
    async with running(*JOBS, clock=clock) as engine:
        run = await the_run(engine, "one-branch")
        while not (await engine.runs.get(run.id)).is_terminal:
            await clock.advance(1)
        run = await engine.runs.get(run.id)
        assert (run.output, called) == (["store a", "store b", "load more"], ["load more"])


async def test_a_patch_applies_where_it_did(running, database_path, clock):
    restore("patched", database_path)
    async with running(*JOBS, clock=clock) as engine:
        run = await finish(engine, await the_run(engine, "patched"))
        assert (run.output, called) == (["one", "two", "afterwards"], [])


@pytest.mark.parametrize(
    ("database", "status", "undone"),
    [
        ("cancelled", RunStatus.CANCELLED, ["undo c", "undo b", "undo a"]),
        ("undone-after-cancel", RunStatus.CANCELLED, ["undo b", "undo a"]),
        ("undone-after-failure", RunStatus.FAILED, ["undo b", "undo a"]),
    ],
)
async def test_a_compensation_goes_on_where_it_was(running, database_path, database, status, undone):
    restore(database, database_path)
    async with running(*JOBS) as engine:
        run = await finish(engine, await the_run(engine, "undone"))
        assert (run.status, called) == (status, undone)


async def test_a_run_that_has_failed_is_retried_from_the_step_that_failed(running, database_path):
    restore("failed", database_path)
    repaired.add("last")
    async with running(*JOBS) as engine:
        run = await finish(engine, await engine.runs.retry((await the_run(engine, "failed")).id))
        assert (run.output, called) == (["one", "two", "last"], ["last"])


async def test_a_run_that_has_completed_can_be_forked(running, database_path):
    restore("completed", database_path)
    async with running(*JOBS) as engine:
        run = await the_run(engine, "interrupted")
        fork = await finish(engine, await engine.runs.fork(run.id, "three"))
        assert (run.output, fork.output, called) == (["one", "two", "three"],) * 2 + (["three"],)


# --- runs with two operations busy at once are dead -------------------------------------------------------------------

UNORDERED = {
    "gathered": ["quick", "slow"],
    "quick-branches": ["load a", "load b", "store a", "store b", "after"],
    "nested": ["outer"],
    "called-off": ["instead", "after"],
}
"""Databases, each with one run of the job of that name; and which steps that calls when it begins anew."""


@pytest.mark.parametrize(
    "exclusive", [True, pytest.param(False, marks=cpython_only("opens the file as one of several engines"))]
)
@pytest.mark.parametrize("name", UNORDERED)
async def test_a_run_whose_order_is_not_known_is_dead_and_calls_nothing(running, database_path, name, exclusive):
    restore(name, database_path)
    async with running(*JOBS, exclusive=exclusive) as engine:
        run = await the_run(engine, name)
        assert (run.status, run.error.type) == (RunStatus.DEAD, "RecordedByEarlierVersion")
        assert REASON in run.error.message
        assert called == []


@pytest.mark.parametrize("name", UNORDERED)
async def test_a_run_whose_order_is_not_known_begins_anew_when_it_is_retried(running, database_path, clock, name):
    restore(name, database_path)
    repaired.update({"slow", "nested"})
    async with running(*JOBS, clock=clock) as engine:
        run = await engine.runs.retry((await the_run(engine, name)).id)
        while not (await engine.runs.get(run.id)).is_terminal:
            await clock.advance(LONG)
        run = await engine.runs.get(run.id)
        assert (run.status, sorted(called)) == (RunStatus.COMPLETED, sorted(UNORDERED[name]))


async def test_a_run_that_failed_in_branches_begins_anew_when_it_is_retried(running, database_path):
    restore("failed-in-branches", database_path)
    repaired.add("last")
    async with running(*JOBS) as engine:
        run = await the_run(engine, "failed-in-branches")
        assert run.error.type == "StepFailed"
        run = await finish(engine, await engine.runs.retry(run.id))
        assert (run.output, sorted(called)) == (["one", "two", "last"], ["last", "one", "two"])


async def test_a_parent_that_waits_for_a_dead_child_fails_with_the_reason(running, database_path):
    restore("parent-of-gathered", database_path)
    async with running(*JOBS) as engine:
        run = await finish(engine, await the_run(engine, "parent-of-gathered"))
        assert (run.status, run.error.type) == (RunStatus.FAILED, "ChildFailed")
        assert REASON in run.error.message
        assert (await the_run(engine, "gathered")).status == RunStatus.DEAD
        assert called == []


async def test_the_children_of_a_dead_parent_are_cancelled_and_go_on_when_it_is_retried(running, database_path):
    restore("mapped", database_path)
    async with running(*JOBS) as engine:
        run = await the_run(engine, "mapped")
        children = [other for other in await engine.runs.list() if other.job == "child"]
        assert run.status == RunStatus.DEAD
        assert {child.status for child in children} == {RunStatus.CANCELLED}
        await engine.runs.retry(run.id)
        for child in children:
            await goes(engine, child, "waiting")
            await engine.runs.signal(child.id, "go")
        run = await finish(engine, run)
        assert (run.output, sorted(called)) == (["a ends", "b ends", "c ends"],) * 2


async def test_a_dead_letter_is_sent_for_a_run_whose_order_is_not_known(running, database_path):
    restore("gathered", database_path)
    letters: list[dict[str, object]] = []

    @job("letters")
    async def take_letter(ctx: Context, letter: dict) -> None:
        letters.append(letter)

    async with running(*JOBS, dead_letter=take_letter) as engine:
        await finish(engine, await the_run(engine, "letters"))
        (letter,) = letters
        assert (letter["job"], letter["error"]["type"]) == ("gathered", "RecordedByEarlierVersion")


async def test_a_paused_run_whose_order_is_not_known_is_dead(running, database_path):
    restore("quick-branches", database_path)
    with closing(sqlite3.connect(database_path)) as connection, connection:
        connection.execute("UPDATE durable_runs SET paused = 1")
    async with running(*JOBS) as engine:
        run = await the_run(engine, "quick-branches")
        assert run.status == RunStatus.DEAD
        assert {status: runs for status, runs in (await engine.runs.count()).items() if runs} == {"dead": 1}
