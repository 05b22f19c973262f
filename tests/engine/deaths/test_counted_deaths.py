"""Which deaths of an engine count against a run, when such a run is dead, and that it is executed alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from watching import cpython_only, finish

import durable_web
from durable_web import Context, Engine, Job, Run, RunStatus, job
from durable_web._engine.last_step import LastStep
from durable_web.testing import MockClock, crash, engine, restart, settle

MINUTE = 60


def held_job(gates: dict[str, asyncio.Event]) -> Job:
    """A job with one step, which waits until the gate of its name is open; a new event is made where there is none."""

    @job("held")
    async def held(ctx: Context, name: str) -> str:
        await ctx.step("wait", gates.setdefault(name, asyncio.Event()).wait)
        await ctx.step("end", gates.setdefault(f"{name} ends", asyncio.Event()).wait)
        return f"{name} in attempt {ctx.attempt}"

    return held


async def deaths(engine: Engine, run: Run) -> tuple[int, int]:
    """The deaths that count against a run, and all deaths of its engine, since its last outcome."""
    text = "SELECT recoveries, interruptions FROM durable_runs WHERE id = ?"
    return engine.internals.store.database.row(text, (run.id,))


async def status(engine: Engine, run: Run) -> RunStatus:
    await settle()
    return (await engine.runs.get(run.id)).status


async def warnings(engine: Engine, run: Run) -> list[str]:
    return [line.message for line in await engine.runs.logs(run.id, level="warning")]


# --- which run --------------------------------------------------------------------------------------------------------


async def test_a_death_counts_only_against_the_run_whose_step_began_last(running):
    async with running(held_job({})) as engine:
        runs = [await engine.trigger("held", name) for name in ("first", "beside", "last")]
        await settle()
        await crash(engine)
    async with running(max_concurrent_runs=0) as engine:
        assert [await deaths(engine, run) for run in runs] == [(0, 1), (0, 1), (1, 1)]


async def test_a_death_between_two_steps_counts_against_no_run(running):
    @job("pause")
    async def pause(ctx: Context, _: None) -> None:
        await ctx.step("before", lambda: None)
        await asyncio.Event().wait()

    async with running(pause) as engine:
        run = await engine.trigger("pause")
        await settle()
        await crash(engine)
    async with running(max_concurrent_runs=0) as engine:
        assert await deaths(engine, run) == (0, 1)


async def test_a_run_that_executes_after_the_engine_is_started_again_is_not_counted_for_an_earlier_step(running):
    """The side file of a life is emptied when the next one begins."""
    async with running(held_job({})) as engine:
        run = await engine.trigger("held", "one")
        await settle()
        await crash(engine)
    async with running(max_concurrent_runs=0) as engine:
        await crash(engine)
    async with running(max_concurrent_runs=0) as engine:
        assert await deaths(engine, run) == (1, 1)


async def test_the_side_file_of_a_database_in_memory_outlives_a_crash():
    async with engine(held_job({})) as e:
        run = await e.trigger("held", "one")
        await settle()
        await restart(e)
        assert await deaths(e, run) == (1, 1)
        await e.stop(drain=False)
        await e.start()
        assert await deaths(e, run) == (1, 1)


@cpython_only("needs processes; tests/browser kills tabs instead")
async def test_a_process_killed_in_a_synchronous_step_counts_against_that_run_alone(database_path, tmp_path):
    script = tmp_path / "poison.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, sys, time
        from durable_web import Engine, job

        @job("beside")
        async def beside(ctx, _):
            await ctx.step("wait", asyncio.Event().wait)

        def block():
            print("blocked", flush=True)
            time.sleep(600)

        @job("poison")
        async def poison(ctx, _):
            await ctx.step("block", block)

        async def main():
            async with Engine(sys.argv[1], [beside, poison], exclusive=True, max_recoveries=1) as engine:
                if not await engine.runs.list():
                    await engine.trigger("beside", priority=-1)
                    await engine.trigger("poison")
                await asyncio.Event().wait()

        asyncio.run(main())
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(durable_web.__file__).parents[1])}
    command = [sys.executable, str(script), database_path]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout.readline() == "blocked\n"
            os.kill(process.pid, signal.SIGKILL)

    @job("beside")
    async def beside(ctx: Context, _: None) -> int:
        return await ctx.step("wait", lambda: ctx.attempt)

    async with Engine(database_path, [beside], exclusive=True, max_recoveries=1) as engine:
        innocent, poison = await engine.runs.list(order="oldest")
        innocent = await finish(engine, innocent)
        assert (poison.status, poison.error.type) == (RunStatus.DEAD, "CrashLoop")
        assert "died 2 times" in poison.error.message
        assert "'block'" in poison.error.message
        assert (innocent.status, innocent.recoveries) == (RunStatus.COMPLETED, 0)


# --- which death ------------------------------------------------------------------------------------------------------


async def test_a_clean_shutdown_never_counts(running):
    run = None
    for _ in range(20):
        async with running(held_job({}), max_recoveries=0) as engine:
            run = run or await engine.trigger("held", "one")
            await settle()
            await engine.stop(drain=False)
    async with running(max_concurrent_runs=0) as engine:
        assert await deaths(engine, run) == (0, 0)


async def test_20_discards_late_in_a_step_count_nothing_and_from_the_sixth_on_the_run_is_executed_alone(running):
    clock, jobs = MockClock(), held_job({})
    run = None
    for life in range(1, 21):
        async with running(jobs, clock=clock, max_recoveries=0) as engine:
            run = run or await engine.trigger("held", "one")
            beside = await engine.trigger("held", f"beside {life}")
            assert await status(engine, beside) == (RunStatus.RUNNING if life <= 6 else RunStatus.PENDING)
            assert len(await warnings(engine, run)) == max(life - 6, 0)
            await engine.runs.cancel(beside.id)
            await clock.advance(MINUTE + 15)
            await crash(engine)
    async with running(max_concurrent_runs=0) as engine:
        assert await deaths(engine, run) == (0, 20)
        assert "executed alone" in (await warnings(engine, run))[0]
        assert "has stopped 6 times" in (await warnings(engine, run))[0]


async def test_a_death_within_a_minute_of_the_steps_beginning_counts_and_a_later_one_does_not(running):
    clock, jobs = MockClock(), held_job({})
    async with running(jobs, clock=clock) as engine:
        run = await engine.trigger("held", "one")
        await clock.advance(MINUTE - 10)
        await crash(engine)
    async with running(jobs, clock=clock) as engine:
        assert await deaths(engine, run) == (1, 1)
        await clock.advance(MINUTE + 15)
        await crash(engine)
    async with running(max_concurrent_runs=0, clock=clock) as engine:
        assert await deaths(engine, run) == (1, 2)


@pytest.mark.parametrize(("end", "seconds", "counted"), [("died", 600, 1), ("died", 1, 1), ("closed", 1, 0)])
async def test_what_a_page_or_a_parent_process_has_seen_decides(running, end, seconds, counted):
    clock = MockClock()
    async with running(held_job({}), clock=clock, life="seen") as engine:
        run = await engine.trigger("held", "one")
        await clock.advance(seconds)
        await crash(engine)
    async with running(max_concurrent_runs=0, clock=clock, ends={"seen": end}) as engine:
        assert await deaths(engine, run) == (counted, 0 if end == "closed" else 1)


@cpython_only("OPFS has one engine per file")
async def test_an_engine_that_let_its_own_lease_expire_has_not_died(running):
    clock = MockClock()
    async with running(held_job({}), clock=clock, exclusive=False, max_concurrent_runs=1) as engine:
        run = await engine.trigger("held", "one")
        await settle()
        clock.set_forward(3600)  # a laptop that slept
        await clock.advance(10)
        assert (await engine.runs.get(run.id)).attempt == 2
        assert await deaths(engine, run) == (0, 0)
        await engine.stop(drain=False)


async def test_what_was_seen_of_another_life_does_not_matter(running):
    clock = MockClock()
    async with running(held_job({}), clock=clock, life="this one") as engine:
        run = await engine.trigger("held", "one")
        await clock.advance(600)
        await crash(engine)
    async with running(max_concurrent_runs=0, clock=clock, ends={"another": "died"}) as engine:
        assert await deaths(engine, run) == (0, 1)


DAMAGED = {
    "empty": b"",
    "zeros": bytes(1024),
    "cut short": b"1800000000000  \n" + b'["life","run',
    "another form": b"1800000000000  \n" + b'{"life": "life"}\n',
    "no time": b"yesterday      \n" + b'["life","run","wait","noon"]\n',
    "not text": b"1800000000000  \n" + bytes(range(255, 0, -1)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
async def test_a_damaged_side_file_is_ignored(running, database_path, content):
    async with running(held_job({}), life="life") as engine:
        run = await engine.trigger("held", "one")
        await settle()
        await crash(engine)
    Path(f"{database_path}-step").write_bytes(content)
    async with running(max_concurrent_runs=0) as engine:
        assert await deaths(engine, run) == (0, 1)


async def test_a_full_disk_keeps_no_step_from_being_executed(running, monkeypatch):
    def refuse(data: bytes, at: int) -> None:
        raise OSError(28, "No space left on device")

    gates: dict[str, asyncio.Event] = {}
    async with running(held_job(gates)) as engine:
        monkeypatch.setattr(engine.internals.dispatcher._last_step, "_write", refuse)
        run = await engine.trigger("held", "one")
        await settle()
        for gate in ("one", "one ends"):
            gates.setdefault(gate, asyncio.Event()).set()
        assert (await finish(engine, run)).status == RunStatus.COMPLETED


async def test_a_step_whose_name_is_not_ascii_is_found_again(database_path):
    last_step = LastStep(database_path, database_path, "life", MockClock(), exclusive=True)
    last_step.open()
    for name in ("a much longer name than the next one", 'grüße "🎉"\n\0\\', "\ud800"):
        last_step.begin("run", name)
        assert last_step.read("life")[1:3] == ("run", name)
    last_step.remove()
    assert last_step.read("life") is None


# --- engines that share a file ----------------------------------------------------------------------------------------


def side_files(database_path: str) -> set[str]:
    folder = Path(database_path).parent
    return {path.name.partition("-step-")[2] for path in folder.iterdir() if "-step" in path.name}


@cpython_only("OPFS has one engine per file")
async def test_of_two_engines_on_one_file_the_death_of_each_counts_against_its_own_run(running, database_path):
    clock = MockClock()
    options: dict[str, Any] = {"clock": clock, "exclusive": False, "max_concurrent_runs": 1}
    async with running(held_job({}), life="dies", **options) as first:
        victim = await first.trigger("held", "victim")
        await settle()
        async with running(held_job({}), life="lives", **options) as second:
            other = await second.trigger("held", "other")  # begins later
            await settle()
            assert side_files(database_path) == {"dies", "lives"}
            await crash(first)
            await clock.advance(40)
            assert await deaths(second, victim) == (1, 1)
            assert await deaths(second, other) == (0, 0)
            assert await status(second, victim) == RunStatus.PENDING
            clock.set_forward(3600)
            await clock.advance(10)
            assert side_files(database_path) == {"lives"}
            await second.stop(drain=False)
    assert side_files(database_path) == set()


@cpython_only("OPFS has one engine per file")
async def test_an_engine_whose_side_file_was_deleted_makes_it_again(running, database_path):
    clock = MockClock()
    async with running(held_job({}), life="late", clock=clock, exclusive=False) as engine:
        Path(f"{database_path}-step-late").unlink()
        await clock.advance(10)
        run = await engine.trigger("held", "one")
        await settle()
        await crash(engine)
    async with running(max_concurrent_runs=0, clock=clock) as engine:
        assert await deaths(engine, run) == (1, 1)


# --- alone ------------------------------------------------------------------------------------------------------------


async def test_a_counted_run_waits_until_nothing_else_executes_and_holds_up_what_is_behind_it(running):
    gates: dict[str, asyncio.Event] = {}
    async with running(held_job(gates)) as engine:
        before, suspect = [await engine.trigger("held", name) for name in ("before", "suspect")]
        await settle()
        await crash(engine)
    gates.clear()
    async with running(held_job(gates)) as engine:
        behind = await engine.trigger("held", "behind")
        assert [await status(engine, run) for run in (before, suspect, behind)] == ["running", "pending", "pending"]
        for name in ("before", "before ends"):
            gates.setdefault(name, asyncio.Event()).set()
        assert [await status(engine, run) for run in (before, suspect, behind)] == ["completed", "running", "pending"]
        gates["suspect"].set()  # and with that outcome it is no longer suspect
        assert [await status(engine, run) for run in (suspect, behind)] == ["running", "running"]
        assert await deaths(engine, suspect) == (0, 0)
        await engine.stop(drain=False)


async def test_the_log_says_that_a_run_is_executed_alone_after_its_second_death(running):
    """After the first, which is mostly an accident, there is nothing to say."""
    run = None
    for expected in ([], [], ["has died while it executed a step of this run 2 times"]):
        async with running(held_job({})) as engine:
            run = run or await engine.trigger("held", "one")
            assert await status(engine, run) == RunStatus.RUNNING
            said = await warnings(engine, run)
            assert len(said) == len(expected)
            assert all(part in line for part, line in zip(expected, said, strict=True))
            await crash(engine)


@pytest.mark.parametrize("how", ["parks", "is cancelled", "fails"])
async def test_other_runs_go_on_when_a_run_that_is_executed_alone_leaves(running, how):
    gate = asyncio.Event()

    @job("suspect")
    async def suspect_job(ctx: Context, _: None) -> None:
        if ctx.attempt == 1 or how == "is cancelled":
            await ctx.step("step", asyncio.Event().wait)
        await gate.wait()
        if how == "fails":
            raise ValueError
        await ctx.sleep("a day", 86400)

    async with running(suspect_job) as engine:
        suspect = await engine.trigger("suspect")
        await settle()
        await crash(engine)
    async with running(suspect_job, held_job({})) as engine:
        other = await engine.trigger("held", "other")
        assert await status(engine, other) == RunStatus.PENDING
        gate.set()
        if how == "is cancelled":
            await engine.runs.cancel(suspect.id)
        assert await status(engine, other) == RunStatus.RUNNING
        await engine.stop(drain=False)


async def test_a_run_that_kills_its_engine_again_and_again_is_dead_and_takes_no_other_run_with_it(running):
    jobs = held_job({})
    run = other = None
    for _ in range(3):
        async with running(jobs, max_recoveries=2) as engine:
            other = other or await engine.trigger("held", "other", priority=-1)
            run = run or await engine.trigger("held", "poison")
            await settle()
            await crash(engine)
    async with running(jobs, max_recoveries=2) as engine:
        run = await engine.runs.get(run.id)
        assert (run.status, run.recoveries, run.error.type) == (RunStatus.DEAD, 3, "CrashLoop")
        assert await status(engine, other) == RunStatus.RUNNING
        assert await deaths(engine, other) == (0, 1)
        await engine.stop(drain=False)
