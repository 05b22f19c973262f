"""``engine.runs``: reading runs, sending them messages, and managing them, one by one or many."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, Unpack

from .._errors import ConflictError, RunNotActive, RunNotFound, RunNotTerminal
from .._jobs import Job
from .._model import (
    Frame,
    LogFrame,
    Progress,
    ProgressFrame,
    Run,
    RunFilter,
    RunFilters,
    RunStatus,
    Step,
    StoredFrame,
    to_milliseconds,
)
from .._timeline import Offer, Selection, at_least
from .._triggers import Trigger, checked_input
from .running import RunningEngine

BULK_BATCH = 500
COUNTABLE = ("status", "job")
_SAME: Any = object()


class Runs:
    """The runs of an engine.

    :param running: returns the running engine's parts; raises when the engine is not running.
    """

    def __init__(self, running: Callable[[], RunningEngine]) -> None:
        self._running = running

    # --- reading -----------------------------------------------------------------------------------------------------

    async def get(self, run_id: str) -> Run:
        """The run of that id.

        :raises RunNotFound: when there is none.
        """
        return self._running().store.runs.get(run_id)

    async def list(
        self,
        *,
        status: str | Iterable[str] | None = None,
        job: Job | str | Iterable[Job | str] | None = None,
        labels: dict[str, str] | None = None,
        search: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        parent: str | None = None,
        order: str = "newest",
        limit: int = 50,
        cursor: str | None = None,
        payloads: bool = True,
    ) -> builtins.list[Run]:
        """A page of the runs that pass every given filter; the filters are those of :class:`RunFilter`.

        :param order: ``"newest"`` or ``"oldest"`` first; the order is stable.
        :param limit: at most so many, from 1 to 1,000.
        :param cursor: the id of the last run of the page before this one.
        :param payloads: ``False`` leaves ``input`` and ``output`` ``None``, so that a page is small however large they
            are.
        :raises ValueError: when a status, the order or the limit is not a valid one.
        :raises TypeError: when ``search`` is not a string.
        """
        _check_limit(limit)
        if order not in ("newest", "oldest"):
            raise ValueError(f'order is "newest" or "oldest", not {order!r}')
        wanted = RunFilter(status, job, labels, created_after, created_before, search, parent)
        oldest_first = order == "oldest"
        runs = self._running().store.runs
        return runs.list(wanted, oldest_first=oldest_first, after=cursor, limit=limit, payloads=payloads)

    async def count(self, by: str = "status") -> dict[str, int]:
        """How many runs there are for each ``"status"`` or ``"job"``.

        :raises ValueError: when ``by`` is something else.
        """
        if by not in COUNTABLE:
            raise ValueError(f"runs are counted by one of {', '.join(COUNTABLE)}, not by {by!r}")
        return self._running().store.runs.count(by)

    async def steps(self, run_id: str) -> builtins.list[Step]:
        """The steps of a run, in the order of first recording, with their failed attempts.

        :raises RunNotFound: when there is no such run.
        """
        store = self._running().store
        store.runs.get(run_id)
        return store.steps.get(run_id)

    async def value(self, run_id: str, key: str, default: Any = None) -> Any:
        """The latest value that a run has published under ``key`` (``ctx.set_event``), or ``default``.

        :raises RunNotFound: when there is no such run.
        """
        store = self._running().store
        store.runs.get(run_id)
        return store.steps.get_value(run_id, key, default)

    async def logs(
        self, run_id: str, from_seq: int = 0, limit: int = 100, level: str | None = None
    ) -> builtins.list[LogFrame]:
        """A page of the lines that a run has written, oldest first.

        :param from_seq: the ``seq`` of the last line of the page before; 0 for the first page.
        :param limit: at most so many, from 1 to 1,000; fewer come when there are no more.
        :param level: only lines at least so severe: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
        :raises RunNotFound: when there is no such run.
        :raises ValueError: when the limit or the level is not a valid one.
        """
        _check_limit(limit)
        found = await self._running().timeline.logs(run_id, from_seq, limit, at_least(level))
        return [frame.to_frame() for frame in found]  # type: ignore[misc]

    # --- watching ----------------------------------------------------------------------------------------------------

    async def watch(self, run_id: str, from_seq: int = 0) -> AsyncIterator[Frame]:
        """Every frame of a run strictly after ``from_seq``: first the history, then new frames; ends with the run.

        :raises RunNotFound: when there is no such run.
        """
        async for frame in _frames(self.watch_batches(run_id, from_seq)):
            yield frame

    def watch_all(
        self,
        from_id: int | None = 0,
        *,
        jobs: Job | str | Iterable[Job | str] | None = None,
        labels: dict[str, str] | None = None,
        kinds: str | Iterable[str] | None = None,
    ) -> AsyncIterator[Frame]:
        """Every run's frames in commit order: first the history, then new frames; ends when the engine stops.

        The history of a deleted run is one frame, of the kind ``run_deleted``, which is kept for 30 days.

        :param from_id: the ``id`` of the last frame that the caller has; ``None`` for the frames that are committed
            from now on.
        :param jobs: only frames of runs of these jobs: one or its name, or several; an empty list passes none.
        :param labels: only frames of runs that have these labels, all of them.
        :param kinds: only frames of these kinds: ``"run_status"``, or several; an empty list passes none.
        :raises ValueError: when there is no such kind.
        """
        return _frames(self.watch_all_batches(from_id, jobs=jobs, labels=labels, kinds=kinds))

    def watch_batches(
        self, run_id: str, from_seq: int = 0, *, offer: Offer | None = None
    ) -> AsyncIterator[builtins.list[StoredFrame]]:
        """The frames of ``watch``, in batches of stored frames; for forwarding to another process or a page.

        :param offer: is called with frames right after their commit, when all earlier frames were taken. It returns
            ``True`` when it takes them; they are in no batch then. It may not raise.
        """
        return self._running().timeline.watch(run_id, from_seq, offer)

    def watch_all_batches(
        self,
        from_id: int | None = 0,
        *,
        jobs: Job | str | Iterable[Job | str] | None = None,
        labels: dict[str, str] | None = None,
        kinds: str | Iterable[str] | None = None,
        offer: Offer | None = None,
    ) -> AsyncIterator[builtins.list[StoredFrame]]:
        """The frames of ``watch_all``, in batches of stored frames; ``offer`` is as in ``watch_batches``."""
        return self._running().timeline.watch_all(from_id, Selection.of(jobs, labels, kinds), offer)

    def is_end(self, frame: StoredFrame) -> bool:
        """``True`` when a frame has ended its run and is still the last one: a watch of the run ends with it."""
        return self._running().timeline.is_end(frame)

    def newest_frame_id(self) -> int:
        """The ``id`` of the frame that was committed last; 0 when there is none."""
        return self._running().store.newest_frame_id()

    async def wait(
        self,
        run_id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogFrame], None] | None = None,
    ) -> Run:
        """Wait until a run has ended, and return it; when it has continued as new, return the last run.

        :param timeout: seconds to wait at most; the run itself goes on.
        :param on_progress, on_log: called with the run's progress and log frames, from the beginning of the run.
        :raises TimeoutError: when the run has not ended by then.
        :raises RunNotFound: when there is no such run.
        """
        async with asyncio.timeout(timeout):
            while True:
                if on_progress is None and on_log is None:
                    await self._running().endings.wait(run_id)
                else:
                    async with aclosing(self.watch_batches(run_id)) as batches:  # type: ignore[type-var]
                        async for batch in batches:
                            _report(batch, on_progress, on_log)
                run = await self.get(run_id)
                if run.continued_as is not None:
                    run_id = run.continued_as
                elif run.is_terminal:
                    return run

    # --- messages ----------------------------------------------------------------------------------------------------

    async def signal(self, run_id: str, name: str, payload: Any = None, signal_id: str | None = None) -> bool:
        """Send a signal to a run; it is kept until ``ctx.wait_for_signal`` takes it, first in, first out.

        :param signal_id: a second signal of that id is not delivered.
        :returns: ``False`` when one of that id was delivered before.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        :raises InvalidInput, SerializationError: when the payload does not fit its declared type, or cannot be stored.
        """
        running = self._running()
        running.dispatcher.commits.flush()  # a cancelled wait may still have to requeue an earlier signal
        with running.store.transaction():
            return running.delivery.signal(run_id, name, payload, signal_id)

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
        running = self._running()
        with running.store.transaction():
            message_id = running.delivery.update(run_id, name, argument, update_id)
        async with asyncio.timeout(timeout):
            return await running.delivery.answer(run_id, name, message_id)

    # --- managing ----------------------------------------------------------------------------------------------------

    async def pause(self, run_id: str) -> Run:
        """Pause a run: it starts no further step until it is resumed; the step that is executing is finished.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended or is being compensated.
        """
        running = self._running()
        with running.store.transaction():
            running.store.runs.pause(run_id, running.clock.now())
        return running.store.runs.get(run_id)

    async def resume(self, run_id: str) -> Run:
        """Resume a run that is paused or waits at a breakpoint; does nothing to another run.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        running = self._running()
        store = running.store
        with store.transaction():
            run = store.runs.get(run_id)
            if not run.is_active:
                raise RunNotActive(run_id, run.status.value, "resumed")
            store.runs.unpause(run_id, running.clock.now())
            store.waits.resume_breakpoints(run_id, running.clock.now())
        running.dispatcher.look_at_the_time()
        return store.runs.get(run_id)

    async def cancel(self, run_id: str, compensate: bool = False) -> Run:
        """Cancel an active run and the runs it has started. The status is committed first; then the job gets
        ``asyncio.CancelledError``.

        :param compensate: undo the completed steps that have a compensation; the run is ``cancelling`` until they are
            undone. The method returns at once.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        running = self._running()
        running.dispatcher.commits.flush()
        with running.store.transaction():
            running.store.family.cancel(run_id, running.clock.now(), compensate=compensate)
        return running.store.runs.get(run_id)

    async def retry(self, run_id: str, *, input: Any = _SAME) -> Run:
        """Retry a run that failed, died or was cancelled: completed steps are kept, the others are called again.

        Steps that their compensation has undone are called again too. Attempts are counted anew; a deadline is
        forgotten, and a job's timeout counts from now. The run goes on under the version of the job with which it
        began.

        :param input: another input for the run; completed steps are kept all the same.
        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active or has completed.
        :raises ConflictError: when another run of the job with its concurrency key is pending.
        :raises JobNotFound: with another input, when no job of the run's name is registered. When only the run's
            version is not registered, the input is checked when the run goes on.
        :raises InvalidInput, SerializationError: when the input does not fit the job's type, or cannot be stored.
        """
        running = self._running()
        store, input_text = running.store, None
        if input is not _SAME:
            run = store.runs.get(run_id)
            latest = running.registry[run.job]
            job = running.registry.find(run.job, run.version) or dataclasses.replace(latest, input_type=Any)
            input_text = checked_input(job, input)
        with store.transaction():
            store.runs.reopen(run_id, running.clock.now(), input_text)
            run = store.runs.get(run_id)
            if run.concurrency_key is not None:
                other = store.runs.find_by_concurrency_key(run.job, run.concurrency_key, ["pending"], besides=run_id)
                if other is not None:
                    raise ConflictError(run.job, run.concurrency_key, other)
            store.steps.forget_unsettled(run_id)
        running.dispatcher.fill_slots()
        return store.runs.get(run_id)

    async def retrigger(self, run_id: str) -> Run:
        """Make a new run with the same job, input, labels, priority and concurrency key; raises what ``trigger``
        raises."""
        running = self._running()
        run = running.store.runs.get(run_id)
        same = Trigger(
            run.job, run.input, labels=run.labels, priority=run.priority, concurrency_key=run.concurrency_key
        )
        return running.trigger([same])[0]

    async def fork(self, run_id: str, from_step: str) -> Run:
        """Make a new run that has the completed steps which were recorded before ``from_step``, and goes on from there.

        The new run begins under the latest version of the job, and has the values that these steps have published. If
        it fails, it does not undo the steps that it was given.

        :raises RunNotFound: when there is no such run.
        :raises ValueError: when the run has recorded no step of that name.
        :raises ConflictError: when the flow control of the job returns an existing run instead of a new one.
        """
        running = self._running()
        store = running.store
        run = store.runs.get(run_id)
        record = store.steps.load(run_id).get(from_step)
        if record is None:
            raise ValueError(f"Run {run_id} has recorded no step {from_step!r}; runs.steps(run_id) names those it has.")
        trigger = Trigger(run.job, run.input, labels=run.labels, priority=run.priority)
        now = running.clock.now()
        with store.transaction():
            fork = running.make(store, trigger, *trigger.check(running.registry), now)
            if fork.new is None:
                reason = f"the flow control of job {run.job!r} gives run {fork.run_id} instead ({fork.disposition})"
                raise ConflictError(run.job, None, fork.run_id, f"No run was forked from {run_id}: {reason}.")
            store.steps.copy_before(run_id, fork.run_id, record, now)
        running.dispatcher.fill_slots()
        return store.runs.get(fork.run_id)

    async def delete(self, run_id: str) -> None:
        """Delete a run that has ended, with its steps, frames, labels and values.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active.
        """
        running = self._running()
        with running.store.transaction():
            running.store.runs.delete(run_id, running.clock.now())

    # --- many --------------------------------------------------------------------------------------------------------

    async def purge(self, older_than: datetime, limit: int = 500) -> int:
        """Delete runs that ended before ``older_than``, the oldest first, at most ``limit``; returns how many.

        :param older_than: an aware ``datetime``.
        :raises ValueError: when ``older_than`` is not aware, or ``limit`` is not at least 1.
        """
        if type(limit) is not int or limit < 1:
            raise ValueError(f"limit is a whole number of at least 1, not {limit!r}.")
        return self._running().purge(to_milliseconds(older_than) or 0, limit)

    async def cancel_many(self, *, everything: bool = False, **filters: Unpack[RunFilters]) -> builtins.list[str]:
        """Cancel the active runs that pass a filter (see :class:`RunFilter`), and return their ids.

        :param everything: of all runs, where no filter is given.
        :raises ValueError: without a filter, or with one that is all ``None``, unless ``everything`` is ``True``.
        """
        _check_bulk("cancel_many", filters, everything)
        return await self._for_each(self.cancel, filters, lambda run: run.is_active)

    async def retry_many(self, *, everything: bool = False, **filters: Unpack[RunFilters]) -> builtins.list[str]:
        """Retry the failed, cancelled and dead runs that pass a filter, and return their ids; as ``cancel_many``."""
        _check_bulk("retry_many", filters, everything)
        return await self._for_each(
            self.retry, filters, lambda run: run.is_terminal and run.status != RunStatus.COMPLETED
        )

    async def delete_many(self, *, everything: bool = False, **filters: Unpack[RunFilters]) -> builtins.list[str]:
        """Delete the runs that have ended and pass a filter, and return their ids; as ``cancel_many``."""
        _check_bulk("delete_many", filters, everything)
        return await self._for_each(self.delete, filters, lambda run: run.is_terminal)

    async def _for_each(
        self, act: Callable[[str], Any], filters: RunFilters, applies: Callable[[Run], bool]
    ) -> builtins.list[str]:
        wanted = RunFilter(**filters)
        done: list[str] = []
        cursor = None
        while page := self._page(wanted, cursor):
            cursor = page[-1].id
            for run in page:
                if not applies(run):
                    continue
                with suppress(RunNotActive, RunNotTerminal, RunNotFound, ConflictError):  # changed since it was listed
                    await act(run.id)
                    done.append(run.id)
        return done

    def _page(self, wanted: RunFilter, cursor: str | None) -> builtins.list[Run]:
        runs = self._running().store.runs
        return runs.list(wanted, oldest_first=False, after=cursor, limit=BULK_BATCH, payloads=False)


def _check_bulk(method: str, filters: RunFilters, everything: bool) -> None:
    """A filter that is empty by mistake, such as ``job=None``, must not mean all runs."""
    if everything is True or any(value is not None and value != {} for value in filters.values()):
        return
    raise ValueError(
        f"runs.{method} needs a filter with a value, such as job= or status=. For all runs, write everything=True."
    )


def _check_limit(limit: int) -> None:
    if type(limit) is not int or not 1 <= limit <= 1000:
        raise ValueError(f"limit is a number from 1 to 1000, not {limit!r}")


async def _frames(batches: AsyncIterator[list[StoredFrame]]) -> AsyncIterator[Frame]:
    """The frames of batches, one by one; closing this iterator closes the batches at once."""
    async with aclosing(batches):  # type: ignore[type-var]
        async for batch in batches:
            for frame in batch:
                yield frame.to_frame()


def _report(
    batch: list[StoredFrame], on_progress: Callable[[Progress], None] | None, on_log: Callable[[LogFrame], None] | None
) -> None:
    """Call the functions that are given with the progress and the log lines of a batch; only these frames are read."""
    wanted = {"progress": on_progress, "log": on_log}
    for frame in (stored.to_frame() for stored in batch if wanted.get(stored.kind) is not None):
        if isinstance(frame, ProgressFrame) and on_progress is not None:
            on_progress(Progress(frame.current, frame.total, frame.message))
        elif isinstance(frame, LogFrame) and on_log is not None:
            on_log(frame)
