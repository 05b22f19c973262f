"""The engine: executes runs, and answers questions about them.

>>> async with Engine("jobs.sqlite3", jobs=[greet]) as engine:
...     run = await engine.trigger("greet", "Ada")
...     async for frame in engine.runs.watch(run.id):
...         print(frame.kind, frame)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from threading import get_ident
from types import MappingProxyType
from typing import Any, TypeVar, Unpack, overload

from .._clock import Clock, SystemClock
from .._durations import to_timedelta
from .._errors import DurableWebError
from .._files import Files, LocalFiles
from .._jobs import Job, Registry
from .._model import LogFrame, Progress, Run
from .._notifications import ErrorHandler, Events, Listener
from .._store import Durability, check_durability
from .._triggers import Trigger, TriggerOptions
from .dispatcher import Limits
from .last_step import End
from .running import Install, RunningEngine, Settings
from .runs import Runs
from .schedules import Schedules
from .trouble import OnState

Input = TypeVar("Input")


async def _nothing_to_install(libraries: list[str]) -> None:
    """Install nothing. On CPython the libraries come with ``pip install 'durable-web[schedules]'``."""


class Engine:
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
    :param exclusive: no other engine uses the file at the same time (a browser's leader); the runs of an engine that
        died are then taken back at once instead of when their leases expire.
    :param migrate: ``False`` refuses a file that an earlier version wrote (``SchemaVersionError``) instead of migrating
        it, which cannot be reverted.
    :param life: an id for this life of the engine, under which its runs are leased; made up by default.
    :param ends: how earlier lives ended, by their id, as seen by the page or the process that started the engine:
        ``"closed"`` after a clean shutdown that the engine had no time to record, which counts against no run;
        ``"died"`` where the engine died or stopped responding, which counts however long ago the step began.
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
        self.registry = Registry(list(jobs))
        if isinstance(dead_letter, Job):
            self.registry.add(dead_letter)
        counts = {
            "max_concurrent_runs": max_concurrent_runs,
            "max_recoveries": max_recoveries,
            "max_parked": max_parked,
        }
        for name, count in counts.items():
            if type(count) is not int or count < 0:
                raise ValueError(f"{name} of an engine is a whole number of at least 0, not {count!r}.")
        if not isinstance(lease, (int, float)) or not 0.001 <= lease < float("inf"):
            raise ValueError(f"lease of an engine is a number of seconds, at least 0.001, not {lease!r}.")
        check_durability(durability)
        limits = Limits(
            max_concurrent_runs, max_parked, max_recoveries, int(lease * 1000), exclusive, preserve_steps, dead_letter
        )
        retention = None if retain_runs is None else to_timedelta(retain_runs)
        if retention is not None and retention < timedelta(0):
            raise ValueError(f"retain_runs is a time of at least 0, not {retain_runs!r}.")
        self.settings = Settings(
            self.path,
            durability,
            migrate,
            limits,
            retention,
            clock or SystemClock(),
            files or LocalFiles(f"{self.path}.files"),
            webhook_url,
            on_state,
            install,
            ends,
        )
        self._life = life
        self._events = Events(self._identity)
        self._running: RunningEngine | None = None
        self.runs = Runs(lambda: self.internals)
        """Reading runs, sending them messages, and managing them."""
        self.schedules = Schedules(lambda: self.internals)
        """Schedules: jobs that are triggered again and again."""

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self, *, claim: bool = True) -> None:
        """Open and migrate the database, take back the runs of a dead engine, and begin to execute.

        :param claim: without it nothing is executed until ``run_one`` or ``run_until_idle`` is called.
        :raises StorageError: when the database cannot be used; its subclasses say why.
        :raises RuntimeError: when the engine is running already.
        """
        if self._running is not None:
            raise RuntimeError("This engine is running already; make another Engine for another database.")
        running = RunningEngine(self.settings, self.registry, self._events, self._life)
        self._life = None  # another start is another life
        self._running = running
        try:
            await running.start(claim=claim)
        except BaseException:
            self._running = None
            running.close()
            raise

    async def stop(self, drain: bool = True) -> None:
        """Stop claiming, and close the database.

        With ``drain``, the runs that are executing may finish; without, they are given back at once and go on from
        their last committed step with the next engine. Does nothing when the engine is not running.

        :raises RuntimeError: when a job calls it that this engine executes, in its body or in a step.
        """
        running = self._running
        if running is not None and await running.stop(drain) and self._running is running:
            self._running = None

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop(drain=exception[0] is None)

    async def run_until_idle(self, max_runs: int | None = None) -> int:
        """Execute the runs that can execute now, at most ``max_runs``, until each has ended or waits; returns how many.

        Runs that wait for a later time are not waited for. For engines started with ``claim=False``.
        """
        return await self.internals.run_until_idle(float("inf") if max_runs is None else max_runs)

    async def run_one(self) -> bool:
        """Execute the run whose turn it is; ``False`` when there is none."""
        return await self.run_until_idle(max_runs=1) > 0

    # --- triggering --------------------------------------------------------------------------------------------------

    def register(self, *jobs: Job) -> None:
        """Add jobs. Registering a job twice is a no-op.

        :raises DuplicateJobError: when another definition has that name already.
        """
        for item in jobs:
            self.registry.add(item)
        running = self._running
        if running is not None:
            with running.store.transaction():
                running.dispatcher.claiming.unblock(running.clock.now())

    @overload
    async def trigger(self, job: Job[None, Any], input: None = None, **options: Unpack[TriggerOptions]) -> Run: ...

    @overload
    async def trigger(self, job: Job[Input, Any], input: Input, **options: Unpack[TriggerOptions]) -> Run: ...

    @overload
    async def trigger(self, job: str, input: Any = None, **options: Unpack[TriggerOptions]) -> Run: ...

    async def trigger(self, job: Job[Any, Any] | str, input: Any = None, **options: Unpack[TriggerOptions]) -> Run:
        """Make a run of ``job`` for ``input``; the run begins when its turn comes.

        The options are those of :class:`Trigger`. The run's ``disposition`` is ``"created"``, or ``"idempotent"``,
        ``"coalesced"``, ``"skipped"`` or ``"debounced"`` where an existing run is returned. Raises what
        ``trigger_many`` raises.
        """
        return self.internals.trigger([Trigger(job, input, **options)])[0]

    async def trigger_many(self, triggers: Iterable[Trigger]) -> list[Run]:
        """Make several runs in one transaction: all of them, or none.

        :raises JobNotFound: when no such job is registered.
        :raises InvalidInput, SerializationError: when an input does not fit the job's type, or cannot be stored.
        :raises ConflictError: when a run of the job with that concurrency key is pending.
        :raises RateLimited: when the job's rate limit has no room for another run now.
        :raises ValueError: when a label, a time or a combination of options is wrong.
        """
        return self.internals.trigger(_all_triggers(triggers))

    @overload
    async def trigger_and_wait(
        self,
        job: Job[None, Any],
        input: None = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogFrame], None] | None = None,
        **options: Unpack[TriggerOptions],
    ) -> Run: ...

    @overload
    async def trigger_and_wait(
        self,
        job: Job[Input, Any],
        input: Input,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogFrame], None] | None = None,
        **options: Unpack[TriggerOptions],
    ) -> Run: ...

    @overload
    async def trigger_and_wait(
        self,
        job: str,
        input: Any = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogFrame], None] | None = None,
        **options: Unpack[TriggerOptions],
    ) -> Run: ...

    async def trigger_and_wait(
        self,
        job: Job[Any, Any] | str,
        input: Any = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogFrame], None] | None = None,
        **options: Unpack[TriggerOptions],
    ) -> Run:
        """``trigger``, then ``runs.wait``; takes the options of ``trigger``, and raises what these two raise."""
        run = self.internals.trigger([Trigger(job, input, **options)])[0]
        return await self.runs.wait(run.id, timeout=timeout, on_progress=on_progress, on_log=on_log)

    async def trigger_with_signal(
        self,
        job: Job | str,
        input: Any,
        name: str,
        payload: Any = None,
        signal_id: str | None = None,
        **options: Unpack[TriggerOptions],
    ) -> Run:
        """``trigger`` a run, or find the run that answers the trigger, and send it a signal, in one transaction.

        Takes the options of ``trigger``. Raises what ``trigger`` and ``runs.signal`` raise; then neither has happened.
        """
        running = self.internals
        trigger = Trigger(job, input, **options)
        checked = (trigger, *trigger.check(self.registry))
        running.dispatcher.commits.flush()
        with running.store.transaction():
            (run,) = running.make_all([checked])
            running.delivery.signal(run.id, name, payload, signal_id)
        running.dispatcher.look_at_the_time()
        return run

    async def publish(self, topic: str, payload: Any = None, event_id: str | None = None) -> list[str]:
        """Deliver an event to every run that waits for it (``ctx.wait_for_event``), and start the jobs with
        ``on_event=topic``, in one transaction; returns the ids of these runs.

        :param event_id: a second event of that id within 30 days is not delivered.
        :raises InvalidInput, SerializationError: when the payload does not fit the input of a job that it starts, or
            cannot be stored.
        :raises RateLimited: when the rate limit of a job that it starts has no room. The event was not delivered then.
        """
        running = self.internals
        with running.store.transaction():
            reached = running.delivery.publish(topic, payload, event_id)
        running.dispatcher.look_at_the_time()
        return reached

    async def deliver_webhook(self, token: str, body: Any = None) -> bool:
        """Deliver a body to a webhook of ``ctx.webhook``; ``False`` when one was delivered before.

        :raises WebhookNotFound: when the token is wrong, or its run has ended.
        :raises SerializationError: when the body cannot be stored.
        """
        running = self.internals
        with running.store.transaction():
            return running.delivery.webhook(token, body)

    # --- notifications -----------------------------------------------------------------------------------------------

    def on(self, type: str, listener: Listener) -> None:
        """Call ``listener`` with every event of a type, right after the commit that made it so; see :class:`Event`.

        :raises ValueError: when there is no such type.
        """
        self._events.add(type, listener)
        self._note_listening()

    def off(self, type: str, listener: Listener) -> None:
        """Call a listener no longer."""
        self._events.remove(type, listener)
        self._note_listening()

    def on_error(self, handler: ErrorHandler) -> None:
        """Call ``handler`` with the error and the event when a listener fails; by default it is logged."""
        self._events.on_error = handler

    def _note_listening(self) -> None:
        if self._running is not None:
            self._running.store.journal.is_listening = self._events.is_listening

    # --- for tests and tools -----------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """``True`` when the engine has been started, and has neither stopped nor died."""
        return self._running is not None

    @property
    def internals(self) -> RunningEngine:
        """The parts of the running engine. They are no part of the interface, and may change with any release.

        :raises DurableWebError: when the engine is not running.
        :raises RuntimeError: in another thread than that of its event loop.
        """
        if self._running is None:
            raise DurableWebError("The engine is not running: use `async with engine:` or `await engine.start()`.")
        if get_ident() != self._running.thread:
            raise RuntimeError(
                "An engine is used in the thread of its event loop, to which its database belongs. From another "
                "thread: asyncio.run_coroutine_threadsafe(engine.trigger(...), loop).result()"
            )
        return self._running

    def kill(self) -> RunningEngine | None:
        """End the engine as the death of its process would: nothing more is written, and no lease is released. Returns
        what was running."""
        running, self._running = self._running, None
        if running is not None:
            running.leave()
        return running

    def _identity(self, run_id: str) -> tuple[str, dict[str, str]]:
        return self.internals.store.runs.identity(run_id)


def _all_triggers(triggers: Iterable[Trigger]) -> Iterator[Trigger]:
    """:raises TypeError: when one is something else."""
    for item in triggers:
        if not isinstance(item, Trigger):
            raise TypeError(f"trigger_many takes Trigger objects, Trigger(job, input, ...), not {item!r}.")
        yield item
