"""A synchronous step that takes longer than a lease is executed once, whatever other engines share the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from watching import cpython_only

import durable_web
from durable_web import Context, Engine, job

pytestmark = cpython_only("OPFS has one engine per file")

LEASE_SECONDS = 1.0
RENEWALS = 5
"""Renewals after which the lease that the step began under has run out for long."""
BLOCKING = f"""
import asyncio, sys
from durable_web import Engine, job

@job("block")
async def block(ctx, _):
    def read():
        print("begun", flush=True)
        return sys.stdin.readline().strip()  # the event loop stands still
    return await ctx.step("read", read)

async def main():
    async with Engine(sys.argv[1], [block], exclusive=False, lease={LEASE_SECONDS}) as engine:
        run = await engine.trigger(block)
        print((await engine.runs.wait(run.id)).output, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def blocked(database_path, tmp_path):
    """A process whose engine executes a step that blocks its event loop until it is sent a line."""
    script = tmp_path / "block.py"
    script.write_text(BLOCKING)
    environment = {**os.environ, "PYTHONPATH": str(Path(durable_web.__file__).parents[1])}
    command = [sys.executable, str(script), database_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


async def test_it_is_not_taken_over_and_its_result_counts(blocked, database_path):
    @job("block")
    async def block(ctx: Context, _: None) -> str:
        return await ctx.step("read", str, "by the other engine")

    async with Engine(database_path, [block], exclusive=False, lease=LEASE_SECONDS) as engine:
        (run,) = await engine.runs.list()
        expiries = {run.lease_expires_at}
        while len(expiries) <= RENEWALS:
            await asyncio.sleep(LEASE_SECONDS / 10)
            run = await engine.runs.get(run.id)
            assert (run.status, run.attempt, run.generation) == ("running", 1, 1)
            expiries.add(run.lease_expires_at)
        blocked.stdin.write("by the first engine\n")
        blocked.stdin.flush()
        ended = await engine.runs.wait(run.id)
    assert (ended.output, ended.attempt, ended.recoveries) == ("by the first engine", 1, 0)
    with closing(sqlite3.connect(database_path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM durable_steps WHERE kind = 'step'").fetchone() == (1,)


async def test_a_process_that_dies_meanwhile_is_taken_over_when_its_last_lease_has_run_out(blocked, database_path):
    @job("block")
    async def block(ctx: Context, _: None) -> str:
        return await ctx.step("read", str, "by the other engine")

    async with Engine(database_path, [block], exclusive=False, lease=LEASE_SECONDS) as engine:
        (run,) = await engine.runs.list()
        blocked.kill()
        ended = await engine.runs.wait(run.id)
    assert (ended.output, ended.attempt) == ("by the other engine", 2)
