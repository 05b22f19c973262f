"""Parking: giving slot and lease back while a run only waits.

A run at rest waits when no function of it is executing, every outcome is committed, and all that its body awaits are
waits, timers or next attempts. Then it gives its slot, its lease and its concurrency key back. It goes on under a new
claim, in memory where it is still there, else by a replay.
"""

from __future__ import annotations

import itertools
from enum import Enum

from .._clock import TimerHandle
from .history import History
from .outcomes import Outcomes
from .reporting import Reporting
from .run_loop import RunLoop
from .services import Services
from .steps import Steps
from .tenure import Tenure
from .waits import Waits

PARK_SECONDS = 1.0
"""A run that waits for less keeps its slot, for so long at a time: parking costs two more commits."""
STUCK_SECONDS = 5.0
"""After so long at rest with nothing to wait for, a log line names where the body stands."""
NAMED_REASONS = 3


class Rest(Enum):
    """What came of a run that is at rest."""

    PARKED = "parked"
    WAITING = "waiting, and keeps its slot"
    MISSED = "something has come while it was to be parked"


class Parking:
    """How one run waits."""

    def __init__(
        self,
        services: Services,
        history: History,
        loop: RunLoop,
        tenure: Tenure,
        reporting: Reporting,
        outcomes: Outcomes,
        steps: Steps,
        waits: Waits,
    ) -> None:
        self._store = services.store
        self._commits = services.commits
        self._clock = services.clock
        self._history = history
        self._loop = loop
        self._tenure = tenure
        self._reporting = reporting
        self._outcomes = outcomes
        self._steps = steps
        self._waits = waits
        self._stuck: TimerHandle | None = None
        self._short_waits_since: int | None = None  # milliseconds

    def rest(self, *, keeps_slot: bool, has_ended: bool) -> Rest:
        """Nothing of the run is ready, and no outcome is known: write what is pending, and park, if everything waits.

        :param keeps_slot: because it is compensated, say.
        :param has_ended: the body has.
        :raises Detached: when the run is no longer this engine's.
        """
        is_idle = self._outcomes.is_idle and not self._tenure.unsettled
        if not is_idle and not self._waits.has_unrecorded:
            return Rest.WAITING
        is_waiting = self._history.open_count or self._history.has_queued
        keeps_slot = keeps_slot or self._steps.has_late_undo
        if is_idle and is_waiting and not keeps_slot and self._is_long():
            if not self._commits.is_crowded:
                return self._park()
            self._commits.submit(_nothing, lambda error: self._loop.wake())  # such as 10,000 children: a part first
        elif self._waits.has_unrecorded:
            self._commits.flush_soon()
        if is_idle and not is_waiting and not has_ended:
            self._stuck = self._clock.call_later(STUCK_SECONDS, self._log_where_it_stands)
        return Rest.WAITING

    def stir(self) -> None:
        """The run is no longer at rest, or is detached."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def resume(self) -> None:
        """The run has its lease back."""
        self._short_waits_since = None

    def _is_long(self) -> bool:
        """``True`` when the run waits for long enough; one that waits for short times again and again does, too."""
        if self._tenure.is_paused and self._history.has_queued:
            return True
        dues = [due for due in (self._waits.next_due, self._steps.next_attempt) if due is not None]
        now, long = self._clock.now(), round(PARK_SECONDS * 1000)
        if not dues or min(dues) - now >= long:
            return True
        self._short_waits_since = self._short_waits_since or now
        return now - self._short_waits_since >= long

    def _park(self) -> Rest:
        self._reporting.write_progress()
        parked: list[bool] = []

        def park() -> None:
            parked.clear()
            self._tenure.fence()
            for update in () if self._tenure.is_paused else self._waits.open_updates:
                self._waits.record_begun(update)
            if self._store.steps.has_outcome_after(self._tenure.run_id, self._history.known):
                return
            next_attempt = self._steps.next_attempt
            self._store.runs.park(self._tenure.claim, self._clock.now(), next_attempt, self._reason())
            parked.append(True)

        self._tenure.commit_now(park)
        if not parked:
            return Rest.MISSED
        self._tenure.park()
        return Rest.PARKED

    def _reason(self) -> str:
        """What the run waits for, in words; of many operations, what the first ones wait for."""
        queued = self._history.queued_operations()
        reasons = ["the run to be resumed"] if queued else []
        begun = (operation for operation in self._history.open_operations() if operation not in queued)
        operations = itertools.islice(begun, 2 * NAMED_REASONS)
        reasons += list(dict.fromkeys(operation.reason for operation in operations))
        more = self._history.open_count - len(queued) - NAMED_REASONS
        more_text = f" and {more} more" if len(reasons) > NAMED_REASONS and more > 0 else ""
        return "it waits for " + ", ".join(reasons[:NAMED_REASONS]) + more_text

    def _log_where_it_stands(self) -> None:
        self._stuck = None
        places = ", ".join(self._loop.places()[:5])
        self._reporting.note(
            "warning",
            f"The job body awaits nothing that the engine could give it, at {places}. It goes on when other code of "
            "this process wakes it; after a restart nothing does.",
        )


def _nothing() -> None:
    """A write of nothing: what is pending goes with it."""
