"""The SQL of the store, to be read beside ``schema.sql``: a module for each of the store's that says it."""
