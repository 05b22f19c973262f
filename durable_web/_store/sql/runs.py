"""Statements that change runs, and statements that find the runs to be changed."""

from __future__ import annotations

from typing import Any

from .frames import FORGET_DELETED_RUNS
from .parameters import many
from .steps import DELETE_STEPS

INSERT_RUN = """
INSERT INTO durable_runs (id, job, version, input, labels, idempotency_key, concurrency_key, priority, run_at,
                          deadline, parent_run_id, parent_step, continued_from, dead_letter_of, due, ready_at,
                          created_at, updated_at, status, attempt, generation, lease_owner, lease_expires_at,
                          started_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

INSERT_LABEL = """
INSERT INTO durable_labels (key, value, run_id)
VALUES (:key, :value, :run_id)
"""

FIND_BY_IDEMPOTENCY_KEY = """
SELECT id
  FROM durable_runs
 WHERE job = :job AND idempotency_key = :key
"""

FIND_BY_CONCURRENCY_KEY = """
SELECT id
  FROM durable_runs INDEXED BY durable_runs_by_concurrency_key
 WHERE concurrency_key = :key AND status = :status AND job = :job
   AND status IN ('pending', 'running', 'waiting', 'cancelling')
   AND id <> :besides
 ORDER BY id
 LIMIT 1
"""

_CLAIM = """
UPDATE durable_runs
   SET status = CASE status WHEN 'pending' THEN 'running' ELSE status END,
       due = status = 'pending',
       attempt = attempt + 1,
       generation = generation + 1,
       lease_owner = :owner,
       lease_expires_at = :expires,
       started_at = COALESCE(started_at, :now),
       updated_at = :now
 WHERE id = (SELECT candidate.id
               FROM durable_runs AS candidate INDEXED BY durable_runs_to_claim
              WHERE candidate.status IN ('pending', 'cancelling') AND candidate.due = 1
                AND (candidate.concurrency_key IS NULL
                     OR NOT EXISTS (SELECT 1
                                      FROM durable_runs AS other INDEXED BY durable_runs_by_concurrency_key
                                     WHERE other.concurrency_key = candidate.concurrency_key
                                       AND other.status IN ('running', 'cancelling') AND other.blocked = 0
                                       AND other.status IN ('pending', 'running', 'waiting', 'cancelling')
                                       AND (candidate.status = 'pending' OR other.lease_owner IS NOT NULL)))
                {condition}
              ORDER BY candidate.priority DESC, candidate.id
              LIMIT 1)
   AND (:alone OR (recoveries = 0 AND interruptions < :most_interruptions))
RETURNING id, job, version, input, attempt, recoveries, generation, lease_expires_at, deadline,
          concurrency_key, MAX(:now - ready_at, 0), started_at, ending, error, failed_step,
          EXISTS (SELECT 1
                    FROM durable_steps
                   WHERE run_id = durable_runs.id),
          interruptions
"""

CLAIM = _CLAIM.format(condition="")

HAS_CLAIMABLE = """
SELECT EXISTS (SELECT 1
                 FROM durable_runs INDEXED BY durable_runs_to_claim
                WHERE status IN ('pending', 'cancelling') AND due = 1)
    OR EXISTS (SELECT 1
                 FROM durable_held
                WHERE gate = '')
    OR EXISTS (SELECT 1
                 FROM durable_runs INDEXED BY durable_runs_blocked
                WHERE blocked = 1)
"""

COUNT_EXECUTING = """
SELECT COALESCE((SELECT runs
                   FROM durable_counts
                  WHERE job = :job AND status = 'running'), 0)
     + (SELECT COUNT(*)
          FROM durable_runs INDEXED BY durable_runs_undoing
         WHERE job = :job AND status = 'cancelling' AND lease_owner IS NOT NULL)
"""

FENCE = """
SELECT 1
  FROM durable_runs
 WHERE id = :id AND generation = :generation AND status IN ('running', 'cancelling')
"""

RENEW = """
UPDATE durable_runs
   SET lease_expires_at = :expires
 WHERE id = :id AND generation = :generation AND status IN ('running', 'cancelling') AND lease_expires_at > :now
"""

RENEW_ALL = """
UPDATE durable_runs
   SET lease_expires_at = :expires
 WHERE lease_owner = :owner AND status IN ('running', 'cancelling') AND lease_expires_at > :now
"""

LIMIT_DURATION = """
UPDATE durable_runs
   SET deadline = MIN(COALESCE(deadline, :deadline), :deadline)
 WHERE id = :id AND generation = :generation
"""

PARK = """
UPDATE durable_runs
   SET status = 'waiting',
       wake_at = :wake_at,
       waiting_reason = :reason,
       lease_owner = NULL,
       lease_expires_at = NULL,
       updated_at = :now
 WHERE id = :id AND generation = :generation AND status = 'running'
"""

SETTLE = """
UPDATE durable_runs
   SET status = :status,
       output = :output,
       error = :error,
       failed_step = :failed_step,
       ending = NULL,
       continued_as = :continued_as,
       lease_owner = NULL,
       lease_expires_at = NULL,
       completed_at = :now,
       updated_at = :now
 WHERE id = :id AND generation = :generation AND status = :expected
RETURNING started_at, parent_run_id, parent_step,
          EXISTS (SELECT 1
                    FROM durable_runs AS child INDEXED BY durable_runs_by_parent
                   WHERE child.parent_run_id = :id)
       OR EXISTS (SELECT 1
                    FROM durable_steps INDEXED BY durable_steps_by_topic
                   WHERE topic = :followed_as)
"""

RELEASE = """
UPDATE durable_runs
   SET status = CASE status WHEN 'running' THEN 'pending' ELSE status END,
       due = NOT paused OR status = 'cancelling',
       ready_at = :now,
       lease_owner = NULL,
       lease_expires_at = NULL,
       updated_at = :now
 WHERE id = :id AND generation = :generation AND status IN ('running', 'cancelling')
RETURNING status
"""

BLOCK = """
UPDATE durable_runs
   SET status = CASE status WHEN 'running' THEN 'waiting' ELSE status END,
       blocked = 1,
       due = 0,
       attempt = attempt - 1,
       waiting_reason = :reason,
       lease_owner = NULL,
       lease_expires_at = NULL,
       started_at = CASE attempt WHEN 1 THEN NULL ELSE started_at END,
       updated_at = :now
 WHERE id = :id AND generation = :generation AND status IN ('running', 'cancelling')
RETURNING status, attempt
"""

UNBLOCK = """
UPDATE durable_runs
   SET status = CASE status WHEN 'waiting' THEN 'pending' ELSE status END,
       blocked = 0,
       due = NOT paused OR status = 'cancelling',
       waiting_reason = NULL,
       ready_at = :now,
       updated_at = :now
 WHERE id IN (SELECT id
                FROM durable_runs INDEXED BY durable_runs_blocked
               WHERE blocked = 1 AND job = :job AND version IS :version
               ORDER BY priority DESC, id
               LIMIT :limit)
RETURNING id, status, attempt
"""

PAUSE = """
UPDATE durable_runs
   SET paused = 1,
       due = CASE status WHEN 'pending' THEN 0 ELSE due END,
       updated_at = :now
 WHERE id = :id AND status IN ('pending', 'running', 'waiting')
RETURNING status, attempt
"""

UNPAUSE = """
UPDATE durable_runs
   SET paused = 0,
       due = CASE status WHEN 'pending' THEN run_at IS NULL OR run_at <= :now ELSE due END,
       updated_at = :now
 WHERE id = :id AND paused = 1
RETURNING status, attempt
"""

COMPENSATE = """
UPDATE durable_runs
   SET status = 'cancelling',
       ending = :ending,
       error = :error,
       failed_step = :failed_step,
       due = 0,
       paused = 0,
       updated_at = :now
 WHERE id = :id AND generation = :generation AND status = 'running'
"""

BEGIN_COMPENSATION = """
UPDATE durable_runs
   SET due = status <> 'running',
       status = 'cancelling',
       ending = :ending,
       error = :error,
       paused = 0,
       blocked = 0,
       wake_at = NULL,
       waiting_reason = NULL,
       ready_at = CASE status WHEN 'running' THEN ready_at ELSE :now END,
       updated_at = :now
 WHERE id = :id AND status IN ('pending', 'running', 'waiting')
   AND EXISTS (SELECT 1
                 FROM durable_steps
                WHERE run_id = :id AND undo > 0 AND status IN ('completed', 'running'))
RETURNING attempt
"""

ENDING = """
SELECT ending, error, failed_step
  FROM durable_runs
 WHERE id = :id
"""

ACTIVE_CHILDREN = """
SELECT id, parent_step
  FROM durable_runs INDEXED BY durable_runs_by_parent
 WHERE parent_run_id = :id AND status IN ('pending', 'running', 'waiting')
 ORDER BY id
"""

TELL_PARENT_STEP = """
UPDATE durable_runs
   SET parent_step = :step
 WHERE id = :id
"""

AWAITED_CHILDREN = """
SELECT id
  FROM durable_runs AS child INDEXED BY durable_runs_by_parent
 WHERE parent_run_id = :id AND parent_step IS NOT NULL AND status IN ('pending', 'running', 'waiting')
   AND NOT EXISTS (SELECT 1
                     FROM durable_steps
                    WHERE run_id = :id AND name = child.parent_step AND status IN ('completed', 'failed'))
 ORDER BY id
"""

ADOPT_CHILDREN = """
UPDATE durable_runs INDEXED BY durable_runs_by_parent
   SET parent_run_id = :successor_id
 WHERE parent_run_id = :id AND parent_step IS NULL AND status IN ('pending', 'running', 'waiting')
"""

LINK_DEAD_LETTER = """
UPDATE durable_runs
   SET dead_letter_id = :dead_letter_id
 WHERE id = :id
"""

NEXT_DUE = """
SELECT MIN(due)
  FROM (SELECT MIN(run_at) AS due
          FROM durable_runs INDEXED BY durable_runs_scheduled
         WHERE status = 'pending' AND due = 0 AND paused = 0
         UNION ALL
        SELECT MIN(wake_at)
          FROM durable_runs INDEXED BY durable_runs_waiting
         WHERE status = 'waiting' AND wake_at IS NOT NULL
         UNION ALL
        SELECT MIN(deadline)
          FROM durable_runs INDEXED BY durable_runs_deadlines
         WHERE deadline IS NOT NULL AND status IN ('pending', 'running', 'waiting')
         UNION ALL
        SELECT MIN(wake_at)
          FROM durable_steps INDEXED BY durable_steps_due
         WHERE status = 'running' AND wake_at IS NOT NULL)
"""

MAKE_DUE = """
UPDATE durable_runs INDEXED BY durable_runs_scheduled
   SET due = 1
 WHERE status = 'pending' AND due = 0 AND paused = 0 AND run_at <= :now
"""

WAKE = """
UPDATE durable_runs INDEXED BY durable_runs_waiting
   SET status = 'pending',
       due = NOT paused,
       waiting_reason = NULL,
       ready_at = wake_at,
       wake_at = NULL,
       updated_at = :now
 WHERE status = 'waiting' AND wake_at IS NOT NULL AND wake_at <= :now
RETURNING id, attempt
"""

WAKE_ONE = """
UPDATE durable_runs
   SET status = 'pending',
       due = NOT paused,
       waiting_reason = NULL,
       ready_at = :now,
       wake_at = NULL,
       updated_at = :now
 WHERE id = :id AND generation = COALESCE(:generation, generation) AND status = 'waiting' AND blocked = 0
RETURNING attempt
"""

OVERDUE = """
SELECT id
  FROM durable_runs INDEXED BY durable_runs_deadlines
 WHERE deadline IS NOT NULL AND deadline <= :now AND status IN ('pending', 'running', 'waiting')
 ORDER BY deadline
"""

EXPIRE = """
UPDATE durable_runs
   SET status = 'failed',
       error = :error,
       ending = NULL,
       blocked = 0,
       wake_at = NULL,
       waiting_reason = NULL,
       lease_owner = NULL,
       lease_expires_at = NULL,
       completed_at = :now,
       updated_at = :now
 WHERE id = :id AND status IN ('pending', 'running', 'waiting')
RETURNING attempt, parent_run_id, parent_step
"""

CANCEL = """
UPDATE durable_runs
   SET status = 'cancelled',
       ending = NULL,
       blocked = 0,
       wake_at = NULL,
       waiting_reason = NULL,
       lease_owner = NULL,
       lease_expires_at = NULL,
       completed_at = :now,
       updated_at = :now
 WHERE id = :id AND status IN ('pending', 'running', 'waiting', 'cancelling')
RETURNING attempt, parent_run_id, parent_step
"""

REOPEN = """
UPDATE durable_runs
   SET status = 'pending',
       due = run_at IS NULL OR run_at <= :now,
       paused = 0,
       input = COALESCE(:input, input),
       error = NULL,
       failed_step = NULL,
       deadline = NULL,
       recoveries = 0,
       interruptions = 0,
       generation = generation + 1,
       ready_at = :now,
       completed_at = NULL,
       updated_at = :now
 WHERE id = :id AND status IN ('failed', 'cancelled', 'dead')
RETURNING attempt
"""

ORPHANS = """
SELECT id
  FROM durable_runs
 WHERE status IN ('running', 'cancelling') AND lease_expires_at <= :expired_before
 ORDER BY id
"""

ORPHAN = """
SELECT attempt, recoveries, lease_owner, lease_expires_at
  FROM durable_runs
 WHERE id = :id AND status IN ('running', 'cancelling') AND lease_expires_at IS NOT NULL
"""

TAKE_BACK = """
UPDATE durable_runs
   SET status = CASE status WHEN 'running' THEN 'pending' ELSE status END,
       due = NOT paused OR status = 'cancelling',
       recoveries = recoveries + :counts,
       interruptions = interruptions + :died,
       ready_at = :now,
       lease_owner = NULL,
       lease_expires_at = NULL,
       updated_at = :now
 WHERE id = :id
RETURNING status
"""

BURY = """
UPDATE durable_runs
   SET status = 'dead',
       recoveries = recoveries + 1,
       interruptions = interruptions + 1,
       ending = NULL,
       error = :error,
       lease_owner = NULL,
       lease_expires_at = NULL,
       completed_at = :now,
       updated_at = :now
 WHERE id = :id
RETURNING job, input, parent_run_id, parent_step
"""

HAS_OUTCOME = """
SELECT EXISTS (SELECT 1
                 FROM durable_steps
                WHERE run_id = :id AND name = :step AND outcome_order IS NOT NULL)
"""

HAS_LEASES = """
SELECT EXISTS (SELECT 1
                 FROM durable_runs INDEXED BY durable_runs_by_status
                WHERE status IN ('running', 'cancelling') AND lease_owner = :owner)
"""

IS_SUSPECT = """
SELECT recoveries > 0 OR interruptions >= :most_interruptions
  FROM durable_runs
 WHERE id = :id
"""

RESET_RECOVERIES = """
UPDATE durable_runs
   SET recoveries = 0,
       interruptions = 0
 WHERE id = :id AND generation = :generation
"""

FORGET_RECOVERIES = """
UPDATE durable_runs
   SET recoveries = 0,
       interruptions = 0
 WHERE id = :id AND (recoveries <> 0 OR interruptions <> 0)
"""

ENDED_BEFORE = """
SELECT id
  FROM durable_runs
 WHERE completed_at IS NOT NULL AND completed_at < :moment
 ORDER BY completed_at
 LIMIT :limit
"""

DELETE_RUN = (
    FORGET_DELETED_RUNS,
    "DELETE FROM durable_frames WHERE run_id = :run_id AND kind <> 'run_deleted'",
    *DELETE_STEPS,
    "DELETE FROM durable_values WHERE run_id = :run_id",
    "DELETE FROM durable_labels WHERE run_id = :run_id",
    "DELETE FROM durable_messages WHERE run_id = :run_id",
    "DELETE FROM durable_runs WHERE id = :run_id",
)


def claim(saturated: list[str]) -> tuple[str, dict[str, Any]]:
    """The statement and the parameters that lease the next run of any job but the ``saturated`` ones."""
    if not saturated:
        return CLAIM, {}
    names, parameters = many("saturated", saturated)
    return _CLAIM.format(
        condition=f"AND (candidate.status = 'cancelling' OR candidate.job NOT IN ({names}))"
    ), parameters
