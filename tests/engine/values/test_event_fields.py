"""The fields of every type of event, in Python and on the wire, as applications rely on them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from watching import finish

from durable_web import Context, ErrorInfo, Event, Retry, StorageError, job
from durable_web._notifications import DOMAIN, OPERATIONAL
from durable_web.testing import MockClock, crash, settle

COMMON = {"type", "timestamp", "sequence", "run_id", "job_name", "labels"}
FIELDS = {
    "run:trigger": {"input"},
    "run:coalesced": {"skipped_input", "skipped_labels"},
    "run:complete": {"output", "duration"},
    "run:fail": {"error", "failed_step_name"},
    "run:cancel": set(),
    "run:delete": set(),
    "run:dead": {"error"},
    "run:leased": {"input", "lease_owner", "lease_expires_at"},
    "run:lease-renewed": {"lease_expires_at"},
    "run:waiting": set(),
    "run:progress": {"progress"},
    "step:start": {"step_name", "step_index"},
    "step:complete": {"step_name", "step_index", "output", "duration"},
    "step:fail": {"step_name", "step_index", "error", "duration"},
    "step:cancel": {"step_name", "step_index"},
    "log:write": {"step_name", "level", "message", "data"},
    "worker:error": {"error", "context"},
}


@job("work")
async def work(ctx: Context, how: str) -> date:
    ctx.log.warning("at work", how=how)
    ctx.progress(1, 4, "a quarter")

    async def step() -> None:
        ctx.log.info("in a step")
        if how == "fails":
            raise ValueError("no")
        if how == "lasts":
            await asyncio.Event().wait()

    await ctx.step("first", str)
    await ctx.step("second", step, retry=Retry(max_attempts=2, backoff=60, jitter=0))
    return date(2026, 1, 31)


async def hear(running: Any) -> list[Event]:
    """Every type of event, from one engine after the other."""
    clock = MockClock()
    heard: list[Event] = []

    def listen(engine: Any) -> None:
        for type in FIELDS:
            engine.on(type, heard.append)

    async with running(work, clock=clock, lease=30) as engine:
        listen(engine)
        done = await finish(engine, await engine.trigger("work", "well", labels={"of": "a"}))
        failing = await engine.trigger("work", "fails", labels={"of": "a"})
        await clock.advance(1)
        await clock.advance(61)
        await clock.advance(1)
        await finish(engine, failing)
        lasting = await engine.trigger("work", "lasts", labels={"of": "a"}, concurrency_key="k")
        await clock.advance(11)
        later = clock_time(clock) + timedelta(days=1)
        await engine.trigger("work", "later", labels={"of": "a"}, concurrency_key="k", run_at=later)
        other = {"labels": {"of": "b"}, "concurrency_key": "k", "coalesce": "skip"}
        await engine.trigger("work", "skipped", **other)
        await engine.runs.cancel(lasting.id)
        await engine.runs.delete(done.id)
        engine._events.report(StorageError("path", "trouble"), "testing", clock.now())
        dying = await engine.trigger("work", "lasts", labels={"of": "a"})
        await settle()
        await crash(engine)
        listen(engine)
    async with running(work, clock=clock, max_recoveries=0) as engine:
        assert (await engine.runs.get(dying.id)).status == "dead"
    return heard


def clock_time(clock: MockClock) -> datetime:
    return datetime.fromtimestamp(clock.now() / 1000, UTC)


async def heard_of(running: Any) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in await hear(running):
        found.setdefault(event.type, []).append(event)
    return found


async def test_every_type_has_its_fields_and_no_others(running):
    found = await heard_of(running)
    assert found.keys() == FIELDS.keys() - {"run:dead"}  # told by the next engine, in test_events
    assert FIELDS.keys() == DOMAIN | OPERATIONAL
    for type, events in found.items():
        for event in events:
            assert event.fields.keys() == FIELDS[type], type
            assert all(getattr(event, name) == value for name, value in event.fields.items())
            if type != "worker:error":
                assert (event.job_name, event.labels) == ("work", {"of": "a"}), type
    everything = sorted((event for events in found.values() for event in events), key=lambda event: event.sequence)
    assert [event.sequence for event in everything] == list(range(1, len(everything) + 1))
    assert all(event.timestamp.tzinfo is UTC for event in everything)


async def test_what_the_fields_say(running):
    found = await heard_of(running)
    coalesced = found["run:coalesced"][0]
    assert (coalesced.skipped_input, coalesced.skipped_labels) == ("skipped", {"of": "b"})
    assert found["run:complete"][0].output == date(2026, 1, 31)
    failed = found["run:fail"][0]
    assert (failed.failed_step_name, failed.error.type) == ("second", "StepFailed")
    leased = found["run:leased"][0]
    assert leased.lease_expires_at - leased.timestamp == timedelta(seconds=30)
    assert isinstance(leased.lease_owner, str)
    renewed = found["run:lease-renewed"][0]
    assert renewed.lease_expires_at - renewed.timestamp == timedelta(seconds=30)
    assert [(event.step_name, event.step_index) for event in found["step:complete"]][:2] == [
        ("first", 0),
        ("second", 1),
    ]
    for event in found["step:fail"]:
        assert (event.step_name, event.step_index, event.error.message) == ("second", 1, "no")
        assert isinstance(event.error, ErrorInfo)
        assert event.duration >= 0
    assert [(event.step_name, event.step_index) for event in found["step:cancel"]] == [("second", 1)]
    line, inside = found["log:write"][:2]
    assert (line.step_name, line.level, line.message, line.data) == (None, "warning", "at work", {"how": "well"})
    assert (inside.step_name, inside.level, inside.data) == ("second", "info", {})
    assert found["run:progress"][0].progress == {"current": 1, "total": 4, "message": "a quarter"}
    trouble = found["worker:error"][0]
    assert (trouble.run_id, trouble.error.type, trouble.context) == (None, "StorageError", "testing")


async def test_on_the_wire_names_are_in_camel_case_and_times_in_milliseconds(running):
    for type, events in (await heard_of(running)).items():
        for event in events:
            wire = json.loads(json.dumps(event.to_wire()))
            assert wire.keys() == {camel_case(name) for name in COMMON | FIELDS[type]}
            assert (wire["type"], wire["sequence"], wire["runId"]) == (type, event.sequence, event.run_id)
            assert wire["timestamp"] == event.timestamp.timestamp() * 1000
            assert wire["jobName"] == event.job_name
            if type == "run:leased":
                assert wire["leaseExpiresAt"] == event.lease_expires_at.timestamp() * 1000
            if type == "run:complete":
                assert wire["output"] == "2026-01-31"
            if type == "step:fail":
                assert wire["error"]["message"] == "no"


def camel_case(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(map(str.title, tail))


async def test_a_field_that_a_type_does_not_have_is_no_attribute(running):
    event = (await heard_of(running))["run:cancel"][0]
    with pytest.raises(AttributeError, match="'run:cancel' has no field 'output'"):
        event.output  # noqa: B018
