"""One suite, two homes: the engine's own tests, run inside Pyodide with their databases on OPFS."""

import io
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError

from environment import ROOT

PAGE = """<!doctype html><link rel="icon" href="data:,"><script type="module">
const worker = new Worker("worker.js", { type: "module" });
worker.onmessage = ({ data }) => { globalThis.told = data; };
worker.postMessage(null);
</script>"""
REASONS = ("Skipped: on CPython only: ", "Skipped: could not import 'pydantic'")
TIMEOUT_MILLISECONDS = {"heart": 1_500_000, "everything": 4_800_000}
HEART = (
    "bodies branches codec map migration order recovery retry run_loop run_sync signals sleep step storage timers "
    "timeline transaction"
)
"""Of which files the tests always run there: what touches SQLite, OPFS, the event loop, or Python 3.14 itself."""
SUITE = Path(__file__).parent / "suite"
PACKAGES = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "hypothesis", "sortedcontainers")
MODULES = ("py", "_hypothesis_globals", "_hypothesis_ftz_detector")


def suite_archive(files: list[str]) -> bytes:
    """The engine's tests, what they are configured by, and pytest and hypothesis as installed here: all pure Python.

    :param files: of which files the tests are to run; all of them if it is empty.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.write(ROOT / "pyproject.toml", "pyproject.toml")
        archive.writestr("chosen.json", json.dumps([f"/suite/tests/engine/{name}" for name in files or [""]]))
        archive.write(SUITE / "opfs_home.py", "opfs_home.py")
        archive.write(ROOT / "tests" / "conftest.py", "tests/conftest.py")
        for folder in ("engine", "support"):
            for path in (ROOT / "tests" / folder).rglob("*"):
                if path.suffix in (".py", ".sql"):
                    archive.write(path, path.relative_to(ROOT).as_posix())
        for name in PACKAGES:
            package = Path(find_spec(name).origin).parent
            for path in package.rglob("*.py"):
                archive.write(path, f"packages/{name}/{path.relative_to(package)}")
        for name in MODULES:
            archive.write(find_spec(name).origin, f"packages/{name}.py")
    return buffer.getvalue()


@pytest.fixture(scope="module", params=["heart", pytest.param("everything", marks=pytest.mark.deep)])
def report(request, playwright, tmp_path_factory, server, pages):
    """What became of every test in there."""
    from chromium import launch

    which = request.param
    tests = ROOT / "tests" / "engine"
    files = [path.relative_to(tests).as_posix() for name in HEART.split() for path in tests.glob(f"*/test_{name}.py")]
    assert len(files) == len(HEART.split()), "a file of HEART is gone"
    folder = pages / f"engine-suite-{which}"
    folder.mkdir()
    (folder / "index.html").write_text(PAGE)
    (folder / "worker.js").write_bytes((SUITE / "worker.js").read_bytes())
    (folder / "suite.zip").write_bytes(suite_archive(files if which == "heart" else []))
    with launch(playwright, tmp_path_factory.mktemp("engine-suite") / "profile") as chromium:
        started: list[str] = []
        chromium.context.on("console", lambda message: started.append(message.text))
        page = chromium.open(f"{server.url}tests/engine-suite-{which}/index.html")
        try:
            told = page.wait_for_function("() => globalThis.told", timeout=TIMEOUT_MILLISECONDS[which]).json_value()
        except TimeoutError:
            pytest.fail(f"The suite hangs; the last that was heard of it: {started[-3:]}")
    assert "error" not in told, told["error"]
    return json.loads(told["report"])


def test_the_engines_tests_pass_inside_pyodide_on_opfs(report):
    problems = report["problems"]
    assert list(problems) == [], "\n".join(f"{name}\n{problem[-1500:]}" for name, problem in problems.items())
    assert report["code"] == 0, report["output"]


def test_only_what_needs_a_desk_is_left_out_there(report):
    passed = [name for name, outcome in report["outcomes"].items() if outcome == "passed"]
    assert len(passed) > 150
    for_other_reasons = {name: why for name, why in report["left_out"].items() if not why.startswith(REASONS)}
    assert for_other_reasons == {}
