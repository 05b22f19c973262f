"""Waiting inside a run: branches that wait in memory, and parking the run when all of them do.

A branch waits for a time (the next attempt at a step), or for somebody to end a durable wait. When no branch is doing
anything else, the run is parked: its slot, its lease and its concurrency key are free. It goes on under a new claim,
in memory if it is still there, else by replaying. What asyncio itself would have waked it for, does so too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..clock import TimerHandle
from ..errors import StorageError
from ..store import LeaseLost
from .timeouts import Outlook, Standing

if TYPE_CHECKING:
    from .executor import Execution
    from .services import Services

PARK_SECONDS = 1.0  # a shorter wait keeps the slot: parking costs three commits
PARK_TURNS = 20  # of the event loop: by then the body has heard, through tasks of tasks, of a branch that ended
LONGEST_TIMER_SECONDS = 24 * 24 * 60 * 60.0  # beyond 24.8 days a browser's timer fires at once
NAMED_REASONS = 3


@dataclass(slots=True, eq=False)
class _Wait:
    reason: str
    until: int | None  # milliseconds; None for a wait that no time ends
    step: str | None  # the name of the durable wait that ends it, instead of the time
    standing: Standing
    is_called_off: bool = False  # it ends when the body calls it off again
    over: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Parking:
    """Which branches of one execution wait, and whether the run is parked."""

    def __init__(self, execution: Execution, services: Services) -> None:
        self.in_flight = 0  # steps, commits and other work of branches that do not wait
        self._execution = execution
        self._services = services
        self._clock = services.clock
        self._waits: list[_Wait] = []
        self._wake_timer: TimerHandle | None = None
        self._resumed: asyncio.Event | None = None  # set again when a parked run has its lease back
        self._held: list[Callable[[], None]] = []
        self._paused: asyncio.Future[None] | None = None
        self._quiet_turns: int | None = None  # of the event loop, since a branch has begun to wait, or has ended

    # --- branches ----------------------------------------------------------------------------------------------------

    async def wait_until(self, moment: int, step: str, reason: str) -> None:
        """Wait until a time, in milliseconds, on behalf of a step; a branch in flight is not in flight meanwhile."""
        if moment > self._clock.now():
            await self._wait(_Wait(reason, moment, None, Standing(step)))

    async def wait_for(self, step: str, until: int | None, reason: str, call: int = 0) -> None:
        """Wait until ``notice`` says that the durable wait ``step`` may have ended.

        :param call: which call of the body waits for it, from 0: for a webhook there may be several.
        """
        await self._wait(_Wait(reason, until, step, Standing(step, call)))

    async def wait_to_be_called_off(self, step: str) -> None:
        """Wait for the body to call off what it has called off before; return when nothing is left that could."""
        reason = f"{step!r} to be called off once more"
        await self._wait(_Wait(reason, None, step, Standing(step), is_called_off=True))

    async def _wait(self, wait: _Wait) -> None:
        self._waits.append(wait)
        self.in_flight -= 1
        self._arm()
        self.park_soon()
        try:
            await wait.over
        finally:
            self.in_flight += 1
            if wait in self._waits:
                self._waits.remove(wait)
        await self.has_lease()

    def land(self) -> None:
        """One branch fewer is in flight; if the others all wait, the run can be parked."""
        self.in_flight -= 1
        if self._waits and not self.in_flight:
            self.park_soon()

    @property
    def awaited(self) -> list[str]:
        """The names of the durable waits that branches wait for."""
        return [wait.step for wait in self._waits if wait.step is not None]

    def notice(self, ended: Collection[str]) -> None:
        """Let the branches go on whose durable wait has ended."""
        for wait in self._waits:
            if wait.step in ended and not wait.over.done():
                wait.over.set_result(None)
        self._waits = [wait for wait in self._waits if not wait.over.done()]

    def pause(self) -> None:
        """Let no further step begin."""
        if self._paused is None:
            self._paused = asyncio.get_running_loop().create_future()

    def unpause(self) -> None:
        """Let steps begin again."""
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.set_result(None)

    @property
    def is_open(self) -> bool:
        """Whether a step may begin without waiting: the run is not paused, and leased."""
        return self._paused is None and self._resumed is None

    async def may_begin(self) -> bool:
        """Return once the run is not paused, and leased; whether that took waiting. For a branch that is in flight."""
        has_waited = self._paused is not None or self.is_parked
        while self._paused is not None:
            wait = _Wait("the run to be resumed", None, None, Standing(None))
            self._paused.add_done_callback(lambda _, over=wait.over: over.done() or over.set_result(None))
            await self._wait(wait)
        await self.has_lease()
        return has_waited

    # --- parking -----------------------------------------------------------------------------------------------------

    @property
    def is_parked(self) -> bool:
        return self._resumed is not None

    def park_soon(self) -> None:
        """Park the run if, when nothing else has happened for some turns of the loop, every branch waits."""
        if self._quiet_turns is None:
            asyncio.get_running_loop().call_soon(self._count_quiet_turns)
        self._quiet_turns = 0

    def _count_quiet_turns(self) -> None:
        self._quiet_turns = (self._quiet_turns or 0) + 1
        if self.in_flight or not self._waits:
            self._quiet_turns = None
        elif self._quiet_turns < PARK_TURNS:
            asyncio.get_running_loop().call_soon(self._count_quiet_turns)
        else:
            self._quiet_turns = None
            self._park_if_idle()

    def _park_if_idle(self) -> None:
        execution = self._execution
        if execution.is_abandoned or self.is_parked or self.in_flight or not self._waits:
            return
        if any(wait.over.done() for wait in self._waits):
            return
        now = self._clock.now()
        times = [wait.until for wait in self._waits if wait.until is not None]
        if times and min(times) - now < PARK_SECONDS * 1000:
            return
        outlook = self._outlook()
        if outlook.has_fired:
            self.park_soon()
        elif not self._begin_anew(outlook) and execution.may_park:
            self._park(now, outlook)

    def _outlook(self) -> Outlook:
        """What the timers around the waits mean; where they cannot be seen, the run is parked as if there were none."""
        try:
            return self._execution.timeouts.at_rest([wait.standing for wait in self._waits])
        except Exception as error:
            message = f"the timers around the waits of run {self._execution.claim.run_id} could not be seen"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
            return Outlook()

    def _begin_anew(self, outlook: Outlook) -> bool:
        """Let what was called off, and nothing will call off any more, wait as if it never was; whether it does."""
        called_off = [wait for wait in self._waits if wait.is_called_off]
        if self._execution.may_park and outlook.due is not None:
            return False
        for wait in called_off:
            wait.over.set_result(None)
        self._waits = [wait for wait in self._waits if not wait.is_called_off]
        return bool(called_off)

    def _park(self, now: int, outlook: Outlook) -> None:
        execution = self._execution
        execution.reports.write_progress()
        wake_at, reason = self._wake_at(now, outlook), self._reason()
        ended: list[str] = []  # by another process, which could not see that the run was about to wait

        def park() -> None:
            ended.extend(self._services.store.waits.ended(execution.claim.run_id, self.awaited))
            if not ended:
                self._services.store.runs.park(execution.claim, now, wake_at, reason)
                self._services.store.steps.note_timeouts(execution.claim.run_id, outlook.notes)

        try:
            self._services.commits.commit_now(park)
        except LeaseLost:
            execution.abandon()
            return
        except StorageError as trouble:
            execution.abandon()
            self._services.on_storage_trouble(execution.claim, trouble)
            return
        if ended:
            execution.look_at_waits()
            return
        for name, timeouts in outlook.notes.items():
            execution.records[name] = execution.records[name]._replace(timeouts=timeouts)
        self._resumed = asyncio.Event()
        self._arm()
        self._services.on_parked(execution)

    def _wake_at(self, now: int, outlook: Outlook) -> int | None:
        """When the next attempt at a step is due, or a timer of asyncio, should the run no longer be in memory."""
        times = [wait.until for wait in self._waits if wait.until is not None and wait.step is None]
        if outlook.due is not None:
            times.append(max(outlook.due, now + round(PARK_SECONDS * 1000)))
        return min(times, default=None)

    def _reason(self) -> str:
        """For what the run waits, in words; of many branches, what the first ones wait for."""
        reasons = list(dict.fromkeys(wait.reason for wait in self._waits))
        more = f" and {len(reasons) - NAMED_REASONS} more" if len(reasons) > NAMED_REASONS else ""
        return "it waits for " + ", ".join(reasons[:NAMED_REASONS]) + more

    def resume(self) -> None:
        """Go on after parking: the run is leased again."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.set()
        held, self._held = self._held, []
        for write in held:
            self._services.commits.later(write)
        self._end_waits()
        self.park_soon()

    async def has_lease(self) -> None:
        """Return once the run is leased; a parked one asks to be woken before its time."""
        resumed = self._resumed
        if resumed is not None:
            self._services.on_wanted(self._execution)
            await resumed.wait()
        self._execution.check()

    def hold(self, write: Callable[[], None]) -> None:
        """Keep a write until the parked run has its lease back."""
        self._held.append(write)

    def stop(self) -> None:
        """Set no timer any more, and let whoever waits for the lease find out that there is none."""
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        if self._resumed is not None:
            self._resumed.set()

    # --- time --------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set the timer for the next attempt that is due while the run is executing."""
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._wake_timer = None
        times = [wait.until for wait in self._waits if wait.until is not None and wait.step is None]
        if times and not self.is_parked:
            delay = min((min(times) - self._clock.now()) / 1000, LONGEST_TIMER_SECONDS)
            self._wake_timer = self._clock.call_later(delay, self._on_wake_timer)

    def _on_wake_timer(self) -> None:
        self._end_waits()
        self.park_soon()  # the clock was set back: a short wait may be long now

    def _end_waits(self) -> None:
        now = self._clock.now()
        for wait in self._waits:
            if wait.step is None and wait.until is not None and wait.until <= now and not wait.over.done():
                wait.over.set_result(None)
        self._waits = [wait for wait in self._waits if not wait.over.done()]
        self._arm()
