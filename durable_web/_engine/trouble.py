"""Handle storage errors: report them, stop claiming, and retry the pending writes with increasing delays."""

from __future__ import annotations

from collections.abc import Callable

from .._clock import Clock
from .._errors import StorageError, StorageFullError
from .._execution.run import Execution
from .._notifications import Events
from .._store import Claim, Store

FIRST_PROBE_SECONDS = 2.0
LONGEST_PROBE_SECONDS = 60.0

OnState = Callable[[str, str], None]


class Trouble:
    """The storage errors of one store, and the retries after them.

    :param on_state: called with the engine's state and a message when that changes.
    :param call_later: sets the timer of the next retry.
    :param go_on: claims runs again when the storage works.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        events: Events,
        on_state: OnState,
        call_later: Callable[[float, Callable[[], None]], None],
        go_on: Callable[[], None],
    ) -> None:
        self.unreleased: list[Claim] = []  # of runs that were detached, and whose leases could not be released
        self._store = store
        self._clock = clock
        self._events = events
        self._on_state = on_state
        self._call_later = call_later
        self._go_on = go_on
        self._unwoken: list[Execution] = []
        self._state = "running"
        self._delay = FIRST_PROBE_SECONDS
        self._has_ended = False

    @property
    def is_known(self) -> bool:
        """``True`` while a storage error is reported and not yet resolved."""
        return self._state != "running"

    def end(self) -> None:
        """Stop reporting."""
        self._has_ended = True

    def report(self, error: StorageError, context: str) -> None:
        """Report a storage error, and retry later."""
        if self._has_ended:
            return
        self._events.report(error, context, self._clock.now())
        state = "storage_full" if isinstance(error, StorageFullError) else "storage_error"
        if not self.is_known:
            self._call_later(self._delay, self._try_again)
        if self._state != state:
            self._state = state
            self._on_state(state, str(error))

    def leave(self, claim: Claim, error: StorageError) -> None:
        """Handle a run that was detached because its commit failed: stop claiming, and release its lease later."""
        self.unreleased.append(claim)
        self.report(error, "committing a step")

    def wake_later(self, execution: Execution, error: StorageError) -> None:
        """Handle a parked run that could not be woken early: wake it later."""
        self._unwoken.append(execution)
        self.report(error, "waking a run")

    def on_flush_failure(self, error: BaseException) -> None:
        """Handle a failed write of something that no caller waits for, such as log lines."""
        if isinstance(error, StorageError):
            self.report(error, "writing log lines")
        else:
            self._events.report(error, "writing log lines", self._clock.now())

    def _try_again(self) -> None:
        """Retry the pending writes; when they succeed, claim runs again."""
        troubled, self._state = self._state, "running"
        self._delay = min(self._delay * 2, LONGEST_PROBE_SECONDS)
        try:
            with self._store.transaction():
                for claim in self.unreleased:
                    self._store.runs.release(claim, self._clock.now(), reason="the storage was in trouble")
                for execution in self._unwoken:
                    claim = execution.claim
                    self._store.runs.wake(claim.run_id, self._clock.now(), generation=claim.generation)
            self.unreleased.clear()
            self._unwoken.clear()
            self._go_on()
        except StorageError:
            self._state = troubled
            self._call_later(self._delay, self._try_again)
            return
        if not self.is_known:  # claiming has met no storage error either
            self._delay = FIRST_PROBE_SECONDS
            self._on_state("running", "")
