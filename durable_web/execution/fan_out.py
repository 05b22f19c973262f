"""Running many awaitable things side by side, with a limit, and one list of what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..errors import ChildFailed


async def fan_out(
    name: str, children: Sequence[Callable[[], Awaitable[Any]]], max_concurrent: int | None, *, fail_fast: bool
) -> list[Any]:
    """The results of calling and awaiting each of ``children``, in order.

    :param max_concurrent: how many are under way at a time; all at once by default.
    :param fail_fast: when one has failed, call no further one, and cancel the others.
    :raises ExceptionGroup: of the failures, in order.
    """
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
