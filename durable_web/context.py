"""Everything that a job body may do."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn
from uuid import UUID

from .execution.run import Execution
from .files import Files
from .job import Job, Retry
from .triggers import Trigger

_BY_NAME: Any = object()


class Log:
    """Writes durable log lines: ``ctx.log.info("fetched", rows=12)``.

    A line belongs to the step that wrote it, or else to the run. Fields that cannot be stored are kept as their
    ``repr``, where they have one: a log line never fails a job. The message may be given as ``message=`` too.

    Lines may also be written by another thread, such as that of ``await ctx.step("work", asyncio.to_thread, work)``:
    they are there before the step has ended.
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
        """Something that should be looked at."""
        self._write("warning", message, fields)

    def error(self, message: str = _BY_NAME, /, **fields: Any) -> None:
        """Something that went wrong."""
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        if message is _BY_NAME:
            message = fields.pop("message", "")
        self._execution.reporting.log(level, message, fields)


class Webhook:
    """A place for somebody outside to call back to; made by ``ctx.webhook``.

    Attributes: ``token``, and ``url``, what the engine's ``webhook_url`` makes of it (``None`` without one).
    """

    def __init__(self, execution: Execution, name: str, token: str, url: str | None) -> None:
        self.token = token
        self.url = url
        self._execution = execution
        self._name = name

    async def wait(self, timeout: float | timedelta | None = None) -> Any:
        """What was delivered: ``engine.deliver_webhook(token, body)``; it may have been delivered already.

        :raises WebhookTimeout: when nothing was within ``timeout`` seconds of the wait's first beginning.
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
        """Give the sender its answer; the first one counts."""
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
    again from the top. Operations that have ended return what was recorded, and nothing is called a second time. So
    whatever the body decides must follow from what it gets: read the time with ``ctx.now()``, and files, the network
    or random numbers in a step.

    **Order.** Each outcome of an operation (a step, a wait, a child run, a timer) is numbered when it is recorded. A
    body goes on with one outcome at a time, in that order, in every execution. So tasks that share a queue, the winner
    of a race and the order of ``asyncio.as_completed`` are the same in a replay. (Give ``as_completed`` tasks, not
    coroutines: these it starts in no fixed order, which is refused.)

    **Names.** An operation is recorded under its name; the second one of a name under ``name#2``, counted over the
    whole run, whichever task asks for it. Use a name of its own for each: then code that is changed while runs are
    active finds what they have recorded. The same name with another kind of operation is a ``NonDeterminismError``.

    **Timers.** The body has an event loop of its own, whose timers are durable: ``asyncio.sleep``, ``timeout``,
    ``wait_for``, ``wait(timeout=...)`` and ``loop.call_later``, around waits and around steps. One is due by the
    engine's clock, counted from when the body first set it; that is recorded with the run's next commit, and kept by
    restarts. A run that dies before that commit sets the timer anew. ``loop.time()`` is the time of the latest
    outcome. In ``engine.runs.steps`` timers have the kind ``"timer"``.

    **Limits of a body.** Threads, sockets, subprocesses, ``run_in_executor`` and ``call_soon_threadsafe`` raise
    ``NotInBody``: do them in a step. A primitive of asyncio, such as a lock, belongs to one run. ``finally`` in a body
    is executed once per execution: when a waiting run is dropped from memory, too.
    """

    def __init__(self, execution: Execution, files: Files) -> None:
        self._execution = execution
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
        """Whether the run was cancelled; for synchronous code that wants to stop early, also in another thread."""
        return self._execution.tenure.is_cancelled

    def raise_if_cancelled(self) -> None:
        """Leave the job at once when the run was cancelled, or is no longer this engine's for another reason.

        In another thread it leaves what runs there.
        """
        self._execution.tenure.check()

    def step(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *arguments: Any,
        retry: Retry | None = None,
        compensate: Callable[[Any], Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call ``function(*arguments)`` once and for all, and return its result.

        The result is committed before it is returned, and every later execution of the run gets it without calling
        the function. The function may be synchronous or asynchronous; keyword arguments for it go through
        ``functools.partial``. It is called on the real event loop, outside the job body: what it sets in context
        variables is not seen by the body, and it asks for no operations itself.

        The second step of one name in a run is recorded as ``name#2``, whichever task asks for it. Use a name of its
        own for each step: then code that is changed while runs are active finds what they have recorded.

        ``retry`` says whether a failure is followed by another attempt; by default what the job says.

        ``compensate`` undoes the step: when the run fails, or is cancelled with ``compensate=True``, it is called with
        the step's result, after those of the steps that completed later, as a durable step ``compensate:<name>`` with
        the same ``retry``; what it returns is not kept. One that fails is recorded, and does not keep the others from
        being undone. Functions that are executing are called off first, and what they complete all the same is undone
        as well. The run keeps its slot until all is undone, also between two attempts; children that it has started
        undo theirs at the same time.

        When the body stops waiting for a step, because of ``asyncio.timeout`` say, its function is cancelled. The task
        goes on at once; what it asks for next begins when the function has ended, after 5 seconds at the latest.

        :raises StepFailed: when the function raised, now or when it was recorded, or its result cannot be stored.
        :raises NonDeterminismError: when ``name`` is recorded as another kind of operation.
        :raises NotInStep: when it is not the job body that asks, but a step's function.
        """
        return self._execution.steps.step(name, function, arguments, retry, compensate)

    async def transaction(self, name: str, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """A step whose rows and whose checkpoint are one commit.

        ``function(connection, *arguments)`` gets the engine's ``sqlite3.Connection`` inside an open transaction, works
        on the application's own tables, and returns the step's result. It must be synchronous, and must neither
        commit nor roll back, change pragmas, nor touch what begins with ``durable_``; it is not retried by itself.
        Raises what ``step`` raises.
        """
        return await self._execution.writes.transaction(name, function, arguments)

    async def now(self, name: str = "now") -> datetime:
        """The time, in UTC: recorded once, and the same in every later execution."""
        found: datetime = await self._execution.writes.value(name, self._execution.time)
        return found

    async def uuid(self, name: str = "uuid") -> UUID:
        """A random UUID: recorded once, and the same in every later execution."""
        found: UUID = await self._execution.writes.value(name, lambda: UUID(bytes=os.urandom(16), version=4))
        return found

    async def random(self, name: str = "random") -> float:
        """A random number from 0 to 1: recorded once, and the same in every later execution."""
        found: float = await self._execution.writes.value(name, random.SystemRandom().random)
        return found

    async def set_event(self, key: str, value: Any) -> None:
        """Publish a value that others can read live, and after the end: ``engine.runs.value(run_id, key)``.

        A replay publishes nothing again: what was published since stays. The value is committed with the run's next
        commit, at once where the run waits. Watchers see every change as an ``event`` frame; a value that is the same
        as the one before is none. It may be called inside a step's function too, and is then called by every attempt.

        :raises SerializationError: when the value cannot be stored. The one before stays.
        :raises ValueError: when the key is no non-empty string, or ends in '#' and a number.
        """
        await self._execution.writes.publish(key, value)

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def sleep(self, name: str, duration: float | timedelta) -> None:
        """Wait for ``duration`` (seconds, or a ``timedelta``), across restarts, and without a slot.

        The time when it is over is fixed when the wait first begins.
        """
        await self._execution.waits.sleep(name, _seconds(duration))

    async def sleep_until(self, name: str, when: datetime) -> None:
        """Wait until a moment, an aware ``datetime``; one that has passed is not waited for.

        :raises ValueError: when it has no time zone.
        """
        await self._execution.waits.sleep_until(name, when)

    async def wait_for_signal(self, name: str, timeout: float | timedelta | None = None, type: Any = None) -> Any:
        """The payload of the next signal of that name (``engine.runs.signal``), first in, first out.

        One that was sent before is waiting already. ``type`` is a class as which the payload is read; to have it
        checked when it is sent, declare it in ``@job(signals={name: type})``.

        :raises SignalTimeout: when none came within ``timeout`` seconds of the wait's first beginning.
        """
        declared = self._execution.job.signals.get(name, Any) if type is None else type
        return await self._execution.waits.signal(name, _optional_seconds(timeout), declared)

    async def wait_for_event(
        self, topic: str, match: dict[str, Any] | None = None, timeout: float | timedelta | None = None
    ) -> Any:
        """The payload of the next event that is published on ``topic`` (``engine.publish``) while the run waits.

        With ``match``, the next one whose payload has these keys with equal values, at every depth.

        :raises EventTimeout: when none came within ``timeout`` seconds of the wait's first beginning.
        """
        return await self._execution.waits.event(topic, match, _optional_seconds(timeout))

    async def webhook(self, name: str) -> Webhook:
        """A token that cannot be guessed, for somebody outside to call back with: ``engine.deliver_webhook``.

        >>> hook = await ctx.webhook("payment")
        >>> await ctx.step("ask for payment", ask, hook.url)
        >>> body = await hook.wait(timeout=3600)
        """
        recorded, token = await self._execution.waits.webhook(name)
        build_url = self._execution.webhook_url
        return Webhook(self._execution, recorded, token, None if build_url is None else build_url(token))

    async def on_update(
        self,
        name: str,
        validator: Callable[[Any], Any] | None = None,
        timeout: float | timedelta | None = None,
    ) -> Update:
        """The next update of that name (``engine.runs.update``), to be answered.

        ``validator(argument)`` is synchronous, and refuses an update by raising, or by returning ``False``: the sender
        is given the reason, the run never sees it, and goes on waiting.

        :raises UpdateTimeout: when none was accepted within ``timeout`` seconds of the wait's first beginning.
        """
        seconds = _optional_seconds(timeout)
        message_id, argument = await self._execution.waits.update(name, validator, seconds)
        return Update(self._execution, name, message_id, argument)

    async def breakpoint(self, label: str) -> None:
        """Wait until a person lets the run go on: ``engine.runs.resume(run_id)``."""
        await self._execution.waits.breakpoint(label)

    # --- other runs --------------------------------------------------------------------------------------------------

    async def run_job(self, name: str, job: Job | str, input: Any = None, **options: Any) -> Any:
        """Start a child run, wait for its end, and return its output.

        The options are ``labels``, ``priority``, ``run_at`` and ``deadline``, as in ``engine.trigger``. Its id is
        the same in every execution of the run. When this run is cancelled, so is the child; and so it is when the
        body waits for it no longer. Where the child's job says of its flow that another run stands for it (see
        :mod:`durable_web.flow`), that one is waited for, and left to itself.

        :raises ChildFailed: when the child failed, died, was cancelled or ran out of time; or, as ``CircularWait``,
            when it would be a singleton that waits for this run.
        """
        return await self._execution.children.run(name, Trigger(job, input, **_child_options(options)))

    async def start_job(self, name: str, job: Job | str, input: Any = None, **options: Any) -> str:
        """Start a run without waiting for it, and return its id; the options are those of ``run_job``.

        When this run is cancelled while the other is active, that one is cancelled too. Where the flow control of the
        job gives back a run that is there already, it is the id of that one, which is left to itself.
        """
        return await self._execution.children.start(name, Trigger(job, input, **_child_options(options)))

    async def map(
        self,
        name: str,
        job: Job | str,
        inputs: Iterable[Any],
        *,
        max_concurrent: int | None = None,
        mode: Literal["all", "fail_fast"] = "all",
        **options: Any,
    ) -> list[Any]:
        """A child run for each input, ``name[0]``, ``name[1]`` ...: their outputs, in the order of the inputs.

        :param max_concurrent: how many children are started at a time; by default all at once.
        :param mode: ``"all"`` waits for every child; ``"fail_fast"`` cancels the others when one has failed.
        :raises ExceptionGroup: of a ``ChildFailed`` for each child that did not complete.
        :raises ValueError: when ``mode`` or ``max_concurrent`` is none.
        """
        if mode not in ("all", "fail_fast"):
            raise ValueError(f'mode is "all" or "fail_fast", not {mode!r}.')
        if max_concurrent is not None and max_concurrent < 1:
            raise ValueError(f"max_concurrent is at least 1, not {max_concurrent!r}.")
        triggers = [Trigger(job, item, **_child_options(options)) for item in inputs]
        return await self._execution.children.map(name, triggers, max_concurrent, fail_fast=mode == "fail_fast")

    def continue_as_new(self, input: Any = None) -> NoReturn:
        """End this run, and start a fresh one of the same job with another input, in one transaction.

        Labels, priority and concurrency key are carried over; the fresh one begins under the latest version of the job.
        Whoever waits for this run gets the last one's result. Nothing is undone: a run that goes on has not failed. The
        runs that it has started without waiting for them are the fresh one's from now on. It does not return.

        :raises InvalidInput, SerializationError: when the input does not fit the job's type, or cannot be stored.
        """
        raise self._execution.continue_as_new(input)

    async def patched(self, change_id: str) -> bool:
        """Whether the run came to this place after the code was changed: the new way is for these alone.

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
        """Tell how far the run has come, in units of your own; may be called freely in a tight loop.

        The latest value is kept on the run; at most one frame in 100 ms is written, the last one always. Another
        thread may call it too.
        """
        self._execution.reporting.progress(current, total, message)


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _optional_seconds(duration: float | timedelta | None) -> float | None:
    return None if duration is None else _seconds(duration)


def _child_options(options: dict[str, Any]) -> dict[str, Any]:
    """:raises TypeError: when an option is not for child runs."""
    unknown = options.keys() - {"labels", "priority", "run_at", "deadline"}
    if unknown:
        raise TypeError(f"A child run takes labels, priority, run_at and deadline, not {', '.join(sorted(unknown))}.")
    return options
