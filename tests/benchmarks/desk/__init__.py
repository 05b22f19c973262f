"""The processes in which CPython is measured: the engine, raw commits, and dbos."""
