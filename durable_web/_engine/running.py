"""The parts of an engine that exist only while it runs: one object, made by ``Engine.start``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from threading import get_ident

from .._clock import Clock, TimerHandle
from .._context import Context
from .._errors import ConflictError, StorageError
from .._execution.run import Execution
from .._files import Files
from .._flow_control import Gate
from .._identifiers import IdentifierFactory
from .._jobs import Job, Registry
from .._model import Run, StoredFrame
from .._notifications import Events
from .._store import Database, Durability, Fact, Lease, Store, as_made
from .._timeline import Timeline, ends_run
from .._triggers import Trigger
from .admission import Admission, Admitted
from .delivery import Delivery
from .dispatcher import Dispatcher, Limits
from .endings import Endings
from .last_step import End
from .scheduler import Scheduler
from .trouble import OnState

PURGE_SECONDS = 60.0
PURGE_BATCH = 100

Install = Callable[[list[str]], Awaitable[None]]


@dataclass
class Settings:
    """The arguments of ``Engine``, which describes them; they are kept from one start to the next.

    Attributes:
    ``new_context``: makes the context of an execution; tests replace it.
    """

    path: str
    durability: Durability
    migrate: bool
    limits: Limits
    retention: timedelta | None
    clock: Clock
    files: Files
    webhook_url: Callable[[str], str] | None
    on_state: OnState
    install: Install
    ends: Mapping[str, End]
    new_context: Callable[[Execution, Files], Context] = Context
    identifiers: IdentifierFactory = field(default_factory=IdentifierFactory)

    def open_store(self) -> Store:
        """Open and migrate the database.

        :raises StorageError: when it cannot be used; its subclasses say why.
        """
        database = Database(
            self.path, durability=self.durability, exclusive=self.limits.exclusive, migrate=self.migrate
        )
        return Store(database)


class RunningEngine:
    """An engine from ``start`` to ``stop``.

    :param life: the id under which its runs are leased; made up if it is ``None``.
    :raises StorageError: when the database cannot be used.
    """

    def __init__(self, settings: Settings, registry: Registry, events: Events, life: str | None) -> None:
        self.settings = settings
        self.registry = registry
        self.clock = settings.clock
        self.events = events
        self.store = store = settings.open_store()
        self.thread = get_ident()
        """The thread of its event loop: the database belongs to it."""
        self._idle = asyncio.Event()
        self._stopping = asyncio.Lock()
        self._is_claiming = False
        self._is_closed = False
        self._purge_timer: TimerHandle | None = None
        store.on_commit = self._on_commit
        store.on_change = self._on_change
        store.journal.is_listening = events.is_listening
        self.timeline = Timeline(store, self.clock)
        self.scheduler = Scheduler(store, registry, self.clock, self.make, events.report)
        self.dispatcher = Dispatcher(
            store,
            registry,
            self.clock,
            settings.files,
            self.timeline,
            events,
            self.scheduler,
            settings.limits,
            new_id=self._new_id,
            webhook_url=settings.webhook_url,
            on_state=settings.on_state,
            on_idle=self._on_idle,
            on_neighbour=self._on_neighbour,
            new_context=settings.new_context,
            life=life,
            ends=settings.ends,
        )
        self.endings = Endings(store)
        self.delivery = Delivery(store, registry, self.clock, self._new_id, self.make)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self, *, claim: bool) -> None:
        """Take back the runs of a dead engine and, with ``claim``, begin to execute."""
        if libraries := self.scheduler.libraries():
            await self.settings.install(libraries)
        self.dispatcher.start()
        self._is_claiming = claim
        if claim:
            self.dispatcher.claim()

    async def stop(self, drain: bool) -> bool:
        """Stop claiming, let the runs that are executing finish, or not, and close; ``False`` if it was closed before.

        :raises RuntimeError: when a job calls it that this engine executes.
        """
        if self.dispatcher.is_asked_by_job():
            raise RuntimeError(
                "A job cannot stop the engine that executes it: it would wait for its own end. Let the code that "
                "started the engine stop it: set an asyncio.Event that this code awaits, for example."
            )
        self.dispatcher.claim(0)
        if drain:
            await self.dispatcher.drain()
        async with self._stopping:
            if self._is_closed:
                return False
            await self.dispatcher.stop()
            self.close()
            return True

    def close(self) -> None:
        """Release every waiter, and close the database."""
        self._end_waits()
        self.store.close()

    def leave(self) -> None:
        """End the engine as the death of its process would: nothing more is written, and no lease is released."""
        self.store.close()
        self.dispatcher.leave()
        self._end_waits()

    def _end_waits(self) -> None:
        self._is_closed = True
        if self._purge_timer is not None:
            self._purge_timer.cancel()
            self._purge_timer = None
        self.timeline.close()
        self.delivery.close()
        self.endings.close()

    async def run_until_idle(self, max_runs: float) -> int:
        """Execute what can be executed now, at most ``max_runs`` runs; returns how many there were."""
        dispatcher = self.dispatcher
        before = dispatcher.claimed
        self._idle.clear()
        dispatcher.claim(max_runs)
        try:
            if not dispatcher.is_idle:
                await self._idle.wait()
        finally:
            dispatcher.claim(float("inf") if self._is_claiming else 0)
        return dispatcher.claimed - before

    # --- making runs -------------------------------------------------------------------------------------------------

    def trigger(self, triggers: Iterable[Trigger]) -> list[Run]:
        """Make runs in one transaction: all of them, or none. Raises what ``Engine.trigger_many`` raises."""
        store = self.store
        checked = [(trigger, *trigger.check(self.registry)) for trigger in triggers]
        if any(job.flow.singleton is not None for _, job, _ in checked):
            self.dispatcher.commits.flush()  # a trigger may cancel runs: their deferred writes come first
        with store.transaction():
            runs = self.make_all(checked) if len(checked) != 1 else [self._make_one(*checked[0])]
            if not store.journal.claims:
                self.dispatcher.claim_in_transaction()
        if any(trigger.run_at or trigger.deadline or job.flow.debounce for trigger, job, _ in checked):
            self.dispatcher.look_at_the_time()
        return runs

    def _make_one(self, trigger: Trigger, job: Job, input_text: str) -> Run:
        """Make a run, and lease it at once if it would be claimed next."""
        now = self.clock.now()
        made = self.make(self.store, trigger, job, input_text, now, lease=self.dispatcher.lease_at_once(job))
        if made.new is None:
            return self.store.runs.get(made.run_id, disposition=made.disposition)
        return as_made(made.new, now)

    def make_all(self, checked: list[tuple[Trigger, Job, str]]) -> list[Run]:
        """Inside a transaction, make several runs."""
        now = self.clock.now()
        made = [self.make(self.store, *each, now) for each in checked]
        return [self.store.runs.get(each.run_id, disposition=each.disposition) for each in made]

    def make(
        self,
        store: Store,
        trigger: Trigger,
        job: Job,
        input_text: str,
        now: int,
        gates: tuple[Gate, ...] = (),
        lease: Lease | None = None,
    ) -> Admitted:
        """Inside a transaction, insert a run, with further gates, or find the existing run that answers the trigger.

        :param lease: as in ``runs.insert``.
        """
        if trigger.idempotency_key is not None:
            found = store.runs.find_by_idempotency_key(job.name, trigger.idempotency_key)
            if found is not None:
                return Admitted(found, "idempotent")
        if trigger.concurrency_key is not None:
            wanted = ("pending", "running", "waiting") if trigger.coalesce == "active" else ("pending",)
            found = store.runs.find_by_concurrency_key(job.name, trigger.concurrency_key, wanted)
            if found is not None and trigger.coalesce is None:
                raise ConflictError(job.name, trigger.concurrency_key, found)
            if found is not None:
                skipped = {"skipped_input": trigger.input, "skipped_labels": trigger.labels}
                store.journal.tell("run:coalesced", found, now, **skipped)
                return Admitted(found, "coalesced")
        run = trigger.new_run(self._new_id(), job, input_text, gates)
        return Admission(store, job, run, now, lease).admit()

    def _new_id(self) -> str:
        return self.settings.identifiers.new(self.clock.now())

    # --- purging -----------------------------------------------------------------------------------------------------

    def purge(self, moment: int, limit: int) -> int:
        """Delete at most ``limit`` runs that ended before a time, the oldest first; returns how many.

        :param moment: milliseconds since 1970-01-01 UTC.
        """
        store = self.store
        with store.transaction():
            ended = store.runs.ended_before(moment, limit)
            for run_id in ended:
                store.runs.delete(run_id, self.clock.now())
        return len(ended)

    def _on_idle(self) -> None:
        self._idle.set()
        if self.settings.retention is not None and self._purge_timer is None and not self._is_closed:
            self._purge_timer = self.clock.call_later(PURGE_SECONDS, self._purge_when_idle)

    def _purge_when_idle(self) -> None:
        self._purge_timer = None
        retention = self.settings.retention
        if retention is None or not self.dispatcher.is_idle:
            return
        try:
            deleted = self.purge(self.clock.now() - round(retention.total_seconds() * 1000), PURGE_BATCH)
        except StorageError as trouble:
            self.events.report(trouble, "purging runs", self.clock.now())
            deleted = 0
        delay = 0.0 if deleted == PURGE_BATCH else PURGE_SECONDS
        self._purge_timer = self.clock.call_later(delay, self._purge_when_idle)

    # --- after a commit ----------------------------------------------------------------------------------------------

    def _on_commit(self, frames: list[StoredFrame], facts: list[Fact]) -> None:
        """Publish committed frames and events. Errors are logged, never raised: the commit has already succeeded."""
        try:
            self.timeline.publish(frames)
            ended = {frame.run_id for frame in frames if ends_run(frame)}
            if ended:
                self.delivery.look_again(ended)
                self.endings.look_again(ended)
            if facts:
                self.events.publish(facts)
        except Exception:
            logging.getLogger("durable_web").exception("Publishing what was committed failed")

    def _on_change(self, run_ids: set[str]) -> None:
        """Refresh runs after a commit. Errors are reported, never raised: the commit has already succeeded."""
        try:
            self.dispatcher.look_at(run_ids)
            self.delivery.look_again(run_ids)
        except StorageError as trouble:
            self.events.report(trouble, "refreshing runs that have changed", self.clock.now())

    def _on_neighbour(self) -> None:
        self.delivery.look_again()
        self.endings.look_again()
