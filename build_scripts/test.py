"""Set everything up and run the tests: python3 build_scripts/test.py [arguments for pytest].

Without arguments this builds dist/, looks for a Chromium, checks the code with ruff and runs every test, those of the
engine inside Pyodide beside the others. With arguments it only starts pytest with them; what the chosen tests need is
then built by their fixtures. Exits with pytest's code.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chromium import find_chromium, start_playwright
from distribution import build
from environment import ROOT, run_in_environment
from progress import run, stage

MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that have to be free there: browser profiles and databases."""
INSIDE_PYODIDE = "tests/browser/test_engine_suite.py"
"""One page that works for minutes, on one core."""
CLEANING_SECONDS = 10


def main() -> int:
    """Check and test; returns the exit code."""
    arguments = sys.argv[1:]
    if arguments:
        return subprocess.run(_pytest(*arguments), cwd=ROOT, env=_environment(), check=False).returncode
    build()
    _check_chromium()
    with stage("ruff"):
        run([sys.executable, "-m", "ruff", "check", "--quiet"], cwd=ROOT)
    # Its own time limit, which tells what was last heard of it, is to come before that of pytest.
    with _beside(_pytest(INSIDE_PYODIDE, "-o", "faulthandler_timeout=3000")) as inside_pyodide:
        others = subprocess.run(_pytest("--ignore", INSIDE_PYODIDE), cwd=ROOT, env=_environment(), check=False)
    codes = {"tests": others.returncode, "tests inside Pyodide": inside_pyodide.returncode}
    print("; ".join(f"{name}: {'passed' if code == 0 else f'failed ({code})'}" for name, code in codes.items()))
    return next(filter(None, codes.values()), 0)


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


@contextlib.contextmanager
def _beside(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the block does something else; what it printed is shown when both are at their end."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        except BaseException:  # Ctrl-C, which reaches the process as well: it may clean up
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(CLEANING_SECONDS)
            process.terminate()
            process.wait()
            raise
        process.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()


def _environment() -> dict[str, str]:
    """The tests make thousands of durable commits; in memory they take the same way, and do not wait for the disk."""
    is_roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    return {"TMPDIR": str(MEMORY), **os.environ} if is_roomy else dict(os.environ)


def _check_chromium() -> None:
    with stage("Chromium") as progress, start_playwright() as playwright:
        progress.result = str(find_chromium(playwright))


if __name__ == "__main__":
    run_in_environment(main)
