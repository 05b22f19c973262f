"""What was committed is there again, whatever happens to the tab, the renderer or the browser."""

import pytest
from playwright.sync_api import Page

from chromium import Chromium

JOBS = """
import asyncio
from durable_web import job

def insert(connection, number):
    print(f"inserting {number}")
    connection.execute("CREATE TABLE IF NOT EXISTS item (number)")
    connection.execute("INSERT INTO item VALUES (?)", (number,))

def numbers(connection):
    return [number for number, in connection.execute("SELECT number FROM item ORDER BY rowid")]

def check(connection):
    return connection.execute("PRAGMA integrity_check").fetchone()[0]

@job("import")
async def import_rows(ctx, wanted):
    for number in range(wanted["count"]):
        await ctx.transaction(f"row {number}", insert, number)
        ctx.progress(number + 1, wanted["count"])
        if number == wanted["stop"] and ctx.attempt == 1:
            await asyncio.Event().wait()  # until the tab dies
    return {"rows": await ctx.transaction("rows", numbers), "check": await ctx.transaction("check", check)}

@job("steps")
async def steps(ctx, count):
    for number in range(count):
        await ctx.step(f"step {number}", abs, number)
"""

ROWS = 300
STOP = 75


@pytest.fixture
def url(client_url):
    return client_url(JOBS)


def open_client(chromium: Chromium, url: str) -> Page:
    page = chromium.open(url)
    page.evaluate("() => connected(['./jobs.py'])")
    return page


def start_import(page: Page) -> None:
    """Start the import, and return as soon as the row is committed at which it stops."""
    page.evaluate(
        """async ([count, stop]) => {
            const run = await durable.trigger("import", { count, stop });
            for await (const { kind, status, index } of durable.runs.watch(run.id)) {
                if (kind === "step_status" && status === "completed" && index === stop) return;
            }
        }""",
        [ROWS, STOP],
    )


def finish_import(page: Page) -> dict:
    return page.evaluate("async () => finished((await durable.runs.list())[0].id)")


def reload(chromium: Chromium, page: Page) -> Chromium:
    page.goto("about:blank")
    return chromium


def close_tab(chromium: Chromium, page: Page) -> Chromium:
    chromium.context.new_page()
    page.close()
    return chromium


def crash_renderer(chromium: Chromium, page: Page) -> Chromium:
    chromium.crash(page)
    return chromium


def kill_browser(chromium: Chromium, page: Page) -> None:
    chromium.kill()


@pytest.mark.parametrize("die", [reload, close_tab, crash_renderer, kill_browser])
def test_an_interrupted_import_goes_on_from_its_last_committed_row(browser, url, die):
    chromium = browser()
    page = open_client(chromium, url)
    start_import(page)
    survivor = die(chromium, page) or browser()

    ran_again: list[str] = []
    survivor.context.on("console", lambda message: ran_again.append(message.text))
    result = finish_import(open_client(survivor, url))

    assert result["run"]["status"] == "completed"
    assert result["run"]["attempt"] == 2
    assert result["run"]["output"] == {"rows": list(range(ROWS)), "check": "ok"}
    assert not {f"inserting {number}" for number in range(STOP + 1)} & set(ran_again)
    assert f"inserting {ROWS - 1}" in ran_again
    assert [frame["seq"] for frame in result["frames"]] == list(range(1, len(result["frames"]) + 1))


def test_every_commit_is_flushed_and_with_normal_durability_only_checkpoints_are(browser, url):
    chromium = browser()
    page = chromium.open(url)
    flushes = """async (durability) => {
        await connected(["./jobs.py"], { durability });
        const before = await durable.flushes();
        await finished((await durable.trigger("steps", 200)).id);
        const after = await durable.flushes();
        await durable.close();
        return after["database.sqlite3-wal"] - before["database.sqlite3-wal"];
    }"""
    assert page.evaluate(flushes, "full") >= 200
    assert page.evaluate(flushes, "normal") < 20


def test_when_the_quota_is_exhausted_the_page_is_told_nothing_is_lost_and_the_run_goes_on_with_room(
    browser, client_url, server
):
    url = client_url("""
from durable_web import job

@job("grow")
async def grow(ctx, count):
    for number in range(count):
        await ctx.step(f"step {number}", lambda: "x" * 100_000)
    return "grown"
""")
    chromium = browser()
    page = open_client(chromium, url)
    page.evaluate("""async () => {
        globalThis.states = [];
        durable.addEventListener("engine", (event) => states.push(event.detail));
        globalThis.run = await durable.trigger("grow", 2);
        await finished(run.id);
    }""")
    devtools = chromium.context.new_cdp_session(page)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": server.origin, "quotaSize": 1_000_000})
    page.evaluate("async () => { globalThis.run = await durable.trigger('grow', 100); }")
    page.wait_for_function("() => states.some(({ state }) => state === 'storage_full')")
    assert "storage is full" in page.evaluate("() => states[0].message")
    committed = page.evaluate("async () => (await durable.runs.get(run.id)).completedSteps")
    assert page.evaluate("async () => (await durable.runs.list()).length") == 2

    devtools.send("Storage.overrideQuotaForOrigin", {"origin": server.origin})
    result = page.evaluate("() => finished(run.id)")
    assert result["run"]["output"] == "grown"
    assert 0 < committed < 100
    completed = [frame["name"] for frame in result["frames"] if frame.get("status") == "completed" and "name" in frame]
    assert completed == [f"step {number}" for number in range(100)]
    assert page.evaluate("() => states.at(-1).state") == "running"


def test_a_file_is_durable_once_put_and_survives_the_browser(browser, url):
    chromium = browser()
    page = open_client(chromium, url)
    put = page.evaluate("async () => durable.files.put(new Blob(['a,b\\n1,2\\n']), 'räksmörgås <b>.csv')")
    chromium.kill()
    page = open_client(browser(), url)
    assert page.evaluate("() => durable.files.list()") == [put]
    assert page.evaluate("async (name) => (await durable.files.get(name)).text()", put["name"]) == "a,b\n1,2\n"
    page.evaluate("(name) => durable.files.delete(name)", put["name"])
    assert page.evaluate("() => durable.files.list()") == []


def test_a_file_that_finds_no_room_leaves_nothing_behind(browser, url, server):
    chromium = browser()
    page = open_client(chromium, url)
    devtools = chromium.context.new_cdp_session(page)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": server.origin, "quotaSize": 5_000_000})
    told = page.evaluate("() => told(() => durable.files.put(new Blob([new Uint8Array(20_000_000)]), 'big.bin'))")
    assert told["code"] == "StorageFullError"
    assert page.evaluate("() => durable.files.list()") == []
    assert (
        page.evaluate("async () => (await finished((await durable.trigger('steps', 3)).id)).run.status") == "completed"
    )
