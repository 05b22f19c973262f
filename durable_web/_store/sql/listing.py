"""Statements that read runs, one or many."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..._codec import to_json
from ..._model import LATEST, Run, RunFilter, to_milliseconds
from .parameters import many

TIMES = (
    "lease_expires_at",
    "run_at",
    "wake_at",
    "deadline",
    "created_at",
    "ready_at",
    "started_at",
    "completed_at",
    "updated_at",
)

_DERIVED = {
    "wake_at": f"""CASE status
        WHEN 'waiting' THEN (SELECT MIN(at)
                               FROM (SELECT durable_runs.wake_at AS at
                                      UNION ALL
                                     SELECT wake_at
                                       FROM durable_steps
                                      WHERE run_id = durable_runs.id AND status = 'running')
                              WHERE at < {LATEST})
        END""",
    "current_step": """(SELECT name
          FROM durable_steps
         WHERE run_id = durable_runs.id AND status = 'running' AND kind <> 'timer'
         ORDER BY position DESC
         LIMIT 1)""",
    "completed_steps": """(SELECT COUNT(*)
          FROM durable_steps
         WHERE run_id = durable_runs.id AND status = 'completed'
           AND kind NOT IN ('timer', 'cancel', 'compensating'))""",
    "last_seq": """(SELECT MAX(seq)
          FROM durable_frames
         WHERE run_id = durable_runs.id)""",
}

RUN_COLUMNS = tuple(field.name for field in fields(Run) if field.name != "disposition")  # set by a trigger, not stored

_SELECT_RUN = f"""
SELECT {", ".join(_DERIVED.get(name, name) for name in RUN_COLUMNS)}
  FROM durable_runs
"""

_SELECT_RUN_WITHOUT_PAYLOADS = _SELECT_RUN.replace("input, output", "'null' AS input, NULL AS output", 1)

GET_RUN = f"""{_SELECT_RUN}
 WHERE id = :id
"""

RUN_EXISTS = """
SELECT 1
  FROM durable_runs
 WHERE id = :id
"""

SERVES_DEAD_LETTER = """
WITH RECURSIVE origin (id, dead_letter_of) AS (
    SELECT id, dead_letter_of
      FROM durable_runs
     WHERE id = :id
     UNION
    SELECT earlier.id, earlier.dead_letter_of
      FROM origin
      JOIN durable_runs AS later ON later.id = origin.id
      JOIN durable_runs AS earlier ON earlier.id IN (later.parent_run_id, later.continued_from)
)
SELECT id
  FROM origin
 WHERE dead_letter_of IS NOT NULL
 LIMIT 1
"""

RUN_IDENTITY = """
SELECT job, labels
  FROM durable_runs
 WHERE id = :id
"""

RUN_OUTCOME = """
SELECT status, output, continued_as
  FROM durable_runs
 WHERE id = :id
"""

RUN_STANDING = """
SELECT status, generation, paused
  FROM durable_runs
 WHERE id = :id
"""


def list_runs(
    wanted: RunFilter, oldest_first: bool, after: str | None, limit: int, payloads: bool = True
) -> tuple[str, dict[str, Any]]:
    """The statement and the parameters that list runs that pass a filter, by id; without ``payloads``, no input or
    output."""
    conditions, parameters = _conditions(wanted)
    if after is not None:
        conditions.append("id > :after" if oldest_first else "id < :after")
        parameters["after"] = after
    where = "\n   AND ".join(conditions) or "TRUE"
    order = "id" if oldest_first else "id DESC"
    select = _SELECT_RUN if payloads else _SELECT_RUN_WITHOUT_PAYLOADS
    return f"{select}\n WHERE {where}\n ORDER BY {order}\n LIMIT :limit", {**parameters, "limit": limit}


def count_runs(by: str) -> str:
    """The statement that counts runs for each status or job."""
    return f"SELECT {by}, SUM(runs) FROM durable_counts GROUP BY {by} HAVING SUM(runs) > 0"


def _conditions(wanted: RunFilter) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for column, values in (("status", wanted.statuses), ("job", wanted.jobs)):
        if values is not None:
            names, more = many(column, list(values))
            conditions.append(f"{column} IN ({names})")
            parameters |= more
    for number, (key, value) in enumerate(sorted((wanted.labels or {}).items())):
        conditions.append(
            f"id IN (SELECT run_id FROM durable_labels WHERE key = :label_key_{number} AND value = :label_{number})"
        )
        parameters |= {f"label_key_{number}": key, f"label_{number}": value}
    for name, comparison, moment in (
        ("created_after", ">", wanted.created_after),
        ("created_before", "<", wanted.created_before),
    ):
        if moment is not None:
            conditions.append(f"created_at {comparison} :{name}")
            parameters[name] = to_milliseconds(moment)
    if wanted.search:
        condition, more = _search(wanted.search)
        conditions.append(condition)
        parameters |= more
    if wanted.parent is not None:
        conditions.append("parent_run_id = :parent")
        parameters["parent"] = wanted.parent
    return conditions, parameters


def _search(text: str) -> tuple[str, dict[str, Any]]:
    """The condition that finds a text literally, and in its JSON form where JSON escapes a part of the text."""
    fold = "lower" if text.isascii() else "durable_fold"  # SQLite's own folds only ASCII, and is faster
    written = to_json(text)[1:-1]
    conditions = [f"id = :search OR instr({fold}(job || ' ' || input || ' ' || labels), {fold}(:search))"]
    if written != text:
        conditions.append(f"instr({fold}(input || ' ' || labels), {fold}(:written))")
    return f"({' OR '.join(conditions)})", {"search": text.encode(errors="replace").decode(), "written": written}
