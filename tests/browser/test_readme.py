"""The README's examples, word for word, and its promises."""

import re
import subprocess
import sys

import pytest

from environment import ROOT
from static_server import StaticServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^```\w+ ([\w.]+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
TOTAL = sum(number * number for number in range(10))


@pytest.fixture
def site(dist, tmp_path):
    """A site with the README's files, and dist/ beside them as durable-web/."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in EXAMPLES.items():
        (folder / name).write_text(text, encoding="utf-8")
    with StaticServer(folder, overlays={"durable-web/": dist}) as server:
        yield server


def wait_for_log(page, text):
    page.wait_for_function("(text) => document.getElementById('log').textContent.includes(text)", arg=text)


def test_the_embedding_example_runs_and_goes_on_after_a_crash(browser, site):
    chromium = browser()
    page = chromium.open(site.url + "index.html")
    page.click("#start:enabled")
    wait_for_log(page, "3 squared")
    chromium.crash(page)
    page = chromium.open(site.url + "index.html")
    wait_for_log(page, "completed")
    log = page.inner_text("#log").splitlines()
    assert log == [*[f"{number} squared" for number in range(10)], f"completed: {TOTAL}"]
    assert page.evaluate("() => document.getElementById('bar').position") == 1
    assert chromium.requests_outside(site.origin) == []


def test_the_page_in_python_runs(browser, site):
    chromium = browser()
    page = chromium.open(site.url + "python.html")
    wait_for_log(page, "completed")
    assert page.inner_text("#log").splitlines()[-1] == f"completed: {TOTAL}"
    assert chromium.requests_outside(site.origin) == []


def test_the_example_for_a_desk_runs(tmp_path):
    (script,) = re.findall(r"^```python\n(import asyncio\n.*? Engine\n.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "main.py").write_text(script)
    (tmp_path / "jobs.py").write_text(EXAMPLES["jobs.py"])
    told = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert "RunStatus.COMPLETED" in told.stdout.splitlines()[-1]


def test_every_promise_names_a_test_that_is_there():
    promised = re.findall(r"\| `((?:engine|browser)/\w+\.py)::(\w+)` \|", README)
    assert len(promised) >= 10
    missing = [name for path, name in promised if f"def {name}(" not in (ROOT / "tests" / path).read_text("utf-8")]
    assert missing == []
