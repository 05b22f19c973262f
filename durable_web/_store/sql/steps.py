"""Steps, their failed attempts, progress and published values."""

from __future__ import annotations

DELETE_STEPS = (
    "DELETE FROM durable_steps WHERE run_id = :run_id",
    "DELETE FROM durable_attempts WHERE run_id = :run_id",
)

SET_PROGRESS = """
UPDATE durable_runs
   SET progress = :progress,
       updated_at = :now
 WHERE id = :id
"""

_STEP_COLUMNS = """name, kind, status, position, attempt, attempts_before, output, error, retry_at, queued, wake_at,
       topic, detail, undo, started_at, completed_at, outcome_order, inline"""

STEPS = f"""
SELECT {_STEP_COLUMNS}
  FROM durable_steps
 WHERE run_id = :run_id
 ORDER BY position
"""

STEP = f"""
SELECT {_STEP_COLUMNS}
  FROM durable_steps
 WHERE run_id = :run_id AND name = :name
"""

OUTCOMES_AFTER = f"""
SELECT {_STEP_COLUMNS}
  FROM durable_steps INDEXED BY durable_steps_by_order
 WHERE run_id = :run_id AND outcome_order > :outcome_order AND inline = 0
 ORDER BY outcome_order
"""

HAS_OUTCOME_AFTER = """
SELECT 1
  FROM durable_steps INDEXED BY durable_steps_by_order
 WHERE run_id = :run_id AND outcome_order > :outcome_order AND inline = 0
 LIMIT 1
"""

# SQLite takes the other columns from the row that has the maximum.
LAST_OUTCOME = """
SELECT MAX(outcome_order), completed_at
  FROM durable_steps
 WHERE run_id = :run_id
"""

ATTEMPTS = """
SELECT name, attempt, error, queued, started_at, completed_at
  FROM durable_attempts
 WHERE run_id = :run_id
 ORDER BY name, attempt
"""

RECORD_ATTEMPT = """
INSERT INTO durable_attempts (run_id, name, attempt, error, queued, started_at, completed_at)
VALUES (:run_id, :name, :attempt, :error, :queued, :started_at, :now)
    ON CONFLICT (run_id, name, attempt) DO UPDATE
   SET error = excluded.error,
       queued = excluded.queued,
       started_at = excluded.started_at,
       completed_at = excluded.completed_at
"""

RUNNING_STEPS = """
SELECT name, kind, position, attempt, started_at
  FROM durable_steps
 WHERE run_id = :run_id AND status = 'running' AND kind <> 'timer'
 ORDER BY position
"""

CANCEL_STEPS = """
UPDATE durable_steps
   SET status = 'cancelled',
       retry_at = NULL,
       topic = NULL,
       completed_at = :now
 WHERE run_id = :run_id AND status = 'running'
"""

KEEP_LAST_FAILURES = """
INSERT OR REPLACE INTO durable_attempts (run_id, name, attempt, error, queued, started_at, completed_at)
SELECT run_id, name, attempt, error, queued, started_at, completed_at
  FROM durable_steps
 WHERE run_id = :run_id AND status = 'failed'
"""

EARLIER_ATTEMPTS = """
SELECT name, MAX(attempt)
  FROM durable_attempts
 WHERE run_id = :run_id
   AND name NOT IN (SELECT name FROM durable_steps WHERE run_id = :run_id)
 GROUP BY name
"""

# A completed row without an order is a fact, or was recorded by a version that kept none: that one cannot be replayed.
_UNSETTLED = """run_id = :run_id
   AND (status <> 'completed'
        OR (outcome_order IS NULL AND kind NOT IN ('patch', 'publish'))
        OR kind IN ('compensation', 'compensating', 'cancel')
        OR 'compensate:' || name IN (SELECT name
                                       FROM durable_steps
                                      WHERE run_id = :run_id AND kind = 'compensation' AND status = 'completed'))"""

FORGET_UNSETTLED_STEPS = f"""
DELETE FROM durable_steps
 WHERE {_UNSETTLED}
"""

FORGET_TIMERS = """
DELETE FROM durable_steps
 WHERE run_id = :run_id AND kind = 'timer'
"""

FORGET_LATER_PUBLICATIONS = f"""
DELETE FROM durable_steps
 WHERE run_id = :run_id AND kind = 'publish'
   AND position > (SELECT MIN(position)
                     FROM durable_steps
                    WHERE {_UNSETTLED} AND kind NOT IN ('compensation', 'compensating', 'cancel', 'timer'))
"""

COPY_STEPS = """
INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, output, error, queued, wake_at, started_at,
                           completed_at, outcome_order, inline)
SELECT :run_id, name, kind, status, position, attempt, output, error, queued, wake_at, started_at, completed_at,
       outcome_order, inline
  FROM durable_steps
 WHERE run_id = :source_run_id AND kind NOT IN ('compensation', 'compensating', 'cancel')
   AND (outcome_order < COALESCE(:outcome_order, outcome_order + 1)
        OR (outcome_order IS NULL AND kind IN ('patch', 'publish') AND position < :position))
   AND 'compensate:' || name NOT IN (SELECT name
                                       FROM durable_steps
                                      WHERE run_id = :source_run_id AND kind = 'compensation'
                                        AND status = 'completed')
"""

# Positional parameters here and for frames: there is one of each for every step, and names are looked up one by one.
_RECORD_STEP = """
INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, attempts_before, output, error, retry_at,
                           queued, wake_at, topic, detail, undo, started_at, completed_at, outcome_order, inline)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
 WHERE {condition}
    ON CONFLICT (run_id, name) DO UPDATE
   SET status = excluded.status,
       attempt = excluded.attempt,
       attempts_before = excluded.attempts_before,
       output = excluded.output,
       error = excluded.error,
       retry_at = excluded.retry_at,
       wake_at = excluded.wake_at,
       topic = excluded.topic,
       detail = excluded.detail,
       undo = excluded.undo,
       queued = excluded.queued,
       started_at = excluded.started_at,
       completed_at = excluded.completed_at,
       outcome_order = excluded.outcome_order,
       inline = excluded.inline
"""

RECORD_STEP = _RECORD_STEP.format(condition="TRUE")

RECORD_STEP_FENCED = _RECORD_STEP.format(
    condition="""EXISTS (SELECT 1
                 FROM durable_runs
                WHERE id = ? AND generation = ? AND status IN ('running', 'cancelling'))"""
)

# What nearly every step comes to, in one short statement: completed, with nothing left of a failure or of a wait.
RECORD_COMPLETED_FENCED = """
INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, attempts_before, output, queued, undo,
                           started_at, completed_at, outcome_order, inline)
SELECT id, ?, ?, 'completed', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
  FROM durable_runs
 WHERE id = ? AND generation = ? AND status IN ('running', 'cancelling')
    ON CONFLICT (run_id, name) DO UPDATE
   SET status = excluded.status,
       attempt = excluded.attempt,
       attempts_before = excluded.attempts_before,
       output = excluded.output,
       error = NULL,
       retry_at = NULL,
       wake_at = NULL,
       topic = NULL,
       detail = NULL,
       undo = excluded.undo,
       queued = excluded.queued,
       started_at = excluded.started_at,
       completed_at = excluded.completed_at,
       outcome_order = excluded.outcome_order,
       inline = excluded.inline
"""

FORGET_TIMER = """
DELETE FROM durable_steps
 WHERE run_id = :run_id AND name = :name AND outcome_order IS NULL
"""

SET_VALUE = """
INSERT INTO durable_values (run_id, key, value, updated_at)
VALUES (:run_id, :key, :value, :now)
    ON CONFLICT (run_id, key) DO UPDATE
   SET value = excluded.value,
       updated_at = excluded.updated_at
"""

GET_VALUE = """
SELECT value
  FROM durable_values
 WHERE run_id = :run_id AND key = :key
"""

LOG_BODIES = """
SELECT body
  FROM durable_frames
 WHERE run_id = :run_id AND kind = 'log'
"""
