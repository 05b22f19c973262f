"""Starting from the memory snapshot: every worker is one of its own, and what does not fit is left aside."""

import gzip
import hashlib
import json
import struct

import pytest

from environment import ROOT
from packages import build_own_wheel, install_npm_packages, project_version, sha256
from snapshot import make_snapshot

SNAPSHOT = "vendor/pyodide/snapshot.bin.gz"

JOBS = """
import asyncio, locale, os, random, secrets, sys, tempfile, time, uuid
from datetime import datetime
from durable_web import Retry, job

def draw(connection):
    return {
        "random.random": random.random(),
        "random.Random": random.Random().random(),
        "os.urandom": os.urandom(8).hex(),
        "secrets": secrets.token_hex(8),
        "uuid1": uuid.uuid1().hex,
        "uuid4": uuid.uuid4().hex,
        "uuid7": uuid.uuid7().hex,
        "tempfile": tempfile.mktemp(),
        "jitter": Retry(jitter=1).delay(1),
        "sqlite": str(connection.execute("SELECT random()").fetchone()[0]),
    }

@job("draw")
async def drawing(ctx, _):
    drawn = await ctx.transaction("draw", draw)
    return {**drawn, "ctx.uuid": str(await ctx.uuid()), "ctx.random": await ctx.random(), "run": ctx.run_id}

def describe():
    moments = [time.localtime(1_800_000_000 + month * 2_600_000) for month in range(12)]
    return {
        "zone": [time.tzname, time.timezone, time.altzone, time.daylight],
        "hours": [[moment.tm_hour, moment.tm_gmtoff, moment.tm_zone] for moment in moments],
        "named": [time.strftime("%Z %z", moment) for moment in moments],
        "datetime": [str(datetime.fromtimestamp(time.mktime(moment)).astimezone()) for moment in moments],
        "environment": dict(os.environ),
        "locale": locale.getlocale(),
        "folder": os.getcwd(),
        "executable": sys.executable,
        "arguments": sys.argv,
        "path": [entry for entry in sys.path if "durable" not in entry],
    }

@job("describe")
async def describing(ctx, _):
    return await ctx.step("describe", describe)

@job("clocks")
async def clocks(ctx, _):
    return await ctx.step("look", passing)

async def passing():
    loop = asyncio.get_running_loop()
    before = loop.time(), time.monotonic(), time.perf_counter(), time.time()
    await asyncio.sleep(0.05)
    after = loop.time(), time.monotonic(), time.perf_counter(), time.time()
    return {"now": after[-1], "passed": [end - start for start, end in zip(before, after)], "loop": after[0] - after[1]}
"""

OPEN = """async (options) => {
    const { connect } = await import("../../durable-web.js");
    const told = [];
    const onstatus = (detail) => told.push(detail);
    globalThis.durable = await connect("test", { jobs: ["./jobs.py"], onstatus, ...options });
    const { start, reason } = told.findLast((detail) => detail.start);
    return { start, reason, told };
}"""

RUN = """async (job) => {
    const { id } = await durable.trigger(job);
    for await (const frame of durable.runs.watch(id));
    const run = await durable.runs.get(id);
    if (run.status !== "completed") throw new Error(JSON.stringify(run.error));
    return run.output;
}"""


def opened(page, **options):
    """Connect, and return what the page was told of the start: start, reason, told."""
    return page.evaluate(OPEN, options)


def test_ten_workers_from_one_snapshot_share_no_random_number_no_id_and_no_jitter(browser, client_url):
    page = browser().open(client_url(JOBS))
    drawn = page.evaluate(f"""() => Promise.all(Array.from({{ length: 10 }}, async (_, number) => {{
        const {{ connect }} = await import("../../durable-web.js");
        const told = [];
        const onstatus = (detail) => told.push(detail);
        const durable = await connect(`a${{number}}`, {{ jobs: ["./jobs.py"], onstatus }});
        const {{ start }} = told.findLast((detail) => detail.start);
        return {{ start, ...(await ({RUN.replace("async (job)", "async (job, durable)")})("draw", durable)) }};
    }}))""")
    assert {worker.pop("start") for worker in drawn} == {"snapshot"}
    assert len(drawn) == 10
    for kind in drawn[0]:
        assert len({worker[kind] for worker in drawn}) == 10, kind


@pytest.mark.parametrize(
    ("zone", "language"),
    [
        ("Australia/Sydney", "de-DE"),
        pytest.param("Asia/Kolkata", "hi-IN", marks=pytest.mark.deep),
        pytest.param("America/New_York", "en-US", marks=pytest.mark.deep),
    ],
)
def test_time_zone_language_and_surroundings_are_those_of_the_browser_as_after_a_plain_start(
    browser, client_url, zone, language
):
    page = browser(timezone_id=zone, locale=language).open(client_url(JOBS))
    described = []
    for snapshot in (True, False):
        assert opened(page, snapshot=snapshot)["start"] == ("snapshot" if snapshot else "plain")
        described.append(page.evaluate(RUN, "describe"))
        page.evaluate("() => durable.close()")
    assert described[0] == described[1]
    assert described[0]["environment"]["LANG"] == f"{language.replace('-', '_')}.UTF-8"
    zones = {hour[1] for hour in described[0]["hours"]}
    assert (
        zones
        == {
            "Asia/Kolkata": {19800},
            "America/New_York": {-18000, -14400},
            "Australia/Sydney": {36000, 39600},
        }[zone]
    )


def test_the_clocks_go_on_from_now_and_not_from_when_the_snapshot_was_made(browser, client_url):
    page = browser().open(client_url(JOBS))
    assert opened(page)["start"] == "snapshot"
    before, told, after = page.evaluate(
        f"async () => [Date.now() / 1000, await ({RUN})('clocks'), Date.now() / 1000]",
    )
    assert before <= told["now"] <= after
    assert all(passed >= 0.045 for passed in told["passed"])
    assert abs(told["loop"]) < 1


def test_what_the_snapshot_does_not_hold_can_be_imported_and_a_traceback_shows_the_engines_lines(browser, client_url):
    page = browser().open(
        client_url("""
from durable_web import job

@job("import")
async def importing(ctx, _):
    import importlib.metadata, statistics, sys, wave
    before = "durable_web.testing" in sys.modules
    from durable_web.testing import MockClock
    return [before, MockClock.__module__, importlib.metadata.version("durable-web"), statistics.mean([1, 3])]

@job("synchronous")
async def synchronous(ctx, _):
    import asyncio
    from pyodide.ffi import run_sync
    return await ctx.step("wait", lambda: run_sync(asyncio.sleep(0.01, "slept")))

@job("fail")
async def fail(ctx, _):
    await ctx.step("divide", lambda: 1 / 0)
""")
    )
    assert opened(page)["start"] == "snapshot"
    assert page.evaluate(RUN, "import") == [False, "durable_web.testing._clock", project_version(), 2]
    assert page.evaluate(RUN, "synchronous") == "slept"
    failed = page.evaluate("async () => (await finished((await durable.trigger('fail')).id)).run.error.traceback")
    assert 'durable_web/_execution/steps.py", line' in failed
    assert "lambda: 1 / 0" in failed


@pytest.fixture(scope="module")
def snapshot(dist):
    """The snapshot, inflated."""
    return gzip.decompress((dist / SNAPSHOT).read_bytes())


def changed(snapshot: bytes, **description: object) -> bytes:
    """The snapshot with a description that says something else, and all sums right."""
    sizes = list(struct.unpack("<4I", snapshot[8:24]))
    text = json.dumps(json.loads(snapshot[64 : 64 + sizes[0]]) | description).encode()
    text += b" " * (-len(text) % 4)
    body = text + snapshot[64 + sizes[0] :]
    return snapshot[:8] + struct.pack("<4I8x", len(text), *sizes[1:]) + hashlib.sha256(body).digest() + body


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


UNFIT = {
    "missing": (None, "the server answered 404"),
    "empty": (lambda whole: b"", "it ends too early"),
    "another file": (lambda whole: b"<!doctype html>" * 100, "it is not a snapshot"),
    "truncated": (lambda whole: gzip.compress(whole, 1)[:-100_000], ""),
    "truncated and inflated by the server": (lambda whole: whole[:-100_000], "it ends too early"),
    "longer": (lambda whole: whole + b"more", "it goes on after its end"),
    "one bit flipped": (lambda whole: flipped(whole, len(whole) // 2), "its bytes are damaged"),
    "one bit flipped in what is compressed": (lambda whole: flipped(gzip.compress(whole, 1), 2_000_000), ""),
    "sizes without sense": (lambda whole: whole[:8] + b"\xff" * 16 + whole[24:], "its sizes make no sense"),
    "another Pyodide": (lambda whole: changed(whole, buildId="0" * 64), "another Pyodide"),
    "another engine": (lambda whole: changed(whole, wheelSha256="0" * 64), "another version of durable-web"),
    "another memory": (lambda whole: changed(whole, tableSize=1_000_000), "lays out the memory in another way"),
}


SOME = ("missing", "one bit flipped", "another engine", "another memory")
"""One of each place where it is noticed; the others start a Pyodide each to show the same."""


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [pytest.param(*how, id=name, marks=() if name in SOME else pytest.mark.deep) for name, how in UNFIT.items()],
)
def test_a_snapshot_that_is_missing_broken_or_made_for_other_files_is_left_aside(
    browser, client_url, snapshot, break_it, reason
):
    page = browser().open(client_url(JOBS))
    if break_it is None:
        page.context.route(f"**/{SNAPSHOT}", lambda route: route.fulfill(status=404))
    else:
        page.context.route(f"**/{SNAPSHOT}", lambda route: route.fulfill(body=break_it(snapshot)))
    told = opened(page)
    assert told["start"] == "plain"
    assert told["reason"].startswith("the snapshot could not be used: ")
    assert reason in told["reason"]
    assert len(page.evaluate(RUN, "draw")["run"]) == 26


def test_a_server_may_declare_the_compression_so_that_the_browser_has_undone_it(browser, client_url, snapshot):
    page = browser().open(client_url(JOBS))
    page.context.route(f"**/{SNAPSHOT}", lambda route: route.fulfill(body=snapshot))
    assert opened(page)["start"] == "snapshot"
    assert len(page.evaluate(RUN, "draw")["run"]) == 26


def test_a_plain_start_can_be_asked_for(browser, client_url):
    page = browser().open(client_url(JOBS))
    told = opened(page, snapshot=False)
    assert (told["start"], told["reason"]) == ("plain", "the options ask for it")


def test_while_python_is_loaded_the_page_is_told_how_many_bytes_have_come(browser, client_url, dist):
    page = browser().open(client_url(JOBS))
    told = [detail for detail in opened(page)["told"] if "loaded" in detail]
    sizes = sum((dist / name).stat().st_size for name in (SNAPSHOT, "vendor/pyodide/pyodide.asm.wasm"))
    assert {detail["phase"] for detail in told} == {"pyodide"}
    assert [detail["loaded"] for detail in told] == sorted(detail["loaded"] for detail in told)
    assert (told[-1]["loaded"], told[-1]["total"]) == (sizes, sizes)


def test_the_snapshot_is_made_for_this_engine_once_and_tells_nothing_of_the_machine(snapshot):
    install_npm_packages()
    wheel = build_own_wheel()
    path = make_snapshot(wheel)
    made = path.stat().st_mtime_ns
    assert make_snapshot(wheel).stat().st_mtime_ns == made
    assert sha256(wheel).encode() in snapshot
    assert str(ROOT).encode() not in snapshot
