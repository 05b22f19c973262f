"""Apply a job's flow control to a trigger: return an existing run, reject the trigger, or insert a run that may wait.

A trigger beyond the rate limit is rejected, because its caller can retry. Child runs and the handlers of dead runs are
delayed instead: they have no caller that could retry. A handler is never merged into another run.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import NamedTuple

from .._codec import decode
from .._durations import duration_in_milliseconds
from .._errors import CircularWait, RateLimited, RunNotActive
from .._flow_control import Debounce, GateKind, Key, Singleton, gate_name, key_of
from .._jobs import Job
from .._store import Lease, NewRun, Store
from .._triggers import stored_input


class Admitted(NamedTuple):
    """The run that answers a trigger; ``new`` is the inserted run, or ``None`` when an existing run is returned."""

    run_id: str
    disposition: str
    new: NewRun | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """One trigger, in the open transaction; ``lease`` is as in ``runs.insert``."""

    store: Store
    job: Job
    run: NewRun
    now: int
    lease: Lease | None = None

    def admit(self) -> Admitted:
        """Insert the run, or find the existing run that answers the trigger.

        :raises RateLimited: when the rate limit has no room.
        """
        return self._debounce() or self._skip() or self._insert(self._count_or_refuse())

    def admit_child(self, *, awaited: bool) -> str:
        """Admit a child run, and return its id. Beyond the rate limit the child begins when there is room.

        :param awaited: ``True`` when the parent waits for the child's end.
        :raises CircularWait: when the child would wait for, or cancel, a run that waits for the child. Nothing is
            written.
        """
        if awaited:
            self._refuse_circle()
        return (self._debounce() or self._skip() or self._insert(self._count())).run_id

    def admit_dead_letter(self) -> None:
        """Insert the run that handles a dead one. It waits for its turn and for room, and is never merged."""
        gates = tuple(gate for gate in self.run.gates if gate.kind != GateKind.DEBOUNCE)
        run = dataclasses.replace(self.run, gates=gates, run_at=self._count())
        self.store.runs.insert(run, self.now)

    def _debounce(self) -> Admitted | None:
        rule = self.job.flow.debounce
        if rule is None:
            return None
        found = self.store.flow.debounced(self._group("debounce", rule.key), self.now)
        if found is None:
            return None
        run_id, created_at = found
        due = _debounced_until(rule, created_at, self.now)
        self.store.flow.postpone(run_id, self.run.input, due, self.now)
        return Admitted(run_id, "debounced")

    def _skip(self) -> Admitted | None:
        rule = self.job.flow.singleton
        if rule is None or rule.mode != "skip":
            return None
        active = self._active(rule)
        if not active:
            return None
        if self.store.journal.is_listening:
            skipped = {"skipped_input": decode(self.run.input), "skipped_labels": self.run.labels}
            self.store.journal.tell("run:coalesced", active[0], self.now, **skipped)
        return Admitted(active[0], "skipped")

    def _insert(self, room_at: int | None) -> Admitted:
        singleton, debounce = self.job.flow.singleton, self.job.flow.debounce
        if singleton is not None and singleton.mode == "cancel_previous":
            self._cancel_previous(singleton)
        due = None if debounce is None else _debounced_until(debounce, self.now, self.now)
        run_at = max((time for time in (self.run.run_at, room_at, due) if time is not None), default=None)
        run = self.run if run_at == self.run.run_at else dataclasses.replace(self.run, run_at=run_at)
        self.store.runs.insert(run, self.now, self.lease)
        return Admitted(run.id, "created", run)

    def _cancel_previous(self, rule: Singleton) -> None:
        for run_id in self._active(rule):
            if self.store.runs.serves_dead_letter(run_id):
                continue
            with suppress(RunNotActive):  # it was a child of another of them, and was cancelled with its parent
                self.store.family.cancel(run_id, self.now)

    def _count_or_refuse(self) -> int | None:
        rule = self.job.flow.rate_limit
        if rule is None:
            return None
        key = self._key(rule.key)
        opens_at = self.store.flow.opens_at(gate_name("rate-limit", self.job.name, key), rule.limit, self.now)
        if opens_at is not None:
            raise RateLimited(self.job.name, key, rule.limit, (opens_at - self.now) / 1000)
        return self._count()

    def _count(self) -> int | None:
        """Count the run for the rate limit; return when it has room, or ``None`` if it has room now."""
        rule = self.job.flow.rate_limit
        if rule is None:
            return None
        gate = self._group("rate-limit", rule.key)
        opens_at = self.store.flow.opens_at(gate, rule.limit, self.now)
        self.store.flow.use(gate, self.now, expires_at=(opens_at or self.now) + duration_in_milliseconds(rule.per))
        return opens_at

    def _refuse_circle(self) -> None:
        singleton, parent = self.job.flow.singleton, self.run.parent_run_id
        if singleton is None or parent is None:
            return
        circle = self.store.family.waiting_for(parent)
        for run_id in self._active(singleton):
            if run_id in circle:
                raise CircularWait(self.job.name, run_id)

    def _active(self, rule: Singleton) -> list[str]:
        return self.store.flow.present(self._group("singleton", rule.key))

    def _group(self, kind: str, key: Key) -> str:
        return gate_name(kind, self.job.name, self._key(key))

    def _key(self, key: Key) -> str | int | float | bool | None:
        return key_of(self.job.name, key, stored_input(self.job, self.run.input))


def _debounced_until(rule: Debounce, first: int, now: int) -> int:
    """The time at which a debounced run begins, from its first trigger (``first``) and its latest one (``now``)."""
    until = now + duration_in_milliseconds(rule.wait)
    if rule.max_wait is None:
        return until
    return min(until, first + duration_in_milliseconds(rule.max_wait))
