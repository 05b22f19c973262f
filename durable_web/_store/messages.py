"""Signals and updates that were sent to runs: kept until a wait takes them, first in, first out, each once."""

from __future__ import annotations

from dataclasses import dataclass

from .database import Database

EVENT_IDS_KEPT = 30 * 24 * 60 * 60 * 1000
"""How long the id of a published event is kept, in milliseconds."""
FORGOTTEN_BATCH = 10

SEND = """
INSERT INTO durable_messages (run_id, topic, message_id, payload, status, sent_at)
VALUES (:run_id, :topic, :message_id, :payload, 'pending', :now)
    ON CONFLICT (run_id, topic, message_id) DO NOTHING
RETURNING id
"""

NEXT = """
SELECT id, message_id, payload
  FROM durable_messages INDEXED BY durable_messages_pending
 WHERE run_id = :run_id AND topic = :topic AND status = 'pending'
 ORDER BY id
 LIMIT 1
"""

MARK = """
UPDATE durable_messages
   SET status = :status,
       outcome = :outcome
 WHERE run_id = :run_id AND topic = :topic AND message_id = :message_id AND status IN ('pending', 'taken')
"""

PUT_BACK = """
UPDATE durable_messages
   SET status = 'pending'
 WHERE run_id = :run_id AND topic = :topic AND message_id = :message_id AND status = 'taken'
"""

TAKE_ALONG = """
UPDATE durable_messages
   SET run_id = :successor_id
 WHERE run_id = :run_id
"""

OUTCOME = """
SELECT status, outcome
  FROM durable_messages
 WHERE run_id = :run_id AND topic = :topic AND message_id = :message_id
"""

FORGET_EVENTS = """
DELETE FROM durable_events
 WHERE id IN (SELECT id
                FROM durable_events INDEXED BY durable_events_by_time
               WHERE published_at < :forget_before
               ORDER BY published_at
               LIMIT :limit)
"""

PUBLISH = """
INSERT INTO durable_events (id, topic, published_at)
VALUES (:id, :topic, :now)
    ON CONFLICT (id) DO NOTHING
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Message:
    """A signal or an update; ``payload`` is the codec's text."""

    id: int
    message_id: str
    payload: str


class Messages:
    """The verbs on messages to runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def send(self, run_id: str, topic: str, message_id: str, payload: str, now: int) -> bool:
        """Keep a message for a run; ``False`` when one of that id was sent before."""
        values = {"run_id": run_id, "topic": topic, "message_id": message_id, "payload": payload, "now": now}
        return self._database.row(SEND, values) is not None

    def next(self, run_id: str, topic: str) -> Message | None:
        """The pending message that was sent first."""
        row = self._database.row(NEXT, {"run_id": run_id, "topic": topic})
        return None if row is None else Message(*row)

    def mark(self, run_id: str, topic: str, message_id: str, status: str, outcome: str | None = None) -> None:
        """Record the status of a message: 'taken', 'rejected', 'answered' or 'failed'."""
        values = {"run_id": run_id, "topic": topic, "message_id": message_id, "status": status, "outcome": outcome}
        self._database.execute(MARK, values)

    def put_back(self, run_id: str, topic: str, message_id: str) -> None:
        """Requeue a message that was taken, at its earlier place, for the next wait."""
        self._database.execute(PUT_BACK, {"run_id": run_id, "topic": topic, "message_id": message_id})

    def take_along(self, run_id: str, successor_id: str) -> None:
        """Move the messages of a run, also those that it has taken, to the run as which it continues.

        The successor takes the pending messages. The ids of the others still reject a repeated message.
        """
        self._database.execute(TAKE_ALONG, {"run_id": run_id, "successor_id": successor_id})

    def outcome(self, run_id: str, topic: str, message_id: str) -> tuple[str, str | None] | None:
        """The status of a message and its outcome; ``None`` when it was never sent, or its run is gone."""
        values = {"run_id": run_id, "topic": topic, "message_id": message_id}
        found: tuple[str, str | None] | None = self._database.row(OUTCOME, values)
        return found

    def publish(self, event_id: str, topic: str, now: int) -> bool:
        """Record that an event is published; ``False`` when an event of that id was published in the last 30 days."""
        self._forget_events(now)
        values = {"id": event_id, "topic": topic, "now": now}
        return self._database.row(PUBLISH, values) is not None

    def _forget_events(self, now: int) -> None:
        """Delete a few expired event ids: more than are added."""
        values = {"forget_before": now - EVENT_IDS_KEPT, "limit": FORGOTTEN_BATCH}
        self._database.execute(FORGET_EVENTS, values)
