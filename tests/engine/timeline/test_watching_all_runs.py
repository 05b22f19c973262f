"""Watching all runs at once: in the order of their commits, chosen by job, label and kind."""

from __future__ import annotations

import asyncio

import pytest
from watching import cpython_only, finish, take, talk, timeline

from durable_web import Context, Frame, job
from durable_web.testing import MockClock, settle


async def test_all_runs_are_watched_in_the_order_of_their_commits(running):
    async with running(talk) as engine:
        runs = [await engine.trigger("talk", 3) for _ in range(4)]
        stories = [await timeline(engine, run) for run in runs]
        expected = sorted((frame for story in stories for frame in story), key=lambda frame: frame.id)
        for seen in range(0, len(expected), 7):
            from_id = expected[seen - 1].id if seen else 0
            assert await take(engine.runs.watch_all(from_id), len(expected) - seen) == expected[seen:]


async def test_watching_from_now_on_leaves_the_history_out(running):
    async with running(talk) as engine:
        await finish(engine, await engine.trigger("talk", 3))
        news = engine.runs.watch_all(None)  # "now" is when this is called, not when the first frame is asked for
        run = await finish(engine, await engine.trigger("talk", 1))
        assert await take(news, 5) == await timeline(engine, run)


async def test_frames_are_chosen_by_job_label_and_kind_however_rare_they_are(running):
    @job("other")
    async def other(ctx: Context, _: None) -> None:
        ctx.log.warning("here")

    async with running(talk, other) as engine:
        live = asyncio.create_task(take(engine.runs.watch_all(jobs="other", labels={"tenant": "b"}, kinds="log"), 2))
        rare = []
        for tenant in ("a", "b"):
            await finish(engine, await engine.trigger("talk", 400, labels={"tenant": tenant}))
            rare.append(await engine.trigger("other", labels={"tenant": tenant, "more": "x"}))
            await finish(engine, rare[-1])
        await finish(engine, await engine.trigger("talk", 400))
        await finish(engine, rare[1])
        (line,) = await take(engine.runs.watch_all(jobs="other", labels={"tenant": "b"}, kinds="log"), 1)
        assert (line.run_id, line.message) == (rare[1].id, "here")
        statuses = await take(engine.runs.watch_all(jobs=["other", "talk"], kinds=["run_status"]), 15)
        assert [frame.status for frame in statuses] == ["pending", "running", "completed"] * 5
        both = await take(engine.runs.watch_all(jobs="other", kinds="log"), 2)
        assert [frame.run_id for frame in both] == [run.id for run in rare]

        third = await engine.trigger("other", labels={"tenant": "b"})
        assert [frame.run_id for frame in await live] == [rare[1].id, third.id]


async def test_a_job_is_as_good_as_its_name(running):
    @job("other")
    async def other(ctx: Context, _: None) -> None: ...

    async with running(talk, other) as engine:
        await finish(engine, await engine.trigger(talk, 3))
        run = await finish(engine, await engine.trigger(other))
        story = await timeline(engine, run)
        for jobs in (other, [other], iter([other, "nobody"])):
            assert await take(engine.runs.watch_all(jobs=jobs), len(story)) == story


@pytest.mark.parametrize("empty", [{"jobs": []}, {"kinds": ()}, {"jobs": iter(())}], ids=["jobs", "kinds", "iterator"])
async def test_of_no_jobs_and_of_no_kinds_there_are_no_frames(running, empty):
    async with running(talk) as engine:
        frames = engine.runs.watch_all(**empty)
        first = asyncio.create_task(anext(frames, "the end"))
        await finish(engine, await engine.trigger("talk", 1))
        await settle()
        assert not first.done()
    assert await first == "the end", "it comes when the engine stops"


async def test_an_unknown_kind_of_frame_is_refused_at_once(running):
    async with running() as engine:
        with pytest.raises(ValueError, match=r"one of run_status, .*, not 'logs'"):
            engine.runs.watch_all(kinds=["logs"])


async def test_a_deleted_run_is_told_of_to_those_who_had_chosen_it_and_who_come_later(running):
    async with running(talk) as engine:
        chosen = {"labels": {"tenant": "a"}, "jobs": "talk", "kinds": "run_deleted"}
        live = asyncio.create_task(take(engine.runs.watch_all(**chosen), 1))
        runs = [await finish(engine, await engine.trigger("talk", 1, labels={"tenant": name})) for name in "ab"]
        for run in runs:
            await engine.runs.delete(run.id)
        (told,) = await live
        assert (told.run_id, told.job, told.labels) == (runs[0].id, "talk", {"tenant": "a"})
        assert await take(engine.runs.watch_all(**chosen), 1) == [told]
        assert [frame.run_id for frame in await take(engine.runs.watch_all(), 2)] == [run.id for run in runs]


async def test_watching_all_runs_ends_when_the_engine_stops_and_not_before(running):
    async with running(talk) as engine:
        seen: list[Frame] = []

        async def follow() -> None:
            seen.extend([frame async for frame in engine.runs.watch_all()])

        following = asyncio.create_task(follow())
        await finish(engine, await engine.trigger("talk", 2))
        await asyncio.sleep(0)
        assert not following.done()
        await engine.stop()
        await following
    assert [frame.seq for frame in seen] == list(range(1, 8))


@cpython_only("OPFS has one engine per file")
async def test_frames_of_another_process_arrive_within_a_second_in_between_our_own(running):
    clock = MockClock()
    async with (
        running(talk, clock=clock, exclusive=False) as engine,
        running(talk, clock=clock, exclusive=False, max_concurrent_runs=0) as other,
    ):
        tasks = [asyncio.create_task(take(each.runs.watch_all(), 4 * 7)) for each in (engine, engine, other, other)]
        for number in range(4):
            await (other if number % 2 else engine).trigger("talk", 2)
            await clock.advance(1)
            stored = engine.internals.store.newest_frame_id()
            assert stored == 7 * (number + 1)
            assert all(tail.frames[-1].id == stored for tail in other.internals.timeline._tails.values())
        stories = await asyncio.gather(*tasks)
    assert all(story == stories[0] for story in stories)
    assert [frame.id for frame in stories[0]] == list(range(1, 29))


@cpython_only("OPFS has one engine per file")
async def test_more_than_the_tails_hold_written_by_another_process_is_read_from_the_store(running):
    clock = MockClock()
    async with (
        running(talk, clock=clock, exclusive=False) as engine,
        running(talk, clock=clock, exclusive=False, max_concurrent_runs=0) as other,
    ):
        run = await engine.trigger("talk", 1000)
        watches = [other.runs.watch(run.id), other.runs.watch_all()]
        first = [await anext(watch) for watch in watches]
        while not (await engine.runs.get(run.id)).is_terminal:
            await asyncio.sleep(0)
        following = [asyncio.create_task(take(watch, 2002)) for watch in watches]
        await clock.advance(1)
        rest = await asyncio.gather(*following)
    assert [[frame.seq for frame in [head, *tail]] for head, tail in zip(first, rest, strict=True)] == [
        list(range(1, 2004))
    ] * 2
