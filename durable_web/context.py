"""Everything that a job body may do."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from .executor import Execution
from .files import Files
from .job import Retry


class Log:
    """Writes durable log lines: ``ctx.log.info("fetched", rows=12)``.

    A line belongs to the step that wrote it, or else to the run. Fields that cannot be stored are kept as their
    ``repr``: a log line never fails a job.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def debug(self, message: str, **fields: Any) -> None:
        """A detail for the developer."""
        self._execution.reports.log("debug", message, fields)

    def info(self, message: str, **fields: Any) -> None:
        """Something that happened as it should."""
        self._execution.reports.log("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Something that should be looked at."""
        self._execution.reports.log("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """Something that went wrong."""
        self._execution.reports.log("error", message, fields)


class Context:
    """What a job function gets as its first argument.

    >>> @job("thumbnails")
    ... async def thumbnails(ctx: Context, paths: list[str]) -> int:
    ...     for number, path in enumerate(paths):
    ...         await ctx.step(f"shrink {path}", shrink, path)
    ...         ctx.progress(number + 1, len(paths))
    ...     return len(paths)
    """

    def __init__(self, execution: Execution, files: Files) -> None:
        self._execution = execution
        self.files = files
        self.log = Log(execution)

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._execution.claim.run_id

    @property
    def attempt(self) -> int:
        """How many times the job body was begun for this run, counting this one."""
        return self._execution.claim.attempt

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled; for synchronous code that wants to stop early."""
        return self._execution.cancelled

    def raise_if_cancelled(self) -> None:
        """Leave the job at once when the run was cancelled, or is no longer this engine's for another reason."""
        self._execution.check()

    async def step(
        self, name: str, function: Callable[..., Any], /, *arguments: Any, retry: Retry | None = None
    ) -> Any:
        """Call ``function(*arguments)`` once and for all, and return its result.

        The result is committed before it is returned, and every later execution of the run gets it without calling
        the function. The function may be synchronous or asynchronous; keyword arguments for it go through
        ``functools.partial``. The second step of one name in an execution is recorded as ``name#2``.

        ``retry`` says whether a failure is followed by another attempt; by default what the job says.

        :raises StepFailed: when the function raised, now or when it was recorded, or its result cannot be stored.
        :raises NonDeterminismError: when ``name`` is recorded as another kind of operation.
        """
        return await self._execution.step(name, function, arguments, retry)

    async def transaction(self, name: str, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """A step whose rows and whose checkpoint are one commit.

        ``function(connection, *arguments)`` gets the engine's ``sqlite3.Connection`` inside an open transaction, works
        on the application's own tables, and returns the step's result. It must be synchronous, and must neither
        commit nor roll back, change pragmas, nor touch what begins with ``durable_``; it is not retried by itself.
        Raises what ``step`` raises.
        """
        return await self._execution.transaction(name, function, arguments)

    async def now(self, name: str = "now") -> datetime:
        """The time, in UTC: recorded once, and the same in every later execution."""
        return await self._execution.value(name, self._execution.time)

    async def uuid(self, name: str = "uuid") -> UUID:
        """A random UUID: recorded once, and the same in every later execution."""
        return await self._execution.value(name, lambda: UUID(bytes=os.urandom(16), version=4))

    async def random(self, name: str = "random") -> float:
        """A random number from 0 to 1: recorded once, and the same in every later execution."""
        return await self._execution.value(name, random.SystemRandom().random)

    async def set_event(self, key: str, value: Any) -> None:
        """Publish a value that others can read live, and after the end: ``engine.get_event(run_id, key)``."""
        await self._execution.publish(key, value)

    @property
    def step_ref(self) -> str:
        """``<run id>/<step name>`` of the step that asks: the same on every attempt, and so an idempotency key towards
        the outside. Outside of steps, the run's id."""
        return self._execution.reference()

    def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """Tell how far the run has come, in units of your own; may be called freely in a tight loop.

        The latest value is kept on the run; at most one frame in 100 ms is written, the last one always.
        """
        self._execution.reports.progress(current, total, message)
