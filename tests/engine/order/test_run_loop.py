"""The parts on which the execution of a run stands: its event loop, and its history, each by itself."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from durable_web import BodyNeverRests, NonDeterminismError, NotInBody, OperationKind, StepStatus
from durable_web._execution import run_loop
from durable_web._execution.history import History, Operation
from durable_web._execution.run_loop import Outside, RunLoop
from durable_web._store import StepRecord

# --- the loop of a run -----------------------------------------------------------------------------------------------


class Owner:
    """The run that a loop belongs to: keeps what the loop reports, and delivers when it is told to."""

    def __init__(self) -> None:
        self.has_lease = True
        self.seconds = 0.0
        self.outcomes: deque[Callable[[], None]] = deque()
        self.rests = 0
        self.timers: list[Any] = []
        self.cancelled_timers: list[Any] = []
        self.stopped: list[BaseException] = []
        self.defects: list[Exception] = []
        self.loop = RunLoop(asyncio.get_running_loop(), self, "a run")

    def may_drain(self) -> bool:
        return self.has_lease

    @property
    def has_outcomes(self) -> bool:
        return bool(self.outcomes)

    def loop_time(self) -> float:
        return self.seconds

    def at_rest(self) -> bool:
        self.rests += 1
        if not self.outcomes:
            return False
        self.outcomes.popleft()()
        return True

    def add_timer(self, timer: Any) -> None:
        self.timers.append(timer)

    def cancel_timer(self, timer: Any) -> None:
        self.cancelled_timers.append(timer)

    def stopped_by(self, error: BaseException) -> None:
        self.stopped.append(error)

    def report_defect(self, error: Exception) -> None:
        self.defects.append(error)

    async def rest(self, turns: int = 20) -> None:
        """Let the real loop turn."""
        for _ in range(turns):
            await asyncio.sleep(0)

    async def execute(self, body: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine of the run."""
        task = self.loop.create_task(body)
        await self.rest()
        return task.result()


async def noted(notes: list[Any], *notes_of_turns: Any) -> None:
    for note in notes_of_turns:
        notes.append(note)
        await asyncio.sleep(0)


async def test_a_drain_goes_on_turn_after_turn_in_one_callback_of_the_real_loop():
    owner, notes = Owner(), []
    owner.loop.create_task(noted(notes, 1, 2, 3))
    asyncio.get_running_loop().call_soon(notes.append, "the real loop")
    assert notes == []  # not in the task that asks
    await owner.rest()
    assert notes == [1, 2, 3, "the real loop"]


async def test_a_turn_calls_what_was_ready_when_it_began():
    owner, notes = Owner(), []
    owner.loop.create_task(noted(notes, "a", "a"))
    owner.loop.create_task(noted(notes, "b", "b"))
    await owner.rest()
    assert notes == ["a", "b", "a", "b"]


async def test_a_drain_whose_time_is_over_lets_the_real_loop_have_its_turn(monkeypatch):
    monkeypatch.setattr(run_loop, "SLICE_SECONDS", -1)  # a browser's clock may stand still for 0.1 ms
    owner, notes = Owner(), []
    for _ in range(40):
        owner.loop.call_soon(notes.append, "run")
    asyncio.get_running_loop().call_soon(notes.append, "real")
    await owner.rest()
    assert len(notes) == 41
    assert notes.index("real") == 16  # the time is looked at after so many callbacks


@pytest.mark.parametrize("seconds", [0, 0.004])
async def test_the_run_is_at_rest_when_nothing_is_ready_and_goes_on_with_what_is_delivered_then(monkeypatch, seconds):
    monkeypatch.setattr(run_loop, "SLICE_SECONDS", seconds)
    owner, notes = Owner(), []
    owner.loop.create_task(noted(notes, 1, 2, 3))
    for number in range(5):
        owner.outcomes.append(lambda number=number: owner.loop.create_task(noted(notes, number * 10, number * 10 + 1)))
    await owner.rest(50)
    assert notes == [1, 2, 3, 0, 1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert owner.rests == 6


async def test_nothing_is_called_while_the_run_has_no_lease():
    owner, notes = Owner(), []
    owner.has_lease = False
    owner.loop.call_soon(notes.append, "called")
    await owner.rest()
    assert (notes, owner.rests) == ([], 0)
    owner.has_lease = True
    owner.loop.wake()
    await owner.rest()
    assert notes == ["called"]


async def test_the_loop_of_the_run_is_the_running_one_in_its_callbacks_and_nowhere_else():
    owner, real = Owner(), asyncio.get_running_loop()
    real_hooks, seen = sys.get_asyncgen_hooks(), []

    async def body() -> None:
        seen.append(asyncio.get_running_loop() is owner.loop)
        seen.append(sys.get_asyncgen_hooks().firstiter == owner.loop._generator_began)
        task = asyncio.current_task()
        with Outside():
            seen.append(asyncio.get_running_loop() is real)
            seen.append(asyncio.current_task() is None)
            seen.append(sys.get_asyncgen_hooks() == real_hooks)
        seen.append(asyncio.current_task() is task)
        seen.append(asyncio.get_running_loop() is owner.loop)

    owner.outcomes.append(lambda: seen.append(asyncio.get_running_loop() is real))
    await owner.execute(body())
    assert seen == [True] * 8
    assert asyncio.get_running_loop() is real
    assert sys.get_asyncgen_hooks() == real_hooks


async def test_an_error_in_a_callback_goes_to_the_handler_and_the_others_are_called():
    owner, notes, errors = Owner(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    owner.loop.call_soon(lambda: 1 / 0)
    owner.loop.call_soon(notes.append, "called")
    await owner.rest()
    assert notes == ["called"]
    assert [type(error) for error in errors] == [ZeroDivisionError]
    owner.loop.set_exception_handler(lambda loop, context: notes.append(loop is owner.loop))
    owner.loop.call_soon(lambda: 1 / 0)
    await owner.rest()
    assert notes == ["called", True]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_what_would_end_the_process_stops_the_run(error):
    owner, notes = Owner(), []

    def leave() -> None:
        raise error

    owner.loop.call_soon(leave)
    owner.loop.call_soon(notes.append, "called")
    await owner.rest()
    assert owner.stopped == [error]
    assert notes == ["called"]  # the loop goes on: the body is cancelled, and may clean up


async def test_a_failure_of_the_owner_at_rest_is_reported_as_a_defect():
    owner = Owner()
    owner.outcomes.append(lambda: 1 / 0)
    owner.loop.wake()
    await owner.rest()
    assert [type(error) for error in owner.defects] == [ZeroDivisionError]


async def test_a_body_that_polls_while_outcomes_wait_never_rests_and_is_told_where():
    owner = Owner()
    owner.outcomes.append(lambda: None)

    async def poll() -> None:
        while not owner.stopped:
            await asyncio.sleep(0)

    owner.loop.create_task(poll())
    while not owner.stopped:
        await owner.rest()
    (error,) = owner.stopped
    assert isinstance(error, BodyNeverRests)
    line = poll.__code__.co_firstlineno + 2
    assert f"{__file__}:{line}" in error.places[0]
    assert f"{__file__}:{line}" in str(error)


async def test_many_callbacks_of_one_turn_are_no_polling(monkeypatch):
    monkeypatch.setattr(run_loop, "TURNS", 10)
    owner, notes = Owner(), []
    owner.outcomes.append(lambda: None)
    for number in range(1000):
        owner.loop.create_task(noted(notes, number, number))
    await owner.rest(200)
    assert len(notes) == 2000
    assert not owner.stopped


async def test_a_body_may_take_as_many_turns_as_it_likes_while_nothing_waits_to_be_delivered(monkeypatch):
    monkeypatch.setattr(run_loop, "TURNS", 10)
    owner, notes = Owner(), []
    owner.loop.create_task(noted(notes, *range(100)))
    await owner.rest(200)
    assert len(notes) == 100
    assert not owner.stopped


# --- time ------------------------------------------------------------------------------------------------------------


async def test_the_time_is_the_owners_and_timers_go_to_it():
    owner, notes = Owner(), []
    owner.seconds = 1_800_000_000.0
    timer = owner.loop.call_later(5, notes.append, "fired")
    assert owner.timers == [timer]
    assert timer.when() == 1_800_000_005.0
    owner.loop.fire(timer)
    owner.loop.wake()
    await owner.rest()
    assert notes == ["fired"]
    other = owner.loop.call_at(1_800_000_009.0, notes.append, "never")
    other.cancel()
    other.cancel()
    assert owner.cancelled_timers == [other]


async def test_a_timer_that_was_cancelled_after_it_became_ready_calls_nothing():
    owner, notes = Owner(), []
    timer = owner.loop.call_later(5, notes.append, "fired")
    owner.loop.fire(timer)
    timer.cancel()
    owner.loop.wake()
    await owner.rest()
    assert notes == []


# --- tasks, futures and generators -----------------------------------------------------------------------------------


async def numbers_of(run_id: str) -> list[int]:
    owner = Owner()
    owner.loop = RunLoop(asyncio.get_running_loop(), owner, run_id)
    tasks = [owner.loop.create_task(noted([])) for _ in range(3)]
    numbers = [*map(hash, tasks), hash(owner.loop.create_future())]
    await owner.rest()
    return numbers


async def test_the_hashes_of_tasks_and_futures_follow_from_the_run_and_their_number_in_it():
    first, again, other = [await numbers_of(run_id) for run_id in ("a run", "a run", "another run")]
    assert first == again
    assert not set(first) & set(other)
    assert len(set(first)) == 4


async def test_a_task_has_the_name_and_the_context_that_it_was_given():
    from contextvars import ContextVar, copy_context

    variable: ContextVar[int] = ContextVar("variable", default=0)
    owner, context = Owner(), copy_context()
    context.run(variable.set, 5)

    async def read() -> int:
        return variable.get()

    async def body() -> list[Any]:
        inner = owner.loop.create_task(read(), name="inner", context=context)
        return [inner.get_name(), await inner, await owner.loop.create_task(read())]

    assert await owner.execute(body()) == ["inner", 5, 0]


async def test_a_task_factory_of_the_body_makes_its_tasks():
    owner, made = Owner(), []

    def factory(loop: Any, coro: Any, **options: Any) -> Any:
        made.append(coro.__name__)
        return asyncio.Task(coro, loop=loop, **options)

    owner.loop.set_task_factory(factory)
    assert owner.loop.get_task_factory() is factory
    await owner.execute(noted([], 1))
    assert made == ["noted"]


async def test_what_the_body_left_is_cancelled_and_generators_are_closed_in_the_order_in_which_they_began():
    owner, notes = Owner(), []

    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            notes.append(f"closed {name}")

    async def left() -> None:
        try:
            await owner.loop.create_future()
        finally:
            await asyncio.sleep(0)
            notes.append("cancelled")

    async def body() -> None:
        _left = asyncio.ensure_future(left())
        for name in "ab":
            async for _ in numbers(name):
                break
        await asyncio.sleep(0)
        assert owner.loop.has_left_overs
        assert notes == []
        await owner.loop.close_left_overs()
        assert not any(name in owner.loop.places() for name in notes)

    await owner.execute(body())
    assert notes == ["cancelled", "closed a", "closed b"]


async def test_a_left_task_is_waited_for_while_it_cleans_up():
    owner, notes = Owner(), []

    async def cleans_up() -> None:
        try:
            await owner.loop.create_future()
        finally:
            notes.append("cancelled")
            await outcome
            notes.append("has cleaned up")

    async def body() -> None:
        _left = asyncio.ensure_future(cleans_up())
        await asyncio.sleep(0)
        await owner.loop.close_left_overs()
        notes.append("closed")

    outcome = owner.loop.create_future()
    closing = owner.loop.create_task(body())
    await owner.rest()
    assert notes == ["cancelled"]
    owner.outcomes.append(lambda: outcome.set_result(None))
    owner.loop.wake()
    await closing_of(closing, owner)
    assert notes == ["cancelled", "has cleaned up", "closed"]


async def closing_of(task: asyncio.Task[Any], owner: Owner) -> None:
    while not task.done():
        await owner.rest()


async def test_tasks_are_dropped_where_they_stand_the_youngest_first():
    owner, notes = Owner(), []

    class Gone(BaseException):
        pass

    async def stands(name: str) -> None:
        try:
            await owner.loop.create_future()
        except Gone:
            notes.append(name)
            await owner.loop.create_future()  # it does not end of it: it is closed

    async def body() -> None:
        tasks.extend(owner.loop.create_task(stands(name)) for name in "ab")
        await stands("body")

    tasks: list[Any] = []
    owner.loop.create_task(body())
    await owner.rest()
    assert len(owner.loop.places()) == 3
    owner.loop.drop_tasks(Gone())
    assert notes == ["b", "a", "body"]
    assert owner.loop.is_closed()
    await owner.rest()


async def test_tasks_cannot_be_dropped_while_the_run_executes():
    owner, errors = Owner(), []

    def drop() -> None:
        try:
            owner.loop.drop_tasks(GeneratorExit())
        except RuntimeError as error:
            errors.append(error)

    owner.loop.call_soon(drop)
    await owner.rest()
    assert len(errors) == 1


async def test_a_loop_that_is_closed_in_a_drain_calls_nothing_more_and_then_what_it_was_given():
    owner, notes = Owner(), []
    owner.loop.call_soon(lambda: owner.loop.close(lambda: notes.append(asyncio.get_running_loop() is owner.loop.real)))
    owner.loop.call_soon(notes.append, "called")
    await owner.rest()
    assert notes == [True]


# --- what a body may not ask of its loop -----------------------------------------------------------------------------

OWN = {
    *("call_soon", "call_later", "call_at", "time", "create_future", "create_task", "set_task_factory"),
    *("get_task_factory", "is_running", "is_closed", "get_debug", "set_debug", "set_exception_handler"),
    *("get_exception_handler", "default_exception_handler", "call_exception_handler", "close"),
}
OTHERS = sorted(name for name in dir(asyncio.AbstractEventLoop) if name[0] != "_" and name not in OWN)


@pytest.mark.parametrize("name", OTHERS)
async def test_nothing_else_is_delegated_to_the_real_loop(name):
    with pytest.raises(NotInBody, match=f"{name}.* is not recorded, so a replay could differ; do it in a step"):
        getattr(Owner().loop, name)("arguments", "of", "any", kind="at all")


@pytest.mark.parametrize("wraps", [False, True])
async def test_as_completed_is_given_tasks_because_it_would_start_coroutines_in_no_fixed_order(wraps):
    owner = Owner()

    async def one(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def body() -> list[int]:
        many = [one(number) for number in range(5)]
        if wraps:
            many = [asyncio.create_task(each) for each in many]
        try:
            return [await each for each in asyncio.as_completed(many)]
        finally:
            for each in many:
                each.close() if not wraps else each.cancel()

    if wraps:
        assert sorted(await owner.execute(body())) == [0, 1, 2, 3, 4]
    else:
        with pytest.raises(NotInBody, match="give it tasks"):
            await owner.execute(body())


# --- the history of a run --------------------------------------------------------------------------------------------


class Asked(Operation):
    """An operation that keeps what it is told."""

    kind = OperationKind.STEP

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.given: list[StepRecord] = []
        self.is_told = False

    def start(self) -> None: ...

    def call_off(self) -> None:
        self.is_told = True

    def deliver(self, record: StepRecord) -> None:
        self.given.append(record)
        super().deliver(record)


def outcome(
    name: str, order: int | None, *, kind: str = "step", status: str = "completed", inline: int = 0
) -> StepRecord:
    at = None if order is None else 1000 + order
    return StepRecord(
        name, kind, status, order or 0, 1, output="1", completed_at=at, outcome_order=order, inline=inline
    )


def history_of(*records: StepRecord) -> History:
    return History({record.name: record for record in records}, started_at=500)


def test_the_second_operation_of_a_name_is_number_2_whichever_branch_asks():
    history = history_of()
    assert [history.key(name) for name in ("a", "b", "a", "a", "b")] == ["a", "b", "a#2", "a#3", "b#2"]
    assert [history.timer_key(), history.timer_key()] == ["timer:1", "timer:2"]


@pytest.mark.parametrize("name", ["", None, 5, "a#2", "#7", "timer:3", "compensate:a", "cancel:", "compensating:"])
def test_a_name_that_a_key_of_the_engine_could_be_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        history_of().key(name)


@pytest.mark.parametrize("name", ["a#b", "C#", "timer:", "timer:x", "compensation", "cancel", "#1 of 3"])
def test_other_names_with_such_characters_are_fine(name):
    assert history_of().key(name) == name


def test_outcomes_are_delivered_in_their_order_whatever_was_asked_for_first():
    history = history_of(outcome("b", 2), outcome("c", 3), outcome("a", 1))
    asked = {name: Asked(name) for name in "cba"}
    for operation in asked.values():
        history.open(operation)
    delivered = []
    while (record := history.next_outcome()) is not None:
        delivered.append(record.name)
        history.deliver(record)
        assert history.last == record.outcome_order
        assert history.time == record.completed_at
    assert delivered == ["a", "b", "c"]
    assert [len(operation.given) for operation in asked.values()] == [1, 1, 1]
    assert not history.open_count


def test_an_outcome_that_is_not_awaited_is_passed_over_and_returned_when_it_is_asked_for():
    history = history_of(outcome("a", 1), outcome("b", 2))
    for record in iter(history.next_outcome, None):
        history.deliver(record)
    late = history.ask("a", OperationKind.STEP)
    assert late is not None
    assert history.may_return(late)
    assert history.last == 2


def test_an_inline_outcome_is_returned_at_once_when_it_comes_next_and_not_before():
    first, second = outcome("a", 1, inline=1), outcome("b", 2, inline=1)
    history = history_of(first, second)
    assert not history.may_return(second)
    assert history.may_return(first)
    assert history.may_return(second)
    assert (history.last, history.time, history.has_undelivered) == (2, 1002, False)


def test_an_outcome_that_is_not_inline_is_delivered_though_it_comes_next():
    record = outcome("a", 1)
    assert not history_of(record).may_return(record)


def test_the_same_key_with_another_kind_breaks_the_run():
    history = history_of(outcome("a", 1, kind="sleep"))
    with pytest.raises(NonDeterminismError, match="'a' is recorded as a sleep, but the code now calls it as a step"):
        history.ask("a", OperationKind.STEP)
    assert isinstance(history.broken, NonDeterminismError)


@pytest.mark.parametrize("order", [None, 1])
async def test_a_run_that_awaits_what_it_had_called_off_is_broken_when_it_goes_live(order):
    history, operation = history_of(outcome("a", order, status=StepStatus.CANCELLED)), Asked("a")
    awaiting = asyncio.ensure_future(history.outcome(operation))
    await asyncio.sleep(0)
    for record in iter(history.next_outcome, None):
        history.deliver(record)
    history.go_live()
    with pytest.raises(NonDeterminismError, match="called off"):
        await awaiting
    assert history.broken is not None


async def test_a_body_that_is_cancelled_calls_off_what_it_awaits():
    history, operation = history_of(), Asked("a")
    awaiting = asyncio.ensure_future(history.outcome(operation))
    await asyncio.sleep(0)
    awaiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await awaiting
    assert operation.is_told
    assert operation.is_called_off
    assert not history.open_count


def test_several_that_await_one_outcome_all_get_it_though_the_first_is_closed():
    history = history_of(outcome("a", 1))
    first, second, third = Asked("a"), Asked("a"), Asked("a")
    for operation in (first, second, third):
        history.open(operation)
    history.close(first)
    record = history.next_outcome()
    assert record is not None
    history.deliver(record)
    assert [len(operation.given) for operation in (first, second, third)] == [0, 1, 1]


def test_outcomes_that_others_have_recorded_are_learned_once():
    history = history_of(outcome("a", 1))
    assert history.known == 1
    assert history.follows(outcome("b", 2))
    assert not history.follows(outcome("c", 3))
    for record in (outcome("a", 1), outcome("b", 2), outcome("c", 3), outcome("b", 2)):
        history.learn(record)
    assert [record.name for record in iter(history.next_outcome, None)] == ["a", "b", "c"]


def test_what_begins_waits_until_the_run_is_live_and_what_was_called_off_meanwhile_does_not_begin():
    history = history_of(outcome("a", 1))
    queued = [Asked("b"), Asked("c"), Asked("d")]
    for operation in queued:
        history.queue(operation)
    queued[1].is_called_off = True
    assert not history.is_live
    assert list(iter(history.next_queued, None)) == [queued[0], queued[2]]
    assert not history.has_queued


def test_a_new_operation_has_the_next_position_and_the_engines_own_have_none_that_is_missed():
    history = history_of(outcome("a", 1), outcome("cancel:", 2, kind="cancel"), outcome("timer:1", 3, kind="timer"))
    assert history.next_position() == 4
    assert history.unasked() == {"a"}
    assert history.was_further
    history.ask("a", OperationKind.STEP)
    assert history.unasked() == frozenset()
