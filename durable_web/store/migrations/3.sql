-- From schema version 2 to 3: the timers of asyncio around a wait.

ALTER TABLE durable_steps ADD COLUMN timeouts TEXT;
