"""What is shipped for tests of jobs: an engine in memory, crashes at named points, stubs, replayed histories."""

from __future__ import annotations

import asyncio
import doctest
import json
import textwrap
from datetime import timedelta
from pathlib import Path

import pytest
from watching import finish

import durable_web.testing
from durable_web import Context, DurableWebError, Retry, RunStatus, StepFailed, StepStatus, job
from durable_web.testing import (
    MockClock,
    SimulatedCrash,
    assert_replays,
    crash,
    crash_at,
    engine,
    record_history,
    restart,
    settle,
    stub_steps,
)

calls: list[str] = []


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def charge(order_id: str) -> str:
    calls.append("charge")
    return f"charge of {order_id}"


def ship(order_id: str) -> str:
    calls.append("ship")
    return "shipped"


def refund(charged: str) -> None:
    calls.append(f"refund {charged}")


@job("order")
async def order(ctx: Context, order_id: str) -> str:
    await ctx.step("charge", charge, order_id, compensate=refund)
    await ctx.wait_for_signal("approval")
    return await ctx.step("ship", ship, order_id)


@job("greet")
async def greet(ctx: Context, name: str) -> str:
    return await ctx.step("compose", "Hello, {}!".format, name)


@job("reminder")
async def reminder(ctx: Context, _: None) -> None:
    await ctx.sleep("an hour", timedelta(hours=1))


# --- the documentation -----------------------------------------------------------------------------------------------

DOCUMENTED = ["", *durable_web.testing.__all__]


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_the_examples_in_the_documentation_run(name, tmp_path_factory):
    documented = getattr(durable_web.testing, name) if name else durable_web.testing
    examples = doctest.DocTestParser().get_examples(documented.__doc__ or "")
    source = "".join(example.source for example in examples)
    names = {**vars(durable_web.testing), **globals(), "folder": tmp_path_factory.mktemp("example")}
    async with engine(order, greet, reminder) as names["e"]:
        exec(f"async def example():\n{textwrap.indent(source or 'pass', '    ')}", names)
        await names["example"]()


def test_everything_that_is_public_says_what_it_is_for():
    undocumented = [name for name in durable_web.testing.__all__ if not getattr(durable_web.testing, name).__doc__]
    assert undocumented == []


# --- an engine in memory ---------------------------------------------------------------------------------------------


async def test_an_engine_in_memory_is_a_new_one_each_time():
    async with engine(greet) as e:
        assert (await e.trigger_and_wait(greet, "Ada")).output == "Hello, Ada!"
    async with engine(greet) as e:
        assert await e.runs.list() == []


async def test_two_engines_in_memory_have_nothing_in_common():
    async with engine(greet) as one, engine(greet) as other:
        await one.trigger_and_wait(greet, "Ada")
        assert await other.runs.list() == []


async def test_an_engine_in_memory_has_files():
    @job("write")
    async def write(ctx: Context, _: None) -> str:
        path = await ctx.files.create("result.txt")
        Path(path).write_text("42")
        return path

    async with engine(write) as e:
        path = Path((await e.trigger_and_wait(write)).output)
        assert path.read_text() == "42"
    assert not path.exists()


async def test_what_is_in_memory_outlives_a_crash():
    async with engine(order) as e:
        run = await e.trigger(order, "A-1")
        await settle()
        await crash(e)
        with pytest.raises(DurableWebError, match="not running"):
            await e.runs.get(run.id)
        await restart(e)
        await e.runs.signal(run.id, "approval")
        assert (await finish(e, run)).output == "shipped"
    assert calls == ["charge", "ship"]


# --- crashes ---------------------------------------------------------------------------------------------------------


async def test_before_a_steps_commit_its_function_was_called_and_nothing_is_recorded():
    async with engine(order) as e:
        run = await e.trigger(order, "A-1")
        await crash_at(e, before="charge")
        assert calls == ["charge"]
        await restart(e)
        await e.runs.signal(run.id, "approval")
        await finish(e, run)
    assert calls == ["charge", "charge", "ship"]


async def test_after_a_steps_commit_its_function_is_not_called_again():
    async with engine(order) as e:
        run = await e.trigger(order, "A-1")
        await crash_at(e, after="charge")
        await restart(e)
        await e.runs.signal(run.id, "approval")
        await finish(e, run)
    assert calls == ["charge", "ship"]


async def test_a_crash_at_a_runs_status_counts_its_commit_when_it_is_after_and_not_when_it_is_before():
    for side, statuses in (("before", [RunStatus.PENDING]), ("after", [RunStatus.COMPLETED])):
        async with engine(greet) as e:
            run = await e.trigger(greet, "Ada")
            await crash_at(e, **{side: RunStatus.COMPLETED})
            await e.start(claim=False)
            assert [(await e.runs.get(run.id)).status] == statuses


async def test_a_crash_at_a_waits_beginning_or_end():
    async with engine(order) as e:
        run = await e.trigger(order, "A-1")
        await crash_at(e, after="approval", status="running")
        await restart(e)
        assert [step.name for step in await e.runs.steps(run.id)] == ["charge", "approval"]
        await settle()
        point = crash_at(e, before="approval")
        with pytest.raises(SimulatedCrash, match="before 'approval' ended"):
            await e.runs.signal(run.id, "approval")
        assert point.is_reached
        await restart(e)
        assert [step.status for step in await e.runs.steps(run.id)] == ["completed", "running"]


async def test_a_crash_by_number_counts_only_commits_that_change_something():
    async with engine(greet) as e:
        run = await e.trigger(greet, "Ada")
        await crash_at(e, after=1)  # triggered and claimed it is; next comes its step
        await e.start(claim=False)
        (step,) = await e.runs.steps(run.id)
        assert (step.status, (await e.runs.get(run.id)).status) == ("completed", RunStatus.PENDING)


async def test_an_engine_can_be_made_to_crash_while_it_starts():
    async with engine(order) as e:
        run = await e.trigger(order, "A-1")
        await crash_at(e, after="charge")
        point = crash_at(e, before=1)
        with pytest.raises(SimulatedCrash):
            await restart(e)
        assert point.is_reached
        await restart(e)
        await e.runs.signal(run.id, "approval")
        assert (await finish(e, run)).recoveries == 0
    assert calls == ["charge", "ship"]


async def test_nothing_is_written_after_a_crash_and_every_watch_ends():
    @job("busy")
    async def busy(ctx: Context, _: None) -> None:
        await asyncio.gather(*(ctx.step(f"step {number}", asyncio.sleep, 0) for number in range(5)))

    async with engine(busy) as e:
        run = await e.trigger(busy)
        watching = asyncio.ensure_future(finish(e, run))
        await crash_at(e, before="step 3")
        with pytest.raises(DurableWebError, match="not running"):
            await watching
        await settle()
        await e.start(claim=False)
        completed = [step.name for step in await e.runs.steps(run.id) if step.status == "completed"]
        assert not {"step 3", "step 4"} & set(completed)  # the earlier ones may have had a commit of their own


async def test_a_crash_point_names_one_commit():
    async with engine(greet) as e:
        with pytest.raises(ValueError, match="Name one commit"):
            crash_at(e)
        with pytest.raises(ValueError, match="Name one commit"):
            crash_at(e, before="charge", after="charge")


async def test_an_engine_comes_back_with_other_jobs_as_after_a_release():
    @job("order")
    async def patient_order(ctx: Context, order_id: str) -> str:
        await ctx.step("charge", charge, order_id)
        return "never shipped"

    async with engine(order) as e:
        run = await e.trigger(order, "A-1")
        await crash_at(e, after="charge")
        await restart(e, patient_order)
        assert (await finish(e, run)).output == "never shipped"


# --- stubs -----------------------------------------------------------------------------------------------------------


async def test_a_stubbed_step_comes_to_its_result_without_being_called():
    async with engine(order) as e:
        stub_steps(e, {"charge": "a stub", "ship": lambda order_id: f"{order_id} on its way"})
        run = await e.trigger_with_signal(order, "A-1", "approval")
        assert (await finish(e, run)).output == "A-1 on its way"
        assert (await e.runs.steps(run.id))[0].output == "a stub"
    assert calls == []


async def test_a_stubbed_exception_fails_the_step_is_retried_and_compensated():
    clock = MockClock()

    @job("retried", retry=Retry(max_attempts=2, backoff=10, jitter=0))
    async def retried(ctx: Context, _: None) -> None:
        await ctx.step("charge", charge, "A-1", compensate=refund)
        await ctx.step("ship", ship, "A-1")

    async with engine(retried, clock=clock) as e:
        stub_steps(e, {"ship": ConnectionError("no carrier")})
        run = await e.trigger(retried)
        await clock.advance(10)
        run = await e.runs.get(run.id)
        assert (run.status, run.failed_step) == (RunStatus.FAILED, "ship")
        assert [len(step.failed_attempts) for step in await e.runs.steps(run.id)] == [0, 1, 0]
    assert calls == ["charge", "refund charge of A-1"]


async def test_a_compensation_can_be_stubbed():
    async with engine(order) as e:
        stub_steps(e, {"compensate:charge": "refunded", "ship": ValueError("sold out")})
        run = await e.trigger_with_signal(order, "A-1", "approval")
        await finish(e, run)
        undone = (await e.runs.steps(run.id))[-1]
    assert (undone.name, undone.status) == ("compensate:charge", StepStatus.COMPLETED)
    assert calls == ["charge"]  # and neither "ship" nor the refund


async def test_stubs_outlive_a_restart_and_can_be_taken_back():
    async with engine(order) as e:
        stub_steps(e, {"ship": "a stub"})
        run = await e.trigger(order, "A-1")
        await settle()
        await restart(e)
        await e.runs.signal(run.id, "approval")
        assert (await finish(e, run)).output == "a stub"
        stub_steps(e, {})
        run = await e.trigger_with_signal(order, "A-2", "approval")
        assert (await finish(e, run)).output == "shipped"


async def test_a_stubbed_transaction_touches_no_table():
    def insert(connection) -> int:
        raise AssertionError

    @job("rows")
    async def rows(ctx: Context, _: None) -> int:
        return await ctx.transaction("insert", insert)

    async with engine(rows) as e:
        stub_steps(e, {"insert": 3})
        assert (await e.trigger_and_wait(rows)).output == 3


# --- histories -------------------------------------------------------------------------------------------------------


async def history_of_order(*, until_approval: bool = False) -> dict:
    async with engine(order) as e:
        run = await e.trigger(order, "A-1")
        await settle()
        if not until_approval:
            await e.runs.signal(run.id, "approval", "by Ada")
            await finish(e, run)
        history = record_history(e, run.id)
    calls.clear()
    return json.loads(json.dumps(history))


async def test_the_code_that_recorded_a_history_replays_it_without_calling_a_step():
    replay = await assert_replays(await history_of_order(), order)
    assert (replay.unvisited, replay.new, replay.output) == ([], [], "shipped")
    assert calls == []


async def test_a_run_that_waits_replays_up_to_where_it_stands():
    replay = await assert_replays(await history_of_order(until_approval=True), order)
    assert (replay.unvisited, replay.new, replay.output) == ([], ["approval"], None)
    async with engine(reminder) as e:
        run = await e.trigger(reminder)
        await settle()
        history = record_history(e, run.id)
    assert (await assert_replays(history, reminder)).new == ["an hour"]


async def test_what_comes_as_another_kind_is_named():
    @job("order")
    async def changed(ctx: Context, order_id: str) -> str:
        await ctx.step("charge", charge, order_id)
        await ctx.step("approval", ship, order_id)
        return await ctx.step("ship", ship, order_id)

    with pytest.raises(AssertionError, match="'approval' is recorded as a signal, but the code now calls it as a step"):
        await assert_replays(await history_of_order(), changed)
    with pytest.raises(AssertionError, match="'approval' is recorded as a signal"):
        await assert_replays(await history_of_order(until_approval=True), changed)


async def test_a_new_operation_before_the_recorded_end_is_named():
    @job("order")
    async def changed(ctx: Context, order_id: str) -> str:
        await ctx.step("charge", charge, order_id)
        await ctx.step("weigh", abs, 3)
        await ctx.wait_for_signal("approval")
        return await ctx.step("ship", ship, order_id)

    with pytest.raises(AssertionError, match=r"'weigh' \(step\) is called where 'approval' \(signal\) is recorded"):
        await assert_replays(await history_of_order(), changed, patience=0)


async def test_a_patched_change_is_no_difference():
    @job("order")
    async def changed(ctx: Context, order_id: str) -> str:
        await ctx.step("charge", charge, order_id)
        if await ctx.patched("weigh"):
            await ctx.step("weigh", abs, 3)
        await ctx.wait_for_signal("approval")
        return await ctx.step("ship", ship, order_id)

    assert (await assert_replays(await history_of_order(), changed)).new == []


async def test_new_operations_at_the_recorded_end_are_allowed_and_told():
    @job("order")
    async def changed(ctx: Context, order_id: str) -> str:
        await order.function(ctx, order_id)
        return await ctx.step("thank", ship, order_id)

    assert (await assert_replays(await history_of_order(), changed)).new == ["thank"]


async def test_operations_that_are_no_longer_called_are_allowed_and_told():
    @job("order")
    async def changed(ctx: Context, order_id: str) -> str:
        await ctx.wait_for_signal("approval")
        return await ctx.step("ship", ship, order_id)

    assert (await assert_replays(await history_of_order(), changed)).unvisited == ["charge"]


async def test_a_run_that_completed_and_would_now_fail_is_a_difference():
    @job("order")
    async def changed(ctx: Context, order_id: str) -> str:
        await order.function(ctx, order_id)
        raise ZeroDivisionError("oh")

    with pytest.raises(AssertionError, match="would now fail with ZeroDivisionError: oh"):
        await assert_replays(await history_of_order(), changed)


async def test_a_recorded_failure_is_replayed():
    def fail() -> None:
        raise ValueError("no")

    @job("caught")
    async def caught(ctx: Context, _: None) -> str:
        try:
            await ctx.step("fail", fail)
        except StepFailed as failure:
            return failure.error_message
        return "not reached"

    async with engine(caught) as e:
        run = await e.trigger_and_wait(caught)
        history = record_history(e, run.id)
    assert (await assert_replays(history, caught)).output == "no"


async def test_branches_replay_in_whatever_order_they_ended():
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def wait(name: str) -> str:
        await gates[name].wait()
        return name

    @job("branches")
    async def branches(ctx: Context, _: None) -> list[str]:
        return await asyncio.gather(*(ctx.step(name, wait, name) for name in "ab"))

    async with engine(branches) as e:
        run = await e.trigger(branches)
        await settle()
        gates["b"].set()
        await settle()
        half = record_history(e, run.id)
        gates["a"].set()
        await finish(e, run)
        whole = record_history(e, run.id)
    assert (await assert_replays(half, branches)).new == ["a"]
    assert (await assert_replays(whole, branches)).output == ["a", "b"]


async def test_a_wait_that_a_timeout_ended_is_replayed_as_that():
    @job("impatient")
    async def impatient(ctx: Context, _: None) -> str:
        try:
            async with asyncio.timeout(0.01):
                await ctx.wait_for_signal("never")
        except TimeoutError:
            return await ctx.step("give up", str, "gave up")
        return "not reached"

    async with engine(impatient) as e:
        run = await e.trigger_and_wait(impatient)
        history = record_history(e, run.id)
    statuses = {step["name"]: step["status"] for step in history["steps"]}
    assert statuses == {"timer:1": "completed", "never": "cancelled", "give up": "completed"}
    assert (await assert_replays(history, impatient)).output == "gave up"


async def test_children_are_not_started_again():
    @job("parent")
    async def parent(ctx: Context, _: None) -> str:
        return await ctx.run_job("greet her", greet, "Ada")

    async with engine(parent, greet) as e:
        run = await e.trigger_and_wait(parent)
        history = record_history(e, run.id)
    assert (await assert_replays(history, parent, greet)).output == "Hello, Ada!"


async def test_a_history_is_of_one_job():
    with pytest.raises(ValueError, match="of job 'greet'"):
        await assert_replays(await history_of_order(), greet)
