"""Set everything up and run the tests: python3 build_scripts/test.py [arguments for pytest].

Without arguments this builds dist/, looks for a Chromium, checks the code with ruff and runs every test. With arguments
it only starts pytest with them; what the chosen tests need is then built by their fixtures. Exits with pytest's code.
"""

import subprocess
import sys

from chromium import find_chromium, start_playwright
from distribution import build
from environment import ROOT, run_in_environment
from progress import run, stage


def main() -> int:
    """Check and test; returns the exit code."""
    arguments = sys.argv[1:]
    if not arguments:
        build()
        _check_chromium()
        with stage("ruff"):
            run([sys.executable, "-m", "ruff", "check", "--quiet"], cwd=ROOT)
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


def _check_chromium() -> None:
    with stage("Chromium") as progress, start_playwright() as playwright:
        progress.result = str(find_chromium(playwright))


if __name__ == "__main__":
    run_in_environment(main)
