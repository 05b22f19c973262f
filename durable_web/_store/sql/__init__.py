"""The SQL of the store, to be read beside ``schema.sql``: one module for each module of the store that uses it."""
