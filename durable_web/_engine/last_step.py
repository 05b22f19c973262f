"""The step that an engine began last: kept in a side file next to the database, and read after the engine's death.

Recovery counts a death only against the run whose step was executing. So the engine writes the run and the step's key
into its side file before it calls a step's function: one positioned write without a flush, because what the operating
system, or the browser, has accepted survives the death of the process. With each heartbeat the engine writes the time
at which it was alive.

An exclusive engine has the side file ``<database>-step``. Engines that share a file have one each,
``<database>-step-<life>``. The side files of a database in memory are in memory too and last as long as the process, so
a simulated crash leaves the same data as a real one.

    offset 0    when the engine was last seen alive: milliseconds since 1970-01-01 UTC, padded to 15 places; a line feed
    offset 16   ["<life>", "<run id>", "<step's key>", <when it began>]: JSON in ASCII; a line feed
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from json.encoder import encode_basestring_ascii as quoted  # json.dumps would take five times as long
from pathlib import Path
from typing import Literal, NamedTuple

from .._clock import Clock
from .._errors import StorageError

End = Literal["closed", "died"]

SUSPICIOUS_MILLISECONDS = 60_000
"""An engine that vanishes within this time after a step began is taken to have died of the step."""
_STALE_MILLISECONDS = 3_600_000
_STEP_AT = 16
_SIZE = 1024  # bytes that are written at once, so that a full disk does not refuse the records that come later

_in_memory: dict[str, bytearray] = {}
"""The side files of databases in memory, by path."""


class BegunStep(NamedTuple):
    """The step that an engine began last. Times are milliseconds since 1970-01-01 UTC by that engine's clock."""

    life: str
    run_id: str
    key: str
    began_at: int
    alive_at: int


class LastStep:
    """The side file of this engine, and access to those of earlier ones.

    :param database: the path of the database file; ``""`` when it is in memory.
    :param name: the path by which the engine knows the database.
    :param life: the id of this life of the engine, under which its runs are leased.
    """

    def __init__(self, database: str, name: str, life: str, clock: Clock, *, exclusive: bool) -> None:
        self._is_in_memory = not database
        self._shared_path = f"{database or name}-step"
        self._path = self._shared_path if exclusive else self._path_of(life)
        self._life = life
        self._clock = clock
        self._record = f"[{quoted(life)},"
        self._run_id = ""  # of the step that was begun last
        self._prefix = ""  # what its record begins with
        self._descriptor: int | None = None
        self._write: Callable[[bytes, int], object] = _write_nothing

    def open(self) -> None:
        """Make the side file, or empty the one of an earlier life.

        :raises StorageError: when that is not possible.
        """
        if self._is_in_memory:
            self._write = partial(_write_in_memory, _in_memory.setdefault(self._path, bytearray()))
        else:
            self._descriptor = self._open()
            self._write = partial(_pwrite, self._descriptor)
        with contextlib.suppress(OSError):
            self._write(self._alive().ljust(_SIZE, b"\0"), 0)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            message = f"The file that names the step begun last cannot be opened: {error}"
            raise StorageError(self._path, message) from error

    def begin(self, run_id: str, key: str) -> None:
        """Note that the function of a step is called next.

        An error of the storage is ignored: a death then counts against no run, and the step executes all the same.
        """
        try:
            if run_id is not self._run_id:
                self._run_id, self._prefix = run_id, f"{self._record}{quoted(run_id)},"
            record = f"{self._prefix}{quoted(key)},{self._clock.now()}]\n"
            self._write(record.encode("ascii"), _STEP_AT)
        except OSError:
            pass

    def beat(self) -> None:
        """Note that the engine is alive; make the side file anew when another engine took this one for dead."""
        with contextlib.suppress(OSError, StorageError):
            if self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0:
                self.close()
                self.open()
            self._write(self._alive(), 0)

    def close(self) -> None:
        """Close the side file without deleting it; later calls of ``begin`` write nothing."""
        descriptor, self._descriptor, self._write = self._descriptor, None, _write_nothing
        if descriptor is not None:
            os.close(descriptor)

    def remove(self) -> None:
        """Delete the side file after a clean shutdown; later calls of ``begin`` write nothing."""
        self.close()
        self._delete(self._path)

    def read(self, life: str) -> BegunStep | None:
        """The step that another life began last; ``None`` when its side file is missing, damaged or of a third life."""
        for path in (self._shared_path, self._path_of(life)):
            step = _parse(self._content(path))
            if step is not None and step.life == life:
                return step
        return None

    def remove_stale(self, has_leases: Callable[[str], bool]) -> None:
        """Delete the side files of engines that shared the database and have not been seen alive for an hour.

        :param has_leases: returns ``True`` when runs are still leased under a life, so that its side file is needed.
        """
        if self._is_in_memory:
            return
        silent_since = self._clock.now() - _STALE_MILLISECONDS
        beginning = Path(self._path_of(""))
        for path in beginning.parent.iterdir():
            if path.name.startswith(beginning.name) and _alive_at(self._content(str(path))) < silent_since:
                life = path.name.removeprefix(beginning.name)
                if life != self._life and not has_leases(life):
                    self._delete(str(path))

    def _path_of(self, life: str) -> str:
        return f"{self._shared_path}-{life}"

    def _alive(self) -> bytes:
        return f"{self._clock.now():<{_STEP_AT - 1}}\n".encode("ascii")

    def _content(self, path: str) -> bytes:
        """What is in a side file; nothing when there is none, or it cannot be read."""
        if self._is_in_memory:
            return bytes(_in_memory.get(path, b""))
        try:
            return Path(path).read_bytes()
        except OSError:
            return b""

    def _delete(self, path: str) -> None:
        _in_memory.pop(path, None)
        if not self._is_in_memory:
            with contextlib.suppress(OSError):  # it is gone, or on Windows still open elsewhere
                Path(path).unlink()


class Deaths:
    """How earlier engines ended, and which step the death of one counts against.

    :param life: the id of this engine's life.
    :param ends: how earlier lives ended, as far as a page or a parent process saw it.
    :param lease: how long a lease lasts, in milliseconds.
    """

    def __init__(self, last_step: LastStep, life: str, ends: Mapping[str, End], lease: int) -> None:
        self._last_step = last_step
        self._life = life
        self._ends = ends
        self._lease = lease

    def has_died(self, owner: str) -> bool:
        """``True`` when another engine has died: it was not shut down cleanly. This engine's leases may expire too."""
        return owner != self._life and self._ends.get(owner) != "closed"

    def culprit(self, owner: str, lease_expires_at: int) -> tuple[str, str] | None:
        """The run, and the key of its step, against which the death of an engine counts; ``None`` for no run.

        A death counts when a page or a parent process saw it, or when the engine vanished soon after the step began.

        :param lease_expires_at: when the lease of its runs expires, so that the engine was alive one lease before:
            milliseconds since 1970-01-01 UTC.
        """
        step = self._last_step.read(owner) if self.has_died(owner) else None
        if step is None:
            return None
        lived = max(step.alive_at, lease_expires_at - self._lease) - step.began_at
        counts = self._ends.get(owner) == "died" or lived <= SUSPICIOUS_MILLISECONDS
        return (step.run_id, step.key) if counts else None


def _seek_and_write(descriptor: int, data: bytes, at: int) -> int:
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.write(descriptor, data)


_pwrite: Callable[[int, bytes, int], int] = getattr(os, "pwrite", _seek_and_write)  # Windows has none


def _write_in_memory(content: bytearray, data: bytes, at: int) -> None:
    content[at : at + len(data)] = data


def _write_nothing(data: bytes, at: int) -> None:
    """The writer that is used while no side file is open."""


def _parse(content: bytes) -> BegunStep | None:
    try:
        life, run_id, key, began_at = json.loads(content[_STEP_AT:].partition(b"\n")[0])
        return BegunStep(life, run_id, key, int(began_at), _alive_at(content))
    except (ValueError, TypeError):
        return None


def _alive_at(content: bytes) -> int:
    """Milliseconds since 1970-01-01 UTC; 0 when the content is damaged."""
    try:
        return int(content[: _STEP_AT - 1])
    except ValueError:
        return 0
