"""The SQL of the store, to be read beside ``schema.sql``."""

from __future__ import annotations

from typing import Any

RUN_COLUMNS = (
    "id",
    "job",
    "status",
    "input",
    "output",
    "error",
    "progress",
    "attempt",
    "recoveries",
    "generation",
    "lease_owner",
    "lease_expires_at",
    "current_step",
    "completed_steps",
    "created_at",
    "started_at",
    "completed_at",
    "updated_at",
)

_SELECT_RUN = """
SELECT id, job, status, input, output, error, progress, attempt, recoveries, generation, lease_owner, lease_expires_at,
       (SELECT name
          FROM durable_steps
         WHERE run_id = durable_runs.id AND status = 'running'
         ORDER BY position DESC
         LIMIT 1) AS current_step,
       (SELECT COUNT(*)
          FROM durable_steps
         WHERE run_id = durable_runs.id AND status = 'completed') AS completed_steps,
       created_at, started_at, completed_at, updated_at
  FROM durable_runs
"""

GET_RUN = f"""{_SELECT_RUN}
 WHERE id = :id
"""

INSERT_RUN = """
INSERT INTO durable_runs (id, job, status, input, created_at, updated_at)
VALUES (:id, :job, 'pending', :input, :now, :now)
"""

CLAIM = """
UPDATE durable_runs
   SET status = 'leased',
       attempt = attempt + 1,
       generation = generation + 1,
       lease_owner = :owner,
       lease_expires_at = :expires,
       started_at = COALESCE(started_at, :now),
       updated_at = :now
 WHERE id = (SELECT id
               FROM durable_runs
              WHERE status = 'pending'
              ORDER BY id
              LIMIT 1)
RETURNING id, job, input, attempt, recoveries, generation
"""

FENCE = """
SELECT 1
  FROM durable_runs
 WHERE id = :id AND generation = :generation AND status = 'leased'
"""

RENEW = """
UPDATE durable_runs
   SET lease_expires_at = :expires
 WHERE id = :id AND generation = :generation AND status = 'leased'
"""

SETTLE = """
UPDATE durable_runs
   SET status = :status,
       output = :output,
       error = :error,
       lease_owner = NULL,
       lease_expires_at = NULL,
       completed_at = :now,
       updated_at = :now
 WHERE id = :id AND generation = :generation AND status = 'leased'
"""

RELEASE = """
UPDATE durable_runs
   SET status = 'pending',
       lease_owner = NULL,
       lease_expires_at = NULL,
       updated_at = :now
 WHERE id = :id AND generation = :generation AND status = 'leased'
"""

CANCEL = """
UPDATE durable_runs
   SET status = 'cancelled',
       lease_owner = NULL,
       lease_expires_at = NULL,
       completed_at = :now,
       updated_at = :now
 WHERE id = :id AND status IN ('pending', 'leased', 'waiting', 'cancelling')
RETURNING attempt
"""

ORPHANS = """
SELECT id, attempt, recoveries
  FROM durable_runs
 WHERE status = 'leased' AND lease_expires_at < :expired_before
 ORDER BY id
"""

TAKE_BACK = """
UPDATE durable_runs
   SET status = 'pending',
       recoveries = recoveries + 1,
       lease_owner = NULL,
       lease_expires_at = NULL,
       updated_at = :now
 WHERE id = :id
"""

BURY = """
UPDATE durable_runs
   SET status = 'dead',
       recoveries = recoveries + 1,
       error = :error,
       lease_owner = NULL,
       lease_expires_at = NULL,
       completed_at = :now,
       updated_at = :now
 WHERE id = :id
"""

RESET_RECOVERIES = """
UPDATE durable_runs
   SET recoveries = 0
 WHERE id = :id AND generation = :generation
"""

SET_PROGRESS = """
UPDATE durable_runs
   SET progress = :progress,
       updated_at = :now
 WHERE id = :id
"""

STEPS = """
SELECT name, kind, status, position, attempt, output, error, started_at, completed_at
  FROM durable_steps
 WHERE run_id = :run_id
 ORDER BY position
"""

RUNNING_STEPS = """
SELECT name, position, attempt, started_at
  FROM durable_steps
 WHERE run_id = :run_id AND status = 'running'
 ORDER BY position
"""

CANCEL_STEPS = """
UPDATE durable_steps
   SET status = 'cancelled',
       completed_at = :now
 WHERE run_id = :run_id AND status = 'running'
"""

RECORD_STEP = """
INSERT INTO durable_steps (run_id, name, kind, status, position, attempt, output, error, started_at, completed_at)
VALUES (:run_id, :name, :kind, :status, :position, :attempt, :output, :error, :started_at, :completed_at)
    ON CONFLICT (run_id, name) DO UPDATE
   SET status = excluded.status,
       attempt = excluded.attempt,
       output = excluded.output,
       error = excluded.error,
       started_at = excluded.started_at,
       completed_at = excluded.completed_at
"""

APPEND_FRAME = """
INSERT INTO durable_frames (run_id, seq, ts, kind, body)
VALUES (:run_id,
        (SELECT COALESCE(MAX(seq), 0) + 1 FROM durable_frames WHERE run_id = :run_id),
        :ts, :kind, :body)
RETURNING id, seq
"""

FRAMES = """
SELECT id, seq, ts, run_id, kind, body
  FROM durable_frames
 WHERE run_id = :run_id AND seq > :seq
 ORDER BY seq
 LIMIT :limit
"""

LOG_BODIES = """
SELECT body
  FROM durable_frames
 WHERE run_id = :run_id AND kind = 'log'
"""


def list_runs(statuses: list[str], jobs: list[str], before: str | None, limit: int) -> tuple[str, dict[str, Any]]:
    """The statement and the parameters that list runs, newest first, strictly older than the id ``before``."""
    conditions = ["TRUE"]
    parameters: dict[str, Any] = {"limit": limit}
    for column, wanted in (("status", statuses), ("job", jobs)):
        if wanted:
            names = [f"{column}_{number}" for number in range(len(wanted))]
            parameters.update(zip(names, wanted, strict=True))
            conditions.append(f"{column} IN ({', '.join(':' + name for name in names)})")
    if before is not None:
        conditions.append("id < :before")
        parameters["before"] = before
    where = " AND ".join(conditions)
    return f"{_SELECT_RUN}\n WHERE {where}\n ORDER BY id DESC\n LIMIT :limit", parameters
