"""How a job body is left by the engine, and not by the job."""

from __future__ import annotations

from typing import TypeVar

from .._errors import StepFailed
from .._store import NewRun

Kind = TypeVar("Kind", bound=BaseException)


class ContinueAsNew(BaseException):
    """Leaves a job body that goes on as another run. Not an ``Exception``: a body must not catch it."""

    def __init__(self, successor: NewRun) -> None:
        self.successor = successor


class Detached(BaseException):
    """Leaves a job body whose run is no longer executed here. Not an ``Exception``: a body must not catch it."""


def own_reason(error: BaseException) -> BaseException:
    """Why a body was left: of a task group's errors, what the engine itself has thrown."""
    return _first(error, Detached) or _first(error, ContinueAsNew) or error


def failed_step(error: BaseException) -> str | None:
    """The step whose failure has ended a body, if it was one's: of a task group's errors, that of the first."""
    found = _first(error, StepFailed)
    return None if found is None else found.step


def is_of_the_engine(error: BaseException) -> bool:
    """``True`` when the engine has thrown it, to leave a body."""
    return isinstance(own_reason(error), (Detached, ContinueAsNew))


def _first(error: BaseException, kind: type[Kind]) -> Kind | None:
    """The first error of a kind: the error itself, or one in its groups."""
    pending = [error]
    while pending:
        error = pending.pop()
        if isinstance(error, kind):
            return error
        if isinstance(error, BaseExceptionGroup):
            pending += reversed(error.exceptions)
    return None
