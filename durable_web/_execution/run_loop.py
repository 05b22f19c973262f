"""The run loop: a small ``asyncio`` event loop that belongs to one run.

The body of a run, and every task that it makes, executes here. ``call_soon`` goes to a queue of the run's own, which a
callback of the real loop (the *drain*) empties. So the engine knows exactly when the run is *at rest*: no callback is
ready. Only then it delivers the next recorded outcome. What would let a replay differ is refused: ``NotInBody``.

The approach is that of Temporal's Python SDK, which gives each workflow an event loop of its own
(https://github.com/temporalio/sdk-python, ``temporalio/worker/_workflow_instance.py``).
"""

from __future__ import annotations

import asyncio
import sys
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import Context, copy_context
from typing import Any, NoReturn, Protocol

from .._errors import BodyNeverRests, NotInBody

SLICE_SECONDS = 0.004
"""How long one drain may keep the real loop from its other work."""
TURNS = 10_000
"""A run with outcomes to deliver that has not rested for so many turns never will."""
CANCELLATIONS = 3
"""How often a task that the body left is cancelled before it is dropped."""
CLOSINGS = 100
"""How many blocks of a task that is dropped may await something in their `finally`; each is closed by itself."""
_CHECK_EVERY = 16  # callbacks between two looks at the time
_KEPT = 64  # tasks or generators; beyond twice as many the finished ones are forgotten

_leave_task: Any = asyncio.tasks._leave_task
_enter_task: Any = asyncio.tasks._enter_task
_current_task = asyncio.current_task
_get_running_loop = asyncio._get_running_loop
_set_running_loop = asyncio._set_running_loop


class Owner(Protocol):
    """What the loop asks of the run that it belongs to."""

    def may_drain(self) -> bool:
        """``False`` while the run has no lease: its callbacks wait."""
        ...

    @property
    def has_outcomes(self) -> bool:
        """``True`` when a recorded outcome waits to be delivered."""
        ...

    def loop_time(self) -> float:
        """The time of the outcome delivered last, in seconds since 1970-01-01 UTC."""
        ...

    def at_rest(self) -> bool:
        """Nothing is ready: deliver the next outcome, if there is one. ``True`` when something is ready after it."""
        ...

    def add_timer(self, timer: RunTimer) -> None:
        """A timer was set."""

    def cancel_timer(self, timer: RunTimer) -> None:
        """A timer was cancelled before it fired."""

    def stopped_by(self, error: BaseException) -> None:
        """A callback raised ``SystemExit`` or ``KeyboardInterrupt``, or the body never rests."""

    def report_defect(self, error: BaseException) -> None:
        """The engine itself failed while the run was at rest."""


class _Numbered:
    """A task or future whose hash is fixed by its run and its number in it.

    ``asyncio.wait`` returns sets, and ``TaskGroup`` keeps one: with the usual hash, an address, a replay would iterate
    over them in another order. The run's id is mixed in, because asyncio keeps all tasks of a process in one set.
    """

    number: int

    def __hash__(self) -> int:
        return self.number


class RunFuture(_Numbered, asyncio.Future[Any]):
    """A future of a run loop."""


class RunTask(_Numbered, asyncio.Task[Any]):
    """A task of a run loop."""

    def __init__(self, coro: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self.number = number
        super().__init__(coro, **options)


class RunTimer(asyncio.TimerHandle):
    """A timer of a run loop; ``operation`` is set by the owner, as which it is recorded."""

    operation: Any = None
    _scheduled: bool


class RunLoop(asyncio.AbstractEventLoop):
    """The event loop of one run.

    :param real: the loop that executes the drains.
    :param owner: the run.
    :param run_id: determines, with their number, the hashes of tasks and futures.
    """

    def __init__(self, real: asyncio.AbstractEventLoop, owner: Owner, run_id: str) -> None:
        self.real = real
        self._context = copy_context()
        self.real_hooks: Any = sys.get_asyncgen_hooks()
        self._owner = owner
        self._seed = zlib.crc32(run_id.encode())
        self._made = 0
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []  # held strongly, in the order in which they began
        self._generators: dict[int, Any] = {}  # asynchronous generators, likewise
        self._most_tasks = self._most_generators = _KEPT
        self._is_scheduled = False
        self._is_draining = False
        self._is_closed = False
        self._closed: Callable[[], None] | None = None  # to be called after the drain
        self._turns = 0
        self._slice_end = 0.0
        self.task_outside: asyncio.Task[Any] | None = None
        """The task that is left while code of the engine, or of a step, is executed for it."""
        self._factory: Any = None
        self._is_eager = False
        self._handler: Any = None
        self._hooks = self._generator_began, self._generator_left
        self.outside = _OutsideOf(self)
        """For ``with``, inside the body: as ``Outside``."""

    # --- scheduling --------------------------------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self._is_scheduled and not self._is_draining:
            self.wake()
        return handle

    def wake(self) -> None:
        """Let the real loop drain this one soon."""
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            self.real.call_soon(self._drain, context=self._context.copy())

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = RunTimer(when, callback, args, self, context)
        timer._scheduled = True  # so that its `cancel` calls `_timer_handle_cancelled`
        self._owner.add_timer(timer)
        return timer

    def _timer_handle_cancelled(self, timer: RunTimer) -> None:
        self._owner.cancel_timer(timer)

    def fire(self, timer: RunTimer) -> None:
        """Make the callback of a timer ready."""
        timer._scheduled = False
        self._ready.append(timer)

    def time(self) -> float:
        """The time of the outcome delivered last: the same in every replay. Seconds since 1970-01-01 UTC."""
        return self._owner.loop_time()

    @property
    def is_ready(self) -> bool:
        """``True`` when a callback is ready: the run is not at rest."""
        return bool(self._ready)

    @property
    def must_give_way(self) -> bool:
        """``True`` when the drain has taken long enough for the real loop to have its turn."""
        return time.perf_counter() > self._slice_end

    def _drain(self) -> None:
        """Go on turn after turn, and from rest through delivery to the next turn, for at most ``SLICE_SECONDS``.

        Only ever a callback of the real loop, never nested and never inside a task.
        """
        self._is_scheduled = False
        if self._is_closed or self._is_draining or not self._owner.may_drain():
            return
        self._is_draining = True
        self.real_hooks = sys.get_asyncgen_hooks()
        self._slice_end = time.perf_counter() + SLICE_SECONDS
        has_rested = False
        try:
            while not self._is_closed:
                if self._ready:
                    self._take_turns()
                    if self._ready:  # the time is over, or it was closed
                        return
                self._turns = 0
                if self._is_closed:
                    return
                if not self._owner.at_rest():
                    has_rested = True
                    return
                if self.must_give_way:
                    return
        except (SystemExit, KeyboardInterrupt, BodyNeverRests) as error:
            self._turns = 0
            self._owner.stopped_by(error)
        except BaseException as defect:
            has_rested = True
            self._owner.report_defect(defect)
        finally:
            self._is_draining = False
            if self._closed is not None:
                self.real.call_soon(self._closed)
            elif self._ready or not has_rested:  # also when the time was over just before rest
                self.wake()

    def _take_turns(self) -> None:
        """Call what is ready, turn after turn; a turn calls what was ready when it began."""
        ready, calls = self._ready, 0
        hooks = self.real_hooks
        sys.set_asyncgen_hooks(*self._hooks)
        _set_running_loop(self)
        try:
            while ready and not self._is_closed:
                self._turns += 1
                if self._turns > TURNS and self._owner.has_outcomes:
                    raise BodyNeverRests(self.places())
                for _ in range(len(ready)):
                    handle = ready.popleft()
                    if not handle._cancelled:
                        handle._run()
                    calls += 1
                    if self._is_closed or (not calls % _CHECK_EVERY and time.perf_counter() > self._slice_end):
                        return
        finally:
            _set_running_loop(self.real)
            sys.set_asyncgen_hooks(*hooks)

    # --- futures, tasks, asynchronous generators ---------------------------------------------------------------------

    def _number(self) -> int:
        self._made += 1
        return (self._seed + self._made * 0x9E3779B1) & 0x7FFFFFFF  # Knuth's multiplicative hashing

    def create_future(self) -> asyncio.Future[Any]:
        future = RunFuture(loop=self)
        future.number = self._number()
        return future

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **options: Any
    ) -> asyncio.Task[Any]:
        if not asyncio.iscoroutine(coro):
            coro = _awaited(coro)
        _refuse_as_completed(coro)
        if context is not None:
            options["context"] = context
        if self._is_eager and options.get("eager_start") is None:
            options["eager_start"] = True
        if self._factory is None or self._is_eager:  # with a fixed hash, which tasks of another factory have not
            task: asyncio.Task[Any] = RunTask(coro, self._number(), loop=self, name=name, **options)
        else:
            task = self._factory(self, coro, **options)
            if name is not None:
                task.set_name(name)
        self._tasks.append(task)
        if len(self._tasks) > self._most_tasks:
            self._tasks = [each for each in self._tasks if not each.done()]
            self._most_tasks = _KEPT + 2 * len(self._tasks)
        return task

    def set_task_factory(self, factory: Any) -> None:
        self._factory = factory
        self._is_eager = factory is not None and factory is getattr(asyncio, "eager_task_factory", None)

    def get_task_factory(self) -> Any:
        return self._factory

    def _generator_began(self, generator: Any) -> None:
        self._generators[id(generator)] = generator  # kept, so that the garbage collector never ends it
        if len(self._generators) > self._most_generators:
            self._generators = {key: each for key, each in self._generators.items() if each.ag_frame is not None}
            self._most_generators = _KEPT + 2 * len(self._generators)

    def _generator_left(self, generator: Any) -> None:
        """Only after the body was dropped: nothing of it goes on."""

    @property
    def has_left_overs(self) -> bool:
        """``True`` when a task or an asynchronous generator of the body has not ended."""
        return any(not task.done() for task in self._tasks) or any(
            each.ag_frame is not None for each in self._generators.values()
        )

    async def close_left_overs(self) -> None:
        """Inside the run, when its body has ended: cancel the tasks that it left, then close the generators.

        A task that goes on after ``CANCELLATIONS`` cancellations is dropped when the run ends.
        """
        own = asyncio.current_task()
        for _ in range(CANCELLATIONS):
            left = [task for task in self._tasks if task is not own and not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        while self._generators:
            generator = self._generators.pop(next(iter(self._generators)))
            try:
                await generator.aclose()
            except (Exception, asyncio.CancelledError) as error:  # ends neither the run nor the closing of the others
                message = f"an asynchronous generator of the job body could not be closed: {error!r}"
                self.call_exception_handler({"message": message, "exception": error, "asyncgen": generator})

    def cancel_outside(self) -> None:
        """Cancel the task for which the engine executes something now; it ends with the next thing that it awaits."""
        if self.task_outside is not None:
            self.task_outside.cancel()

    def cancel_tasks(self) -> None:
        """Cancel every task that has not ended, but the one for which the engine executes something now."""
        for task in list(self._tasks):
            if not task.done() and task is not self.task_outside:
                task.cancel()

    def places(self) -> list[str]:
        """Where each task stands: file and line of every frame, the outermost first."""
        return [" > ".join(_lines(task.get_coro())) for task in self._tasks if not task.done()]

    def close(self, closed: Callable[[], None]) -> None:  # type: ignore[override]
        """Call nothing any more, and then ``closed``, as a callback of the real loop, once no drain is executing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_draining:
            self._closed = closed
        else:
            self.real.call_soon(closed)

    def coroutines(self) -> list[Any]:
        """What the tasks execute that have not ended."""
        return [task.get_coro() for task in self._tasks if not task.done()]

    def drop_tasks(self, error: BaseException) -> None:
        """Throw ``error`` where each task stands, the youngest first, and drop what does not end of it.

        :raises RuntimeError: inside a drain of this loop.
        """
        if self._is_draining:
            raise RuntimeError("The tasks of a run cannot be dropped while it executes.")
        self._is_closed = True
        before = _get_running_loop()
        _set_running_loop(self)
        try:
            for task in reversed(self._tasks):
                task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
                if not task.done():
                    _throw(task.get_coro(), error)
        finally:
            _set_running_loop(before)
        self._ready.clear()
        self._tasks.clear()
        self._generators.clear()

    # --- the rest of what asyncio asks of a loop ---------------------------------------------------------------------

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._is_closed

    get_debug = staticmethod(bool)  # pyright: ignore[reportAssignmentType]  # always False; every handle asks, and this is no call of Python's

    def set_debug(self, enabled: bool) -> None:
        """There is no debug mode."""

    def set_exception_handler(self, handler: Any) -> None:
        self._handler = handler

    def get_exception_handler(self) -> Any:
        return self._handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.real.default_exception_handler(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._is_closed:
            return
        if self._handler is None:
            self.real.call_exception_handler(context)
        else:
            self._handler(self, context)


class _OutsideOf:
    """``Outside``, of one loop, which is running. One object serves all steps: it cannot be entered twice."""

    __slots__ = ("_loop",)

    def __init__(self, loop: RunLoop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        loop = self._loop
        task = loop.task_outside = _current_task(loop)
        if task is not None:
            _leave_task(loop, task)
        _set_running_loop(loop.real)
        sys.set_asyncgen_hooks(*loop.real_hooks)

    def __exit__(self, *exception: object) -> None:
        loop = self._loop
        sys.set_asyncgen_hooks(*loop._hooks)
        _set_running_loop(loop)
        task, loop.task_outside = loop.task_outside, None
        if task is not None:
            _enter_task(loop, task)


class Outside:
    """For ``with``: execute what is not the body's own as the real loop would, with its generator hooks and no task.

    Does nothing where no run loop is running.
    """

    __slots__ = ("_outside",)

    def __enter__(self) -> None:
        loop = _get_running_loop()
        self._outside = loop.outside if isinstance(loop, RunLoop) else None
        if self._outside is not None:
            self._outside.__enter__()

    def __exit__(self, *exception: object) -> None:
        if self._outside is not None:
            self._outside.__exit__()


def is_outside() -> bool:
    """``True`` where no run loop is running."""
    return not isinstance(_get_running_loop(), RunLoop)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _throw(coro: Any, error: BaseException) -> None:
    if coro is None:
        return
    try:
        coro.throw(error)
    except BaseException:  # whatever it makes of it: it has ended
        return
    for _ in range(CLOSINGS):
        try:
            coro.close()
        except BaseException:  # it awaits again, or it has ended: then the next time does nothing
            continue
        return


def _lines(coro: Any) -> Iterator[str]:
    while getattr(coro, "cr_frame", None) is not None:
        yield f"{coro.cr_code.co_filename}:{coro.cr_frame.f_lineno}"
        coro = coro.cr_await


def _refuse_as_completed(coro: Any) -> None:
    """``asyncio.as_completed`` puts coroutines into a set, in no fixed order, before it makes tasks of them.

    :raises NotInBody: when it is that which asks for a task.
    """
    frame = sys._getframe(2)
    if getattr(coro, "__name__", "") == "_wrap_awaitable" or not frame.f_code.co_name.endswith("ensure_future"):
        return
    for _ in range(4):
        caller = frame.f_back
        if caller is None or caller.f_globals.get("__name__") != "asyncio.tasks":
            return
        frame = caller
        if (
            frame.f_code.co_name == "as_completed"
            or type(frame.f_locals.get("self")).__name__ == "_AsCompletedIterator"
        ):
            coro.close()
            raise NotInBody(
                "The order in which asyncio.as_completed starts coroutines",
                "give it tasks: asyncio.as_completed([asyncio.create_task(...) for ...])",
            )


def _refused(name: str) -> Callable[..., NoReturn]:
    def method(self: RunLoop, *args: Any, **options: Any) -> NoReturn:
        for argument in args:
            if asyncio.iscoroutine(argument):
                argument.close()
        raise NotInBody(f"What the event loop's {name} does")

    return method


for _name in dir(asyncio.AbstractEventLoop):  # nothing is delegated to the real loop by default
    if not _name.startswith("_") and _name not in vars(RunLoop):
        setattr(RunLoop, _name, _refused(_name))
