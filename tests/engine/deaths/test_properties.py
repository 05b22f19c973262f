"""Random histories: whatever is triggered, fails, is cancelled, undone, crashes or is retried, the promises hold.

Hypothesis draws a list of operations; after each the event loop turns as often as was drawn. ``scripted_world``
performs them, ``scripts`` is the job, and ``known_runs`` knows what may follow on what. ``$DURABLE_WEB_HISTORIES`` says
how many histories there are.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from contextlib import closing
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripted_world import ANY, World
from watching import cpython_only

from durable_web.testing import crash

History = list[tuple[tuple[str, dict[str, Any]], int]]


def operation(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


WHICH = st.integers(0, ANY)
STEPS = ["step", "row", "retried", "caught", "stubborn", "undo", "undo"]
WAITS = ["signal", "patient", "race", "sleep", "event", "breakpoint", "update", "webhook"]
OTHERS = ["parallel", "say", "patched"]
ALONE = st.sampled_from([*STEPS, *WAITS, *OTHERS])
RELATIVES = st.sampled_from(["child", "child", "tried", "shared", "shared", "start", "map"])
FAMILY = st.recursive(ALONE, lambda word: st.builds("{}:{}".format, RELATIVES, word), max_leaves=3)
SAGA = st.sampled_from([["undo", "undo", "undo", "breakpoint"], ["undo", "child:undo", "undo", "step"]])
SCRIPTS = SAGA | st.lists(st.one_of(ALONE, ALONE, FAMILY, st.just("again")), min_size=1, max_size=4)
TRIGGER = operation(
    "trigger",
    script=SCRIPTS,
    key=st.sampled_from([None, None, "key", "other key"]),
    idempotency=st.sampled_from([None, None, None, "once", "only"]),
    coalesce=st.sampled_from([None, "skip", "active"]),
    priority=st.integers(0, 1),
    soon=st.sampled_from([False, False, False, True]),
)
OPERATIONS = st.one_of(
    TRIGGER,
    TRIGGER,
    operation("complete", which=WHICH),
    operation("complete", which=WHICH),
    operation("complete", which=WHICH),
    operation("complete_all"),
    operation("complete_all"),
    operation("fail", which=WHICH),
    operation("fail", which=WHICH),
    operation("advance", seconds=st.sampled_from([0.05, 1, 10, 20, 60])),
    operation("cancel", which=WHICH, compensate=st.booleans()),
    operation("retry", which=WHICH),
    operation("cancel_and_retry", which=WHICH, compensate=st.booleans()),
    operation("delete", which=WHICH),
    operation("signal", which=WHICH, again=st.sampled_from([False, False, True])),
    operation("signal", which=WHICH, again=st.just(False)),
    operation("publish", event_id=st.sampled_from([None, None, "one", "two"])),
    operation("update", which=WHICH, is_refused=st.sampled_from([False, False, True])),
    operation("call_back", which=WHICH),
    operation("pause", which=WHICH),
    operation("resume", which=WHICH),
    operation("resume", which=WHICH),
    operation("crash"),
    operation("crash_soon", commits=st.integers(1, 8), before=st.booleans()),
    operation("crash_soon", commits=st.integers(1, 3), before=st.booleans()),
    operation("restart"),
)
TURNS = st.sampled_from([0, 0, 1, 2, 3, 100, 100])  # of the event loop, after an operation
RETRIED = (
    "trigger",
    {"script": ["retried"], "key": None, "idempotency": None, "coalesce": None, "priority": 0, "soon": False},
)
HISTORIES = st.lists(st.tuples(OPERATIONS, TURNS), min_size=20, max_size=60)
CANCEL_AND_RETRY = ("cancel_and_retry", {"which": 0, "compensate": False})
EXAMPLES = int(os.environ.get("DURABLE_WEB_HISTORIES", "80"))


PATHS = itertools.count()


@cpython_only("eighty histories take minutes there")
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES, st.sampled_from([0, 1, 1000]))
@example([(RETRIED, 100), (("fail", {"which": 0}), 100), (CANCEL_AND_RETRY, 0)], 1)  # parked, retried
def test_whatever_happens_no_run_is_lost_no_step_is_repeated_and_timelines_tell_it_without_a_gap(history, max_parked):
    path = f"file:history-{next(PATHS)}?mode=memory&cache=shared"
    with closing(sqlite3.connect(path, uri=True)):
        asyncio.run(live_through(history, World(path, max_parked)))


async def live_through(history: History, world: World) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unexpected.append(str(context)))
    unexpected: list[str] = []
    await world.begin()
    try:
        world.query("CREATE TABLE item (run_id, name)")
        for (name, arguments), turns in history:
            await world.perform(name, arguments)
            for _ in range(turns):
                await asyncio.sleep(0)
            await world.come_back()
        await world.bring_to_an_end()
    finally:
        await crash(world.engine)
    assert not unexpected
