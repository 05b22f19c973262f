"""An engine that executes scripts, and the operations on it that the random histories are made of.

Steps wait at gates that the operations open, and time stands still until it is moved, so a history says exactly what
happens when. Every commit is held against what is known of the runs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from known_runs import (
    ACTIVE,
    MAX_RECOVERIES,
    PAUSABLE,
    RETRIABLE,
    SHARED,
    SLOTS,
    TERMINAL,
    KnownRun,
    KnownRuns,
)
from scripts import Scripts

from durable_web import ConflictError, DurableWebError, Engine, RunStatus, Singleton, job
from durable_web._errors import RunNotActive, RunNotFound, RunNotTerminal, UpdateRejected, WebhookNotFound
from durable_web._model import StoredFrame, from_milliseconds
from durable_web.testing import CrashPoint, MockClock, SimulatedCrash, crash, crash_at, settle

ANY = 5  # the last of the numbers by which a run is chosen means any run, also one that refuses the operation
REFUSED = "refused"


@dataclass
class Gate:
    """Where the body of a step waits until the history lets it end."""

    run_id: str
    step: str
    outcome: asyncio.Future[str]


class World:
    """An engine, the gates of its steps, and what is known of its runs."""

    def __init__(self, path: str, max_parked: int) -> None:
        self.path = path
        self.max_parked = max_parked
        self.clock = MockClock()
        self.gates: list[Gate] = []
        self.runs = KnownRuns()
        self.scripts = Scripts(self)
        self.idempotent: dict[str, str] = {}
        self.offered: set[tuple[str, str, str]] = set()
        self.event_ids: set[str] = set()
        self.updates: list[asyncio.Task[Any]] = []
        self.wrong: list[str] = []  # what was found where an assertion would look like the failure of a step
        self.ended: list[KnownRun] = []  # since the last look
        self.last_frame_id = 0
        self.numbers = itertools.count(1)
        self.death: CrashPoint | None = None
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        return Engine(
            self.path,
            [
                job("scripted")(self.scripts.perform_all),
                job(SHARED, singleton=Singleton())(self.scripts.perform_all),
            ],
            clock=self.clock,
            exclusive=True,
            durability="normal",
            max_concurrent_runs=SLOTS,
            max_parked=self.max_parked,
            max_recoveries=MAX_RECOVERIES,
        )

    async def begin(self) -> None:
        await self.engine.start()
        store = self.engine.internals.store
        assert store is not None
        tell = store.on_commit

        def tell_and_look(frames: list[StoredFrame], facts: list[Any]) -> None:
            self.note_what_is_wrong(self.take_frames)
            tell(frames, facts)

        store.on_commit = tell_and_look

    # --- the bodies of steps -----------------------------------------------------------------------------------------

    def insert(self, connection: sqlite3.Connection, run_id: str, name: str) -> str:
        self.note_call(run_id, name)
        connection.execute("INSERT INTO item VALUES (?, ?)", (run_id, name))
        self.offered.add((run_id, name, "inserted"))
        return "inserted"

    async def body(self, run_id: str, name: str) -> str:
        self.note_call(run_id, name)
        gate = Gate(run_id, name, asyncio.get_running_loop().create_future())
        self.gates.append(gate)
        try:
            return await gate.outcome
        finally:
            self.gates.remove(gate)

    async def stubborn_body(self, run_id: str, name: str) -> str:
        try:
            return await self.body(run_id, name)
        except asyncio.CancelledError:
            return "swallowed"

    def note_call(self, run_id: str, name: str) -> None:
        if name in self.runs[run_id].committed:
            self.wrong.append(f"step {name} of {run_id} was called again after its commit")

    def note_what_is_wrong(self, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError:
            self.wrong.append(traceback.format_exc(limit=-3))

    # --- operations --------------------------------------------------------------------------------------------------

    async def perform(self, name: str, arguments: dict[str, Any]) -> None:
        """One operation of a history; the engine may die in the middle of it."""
        try:
            await getattr(self, name)(**arguments)
        except (DurableWebError, sqlite3.ProgrammingError):  # the second: it was in the middle of reading
            if self.death is None or not self.death.is_reached:
                raise
        await self.come_back()

    async def come_back(self) -> None:
        """If the engine has died, begin again."""
        if self.death is not None and self.death.is_reached:
            await self.death
            self.death = None
            await self.begin_again()
        self.look()

    async def trigger(
        self,
        script: list[str],
        key: str | None,
        idempotency: str | None,
        coalesce: str | None,
        priority: int,
        soon: bool,
    ) -> None:
        coalesce = coalesce if key else None
        deadline = from_milliseconds(self.clock.now() + 45_000) if soon else None
        wanted = PAUSABLE if coalesce == "active" else ("pending",)
        found = next((self.with_key(key, status) for status in wanted if key and self.with_key(key, status)), None)
        same = self.idempotent.get(idempotency or "")
        known = set(self.runs)
        try:
            run = await self.engine.trigger(
                "scripted",
                script,
                concurrency_key=key,
                idempotency_key=idempotency,
                coalesce=coalesce,
                priority=priority,
                deadline=deadline,
            )
        except ConflictError:
            assert same is None
            assert found is not None
            assert coalesce is None
            return
        if same is not None:
            assert (run.disposition, run.id) == ("idempotent", same)
        elif found is not None:
            assert run.disposition == "coalesced"
            assert run.id in found
            assert coalesce is not None
        else:
            assert run.disposition == "created"
            assert run.id not in known

    def with_key(self, key: str | None, status: str) -> list[str]:
        return [run.id for run in self.runs.alive() if run.key == key and run.status == status and run.job != SHARED]

    def closed_gate(self, which: int) -> Gate | None:
        closed = [gate for gate in self.gates if not gate.outcome.done()]
        return closed[which % len(closed)] if closed else None

    async def complete(self, which: int) -> None:
        if gate := self.closed_gate(which):
            value = f"value {next(self.numbers)}"
            self.offered.add((gate.run_id, gate.step, value))
            gate.outcome.set_result(value)

    async def complete_all(self) -> None:
        """Every step that waits ends, and those that come after it within some turns of the event loop."""
        for _ in range(3):
            while self.closed_gate(0):
                await self.complete(0)
            await settle()

    async def fail(self, which: int) -> None:
        if gate := self.closed_gate(which):
            message = f"failure {next(self.numbers)}"
            self.offered.add((gate.run_id, gate.step, f"caught {message}"))
            gate.outcome.set_exception(ValueError(message))

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def cancel(self, which: int, compensate: bool) -> None:
        if run_id := self.choose(which, ACTIVE):
            await self.cancel_run(run_id, compensate)

    async def cancel_run(self, run_id: str, compensate: bool) -> None:
        self.let_commit()
        known = self.runs[run_id]
        with self.refusal(run_id, unless=ACTIVE):
            known.was_cut_short |= known.status == "cancelling" and not compensate
            is_to_be_undone = compensate and bool(known.to_undo or known.undoable)
            run = await self.engine.runs.cancel(run_id, compensate)
            is_undone = run.status == RunStatus.CANCELLING
            assert is_undone == (is_to_be_undone or (compensate and known.status == "cancelling")), known

    async def retry(self, which: int) -> None:
        if run_id := self.choose(which, RETRIABLE):
            with self.refusal(run_id, unless=RETRIABLE):
                await self.retry_run(run_id)

    async def retry_run(self, run_id: str) -> None:
        try:
            self.runs[run_id].was_retried_by_hand = True
            await self.engine.runs.retry(run_id)
        except ConflictError as conflict:
            other, own = await self.engine.runs.get(conflict.run_id), await self.engine.runs.get(run_id)
            assert (other.status, other.concurrency_key) == (RunStatus.PENDING, own.concurrency_key)

    async def delete(self, which: int) -> None:
        if run_id := self.choose(which, TERMINAL):
            with self.refusal(run_id, unless=TERMINAL):
                await self.engine.runs.delete(run_id)
                self.idempotent = {key: owner for key, owner in self.idempotent.items() if owner != run_id}

    def let_commit(self) -> None:
        """Know what runs have recorded that is not committed yet: the engine commits it first when it is asked."""
        self.engine.internals.dispatcher.commits.flush()

    def choose(self, which: int, statuses: tuple[str, ...]) -> str | None:
        wanted = [run.id for run in self.runs.alive() if run.status in statuses]
        if which == ANY or not wanted:
            wanted = list(self.runs)
        return wanted[which % len(wanted)] if wanted else None

    async def cancel_and_retry(self, which: int, compensate: bool) -> None:
        """At once: what was executing has not noticed yet."""
        if run_id := self.choose(which, ACTIVE):
            await self.cancel_run(run_id, compensate)
            with self.refusal(run_id, unless=RETRIABLE):
                await self.retry_run(run_id)

    @contextmanager
    def refusal(self, run_id: str, unless: tuple[str, ...]) -> Iterator[None]:
        """Whether the engine refuses what is done inside is known from the run's status."""
        if run_id in self.runs.deleted:
            expected: Any = RunNotFound
        elif self.runs[run_id].status in unless:
            yield
            return
        else:
            expected = (RunNotActive, RunNotTerminal)
        with pytest.raises((expected, SimulatedCrash) if isinstance(expected, type) else (*expected, SimulatedCrash)):
            yield

    async def signal(self, which: int, again: bool) -> None:
        self.let_commit()
        if run_id := self.choose(which, ACTIVE):
            last = self.runs.last_link(run_id)
            sent = self.runs[last].sent
            if again and sent and self.runs[last].status in ACTIVE and last not in self.runs.deleted:
                assert not await self.engine.runs.signal(run_id, "go", "another payload", signal_id=sent[0])
            else:
                await self.signal_run(run_id)

    async def signal_run(self, run_id: str) -> None:
        value = f"signal {next(self.numbers)}"
        last = self.runs.last_link(run_id)
        with self.refusal(last, unless=ACTIVE):
            assert await self.engine.runs.signal(run_id, "go", value, signal_id=value)
            self.runs[last].sent.append(value)
            assert not await self.engine.runs.signal(run_id, "go", value, signal_id=value)

    async def publish(self, event_id: str | None = None) -> None:
        waiting = {run.id for run in self.runs.alive() if "event" in run.waits.values()}
        reached = set(await self.engine.publish("news", f"event {next(self.numbers)}", event_id=event_id))
        assert reached == (set() if event_id in self.event_ids else waiting)
        if event_id is not None:
            self.event_ids.add(event_id)

    async def update(self, which: int, is_refused: bool) -> None:
        if run_id := self.choose(which, ACTIVE):
            value = f"update {next(self.numbers)} {REFUSED if is_refused else ''}"
            self.updates.append(asyncio.ensure_future(self.update_run(run_id, value)))
            await asyncio.sleep(0)

    async def update_run(self, run_id: str, value: str) -> None:
        """Whatever else becomes of an update: an answer is the answer to it, and no refused one is answered."""
        with suppress(UpdateRejected, RunNotActive, RunNotFound, DurableWebError):
            answer = await self.engine.runs.update(run_id, "change", value)
            if answer != f"answer to {value}" or value.endswith(REFUSED):
                self.wrong.append(f"{value!r} was answered by {answer!r}")

    async def call_back(self, which: int) -> None:
        tokens = [(run, name) for run in self.runs.alive() for name in run.tokens]
        if not tokens:
            return
        run, name = tokens[which % len(tokens)]
        is_waiting = run.waits.get(name) == "webhook"
        try:
            is_first = await self.engine.deliver_webhook(run.tokens[name], f"body {next(self.numbers)}")
        except WebhookNotFound:
            assert not is_waiting
        else:
            assert is_first == is_waiting

    async def pause(self, which: int) -> None:
        if run_id := self.choose(which, ACTIVE):
            with self.refusal(run_id, unless=PAUSABLE):
                await self.engine.runs.pause(run_id)

    async def resume(self, which: int) -> None:
        if run_id := self.choose(which, ACTIVE):
            with self.refusal(run_id, unless=ACTIVE):
                await self.engine.runs.resume(run_id)

    async def crash(self) -> None:
        await crash(self.engine)
        await self.begin_again()

    async def crash_soon(self, commits: int, before: bool) -> None:
        """Die before or after the so-manieth commit from now on."""
        if self.death is None:
            self.death = crash_at(self.engine, before=commits) if before else crash_at(self.engine, after=commits)

    async def restart(self) -> None:
        await self.engine.stop(drain=False)
        await self.begin_again()

    async def begin_again(self) -> None:
        self.death = None
        self.engine = self.new_engine()
        await self.begin()
        self.look()
        self.find_out_what_was_sent()
        self.check_everything()

    def find_out_what_was_sent(self) -> None:
        """A caller whose engine died does not know whether its call was applied."""
        query = "SELECT message_id FROM durable_messages WHERE run_id = ? AND topic = 'signal:go' ORDER BY id"
        for run in self.runs.alive():
            sent = [row[0] for row in self.query(query, run.id)]
            assert sent[: len(run.sent)] == run.sent
            assert len(sent) <= len(run.sent) + 1
            run.sent = sent
        self.event_ids |= {row[0] for row in self.query("SELECT id FROM durable_events")}
        keys = "SELECT idempotency_key, id FROM durable_runs WHERE idempotency_key IS NOT NULL"
        self.idempotent = dict(self.query(keys))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        assert self.engine.is_running
        return self.engine.internals.store.database.connection.execute(text, values).fetchall()

    def look(self) -> None:
        """Nothing that was found out since the last look is wrong."""
        assert not self.wrong, self.wrong
        self.take_frames()
        assert not self.wrong, self.wrong

    def take_frames(self) -> None:
        """Hold what was committed since the last time against what is known."""
        columns = "id, seq, ts, run_id, kind, body"
        for row in self.query(f"SELECT {columns} FROM durable_frames WHERE id > ? ORDER BY id", self.last_frame_id):
            frame = StoredFrame(*row)
            self.last_frame_id = frame.id
            if frame.run_id not in self.runs or (frame.run_id in self.runs.deleted and frame.kind != "run_deleted"):
                self.meet(frame.run_id)
            run = self.runs[frame.run_id]
            self.runs.take(run, frame)
            if run.status in TERMINAL and frame.kind == "run_status":
                self.ended.append(run)
        self.check_families()

    def meet(self, run_id: str) -> None:
        columns = "job, input, concurrency_key, priority, deadline, parent_run_id, parent_step, continued_from"
        text = f"SELECT {columns}, idempotency_key FROM durable_runs WHERE id = ?"
        ((name, script, key, priority, deadline, parent, step, continues, once),) = self.query(text, run_id)
        made = KnownRun(run_id, name, json.loads(script), key, priority, deadline is not None, parent, step, continues)
        self.runs.meet(made)
        if once is not None:
            self.idempotent[once] = run_id

    def check_families(self) -> None:
        """A run that has ended leaves no run behind for which it was waiting; a cancelled one leaves none at all."""
        ended, self.ended = self.ended, []
        for run in ended:
            for child in self.runs.alive():
                is_cancelled = run.status == "cancelled" and not run.was_undone
                is_wanted = child.was_retried_by_hand or child.parent != run.id
                if not is_wanted and (child.parent_step is not None or is_cancelled):
                    assert child.status in ("cancelling", *TERMINAL), (run, child)

    def check_everything(self) -> None:
        """Nothing that was ever seen has changed, no run is lost, and rows are there exactly once."""
        stored = self.query("SELECT id, seq, ts, run_id, kind, body FROM durable_frames ORDER BY id")
        alive = list(self.runs.alive())
        ids = {run.id for run in alive}
        frames = sorted((frame for run in alive for frame in run.frames), key=lambda frame: frame.id)
        assert [StoredFrame(*row) for row in stored if row[3] in ids and row[4] != "run_deleted"] == frames
        statuses = dict(self.query("SELECT id, status FROM durable_runs"))
        assert statuses == {run.id: run.status for run in alive}
        rows = Counter(self.query("SELECT run_id, name FROM item"))
        once = [run for run in alive if run.first_seq == 1]  # the others have rows of before they were deleted, too
        inserted = {(run.id, name) for run in once for name in run.committed if run.word(name) == "row"}
        found = {row: count for row, count in rows.items() if row[0] in {run.id for run in once}}
        assert found == dict.fromkeys(inserted, 1)

    async def bring_to_an_end(self) -> None:
        """Let every step succeed from here on: then every run that is still active completes."""
        if self.death is not None:
            await self.crash()  # rather than later
        self.look()
        active = [run for run in self.runs.alive() if run.status in ACTIVE]
        for _ in range(20 + 30 * len(self.runs)):
            while self.closed_gate(0):
                await self.complete(0)
            await self.settle()
            await self.let_waits_end()
            await self.settle()
            if not self.gates:
                await self.advance(20)
                await self.settle()
            if not any(run.status in ACTIVE for run in self.runs.alive()):
                break
        for run in active:
            expected = {"failed"} if run.broken or run.deadline else {"completed"}
            if run.was_undone:
                expected = {"failed", "cancelled"}
            if run.parent is not None and self.runs[run.parent].status in TERMINAL:
                expected |= {"cancelled"}
            assert run.status in expected | ({"completed"} if run.deadline else set()), run
        self.check_everything()
        for task in self.updates:
            task.cancel()
        for run in list(self.runs.alive()):
            await self.check_outcome(run)

    async def settle(self) -> None:
        await settle()
        self.look()

    async def let_waits_end(self) -> None:
        await self.publish()
        for which in range(sum(len(run.tokens) for run in self.runs.alive())):
            await self.call_back(which)
        for run in list(self.runs.alive()):
            if run.status not in ACTIVE:
                continue
            await self.engine.runs.resume(run.id)
            if "signal" in run.waits.values():
                await self.signal_run(run.id)
            if "update" in run.waits.values():
                self.updates.append(asyncio.ensure_future(self.update_run(run.id, f"update {next(self.numbers)}")))

    async def check_outcome(self, known: KnownRun) -> None:
        run = await self.engine.runs.get(known.id)
        watched = [frame async for frame in self.engine.runs.watch(run.id, known.first_seq - 1)]
        assert watched == [frame.to_frame() for frame in known.frames]
        messages = Counter(frame.to_frame().message for frame in known.frames if frame.kind == "log")
        own = [message for message in messages if message.startswith("This run is executed alone until")]
        for message in own:
            del messages[message]
        assert max(messages.values(), default=1) == 1
        if run.status != RunStatus.COMPLETED:
            return
        script = known.script
        if run.continued_as is not None:
            script = script[: script.index("again")]
            assert self.runs[run.continued_as].script == known.script[len(script) + 1 :]
        else:
            names = [str(number) for number in range(len(script))]
            assert run.output == [
                self.scripts.output(known, word, name) for word, name in zip(script, names, strict=True)
            ]
        assert len(messages) == len(script) + (run.continued_as is not None)
        self.check_signals(known)
        assert await self.engine.runs.value(run.id, "state") == self.scripts.last_published(script)
        assert {(run.id, name, value) for name, value in known.seen.items()} <= self.offered

    def check_signals(self, known: KnownRun) -> None:
        """Each was taken once, in the order of sending, or is still there."""
        if known.continued_as is not None:
            assert known.sent == []
            return
        taken = known.taken
        pending = known.sent[known.taken_before + len(taken) :]
        assert taken == known.sent[known.taken_before :][: len(taken)]
        query = (
            "SELECT message_id FROM durable_messages WHERE run_id = ? AND topic = 'signal:go' AND status = 'pending'"
        )
        assert sorted(row[0] for row in self.query(query, known.id)) == sorted(pending)
