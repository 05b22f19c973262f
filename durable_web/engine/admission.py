"""What a job's flow control makes of a trigger: a run that stands for it, a refusal, or a run that waits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..durations import duration_in_milliseconds
from ..errors import RateLimited
from ..flow import Debounce, Key, Singleton, gate_name, key_of
from ..job import Job
from ..store import NewRun, Store
from ..triggers import Trigger, stored_input


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """One trigger of a job with flow control, in the transaction that is open.

    :param cancel: cancels the active run of that id, in the same transaction.
    """

    store: Store
    trigger: Trigger
    job: Job
    run: NewRun
    now: int
    cancel: Callable[[str], None]

    def admit(self) -> tuple[str, str]:
        """Insert the run, or find the one that stands for it: its id and the disposition.

        :raises RateLimited: when the rate limit has no room.
        """
        return self._debounce() or self._skip() or self._insert()

    def _debounce(self) -> tuple[str, str] | None:
        rule = self.job.flow.debounce
        if rule is None:
            return None
        found = self.store.flow.debounced(self._group("debounce", rule.key), self.now)
        if found is None:
            return None
        run_id, created_at = found
        due = _debounced_until(rule, created_at, self.now)
        self.store.flow.postpone(run_id, self.run.input, due, self.now)
        return run_id, "debounced"

    def _skip(self) -> tuple[str, str] | None:
        rule = self.job.flow.singleton
        if rule is None or rule.mode != "skip":
            return None
        active = self._active(rule)
        if not active:
            return None
        skipped = {"skipped_input": self.trigger.input, "skipped_labels": self.trigger.labels}
        self.store.journal.tell("run:coalesced", active[0], self.now, **skipped)
        return active[0], "skipped"

    def _insert(self) -> tuple[str, str]:
        self._count()
        singleton, debounce = self.job.flow.singleton, self.job.flow.debounce
        if singleton is not None and singleton.mode == "cancel_previous":
            for run_id in self._active(singleton):
                self.cancel(run_id)
        run = self.run
        if debounce is not None:
            due = _debounced_until(debounce, self.now, self.now)
            run = dataclasses.replace(run, run_at=max(due, run.run_at or 0))
        self.store.runs.insert(run, self.now)
        return run.id, "created"

    def _count(self) -> None:
        rule = self.job.flow.rate_limit
        if rule is None:
            return
        key = key_of(self.job.name, rule.key, stored_input(self.job, self.run.input))
        gate = gate_name("rate-limit", self.job.name, key)
        opens_at = self.store.flow.opens_at(gate, rule.limit, self.now)
        if opens_at is not None:
            raise RateLimited(self.job.name, key, rule.limit, (opens_at - self.now) / 1000)
        self.store.flow.use(gate, self.now, duration_in_milliseconds(rule.per))

    def _active(self, rule: Singleton) -> list[str]:
        return self.store.flow.present(self._group("singleton", rule.key))

    def _group(self, kind: str, key: Key) -> str:
        found = key_of(self.job.name, key, stored_input(self.job, self.run.input))
        return gate_name(kind, self.job.name, found)


def _debounced_until(rule: Debounce, first: int, now: int) -> int:
    """When a debounced run begins whose first trigger came at ``first``, and whose latest one comes now."""
    until = now + duration_in_milliseconds(rule.wait)
    if rule.max_wait is None:
        return until
    return min(until, first + duration_in_milliseconds(rule.max_wait))
