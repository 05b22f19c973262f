"""Kill an engine, at once or at a named commit, and start it again over the same database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any
from weakref import WeakKeyDictionary

from .._engine import Engine
from .._engine.running import RunningEngine
from .._errors import StorageError
from .._jobs import Job, Registry
from .._model import RunStatus, RunStatusFrame, StepStatus, StepStatusFrame, StoredFrame
from .._store import Store

_ENDED = frozenset({StepStatus.COMPLETED, StepStatus.FAILED})
_killed: WeakKeyDictionary[Engine, RunningEngine] = WeakKeyDictionary()


class SimulatedCrash(StorageError):
    """The engine has crashed because a test asked for it; raised to the caller whose commit it was."""

    def __init__(self, path: str, point: str) -> None:
        super().__init__(path, f"The engine was made to crash {point}. restart(engine) brings it back.")


class CrashPoint:
    """The commit at which an engine is to crash; made by :func:`crash_at`. ``await`` it to wait for the crash."""

    def __init__(
        self, engine: Engine, name: str, applies: Callable[[list[StoredFrame]], bool], *, before: bool
    ) -> None:
        self._engine = engine
        self._name = name
        self._applies = applies
        self._before = before
        self._reached = asyncio.Event()

    @property
    def is_reached(self) -> bool:
        """``True`` when the engine has crashed at this point."""
        return self._reached.is_set()

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        await self._reached.wait()
        await _end(self._engine)

    def watch(self, store: Store) -> None:
        """Check every transaction of a store that changes something."""
        database = store.database
        begin, commit = database.begin, database.commit
        changes = 0

        def begin_counting() -> None:
            nonlocal changes
            begin()
            changes = database.changes

        def commit_or_die() -> None:
            if self.is_reached or database.changes == changes or not self._applies(store.journal.frames):
                commit()
                return
            try:
                if self._before:
                    database.roll_back()
                else:
                    commit()
                raise SimulatedCrash(self._engine.path, self._name)
            finally:
                self._reached.set()
                _kill(self._engine)

        database.begin = begin_counting  # type: ignore[method-assign]
        database.commit = commit_or_die  # type: ignore[method-assign]


def crash_at(
    engine: Engine,
    *,
    before: str | RunStatus | int | None = None,
    after: str | RunStatus | int | None = None,
    status: str | None = None,
) -> CrashPoint:
    """Crash an engine right before, or right after, a commit; nothing is written from then on.

    :param before, after: the commit: a name means the commit in which the step or wait of this name ends; a
        ``RunStatus`` means the commit in which a run comes to this status; a number *n*, from 1, means the *n*-th
        commit from now that changes anything.
    :param status: with a name, the commit in which the step or wait comes to this status instead, for example
        ``"running"``.
    :raises ValueError: when not exactly one commit is named.

    When the engine is not running, the crash happens after its next start. ``restart`` starts the engine again.

    >>> run = await e.trigger(order, "A-1")
    >>> await crash_at(e, before="charge")  # it was called, and its result is lost
    >>> await restart(e)
    >>> await crash_at(e, before="approval", status="running")  # the wait is not recorded
    >>> await restart(e)
    >>> await crash_at(e, after=RunStatus.WAITING)  # it is parked
    >>> await restart(e)
    >>> point = crash_at(e, after=1)
    >>> try:
    ...     await e.runs.signal(run.id, "approval", "by Ada")
    ... except SimulatedCrash:
    ...     assert point.is_reached  # the signal was delivered, and the sender got no answer
    """
    point = after if before is None else before
    if point is None or (before is not None and after is not None):
        raise ValueError('Name one commit: crash_at(engine, before="charge"), or after=...')
    name = f"{'after' if before is None else 'before'} {_describe(point, status)}"
    made = CrashPoint(engine, name, _condition(point, status), before=before is not None)
    if engine.is_running:
        made.watch(engine.internals.store)
        return made
    settings = engine.settings
    open_store = settings.open_store

    def open_and_watch() -> Store:
        store = open_store()
        made.watch(store)
        return store

    settings.open_store = open_and_watch  # type: ignore[method-assign]
    return made


def _describe(point: str | RunStatus | int, status: str | None) -> str:
    if isinstance(point, int):
        return f"commit {point}"
    if isinstance(point, RunStatus):
        return f"a run was {point.value}"
    return f"{point!r} {'ended' if status is None else f'was {status}'}"


def _condition(point: str | RunStatus | int, status: str | None) -> Callable[[list[StoredFrame]], bool]:
    """A predicate that returns ``True`` for the frames of the commit that ``crash_at`` describes."""
    if isinstance(point, int):
        left = [point]

        def is_counted_down(frames: list[StoredFrame]) -> bool:
            left[0] -= 1
            return left[0] == 0

        return is_counted_down
    wanted = _ENDED if status is None else {StepStatus(status)}

    def is_meant(stored: StoredFrame) -> bool:
        frame = stored.to_frame()
        if isinstance(point, RunStatus):
            return isinstance(frame, RunStatusFrame) and frame.status == point
        return isinstance(frame, StepStatusFrame) and frame.name == point and frame.status in wanted

    return lambda frames: any(is_meant(frame) for frame in frames)


async def crash(engine: Engine) -> None:
    """Kill an engine at once, like its process: nothing more is written, and no lease is released.

    Waiters in this process get the error that the engine has stopped. Does nothing when the engine is not running.
    """
    if engine.is_running:
        _kill(engine)
        await _end(engine)


async def restart(engine: Engine, *jobs: Job) -> None:
    """Start an engine again over the same database, after crashing it if it still runs.

    :param jobs: replace the engine's jobs, as a new release would.

    >>> run = await e.trigger(order, "A-1")
    >>> await restart(e, order)
    """
    await crash(engine)
    await _end(engine)  # after a crash that was not awaited
    if jobs:
        engine.registry = Registry(list(jobs))
    await engine.start()


def _kill(engine: Engine) -> None:
    killed = engine.kill()
    if killed is not None:
        _killed[engine] = killed


async def _end(engine: Engine) -> None:
    """Wait until the executions of the killed engine have ended."""
    running = _killed.pop(engine, None)
    if running is not None:
        await running.dispatcher.end()
