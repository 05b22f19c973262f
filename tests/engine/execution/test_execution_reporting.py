"""Log and progress of one run: what is written when, and what is not written again."""

from __future__ import annotations

import asyncio
import threading

import pytest
from one_run import OneRun, one_run
from watching import cpython_only

from durable_web.testing._clock import settle


async def stays(run: OneRun) -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_line_belongs_to_the_step_that_writes_it(database_path):
    async def body(run: OneRun) -> None:
        run.execution.reporting.log("info", "of the body", {})
        await run.step("one", run.execution.reporting.log, "info", "of the step", {"rows": 2})

    async with one_run(database_path, body) as run:
        frames = run.store.read_logs(run.id, 0, 1 << 50, ["info"], 10)
        assert [(f.to_frame().message, f.to_frame().step, f.to_frame().fields) for f in frames] == [
            ("of the body", None, {}),
            ("of the step", "one", {"rows": 2}),
        ]


async def test_a_line_of_the_body_is_passed_over_once_for_each_time_it_was_written_before(database_path):
    times = 2

    async def body(run: OneRun) -> None:
        for _ in range(times):
            run.execution.reporting.log("info", "again", {})
        run.execution.reporting.log("warning", "again", {})
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        assert run.lines == ["again"] * 3
        times = 4
        await run.restart()
        run.commits.flush()
        assert run.lines == ["again"] * 5


async def test_a_note_of_the_engine_is_not_repeated_by_the_next_execution(database_path):
    async def body(run: OneRun) -> None:
        run.execution.reporting.note("warning", "it stands")
        await run.execution.waits.signal("go", None, str)

    async with one_run(database_path, body) as run:
        await run.restart()
        run.commits.flush()
        assert run.lines == ["it stands"]


async def test_progress_is_written_at_most_ten_times_a_second_and_the_last_one_always(database_path):
    async with one_run(database_path, stays) as run:
        for number in range(5):
            run.execution.reporting.progress(number, 5, None)
        run.commits.flush()
        assert run.run.progress.current == 0
        await run.clock.advance(0.1)
        run.commits.flush()
        assert run.run.progress.current == 4


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 10**400])
async def test_progress_that_no_page_could_show_is_refused(database_path, wrong):
    async with one_run(database_path, stays) as run:
        with pytest.raises(ValueError, match=r"ctx\.progress: current is a finite number"):
            run.execution.reporting.progress(wrong, None, None)


@cpython_only("Pyodide has no threads")
async def test_what_another_thread_reports_is_written_by_the_thread_of_the_engine(database_path):
    async with one_run(database_path, stays) as run:
        writers: list[int] = []
        append = run.store.steps.append_log

        def noting(*arguments):
            writers.append(threading.get_ident())
            append(*arguments)

        run.store.steps.append_log = noting
        await asyncio.to_thread(run.execution.reporting.log, "info", "from afar", {})
        await settle()
        run.commits.flush()
        assert run.lines == ["from afar"]
        assert writers == [threading.get_ident()]
