"""The history of one run: what is recorded, what the body has asked for, and which outcome is delivered next.

Every outcome has a number, its *order* in the run. The body goes on from an operation in one of two ways, the first
time and on every replay alike: an *inline* outcome is returned at once, when nothing of the run was called in between;
every other one is *delivered* when the run is at rest, one at a time, in the recorded order.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterator

from .._codec import refuse_surrogates
from .._errors import NonDeterminismError
from .._model import OperationKind, StepStatus
from .._store import StepRecord

COMPENSATE = "compensate:"
"""What the keys of compensations begin with."""
TIMER = "timer:"
"""What the keys of timers begin with."""
_ORDINAL = re.compile(r"#\d+$")
_RESERVED = re.compile(rf"{COMPENSATE}|{TIMER}\d+$|cancel:$|compensating:$")


class Operation:
    """What a body has asked for and awaits: of each kind, a class of its own.

    Attributes: ``key`` and ``kind``; ``reason``, what a run that waits for it waits for, in words; ``is_called_off``,
    ``True`` when the body no longer awaits it.
    """

    kind: OperationKind
    reason = ""
    is_called_off = False
    sharing: tuple[Operation, ...] = ()
    """Others that await the same outcome."""

    future: asyncio.Future[StepRecord] | None = None

    def __init__(self, key: str) -> None:
        self.key = key

    def start(self) -> None:
        """Begin it: nothing is recorded that it could give."""
        raise NotImplementedError

    def call_off(self) -> None:
        """The body no longer awaits it."""
        raise NotImplementedError

    def deliver(self, record: StepRecord) -> None:
        """Let the body go on with its outcome."""
        if self.future is not None and not self.future.done():
            self.future.set_result(record)


class History:
    """What one run has recorded, and how far the body has come in it.

    :param records: by key.
    :param started_at: when the body was first begun; milliseconds since 1970-01-01 UTC.
    """

    def __init__(self, records: dict[str, StepRecord], started_at: int) -> None:
        self.last = 0
        """The order of the outcome that was delivered, or returned inline, last."""
        self.time = started_at
        """When that was; milliseconds since 1970-01-01 UTC."""
        self.is_live = not records
        """``True`` once every outcome that was recorded before has been delivered."""
        self.broken: NonDeterminismError | None = None
        """Why the code does not match the history, once it does not."""
        self._records = records
        outcomes = [record for record in records.values() if record.outcome_order is not None]
        outcomes.sort(key=_order)
        self._undelivered = deque(outcomes)
        self._known = _order(outcomes[-1]) if outcomes else 0
        self._unasked = {record.name for record in records.values() if record.kind not in _ASKED_BY_THE_ENGINE}
        self._next_position = 1 + max((record.position for record in records.values()), default=-1)
        self._counts: dict[str, int] = {}
        self._timers = 0
        self._open: dict[str, Operation] = {}
        self.has_dropped = False
        """``True`` when operations were open at the end of the body."""
        self._queued: deque[Operation] = deque()  # to start when the run is live and not paused

    # --- what is recorded --------------------------------------------------------------------------------------------

    @property
    def known(self) -> int:
        """The highest order that was read; every outcome up to it was."""
        return self._known

    @property
    def has_undelivered(self) -> bool:
        """``True`` when a recorded outcome was not delivered yet."""
        return bool(self._undelivered)

    @property
    def was_further(self) -> bool:
        """``True`` when an earlier execution had come further than the body has now, if only to begin a step."""
        return bool(self._unasked or (self._undelivered and not self.is_live))

    def record(self, key: str) -> StepRecord | None:
        """What is recorded under a key."""
        return self._records.get(key)

    def records(self) -> Iterator[StepRecord]:
        """Everything that is recorded."""
        return iter(self._records.values())

    def keep(self, record: StepRecord) -> None:
        """A record that is no outcome, as it now stands."""
        self._records[record.name] = record

    def next_position(self) -> int:
        """The place, from 0, of an operation that is recorded for the first time."""
        position = self._next_position
        self._next_position += 1
        return position

    def follows(self, record: StepRecord) -> bool:
        """``True`` when no outcome between the last known one and this one can be missing."""
        return record.outcome_order == self._known + 1

    def learn(self, record: StepRecord) -> None:
        """Take an outcome that was recorded, to be delivered; all before it are known. Known ones are passed over."""
        order = _order(record)
        if order > self._known:
            self._known = order
            self._records[record.name] = record
            self._undelivered.append(record)

    def return_inline(self, record: StepRecord) -> None:
        """Take an outcome that was recorded, and is returned at once: it follows the one delivered last."""
        self.last = self._known = _order(record)
        self.time = max(record.completed_at or 0, self.time)
        self._records[record.name] = record

    # --- what the body asks for --------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        """The key of an operation: its name, and for the second one of a name ``name#2``, counted over the run.

        :raises ValueError: when it is no name that an operation can have.
        """
        if not isinstance(name, str) or not name or ("#" in name and _ORDINAL.search(name)) or _RESERVED.match(name):
            raise ValueError(
                f"A step's name is a non-empty string that does not end in '#' and a number, not {name!r}: the second "
                f"step of one name is recorded as name#2. Nor does it begin with {COMPENSATE!r}, or is {TIMER!r} and a "
                "number."
            )
        if not name.isascii():
            refuse_surrogates("A step's name", name)
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def timer_key(self) -> str:
        """The key of the next timer."""
        self._timers += 1
        return f"{TIMER}{self._timers}"

    def ask(self, key: str, kind: OperationKind) -> StepRecord | None:
        """What is recorded under the key of an operation that the body asks for now.

        :raises NonDeterminismError: when it is recorded as another kind of operation, or an earlier one was.
        """
        if self.broken is not None:
            raise self.broken
        record = self._records.get(key)
        if record is None:
            return None
        self._unasked.discard(key)
        if record.kind != kind:
            raise self._break(NonDeterminismError(key, record.kind, kind))
        return record

    def _break(self, error: NonDeterminismError) -> NonDeterminismError:
        self.broken = self.broken or error
        return error

    def may_return(self, record: StepRecord) -> bool:
        """``True`` when a recorded outcome is returned at once: an inline one that comes next, or one passed over."""
        order = _order(record)
        if order <= self.last:
            return True
        if not record.inline or not self._undelivered or self._undelivered[0].outcome_order != order:
            return False
        self._advance()
        return True

    def queue(self, operation: Operation) -> None:
        """Start an operation when the run is live, and not paused."""
        self._queued.append(operation)

    def next_queued(self) -> Operation | None:
        """The next operation to be started."""
        while self._queued:
            operation = self._queued.popleft()
            if not operation.is_called_off:
                return operation
        return None

    def queued_operations(self) -> frozenset[Operation]:
        """What waits to be started."""
        return frozenset(operation for operation in self._queued if not operation.is_called_off)

    def unasked(self) -> frozenset[str]:
        """The keys of what is recorded, and the body has not asked for."""
        return frozenset(self._unasked)

    @property
    def has_queued(self) -> bool:
        """``True`` when an operation waits to be started."""
        while self._queued and self._queued[0].is_called_off:
            self._queued.popleft()
        return bool(self._queued)

    # --- delivery ----------------------------------------------------------------------------------------------------

    async def outcome(self, operation: Operation) -> StepRecord:
        """The outcome of an operation, delivered at rest; when the body is cancelled meanwhile, it is called off."""
        operation.future = asyncio.get_running_loop().create_future()
        self.open(operation)
        try:
            return await operation.future
        except asyncio.CancelledError:
            self.close(operation)
            operation.is_called_off = True
            operation.call_off()
            raise

    def open(self, operation: Operation) -> None:
        """Deliver the outcome to an operation when its turn has come. Several may share one: a webhook."""
        first = self._open.setdefault(operation.key, operation)
        if first is not operation:
            first.sharing = (*first.sharing, operation)

    def close(self, operation: Operation) -> None:
        """The outcome is wanted no longer."""
        first = self._open.get(operation.key)
        if first is not operation:
            if first is not None:
                first.sharing = tuple(each for each in first.sharing if each is not operation)
        elif operation.sharing:
            second, *others = operation.sharing
            second.sharing = tuple(others)
            self._open[operation.key] = second
        else:
            del self._open[operation.key]

    def is_open(self, key: str) -> bool:
        """``True`` when the body awaits the operation."""
        return key in self._open

    def open_operations(self) -> Iterator[Operation]:
        """What the body awaits, in the order in which it was asked for."""
        return iter(self._open.values())

    @property
    def open_count(self) -> int:
        """How many operations the body awaits."""
        return len(self._open)

    def drop_open(self) -> None:
        """Deliver nothing to what is open: the body has ended, and with it what awaits these operations."""
        self.has_dropped = self.has_dropped or bool(self._open)
        self._open.clear()

    def next_outcome(self) -> StepRecord | None:
        """The outcome whose turn it is; it counts as delivered. ``None`` when all are."""
        return self._advance() if self._undelivered else None

    def _advance(self) -> StepRecord:
        record = self._undelivered.popleft()
        self.last = _order(record)
        self.time = max(record.completed_at or 0, self.time)
        return record

    def deliver(self, record: StepRecord) -> None:
        """Let the body go on with an outcome; one that it does not await is passed over, and given when it asks."""
        first = self._open.pop(record.name, None)
        if first is None:
            return
        for operation in (first, *first.sharing):
            if record.status == StepStatus.CANCELLED:  # it was called off after its outcome was recorded
                self._refuse_called_off(operation)
            else:
                operation.deliver(record)

    def fail(self, operation: Operation, error: BaseException) -> None:
        """Let the body go on from an operation with an error that is not recorded."""
        self.close(operation)
        if operation.future is not None and not operation.future.done():
            operation.future.set_exception(error)

    def hold_back(self) -> None:
        """Take what is recorded as a replay, even where nothing is."""
        self.is_live = False

    def go_live(self) -> None:
        """All recorded outcomes are delivered. What the body awaits, and had called off before, breaks the run."""
        self.is_live = True
        for operation in list(self._open.values()):
            record = self._records.get(operation.key)
            if record is not None and record.status == StepStatus.CANCELLED:
                del self._open[operation.key]
                self._refuse_called_off(operation)

    def _refuse_called_off(self, operation: Operation) -> None:
        error = self._break(NonDeterminismError(operation.key, f"{operation.kind} that was called off", operation.kind))
        if operation.future is not None and not operation.future.done():
            operation.future.set_exception(error)


_ASKED_BY_THE_ENGINE = frozenset(
    {OperationKind.COMPENSATION, OperationKind.COMPENSATING, OperationKind.CANCEL, OperationKind.TIMER}
)


def _order(record: StepRecord) -> int:
    assert record.outcome_order is not None
    return record.outcome_order
