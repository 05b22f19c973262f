"""Choose the run that is claimed next: the first one that no limit holds back and whose code is registered here."""

from __future__ import annotations

import math

from .._jobs import Job, Registry
from .._model import LATEST
from .._store import Claim, Lease, Store


class Claiming:
    """Leases runs for one engine, inside the transaction that is open.

    :param owner: the engine's id.
    :param lease: how long a lease lasts, in milliseconds.
    :param exclusive: ``True`` when no other engine uses the database.
    """

    def __init__(self, store: Store, registry: Registry, owner: str, lease: int, *, exclusive: bool) -> None:
        self._store = store
        self._registry = registry
        self.owner = owner
        self._lease = lease
        self._exclusive = exclusive
        self.has_new_times = False
        """``True`` when claiming has made something due at a time for which no timer is set yet."""

    def claim(self, now: int, *, alone: bool) -> Claim | None:
        """Lease the run whose turn it is; ``None`` when there is none.

        :param alone: ``True`` when this engine executes nothing else. A suspect run is claimed only then, and holds up
            others.
        """
        has_openings = self._store.flow.admit(now)
        saturated = self._registry.saturated(self._store.runs.count_executing)
        claim = self._lease_next(now, saturated, alone)
        if claim is None and not self._exclusive and self._unblock_one(now, saturated):
            has_openings |= self._store.flow.admit(now)
            claim = self._lease_next(now, saturated, alone)
        if claim is not None and claim.is_suspect and claim.interruptions > 1:  # the first time is mostly an accident
            self._log_that_it_is_alone(claim, now)
        timeout = None if claim is None else self._timeout_of(claim)
        if claim is not None and timeout is not None:
            self._store.runs.limit_duration(claim, round(min(now + timeout * 1000, LATEST)))
        if timeout is not None or has_openings:
            self.has_new_times = self._store.journal.has_claims = True
        return claim

    def lease(self, job: Job, now: int) -> Lease | None:
        """The lease for a run that is claimed as it is inserted; ``None`` if the job's limits have to be checked
        first."""
        is_limited = job.max_concurrent is not None or job.timeout is not None
        return None if is_limited else Lease(self.owner, now + self._lease)

    def unblock(self, now: int) -> None:
        """Make the blocked runs claimable whose version of a job is registered now."""
        for job in self._registry:
            self._store.runs.unblock(job.name, job.version, now)

    def _lease_next(self, now: int, saturated: list[str], alone: bool) -> Claim | None:
        expires = now + self._lease
        return self._store.runs.claim(self.owner, now, expires, saturated, self._obstacle, alone=alone)

    def _log_that_it_is_alone(self, claim: Claim, now: int) -> None:
        """Write into the run's log why no other run is executed beside it."""
        deaths, what = claim.interruptions, "has stopped"
        if claim.recoveries > 1:
            deaths, what = claim.recoveries, "has died while it executed a step of this run"
        message = (
            "This run is executed alone until its next outcome: since its last outcome, "
            f"its engine {what} {deaths} times."
        )
        fields = {"recoveries": claim.recoveries, "interruptions": claim.interruptions}
        body = {"level": "warning", "message": message, "fields": fields, "step": None, "attempt": claim.attempt}
        self._store.steps.append_log(claim.run_id, now, body)

    def _obstacle(self, claim: Claim) -> str | None:
        """Why this engine cannot execute a run; ``None`` if it can.

        Another engine on the file may have the job, or a later release of this one: the run waits for it, and never
        goes on under another version.
        """
        if claim.job not in self._registry:
            return f"the job {claim.job!r} is not registered"
        if self._registry.find(claim.job, claim.version) is not None:
            return None
        which = "without a version" if claim.version is None else f"in version {claim.version!r}"
        return f"the job {claim.job!r} is not registered {which}"

    def _timeout_of(self, claim: Claim) -> float | None:
        """The job's timeout in seconds, when this claim is the first of its run or the first after a retry."""
        is_first = claim.attempt == 1 or claim.deadline is None
        job = self._registry.find(claim.job, claim.version) if is_first and claim.job in self._registry else None
        return None if job is None or job.timeout == math.inf else job.timeout

    def _unblock_one(self, now: int, saturated: list[str]) -> bool:
        """Unblock one run whose version is registered here, but was not where it was blocked; ``False`` if there is
        none."""
        jobs = (job for job in self._registry if job.name not in saturated)
        return any(self._store.runs.unblock(job.name, job.version, now, at_most=1) for job in jobs)
