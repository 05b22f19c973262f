"""The page's client: triggering and watching, and every kind of trouble told clearly."""

import zipfile

import pytest

ECHO = """
from durable_web import job

@job("echo")
async def echo(ctx, value):
    ctx.log.info("got it", kind=type(value).__name__)
    return await ctx.step("echo", lambda: value)
"""

WAIT = """
import asyncio
from durable_web import job

@job("wait")
async def wait(ctx, _):
    await asyncio.Event().wait()
"""

CONNECT = "() => told(() => connected(['./jobs.py']))"


@pytest.fixture
def connect(browser, client_url):
    """Open a page for the source of a jobs.py, connect, and return the page."""

    def open_page(source, files=None):
        page = browser().open(client_url(source, files))
        assert page.evaluate(CONNECT) == {"result": "ready"}
        return page

    return open_page


def test_a_run_is_triggered_watched_and_read_back(connect):
    page = connect(ECHO)
    value = {"text": "grüße 🎉 <b>", "list": [1, 2.5, None, True], "deep": {"a": {"b": []}}}
    result = page.evaluate("async (value) => finished((await durable.trigger('echo', value)).id)", value)
    assert result["run"]["output"] == value
    assert result["run"]["status"] == "completed"
    assert [frame["kind"] for frame in result["frames"]] == [
        "run_status",
        "run_status",
        "log",
        "step_status",
        "run_status",
    ]
    assert result["frames"][2]["fields"] == {"kind": "dict"}
    assert {frame["runId"] for frame in result["frames"]} == {result["run"]["id"]}

    later = page.evaluate(
        """async ({ id, from }) => {
            const seen = [];
            for await (const frame of durable.runs.watch(id, { from })) seen.push(frame.seq);
            return seen;
        }""",
        {"id": result["run"]["id"], "from": 3},
    )
    assert later == [4, 5]
    listed = page.evaluate("() => durable.runs.list({ status: ['completed'], job: 'echo' })")
    assert [run["id"] for run in listed] == [result["run"]["id"]]
    (step,) = page.evaluate("(id) => durable.runs.steps(id)", result["run"]["id"])
    assert (step["name"], step["status"], step["output"]) == ("echo", "completed", value)


def test_leaving_a_watch_unsubscribes_and_cancelling_ends_one(connect):
    page = connect(WAIT)
    result = page.evaluate("""async () => {
        const run = await durable.trigger("wait");
        for await (const frame of durable.runs.watch(run.id)) break;
        const watching = finished(run.id);
        await durable.runs.cancel(run.id);
        return watching;
    }""")
    assert result["run"]["status"] == "cancelled"
    assert result["frames"][-1]["status"] == "cancelled"


def test_the_page_can_do_with_runs_what_the_engine_can(connect):
    page = connect("""
import asyncio
from durable_web import Retry, job

calls = []

@job("flaky")
async def flaky(ctx, fails):
    def call():
        calls.append(1)
        if len(calls) <= fails:
            raise ConnectionError(f"failure {len(calls)}")
        return len(calls)
    await ctx.set_event("stage", {"name": "calling"})
    return await ctx.step("call", call)
""")
    told = page.evaluate("""async () => {
        const labels = { kind: "import" };
        const options = { labels, idempotencyKey: "once", priority: 2, runAt: Date.now() - 1000 };
        const first = await durable.trigger("flaky", 1, options);
        const again = await durable.trigger("flaky", 5, options);
        const { run: failed } = await finished(first.id);
        await durable.runs.retry(first.id);
        const { run: retried } = await finished(first.id);
        const fork = await durable.runs.fork(first.id, "call");
        const { run: forked } = await finished(fork.id);
        const { run: retriggered } = await finished((await durable.runs.retrigger(first.id)).id);
        await durable.runs.delete(fork.id);
        return {
            first, again, failed, retried, forked, retriggered,
            found: (await durable.runs.list({ labels, search: "FLAKY", order: "oldest" })).map(({ id }) => id),
            counts: await durable.runs.count(),
            stage: await durable.runs.value(first.id, "stage"),
            conflict: await told(() => durable.runs.retry(first.id)),
        };
    }""")
    assert (told["first"]["disposition"], told["again"]["disposition"]) == ("created", "idempotent")
    assert told["again"]["id"] == told["first"]["id"]
    assert (told["failed"]["status"], told["failed"]["failedStep"]) == ("failed", "call")
    assert (told["retried"]["status"], told["retried"]["output"]) == ("completed", 2)
    assert (told["forked"]["output"], told["retriggered"]["output"]) == (3, 4)
    assert told["found"] == [told["first"]["id"], told["retriggered"]["id"]]
    assert told["counts"] == {"completed": 2}
    assert told["stage"] == {"name": "calling"}
    assert told["conflict"]["code"] == "RunNotTerminal"


def test_a_call_is_answered_while_a_job_makes_quick_steps_without_end(connect):
    page = connect("""
from durable_web import job

@job("endless")
async def endless(ctx, _):
    number = 0
    while True:
        number += 1
        await ctx.step(f"step {number}", int)
""")
    assert (
        page.evaluate("""async () => {
        const run = await durable.trigger("endless");
        for await (const { kind } of durable.runs.watch(run.id)) if (kind === "step_status") break;
        await durable.runs.cancel(run.id);
        return (await durable.runs.get(run.id)).status;
    }""")
        == "cancelled"
    )


def test_mistakes_in_calls_are_told_by_code_and_in_words(connect):
    page = connect(ECHO)

    def told(call):
        return page.evaluate(f"() => told(() => {call})")

    unknown = told("durable.trigger('ecco')")
    assert unknown["code"] == "JobNotFound"
    assert "registered: echo" in unknown["message"]
    assert told("durable.runs.get('nobody')")["code"] == "RunNotFound"
    assert told("durable.runs.watch('nobody').next()")["code"] == "RunNotFound"
    assert told("durable.runs.list({ status: 'finished' })")["code"] == "ValueError"
    for value, place in (
        ("{ a: [1, NaN] }", "input.a[1]"),
        ("{ when: new Date() }", "input.when"),
        ("() => 1", "input"),
        ("{ big: 1n }", "input.big"),
        ("{ a: undefined }", "input.a"),
    ):
        refused = told(f"durable.trigger('echo', {value})")
        assert refused["code"] == "SerializationError"
        assert refused["message"].startswith(place + " is ")
    circular = told("{ const loop = {}; loop.self = [loop]; return durable.trigger('echo', loop); }")
    assert circular["code"] == "SerializationError"
    assert page.evaluate("async () => (await durable.runs.list()).length") == 0


def test_a_failing_job_shows_its_error_with_traceback(connect):
    page = connect("""
from durable_web import job

def divide(a, b):
    return a / b

@job("divide")
async def division(ctx, numbers):
    return await ctx.step("divide", divide, *numbers)
""")
    result = page.evaluate("async () => finished((await durable.trigger('divide', [1, 0])).id)")
    assert result["run"]["status"] == "failed"
    assert "division by zero" in result["run"]["error"]["message"]
    assert "in divide" in result["run"]["error"]["traceback"]
    assert "division by zero" in result["frames"][-1]["error"]["message"]


@pytest.mark.parametrize(
    ("source", "expected", "in_traceback"),
    [
        ("def broken(:\n    pass\n", "SyntaxError: invalid syntax", "def broken(:"),
        ("import json\njson.loads('{')\n", "JSONDecodeError", "json.loads('{')"),
        ("import no_such_module\n", "No module named 'no_such_module'", "import no_such_module"),
        ("raise SystemExit('bye')\n", "SystemExit: bye", "raise SystemExit"),
        (
            '# /// script\n# dependencies = ["gone @ ./gone-1.0-py3-none-any.whl"]\n# ///\n',
            "could not be installed",
            "",
        ),
        ("# /// script\n# dependencies = [\n# ///\n", "not valid TOML", ""),
        (
            "from durable_web import job\n@job('a')\nasync def a(ctx, _): ...\n@job('a')\nasync def b(ctx, _): ...\n",
            "Two different jobs are named 'a'",
            "",
        ),
    ],
    ids=["syntax", "exception", "import", "exit", "package", "metadata", "duplicate"],
)
def test_a_job_module_that_cannot_be_loaded_reaches_the_page_with_its_traceback(
    browser, client_url, source, expected, in_traceback
):
    page = browser().open(client_url(source))
    told = page.evaluate(CONNECT)
    assert told["name"] == "DurableError"
    assert expected in told["message"]
    assert in_traceback in told["traceback"]
    assert "importlib" not in told["traceback"]


def test_a_job_module_that_is_missing_is_told_and_a_mended_one_loads_without_a_reload(browser, client_url, server):
    url = client_url(ECHO)
    page = browser().open(url)
    missing = page.evaluate("() => told(() => connected(['./jobs.py', './gone.py']))")
    assert missing["code"] == "JobModuleError"
    assert "gone.py could not be loaded: the server answered 404" in missing["message"]
    assert page.evaluate(CONNECT) == {"result": "ready"}


def test_a_module_brings_its_packages_and_its_sibling_modules(browser, client_url, wheel):
    source = f"""
# /// script
# dependencies = ["greetings @ ./{wheel.name}"]
# ///
from durable_web import job
from greetings import greet
from names import NAME

@job("greet")
async def greet_job(ctx, _):
    return await ctx.step("greet", greet, NAME)
"""
    page = browser().open(client_url(source, {"names.py": "NAME = 'Ada'", wheel.name: wheel.read_bytes()}))
    assert page.evaluate("() => connected(['./names.py', './jobs.py'])") == "ready"
    assert (
        page.evaluate("async () => (await finished((await durable.trigger('greet')).id)).run.output") == "Hello, Ada!"
    )


@pytest.fixture
def wheel(tmp_path):
    """The smallest package that micropip installs."""
    path = tmp_path / "greetings-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("greetings.py", "def greet(name):\n    return f'Hello, {name}!'\n")
        archive.writestr("greetings-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: greetings\nVersion: 1.0\n")
        archive.writestr(
            "greetings-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("greetings-1.0.dist-info/RECORD", "")
    return path


def test_another_tab_that_holds_the_database_without_the_lock_gives_a_clear_error(browser, client_url):
    chromium = browser()
    url = client_url(WAIT)
    rogue = chromium.open(url)
    rogue.evaluate("""() => new Promise((resolve) => {
        const source = `
            const create = { create: true };
            const root = await navigator.storage.getDirectory();
            const all = await root.getDirectoryHandle("durable-web", create);
            const own = await all.getDirectoryHandle("test", create);
            const file = await own.getFileHandle("database.sqlite3", create);
            globalThis.handle = await file.createSyncAccessHandle();
            postMessage("held");`;
        const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
        globalThis.worker = new Worker(address, { type: "module" });
        worker.onmessage = resolve;
    })""")
    page = chromium.open(url)
    told = page.evaluate(CONNECT)
    assert told["code"] == "DatabaseInUseError"
    assert "Close the other tabs" in told["message"]
    rogue.evaluate("() => worker.terminate()")
    assert page.evaluate(CONNECT) == {"result": "ready"}


def test_without_web_locks_as_on_an_insecure_page_the_error_says_so(browser, client_url, server):
    chromium = browser(args=["--host-resolver-rules=MAP durable.test 127.0.0.1"])
    page = chromium.open(client_url(ECHO).replace("127.0.0.1", "durable.test"))
    told = page.evaluate(CONNECT)
    assert told["code"] == "LocksUnavailableError"
    assert "https://" in told["message"]


@pytest.mark.parametrize(
    "missing",
    [
        "delete FileSystemFileHandle.prototype.createSyncAccessHandle;",
        "navigator.storage.getDirectory = async () => { throw new DOMException('no', 'SecurityError'); };",
    ],
    ids=["no sync access", "refused"],
)
def test_without_a_private_file_system_as_in_some_private_windows_the_error_says_so(browser, client_url, missing):
    page = browser().open(client_url(ECHO))

    def without(route):
        response = route.fetch()
        route.fulfill(response=response, body=missing + response.text())

    page.context.route("**/worker/opfs-filesystem.js", without)
    told = page.evaluate(CONNECT)
    assert told["code"] == "StorageUnavailableError"
    assert "private" in told["message"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65, "ä"])
def test_a_database_name_that_is_no_plain_name_is_refused(browser, client_url, name):
    page = browser().open(client_url(ECHO))
    told = page.evaluate(
        """async (name) => {
            const { connect } = await import("../../durable-web.js");
            return told(() => connect(name, { jobs: ["./jobs.py"] }));
        }""",
        name,
    )
    assert told["code"] == "InvalidNameError"


POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self' data:"
)


def test_everything_works_under_a_sub_path_with_a_strict_policy_and_nothing_from_outside(browser, client_url, serve):
    """'unsafe-inline' is for this test's own page; the demo page's test does without."""
    server = serve(prefix="/app/durable/", headers={"Content-Security-Policy": POLICY})
    chromium = browser()
    page = chromium.open(client_url(ECHO, server=server))
    assert page.evaluate(CONNECT) == {"result": "ready"}
    assert page.evaluate("async () => (await finished((await durable.trigger('echo', 5)).id)).run.output") == 5
    assert "/app/durable/" in page.url
    assert chromium.requests_outside(server.origin) == []
    assert [request for request in chromium.requests if "/app/durable/" not in request] == []
    assert chromium.console_errors == []
    assert not page.evaluate("() => crossOriginIsolated")
