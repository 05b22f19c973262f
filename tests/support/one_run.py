"""One claimed run and the parts that execute it: over a real store, without the engine around them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

from durable_web import Job, Retry, Run, job
from durable_web._errors import StorageError
from durable_web._execution.commits import GroupCommit
from durable_web._execution.run import Execution
from durable_web._execution.services import Services
from durable_web._jobs import Registry
from durable_web._store import Claim, Database, NewRun, StepRecord, Store
from durable_web.testing import MockClock
from durable_web.testing._clock import settle

OWNER = "the engine"
LEASE_MILLISECONDS = 30_000
ONE_ATTEMPT = Retry(max_attempts=1)


class OneRun:
    """A run of a job whose body is called with this object, so that it can ask any part for anything.

    Attributes: ``execution``, of the latest claim; ``told``, what the run has reported to its observer; ``troubles``
    and ``defects``, what it has reported to its engine; ``marked``, the steps that were marked as begun; ``is_alone``,
    ``True`` while no other run executes; ``is_told_of_changes``, ``False`` while another process ends its waits.
    """

    execution: Execution
    body: asyncio.Task[Any] | None = None

    def __init__(self, path: str, body: Callable[[OneRun], Awaitable[Any]], retry: Retry, others: tuple[Job, ...]):
        self.clock = MockClock()
        self.store = Store(Database(path, exclusive=True))
        self.told: list[str] = []
        self.troubles: list[StorageError] = []
        self.defects: list[BaseException] = []
        self.marked: list[str] = []
        self.dues: list[int] = []
        self.is_alone = True
        self.is_told_of_changes = True

        @job("one", retry=retry)
        async def one(run: Any, input: Any) -> Any:
            self.body = asyncio.current_task()
            return await body(run)

        self.job = one
        registry = Registry([one, *others])
        loop = asyncio.get_running_loop()
        self.commits = GroupCommit(self.store, self.clock, self.defects.append, loop)
        ids = itertools.count()
        self.services = Services(
            store=self.store,
            commits=self.commits,
            clock=self.clock,
            loop=loop,
            preserve_steps=True,
            is_alone=lambda: self.is_alone,
            claim=lambda run_id: None,
            on_due=self.dues.append,
            registry=registry,
            webhook_url=None,
            new_id=lambda: f"RUN{next(ids):023}",
            admit_child=self._admit_child,
            on_storage_trouble=lambda claim, error: self.troubles.append(error),
            mark_step=lambda run_id, step: self.marked.append(step),
            report_defect=lambda error, run_id: self.defects.append(error),
        )
        self.id = self.services.new_id()
        with self.store.transaction():
            self.store.runs.insert(NewRun(self.id, "one", None, "null", {}), self.clock.now())
        self.store.on_change = self._on_change

    def _on_change(self, run_ids: set[str]) -> None:
        if self.is_told_of_changes and self.id in run_ids and hasattr(self, "execution"):
            self.execution.refresh()

    def _admit_child(self, child: NewRun, now: int, is_awaited: bool) -> str:
        self.store.runs.insert(child, now)
        return child.id

    # --- what the parts report ---------------------------------------------------------------------------------------

    def on_settled(self, execution: Execution) -> None:
        self.told.append("settled")

    def on_parked(self, execution: Execution) -> None:
        self.told.append("parked")

    def on_wanted(self, execution: Execution) -> None:
        self.told.append("wanted")

    def on_left(self, execution: Execution) -> None:
        self.told.append("left")

    def close_forgotten(self, awaited: Iterable[Any]) -> None:
        """The body of a test asks the parts themselves: there is nothing to remember."""

    # --- what tests do -----------------------------------------------------------------------------------------------

    def claim(self) -> Claim:
        """Lease the run."""
        now = self.clock.now()
        with self.store.transaction():
            claim = self.store.runs.claim(OWNER, now, now + LEASE_MILLISECONDS, [], lambda claim: None, alone=True)
        assert claim is not None
        return claim

    async def execute(self) -> Execution:
        """Claim the run, call its body, and let everything happen that can happen now."""
        self.execution = Execution(self.services, self, self.claim(), self.job)
        self.execution.begin(self, copy_context())
        await settle()
        return self.execution

    async def cancel_body(self) -> None:
        """Cancel the task in which the body stands, as another task of it may do."""
        assert self.body is not None
        self.execution.loop.call_soon(self.body.cancel)
        await settle()

    def lose(self) -> None:
        """Another engine takes the run, as after the lease has run out; this one is not told."""
        with self.store.transaction():
            self.store.runs.release(self.execution.claim, self.clock.now(), "its lease has run out")
        self.claim()

    async def restart(self) -> Execution:
        """The engine dies: nothing of the run is left in memory, and it is claimed and executed again."""
        self.execution.detach()
        self.commits.discard()
        await settle()
        if self.run.status in ("running", "cancelling"):
            with self.store.transaction():
                self.store.runs.release(self.execution.claim, self.clock.now(), "its engine has died")
        else:
            with self.store.transaction():
                self.store.runs.wake(self.id, self.clock.now())
        return await self.execute()

    @property
    def run(self) -> Run:
        """The run as it is stored."""
        return self.store.runs.get(self.id)

    @property
    def records(self) -> dict[str, StepRecord]:
        """What the run has recorded, by key."""
        return self.store.steps.load(self.id)

    @property
    def lines(self) -> list[str]:
        """The messages of the log lines that are stored."""
        frames = self.store.read_logs(self.id, 0, 1 << 50, ["debug", "info", "warning", "error"], 1000)
        return [frame.to_frame().message for frame in frames]  # type: ignore[union-attr]

    async def step(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """A step of the body."""
        return await self.execution.steps.step(name, function, arguments, options.get("retry"), options.get("undo"))

    async def succeeds(self) -> Any:
        """The output of the run, which has completed."""
        await settle()
        assert self.run.status == "completed", self.run
        return self.run.output


@asynccontextmanager
async def one_run(
    path: str, body: Callable[[OneRun], Awaitable[Any]], *others: Job, retry: Retry = ONE_ATTEMPT
) -> AsyncIterator[OneRun]:
    """A run that has begun, on a database of its own.

    :param others: jobs whose runs its body may start; they are not executed.
    """
    run = OneRun(path, body, retry, others)
    await run.execute()
    try:
        yield run
    finally:
        run.execution.detach()
        run.commits.discard()
        await settle()
        run.store.close()
        assert run.defects == []
