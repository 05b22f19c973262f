"""Random histories: whatever is triggered, fails, is cancelled, crashes or is retried, the promises hold.

Hypothesis draws a list of operations. Steps wait at gates that the operations open, time stands still until it is
moved, and after each operation the event loop turns as often as was drawn: so a history says exactly what happens
when, and can be replayed. The ``World`` looks at every frame as it is committed and knows what may follow on what.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from watching import on_a_desk_only

from durable_web import ConflictError, Context, Engine, Retry, RunStatus, SignalTimeout, StepFailed, job
from durable_web.errors import RunNotActive, RunNotFound, RunNotTerminal
from durable_web.model import StoredFrame, from_milliseconds
from durable_web.testing import MockClock, crash, settle

MAX_RECOVERIES = 2
RETRY = Retry(max_attempts=3, backoff=10, factor=2, jitter=0)
LEGAL = {
    None: {"pending"},
    "pending": {"pending", "leased", "cancelled", "failed"},
    "leased": {"leased", "completed", "failed", "cancelled", "waiting", "pending", "dead"},
    "waiting": {"waiting", "pending", "cancelled", "failed"},
    "completed": set(),
    "failed": {"pending"},
    "cancelled": {"pending"},
    "dead": {"pending"},
}
SIGNALLED = ("signal", "patient", "race")
WAITING = (*SIGNALLED, "sleep", "event", "breakpoint")
WAIT_NAMES = ("go", "news", "look")
WAITS = ("sleep", "signal", "event", "breakpoint")
SLEEP_SECONDS = 15
ACTIVE = ("pending", "leased", "waiting")
RETRIABLE = ("failed", "cancelled", "dead")
TERMINAL = ("completed", *RETRIABLE)
ANY = 5  # the last of the numbers by which a run is chosen means any run, also one that refuses the operation


@dataclass
class Gate:
    """Where the body of a step waits until the history lets it end."""

    run_id: str
    step: str
    outcome: asyncio.Future[str]


@dataclass
class KnownRun:
    """What the model knows of a run."""

    id: str
    script: list[str]
    key: str | None
    priority: int
    deadline: bool
    status: str | None = None
    claims: int = 0
    recoveries: int = 0
    frames: list[StoredFrame] = field(default_factory=list)
    committed: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)  # failed steps whose failure the body does not catch
    seen: dict[str, str] = field(default_factory=dict)  # what each step has given to the job's body
    waited: dict[str, Any] = field(default_factory=dict)  # what each wait has given to it
    begun: dict[str, int] = field(default_factory=dict)  # when each sleep was begun
    waits: dict[str, str] = field(default_factory=dict)  # name and kind of the waits that are under way
    sent: list[str] = field(default_factory=list)  # the signals, in order
    paused: bool = False

    @property
    def is_new(self) -> bool:
        return self.claims == 0

    def word(self, step: str) -> str:
        """What the script says of a step; ``parallel`` ones end in a, b and c, a ``race``'s sleep in n."""
        if step.partition("#")[0] in WAIT_NAMES:
            return "wait"
        return {"a": "retried", "b": "step", "c": "row", "n": "race"}.get(step[-1]) or self.script[int(step)]


class World:
    """An engine, the gates of its steps, and the model that both are held against."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.clock = MockClock()
        self.gates: list[Gate] = []
        self.runs: dict[str, KnownRun] = {}
        self.deleted: set[str] = set()
        self.idempotent: dict[str, str] = {}
        self.offered: set[tuple[str, str, str]] = set()
        self.wrong: list[str] = []  # what was found where an assertion would look like the failure of a step
        self.last_frame_id = 0
        self.numbers = itertools.count(1)
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        return Engine(
            self.path,
            [job("scripted")(self.scripted)],
            clock=self.clock,
            exclusive=True,
            durability="normal",
            max_concurrent_runs=2,
            max_parked=1,
            max_recoveries=MAX_RECOVERIES,
        )

    # --- the job under test ------------------------------------------------------------------------------------------

    async def scripted(self, ctx: Context, script: list[str]) -> list[Any]:
        """Each word of the script is a step, or two at a time."""
        outputs = []
        for number, word in enumerate(script):
            ctx.log.info(f"line {number}")
            outputs.append(await self.perform(ctx, word, str(number)))
        return outputs

    async def perform(self, ctx: Context, word: str, name: str) -> Any:
        match word:
            case "row":
                value = await ctx.transaction(name, self.insert, ctx.run_id, name)
            case "retried":
                value = await ctx.step(name, self.body, ctx.run_id, name, retry=RETRY)
            case "caught":
                try:
                    value = await ctx.step(name, self.body, ctx.run_id, name)
                except StepFailed as failure:
                    value = f"caught {failure.error_message}"
            case "stubborn":
                value = await ctx.step(name, self.stubborn_body, ctx.run_id, name)
            case "parallel":
                branches = [("retried", f"{name}a"), ("step", f"{name}b"), ("row", f"{name}c")]
                return list(await asyncio.gather(*(self.perform(ctx, *branch) for branch in branches)))
            case "sleep" | "signal" | "patient" | "event" | "breakpoint" | "race":
                return self.note_wait(self.runs[ctx.run_id], name, await self.wait(ctx, word, name))
            case _:
                value = await ctx.step(name, self.body, ctx.run_id, name)
        known = self.runs[ctx.run_id]
        if known.seen.setdefault(name, value) != value:
            self.wrong.append(f"step {name} gave {known.seen[name]!r} first and {value!r} later")
        return value

    async def wait(self, ctx: Context, word: str, name: str) -> Any:
        """What a durable wait of the body comes to."""
        match word:
            case "signal":
                return await ctx.wait_for_signal("go")
            case "patient":
                try:
                    return await ctx.wait_for_signal("go", timeout=SLEEP_SECONDS)
                except SignalTimeout:
                    return None
            case "event":
                return await ctx.wait_for_event("news")
            case "breakpoint":
                return await ctx.breakpoint("look")
            case "race":
                return await self.race(ctx, name)
            case _:
                return await self.sleep(ctx, name)

    async def sleep(self, ctx: Context, name: str) -> None:
        begun = self.runs[ctx.run_id].begun.setdefault(name, self.clock.now())
        await ctx.sleep(name, SLEEP_SECONDS)
        if self.clock.now() < begun + SLEEP_SECONDS * 1000:
            self.wrong.append(f"sleep {name} of {ctx.run_id} was over early")

    async def race(self, ctx: Context, name: str) -> str | None:
        """The signal, if it comes before a sleep is over."""
        signal = asyncio.ensure_future(ctx.wait_for_signal("go"))
        nap = asyncio.ensure_future(self.sleep(ctx, f"{name}n"))
        _, pending = await asyncio.wait({signal, nap}, return_when=asyncio.FIRST_COMPLETED)
        for branch in pending:
            branch.cancel()
        return None if signal in pending else await signal

    def note_wait(self, known: KnownRun, name: str, value: Any) -> Any:
        if known.waited.setdefault(name, value) != value:
            self.wrong.append(f"wait {name} gave {known.waited[name]!r} first and {value!r} later")
        return value

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

    # --- operations --------------------------------------------------------------------------------------------------

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
        wanted = ACTIVE if coalesce == "active" else ("pending",)
        found = next((self.with_key(key, status) for status in wanted if key and self.with_key(key, status)), None)
        same = self.idempotent.get(idempotency or "")
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
            assert run.id not in self.runs
            self.runs[run.id] = KnownRun(run.id, script, key, priority, soon)
            if idempotency is not None:
                self.idempotent[idempotency] = run.id

    def with_key(self, key: str | None, status: str) -> list[str]:
        return [run.id for run in self.runs.values() if run.key == key and run.status == status]

    def closed_gate(self, which: int) -> Gate | None:
        closed = [gate for gate in self.gates if not gate.outcome.done()]
        return closed[which % len(closed)] if closed else None

    async def complete(self, which: int) -> None:
        if gate := self.closed_gate(which):
            value = f"value {next(self.numbers)}"
            self.offered.add((gate.run_id, gate.step, value))
            gate.outcome.set_result(value)

    async def fail(self, which: int) -> None:
        if gate := self.closed_gate(which):
            message = f"failure {next(self.numbers)}"
            self.offered.add((gate.run_id, gate.step, f"caught {message}"))
            gate.outcome.set_exception(ValueError(message))

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def cancel(self, which: int) -> None:
        if run_id := self.choose(which, ACTIVE):
            with self.refusal(run_id, unless=ACTIVE):
                await self.engine.cancel(run_id)

    async def retry(self, which: int) -> None:
        if run_id := self.choose(which, RETRIABLE):
            with self.refusal(run_id, unless=RETRIABLE):
                await self.retry_run(run_id)

    async def retry_run(self, run_id: str) -> None:
        try:
            await self.engine.retry(run_id)
        except ConflictError as conflict:
            other, own = await self.engine.get_run(conflict.run_id), await self.engine.get_run(run_id)
            assert (other.status, other.concurrency_key) == (RunStatus.PENDING, own.concurrency_key)
            return
        run = self.runs[run_id]
        run.deadline = False
        run.broken.clear()
        run.seen = {name: value for name, value in run.seen.items() if name in run.committed}
        run.waited.clear()  # what had not ended, or was given up, is begun again
        run.begun = {name: begun for name, begun in run.begun.items() if name in run.committed}

    async def delete(self, which: int) -> None:
        if run_id := self.choose(which, TERMINAL):
            with self.refusal(run_id, unless=TERMINAL):
                await self.engine.delete_run(run_id)
                self.deleted.add(run_id)
                self.idempotent = {key: owner for key, owner in self.idempotent.items() if owner != run_id}

    def choose(self, which: int, statuses: tuple[str, ...]) -> str | None:
        wanted = [run.id for run in self.runs.values() if run.id not in self.deleted and run.status in statuses]
        if which == ANY or not wanted:
            wanted = list(self.runs)
        return wanted[which % len(wanted)] if wanted else None

    async def cancel_and_retry(self, which: int) -> None:
        """At once: what was executing has not noticed yet."""
        if run_id := self.choose(which, ACTIVE):
            with self.refusal(run_id, unless=ACTIVE):
                await self.engine.cancel(run_id)
                self.look()
                await self.retry_run(run_id)

    @contextmanager
    def refusal(self, run_id: str, unless: tuple[str, ...]) -> Iterator[None]:
        """Whether the engine refuses what is done inside is known from the run's status."""
        if run_id in self.deleted:
            with pytest.raises(RunNotFound):
                yield
        elif self.runs[run_id].status in unless:
            yield
        else:
            with pytest.raises((RunNotActive, RunNotTerminal)):
                yield

    async def signal(self, which: int) -> None:
        if run_id := self.choose(which, ACTIVE):
            await self.signal_run(run_id)

    async def signal_run(self, run_id: str) -> None:
        value = f"signal {next(self.numbers)}"
        with self.refusal(run_id, unless=ACTIVE):
            assert await self.engine.signal(run_id, "go", value, signal_id=value)
            assert not await self.engine.signal(run_id, "go", value, signal_id=value)
            self.runs[run_id].sent.append(value)

    async def publish(self) -> None:
        waiting = {run.id for run in self.runs.values() if "event" in run.waits.values()}
        assert set(await self.engine.publish("news", f"event {next(self.numbers)}")) == waiting

    async def pause(self, which: int) -> None:
        if run_id := self.choose(which, ACTIVE):
            with self.refusal(run_id, unless=ACTIVE):
                await self.engine.pause(run_id)

    async def resume(self, which: int) -> None:
        if run_id := self.choose(which, ACTIVE):
            with self.refusal(run_id, unless=ACTIVE):
                await self.engine.resume(run_id)

    async def crash(self) -> None:
        await crash(self.engine)
        await self.begin_again()

    async def restart(self) -> None:
        await self.engine.stop(drain=False)
        await self.begin_again()

    async def begin_again(self) -> None:
        self.engine = self.new_engine()
        await self.engine.start()
        self.look()
        self.check_everything()

    # --- what must hold ----------------------------------------------------------------------------------------------

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        assert self.engine._store is not None
        return self.engine._store.database.connection.execute(text, values).fetchall()

    def look(self) -> None:
        """Hold what was committed since the last look against the model."""
        columns = "id, seq, ts, run_id, kind, body"
        for row in self.query(f"SELECT {columns} FROM durable_frames WHERE id > ? ORDER BY id", self.last_frame_id):
            frame = StoredFrame(*row)
            self.last_frame_id = frame.id
            run = self.runs[frame.run_id]
            assert frame.seq == len(run.frames) + 1
            run.frames.append(frame)
            self.check_frame(run, frame.to_frame())
        assert not self.wrong

    def check_frame(self, run: KnownRun, frame: Any) -> None:
        if frame.kind == "run_deleted":
            assert run.status not in ACTIVE
        elif frame.kind == "run_status":
            self.check_transition(run, frame)
            run.status = frame.status.value
        elif frame.kind == "step_status" and (frame.status == "cancelled" or frame.type in WAITS):
            assert run.status in ACTIVE
            assert frame.status != "running" or run.status == "leased"
        else:
            assert run.status == "leased"
        if frame.kind == "step_status":
            if frame.type == "signal" and frame.status == "cancelled":
                run.committed.discard(frame.name)  # it was given up in the moment in which it ended
            assert frame.name not in run.committed
            run.waits.pop(frame.name, None)
            if frame.status == "running" and frame.type in WAITS:
                run.waits[frame.name] = frame.type
            if frame.status == "completed":
                run.committed.add(frame.name)
            if frame.status in ("completed", "failed"):
                run.recoveries = 0
            if frame.status == "failed" and run.word(frame.name) not in ("caught", "wait"):
                run.broken.add(frame.name)

    def check_transition(self, run: KnownRun, frame: Any) -> None:
        status = frame.status.value
        assert status in LEGAL[run.status]
        if frame.reason in ("it is paused", "it is resumed", "retried"):
            run.paused = frame.reason == "it is paused"
        if status == run.status:
            assert frame.reason in ("it is paused", "it is resumed")
        elif status == "leased":
            self.check_turn(run)
            run.claims += 1
        elif status == "dead":
            assert run.recoveries == MAX_RECOVERIES
        elif status == "failed" and run.status != "leased":
            assert frame.error.type == "DeadlineExceeded"
        elif status == "pending":
            run.recoveries = 0 if frame.reason == "retried" else run.recoveries
            run.recoveries += frame.reason == "its engine stopped"
            others = [other for other in self.runs.values() if other.status == "pending" and other.key == run.key]
            assert run.key is None or not run.is_new or not any(other.is_new for other in others)

    def check_turn(self, run: KnownRun) -> None:
        """It is the turn of the first claimable run, by priority and age, and its key is free."""
        held = {other.key for other in self.runs.values() if other.status == "leased" and other.key is not None}
        assert run.key not in held
        claimable = [other for other in self.runs.values() if other.status == "pending" and not other.paused]
        claimable = [other for other in claimable if other.key not in held]
        assert run is min(claimable, key=lambda other: (-other.priority, other.id))

    def check_everything(self) -> None:
        """Nothing that was ever seen has changed, no run is lost, and rows are there exactly once."""
        stored = self.query("SELECT id, seq, ts, run_id, kind, body FROM durable_frames ORDER BY id")
        alive = [run for run in self.runs.values() if run.id not in self.deleted]
        frames = sorted((frame for run in alive for frame in run.frames), key=lambda frame: frame.id)
        assert [StoredFrame(*row) for row in stored if row[3] not in self.deleted] == frames
        statuses = dict(self.query("SELECT id, status FROM durable_runs"))
        assert statuses == {run.id: run.status for run in alive}
        rows = Counter(self.query("SELECT run_id, name FROM item"))
        inserted = {(run.id, name) for run in self.runs.values() for name in run.committed if run.word(name) == "row"}
        assert rows == dict.fromkeys(inserted, 1)

    async def bring_to_an_end(self) -> None:
        """Let every step succeed from here on: then every run that is still active completes."""
        self.look()
        active = [run for run in self.runs.values() if run.id not in self.deleted and run.status in ACTIVE]
        for _ in range(10 + 20 * len(self.runs)):
            while self.closed_gate(0):
                await self.complete(0)
            await settle()
            self.look()
            await self.let_waits_end(active)
            if not self.gates:
                await self.advance(20)
                self.look()
            if not any(run.status in ACTIVE for run in active):
                break
        for run in active:
            assert run.status == ("failed" if run.broken else "completed") or (run.deadline and run.status == "failed")
        self.check_everything()
        for run in self.runs.values():
            if run.id not in self.deleted:
                await self.check_outcome(run)

    async def let_waits_end(self, runs: list[KnownRun]) -> None:
        await self.publish()
        for run in runs:
            if run.status in ACTIVE:
                await self.engine.resume(run.id)
                if "signal" in run.waits.values():
                    await self.signal_run(run.id)
        await settle()
        self.look()

    async def check_outcome(self, known: KnownRun) -> None:
        run = await self.engine.get_run(known.id)
        assert [frame async for frame in self.engine.watch(run.id)] == [frame.to_frame() for frame in known.frames]
        messages = Counter(frame.to_frame().message for frame in known.frames if frame.kind == "log")
        assert max(messages.values(), default=1) == 1
        if run.status != RunStatus.COMPLETED:
            return
        assert len(messages) == len(known.script)
        assert run.output == [self.output(known, word, str(number)) for number, word in enumerate(known.script)]
        self.check_signals(known)
        assert {(run.id, name, value) for name, value in known.seen.items()} <= self.offered

    def check_signals(self, known: KnownRun) -> None:
        """Each was taken once, in the order of sending, or is still there."""
        waits = [known.waited[str(number)] for number, word in enumerate(known.script) if word in SIGNALLED]
        taken = [value for value in waits if value is not None]
        assert taken == known.sent[: len(taken)]
        query = "SELECT message_id FROM durable_messages WHERE run_id = ? AND status = 'pending' ORDER BY id"
        assert [row[0] for row in self.query(query, known.id)] == known.sent[len(taken) :]

    def output(self, known: KnownRun, word: str, name: str) -> Any:
        if word in WAITING:
            return known.waited[name]
        names = [f"{name}{branch}" for branch in "abc"] if word == "parallel" else [name]
        values = [known.seen[each] for each in names]
        return values if word == "parallel" else values[0]


# --- histories -------------------------------------------------------------------------------------------------------


def operation(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


WHICH = st.integers(0, ANY)
WORDS = st.sampled_from(["step", "row", "retried", "retried", "caught", "stubborn", "parallel", "signal", *WAITING])
TRIGGER = operation(
    "trigger",
    script=st.lists(WORDS, min_size=1, max_size=4),
    key=st.sampled_from([None, None, "key", "other key"]),
    idempotency=st.sampled_from([None, None, None, "once", "only"]),
    coalesce=st.sampled_from([None, "skip", "active"]),
    priority=st.integers(0, 1),
    soon=st.sampled_from([False, False, False, True]),
)
OPERATIONS = st.one_of(
    TRIGGER,
    TRIGGER,
    operation("complete", which=WHICH),
    operation("complete", which=WHICH),
    operation("fail", which=WHICH),
    operation("fail", which=WHICH),
    operation("advance", seconds=st.sampled_from([0.05, 1, 10, 20, 60])),
    operation("cancel", which=WHICH),
    operation("retry", which=WHICH),
    operation("cancel_and_retry", which=WHICH),
    operation("delete", which=WHICH),
    operation("signal", which=WHICH),
    operation("signal", which=WHICH),
    operation("publish"),
    operation("pause", which=WHICH),
    operation("resume", which=WHICH),
    operation("resume", which=WHICH),
    operation("crash"),
    operation("restart"),
)
TURNS = st.sampled_from([0, 0, 1, 2, 3, 100, 100])  # of the event loop, after an operation
RETRIED = (
    "trigger",
    {"script": ["retried"], "key": None, "idempotency": None, "coalesce": None, "priority": 0, "soon": False},
)
HISTORIES = st.lists(st.tuples(OPERATIONS, TURNS), min_size=20, max_size=60)


PATHS = itertools.count()


@on_a_desk_only("two hundred histories take minutes there")
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES)
@example([(RETRIED, 100), (("fail", {"which": 0}), 100), (("cancel_and_retry", {"which": 0}), 0)])  # parked, retried
def test_whatever_happens_no_run_is_lost_no_step_is_repeated_and_timelines_tell_it_without_a_gap(history):
    path = f"file:history-{next(PATHS)}?mode=memory&cache=shared"
    with closing(sqlite3.connect(path, uri=True)):
        asyncio.run(live_through(history, path))


async def live_through(history: list[tuple[tuple[str, dict[str, Any]], int]], path: str) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unexpected.append(str(context)))
    unexpected: list[str] = []
    world = World(path)
    await world.engine.start()
    try:
        world.query("CREATE TABLE item (run_id, name)")
        for (name, arguments), turns in history:
            await getattr(world, name)(**arguments)
            world.look()
            for _ in range(turns):
                await asyncio.sleep(0)
            world.look()
        await world.bring_to_an_end()
    finally:
        await crash(world.engine)
    assert not unexpected
