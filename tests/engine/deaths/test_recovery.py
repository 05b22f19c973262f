"""Dying and coming back: what was leased is taken back, generations fence, crash loops end."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

from watching import cpython_only, finish, reach

import durable_web
from durable_web import Context, Engine, RunStatus, job
from durable_web.testing import MockClock, crash, settle


@job("waits-once")
async def waits_once(ctx: Context, _: None) -> int:
    if ctx.attempt == 1:
        await asyncio.Event().wait()
    return ctx.attempt


async def leased(engine: Engine, run_id: str) -> None:
    async for frame in engine.runs.watch(run_id):
        if frame.kind == "run_status" and frame.status == RunStatus.RUNNING:
            return


async def test_an_exclusive_engine_takes_leased_runs_back_at_once(running):
    async with running(waits_once) as engine:
        run = await engine.trigger("waits-once")
        await leased(engine, run.id)
        await crash(engine)
    async with running(waits_once) as engine:
        run = await finish(engine, run)
    assert run.output == 2
    assert run.recoveries == 0  # it was between two steps: nothing of it can have killed the engine
    assert run.generation == 2


@cpython_only("OPFS has one engine per file")
async def test_engines_that_share_a_file_wait_until_the_lease_has_run_out(running):
    clock = MockClock()
    async with running(waits_once, clock=clock, exclusive=False, lease=30) as engine:
        run = await engine.trigger("waits-once")
        await leased(engine, run.id)
        await crash(engine)
    async with running(waits_once, clock=clock, exclusive=False, lease=30) as engine:
        await clock.advance(29)
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        await clock.advance(11)
        assert (await engine.runs.get(run.id)).status == RunStatus.COMPLETED


async def test_a_lease_is_renewed_while_the_run_executes(running):
    clock = MockClock()
    async with running(waits_once, clock=clock, lease=30) as engine:
        run = await engine.trigger("waits-once")
        await clock.advance(600)
        run = await engine.runs.get(run.id)
        assert run.status == RunStatus.RUNNING
        assert run.lease_expires_at.timestamp() * 1000 > clock.now()
        await engine.stop(drain=False)


async def test_an_engine_that_lost_its_lease_writes_nothing_more_and_its_step_is_stopped(running, database_path):
    stopped = asyncio.Event()
    begun = asyncio.Event()

    async def linger() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    @job("linger")
    async def linger_job(ctx: Context, _: None) -> None:
        try:
            await ctx.step("linger", linger)
        except asyncio.CancelledError:
            ctx.log.info("I should not be heard")

    clock = MockClock()
    async with running(linger_job, clock=clock, lease=30) as engine:
        run = await engine.trigger("linger")
        await begun.wait()
        with engine.internals.store.transaction():  # another engine claims it
            engine.internals.store.database.connection.execute("UPDATE durable_runs SET generation = generation + 1")
        await clock.advance(10)
        assert stopped.is_set()
        assert not [frame for frame in await frames_so_far(engine, run.id) if frame.kind == "log"]
        assert (await engine.runs.get(run.id)).status == RunStatus.RUNNING
        await engine.stop(drain=False)


async def frames_so_far(engine: Engine, run_id: str) -> list:
    return [frame.to_frame() for frame in engine.internals.store.read_frames(run_id, 0, 1000)]


async def test_neither_success_nor_failure_of_a_stale_owner_is_recorded(running):
    gates: dict[str, asyncio.Event] = {"ok": asyncio.Event(), "bad": asyncio.Event()}

    @job("stale")
    async def stale(ctx: Context, how: str) -> str:
        await gates[how].wait()
        if how == "bad":
            raise ValueError("late")
        return "late"

    async with running(stale) as engine:
        runs = [await engine.trigger("stale", how) for how in gates]
        await asyncio.sleep(0)
        with engine.internals.store.transaction():
            engine.internals.store.database.connection.execute("UPDATE durable_runs SET generation = generation + 1")
        for gate in gates.values():
            gate.set()
        while engine.internals.dispatcher.executing:
            await asyncio.sleep(0)
        assert [(await engine.runs.get(run.id)).status for run in runs] == [RunStatus.RUNNING] * 2


async def test_a_stale_owner_can_commit_no_step_no_rows_and_no_line(running):
    gates: dict[str, asyncio.Event] = {"step": asyncio.Event(), "rows": asyncio.Event()}
    after: list[str] = []

    def insert(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE item (value)")

    @job("stale")
    async def stale(ctx: Context, how: str) -> None:
        await gates[how].wait()
        ctx.log.info("still here")
        await (ctx.step("step", lambda: 1) if how == "step" else ctx.transaction("rows", insert))
        after.append(how)

    async with running(stale) as engine:
        runs = [await engine.trigger("stale", how) for how in gates]
        await asyncio.sleep(0)
        with engine.internals.store.transaction():
            engine.internals.store.database.connection.execute("UPDATE durable_runs SET generation = generation + 1")
        for gate in gates.values():
            gate.set()
        while engine.internals.dispatcher.executing:
            await asyncio.sleep(0)
        assert [await engine.runs.steps(run.id) for run in runs] == [[], []]
        assert [len(await frames_so_far(engine, run.id)) for run in runs] == [2, 2]
        tables = engine.internals.store.database.connection.execute(
            "SELECT name FROM sqlite_schema WHERE name = 'item'"
        )
        assert tables.fetchall() == []
    assert after == []


async def test_a_run_that_comes_further_each_time_is_never_dead(running):
    @job("slow")
    async def slow(ctx: Context, _: None) -> int:
        for number in range(6):
            await ctx.step(f"step {number}", lambda: None)
            if ctx.attempt == number + 1:
                await ctx.step(f"wait {number}", asyncio.Event().wait)
            await ctx.step(f"wait {number}", lambda: None)
        return ctx.attempt

    run = None
    for _ in range(6):
        async with running(slow, max_recoveries=1) as engine:
            run = run or await engine.trigger("slow")
            await settle()
            await crash(engine)
    async with running(slow, max_recoveries=1) as engine:
        assert (await finish(engine, run)).output == 7


async def test_a_run_whose_waits_end_one_after_the_other_is_never_dead(running):
    """It comes further each time, though its engine dies whenever it executes."""

    @job("patient")
    async def patient(ctx: Context, _: None) -> int:
        for number in range(6):
            await ctx.wait_for_signal("go on")
            if ctx.attempt == number + 1:
                await ctx.step(f"wait {number}", asyncio.Event().wait)
            await ctx.step(f"wait {number}", lambda: None)
        return ctx.attempt

    run = None
    for _ in range(6):
        async with running(patient, max_recoveries=1) as engine:
            run = run or await engine.trigger(patient)
            await engine.runs.signal(run.id, "go on")
            await settle()
            await crash(engine)
    async with running(patient, max_recoveries=1) as engine:
        assert (await finish(engine, run)).output == 7


async def test_stopping_without_draining_gives_runs_back_and_counts_no_recovery(running):
    async with running(waits_once) as engine:
        run = await engine.trigger("waits-once")
        await leased(engine, run.id)
        await engine.stop(drain=False)
    async with running(waits_once) as engine:
        run = await finish(engine, run)
    assert (run.output, run.recoveries) == (2, 0)


async def test_leaving_the_engine_drains_what_is_executing(running):
    @job("brief")
    async def brief(ctx: Context, _: None) -> str:
        await asyncio.sleep(0.01)
        return await ctx.step("end", lambda: "done")

    async with running(brief) as engine:
        run = await engine.trigger("brief")
    async with running() as engine:
        assert (await engine.runs.get(run.id)).output == "done"


async def test_a_run_of_a_job_that_is_gone_waits_says_so_and_goes_on_when_an_engine_has_the_job(running):
    async with running(waits_once) as engine:
        run = await engine.trigger("waits-once")
        await leased(engine, run.id)
        await crash(engine)

    @job("other")
    async def other(ctx: Context, _: None) -> None: ...

    async with running(other) as engine:
        waiting = await reach(engine, run.id, "waiting")
        assert waiting.waiting_reason == "blocked: the job 'waits-once' is not registered"
        assert (await finish(engine, await engine.trigger(other))).status == RunStatus.COMPLETED
        assert (await engine.runs.get(run.id)).status == RunStatus.WAITING
        engine.register(waits_once)
        assert (await finish(engine, run)).output == 2


@cpython_only("needs processes; tests/browser kills tabs instead")
async def test_a_process_killed_at_any_moment_loses_no_row_and_writes_none_twice(database_path, tmp_path):
    script = tmp_path / "importer.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, sys
        from durable_web import Engine, job

        def insert(connection, number):
            connection.execute("CREATE TABLE IF NOT EXISTS item (number)")
            connection.execute("INSERT INTO item VALUES (?)", (number,))

        @job("import")
        async def import_job(ctx, _):
            for number in range(400):
                await ctx.transaction(f"row {number}", insert, number)
                print(number, flush=True)

        async def main():
            async with Engine(sys.argv[1], [import_job], exclusive=True) as engine:
                runs = await engine.runs.list()
                run = runs[0] if runs else await engine.trigger("import")
                async for frame in engine.runs.watch(run.id):
                    pass
                print((await engine.runs.get(run.id)).status, flush=True)

        asyncio.run(main())
        """)
    )
    command = [sys.executable, str(script), database_path]
    environment = {**os.environ, "PYTHONPATH": str(Path(durable_web.__file__).parents[1])}
    for kill_at in ("57", "181", "330"):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            for line in process.stdout:
                if line.strip() == kill_at:
                    os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert finished.stdout.split()[-1] == "completed"
    with closing(sqlite3.connect(database_path)) as connection:
        rows = [row[0] for row in connection.execute("SELECT number FROM item ORDER BY rowid")]
    assert rows == list(range(400))
