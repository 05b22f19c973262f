"""The engine's tests at home in a browser: imported inside Pyodide only."""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import js
import opfs_bridge
import pytest
from pyodide.ffi import run_sync

_numbers = itertools.count()


@contextlib.contextmanager
def storage() -> Iterator[str]:
    """A mounted OPFS folder of a test's own."""
    number = next(_numbers)
    folder = f"/opfs/{number}"
    opened = run_sync(opfs_bridge.open(f"suite-{number}"))
    opfs_bridge.mount(opened, folder)
    yield folder
    opfs_bridge.unmount(folder)
    opened.close()


class _Outcomes:
    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        js.console.info(nodeid)  # the last of these names the test that hangs

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
        if report.failed:
            self.problems[report.nodeid] = report.longreprtext
        if report.skipped:
            self.left_out[report.nodeid] = report.longrepr[2]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problems[report.nodeid] = report.longreprtext


def run_tests() -> str:
    """Run them, and return the outcomes and the problems by test as JSON."""
    found = _Outcomes()
    chosen = json.loads(Path("/suite/chosen.json").read_text(encoding="utf-8"))
    arguments = [*chosen, "--rootdir=/suite", "-c/suite/pyproject.toml", "-q", "-pno:cacheprovider"]
    arguments += ["-ofaulthandler_timeout=0"]  # its watchdog would be a thread
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main(arguments, plugins=[found])
    told = {**vars(found), "code": int(code), "output": said.getvalue()}
    return json.dumps(told)
