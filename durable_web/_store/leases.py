"""Renewal of an engine's leases while its event loop is blocked.

A synchronous step that takes longer than a lease keeps the engine's timers from firing. Without a renewal another
engine would claim the run, and execute the same step beside this one. So a thread with a connection of its own renews
the leases then. Only where engines share a file: in a browser the leader is alone.
"""

from __future__ import annotations

import sqlite3
import threading

from .._clock import Clock
from .sql import runs as queries

BUSY_TIMEOUT_SECONDS = 1.0
BLOCKED_SHARE = 0.5
"""After this part of a lease without a sign of the event loop, the thread renews."""
LOOKS_PER_LEASE = 6


class LeaseKeeper:
    """A thread that renews the leases of one engine when its event loop does not.

    :param path: the database file.
    :param owner: the engine's id.
    :param lease: how long a lease lasts, in milliseconds.
    """

    def __init__(self, path: str, owner: str, lease: int, clock: Clock) -> None:
        self._path = path
        self._owner = owner
        self._lease = lease
        self._clock = clock
        self._turned_at = clock.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="durable-web leases", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def beat(self) -> None:
        """The event loop turns, and has renewed the leases itself."""
        self._turned_at = self._clock.monotonic()

    def stop(self) -> None:
        """Renew nothing any more, and return when the connection is closed."""
        self._stopped.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def _watch(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while not self._stopped.wait(self._lease / 1000 / LOOKS_PER_LEASE):
                if self._clock.monotonic() - self._turned_at < self._lease / 1000 * BLOCKED_SHARE:
                    continue
                try:
                    if connection is None:
                        uri = self._path.startswith("file:")
                        connection = sqlite3.connect(self._path, BUSY_TIMEOUT_SECONDS, isolation_level=None, uri=uri)
                    now = self._clock.now()
                    values = {"owner": self._owner, "now": now, "expires": now + self._lease}
                    connection.execute(queries.RENEW_ALL, values)
                except sqlite3.Error:
                    continue  # such as a full disk or a locked file: the engine itself will report it
        finally:
            if connection is not None:
                connection.close()
