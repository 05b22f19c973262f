"""ctx.transaction: the application's rows and the checkpoint are one commit."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from typing import Any

import pytest
from watching import finish, timeline

from durable_web import Context, RunStatus, StepFailed, job
from durable_web.testing import MockClock, crash, settle


def create(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE item (value)")


def insert(connection: sqlite3.Connection, value: Any) -> int:
    connection.execute("INSERT INTO item VALUES (?)", (value,))
    return count(connection)


def count(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT COUNT(*) FROM item").fetchone()[0]


async def test_rows_and_checkpoint_are_committed_together(running):
    @job("save")
    async def save(ctx: Context, _: None) -> int:
        await ctx.transaction("create", create)
        return await ctx.transaction("insert", insert, 1)

    async with running(save) as engine:
        run = await finish(engine, await engine.trigger("save"))
    assert run.output == 1


async def test_no_row_is_inserted_twice_when_the_engine_dies_between_transactions(running):
    reached = asyncio.Event()

    @job("save")
    async def save(ctx: Context, _: None) -> int:
        await ctx.transaction("create", create)
        for number in range(3):
            await ctx.transaction(f"insert {number}", insert, number)
            if number == 1 and ctx.attempt == 1:
                reached.set()
                await asyncio.Event().wait()
        return await ctx.transaction("count", count)

    async with running(save) as engine:
        run = await engine.trigger("save")
        await reached.wait()
        await crash(engine)
    async with running(save) as engine:
        assert (await finish(engine, run)).output == 3


async def test_a_failing_function_leaves_no_row_but_its_failure(running):
    def insert_and_fail(connection: sqlite3.Connection) -> None:
        insert(connection, 1)
        raise ValueError("after the row")

    @job("half")
    async def half(ctx: Context, _: None) -> int:
        await ctx.transaction("create", create)
        with pytest.raises(StepFailed, match="ValueError: after the row"):
            await ctx.transaction("insert", insert_and_fail)
        return await ctx.transaction("count", count)

    async with running(half) as engine:
        run = await finish(engine, await engine.trigger("half"))
        steps = {step.name: step.status for step in await engine.runs.steps(run.id)}
    assert run.output == 0
    assert steps["insert"] == "failed"


async def test_a_result_that_cannot_be_stored_leaves_no_row(running):
    def insert_and_return_object(connection: sqlite3.Connection) -> object:
        insert(connection, 1)
        return object()

    @job("lossy")
    async def lossy(ctx: Context, _: None) -> int:
        await ctx.transaction("create", create)
        with pytest.raises(StepFailed, match="SerializationError"):
            await ctx.transaction("insert", insert_and_return_object)
        return await ctx.transaction("count", count)

    async with running(lossy) as engine:
        assert (await finish(engine, await engine.trigger("lossy"))).output == 0


async def test_an_async_function_is_refused_with_a_clear_error(running):
    async def insert_async(connection: sqlite3.Connection) -> None: ...

    @job("async")
    async def async_job(ctx: Context, _: None) -> None:
        await ctx.transaction("insert", insert_async)

    async with running(async_job) as engine:
        run = await finish(engine, await engine.trigger("async"))
    assert run.status == RunStatus.FAILED
    assert "must be synchronous" in run.error.message


def commit_by_statement(connection: sqlite3.Connection) -> None:
    insert(connection, 1)
    connection.execute("COMMIT")


def commit_by_method(connection: sqlite3.Connection) -> None:
    insert(connection, 1)
    connection.commit()


def commit_by_script(connection: sqlite3.Connection) -> None:
    insert(connection, 1)
    connection.executescript("INSERT INTO item VALUES (2);")


def commit_by_context_manager(connection: sqlite3.Connection) -> None:
    with connection:
        insert(connection, 1)


def write_to_the_engines_tables(connection: sqlite3.Connection) -> None:
    insert(connection, 1)
    connection.execute("DELETE FROM durable_runs")


@pytest.mark.parametrize(
    "function",
    [commit_by_statement, commit_by_method, commit_by_script, commit_by_context_manager, write_to_the_engines_tables],
)
async def test_what_would_tear_rows_and_checkpoint_apart_is_refused(running, function):
    @job("tear")
    async def tear(ctx: Context, _: None) -> int:
        await ctx.transaction("create", create)
        with pytest.raises(StepFailed, match="TransactionError"):
            await ctx.transaction("tear", function)
        return await ctx.transaction("count", count)

    async with running(tear) as engine:
        assert (await finish(engine, await engine.trigger("tear"))).output == 0


def roll_back(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO item VALUES (1)")
    connection.execute("INSERT OR ROLLBACK INTO item VALUES (1)")


def roll_back_and_go_on(connection: sqlite3.Connection) -> str:
    with suppress(sqlite3.IntegrityError):
        roll_back(connection)
    connection.execute("INSERT INTO item VALUES (2)")
    return "as if nothing had happened"


def roll_back_and_return(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.IntegrityError):
        roll_back(connection)


ROLLING_BACK = [roll_back, roll_back_and_go_on, roll_back_and_return]


@pytest.mark.parametrize("function", ROLLING_BACK)
async def test_a_function_that_rolls_the_transaction_back_fails_and_leaves_no_row(running, function):
    calls: list[int] = []

    def call(connection: sqlite3.Connection) -> Any:
        calls.append(1)
        return function(connection)

    @job("save")
    async def save(ctx: Context, _: None) -> list[Any]:
        await ctx.transaction("create", lambda c: c.execute("CREATE TABLE item (value UNIQUE)") and None)
        try:
            outcome = await ctx.transaction("save", call)
        except StepFailed as error:
            outcome = (error.error_type, "OR ROLLBACK" in error.error_message)
        return [outcome, await ctx.transaction("count", count)]

    async with running(save) as engine:
        run = await finish(engine, await engine.trigger("save"))
        assert run.output == [("TransactionError", True), 0]
        assert [step.status.value for step in await engine.runs.steps(run.id)] == ["completed", "failed", "completed"]
        assert [frame.seq for frame in await timeline(engine, run)] == list(range(1, run.last_seq + 1))
    assert calls == [1]


@pytest.mark.parametrize("function", ROLLING_BACK)
async def test_a_function_that_rolls_the_transaction_back_fails_no_other_run(running, clock, function):
    begin = asyncio.Event()

    @job("create")
    async def make(ctx: Context, _: None) -> None:
        await ctx.transaction("create", lambda c: c.execute("CREATE TABLE item (value UNIQUE)") and None)

    @job("save")
    async def save(ctx: Context, _: None) -> None:
        await ctx.step("begin", begin.wait)
        await ctx.transaction("save", function)

    @job("work")
    async def work(ctx: Context, number: int) -> int:
        await ctx.step("begin", begin.wait)
        return await ctx.step("work", lambda: number)

    async with running(make, save, work, clock=clock) as engine:
        await finish(engine, await engine.trigger("create"))
        runs = [await engine.trigger(name, n) for n, name in enumerate(["work", "save", "work"])]
        await settle()
        begin.set()  # all three share a commit
        await settle()
        await clock.advance(2)
        first, failed, last = [await finish(engine, run) for run in runs]
    assert (first.output, last.output) == (0, 2)
    assert failed.error.type == "StepFailed"
    assert "TransactionError" in failed.error.message


async def test_a_disk_that_is_full_in_a_transaction_function_never_reaches_the_job(running):
    clock = MockClock()
    states: list[str] = []

    def fill(connection: sqlite3.Connection) -> int:
        connection.execute("CREATE TABLE item (value)")
        connection.execute("INSERT INTO item VALUES (zeroblob(1000000))")
        return 1

    @job("fill")
    async def job_that_fills(ctx: Context, _: None) -> int:
        return await ctx.transaction("fill", fill)

    options = {"clock": clock, "on_state": lambda state, message: states.append(state)}
    async with running(job_that_fills, **options) as engine:
        connection = engine.internals.store.database.connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")
        run = await engine.trigger("fill")
        await settle()
        assert states == ["storage_full"]
        connection.execute("PRAGMA max_page_count = 100000")
        await clock.advance(5)
        assert (await finish(engine, run)).output == 1


async def test_log_lines_and_progress_written_inside_are_kept(running):
    @job("talk")
    async def talk(ctx: Context, _: None) -> None:
        def create_and_tell(connection: sqlite3.Connection) -> None:
            create(connection)
            ctx.log.info("created", table="item")
            ctx.progress(1, 1)

        await ctx.transaction("create", create_and_tell)

    async with running(talk) as engine:
        run = await engine.trigger("talk")
        frames = [frame async for frame in engine.runs.watch(run.id)]
        run = await engine.runs.get(run.id)
    (line,) = [frame for frame in frames if frame.kind == "log"]
    assert (line.message, line.fields, line.step) == ("created", {"table": "item"}, "create")
    assert run.progress.current == 1
