CREATE TABLE durable_attempts (
    run_id           TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    attempt          INTEGER NOT NULL,
    error            TEXT    NOT NULL,
    queued           INTEGER NOT NULL DEFAULT 0,
    started_at       INTEGER NOT NULL,
    completed_at     INTEGER NOT NULL,
    PRIMARY KEY (run_id, name, attempt)
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_counts (
    job              TEXT    NOT NULL,
    status           TEXT    NOT NULL,
    runs             INTEGER NOT NULL,
    PRIMARY KEY (job, status)
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_events (
    id               TEXT    PRIMARY KEY,
    topic            TEXT    NOT NULL,
    published_at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_frames (
    id               INTEGER PRIMARY KEY,
    run_id           TEXT    NOT NULL,
    seq              INTEGER NOT NULL,
    ts               INTEGER NOT NULL,
    kind             TEXT    NOT NULL,
    body             TEXT    NOT NULL
) STRICT;
CREATE TABLE durable_gates (
    run_id           TEXT    NOT NULL,
    gate             TEXT    NOT NULL,
    kind             TEXT    NOT NULL CHECK (kind IN ('slot', 'start', 'turn', 'presence', 'debounce')),
    capacity         INTEGER NOT NULL,               -- how many may take it up at a time
    period           INTEGER,                        -- of a 'start': for how long one counts
    passed           INTEGER NOT NULL,               -- 1 while the run takes it up; 2 when a 'start' has been used
    PRIMARY KEY (run_id, gate)
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_held (
    run_id           TEXT    PRIMARY KEY,
    gate             TEXT    NOT NULL,
    priority         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_labels (
    key              TEXT    NOT NULL,
    value            TEXT    NOT NULL,
    run_id           TEXT    NOT NULL,
    PRIMARY KEY (key, value, run_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_messages (
    id               INTEGER PRIMARY KEY,            -- first in, first out
    run_id           TEXT    NOT NULL,
    topic            TEXT    NOT NULL,               -- 'signal:<name>' or 'update:<name>'
    message_id       TEXT    NOT NULL,               -- the sender's, or made up: a repetition is noticed by it
    payload          TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'taken', 'rejected', 'answered', 'failed')),
    outcome          TEXT,                           -- of an update: the answer, or why there is none
    sent_at          INTEGER NOT NULL
) STRICT;
CREATE TABLE durable_openings (
    gate             TEXT    PRIMARY KEY,
    opens_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
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
    due              INTEGER NOT NULL DEFAULT 1,     -- 0 until run_at has come, 2 until its gates are open
    gated            INTEGER NOT NULL DEFAULT 0,     -- 1 when it has rows in durable_gates
    run_at           INTEGER,
    paused           INTEGER NOT NULL DEFAULT 0,     -- 1: starts no further step, and is not claimed
    blocked          INTEGER NOT NULL DEFAULT 0,     -- 1: waits for its version of the job to be registered
    waiting_reason   TEXT,                           -- for what a waiting run waits, in words
    wake_at          INTEGER,                        -- when a waiting run's next attempt at a step is due, or a timer
                                                     -- of asyncio around one of its waits
    deadline         INTEGER,
    attempt          INTEGER NOT NULL DEFAULT 0,     -- times the job body was begun
    ending           TEXT,                           -- of a cancelling run: 'failed' or 'cancelled'
    parent_run_id    TEXT,                           -- the run that started this one, and under which step
    parent_step      TEXT,
    continued_from   TEXT,                           -- ctx.continue_as_new: the run before, and the one after
    continued_as     TEXT,
    dead_letter_of   TEXT,                           -- the dead run that this one handles
    dead_letter_id   TEXT,                           -- the run that handles this dead one
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
CREATE TABLE durable_schedules (
    name             TEXT    PRIMARY KEY,
    job              TEXT    NOT NULL,
    cron             TEXT,                           -- either this,
    every            INTEGER,                        -- or this: milliseconds,
    anchor           INTEGER NOT NULL,               -- counted from here
    timezone         TEXT    NOT NULL,
    input            TEXT    NOT NULL,
    labels           TEXT    NOT NULL,               -- a JSON object of strings
    overlap          TEXT    NOT NULL CHECK (overlap IN ('skip', 'queue', 'allow')),
    catch_up         TEXT    NOT NULL CHECK (catch_up IN ('none', 'latest', 'all')),
    jitter           INTEGER NOT NULL,               -- milliseconds
    paused           INTEGER NOT NULL DEFAULT 0,
    next_due         INTEGER,                        -- NULL when there is none any more
    last_due         INTEGER,                        -- the latest due time that made a run,
    last_run_id      TEXT,                           -- and that run
    skips            INTEGER NOT NULL DEFAULT 0,     -- how often due times were passed over
    last_skipped     INTEGER,                        -- the latest of them,
    skip_reason      TEXT,                           -- and why
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_steps (
    run_id           TEXT    NOT NULL,
    name             TEXT    NOT NULL,
    kind             TEXT    NOT NULL,               -- 'step', 'transaction', 'value', 'sleep', 'signal' ...
    status           TEXT    NOT NULL CHECK (status IN ('running', 'completed', 'failed', 'cancelled')),
    position         INTEGER NOT NULL,               -- order of first recording within the run, from 0
    attempt          INTEGER NOT NULL,
    attempts_before  INTEGER NOT NULL DEFAULT 0,     -- those before a person retried the run, and those
                                                     -- that were called off: not of Retry's budget
    output           TEXT,
    error            TEXT,
    retry_at         INTEGER,                        -- when the next attempt is due, while the step waits for it
    queued           INTEGER NOT NULL DEFAULT 0,     -- milliseconds that the attempt waited to begin
    wake_at          INTEGER,                        -- of a wait: when it is over, or times out
    topic            TEXT,                           -- of a wait: by what it is found, such as 'signal:approve';
                                                     -- 'run:<id>' of one for a run that is not a child of its own
    detail           TEXT,                           -- of a wait: what else ends it, as the codec's text;
                                                     -- of a signal that has come, its message's id; of a child that
                                                     -- another run stands for, that run's id
    undo             INTEGER NOT NULL DEFAULT 0,     -- has a compensation: its place among those, by completion
    started_at       INTEGER NOT NULL,
    completed_at     INTEGER,
    timeouts         TEXT,                           -- for each call that has waited for it, when the timers of asyncio
                                                     -- are due around it, the outermost first, and beside it: JSON
    place            TEXT    DEFAULT '?',            -- '<n> <scope>': the n-th of its name in that branch of the body, or
                                                     -- in that step; NULL where it is the body's, and its name says so;
                                                     -- '?' in what is older than this column
    PRIMARY KEY (run_id, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE durable_uses (
    id               INTEGER PRIMARY KEY,
    gate             TEXT    NOT NULL,
    expires_at       INTEGER NOT NULL
) STRICT;
CREATE TABLE durable_values (
    run_id           TEXT    NOT NULL,
    key              TEXT    NOT NULL,
    value            TEXT    NOT NULL,
    updated_at       INTEGER NOT NULL,
    PRIMARY KEY (run_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX durable_runs_by_status ON durable_runs (status, id);
CREATE INDEX durable_runs_by_job    ON durable_runs (job, id);
CREATE INDEX durable_runs_to_claim  ON durable_runs (priority DESC, id)
    WHERE status IN ('pending', 'cancelling') AND due = 1;
CREATE INDEX durable_runs_scheduled ON durable_runs (run_at) WHERE status = 'pending' AND due = 0 AND paused = 0;
CREATE INDEX durable_runs_blocked   ON durable_runs (job, version) WHERE blocked = 1;
CREATE INDEX durable_runs_by_parent ON durable_runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX durable_runs_undoing   ON durable_runs (job) WHERE status = 'cancelling' AND lease_owner IS NOT NULL;
CREATE INDEX durable_runs_waiting   ON durable_runs (wake_at) WHERE status = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX durable_runs_deadlines ON durable_runs (deadline)
    WHERE deadline IS NOT NULL AND status IN ('pending', 'leased', 'waiting');
CREATE INDEX durable_runs_by_concurrency_key ON durable_runs (concurrency_key, status, job, id)
    WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'leased', 'waiting', 'cancelling');
CREATE UNIQUE INDEX durable_runs_by_idempotency_key ON durable_runs (job, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX durable_runs_completed ON durable_runs (completed_at) WHERE completed_at IS NOT NULL;
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
CREATE INDEX durable_labels_by_run ON durable_labels (run_id);
CREATE INDEX durable_steps_due      ON durable_steps (wake_at) WHERE status = 'running' AND wake_at IS NOT NULL;
CREATE INDEX durable_steps_by_topic ON durable_steps (topic) WHERE topic IS NOT NULL;
CREATE INDEX durable_steps_running ON durable_steps (run_id, position) WHERE status = 'running';
CREATE UNIQUE INDEX durable_messages_by_id ON durable_messages (run_id, topic, message_id);
CREATE INDEX durable_messages_pending ON durable_messages (run_id, topic, id) WHERE status = 'pending';
CREATE INDEX durable_events_by_time ON durable_events (published_at);
CREATE UNIQUE INDEX durable_frames_by_run ON durable_frames (run_id, seq);
CREATE INDEX durable_frames_deleted ON durable_frames (id) WHERE kind = 'run_deleted';
CREATE INDEX durable_gates_passed ON durable_gates (gate, run_id) WHERE passed = 1;
CREATE INDEX durable_held_by_gate ON durable_held (gate, priority DESC, run_id);
CREATE INDEX durable_uses_by_gate ON durable_uses (gate, expires_at);
CREATE INDEX durable_uses_by_time ON durable_uses (expires_at);
CREATE INDEX durable_openings_by_time ON durable_openings (opens_at);
CREATE TRIGGER durable_gates_of_changed_run AFTER UPDATE OF status ON durable_runs
    WHEN NEW.gated = 1 AND OLD.status <> NEW.status
BEGIN
    INSERT INTO durable_uses (gate, expires_at)
    SELECT gate, NEW.updated_at + period
      FROM durable_gates
     WHERE run_id = NEW.id AND kind = 'start' AND passed = 1 AND NEW.status = 'leased';
    UPDATE durable_gates
       SET passed = CASE
           WHEN NEW.status IN ('completed', 'failed', 'cancelled', 'dead') THEN 0
           WHEN kind = 'presence' THEN 1
           WHEN kind = 'debounce' THEN 0
           WHEN kind = 'slot' AND NEW.status IN ('pending', 'waiting') THEN 0
           WHEN kind = 'start' AND NEW.status = 'leased' THEN 2
           ELSE passed END
     WHERE run_id = NEW.id;
    DELETE FROM durable_held
     WHERE run_id = NEW.id;
    UPDATE durable_runs
       SET due = 2
     WHERE id = NEW.id AND NEW.status = 'pending' AND NEW.due = 1;
    INSERT INTO durable_held (run_id, gate, priority)
    SELECT NEW.id, '', NEW.priority
     WHERE NEW.status = 'pending' AND NEW.due = 1;
    UPDATE durable_held
       SET gate = ''
     WHERE run_id IN (SELECT (SELECT held.run_id
                                FROM durable_held AS held
                               WHERE held.gate = own.gate
                               ORDER BY held.priority DESC, held.run_id
                               LIMIT 1)
                        FROM durable_gates AS own
                       WHERE own.run_id = NEW.id AND (own.kind = 'start' OR NEW.status <> 'leased'));
END;
CREATE TRIGGER durable_gates_of_due_run AFTER UPDATE OF due ON durable_runs
    WHEN NEW.gated = 1 AND OLD.due = 0 AND NEW.due = 1 AND NEW.status = 'pending'
BEGIN
    UPDATE durable_gates
       SET passed = 0
     WHERE run_id = NEW.id AND kind = 'debounce';
    UPDATE durable_runs
       SET due = 2
     WHERE id = NEW.id;
    INSERT OR REPLACE INTO durable_held (run_id, gate, priority)
    VALUES (NEW.id, '', NEW.priority);
END;
CREATE TRIGGER durable_gates_of_deleted_run AFTER DELETE ON durable_runs
    WHEN OLD.gated = 1
BEGIN
    DELETE FROM durable_gates
     WHERE run_id = OLD.id;
END;
CREATE INDEX durable_schedules_due ON durable_schedules (next_due) WHERE paused = 0 AND next_due IS NOT NULL;
PRAGMA user_version = 4;
