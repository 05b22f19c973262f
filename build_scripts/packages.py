"""What dist/ is made from beside web/: the pinned npm packages, wheels from PyPI and the project's own wheel.

Each function brings one of them up to date, says so in one line of progress, and costs a few milliseconds when
nothing has changed.
"""

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from environment import BUILD, ROOT
from progress import SetupError, run, stage, write_atomically

WEB = ROOT / "web"
NODE_MODULES = WEB / "node_modules"


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel from PyPI, and the hash that it must have."""

    name: str
    version: str
    tag: str
    sha256: str
    license: str

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.tag}-none-any.whl"


PINNED_WHEELS = (
    PinnedWheel(
        "micropip", "0.11.1", "py3", "768de165adb8e66906039d8fec4127a57f522dfdf8e6fbff877a4616941ecfd3", "MPL-2.0"
    ),
    PinnedWheel(  # this and the next are only loaded where a page has a schedule with cron, or in a time zone
        "cronsim", "2.8", "py3", "62115cabaa121953ac4bbf2e66808b5229ca6e47372a74e752b42fcdf28324a5", "BSD-3-Clause"
    ),
    PinnedWheel(
        "tzdata", "2026.6", "py2.py3", "0a10eec6e13ef16b627fabed9a5f2ba61a62b1c67f327305f4e7e412a70b4aec", "Apache-2.0"
    ),
)

_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_PYODIDE_PYTHON = "3.14"
_OLDEST_NODE = 20
_NODE_ADVICE = (
    f"Install Node.js {_OLDEST_NODE} or newer with npm, from https://nodejs.org or, on Debian 13 or newer: "
    "apt-get install nodejs npm"
)


def install_npm_packages() -> Path:
    """`npm ci` in web/ if its lock file has changed since the last time; returns the folder of the packages.

    :raises SetupError: without a Node.js that is new enough, or when npm fails.
    """
    stamp_file = NODE_MODULES / ".durable-web-stamp"
    stamp = digest([WEB / "package.json", WEB / "package-lock.json", WEB / ".npmrc"])
    with stage("npm packages"):
        if read_stamp(stamp_file) != stamp:
            npm = _find_npm()
            run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"], cwd=WEB)
            write_atomically(stamp_file, stamp.encode())
    return NODE_MODULES


def download_wheels() -> dict[PinnedWheel, Path]:
    """The pinned wheels, from PyPI once and checked against the hashes above every time.

    :raises SetupError: when one cannot be downloaded or is not the file that was pinned.
    """
    return {pinned: _download(pinned) for pinned in PINNED_WHEELS}


def _download(pinned: PinnedWheel) -> Path:
    wheel = BUILD / pinned.file_name
    with stage(pinned.name):
        if not wheel.exists() or sha256(wheel) != pinned.sha256:
            with scratch_folder() as folder:
                _download_wheel(f"{pinned.name}=={pinned.version}", folder)
                _check_hash(folder / wheel.name, pinned.sha256)
                (folder / wheel.name).replace(wheel)
    return wheel


def build_own_wheel() -> Path:
    """The durable-web wheel, built again only if the package or its metadata have changed.

    :raises SetupError: when the build fails.
    """
    wheels = BUILD / "wheel"
    stamp_file = wheels / "stamp"
    stamp = digest(_wheel_sources())
    wheel = wheels / f"durable_web-{project_version()}-py3-none-any.whl"
    with stage("durable-web wheel"):
        if read_stamp(stamp_file) != stamp or not wheel.exists():
            with scratch_folder() as folder:
                run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT)
                if not (folder / wheel.name).exists():
                    raise SetupError(f"hatchling built {_names(folder)} and not {wheel.name}.")
                shutil.rmtree(wheels, ignore_errors=True)
                wheels.mkdir()
                (folder / wheel.name).replace(wheel)
            write_atomically(stamp_file, stamp.encode())
    return wheel


def project_version() -> str:
    """``durable_web.__version__``, the one place of the version; the wheel gets it from there too."""
    source = (ROOT / "durable_web" / "__init__.py").read_text(encoding="utf-8")
    (version,) = _VERSION.findall(source)
    return version


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_node() -> str:
    """The Node.js on the PATH.

    :raises SetupError: when there is none, or it is too old.
    """
    node = _find("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = version.removeprefix("v").partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST_NODE:
        raise SetupError(f"Node.js is too old: {node} is {version or 'of no known version'}. {_NODE_ADVICE}")
    return node


def _find_npm() -> str:
    find_node()  # npm runs in it
    return _find("npm")


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise SetupError(f"There is no {program} on this machine's PATH. {_NODE_ADVICE}")
    return found


def _download_wheel(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    run([*pip, requirement, "--no-deps", "--only-binary=:all:", "--python-version", _PYODIDE_PYTHON, "-d", folder])


def _check_hash(wheel: Path, expected: str) -> None:
    if not wheel.exists():
        raise SetupError(f"pip downloaded {_names(wheel.parent)} and not {wheel.name}.")
    measured = sha256(wheel)
    if measured != expected:
        raise SetupError(
            f"{wheel.name} is not the file that was pinned: its SHA-256 is {measured}, expected {expected}."
        )


def _wheel_sources() -> Iterator[Path]:
    yield ROOT / "pyproject.toml"
    yield from (path for path in (ROOT / "LICENSE", ROOT / "README.md") if path.exists())
    for path in sorted((ROOT / "durable_web").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def digest(paths: Iterable[Path]) -> str:
    """One SHA-256 of the names and contents of files below ROOT, in hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(ROOT).as_posix()} {sha256(path)}\n".encode())
    return total.hexdigest()


def read_stamp(path: Path) -> str | None:
    """What a file says that tells from what a result was made, if it is there."""
    return path.read_text(encoding="utf-8") if path.exists() else None


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder beside the results, so that what is made in it can be renamed into place; gone afterwards."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="partial-") as folder:
        yield Path(folder)


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
