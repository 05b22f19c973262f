"""Timelines."""

from __future__ import annotations

from typing import Any

from .parameters import many

FORGET_DELETED_RUNS = """
DELETE FROM durable_frames
 WHERE ts < :forget_before
   AND id IN (SELECT id FROM durable_frames WHERE kind = 'run_deleted' ORDER BY id LIMIT 2)
"""

APPEND_FRAME = """
INSERT INTO durable_frames (run_id, seq, ts, kind, body)
VALUES (?, ?, ?, ?, ?)
"""

FRAMES = """
SELECT id, seq, ts, run_id, kind, body
  FROM durable_frames
 WHERE run_id = :run_id AND seq > :seq
 ORDER BY seq
 LIMIT :limit
"""

ALL_FRAMES = """
SELECT id, seq, ts, run_id, kind, body
  FROM durable_frames
 WHERE id > :id
 ORDER BY id
 LIMIT :limit
"""

_LOGS = """
SELECT id, seq, ts, run_id, kind, body
  FROM durable_frames
 WHERE run_id = :run_id AND seq > :seq AND seq <= :until
   AND kind = 'log'
   AND json_extract(body, '$.level') IN ({levels})
 ORDER BY seq
 LIMIT :limit
"""

NEWEST_FRAME = """
SELECT COALESCE(MAX(id), 0)
  FROM durable_frames
"""

NEWEST_SEQ = """
SELECT COALESCE(MAX(seq), 0)
  FROM durable_frames
 WHERE run_id = :run_id
"""

CURRENT_STEP = """
SELECT name
  FROM durable_steps
 WHERE run_id = :run_id AND status = 'running' AND kind <> 'timer'
 ORDER BY position DESC
 LIMIT 1
"""


def logs(levels: list[str]) -> tuple[str, dict[str, Any]]:
    """The statement and the parameters that read the log lines of some levels among the next frames of a run."""
    names, parameters = many("level", levels)
    return _LOGS.format(levels=names), parameters
