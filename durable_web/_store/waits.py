"""Durable waits: steps that are 'running' until a message, a child run or a timer ends them.

A wait ends in the transaction of its cause (the delivery of a signal, the end of a child, the timer), and only once: a
second cause finds that the wait is no longer running. The execution that waits, if it is in memory, is notified after
the commit.
"""

from __future__ import annotations

from .._model import OperationKind, StepStatus
from .database import Database
from .journal import Journal
from .messages import Messages
from .runs import Runs, following
from .steps import StepRecord, Steps

DUE_BATCH = 500

DUE = """
SELECT run_id, name
  FROM durable_steps INDEXED BY durable_steps_due
 WHERE status = 'running' AND wake_at IS NOT NULL AND wake_at <= :now
 ORDER BY wake_at
 LIMIT :limit
"""

BY_TOPIC_IN_RUN = """
SELECT name
  FROM durable_steps
 WHERE topic = :topic AND run_id = :run_id AND status = 'running'
 ORDER BY position
 LIMIT 1
"""

BY_TOPIC = """
SELECT run_id, name, detail
  FROM durable_steps
 WHERE topic = :topic AND status = 'running'
 ORDER BY run_id, position
"""

FOLLOW_ON = """
UPDATE durable_steps INDEXED BY durable_steps_by_topic
   SET topic = :next_topic
 WHERE topic = :topic AND status = 'running'
"""

WAITING_FOR = """
WITH RECURSIVE waiting (id) AS (
    SELECT :run_id
     UNION
    SELECT child.parent_run_id
      FROM waiting
      JOIN durable_runs AS child ON child.id = waiting.id
     WHERE child.parent_step IS NOT NULL
     UNION
    SELECT step.run_id
      FROM waiting
      JOIN durable_steps AS step INDEXED BY durable_steps_by_topic ON step.topic = 'run:' || waiting.id
     WHERE step.status = 'running'
)
SELECT id
  FROM waiting
"""

TOPIC_STATUS = """
SELECT run_id, name, status
  FROM durable_steps
 WHERE topic = :topic
"""

OVERDUE_IN_RUN = """
SELECT name
  FROM durable_steps INDEXED BY durable_steps_running
 WHERE run_id = :run_id AND status = 'running' AND wake_at <= :now
 ORDER BY wake_at, position
"""

HAS_MESSAGE = """
SELECT 1
  FROM durable_messages INDEXED BY durable_messages_pending
 WHERE run_id = :run_id AND topic = :topic AND status = 'pending'
 LIMIT 1
"""

BREAKPOINTS = """
SELECT name
  FROM durable_steps
 WHERE run_id = :run_id AND kind = 'breakpoint' AND status = 'running'
 ORDER BY position
"""

_TIMEOUTS = {
    "signal": ("SignalTimeout", "no signal came in time"),
    "event": ("EventTimeout", "no event that matches came in time"),
    "webhook": ("WebhookTimeout", "the webhook was not called in time"),
    "update": ("UpdateTimeout", "no update came in time"),
}
_NULL = "null"


class Waits:
    """The verbs on what runs wait for."""

    def __init__(self, database: Database, journal: Journal, runs: Runs, steps: Steps, messages: Messages) -> None:
        self._database = database
        self._journal = journal
        self._runs = runs
        self._steps = steps
        self._messages = messages

    def begin(self, run_id: str, record: StepRecord, now: int) -> StepRecord:
        """Begin to wait, or go on waiting; returns the record as it is stored.

        The end of a timed wait is fixed when the wait begins for the first time.
        """
        found = self._steps.find(run_id, record.name)
        if found is not None and (found.is_settled or found.status == StepStatus.RUNNING):
            return found
        if record.kind == OperationKind.TIMER:
            self._steps.note(run_id, record)
        else:
            self._steps.record(run_id, record, now)
        return record

    def call_off(self, run_id: str, name: str, now: int) -> StepRecord | None:
        """Cancel a wait that the body has given up; returns its earlier record, ``None`` if there is nothing to cancel.

        A result that the wait has received meanwhile is discarded.
        """
        found = self._steps.find(run_id, name)
        if found is None or found.status == StepStatus.CANCELLED:
            return None
        completed_at = found.completed_at or now  # an outcome keeps its number in the order
        called_off = found._replace(
            status=StepStatus.CANCELLED, completed_at=completed_at, output=None, error=None, topic=None
        )
        self._steps.record(run_id, called_off, now)
        return found

    def limit(self, run_id: str, record: StepRecord, wake_at: int, now: int) -> None:
        """Set the time at which a wait that has begun times out."""
        self._steps.record(run_id, record._replace(wake_at=wake_at), now)

    def settle(
        self,
        run_id: str,
        name: str,
        now: int,
        *,
        output: str | None = _NULL,
        error: dict[str, str] | None = None,
        message_id: str | None = None,
        reason: str,
    ) -> bool:
        """End a wait, and wake its run; ``False`` when the wait had ended before.

        :param output: the codec's text of the wait's result, unless there is an ``error``.
        :param message_id: the id of the message that has ended the wait, if there is one.
        :param reason: why the run goes on, in words.
        """
        record = self._steps.find(run_id, name)
        if record is None or record.status != StepStatus.RUNNING:
            return False
        status = StepStatus.COMPLETED if error is None else StepStatus.FAILED
        output = output if error is None else None
        ended = record._replace(
            status=status,
            output=output,
            error=error,
            topic=record.topic if record.kind == "webhook" else None,  # no later message may find the wait
            detail=message_id or record.detail,
        )
        self._steps.settle(run_id, ended, now)
        self._runs.forget_recoveries(run_id)
        self._runs.wake(run_id, now, reason)
        self._journal.changed.add(run_id)
        return True

    def hand_out(self, run_id: str, topic: str, now: int, reason: str) -> None:
        """Deliver the oldest pending message of a topic to the first wait for the topic, if both exist.

        Called whenever a message is sent or requeued: so while a run waits for a topic, no message of it is pending.
        """
        name = self.find_in_run(run_id, topic)
        message = None if name is None else self._messages.next(run_id, topic)
        if name is not None and message is not None:
            self._messages.mark(run_id, topic, message.message_id, "taken")
            self.settle(run_id, name, now, output=message.payload, message_id=message.message_id, reason=reason)

    def settle_due(self, now: int) -> bool:
        """End the waits whose time has come; ``True`` when there may be more."""
        due = self._database.rows(DUE, {"now": now, "limit": DUE_BATCH})
        for run_id, name in due:
            self._settle_overdue(run_id, name, now)
        return len(due) == DUE_BATCH

    def settle_overdue(self, run_id: str, now: int) -> None:
        """End the waits of one run whose time has come, in the order in which they were due."""
        for (name,) in self._database.rows(OVERDUE_IN_RUN, {"run_id": run_id, "now": now}):
            self._settle_overdue(run_id, name, now)

    def _settle_overdue(self, run_id: str, name: str, now: int) -> None:
        record = self._steps.find(run_id, name)
        kind = "" if record is None else record.kind
        if kind in _TIMEOUTS:
            type_, message = _TIMEOUTS[kind]
            error = {"type": type_, "message": message, "traceback": ""}
            self.settle(run_id, name, now, error=error, reason=f"{name!r} timed out")
        else:
            self.settle(run_id, name, now, reason=f"{kind} {name!r} is over")

    def has_message(self, run_id: str, topic: str) -> bool:
        """``True`` when a message for that topic waits to be taken."""
        return self._database.row(HAS_MESSAGE, {"run_id": run_id, "topic": topic}) is not None

    def find_in_run(self, run_id: str, topic: str) -> str | None:
        """The name of the first wait of a run for a topic; ``None`` when there is none."""
        row = self._database.row(BY_TOPIC_IN_RUN, {"run_id": run_id, "topic": topic})
        return None if row is None else row[0]

    def find(self, topic: str) -> list[tuple[str, str, str | None]]:
        """Run id, name and detail of every wait for that topic."""
        return self._database.rows(BY_TOPIC, {"topic": topic})

    def follow_on(self, run_id: str, successor_id: str) -> None:
        """Let the followers of a run follow the run as which it continues."""
        topics = {"topic": following(run_id), "next_topic": following(successor_id)}
        self._database.execute(FOLLOW_ON, topics)

    def waiting_for(self, run_id: str) -> set[str]:
        """The ids of a run and of all runs that wait for it, directly or not, as parents or followers."""
        return {row[0] for row in self._database.rows(WAITING_FOR, {"run_id": run_id})}

    def status(self, topic: str) -> tuple[str, str, str] | None:
        """Run id, name and status of the one wait for a topic, ended or not; ``None`` when there never was one."""
        found: tuple[str, str, str] | None = self._database.row(TOPIC_STATUS, {"topic": topic})
        return found

    def resume_breakpoints(self, run_id: str, now: int) -> int:
        """End the breakpoints at which a run waits; returns how many."""
        names = [row[0] for row in self._database.rows(BREAKPOINTS, {"run_id": run_id})]
        for name in names:
            self.settle(run_id, name, now, reason=f"breakpoint {name!r} is resumed")
        return len(names)

    def poke(self, run_id: str, now: int, reason: str) -> None:
        """Wake a run so that it handles a message itself, such as an update that it has to validate."""
        self._runs.wake(run_id, now, reason)
        self._journal.changed.add(run_id)
