"""What a test needs that drives a real Chromium: dist/ built and served, a profile, and pages of its own.

    def test_a_page_counts(server, browser, write_page):
        url = write_page("<script>document.title = 1 + 1</script>")
        page = browser().open(url)
        assert page.title() == "2"

One Playwright, one dist/ and one server serve a whole session; profiles, browsers and pages are each test's own.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Playwright

from chromium import Chromium, launch, start_playwright
from distribution import build
from progress import SetupError
from static_server import StaticServer

PAGES = "tests/"
"""Where tests' own pages lie, below the served folder: `../../durable-web.js` is the client from there."""

DEADLINE = 600.0
"""Seconds after which a test's browsers are killed: a script that never answers fails its test, and that alone."""


@pytest.fixture(scope="session")
def dist() -> Path:
    """dist/, up to date; where it cannot be built, no more tests are run."""
    try:
        return build()
    except SetupError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tests' own pages, which `server` and every `serve()` lay over dist/ at tests/."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def server(dist: Path, pages: Path) -> Iterator[StaticServer]:
    """dist/ and the tests' own pages on a port of their own; has url, origin and requests."""
    with StaticServer(dist, overlays={PAGES: pages}) as running:
        yield running


@pytest.fixture
def serve(dist: Path, pages: Path) -> Iterator[Callable[..., StaticServer]]:
    """Another server of the same, such as serve(prefix="/app/durable/", headers={...}); stopped after the test."""
    running: list[StaticServer] = []

    def start(**options: object) -> StaticServer:
        running.append(StaticServer(dist, overlays={PAGES: pages}, **options).start())
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture
def write_page(pages: Path, server: StaticServer, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Write a page for this test and return its address: write_page(html, {"jobs.py": source}).

    The files lie side by side in a folder of the test's own. A second call replaces what has the same name. With
    server=other the address is one on another server.
    """
    folder = re.sub(r"\W+", "-", request.node.name).strip("-")

    def write(html: str, files: Mapping[str, str | bytes] | None = None, *, server: StaticServer = server) -> str:
        for name, content in {"index.html": html, **(files or {})}.items():
            path = pages / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return f"{server.url}{PAGES}{folder}/index.html"

    return write


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Playwright, started once: it is what takes longest of all to start."""
    with start_playwright() as running:
        yield running


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """An empty profile folder; whatever Chromium keeps is in it, and is there again when it is launched again."""
    return tmp_path / "profile"


@pytest.fixture
def browser(playwright: Playwright, profile: Path) -> Iterator[Callable[..., Chromium]]:
    """Launch Chromium on this test's profile: browser() or browser(color_scheme="dark").

    It can be launched again once the one before was killed or closed. What still runs after the test is closed.
    """
    launched: list[Chromium] = []

    def start(*, profile: Path = profile, **options: object) -> Chromium:
        launched.append(launch(playwright, profile, **options))
        return launched[-1]

    deadline = threading.Timer(DEADLINE, lambda: [each.kill_processes() for each in launched])
    deadline.daemon = True
    deadline.start()
    yield start
    deadline.cancel()
    for each in launched:
        each.close()


CLIENT_PAGE = """<!doctype html><title>client</title><link rel="icon" href="data:,"><script type="module">
import { connect, DurableError } from "../../durable-web.js";
globalThis.connected = async (jobs, options = {}) => {
  globalThis.durable = await connect("test", { jobs, ...options });
  return durable.status;
};
globalThis.told = async (work) => {
  try { return { result: await work() }; }
  catch (error) { return { code: error.code, message: error.message, traceback: error.traceback, name: error.name }; }
};
globalThis.finished = async (id) => {
  const frames = [];
  for await (const frame of durable.runs.watch(id)) frames.push(frame);
  return { frames, run: await durable.runs.get(id) };
};
document.title = "loaded";
</script>"""


@pytest.fixture
def client_url(write_page: Callable[..., str]) -> Callable[..., str]:
    """Write a page of the JavaScript client for a jobs.py: client_url(source) is its address.

    The page has `connected(["./jobs.py"])`, after which `durable` is the client; `finished(runId)` gives the frames and
    the run; `told(work)` gives {result} or {code, message, traceback}.
    """

    def write(jobs: str, files: Mapping[str, str | bytes] | None = None, **options: object) -> str:
        return write_page(CLIENT_PAGE, {"jobs.py": jobs, **(files or {})}, **options)

    return write


INTERPRETERS = {"mpy": "micropython/micropython.mjs", "py": "pyodide/pyodide.mjs"}

PYTHON_PAGE = """<!doctype html><title>python</title><link rel="icon" href="data:,">
<script type="module" src="../../pyscript.js"></script>
<p id="line"></p><pre id="lines"></pre><progress id="bar"></progress>
<script type="{interpreter}" src="./{interpreter}.py" config="./{interpreter}.json"></script>"""


@pytest.fixture
def python_url(write_page: Callable[..., str]) -> Callable[[str, str, str], str]:
    """Write a PyScript page: python_url("mpy", main, jobs) is the address of one whose MicroPython runs `main`.

    With "py" it is Pyodide. Both have `durable_page`; the pages of a test share their jobs.py, which is the last one.
    """

    def write(interpreter: str, main: str, jobs: str) -> str:
        settings = {
            "interpreter": f"../../vendor/{INTERPRETERS[interpreter]}",
            "files": {"../../durable_page.py": ""},
            "js_modules": {"main": {"../../python-bridge.js": "durable_web_bridge"}},
        }
        files = {
            "jobs.py": jobs,
            f"{interpreter}.html": PYTHON_PAGE.format(interpreter=interpreter),
            f"{interpreter}.json": json.dumps(settings),
            f"{interpreter}.py": main,
        }
        return write_page("", files).replace("index.html", f"{interpreter}.html")

    return write
