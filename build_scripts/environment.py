"""Where a command runs: the repository's own virtual environment, made on first use from the pins in pyproject.toml.

Every command is started with the system's Python and needs nothing else installed:

    from environment import run_in_environment

    def main() -> int:
        from playwright.sync_api import sync_playwright  # packages are there from here on
        ...

    if __name__ == "__main__":
        run_in_environment(main)

The environment is made anew when the pins, the Python version or the place of the repository change. A stamp that is
written last says which of these it was made for, so an interrupted installation is simply done again.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable

if sys.version_info < (3, 11):  # noqa: UP036 - these scripts are what a person starts first, with any Python
    sys.exit(f"durable-web needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}).")

import hashlib
import importlib.util
import tomllib
from pathlib import Path

from progress import SetupError, exclusive, run, stage, write_atomically

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / ".build"
VIRTUAL_ENVIRONMENT = ROOT / ".venv"

_STAMP = VIRTUAL_ENVIRONMENT / "durable-web-stamp"


def run_in_environment(main: Callable[[], int]) -> None:
    """Run `main` inside the virtual environment and exit with what it returns.

    A `SetupError` ends the command with exit code 1 and its message alone; Ctrl-C ends it with 130 and no traceback.
    """
    try:
        enter_environment()
        code = main()
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def enter_environment() -> None:
    """Make the virtual environment if it is not there or not up to date, and go on in its Python.

    Does nothing when that Python is already running this; otherwise starts the command again in it and does not return.

    :raises SetupError: when the environment cannot be made.
    """
    pins = pinned_packages()
    stamp = _stamp_for(pins)
    current = _is_current(stamp)
    if current and Path(sys.prefix).resolve() == VIRTUAL_ENVIRONMENT.resolve():
        return
    if not current:
        with exclusive(BUILD / "environment.lock"), stage("Python packages"):
            if not _is_current(stamp):
                _create(pins, stamp)
    _start_again_in_environment()


def pinned_packages() -> list[str]:
    """The exact requirements that building and testing need, such as "pytest==9.2.0", from pyproject.toml."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [*pyproject["build-system"]["requires"], *pyproject["dependency-groups"]["test"]]


def _stamp_for(pins: Iterable[str]) -> str:
    made_for = [*pins, sys.version, sys.base_prefix, str(ROOT)]
    return hashlib.sha256("\n".join(made_for).encode()).hexdigest()


def _is_current(stamp: str) -> bool:
    return _STAMP.exists() and _STAMP.read_text(encoding="utf-8") == stamp and _environment_python().exists()


def _create(pins: Iterable[str], stamp: str) -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"This Python ({sys.executable}) has no {' and no '.join(missing)} module, so it cannot make a virtual "
            "environment.\nOn Debian and Ubuntu: apt-get install python3-venv"
        )
    if VIRTUAL_ENVIRONMENT.is_symlink():  # it would be emptied where it leads to
        raise SetupError(f"{VIRTUAL_ENVIRONMENT} is a symbolic link, and not up to date. Remove it, and start again.")
    _STAMP.unlink(missing_ok=True)
    run([sys._base_executable, "-m", "venv", "--clear", VIRTUAL_ENVIRONMENT])
    run([_environment_python(), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *pins])
    write_atomically(_STAMP, stamp.encode())


def _environment_python() -> Path:
    if os.name == "nt":
        return VIRTUAL_ENVIRONMENT / "Scripts" / "python.exe"
    return VIRTUAL_ENVIRONMENT / "bin" / "python"


def _start_again_in_environment() -> None:
    python = str(_environment_python())
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # there, execv would return to the shell before the command has ended
        sys.exit(subprocess.run([python, *sys.argv], check=False).returncode)
    os.execv(python, [python, *sys.argv])
