"""What the branches of a job body have under way: each is counted, told to stop, and waited for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executor import Execution

STUBBORN_SECONDS = 5.0  # for branches that swallow their cancellation; what they still try is refused


class Branches:
    """The branches of one execution that have a step or a wait under way."""

    def __init__(self, execution: Execution) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self._execution = execution
        self._at_rest: asyncio.Future[None] | None = None  # for whoever waits until there are none
        self._asking: asyncio.Task[Any] | None = None  # that its own run be left, and may not know it yet

    def under_way(self) -> UnderWay:
        """For ``with``: a branch is in the middle of something, and is told when that has to stop."""
        return UnderWay(self._execution)

    def leave(self, task: asyncio.Task[Any] | None) -> None:
        """A branch is no longer in the middle of something."""
        if task is not None:
            self.tasks.remove(task)
        self._execution.parking.land()
        if self._at_rest is not None and not self.tasks and not self._at_rest.done():
            self._at_rest.set_result(None)

    def cancel(self) -> None:
        """Tell the job body, and whatever it has under way in other tasks, to stop; but not the task that asks."""
        current = asyncio.current_task()
        for task in {self._execution.task, *self.tasks}:
            if task is not None and task is not current:
                task.cancel()

    def cancel_all(self) -> None:
        """``cancel``, and the task that asks as well, as where a job cancels its own run.

        That one is left alone when it finds out by itself, and leaves, before it waits for anything.
        """
        self.cancel()
        current = asyncio.current_task()
        if current is not None and (current is self._execution.task or current in self.tasks):
            self._asking = current
            asyncio.get_running_loop().call_soon(self._cancel_asking)

    def _cancel_asking(self) -> None:
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def excuse(self, task: asyncio.Task[Any]) -> None:
        """A task leaves by itself."""
        if task is self._asking:
            self._asking = None

    async def stop(self) -> None:
        """``cancel``, and return when everything has stopped, or will not."""
        self.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STUBBORN_SECONDS):
                while self.tasks:
                    self._at_rest = asyncio.get_running_loop().create_future()
                    await self._at_rest


class UnderWay:
    """What one branch is in the middle of; a class, not a generator, because every step is one."""

    __slots__ = ("_execution", "_task")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._task = asyncio.current_task()

    def __enter__(self) -> None:
        if self._task is not None:
            self._execution.branches.tasks.append(self._task)
        self._execution.parking.in_flight += 1

    def __exit__(self, *exception: object) -> None:
        self._execution.branches.leave(self._task)
