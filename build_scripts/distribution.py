"""dist/: the folder that an author copies to any static host, built from web/, the npm packages and the wheels.

A build is a plan (every file of dist/ and what it is made from) and its application: a file that differs from its
source is replaced by one rename, and what the plan does not name is removed. Nothing else is remembered from one build
to the next, so a build that was interrupted is simply continued by the next one.
"""

import json
import os
import shutil
from pathlib import Path

from environment import BUILD, ROOT
from licenses import licenses_text
from packages import (
    NODE_MODULES,
    WEB,
    PinnedWheel,
    build_own_wheel,
    download_wheels,
    install_npm_packages,
    project_version,
    sha256,
)
from progress import SetupError, exclusive, stage, write_atomically
from snapshot import PYODIDE_FILES, make_snapshot

DIST = ROOT / "dist"

REQUIRED = (
    "index.html",
    "durable-web.js",
    "client/calls.js",
    "bindings/binding.js",
    "durable-bindings.js",
    "elements/element.js",
    "elements/following.js",
    "elements/parts.js",
    "durable-elements.js",
    "elements/run-view.js",
    "bindings/runs.js",
    "elements/runs-view.js",
    "elements/steps-view.js",
    "elements/styles.js",
    "bindings/text.js",
    "client/connection.js",
    "client/options.js",
    "client/ends.js",
    "worker/engine-worker.js",
    "client/watch.js",
    "worker/memory-snapshot.js",
    "worker/opfs-filesystem.js",
    "worker/opfs-storage.js",
    "worker/pyodide-start.js",
    "pyscript.js",
    "python-bridge.js",
    "durable_page.py",
    "demo/index.html",
    "demo/pyodide.html",
    "demo/main.py",
    "demo/micropython.json",
    "demo/pyodide.json",
    "demo/jobs.py",
    "demo/csv_encodings.py",
    "demo/csv_values.py",
    "demo/csv_records.py",
    "demo/csv_layout.py",
    "demo/csv_import.py",
    "demo/csv_preview.py",
    "demo/orders.html",
    "demo/orders.py",
    "demo/orders_page.py",
    "demo/orders.json",
    "demo/demo.css",
    "demo/data/birdstrikes.csv",
    "demo/data/zipcodes.csv",
    "vendor/pyodide/pyodide.mjs",
    "vendor/pyodide/pyodide.asm.mjs",
    "vendor/pyodide/pyodide.asm.wasm",
    "vendor/pyodide/python_stdlib.zip",
    "vendor/pyodide/pyodide-lock.json",
    "vendor/pyodide/snapshot.bin.gz",
    "vendor/pyscript/core.js",
    "vendor/pyscript/core.css",
    "vendor/micropython/micropython.mjs",
    "vendor/micropython/micropython.wasm",
    "LICENSES.txt",
)
"""Files without which dist/ is of no use; a build that has no source for one of them fails."""

_NOT_SHIPPED = {"docs", "node_modules", "package.json", "package-lock.json", "__pycache__"}
_MICROPYTHON_FILES = ("micropython.mjs", "micropython.wasm")
_SAMPLE_DATA = ("birdstrikes.csv", "zipcodes.csv")

Plan = dict[str, Path | bytes]
"""Every file of dist/, by its path there: a copy of another file, or these bytes."""


def build() -> Path:
    """Bring dist/ up to date, with one line of progress a stage, and return its path.

    :raises SetupError: when something that it needs cannot be had, or a file of `REQUIRED` has no source.
    """
    with exclusive(BUILD / "distribution.lock"):
        install_npm_packages()
        wheels = download_wheels()
        own_wheel = build_own_wheel()
        snapshot = make_snapshot(own_wheel)
        with stage("dist/") as progress:
            files = plan(wheels, own_wheel, snapshot)
            changes = apply(files, DIST)
            if changes:
                progress.result = f"ready, {changes} of {len(files)} files changed"
            _check_complete(files)
    return DIST


def plan(wheels: dict[PinnedWheel, Path], own_wheel: Path, snapshot: Path) -> Plan:
    """What dist/ holds, given the wheels and the snapshot; the rest is found in web/ and its node_modules."""
    return {
        **_own_files(),
        **_pyodide_page(),
        **{f"demo/data/{name}": NODE_MODULES / "vega-datasets" / "data" / name for name in _SAMPLE_DATA},
        **_interpreters(),
        **_pyodide_packages(wheels, own_wheel),
        "vendor/pyodide/snapshot.bin.gz": snapshot,
        "LICENSES.txt": licenses_text(NODE_MODULES, wheels).encode(),
    }


def apply(files: Plan, folder: Path) -> int:
    """Make a folder hold exactly these files, and return how many were written or removed for that."""
    removed = _remove_all_but({folder / name for name in files}, folder)
    return removed + sum(_update(folder / name, source) for name, source in files.items())


def _own_files() -> Plan:
    """web/ as it is, less what only serves its development."""
    files: Plan = {}
    for folder, folders, names in os.walk(WEB):
        folders[:] = [name for name in folders if _is_shipped(name)]
        paths = (Path(folder, name) for name in names if _is_shipped(name))
        files |= {path.relative_to(WEB).as_posix(): path for path in paths}
    return files


def _is_shipped(name: str) -> bool:
    return name not in _NOT_SHIPPED and not name.startswith((".", "jsconfig."))


def _pyodide_page() -> Plan:
    """The demo under the other interpreter: its page with one attribute changed."""
    page = WEB / "demo" / "index.html"
    if not page.exists():
        return {}
    html = page.read_text(encoding="utf-8")
    found = html.count('type="mpy"')
    if found != 1:
        raise SetupError(f'{page.relative_to(ROOT)} must say type="mpy" exactly once, and says it {found} times.')
    return {"demo/pyodide.html": html.replace('type="mpy"', 'type="py"').encode()}


def _interpreters() -> Plan:
    """Pyodide, PyScript without its source maps, and MicroPython."""
    pyscript = NODE_MODULES / "@pyscript" / "core" / "dist"
    micropython = NODE_MODULES / "@micropython" / "micropython-webassembly-pyscript"
    return {
        **{f"vendor/pyodide/{name}": NODE_MODULES / "pyodide" / name for name in PYODIDE_FILES},
        **{f"vendor/pyscript/{path.name}": path for path in sorted(pyscript.iterdir()) if path.suffix != ".map"},
        **{f"vendor/micropython/{name}": micropython / name for name in _MICROPYTHON_FILES},
    }


def _pyodide_packages(wheels: dict[PinnedWheel, Path], own_wheel: Path) -> Plan:
    """The wheels, and a lock file that knows these packages, by paths relative to itself, and no others."""
    original = json.loads((NODE_MODULES / "pyodide" / "pyodide-lock.json").read_text(encoding="utf-8"))
    lock = {
        "info": original["info"],
        "packages": {
            "durable-web": _lock_entry("durable-web", project_version(), own_wheel, ["durable_web"]),
            **{
                pinned.name: _lock_entry(pinned.name, pinned.version, wheel, [pinned.name])
                for pinned, wheel in wheels.items()
            },
        },
    }
    return {
        **{f"vendor/pyodide/{wheel.name}": wheel for wheel in wheels.values()},
        f"vendor/pyodide/{own_wheel.name}": own_wheel,
        "vendor/pyodide/pyodide-lock.json": json.dumps(lock, indent=1).encode(),
    }


def _lock_entry(name: str, version: str, wheel: Path, imports: list[str]) -> dict:
    return {
        "name": name,
        "version": version,
        "file_name": wheel.name,
        "sha256": sha256(wheel),
        "imports": imports,
        "depends": [],
        "install_dir": "site",
        "package_type": "package",
        "unvendored_tests": False,
    }


def _remove_all_but(wanted: set[Path], folder: Path) -> int:
    removed = 0
    for parent, _, names in os.walk(folder, topdown=False):
        for path in (Path(parent, name) for name in names):
            if path not in wanted:
                path.unlink()
                removed += 1
        if not any(Path(parent).iterdir()):
            Path(parent).rmdir()
    return removed


def _update(target: Path, source: Path | bytes) -> bool:
    """Make one file what it should be; returns whether it had to be written."""
    if isinstance(source, bytes):
        if target.exists() and target.read_bytes() == source:
            return False
        write_atomically(target, source)
        return True
    if target.exists() and _size_and_time(target) == _size_and_time(source):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)
    os.utime(partial, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    partial.replace(target)
    return True


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _check_complete(files: Plan) -> None:
    missing = [name for name in REQUIRED if name not in files]
    if missing:
        raise SetupError(f"dist/ is not complete: there is no source for {', '.join(missing)}.")
