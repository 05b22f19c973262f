"""A database with a past: finished runs in bulk, through the engine's own schema.

One run is executed by the engine; then its rows are copied, in every table that it has rows in, under new ids that sort
before all that will be made. So this follows the schema, whatever columns it has.
"""

import sqlite3

from durable_web import Context, Engine, job

BATCH = 5000
_TABLES = {"durable_runs": "id", "durable_steps": "run_id", "durable_frames": "run_id"}


@job("past")
async def past(ctx: Context, input: None) -> None:
    """Ten frames: three of the run's status, and seven steps."""
    for number in range(7):
        await ctx.step(f"step {number}", abs, number)


async def fill(path: str, runs: int, *, exclusive: bool) -> dict[str, int]:
    """Make the database at ``path`` with so many finished runs; returns how many rows there are of what."""
    async with Engine(path, [past], exclusive=exclusive) as engine:
        run = await engine.trigger_and_wait("past")
    connection = sqlite3.connect(path, isolation_level=None)
    if exclusive:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA synchronous = OFF")
    try:
        for first in range(1, runs, BATCH):
            _copy(connection, run.id, first, min(first + BATCH, runs))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return {
            table.removeprefix("durable_"): connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
            for table in _TABLES
        }
    finally:
        connection.close()


def _copy(connection: sqlite3.Connection, run_id: str, first: int, end: int) -> None:
    """Copy the run as those numbered from ``first`` until before ``end``."""
    connection.execute("BEGIN IMMEDIATE")
    for table, key in _TABLES.items():
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        columns = [name for name in columns if name != "id" or key == "id"]  # a frame's id is given by SQLite
        # The first ten characters of a ULID are its time: the copies are of the same millisecond, and in order.
        copied = ["substr(:run_id, 1, 10) || printf('%016d', number)" if name == key else name for name in columns]
        order = "ORDER BY number, seq" if "seq" in columns else ""
        connection.execute(
            f"""
            WITH RECURSIVE numbers (number) AS (
                SELECT :first UNION ALL SELECT number + 1 FROM numbers WHERE number + 1 < :end
            )
            INSERT INTO {table} ({", ".join(columns)})
            SELECT {", ".join(copied)} FROM numbers CROSS JOIN {table} WHERE {table}.{key} = :run_id {order}
            """,
            {"run_id": run_id, "first": first, "end": end},
        )
    connection.execute("COMMIT")
