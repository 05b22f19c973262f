"""The README's examples, word for word, and its promises."""

import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from chromium import TIMEOUT_MS
from environment import ROOT
from static_server import StaticServer

expect.set_options(timeout=TIMEOUT_MS)

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


LINES = [f"{number} squared" for number in range(10)]


def test_the_page_of_ten_lines_starts_a_job_shows_it_and_goes_on_after_a_crash(browser, site):
    assert len(EXAMPLES["index.html"].splitlines()) <= 10
    chromium = browser()
    page = chromium.open(site.url + "index.html")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("3 squared")).to_be_visible(timeout=TIMEOUT_MS)
    chromium.crash(page)
    page = chromium.open(site.url + "index.html")
    expect(page.locator("durable-run [part~=status]")).to_have_text("Done")
    expect(page.locator("durable-run [part~=survived]")).to_contain_text("Survived 1 interruption")
    expect(page.locator("durable-log [part~=line] .text")).to_have_text(LINES)
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    page.get_by_text("Result").click()
    expect(page.locator("durable-run [part=output] pre")).to_have_text(str(TOTAL))
    assert chromium.requests_outside(site.origin) == []


@pytest.mark.parametrize("name", ["javascript.html", "python.html"])
def test_the_pages_in_javascript_and_in_python_run_and_go_on_after_a_crash(browser, site, name):
    chromium = browser()
    page = chromium.open(site.url + name)
    page.click("#start:enabled")
    expect(page.locator("#log")).to_contain_text("3 squared")
    chromium.crash(page)
    page = chromium.open(site.url + name)
    expect(page.locator("#state")).to_have_text(f"completed: {TOTAL}")
    expect(page.locator("#log")).to_have_text("\n".join(LINES))
    assert page.evaluate("() => document.getElementById('bar').position") == 1
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


def test_the_example_of_an_order_is_that_of_the_demo():
    (order,) = re.findall(r'^```python\n(@job\("order".*?)^```$', README, re.MULTILINE | re.DOTALL)
    assert order in (ROOT / "web" / "demo" / "orders.py").read_text(encoding="utf-8")


def test_the_example_of_a_test_passes(tmp_path):
    (source,) = re.findall(r"^```python\n(from datetime .*? test_a_.*?)^```$", README, re.MULTILINE | re.DOTALL)
    run = "\nimport asyncio\nasyncio.run(test_a_reminder_comes_after_a_day_whatever_happens())\n"
    (tmp_path / "test_remind.py").write_text(source + run)
    told = subprocess.run(
        [sys.executable, "test_remind.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr


def test_every_promise_names_a_test_that_is_there():
    promised = re.findall(r"`((?:engine|browser)/\w+\.py)::(\w+)`", README)
    assert len(promised) >= 10
    missing = [name for path, name in promised if f"def {name}(" not in (ROOT / "tests" / path).read_text("utf-8")]
    assert missing == []
