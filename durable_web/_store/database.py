"""The connection: opening, pragmas, migrations, transactions, and SQLite's errors as ours."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Literal, NoReturn

from .._errors import (
    DatabaseInUseError,
    DatabaseReadOnlyError,
    NotADatabaseError,
    SchemaVersionError,
    SerializationError,
    StorageError,
    StorageFullError,
    TransactionError,
)

SCHEMA_VERSION = 5
_MIGRATIONS = ("schema.sql", *(f"migrations/{number}.sql" for number in range(2, SCHEMA_VERSION + 1)))
"""From 0, an empty file, to the latest; from 1 to 2, and so on."""
BUSY_TIMEOUT_SECONDS = 5.0
Durability = Literal["full", "normal"]
Parameters = Mapping[str, Any] | tuple[Any, ...]

_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL"}
_HARMLESS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN = frozenset(
    {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
)
_READING_PRAGMAS = frozenset({"table_info", "table_xinfo", "index_list", "index_info", "foreign_key_list"})
_TROUBLE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
    }
)

_ERRORS = (sqlite3.Error, UnicodeEncodeError, OverflowError)
_ROOM = 10_000  # bytes of a row for its other columns
_UNBINDABLE = re.compile(r"parameter.* type '(.+)' is not supported")

# The comments make these texts unique: the connection's statement cache never serves the engine's COMMIT to a
# transaction function, so that SQLite prepares that function's own "COMMIT" and the authorizer refuses it.
_BEGIN = "BEGIN IMMEDIATE /* durable-web */"
_COMMIT = "COMMIT /* durable-web */"
_ROLLBACK = "ROLLBACK /* durable-web */"
_SAVEPOINT = "SAVEPOINT durable_step"
_RELEASE = "RELEASE durable_step"
_ROLLBACK_TO = "ROLLBACK TO durable_step"
_PART = "SAVEPOINT durable_part"
_RELEASE_PART = "RELEASE durable_part"
_ROLLBACK_PART = "ROLLBACK TO durable_part"


class Database:
    """One SQLite connection, opened, checked and migrated.

    :param path: the database file, whose folder must exist; or an SQLite URI, ``file:...``.
    :param durability: ``"full"`` flushes on every commit and survives power loss; ``"normal"`` flushes at checkpoints
        and survives the death of any process, and is faster.
    :param exclusive: no other connection will open the file: locks are taken once, and no shared memory is needed
        (browser).
    :param migrate: ``False`` refuses a file with an older schema instead of migrating it.
    :raises NotADatabaseError, SchemaVersionError, DatabaseReadOnlyError, DatabaseInUseError: see their docstrings.
    """

    def __init__(
        self, path: str, *, durability: Durability = "full", exclusive: bool = False, migrate: bool = True
    ) -> None:
        check_durability(durability)
        self.path = path
        self.is_exclusive = exclusive
        """``True`` when no other connection will open the file."""
        self._guarded = False
        with self._translated():
            self.connection = sqlite3.connect(
                path,
                timeout=BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                uri=path.startswith("file:"),
                factory=_Connection,
            )
            self.connection.path = path
        try:
            with self._translated():
                if exclusive:  # before the first read: without it a write-ahead log needs shared memory to be read
                    self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._refuse_schema(migrate)
                self._configure(durability)
                self._migrate()
                self.connection.set_authorizer(self._authorize)
        except BaseException:
            self.connection.close()
            raise

    @property
    def file(self) -> str:
        """The absolute path of the database file; ``""`` when the database is in memory."""
        found: str = self.row("PRAGMA database_list")[2]
        return found

    def close(self) -> None:
        """Close the connection; the last connection that closes checkpoints the write-ahead log into the file."""
        self.connection.close()

    # --- statements --------------------------------------------------------------------------------------------------
    # Without a context manager each: several of these run per step.

    def execute(self, text: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Execute a statement that gives no rows.

        :raises StorageError: when the storage fails; errors of the statement stay ``sqlite3.Error``.
        :raises SerializationError: when a parameter, or a row, is too long.
        :raises ValueError: when a parameter is a text with lone surrogates.
        :raises TypeError: when a parameter has no SQLite type.
        """
        try:
            return self.connection.execute(text, parameters)
        except _ERRORS as error:
            self._raise(error)

    def insert(self, text: str, parameters: Parameters) -> int:
        """Execute a statement that inserts one row, and return its rowid; raises what ``execute`` does."""
        try:
            return self.connection.execute(text, parameters).lastrowid or 0
        except _ERRORS as error:
            self._raise(error)

    def executemany(self, text: str, parameters: Iterable[Parameters]) -> None:
        """Execute a statement that gives no rows once for each of several parameters; raises what ``execute`` does."""
        try:
            self.connection.executemany(text, parameters)
        except _ERRORS as error:
            self._raise(error)

    def row(self, text: str, parameters: Parameters = ()) -> Any:
        """The first row that a statement gives, or ``None``; raises what ``execute`` does."""
        try:
            return self.connection.execute(text, parameters).fetchone()
        except _ERRORS as error:
            self._raise(error)

    def rows(self, text: str, parameters: Parameters = ()) -> list[Any]:
        """All rows that a statement gives; raises what ``execute`` does."""
        try:
            return self.connection.execute(text, parameters).fetchall()
        except _ERRORS as error:
            self._raise(error)

    def each(self, text: str, parameters: Parameters = ()) -> Iterator[Any]:
        """The rows that a statement gives, one by one, for callers that may stop early; raises what ``execute``
        does."""
        try:
            yield from self.connection.execute(text, parameters)
        except _ERRORS as error:
            self._raise(error)

    # --- transactions ------------------------------------------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        """``True`` while a transaction is open on the connection; ``False`` when the connection is closed."""
        try:
            return self.connection.in_transaction
        except sqlite3.ProgrammingError:
            return False

    @property
    def changes(self) -> int:
        """How many rows have been changed since the database was opened."""
        return self.connection.total_changes

    def data_version(self) -> int:
        """A number that changes when another connection has committed to the file."""
        found: int = self.row("PRAGMA data_version")[0]
        return found

    def begin(self) -> None:
        """Begin a transaction that may write: no other connection can write until it has ended. Raises what ``execute``
        does.

        :raises TransactionError: when a transaction is open, because a function of ctx.transaction waits for a promise.
        """
        if self.connection.in_transaction:
            raise TransactionError(
                self.path,
                "The database is busy: a function given to ctx.transaction, or a validator, waits for a promise "
                "(pyodide.ffi.run_sync) in the middle of a transaction. Do that in a step, and pass its result.",
            )
        try:
            self.connection.execute(_BEGIN)
        except sqlite3.Error as error:
            self._raise(error)

    def commit(self) -> None:
        """Commit the transaction, or roll it back when the commit fails. Raises what ``execute`` does."""
        try:
            self.connection.execute(_COMMIT)
        except BaseException as error:
            self.roll_back()
            if isinstance(error, sqlite3.Error):
                self._raise(error)
            raise

    def roll_back(self) -> None:
        """Undo what the transaction has written; does nothing when SQLite itself has done so. Raises as ``execute``."""
        if self.connection.in_transaction:
            self.execute(_ROLLBACK)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Inside a transaction: roll back only what is written here when anything is raised."""
        self.connection.execute(_PART)
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:  # SQLite itself rolls back the transaction when the disk is full
                self.connection.execute(_ROLLBACK_PART)
                self.connection.execute(_RELEASE_PART)
            raise
        self.connection.execute(_RELEASE_PART)

    def is_trouble(self, error: BaseException) -> bool:
        """``True`` when an error means that the storage fails, and not that a statement is wrong."""
        if isinstance(error, sqlite3.Error):
            return getattr(error, "sqlite_errorcode", 0) & 0xFF in _TROUBLE
        return isinstance(error, StorageError) and not isinstance(error, TransactionError)

    @contextmanager
    def guarded_savepoint(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to foreign code inside the open transaction; roll back only its part when it raises.

        The authorizer refuses transaction control, attaching databases, changing pragmas and changes to the engine's
        own tables. It cannot refuse a conflict that rolls back, as ``INSERT OR ROLLBACK`` does: such a conflict ends
        the whole transaction, after which nothing more is written.

        :raises TransactionError: when the code has tried or done one of these.
        """
        self.connection.execute(_SAVEPOINT)
        factories = self.connection.row_factory, self.connection.text_factory
        self._guarded = self.connection.is_lent = True
        try:
            yield self.connection
        except BaseException as error:
            self._guarded = self.connection.is_lent = False
            if self.connection.in_transaction:
                self.connection.execute(_ROLLBACK_TO)
                self.connection.execute(_RELEASE)
            elif not self.is_trouble(error):  # SQLite itself rolls back when the disk is full
                raise self._rolled_back() from error
            if isinstance(error, sqlite3.DatabaseError) and "not authorized" in str(error):
                raise TransactionError(
                    self.path,
                    "A function given to ctx.transaction tried to begin, commit or roll back a transaction (`with "
                    "connection:` and executescript do so too), to attach a database, to change a pragma, or to change "
                    "a durable_ table. The engine commits your rows together with the checkpoint: just execute your "
                    "statements.",
                ) from error
            raise
        else:
            self._guarded = self.connection.is_lent = False
            if not self.connection.in_transaction:
                raise self._rolled_back()
            self.connection.execute(_RELEASE)
        finally:
            self.connection.row_factory, self.connection.text_factory = factories

    def _rolled_back(self) -> TransactionError:
        return TransactionError(
            self.path,
            "A function given to ctx.transaction rolled the engine's transaction back: INSERT OR ROLLBACK, ON CONFLICT "
            "ROLLBACK in a table and RAISE(ROLLBACK) in a trigger do that. Nothing of it was written. Use ABORT, which "
            "is SQLite's default, instead.",
        )

    def _authorize(self, action: int, first: str | None, second: str | None, database: object, trigger: object) -> int:
        if not self._guarded:
            return sqlite3.SQLITE_OK
        if action in _HARMLESS:
            return sqlite3.SQLITE_OK
        if not self.connection.in_transaction:  # outside a transaction a statement commits by itself
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_PRAGMA:
            is_reading = second is None or (first or "").lower() in _READING_PRAGMAS
            return sqlite3.SQLITE_OK if is_reading else sqlite3.SQLITE_DENY
        is_ours = any((name or "").lower().startswith("durable_") for name in (first, second))
        return sqlite3.SQLITE_DENY if is_ours or action in _FORBIDDEN else sqlite3.SQLITE_OK

    def translate(self, error: BaseException) -> None:
        """Raise an error of SQLite, also one from foreign code, as ``execute`` would raise it; do nothing for other
        errors."""
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.ProgrammingError):
            self._raise(error)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._raise(error)

    def refuse_longer(self, path: str, *texts: str) -> None:
        """:raises SerializationError: when a row with these texts is too long; ``path`` says what it is for."""
        longest = self._longest() - _ROOM
        if sum(map(len, texts)) > longest // 4 and sum(len(text.encode()) for text in texts) > longest:
            raise self._too_long(path)

    def _longest(self) -> int:
        return self.connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)

    def _too_long(self, path: str) -> SerializationError:
        return SerializationError(
            path,
            f"it is longer than the {self._longest():,} bytes that SQLite holds in one piece, with what belongs to it. "
            "Write it to a file, or in parts, and say where it is.",
        )

    def _raise(self, error: sqlite3.Error | UnicodeEncodeError | OverflowError) -> NoReturn:
        if isinstance(error, UnicodeEncodeError):
            what = f"{error.object!r} has no form in UTF-8"
            raise ValueError(f"{what}, so the database can neither hold nor find it.") from error
        if isinstance(error, sqlite3.ProgrammingError) and (kind := _UNBINDABLE.search(str(error))):
            what = f"A {kind[1]} is nothing that the database can hold or find"
            raise TypeError(f"{what}. Give a run, a step or a message by its id or its name, a text.") from error
        if isinstance(error, OverflowError):
            if "INT_MAX" in str(error):
                raise self._too_long("a value") from error
            what = "A number of that size is nothing that the database can hold or find"
            raise TypeError(f"{what}. Give a run, a step or a message by its id or its name, a text.") from error
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_TOOBIG:
            raise self._too_long("a value") from error
        translated = self._translate(error)
        if translated is None:
            raise error
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
        if code in _TROUBLE:
            return StorageError(
                self.path,
                f"The storage failed ({error}). What was committed before is kept. If it happens again, check the "
                "disk, or copy the database and run PRAGMA integrity_check on the copy.",
            )
        return None

    def _user_version(self) -> int:
        found: int = self.connection.execute("PRAGMA user_version").fetchone()[0]
        return found

    def _refuse_schema(self, migrate: bool) -> None:
        """Reject a newer schema, or an older one that may not be migrated, before any pragma writes to the file."""
        found = self._user_version()
        if found > SCHEMA_VERSION or (0 < found < SCHEMA_VERSION and not migrate):
            raise SchemaVersionError(self.path, found, SCHEMA_VERSION)

    def _configure(self, durability: Durability) -> None:
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[durability]}")
        self.connection.execute("PRAGMA temp_store = MEMORY")
        self.connection.create_function("durable_fold", 1, str.casefold, deterministic=True)

    def _migrate(self) -> None:
        if self._user_version() == SCHEMA_VERSION:
            return
        self.begin()
        try:
            found = self._user_version()  # read again: another process may have migrated the file
            for script in _MIGRATIONS[:1] if found == 0 else _MIGRATIONS[found:]:
                for statement in _statements(files("durable_web._store").joinpath(script).read_text("utf-8")):
                    self.connection.execute(statement)
            self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except BaseException:
            self.roll_back()
            raise
        self.commit()


class _Connection(sqlite3.Connection):
    """A connection that foreign code cannot close while it is lent, nor configure to refuse the engine's statements."""

    path = ""
    is_lent = False

    def close(self) -> None:
        self._refuse("close")
        super().close()

    def set_authorizer(self, *arguments: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._refuse("set_authorizer")
        super().set_authorizer(*arguments)

    def set_progress_handler(self, *arguments: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._refuse("set_progress_handler")
        super().set_progress_handler(*arguments)

    def setlimit(self, *arguments: Any) -> int:
        self._refuse("setlimit")
        return super().setlimit(*arguments)

    def backup(self, *arguments: Any, **keywords: Any) -> None:  # a backup would wait for this transaction for ever
        self._refuse("backup")
        super().backup(*arguments, **keywords)

    def deserialize(self, *arguments: Any, **keywords: Any) -> None:
        self._refuse("deserialize")
        super().deserialize(*arguments, **keywords)

    def _refuse(self, method: str) -> None:
        if self.is_lent:
            raise TransactionError(
                self.path,
                f"A function given to ctx.transaction called connection.{method}(...), but the connection is the "
                "engine's own, and only lent: just execute your statements.",
            )


def check_durability(durability: str) -> None:
    """:raises ValueError: when there is no such durability."""
    if durability not in _SYNCHRONOUS:
        raise ValueError(f"durability is 'full' or 'normal', not {durability!r}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one; ``executescript`` would commit the open transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
