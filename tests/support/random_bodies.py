"""Random histories of random bodies: engines execute them, die at random commits, give way at random places.

A *history* is that of one run that is triggered, with its children and its further links, from the first of the
engines that execute it, to its end, and through a replay in which no function may be called. A *world* has one or
several histories beside each other. Time is simulated (``simulated_time``), and everything that happens follows from
the inputs of the runs and one number, the noise: a world that went wrong can be lived through again.

As many worlds as you like by hand, each with a seed of its own, from the first one on::

    PYTHONPATH=. PYTHONHASHSEED=0 python tests/support/random_bodies.py 100000 1

A world has three to four histories on average. To see one again, give the number 1 and its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from body_programs import body_of, has_undo, run_input
from simulated_time import SimulatedClock, simulate

from durable_web import Context, Engine, LocalFiles, RunNotActive, RunStatus, job
from durable_web._execution import run_loop
from durable_web._execution.run import Execution
from durable_web._files import Files
from durable_web._model import from_milliseconds
from durable_web.testing import CrashPoint, SimulatedCrash, crash, crash_at

PATIENCE = 20_000.0
"""Simulated seconds after which an engine hangs."""
FOREVER = 10**9
MOST_WRONG = 5
"""After so many worlds that went wrong, those by hand end."""
EXPIRED = "DeadlineExceeded"

TABLES = """
SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'durable_*'
"""
RUNS = """
SELECT id, status, output, error, continued_as FROM durable_runs ORDER BY id
"""
STEPS = """
SELECT * FROM durable_steps ORDER BY run_id, name
"""
UNDOABLE = """
SELECT name, output, outcome_order FROM durable_steps
 WHERE run_id = :run_id AND kind = 'step' AND status = 'completed' ORDER BY outcome_order
"""
UNDONE = """
SELECT substr(name, 12), outcome_order, status FROM durable_steps
 WHERE run_id = :run_id AND kind = 'compensation' ORDER BY outcome_order
"""
COMPENSATING = """
SELECT outcome_order FROM durable_steps WHERE run_id = :run_id AND kind = 'compensating' AND status = 'completed'
"""
# In a run that is leased: the engine that executes it may not know yet that another one has just cancelled it.
FINISHED_STEP = """
SELECT status FROM durable_steps
 WHERE run_id = :run_id AND name = :name AND (outcome_order IS NOT NULL OR status = 'cancelled')
   AND run_id IN (SELECT id FROM durable_runs WHERE lease_owner IS NOT NULL)
"""
WAITING = """
SELECT run_id, substr(topic, 8) FROM durable_steps WHERE status = 'running' AND topic GLOB 'signal:*'
"""
RECORDED = """
SELECT outcome_order, name, kind, status, inline FROM durable_steps WHERE run_id = :run_id ORDER BY outcome_order
"""
ACTIVE = """
SELECT id FROM durable_runs WHERE status IN ('pending', 'running', 'waiting', 'cancelling') ORDER BY id
"""
# As a run stands whose engine has died right before the commit of its end.
REOPEN = """
UPDATE durable_runs
   SET ending = CASE WHEN id IN (SELECT run_id FROM durable_steps WHERE kind IN ('compensating', 'cancel'))
                     THEN status END,
       output = NULL, continued_as = NULL, completed_at = NULL, deadline = NULL, run_at = NULL, wake_at = NULL,
       parent_run_id = NULL, parent_step = NULL, due = 1, paused = 0, recoveries = 0, interruptions = 0,
       lease_owner = NULL, lease_expires_at = NULL,
       generation = generation + 1;
UPDATE durable_runs
   SET status = CASE WHEN ending IS NULL THEN 'pending' ELSE 'cancelling' END,
       error = CASE WHEN ending IS NULL THEN NULL ELSE error END;
"""


class Wrong(AssertionError):
    """A world in which a promise was broken."""


class Pace:
    """Stands in for the module ``time`` in the run loop: says at random that a drain has taken too long."""

    def __init__(self, noise: random.Random) -> None:
        self.often = 0.0
        self._noise = noise
        self._seconds = 0.0

    def perf_counter(self) -> float:
        if self.often and self._noise.random() < self.often:
            self._seconds += 1.0
        return self._seconds


class Numbered:
    """Makes the ids of runs: one after another, the same whenever a world is lived through."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def new(self, milliseconds: int) -> str:
        return f"{next(self._numbers):026}"


@dataclass(frozen=True)
class Home:
    """Where worlds are: a database, and what another engine on it does meanwhile."""

    path: str
    neighbour: str = ""
    """``"writes"``: a second engine signals and cancels; ``"executes"``: it executes runs as well."""


class World:
    """Some runs, the engines that execute them, and what disturbs them.

    :param inputs: of the runs.
    :param seed: the noise: everything else that is random follows from it.
    """

    def __init__(self, inputs: list[dict[str, Any]], seed: int, home: Home) -> None:
        self.seed = seed
        self.noise = random.Random(seed)
        self._inputs = inputs
        self._home = home
        self._pace = Pace(self.noise)
        self._identifiers = Numbered()
        self._numbers = itertools.count(1)
        self._job = job("body")(body_of(self))
        self._wrong: list[str] = []
        self._undone: dict[str, set[int]] = {}
        self._sent: set[int] = set()  # payloads of signals
        self._may_call = True
        self._db = sqlite3.connect(home.path, uri=home.path.startswith("file:"), isolation_level=None)
        self._db.execute("PRAGMA read_uncommitted = 1")
        self._engine: Engine | None = None
        self._neighbour: Engine | None = None
        self._cancels = self.noise.random() < 0.25
        self._compensates = self.noise.random() < 0.7
        self._pauses = self.noise.random() < 0.2
        self._deadline = self.noise.choice([None, None, None, None, None, 3.0, 12.0])

    # --- what bodies ask for -----------------------------------------------------------------------------------------

    def note_wrong(self, problem: str) -> None:
        self._wrong.append(problem)

    def note_call(self, ctx: Context) -> None:
        run_id, name = ctx.step_ref.split("/", 1)
        if not self._may_call:
            self.note_wrong(f"the function of {name} of {run_id} was called in the replay")
        found = self._db.execute(FINISHED_STEP, {"run_id": run_id, "name": name}).fetchone()
        if found is not None:
            self.note_wrong(f"the function of {name} of {run_id} was called again: it is {found[0]}")

    def call(self, ctx: Context, style: str) -> Any:
        self.note_call(ctx)
        number = next(self._numbers)
        if style == "plain":
            if self.noise.random() < 0.1:
                self._write_meanwhile()
            return number
        return self._behave(ctx, style, number)

    async def _behave(self, ctx: Context, style: str, number: int) -> int:
        match style:
            case "turn":
                await asyncio.sleep(0)
            case "slow":
                await asyncio.sleep(self._some_time())
            case "stubborn":
                try:
                    await asyncio.sleep(self._some_time())
                except asyncio.CancelledError:
                    await asyncio.sleep(self._some_time())
            case "fails":
                await asyncio.sleep(self.noise.choice([0, 0.1]))
                raise ValueError(f"failure {number}")
            case "flaky":
                await asyncio.sleep(self._some_time())
                if self.noise.random() < 0.5:
                    raise ConnectionError(f"failure {number}")
            case "gives up":
                if self.noise.random() < 0.3:
                    raise asyncio.CancelledError(f"failure {number}")
            case "writes":
                await self._write()
        return number

    def insert(self, connection: sqlite3.Connection, ctx: Context) -> int:
        self.note_call(ctx)
        return next(self._numbers)

    def undo(self, ctx: Context, value: int) -> Any:
        self.note_call(ctx)
        self._undone.setdefault(ctx.run_id, set()).add(value)
        return asyncio.sleep(self._some_time()) if self.noise.random() < 0.5 else None

    def _some_time(self) -> float:
        return self.noise.random() * self.noise.choice([0.01, 0.01, 0.3, 2, 9])

    # --- what happens outside ----------------------------------------------------------------------------------------

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.noise.random() * self.noise.choice([0.01, 1, 3]))
            await self._write()

    def _write_meanwhile(self) -> None:
        """Another process writes while a synchronous function executes."""
        if self._neighbour is not None:
            with contextlib.suppress(StopIteration):
                self._write().send(None)

    async def _write(self) -> None:
        """Signal, pause, resume or cancel a run."""
        engine = self._neighbour or self._engine
        if engine is None or not engine.is_running:
            return
        with contextlib.suppress(RunNotActive, SimulatedCrash):
            await self._write_with(engine)

    async def _write_with(self, engine: Engine) -> None:
        what = self.noise.random()
        waiting = self._db.execute(WAITING).fetchall()
        active = [run_id for (run_id,) in self._db.execute(ACTIVE)]
        if waiting and what < 0.5:
            run_id, name = self.noise.choice(waiting)
            await self._signal(engine, run_id, name)
        elif not active:
            return
        elif what < 0.7:
            await self._signal(engine, self.noise.choice(active), self.noise.choice(["go", "stop"]))
        elif what < 0.75 and self._cancels:
            run_id = self.noise.choice(active)
            await engine.runs.cancel(run_id, compensate=self._compensates)
        elif what < 0.85 and self._pauses:
            await engine.runs.pause(self.noise.choice(active))
        elif self._pauses:
            for run_id in active:
                await engine.runs.resume(run_id)

    async def _signal(self, engine: Engine, run_id: str, name: str) -> None:
        number = next(self._numbers)
        self._sent.add(number)
        await engine.runs.signal(run_id, name, number, signal_id=str(number))

    # --- engines -----------------------------------------------------------------------------------------------------

    def _new_engine(self, clock: SimulatedClock, **options: Any) -> Engine:
        options.setdefault("max_parked", self.noise.choice([0, 0, 1, 1000]))
        options.setdefault("max_concurrent_runs", self.noise.choice([1, 1, 3, 10]))
        options.setdefault("exclusive", not self._home.neighbour)
        engine = Engine(
            self._home.path,
            [self._job],
            clock=clock,
            durability="normal",
            lease=self.noise.choice([10.0, 60.0]),
            max_recoveries=FOREVER,
            files=LocalFiles(f"{tempfile.gettempdir()}/no files"),
            **options,
        )
        engine.settings.identifiers = self._identifiers  # type: ignore[assignment]
        return engine

    async def live(self) -> None:
        """Live through it.

        :raises Wrong: when a promise was broken.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: self.note_wrong(f"the loop was given {context!r}"))
        clock = SimulatedClock(loop)
        try:
            with patch.object(run_loop, "time", self._pace):
                await self._lives(clock)
                self._check()
                await self._replay(clock)
        except Wrong as problem:
            self.note_wrong(str(problem))
        except Exception as defect:
            self.note_wrong(f"{defect!r}")
            if not self._wrong[:-1]:
                raise
        finally:
            self._forget()
        if self._wrong:
            raise Wrong(f"{self._wrong[0]}\nseed {self.seed}, {self._home}, inputs:\n{json.dumps(self._inputs)}")

    def _forget(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            for (table,) in self._db.execute(TABLES).fetchall():
                self._db.execute(f"DELETE FROM {table}")
        self._db.close()

    async def _lives(self, clock: SimulatedClock) -> None:
        """One engine after another, of which the last one does not die before all runs have ended."""
        if self._home.neighbour:
            slots = 0 if self._home.neighbour == "writes" else 10
            self._neighbour = self._new_engine(clock, max_concurrent_runs=slots)
            await self._neighbour.start()
        writer = asyncio.create_task(self._write_for_ever())
        deaths = self.noise.choice([0, 0, 1, 1, 2, 4])
        try:
            for number in range(deaths + 1):
                self._pace.often = self.noise.choice([0, 0, 0.1, 0.5, 1])
                if await self._life(clock, is_mortal=number < deaths):
                    break
                clock.ahead += self.noise.choice([0, 0, 0.01, 3600])
        finally:
            writer.cancel()
            for engine in (self._engine, self._neighbour):
                if engine is not None:
                    await engine.stop(drain=False)
        if self._wrong:
            raise Wrong(self._wrong[0])

    async def _life(self, clock: SimulatedClock, *, is_mortal: bool) -> bool:
        """An engine executes until it dies; ``True`` when all runs have ended before that."""
        engine = self._engine = self._new_engine(clock)
        await engine.start()
        point = self._death(engine) if is_mortal else None
        ended = asyncio.create_task(self._all_ended(engine))
        waited: list[asyncio.Future[Any]] = [ended]
        if point is not None:
            waited.append(asyncio.ensure_future(_reached(point)))
        done, pending = await asyncio.wait(waited, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if not done:
            raise Wrong(f"it hangs: {self._where_it_stands(engine)}")
        if point is None or not point.is_reached:
            await ended
            return True
        await asyncio.gather(ended, return_exceptions=True)
        return False

    def _death(self, engine: Engine) -> CrashPoint:
        """Where an engine dies: right before or after one of its next commits."""
        when = self.noise.choice(["before", "after"])
        return crash_at(engine, **{when: self.noise.randint(1, self.noise.choice([5, 25, 60]))})  # type: ignore[arg-type]

    async def _all_ended(self, engine: Engine) -> None:
        """Trigger what was not, and wait until no run is active."""
        rnd = random.Random(self.seed)
        for number, wanted in enumerate(self._inputs):
            await asyncio.sleep(rnd.random() * rnd.choice([0, 0, 0.1, 5]))
            deadline = None if self._deadline is None else self._deadline * (number + 1)
            await self._trigger(engine, number, wanted, deadline)
        while active := self._db.execute(ACTIVE).fetchall():
            await engine.runs.wait(active[0][0])

    async def _trigger(self, engine: Engine, number: int, wanted: dict[str, Any], deadline: float | None) -> None:
        """Trigger a run, unless an earlier engine has."""
        due = None if deadline is None else from_milliseconds(engine.settings.clock.now()) + timedelta(seconds=deadline)
        await engine.trigger("body", wanted, idempotency_key=str(number), deadline=due)

    def _recorded(self, run_id: str) -> list[Any]:
        return self._db.execute(RECORDED, {"run_id": run_id}).fetchall()

    def _where_it_stands(self, engine: Engine) -> list[Any]:
        executions = [*engine.internals.dispatcher.executing.values(), *engine.internals.dispatcher.parked.values()]
        return [
            (
                each.tenure.run_id,
                f"parked: {each.tenure.is_parked}, delivered {each.history.last} of {each.history.known}",
                list(each.history._open),
                f"idle: {each._outcomes.is_idle}, unsettled: {each.tenure.unsettled}, live: {each.history.is_live}",
                each.loop.places(),
            )
            for each in executions
        ] + self._db.execute(ACTIVE).fetchall()

    # --- what must have come of it -----------------------------------------------------------------------------------

    def _check(self) -> None:
        for run_id, status, _, error, _ in self._db.execute(RUNS).fetchall():
            if error is not None:
                self._check_error(run_id, status, json.loads(error))
            self._check_undone(run_id, status)
        self._check_signals()

    def _check_error(self, run_id: str, status: str, error: dict[str, str]) -> None:
        if (error["type"], error["message"]) != ("ValueError", "the body failed") and error["type"] != EXPIRED:
            raise Wrong(f"{run_id} is {status}: {error['type']}: {error['message']}\n{error['traceback']}")

    def _check_undone(self, run_id: str, status: str) -> None:
        """What had completed is undone where the run has not, newest first, and nothing else."""
        rows = self._db.execute(UNDOABLE, {"run_id": run_id}).fetchall()
        completed = [(name, json.loads(output), order) for name, output, order in rows if has_undo(name)]
        undone = self._db.execute(UNDONE, {"run_id": run_id}).fetchall()
        if status == RunStatus.COMPLETED:
            completed = []
        elif self._was_cut_short(run_id, status):
            return
        expected = [name for name, _, _ in reversed(completed)]
        if [name for name, _, _ in undone] != expected:
            raise Wrong(
                f"{run_id} is {status}, {undone} were undone, and {completed} should have been, newest first: "
                f"{self._recorded(run_id)}"
            )
        values = {value for _, value, _ in completed}
        if self._undone.get(run_id, set()) != values:
            raise Wrong(f"{run_id}: {values} should have been undone, and {self._undone.get(run_id)} were")

    def _was_cut_short(self, run_id: str, status: str) -> bool:
        """``True`` when a run was cancelled without compensation, itself or with its parent."""
        return status == RunStatus.CANCELLED and self._cancels and not self._compensates

    def _check_signals(self) -> None:
        """Every signal that a body has come to hold was sent, and is held once; none that was sent is lost."""
        taken: dict[int, str] = {}
        for run_id, name, output in self._db.execute(
            "SELECT run_id, name, output FROM durable_steps WHERE kind = 'signal' AND status = 'completed'"
        ).fetchall():
            number = json.loads(output)
            if number in taken:
                raise Wrong(f"signal {number} ended {taken[number]} and {name} of {run_id}")
            taken[number] = f"{name} of {run_id}"
            if number not in self._sent:
                raise Wrong(f"signal {number} was never sent")
        for run_id, output in self._db.execute(
            "SELECT id, output FROM durable_runs WHERE status = 'completed' AND continued_as IS NULL"
        ).fetchall():
            held = {decision[1] for decision in json.loads(output) if decision[0] == "signal"}
            ended = {number for number, name in taken.items() if name.endswith(f" of {run_id}")}
            if held != ended:
                raise Wrong(f"{run_id} holds the signals {held}, and its waits were ended by {ended}")
        marked = {
            int(message_id)
            for (message_id,) in self._db.execute("SELECT message_id FROM durable_messages WHERE status = 'taken'")
        }
        if marked != taken.keys():
            raise Wrong(
                f"the signals {marked} were taken, and waits were ended by {taken}: "
                f"{self._db.execute('SELECT * FROM durable_messages').fetchall()}\n"
                f"{[(run, self._recorded(run[0])) for run in self._db.execute(RUNS).fetchall()]}"
            )

    # --- the replay --------------------------------------------------------------------------------------------------

    async def _replay(self, clock: SimulatedClock) -> None:
        """Execute all runs again, as from right before their ends: they end the same way, and nothing is called."""
        runs, steps = self._db.execute(RUNS).fetchall(), self._db.execute(STEPS).fetchall()
        self._db.executescript(REOPEN)
        self._may_call = False
        self._pace.often = self.noise.choice([0, 0.1, 1])
        executions: dict[str, Execution] = {}

        def new_context(execution: Execution, files: Files) -> Context:
            execution.replay_only()
            executions[execution.tenure.run_id] = execution
            return Context(execution, files)

        engine = self._new_engine(clock, max_concurrent_runs=10_000)
        engine.settings.new_context = new_context
        await engine.start()
        try:
            await asyncio.sleep(1)
            self._check_replays(runs, steps, executions)
        finally:
            await crash(engine)

    def _check_replays(self, runs: list[Any], steps: list[Any], executions: dict[str, Execution]) -> None:
        again = {run[0]: run for run in self._db.execute(RUNS)}
        ended = {run[0] for run in runs if self._has_ended_by_itself(*run)}
        for run in runs:
            self._check_history(run, executions[run[0]])
            if run[0] in ended:
                self._check_end(run, again[run[0]])
        steps, now = ([row for row in rows if row[0] in ended] for rows in (steps, self._db.execute(STEPS)))
        if now != steps:
            raise Wrong(f"the replay has changed what is recorded: {sorted(set(steps) ^ set(now), key=repr)}")

    def _has_ended_by_itself(self, run_id: str, status: str, output: Any, error: str | None, *_: Any) -> bool:
        """``False`` for a run that was cancelled, or has expired, where it stood."""
        if self._was_cut_short(run_id, status):
            return False
        is_expired = error is not None and json.loads(error)["type"] == EXPIRED
        was_compensated = self._db.execute(COMPENSATING, {"run_id": run_id}).fetchone() is not None
        return was_compensated or not (is_expired or status == RunStatus.CANCELLED)

    def _check_history(self, run: Any, execution: Execution) -> None:
        """The body has asked for all that is recorded, and is given all of it, unless it has ended before."""
        history, run_id = execution.history, run[0]
        if history.broken is not None:
            raise Wrong(f"the replay of {run_id} differs: {history.broken}")
        if history.unasked() or (history.has_undelivered and execution.loop.places()):
            raise Wrong(
                f"the replay of {run_id}, which is {run[1]}, came to outcome {history.last} of {history.known}, did "
                f"not ask for {set(history.unasked())}, and stands at {execution.loop.places()}\n"
                f"{self._recorded(run_id)}"
            )

    def _check_end(self, run: Any, again: Any) -> None:
        run_id, status, output, error, continued_as = run
        if (again[1], again[2], _without_traceback(again[3])) != (status, output, _without_traceback(error)):
            raise Wrong(f"{run_id} is replayed as {again[1:4]}, and is recorded as {run[1:4]}")
        if (continued_as is None) != (again[4] is None):
            raise Wrong(f"{run_id} has continued as {continued_as}, and its replay as {again[4]}")


def _without_traceback(error: str | None) -> Any:
    return None if error is None else {**json.loads(error), "traceback": ""}


async def _reached(point: CrashPoint) -> None:
    await point


# --- homes -----------------------------------------------------------------------------------------------------------

_homes = itertools.count(1)


@contextlib.contextmanager
def home_of(seed: int) -> Iterator[Home]:
    """A new home: mostly a database in memory and one engine."""
    neighbour = ["", "", "", "writes", "executes"][seed % 5]
    if neighbour and seed % 2:
        with tempfile.TemporaryDirectory() as folder:
            yield Home(str(Path(folder) / "database.sqlite3"), neighbour)
        return
    path = f"file:random-bodies-{os.getpid()}-{next(_homes)}?mode=memory&cache=shared"
    with contextlib.closing(sqlite3.connect(path, uri=True)):
        yield Home(path, neighbour)


def live_through(inputs: list[dict[str, Any]], seed: int, worlds: int = 1) -> None:
    """Some worlds with the same inputs, one after another in one home, each with a noise of its own.

    :raises Wrong: when a promise was broken.
    """
    with home_of(seed) as home:
        for number in range(worlds):
            simulate(World(inputs, seed + 1_000_003 * number, home).live())


# --- by hand ---------------------------------------------------------------------------------------------------------


def main(count: int, seed: int) -> int:
    """Live through many worlds, and print what is wrong; returns how many are."""
    began, wrong, histories = time.perf_counter(), 0, 0
    for number in range(seed, seed + count):
        faulthandler.dump_traceback_later(300, exit=True)
        rnd = random.Random(number)
        inputs = [run_input(rnd, rnd.choice([1, 2, 2, 3])) for _ in range(rnd.choice([1, 1, 2, 4, 6, 8]))]
        histories += len(inputs)
        try:
            live_through(inputs, number)
        except Exception as error:
            wrong += 1
            print(f"seed {number}: {type(error).__name__}: {error}"[:3000], flush=True)
            if wrong == MOST_WRONG:
                break
    faulthandler.cancel_dump_traceback_later()
    print(
        f"{sys.version.split()[0]}: {number - seed + 1} worlds with {histories} histories, {wrong} wrong, "
        f"{time.perf_counter() - began:.0f} s"
    )
    return wrong


if __name__ == "__main__":
    sys.exit(main(*map(int, [*sys.argv[1:], "1000", "1"][:2])))
