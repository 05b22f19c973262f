"""Gates: decide which pending runs may execute, by the limits of their groups.

The triggers in ``schema.sql`` update the gates with every change of a run's status, and queue a run for a check when
one of its gates may have opened. ``admit`` checks the queued runs; without any, it costs one probe of an index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._flow_control import Gate, GateKind
from .database import Database

EXPIRED_BATCH = 10

ENTER = """
UPDATE durable_runs
   SET gated = 1,
       due = CASE due WHEN 1 THEN 2 ELSE due END
 WHERE id = :run_id
"""

INSERT_GATE = """
INSERT INTO durable_gates (run_id, gate, kind, capacity, period, passed)
VALUES (:run_id, :gate, :kind, :capacity, :period, :passed)
"""

HOLD_NEW = """
INSERT INTO durable_held (run_id, gate, priority)
SELECT id, '', priority
  FROM durable_runs
 WHERE id = :run_id AND due = 2
"""

COPY_GATES = """
INSERT INTO durable_gates (run_id, gate, kind, capacity, period, passed)
SELECT :run_id, gate, kind, capacity, period, kind IN ('presence', 'turn')
  FROM durable_gates
 WHERE run_id = :source_run_id AND kind <> 'debounce'
"""

TO_LOOK_AT = """
SELECT run_id
  FROM durable_held
 WHERE gate = ''
 ORDER BY priority DESC, run_id
 LIMIT 1
"""

GATES = """
SELECT gate, kind, capacity, period, passed
  FROM durable_gates
 WHERE run_id = :run_id AND kind IN ('slot', 'start', 'turn')
 ORDER BY kind DESC
"""

COUNT_PASSED = """
SELECT COUNT(*)
  FROM durable_gates INDEXED BY durable_gates_passed
 WHERE gate = :gate AND passed = 1
"""

COUNT_USES = """
SELECT COUNT(*)
  FROM durable_uses
 WHERE gate = :gate AND expires_at > :now
"""

NTH_LATEST_USE = """
SELECT expires_at
  FROM durable_uses
 WHERE gate = :gate AND expires_at > :now
 ORDER BY expires_at DESC
 LIMIT 1 OFFSET :offset
"""

USE = """
INSERT INTO durable_uses (gate, expires_at)
VALUES (:gate, :expires_at)
"""

FORGET_USES = """
DELETE FROM durable_uses
 WHERE id IN (SELECT id
                FROM durable_uses INDEXED BY durable_uses_by_time
               WHERE expires_at <= :now
               ORDER BY expires_at
               LIMIT :limit)
"""

PASS = """
UPDATE durable_gates
   SET passed = 1
 WHERE run_id = :run_id AND passed = 0 AND kind IN ('slot', 'start', 'turn')
"""

ADMIT = """
UPDATE durable_runs
   SET due = 1
 WHERE id = :run_id AND due = 2
"""

RELEASE_HELD = """
DELETE FROM durable_held
 WHERE run_id = :run_id
"""

WITHDRAW = """
UPDATE durable_gates
   SET passed = 0
 WHERE run_id = :run_id AND passed = 1 AND kind IN ('slot', 'start')
"""

FREE_SLOT = """
UPDATE durable_gates
   SET passed = 0
 WHERE run_id = :run_id AND passed = 1 AND kind = 'slot'
RETURNING gate
"""

HOLD = """
UPDATE durable_held
   SET gate = :gate
 WHERE run_id = :run_id
"""

LOOK_AT_FIRST = """
UPDATE durable_held
   SET gate = ''
 WHERE run_id = (SELECT run_id
                   FROM durable_held
                  WHERE gate = :gate
                  ORDER BY priority DESC, run_id
                  LIMIT 1)
"""

SET_OPENING = """
INSERT INTO durable_openings (gate, opens_at)
VALUES (:gate, :opens_at)
    ON CONFLICT (gate) DO UPDATE
   SET opens_at = MIN(opens_at, excluded.opens_at)
"""

NEXT_OPENING = """
SELECT MIN(opens_at)
  FROM durable_openings
"""

TAKE_OPENINGS = """
DELETE FROM durable_openings
 WHERE gate IN (SELECT gate
                  FROM durable_openings INDEXED BY durable_openings_by_time
                 WHERE opens_at <= :now)
RETURNING gate
"""

PRESENT = """
SELECT run_id
  FROM durable_gates INDEXED BY durable_gates_passed
 WHERE gate = :gate AND passed = 1
 ORDER BY run_id
"""

DEBOUNCED = """
SELECT runs.id, runs.created_at
  FROM durable_gates AS gates INDEXED BY durable_gates_passed
  JOIN durable_runs AS runs ON runs.id = gates.run_id
 WHERE gates.gate = :gate AND gates.passed = 1 AND runs.status = 'pending' AND runs.due = 0 AND runs.run_at > :now
 ORDER BY runs.id DESC
 LIMIT 1
"""

POSTPONE = """
UPDATE durable_runs
   SET input = :input,
       run_at = MAX(run_at, :run_at),
       ready_at = MAX(run_at, :run_at),
       updated_at = :now
 WHERE id = :run_id
"""


@dataclass(frozen=True, slots=True)
class _Passing:
    gate: str
    kind: str
    capacity: int
    period: int | None
    passed: int


class Flow:
    """The verbs on gates. Those that write need a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- entering ----------------------------------------------------------------------------------------------------

    def enter(self, run_id: str, gates: tuple[Gate, ...]) -> None:
        """Insert the gates of a run that was just inserted."""
        self._database.execute(ENTER, {"run_id": run_id})
        for gate in gates:
            passed = gate.kind in (GateKind.PRESENCE, GateKind.DEBOUNCE)
            values = {"gate": gate.name, "kind": gate.kind, "capacity": gate.capacity, "period": gate.period}
            self._database.execute(INSERT_GATE, {"run_id": run_id, "passed": passed, **values})
        self._database.execute(HOLD_NEW, {"run_id": run_id})

    def copy(self, source_run_id: str, run_id: str) -> None:
        """Give a run that was just inserted the gates of the run that it continues, and its turn."""
        values = {"source_run_id": source_run_id, "run_id": run_id}
        if self._database.execute(COPY_GATES, values).rowcount > 0:
            self.enter(run_id, ())

    def withdraw(self, run_id: str) -> None:
        """Withdraw a pending run from its gates while it is paused."""
        for text in (RELEASE_HELD, WITHDRAW):
            self._database.execute(text, {"run_id": run_id})

    def free_slot(self, run_id: str) -> None:
        """Free the slot of a run that does not execute, and queue the first run that waits for the slot."""
        for (gate,) in self._database.rows(FREE_SLOT, {"run_id": run_id}):
            self._database.execute(LOOK_AT_FIRST, {"gate": gate})

    # --- admitting ---------------------------------------------------------------------------------------------------

    def admit(self, now: int) -> bool:
        """Admit the queued runs whose gates are open; returns ``True`` when some now wait for a time.

        Each queued run is admitted, or waits at its first closed gate. Then the first run that waits at one of its open
        gates is queued, because no other event would cause that run to be checked.
        """
        has_openings = False
        while (run_id := self._value(TO_LOOK_AT)) is not None:
            gates = [_Passing(*row) for row in self._database.rows(GATES, {"run_id": run_id})]
            closed = next((gate for gate in gates if not self._is_open(gate, now)), None)
            if closed is None:
                self._pass(run_id)
                if any(gate.kind == GateKind.START for gate in gates):  # its start will be a use
                    self._forget_uses(now)
            else:
                self._database.execute(HOLD, {"run_id": run_id, "gate": closed.gate})
                has_openings |= self._wait_for_opening(closed, now)
            for gate in gates:
                if gate is not closed and gate.passed == 0 and self._is_open(gate, now):
                    self._database.execute(LOOK_AT_FIRST, {"gate": gate.gate})
        return has_openings

    def _is_open(self, gate: _Passing, now: int) -> bool:
        if gate.passed:
            return True
        taken = self._value(COUNT_PASSED, gate=gate.gate)
        if gate.kind == GateKind.START:
            taken += self._value(COUNT_USES, gate=gate.gate, now=now)
        found: bool = taken < gate.capacity
        return found

    def _pass(self, run_id: str) -> None:
        for text in (PASS, RELEASE_HELD, ADMIT):
            self._database.execute(text, {"run_id": run_id})

    def _wait_for_opening(self, gate: _Passing, now: int) -> bool:
        """Record when a closed gate opens, if it opens by time."""
        if gate.kind != GateKind.START:
            return False
        free_for_uses = gate.capacity - self._value(COUNT_PASSED, gate=gate.gate)
        if free_for_uses <= 0:
            return False  # all starts are reserved; the next run is queued when a reserved one begins
        opens_at = self._value(NTH_LATEST_USE, gate=gate.gate, now=now, offset=free_for_uses - 1)
        self._database.execute(SET_OPENING, {"gate": gate.gate, "opens_at": opens_at})
        return True

    # --- time --------------------------------------------------------------------------------------------------------

    def next_opening(self) -> int | None:
        """The time when the next gate opens; ``None`` when no gate opens by time."""
        found: int | None = self._value(NEXT_OPENING)
        return found

    def open(self, now: int) -> None:
        """Queue the runs that wait at gates whose time has come."""
        for (gate,) in self._database.rows(TAKE_OPENINGS, {"now": now}):
            self._database.execute(LOOK_AT_FIRST, {"gate": gate})
        self._forget_uses(now)

    # --- triggers ----------------------------------------------------------------------------------------------------

    def present(self, gate: str) -> list[str]:
        """The ids of the active runs that are found by a gate, the oldest first."""
        return [row[0] for row in self._database.rows(PRESENT, {"gate": gate})]

    def debounced(self, gate: str, now: int) -> tuple[str, int] | None:
        """The debounced run that waits for further triggers of a group, and when it was made."""
        found: tuple[str, int] | None = self._database.row(DEBOUNCED, {"gate": gate, "now": now})
        return found

    def postpone(self, run_id: str, input_text: str, run_at: int, now: int) -> None:
        """Give a debounced run another input, and a later time; an earlier time does not count."""
        values = {"run_id": run_id, "input": input_text, "run_at": run_at, "now": now}
        self._database.execute(POSTPONE, values)

    def opens_at(self, gate: str, capacity: int, now: int) -> int | None:
        """The time when a limit per time has room again; ``None`` when it has room now."""
        found: int | None = self._value(NTH_LATEST_USE, gate=gate, now=now, offset=capacity - 1)
        return found

    def use(self, gate: str, now: int, *, expires_at: int) -> None:
        """Count one use of a limit per time; a use in the future takes the room of that time."""
        self._database.execute(USE, {"gate": gate, "expires_at": expires_at})
        self._forget_uses(now)

    def _forget_uses(self, now: int) -> None:
        """Delete a few expired uses: more than are added, so that groups which are not used again leave no rows."""
        self._database.execute(FORGET_USES, {"now": now, "limit": EXPIRED_BATCH})

    def _value(self, text: str, **parameters: Any) -> Any:
        row = self._database.row(text, parameters)
        return None if row is None else row[0]
