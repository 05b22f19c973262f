-- From schema version 2 to 3: the timers of asyncio around a wait; what executes a compensation is counted, and passes no
-- gates; ids of events are forgotten.

ALTER TABLE durable_steps ADD COLUMN timeouts TEXT;

CREATE INDEX durable_runs_undoing   ON durable_runs (job) WHERE status = 'cancelling' AND lease_owner IS NOT NULL;

CREATE INDEX durable_events_by_time ON durable_events (published_at);

DROP TRIGGER durable_gates_of_due_run;

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
