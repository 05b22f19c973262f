"""Schedules: jobs that are triggered again and again, each due time once.

A due time becomes a run, or is skipped, in the transaction that advances the schedule to its next due time. So each due
time counts once, also when the engine dies or when several engines share the file. Nothing polls: the dispatcher's one
timer is set for the earliest due time of all.
"""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from .._clock import Clock
from .._codec import check_name, decode
from .._durations import Duration, duration_in_milliseconds
from .._errors import DurableWebError, LibraryMissing, StorageError
from .._flow_control import Gate, GateKind, gate_name
from .._jobs import Job, Registry
from .._model import Schedule, from_milliseconds
from .._recurrence import UTC_NAME, Recurrence
from .._store import Store
from .._store.schedules import StoredSchedule, labels_text
from .._triggers import Trigger
from .admission import Admitted

SCHEDULE_LABEL = "durable/schedule"
SCHEDULED_AT_LABEL = "durable/scheduled-at"
MISSED_SECONDS = 60.0
BATCH = 100  # missed due times that are handled in one transaction

_OVERLAPS = ("skip", "queue", "allow")
_CATCH_UPS = ("none", "latest", "all")


class Make(Protocol):
    """Inserts a trigger's run with further gates, or finds the run that answers the trigger, in the open
    transaction."""

    def __call__(
        self, store: Store, trigger: Trigger, job: Job, input_text: str, now: int, gates: tuple[Gate, ...]
    ) -> Admitted: ...


class Scheduler:
    """The schedules of one store."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        make: Make,
        report: Callable[[BaseException, str, int], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._make = make
        self._report = report
        self._broken: set[str] = set()  # schedules whose times cannot be computed here; another engine may be able to

    # --- changing ----------------------------------------------------------------------------------------------------

    def put(self, schedule: StoredSchedule) -> Schedule:
        """Make a checked schedule, or change the one of that name."""
        now = self._clock.now()
        with self._store.transaction():
            known = self._store.schedules.find(schedule.name)
            if known is not None and known.timing == schedule.timing and known.next_due is not None:
                schedule = dataclasses.replace(schedule, anchor=known.anchor, next_due=known.next_due)
            self._store.schedules.put(schedule, now)
        self._broken.discard(schedule.name)
        return self._store.schedules.get(schedule.name).public()

    def pause(self, name: str) -> Schedule:
        """Pause a schedule: its due times trigger no runs.

        :raises ScheduleNotFound: when there is none of that name.
        """
        with self._store.transaction():
            schedule = self._store.schedules.get(name)
            self._store.schedules.set_paused(name, True, schedule.next_due, self._clock.now())
        return self._store.schedules.get(name).public()

    def resume(self, name: str) -> Schedule:
        """Resume a paused schedule at its first due time after now.

        :raises ScheduleNotFound: when there is none of that name.
        """
        now = self._clock.now()
        with self._store.transaction():
            schedule = self._store.schedules.get(name)
            due = schedule.next_due
            if schedule.paused and due is not None and due <= now:
                due = schedule.recurrence.next_after(now)
            self._store.schedules.set_paused(name, False, due, now)
        self._broken.discard(name)
        return self._store.schedules.get(name).public()

    def delete(self, name: str) -> None:
        """Delete a schedule.

        :raises ScheduleNotFound: when there is none of that name.
        """
        with self._store.transaction():
            self._store.schedules.get(name)
            self._store.schedules.delete(name)

    def list(self) -> builtins.list[Schedule]:
        """All schedules, by name."""
        return [schedule.public() for schedule in self._store.schedules.list()]

    def libraries(self) -> builtins.list[str]:
        """The libraries that the active schedules need."""
        in_force = [each for each in self._store.schedules.list() if not each.paused and each.job in self._registry]
        return sorted({library for each in in_force for library in each.recurrence.libraries})

    # --- time --------------------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """The earliest due time of the schedules; ``None`` when there is none."""
        return self._store.schedules.next_due(self._fires_here)

    def fire(self, now: int) -> None:
        """Make the runs that are due, at most one batch, in the open transaction."""
        left = BATCH
        for schedule in self._store.schedules.due(now, self._fires_here):
            if left <= 0:
                return
            try:
                left -= self._fire(schedule, now, left)
            except (LibraryMissing, ValueError) as error:  # the time of no due run was written by then
                self._broken.add(schedule.name)
                self._report(error, f"computing the schedule {schedule.name!r}", now)

    def _fires_here(self, schedule: str, job: str) -> bool:
        return job in self._registry and schedule not in self._broken

    def _fire(self, schedule: StoredSchedule, now: int, at_most: int) -> int:
        """Make runs for the due times, and advance the schedule; returns the number of due times."""
        recurrence, due = schedule.recurrence, schedule.next_due or 0
        dues = [due]
        if schedule.catch_up == "all":
            while (following := recurrence.next_after(dues[-1])) is not None and following <= now:
                if len(dues) == at_most:
                    break
                dues.append(following)
        else:
            dues = [recurrence.latest_until(due, now)]
            following = recurrence.next_after(dues[-1])
        if dues[0] != due:
            self._store.schedules.note_skip(schedule.name, due, "missed")
        self._store.schedules.move_on(schedule.name, following)
        is_late = now - dues[0] > MISSED_SECONDS * 1000
        overlap = schedule.overlap
        if schedule.catch_up == "all" and overlap == "skip" and (is_late or len(dues) > 1):
            overlap = "queue"  # what is made up for did not overlap with anything when it was due
        for each in dues:
            if schedule.catch_up == "none" and now - each > MISSED_SECONDS * 1000:
                self._store.schedules.note_skip(schedule.name, each, "missed")
            else:
                self._trigger(schedule, each, now, overlap)
        return len(dues)

    def _trigger(self, schedule: StoredSchedule, due: int, now: int, overlap: str) -> None:
        """Make a run for one due time, or record why it was skipped."""
        presence = gate_name("schedule", schedule.name)
        active = self._store.flow.present(presence) if overlap == "skip" else []
        if active:
            self._store.schedules.note_skip(schedule.name, due, f"run {active[0]} was active")
            return
        gates = [Gate(presence, GateKind.PRESENCE)]
        if overlap == "queue":
            gates.append(Gate(gate_name("schedule-turn", schedule.name), GateKind.TURN))
        try:
            with self._store.part():
                trigger = _trigger_of(schedule, due)
                made = self._make(self._store, trigger, *trigger.check(self._registry), now, tuple(gates))
        except StorageError:
            raise
        except (DurableWebError, ValueError) as error:  # a rate limit, or an input that the job no longer takes
            self._store.schedules.note_skip(schedule.name, due, str(error))
            self._report(error, f"triggering a run of the schedule {schedule.name!r}", now)
            return
        if made.disposition == "skipped":
            self._store.schedules.note_skip(schedule.name, due, f"run {made.run_id} was active")
        else:
            self._store.schedules.note_run(schedule.name, due, made.run_id)


def checked_schedule(
    registry: Registry,
    now: int,
    name: str,
    job: Job | str,
    *,
    cron: str | None,
    every: Duration | None,
    timezone: str | None,
    input: Any,
    overlap: str,
    catch_up: str,
    jitter: Duration | None,
    labels: dict[str, str] | None,
) -> StoredSchedule:
    """Check the options of a schedule, and return it as it is stored, without its due time.

    :raises JobNotFound: when no such job is registered.
    :raises InvalidInput, SerializationError: when the input does not fit the job's type, or cannot be stored.
    :raises ValueError: when another option is wrong.
    """
    check_name("A schedule's name", name)
    if (cron is None) == (every is None):
        raise ValueError('A schedule has either cron="30 7 * * *" or every="1h".')
    if every is not None and timezone is not None:
        raise ValueError("every counts the time that passes, in any time zone: leave timezone out.")
    if overlap not in _OVERLAPS or catch_up not in _CATCH_UPS:
        raise ValueError(
            f"overlap is one of {', '.join(_OVERLAPS)}, and catch_up one of {', '.join(_CATCH_UPS)}; "
            f"not {overlap!r} and {catch_up!r}."
        )
    period = None if every is None else duration_in_milliseconds(every)
    spread = 0 if jitter is None else duration_in_milliseconds(jitter)
    if spread < 0 or (period is not None and period < 1):
        raise ValueError("every is at least a millisecond, and jitter is not negative.")
    found, input_text = Trigger(job, input, labels=labels or {}).check(registry)
    texts = input_text, labels_text(labels or {})
    return StoredSchedule(name, found.name, cron, period, now, timezone or UTC_NAME, *texts, overlap, catch_up, spread)


def with_next_due(schedule: StoredSchedule, now: int) -> StoredSchedule:
    """The schedule with its first due time after ``now``.

    :raises ValueError: when the expression or the time zone is wrong, or the schedule has no due time.
    :raises LibraryMissing: when the library that computes the times is not installed.
    """
    recurrence: Recurrence = schedule.recurrence
    recurrence.check()
    return dataclasses.replace(schedule, next_due=recurrence.next_after(now))


def _trigger_of(schedule: StoredSchedule, due: int) -> Trigger:
    moment = from_milliseconds(due)
    assert moment is not None
    text = moment.isoformat()
    delay = _delay(schedule, due)
    return Trigger(
        schedule.job,
        decode(schedule.input),
        idempotency_key=f"schedule:{schedule.name}:{text}",
        labels={**schedule.public().labels, SCHEDULE_LABEL: schedule.name, SCHEDULED_AT_LABEL: text},
        run_at=moment + timedelta(milliseconds=delay) if delay else None,
    )


def _delay(schedule: StoredSchedule, due: int) -> int:
    """Milliseconds by which a due time's run is delayed: uniformly distributed, and always the same for one due
    time."""
    digest = hashlib.sha256(f"{schedule.name} {due}".encode()).digest()
    return math.floor(int.from_bytes(digest[:8], "big") / 2**64 * schedule.jitter)
