"""The engine: executes runs, and answers questions about them.

>>> async with Engine("jobs.sqlite3", jobs=[greet]) as engine:
...     run = await engine.trigger("greet", "Ada")
...     async for frame in engine.watch(run.id):
...         print(frame.kind, frame)
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from ..clock import Clock, SystemClock, TimerHandle
from ..context import Context
from ..durations import to_timedelta
from ..errors import ConflictError, StorageError
from ..events import ErrorHandler, Events, Listener
from ..files import Files, LocalFiles
from ..flow import Gate
from ..identifiers import IdentifierFactory
from ..job import Job, Registry
from ..model import (
    LogFrame,
    Progress,
    ProgressFrame,
    Run,
    StoredFrame,
)
from ..store import Database, Durability, Fact, Lease, Store, as_made, check_durability
from ..timeline import Timeline, ends_run
from ..triggers import Trigger
from .admission import Admission, Admitted
from .delivery import Delivery
from .dispatcher import Dispatcher, Limits
from .endings import Endings
from .inspection import Inspection
from .last_step import End
from .management import Management
from .outside import Outside
from .scheduler import Scheduler
from .scheduling import Install, Scheduling
from .trouble import OnState

PURGE_SECONDS = 60.0
PURGE_BATCH = 100


async def _nothing_to_install(libraries: list[str]) -> None:
    """On a desk, whoever installs durable-web installs what it needs."""


class Engine(Inspection, Management, Outside, Scheduling):
    """Durable jobs over one SQLite file.

    :param path: the database file, made when it is not there; its folder must exist.
    :param jobs: the jobs that this engine can execute.
    :param max_concurrent_runs: how many runs may execute at a time; 0 for an engine that only triggers and watches.
    :param lease: seconds for which a claim on a run holds without being renewed.
    :param durability: ``"full"`` survives power loss; ``"normal"`` survives the death of any process, and is faster.
    :param preserve_steps: keep the steps of completed runs; without, they are deleted when their run completes, and
        its ``completed_steps`` is 0.
    :param retain_runs: delete runs that ended longer ago than this, when the engine is idle: a ``timedelta``, or a text
        such as ``"30d"`` (s, m, h, d or w). By default runs are kept for ever.
    :param max_recoveries: a run against which more deaths of its engine than this count since its last outcome is dead.
        A death counts against the run whose step was executing when the page or the parent process saw the engine die
        (``ends``), or when the engine vanished within 60 seconds after the step began.
    :param max_parked: how many waiting runs stay in memory; those beyond it are replayed when they wake.
    :param exclusive: no other engine uses the file at the same time (a browser's leader); what an engine that died has
        left behind is then taken back at once instead of when its lease runs out.
    :param migrate: ``False`` refuses a file that an earlier version wrote (``SchemaVersionError``) instead of migrating
        it, which cannot be reverted.
    :param life: an id for this life of the engine, under which its runs are leased; made up by default.
    :param ends: how earlier lives ended, by their id, for whoever outlives an engine: ``"closed"`` after a shutdown in
        good order that the engine had no time to note, which counts against no run; ``"died"`` where a page or a parent
        process saw the engine die or fall silent, which counts however long ago the step began.
    :param clock: where the time comes from.
    :param files: where ``ctx.files`` makes files; by default in the folder ``<path>.files``.
    :param dead_letter: the job, or its name, of which a run is started when a run of a job that has none of its own is
        dead; its input is ``{"run_id", "job", "input", "error"}``.
    :param webhook_url: makes the address under which a token of ``ctx.webhook`` is called.
    :param on_state: called with ``"running"``, ``"storage_full"`` or ``"storage_error"`` and a message when that
        changes.
    :raises DuplicateJobError, TypeError: as ``register`` does.
    :raises ValueError: when a number or ``retain_runs`` is out of its range.
    :param install: called with the names of libraries before they are needed for the first time (a browser's leader
        brings them from the site).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        jobs: Iterable[Job] = (),
        *,
        max_concurrent_runs: int = 10,
        lease: float = 30.0,
        durability: Durability = "full",
        preserve_steps: bool = True,
        retain_runs: str | timedelta | None = None,
        max_recoveries: int = 5,
        max_parked: int = 1000,
        exclusive: bool = False,
        migrate: bool = True,
        life: str | None = None,
        ends: Mapping[str, End] = MappingProxyType({}),
        clock: Clock | None = None,
        files: Files | None = None,
        dead_letter: Job | str | None = None,
        webhook_url: Callable[[str], str] | None = None,
        on_state: OnState = lambda state, message: None,
        install: Install = _nothing_to_install,
    ) -> None:
        self.path = os.fspath(path)
        self._registry = Registry(list(jobs))
        if isinstance(dead_letter, Job):
            self._registry.add(dead_letter)
        if max_concurrent_runs < 0 or max_recoveries < 0 or max_parked < 0 or not 0.001 <= lease < float("inf"):
            raise ValueError(
                "An engine needs max_concurrent_runs, max_recoveries and max_parked of at least 0, and a lease of at "
                "least a millisecond, in seconds."
            )
        check_durability(durability)
        self._limits = Limits(
            max_concurrent_runs, max_parked, max_recoveries, int(lease * 1000), exclusive, preserve_steps, dead_letter
        )
        self._webhook_url = webhook_url
        self._durability: Durability = durability
        self._migrate = migrate
        self._retention = None if retain_runs is None else to_timedelta(retain_runs)
        if self._retention is not None and self._retention < timedelta(0):
            raise ValueError(f"retain_runs is a time of at least 0, not {retain_runs!r}.")
        self._clock = clock or SystemClock()
        self._files = files or LocalFiles(f"{self.path}.files")
        self._on_state = on_state
        self._new_context = Context
        self._life = life
        self._ends = ends
        self._install = install
        self._identifiers = IdentifierFactory()
        self._events = Events(self._identity)
        self._store: Store | None = None
        self._purge_timer: TimerHandle | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self, *, claim: bool = True) -> None:
        """Open and migrate the database, take back what a dead engine left, and begin to execute.

        :param claim: without it nothing is executed until ``run_one`` or ``run_until_idle`` is called.
        :raises StorageError: when the database cannot be used; its subclasses say why.
        :raises RuntimeError: when the engine is running already.
        """
        if self._store is not None:
            raise RuntimeError("This engine is running already; make another Engine for another database.")
        store = self._open()
        self._idle = asyncio.Event()  # of the event loop that there is now
        self._stopping = asyncio.Lock()
        store.on_commit = self._on_commit
        store.on_change = self._on_change
        store.journal.is_listening = self._events.is_listening
        self._timeline = Timeline(store, self._clock)
        self._scheduler = Scheduler(store, self._registry, self._clock, self._make, self._events.report)
        self._dispatcher = Dispatcher(
            store,
            self._registry,
            self._clock,
            self._files,
            self._timeline,
            self._events,
            self._scheduler,
            self._limits,
            new_id=self._new_id,
            webhook_url=self._webhook_url,
            on_state=self._on_state,
            on_idle=self._on_idle,
            on_neighbour=self._on_neighbour,
            new_context=self._new_context,
            life=self._life,
            ends=self._ends,
        )
        self._life = None  # another start is another life
        self._endings = Endings(store)
        self._delivery = Delivery(store, self._registry, self._clock, self._new_id, self._make)
        self._store = store
        try:
            if libraries := self._scheduler.libraries():
                await self._install(libraries)
            self._dispatcher.start()
        except BaseException:
            self._store = None
            store.close()
            raise
        self._is_claiming = claim
        if claim:
            self._dispatcher.claim()

    def _open(self) -> Store:
        exclusive = self._limits.exclusive
        return Store(Database(self.path, durability=self._durability, exclusive=exclusive, migrate=self._migrate))

    async def stop(self, drain: bool = True) -> None:
        """Stop claiming, and close the database.

        With ``drain``, the runs that are executing may finish; without, they are given back at once and go on from
        their last committed step with the next engine. Does nothing when the engine is not running.

        :raises RuntimeError: when a job calls it that this engine executes, in its body or in a step.
        """
        store = self._store
        if store is None:
            return
        if self._dispatcher.is_asked_by_job():
            raise RuntimeError(
                "A job cannot stop the engine that executes it: it would wait for its own end. Tell the code that "
                "started the engine to stop it, with an asyncio.Event for example."
            )
        self._dispatcher.claim(0)
        if drain:
            await self._dispatcher.drain()
        async with self._stopping:
            if self._store is store:  # else somebody else was faster
                await self._dispatcher.stop()
                self._close()

    def _close(self) -> None:
        if self._purge_timer is not None:
            self._purge_timer.cancel()
            self._purge_timer = None
        self._timeline.close()
        self._delivery.close()
        self._endings.close()
        store, self._store = self._store, None
        if store is not None:
            store.close()

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop(drain=exception[0] is None)

    async def run_until_idle(self, max_runs: int | None = None) -> int:
        """Execute what can be executed now, at most ``max_runs`` runs, until it has ended or waits; returns how many.

        Runs that wait for a later time are not waited for. For engines started with ``claim=False``.
        """
        self._running_store()
        before = self._dispatcher.claimed
        self._idle.clear()
        dispatcher = self._dispatcher
        dispatcher.claim(float("inf") if max_runs is None else max_runs)
        try:
            if not dispatcher.is_idle:
                await self._idle.wait()
        finally:
            dispatcher.claim(float("inf") if self._is_claiming else 0)
        return dispatcher.claimed - before

    async def run_one(self) -> bool:
        """Execute the run whose turn it is; ``False`` when there is none."""
        return await self.run_until_idle(max_runs=1) > 0

    # --- triggering --------------------------------------------------------------------------------------------------

    def register(self, *jobs: Job) -> None:
        """Add jobs. Registering the same one twice is a no-op.

        :raises DuplicateJobError: when another definition has that name already.
        """
        for item in jobs:
            self._registry.add(item)
        if self._store is not None:
            with self._store.transaction():
                self._dispatcher.claiming.unblock(self._clock.now())

    async def trigger(self, job: Job | str, input: Any = None, **options: Any) -> Run:
        """Make a run of ``job`` for ``input``; it begins as soon as it is its turn.

        The options are those of :class:`Trigger`: ``idempotency_key``, ``concurrency_key``, ``coalesce``, ``labels``,
        ``priority``, ``run_at``, ``deadline``. The run's ``disposition`` is ``"created"``, or ``"idempotent"``,
        ``"coalesced"``, ``"skipped"`` or ``"debounced"`` where an existing run came back. Raises what ``trigger_many``
        raises.
        """
        return (await self.trigger_many([Trigger(job, input, **options)]))[0]

    async def trigger_many(self, triggers: Iterable[Trigger]) -> list[Run]:
        """Make several runs in one transaction: all of them, or none.

        :raises JobNotFound: when no such job is registered.
        :raises InvalidInput, SerializationError: when an input does not fit the job's type, or cannot be stored.
        :raises ConflictError: when a run of the job with that concurrency key is pending.
        :raises RateLimited: when the job's rate limit has no room for another run now.
        :raises ValueError: when a label, a time or a combination of options is wrong.
        """
        store = self._running_store()
        checked = [(trigger, *trigger.check(self._registry)) for trigger in _all_triggers(triggers)]
        if any(job.flow.singleton is not None for _, job, _ in checked):
            self._dispatcher.commits.flush()  # what the runs that may be cancelled have recorded
        with store.transaction():
            runs = self._make_all(store, checked) if len(checked) != 1 else [self._make_one(store, *checked[0])]
            if not store.journal.claims:
                self._dispatcher.claim_in_transaction()
        if any(trigger.run_at or trigger.deadline or job.flow.debounce for trigger, job, _ in checked):
            self._dispatcher.look_at_the_time()
        return runs

    def _make_one(self, store: Store, trigger: Trigger, job: Job, input_text: str) -> Run:
        """Make a run; where it would be claimed next, it is leased at once."""
        now = self._clock.now()
        made = self._make(store, trigger, job, input_text, now, lease=self._dispatcher.lease_at_once(job))
        if made.new is None:
            return store.runs.get(made.run_id, disposition=made.disposition)
        return as_made(made.new, now)

    def _make_all(self, store: Store, checked: list[tuple[Trigger, Job, str]]) -> list[Run]:
        now = self._clock.now()
        made = [self._make(store, *each, now) for each in checked]
        return [store.runs.get(each.run_id, disposition=each.disposition) for each in made]

    def _make(
        self,
        store: Store,
        trigger: Trigger,
        job: Job,
        input_text: str,
        now: int,
        gates: tuple[Gate, ...] = (),
        lease: Lease | None = None,
    ) -> Admitted:
        """Insert the run, with further gates, or find the one that stands for it.

        :param lease: as ``runs.insert`` has it.
        """
        if trigger.idempotency_key is not None:
            found = store.runs.find_by_idempotency_key(job.name, trigger.idempotency_key)
            if found is not None:
                return Admitted(found, "idempotent")
        if trigger.concurrency_key is not None:
            wanted = ("pending", "leased", "waiting") if trigger.coalesce == "active" else ("pending",)
            found = store.runs.find_by_concurrency_key(job.name, trigger.concurrency_key, wanted)
            if found is not None and trigger.coalesce is None:
                raise ConflictError(job.name, trigger.concurrency_key, found)
            if found is not None:
                skipped = {"skipped_input": trigger.input, "skipped_labels": trigger.labels}
                store.journal.tell("run:coalesced", found, now, **skipped)
                return Admitted(found, "coalesced")
        run = trigger.new_run(self._new_id(), job, input_text, gates)
        return Admission(store, job, run, now, lease).admit()

    async def wait_for_run(
        self,
        run_id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogFrame], None] | None = None,
    ) -> Run:
        """Wait until a run has ended, and return it; of one that has continued as new, the last one.

        :param timeout: seconds to wait at most; the run itself goes on.
        :param on_progress, on_log: called with what the run tells meanwhile, from its beginning.
        :raises TimeoutError: when it has not ended by then.
        :raises RunNotFound: when there is no such run.
        """
        if timeout is None:
            return await self._last_of(run_id, on_progress, on_log)
        async with asyncio.timeout(timeout):
            return await self._last_of(run_id, on_progress, on_log)

    async def _last_of(
        self, run_id: str, on_progress: Callable[[Progress], None] | None, on_log: Callable[[LogFrame], None] | None
    ) -> Run:
        """A run when it has ended, or the last one as which it has gone on."""
        while True:
            if on_progress is None and on_log is None:
                self._running_store()
                await self._endings.wait(run_id)
            else:
                async with aclosing(self.watch_batches(run_id)) as batches:  # type: ignore[type-var]
                    async for batch in batches:
                        _report(batch, on_progress, on_log)
            run = await self.get_run(run_id)
            if run.continued_as is not None:
                run_id = run.continued_as
            elif run.is_terminal:
                return run

    async def trigger_and_wait(
        self,
        job: Job | str,
        input: Any = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogFrame], None] | None = None,
        **options: Any,
    ) -> Run:
        """``trigger``, then ``wait_for_run``; raises what these raise."""
        run = await self.trigger(job, input, **options)
        return await self.wait_for_run(run.id, timeout=timeout, on_progress=on_progress, on_log=on_log)

    # --- events ------------------------------------------------------------------------------------------------------

    def on(self, type: str, listener: Listener) -> None:
        """Call ``listener`` with every event of a type, right after the commit that made it so; see :class:`Event`.

        :raises ValueError: when there is no such type.
        """
        self._events.add(type, listener)
        if self._store is not None:
            self._store.journal.is_listening = True

    def off(self, type: str, listener: Listener) -> None:
        """Call a listener no longer."""
        self._events.remove(type, listener)
        if self._store is not None:
            self._store.journal.is_listening = self._events.is_listening

    def on_error(self, handler: ErrorHandler) -> None:
        """Call ``handler`` with the error and the event when a listener fails; by default it is logged."""
        self._events.on_error = handler

    # --- inner workings ----------------------------------------------------------------------------------------------

    def _identity(self, run_id: str) -> tuple[str, dict[str, str]]:
        return self._running_store().runs.identity(run_id)

    def _on_commit(self, frames: list[StoredFrame], facts: list[Fact]) -> None:
        """Tell of what was committed; nothing that goes wrong here may look like a failed commit."""
        try:
            self._timeline.publish(frames)
            ended = {frame.run_id for frame in frames if ends_run(frame)}
            if ended:
                self._delivery.look_again(ended)
                self._endings.look_again(ended)
            if facts:
                self._events.publish(facts)
        except Exception:
            logging.getLogger("durable_web").exception("Telling of what was committed failed")

    def _on_change(self, run_ids: set[str]) -> None:
        """Let runs go on after a commit; what goes wrong here may not look like a failed commit either."""
        try:
            self._dispatcher.look_at(run_ids)
            self._delivery.look_again(run_ids)
        except StorageError as trouble:
            self._events.report(trouble, "looking at runs that have changed", self._clock.now())

    def _on_neighbour(self) -> None:
        self._delivery.look_again()
        self._endings.look_again()

    def _new_id(self) -> str:
        return self._identifiers.new(self._clock.now())

    def _on_idle(self) -> None:
        self._idle.set()
        if self._retention is not None and self._purge_timer is None and self._store is not None:
            self._purge_timer = self._clock.call_later(PURGE_SECONDS, self._purge_when_idle)

    def _purge_when_idle(self) -> None:
        self._purge_timer = None
        if self._retention is None or not self._dispatcher.is_idle:
            return
        try:
            deleted = self._purge(self._clock.now() - round(self._retention.total_seconds() * 1000), PURGE_BATCH)
        except StorageError as trouble:
            self._events.report(trouble, "purging runs", self._clock.now())
            deleted = 0
        delay = 0.0 if deleted == PURGE_BATCH else PURGE_SECONDS
        self._purge_timer = self._clock.call_later(delay, self._purge_when_idle)


def _all_triggers(triggers: Iterable[Trigger]) -> Iterator[Trigger]:
    """:raises TypeError: when one is something else."""
    for item in triggers:
        if not isinstance(item, Trigger):
            raise TypeError(f"trigger_many takes Trigger objects, Trigger(job, input, ...), not {item!r}.")
        yield item


def _report(
    batch: list[StoredFrame], on_progress: Callable[[Progress], None] | None, on_log: Callable[[LogFrame], None] | None
) -> None:
    """Call whoever wants to know with the progress and the log lines of a batch; only these frames are read."""
    wanted = {"progress": on_progress, "log": on_log}
    for frame in (stored.to_frame() for stored in batch if wanted.get(stored.kind) is not None):
        if isinstance(frame, ProgressFrame) and on_progress is not None:
            on_progress(Progress(frame.current, frame.total, frame.message))
        elif isinstance(frame, LogFrame) and on_log is not None:
            on_log(frame)
