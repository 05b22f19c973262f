"""The timers of asyncio around durable waits, across restarts: ``asyncio.timeout``, ``asyncio.wait_for`` and the like.

A timer is in memory alone, but what it limits may take days. So when a run is parked, it is written down with every
wait when the timers around it are due, by the engine's clock, and the run is woken at the first of those times. When a
later execution comes to that wait, the body has set its timers anew: they are brought forward to what is written down,
but not before the body is where it was, for until then it must go the way that it went. So a restart never gives a body
more time than it had; and of several timers that are overdue, the one that was due first fires first.

Timers are known again by their order around a wait. Where there are more, or fewer, the code has changed, and those
that it sets count.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..model import LATEST
from .suspended import Surroundings, Timer, by_age, look_around

if TYPE_CHECKING:
    from .executor import Execution
    from .services import Services

Dues = list[int | None]  # milliseconds; None for a timer that is never due


@dataclass(slots=True)
class Standing:
    """Where a branch of the body waits: under which record, and in which call that waits for it."""

    name: str | None
    call: int = 0
    task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    surroundings: Surroundings | None = None  # as long as it stands there, they stay the same


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the timers around the waits of a run that is at rest mean for it."""

    has_fired: bool = False  # one of them was overdue: the body goes on
    due: int | None = None  # when the first one is due, in milliseconds
    notes: dict[str, str] = field(default_factory=dict)  # what is to be written down, by the name of the wait


@dataclass(frozen=True, slots=True)
class _Due:
    set_for: float | None  # what it was set for when this was found out: the body may set it anew
    at: int


@dataclass(slots=True)
class _Survey:
    standings: dict[asyncio.Task[Any] | None, Standing]
    besides: Container[int]  # the ids of tasks that are not looked at
    around: dict[asyncio.Task[Any], list[Timer]] = field(default_factory=dict)  # of each task, the outermost first
    own: dict[asyncio.Task[Any], list[Timer]] = field(default_factory=dict)
    parents: dict[asyncio.Task[Any], asyncio.Task[Any] | None] = field(default_factory=dict)

    def visit(self, task: asyncio.Task[Any], parent: asyncio.Task[Any] | None) -> None:
        """Look at a task, and at those that it holds or awaits."""
        if task in self.own or id(task) in self.besides or task.done():
            return
        standing = self.standings.get(task)
        surroundings = None if standing is None else standing.surroundings
        if surroundings is None:
            surroundings = look_around(task, self.besides)
            if standing is not None and not surroundings.tasks:
                standing.surroundings = surroundings
        self.parents[task] = parent
        self.own[task] = surroundings.timers
        outer = [] if parent is None else self.around.get(parent, [])
        self.around[task] = outer + surroundings.timers if surroundings.timers else outer
        for held in surroundings.tasks:
            self.visit(held, task)

    def beside(self, waiting: Iterable[asyncio.Task[Any] | None]) -> dict[str, list[Timer]]:
        """The timers of each task, by its name, that neither waits nor awaits one that does."""
        lineage: set[asyncio.Task[Any]] = set()
        for task in waiting:
            while task is not None and task not in lineage:
                lineage.add(task)
                task = self.parents.get(task)
        return {task.get_name(): timers for task, timers in self.own.items() if timers and task not in lineage}


class Timeouts:
    """When the timers are due that the body of one execution is inside of."""

    def __init__(self, execution: Execution, services: Services) -> None:
        self._execution = execution
        self._clock = services.clock
        self._dues: WeakKeyDictionary[Any, _Due] = WeakKeyDictionary()
        self._early: dict[Any, Timer] = {}  # to be brought forward once the body is where it was
        self._fired: Timer | None = None  # the one that was overdue
        self._beside: dict[str, Dues] = {}  # of tasks that are beside the waits, or were while the first of these is
        self._beside_which: str | None = None
        self._arrivals: list[tuple[Standing, asyncio.Future[None]]] = []
        self._has_notes = any(record.timeouts is not None for record in execution.records.values())

    # --- a later execution -------------------------------------------------------------------------------------------

    async def recall(self, name: str, call: int = 0) -> None:
        """Look up when the timers are due that the body is inside of, if that is written down with this wait.

        They can be seen only while the body is suspended, so it is, for a turn of the event loop.
        """
        if self._noted(name, call) is None:
            return
        loop = asyncio.get_running_loop()
        if not self._arrivals:
            loop.call_soon(self._recall)
        seen = loop.create_future()
        self._arrivals.append((Standing(name, call), seen))
        await seen

    def _recall(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        try:
            survey = self._survey(standing for standing, _ in arrivals)
            for standing, _ in arrivals:
                self._compare(standing, survey)
        finally:
            for _, seen in arrivals:
                if not seen.done():
                    seen.set_result(None)
        if not self._execution.is_replaying:
            self.bring_forward()

    @property
    def are_early(self) -> bool:
        """Whether timers are to be brought forward once the body is where it was."""
        return bool(self._early)

    def bring_forward(self) -> None:
        """Let the timers be due when they were in the execution before; of those that are overdue, the first one."""
        now = self._clock.now()
        for timer, due in sorted(self._pending(), key=lambda pending: pending[1]):
            if due > now:
                self._move(timer, due, now)
            elif self._fired is None or self._fired.is_over:
                self._fire(timer, due, now)

    def _pending(self) -> Iterator[tuple[Timer, int]]:
        for key, timer in list(self._early.items()):
            due = self._due(timer) if timer.is_active else None
            if due is None:
                del self._early[key]
            else:
                yield timer, due

    # --- at rest -----------------------------------------------------------------------------------------------------

    def at_rest(self, waiting: Sequence[Standing]) -> Outlook:
        """See when the timers are due around the waits of a run, all of whose branches are suspended in one."""
        if not self._has_notes and not self._has_timers(waiting):
            return Outlook()
        survey = self._survey(waiting)
        first = min(waiting, key=self._position)
        for standing in waiting:
            self._compare(standing, survey)
        self._look_beside(first, survey.beside(standing.task for standing in waiting))
        timers = [timer for timers in survey.own.values() for timer in timers if timer.is_active]
        dues = [(due, timer) for timer in timers if (due := self._due(timer)) is not None]
        if not dues:
            return Outlook(notes=self._notes(waiting, first, survey))
        now = self._clock.now()
        due, timer = min(dues, key=lambda item: item[0])
        if due <= now:
            self._fire(timer, due, now)
            return Outlook(has_fired=True)
        self.bring_forward()
        return Outlook(due=due, notes=self._notes(waiting, first, survey))

    def _has_timers(self, waiting: Sequence[Standing]) -> bool:
        """Whether there are any: what has been seen to be without is not looked at once more."""
        seen = (standing for standing in waiting if standing.surroundings is not None)
        without = {id(standing.task) for standing in seen if not standing.surroundings.timers}
        return any(self._survey(waiting, without).own.values())

    def _look_beside(self, first: Standing, beside: dict[str, list[Timer]]) -> None:
        """Hold what is beside the waits against what is written down with the first of them."""
        names = sorted(beside, key=by_age)
        if self._beside_which != first.name:
            self._beside_which, self._beside = first.name, {}
            noted = (self._noted(first.name, first.call) or {}).get("beside", [])
            if len(noted) == len(names):
                for name, dues in zip(names, noted, strict=True):
                    self._hold_against(beside[name], dues)
        for name in names:
            self._beside[name] = [self._due(timer) for timer in beside[name]]

    def _notes(self, waiting: Sequence[Standing], first: Standing, survey: _Survey) -> dict[str, str]:
        """What is to be written down: what has changed since it was."""
        notes = {}
        for standing in waiting:
            record = self._execution.records.get(standing.name or "")
            if record is None:
                continue
            note: dict[str, Any] = {}
            around = self._around(standing, survey)
            if around:
                note["around"] = [self._due(timer) for timer in around]
            if self._beside and standing is first:
                note["beside"] = [self._beside[name] for name in sorted(self._beside, key=by_age)]
            if note != (self._noted(record.name, standing.call) or {}):
                calls = _calls(record.timeouts)[: standing.call]
                calls += [{}] * (standing.call - len(calls))
                notes[record.name] = json.dumps([*calls, note])
        self._has_notes = self._has_notes or bool(notes)
        return notes

    def _position(self, standing: Standing) -> int:
        record = self._execution.records.get(standing.name or "")
        return 1 << 62 if record is None else record.position

    # --- what they share ---------------------------------------------------------------------------------------------

    def _survey(self, waiting: Iterable[Standing], besides: Container[int] = ()) -> _Survey:
        """Look at every task of the body that can be found; one that nobody awaits counts as awaited by the body."""
        survey = _Survey({standing.task: standing for standing in waiting}, besides)
        body = self._execution.task
        if body is not None:
            survey.visit(body, None)
        for task in self._execution.branches.tasks:
            if id(task) not in besides:
                survey.visit(task, body)
        return survey

    def _around(self, standing: Standing, survey: _Survey) -> list[Timer]:
        timers = survey.around.get(standing.task, ()) if standing.task is not None else ()
        return [timer for timer in timers if timer.is_active]

    def _compare(self, standing: Standing, survey: _Survey) -> None:
        """Hold the timers around a wait against what is written down with it."""
        noted = self._noted(standing.name, standing.call)
        if noted is not None:
            self._hold_against(self._around(standing, survey), noted.get("around", []))

    def _hold_against(self, timers: list[Timer], noted: Dues) -> None:
        if len(timers) != len(noted):
            return
        for timer, due in zip(timers, noted, strict=True):
            current = self._due(timer)
            if due is not None and current is not None and due < current:
                self._dues[timer.key] = _Due(timer.set_for, due)
                self._early[timer.key] = timer

    def _noted(self, name: str | None, call: int) -> dict[str, Any] | None:
        """What is written down with a call that waits, in whichever execution that was."""
        record = self._execution.records.get(name or "")
        if record is None or record.timeouts is None:
            return None
        calls = _calls(record.timeouts)
        return calls[call] if call < len(calls) else None

    def _due(self, timer: Timer) -> int | None:
        """When a timer is due, in milliseconds, as it was when it was first found, unless the body has set it anew."""
        found = self._dues.get(timer.key)
        if found is None or found.set_for != timer.set_for:
            remaining = timer.remaining(asyncio.get_running_loop().time())
            if remaining is None or not math.isfinite(remaining):
                return None
            due = min(self._clock.now() + round(min(remaining, LATEST) * 1000), LATEST)
            found = self._dues[timer.key] = _Due(timer.set_for, due)
        return found.at

    def _fire(self, timer: Timer, due: int, now: int) -> None:
        self._move(timer, due, now)
        self._fired = timer

    def _move(self, timer: Timer, due: int, now: int) -> None:
        self._early.pop(timer.key, None)
        timer.move(asyncio.get_running_loop().time() + (due - now) / 1000)
        self._dues[timer.key] = _Due(timer.set_for, due)


def _calls(timeouts: str | None) -> list[dict[str, Any]]:
    return [] if timeouts is None else json.loads(timeouts)
