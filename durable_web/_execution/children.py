"""The runs that a job body starts: children that it waits for, and runs that it does not."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from .._codec import decode, encode
from .._errors import ChildFailed, CircularWait, describe
from .._identifiers import derive
from .._jobs import Job
from .._model import OperationKind, RunStatus, StepStatus
from .._store import NewRun, StepRecord
from .._triggers import Trigger
from .history import History
from .services import Services
from .tenure import Tenure
from .waits import Waits
from .writes import Writes


class Children:
    """The runs that one run starts."""

    def __init__(self, services: Services, history: History, tenure: Tenure, writes: Writes, waits: Waits) -> None:
        self._services = services
        self._store = services.store
        self._history = history
        self._tenure = tenure
        self._writes = writes
        self._waits = waits

    async def run(self, name: str, trigger: Trigger) -> Any:
        """Start a child run, and wait for its output."""
        (child,) = await self._prepared([name], [trigger])
        return await child()

    async def map(
        self, name: str, triggers: Sequence[Trigger], max_concurrent: int | None, *, fail_fast: bool
    ) -> list[Any]:
        """The outputs of a child run for each trigger, in their order.

        :param max_concurrent: how many are started at a time; all at once by default.
        :param fail_fast: when one has failed, start no further one, and cancel the others.
        :raises ExceptionGroup: of the failures, in order.
        """
        names = [f"{name}[{index}]" for index in range(len(triggers))]
        children = await self._prepared(names, triggers)
        return await _fan_out(name, children, max_concurrent, fail_fast=fail_fast)

    async def _prepared(self, names: Iterable[str], triggers: Iterable[Trigger]) -> list[Callable[[], Awaitable[Any]]]:
        """Child runs that are started when they are called: each gives its output.

        Their keys are given now, and what they are to be started with is checked; of one that has ended already, it
        is not, because the code may have changed since.
        """
        prepared: list[Callable[[], Awaitable[Any]]] = []
        for name, trigger in zip(names, triggers, strict=True):
            if not prepared:
                await self._tenure.enter(name)
            key = self._history.key(name)
            made = self._check(key, trigger)
            job_name = trigger.job.name if isinstance(trigger.job, Job) else trigger.job
            registry = self._services.registry
            type_ = registry[job_name].output_type if job_name in registry else Any
            prepared.append(functools.partial(self._run, key, made, type_))
        return prepared

    async def _run(self, key: str, made: NewRun | None, type_: Any) -> Any:
        await self._tenure.enter(key)
        parent = self._tenure.run_id

        def start(record: StepRecord, now: int) -> None:
            if made is not None and record.topic is None:  # else it follows another run, which has not ended
                self._start(dataclasses.replace(made, parent_run_id=parent, parent_step=key), record, now)

        reason = f"child run {key!r}"
        record = await self._waits.wait_for(key, OperationKind.CHILD, None, reason, start)
        if record.status == StepStatus.FAILED:
            error = record.error or {}
            child_id = derive(parent, key) if record.detail is None else decode(record.detail)
            raise ChildFailed(key, child_id, error.get("type", ""), error.get("message", ""))
        return decode(record.output or "null", type_)

    def _start(self, child: NewRun, record: StepRecord, now: int) -> None:
        """Insert the child, or follow the run that stands for it.

        One that is there already, of before a retry, goes on, or has its output taken.
        """
        latest = self._store.runs.latest(child.id)
        if latest is None:
            self._insert(child, record, now)
        elif latest.status == RunStatus.COMPLETED:
            self._settle(record, now, output=latest.output or "null")
        elif latest.status.is_terminal:
            self._store.runs.tell_parent_step(latest.run_id, record.name)
            self._store.steps.forget_unsettled(latest.run_id)
            self._store.runs.reopen(latest.run_id, now, child.input if latest.run_id == child.id else None)
        else:
            self._store.runs.tell_parent_step(latest.run_id, record.name)

    def _insert(self, child: NewRun, record: StepRecord, now: int) -> None:
        try:
            found = self._services.admit_child(child, now, True)
        except CircularWait as error:
            self._store.waits.settle(self._tenure.run_id, record.name, now, error=describe(error), reason="")
            return
        if found != child.id:
            self._store.family.follow(self._tenure.run_id, record, found)

    def _settle(self, record: StepRecord, now: int, output: str) -> None:
        self._store.waits.settle(self._tenure.run_id, record.name, now, output=output, reason="")

    async def start(self, name: str, trigger: Trigger) -> str:
        """Start a run, and do not wait for it: its id, or that of the run that stands for it."""
        await self._tenure.enter(name)
        key = self._history.key(name)
        made = self._check(key, trigger)

        def insert(record: StepRecord) -> StepRecord:
            run_id = derive(self._tenure.run_id, key)
            if made is not None and not self._store.runs.exists(run_id):
                child = dataclasses.replace(made, parent_run_id=self._tenure.run_id)
                run_id = self._services.admit_child(child, self._services.clock.now(), False)
            return record._replace(status=StepStatus.COMPLETED, output=encode(run_id))

        record = await self._writes.write(key, OperationKind.START, insert)
        found: str = decode(record.output or "null")
        return found

    def _check(self, key: str, trigger: Trigger) -> NewRun | None:
        """The run to be started under a key; ``None`` when it has been, and its end is recorded."""
        record = self._history.record(key)
        if record is not None and record.is_settled:
            return None
        job, text = trigger.check(self._services.registry)
        return trigger.new_run(derive(self._tenure.run_id, key), job, text)


async def _fan_out(
    name: str, children: Sequence[Callable[[], Awaitable[Any]]], max_concurrent: int | None, *, fail_fast: bool
) -> list[Any]:
    slots = asyncio.Semaphore(max_concurrent or max(len(children), 1))
    is_over = False

    async def run(child: Callable[[], Awaitable[Any]]) -> Any:
        nonlocal is_over
        async with slots:
            if is_over:
                return None
            try:
                return await child()
            except BaseException:
                is_over = fail_fast
                raise

    tasks = [asyncio.ensure_future(run(child)) for child in children]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION if fail_fast else asyncio.ALL_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _results(name, tasks)


def _results(name: str, tasks: Sequence[asyncio.Future[Any]]) -> list[Any]:
    failures = []
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ChildFailed):
            failures.append(error)
        elif error is not None:
            raise error
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(tasks)} runs of {name!r} did not complete", failures)
    return [task.result() for task in tasks]
