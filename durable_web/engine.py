"""The engine: executes runs, and answers questions about them.

>>> async with Engine("jobs.sqlite3", jobs=[greet]) as engine:
...     run = await engine.trigger("greet", "Ada")
...     async for frame in engine.watch(run.id):
...         print(frame.kind, frame)
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

from .admission import Admission
from .clock import Clock, SystemClock, TimerHandle
from .context import Context
from .delivery import Delivery
from .dispatcher import Dispatcher, Limits, OnState
from .durations import Duration, to_timedelta
from .errors import ConflictError, DurableWebError, RunNotActive, StorageError
from .events import ErrorHandler, Events, Listener
from .files import Files, LocalFiles
from .flow import Gate
from .identifiers import IdentifierFactory
from .job import Job, Registry
from .model import (
    Frame,
    LogFrame,
    Progress,
    ProgressFrame,
    Run,
    RunFilter,
    RunStatus,
    Schedule,
    Step,
    StoredFrame,
    to_milliseconds,
)
from .schedules import Scheduler, checked_schedule, with_next_due
from .store import Database, Durability, Fact, Store
from .timeline import Selection, Timeline, at_least, ends_run
from .triggers import Trigger

PURGE_SECONDS = 60.0
PURGE_BATCH = 100
BULK_BATCH = 500
COUNTABLE = ("status", "job")

Install = Callable[[list[str]], Awaitable[None]]


async def _nothing_to_install(libraries: list[str]) -> None:
    """On a desk, whoever installs durable-web installs what it needs."""


class Engine:
    """Durable jobs over one SQLite file.

    :param path: the database file, made when it is not there; its folder must exist.
    :param jobs: the jobs that this engine can execute.
    :param max_concurrent_runs: how many runs may execute at a time; 0 for an engine that only triggers and watches.
    :param lease: seconds for which a claim on a run holds without being renewed.
    :param durability: ``"full"`` survives power loss; ``"normal"`` survives the death of any process, and is faster.
    :param preserve_steps: keep the steps of completed runs; without, they are deleted when their run completes.
    :param retain_runs: delete runs that ended longer ago than this, when the engine is idle: a ``timedelta``, or a text
        such as ``"30d"`` (s, m, h, d or w). By default runs are kept for ever.
    :param max_recoveries: a run whose engine died more often than this without completing another step is dead.
    :param max_parked: how many waiting runs stay in memory; those beyond it are replayed when they wake.
    :param exclusive: no other engine uses the file at the same time (a browser's leader); what an engine that died has
        left behind is then taken back at once instead of when its lease runs out.
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
        if max_concurrent_runs < 0 or lease <= 0 or max_recoveries < 0:
            raise ValueError("An engine needs max_concurrent_runs >= 0, lease > 0 and max_recoveries >= 0.")
        self._limits = Limits(
            max_concurrent_runs, max_parked, max_recoveries, int(lease * 1000), exclusive, preserve_steps, dead_letter
        )
        self._webhook_url = webhook_url
        self._durability: Durability = durability
        self._retention = None if retain_runs is None else to_timedelta(retain_runs)
        self._clock = clock or SystemClock()
        self._files = files or LocalFiles(f"{self.path}.files")
        self._on_state = on_state
        self._new_context = Context
        self._install = install
        self._identifiers = IdentifierFactory()
        self._events = Events(self._identity)
        self._store: Store | None = None
        self._idle = asyncio.Event()
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
        )
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
        return Store(Database(self.path, durability=self._durability, exclusive=self._limits.exclusive))

    async def stop(self, drain: bool = True) -> None:
        """Stop claiming, and close the database.

        With ``drain``, the runs that are executing may finish; without, they are given back at once and go on from
        their last committed step with the next engine. Does nothing when the engine is not running.
        """
        if self._store is None:
            return
        self._dispatcher.claim(0)
        if drain:
            await self._dispatcher.drain()
        await self._dispatcher.stop()
        self._close()

    def _close(self) -> None:
        if self._purge_timer is not None:
            self._purge_timer.cancel()
            self._purge_timer = None
        self._timeline.close()
        self._delivery.close()
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
        self._dispatcher.claim(float("inf") if max_runs is None else max_runs)
        if not self._dispatcher.is_idle:
            await self._idle.wait()
        self._dispatcher.claim(float("inf") if self._is_claiming else 0)
        return self._dispatcher.claimed - before

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
                self._dispatcher.unblock()

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
        checked = [(trigger, *trigger.check(self._registry)) for trigger in triggers]
        if any(job.flow.singleton is not None for _, job, _ in checked):
            self._dispatcher.commits.flush()  # what the runs that may be cancelled have recorded
        with store.transaction():
            runs = self._make_all(store, checked)
        if any(trigger.run_at or trigger.deadline or job.flow.debounce for trigger, job, _ in checked):
            self._dispatcher.look_at_the_time()
        self._dispatcher.fill_slots()
        return runs

    def _make_all(self, store: Store, checked: list[tuple[Trigger, Job, str]]) -> list[Run]:
        now = self._clock.now()
        made = [self._make(store, *each, now) for each in checked]
        return [dataclasses.replace(store.runs.get(run_id), disposition=how) for run_id, how in made]

    def _make(
        self, store: Store, trigger: Trigger, job: Job, input_text: str, now: int, gates: tuple[Gate, ...] = ()
    ) -> tuple[str, str]:
        """Insert the run, with further gates, or find the one that stands for it: its id and the disposition."""
        if trigger.idempotency_key is not None:
            found = store.runs.find_by_idempotency_key(job.name, trigger.idempotency_key)
            if found is not None:
                return found, "idempotent"
        if trigger.concurrency_key is not None:
            wanted = ("pending", "leased", "waiting") if trigger.coalesce == "active" else ("pending",)
            found = store.runs.find_by_concurrency_key(job.name, trigger.concurrency_key, wanted)
            if found is not None and trigger.coalesce is None:
                raise ConflictError(job.name, trigger.concurrency_key, found)
            if found is not None:
                skipped = {"skipped_input": trigger.input, "skipped_labels": trigger.labels}
                store.journal.tell("run:coalesced", found, now, **skipped)
                return found, "coalesced"
        run = trigger.new_run(self._new_id(), job, input_text)
        run = dataclasses.replace(run, gates=run.gates + gates)
        return Admission(store, trigger, job, run, now, self._cancel_for_another).admit()

    def _cancel_for_another(self, run_id: str) -> None:
        """Cancel an active run in the open transaction."""
        store = self._running_store()
        store.family.cancel(run_id, self._clock.now())

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
        async with asyncio.timeout(timeout):
            while True:
                async for frame in self.watch(run_id):
                    if isinstance(frame, ProgressFrame) and on_progress is not None:
                        on_progress(Progress(frame.current, frame.total, frame.message))
                    elif isinstance(frame, LogFrame) and on_log is not None:
                        on_log(frame)
                run = await self.get_run(run_id)
                if run.continued_as is None:
                    return run
                run_id = run.continued_as

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

    # --- reading -----------------------------------------------------------------------------------------------------

    async def get_run(self, run_id: str) -> Run:
        """The run of that id.

        :raises RunNotFound: when there is none.
        """
        return self._running_store().runs.get(run_id)

    async def list_runs(
        self, *, order: str = "newest", limit: int = 50, cursor: str | None = None, **filters: Any
    ) -> list[Run]:
        """A page of runs; the filters are those of :class:`RunFilter`.

        :param order: ``"newest"`` or ``"oldest"`` first; the order is stable.
        :param limit: at most so many, from 1 to 1,000.
        :param cursor: the id of the last run of the page before this one.
        :raises ValueError: when a status, the order or the limit is none.
        """
        if not 1 <= limit <= 1000:
            raise ValueError(f"limit is a number from 1 to 1000, not {limit!r}")
        if order not in ("newest", "oldest"):
            raise ValueError(f'order is "newest" or "oldest", not {order!r}')
        wanted = RunFilter(**filters)
        return self._running_store().runs.list(wanted, oldest_first=order == "oldest", after=cursor, limit=limit)

    async def count_runs(self, by: str = "status") -> dict[str, int]:
        """How many runs there are for each ``"status"`` or ``"job"``.

        :raises ValueError: when ``by`` is something else.
        """
        if by not in COUNTABLE:
            raise ValueError(f"runs are counted by one of {', '.join(COUNTABLE)}, not by {by!r}")
        return self._running_store().runs.count(by)

    async def get_steps(self, run_id: str) -> list[Step]:
        """The steps of a run, in the order of first recording, with their failed attempts.

        :raises RunNotFound: when there is no such run.
        """
        store = self._running_store()
        store.runs.get(run_id)
        return store.steps.get(run_id)

    async def get_event(self, run_id: str, key: str, default: Any = None) -> Any:
        """The value that a run has published last under ``key`` (``ctx.set_event``), or ``default``.

        :raises RunNotFound: when there is no such run.
        """
        store = self._running_store()
        store.runs.get(run_id)
        return store.steps.get_value(run_id, key, default)

    async def watch(self, run_id: str, from_seq: int = 0) -> AsyncIterator[Frame]:
        """Every frame of a run strictly after ``from_seq``: first the history, then what commits; ends with the run.

        :raises RunNotFound: when there is no such run.
        """
        async for frame in _frames(self.watch_batches(run_id, from_seq)):
            yield frame

    def watch_batches(self, run_id: str, from_seq: int = 0) -> AsyncIterator[list[StoredFrame]]:
        """What ``watch`` gives, in batches of stored frames; for forwarding to another process or a page."""
        self._running_store()
        return self._timeline.watch(run_id, from_seq)

    def watch_all(
        self,
        from_id: int | None = 0,
        *,
        jobs: str | Iterable[str] | None = None,
        labels: dict[str, str] | None = None,
        kinds: str | Iterable[str] | None = None,
    ) -> AsyncIterator[Frame]:
        """Every run's frames in commit order: first the history, then what commits; ends when the engine stops.

        Of a run that was deleted the history has one frame, of the kind ``run_deleted``, for 30 days.

        :param from_id: the ``id`` of the last frame that is known already; ``None`` for what is committed from now on.
        :param jobs: only frames of runs of these jobs: a name, or several.
        :param labels: only frames of runs that have these labels, all of them.
        :param kinds: only frames of these kinds: ``"run_status"``, or several.
        :raises ValueError: when there is no such kind.
        """
        return _frames(self.watch_all_batches(from_id, jobs=jobs, labels=labels, kinds=kinds))

    def watch_all_batches(
        self,
        from_id: int | None = 0,
        *,
        jobs: str | Iterable[str] | None = None,
        labels: dict[str, str] | None = None,
        kinds: str | Iterable[str] | None = None,
    ) -> AsyncIterator[list[StoredFrame]]:
        """What ``watch_all`` gives, in batches of stored frames; for forwarding to another process or a page."""
        self._running_store()
        return self._timeline.watch_all(from_id, Selection.of(jobs, labels, kinds))

    def newest_frame_id(self) -> int:
        """The ``id`` of the frame that was committed last, after which all is new; 0 before any."""
        return self._running_store().newest_frame_id()

    async def logs(self, run_id: str, from_seq: int = 0, limit: int = 100, level: str | None = None) -> list[LogFrame]:
        """A page of the lines that a run has written, oldest first.

        :param from_seq: the ``seq`` of the last line of the page before; 0 for the first page.
        :param limit: at most so many, from 1 to 1,000; fewer come when there are no more.
        :param level: only lines at least so severe: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
        :raises RunNotFound: when there is no such run.
        :raises ValueError: when the limit or the level is none.
        """
        if not 1 <= limit <= 1000:
            raise ValueError(f"limit is a number from 1 to 1000, not {limit!r}")
        self._running_store()
        found = await self._timeline.logs(run_id, from_seq, limit, at_least(level))
        return [frame.to_frame() for frame in found]  # type: ignore[misc]

    # --- changing ----------------------------------------------------------------------------------------------------

    async def cancel(self, run_id: str, compensate: bool = False) -> Run:
        """Cancel an active run and the runs it has started. The status is committed first; then the job gets
        ``asyncio.CancelledError``.

        :param compensate: undo the completed steps that have a compensation; the run is ``cancelling`` until that is
            done. This returns at once.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        store = self._running_store()
        self._dispatcher.commits.flush()
        with store.transaction():
            store.family.cancel(run_id, self._clock.now(), compensate=compensate)
        return store.runs.get(run_id)

    async def retry(self, run_id: str) -> Run:
        """Let a run that failed, died or was cancelled go on: completed steps are kept, the others are called again.

        So are those that were undone by their compensation. Attempts are counted anew; a deadline is forgotten, and a
        job's timeout counts from now. The run goes on under the version of the job with which it began.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active or has completed.
        :raises ConflictError: when another run of the job with its concurrency key is pending.
        """
        return self._reopen(run_id, None)

    async def retry_with_input(self, run_id: str, input: Any) -> Run:
        """``retry`` on another input; completed steps are kept all the same.

        :raises InvalidInput, SerializationError: when the input does not fit the job's type, or cannot be stored.
        """
        run = await self.get_run(run_id)
        return self._reopen(run_id, Trigger(run.job, input).check(self._registry)[1])

    def _reopen(self, run_id: str, input_text: str | None) -> Run:
        store = self._running_store()
        with store.transaction():
            store.runs.reopen(run_id, self._clock.now(), input_text)
            run = store.runs.get(run_id)
            if run.concurrency_key is not None:
                other = store.runs.find_by_concurrency_key(run.job, run.concurrency_key, ["pending"], besides=run_id)
                if other is not None:
                    raise ConflictError(run.job, run.concurrency_key, other)
            store.steps.forget_unsettled(run_id)
        self._dispatcher.fill_slots()
        return store.runs.get(run_id)

    async def retrigger(self, run_id: str) -> Run:
        """A new run with the same job, input, labels, priority and concurrency key; raises what ``trigger`` raises."""
        run = await self.get_run(run_id)
        return await self.trigger(
            run.job, run.input, labels=run.labels, priority=run.priority, concurrency_key=run.concurrency_key
        )

    async def fork(self, run_id: str, from_step: str) -> Run:
        """A new run that has the completed steps which were recorded before ``from_step``, and goes on from there.

        It begins under the latest version of the job. What it has taken over it does not undo, should it fail.

        :raises RunNotFound: when there is no such run.
        :raises ValueError: when the run has recorded no step of that name.
        """
        store = self._running_store()
        run = store.runs.get(run_id)
        record = store.steps.load(run_id).get(from_step)
        if record is None:
            raise ValueError(f"Run {run_id} has recorded no step {from_step!r}; get_steps(run_id) names those it has.")
        trigger = Trigger(run.job, run.input, labels=run.labels, priority=run.priority)
        now = self._clock.now()
        with store.transaction():
            fork_id, _ = self._make(store, trigger, *trigger.check(self._registry), now)
            store.steps.copy_before(run_id, fork_id, record.position)
        self._dispatcher.fill_slots()
        return store.runs.get(fork_id)

    async def delete_run(self, run_id: str) -> None:
        """Delete a run that has ended, with its steps, frames, labels and values.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active.
        """
        store = self._running_store()
        with store.transaction():
            store.runs.delete(run_id, self._clock.now())

    async def purge_runs(self, older_than: datetime, limit: int = 500) -> int:
        """Delete runs that ended before ``older_than``, the oldest first, at most ``limit``; returns how many."""
        return self._purge(to_milliseconds(older_than) or 0, limit)

    def _purge(self, moment: int, limit: int) -> int:
        store = self._running_store()
        with store.transaction():
            ended = store.runs.ended_before(moment, limit)
            for run_id in ended:
                store.runs.delete(run_id, self._clock.now())
        return len(ended)

    async def cancel_runs(self, **filters: Any) -> list[str]:
        """Cancel the active runs that pass a filter (see :class:`RunFilter`), and return their ids."""
        return await self._for_each(self.cancel, filters, lambda run: run.is_active)

    async def retry_runs(self, **filters: Any) -> list[str]:
        """Retry the failed, cancelled and dead runs that pass a filter, and return their ids."""
        return await self._for_each(
            self.retry, filters, lambda run: run.is_terminal and run.status != RunStatus.COMPLETED
        )

    async def delete_runs(self, **filters: Any) -> list[str]:
        """Delete the runs that have ended and pass a filter, and return their ids."""
        return await self._for_each(self.delete_run, filters, lambda run: run.is_terminal)

    async def _for_each(
        self, act: Callable[[str], Any], filters: dict[str, Any], applies: Callable[[Run], bool]
    ) -> list[str]:
        done: list[str] = []
        cursor = None
        while page := await self.list_runs(**filters, limit=BULK_BATCH, cursor=cursor):
            cursor = page[-1].id
            for run in page:
                if applies(run):
                    await act(run.id)
                    done.append(run.id)
        return done

    # --- from outside ------------------------------------------------------------------------------------------------

    async def signal(self, run_id: str, name: str, payload: Any = None, signal_id: str | None = None) -> bool:
        """Send a signal to a run; it is kept until ``ctx.wait_for_signal`` takes it, first in, first out.

        :param signal_id: a second signal of that id is not delivered.
        :returns: ``False`` when one of that id was delivered before.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        :raises InvalidInput, SerializationError: when the payload does not fit its declared type, or cannot be stored.
        """
        with self._running_store().transaction():
            return self._delivery.signal(run_id, name, payload, signal_id)

    async def trigger_with_signal(
        self, job: Job | str, input: Any, name: str, payload: Any = None, signal_id: str | None = None, **options: Any
    ) -> Run:
        """``trigger`` a run, or find the one that stands for it, and send it a signal, in one transaction.

        Raises what these two raise; then neither has happened.
        """
        store = self._running_store()
        trigger = Trigger(job, input, **options)
        checked = (trigger, *trigger.check(self._registry))
        with store.transaction():
            (run,) = self._make_all(store, [checked])
            self._delivery.signal(run.id, name, payload, signal_id)
        self._dispatcher.look_at_the_time()
        return run

    async def publish(self, topic: str, payload: Any = None, event_id: str | None = None) -> list[str]:
        """Let an event reach every run that waits for it (``ctx.wait_for_event``), and start the jobs with
        ``on_event=topic``, in one transaction; returns the ids of these runs.

        :param event_id: a second event of that id reaches nobody.
        :raises InvalidInput, SerializationError: when the payload does not fit the input of a job that it starts, or
            cannot be stored.
        :raises RateLimited: when the rate limit of a job that it starts has no room. The event has reached nobody then.
        """
        with self._running_store().transaction():
            reached = self._delivery.publish(topic, payload, event_id)
        self._dispatcher.look_at_the_time()
        return reached

    async def deliver_webhook(self, token: str, body: Any = None) -> bool:
        """Deliver what was sent to a webhook of ``ctx.webhook``; ``False`` when it was delivered before.

        :raises WebhookNotFound: when the token is wrong, or its run has ended.
        :raises SerializationError: when the body cannot be stored.
        """
        with self._running_store().transaction():
            return self._delivery.webhook(token, body)

    async def update(
        self,
        run_id: str,
        name: str,
        argument: Any = None,
        *,
        update_id: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send an update to a run, and wait for its answer (``ctx.on_update``, ``Update.answer``).

        :param update_id: a second update of that id is not sent; its answer is that of the first.
        :param timeout: seconds to wait for the answer; the update itself stays sent.
        :raises UpdateRejected: when the run does not accept it, or ends without answering.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        :raises TimeoutError: when there is no answer by then.
        """
        with self._running_store().transaction():
            message_id = self._delivery.update(run_id, name, argument, update_id)
        async with asyncio.timeout(timeout):
            return await self._delivery.answer(run_id, name, message_id)

    async def pause(self, run_id: str) -> Run:
        """Let a run start no further step until it is resumed; the step under way is finished.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended or is being compensated.
        """
        store = self._running_store()
        with store.transaction():
            store.runs.pause(run_id, self._clock.now())
        return store.runs.get(run_id)

    async def resume(self, run_id: str) -> Run:
        """Let a run go on that is paused, or stands at a breakpoint; does nothing to another one.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        store = self._running_store()
        with store.transaction():
            run = store.runs.get(run_id)
            if not run.is_active:
                raise RunNotActive(run_id, run.status.value, "resumed")
            store.runs.unpause(run_id, self._clock.now())
            store.waits.resume_breakpoints(run_id, self._clock.now())
        self._dispatcher.look_at_the_time()
        return store.runs.get(run_id)

    # --- schedules ---------------------------------------------------------------------------------------------------

    async def schedule(
        self,
        name: str,
        job: Job | str,
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | None = None,
        input: Any = None,
        overlap: str = "skip",
        catch_up: str = "none",
        jitter: Duration | None = None,
        labels: dict[str, str] | None = None,
    ) -> Schedule:
        """Trigger a job again and again, from now on, also after restarts; each due time at most once.

        The same name again changes the schedule; it keeps its next due time unless ``cron``, ``every`` or ``timezone``
        is another, and stays paused when it is. Runs carry the labels ``durable/schedule``, the name, and
        ``durable/scheduled-at``, the due time in ISO format.

        :param cron: five fields, as ``"30 7 * * MON-FRI"``. How hours that are missing or come twice are treated, see
            :mod:`durable_web.recurrence`.
        :param every: instead, a ``timedelta``, a number of seconds or a text such as ``"15m"``, counted from now.
        :param timezone: of ``cron``: a name such as ``"Europe/Berlin"``; by default UTC.
        :param overlap: when a run of this schedule is still active: ``"skip"`` passes the due time over, ``"queue"``
            lets its run begin when the earlier ones have ended, all of them in order, ``"allow"`` lets it begin.
        :param catch_up: what becomes of due times at which no engine was there (nor within a minute after): ``"none"``
            passes them over, ``"latest"`` makes one run for the latest of them, ``"all"`` one for each.
        :param jitter: put each run off by up to this long; by how long depends on the name and the due time alone.
        :raises JobNotFound, InvalidInput, SerializationError: as ``trigger`` does.
        :raises ValueError: when the timing, the zone or another option is wrong.
        :raises LibraryMissing: when the library that ``cron`` or ``timezone`` needs is not installed.
        """
        options = {"overlap": overlap, "catch_up": catch_up, "jitter": jitter, "labels": labels, "input": input}
        timing = {"cron": cron, "every": every, "timezone": timezone}
        self._running_store()
        now = self._clock.now()
        checked = checked_schedule(self._registry, now, name, job, **timing, **options)  # type: ignore[arg-type]
        if checked.recurrence.libraries:
            await self._install(checked.recurrence.libraries)
        made = self._scheduler.put(with_next_due(checked, now))
        self._dispatcher.look_at_the_time()
        return made

    async def list_schedules(self) -> list[Schedule]:
        """All schedules, by name."""
        self._running_store()
        return self._scheduler.list()

    async def pause_schedule(self, name: str) -> Schedule:
        """Let a schedule trigger nothing until it is resumed.

        :raises ScheduleNotFound: when there is none of that name.
        """
        self._running_store()
        return self._scheduler.pause(name)

    async def resume_schedule(self, name: str) -> Schedule:
        """Let a schedule go on with its next due time; those in between are passed over, whatever ``catch_up`` says.

        :raises ScheduleNotFound: when there is none of that name.
        """
        self._running_store()
        resumed = self._scheduler.resume(name)
        self._dispatcher.look_at_the_time()
        return resumed

    async def delete_schedule(self, name: str) -> None:
        """Delete a schedule; the runs that it has made stay.

        :raises ScheduleNotFound: when there is none of that name.
        """
        self._running_store()
        self._scheduler.delete(name)

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

    def _running_store(self) -> Store:
        if self._store is None:
            raise DurableWebError("The engine is not running: use `async with engine:` or `await engine.start()`.")
        return self._store

    def _identity(self, run_id: str) -> tuple[str, dict[str, str]]:
        return self._running_store().runs.identity(run_id)

    def _on_commit(self, frames: list[StoredFrame], facts: list[Fact]) -> None:
        """Tell of what was committed; nothing that goes wrong here may look like a failed commit."""
        try:
            self._timeline.publish(frames)
            self._delivery.look_again({frame.run_id for frame in frames if ends_run(frame)})
            self._events.publish(facts)
        except Exception:
            logging.getLogger("durable_web").exception("Telling of what was committed failed")

    def _on_change(self, run_ids: set[str]) -> None:
        self._dispatcher.look_at(run_ids)
        self._delivery.look_again(run_ids)

    def _on_neighbour(self) -> None:
        self._delivery.look_again()

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


async def _frames(batches: AsyncIterator[list[StoredFrame]]) -> AsyncIterator[Frame]:
    """The frames of batches one by one; leaving them leaves the batches at once."""
    async with aclosing(batches):  # type: ignore[type-var]
        async for batch in batches:
            for frame in batch:
                yield frame.to_frame()
