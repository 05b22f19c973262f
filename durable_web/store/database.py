"""The connection: opening, pragmas, migrations, transactions, and SQLite's errors as ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Literal

from ..errors import (
    DatabaseInUseError,
    DatabaseReadOnlyError,
    NotADatabaseError,
    SchemaVersionError,
    StorageError,
    StorageFullError,
    TransactionError,
)

SCHEMA_VERSION = 1
BUSY_TIMEOUT_SECONDS = 5.0
Durability = Literal["full", "normal"]

_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}
_WRITES = frozenset({sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_DROP_TABLE})
_TRANSACTION_CONTROL = frozenset({sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT})

# The comments make these texts the engine's own: a transaction function that says "COMMIT" is prepared, and refused,
# by itself instead of being served our statement from the connection's cache.
_BEGIN = "BEGIN IMMEDIATE /* durable-web */"
_COMMIT = "COMMIT /* durable-web */"
_ROLLBACK = "ROLLBACK /* durable-web */"
_SAVEPOINT = "SAVEPOINT durable_step"
_RELEASE = "RELEASE durable_step"
_ROLLBACK_TO = "ROLLBACK TO durable_step"


class Database:
    """One SQLite connection, opened, checked and migrated.

    :param path: the database file; its folder must exist.
    :param durability: ``"full"`` flushes on every commit and survives power loss; ``"normal"`` flushes at checkpoints
        and survives the death of any process, and is faster.
    :param exclusive: nobody else will open the file, so locks are taken once and no shared memory is needed (browser).
    :raises NotADatabaseError, SchemaVersionError, DatabaseReadOnlyError, DatabaseInUseError: see their docstrings.
    """

    def __init__(self, path: str, *, durability: Durability = "full", exclusive: bool = False) -> None:
        if durability not in _SYNCHRONOUS:
            raise ValueError(f"durability is 'full' or 'normal', not {durability!r}")
        self.path = path
        self._guarded = False
        with self._translated():
            self.connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
        try:
            with self._translated():
                if exclusive:  # before the first read: without it a write-ahead log needs shared memory to be read
                    self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._refuse_newer_schema()
                self._configure(durability)
                self._migrate()
                self.connection.set_authorizer(self._authorize)
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the connection; the last one to go folds the write-ahead log into the file."""
        self.connection.close()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on the connection."""
        return self.connection.in_transaction

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is written inside, or roll all of it back when anything is raised."""
        with self._translated():
            self.connection.execute(_BEGIN)
            try:
                yield
                self.connection.execute(_COMMIT)
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute(_ROLLBACK)
                raise

    @contextmanager
    def guarded_savepoint(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to foreign code inside the open transaction; roll back only its part when it raises.

        Inside, transaction control and writes to the engine's own tables are refused.
        """
        self.connection.execute(_SAVEPOINT)
        self._guarded = True
        try:
            yield self.connection
        except BaseException as error:
            self._guarded = False
            if self.connection.in_transaction:  # SQLite itself rolls back when the disk is full
                self.connection.execute(_ROLLBACK_TO)
                self.connection.execute(_RELEASE)
            if isinstance(error, sqlite3.DatabaseError) and "not authorized" in str(error):
                raise TransactionError(
                    self.path,
                    "A function given to ctx.transaction tried to begin, commit or roll back a transaction (`with "
                    "connection:` and executescript do so too), or to write to a durable_ table. The engine commits "
                    "your rows together with the checkpoint: just execute your statements.",
                ) from error
            raise
        else:
            self._guarded = False
            self.connection.execute(_RELEASE)

    def _authorize(self, action: int, first: str | None, second: str | None, database: object, trigger: object) -> int:
        if not self._guarded:
            return sqlite3.SQLITE_OK
        own_table = action in _WRITES and (first or "").lower().startswith("durable_")
        return sqlite3.SQLITE_DENY if own_table or action in _TRANSACTION_CONTROL else sqlite3.SQLITE_OK

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            translated = self._translate(error)
            if translated is None:
                raise
            raise translated from error

    def _translate(self, error: sqlite3.Error) -> StorageError | None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StorageFullError(self.path)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return DatabaseInUseError(self.path)
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return DatabaseReadOnlyError(self.path)
        if code == sqlite3.SQLITE_NOTADB:
            return NotADatabaseError(self.path)
        return None

    def _user_version(self) -> int:
        return self.connection.execute("PRAGMA user_version").fetchone()[0]

    def _refuse_newer_schema(self) -> None:
        """Look before any pragma that would write to the file."""
        found = self._user_version()
        if found > SCHEMA_VERSION:
            raise SchemaVersionError(self.path, found, SCHEMA_VERSION)

    def _configure(self, durability: Durability) -> None:
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")
        self.connection.execute("PRAGMA temp_store = MEMORY")

    def _migrate(self) -> None:
        if self._user_version() == SCHEMA_VERSION:
            return
        with self.transaction():
            if self._user_version() == 0:  # nobody else was faster
                for statement in _statements(files(__package__).joinpath("schema.sql").read_text("utf-8")):
                    self.connection.execute(statement)
                self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: ``executescript`` would commit behind our back."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
