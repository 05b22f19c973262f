-- The tables of durable-web.
--
-- durable_runs     A row is one run: one execution of a job for one input. Triggering inserts it as 'pending'; a claim
--                  makes it 'leased' and raises its generation; settling makes it 'completed' or 'failed'; anybody may
--                  cancel it. Whoever executes it writes only while the row is 'leased' under the same generation.
--                  A run that has to wait (for the next attempt at a step) is 'waiting', and 'pending' again when its
--                  `wake_at` has come. A pending run may be claimed once it is `due`.
-- durable_steps    A row is one step of one run, keyed by the step's name: the checkpoint. Written by the engine that
--                  executes the run: 'running' when a step takes long enough to be seen, else at once with its outcome.
-- durable_attempts A row is one failed attempt at a step that was, or may be, tried again.
-- durable_labels   A row is one label of one run, for finding runs by label.
-- durable_values   A row is the latest value that a run has published under a key (ctx.set_event).
-- durable_counts   A row is the number of runs of one job in one status, kept by triggers, so that counting costs the same
--                  however many runs there are.
-- durable_frames   A row is one entry of a run's timeline, append-only, written in the transaction of the change that it
--                  tells of. `id` rises over all runs with commit order, `seq` counts 1, 2, 3 ... within a run. `body`
--                  is a JSON object of the fields that the kind adds, with names as they are on the wire. Of deleted
--                  runs one 'run_deleted' frame is left, the latest, so that an `id` is never given out twice.
--
-- Times are milliseconds since 1970-01-01 UTC. Values (input, output) are the JSON text of durable_web.codec; errors are
-- JSON objects {type, message, traceback}. What can be derived (a run's current step, how many steps it has completed)
-- is not stored. The version of this schema is PRAGMA user_version.

CREATE TABLE durable_runs (
    id               TEXT    PRIMARY KEY,            -- ULID: sorting by id sorts by creation
    job              TEXT    NOT NULL,
    version          TEXT,
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'leased', 'waiting', 'cancelling',
                                                        'completed', 'failed', 'cancelled', 'dead')),
    input            TEXT    NOT NULL,
    output           TEXT,
    error            TEXT,
    failed_step      TEXT,                           -- the step whose failure failed the run
    progress         TEXT,                           -- {current, total, message}, the latest
    labels           TEXT    NOT NULL DEFAULT '{}',  -- a JSON object of strings
    idempotency_key  TEXT,
    concurrency_key  TEXT,
    priority         INTEGER NOT NULL DEFAULT 0,
    due              INTEGER NOT NULL DEFAULT 1,     -- 0 until run_at has come
    run_at           INTEGER,
    wake_at          INTEGER,                        -- when a waiting run goes on
    deadline         INTEGER,
    attempt          INTEGER NOT NULL DEFAULT 0,     -- times the job body was begun
    recoveries       INTEGER NOT NULL DEFAULT 0,     -- deaths of its engine since a step was last committed
    generation       INTEGER NOT NULL DEFAULT 0,     -- rises with every claim and retry: fencing token
    lease_owner      TEXT,
    lease_expires_at INTEGER,
    created_at       INTEGER NOT NULL,
    ready_at         INTEGER NOT NULL,               -- when it could last have been claimed: queue time counts from here
    started_at       INTEGER,
    completed_at     INTEGER,
    updated_at       INTEGER NOT NULL
) STRICT;

CREATE INDEX durable_runs_by_status ON durable_runs (status, id);
CREATE INDEX durable_runs_by_job    ON durable_runs (job, id);
CREATE INDEX durable_runs_to_claim  ON durable_runs (priority DESC, id) WHERE status = 'pending' AND due = 1;
CREATE INDEX durable_runs_scheduled ON durable_runs (run_at) WHERE status = 'pending' AND due = 0;
CREATE INDEX durable_runs_waiting   ON durable_runs (wake_at) WHERE status = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX durable_runs_deadlines ON durable_runs (deadline)
    WHERE deadline IS NOT NULL AND status IN ('pending', 'leased', 'waiting');
CREATE INDEX durable_runs_by_concurrency_key ON durable_runs (concurrency_key, status)
    WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'leased', 'waiting', 'cancelling');
CREATE UNIQUE INDEX durable_runs_by_idempotency_key ON durable_runs (job, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX durable_runs_completed ON durable_runs (completed_at) WHERE completed_at IS NOT NULL;

CREATE TABLE durable_counts (
    job              TEXT    NOT NULL,
    status           TEXT    NOT NULL,
    runs             INTEGER NOT NULL,
    PRIMARY KEY (job, status)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER durable_runs_inserted AFTER INSERT ON durable_runs BEGIN
    INSERT INTO durable_counts (job, status, runs) VALUES (NEW.job, NEW.status, 1)
        ON CONFLICT (job, status) DO UPDATE SET runs = runs + 1;
END;

CREATE TRIGGER durable_runs_changed AFTER UPDATE OF status ON durable_runs WHEN OLD.status <> NEW.status BEGIN
    UPDATE durable_counts SET runs = runs - 1 WHERE job = OLD.job AND status = OLD.status;
    INSERT INTO durable_counts (job, status, runs) VALUES (NEW.job, NEW.status, 1)
        ON CONFLICT (job, status) DO UPDATE SET runs = runs + 1;
END;

CREATE TRIGGER durable_runs_deleted AFTER DELETE ON durable_runs BEGIN
    UPDATE durable_counts SET runs = runs - 1 WHERE job = OLD.job AND status = OLD.status;
END;

CREATE TABLE durable_labels (
    key              TEXT    NOT NULL,
    value            TEXT    NOT NULL,
    run_id           TEXT    NOT NULL,
    PRIMARY KEY (key, value, run_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_labels_by_run ON durable_labels (run_id);

CREATE TABLE durable_steps (
    run_id           TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    kind             TEXT    NOT NULL,               -- 'step', 'transaction' or 'value'
    status           TEXT    NOT NULL CHECK (status IN ('running', 'completed', 'failed', 'cancelled')),
    position         INTEGER NOT NULL,               -- order of first recording within the run, from 0
    attempt          INTEGER NOT NULL,
    output           TEXT,
    error            TEXT,
    retry_at         INTEGER,                        -- when the next attempt is due, while the step waits for it
    started_at       INTEGER NOT NULL,
    completed_at     INTEGER,
    PRIMARY KEY (run_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE durable_attempts (
    run_id           TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    attempt          INTEGER NOT NULL,
    error            TEXT    NOT NULL,
    started_at       INTEGER NOT NULL,
    completed_at     INTEGER NOT NULL,
    PRIMARY KEY (run_id, name, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE durable_values (
    run_id           TEXT    NOT NULL,
    key              TEXT    NOT NULL,
    value            TEXT    NOT NULL,
    updated_at       INTEGER NOT NULL,
    PRIMARY KEY (run_id, key)
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
CREATE INDEX durable_frames_deleted ON durable_frames (id) WHERE kind = 'run_deleted';
