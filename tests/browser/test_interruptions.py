"""Reloads during a long step do a run no harm; a step that kills the engine again and again is dead, and it alone."""

import faulthandler

import pytest
from playwright.sync_api import Page

from chromium import Chromium, launch

JOBS = """
import asyncio, os
from durable_web import job

@job("long")
async def long(ctx, _):
    await ctx.step("wait", asyncio.sleep, 86400)

def block(attempt):
    while attempt == 1:
        pass

@job("block")
async def block_engine(ctx, _):
    await ctx.step("block", block, ctx.attempt)

@job("abort")
async def abort(ctx, _):
    await ctx.step("abort", os.abort)

@job("count")
async def count(ctx, to):
    for number in range(to):
        await ctx.step(f"step {number}", asyncio.sleep, 0.1)
    return to
"""

NO_LOCAL_STORAGE = """
Object.defineProperty(globalThis, "localStorage", { get() { throw new DOMException("blocked", "SecurityError"); } });
"""


@pytest.fixture
def url(client_url):
    return client_url(JOBS)


def connect(page: Page, options: str = "{}") -> None:
    assert page.evaluate(f"() => connected(['./jobs.py'], {options})") == "ready"


def trigger(page: Page, job: str, input: object = None, **options: object) -> str:
    asked = "async ([job, input, options]) => (await durable.trigger(job, input, options)).id"
    return page.evaluate(asked, [job, input, options])


def until_step(page: Page, run_id: str, attempt: int) -> None:
    """Wait until a run's step has begun in this attempt."""
    page.evaluate(
        """async ([id, attempt]) => {
            for await (const { kind, status } of durable.runs.watch(id)) {
                if (kind !== "step_status" || status !== "running") continue;
                if ((await durable.runs.get(id)).attempt === attempt) return;
            }
        }""",
        [run_id, attempt],
    )


def run_of(page: Page, run_id: str) -> dict:
    return page.evaluate("id => durable.runs.get(id)", run_id)


def warnings(page: Page, run_id: str) -> list[str]:
    return page.evaluate("async id => (await durable.runs.logs(id, { level: 'warning' })).map(l => l.message)", run_id)


def reload_often(chromium: Chromium, url: str, times: int) -> None:
    """Reload a page again and again in the middle of one step, and see that its run is not the worse for it."""
    page = chromium.open(url)
    connect(page, "{ maxRecoveries: 0 }")
    run_id = trigger(page, "long")
    for attempt in range(1, times + 1):
        until_step(page, run_id, attempt)
        page.reload()
        connect(page, "{ maxRecoveries: 0 }")
    run = run_of(page, run_id)
    assert (run["status"], run["recoveries"]) == ("running", 0)
    assert run["attempt"] == times + 1
    assert warnings(page, run_id) == []


def test_30_reloads_during_one_long_step_leave_the_run_as_it_was(browser, url):
    reload_often(browser(), url, 30)


@pytest.mark.deep
def test_1000_reloads_during_one_long_step_leave_the_run_as_it_was(playwright, profile, url):
    faulthandler.cancel_dump_traceback_later()  # it takes longer than any other test may
    with launch(playwright, profile) as chromium:
        reload_often(chromium, url, 1000)


def test_a_step_that_crashes_python_is_dead_in_the_end_and_the_run_beside_it_completes(browser, url):
    page = browser().open(url)
    connect(page, "{ maxRecoveries: 1 }")
    beside = trigger(page, "count", 100)
    poison = trigger(page, "abort", priority=1)
    page.wait_for_function("() => durable.status === 'failed'")
    page.reload()
    crashed = page.evaluate("() => told(() => connected(['./jobs.py'], { maxRecoveries: 1 }))")
    assert crashed["code"] == "WorkerError"
    assert "Python crashed" in crashed["message"]
    page.reload()
    connect(page, "{ maxRecoveries: 1 }")
    run = run_of(page, poison)
    assert (run["status"], run["attempt"]) == ("dead", 2)
    assert "died 2 times" in run["error"]["message"]
    assert "'abort'" in run["error"]["message"]
    run = page.evaluate("async id => (await finished(id)).run", beside)
    assert (run["status"], run["recoveries"]) == ("completed", 0)


def test_a_renderer_that_dies_soon_after_a_step_began_counts_against_its_run(browser, url):
    chromium = browser()
    for attempt in (1, 2):
        page = chromium.open(url)
        connect(page, "{ maxRecoveries: 1 }")
        run_id = trigger(page, "long", idempotencyKey="one")
        until_step(page, run_id, attempt)
        assert run_of(page, run_id)["recoveries"] == attempt - 1
        chromium.crash(page)
    page = chromium.open(url)
    connect(page, "{ maxRecoveries: 1 }")
    assert run_of(page, run_id)["status"] == "dead"


def test_a_tab_that_takes_over_from_one_that_was_left_counts_nothing(browser, url):
    chromium = browser()
    leader, follower = chromium.open(url), chromium.open(url)
    connect(leader, "{ maxRecoveries: 0 }")
    connect(follower, "{ maxRecoveries: 0 }")
    run_id = trigger(follower, "long")
    until_step(follower, run_id, 1)
    leader.goto("about:blank")
    follower.wait_for_function("() => durable.role === 'leader'")
    until_step(follower, run_id, 2)
    assert run_of(follower, run_id)["recoveries"] == 0


def test_a_client_that_is_closed_during_a_synchronous_step_counts_nothing(browser, url):
    page = browser().open(url)
    connect(page)
    run_id = trigger(page, "block")
    page.evaluate("() => durable.close()")  # which waits a few seconds for the worker, and ends it then
    connect(page)
    run = page.evaluate("async id => (await finished(id)).run", run_id)
    assert (run["status"], run["attempt"]) == ("completed", 2)
    assert warnings(page, run_id) == []


def test_a_page_that_comes_back_from_the_back_forward_cache_counts_nothing(browser, url):
    page = browser().open(url)
    connect(page)
    run_id = trigger(page, "long")
    until_step(page, run_id, 1)
    for event in ("pagehide", "pageshow"):
        page.evaluate("type => dispatchEvent(new PageTransitionEvent(type, { persisted: true }))", event)
    until_step(page, run_id, 2)
    assert run_of(page, run_id)["recoveries"] == 0


def test_where_local_storage_is_blocked_nothing_is_noted_and_everything_else_works(browser, url):
    chromium = browser()
    chromium.context.add_init_script(NO_LOCAL_STORAGE)
    page = chromium.open(url)
    connect(page)
    run_id = trigger(page, "long")
    until_step(page, run_id, 1)
    page.reload()
    connect(page)
    until_step(page, run_id, 2)
    assert run_of(page, run_id)["recoveries"] == 1
    assert chromium.page_errors == []


@pytest.mark.parametrize("wrong", ["-1", "1.5", "'many'", "null"])
def test_a_number_of_recoveries_that_is_none_is_refused(browser, url, wrong):
    page = browser().open(url)
    refused = page.evaluate(f"() => told(() => connected(['./jobs.py'], {{ maxRecoveries: {wrong} }}))")
    assert refused["code"] == "InvalidOptionError"
    assert "maxRecoveries" in refused["message"]
