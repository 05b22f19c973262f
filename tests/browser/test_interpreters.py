"""Two tabs and two interpreters: a page in MicroPython and one in Pyodide see the same frames in the same order."""

import json

import pytest

JOBS = """
import asyncio
from durable_web import job

@job("story")
async def story(ctx, steps):
    for number in range(steps):
        ctx.log.info(f"line {number} \N{PARTY POPPER}", number=number, share=number / steps, most=2**53 - 1)
        ctx.progress(number + 1, steps, f"at {number}")
        await ctx.set_event("latest", {"number": number})
        await ctx.step(f"step {number}", asyncio.sleep, 0.02)
"""

WATCH = """
import asyncio
import json

from durable_page import connect
from pyscript import window

async def follow(run_id):
    async for frame in durable.runs.watch(run_id):
        window.seen.push(json.dumps(frame.__dict__))

durable = await connect("test", ["./jobs.py"])
async for frame in durable.runs.watch_all(0):
    window.all.push(json.dumps(frame.__dict__))
    if frame.seq == 1:
        asyncio.create_task(follow(frame.run_id))
"""

PREPARE = "globalThis.seen = []; globalThis.all = [];"

CONNECTED = """async () => {
    const { connect } = await import("../../durable-web.js");
    globalThis.durable = await connect("test", { jobs: ["./jobs.py"] });
    return durable.role;
}"""

TRIGGER = "async (steps) => (await durable.trigger('story', steps)).id"

RUNNING = """async (id) => {
    const isThere = (text) => text.includes(id) && text.includes("step 9");
    while (!seen.some(isThere)) await new Promise((resolve) => setTimeout(resolve, 5));
}"""

ENDED = """async (id) => {
    const ends = (text) => text.includes(id) && /"kind": ?"run_status"/.test(text) && text.includes('"completed"');
    while (![seen, all].every((texts) => texts.some(ends))) await new Promise((resolve) => setTimeout(resolve, 20));
    return [seen, all];
}"""


def frames(texts, run_id):
    return [frame for frame in map(json.loads, texts) if frame["run_id"] == run_id]


@pytest.mark.parametrize(("first", "second"), [("mpy", "py"), pytest.param("py", "mpy", marks=pytest.mark.deep)])
def test_two_tabs_in_two_interpreters_see_the_same_sequence_also_when_the_leader_is_killed(
    browser, python_url, first, second
):
    chromium = browser()
    chromium.context.add_init_script(PREPARE)
    urls = {interpreter: python_url(interpreter, WATCH, JOBS) for interpreter in ("mpy", "py")}
    leader = chromium.open(urls[first])
    assert leader.evaluate(CONNECTED) == "leader"
    follower = chromium.open(urls[second])
    assert follower.evaluate(CONNECTED) == "follower"

    told = follower.evaluate(TRIGGER, 3)
    stories = [frames(texts, told) for page in (leader, follower) for texts in page.evaluate(ENDED, told)]
    assert stories[0] == stories[1] == stories[2] == stories[3]
    assert [frame["seq"] for frame in stories[0]] == list(range(1, len(stories[0]) + 1))
    assert {frame["kind"] for frame in stories[0]} == {"run_status", "step_status", "log", "progress", "event"}
    line = next(frame for frame in stories[0] if frame["kind"] == "log")
    assert line["message"] == "line 0 \N{PARTY POPPER}"
    assert line["fields"] == {"number": 0, "share": 0, "most": 2**53 - 1}

    interrupted = leader.evaluate(TRIGGER, 40)
    leader.evaluate(RUNNING, interrupted)
    beginning = frames(leader.evaluate("() => seen"), interrupted)
    chromium.crash(leader)
    by_watch, by_all = (frames(texts, interrupted) for texts in follower.evaluate(ENDED, interrupted))
    newcomer = chromium.open(urls[first])
    assert newcomer.evaluate(CONNECTED) == "follower"
    later = [frames(texts, interrupted) for texts in newcomer.evaluate(ENDED, interrupted)]
    assert by_watch == by_all == later[0] == later[1]
    assert by_watch[: len(beginning)] == beginning
    assert [frame["seq"] for frame in by_watch] == list(range(1, len(by_watch) + 1))
    assert [frame["attempt"] for frame in by_watch if frame["kind"] == "run_status"][-1] == 2
