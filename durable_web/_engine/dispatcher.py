"""Decide which run executes when: slots, claims, leases and timers.

There is no polling inside a process. A trigger, the end of a run and the next due time (one timer, for the earliest)
lead to a claim. Only where other processes may write to the same file is the file's version polled, twice a second.

What is due (a scheduled run, the next attempt at a step, a deadline, the end of a lease) is due by the wall clock,
because it has to outlive this process and its timers. When that clock is set back, waits take longer, a dead engine's
lease included; nothing begins early. When that clock jumps forward, as while a computer sleeps, the next heartbeat
finds what is due, although timers go on from where they stood. Heartbeats themselves do not depend on the wall clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from types import MappingProxyType

from .._clock import Clock, TimerHandle
from .._context import Context
from .._errors import StorageError
from .._execution.commits import GroupCommit
from .._execution.run import PATIENCE_SECONDS, Execution
from .._execution.run_loop import RunLoop
from .._execution.services import Services
from .._execution.tenure import current_step
from .._files import Files
from .._jobs import Job, Registry
from .._model import LATEST, RunStatus
from .._notifications import Events
from .._store import Claim, Lease, LeaseKeeper, NewRun, Store
from .._timeline import Timeline
from .admission import Admission
from .claiming import Claiming
from .dead_letters import DeadLetters
from .last_step import Deaths, End, LastStep
from .scheduler import Scheduler
from .trouble import OnState, Trouble

RETRY_SECONDS = 2.0
LONGEST_TIMER_SECONDS = 24 * 60 * 60.0  # browsers cannot count beyond 24.8 days
NEIGHBOUR_SECONDS = 0.5
CLOCK_JUMP_SECONDS = 1.0

_EXECUTING = frozenset({RunStatus.RUNNING, RunStatus.CANCELLING})
_CANCELLED = frozenset({RunStatus.CANCELLED, RunStatus.CANCELLING})
_PARKED = frozenset({RunStatus.WAITING, RunStatus.PENDING, RunStatus.CANCELLING})


@dataclass(frozen=True, slots=True)
class Limits:
    """How many runs execute or stay parked in memory, how long leases last, and which steps are kept."""

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
        life: str | None = None,
        ends: Mapping[str, End] = MappingProxyType({}),
    ) -> None:
        self._trouble = Trouble(store, clock, events, on_state, self._probe_later, self.fill_slots)
        self._loop = asyncio.get_running_loop()
        self.commits = GroupCommit(store, clock, self._trouble.on_flush_failure, self._loop)
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
        life = life or new_id()
        self.claiming = Claiming(store, registry, life, limits.lease, exclusive=limits.exclusive)
        self._last_step = LastStep(store.database.file, store.database.path, life, clock, exclusive=limits.exclusive)
        shares_file = not limits.exclusive and store.database.file
        self._lease_keeper = LeaseKeeper(store.database.path, life, limits.lease, clock) if shares_file else None
        self._deaths = Deaths(self._last_step, life, ends, limits.lease)
        self._suspect: str | None = None  # the run that was claimed last to be executed alone
        self._on_idle = on_idle
        self._on_neighbour = on_neighbour
        self.new_context = new_context
        self._leased: deque[Claim] = deque()  # and about to be executed
        store.on_leased = self._on_leased
        store.on_claims = self.execute
        self._services = Services(
            store=store,
            commits=self.commits,
            clock=clock,
            loop=self._loop,
            preserve_steps=limits.preserve_steps,
            is_alone=self._is_one_alone,
            claim=self.claim_in_transaction,
            on_due=self._on_due,
            registry=registry,
            webhook_url=webhook_url,
            new_id=new_id,
            admit_child=self._admit_child,
            on_storage_trouble=self._trouble.leave,
            mark_step=self._last_step.begin,
            report_defect=self._report_defect,
        )
        self.executing: dict[str, Execution] = {}
        self.parked: dict[str, Execution] = {}
        self._due = LATEST  # when the timer for what is due next fires, in milliseconds
        self._is_executing = False
        self._context = copy_context()  # of every run, not that of the code that freed its slot
        self._leaving: set[Execution] = set()  # of runs that have ended while their functions are still executing
        self._has_left = asyncio.Event()  # set when a run is no longer executing
        self._claims_left: float = 0
        self._has_ended = False
        self._data_version = 0
        self._filling: asyncio.Handle | None = None
        self._clock_offset = self._offset_of_the_clock()
        self._timers: dict[str, TimerHandle] = {}

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take back the runs of a dead engine, and set the timers; claims nothing yet."""
        with self._store.transaction():
            self._recover(everything=self._limits.exclusive)
            self.claiming.unblock(self._clock.now())
        self._last_step.open()
        if self._lease_keeper is not None:
            self._lease_keeper.start()
        self._beat()
        self.look_at_the_time()
        if not self._limits.exclusive:
            self._data_version = self._store.data_version()
            self._look_at_neighbours()

    def claim(self, at_most: float = float("inf")) -> None:
        """Claim and execute runs, at most this many; 0 stops claiming, as does the end of the engine."""
        self._claims_left = 0 if self._has_ended else at_most
        self.fill_slots()

    def is_asked_by_job(self) -> bool:
        """``True`` when the caller is a job's body or the function of a step."""
        is_body = isinstance(asyncio.get_running_loop(), RunLoop)
        return is_body or (current_step.get() is not None and bool(self.executing))

    async def drain(self) -> None:
        """Wait until nothing is executing: every run has ended, or is parked."""
        while self.executing:
            self._has_left.clear()
            await self._has_left.wait()

    async def stop(self) -> None:
        """Release the leases of the executing runs, and end their executions."""
        self._claims_left = 0
        executions = [*self.executing.values(), *self.parked.values()]
        claims = [execution.claim for execution in self.executing.values()] + self._trouble.unreleased
        try:
            self.commits.flush()
            with self._store.transaction():
                for claim in claims:
                    self._store.runs.release(claim, self._clock.now(), reason="the engine is stopping")
        except StorageError:
            pass  # still full: the next engine takes the runs back
        self._last_step.remove()
        await self.end(executions)

    async def end(self, executions: list[Execution] | None = None) -> None:
        """Detach every execution and cancel every timer, and wait for the executions to end; nothing is written."""
        executions = [*self.executing.values(), *self.parked.values()] if executions is None else executions
        self.leave(executions)
        if executions:
            await asyncio.wait([execution.left for execution in executions], timeout=PATIENCE_SECONDS)

    def leave(self, executions: list[Execution] | None = None) -> None:
        """Detach every execution and cancel every timer, without waiting for their end; nothing is written."""
        self._claims_left = 0
        self._has_ended = True
        self._trouble.end()
        self._last_step.close()
        if self._lease_keeper is not None:
            self._lease_keeper.stop()
        for timer in self._timers.values():
            timer.cancel()
        if self._filling is not None:
            self._filling.cancel()
        self.commits.discard()
        for execution in [*self.executing.values(), *self.parked.values()] if executions is None else executions:
            execution.detach()

    @property
    def is_idle(self) -> bool:
        """``True`` when nothing is executing; after ``fill_slots``, nothing could be executed either."""
        return not self.executing

    def _is_one_alone(self) -> bool:
        """``True`` when at most one run is executing."""
        return len(self.executing) <= 1

    # --- claiming and executing --------------------------------------------------------------------------------------

    def fill_slots(self) -> None:
        """Claim pending runs as long as there are free slots."""
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None
        try:
            while self._free_slots() and self._store.runs.has_claimable():  # mostly none: then no transaction
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
        """Inside a transaction: lease a run for every free slot. The leased runs are executed after the commit.

        :param ending: the id of an executing run that ends in this transaction, so that its slot is free.
        """
        free = self._free_slots(ending) - len(self._store.journal.claims)
        while free > 0 and self._store.runs.has_claimable():
            claim = self.claiming.claim(self._clock.now(), alone=self._executes_nothing(ending))
            if claim is None:
                break
            free = 0 if claim.is_suspect else free - 1
        if self._claims_left:  # what remains is claimed when a slot is free
            self._store.journal.has_claimable = False

    def lease_at_once(self, job: Job) -> Lease | None:
        """Inside a transaction: the lease for a run that is inserted now; ``None`` if it would not be claimed next."""
        if self._free_slots() <= len(self._store.journal.claims) or self._store.runs.has_claimable():
            return None
        return self.claiming.lease(job, self._clock.now())

    def execute(self) -> None:
        """Execute the runs that committed transactions have leased."""
        if self._is_executing:  # called again from below: the transaction that ended a run has leased others
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

    def _on_leased(self, claims: list[Claim]) -> None:
        self._leased.extend(claims)
        self._suspect = next((claim.run_id for claim in claims if claim.is_suspect), self._suspect)

    def _executes_nothing(self, ending: str = "") -> bool:
        """``True`` when nothing is executing, or about to be, except the run that ends."""
        return not (self.executing.keys() - {ending} or self._leased or self._store.journal.claims)

    def _is_suspect_executing(self, ending: str) -> bool:
        """``True`` while a suspect run is executed alone: until it ends, parks or has an outcome."""
        if any(claim.is_suspect for claim in self._store.journal.claims):
            return True
        if self._suspect is None:
            return False
        if self._suspect not in self.executing and all(claim.run_id != self._suspect for claim in self._leased):
            self._suspect = None
            return False
        return self._suspect != ending and self._store.runs.is_suspect(self._suspect)

    def _free_slots(self, ending: str = "") -> float:
        if not self._claims_left or self._trouble.unreleased or self._is_suspect_executing(ending):
            return 0
        taken = len(self.executing) - (ending in self.executing)
        return max(min(self._limits.max_concurrent_runs - taken, self._claims_left) - len(self._leased), 0)

    def _execute(self, claim: Claim) -> None:
        parked = self.parked.pop(claim.run_id, None)
        stopping = self._stopping(claim)
        if parked is not None and not stopping and parked.is_resumed_by(claim):
            self.executing[claim.run_id] = parked
            parked.resume(claim)
            return
        for stale in (parked, self.executing.get(claim.run_id)):  # another engine has continued it since
            if stale is not None:
                stale.detach()
        job = self._registry.get(claim.job, claim.version)
        execution = self._context.copy().run(Execution, self._services, self, claim, job)
        self.executing[claim.run_id] = execution
        if stopping:
            self._begin_after(stopping, execution)
        else:
            self._begin(execution)

    def _begin(self, execution: Execution) -> None:
        execution.begin(self.new_context(execution, self._files), self._context.copy())

    def _begin_after(self, stopping: set[asyncio.Future[None]], execution: Execution) -> None:
        """Begin a run when the executions that it may not overlap with have ended, or did not end in time."""
        timer = self._clock.call_later(PATIENCE_SECONDS, lambda: begin(None))
        left, has_begun = len(stopping), False

        def begin(_: object) -> None:
            nonlocal left, has_begun
            left = 0 if _ is None else left - 1
            if not left and not has_begun:
                has_begun = True
                timer.cancel()
                self._begin(execution)

        for other in stopping:
            other.add_done_callback(begin)

    def _stopping(self, claim: Claim) -> set[asyncio.Future[None]]:
        """The executions that have to end before a run may begin: earlier ones of it, and those it may not overlap
        with.

        A run that was cancelled, or is overdue, has ended in the database, though its code may still clean up.
        """
        others = {*self._leaving, *(other for other in self.executing.values() if other.is_detached)}
        same = {other for run_id, other in self.executing.items() if run_id == claim.run_id}
        kept_apart = {other for other in others if self._are_kept_apart(other.claim, claim)}
        same |= {other for other in others if other.claim.run_id == claim.run_id}
        return {other.left for other in same | kept_apart if not other.left.done()}

    def _are_kept_apart(self, one: Claim, other: Claim) -> bool:
        """``True`` when the two runs may not execute at the same time."""
        if one.job == other.job and one.job in self._registry and self._registry[one.job].limits_concurrency:
            return True
        return one.concurrency_key is not None and one.concurrency_key == other.concurrency_key

    def _admit_child(self, child: NewRun, now: int, awaited: bool) -> str:
        """Insert a child run, or find the existing run that answers for it; returns its id."""
        job = self._registry[child.job]
        if not job.flow.is_free or child.run_at is not None or child.deadline is not None:
            self._loop.call_soon(self.look_at_the_time)  # once it is committed
        return Admission(self._store, job, child, now).admit_child(awaited=awaited)

    def look_at(self, run_ids: set[str]) -> None:
        """Refresh the executions of these runs after a change, and fill the slots."""
        for run_id in run_ids:
            for place, statuses in ((self.executing, _EXECUTING), (self.parked, _PARKED)):
                if run_id in place:
                    self._look_at(place[run_id], statuses)
        if self._filling is None:
            self._filling = self._loop.call_soon(self.fill_slots)

    def _look_at(self, execution: Execution, statuses: frozenset[RunStatus]) -> None:
        """Detach an execution whose run this engine no longer owns; else deliver the outcomes recorded by others."""
        standing = self._store.runs.standing(execution.claim.run_id)
        if standing is None or standing[0] not in statuses or standing[1] != execution.claim.generation:
            has_ended = standing is None or standing[0].is_terminal
            execution.detach(cancelled=standing is not None and standing[0] in _CANCELLED, may_clean_up=has_ended)
            return
        if standing[0] in _CANCELLED:
            execution.tenure.cancel()
        execution.set_paused(standing[2])
        execution.refresh()

    def on_settled(self, execution: Execution) -> None:
        """Handle the end of a run: execute the runs that were claimed for its slot."""
        self._remove(execution)

    def _remove(self, execution: Execution) -> bool:
        """Forget an execution; ``False`` when it was not known."""
        run_id = execution.claim.run_id
        for place in (self.executing, self.parked):
            if place.get(run_id) is execution:
                del place[run_id]
                self._has_left.set()
                if not execution.left.done():
                    self._leaving.add(execution)
                return True
        return False

    def on_left(self, execution: Execution) -> None:
        """Handle the end of an execution: nothing of its run is executed here any more."""
        has_left_now = self._remove(execution)
        self._leaving.discard(execution)
        if has_left_now:
            self.fill_slots()
        elif not self.executing:
            self._on_idle()

    def _report_defect(self, error: BaseException, run_id: str) -> None:
        """Report a defect of the engine, not of the job."""
        self._events.report(error, "executing a run", self._clock.now(), run_id)
        message = f"executing run {run_id} failed inside the engine"
        self._loop.call_exception_handler({"message": message, "exception": error})

    def on_parked(self, execution: Execution) -> None:
        """Handle the parking of a run: it waits without a slot."""
        run_id = execution.claim.run_id
        self.parked[run_id] = self.executing.pop(run_id)
        self._has_left.set()
        while len(self.parked) > self._limits.max_parked:
            self.parked.pop(next(iter(self.parked))).detach()
        next_attempt = execution.steps.next_attempt
        if next_attempt is not None:
            self._on_due(next_attempt)
        self.fill_slots()

    def on_wanted(self, execution: Execution) -> None:
        """Handle a parked body that can go on before its wake time."""
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
        """Run what is due, and set the timer for the next due time."""
        if self._has_ended:
            return
        self.claiming.has_new_times = False
        try:
            was_due = self._do_what_is_due(self._clock.now())
            due = self._next_due()
        except StorageError as trouble:
            self._trouble.report(trouble, "waking runs")
            self._set_timer("due", RETRY_SECONDS, self.look_at_the_time)
            return
        self._due = LATEST
        if due is not None:
            self._on_due(due)
        if was_due:
            self.fill_slots()

    def _on_due(self, due: int) -> None:
        """Set the timer for a time, in milliseconds, unless it is set for an earlier one."""
        if due < self._due:
            self._due = due
            delay = max((due - self._clock.now()) / 1000, 0.0)
            self._set_timer("due", min(delay, LONGEST_TIMER_SECONDS), self.look_at_the_time)

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
            if run_id in self.executing:
                self._look_at(self.executing[run_id], _EXECUTING)
        return True

    def _beat(self) -> None:
        """Three times per lease: renew the leases of this engine, and take back the runs whose leases have expired."""
        self._last_step.beat()
        if self._lease_keeper is not None:
            self._lease_keeper.beat()
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
        """Seconds by which the wall clock is ahead of the timers' clock; the number changes when one of them jumps."""
        return self._clock.now() / 1000 - self._clock.monotonic()

    def _renew(self) -> None:
        now = self._clock.now()
        lost = []
        with self._store.transaction():
            for execution in self.executing.values():
                expires = now + self._limits.lease
                if not self._store.runs.renew(execution.claim, now, expires, exclusive=self._limits.exclusive):
                    lost.append(execution)
            if not self._limits.exclusive:
                self._recover(everything=False)
        if not self._limits.exclusive:
            self._last_step.remove_stale(self._store.runs.has_leases)
        for execution in lost:
            execution.detach()

    def _recover(self, *, everything: bool) -> None:
        now = self._clock.now()
        limit = self._limits.max_recoveries
        dead = self._store.runs.recover(now, everything=everything, max_recoveries=limit, deaths=self._deaths)
        for run_id, job, input_text, error in dead:
            self._dead_letters.send(run_id, job, input_text, error)

    def _look_at_neighbours(self) -> None:
        """Poll the file's version, and refresh when another process has committed to the file."""
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
                self._trouble.report(trouble, "reading what other processes have committed")
            return
        self._data_version = version
        self.look_at_the_time()
        self.fill_slots()

    def _leave_what_is_no_longer_ours(self) -> None:
        """Refresh the runs that another process has cancelled, taken over, paused, or sent a message to."""
        for place, statuses in ((self.executing, _EXECUTING), (self.parked, _PARKED)):
            for execution in list(place.values()):
                self._look_at(execution, statuses)

    def _probe_later(self, delay: float, probe: Callable[[], None]) -> None:
        self._set_timer("probe", delay, probe)

    def _set_timer(self, name: str, delay: float, callback: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        if self._has_ended:
            return
        self._timers[name] = self._clock.call_later(delay, callback)
