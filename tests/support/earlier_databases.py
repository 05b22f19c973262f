"""Databases as an earlier version left them: databases/make.py has recorded them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

FOLDER = Path(__file__).with_name("databases")
NAMES = sorted(path.stem for path in FOLDER.glob("*.sql") if not path.stem.startswith("schema_"))


def restore(name: str, path: str) -> None:
    """Write one of them to a file; its triggers come last, as in a dump, because they have done their part."""
    schema = list(_statements((FOLDER / "schema_4.sql").read_text("utf-8")))
    tables = [statement for statement in schema if statement.startswith("CREATE TABLE")]
    others = [statement for statement in schema if not statement.startswith("CREATE TABLE")]
    rows = (FOLDER / f"{name}.sql").read_text("utf-8")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("\n".join([*tables, rows, *others]))


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
