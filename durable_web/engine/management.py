"""Cancelling, retrying, forking and deleting runs, one by one or many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from ..errors import ConflictError, RunNotActive, RunNotFound, RunNotTerminal
from ..model import Run, RunFilter, RunStatus, to_milliseconds
from ..triggers import Trigger, checked_input
from .parts import EngineParts

BULK_BATCH = 500


class Management(EngineParts):
    """What can be done to runs that are there."""

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

        :raises JobNotFound: when no job of the run's name is registered. Where only its version is not, the input is
            checked when the run goes on.
        :raises InvalidInput, SerializationError: when the input does not fit the job's type, or cannot be stored.
        """
        run = await self.get_run(run_id)
        latest = self._registry[run.job]
        job = self._registry.find(run.job, run.version) or dataclasses.replace(latest, input_type=Any)
        return self._reopen(run_id, checked_input(job, input))

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

        It begins under the latest version of the job, and has the values that these steps have published. What it has
        taken over it does not undo, should it fail.

        :raises RunNotFound: when there is no such run.
        :raises ValueError: when the run has recorded no step of that name.
        :raises ConflictError: when the flow control of the job gives back another run instead of a new one.
        """
        store = self._running_store()
        run = store.runs.get(run_id)
        record = store.steps.load(run_id).get(from_step)
        if record is None:
            raise ValueError(f"Run {run_id} has recorded no step {from_step!r}; get_steps(run_id) names those it has.")
        trigger = Trigger(run.job, run.input, labels=run.labels, priority=run.priority)
        now = self._clock.now()
        with store.transaction():
            fork = self._make(store, trigger, *trigger.check(self._registry), now)
            if fork.new is None:
                raise ConflictError(run.job, fork.disposition, fork.run_id)
            store.steps.copy_before(run_id, fork.run_id, record, now)
        self._dispatcher.fill_slots()
        return store.runs.get(fork.run_id)

    async def delete_run(self, run_id: str) -> None:
        """Delete a run that has ended, with its steps, frames, labels and values.

        :raises RunNotFound, RunNotTerminal: when there is no such run, or it is active.
        """
        store = self._running_store()
        with store.transaction():
            store.runs.delete(run_id, self._clock.now())

    async def purge_runs(self, older_than: datetime, limit: int = 500) -> int:
        """Delete runs that ended before ``older_than``, the oldest first, at most ``limit``; returns how many.

        :param older_than: an aware ``datetime``.
        :raises ValueError: when it is none, or ``limit`` is not at least 1.
        """
        if type(limit) is not int or limit < 1:
            raise ValueError(f"limit is a whole number of at least 1, not {limit!r}.")
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
        wanted = RunFilter(**filters)
        done: list[str] = []
        cursor = None
        while page := self._page(wanted, cursor):
            cursor = page[-1].id
            for run in page:
                if not applies(run):
                    continue
                with suppress(RunNotActive, RunNotTerminal, RunNotFound, ConflictError):  # it has changed meanwhile
                    await act(run.id)
                    done.append(run.id)
        return done

    def _page(self, wanted: RunFilter, cursor: str | None) -> list[Run]:
        runs = self._running_store().runs
        return runs.list(wanted, oldest_first=False, after=cursor, limit=BULK_BATCH, payloads=False)
