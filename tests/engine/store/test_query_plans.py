"""Which index each statement goes by: what is done per step and per claim costs the same in a large database."""

from __future__ import annotations

import asyncio
import re
import sqlite3

import pytest
from watching import finish

from durable_web import Context, RunFilter, job
from durable_web._store import messages, waits
from durable_web._store import sql as queries

RUN, STEP, FRAME = "durable_runs by id", "durable_steps by primary key", "durable_frames by durable_frames_by_run"
RUNNING, ORDER = "durable_steps by durable_steps_running", "durable_steps by durable_steps_by_order"
QUERIES = {
    name: text
    for module in (queries.runs, queries.listing, queries.steps, queries.frames)
    for name, text in vars(module).items()
    if name.isupper() and not name.startswith("_") and isinstance(text, str)
}

PLANS = {
    "CLAIM": {RUN, STEP, "candidate by durable_runs_to_claim", "other by durable_runs_by_concurrency_key"},
    "CLAIM_BUT_SATURATED": {
        RUN,
        STEP,
        "candidate by durable_runs_to_claim",
        "other by durable_runs_by_concurrency_key",
    },
    "HAS_CLAIMABLE": {
        "durable_runs by durable_runs_to_claim",
        "durable_held by durable_held_by_gate",
        "durable_runs by durable_runs_blocked",
    },
    "COUNT_EXECUTING": {"durable_counts by primary key", "durable_runs by durable_runs_undoing"},
    "FIND_BY_IDEMPOTENCY_KEY": {"durable_runs by durable_runs_by_idempotency_key"},
    "FIND_BY_CONCURRENCY_KEY": {"durable_runs by durable_runs_by_concurrency_key"},
    "NEXT_DUE": {
        "durable_runs by durable_runs_scheduled",
        "durable_runs by durable_runs_waiting",
        "durable_runs by durable_runs_deadlines",
        "durable_steps by durable_steps_due",
    },
    "MAKE_DUE": {"durable_runs by durable_runs_scheduled"},
    "WAKE": {"durable_runs by durable_runs_waiting"},
    "OVERDUE": {"durable_runs by durable_runs_deadlines"},
    "ORPHANS": {"durable_runs by durable_runs_by_status"},
    "ENDED_BEFORE": {"durable_runs by durable_runs_completed"},
    "FENCE": {RUN},
    "RENEW": {RUN},
    "SETTLE": {RUN, "child by durable_runs_by_parent", "durable_steps by durable_steps_by_topic"},
    "PARK": {RUN},
    "WAKE_ONE": {RUN},
    "RELEASE": {RUN},
    "CANCEL": {RUN},
    "RESET_RECOVERIES": {RUN},
    "FORGET_RECOVERIES": {RUN},
    "HAS_OUTCOME": {STEP},
    "HAS_LEASES": {"durable_runs by durable_runs_by_status"},
    "IS_SUSPECT": {RUN},
    "LIMIT_DURATION": {RUN},
    "SET_PROGRESS": {RUN},
    "RUN_EXISTS": {RUN},
    "RUN_IDENTITY": {RUN},
    "RUN_STANDING": {RUN},
    "GET_RUN": {RUN, STEP, RUNNING, FRAME},
    "STEPS": {STEP},
    "LAST_OUTCOME": {STEP},
    "OUTCOMES_AFTER": {ORDER},
    "HAS_OUTCOME_AFTER": {ORDER},
    "RUNNING_STEPS": {RUNNING},
    "CANCEL_STEPS": {STEP},
    "EARLIER_ATTEMPTS": {STEP, "durable_attempts by primary key"},
    "ATTEMPTS": {"durable_attempts by primary key"},
    "RECORD_STEP": set(),
    "RECORD_STEP_FENCED": {RUN},
    "RECORD_COMPLETED_FENCED": {RUN},
    "RECORD_ATTEMPT": set(),
    "GET_VALUE": {"durable_values by primary key"},
    "SET_VALUE": set(),
    "APPEND_FRAME": set(),
    "FRAMES": {FRAME},
    "ALL_FRAMES": {"durable_frames by primary key"},
    "NEWEST_SEQ": {FRAME},
    "CURRENT_STEP": {RUNNING},
    "STEP": {STEP},
    "RUN_OUTCOME": {RUN},
    "ACTIVE_CHILDREN": {"durable_runs by durable_runs_by_parent"},
    "AWAITED_CHILDREN": {"child by durable_runs_by_parent", STEP},
    "ADOPT_CHILDREN": {"durable_runs by durable_runs_by_parent"},
    "BLOCK": {RUN},
    "UNBLOCK": {RUN, "durable_runs by durable_runs_blocked"},
    "COMPENSATE": {RUN},
    "BEGIN_COMPENSATION": {RUN, STEP},
    "ENDING": {RUN},
    "EXPIRE": {RUN},
    "BURY": {RUN},
    "ORPHAN": {RUN},
    "REOPEN": {RUN},
    "LINK_DEAD_LETTER": {RUN},
    "SERVES_DEAD_LETTER": {RUN, "later by id", "earlier by id"},
    "FORGET_UNSETTLED_STEPS": {STEP},
    "FORGET_LATER_PUBLICATIONS": {STEP},
    "FORGET_TIMER": {STEP},
    "FORGET_TIMERS": {STEP},
    "COPY_STEPS": {STEP},
}
# An index for the order would cost every step a write; and of runs that are leased, blocked or the children of one
# there are only few.
SORTED_FEW = {"STEPS", "ORPHANS", "ACTIVE_CHILDREN", "AWAITED_CHILDREN", "UNBLOCK"}


def plan_of(connection: sqlite3.Connection, text: str) -> tuple[set[str], list[str]]:
    """The tables that a statement reads, each with the index it goes by, and what in its plan is no look-up."""
    names = re.findall(r":([a-z_0-9]+)", text)
    parameters = dict.fromkeys(names) if names else (None,) * text.count("?")
    reads: set[str] = set()
    others: list[str] = []
    for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters):
        found = re.match(
            r"(?:SEARCH|SCAN) (\w+) USING (?:COVERING )?(?:INDEX (\w+)|((?:INTEGER )?PRIMARY KEY))", detail
        )
        if found is not None:
            index = re.sub(r"^sqlite_autoindex_durable_runs_1$", "id", found[2] or "primary key")
            reads.add(f"{found[1]} by {index}")
        elif detail.startswith(("SCAN", "SEARCH durable", "USE TEMP B-TREE")):
            others.append(detail)
    return reads, [detail for detail in others if detail != "SCAN CONSTANT ROW"]


@pytest.mark.parametrize("name", PLANS)
async def test_what_runs_per_step_and_per_claim_goes_by_the_index_made_for_it(running, name):
    text = queries.runs.claim(["one", "another"])[0] if name == "CLAIM_BUT_SATURATED" else QUERIES[name]
    async with running() as engine:
        reads, others = plan_of(engine.internals.store.database.connection, text)
    assert reads == PLANS[name]
    others = [other for other in others if other not in RECURSIVE]
    assert others == (["USE TEMP B-TREE FOR ORDER BY"] if name in SORTED_FEW else [])


RECURSIVE = {"SCAN origin", "SCAN waiting"}  # what a recursive statement has found so far: no table


PENDING, MESSAGE = "durable_messages by durable_messages_pending", "durable_messages by durable_messages_by_id"
TOPIC = "durable_steps by durable_steps_by_topic"
PLANS_OF_WAITS = {
    "DUE": {"durable_steps by durable_steps_due"},
    "BY_TOPIC": {TOPIC},
    "BY_TOPIC_IN_RUN": {TOPIC},
    "TOPIC_STATUS": {TOPIC},
    "FOLLOW_ON": {TOPIC},
    "WAITING_FOR": {"child by id", "step by durable_steps_by_topic"},
    "BREAKPOINTS": {RUNNING},
    "OVERDUE_IN_RUN": {RUNNING},
    "HAS_MESSAGE": {PENDING},
    "SEND": set(),
    "NEXT": {PENDING},
    "MARK": {MESSAGE},
    "PUT_BACK": {MESSAGE},
    "TAKE_ALONG": {MESSAGE},
    "OUTCOME": {MESSAGE},
    "PUBLISH": set(),
    "FORGET_EVENTS": {"durable_events by primary key", "durable_events by durable_events_by_time"},
}
SORTED_WAITS = {"BY_TOPIC", "BY_TOPIC_IN_RUN", "OVERDUE_IN_RUN"}  # the few runs of an event, the few waits of a run


@pytest.mark.parametrize("name", PLANS_OF_WAITS)
async def test_what_runs_per_wait_and_per_delivery_goes_by_the_index_made_for_it(running, name):
    async with running() as engine:
        text = getattr(waits if hasattr(waits, name) else messages, name)
        reads, others = plan_of(engine.internals.store.database.connection, text)
    assert reads == PLANS_OF_WAITS[name]
    others = [other for other in others if other not in RECURSIVE]
    assert all(other.startswith("USE TEMP B-TREE") and name in SORTED_WAITS for other in others)


async def test_waits_that_have_ended_are_no_longer_found_by_their_topic(running):
    """Otherwise an event would read every wait that there ever was for its topic."""

    @job("paid")
    async def paid(ctx: Context, _: None) -> None:
        await ctx.wait_for_signal("go")
        await ctx.wait_for_event("paid")

    async with running(paid) as engine:
        run = await engine.trigger("paid")
        await engine.runs.signal(run.id, "go")
        while not await engine.publish("paid"):
            await asyncio.sleep(0.003)
        await finish(engine, run)
        assert engine.internals.store.database.rows("SELECT name FROM durable_steps WHERE topic IS NOT NULL") == []


async def test_listing_the_runs_that_a_run_has_started_goes_by_the_index_made_for_it(running):
    text, _ = queries.listing.list_runs(RunFilter(parent="a run"), oldest_first=False, after=None, limit=50)
    async with running() as engine:
        reads, _ = plan_of(engine.internals.store.database.connection, text)
    assert "durable_runs by durable_runs_by_parent" in reads


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "id"),
        ({"job": "one"}, "durable_runs_by_job"),
        ({"status": "completed"}, "durable_runs_by_status"),
    ],
)
async def test_a_page_of_runs_is_read_in_the_order_of_an_index(running, filters, index):
    text, _ = queries.listing.list_runs(RunFilter(**filters), False, "01", 50)
    async with running() as engine:
        reads, others = plan_of(engine.internals.store.database.connection, text)
    assert reads == {f"durable_runs by {index}", STEP, RUNNING, FRAME}
    assert others == []


async def test_no_statement_by_name_scans_a_table(running):
    async with running() as engine:
        for name, text in QUERIES.items():
            _, others = plan_of(engine.internals.store.database.connection, text)
            scans = [detail for detail in others if detail.startswith("SCAN")]
            assert [detail for detail in scans if detail not in RECURSIVE] == [], name
