"""dbos on SQLite: dbos_process.py FOLDER JOURNAL_MODE, then questions on the standard input.

Runs in an environment of its own, with dbos and nothing of this project.
"""

import sqlite3
import sys
import time
from pathlib import Path

from conversation import answer
from dbos import DBOS

FILE = Path(sys.argv[1]) / f"dbos-{sys.argv[2]}.sqlite3"

DBOS(
    config={
        "name": "benchmark",
        "system_database_url": f"sqlite:///{FILE}",
        "run_admin_server": False,
        "log_level": "ERROR",
    }
)


@DBOS.step()
def absolute(number: int) -> int:
    """A small step."""
    return abs(number)


@DBOS.workflow()
def make_steps(count: int) -> int:
    """So many small steps, one after the other."""
    return sum(absolute(number) for number in range(count))


def steps(count: int) -> float:
    """Seconds for one workflow of so many steps."""
    began = time.perf_counter()
    make_steps(count)
    return time.perf_counter() - began


def runs(count: int) -> float:
    """Seconds for so many workflows of one step each."""
    began = time.perf_counter()
    for _ in range(count):
        make_steps(1)
    return time.perf_counter() - began


def _set_journal_mode(mode: str) -> None:
    """Say how the database file keeps its journal, before anything has it open."""
    connection = sqlite3.connect(FILE)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.close()


_set_journal_mode(sys.argv[2])
DBOS.launch()
answer({"steps": steps, "runs": runs})
DBOS.destroy()
