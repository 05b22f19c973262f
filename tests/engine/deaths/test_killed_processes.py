"""Two processes share a file, and one of them is killed again and again: every run is executed once."""

from __future__ import annotations

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

from watching import cpython_only

import durable_web
from durable_web import Context, Engine, Trigger, job

pytestmark = cpython_only("OPFS has one engine per file")


# --- processes -------------------------------------------------------------------------------------------------------

RUNS = 2000
KILLS = 5
SHARE = RUNS // 4  # what one process may do before the first one that was killed has been replaced
WORKER = textwrap.dedent("""
    import asyncio, os, sys
    from durable_web import Engine, job

    def note(connection, run_id, attempt, key, what):
        connection.execute("INSERT INTO item VALUES (?, ?, ?, ?, ?)", (run_id, attempt, key, what, os.getpid()))

    path, pause, share = sys.argv[1], sys.argv[2], int(sys.argv[3])
    begun = 0

    async def pause_is_over():
        global begun
        begun += 1
        while begun > share and os.path.exists(pause):
            await asyncio.sleep(0.003)

    async def work(ctx, key):
        await ctx.step("wait for the pause to end", pause_is_over)
        if key is not None:
            await ctx.transaction(f"begin {ctx.attempt}", note, ctx.run_id, ctx.attempt, key, "begin")
            await ctx.step("take a moment", asyncio.sleep, 0.001)
        await ctx.transaction("row", note, ctx.run_id, ctx.attempt, key, "row")
        if key is not None:
            await ctx.step("take another moment", asyncio.sleep, 0.001)
            await ctx.transaction(f"end {ctx.attempt}", note, ctx.run_id, ctx.attempt, key, "end")
        print(ctx.run_id, flush=True)

    jobs = [job(f"job {number}")(work) for number in range(20)]

    async def main():
        options = {"lease": 2, "durability": "normal", "max_recoveries": 100}
        async with Engine(path, jobs, **options) as engine:
            cursor = None
            while page := await engine.runs.list(order="oldest", limit=1000, cursor=cursor):
                cursor = page[-1].id
                for run in page:
                    await engine.runs.wait(run.id)

    asyncio.run(main())
""")


async def test_2000_runs_are_executed_once_each_by_two_processes_either_of_which_is_killed_at_random(
    database_path, tmp_path
):
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    run_ids = await trigger_all(database_path)
    script, pause = tmp_path / "worker.py", tmp_path / "pause"
    script.write_text(WORKER)
    pause.touch()
    workers = [start_worker(script, database_path, pause) for _ in range(2)]
    try:
        for number in range(KILLS):
            victim = chance.randrange(2)
            kill_after(workers[victim], lines=chance.randrange(1, 100))
            workers[victim] = start_worker(script, database_path, pause)
            if number == 0:
                assert workers[victim].stdout.readline() in {f"{run_id}\n" for run_id in run_ids}
                pause.unlink()
        for worker in workers:
            worker.communicate(timeout=60)
            assert worker.returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()

    with closing(sqlite3.connect(database_path)) as connection:
        assert dict(connection.execute("SELECT status, COUNT(*) FROM durable_runs GROUP BY status")) == {
            "completed": RUNS
        }
        rows = connection.execute("SELECT run_id, attempt, key, what, process FROM item ORDER BY rowid").fetchall()
        frames = connection.execute("SELECT run_id, seq, kind, body FROM durable_frames ORDER BY id").fetchall()
        keys = dict(connection.execute("SELECT id, concurrency_key FROM durable_runs"))
    assert Counter(run_id for run_id, _, _, what, _ in rows if what == "row") == Counter(run_ids)
    assert len({process for *_, process in rows}) >= 3
    assert any("its engine stopped" in body for *_, body in frames)
    assert_timelines_are_gapless(frames)
    assert_leases_with_one_key_do_not_overlap(frames, keys)
    assert_rows_with_one_key_do_not_overlap(rows)


async def trigger_all(path: str) -> list[str]:
    """2,000 runs of 20 jobs; of each job, 20 runs have keys, and the other jobs have runs with the same keys."""

    async def nothing(ctx: Context, key: str | None) -> None: ...

    jobs = [job(f"job {number}")(nothing) for number in range(20)]
    engine = Engine(path, jobs, durability="normal")
    await engine.start(claim=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE item (run_id, attempt, key, what, process)")
    triggers = []
    for number in range(RUNS):
        key = f"key {number // 100}" if number % 100 < 20 else None
        triggers.append(Trigger(f"job {number % 20}", key, concurrency_key=key))
    runs = await engine.trigger_many(triggers)
    await engine.stop()
    assert len(runs) == RUNS
    return [run.id for run in runs]


def start_worker(script: Path, path: str, pause: Path) -> subprocess.Popen[str]:
    """A process that executes runs: its share of them at once, the others when there is no ``pause`` any more."""
    environment = {**os.environ, "PYTHONPATH": str(Path(durable_web.__file__).parents[1])}
    command = [sys.executable, str(script), path, str(pause), str(SHARE)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill_after(process: subprocess.Popen[str], lines: int) -> None:
    """Kill a worker when it has told of so many runs more, or has come to its end."""
    for _ in range(lines):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0)  # 0: the other one did the rest, and it was done before the kill


def assert_timelines_are_gapless(frames: list[tuple[str, int, str, str]]) -> None:
    seen: Counter[str] = Counter()
    for run_id, seq, *_ in frames:
        seen[run_id] += 1
        assert seq == seen[run_id]


def assert_leases_with_one_key_do_not_overlap(frames: list[tuple[str, int, str, str]], keys: dict[str, Any]) -> None:
    holders: dict[str, str] = {}
    for run_id, _, kind, text in frames:
        key = keys[run_id]
        if kind != "run_status" or key is None:
            continue
        if json.loads(text)["status"] == "running":
            assert holders.setdefault(key, run_id) == run_id
        elif holders.get(key) == run_id:
            del holders[key]


def assert_rows_with_one_key_do_not_overlap(rows: list[tuple[str, int, str | None, str, int]]) -> None:
    """Between the first and the last row of one attempt at a run there is no row of another with the same key."""
    by_key: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for run_id, attempt, key, *_ in rows:
        if key is not None and by_key[key][-1:] != [(run_id, attempt)]:
            by_key[key].append((run_id, attempt))
    assert len(by_key) == 20
    for attempts in by_key.values():
        assert len({run_id for run_id, _ in attempts}) == 20
        assert len(attempts) == len(set(attempts))
