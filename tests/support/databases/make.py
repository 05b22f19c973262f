"""Records the runs in this folder, with the version of durable-web before the order of outcomes was recorded.

That was commit 0ec1ac9, with schema version 4. From the repository, with Python 3.11, in which asyncio.wait_for makes a
task:

    git worktree add ../earlier 0ec1ac9
    PYTHONPATH=../earlier:tests/engine python tests/support/databases/make.py

Of each database, what ``sqlite3.Connection.iterdump`` gives is kept: its schema, which is the same for all, in
schema_4.sql, its rows in a file of its own. Only tracebacks are left out, because they name folders.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path

import earlier_jobs as jobs

from durable_web import Engine, Run, RunStatus
from durable_web.testing import SimulatedCrash, crash, crash_at, restart

FOLDER = Path(__file__).parent
Record = Callable[[Engine], Awaitable[object]]
recorded: dict[str, Record] = {}


def scenario(record: Record) -> Record:
    recorded[record.__name__.replace("_", "-")] = record
    return record


async def wait(engine: Engine, run: Run, status: str) -> None:
    while (await engine.runs.get(run.id)).status != status:
        await asyncio.sleep(0.005)


async def stands_at(engine: Engine, run: Run, step: str) -> None:
    while step not in {step.name for step in await engine.runs.steps(run.id) if step.status == "running"}:
        await asyncio.sleep(0.005)
    await wait(engine, run, "waiting")


async def parked(engine: Engine, job: object, step: str) -> Run:
    run = await engine.trigger(job)
    await stands_at(engine, run, step)
    return run


# --- sequential runs --------------------------------------------------------------------------------------------------


@scenario
async def interrupted(engine: Engine) -> None:
    """The engine died between two steps."""
    point = crash_at(engine, after="two")
    await engine.trigger(jobs.interrupted)
    await point


@scenario
async def asleep(engine: Engine) -> None:
    await parked(engine, jobs.asleep, "nap")


@scenario
async def signalled(engine: Engine) -> None:
    await parked(engine, jobs.signalled, "go")


@scenario
async def retrying(engine: Engine) -> None:
    await parked(engine, jobs.retrying, "flaky")


@scenario
async def called_back(engine: Engine) -> None:
    run = await parked(engine, jobs.called_back, "news")
    (first, _) = await engine.runs.value(run.id, "tokens")
    await asyncio.sleep(0.01)
    await engine.deliver_webhook(first, "called back")
    await wait(engine, run, "waiting")
    await asyncio.sleep(0.1)


@scenario
async def parent(engine: Engine) -> None:
    run = await parked(engine, jobs.parent, "only")
    (child,) = [other for other in await engine.runs.list() if other.id != run.id]
    await stands_at(engine, child, "go")


@scenario
async def one_branch(engine: Engine) -> None:
    await parked(engine, jobs.one_branch, "nap")


@scenario
async def patched(engine: Engine) -> None:
    """The code was changed while the run waited: it was past the first patch, and not past the second."""
    engine.register(jobs.before_the_patch)
    run = await parked(engine, jobs.before_the_patch, "go")
    await restart(engine, *jobs.JOBS)
    await engine.runs.signal(run.id, "go")
    await stands_at(engine, run, "nap")


@scenario
async def cancelled(engine: Engine) -> None:
    """Cancelled, and nothing undone yet."""
    run = await engine.trigger(jobs.undone, "sleeps")
    await stands_at(engine, run, "nap")
    point = crash_at(engine, after=RunStatus.CANCELLING)
    with suppress(SimulatedCrash):
        await engine.runs.cancel(run.id, compensate=True)
    await point


@scenario
async def undone_after_cancel(engine: Engine) -> None:
    """In the middle of the compensation."""
    run = await engine.trigger(jobs.undone, "sleeps")
    await stands_at(engine, run, "nap")
    point = crash_at(engine, after="compensate:c")
    with suppress(SimulatedCrash):
        await engine.runs.cancel(run.id, compensate=True)
    await point


@scenario
async def undone_after_failure(engine: Engine) -> None:
    point = crash_at(engine, after="compensate:c")
    await engine.trigger(jobs.undone, "fails")
    await point


@scenario
async def failed(engine: Engine) -> None:
    await wait(engine, await engine.trigger(jobs.failed), "failed")


@scenario
async def completed(engine: Engine) -> None:
    await wait(engine, await engine.trigger(jobs.interrupted), "completed")


# --- runs with two operations busy at once ----------------------------------------------------------------------------


@scenario
async def gathered(engine: Engine) -> None:
    """The engine died when one of two steps had completed."""
    point = crash_at(engine, after="quick")
    await engine.trigger(jobs.gathered)
    await point


@scenario
async def parent_of_gathered(engine: Engine) -> None:
    point = crash_at(engine, after="quick")
    await engine.trigger(jobs.parent_of_gathered)
    await point


@scenario
async def quick_branches(engine: Engine) -> None:
    await parked(engine, jobs.quick_branches, "nap")


@scenario
async def nested(engine: Engine) -> None:
    await parked(engine, jobs.nested, "nap")


@scenario
async def called_off(engine: Engine) -> None:
    await parked(engine, jobs.called_off, "nap")


@scenario
async def mapped(engine: Engine) -> None:
    await parked(engine, jobs.mapped, "each[2]")
    while (await engine.runs.count())["waiting"] < 4:
        await asyncio.sleep(0.01)


@scenario
async def failed_in_branches(engine: Engine) -> None:
    await wait(engine, await engine.trigger(jobs.failed_in_branches), "failed")


# --- making them ------------------------------------------------------------------------------------------------------


async def make(name: str, record: Record, folder: str) -> None:
    path = f"{folder}/{name}.sqlite3"
    made = [] if name == "patched" else jobs.JOBS
    engine = Engine(path, made, exclusive=True)
    await engine.start()
    await record(engine)
    await crash(engine)
    with closing(sqlite3.connect(path)) as connection:
        for table in ("durable_runs", "durable_steps", "durable_attempts"):
            connection.execute(f"UPDATE {table} SET error = JSON_SET(error, '$.traceback', '') WHERE error IS NOT NULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        statements = [
            statement for statement in connection.iterdump() if statement not in ("BEGIN TRANSACTION;", "COMMIT;")
        ]
    schema = [statement for statement in statements if not statement.startswith("INSERT")]
    rows = [statement for statement in statements if statement.startswith("INSERT")]
    (FOLDER / f"schema_{version}.sql").write_text("\n".join([*schema, f"PRAGMA user_version = {version};", ""]))
    (FOLDER / f"{name}.sql").write_text("\n".join([*rows, ""]))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, record in recorded.items():
            await make(name, record, folder)


if __name__ == "__main__":
    asyncio.run(main())
