"""Schedules in the database, and the verbs on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._codec import decode, to_json
from .._errors import ScheduleNotFound
from .._model import Schedule, from_milliseconds
from .._recurrence import Recurrence
from .database import Database

IsWanted = Callable[[str, str], bool]  # of a schedule's name and its job's

COLUMNS = (
    "name",
    "job",
    "cron",
    "every",
    "anchor",
    "timezone",
    "input",
    "labels",
    "overlap",
    "catch_up",
    "jitter",
    "paused",
    "next_due",
    "last_due",
    "last_run_id",
    "skips",
    "last_skipped",
    "skip_reason",
    "created_at",
    "updated_at",
)

_SELECT = f"""
SELECT {", ".join(COLUMNS)}
  FROM durable_schedules
"""

GET = f"""{_SELECT}
 WHERE name = :name
"""

LIST = f"""{_SELECT}
 ORDER BY name
"""

NEXT_DUE = """
SELECT next_due, name, job
  FROM durable_schedules INDEXED BY durable_schedules_due
 WHERE paused = 0 AND next_due IS NOT NULL
 ORDER BY next_due
"""

DUE = f"""{_SELECT} INDEXED BY durable_schedules_due
 WHERE paused = 0 AND next_due IS NOT NULL AND next_due <= :now
 ORDER BY next_due, name
"""

PUT = """
INSERT INTO durable_schedules (name, job, cron, every, anchor, timezone, input, labels, overlap, catch_up, jitter,
                               next_due, created_at, updated_at)
VALUES (:name, :job, :cron, :every, :anchor, :timezone, :input, :labels, :overlap, :catch_up, :jitter,
        :next_due, :now, :now)
    ON CONFLICT (name) DO UPDATE
   SET job = excluded.job,
       cron = excluded.cron,
       every = excluded.every,
       anchor = excluded.anchor,
       timezone = excluded.timezone,
       input = excluded.input,
       labels = excluded.labels,
       overlap = excluded.overlap,
       catch_up = excluded.catch_up,
       jitter = excluded.jitter,
       next_due = excluded.next_due,
       updated_at = excluded.updated_at
"""

PAUSE = """
UPDATE durable_schedules
   SET paused = :paused,
       next_due = :next_due,
       updated_at = :now
 WHERE name = :name
"""

MOVE_ON = """
UPDATE durable_schedules
   SET next_due = :next_due
 WHERE name = :name
"""

NOTE_RUN = """
UPDATE durable_schedules
   SET last_due = :due,
       last_run_id = :run_id
 WHERE name = :name
"""

NOTE_SKIP = """
UPDATE durable_schedules
   SET skips = skips + 1,
       last_skipped = :due,
       skip_reason = :reason
 WHERE name = :name
"""

DELETE = """
DELETE FROM durable_schedules
 WHERE name = :name
"""


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """A schedule as it is stored: ``input`` is the codec's text, times are milliseconds."""

    name: str
    job: str
    cron: str | None
    every: int | None
    anchor: int
    timezone: str
    input: str
    labels: str
    overlap: str
    catch_up: str
    jitter: int
    paused: int = 0
    next_due: int | None = None
    last_due: int | None = None
    last_run_id: str | None = None
    skips: int = 0
    last_skipped: int | None = None
    skip_reason: str | None = None
    created_at: int = 0
    updated_at: int = 0

    @property
    def recurrence(self) -> Recurrence:
        """The times at which the schedule is due."""
        return Recurrence(self.cron, self.every, self.anchor, self.timezone)

    @property
    def timing(self) -> tuple[str | None, int | None, str]:
        """The options that decide when the schedule is due, apart from the time when it was made."""
        return self.cron, self.every, self.timezone

    def public(self) -> Schedule:
        """The schedule as the engine returns it."""
        return Schedule(
            name=self.name,
            job=self.job,
            cron=self.cron,
            every=None if self.every is None else self.every / 1000,
            timezone=self.timezone,
            input=decode(self.input),
            labels=json.loads(self.labels),
            overlap=self.overlap,
            catch_up=self.catch_up,
            jitter=self.jitter / 1000,
            paused=bool(self.paused),
            next_due=from_milliseconds(self.next_due),
            last_due=from_milliseconds(self.last_due),
            last_run_id=self.last_run_id,
            skips=self.skips,
            last_skipped=from_milliseconds(self.last_skipped),
            skip_reason=self.skip_reason,
            created_at=from_milliseconds(self.created_at),  # type: ignore[arg-type]
            updated_at=from_milliseconds(self.updated_at),  # type: ignore[arg-type]
        )


class Schedules:
    """The verbs on schedules. Those that write need a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> StoredSchedule:
        """The schedule of that name.

        :raises ScheduleNotFound: when there is none.
        """
        found = self.find(name)
        if found is None:
            raise ScheduleNotFound(name, [schedule.name for schedule in self.list()])
        return found

    def find(self, name: str) -> StoredSchedule | None:
        """The schedule of that name, if there is one."""
        row = self._database.row(GET, {"name": name})
        return None if row is None else StoredSchedule(*row)

    def list(self) -> Sequence[StoredSchedule]:
        """All schedules, by name."""
        return [StoredSchedule(*row) for row in self._database.rows(LIST)]

    def put(self, schedule: StoredSchedule, now: int) -> None:
        """Make a schedule, or change the schedule of that name, which stays paused if it is paused."""
        values = {name: getattr(schedule, name) for name in COLUMNS}
        self._database.execute(PUT, {**values, "now": now})

    def next_due(self, is_wanted: IsWanted) -> int | None:
        """The earliest due time of the wanted schedules; ``None`` when there is none."""
        rows = self._database.execute(NEXT_DUE)
        return next((due for due, name, job in rows if is_wanted(name, job)), None)

    def due(self, now: int, is_wanted: IsWanted) -> Sequence[StoredSchedule]:
        """The wanted schedules that are due, in the order of their due times."""
        found = [StoredSchedule(*row) for row in self._database.rows(DUE, {"now": now})]
        return [schedule for schedule in found if is_wanted(schedule.name, schedule.job)]

    def set_paused(self, name: str, paused: bool, next_due: int | None, now: int) -> None:
        """Pause or resume a schedule."""
        values = {"name": name, "paused": paused, "next_due": next_due, "now": now}
        self._database.execute(PAUSE, values)

    def move_on(self, name: str, next_due: int | None) -> None:
        """Record when a schedule is due next."""
        self._database.execute(MOVE_ON, {"name": name, "next_due": next_due})

    def note_run(self, name: str, due: int, run_id: str) -> None:
        """Record which run a due time has made."""
        self._database.execute(NOTE_RUN, {"name": name, "due": due, "run_id": run_id})

    def note_skip(self, name: str, due: int, reason: str) -> None:
        """Record that a due time was skipped."""
        self._database.execute(NOTE_SKIP, {"name": name, "due": due, "reason": reason})

    def delete(self, name: str) -> None:
        """Delete a schedule; its runs stay."""
        self._database.execute(DELETE, {"name": name})


def labels_text(labels: dict[str, str]) -> str:
    """Labels as they are stored."""
    return to_json(labels)
