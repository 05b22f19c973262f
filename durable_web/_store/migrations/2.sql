-- From schema version 1 to 2: durable waits, child runs, compensation, flow control, schedules, queue times.

ALTER TABLE durable_runs ADD COLUMN gated INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN waiting_reason TEXT;
ALTER TABLE durable_runs ADD COLUMN ending TEXT;
ALTER TABLE durable_runs ADD COLUMN parent_run_id TEXT;
ALTER TABLE durable_runs ADD COLUMN parent_step TEXT;
ALTER TABLE durable_runs ADD COLUMN continued_from TEXT;
ALTER TABLE durable_runs ADD COLUMN continued_as TEXT;
ALTER TABLE durable_runs ADD COLUMN dead_letter_of TEXT;
ALTER TABLE durable_runs ADD COLUMN dead_letter_id TEXT;
ALTER TABLE durable_steps ADD COLUMN attempts_before INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_steps ADD COLUMN queued INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_steps ADD COLUMN wake_at INTEGER;
ALTER TABLE durable_steps ADD COLUMN topic TEXT;
ALTER TABLE durable_steps ADD COLUMN detail TEXT;
ALTER TABLE durable_steps ADD COLUMN undo INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_attempts ADD COLUMN queued INTEGER NOT NULL DEFAULT 0;

DROP INDEX durable_runs_to_claim;
DROP INDEX durable_runs_scheduled;
DROP INDEX durable_runs_by_concurrency_key;

CREATE TABLE durable_messages (
    id               INTEGER PRIMARY KEY,
    run_id           TEXT    NOT NULL,
    topic            TEXT    NOT NULL,
    message_id       TEXT    NOT NULL,
    payload          TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('pending', 'taken', 'rejected', 'answered', 'failed')),
    outcome          TEXT,
    sent_at          INTEGER NOT NULL
) STRICT;

CREATE TABLE durable_events (
    id               TEXT    PRIMARY KEY,
    topic            TEXT    NOT NULL,
    published_at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE durable_gates (
    run_id           TEXT    NOT NULL,
    gate             TEXT    NOT NULL,
    kind             TEXT    NOT NULL CHECK (kind IN ('slot', 'start', 'turn', 'presence', 'debounce')),
    capacity         INTEGER NOT NULL,
    period           INTEGER,
    passed           INTEGER NOT NULL,
    PRIMARY KEY (run_id, gate)
) STRICT, WITHOUT ROWID;

CREATE TABLE durable_held (
    run_id           TEXT    PRIMARY KEY,
    gate             TEXT    NOT NULL,
    priority         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE durable_uses (
    id               INTEGER PRIMARY KEY,
    gate             TEXT    NOT NULL,
    expires_at       INTEGER NOT NULL
) STRICT;

CREATE TABLE durable_openings (
    gate             TEXT    PRIMARY KEY,
    opens_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE durable_schedules (
    name             TEXT    PRIMARY KEY,
    job              TEXT    NOT NULL,
    cron             TEXT,
    every            INTEGER,
    anchor           INTEGER NOT NULL,
    timezone         TEXT    NOT NULL,
    input            TEXT    NOT NULL,
    labels           TEXT    NOT NULL,
    overlap          TEXT    NOT NULL CHECK (overlap IN ('skip', 'queue', 'allow')),
    catch_up         TEXT    NOT NULL CHECK (catch_up IN ('none', 'latest', 'all')),
    jitter           INTEGER NOT NULL,
    paused           INTEGER NOT NULL DEFAULT 0,
    next_due         INTEGER,
    last_due         INTEGER,
    last_run_id      TEXT,
    skips            INTEGER NOT NULL DEFAULT 0,
    last_skipped     INTEGER,
    skip_reason      TEXT,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_runs_to_claim  ON durable_runs (priority DESC, id)
    WHERE status IN ('pending', 'cancelling') AND due = 1;

CREATE INDEX durable_runs_scheduled ON durable_runs (run_at) WHERE status = 'pending' AND due = 0 AND paused = 0;

CREATE INDEX durable_runs_blocked   ON durable_runs (job, version) WHERE blocked = 1;

CREATE INDEX durable_runs_by_parent ON durable_runs (parent_run_id) WHERE parent_run_id IS NOT NULL;

CREATE INDEX durable_runs_by_concurrency_key ON durable_runs (concurrency_key, status, job, id)
    WHERE concurrency_key IS NOT NULL AND status IN ('pending', 'leased', 'waiting', 'cancelling');

CREATE INDEX durable_steps_due      ON durable_steps (wake_at) WHERE status = 'running' AND wake_at IS NOT NULL;

CREATE INDEX durable_steps_by_topic ON durable_steps (topic) WHERE topic IS NOT NULL;

CREATE INDEX durable_steps_running ON durable_steps (run_id, position) WHERE status = 'running';

CREATE UNIQUE INDEX durable_messages_by_id ON durable_messages (run_id, topic, message_id);

CREATE INDEX durable_messages_pending ON durable_messages (run_id, topic, id) WHERE status = 'pending';

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
    WHEN NEW.gated = 1 AND OLD.due = 0 AND NEW.due = 1
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
