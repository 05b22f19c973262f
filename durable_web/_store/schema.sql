-- The tables of durable-web.
--
-- durable_runs     A row is one run: one execution of a job for one input. Triggering inserts it as 'pending'; a claim
--                  makes it 'running' and raises its generation; settling makes it 'completed' or 'failed'; any engine
--                  may cancel it. An executing engine writes only while the row is 'running' under its generation.
--                  A run all of whose branches wait is 'waiting', without a lease, and 'pending' again when one of
--                  them may go on. A pending run may be claimed once it is `due`; a paused one is not. A run that has
--                  failed, or was cancelled, and has steps to compensate is 'cancelling' until that is done, and ends
--                  as its `ending` says.
-- durable_steps    A row is one operation of one run, keyed by its name: the checkpoint. Written by the engine that
--                  executes the run: 'running' when it takes long enough to be seen, else at once with its outcome. Each
--                  outcome takes the run's next `outcome_order` in the transaction that records it. A cancellation is an
--                  outcome too: a row of kind 'cancel'. A timer of the body's event loop is one of kind 'timer'.
--                  A durable wait (sleep, signal, event, webhook, update, breakpoint, child) is a step of that kind. It
--                  is 'running' from the moment it is waited for, and the part of the engine that ends the wait (the timer, engine.signal,
--                  engine.publish, a child's end ...) writes its outcome, in the transaction of what ended it.
-- durable_messages A row is a signal or an update that was sent to a run: 'pending' until a wait has taken it.
-- durable_events   A row is the id of an event that was published, so that a repetition is noticed: for 30 days.
-- durable_attempts A row is one failed attempt at a step that was, or may be, tried again.
-- durable_labels   A row is one label of one run, for finding runs by label.
-- durable_values   A row is the latest value that a run has published under a key (ctx.set_event).
-- durable_counts   A row is the number of runs of one job in one status, kept by triggers, so that counting costs the same
--                  however many runs there are.
-- durable_frames   A row is one entry of a run's timeline, append-only, written in the transaction of the change that it
--                  tells of. `id` rises over all runs with commit order, `seq` counts 1, 2, 3 ... within a run. `body`
--                  is a JSON object of the fields that the kind adds, with names as they are on the wire. Of a deleted
--                  run one 'run_deleted' frame is left for 30 days, so that watchers learn of it and an `id` is never
--                  given out twice.
-- durable_gates    A row is one gate of one run: what the run has to pass before it may execute, or is found by. Gates of
--                  one name are shared by the runs of a group. A 'slot' is taken up while the run executes, a 'turn' from
--                  its beginning to its end; a 'start' is reserved until the run begins, and then is a use; a 'presence'
--                  stands for any active run, a 'debounce' for one that is not due yet. `passed` says that a gate is
--                  taken up. Written when the run is triggered and admitted, else by triggers on durable_runs.
-- durable_held     A row is one pending run that waits at a gate, whose name is `gate`; '' is a run that has to be looked
--                  at. When a gate may have opened, triggers put the first that waits there to be looked at.
-- durable_uses     A row is one use of a limit per time: the start of a throttled run, or a rate-limited trigger. It counts
--                  until it expires.
-- durable_openings A row is a gate at which runs wait for a time.
-- durable_schedules A row is one schedule: when, by which rule, and with what it triggers a job. `next_due` moves on in
--                  the transaction of the trigger.
--
-- Times are milliseconds since 1970-01-01 UTC. Values (input, output) are the JSON text of durable_web._codec; errors are
-- JSON objects {type, message, traceback}. What can be derived (a run's current step, how many steps it has completed)
-- is not stored. The version of this schema is PRAGMA user_version.

CREATE TABLE durable_runs (
    id               TEXT    PRIMARY KEY,            -- ULID: sorting by id sorts by creation
    job              TEXT    NOT NULL,
    version          TEXT,
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'running', 'waiting', 'cancelling',
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
    blocked          INTEGER NOT NULL DEFAULT 0,     -- 1: waits for an engine that has its job, in its version
    waiting_reason   TEXT,                           -- for what a waiting run waits, in words
    wake_at          INTEGER,                        -- when a waiting run's next attempt at a step is due
    deadline         INTEGER,
    attempt          INTEGER NOT NULL DEFAULT 0,     -- times the job body was begun
    ending           TEXT,                           -- of a cancelling run: 'failed' or 'cancelled'
    parent_run_id    TEXT,                           -- the run that started this one, and under which step
    parent_step      TEXT,
    continued_from   TEXT,                           -- ctx.continue_as_new: the run before, and the one after
    continued_as     TEXT,
    dead_letter_of   TEXT,                           -- the dead run that this one handles
    dead_letter_id   TEXT,                           -- the run that handles this dead one
    recoveries       INTEGER NOT NULL DEFAULT 0,     -- deaths of its engine that count against it, since its last outcome
    interruptions    INTEGER NOT NULL DEFAULT 0,     -- deaths of its engine of any kind, since its last outcome
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
CREATE INDEX durable_runs_to_claim  ON durable_runs (priority DESC, id)
    WHERE status IN ('pending', 'cancelling') AND due = 1;
CREATE INDEX durable_runs_scheduled ON durable_runs (run_at) WHERE status = 'pending' AND due = 0 AND paused = 0;
CREATE INDEX durable_runs_blocked   ON durable_runs (job, version) WHERE blocked = 1;
CREATE INDEX durable_runs_by_parent ON durable_runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX durable_runs_undoing   ON durable_runs (job) WHERE status = 'cancelling' AND lease_owner IS NOT NULL;
CREATE INDEX durable_runs_waiting   ON durable_runs (wake_at) WHERE status = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX durable_runs_deadlines ON durable_runs (deadline)
    WHERE deadline IS NOT NULL AND status IN ('pending', 'running', 'waiting');
CREATE INDEX durable_runs_by_concurrency_key ON durable_runs (concurrency_key, status, job, id)
    WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'running', 'waiting', 'cancelling');
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
    undo             INTEGER NOT NULL DEFAULT 0,     -- 1 when it has a compensation
    started_at       INTEGER NOT NULL,
    completed_at     INTEGER,                        -- of an outcome: never before that of the outcome before it
    outcome_order    INTEGER,                        -- the place of the outcome among those of its run, from 1: a replay
                                                     -- delivers outcomes in this order; NULL until there is one
    inline           INTEGER NOT NULL DEFAULT 0,     -- 1 when the outcome was returned at once, and not delivered while
                                                     -- the run was at rest
    PRIMARY KEY (run_id, name)
) STRICT, WITHOUT ROWID;

-- Without inline outcomes: these come from the engine that executes the run, which has no need to look for them.
CREATE UNIQUE INDEX durable_steps_by_order ON durable_steps (run_id, outcome_order)
    WHERE outcome_order IS NOT NULL AND inline = 0;

CREATE INDEX durable_steps_due      ON durable_steps (wake_at) WHERE status = 'running' AND wake_at IS NOT NULL;
CREATE INDEX durable_steps_by_topic ON durable_steps (topic) WHERE topic IS NOT NULL;
CREATE INDEX durable_steps_running ON durable_steps (run_id, position) WHERE status = 'running';

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

CREATE TABLE durable_values (
    run_id           TEXT    NOT NULL,
    key              TEXT    NOT NULL,
    value            TEXT    NOT NULL,
    updated_at       INTEGER NOT NULL,
    PRIMARY KEY (run_id, key)
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

CREATE UNIQUE INDEX durable_messages_by_id ON durable_messages (run_id, topic, message_id);
CREATE INDEX durable_messages_pending ON durable_messages (run_id, topic, id) WHERE status = 'pending';

CREATE TABLE durable_events (
    id               TEXT    PRIMARY KEY,
    topic            TEXT    NOT NULL,
    published_at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_events_by_time ON durable_events (published_at);

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

CREATE TABLE durable_gates (
    run_id           TEXT    NOT NULL,
    gate             TEXT    NOT NULL,
    kind             TEXT    NOT NULL CHECK (kind IN ('slot', 'start', 'turn', 'presence', 'debounce')),
    capacity         INTEGER NOT NULL,               -- how many may take it up at a time
    period           INTEGER,                        -- of a 'start': for how long one counts
    passed           INTEGER NOT NULL,               -- 1 while the run takes it up; 2 when a 'start' has been used
    PRIMARY KEY (run_id, gate)
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_gates_passed ON durable_gates (gate, run_id) WHERE passed = 1;

CREATE TABLE durable_held (
    run_id           TEXT    PRIMARY KEY,
    gate             TEXT    NOT NULL,
    priority         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_held_by_gate ON durable_held (gate, priority DESC, run_id);

CREATE TABLE durable_uses (
    id               INTEGER PRIMARY KEY,
    gate             TEXT    NOT NULL,
    expires_at       INTEGER NOT NULL
) STRICT;

CREATE INDEX durable_uses_by_gate ON durable_uses (gate, expires_at);
CREATE INDEX durable_uses_by_time ON durable_uses (expires_at);

CREATE TABLE durable_openings (
    gate             TEXT    PRIMARY KEY,
    opens_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_openings_by_time ON durable_openings (opens_at);

CREATE TRIGGER durable_gates_of_changed_run AFTER UPDATE OF status ON durable_runs
    WHEN NEW.gated = 1 AND OLD.status <> NEW.status
BEGIN
    INSERT INTO durable_uses (gate, expires_at)
    SELECT gate, NEW.updated_at + period
      FROM durable_gates
     WHERE run_id = NEW.id AND kind = 'start' AND passed = 1 AND NEW.status = 'running';
    UPDATE durable_gates
       SET passed = CASE
           WHEN NEW.status IN ('completed', 'failed', 'cancelled', 'dead') THEN 0
           WHEN kind = 'presence' THEN 1
           WHEN kind = 'debounce' THEN 0
           WHEN kind = 'slot' AND NEW.status IN ('pending', 'waiting') THEN 0
           WHEN kind = 'start' AND NEW.status = 'running' THEN 2
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
                       WHERE own.run_id = NEW.id AND (own.kind = 'start' OR NEW.status <> 'running'));
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

CREATE INDEX durable_schedules_due ON durable_schedules (next_due) WHERE paused = 0 AND next_due IS NOT NULL;
