"""What does not make sense is refused where it is said, in words, and before anything is written or deleted."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from watching import finish

from durable_web import Context, Engine, Retry, Trigger, job

NEVER = datetime.max.replace(tzinfo=UTC)


@job("echo")
async def echo(ctx: Context, value: object) -> object:
    return value


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run_at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"deadline": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"run_at": "2030-01-01"}, "A time is a datetime"),
        ({"deadline": timedelta(hours=1)}, "A time is a datetime"),
        ({"run_at": date(2030, 1, 1)}, "A time is a datetime"),
        ({"priority": 1 << 70}, "64 bits"),
        ({"priority": 1.5}, "whole number"),
        ({"labels": None}, "a dictionary of strings"),
        ({"labels": {"team": "\ud800"}}, "no form in UTF-8"),
        ({"idempotency_key": "\ud800"}, "idempotency_key .* no form in UTF-8"),
        ({"concurrency_key": "\ud800"}, "concurrency_key .* no form in UTF-8"),
        ({"concurrency_key": ""}, "non-empty string"),
        ({"coalesce": "always", "concurrency_key": "k"}, "coalesce is"),
    ],
)
async def test_a_trigger_that_makes_no_sense_is_refused_before_anything_is_written(running, options, said):
    heard: list[str] = []
    async with running(echo) as engine:
        engine.on("run:trigger", lambda event: heard.append(event.run_id))
        changes = engine.internals.store.database.changes
        with pytest.raises(ValueError, match=said):
            await engine.trigger_many([Trigger("echo", 1), Trigger("echo", 2, **options)])
        assert engine.internals.store.database.changes == changes
        assert await engine.runs.list() == []
    assert heard == []


async def test_only_triggers_are_triggered(running):
    async with running(echo) as engine:
        for other in (("echo", 1), {"job": "echo"}, echo):
            with pytest.raises(TypeError, match="Trigger objects"):
                await engine.trigger_many([Trigger("echo", 1), other])
        assert await engine.runs.list() == []


async def test_a_run_may_be_meant_to_begin_never(running):
    async with running(echo) as engine:
        run = await engine.trigger("echo", run_at=NEVER, deadline=NEVER)
        assert all(NEVER - moment < timedelta(milliseconds=2) for moment in (run.run_at, run.deadline))
        assert [found.id for found in await engine.runs.list(created_before=NEVER)] == [run.id]


@pytest.mark.parametrize("timeout", [1e12, 1e300])
async def test_a_job_may_take_longer_than_time_can_tell(running, timeout):
    @job("endless", timeout=timeout)
    async def endless(ctx: Context, _: None) -> int:
        return 1

    async with running(endless) as engine:
        run = await finish(engine, await engine.trigger("endless"))
        assert (run.output, await engine.runs.list()) == (1, [run])
        assert NEVER - run.deadline < timedelta(milliseconds=2)


async def test_a_job_whose_timeout_is_infinite_has_none(running):
    @job("endless", timeout=float("inf"))
    async def endless(ctx: Context, _: None) -> int:
        return 1

    async with running(endless) as engine:
        run = await finish(engine, await engine.trigger("endless"))
        assert (run.output, run.deadline) == (1, None)


async def test_a_time_before_all_that_can_be_told_is_the_first_one(running):
    dawn = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo", 1, run_at=dawn))
        overdue = await finish(engine, await engine.trigger("echo", 1, deadline=dawn))
        assert (run.output, run.run_at) == (1, datetime.min.replace(tzinfo=UTC))
        assert (overdue.error.type, overdue.deadline) == ("DeadlineExceeded", run.run_at)
        assert await engine.runs.list(created_after=dawn) == [overdue, run]


@pytest.mark.parametrize("stored", [10**15, -(10**15), 10**18])
async def test_a_time_that_nothing_can_tell_keeps_no_list_from_being_read(running, stored):
    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo", 1))
        engine.internals.store.database.execute("UPDATE durable_runs SET deadline = ?", (stored,))
        assert [found.id for found in await engine.runs.list()] == [run.id]
        assert (await engine.runs.get(run.id)).deadline.year in (1, 9999)


async def test_the_part_of_a_filter_that_is_none_is_as_if_not_given(running):
    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo"))
        nothing: dict[str, Any] = dict.fromkeys(
            ["status", "job", "labels", "created_after", "created_before", "search", "parent", "cursor"]
        )
        assert await engine.runs.list(**nothing) == [run]


async def test_only_a_text_is_searched_for(running):
    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo", 5))
        for other in (5, 0, run, b"5"):
            with pytest.raises(TypeError, match="search is a text, such as a run's id"):
                await engine.runs.list(search=other)
            with pytest.raises(TypeError, match="search is a text"):
                await engine.runs.delete_many(search=other)
        assert await engine.runs.list(search="5") == [run]


@pytest.mark.parametrize("limit", [0, -1, 1001, 2.5, "5", True, None])
async def test_a_page_has_a_size(running, limit):
    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo"))
        with pytest.raises(ValueError, match="limit is a number from 1 to 1000"):
            await engine.runs.list(limit=limit)
        with pytest.raises(ValueError, match="limit is a number from 1 to 1000"):
            await engine.runs.logs(run.id, limit=limit)


@pytest.mark.parametrize(
    ("older_than", "limit"),
    [(NEVER, -1), (NEVER, 0), (NEVER, 2.5), (timedelta(0), 500), ("30d", 500), (datetime(2030, 1, 1), 500)],  # noqa: DTZ001
)
async def test_purging_by_mistake_deletes_nothing(running, older_than, limit):
    async with running(echo) as engine:
        await finish(engine, await engine.trigger("echo"))
        with pytest.raises(ValueError, match=r"limit is|datetime"):
            await engine.runs.purge(older_than, limit=limit)
        assert len(await engine.runs.list()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrent_runs": -1},
        {"lease": 0},
        {"lease": 0.0001},
        {"lease": float("inf")},
        {"lease": float("nan")},
        {"max_recoveries": -1},
        {"max_parked": -1},
        {"durability": "fully"},
        {"retain_runs": "a month"},
        {"retain_runs": timedelta(days=-1)},
        {"retain_runs": -5},
        {"retain_runs": "99999999999d"},
    ],
    ids=str,
)
def test_an_engine_that_makes_no_sense_is_refused_when_it_is_made(options):
    with pytest.raises(ValueError, match=r"."):
        Engine("unused.sqlite3", [echo], **options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": 1.5},
        {"backoff": -1},
        {"backoff": float("nan")},
        {"backoff": timedelta(seconds=1)},
        {"factor": -2},
        {"max_delay": -1},
        {"max_delay": "5m"},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"timeout": 0},
        {"timeout": timedelta(seconds=1)},
        {"retry_on": None},
        {"retry_on": "ConnectionError"},
        {"retry_on": ConnectionError()},
        {"retry_on": str},
        {"retry_on": [ConnectionError, "ValueError"]},
    ],
    ids=str,
)
def test_a_retry_that_makes_no_sense_is_refused_when_it_is_made(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Retry(**options)


def test_a_predicate_that_would_have_to_be_awaited_is_refused_as_its_answer_would_always_be_yes():
    async def wanted(error: BaseException) -> bool:
        return False

    with pytest.raises(ValueError, match=r"retry_on decides at once, .*wanted.*`def`, not `async def`"):
        Retry(retry_on=wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrent": 0},
        {"max_concurrent": 1.5},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": "5s"},
        {"version": 2},
        {"version": "\ud800"},
        {"retry": 3},
    ],
    ids=ascii,
)
def test_a_job_that_makes_no_sense_is_refused_when_it_is_declared(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        job("echo", **options)


def test_a_job_has_a_name_that_can_be_stored():
    with pytest.raises(ValueError, match="no form in UTF-8"):
        job("\ud800")


@pytest.mark.parametrize("verb", ["get", "steps", "cancel", "retry", "retrigger", "delete", "wait"])
async def test_an_id_that_the_database_cannot_hold_is_refused_in_words(running, verb):
    async with running(echo) as engine:
        with pytest.raises(ValueError, match=r"'\\ud800' has no form in UTF-8"):
            await getattr(engine.runs, verb)("\ud800")


@pytest.mark.parametrize("verb", ["get", "steps", "cancel", "retry", "retrigger", "delete", "wait"])
async def test_a_run_in_place_of_its_id_is_refused_in_words(running, verb):
    async with running(echo) as engine:
        run = await finish(engine, await engine.trigger("echo", 1))
        with pytest.raises(TypeError, match=r"A Run is nothing .* Give a run, .* by its id"):
            await getattr(engine.runs, verb)(run)
        assert await engine.runs.get(run.id) == run


async def test_a_name_that_the_database_cannot_hold_is_refused_in_words(running):
    @job("names")
    async def names(ctx: Context, _: None) -> list[str]:
        outcomes = (ctx.step("\ud800", lambda: 1), ctx.set_event("\ud800", 1), ctx.wait_for_signal("\ud800"))
        return [str(error) for error in await asyncio.gather(*outcomes, return_exceptions=True)]

    async with running(names) as engine:
        run = await finish(engine, await engine.trigger("names"))
    assert all("has no form in UTF-8" in said for said in run.output)


@pytest.mark.parametrize("drain", [True, False])
async def test_a_job_cannot_stop_the_engine_that_executes_it(running, drain):
    @job("stop")
    async def stop(ctx: Context, _: None) -> str:
        with pytest.raises(RuntimeError, match="it would wait for its own end"):
            await engine.stop(drain)
        return "still here"

    async with running(stop, echo) as engine:
        assert (await finish(engine, await engine.trigger("stop"))).output == "still here"
        assert (await finish(engine, await engine.trigger("echo", 1))).output == 1


@pytest.mark.parametrize("drain", [True, False])
async def test_a_step_of_a_branch_cannot_stop_the_engine_that_executes_it(running, drain):
    @job("stop")
    async def stop(ctx: Context, _: None) -> list[str | int]:
        async def stop_it() -> str:
            with pytest.raises(RuntimeError, match="it would wait for its own end"):
                await engine.stop(drain)
            return "still here"

        return await asyncio.gather(ctx.step("stop", stop_it), ctx.step("other", lambda: 1))

    async with running(stop) as engine:
        assert (await finish(engine, await engine.trigger("stop"))).output == ["still here", 1]
