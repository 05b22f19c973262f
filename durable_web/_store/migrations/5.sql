-- From schema version 4 to 5: the outcomes of a run have one order, which replays follow.
--
-- Earlier versions did not record that order. It is known where a run was sequential: where it never had two operations
-- busy at once, its operations ended in the order in which they began. Of every other run the order stays unknown
-- (NULL): an active one becomes dead when an engine starts, and one that is retried begins anew on its input. In doubt
-- a run counts as not sequential, because in a wrong order one operation could be given the outcome of another.
--
-- What earlier versions recorded of asyncio's timers around waits is dropped: these timers begin anew.

ALTER TABLE durable_runs ADD COLUMN interruptions INTEGER NOT NULL DEFAULT 0;

ALTER TABLE durable_steps ADD COLUMN outcome_order INTEGER;

ALTER TABLE durable_steps ADD COLUMN inline INTEGER NOT NULL DEFAULT 0;

UPDATE durable_steps
   SET undo = 1
 WHERE undo > 1;

-- A patch is recorded only where it applies.
DELETE FROM durable_steps
 WHERE kind = 'patch' AND output = 'false';

-- --- Which runs were not sequential ----------------------------------------------------------------------------------

CREATE TEMP TABLE durable_unordered (
    run_id           TEXT    PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- A step's function asked for an operation: both were busy.
INSERT OR IGNORE INTO durable_unordered (run_id)
SELECT run_id
  FROM durable_steps
 WHERE SUBSTR(place, INSTR(place, ' '), 3) = ' in';

-- An operation began before an earlier one had ended. A webhook is open while others are busy, so its end says nothing.
-- An operation that was retried began with its first attempt; what was called off or forgotten before does not count.
-- Of the first operation of a branch ('*', 'by* <path>'), and of one of several children, equal milliseconds are not
-- enough: what began together may have ended together.
INSERT OR IGNORE INTO durable_unordered (run_id)
SELECT run_id
  FROM (SELECT run_id, kind, scope, began_at,
               MAX(ended_at) OVER earlier AS busy_until,
               MAX(CASE kind WHEN 'child' THEN ended_at END) OVER earlier AS child_until
          FROM (SELECT run_id, kind, position,
                       SUBSTR(place, INSTR(place, ' ') + 1) AS scope,
                       CASE WHEN kind <> 'webhook' THEN COALESCE(completed_at, 1 << 62) END AS ended_at,
                       CASE WHEN attempt <= attempts_before + 1 THEN started_at
                            ELSE MIN(started_at,
                                     COALESCE((SELECT MIN(failed.started_at)
                                                 FROM durable_attempts AS failed
                                                WHERE failed.run_id = step.run_id AND failed.name = step.name
                                                  AND failed.attempt > step.attempts_before),
                                              started_at))
                       END AS began_at
                  FROM durable_steps AS step)
        WINDOW earlier AS (PARTITION BY run_id
                           ORDER BY position
                           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING))
 WHERE began_at < busy_until
    OR (began_at = busy_until AND (scope = '*' OR scope LIKE 'by* %'))
    OR (began_at = child_until AND kind = 'child');

-- A branch went on ('by <path>'), or made another one ('by* <path>'), after an operation that was neither its own nor
-- of a branch that it had made ('<path> .. ...'): it was there beside another one. A patch is in no branch.
INSERT OR IGNORE INTO durable_unordered (run_id)
SELECT run_id
  FROM (SELECT run_id, maker,
               LAG(branch, 1, '') OVER (PARTITION BY run_id ORDER BY position) AS branch_before
          FROM (SELECT run_id, position,
                       CASE WHEN scope LIKE 'by %' THEN SUBSTR(scope, 4)
                            WHEN scope LIKE 'by* %' THEN SUBSTR(scope, 5)
                       END AS maker,
                       CASE WHEN scope LIKE 'by %' THEN SUBSTR(scope, 4)
                            WHEN scope LIKE 'by* %' THEN SUBSTR(scope, 5) || ' .. * ' || own_name
                            WHEN scope = '*' THEN own_name
                            ELSE ''
                       END AS branch
                  FROM (SELECT run_id, position,
                               SUBSTR(place, INSTR(place, ' ') + 1) AS scope,
                               CASE WHEN name <> stem AND stem LIKE '%#' THEN SUBSTR(stem, 1, LENGTH(stem) - 1)
                                    ELSE name
                               END || CASE WHEN place LIKE '1 %' THEN '' ELSE '#' || CAST(place AS INTEGER) END
                                   AS own_name
                          FROM (SELECT run_id, name, position, place, RTRIM(name, '0123456789') AS stem
                                  FROM durable_steps
                                 WHERE kind <> 'patch'
                                   AND run_id IN (SELECT run_id
                                                    FROM durable_steps
                                                   WHERE place LIKE '% by%')))))
 WHERE branch_before <> maker
   AND SUBSTR(branch_before, 1, LENGTH(maker) + 4) <> maker || ' .. ';

-- The id of a child run is derived from the key of its operation, and was derived from its path. Where the two differ,
-- a child that is awaited, or that a retry goes on with, could not be found again.
INSERT OR IGNORE INTO durable_unordered (run_id)
SELECT run_id
  FROM durable_steps
 WHERE kind = 'child' AND status <> 'completed' AND place <> '?'
   AND CASE WHEN SUBSTR(place, INSTR(place, ' ') + 1) NOT IN ('', '*') THEN TRUE
            WHEN place LIKE '1 %' THEN name GLOB '*#[0-9]*'
            ELSE name NOT LIKE '%#' || CAST(place AS INTEGER)
       END;

-- The body called an operation off, and there is no record of what made it do so. What was busy when its run ended, or
-- when the compensation began, was cancelled in that moment.
INSERT OR IGNORE INTO durable_unordered (run_id)
SELECT run_id
  FROM durable_steps AS step
 WHERE status = 'cancelled'
   AND NOT EXISTS (SELECT 1
                     FROM durable_frames AS frame
                    WHERE frame.run_id = step.run_id AND frame.ts = step.completed_at AND frame.kind = 'run_status'
                      AND JSON_EXTRACT(frame.body, '$.status')
                          IN ('cancelling', 'completed', 'failed', 'cancelled', 'dead'));

-- An operation ended after a later one had begun. That shows only in the frames where an engine died meanwhile, and the
-- later one was begun again. Frames before a retry are held against each other only, since positions were given again.
INSERT OR IGNORE INTO durable_unordered (run_id)
SELECT run_id
  FROM (SELECT run_id, status, kind, position,
               MAX(CASE status WHEN 'running' THEN position END) OVER (PARTITION BY run_id, retries ORDER BY seq)
                   AS begun_position
          FROM (SELECT frame.run_id, frame.seq,
                       CASE frame.kind WHEN 'step_status' THEN JSON_EXTRACT(frame.body, '$.status') END AS status,
                       JSON_EXTRACT(frame.body, '$.type') AS kind,
                       JSON_EXTRACT(frame.body, '$.index') AS position,
                       SUM(JSON_EXTRACT(frame.body, '$.reason') IS 'retried')
                           OVER (PARTITION BY frame.run_id ORDER BY frame.seq) AS retries
                  FROM durable_runs AS run
                 CROSS JOIN durable_frames AS frame ON frame.run_id = run.id
                 WHERE run.attempt > 1 AND run.status <> 'completed'
                   AND frame.kind IN ('run_status', 'step_status')
                   AND EXISTS (SELECT 1
                                 FROM durable_steps AS step
                                WHERE step.run_id = run.id)))
 WHERE status IN ('completed', 'failed') AND kind IS NOT 'webhook' AND position < begun_position;

-- --- Active runs that were not sequential: `Runs.recover` finds them by their lease, and makes them dead -------------

UPDATE durable_runs
   SET status = CASE status WHEN 'cancelling' THEN 'cancelling' ELSE 'leased' END,
       due = status <> 'cancelling',
       blocked = 0,
       wake_at = NULL,
       waiting_reason = NULL,
       lease_owner = 'migration',
       lease_expires_at = 0
 WHERE status IN ('pending', 'leased', 'waiting', 'cancelling')
   AND id IN (SELECT run_id
                FROM durable_unordered);

-- --- The order of sequential runs ------------------------------------------------------------------------------------

-- The cancellation of a run is an outcome, and so is the passing of its deadline, while it is compensated for that.
INSERT OR IGNORE INTO durable_steps (run_id, name, kind, status, position, attempt, started_at, completed_at)
SELECT run_id, 'cancel:', 'cancel', 'completed', -1, 1, cancelled_at, cancelled_at
  FROM (SELECT run.id AS run_id,
               COALESCE((SELECT MAX(frame.ts)
                           FROM durable_frames AS frame
                          WHERE frame.run_id = run.id AND frame.kind = 'run_status'
                            AND JSON_EXTRACT(frame.body, '$.reason') = 'it is to be compensated'),
                        run.updated_at) AS cancelled_at
          FROM durable_runs AS run
         WHERE run.status = 'cancelling'
           AND (run.ending = 'cancelled' OR JSON_EXTRACT(run.error, '$.type') = 'DeadlineExceeded')
           AND run.id NOT IN (SELECT run_id
                                FROM durable_unordered));

-- So is the beginning of the compensation.
INSERT OR IGNORE INTO durable_steps (run_id, name, kind, status, position, attempt, output, started_at, completed_at)
SELECT step.run_id, 'compensating:', 'compensating', 'completed', -1, 1, 'null', MIN(step.started_at),
       MIN(step.started_at)
  FROM durable_runs AS run
  JOIN durable_steps AS step ON step.run_id = run.id
 WHERE run.status = 'cancelling' AND step.kind = 'compensation'
   AND run.id NOT IN (SELECT run_id
                        FROM durable_unordered)
 GROUP BY step.run_id;

-- Outcomes by position, webhooks by the time of their call; then the cancellation, and then the compensations. Patches
-- and publications are facts, without a place in the order. Times follow the order, also where the clock was set back.
UPDATE durable_steps
   SET outcome_order = outcome.number,
       completed_at = outcome.ended_at
  FROM (SELECT run_id, name,
               ROW_NUMBER() OVER delivery AS number,
               MAX(ended_at) OVER delivery AS ended_at
          FROM (SELECT run_id, name, position,
                       CASE kind
                       WHEN 'cancel' THEN 1
                       WHEN 'compensating' THEN 2
                       WHEN 'compensation' THEN 3
                       ELSE 0
                       END AS phase,
                       CASE WHEN kind IN ('webhook', 'cancel', 'compensating') THEN completed_at
                            ELSE MAX(CASE WHEN kind NOT IN ('webhook', 'cancel', 'compensating') THEN completed_at END)
                                 OVER (PARTITION BY run_id ORDER BY position)
                       END AS ended_at
                  FROM durable_steps
                 WHERE status IN ('completed', 'failed') AND kind NOT IN ('patch', 'publish')
                   AND run_id NOT IN (SELECT run_id
                                        FROM durable_unordered))
        WINDOW delivery AS (PARTITION BY run_id ORDER BY phase, ended_at, position)) AS outcome
 WHERE durable_steps.run_id = outcome.run_id AND durable_steps.name = outcome.name;

DROP TABLE durable_unordered;

ALTER TABLE durable_steps DROP COLUMN timeouts;

ALTER TABLE durable_steps DROP COLUMN place;

CREATE UNIQUE INDEX durable_steps_by_order ON durable_steps (run_id, outcome_order)
    WHERE outcome_order IS NOT NULL AND inline = 0;

-- --- The status 'leased' is called 'running' -------------------------------------------------------------------------

-- It stands in a constraint, in indexes and in triggers, none of which SQLite can alter
-- (https://www.sqlite.org/lang_altertable.html#otheralter, "the following simpler procedure").
PRAGMA writable_schema = ON;

UPDATE sqlite_schema
   SET sql = REPLACE(sql, '''leased''', '''running''')
 WHERE name LIKE 'durable\_%' ESCAPE '\' AND sql LIKE '%''leased''%';

PRAGMA writable_schema = RESET;

UPDATE durable_runs
   SET status = 'running'
 WHERE status = 'leased';

UPDATE durable_frames
   SET body = REPLACE(body, '"status":"leased"', '"status":"running"')
 WHERE kind = 'run_status' AND INSTR(body, '"status":"leased"') > 0;

-- The partial indexes were made for the other status.
REINDEX durable_runs;
