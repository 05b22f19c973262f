"""Flow control: how many runs of a job may execute or begin, and what happens to a trigger beyond these limits.

>>> @job("sync", concurrency=Concurrency(limit=2, key="account"), throttle=Throttle(10, "1m"))
... async def sync(ctx, input: dict) -> None: ...

A ``key`` divides a job's runs into groups, each with a limit of its own: a dotted path into the input
(``"customer.id"``), or a function of the input. Without a key all runs of the job are one group. Keys are computed when
the run is triggered, from the validated input, and are stored with the limits: a run keeps the keys and limits that it
was triggered with.

The options of the trigger (``idempotency_key``, then ``concurrency_key``) are applied before the rules of the job,
which are applied in this order: debounce, singleton, rate limit. When one of them returns an existing run, the later
ones do not count the trigger, and its idempotency key is not stored. A new run begins when all of its gates are open:
the turn of its singleton, its throttle and its concurrency.

The rules hold for every run of the job, however it is started:

- A schedule and an event trigger runs like ``engine.trigger``.
- A child run (``ctx.run_job``, ``start_job``, ``map``) is admitted in the transaction that records it. Where debouncing
  or a singleton returns an existing run, the parent gets the output or the failure of that run, and does not cancel it.
  Beyond a rate limit a child is delayed, not rejected, because it has no caller that could retry: it begins when there
  is room, and takes that room before later runs. A child that would have to wait for a run that waits for it fails with
  ``CircularWait``.
- The run that handles a dead run waits for its turn and for room too, but is never debounced, skipped, or cancelled by
  a later run: each dead run has its own handler.
- A run that continues as new (``ctx.continue_as_new``) stays active: its successor keeps its turn, and the rate limit
  does not count the successor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from ._codec import to_json
from ._durations import Duration, duration_in_milliseconds
from ._errors import InvalidInput

Key = str | Callable[[Any], Any] | None
Mode = Literal["skip", "queue", "cancel_previous"]
_MODES = ("skip", "queue", "cancel_previous")


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """At most ``limit`` runs of a group execute at a time, in all engines on a file; the others wait.

    A parked run (it waits for a time, a signal, a child) occupies no place.
    """

    limit: int
    key: Key = None

    def __post_init__(self) -> None:
        _check_limit(self.limit)


@dataclass(frozen=True, slots=True)
class Throttle:
    """At most ``limit`` runs of a group begin within any ``per``; runs beyond the limit wait.

    The first execution of a run counts, and the first after a retry by hand; an execution after a wait does not.
    """

    limit: int
    per: Duration
    key: Key = None

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        _check_positive("per", self.per)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``limit`` runs of a group are made within any ``per``; a trigger beyond it raises ``RateLimited``.

    A child run, and the handler of a dead run, begin when there is room instead.
    """

    limit: int
    per: Duration
    key: Key = None

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        _check_positive("per", self.per)


@dataclass(frozen=True, slots=True)
class Debounce:
    """A run begins ``wait`` after the last trigger of its group, at the latest ``max_wait`` after the first one.

    Triggers until then return the waiting run, with the disposition ``"debounced"``: their input replaces the run's
    input; their other options are dropped. A later ``run_at`` of the first trigger is kept. A child run is debounced
    like any trigger; its parent gets the output of the resulting run.
    """

    key: Key
    wait: Duration
    max_wait: Duration | None = None

    def __post_init__(self) -> None:
        _check_positive("wait", self.wait)
        if self.max_wait is not None:
            _check_positive("max_wait", self.max_wait)


@dataclass(frozen=True, slots=True)
class Singleton:
    """At most one run of a group is active at a time; a parked run is active.

    While a run is active, a trigger returns that run, with the disposition ``"skipped"`` (mode ``"skip"``); or makes a
    run that begins when the earlier ones have ended (``"queue"``); or cancels the earlier ones, and its run begins
    (``"cancel_previous"``). In any mode, a run that is retried while another run is active waits for that run. A parent
    whose child would be skipped waits for the active run, and gets its output.
    """

    key: Key = None
    mode: Mode = "skip"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(f"mode is one of {', '.join(map(repr, _MODES))}, not {self.mode!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowControl:
    """All flow control rules of a job."""

    concurrency: Concurrency | None = None
    throttle: Throttle | None = None
    rate_limit: RateLimit | None = None
    debounce: Debounce | None = None
    singleton: Singleton | None = None

    @property
    def is_free(self) -> bool:
        """``True`` when there is no rule."""
        return not (self.concurrency or self.throttle or self.rate_limit or self.debounce or self.singleton)


FREE = FlowControl()


class GateKind(StrEnum):
    """The kinds of gates; see the map in ``_store/schema.sql``."""

    SLOT = "slot"
    START = "start"
    TURN = "turn"
    PRESENCE = "presence"
    DEBOUNCE = "debounce"


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit that one run has to pass, or a group in which the run is found. ``period`` is in milliseconds."""

    name: str
    kind: GateKind
    capacity: int = 1
    period: int | None = None


def gate_name(kind: str, *parts: Any) -> str:
    """The name of a gate: equal for all runs that share the gate, and for no others."""
    return f"{kind}:{to_json(list(parts))}"


def gates_of(job: str, flow: FlowControl, input: Any) -> tuple[Gate, ...]:
    """The gates of a run of ``job`` for ``input``.

    :raises InvalidInput: when a key cannot be found in the input.
    """
    gates: list[Gate] = []
    if flow.singleton is not None:
        key = key_of(job, flow.singleton.key, input)
        gates.append(Gate(gate_name("singleton", job, key), GateKind.PRESENCE))
        gates.append(Gate(gate_name("turn", job, key), GateKind.TURN))
    if flow.throttle is not None:
        name = gate_name("throttle", job, key_of(job, flow.throttle.key, input))
        period = duration_in_milliseconds(flow.throttle.per)
        gates.append(Gate(name, GateKind.START, flow.throttle.limit, period))
    if flow.concurrency is not None:
        name = gate_name("concurrency", job, key_of(job, flow.concurrency.key, input))
        gates.append(Gate(name, GateKind.SLOT, flow.concurrency.limit))
    if flow.debounce is not None:
        name = gate_name("debounce", job, key_of(job, flow.debounce.key, input))
        gates.append(Gate(name, GateKind.DEBOUNCE))
    return tuple(gates)


def key_of(job: str, key: Key, input: Any) -> str | int | float | bool | None:
    """The group that a run for ``input`` belongs to.

    :raises InvalidInput: when the key cannot be found in the input, or is not a text, number, truth value or ``None``.
    """
    try:
        found = _follow(key, input) if isinstance(key, str) else None if key is None else key(input)
    except Exception as error:
        raise InvalidInput(job, "input", f"the flow control's key {_told(key)} is not in it ({error!r}).") from error
    if found is None or isinstance(found, (str, int, float)):
        return found
    raise InvalidInput(
        job, "input", f"the flow control's key {_told(key)} gives {found!r}; it has to be a text or a number."
    )


def _follow(path: str, value: Any) -> Any:
    for part in path.split("."):
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdigit():
            value = value[int(part)]
        else:
            value = getattr(value, part)
    return value


def _told(key: Key) -> str:
    return repr(key) if isinstance(key, str) else getattr(key, "__qualname__", repr(key))


def _check_limit(limit: int) -> None:
    if type(limit) is not int or limit < 1:
        raise ValueError(f"limit is a whole number from 1 on, not {limit!r}.")


def _check_positive(name: str, duration: Duration) -> None:
    if duration_in_milliseconds(duration) < 1:
        raise ValueError(f"{name} is at least a millisecond, not {duration!r}.")
