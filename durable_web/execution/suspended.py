"""What a suspended task is inside of: timers of asyncio, and the tasks that it holds or awaits.

What the frame of a suspended coroutine refers to is known to the garbage collector, the value stack included, on which
``async with`` keeps its context manager. So nothing of asyncio, nor of the event loop, has to be replaced to find the
timers that are set around a task; and it costs nothing until somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, FunctionType, GeneratorType, MethodType
from typing import Any, Protocol

_OWN_CODE = str(Path(__file__).parent)  # sets no timer in a frame
_COLLECTIONS = (list, tuple, set, frozenset)
_PLAIN = frozenset({str, int, float, bool, bytes, type(None), CodeType, FunctionType, CoroutineType, type})


class Timer(Protocol):
    """A timer of asyncio that a job body is inside of."""

    @property
    def key(self) -> Any:
        """What it is known by, however often it is found."""

    @property
    def is_active(self) -> bool:
        """Whether it is set, and has not fired."""

    @property
    def is_over(self) -> bool:
        """Whether it has fired, or was called off, and the body knows."""

    @property
    def set_for(self) -> float | None:
        """When it is due, by the clock of the loop; ``None`` when it is not known, or never."""

    def remaining(self, now: float) -> float | None:
        """Seconds from ``now``, by the clock of the loop, until it is due; ``None`` when it never is."""

    def move(self, when: float) -> None:
        """Let it be due at a time by the clock of the loop; at once, when that has passed."""


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """``asyncio.timeout``, and ``asyncio.wait_for`` since Python 3.12."""

    key: asyncio.Timeout

    @property
    def is_active(self) -> bool:
        return "[active]" in repr(self.key)  # entered, not left, not fired: its state has no other public form

    @property
    def is_over(self) -> bool:
        return not self.is_active and "[expiring]" not in repr(self.key)

    @property
    def set_for(self) -> float | None:
        return self.key.when()

    def remaining(self, now: float) -> float | None:
        when = self.key.when()
        return None if when is None else when - now

    def move(self, when: float) -> None:
        self.key.reschedule(when)


@dataclass(frozen=True, slots=True, eq=False)
class Pause:
    """``asyncio.sleep``, ``asyncio.wait(timeout=...)``, and ``asyncio.wait_for`` before Python 3.12.

    The loop of Pyodide does not say when its timers are due: of one that has been found, only the length is known.
    """

    key: asyncio.Future[Any]  # which the timer ends
    handle: asyncio.Handle
    seconds: float
    result: Any

    @property
    def is_active(self) -> bool:
        return not self.key.done()

    @property
    def is_over(self) -> bool:
        return self.key.done()

    @property
    def set_for(self) -> float | None:
        return self.handle.when() if isinstance(self.handle, asyncio.TimerHandle) else None

    def remaining(self, now: float) -> float | None:
        when = self.set_for
        return self.seconds if when is None else when - now

    def move(self, when: float) -> None:
        loop = self.key.get_loop()
        loop.call_later(max(when - loop.time(), 0), self._end)

    def _end(self) -> None:
        if not self.key.done():
            self.key.set_result(self.result)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The timers that a task is inside of, the outermost first, and the other tasks that it holds or awaits."""

    timers: list[Timer] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)


def look_around(task: asyncio.Task[Any], besides: Container[int] = ()) -> Surroundings:
    """What a suspended task is inside of; of one that is executing, nothing is seen.

    :param besides: the ``id`` of tasks that are not looked for.
    """
    return _Looking(task, besides).found


def by_age(name: str) -> tuple[int, str]:
    """Sorts the names of tasks as these were made: a set, in which asyncio keeps them, has no order."""
    return len(name), name


class _Looking:
    def __init__(self, task: asyncio.Task[Any], besides: Container[int]) -> None:
        self.found = Surroundings()
        self._besides = besides
        self._seen: set[int] = {id(task)}
        for awaiting in _awaited(task.get_coro()):
            if isinstance(awaiting, asyncio.Future):
                self._look_at(awaiting)
            elif not (isinstance(awaiting, CoroutineType) and awaiting.cr_code.co_filename.startswith(_OWN_CODE)):
                self._look_into(awaiting)
        self.found.tasks.sort(key=lambda held: by_age(held.get_name()))

    def _look_into(self, awaiting: Any) -> None:
        for part in gc.get_referents(awaiting):
            if type(part) not in _PLAIN:
                self._look_at(part)
        pause = _pause(awaiting)
        if pause is not None:
            self.found.timers.append(pause)

    def _look_at(self, part: Any) -> None:
        if _is(part, MethodType):
            part = part.__self__
        if _is(part, asyncio.Timeout):
            if self._is_new(part):
                self.found.timers.append(Limit(part))
        elif _is(part, asyncio.Future):
            self._look_at_future(part)
        elif type(part) in _COLLECTIONS:
            if _is(next(iter(part), None), asyncio.Future):
                self._look_at_all(part)
        elif type(part) is dict:
            for items in (part.keys(), part.values()):
                if _is(next(iter(items), None), asyncio.Future):
                    self._look_at_all(items)
        elif _is(part, contextlib.AbstractAsyncContextManager) and self._is_new(part):
            self._look_into_context_manager(part)

    def _look_at_all(self, parts: Iterable[Any]) -> None:
        for part in [part for part in parts if id(part) not in self._besides]:
            self._look_at(part)

    def _look_at_future(self, future: asyncio.Future[Any]) -> None:
        if id(future) in self._besides or future.done() or not self._is_new(future):
            return
        if isinstance(future, asyncio.Task):
            self.found.tasks.append(future)
        else:
            self._look_at_all(getattr(future, "_children", ()))  # of asyncio.gather

    def _look_into_context_manager(self, manager: Any) -> None:
        """A task group has tasks; others, such as those of ``asynccontextmanager``, may have entered a timeout."""
        if _is(manager, contextlib.AsyncExitStack):
            for _, exit_ in list(manager._exit_callbacks):
                self._look_at(exit_)
            return
        for part in _attributes(manager):
            if _is(part, AsyncGeneratorType) and self._is_new(part):
                for awaiting in _awaited(part):
                    self._look_into(awaiting)
            else:
                self._look_at(part)

    def _is_new(self, part: Any) -> bool:
        is_new = id(part) not in self._seen
        self._seen.add(id(part))
        return is_new


def _is(part: Any, kinds: type | tuple[type, ...]) -> bool:
    """``isinstance``, without asking the object: a dead weak proxy, or a lazy object, has an answer of its own."""
    return issubclass(type(part), kinds)


def _attributes(manager: Any) -> list[Any]:
    """The values that an object holds in its dictionary, without asking the object."""
    try:
        return list(object.__getattribute__(manager, "__dict__").values())
    except AttributeError:
        return []


def _awaited(awaiting: Any) -> Iterator[Any]:
    """A suspended coroutine, what it awaits, what that awaits ..., to the future in the end."""
    while awaiting is not None:
        yield awaiting
        if isinstance(awaiting, CoroutineType):
            awaiting = awaiting.cr_await
        elif isinstance(awaiting, GeneratorType):
            awaiting = awaiting.gi_yieldfrom
        elif isinstance(awaiting, AsyncGeneratorType):
            awaiting = awaiting.ag_await
        elif isinstance(awaiting, asyncio.Future):
            return
        else:  # an iterator over a future, or over an asynchronous generator
            kinds = (CoroutineType, GeneratorType, AsyncGeneratorType, asyncio.Future)
            awaiting = next((part for part in gc.get_referents(awaiting) if _is(part, kinds)), None)


_PAUSES = {
    asyncio.sleep.__code__: ("future", "h", "delay"),
    asyncio.tasks._wait.__code__: ("waiter", "timeout_handle", "timeout"),
    asyncio.wait_for.__code__: ("waiter", "timeout_handle", "timeout"),
}


def _pause(awaiting: Any) -> Pause | None:
    """The timer of a function of asyncio, if that is what is suspended there."""
    names = _PAUSES.get(awaiting.cr_code) if isinstance(awaiting, CoroutineType) else None
    if names is None or isinstance(awaiting.cr_await, CoroutineType):
        return None
    frame: FrameType | None = awaiting.cr_frame
    local = {} if frame is None else frame.f_locals
    future, handle, seconds = (local.get(name) for name in names)
    if not isinstance(future, asyncio.Future) or handle is None or seconds is None:
        return None
    return Pause(future, handle, seconds, local.get("result"))
