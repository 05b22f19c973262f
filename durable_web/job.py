"""Jobs: named async functions that an engine runs durably.

>>> @job("greet")
... async def greet(ctx, name: str) -> str:
...     return await ctx.step("compose", "Hello, {}!".format, name)
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .codec import return_annotation, type_hints
from .errors import DuplicateJobError, JobNotFound

JobFunction = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Job:
    """A job function and its name.

    ``input_type`` and ``output_type`` come from the function's annotations; enums, dataclasses and pydantic models
    named there are constructed, other types pass through. A job is still callable as the function that it was.
    """

    name: str
    function: JobFunction
    input_type: Any = field(default=Any, compare=False)
    output_type: Any = field(default=Any, compare=False)

    def __call__(self, *arguments: Any, **keywords: Any) -> Awaitable[Any]:
        return self.function(*arguments, **keywords)


def job(name: str) -> Callable[[JobFunction], Job]:
    """Make a job of an ``async def`` that takes a ``Context`` and the run's input.

    ``name`` is how runs find their code, also after a restart and a new release: keep it for ever.

    :raises TypeError: when it is not an ``async def`` of two parameters, or ``name`` is not a non-empty string.
    """
    if not isinstance(name, str) or not name:
        raise TypeError('A job needs a name: write @job("import-csv") above the function.')

    def decorate(function: JobFunction) -> Job:
        _check_signature(name, function)
        return Job(name, function, _input_annotation(function), return_annotation(function))

    return decorate


def _check_signature(name: str, function: JobFunction) -> None:
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"The job {name!r} must be an async function: write `async def`.")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise TypeError(f"The job {name!r} must take two arguments, the context and the input.") from None


def _input_annotation(function: JobFunction) -> Any:
    parameters = list(inspect.signature(function).parameters)
    return type_hints(function).get(parameters[1], Any)


class Registry:
    """The jobs that an engine knows, by name."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs: dict[str, Job] = {}
        for item in jobs:
            self.add(item)

    def add(self, item: Job) -> None:
        """Register a job; the same one twice is a no-op.

        :raises DuplicateJobError: when another function has that name already.
        :raises TypeError: when it is not a job.
        """
        if not isinstance(item, Job):
            raise TypeError(f'{item!r} is not a job: decorate the function with @job("name").')
        if self._jobs.setdefault(item.name, item) != item:
            raise DuplicateJobError(item.name)

    def __getitem__(self, name: str) -> Job:
        try:
            return self._jobs[name]
        except KeyError:
            raise JobNotFound(name, list(self._jobs)) from None

    def __contains__(self, name: str) -> bool:
        return name in self._jobs
