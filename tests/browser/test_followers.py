"""Every tab is a client: one leads, the others follow, and when the leader goes nothing is lost or told twice."""

import re

import pytest

JOBS = """
import asyncio
from js import BroadcastChannel
from durable_web import job

@job("count")
async def count(ctx, wanted):
    for number in range(wanted):
        ctx.log.info(f"line {number}")
        await ctx.step(f"step {number}", asyncio.sleep, 0.02)
    return ctx.attempt

@job("wait")
async def wait(ctx, _):
    await asyncio.Event().wait()

@job("hog")
async def hog(ctx, _):
    if ctx.attempt == 1:
        BroadcastChannel.new("hog").postMessage("from now on the engine does not answer")
    while ctx.attempt == 1:
        pass  # time.sleep() would let the worker hear its clients

@job("grow")
async def grow(ctx, _):
    for number in range(100):
        await ctx.step(f"step {number}", lambda: "x" * 100_000)
"""

CONNECT = "() => told(() => connected(['./jobs.py']))"
READY = {"result": "ready"}

WATCH = """(id) => {
    globalThis.seen = [];
    globalThis.over = (async () => { for await (const frame of durable.runs.watch(id)) seen.push(frame); })();
}"""

WATCH_ALL = """() => {
    globalThis.all = [];
    void (async () => { for await (const frame of durable.runs.watchAll()) all.push(frame); })();
}"""

ALL_UNTIL = """async (id) => {
    while (all.at(-1)?.id !== id) await new Promise((resolve) => setTimeout(resolve, 20));
    return all;
}"""

ROLE = """async (role) => {
    while (durable.role !== role) await new Promise((resolve) => durable.addEventListener("status", resolve));
    return durable.status;
}"""


@pytest.fixture
def tabs(browser, client_url):
    """``tabs(count)`` opens so many tabs, one after the other, and connects them: the first one leads."""
    chromium = browser()
    url = client_url(JOBS)

    def open_tabs(count):
        pages = [chromium.open(url) for _ in range(count)]
        for page in pages:
            assert page.evaluate(CONNECT) == READY
        return pages

    open_tabs.chromium = chromium
    open_tabs.url = url
    return open_tabs


def close(chromium, page):
    page.close()


def crash(chromium, page):
    chromium.crash(page)


def navigate(chromium, page):
    page.goto("about:blank")


def disconnect(chromium, page):
    page.evaluate("() => durable.close()")


def put_aside(chromium, page):
    """As when a page goes into the back/forward cache."""
    page.evaluate("() => { dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })); }")


def come_back(page):
    page.evaluate("() => { dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })); }")


def test_a_follower_can_do_what_the_leader_can_and_both_see_the_same(tabs):
    leader, follower = tabs(2)
    assert [page.evaluate("() => durable.role") for page in (leader, follower)] == ["leader", "follower"]
    leader.evaluate(WATCH_ALL)
    result = follower.evaluate("async () => finished((await durable.trigger('count', 3)).id)")
    assert result["run"]["output"] == 1
    assert [frame["seq"] for frame in result["frames"]] == list(range(1, len(result["frames"]) + 1))
    assert leader.evaluate(ALL_UNTIL, result["frames"][-1]["id"]) == result["frames"]
    follower.evaluate(WATCH_ALL)
    assert follower.evaluate(ALL_UNTIL, result["frames"][-1]["id"]) == result["frames"]
    assert leader.evaluate("(id) => durable.runs.get(id)", result["run"]["id"]) == result["run"]
    assert follower.evaluate("() => told(() => durable.runs.get('nobody'))")["code"] == "RunNotFound"
    assert len(follower.evaluate("(id) => durable.runs.logs(id)", result["run"]["id"])) == 3


def test_files_are_put_and_got_from_a_follower(tabs):
    leader, follower = tabs(2)
    put = follower.evaluate("() => durable.files.put(new Blob([new Uint8Array(20_000_000).fill(7)]), 'sevens.bin')")
    assert put["size"] == 20_000_000
    assert leader.evaluate("() => durable.files.list()") == [put]
    got = follower.evaluate(
        """async (name) => {
            const bytes = new Uint8Array(await (await durable.files.get(name)).arrayBuffer());
            return [bytes.length, bytes.every((byte) => byte === 7)];
        }""",
        put["name"],
    )
    assert got == [20_000_000, True]
    assert follower.evaluate("() => told(() => durable.files.get('nothing'))")["code"] == "FileNotFoundError"


@pytest.mark.parametrize("go", [close, crash, navigate, disconnect, put_aside])
def test_when_the_leader_goes_a_follower_leads_and_its_watches_go_on_without_a_gap(tabs, go):
    leader, follower = tabs(2)
    run = leader.evaluate("() => durable.trigger('count', 60)")
    follower.evaluate(WATCH, run["id"])
    follower.evaluate(WATCH_ALL)
    follower.evaluate("async () => { while (seen.length < 20) await new Promise((go) => setTimeout(go, 10)); }")
    go(tabs.chromium, leader)
    assert follower.evaluate(ROLE, "leader") == "ready"
    follower.evaluate("() => over")
    seen = follower.evaluate("() => seen")
    assert [frame["seq"] for frame in seen] == list(range(1, len(seen) + 1))
    assert seen == follower.evaluate("async (id) => (await finished(id)).frames", run["id"])
    assert seen == follower.evaluate(ALL_UNTIL, seen[-1]["id"])
    assert [frame["name"] for frame in seen if frame["kind"] == "step_status" and frame["status"] == "completed"] == [
        f"step {number}" for number in range(60)
    ]
    assert follower.evaluate("async (id) => (await durable.runs.get(id)).output", run["id"]) == 2


def test_a_leader_that_was_put_aside_comes_back_as_a_follower_and_goes_on_watching(tabs):
    first, second = tabs(2)
    first.evaluate(WATCH_ALL)
    put_aside(tabs.chromium, first)
    assert first.evaluate("() => [durable.status, durable.role ?? null]") == ["starting", None]
    assert second.evaluate(ROLE, "leader") == "ready"
    frames = second.evaluate("async () => (await finished((await durable.trigger('count', 2)).id)).frames")
    come_back(first)
    assert first.evaluate(ROLE, "follower") == "ready"
    assert first.evaluate(ALL_UNTIL, frames[-1]["id"]) == frames

    put_aside(tabs.chromium, first)  # as a follower
    more = second.evaluate("async () => (await finished((await durable.trigger('count', 2)).id)).frames")
    assert second.evaluate("() => durable.watches()") == [0]
    come_back(first)
    assert first.evaluate(ALL_UNTIL, more[-1]["id"]) == frames + more


def test_a_chain_of_leaders_goes_and_the_last_tab_has_seen_everything_once(tabs):
    pages = tabs(4)
    run = pages[-1].evaluate("() => durable.trigger('count', 100)")
    for page in pages:
        page.evaluate(WATCH, run["id"])
    while len(pages) > 1:
        roles = [page.evaluate("() => durable.role") for page in pages]
        pages.pop(roles.index("leader")).close()
        pages[0].evaluate("async () => { while (durable.status !== 'ready') await new Promise(setTimeout); }")
        for page in pages:
            page.evaluate("() => Promise.race([over, new Promise((go) => setTimeout(go, 300))])")
        while "leader" not in [page.evaluate("() => durable.role") for page in pages]:
            pages[0].evaluate("() => new Promise((resolve) => setTimeout(resolve, 100))")
    pages[0].evaluate("() => over")
    seen = pages[0].evaluate("() => seen")
    assert [frame["seq"] for frame in seen] == list(range(1, len(seen) + 1))
    assert seen[-1]["status"] == "completed"


def test_ten_tabs_see_the_same(tabs):
    pages = tabs(10)
    for page in pages:
        page.evaluate(WATCH_ALL)
    for page in pages[::3]:
        page.evaluate("() => durable.trigger('count', 3)")
    last = pages[5].evaluate("async () => (await finished((await durable.trigger('count', 3)).id)).frames.at(-1).id")
    stories = [page.evaluate(ALL_UNTIL, last) for page in pages]
    assert len(stories[0]) >= 5 * 9
    assert all(story == stories[0] for story in stories)
    assert pages[0].evaluate("() => durable.watches()") == [1] * 10


@pytest.mark.parametrize("go", [close, crash, navigate, disconnect])
def test_the_watches_of_a_follower_that_is_gone_are_dropped(tabs, go):
    leader, follower = tabs(2)
    follower.evaluate(WATCH_ALL)
    follower.evaluate(WATCH, follower.evaluate("async () => (await durable.trigger('wait')).id"))
    follower.evaluate("async () => { while (!seen.length) await new Promise(setTimeout); }")
    assert leader.evaluate("() => durable.watches()") == [0, 2]
    go(tabs.chromium, follower)
    leader.evaluate("async () => { while ((await durable.watches()).length > 1) await new Promise(setTimeout); }")
    assert leader.evaluate("() => durable.watches()") == [0]


def test_calls_without_an_answer_are_made_again_or_fail_by_the_rule_of_their_method(tabs):
    leader, follower = tabs(2)
    follower.evaluate("""async () => {
        const isDeaf = new Promise((resolve) => (new BroadcastChannel("hog").onmessage = resolve));
        globalThis.run = await durable.trigger("hog");
        await isDeaf;
        globalThis.calls = {
            read: told(() => durable.runs.get(run.id)),
            list: told(async () => (await durable.runs.list()).length),
            logs: told(() => durable.runs.logs(run.id)),
            files: told(() => durable.files.list()),
            keyed: told(async () => (await durable.trigger("count", 1, { idempotencyKey: "k" })).job),
            trigger: told(() => durable.trigger("count", 1)),
            cancel: told(() => durable.runs.cancel(run.id)),
            put: told(() => durable.files.put(new Blob(["x"]))),
        };
    }""")
    leader.close()
    told = follower.evaluate("""async () => {
        const entries = Object.entries(calls).map(async ([name, call]) => [name, await call]);
        return Object.fromEntries(await Promise.all(entries));
    }""")
    assert told["read"]["result"]["job"] == "hog"
    assert told["list"]["result"] in (1, 2)
    assert (told["logs"]["result"], told["files"]["result"]) == ([], [])
    assert told["keyed"]["result"] == "count"
    for name in ("trigger", "cancel", "put"):
        assert told[name]["code"] == "EngineStoppedError"
        assert "whether the call took effect is not known" in told[name]["message"]
    assert follower.evaluate("() => durable.role") == "leader"


def test_a_call_that_is_made_while_no_engine_is_ready_waits_for_the_next(tabs):
    leader, follower = tabs(2)
    leader.evaluate("() => durable.close()")
    result = follower.evaluate("async () => (await finished((await durable.trigger('count', 1)).id)).run")
    assert result["status"] == "completed"


@pytest.mark.parametrize(
    "options", ["['./jobs.py', './more.py']", "['./jobs.py'], { durability: 'normal' }"], ids=["jobs", "durability"]
)
def test_a_tab_with_other_options_is_told_so_and_can_connect_when_the_leader_is_gone(tabs, write_page, options):
    (leader,) = tabs(1)
    other = tabs.chromium.open(tabs.url)
    told = other.evaluate(f"() => told(() => connected({options}))")
    assert told["code"] == "OtherOptionsError"
    assert "Give the same in every tab" in told["message"]
    assert leader.evaluate("() => durable.status") == "ready"
    assert other.evaluate(CONNECT) == READY  # with the same it can
    assert other.evaluate("() => durable.role") == "follower"


def test_a_tab_of_another_release_is_told_so(tabs):
    tabs(1)
    other = tabs.chromium.context.new_page()

    def newer(route):
        response = route.fetch()
        route.fulfill(response=response, body=re.sub(r"PROTOCOL = \d+", "PROTOCOL = 0", response.text()))

    other.route("**/client/connection.js", newer)
    other.goto(tabs.url)
    told = other.evaluate(CONNECT)
    assert told["code"] == "OtherReleaseError"
    assert "reload" in told["message"]


def test_a_leader_that_does_not_answer_is_told_of_in_words_and_replaced_when_it_goes(tabs):
    chromium = tabs.chromium
    silent = chromium.open(tabs.url)
    silent.evaluate("""() => new Promise((resolve) => {
        const hold = () => new Promise((release) => { globalThis.release = release; resolve(); });
        void navigator.locks.request("durable-web:test", hold);
    })""")
    page = chromium.open(tabs.url)
    told = page.evaluate("""() => new Promise((resolve) => {
        const details = [];
        const onstatus = (detail) => { details.push(detail); if (details.length === 3) resolve(details); };
        globalThis.connecting = connected(["./jobs.py"], { onstatus });
    })""")
    assert [detail["phase"] for detail in told] == ["storage", "leader", "leader"]
    assert "does not answer" in told[-1]["message"]
    silent.evaluate("() => release()")
    assert page.evaluate("() => connecting") == "ready"
    assert page.evaluate("() => durable.role") == "leader"


def test_a_tab_that_comes_while_the_engine_is_in_trouble_is_told_of_it(tabs, server):
    (leader,) = tabs(1)
    leader.evaluate("() => { durable.addEventListener('engine', ({ detail }) => { globalThis.engine = detail; }); }")
    devtools = tabs.chromium.context.new_cdp_session(leader)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": server.origin, "quotaSize": 1_000_000})
    leader.evaluate("""async () => {
        await told(() => durable.trigger("grow"));
        while (!globalThis.engine) await new Promise(setTimeout);
    }""")
    later = tabs.chromium.open(tabs.url)
    told = later.evaluate("""async () => {
        await connected(["./jobs.py"]);
        return new Promise((resolve) => durable.addEventListener("engine", ({ detail }) => resolve(detail)));
    }""")
    assert told["state"] == "storage_full"
    assert "storage is full" in told["message"]
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": server.origin})
    later.evaluate("""async () => {
        const [run] = await durable.runs.list();
        await finished(run.id);
    }""")


def test_the_role_is_told_with_the_status(tabs):
    leader, follower = tabs(2)
    follower.evaluate("""() => {
        globalThis.details = [];
        durable.addEventListener("status", ({ detail }) => details.push(detail));
    }""")
    leader.close()
    follower.evaluate(ROLE, "leader")
    details = follower.evaluate("() => details")
    assert {detail["status"] for detail in details[:-1]} == {"starting"}
    assert {"storage", "pyodide", "jobs"} <= {detail["phase"] for detail in details[:-1]}
    assert details[-1] == {"status": "ready", "message": "ready", "role": "leader"}
