"""The store: one database, its transactions, and the verbs on runs, steps and frames.

A verb that writes must be called inside ``with store.transaction():``; the frames and events that it causes reach
``on_commit`` after the commit and never before it. Verbs of an executing run come after ``runs.fence``, which raises
``LeaseLost`` before anything is written when the run is no longer this engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..model import StoredFrame
from . import queries
from .database import Database
from .flow import Flow
from .journal import Fact, Journal
from .runs import Runs
from .schedules import Schedules
from .steps import Steps

OnCommit = Callable[[list[StoredFrame], list[Fact]], None]


class Store:
    """Runs, steps and frames in one SQLite database."""

    def __init__(self, database: Database, on_commit: OnCommit = lambda frames, facts: None) -> None:
        self.database = database
        self.on_commit = on_commit
        self.journal = Journal(database.connection)
        self.runs = Runs(database.connection, self.journal)
        self.steps = Steps(database.connection, self.journal)
        self.flow = Flow(database.connection)
        self.schedules = Schedules(database.connection)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is written inside and then tell of it, or roll all of it back."""
        try:
            with self.database.transaction():
                yield
        except BaseException:
            self.journal.take()
            raise
        frames, facts = self.journal.take()
        if frames or facts:
            self.on_commit(frames, facts)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Inside a transaction: what is written here is rolled back alone when anything is raised."""
        mark = self.journal.mark()
        try:
            with self.database.savepoint():
                yield
        except BaseException:
            self.journal.forget_since(mark)
            raise

    def data_version(self) -> int:
        """A number that changes when another process has committed to the file."""
        return self.database.connection.execute("PRAGMA data_version").fetchone()[0]

    def read_frames(self, run_id: str, after_seq: int, limit: int) -> list[StoredFrame]:
        """The next frames of a run strictly after ``after_seq``."""
        values = {"run_id": run_id, "seq": after_seq, "limit": limit}
        return [StoredFrame(*row) for row in self.database.connection.execute(queries.FRAMES, values)]
