"""How a job body is left by the engine, and not by the job."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from ..store import NewRun


class ContinueAsNew(BaseException):
    """Leaves a job body that goes on as another run. Not an ``Exception``: a body must not catch it."""

    def __init__(self, successor: NewRun) -> None:
        self.successor = successor


class Unwind(BaseException):
    """Leaves a job body whose run is no longer this engine's. Not an ``Exception``: a body must not catch it."""


def own_reason(error: BaseException) -> BaseException:
    """Why a body was left: of a task group's errors, what the engine itself has thrown."""
    if isinstance(error, BaseExceptionGroup):
        for kind in (Unwind, ContinueAsNew):
            found = error.subgroup(kind)
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            if found is not None:
                return found
    return error


def is_of_the_engine(error: BaseException) -> bool:
    """Whether the engine has thrown it, to leave a body."""
    return isinstance(own_reason(error), (Unwind, ContinueAsNew))


def is_closing(tasks: Collection[asyncio.Task[Any] | None]) -> bool:
    """Whether Python closes the coroutine that asks, because it will never go on, and none of its tasks executes it."""
    try:
        return asyncio.current_task() not in tasks
    except RuntimeError:  # no event loop is left
        return True
