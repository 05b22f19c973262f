"""Installing what is compared with: npm packages, bundled for a page, and dbos in a virtual environment of its own.

Both land in folders that git ignores, are pinned with all that they need, and are installed again when a pin changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from environment import BUILD
from progress import SetupError, run, stage, write_atomically

HERE = Path(__file__).parent
WEB = HERE / "web"
BUNDLES = BUILD / "benchmarks" / "peers"
DBOS = BUILD / "benchmarks" / "dbos"
REQUIREMENTS = HERE / "requirements.txt"

_NODE_MODULES = WEB / "node_modules"
_SQLITE = _NODE_MODULES / "@sqlite.org" / "sqlite-wasm" / "dist"
_ENTRIES = ("peer.js", "sahpool-worker.js", "sqlocal-worker=node_modules/sqlocal/dist/worker.js")
_OPTIONS = ("--bundle", "--format=esm", "--target=es2022", "--log-level=error")
_COPIED = ("sqlite3.wasm", "sqlite3-opfs-async-proxy.js")


def build_browser_peers() -> Path:
    """Install the npm packages and bundle them; returns the folder of the bundles.

    :raises SetupError: when npm or the bundler fails.
    """
    sources = [WEB / name for name in ("package.json", "package-lock.json", ".npmrc", "peer.js", "sahpool-worker.js")]
    stamp = _digest(sources)
    with stage("browser peers"):
        if not _is_current(BUNDLES, stamp):
            npm = shutil.which("npm")
            if npm is None:
                raise SetupError("There is no npm on this machine's PATH; the peers in the browser come from there.")
            run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"], cwd=WEB)
            shutil.rmtree(BUNDLES, ignore_errors=True)
            BUNDLES.mkdir(parents=True)
            bundler = _NODE_MODULES / "esbuild" / "bin" / "esbuild"
            run(["node", bundler, *_ENTRIES, *_OPTIONS, f"--outdir={BUNDLES}"], cwd=WEB)
            for name in _COPIED:
                shutil.copyfile(_SQLITE / name, BUNDLES / name)
            write_atomically(BUNDLES / "stamp", stamp.encode())
    return BUNDLES


def install_dbos() -> Path:
    """Install dbos; returns the Python of its environment.

    :raises SetupError: when it cannot be installed.
    """
    python = DBOS / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = _digest([REQUIREMENTS]) + sys.version
    with stage("dbos"):
        if not _is_current(DBOS, stamp):
            run([sys._base_executable, "-m", "venv", "--clear", DBOS])
            install = ["-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
            run([python, *install, "-r", REQUIREMENTS])
            write_atomically(DBOS / "stamp", stamp.encode())
    return python


def peer_versions() -> dict[str, str]:
    """The pinned versions of the peers, by name."""
    import json

    packages = json.loads((WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]
    pinned = dict(line.split("==") for line in REQUIREMENTS.read_text(encoding="utf-8").split())
    return {name: packages[name] for name in ("@coji/durably", "sqlocal", "@sqlite.org/sqlite-wasm")} | {
        "dbos": pinned["dbos"]
    }


def node_version() -> str:
    """The version of Node.js."""
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _is_current(folder: Path, stamp: str) -> bool:
    found = folder / "stamp"
    return found.exists() and found.read_text(encoding="utf-8") == stamp
