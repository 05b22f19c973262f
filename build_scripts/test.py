"""Set everything up and run the tests: python3 build_scripts/test.py [fast|all|deep] [arguments for pytest].

    fast    style (ruff), types (mypy and pyright), and all tests without a browser
    all     these, the pages in a real Chromium, and the engine's core inside Pyodide; the default
    deep    what takes much longer: all of the engine's tests inside Pyodide, thousands of reloads

A lane runs on as many processes as there are cores, four at most. With other arguments pytest alone is started with
them; what the chosen tests need is then built by their fixtures. Exits with pytest's code.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from chromium import ensure_chromium, start_playwright
from distribution import build
from environment import BUILD, ROOT, run_in_environment
from progress import run, stage

MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that have to be free there: browser profiles and databases."""
MOST_PROCESSES = 4
LANES = {
    "fast": ["--ignore", "tests/browser"],
    "all": [],
    "deep": ["-m", "deep", "-o", "faulthandler_timeout=5400"],
}
"""What each lane gives to pytest."""


def main() -> int:
    """Check and test; returns the exit code."""
    arguments = sys.argv[1:] or ["all"]
    if arguments[0] not in LANES:
        return _pytest(*arguments)
    lane, *others = arguments
    if lane != "fast":
        build()
        _check_chromium()
    with stage("ruff"):
        run([sys.executable, "-m", "ruff", "check", "--quiet"], cwd=ROOT)
        run([sys.executable, "-m", "ruff", "format", "--check", "--quiet"], cwd=ROOT)
    with stage("mypy"):
        run([sys.executable, "-m", "mypy", "--cache-dir", BUILD / "mypy"], cwd=ROOT)
    with stage("pyright"):
        run([sys.executable, "-m", "pyright", "--pythonpath", sys.executable], cwd=ROOT)
    processes = str(min(os.cpu_count() or 1, MOST_PROCESSES))
    return _pytest("-n", processes, "--dist", "loadfile", "--no-loadscope-reorder", *LANES[lane], *others)


def _pytest(*arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=ROOT, env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    """The tests make thousands of durable commits; in memory they take the same way, and do not wait for the disk."""
    is_roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    return {"TMPDIR": str(MEMORY), **os.environ} if is_roomy else dict(os.environ)


def _check_chromium() -> None:
    with stage("Chromium") as progress, start_playwright() as playwright:
        progress.result = str(ensure_chromium(playwright))


if __name__ == "__main__":
    run_in_environment(main)
