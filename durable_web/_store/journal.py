"""The frames and events of the transaction that is open: written with it, told after it.

A frame is a row of the timeline; an event is told to listeners of this process and stored nowhere. Both are gone when
the transaction is rolled back.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from .._codec import to_json
from .._model import RunStatus, StoredFrame
from .database import Database
from .sql import frames as queries

REMEMBERED_RUNS = 1000
MOST_INTERRUPTIONS = 6
"""A run whose engine died this often since the run's last outcome is executed alone, whether that counted or not."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What an event tells, before it is known who listens: its type, its run, and the fields that the type adds."""

    type: str
    run_id: str
    ts: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this engine may execute, and the generation under which it may write."""

    run_id: str
    job: str
    version: str | None
    input: str
    attempt: int
    recoveries: int
    generation: int
    lease_expires_at: int = 0
    deadline: int | None = None
    concurrency_key: str | None = None
    queued: int = 0  # milliseconds for which the run could have been claimed, and was not
    started_at: int = 0  # when its body was first begun: milliseconds since 1970-01-01 UTC
    ending: str | None = None  # what a run that is to be compensated then ends as
    error: dict[str, str] | None = None  # why it failed
    failed_step: str | None = None
    has_steps: bool = True  # whether the run has recorded any
    interruptions: int = 0  # deaths of its engine of any kind since its last outcome

    @property
    def is_suspect(self) -> bool:
        """Whether the run may have killed its engine, and is therefore executed alone."""
        return self.recoveries > 0 or self.interruptions >= MOST_INTERRUPTIONS


@dataclass(slots=True)
class Journal:
    """Collects what has to be told once the open transaction has committed."""

    database: Database
    is_listening: bool = False  # whether there is a listener
    frames: list[StoredFrame] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)  # runs of which a wait has ended, or that were paused or resumed
    has_claimable: bool = False  # whether a run was made that can be claimed, or can be claimed again
    claims: list[Claim] = field(default_factory=list)  # runs that were leased, to be executed from the commit on
    has_claims: bool = False  # whether claiming has changed anything: runs were leased, or there is a new time to look
    _latest: dict[str, int] = field(default_factory=dict)  # the seq of a run's last frame, as far as it is known here

    def append(self, run_id: str, ts: int, kind: str, body: dict[str, Any]) -> None:
        """Append a frame to a run's timeline."""
        text = to_json(body)
        latest = self._latest.get(run_id)
        seq = (self._newest_seq(run_id) if latest is None else latest) + 1
        try:
            frame_id = self.database.insert(queries.APPEND_FRAME, (run_id, seq, ts, kind, text))
        except sqlite3.IntegrityError:  # another process has written this one meanwhile
            seq = self._newest_seq(run_id) + 1
            frame_id = self.database.insert(queries.APPEND_FRAME, (run_id, seq, ts, kind, text))
        self._latest[run_id] = seq
        self.frames.append(StoredFrame(frame_id, seq, ts, run_id, kind, text))

    def _newest_seq(self, run_id: str) -> int:
        found: int = self.database.row(queries.NEWEST_SEQ, {"run_id": run_id})[0]
        return found

    def forget_run(self, run_id: str) -> None:
        """What was told of a run is gone with it; there may be another one of this id."""
        self._latest.pop(run_id, None)

    def append_status(
        self,
        run_id: str,
        ts: int,
        status: RunStatus,
        *,
        attempt: int,
        reason: str | None = None,
        error: dict[str, str] | None = None,
    ) -> None:
        """Append the frame that tells of a run's new status."""
        body: dict[str, Any] = {"status": status, "attempt": attempt}
        current_step = self._current_step(run_id, status, attempt)
        if current_step is not None:
            body["currentStep"] = current_step
        if reason is not None:
            body["reason"] = reason
        if error is not None:
            body["error"] = without_traceback(error)
        self.append(run_id, ts, "run_status", body)

    def _current_step(self, run_id: str, status: RunStatus, attempt: int) -> str | None:
        """The step that is recorded as running; where there can be none, the database is not asked."""
        begins = attempt == 0 or (attempt == 1 and status == RunStatus.RUNNING)
        if begins or status == RunStatus.COMPLETED:
            return None
        row = self.database.row(queries.CURRENT_STEP, {"run_id": run_id})
        return None if row is None else row[0]

    def tell(self, type: str, run_id: str, ts: int, **fields: Any) -> None:
        """Note an event for the listeners, if there are any."""
        if self.is_listening:
            self.facts.append(Fact(type, run_id, ts, fields))

    def mark(self) -> tuple[int, int, int]:
        """A place to go back to."""
        return len(self.frames), len(self.facts), len(self.claims)

    def forget_since(self, mark: tuple[int, int, int]) -> None:
        """Forget what was collected after a mark: it was rolled back."""
        for frame in self.frames[mark[0] :]:
            self._latest.pop(frame.run_id, None)
        del self.frames[mark[0] :], self.facts[mark[1] :], self.claims[mark[2] :]

    def forget(self) -> None:
        """Forget everything that was collected: it was rolled back."""
        self.forget_since((0, 0, 0))
        self.changed, self.has_claimable, self.has_claims = set(), False, False

    def take(self) -> tuple[list[StoredFrame], list[Fact]]:
        """What was collected, and is committed; nothing is left."""
        taken = self.frames, self.facts
        self.frames, self.facts = [], []
        if len(self._latest) > REMEMBERED_RUNS:
            self._latest.clear()
        return taken

    def take_claims(self) -> list[Claim]:
        """The runs that were leased."""
        claims, self.claims, self.has_claims = self.claims, [], False
        return claims

    def take_changed(self) -> set[str]:
        """The runs to look at."""
        changed, self.changed, self.has_claimable = self.changed, set(), False
        return changed


def without_traceback(error: dict[str, str]) -> dict[str, str]:
    """An error as frames carry it: tracebacks stay with the run and the step."""
    return {"type": error["type"], "message": error["message"]}
