"""One run, executed: its body on a run loop, the delivery of outcomes, parking, and the end.

The job function is called from the top, with every claim that does not find the run in memory. Outcomes that are
recorded are delivered in their order; what has none begins once all of them are. When the run is taken away from this
engine, it is *detached*: everything that the body still asks of its context raises, and nothing of it is written.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, Protocol

from .._codec import check_reading, decode, encode
from .._errors import BodyNeverRests, SerializationError, StepFailed, StorageError, describe
from .._jobs import Job
from .._model import OperationKind, RunStatus, StepStatus
from .._store import Claim, LeaseLost, NewRun
from .._triggers import Trigger
from .children import Children
from .compensation import Compensation, Undos
from .history import History
from .leaving import ContinueAsNew, Detached, failed_step, own_reason
from .outcomes import Outcomes
from .parking import Parking, Rest
from .reporting import Reporting
from .run_loop import Outside, RunLoop, RunTimer
from .services import Services
from .steps import Steps
from .tenure import Tenure, current_step
from .waits import Waits
from .writes import Writes

PATIENCE_SECONDS = 5.0
"""How long code that was cancelled may take to end before the run is left all the same."""
SHARED_PRIMITIVE = (
    ". A primitive of asyncio belongs to one run, whose body has an event loop of its own: make it in the job. To "
    "coordinate runs, use concurrency= or singleton= of the job, or use the primitive inside steps."
)


class Observer(Protocol):
    """What a run reports to the dispatcher of its engine."""

    def on_settled(self, execution: Execution) -> None:
        """The run has ended, and runs are claimed for its slot."""

    def on_parked(self, execution: Execution) -> None:
        """The run waits without a slot."""

    def on_wanted(self, execution: Execution) -> None:
        """A parked body wants to go on before its time."""

    def on_left(self, execution: Execution) -> None:
        """Nothing of the run is executed here any more."""


class Asker(Protocol):
    """What a job function is called with."""

    def close_forgotten(self, awaited: Iterable[Any]) -> str | None:
        """Close the operations that were asked for and never awaited, and say which; ``None`` without any."""


class Execution:
    """A claimed run, on its way through its job function."""

    def __init__(self, services: Services, observer: Observer, claim: Claim, job: Job) -> None:
        self.job = job
        self.webhook_url = services.webhook_url
        self.left: asyncio.Future[None] = services.loop.create_future()
        """Done when nothing of the run is executed here any more."""
        self._services = services
        self._store = services.store
        self._clock = services.clock
        self._observer = observer
        self.loop = RunLoop(services.loop, self, claim.run_id)  # type: ignore[abstract]
        records = services.store.steps.load(claim.run_id) if claim.has_steps else {}
        self.history = History(records, claim.started_at)
        self.tenure = Tenure(
            services.store, services.commits, self.loop, claim, self.detach, services.on_storage_trouble
        )
        self.reporting = Reporting(services.store, services.clock, services.loop, self.history, self.tenure)
        undos = Undos()
        parts = services, self.history, self.loop, self.tenure, self.reporting
        outcomes = self._outcomes = Outcomes(services, self.history, self.loop, self.tenure)
        self.steps = Steps(*parts, outcomes, job.retry, undos.add)
        self.writes = Writes(services, self.history, self.tenure, outcomes)
        self.waits = Waits(*parts, outcomes)
        self._parking = Parking(*parts, outcomes, self.steps, self.waits)
        self.children = Children(services, self.history, self.tenure, self.writes, self.waits)
        self._compensation = Compensation(services, self.history, self.tenure, self.steps, self.writes, undos)
        self._asker: Asker | None = None
        self._body: asyncio.Task[Any] | None = None
        self._has_ended = False  # the body
        self._is_settled = False
        self._failure: BaseException | None = None  # what ends the run, whatever the body makes of it
        self._is_replay_only = False

    def replay_only(self) -> None:
        """Begin nothing that is not recorded, for a look whether the body still asks for what is."""
        self._is_replay_only = True
        self.history.hold_back()

    @property
    def claim(self) -> Claim:
        """The claim under which the run is executed."""
        return self.tenure.claim

    @property
    def is_detached(self) -> bool:
        """``True`` when the run is no longer executed here."""
        return self.tenure.is_detached

    # --- the body ----------------------------------------------------------------------------------------------------

    def begin(self, context: Asker, variables: Context) -> None:
        """Begin to execute the job function.

        :param context: what it is called with.
        :param variables: the context variables that it starts with.
        """
        if self.tenure.is_detached:
            self._leave_when_idle()
            return
        try:
            input_value = self.job.validate_input(decode(self.claim.input))
            body = self.job.function(context, input_value)
        except BaseException as error:
            self._has_ended = True
            self.loop.create_task(self._finish(error, ""))
            return
        self._asker = context
        self._body = variables.run(self.loop.create_task, body)
        self._body.add_done_callback(self._on_body_end)

    def _on_body_end(self, body: asyncio.Task[Any]) -> None:
        """The job function has returned or raised; a callback of the run loop."""
        self._has_ended = True
        if self.tenure.is_detached:
            self._close()
            return
        with Outside():
            failure, output = self._result(body)
        is_plain = failure is None and self.claim.ending is None and not self.history.has_undelivered
        if not is_plain or not self._outcomes.is_idle or self.loop.has_left_overs:
            self.loop.create_task(self._finish(failure, output))
        else:
            with Outside(), suppress(Detached):
                self._settle_completed(output)

    def _result(self, body: asyncio.Task[Any]) -> tuple[BaseException | None, str]:
        """Why the body has failed, if it has; else its output, as text."""
        try:
            if self._failure is not None:
                raise self._failure
            if self.history.broken is not None:
                raise self.history.broken
            output = self._output(body.result())
            self._refuse_forgotten()
            return None, output
        except BaseException as error:
            return own_reason(self.history.broken or error), ""

    def _refuse_forgotten(self) -> None:
        """:raises TypeError: when the body has asked for operations that it never awaited."""
        forgotten = None if self._asker is None else self._asker.close_forgotten(self.loop.coroutines())
        if forgotten is not None:
            raise TypeError(f"The job has never awaited {forgotten}, which did nothing: write `await` before it.")

    def _output(self, value: Any) -> str:
        path = f"output of job {self.job.name!r}"
        text = encode(self.job.validate_output(value), path=path)
        check_reading(value, self.job.output_type, path=path)
        self._store.database.refuse_longer(path, text, self.claim.input)
        return text

    async def _finish(self, failure: BaseException | None, output: str) -> None:
        """Close what the body left, compensate where that is due, and settle the run; a task of the run."""
        try:
            await self.loop.close_left_overs()
            await self._outcomes.all_ended()
            self.history.drop_open()
            with Outside():
                self._refresh_claim()
            if self.claim.ending is not None:
                await self._compensate(None)
                self._settle_ended()
            elif failure is None:
                self._settle_completed(output)
            elif isinstance(failure, ContinueAsNew):
                self._settle(RunStatus.COMPLETED, successor=failure.successor)
            else:
                await self._fail(failure)
        except Detached:
            return
        except StorageError as trouble:  # what is recorded could not be read
            with Outside():
                self._report_trouble(trouble)

    async def _fail(self, failure: BaseException) -> None:
        error, step = _describe_failure(failure), failed_step(failure)
        if self.history.broken is None and self._compensation.is_needed and not self._is_replay_only:
            await self._compensate((error, step))
            with Outside():
                self._refresh_claim()
            self._settle_ended()
        else:
            self._settle(RunStatus.FAILED, error=error, failed_step=step)

    async def _compensate(self, failure: tuple[dict[str, str], str | None] | None) -> None:
        if self.history.broken is None and self._compensation.is_needed:
            self.tenure.set_paused(False)  # an ended run cannot be resumed
            until = await self._compensation.begin(failure)
            await self._compensation.run(until)

    def _refresh_claim(self) -> None:
        """Learn that the run is to be compensated, and then ends as its row says."""
        if self.claim.ending is None and self.tenure.is_cancelling():
            ending, error, step = self._store.runs.ending(self.tenure.run_id)
            self.tenure.end_as(ending, error, step)

    # --- delivery ----------------------------------------------------------------------------------------------------

    def may_drain(self) -> bool:
        if self.tenure.is_detached:
            return True  # its body may clean up, and writes nothing
        if self._body is None and not self._has_ended:
            return False  # an earlier execution of it has not left yet: outcomes would be delivered to no body
        if self._store.database.in_transaction:  # a transaction function waits for a promise, in Pyodide (run_sync)
            self._services.loop.call_soon(self.loop.wake)
            return False
        if self.tenure.is_parked:
            self._observer.on_wanted(self)  # something else than an outcome has woken the body
            return False
        return True

    @property
    def has_outcomes(self) -> bool:
        return self.history.has_undelivered or self.tenure.unsettled > 0

    def loop_time(self) -> float:
        return self.history.time / 1000

    def at_rest(self) -> bool:
        """Deliver outcomes, one at a time, until something is ready; ``False`` when the run waits."""
        self._parking.stir()
        if self.history.broken is not None and self._failure is None:
            self._failure = self.history.broken
            self._cancel_body()
            if self.loop.is_ready:
                return True
        while not self.tenure.is_detached:
            record = self.history.next_outcome()
            if record is None:
                if not self._go_on():
                    return self.loop.is_ready
            elif record.kind == OperationKind.CANCEL:
                self.waits.refuse_what_comes_from_outside()
                self._cancel_body()
            else:
                self.history.deliver(record)
            if self.loop.is_ready:
                return True
        return self.loop.is_ready

    def _cancel_body(self) -> None:
        """The run was cancelled, its deadline has passed, or it has failed; what comes after the body goes on."""
        if self._body is not None and not self._has_ended:
            self._body.cancel()

    def _go_on(self) -> bool:
        """All recorded outcomes are delivered: start what waits for that, then perhaps park. ``True`` to look again."""
        try:
            if self._is_replay_only:
                return False
            if not self.history.is_live and self._go_live():
                return True
            self._start_queued()
            if self.history.has_undelivered:
                return True
            if not self.loop.is_ready:
                self._wait()
        except Detached:
            return False
        except StorageError as trouble:
            self._report_trouble(trouble)
            return False
        return False

    def _go_live(self) -> bool:
        """The replay is over. ``True`` when a wait that is overdue has an outcome now: that comes first."""
        due, now = self.waits.next_due, self._clock.now()
        if due is not None and due <= now:
            run_id = self.tenure.run_id
            self.tenure.commit_now(lambda: self._settle_overdue(run_id, now))
            self._learn()
            if self.history.has_undelivered:
                return True
        self.history.go_live()
        return False

    def _settle_overdue(self, run_id: str, now: int) -> None:
        self.tenure.fence()
        self._store.waits.settle_overdue(run_id, now)

    def _start_queued(self) -> None:
        if self.tenure.is_paused:
            return
        while not self.tenure.is_detached and (operation := self.history.next_queued()) is not None:
            operation.start()

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Nothing is ready, and no outcome is known."""
        if self._is_settled:
            return
        is_ending = self._has_ended or self.waits.is_cancelled or self.claim.ending is not None
        rest = self._parking.rest(keeps_slot=is_ending, has_ended=self._has_ended)
        if rest == Rest.PARKED:
            self._observer.on_parked(self)
        elif rest == Rest.MISSED:
            self.refresh()

    def is_resumed_by(self, claim: Claim) -> bool:
        """``True`` when the run was neither executed nor retried elsewhere since it was parked here."""
        return self.tenure.is_parked and not self.is_detached and claim.generation == self.claim.generation + 1

    def resume(self, claim: Claim) -> None:
        """Go on after parking, under a new claim."""
        self._parking.resume()
        self.tenure.resume(claim)
        self.set_paused(False)
        self.refresh()
        self._outcomes.resume()
        self.steps.resume()
        self.loop.wake()

    def refresh(self) -> None:
        """Learn which outcomes others have recorded, and let the body go on with them."""
        if self.tenure.is_detached:
            return
        try:
            self._learn()
            self.waits.look_at_messages()
        except StorageError as trouble:
            self._report_trouble(trouble)
            return
        if not self.tenure.is_parked and (self.history.has_undelivered or self.waits.has_unrecorded):
            self.loop.wake()

    def _learn(self) -> None:
        for record in self._store.steps.outcomes_after(self.tenure.run_id, self.history.known):
            self.history.learn(record)

    def _report_trouble(self, trouble: StorageError) -> None:
        """What is recorded could not be read: the run is left, as when a commit fails."""
        claim = self.claim
        self.detach()
        self._services.on_storage_trouble(claim, trouble)

    def set_paused(self, is_paused: bool) -> None:
        """Let no further step begin, or let steps begin again."""
        if is_paused != self.tenure.is_paused:
            self.tenure.set_paused(is_paused)
            if not is_paused and not self.tenure.is_parked:
                self.loop.wake()

    # --- the event loop of the body ----------------------------------------------------------------------------------

    def add_timer(self, timer: RunTimer) -> None:
        self.waits.add_timer(timer)

    def cancel_timer(self, timer: RunTimer) -> None:
        self.waits.cancel_timer(timer)

    def stopped_by(self, error: BaseException) -> None:
        """A callback of the run raised ``SystemExit``, say, or the body never rests: that ends the run."""
        if error is self._failure:
            return  # it comes up through the tasks that await the one which has raised it
        if self._failure is not None or self._body is None or self._has_ended:
            if isinstance(error, BodyNeverRests):
                with suppress(Detached):
                    self._settle(RunStatus.FAILED, error=_describe_failure(self._failure or error))
            return  # what ends a task that the body has left does not end the run
        self._failure = error
        self._body.cancel()

    def report_defect(self, error: BaseException) -> None:
        """The engine failed. The run is left as it is, and goes on from its last outcome with the next claim."""
        self.detach()
        self._services.report_defect(error, self.tenure.run_id)

    # --- the end -----------------------------------------------------------------------------------------------------

    def continue_as_new(self, input: Any) -> ContinueAsNew:
        """What leaves the body; the run ends, and a fresh one starts."""
        self.tenure.check()
        try:
            run = self._store.runs.get(self.tenure.run_id)
        except StorageError as trouble:
            self._report_trouble(trouble)
            raise Detached(self.tenure.run_id) from trouble
        trigger = Trigger(run.job, input, labels=run.labels, priority=run.priority)
        job, text = trigger.check(self._services.registry)
        successor = trigger.new_run(self._services.new_id(), job, text)
        return ContinueAsNew(
            dataclasses.replace(
                successor,
                concurrency_key=run.concurrency_key,
                gates=(),  # it gets those of this run, also the ones that a schedule has added
                parent_run_id=run.parent_run_id,
                parent_step=run.parent_step,
                continued_from=run.id,
            )
        )

    def _settle_completed(self, output: str) -> None:
        if self.claim.ending is None:
            self._settle(RunStatus.COMPLETED, output=output)

    def _settle_ended(self) -> None:
        claim = self.claim
        assert claim.ending is not None
        self._settle(RunStatus(claim.ending), error=claim.error, failed_step=claim.failed_step)

    def _settle(
        self,
        status: RunStatus,
        *,
        output: str | None = None,
        error: dict[str, str] | None = None,
        failed_step: str | None = None,
        successor: NewRun | None = None,
    ) -> None:
        if self._is_settled or self.tenure.is_detached:
            return
        self.reporting.take_over()
        self.reporting.write_progress()
        changed: list[bool] = []

        def write() -> None:
            changed.clear()
            if self.claim.ending is None and self.tenure.is_cancelling():
                changed.append(True)  # it was cancelled at the last moment: first it is compensated
                return
            self._write_end(status, output, error, failed_step, successor)

        with Outside():
            try:
                self._services.commits.commit_now(write)
            except LeaseLost:
                self.detach()  # cancelled or taken over at the last moment: theirs is the outcome
                return
            except StorageError as trouble:
                self._report_trouble(trouble)
                return
            except SerializationError as too_long:
                if error is not None and error["type"] == "SerializationError":
                    raise
                self._settle(RunStatus.FAILED, error=describe(too_long), failed_step=failed_step)
                return
            if changed:
                self.refresh()
                self.loop.create_task(self._finish(None, ""))
                self.loop.wake()
                return
            self._is_settled = True
            self.tenure.detach()
            self.steps.cancel_all()
            self._observer.on_settled(self)
            self._close()

    def _write_end(
        self,
        status: RunStatus,
        output: str | None,
        error: dict[str, str] | None,
        failed_step: str | None,
        successor: NewRun | None,
    ) -> None:
        """Inside a transaction: end the run."""
        now, run_id, store = self._clock.now(), self.tenure.run_id, self._store
        is_running = any(each.status == StepStatus.RUNNING for each in self.history.records())
        if is_running or self.history.has_dropped or self.history.open_count:
            self.tenure.fence()
            store.steps.cancel_running(run_id, now)
        continued_as = None if successor is None else successor.id
        store.runs.settle(
            self.claim, status, now, output=output, error=error, failed_step=failed_step, continued_as=continued_as
        )
        if successor is not None:
            store.runs.insert(successor, now)
            store.flow.copy(run_id, successor.id)
            store.messages.take_along(run_id, successor.id)
        if status == RunStatus.COMPLETED and not self._services.preserve_steps:
            store.steps.delete(run_id)
        self._services.claim(run_id)  # the next run begins without a commit of its own

    def detach(self, *, cancelled: bool = False, may_clean_up: bool = False) -> None:
        """Stop executing: the run is no longer this engine's. What the body still asks is refused.

        :param cancelled: the run was cancelled.
        :param may_clean_up: the body gets ``CancelledError`` and may take ``PATIENCE_SECONDS`` to end; else it is
            dropped where it stands.
        """
        if cancelled:
            self.tenure.cancel()
        if self.tenure.is_detached:
            return  # a second cancellation would only disturb what is cleaning up after the first
        self.tenure.detach()
        self.reporting.stop()
        self.steps.cancel_all()
        self._parking.stir()
        if may_clean_up and self._body is not None and not self._has_ended:
            self.loop.cancel_tasks()
            self.loop.wake()
            timer = self._clock.call_later(PATIENCE_SECONDS, self._close)
            self.left.add_done_callback(lambda _: timer.cancel())
        else:
            self._close()

    def _close(self) -> None:
        """Let nothing of the body go on, and report it when its functions have ended as well."""
        self.loop.close(self._drop)

    def _drop(self) -> None:
        self.loop.drop_tasks(Detached(self.tenure.run_id))
        self._leave_when_idle()

    def _leave_when_idle(self) -> None:
        """Report that the run has left when its functions have ended, or will not."""
        if self.left.done():
            return
        tasks = self.steps.tasks
        if not tasks:
            self._leave()
            return
        left = len(tasks)

        def ended(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._leave()

        for task in tasks:
            task.add_done_callback(ended)
        timer = self._clock.call_later(PATIENCE_SECONDS, self._leave)
        self.left.add_done_callback(lambda _: timer.cancel())

    def _leave(self) -> None:
        if not self.left.done():
            self.left.set_result(None)
            self._observer.on_left(self)

    # --- what the context asks ---------------------------------------------------------------------------------------

    def time(self) -> datetime:
        """The wall-clock time, in UTC."""
        return datetime.fromtimestamp(self._clock.now() / 1000, UTC)

    def reference(self) -> str:
        """What the step that asks is called, among all steps of all runs."""
        step = current_step.get()
        return self.tenure.run_id if step is None else f"{self.tenure.run_id}/{step.name}"


def _describe_failure(error: BaseException) -> dict[str, str]:
    """An error that ends a run; a failed step's traceback is that of the step, first time and replayed alike."""
    described = describe(error)
    if isinstance(error, StepFailed):
        described["traceback"] = error.error_traceback
    elif isinstance(error, RuntimeError) and "different event loop" in described["message"]:
        described["message"] += SHARED_PRIMITIVE
    return described
