"""What a job's flow control makes of a trigger: a run that stands for it, a refusal, or a run that waits.

Whoever triggers from outside can come again, and is refused beyond a rate limit. What a run starts, and the handler of
a dead run, begin when there is room: nobody would come again for them. A handler is never merged into another run.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import NamedTuple

from ..codec import decode
from ..durations import duration_in_milliseconds
from ..errors import CircularWait, RateLimited, RunNotActive
from ..flow import Debounce, GateKind, Key, Singleton, gate_name, key_of
from ..job import Job
from ..store import Lease, NewRun, Store
from ..triggers import stored_input


class Admitted(NamedTuple):
    """The run that stands for what was wanted; ``new`` as it was made, unless it was there before."""

    run_id: str
    disposition: str
    new: NewRun | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """One run that is wanted, in the transaction that is open; ``lease`` as ``runs.insert`` has it."""

    store: Store
    job: Job
    run: NewRun
    now: int
    lease: Lease | None = None

    def admit(self) -> Admitted:
        """Insert the run, or find the one that stands for it.

        :raises RateLimited: when the rate limit has no room.
        """
        return self._debounce() or self._skip() or self._insert(self._count_or_refuse())

    def admit_child(self, *, awaited: bool) -> str:
        """The same for a run that another one starts: its id. Beyond the rate limit it begins when there is room.

        :param awaited: whether the other one waits for its end.
        :raises CircularWait: when it would wait for one that waits for it, or cancel it. Nothing is written then.
        """
        if awaited:
            self._refuse_circle()
        return (self._debounce() or self._skip() or self._insert(self._count())).run_id

    def admit_dead_letter(self) -> None:
        """Insert the run that handles a dead one: it waits for its turn and for room, and stands for itself alone."""
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
            with suppress(RunNotActive):  # one that another of them had started went with that
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
        """Count the run for the rate limit, from when there is room for it: that time, unless it is now."""
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
    """When a debounced run begins whose first trigger came at ``first``, and whose latest one comes now."""
    until = now + duration_in_milliseconds(rule.wait)
    if rule.max_wait is None:
        return until
    return min(until, first + duration_in_milliseconds(rule.max_wait))
