"""Watching from a page: every frame once, in bounded memory and in bounded time, whatever the job and the page do."""

import pytest
from main_thread import traced_tasks

JOBS = """
import asyncio
from durable_web import job

@job("talk")
async def talk(ctx, lines):
    for number in range(lines):
        ctx.log.info(f"line {number}")
        if number % 1000 == 999:
            await ctx.step(f"step {number}", lambda: None)

@job("shout")
async def shout(ctx, wanted):
    for number in range(wanted["lines"]):
        ctx.log.warning(str(number) + "!" * wanted["length"])
        await ctx.step(f"step {number}", lambda: None)

@job("second try")
async def second_try(ctx, lines):
    if ctx.attempt == 1:
        for number in range(lines):
            ctx.log.info(f"line {number}")
        raise RuntimeError("not this time")

@job("busy")
async def busy(ctx, _):
    await ctx.step("before", asyncio.sleep, 0.05)
    while True:
        pass
"""

CONNECT = "() => connected(['./jobs.py'])"

COUNT_WHAT_ARRIVES = """() => {
    globalThis.arrived = 0;
    const { get, set } = Object.getOwnPropertyDescriptor(Worker.prototype, "onmessage");
    Object.defineProperty(Worker.prototype, "onmessage", {
        get,
        set(listener) {
            set.call(this, (event) => {
                if (String(event.data).startsWith('{"type":"frames"')) globalThis.arrived += event.data.length;
                listener(event);
            });
        },
    });
}"""

COMPLETED = """async (id) => {
    for await (const { runId, status } of durable.runs.watchAll({ kinds: ["run_status"] }))
        if (runId === id && status === "completed") return;
}"""


@pytest.fixture
def page(browser, client_url):
    return browser().open(client_url(JOBS))


def test_all_runs_are_watched_behind_one_cursor_from_the_beginning_or_from_now_on(page):
    page.evaluate(CONNECT)
    told = page.evaluate("""async () => {
        const { frames } = await finished((await durable.trigger("talk", 2, { labels: { tenant: "a" } })).id);
        const collect = async (watch, count) => {
            const seen = [];
            for await (const frame of watch) if (seen.push(frame) === count) return seen;
        };
        const all = collect(durable.runs.watchAll(), 10);
        const later = collect(durable.runs.watchAll({ from: frames.at(-1).id }), 5);
        const fresh = durable.runs.watchAll({ from: "now" });
        const chosen = collect(durable.runs.watchAll({ jobs: "talk", labels: { tenant: "b" }, kinds: ["log"] }), 2);
        while (!(await durable.watches()).includes(4));
        const second = await finished((await durable.trigger("talk", 2, { labels: { tenant: "b" } })).id);
        return {
            first: frames, second: second.frames, all: await all, later: await later, fresh: await collect(fresh, 5),
            chosen: await chosen, mistake: await told(() => durable.runs.watchAll({ kinds: "logs" }).next()),
            watches: await durable.watches(),
        };
    }""")
    assert told["all"] == told["first"] + told["second"]
    assert told["later"] == told["fresh"] == told["second"]
    assert told["chosen"] == [frame for frame in told["second"] if frame["kind"] == "log"]
    assert told["mistake"]["code"] == "ValueError"
    assert "one of run_status" in told["mistake"]["message"]
    assert told["watches"] == [0]


def test_a_watch_goes_beyond_an_end_that_a_retry_has_undone(page):
    """Also where the frame that told of the end is the last one of a message."""
    page.evaluate(CONNECT)
    statuses = page.evaluate("""async () => {
        const { id } = await durable.trigger("second try", 253);
        const { frames } = await finished(id);
        if (frames.length !== 256) throw new Error(`${frames.length} frames`);
        await durable.runs.retry(id);
        const later = (await finished(id)).frames;
        return later.map(({ kind, status }) => kind === "run_status" && status).filter(Boolean);
    }""")
    assert statuses == ["pending", "running", "failed", "pending", "running", "completed"]


def test_log_lines_are_read_in_pages_and_by_severity(page):
    page.evaluate(CONNECT)
    told = page.evaluate("""async () => {
        const { run } = await finished((await durable.trigger("talk", 5)).id);
        const first = await durable.runs.logs(run.id, { limit: 3 });
        const rest = await durable.runs.logs(run.id, { from: first.at(-1).seq });
        const severe = await durable.runs.logs(run.id, { level: "warning" });
        return { first, rest, severe, gone: await told(() => durable.runs.logs("nobody")) };
    }""")
    assert [line["message"] for line in told["first"] + told["rest"]] == [f"line {number}" for number in range(5)]
    assert [len(told["first"]), len(told["severe"])] == [3, 0]
    assert told["first"][0].keys() >= {"id", "seq", "ts", "runId", "kind", "level", "message", "fields", "step"}
    assert isinstance(told["first"][0]["ts"], int)
    assert told["gone"]["code"] == "RunNotFound"


def test_leaving_a_watch_drops_it_in_the_engine(page):
    page.evaluate(CONNECT)
    assert page.evaluate("""async () => {
        const run = await durable.trigger("shout", { lines: 1, length: 1 });
        for await (const frame of durable.runs.watchAll()) break;
        const [open, left] = [durable.runs.watchAll(), durable.runs.watchAll()];
        await Promise.all([open.next(), left.next()]);
        const before = await durable.watches();
        await left.return();
        return [before, await durable.watches(), (await left.next()).done];
    }""") == [[2], [1], True]


def test_a_page_that_takes_nothing_is_sent_no_more_than_it_has_granted_and_loses_nothing(page):
    page.evaluate(COUNT_WHAT_ARRIVES)
    page.evaluate(CONNECT)
    run = page.evaluate("() => durable.trigger('shout', { lines: 200, length: 30_000 })")
    page.evaluate("(id) => { globalThis.slow = durable.runs.watch(id); }", run["id"])
    page.evaluate(COMPLETED, run["id"])
    assert 500_000 < page.evaluate("() => arrived") < 1_400_000  # a window of 2**20, and the statuses
    told = page.evaluate("""async () => {
        const seqs = [];
        let most = 0;
        for (let batch; (batch = await slow.nextBatch()).length; ) {
            most = Math.max(most, batch.length);
            seqs.push(...batch.map(({ seq }) => seq));
        }
        return { seqs, most };
    }""")
    assert told["seqs"] == list(range(1, 404))
    assert told["most"] <= 256
    assert page.evaluate("() => arrived") > 6_000_000


def test_a_frame_that_is_longer_than_all_credit_arrives(page):
    page.evaluate(CONNECT)
    lengths = page.evaluate("""async () => {
        const { frames } = await finished((await durable.trigger("shout", { lines: 3, length: 3_000_000 })).id);
        return frames.filter(({ kind }) => kind === "log").map(({ message }) => message.length);
    }""")
    assert lengths == [3_000_001] * 3


@pytest.mark.parametrize(("cost", "frames"), [(10, 1), (8, 1), (1, 8), (0.25, 32)], ids=str)
def test_frames_are_handed_out_for_8_ms_and_then_the_page_has_its_turn(page, cost, frames):
    """The page's own work decides how long it takes: it is never made to go on when the time is over."""
    page.evaluate(CONNECT)
    told = page.evaluate(
        """async (cost) => {
        const { run, frames } = await finished((await durable.trigger("talk", 100)).id);
        const { requestAnimationFrame } = globalThis;
        await new Promise(requestAnimationFrame); // what was read before is forgotten by then
        let [now, turns] = [0, [0]];
        performance.now = () => now;
        globalThis.setTimeout = () => 0; // it stands in for animation frames that do not come
        globalThis.requestAnimationFrame = (work) => requestAnimationFrame((moment) => {
            turns.push(0);
            work(moment);
        });
        for await (const frame of durable.runs.watch(run.id)) {
            turns[turns.length - 1] += 1;
            now += cost;
        }
        return { turns, all: frames.length };
    }""",
        cost,
    )
    assert sum(told["turns"]) == told["all"] > 100
    assert max(told["turns"]) == frames


READ_A_FLOOD = """async () => {
    const list = document.createElement("ol");
    list.style = "height: 10em; overflow: auto";
    document.body.replaceChildren(list);
    let seen = 0;
    for await (const { kind, message } of flood) {
        if (kind !== "log") continue;
        seen += 1;
        list.append(Object.assign(document.createElement("li"), { textContent: message }));
        if (list.childElementCount > 100) list.firstChild.remove();
        if (seen % 20 === 0) list.scrollTop = list.scrollHeight;
    }
    return seen;
}"""


def test_a_job_that_logs_in_a_tight_loop_gives_the_page_its_work_in_small_pieces(page):
    """When it begins to read, a whole window waits for it, which handed out at once makes one task of it all."""
    page.evaluate(CONNECT)
    with traced_tasks(page) as tasks:
        run = page.evaluate("() => durable.trigger('talk', 10_000)")
        page.evaluate("(id) => { globalThis.flood = durable.runs.watch(id); }", run["id"])
        page.evaluate(COMPLETED, run["id"])
        assert page.evaluate(READ_A_FLOOD) == 10_000
    assert max(tasks) < sum(tasks) / 6


@pytest.mark.parametrize(
    "unseen",
    [
        """() => {
            Object.defineProperty(document, "hidden", { get: () => true });
            globalThis.requestAnimationFrame = () => 0;
            const { setTimeout } = globalThis;
            globalThis.setTimeout = (work, delay) => setTimeout(work, Math.max(delay, 60_000));
        }""",
        "() => { globalThis.requestAnimationFrame = () => 0; }",
    ],
    ids=["hidden", "out of sight"],
)
def test_a_page_that_is_not_painted_gets_its_frames_all_the_same(page, unseen):
    page.evaluate(unseen)
    page.evaluate(CONNECT)
    seen = page.evaluate("""async () => {
        const { run } = await finished((await durable.trigger("talk", 3000)).id);
        let seen = 0;
        for await (const frame of durable.runs.watch(run.id)) {
            seen += 1;
            if (seen % 500 === 0) for (const start = performance.now(); performance.now() - start < 10; );
        }
        return seen;
    }""")
    assert seen == 3006


def test_a_frame_that_comes_alone_waits_for_no_animation_frame_and_no_timer(page):
    page.evaluate(CONNECT)
    page.evaluate("() => { globalThis.requestAnimationFrame = globalThis.setTimeout = () => 0; }")
    assert page.evaluate("async () => (await finished((await durable.trigger('talk', 1)).id)).frames.length") == 4


def test_what_has_committed_is_on_its_way_before_the_job_goes_on(page):
    """Here the job never lets the worker's event loop turn again."""
    page.evaluate(CONNECT)
    assert (
        page.evaluate("""async () => {
        const { id } = await durable.trigger("busy");
        for await (const { name, status } of durable.runs.watch(id))
            if (name === "before" && status === "completed") return "seen";
    }""")
        == "seen"
    )
