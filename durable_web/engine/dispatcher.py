"""Which run executes when: slots, claims, leases and timers.

There is no polling inside a process. A trigger, the end of a run and the next due time (one timer, for the earliest)
lead to a claim. Only where other processes may write to the same file is the file's version looked at, twice a second.

What is due (a scheduled run, the next attempt at a step, a deadline, the end of a lease) is due by the wall clock,
because it has to outlive this process and its timers. When that clock is set back, what waits waits longer, a dead
engine's lease included; nothing begins early. When it goes forward, as while a computer sleeps, what is due is seen
with the next heartbeat, though timers go on from where they stood. Heartbeats themselves do not depend on it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from ..clock import Clock, TimerHandle
from ..context import Context
from ..errors import JobNotFound, StorageError
from ..events import Events
from ..execution.branches import STUBBORN_SECONDS
from ..execution.commits import GroupCommit
from ..execution.executor import Execution
from ..execution.services import Services
from ..files import Files
from ..job import Job, Registry
from ..model import RunStatus
from ..store import Claim, Lease, NewRun, Store
from ..timeline import Timeline
from .admission import Admission
from .claiming import Claiming
from .dead_letters import DeadLetters
from .scheduler import Scheduler
from .trouble import OnState, Trouble

RETRY_SECONDS = 2.0
LONGEST_TIMER_SECONDS = 24 * 60 * 60.0  # browsers cannot count beyond 24.8 days
NEIGHBOUR_SECONDS = 0.5
CLOCK_JUMP_SECONDS = 1.0

_EXECUTING = frozenset({RunStatus.LEASED, RunStatus.CANCELLING})
_CANCELLED = frozenset({RunStatus.CANCELLED, RunStatus.CANCELLING})
_PARKED = frozenset({RunStatus.WAITING, RunStatus.PENDING})


@dataclass(frozen=True, slots=True)
class Limits:
    """How many runs execute or stay parked in memory, how patient the engine is, and what it keeps."""

    max_concurrent_runs: int
    max_parked: int
    max_recoveries: int
    lease: int  # milliseconds
    exclusive: bool
    preserve_steps: bool
    dead_letter: Job | str | None = None


class Dispatcher:
    """Claims runs of one store and executes them."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        files: Files,
        timeline: Timeline,
        events: Events,
        scheduler: Scheduler,
        limits: Limits,
        new_id: Callable[[], str],
        webhook_url: Callable[[str], str] | None,
        on_state: OnState,
        on_idle: Callable[[], None],
        on_neighbour: Callable[[], None],
        new_context: Callable[[Execution, Files], Context] = Context,
    ) -> None:
        self._trouble = Trouble(store, clock, events, on_state, self._probe_later, self.fill_slots)
        self.commits = GroupCommit(store, clock, self._trouble.on_flush_failure)
        self.claimed = 0
        self._store = store
        self._registry = registry
        self._clock = clock
        self._files = files
        self._timeline = timeline
        self._events = events
        self._scheduler = scheduler
        self._limits = limits
        self._dead_letters = DeadLetters(store, registry, clock, events, limits.dead_letter, new_id)
        self.claiming = Claiming(store, registry, new_id(), limits.lease, exclusive=limits.exclusive)
        self._on_idle = on_idle
        self._on_neighbour = on_neighbour
        self.new_context = new_context
        self._leased: deque[Claim] = deque()  # and about to be executed
        store.on_leased = self._leased.extend
        store.on_claims = self.execute
        self._services = Services(
            store,
            self.commits,
            clock,
            files,
            preserve_steps=limits.preserve_steps,
            is_alone=self._is_one_alone,
            claim=self.claim_in_transaction,
            on_settled=self._on_settled,
            on_parked=self._on_parked,
            on_wanted=self._on_wanted,
            on_timer=self.look_at_the_time,
            registry=registry,
            webhook_url=webhook_url,
            new_id=new_id,
            admit_child=self._admit_child,
            on_storage_trouble=self._trouble.leave,
        )
        self.executing: dict[str, tuple[Execution, asyncio.Task[None]]] = {}
        self.parked: dict[str, tuple[Execution, asyncio.Task[None]]] = {}
        self._is_executing = False
        self._context = copy_context()  # of every run: none begins with what the code that makes room for it has set
        self._has_left = asyncio.Event()  # set when a run is no longer executing
        self._claims_left: float = 0
        self._has_ended = False
        self._data_version = 0
        self._filling: asyncio.Handle | None = None
        self._clock_offset = self._offset_of_the_clock()
        self._timers: dict[str, TimerHandle] = {}

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take back what a dead engine left, and begin to watch the time; claims nothing yet."""
        with self._store.transaction():
            self._recover(everything=self._limits.exclusive)
            self.claiming.unblock(self._clock.now())
        self._beat()
        self.look_at_the_time()
        if not self._limits.exclusive:
            self._data_version = self._store.data_version()
            self._look_at_neighbours()

    def claim(self, at_most: float = float("inf")) -> None:
        """Execute runs as they come, this many at the most; 0 stops claiming, as does the end of the engine."""
        self._claims_left = 0 if self._has_ended else at_most
        self.fill_slots()

    def is_executing_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether it is the task of a job body, or of a branch that is in the middle of a step."""
        return any(task is body or task in run.branches.tasks for run, body in self.executing.values())

    async def drain(self) -> None:
        """Wait until nothing is executing: every run has ended, or is parked."""
        while self.executing:
            self._has_left.clear()
            await self._has_left.wait()

    async def stop(self) -> None:
        """Give back what is executing, and end it."""
        self._claims_left = 0
        entries = [*self.executing.values(), *self.parked.values()]
        claims = [execution.claim for execution, _ in self.executing.values()] + self._trouble.unreleased
        try:
            self.commits.flush()
            with self._store.transaction():
                for claim in claims:
                    self._store.runs.release(claim, self._clock.now(), reason="the engine is stopping")
        except StorageError:
            pass  # still full: the next engine takes the runs back
        await self.end(entries)

    async def end(self, entries: list[tuple[Execution, asyncio.Task[None]]] | None = None) -> None:
        """Leave every execution where it is, and every timer unfired; nothing is written."""
        entries = [*self.executing.values(), *self.parked.values()] if entries is None else entries
        self.leave(entries)
        if entries:
            await asyncio.wait([task for _, task in entries], timeout=STUBBORN_SECONDS)

    def leave(self, entries: list[tuple[Execution, asyncio.Task[None]]] | None = None) -> None:
        """``end``, without waiting until what was executing has noticed."""
        self._claims_left = 0
        self._has_ended = True
        self._trouble.end()
        for timer in self._timers.values():
            timer.cancel()
        if self._filling is not None:
            self._filling.cancel()
        self.commits.discard()
        for execution, _ in [*self.executing.values(), *self.parked.values()] if entries is None else entries:
            execution.abandon()

    def abandon(self, run_id: str, *, cancelled: bool = False) -> None:
        """Stop executing a run that is no longer ours; does nothing when it is not here."""
        for place in (self.executing, self.parked):
            if run_id in place:
                place[run_id][0].abandon(cancelled=cancelled)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is executing; after ``fill_slots``, that nothing could be."""
        return not self.executing

    def _is_one_alone(self) -> bool:
        """Whether at most one run is executing."""
        return len(self.executing) <= 1

    # --- claiming and executing --------------------------------------------------------------------------------------

    def fill_slots(self) -> None:
        """Claim pending runs as long as there are free slots."""
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None
        try:
            while self._free_slots() and self._store.runs.has_claimable():  # mostly nothing: then no transaction
                claimed = self.claimed
                with self._store.transaction():
                    self.claim_in_transaction()
                if self.claimed == claimed:
                    break
        except StorageError as trouble:
            self._trouble.report(trouble, "claiming a run")
        if not self.executing:
            self._on_idle()

    def claim_in_transaction(self, ending: str = "") -> None:
        """Inside a transaction: lease a run for every free slot. They are executed once that is committed.

        :param ending: the id of an executing run that ends in this transaction, so that its slot is free.
        """
        free = self._free_slots(ending) - len(self._store.journal.claims)
        while free > 0 and self._store.runs.has_claimable() and self.claiming.claim(self._clock.now()) is not None:
            free -= 1
        if self._claims_left:  # what may be left now is claimed when there is a slot for it
            self._store.journal.has_claimable = False

    def lease_at_once(self, job: Job) -> Lease | None:
        """Inside a transaction: with what a run is leased that is made now, where it would be claimed next."""
        if self._free_slots() <= len(self._store.journal.claims) or self._store.runs.has_claimable():
            return None
        return self.claiming.lease(job, self._clock.now())

    def execute(self) -> None:
        """Execute the runs that were leased in transactions that are committed now."""
        if self._is_executing:  # a run could not be executed, and in the transaction of its end others were leased
            return
        self._is_executing = True
        try:
            while self._leased:
                claim = self._leased.popleft()
                self._claims_left -= 1
                self.claimed += 1
                try:
                    self._execute(claim)
                except StorageError as trouble:  # what the run has recorded could not be read
                    self._trouble.leave(claim, trouble)
        finally:
            self._is_executing = False
        if self.claiming.has_new_times:
            self.look_at_the_time()

    def _free_slots(self, ending: str = "") -> float:
        if self._trouble.unreleased:
            return 0
        taken = len(self.executing) - (ending in self.executing)
        return max(min(self._limits.max_concurrent_runs - taken, self._claims_left) - len(self._leased), 0)

    def _execute(self, claim: Claim) -> None:
        entry = self.parked.pop(claim.run_id, None)
        stopping = self._stopping(claim)
        if entry is not None and not stopping and entry[0].is_resumed_by(claim):
            self.executing[claim.run_id] = entry
            entry[0].resume(claim)
            return
        for stale in (entry, self.executing.get(claim.run_id)):  # of before it went on, or was retried, elsewhere
            if stale is not None:
                stale[0].abandon()
        try:
            execution = Execution(self._services, claim, self._registry.get(claim.job, claim.version))
        except JobNotFound as error:
            Execution(self._services, claim, Job(claim.job, _no_function)).fail(error)
            return
        context = self.new_context(execution, self._files)
        running = self._run_after(stopping, execution, context) if stopping else execution.run(context)
        task = self._context.copy().run(asyncio.get_running_loop().create_task, running)
        self.executing[claim.run_id] = execution, task
        task.add_done_callback(lambda done: self._on_executed(execution, done))

    def _stopping(self, claim: Claim) -> set[asyncio.Task[Any]]:
        """What has to let go before a run may begin: of itself, and of those that it may not overlap with.

        A run that was cancelled, or is overdue, has ended for everybody else, though its code may still clean up.
        """
        found: set[asyncio.Task[Any]] = set()
        for run_id, (other, task) in self.executing.items():
            if run_id == claim.run_id or (other.is_abandoned and self._are_kept_apart(other.claim, claim)):
                found |= {task, *other.branches.tasks}
        return found

    def _are_kept_apart(self, one: Claim, other: Claim) -> bool:
        """Whether not both may execute at the same time."""
        if one.job == other.job and one.job in self._registry and self._registry[one.job].limits_concurrency:
            return True
        return one.concurrency_key is not None and one.concurrency_key == other.concurrency_key

    def _admit_child(self, child: NewRun, now: int, awaited: bool) -> str:
        """Insert a run that another one starts, or find the one that stands for it: its id."""
        return Admission(self._store, self._registry[child.job], child, now).admit_child(awaited=awaited)

    async def _run_after(self, stopping: set[asyncio.Task[Any]], execution: Execution, context: Context) -> None:
        """Execute a run once what it may not overlap with has let go, or will not."""
        await asyncio.wait(stopping, timeout=STUBBORN_SECONDS)
        await execution.run(context)

    def look_at(self, run_ids: set[str]) -> None:
        """Something has happened to these runs, or there may be new ones: let them know, and fill the slots."""
        for run_id in run_ids:
            for place, statuses in ((self.executing, _EXECUTING), (self.parked, _PARKED)):
                if run_id in place:
                    self._look_at(place[run_id][0], statuses)
        if self._filling is None:
            self._filling = asyncio.get_running_loop().call_soon(self.fill_slots)

    def _look_at(self, execution: Execution, statuses: frozenset[RunStatus]) -> None:
        """Leave a run that is no longer ours; else let its branches go on whose waits have ended."""
        standing = self._store.runs.standing(execution.claim.run_id)
        if standing is None or standing[0] not in statuses or standing[1] != execution.claim.generation:
            execution.abandon(cancelled=standing is not None and standing[0] in _CANCELLED)
            return
        (execution.parking.pause if standing[2] else execution.parking.unpause)()
        execution.look_at_waits()

    def _on_settled(self, execution: Execution) -> None:
        """A run has ended, and others are claimed for its slot, if there were any."""
        self._remove(execution)

    def _remove(self, execution: Execution) -> bool:
        """Forget an execution; whether it was known."""
        run_id = execution.claim.run_id
        for place in (self.executing, self.parked):
            if run_id in place and place[run_id][0] is execution:
                del place[run_id]
                self._has_left.set()
                return True
        return False

    def _on_executed(self, execution: Execution, task: asyncio.Task[None]) -> None:
        has_left_now = self._remove(execution)
        if not task.cancelled() and task.exception() is not None:  # a defect of the engine, not of the job
            error = task.exception() or RuntimeError()
            run_id = execution.claim.run_id
            self._events.report(error, "executing a run", self._clock.now(), run_id)
            message = f"executing run {run_id} failed inside the engine"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
        if has_left_now:
            self.fill_slots()
        elif not self.executing:
            self._on_idle()

    def _on_parked(self, execution: Execution) -> None:
        run_id = execution.claim.run_id
        self.parked[run_id] = self.executing.pop(run_id)
        self._has_left.set()
        while len(self.parked) > self._limits.max_parked:
            oldest, _ = self.parked.pop(next(iter(self.parked)))
            oldest.abandon()
        self.look_at_the_time()
        self.fill_slots()

    def _on_wanted(self, execution: Execution) -> None:
        try:
            with self._store.transaction():
                claim = execution.claim
                self._store.runs.wake(claim.run_id, self._clock.now(), generation=claim.generation)
        except StorageError as trouble:
            self._trouble.wake_later(execution, trouble)
            return
        self.fill_slots()

    # --- time --------------------------------------------------------------------------------------------------------

    def look_at_the_time(self) -> None:
        """Do what is due, and set the timer for what is due next."""
        self.claiming.has_new_times = False
        try:
            was_due = self._do_what_is_due(self._clock.now())
            due = self._next_due()
        except StorageError as trouble:
            self._trouble.report(trouble, "waking runs")
            self._set_timer("due", RETRY_SECONDS, self.look_at_the_time)
            return
        if due is not None:
            delay = max((due - self._clock.now()) / 1000, 0.0)
            self._set_timer("due", min(delay, LONGEST_TIMER_SECONDS), self.look_at_the_time)
        if was_due:
            self.fill_slots()

    def _next_due(self) -> int | None:
        dues = (self._store.runs.next_due(), self._store.flow.next_opening(), self._scheduler.next_due())
        return min((due for due in dues if due is not None), default=None)

    def _do_what_is_due(self, now: int) -> bool:
        due = self._next_due()
        if due is None or due > now:
            return False
        self.commits.flush()
        with self._store.transaction():
            overdue = self._store.runs.overdue(now)
            for run_id in overdue:
                self._store.family.expire(run_id, now)
            self._store.runs.wake_due(now)
            self._store.waits.settle_due(now)
            self._store.flow.open(now)
            self._scheduler.fire(now)
        for run_id in overdue:
            self.abandon(run_id)
        return True

    def _beat(self) -> None:
        """Three times in a lease: renew what is ours, and take back what others have let expire."""
        self._set_timer("beat", self._limits.lease / 3000, self._beat)
        offset = self._offset_of_the_clock()
        if abs(offset - self._clock_offset) > CLOCK_JUMP_SECONDS:
            self._clock_offset = offset
            self.look_at_the_time()
        if not self.executing and self._limits.exclusive:
            return
        try:
            self._renew()
        except StorageError as trouble:
            self._trouble.report(trouble, "renewing leases")
            return
        if not self._limits.exclusive:
            self.look_at_the_time()  # the handler of a dead run may have to wait
        self.fill_slots()

    def _offset_of_the_clock(self) -> float:
        """Seconds by which the wall clock is ahead of the timers' clock; another number after one of them jumped."""
        return self._clock.now() / 1000 - self._clock.monotonic()

    def _renew(self) -> None:
        now = self._clock.now()
        lost = []
        with self._store.transaction():
            for execution, _ in self.executing.values():
                expires = now + self._limits.lease
                if not self._store.runs.renew(execution.claim, now, expires, exclusive=self._limits.exclusive):
                    lost.append(execution)
            if not self._limits.exclusive:
                self._recover(everything=False)
        for execution in lost:
            execution.abandon()

    def _recover(self, *, everything: bool) -> None:
        now = self._clock.now()
        dead = self._store.runs.recover(now, everything=everything, max_recoveries=self._limits.max_recoveries)
        for run_id, job, input_text, error in dead:
            self._dead_letters.send(run_id, job, input_text, error)

    def _look_at_neighbours(self) -> None:
        """Notice what another process has committed to the file."""
        self._set_timer("neighbours", NEIGHBOUR_SECONDS, self._look_at_neighbours)
        try:
            version = self._store.data_version()
            if version == self._data_version:
                return
            self._timeline.look_again()
            self._on_neighbour()
            self._leave_what_is_no_longer_ours()
        except StorageError as trouble:
            if not self._trouble.is_known:
                self._trouble.report(trouble, "looking at what other processes have done")
            return
        self._data_version = version
        self.look_at_the_time()
        self.fill_slots()

    def _leave_what_is_no_longer_ours(self) -> None:
        """Tell the runs that another process has cancelled, taken over, paused, or sent something to."""
        for place, statuses in ((self.executing, _EXECUTING), (self.parked, _PARKED)):
            for execution, _ in list(place.values()):
                self._look_at(execution, statuses)

    def _probe_later(self, delay: float, probe: Callable[[], None]) -> None:
        self._set_timer("probe", delay, probe)

    def _set_timer(self, name: str, delay: float, callback: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        if self._has_ended:
            return
        self._timers[name] = self._clock.call_later(delay, callback)


async def _no_function(context: object, input: object) -> None:
    """Stands where the code of a run's job should be."""
