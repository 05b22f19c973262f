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
       topic, detail, undo, started_at, completed_at, place, timeouts"""

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

TO_COMPENSATE = f"""
SELECT {_STEP_COLUMNS}
  FROM durable_steps
 WHERE run_id = :run_id AND undo > 0 AND status = 'completed'
 ORDER BY undo DESC
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
 WHERE run_id = :run_id AND status = 'running'
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

_UNSETTLED = """run_id = :run_id
   AND (status <> 'completed'
        OR kind = 'compensation'
        OR 'compensate:' || name IN (SELECT name
                                       FROM durable_steps
                                      WHERE run_id = :run_id AND kind = 'compensation' AND status = 'completed'))"""

FORGET_UNSETTLED_STEPS = f"""
DELETE FROM durable_steps
 WHERE {_UNSETTLED}
"""

FORGET_LATER_PUBLICATIONS = f"""
DELETE FROM durable_steps
 WHERE run_id = :run_id AND kind = 'publish'
   AND position > (SELECT MIN(position)
                     FROM durable_steps
                    WHERE {_UNSETTLED})
"""

COPY_STEPS = """
INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, output, error, queued, started_at,
                           completed_at, place)
SELECT :run_id, name, kind, status, position, attempt, output, error, queued, started_at, completed_at, place
  FROM durable_steps
 WHERE run_id = :source_run_id AND position < :position AND status = 'completed' AND kind <> 'compensation'
   AND 'compensate:' || name NOT IN (SELECT name
                                       FROM durable_steps
                                      WHERE run_id = :source_run_id AND kind = 'compensation'
                                        AND status = 'completed')
"""

# Positional parameters here and for frames: there is one of each for every step, and names are looked up one by one.
_RECORD_STEP = """
INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, attempts_before, output, error, retry_at,
                           queued, wake_at, topic, detail, undo, started_at, completed_at, place)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
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
       completed_at = excluded.completed_at
"""

RECORD_STEP = _RECORD_STEP.format(condition="TRUE")

RECORD_STEP_FENCED = _RECORD_STEP.format(
    condition="""EXISTS (SELECT 1
                 FROM durable_runs
                WHERE id = ? AND generation = ? AND status IN ('leased', 'cancelling'))"""
)

# What nearly every step comes to, in one short statement: completed, with nothing left of a failure or of a wait.
RECORD_COMPLETED_FENCED = """
INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, attempts_before, output, queued, undo,
                           started_at, completed_at, place)
SELECT id, ?, ?, 'completed', ?, ?, ?, ?, ?, ?, ?, ?, ?
  FROM durable_runs
 WHERE id = ? AND generation = ? AND status IN ('leased', 'cancelling')
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
       completed_at = excluded.completed_at
"""

NOTE_TIMEOUTS = """
UPDATE durable_steps
   SET timeouts = :timeouts
 WHERE run_id = :run_id AND name = :name
"""

FORGET_TIMEOUTS = """
UPDATE durable_steps
   SET timeouts = NULL
 WHERE run_id = :run_id AND timeouts IS NOT NULL
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
