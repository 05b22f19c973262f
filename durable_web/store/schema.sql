-- The tables of durable-web.
--
-- durable_runs     A row is one run: one execution of a job for one input. Triggering inserts it as 'pending'; a claim
--                  makes it 'leased' and raises its generation; settling makes it 'completed' or 'failed'; anybody may
--                  cancel it. Whoever executes it writes only while the row is 'leased' under the same generation.
-- durable_steps    A row is one step of one run, keyed by the step's name: the checkpoint. Written by the engine that
--                  executes the run: 'running' when a step takes long enough to be seen, else at once with its outcome.
-- durable_frames   A row is one entry of a run's timeline, append-only, written in the transaction of the change that it
--                  tells of. `id` rises over all runs with commit order, `seq` counts 1, 2, 3 ... within a run. `body`
--                  is a JSON object of the fields that the kind adds, with names as they are on the wire.
--
-- Times are milliseconds since 1970-01-01 UTC. Values (input, output) are the JSON text of durable_web.codec; errors are
-- JSON objects {type, message, traceback}. What can be derived (a run's current step, how many steps it has completed)
-- is not stored. The version of this schema is PRAGMA user_version.

CREATE TABLE durable_runs (
    id               TEXT    PRIMARY KEY,            -- ULID: sorting by id sorts by creation
    job              TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'leased', 'waiting', 'cancelling',
                                                        'completed', 'failed', 'cancelled', 'dead')),
    input            TEXT    NOT NULL,
    output           TEXT,
    error            TEXT,
    progress         TEXT,                           -- {current, total, message}, the latest
    attempt          INTEGER NOT NULL DEFAULT 0,     -- times the job body was begun
    recoveries       INTEGER NOT NULL DEFAULT 0,     -- deaths of its engine since a step was last committed
    generation       INTEGER NOT NULL DEFAULT 0,     -- rises with every claim: the fencing token
    lease_owner      TEXT,
    lease_expires_at INTEGER,
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    completed_at     INTEGER,
    updated_at       INTEGER NOT NULL
) STRICT;

CREATE INDEX durable_runs_by_status ON durable_runs (status, id);
CREATE INDEX durable_runs_by_job    ON durable_runs (job, id);

CREATE TABLE durable_steps (
    run_id           TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    kind             TEXT    NOT NULL,               -- 'step' or 'transaction'
    status           TEXT    NOT NULL CHECK (status IN ('running', 'completed', 'failed', 'cancelled')),
    position         INTEGER NOT NULL,               -- order of first recording within the run, from 0
    attempt          INTEGER NOT NULL,
    output           TEXT,
    error            TEXT,
    started_at       INTEGER NOT NULL,
    completed_at     INTEGER,
    PRIMARY KEY (run_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE durable_frames (
    id               INTEGER PRIMARY KEY,
    run_id           TEXT    NOT NULL,
    seq              INTEGER NOT NULL,
    ts               INTEGER NOT NULL,
    kind             TEXT    NOT NULL,
    body             TEXT    NOT NULL
) STRICT;

CREATE UNIQUE INDEX durable_frames_by_run ON durable_frames (run_id, seq);
