"""How a job body is left by the engine, and not by the job."""

from __future__ import annotations

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
