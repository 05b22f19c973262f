"""Operations of one run whose work is a write: in the transaction that records them, once."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from one_run import OneRun, one_run

from durable_web import StepFailed


def insert(connection: sqlite3.Connection, row: str) -> str:
    connection.execute("CREATE TABLE IF NOT EXISTS own (row TEXT)")
    connection.execute("INSERT INTO own VALUES (?)", (row,))
    return row


def rows(run: OneRun) -> list[str]:
    if run.store.database.row("SELECT 1 FROM sqlite_master WHERE name = 'own'") is None:
        return []
    return [row for (row,) in run.store.database.rows("SELECT row FROM own")]


async def test_rows_and_record_are_one_commit(database_path):
    async def body(run: OneRun) -> str:
        return await run.execution.writes.transaction("insert", insert, ("a",))

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == "a"
        assert (rows(run), run.records["insert"].status) == (["a"], "completed")


async def test_a_function_that_fails_leaves_no_row_and_its_failure_is_recorded(database_path):
    def fails(connection: sqlite3.Connection) -> None:
        insert(connection, "gone")
        raise LookupError("no stock")

    async def body(run: OneRun) -> str:
        with pytest.raises(StepFailed, match="no stock"):
            await run.execution.writes.transaction("insert", fails, ())
        return "caught"

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == "caught"
        assert (rows(run), run.records["insert"].status) == ([], "failed")


async def test_a_write_that_joins_others_in_a_commit_fails_alone(database_path):
    def fails(connection: sqlite3.Connection) -> None:
        raise LookupError("no stock")

    async def body(run: OneRun) -> list[str]:
        run.is_alone = False
        transaction = run.execution.writes.transaction
        outcomes = await asyncio.gather(
            transaction("a", insert, ("a",)),
            transaction("b", fails, ()),
            transaction("c", insert, ("c",)),
            return_exceptions=True,
        )
        return [type(each).__name__ for each in outcomes]

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == ["str", "StepFailed", "str"]
        assert rows(run) == ["a", "c"]


async def test_a_replay_gets_the_record_and_inserts_nothing(database_path):
    async def body(run: OneRun) -> None:
        await run.execution.writes.transaction("insert", insert, ("a",))
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        await run.restart()
        assert rows(run) == ["a"]


async def test_a_value_is_made_once(database_path):
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    seen: list[int] = []

    async def body(run: OneRun) -> None:
        seen.append(await run.execution.writes.value("random", make))
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        await run.restart()
        assert (made, seen) == ([0], [0, 0])


async def test_an_awaitable_result_of_a_transaction_is_refused_in_words(database_path):
    async def waits(connection: sqlite3.Connection) -> None: ...

    async def body(run: OneRun) -> str:
        with pytest.raises(StepFailed, match="synchronous"):
            await run.execution.writes.transaction("insert", waits, ())
        return "refused"

    async with one_run(database_path, body) as run:
        assert await run.succeeds() == "refused"


async def test_what_the_body_publishes_is_not_published_again_by_a_replay(database_path):
    async def body(run: OneRun) -> None:
        await run.execution.writes.publish("state", "first")
        await run.execution.writes.publish("state", "second")
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        await run.restart()
        run.commits.flush()
        assert run.store.steps.get_value(run.id, "state", None) == "second"
        assert [frame.kind for frame in run.store.read_frames(run.id, 0, 100)].count("event") == 2


async def test_a_change_of_the_code_holds_for_runs_that_had_not_come_to_it(database_path):
    answers: list[bool] = []
    is_changed = False

    async def body(run: OneRun) -> None:
        if is_changed:
            answers.append(await run.execution.writes.patched("new way"))
        await run.step("one", str)
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        is_changed = True
        await run.restart()
        assert answers == [False]  # it had passed this place
