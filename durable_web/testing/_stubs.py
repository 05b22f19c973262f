"""Give steps results without calling their functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from .._codec import return_annotation
from .._context import Context
from .._engine import Engine
from .._execution.run import Execution
from .._files import Files
from .._jobs import Retry


def stub_steps(engine: Engine, results: Mapping[str, Any]) -> None:
    """Give the steps and transactions of an engine's jobs fixed results, without calling their functions.

    :param results: by the name of the step in the job body: the result; or an exception, which is raised instead; or a
        function, which is called instead of the step's with the same arguments. ``"compensate:<name>"`` stands for the
        compensation of a step.

    A stubbed step is recorded, retried and replayed like any other step. Each call replaces the stubs of the call
    before, and applies to runs that are claimed from then on, also after a ``restart``. Other steps are not changed.
    ``stub_steps(engine, {})`` removes all stubs.

    >>> stub_steps(e, {"charge": "ch_1", "ship": ConnectionError("no carrier")})
    >>> run = await e.trigger_with_signal(order, "A-1", "approval")
    >>> assert (await e.runs.wait(run.id)).error.message == "Step 'ship' failed: ConnectionError: no carrier"
    """
    make = functools.partial(_StubbedContext, dict(results)) if results else Context
    engine.settings.new_context = make
    if engine.is_running:
        engine.internals.dispatcher.new_context = make


class _StubbedContext(Context):
    def __init__(self, results: dict[str, Any], execution: Execution, files: Files) -> None:
        super().__init__(execution, files)
        self._results = results

    def step(  # type: ignore[override]
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *arguments: Any,
        retry: Retry | None = None,
        compensate: Callable[[Any], Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        if compensate is not None:
            compensate = self._instead_of(f"compensate:{name}", compensate)
        function = self._instead_of(name, function)
        return super().step(name, function, *arguments, retry=retry, compensate=compensate)

    async def transaction(  # type: ignore[override]
        self, name: str, function: Callable[..., Any], /, *arguments: Any
    ) -> Any:
        return await super().transaction(name, self._instead_of(name, function), *arguments)  # pyright: ignore

    def _instead_of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if name not in self._results:
            return function
        result = self._results[name]

        def stub(*arguments: Any) -> Any:
            if isinstance(result, BaseException):
                raise result
            return result(*arguments) if callable(result) else result

        stub.__annotations__ = {"return": return_annotation(function)}  # a result is decoded like the function's own
        return stub
