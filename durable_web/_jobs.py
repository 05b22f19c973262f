"""Jobs: named async functions that an engine runs durably.

>>> @job("greet")
... async def greet(ctx, name: str) -> str:
...     return await ctx.step("compose", "Hello, {}!".format, name)
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

from ._codec import construct, refuse_surrogates, return_annotation, structure, type_hints
from ._errors import DuplicateJobError, FatalError, InvalidInput, JobNotFound, message_of
from ._flow_control import FREE, Concurrency, Debounce, FlowControl, RateLimit, Singleton, Throttle

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    Input = TypeVarWithDefault("Input", default=Any)
    Output = TypeVarWithDefault("Output", default=Any)
else:
    Input, Output = TypeVar("Input"), TypeVar("Output")

JobFunction = Callable[..., Awaitable[Any]]
Given = TypeVar("Given")
Result = TypeVar("Result")
RetryOn = type[BaseException] | Iterable[type[BaseException]] | Callable[[BaseException], bool]


@dataclass(frozen=True, slots=True)
class Retry:
    """The policy by which failed steps are tried again.

    The wait before attempt ``n + 1`` is ``backoff * factor ** (n - 1)`` seconds, at most ``max_delay``, and up to
    ``jitter`` (a fraction) longer or shorter; it is durable, and frees the run's slot.

    :param max_attempts: how often a step is tried in total, at least 1.
    :param backoff: seconds before the second attempt, at least 0.
    :param factor: by which each further wait is longer.
    :param max_delay: seconds that a wait takes at most, before the jitter.
    :param jitter: from 0 to 1.
    :param retry_on: an exception class, several of them, or a synchronous predicate of the exception; ``FatalError``
        is never retried.
    :param timeout: seconds for which an attempt of an asynchronous function may take. The attempt is then cancelled,
        and fails with ``TimeoutError``, or with the exception that the function raises during its cancellation. A
        function that suppresses the cancellation and returns completes with its result. Synchronous functions cannot be
        interrupted.
    :raises ValueError: when a number is out of its range, or ``retry_on`` is not one of these.
    """

    max_attempts: int = 3
    backoff: float = 1.0
    factor: float = 2.0
    max_delay: float = 300.0
    jitter: float = 0.1
    retry_on: RetryOn = Exception
    timeout: float | None = None

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise ValueError(f"max_attempts is a whole number of at least 1, not {self.max_attempts!r}.")
        for name in ("backoff", "factor", "max_delay"):
            if not (_is_number(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} is a number of at least 0, not {value!r}.")
        if not (isinstance(self.jitter, (int, float)) and 0 <= self.jitter <= 1):
            raise ValueError(f"jitter is a number from 0 to 1, not {self.jitter!r}.")
        _check_timeout(self.timeout)
        object.__setattr__(self, "retry_on", _classes_or_predicate(self.retry_on))

    def wants(self, error: BaseException, attempt: int) -> bool:
        """``True`` when the failure of attempt number ``attempt`` is followed by another attempt."""
        if attempt >= self.max_attempts or _is_fatal(error):
            return False
        if isinstance(self.retry_on, (type, tuple)):
            return isinstance(error, self.retry_on)
        try:
            wanted: Any = cast("Callable[[BaseException], bool]", self.retry_on)(error)
            if inspect.iscoroutine(wanted):  # from a lambda: it cannot be awaited here
                wanted.close()
                return False
            return bool(wanted)
        except BaseException:  # also SystemExit: when the predicate fails, the step is not retried
            return False

    def delay(self, attempt: int) -> float:
        """Seconds between the failure of attempt number ``attempt`` and the next one."""
        try:
            exact = min(self.backoff * self.factor ** (attempt - 1), self.max_delay)
        except OverflowError:
            exact = self.max_delay
        return exact * (1 + self.jitter * (2 * _RANDOM.random() - 1))


def _is_fatal(error: BaseException) -> bool:
    """``True`` for a ``FatalError``, and for an exception group with one in it, at any depth."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(FatalError) is not None
    return isinstance(error, FatalError)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _classes_or_predicate(retry_on: Any) -> RetryOn:
    """Check ``retry_on``, and return it with several classes as a tuple.

    :raises ValueError: when it is neither exception classes nor a synchronous function.
    """
    if inspect.iscoroutinefunction(retry_on):
        raise ValueError(f"retry_on decides at once, {retry_on!r} is awaited: write `def`, not `async def`.")
    if _is_exception_class(retry_on) or (callable(retry_on) and not isinstance(retry_on, type)):
        return cast("RetryOn", retry_on)
    if isinstance(retry_on, Iterable) and not isinstance(retry_on, type):
        classes = tuple(retry_on)
        if all(map(_is_exception_class, classes)):
            return classes
    raise ValueError(
        f"retry_on is an exception class, several of them, or a function of the exception, not {retry_on!r}."
    )


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _check_timeout(timeout: object) -> None:
    """:raises ValueError: when it is not a number of seconds."""
    if timeout is not None and not (_is_number(timeout) and timeout > 0):  # type: ignore[operator]
        raise ValueError(f"timeout is a number of seconds above 0, or None, not {timeout!r}.")


# The operating system's randomness: a restored memory snapshot would repeat the state of `random`.
_RANDOM = random.SystemRandom()
NO_RETRY = Retry(max_attempts=1)


class Decorator(Protocol):
    """What :func:`job` returns: it makes a job of an async function."""

    @overload
    def __call__(self, function: Callable[[Any, Given], Coroutine[Any, Any, Result]], /) -> Job[Given, Result]: ...

    @overload
    def __call__(self, function: Callable[[Any], Coroutine[Any, Any, Result]], /) -> Job[None, Result]: ...


@dataclass(frozen=True)
class Job(Generic[Input, Output]):
    """A job function and its options; made by :func:`job`. Calling the job calls the function.

    For type checkers a ``Job[Input, Output]``: ``ctx.run_job`` takes the one, and gives the other.
    """

    name: str
    function: JobFunction
    version: str | None = None
    input_type: Any = field(default=Any, hash=False)
    output_type: Any = field(default=Any, hash=False)
    retry: Retry = NO_RETRY
    timeout: float | None = None
    max_concurrent: int | None = None
    dead_letter: Job | str | None = None
    on_event: tuple[str, ...] = ()
    signals: Mapping[str, Any] = field(default_factory=dict, compare=False)
    flow: FlowControl = FREE
    updates: Mapping[str, Any] = field(default_factory=dict, compare=False)
    events: Mapping[str, Any] = field(default_factory=dict, compare=False)
    validators: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict, compare=False)

    def __call__(self, *arguments: Any, **keywords: Any) -> Awaitable[Any]:
        return self.function(*arguments, **keywords)

    @property
    def limits_concurrency(self) -> bool:
        """``True`` when a limit applies to how many of its runs execute at a time."""
        flow = self.flow
        return self.max_concurrent is not None or flow.concurrency is not None or flow.singleton is not None

    def validate_input(self, value: Any) -> Any:
        """``value``, validated and converted by the input type.

        :raises InvalidInput: when it does not fit.
        """
        return self._validate(value, self.input_type, "input", structure)

    def validate_output(self, value: Any) -> Any:
        """``value``, validated and converted by the output type.

        :raises InvalidInput: when it does not fit.
        """
        return self._validate(value, self.output_type, "output", construct)

    def validate_signal(self, name: str, value: Any) -> Any:
        """The payload of a signal, validated and converted by its declared type.

        :raises InvalidInput: when it does not fit.
        """
        return self._validate(value, self.signals.get(name, Any), f"signal {name!r}", structure)

    def validate_update(self, name: str, value: Any) -> Any:
        """The argument of an update, validated and converted by its declared type.

        :raises InvalidInput: when it does not fit.
        """
        return self._validate(value, self.updates.get(name, Any), f"update {name!r}", structure)

    def validate_event(self, topic: str, value: Any) -> Any:
        """The payload of an event, validated and converted by its declared type.

        :raises InvalidInput: when it does not fit.
        """
        return self._validate(value, self.events.get(topic, Any), f"event {topic!r}", structure)

    def _validate(self, value: Any, type_: Any, what: str, read: Callable[[Any, Any], Any]) -> Any:
        try:
            if hasattr(type_, "validate_python"):  # a pydantic TypeAdapter
                return type_.validate_python(value)
            return read(value, type_)
        except (TypeError, ValueError) as error:
            raise InvalidInput(self.name, what, str(error)) from error


def job(
    name: str,
    *,
    version: str | None = None,
    input: Any = None,
    output: Any = None,
    retry: Retry | None = None,
    timeout: float | None = None,
    max_concurrent: int | None = None,
    dead_letter: Job | str | None = None,
    on_event: str | Iterable[str] = (),
    signals: Mapping[str, Any] | None = None,
    updates: Mapping[str, Any] | None = None,
    events: Mapping[str, Any] | None = None,
    validators: Mapping[str, Callable[[Any], Any]] | None = None,
    concurrency: Concurrency | None = None,
    throttle: Throttle | None = None,
    rate_limit: RateLimit | None = None,
    debounce: Debounce | None = None,
    singleton: Singleton | None = None,
) -> Decorator:
    """Make a job of an ``async def`` that takes a ``Context`` and the run's input, or a ``Context`` alone.

    :param name: the name by which runs find their code, also after a restart and a new release: never change it.
    :param version: a run goes on under the version it started with; where that is no longer registered, it waits.
        Several versions may be registered; new runs begin under the one that is registered last.
    :param input, output: types of the input and the output; by default those of the annotations. Dataclasses, enums
        and pydantic models are constructed, a pydantic ``TypeAdapter`` validates, other types pass through.
    :param retry: for steps without their own ``retry``; by default a failed step is not tried again.
    :param timeout: seconds from a run's first execution to its deadline.
    :param max_concurrent: how many runs of this job may execute at a time, in all engines on one file.
    :param dead_letter: the job, or its name, of which a run is started when a run of this job is dead; its input is
        ``{"run_id", "job", "input", "error"}``. It is started once for each dead run, whatever its flow control says.
        No handler is started when that run, or a run that it has started, dies itself.
    :param on_event: topics; ``engine.publish`` on one of them starts a run, with the payload as its input.
    :param signals, updates: types of the payloads of signals and of the arguments of updates, by their names; checked
        and converted when one is sent, before anything is stored, also while the run is parked.
    :param events: types of the payloads of events, by their topics; an event that does not fit a job which declares its
        topic is refused when it is published.
    :param validators: by the name of an update, a synchronous function of its argument that rejects the update by
        raising, or by returning ``False``: its sender gets ``UpdateRejected``, and the run never sees it.
    :param concurrency, throttle, rate_limit, debounce, singleton: how many runs of a group may execute, begin or be
        made, and what happens to a trigger beyond these limits; see :mod:`durable_web._flow_control`.
    :raises TypeError: when the function is not an ``async def`` of the context and the input, or of the context
        alone, or ``name`` is not a non-empty string.
    :raises ValueError: when another option is wrong.
    """
    if not isinstance(name, str) or not name:
        raise TypeError('A job needs a name: write @job("import-csv") above the function.')
    _check_options(name, version, retry, timeout, max_concurrent)
    for update, validator in (validators or {}).items():
        check_validator(update, validator)

    flow = FlowControl(
        concurrency=concurrency, throttle=throttle, rate_limit=rate_limit, debounce=debounce, singleton=singleton
    )

    def decorate(function: JobFunction, /) -> Job:
        takes_input = _takes_input(name, function)
        input_type = input
        if input is None:
            input_type = _input_annotation(function) if takes_input else _NoInput()
        output_type = return_annotation(function) if output is None else output
        return Job(
            name,
            function if takes_input else _without_input(function),
            version,
            input_type,
            output_type,
            retry or NO_RETRY,
            timeout,
            max_concurrent,
            dead_letter,
            (on_event,) if isinstance(on_event, str) else tuple(on_event),
            dict(signals or {}),
            flow,
            dict(updates or {}),
            dict(events or {}),
            dict(validators or {}),
        )

    return decorate


def rejection(validator: Callable[[Any], Any] | None, argument: Any) -> str | None:
    """Why a validator does not accept the argument of an update; ``None`` when it does."""
    if validator is None:
        return None
    try:
        verdict = validator(argument)
    except BaseException as error:  # also CancelledError and SystemExit: they refuse the update
        return message_of(error)
    return "the validator did not accept it" if verdict is False else None


def check_validator(name: str, validator: object) -> None:
    """:raises TypeError: when it is not a synchronous function."""
    if inspect.iscoroutinefunction(validator):
        raise TypeError(f"The validator of update {name!r} must be synchronous: write `def`, not `async def`.")
    if validator is not None and not callable(validator):
        raise TypeError(f"The validator of update {name!r} is a function of its argument, not {validator!r}.")


def _check_options(name: str, version: object, retry: object, timeout: object, max_concurrent: object) -> None:
    """:raises ValueError: when an option is wrong."""
    refuse_surrogates("The name of a job", name)
    if version is not None and not isinstance(version, str):
        raise ValueError(f"The version of the job {name!r} is a string, or None, not {version!r}.")
    if retry is not None and not isinstance(retry, Retry):
        raise ValueError(f"retry of the job {name!r} is a Retry(...), or None, not {retry!r}.")
    if max_concurrent is not None and (type(max_concurrent) is not int or max_concurrent < 1):
        raise ValueError(f"max_concurrent of the job {name!r} is at least 1, or None, not {max_concurrent!r}.")
    refuse_surrogates(f"The version of the job {name!r}", version)
    _check_timeout(timeout)


def _takes_input(name: str, function: Callable[..., Any]) -> bool:
    """``False`` for the function of a job without an input, which takes the context alone."""
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"The job {name!r} must be an async function: write `async def`.")
    for count in (2, 1):
        try:
            inspect.signature(function).bind(*[None] * count)
        except TypeError:
            continue
        return count == 2
    raise TypeError(f"The job {name!r} must take two arguments, the context and the input, or the context alone.")


class _NoInput:
    """The input type of a job that takes none; validates as a pydantic ``TypeAdapter`` does."""

    def validate_python(self, value: Any) -> None:
        """:raises ValueError: when there is an input."""
        if value is not None:
            raise ValueError("the job takes the context alone, and no input")


def _without_input(function: Callable[..., Any]) -> JobFunction:
    @functools.wraps(function)
    def ignoring_input(context: Any, input: None = None) -> Any:
        return function(context)

    return ignoring_input


def _input_annotation(function: JobFunction) -> Any:
    parameters = list(inspect.signature(function).parameters)
    return type_hints(function).get(parameters[1], Any)


class Registry:
    """The jobs that an engine knows, by name."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs: dict[str, Job] = {}  # by name, in the version that was registered last
        self._versions: dict[tuple[str, str | None], Job] = {}
        for item in jobs:
            self.add(item)

    def add(self, item: Job) -> None:
        """Register a job; registering a job twice is a no-op.

        :raises DuplicateJobError: when another definition has that name already.
        :raises TypeError: when it is not a job.
        """
        if not isinstance(item, Job):
            raise TypeError(f'{item!r} is not a job: decorate the function with @job("name").')
        known = self._versions.get((item.name, item.version))
        if known is not None and known != item:
            raise DuplicateJobError(item.name)
        if isinstance(item.dead_letter, Job):
            self.add(item.dead_letter)
        if known is None:
            self._versions[item.name, item.version] = self._jobs[item.name] = item

    def saturated(self, count_executing: Callable[[str], int]) -> list[str]:
        """The names of the jobs of which no further run may execute now."""
        limited = [item for item in self._jobs.values() if item.max_concurrent is not None]
        return [item.name for item in limited if count_executing(item.name) >= (item.max_concurrent or 0)]

    def find(self, name: str, version: str | None) -> Job | None:
        """A version of a job; ``None`` when it is not registered."""
        return self._versions.get((name, version))

    def get(self, name: str, version: str | None) -> Job:
        """A version of a job.

        :raises JobNotFound: when it is not registered.
        """
        found = self.find(name, version)
        if found is None:
            raise JobNotFound(name, list(self._jobs))
        return found

    def dead_letter_of(self, name: str, default: Job | str | None) -> Job | None:
        """The job that handles the dead runs of a job; ``default`` when the job declares none.

        :raises JobNotFound: when the handler is the name of a job that is not registered.
        """
        handler = (self._jobs[name].dead_letter if name in self._jobs else None) or default
        return None if handler is None else self[handler.name if isinstance(handler, Job) else handler]

    def started_by(self, topic: str) -> list[Job]:
        """The jobs that an event on a topic starts."""
        return [item for item in self._jobs.values() if topic in item.on_event]

    def __iter__(self) -> Iterator[Job]:
        return iter(self._versions.values())

    def __getitem__(self, name: str) -> Job:
        try:
            return self._jobs[name]
        except KeyError:
            raise JobNotFound(name, list(self._jobs)) from None

    def __contains__(self, name: str) -> bool:
        return name in self._jobs
