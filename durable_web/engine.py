"""The engine: claims runs, executes them, and answers questions about them.

>>> async with Engine("jobs.sqlite3", jobs=[greet]) as engine:
...     run = await engine.trigger("greet", "Ada")
...     async for frame in engine.watch(run.id):
...         print(frame.kind, frame)
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from .clock import Clock, SystemClock, TimerHandle
from .codec import encode
from .commits import GroupCommit
from .context import Context
from .errors import DurableWebError, JobNotFound, StorageError, StorageFullError
from .executor import Execution, Services
from .files import Files, LocalFiles
from .identifiers import IdentifierFactory
from .job import Job, Registry
from .model import Frame, Run, RunStatus, Step, StoredFrame
from .store import Claim, Database, Durability, Store
from .timeline import Timeline

FIRST_PROBE_SECONDS = 2.0
LONGEST_PROBE_SECONDS = 60.0

OnState = Callable[[str, str], None]


class Engine:
    """Durable jobs over one SQLite file.

    :param path: the database file, made when it is not there; its folder must exist.
    :param jobs: the jobs that this engine can execute.
    :param max_concurrent_runs: how many runs may execute at a time.
    :param lease: seconds for which a claim on a run holds without being renewed.
    :param durability: ``"full"`` survives power loss; ``"normal"`` survives the death of any process, and is faster.
    :param max_recoveries: a run whose engine died more often than this without completing another step is dead.
    :param exclusive: no other engine uses the file at the same time (a browser's leader); what an engine that died has
        left behind is then taken back at once instead of when its lease runs out.
    :param clock: where the time comes from.
    :param files: where ``ctx.files`` makes files; by default in the folder ``<path>.files``.
    :param on_state: called with ``"running"``, ``"storage_full"`` or ``"storage_error"`` and a message when that
        changes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        jobs: Iterable[Job] = (),
        *,
        max_concurrent_runs: int = 10,
        lease: float = 30.0,
        durability: Durability = "full",
        max_recoveries: int = 5,
        exclusive: bool = False,
        clock: Clock | None = None,
        files: Files | None = None,
        on_state: OnState = lambda state, message: None,
    ) -> None:
        self.path = os.fspath(path)
        self._registry = Registry(list(jobs))
        self._max_concurrent_runs = max_concurrent_runs
        self._lease_milliseconds = int(lease * 1000)
        self._durability: Durability = durability
        self._max_recoveries = max_recoveries
        self._exclusive = exclusive
        self._clock = clock or SystemClock()
        self._files = files or LocalFiles(f"{self.path}.files")
        self._on_state = on_state
        self._identifiers = IdentifierFactory()
        self._owner = ""
        self._store: Store | None = None
        self._executing: dict[str, tuple[Execution, asyncio.Task[None]]] = {}
        self._claiming = False
        self._heartbeat: TimerHandle | None = None
        self._unreleased: list[Claim] = []
        self._probe_delay = FIRST_PROBE_SECONDS
        self._probe: TimerHandle | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open and migrate the database, take back what a dead engine left, and begin to execute.

        :raises StorageError: when the database cannot be used; its subclasses say why.
        :raises RuntimeError: when the engine is running already.
        """
        if self._store is not None:
            raise RuntimeError("This engine is running already; make another Engine for another database.")
        self._owner = self._identifiers.new(self._clock.now())
        database = Database(self.path, durability=self._durability, exclusive=self._exclusive)
        store = Store(database)
        self._timeline = Timeline(store)
        store.on_commit = self._timeline.publish
        self._commits = GroupCommit(store, self._clock, self._on_flush_failure)
        self._services = Services(
            store, self._commits, self._clock, self._files, lambda: len(self._executing) <= 1, self._on_storage_trouble
        )
        try:
            with store.transaction():
                self._recover(store, everything=self._exclusive)
        except BaseException:
            store.close()
            raise
        self._store = store
        self._claiming = True
        self._beat()
        self._claim_runs()

    async def stop(self, drain: bool = True) -> None:
        """Stop claiming, and close the database.

        With ``drain``, the runs that are executing may finish; without, they are given back at once and go on from
        their last committed step with the next engine. Does nothing when the engine is not running.
        """
        if self._store is None:
            return
        self._claiming = False
        if drain:
            while self._executing:
                await asyncio.wait([task for _, task in self._executing.values()])
        await self._give_back()
        for timer in (self._heartbeat, self._probe):
            if timer is not None:
                timer.cancel()
        self._timeline.close()
        store, self._store = self._store, None
        store.close()

    async def _give_back(self) -> None:
        store = self._running_store()
        executing = list(self._executing.values())
        claims = [execution.claim for execution, _ in executing] + self._unreleased
        try:
            self._commits.flush()
            with store.transaction():
                for claim in claims:
                    store.release(claim, self._clock.now(), reason="the engine is stopping")
        except StorageError:
            pass  # still full: the next engine takes the runs back
        for execution, _ in executing:
            execution.abandon()
        if executing:
            await asyncio.wait([task for _, task in executing])

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop(drain=exception[0] is None)

    # --- runs --------------------------------------------------------------------------------------------------------

    def register(self, *jobs: Job) -> None:
        """Add jobs. Registering the same one twice is a no-op.

        :raises DuplicateJobError: when another function has that name already.
        """
        for item in jobs:
            self._registry.add(item)

    async def trigger(self, job: Job | str, input: Any = None) -> Run:
        """Make a run of ``job`` for ``input``; it begins as soon as there is a free slot.

        :raises JobNotFound: when no such job is registered.
        :raises SerializationError: when the input cannot be stored.
        """
        store = self._running_store()
        name = job.name if isinstance(job, Job) else job
        self._registry[name]
        text = encode(input, path=f"input of job {name!r}")
        now = self._clock.now()
        run_id = self._identifiers.new(now)
        self._commits.commit_now(functools.partial(store.insert_run, run_id, name, text, now))
        run = store.get_run(run_id)
        self._claim_runs()
        return run

    async def get_run(self, run_id: str) -> Run:
        """The run of that id.

        :raises RunNotFound: when there is none.
        """
        return self._running_store().get_run(run_id)

    async def list_runs(
        self,
        *,
        status: str | Iterable[str] = (),
        job: str | Iterable[str] = (),
        before: str | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Runs, newest first.

        :param status: only runs of that status, or of one of these.
        :param job: only runs of the job of that name, or of one of these.
        :param before: only runs older than the one of that id; the last id of a page gives the next page.
        :param limit: at most so many, from 1 to 1,000.
        :raises ValueError: when a status is unknown, or the limit out of range.
        """
        statuses = [RunStatus(item) for item in _names(status)]
        if not 1 <= limit <= 1000:
            raise ValueError(f"limit is a number from 1 to 1000, not {limit!r}")
        return self._running_store().list_runs(statuses=statuses, jobs=_names(job), before=before, limit=limit)

    async def get_steps(self, run_id: str) -> list[Step]:
        """The steps of a run, in the order of first recording.

        :raises RunNotFound: when there is no such run.
        """
        return self._running_store().get_steps(run_id)

    async def cancel(self, run_id: str) -> Run:
        """Cancel an active run. The status is committed first; then the job gets ``asyncio.CancelledError``.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        store = self._running_store()
        self._commits.flush()
        with store.transaction():
            store.cancel(run_id, self._clock.now())
        if run_id in self._executing:
            self._executing[run_id][0].abandon(cancelled=True)
        return store.get_run(run_id)

    async def watch(self, run_id: str, from_seq: int = 0) -> AsyncIterator[Frame]:
        """Every frame of a run strictly after ``from_seq``: first the history, then what commits; ends with the run.

        :raises RunNotFound: when there is no such run.
        """
        async for batch in self.watch_batches(run_id, from_seq):
            for frame in batch:
                yield frame.to_frame()

    def watch_batches(self, run_id: str, from_seq: int = 0) -> AsyncIterator[list[StoredFrame]]:
        """What ``watch`` gives, in batches of stored frames; for forwarding to another process or a page."""
        self._running_store()
        return self._timeline.watch(run_id, from_seq)

    # --- claiming and executing --------------------------------------------------------------------------------------

    def _running_store(self) -> Store:
        if self._store is None:
            raise DurableWebError("The engine is not running: use `async with engine:` or `await engine.start()`.")
        return self._store

    def _claim_runs(self) -> None:
        """Fill the free slots with pending runs."""
        while self._claiming and not self._unreleased and len(self._executing) < self._max_concurrent_runs:
            store = self._running_store()
            now = self._clock.now()
            try:
                with store.transaction():
                    claim = store.claim(self._owner, now, now + self._lease_milliseconds)
            except StorageError as trouble:
                self._report_trouble(trouble)
                return
            if claim is None:
                return
            self._execute(claim)

    def _execute(self, claim: Claim) -> None:
        try:
            job = self._registry[claim.job]
        except JobNotFound as error:
            Execution(self._services, claim, Job(claim.job, _no_function)).fail(error)
            return
        execution = Execution(self._services, claim, job)
        task = asyncio.get_running_loop().create_task(execution.run(Context(execution, self._files)))
        self._executing[claim.run_id] = execution, task
        task.add_done_callback(lambda done: self._on_executed(claim, done))

    def _on_executed(self, claim: Claim, task: asyncio.Task[None]) -> None:
        self._executing.pop(claim.run_id, None)
        if not task.cancelled() and task.exception() is not None:  # a defect of the engine, not of the job
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"executing run {claim.run_id} failed inside the engine", "exception": task.exception()}
            )
        if self._claiming:
            self._claim_runs()

    def _recover(self, store: Store, *, everything: bool) -> None:
        store.recover(self._clock.now(), everything=everything, max_recoveries=self._max_recoveries)

    def _beat(self) -> None:
        """Three times in a lease: renew what is ours, and take back what others have let expire."""
        self._heartbeat = self._clock.call_later(self._lease_milliseconds / 3000, self._beat)
        if not self._executing and self._exclusive:
            return
        try:
            self._renew()
        except StorageError as trouble:
            self._report_trouble(trouble)
            return
        self._claim_runs()

    def _renew(self) -> None:
        store = self._running_store()
        expires = self._clock.now() + self._lease_milliseconds
        lost = []
        with store.transaction():
            for execution, _ in self._executing.values():
                if not store.renew(execution.claim, expires):
                    lost.append(execution)
            if not self._exclusive:
                self._recover(store, everything=False)
        for execution in lost:
            execution.abandon()

    # --- trouble with the storage ------------------------------------------------------------------------------------

    def _on_flush_failure(self, error: Exception) -> None:
        """A group that nobody waited for, such as log lines, was not written."""
        if not isinstance(error, StorageError):
            raise error
        self._report_trouble(error)

    def _on_storage_trouble(self, claim: Claim, trouble: StorageError) -> None:
        """A run had to be left because its commit failed: stop claiming, and try to give it back later."""
        self._unreleased.append(claim)
        self._report_trouble(trouble)
        if self._probe is None:
            self._probe = self._clock.call_later(self._probe_delay, self._try_again)

    def _report_trouble(self, trouble: StorageError) -> None:
        self._on_state("storage_full" if isinstance(trouble, StorageFullError) else "storage_error", str(trouble))

    def _try_again(self) -> None:
        """Write what could not be written; when it can be, go on."""
        self._probe = None
        store = self._running_store()
        try:
            with store.transaction():
                for claim in self._unreleased:
                    store.release(claim, self._clock.now(), reason="the storage was full")
        except StorageError:
            self._probe_delay = min(self._probe_delay * 2, LONGEST_PROBE_SECONDS)
            self._probe = self._clock.call_later(self._probe_delay, self._try_again)
            return
        self._unreleased.clear()
        self._probe_delay = FIRST_PROBE_SECONDS
        self._on_state("running", "")
        self._claim_runs()


async def _no_function(context: object, input: object) -> None:
    """Stands where the code of a run's job should be."""


def _names(one_or_more: str | Iterable[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else list(one_or_more)
