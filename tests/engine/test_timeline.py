"""Watching: every frame once, in order, to the end."""

from __future__ import annotations

import asyncio

import pytest
from watching import finish, timeline

from durable_web import Context, RunNotFound, RunStatus, job
from durable_web.testing import crash


@job("talk")
async def talk(ctx: Context, lines: int) -> None:
    for number in range(lines):
        ctx.log.info(f"line {number}")
        await ctx.step(f"step {number}", lambda: None)


async def test_frames_are_numbered_from_one_without_gaps(running):
    async with running(talk) as engine:
        frames = await timeline(engine, await engine.trigger("talk", 20))
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    assert [frame.id for frame in frames] == sorted({frame.id for frame in frames})


async def test_a_run_tells_its_story_in_order(running):
    async with running(talk) as engine:
        frames = await timeline(engine, await engine.trigger("talk", 1))
    assert [(frame.kind, getattr(frame, "status", None)) for frame in frames] == [
        ("run_status", "pending"),
        ("run_status", "leased"),
        ("log", None),
        ("step_status", "completed"),
        ("run_status", "completed"),
    ]


async def test_watching_from_any_frame_gives_exactly_what_came_after_it(running):
    async with running(talk) as engine:
        run = await engine.trigger("talk", 5)
        frames = await timeline(engine, run)
        for seen in range(len(frames) + 1):
            assert await timeline(engine, run, from_seq=seen) == frames[seen:]


async def test_a_watcher_that_is_slower_than_the_job_misses_nothing(running):
    async with running(talk) as engine:
        run = await engine.trigger("talk", 1500)
        seen = []
        async for frame in engine.watch(run.id):
            seen.append(frame.seq)
            if len(seen) % 100 == 0:
                await asyncio.sleep(0.005)
    assert seen == list(range(1, 3004))


async def test_a_watch_goes_on_from_its_last_frame_after_a_crash(running):
    @job("interrupted")
    async def interrupted(ctx: Context, _: None) -> None:
        for number in range(10):
            await ctx.step(f"step {number}", lambda: None)
            if number == 4 and ctx.attempt == 1:
                await asyncio.Event().wait()

    seen = []
    async with running(interrupted) as engine:
        run = await engine.trigger("interrupted")
        async for frame in engine.watch(run.id):
            seen.append(frame)
            if getattr(frame, "name", "") == "step 4":
                break
        await crash(engine)
    async with running(interrupted) as engine:
        seen += await timeline(engine, run, from_seq=seen[-1].seq)
    assert [frame.seq for frame in seen] == list(range(1, len(seen) + 1))
    assert [frame.name for frame in seen if frame.kind == "step_status"] == [f"step {n}" for n in range(10)]
    assert [frame.status for frame in seen if frame.kind == "run_status"] == [
        "pending", "leased", "pending", "leased", "completed",
    ]  # fmt: skip


async def test_watching_a_run_that_is_not_there_is_an_error(running):
    async with running() as engine:
        with pytest.raises(RunNotFound, match="no run 'nobody'"):
            async for _ in engine.watch("nobody"):
                pass


async def test_a_watch_ends_when_the_engine_stops(running):
    @job("forever")
    async def forever(ctx: Context, _: None) -> None:
        await asyncio.Event().wait()

    async with running(forever) as engine:
        run = await engine.trigger("forever")
        watching = asyncio.get_running_loop().create_task(timeline(engine, run))
        while (await engine.get_run(run.id)).status != RunStatus.LEASED:
            await asyncio.sleep(0)
        await engine.stop(drain=False)
        frames = await watching
    assert frames[-1].status == RunStatus.PENDING


async def test_many_watchers_of_one_run_see_the_same(running):
    async with running(talk) as engine:
        run = await engine.trigger("talk", 30)
        stories = await asyncio.gather(*(timeline(engine, run) for _ in range(50)))
        assert all(story == stories[0] for story in stories)
        assert not engine._timeline._tails


async def test_a_frame_is_seen_only_after_its_commit(running):
    """The watcher of a group that could not be committed hears nothing of it."""
    async with running(talk) as engine:
        run = await finish(engine, await engine.trigger("talk", 1))
        published = []
        engine._store.on_commit = lambda frames, facts: published.extend(frames)
        with pytest.raises(RuntimeError), engine._store.transaction():
            engine._store.journal.append(run.id, 0, "log", {})
            raise RuntimeError
        with engine._store.transaction():
            pass
        assert published == []
