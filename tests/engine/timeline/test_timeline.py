"""Watching: every frame once, in order, to the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest
from watching import finish, take, talk, timeline

from durable_web import Context, Engine, Retry, RunNotFound, RunStatus, job
from durable_web._timeline import TAIL_CHARACTERS, TAIL_FRAMES
from durable_web.testing import MockClock, crash


def count_reads(engine: Engine) -> list[str]:
    """Collects the pages of frames that are read from here on."""
    reads: list[str] = []
    engine.internals.store.database.connection.set_trace_callback(
        lambda text: reads.append(text) if "body\n  FROM durable_frames" in text else None
    )
    return reads


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
        ("run_status", "running"),
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
        async for frame in engine.runs.watch(run.id):
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
        async for frame in engine.runs.watch(run.id):
            seen.append(frame)
            if getattr(frame, "name", "") == "step 4":
                break
        await crash(engine)
    async with running(interrupted) as engine:
        seen += await timeline(engine, run, from_seq=seen[-1].seq)
    assert [frame.seq for frame in seen] == list(range(1, len(seen) + 1))
    assert [frame.name for frame in seen if frame.kind == "step_status"] == [f"step {n}" for n in range(10)]
    assert [frame.status for frame in seen if frame.kind == "run_status"] == [
        "pending", "running", "pending", "running", "completed",
    ]  # fmt: skip


async def test_watching_a_run_that_is_not_there_is_an_error(running):
    async with running() as engine:
        with pytest.raises(RunNotFound, match="no run 'nobody'"):
            async for _ in engine.runs.watch("nobody"):
                pass


async def test_a_watch_ends_when_the_engine_stops(running):
    @job("forever")
    async def forever(ctx: Context, _: None) -> None:
        await asyncio.Event().wait()

    async with running(forever) as engine:
        run = await engine.trigger("forever")
        watching = asyncio.get_running_loop().create_task(timeline(engine, run))
        while (await engine.runs.get(run.id)).status != RunStatus.RUNNING:
            await asyncio.sleep(0)
        await engine.stop(drain=False)
        frames = await watching
    assert frames[-1].status == RunStatus.PENDING


async def test_many_watchers_of_one_run_see_the_same(running):
    async with running(talk) as engine:
        run = await engine.trigger("talk", 30)
        stories = await asyncio.gather(*(timeline(engine, run) for _ in range(50)))
        assert all(story == stories[0] for story in stories)
        assert not engine.internals.timeline._tails


async def test_a_frame_is_seen_only_after_its_commit(running):
    """The watcher of a group that could not be committed hears nothing of it."""
    async with running(talk) as engine:
        run = await finish(engine, await engine.trigger("talk", 1))
        published = []
        engine.internals.store.on_commit = lambda frames, facts: published.extend(frames)
        with pytest.raises(RuntimeError), engine.internals.store.transaction():
            engine.internals.store.journal.append(run.id, 0, "log", {})
            raise RuntimeError
        with engine.internals.store.transaction():
            pass
        assert published == []


# --- size ------------------------------------------------------------------------------------------------------------


async def test_a_watcher_that_takes_nothing_neither_holds_up_the_engine_nor_fills_memory(running):
    @job("shout")
    async def shout(ctx: Context, _: None) -> None:
        for number in range(30):
            ctx.log.info(str(number) + "!" * 100_000)
            await ctx.step(f"step {number}", lambda: None)

    async with running(talk, shout) as engine:
        for name, lines, count in (("talk", 1000, 2003), ("shout", None, 63)):
            all_runs = engine.runs.watch_all(None)
            run = await engine.trigger(name, lines)
            watches = [engine.runs.watch(run.id), all_runs]
            seen = [[await anext(watch)] for watch in watches]
            await finish(engine, run)
            for tail in engine.internals.timeline._tails.values():
                assert len(tail.frames) <= TAIL_FRAMES
                assert sum(len(frame.body) for frame in tail.frames) == tail.characters
                assert tail.characters <= TAIL_CHARACTERS
            for watch, frames in zip(watches, seen, strict=True):
                frames += await take(watch, count - 1)
                assert [frame.seq for frame in frames] == list(range(1, count + 1))


async def test_a_page_of_long_lines_is_short(running):
    @job("shout")
    async def shout(ctx: Context, _: None) -> None:
        for _ in range(5):
            ctx.log.info("!" * 1_000_000)

    async with running(shout) as engine:
        run = await finish(engine, await engine.trigger("shout"))
        async with aclosing(engine.runs.watch_batches(run.id)) as batches:
            sizes = [sum(len(frame.body) for frame in batch) async for batch in batches]
    assert len(sizes) >= 3
    assert max(sizes) < 2_100_000


async def test_a_thousand_watchers_of_one_run_share_what_commits(running):
    gate = asyncio.Event()

    @job("gated")
    async def gated(ctx: Context, count: int) -> None:
        await ctx.step("gate", gate.wait)
        for number in range(count):
            await ctx.step(f"step {number}", lambda: None)

    async with running(gated) as engine:
        run = await engine.trigger("gated", 50)
        watchers = [asyncio.create_task(timeline(engine, run)) for _ in range(1000)]
        while (
            engine.internals.timeline._tails.get(run.id) is None
            or engine.internals.timeline._tails[run.id].watchers < 1000
        ):
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)  # they have read what there was
        reads = count_reads(engine)
        gate.set()
        stories = await asyncio.gather(*watchers)
        assert len(reads) < 100
        assert all(story == stories[0] for story in stories)
        assert len(stories[0]) >= 53
        assert not engine.internals.timeline._tails


async def test_commits_read_no_frames_for_watchers_whether_there_are_any_or_not(running):
    async with running(talk) as engine:
        reads = count_reads(engine)
        run = await engine.trigger("talk", 50)
        while not (await engine.runs.get(run.id)).is_terminal:
            await asyncio.sleep(0)
        assert reads == []
        following = asyncio.create_task(take(engine.runs.watch_all(None), 103))
        await asyncio.sleep(0)
        await engine.trigger("talk", 50)
        await following
        assert len(reads) <= 3


async def store_lines(engine: Engine, count: int) -> str:
    """A run that has ended and has ``count`` frames, whose lines were written behind the engine's back."""
    run = await finish(engine, await engine.trigger("talk", 0))
    with engine.internals.store.transaction():
        engine.internals.store.database.connection.execute(
            """
            WITH RECURSIVE numbers (number) AS (SELECT 4 UNION ALL SELECT number + 1 FROM numbers WHERE number < :count)
            INSERT INTO durable_frames (run_id, seq, ts, kind, body)
            SELECT :run_id, number, 0, 'log',
                   json_object('level', CASE number % 1000 WHEN 0 THEN 'error' ELSE 'info' END, 'message', 'line',
                               'fields', json('{}'), 'step', NULL, 'attempt', 1)
              FROM numbers
            """,
            {"run_id": run.id, "count": count},
        )
    return run.id


async def test_a_hundred_thousand_frames_are_replayed_each_once(running):
    async with running(talk) as engine:
        run_id = await store_lines(engine, 100_000)
        seqs = [frame.seq async for batch in engine.runs.watch_batches(run_id) for frame in batch]
        assert seqs == list(range(1, 100_001))
        assert [frame.seq async for batch in first_batches(engine, 100_000) for frame in batch] == seqs


async def first_batches(engine: Engine, count: int) -> AsyncIterator[list[Any]]:
    async with aclosing(engine.runs.watch_all_batches()) as batches:
        async for batch in batches:
            yield batch
            count -= len(batch)
            if not count:
                return


# --- taking what commits on the spot ---------------------------------------------------------------------------------


@pytest.mark.parametrize("of_all_runs", [False, True])
@pytest.mark.parametrize(
    "takes",
    [lambda number: True, lambda number: False, lambda number: number % 3 > 0],
    ids=["takes all", "takes none", "takes some"],
)
async def test_a_frame_is_taken_on_the_spot_or_comes_in_the_next_batch_and_never_both(running, of_all_runs, takes):
    seen: list[int] = []
    offers = 0
    gate = asyncio.Event()

    def offer(frames: list[Any]) -> bool:
        nonlocal offers
        offers += 1
        if takes(offers):
            seen.extend(frame.seq for frame in frames)
        return takes(offers)

    @job("gated talk")
    async def gated_talk(ctx: Context, _: None) -> None:
        await ctx.step("gate", gate.wait)
        for number in range(40):
            ctx.log.info(f"line {number}")
            await ctx.step(f"step {number}", asyncio.sleep, 0 if number % 2 else 0.001)

    async def follow(batches: AsyncIterator[list[Any]]) -> None:
        async with aclosing(batches):
            async for batch in batches:
                seen.extend(frame.seq for frame in batch)

    async with running(gated_talk) as engine:
        run = await engine.trigger("gated talk")
        watch = engine.runs.watch_all_batches if of_all_runs else partial(engine.runs.watch_batches, run.id)
        following = asyncio.create_task(follow(watch(0, offer=offer)))
        while not any(tail.waiting for tail in engine.internals.timeline._tails.values()):
            await asyncio.sleep(0)
        gate.set()
        await finish(engine, run)
        expected = list(range(1, engine.internals.store.newest_seq(run.id) + 1))
        while len(seen) < len(expected):
            await asyncio.sleep(0)
        following.cancel()
    assert offers
    assert seen == expected


async def test_what_commits_is_offered_before_the_job_goes_on(running):
    taken: list[Any] = []
    seen_by_the_job: list[int] = []

    def offer(frames: list[Any]) -> bool:
        taken.extend(frames)
        return True

    gate = asyncio.Event()

    @job("looks")
    async def looks(ctx: Context, _: None) -> None:
        await ctx.step("gate", gate.wait)
        seen_by_the_job.extend(frame.seq for frame in taken)

    async with running(looks) as engine:
        run = await engine.trigger("looks")
        watching = asyncio.create_task(collect(engine.runs.watch_batches(run.id, offer=offer)))
        while not engine.internals.timeline._tails or not engine.internals.timeline._tails[run.id].waiting:
            await asyncio.sleep(0)
        gate.set()
        batches = await watching
    completed = [frame.seq for frame in taken if '"completed"' in frame.body]
    assert completed[0] in seen_by_the_job
    assert [frame.seq for frame in [*batches, *taken]] == list(range(1, len(batches) + len(taken) + 1))


async def collect(batches: AsyncIterator[list[Any]]) -> list[Any]:
    return [frame async for batch in batches for frame in batch]


async def test_a_watcher_that_fails_when_it_is_offered_a_frame_harms_no_other(running):
    def fail(frames: list[Any]) -> bool:
        raise RuntimeError("cannot take it")

    gate = asyncio.Event()

    @job("gated")
    async def gated(ctx: Context, _: None) -> None:
        await ctx.step("gate", gate.wait)

    async with running(gated) as engine:
        run = await engine.trigger("gated")
        watchers = [asyncio.create_task(collect(engine.runs.watch_batches(run.id, offer=fail))) for _ in range(2)]
        watchers.append(asyncio.create_task(collect(engine.runs.watch_batches(run.id))))
        while not engine.internals.timeline._tails or engine.internals.timeline._tails[run.id].watchers < 3:
            await asyncio.sleep(0)
        gate.set()
        stories = await asyncio.gather(*watchers)
    assert stories[0] == stories[1] == stories[2]


# --- reconnecting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_a_watcher_that_reconnects_at_every_frame_sees_each_once_while_the_engine_dies_at_random(running, seed):
    chance = random.Random(seed)
    seqs: dict[str, list[int]] = {}
    ids: list[int] = []
    run_ids: list[str] = []

    async def one_life(engine: Engine, watches: int) -> None:
        for _ in range(watches):
            (frame,) = await take(engine.runs.watch_all(ids[-1] if ids else 0), 1)
            ids.append(frame.id)
            run_id = chance.choice(run_ids)
            seen = seqs.setdefault(run_id, [])
            async with aclosing(engine.runs.watch(run_id, seen[-1] if seen else 0)) as frames:
                async for frame in frames:
                    seen.append(frame.seq)
                    break

    while True:
        async with running(talk, max_recoveries=1000) as engine:
            while len(run_ids) < 3:
                run_ids.append((await engine.trigger("talk", 40)).id)
            living = asyncio.create_task(one_life(engine, 1000))
            runs = [await engine.runs.get(run_id) for run_id in run_ids]
            if all(run.is_terminal for run in runs):
                living.cancel()
                newest = engine.internals.store.newest_frame_id()
                while ids[-1] < newest:
                    ids.extend(frame.id for frame in await take(engine.runs.watch_all(ids[-1]), 1))
                stories = {run.id: await timeline(engine, run) for run in runs}
                for run_id, seen in seqs.items():
                    seen += [frame.seq for frame in stories[run_id] if frame.seq > (seen[-1] if seen else 0)]
                break
            for _ in range(chance.randrange(20, 120)):
                await asyncio.sleep(0)
            living.cancel()
            await asyncio.wait([living])
            assert living.cancelled() or living.exception() is None
            await crash(engine)
    assert ids == list(range(1, len(ids) + 1))
    for run_id, story in stories.items():
        assert seqs[run_id] == [frame.seq for frame in story] == list(range(1, len(story) + 1))


# --- log lines -------------------------------------------------------------------------------------------------------


async def test_log_lines_are_read_in_pages_oldest_first(running):
    async with running(talk) as engine:
        run = await finish(engine, await engine.trigger("talk", 250))
        pages = []
        last = 0
        while page := await engine.runs.logs(run.id, from_seq=last):
            pages.append(page)
            last = page[-1].seq
    assert [len(page) for page in pages] == [100, 100, 50]
    assert [line.message for page in pages for line in page] == [f"line {number}" for number in range(250)]


async def test_log_lines_are_chosen_by_severity_however_far_apart_they_are(running):
    @job("levels")
    async def levels(ctx: Context, _: None) -> None:
        for level in ("debug", "info", "warning", "error"):
            getattr(ctx.log, level)(level)

    async with running(levels, talk) as engine:
        run = await finish(engine, await engine.trigger("levels"))
        for least, expected in ((None, 4), ("debug", 4), ("info", 3), ("warning", 2), ("error", 1)):
            assert len(await engine.runs.logs(run.id, level=least)) == expected
        many = await store_lines(engine, 20_000)
        assert [line.seq for line in await engine.runs.logs(many, level="error", limit=5)] == [
            1000,
            2000,
            3000,
            4000,
            5000,
        ]
        assert [line.seq for line in await engine.runs.logs(many, 18_000, level="warning")] == [19_000, 20_000]


async def test_log_lines_that_cannot_be_read_are_refused_in_words(running):
    async with running(talk) as engine:
        run = await finish(engine, await engine.trigger("talk", 1))
        with pytest.raises(ValueError, match="one of debug, info, warning, error"):
            await engine.runs.logs(run.id, level="fatal")
        with pytest.raises(ValueError, match="from 1 to 1000"):
            await engine.runs.logs(run.id, limit=0)
        await engine.runs.delete(run.id)
        for run_id in (run.id, "nobody"):
            with pytest.raises(RunNotFound):
                await engine.runs.logs(run_id)


# --- what frames tell ------------------------------------------------------------------------------------------------


async def test_a_status_names_the_step_that_the_run_waits_for_or_goes_on_with(running):
    clock = MockClock()

    @job("patient")
    async def patient(ctx: Context, _: None) -> None:
        def fail_once() -> None:
            if ctx.attempt == 1 and not failures:
                failures.append(1)
                raise ConnectionError

        await ctx.step("first", lambda: None)
        await ctx.step("second", fail_once, retry=Retry(max_attempts=2, backoff=10, jitter=False))

    failures: list[int] = []
    async with running(patient, clock=clock) as engine:
        run = await engine.trigger("patient")
        await clock.advance(60)
        frames = await timeline(engine, run)
    assert [(frame.status, frame.current_step) for frame in frames if frame.kind == "run_status"] == [
        ("pending", None), ("running", None), ("waiting", "second"), ("pending", "second"), ("running", "second"),
        ("completed", None),
    ]  # fmt: skip
