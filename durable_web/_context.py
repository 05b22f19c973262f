"""The context of a job: every operation that a job body may use."""

from __future__ import annotations

import functools
import inspect
import os
import random
import sqlite3
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn, TypeVar, TypeVarTuple, Unpack, cast, overload
from uuid import UUID

from ._execution.run import Execution
from ._files import Files
from ._jobs import Job, Retry
from ._triggers import ChildOptions, Trigger

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")
Input = TypeVar("Input")
Output = TypeVar("Output")
_BY_NAME: Any = object()
MOST_REMEMBERED = 64
"""So many operations are remembered until it is looked which of them have begun; of many at once, twice as many."""
Method = TypeVar("Method", bound=Callable[..., Any])


def _operation(method: Method) -> Method:
    """Notes that an operation was asked for: one that is never awaited does nothing, which the run must not hide."""

    @functools.wraps(method)
    def asking(self: Context, *arguments: Any, **options: Any) -> Any:
        asked = method(self, *arguments, **options)
        self._remember(method.__name__, arguments[0] if arguments else None, asked)
        return asked

    return cast("Method", asking)


class Log:
    """Writes durable log lines: ``ctx.log.info("fetched", rows=12)``.

    A line belongs to the step that wrote it, or else to the run. Fields that cannot be stored are kept as their
    ``repr``, if it works: a log line never fails a job. The message may be given as ``message=`` too.

    Lines may also be written by another thread, such as that of ``await ctx.step("work", asyncio.to_thread, work)``:
    they are written before the step ends.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def debug(self, message: str = _BY_NAME, /, **fields: Any) -> None:
        """A detail for the developer."""
        self._write("debug", message, fields)

    def info(self, message: str = _BY_NAME, /, **fields: Any) -> None:
        """Something that happened as it should."""
        self._write("info", message, fields)

    def warning(self, message: str = _BY_NAME, /, **fields: Any) -> None:
        """Something that needs attention."""
        self._write("warning", message, fields)

    def error(self, message: str = _BY_NAME, /, **fields: Any) -> None:
        """Something that went wrong."""
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        if message is _BY_NAME:
            message = fields.pop("message", "")
        self._execution.reporting.log(level, message, fields)


class Webhook:
    """A webhook that another system calls; made by ``ctx.webhook``.

    Attributes: ``token``, and ``url``, which the engine's ``webhook_url`` makes of the token (``None`` without one).
    """

    def __init__(self, execution: Execution, name: str, token: str, url: str | None) -> None:
        self.token = token
        self.url = url
        self._execution = execution
        self._name = name

    async def wait(self, timeout: float | timedelta | None = None) -> Any:
        """Wait for the body of ``engine.deliver_webhook(token, body)``, which may have been delivered already.

        :raises WebhookTimeout: when nothing was delivered within ``timeout`` seconds of the wait's first beginning.
        """
        return await self._execution.waits.webhook_body(self._name, _optional_seconds(timeout))


class Update:
    """An update that was accepted; made by ``ctx.on_update``. Attributes: ``name`` and ``argument``."""

    def __init__(self, execution: Execution, name: str, message_id: str, argument: Any) -> None:
        self.name = name
        self.argument = argument
        self._execution = execution
        self._message_id = message_id

    async def answer(self, value: Any = None) -> None:
        """Send the answer to the sender; only the first answer counts."""
        await self._execution.waits.answer(self.name, self._message_id, value)


class Context:
    """What a job function gets as its first argument.

    >>> @job("thumbnails")
    ... async def thumbnails(ctx: Context, paths: list[str]) -> int:
    ...     for number, path in enumerate(paths):
    ...         await ctx.step(f"shrink {path}", shrink, path)
    ...         ctx.progress(number + 1, len(paths))
    ...     return len(paths)

    The job function, the *body*, only orchestrates; work is done in the functions of its steps.

    **Replay.** When a run goes on after a restart, or after it was parked and dropped from memory, its body is called
    again from the top. Operations that have ended return what was recorded, and nothing is called a second time. So the
    body's decisions must depend only on its input and on recorded results: read the time with ``ctx.now()``, and files,
    the network or random numbers in a step.

    **Order.** Each outcome of an operation (a step, a wait, a child run, a timer) is numbered when it is recorded. A
    body goes on with one outcome at a time, in that order, in every execution. So tasks that share a queue, the winner
    of a race and the order of ``asyncio.as_completed`` are the same in a replay. (Give ``as_completed`` tasks, not
    coroutines: it starts coroutines in no fixed order, which is rejected.)

    **Names.** An operation is recorded under its name; the second operation of a name under ``name#2``, counted over
    the whole run, whichever task calls it. Give each operation a different name: then changed code finds the records of
    active runs. The same name with another kind of operation is a ``NonDeterminismError``.

    **Timers.** The body has an event loop of its own, whose timers are durable: ``asyncio.sleep``, ``timeout``,
    ``wait_for``, ``wait(timeout=...)`` and ``loop.call_later``, around waits and around steps. A timer is due by the
    engine's clock, counted from when the body first set the timer. The due time is recorded with the run's next commit,
    and survives restarts. A run that dies before that commit sets the timer anew. ``loop.time()`` is the time of the
    latest outcome. In ``engine.runs.steps`` timers have the kind ``"timer"``.

    **Limits of a body.** Threads, sockets, subprocesses, ``run_in_executor`` and ``call_soon_threadsafe`` raise
    ``NotInBody``: do them in a step. A primitive of asyncio, such as a lock, belongs to one run. ``finally`` in a body
    is executed once per execution: when a waiting run is dropped from memory, too.
    """

    def __init__(self, execution: Execution, files: Files) -> None:
        self._execution = execution
        self._asked: list[tuple[str, Any, types.CoroutineType[Any, Any, Any]]] = []
        self._most_asked = MOST_REMEMBERED
        self.files = files
        self.log = Log(execution)

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._execution.tenure.run_id

    @property
    def attempt(self) -> int:
        """How many times the job body was begun for this run, counting this one."""
        return self._execution.claim.attempt

    @property
    def cancelled(self) -> bool:
        """``True`` when the run was cancelled; for synchronous code that stops early, also in another thread."""
        return self._execution.tenure.is_cancelled

    def raise_if_cancelled(self) -> None:
        """Raise out of the job when the run was cancelled, or this engine no longer owns the run.

        In another thread it raises out of the function that runs there.
        """
        self._execution.tenure.check()

    @overload
    def step(
        self,
        name: str,
        function: Callable[[Unpack[Arguments]], Awaitable[Result]],
        /,
        *arguments: *Arguments,
        retry: Retry | None = None,
        compensate: Callable[[Result], object] | None = None,
    ) -> Coroutine[Any, Any, Result]: ...

    @overload
    def step(
        self,
        name: str,
        function: Callable[[Unpack[Arguments]], Result],
        /,
        *arguments: *Arguments,
        retry: Retry | None = None,
        compensate: Callable[[Result], object] | None = None,
    ) -> Coroutine[Any, Any, Result]: ...

    def step(  # type: ignore[misc]
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *arguments: Any,
        retry: Retry | None = None,
        compensate: Callable[[Any], Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call ``function(*arguments)``, record its result, and return it.

        The result is committed before it is returned, and every later execution of the run gets it without calling the
        function. The function may be synchronous or asynchronous; keyword arguments for it go through
        ``functools.partial``. It is called on the real event loop, outside the job body: the body does not see context
        variables that the function sets, and the function may not use operations of the context.

        The second step of one name in a run is recorded as ``name#2``, whichever task calls it. Give each step a
        different name: then changed code finds the records of active runs.

        ``retry`` decides whether a failure is followed by another attempt; the default is the job's ``retry``.

        ``compensate`` undoes the step: when the run fails, or is cancelled with ``compensate=True``, it is called with
        the step's result, after the compensations of the steps that completed later, as a durable step
        ``compensate:<name>`` with the same ``retry``; its return value is not kept. A compensation that fails is
        recorded, and the others are called all the same. Functions that are executing are cancelled first; steps that
        complete nevertheless are compensated as well. The run keeps its slot until all steps are compensated, also
        between two attempts; its child runs compensate theirs at the same time.

        When the body stops waiting for a step, for example because of ``asyncio.timeout``, the step's function is
        cancelled. The task goes on at once; its next operation begins when the function has ended, after 5 seconds at
        the latest.

        :raises StepFailed: when the function raised, now or when it was recorded, or its result cannot be stored.
        :raises NonDeterminismError: when ``name`` is recorded as another kind of operation.
        :raises NotInStep: when a step's function calls it instead of the job body.
        """
        asked: types.CoroutineType[Any, Any, Any] = self._execution.steps.step(  # type: ignore[assignment]
            name, function, arguments, retry, compensate
        )
        if len(self._asked) >= self._most_asked:
            self._forget_begun()
        self._asked.append(("step", name, asked))
        return asked

    def _remember(self, method: str, name: Any, asked: types.CoroutineType[Any, Any, Any]) -> None:
        if len(self._asked) >= self._most_asked:
            self._forget_begun()
        self._asked.append((method, name, asked))

    def _forget_begun(self) -> None:
        self._asked = self._not_begun()
        self._most_asked = max(MOST_REMEMBERED, 2 * len(self._asked))

    def _not_begun(self) -> list[tuple[str, Any, types.CoroutineType[Any, Any, Any]]]:
        return [
            each
            for each in self._asked
            if each[2].cr_frame is not None and inspect.getcoroutinestate(each[2]) == inspect.CORO_CREATED
        ]

    def close_forgotten(self, awaited: Iterable[Any]) -> str | None:
        """At the end of the body: close the operations that it has asked for and never awaited, and say which.

        :param awaited: the coroutines of tasks that have not begun.
        """
        begun_later = set(map(id, awaited))
        forgotten = [each for each in self._not_begun() if id(each[2]) not in begun_later]
        self._asked.clear()
        for _, _, asked in forgotten:
            asked.close()
        calls = [f"ctx.{method}({'' if name is None else repr(name) + ', '}...)" for method, name, _ in forgotten]
        return ", ".join(dict.fromkeys(calls)) or None

    @_operation
    async def transaction(
        self,
        name: str,
        function: Callable[[sqlite3.Connection, Unpack[Arguments]], Result],
        /,
        *arguments: *Arguments,
    ) -> Result:
        """A step whose rows and checkpoint are written in one commit.

        ``function(connection, *arguments)`` gets the engine's ``sqlite3.Connection`` inside an open transaction, works
        on the application's own tables, and returns the step's result. It must be synchronous, and must neither commit
        nor roll back, change pragmas, nor change tables whose names begin with ``durable_``; it is not retried
        automatically. Raises what ``step`` raises.
        """
        result: Result = await self._execution.writes.transaction(name, function, arguments)
        return result

    @_operation
    async def now(self, name: str = "now") -> datetime:
        """The time, in UTC: recorded once, and the same in every later execution."""
        found: datetime = await self._execution.writes.value(name, self._execution.time)
        return found

    @_operation
    async def uuid(self, name: str = "uuid") -> UUID:
        """A random UUID: recorded once, and the same in every later execution."""
        found: UUID = await self._execution.writes.value(name, lambda: UUID(bytes=os.urandom(16), version=4))
        return found

    @_operation
    async def random(self, name: str = "random") -> float:
        """A random number from 0 to 1: recorded once, and the same in every later execution."""
        found: float = await self._execution.writes.value(name, random.SystemRandom().random)
        return found

    @_operation
    async def set_event(self, key: str, value: Any) -> None:
        """Publish a value that can be read during the run and after its end: ``engine.runs.value(run_id, key)``.

        A replay publishes nothing again, and does not overwrite later values. The value is committed with the run's
        next commit, at once where the run waits. Watchers get every change as an ``event`` frame; a value equal to the
        one before is not a change. A step's function may call it too; then every attempt calls it.

        :raises SerializationError: when the value cannot be stored. The earlier value stays.
        :raises ValueError: when the key is not a non-empty string, or ends in '#' and a number.
        """
        await self._execution.writes.publish(key, value)

    # --- waiting -----------------------------------------------------------------------------------------------------

    @_operation
    async def sleep(self, name: str, duration: float | timedelta) -> None:
        """Wait for ``duration`` (seconds, or a ``timedelta``), across restarts, without occupying a slot.

        The end of the wait is fixed when the wait first begins.
        """
        await self._execution.waits.sleep(name, _seconds(duration))

    @_operation
    async def sleep_until(self, name: str, when: datetime) -> None:
        """Wait until ``when``, an aware ``datetime``; return at once when it has passed.

        :raises ValueError: when it has no time zone.
        """
        await self._execution.waits.sleep_until(name, when)

    @overload
    async def wait_for_signal(
        self, name: str, timeout: float | timedelta | None = None, *, type: type[Result]
    ) -> Result: ...

    @overload
    async def wait_for_signal(
        self, name: str, timeout: float | timedelta | None = None, *, type: Any = None
    ) -> Any: ...

    @_operation
    async def wait_for_signal(self, name: str, timeout: float | timedelta | None = None, *, type: Any = None) -> Any:
        """The payload of the next signal of that name (``engine.runs.signal``), first in, first out.

        A signal that was sent earlier is kept until it is taken. ``type`` is the class to which the payload is decoded;
        to check the payload when it is sent, declare the type in ``@job(signals={name: type})``.

        :raises SignalTimeout: when no signal came within ``timeout`` seconds of the wait's first beginning.
        """
        declared = self._execution.job.signals.get(name, Any) if type is None else type
        return await self._execution.waits.signal(name, _optional_seconds(timeout), declared)

    @_operation
    async def wait_for_event(
        self, topic: str, match: dict[str, Any] | None = None, timeout: float | timedelta | None = None
    ) -> Any:
        """The payload of the next event that is published on ``topic`` (``engine.publish``) while the run waits.

        With ``match``, the next event whose payload has these keys with equal values, at every depth. Its type is that
        of ``@job(events={topic: type})``.

        :raises EventTimeout: when no event came within ``timeout`` seconds of the wait's first beginning.
        """
        payload = await self._execution.waits.event(topic, match, _optional_seconds(timeout))
        return self._execution.job.validate_event(topic, payload)

    @_operation
    async def webhook(self, name: str) -> Webhook:
        """A webhook with a token that cannot be guessed, for a call from another system: ``engine.deliver_webhook``.

        >>> hook = await ctx.webhook("payment")
        >>> await ctx.step("ask for payment", ask, hook.url)
        >>> body = await hook.wait(timeout=3600)
        """
        recorded, token = await self._execution.waits.webhook(name)
        build_url = self._execution.webhook_url
        return Webhook(self._execution, recorded, token, None if build_url is None else build_url(token))

    @_operation
    async def on_update(
        self,
        name: str,
        validator: Callable[[Any], Any] | None = None,
        timeout: float | timedelta | None = None,
    ) -> Update:
        """The next update of that name (``engine.runs.update``), to be answered.

        ``validator(argument)`` is synchronous, and rejects an update by raising, or by returning ``False``: the sender
        gets the reason, and the run goes on waiting without the update. Type and validator that hold for all updates of
        the name are declared in ``@job(updates={name: type}, validators={name: function})``; they are checked when the
        update is sent.

        :raises UpdateTimeout: when no update was accepted within ``timeout`` seconds of the wait's first beginning.
        """
        seconds = _optional_seconds(timeout)
        message_id, argument = await self._execution.waits.update(name, validator, seconds)
        return Update(self._execution, name, message_id, self._execution.job.validate_update(name, argument))

    @_operation
    async def breakpoint(self, label: str) -> None:
        """Wait until the run is resumed by hand: ``engine.runs.resume(run_id)``."""
        await self._execution.waits.breakpoint(label)

    # --- other runs --------------------------------------------------------------------------------------------------

    @overload
    async def run_job(
        self, name: str, job: Job[None, Output], input: None = None, **options: Unpack[ChildOptions]
    ) -> Output: ...

    @overload
    async def run_job(
        self, name: str, job: Job[Input, Output], input: Input, **options: Unpack[ChildOptions]
    ) -> Output: ...

    @overload
    async def run_job(self, name: str, job: str, input: Any = None, **options: Unpack[ChildOptions]) -> Any: ...

    @_operation
    async def run_job(
        self, name: str, job: Job[Any, Any] | str, input: Any = None, **options: Unpack[ChildOptions]
    ) -> Any:
        """Start a child run, wait for its end, and return its output.

        The options are ``labels``, ``priority``, ``run_at`` and ``deadline``, as in ``engine.trigger``. The child's id
        is the same in every execution of the run. The child is cancelled when this run is cancelled, and when the body
        stops waiting for the child. Where the flow control of the child's job returns an existing run (see
        :mod:`durable_web._flow_control`), this run waits for that run, and does not cancel it.

        :raises ChildFailed: when the child failed, died, was cancelled or ran out of time; or, as ``CircularWait``,
            when the child would be a singleton that waits for this run.
        """
        return await self._execution.children.run(name, Trigger(job, input, **_child_options(options)))

    @overload
    async def start_job(
        self, name: str, job: Job[None, Any], input: None = None, **options: Unpack[ChildOptions]
    ) -> str: ...

    @overload
    async def start_job(
        self, name: str, job: Job[Input, Any], input: Input, **options: Unpack[ChildOptions]
    ) -> str: ...

    @overload
    async def start_job(self, name: str, job: str, input: Any = None, **options: Unpack[ChildOptions]) -> str: ...

    @_operation
    async def start_job(
        self, name: str, job: Job[Any, Any] | str, input: Any = None, **options: Unpack[ChildOptions]
    ) -> str:
        """Start a run without waiting for it, and return its id; the options are those of ``run_job``.

        When this run is cancelled while the started run is active, the started run is cancelled too. Where the flow
        control of the job returns an existing run, the id is that run's, which is not cancelled.
        """
        return await self._execution.children.start(name, Trigger(job, input, **_child_options(options)))

    @overload
    async def map(
        self,
        name: str,
        job: Job[Input, Output],
        inputs: Iterable[Input],
        *,
        max_concurrent: int | None = None,
        mode: Literal["all", "fail_fast"] = "all",
        **options: Unpack[ChildOptions],
    ) -> list[Output]: ...

    @overload
    async def map(
        self,
        name: str,
        job: str,
        inputs: Iterable[Any],
        *,
        max_concurrent: int | None = None,
        mode: Literal["all", "fail_fast"] = "all",
        **options: Unpack[ChildOptions],
    ) -> list[Any]: ...

    @_operation
    async def map(
        self,
        name: str,
        job: Job[Any, Any] | str,
        inputs: Iterable[Any],
        *,
        max_concurrent: int | None = None,
        mode: Literal["all", "fail_fast"] = "all",
        **options: Unpack[ChildOptions],
    ) -> list[Any]:
        """Start a child run for each input, ``name[0]``, ``name[1]`` ..., and return their outputs in the order of the
        inputs.

        :param max_concurrent: how many children are started at a time; by default all at once.
        :param mode: ``"all"`` waits for every child; ``"fail_fast"`` cancels the other children when one has failed.
        :raises ExceptionGroup: of a ``ChildFailed`` for each child that did not complete.
        :raises ValueError: when ``mode`` or ``max_concurrent`` is not a valid one.
        """
        if mode not in ("all", "fail_fast"):
            raise ValueError(f'mode is "all" or "fail_fast", not {mode!r}.')
        if max_concurrent is not None and max_concurrent < 1:
            raise ValueError(f"max_concurrent is at least 1, not {max_concurrent!r}.")
        triggers = [Trigger(job, item, **_child_options(options)) for item in inputs]
        return await self._execution.children.map(name, triggers, max_concurrent, fail_fast=mode == "fail_fast")

    def continue_as_new(self, input: Any = None) -> NoReturn:
        """End this run, and start a successor of the same job with another input, in one transaction.

        Labels, priority and concurrency key are carried over; the successor begins under the latest version of the job.
        Waiters for this run get the result of the last successor. Nothing is compensated: this run has not failed. Runs
        that this run has started without waiting for them become children of the successor. The method does not return.

        :raises InvalidInput, SerializationError: when the input does not fit the job's type, or cannot be stored.
        """
        raise self._execution.continue_as_new(input)

    @_operation
    async def patched(self, change_id: str) -> bool:
        """``True`` when the run should take the changed code: it came to this place after the change.

        ``True`` for new runs, ``False`` for runs that were past this place when the code was changed; the same in every
        later execution.

        >>> if await ctx.patched("send mail by the new provider"):
        ...     await ctx.step("send by new provider", send_new)
        ... else:
        ...     await ctx.step("send", send)
        """
        return await self._execution.writes.patched(change_id)

    @property
    def step_ref(self) -> str:
        """``<run id>/<step name>`` of the step that asks: the same on every attempt, and so an idempotency key towards
        the outside. Outside of steps, the run's id."""
        return self._execution.reference()

    def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """Report how far the run has come, in units of your own; may be called in a tight loop.

        The latest value is kept on the run. At most one frame in 100 ms is written; the last value is always written.
        Another thread may call it too.
        """
        self._execution.reporting.progress(current, total, message)


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _optional_seconds(duration: float | timedelta | None) -> float | None:
    return None if duration is None else _seconds(duration)


def _child_options(options: ChildOptions) -> ChildOptions:
    """:raises TypeError: when an option is not for child runs."""
    unknown = options.keys() - {"labels", "priority", "run_at", "deadline"}
    if unknown:
        raise TypeError(f"A child run takes labels, priority, run_at and deadline, not {', '.join(sorted(unknown))}.")
    return options
