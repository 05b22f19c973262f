"""The browser harness itself: what the other tests rely on when they say that a tab crashed or a browser was killed."""

import pytest
from main_thread import traced_tasks

from chromium import ENVIRONMENT_VARIABLE, find_chromium
from progress import SetupError

WORKER = """
onmessage = async ({data}) => {
  const root = await navigator.storage.getDirectory();
  const file = await root.getFileHandle("written", {create: true});
  const handle = await file.createSyncAccessHandle();
  handle.write(new TextEncoder().encode(data), {at: 0});
  handle.flush();
  postMessage("flushed");
};
"""

NO_ICON = '<!doctype html><link rel="icon" href="data:,">'

PAGE = """<!doctype html><script type="module">
const worker = new Worker("worker.js", {type: "module"});
window.write = text => new Promise(resolve => { worker.onmessage = resolve; worker.postMessage(text); });
window.read = async () => {
  const root = await navigator.storage.getDirectory();
  return await (await (await root.getFileHandle("written")).getFile()).text();
};
</script>"""


@pytest.fixture
def url(write_page):
    """A page whose worker writes a file through a sync access handle, as the engine does."""
    return write_page(PAGE, {"worker.js": WORKER})


def test_what_was_flushed_is_there_after_the_renderer_crashed(browser, url):
    chromium = browser()
    page = chromium.open(url)
    page.evaluate("write('before the crash')")
    chromium.crash(page)
    assert chromium.open(url).evaluate("read()") == "before the crash"


def test_what_was_flushed_is_there_after_the_browser_was_killed(browser, url):
    chromium = browser()
    chromium.open(url).evaluate("write('before the kill')")
    chromium.kill()
    assert browser().open(url).evaluate("read()") == "before the kill"


def test_errors_of_a_page_and_of_its_worker_are_collected(browser, write_page):
    chromium = browser()
    worker = 'console.error("said by the worker"); throw new Error("thrown by the worker")'
    html = f'{NO_ICON}<script>console.error("said by the page")</script>'
    page = chromium.open(write_page(html, {"worker.js": worker}))
    with chromium.context.expect_event("weberror"):
        page.evaluate("() => { new Worker('worker.js') }")
    said = [error.partition(" (")[0] for error in chromium.console_errors]
    assert said[:2] == ["said by the page", "said by the worker"]
    assert "thrown by the worker" in chromium.page_errors[0]


def test_requests_outside_the_origin_are_told_apart_also_those_of_a_worker(browser, serve, write_page, server):
    other = serve()
    chromium = browser()
    page = chromium.open(
        write_page(
            f"{NO_ICON}<script>"
            "window.done = new Promise(resolve => new Worker('worker.js').onmessage = resolve)</script>",
            {"worker.js": f'fetch("{other.url}", {{mode: "no-cors"}}).finally(() => postMessage("done"))'},
        )
    )
    page.evaluate("done")
    assert chromium.requests_outside(server.origin) == [other.url]


def test_a_chosen_chromium_that_is_not_there_is_named(monkeypatch, playwright):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "no-such-browser")
    with pytest.raises(SetupError, match="no-such-browser"):
        find_chromium(playwright)


def test_without_any_chromium_the_error_says_what_to_install(monkeypatch, playwright):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr("chromium._system_places", list)
    monkeypatch.setattr(type(playwright.chromium), "executable_path", "nowhere/chrome")
    with pytest.raises(SetupError, match="apt-get install chromium"):
        find_chromium(playwright)


def test_a_task_that_works_is_long_beside_one_that_waits(browser, write_page):
    page = browser().open(write_page(NO_ICON))
    page.on("dialog", lambda dialog: dialog.accept())
    with traced_tasks(page) as waiting:
        page.evaluate("() => { for (const start = performance.now(); performance.now() - start < 200; ) alert(); }")
    with traced_tasks(page) as working:
        page.evaluate("() => { let sum = 0; for (let each = 0; each < 1e9; each += 1) sum += each; return sum; }")
    assert max(waiting) * 3 < max(working)
