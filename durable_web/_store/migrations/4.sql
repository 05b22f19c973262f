-- From schema version 3 to 4: in which branch of its body a step was asked for.

ALTER TABLE durable_steps ADD COLUMN place TEXT DEFAULT '?';
