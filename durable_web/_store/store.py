"""The store: one database, its transactions, and the verbs on runs, steps and frames.

A verb that writes must be called inside ``with store.transaction():``; the frames and events that it causes reach
``on_commit`` after the commit and never before it. ``on_leased`` is called with the runs that were leased,
``on_claims`` when they are to be executed, and ``on_change`` with the ids of runs that may go on. Verbs of an executing
run come after ``runs.fence``, which raises ``LeaseLost`` before anything is written when the run is no longer this
engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .._model import StoredFrame
from .database import Database
from .family import Family
from .flow import Flow
from .journal import Claim, Fact, Journal
from .messages import Messages
from .runs import Runs
from .schedules import Schedules
from .sql import frames as queries
from .steps import Steps
from .waits import Waits

PAGE_CHARACTERS = 1 << 20

OnCommit = Callable[[list[StoredFrame], list[Fact]], None]
OnChange = Callable[[set[str]], None]
OnLeased = Callable[[list[Claim]], None]
OnClaims = Callable[[], None]


class Store:
    """Runs, steps and frames in one SQLite database."""

    def __init__(self, database: Database, on_commit: OnCommit = lambda frames, facts: None) -> None:
        self.database = database
        self.on_commit = on_commit
        self.journal = Journal(database)
        self._transaction = _Transaction(self)
        self.on_change: OnChange = lambda run_ids: None
        self.on_leased: OnLeased = lambda claims: None
        self.on_claims: OnClaims = lambda: None
        self.runs = Runs(database, self.journal)
        self.steps = Steps(database, self.journal)
        self.messages = Messages(database)
        self.waits = Waits(database, self.journal, self.runs, self.steps, self.messages)
        self.family = Family(self.journal, self.runs, self.steps, self.waits)
        self.runs.on_end = self.family.end
        self.runs.before_burial = self.steps.cancel_running
        self.runs.on_cancelling = self.steps.record_cancel
        self.flow = Flow(database)
        self.schedules = Schedules(database)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Commit what is written inside and then publish its frames and events, or roll everything back."""
        return self._transaction

    def forget(self) -> None:
        """Discard the frames and events of a transaction that was rolled back."""
        self.journal.forget()
        self.steps.forget_orders()

    def tell(self) -> None:
        """Publish the frames and events of a transaction that is committed."""
        journal = self.journal
        frames, facts = journal.take()
        changed = journal.take_changed() if journal.changed or journal.has_claimable else None
        claims = journal.take_claims() if journal.has_claims else None
        if claims:
            self.on_leased(claims)  # before any listener is called: a listener's own triggers find these slots taken
        try:
            if frames or facts:
                self.on_commit(frames, facts)
        finally:  # leased runs are executed even if a listener raises
            if claims is not None:
                if changed and (others := changed.difference(claim.run_id for claim in claims)):
                    self.on_change(others)  # first: executions that have to end before these runs begin are cancelled
                    changed -= others
                self.on_claims()
            if changed is not None:
                self.on_change(changed)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Inside a transaction: roll back only what is written here when anything is raised."""
        mark = self.journal.mark()
        try:
            with self.database.savepoint():
                yield
        except BaseException:
            self.journal.forget_since(mark)
            self.steps.forget_orders()
            raise

    def data_version(self) -> int:
        """A number that changes when another process has committed to the file."""
        return self.database.data_version()

    def newest_frame_id(self) -> int:
        """The number of the newest frame of all runs; 0 when there is none yet."""
        found: int = self.database.row(queries.NEWEST_FRAME)[0]
        return found

    def newest_seq(self, run_id: str) -> int:
        """The number of a run's last frame; 0 when it has none."""
        found: int = self.database.row(queries.NEWEST_SEQ, {"run_id": run_id})[0]
        return found

    def read_frames(
        self, run_id: str, after_seq: int, limit: int, characters: int = PAGE_CHARACTERS
    ) -> list[StoredFrame]:
        """The next frames of a run strictly after ``after_seq``.

        :param limit, characters: the most frames, and the most text; one frame is returned however long it is.
        """
        return self._page(queries.FRAMES, {"run_id": run_id, "seq": after_seq, "limit": limit}, characters)

    def read_all_frames(self, after_id: int, limit: int, characters: int = PAGE_CHARACTERS) -> list[StoredFrame]:
        """The next frames of all runs strictly after ``after_id``; limited as ``read_frames``."""
        return self._page(queries.ALL_FRAMES, {"id": after_id, "limit": limit}, characters)

    def read_logs(self, run_id: str, after_seq: int, until: int, levels: list[str], limit: int) -> list[StoredFrame]:
        """The log lines of those levels among a run's frames strictly after ``after_seq`` up to ``until``."""
        text, values = queries.logs(levels)
        values |= {"run_id": run_id, "seq": after_seq, "until": until, "limit": limit}
        return [StoredFrame._make(row) for row in self.database.rows(text, values)]

    def _page(self, text: str, values: dict[str, Any], characters: int) -> list[StoredFrame]:
        page: list[StoredFrame] = []
        for row in self.database.each(text, values):
            frame = StoredFrame._make(row)
            page.append(frame)
            characters -= len(frame.body)
            if characters <= 0:
                break
        return page


class _Transaction:
    """The transactions of a store, one after the other, for ``with``.

    One instance serves all transactions: there is one transaction per step, and a generator takes three times as long.
    """

    __slots__ = ("_database", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._database = store.database

    def __enter__(self) -> None:
        self._database.begin()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            try:
                self._database.commit()
            except BaseException:
                self._store.forget()
                raise
            self._store.tell()
            return
        self._store.forget()
        self._database.roll_back()
        self._database.translate(error)  # foreign code's; errors of the engine's own statements are translated already
