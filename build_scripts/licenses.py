"""The text of dist/LICENSES.txt: under which terms the parts of a copied dist/ may be passed on.

The texts come from the packages themselves wherever they carry one; CPython's is in licenses/ beside this file, because
the Pyodide package leaves it out.
"""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from environment import ROOT
from packages import PinnedWheel

_RULE = "=" * 80
_SAMPLE_DATA = ("birdstrikes.csv", "zipcodes.csv")
_OWN_LICENSE = ROOT / "LICENSE"
_CPYTHON_LICENSE = Path(__file__).resolve().parent / "licenses" / "CPython.txt"


@dataclass(frozen=True)
class Notice:
    """One part of dist/: what it is, where it lies, the licence's SPDX identifier and its text."""

    part: str
    place: str
    license: str
    text: str

    def __str__(self) -> str:
        return f"{_RULE}\n{self.part}\n{self.place}\nLicense: {self.license}\n{_RULE}\n\n{self.text.strip()}\n"


def licenses_text(node_modules: Path, wheels: dict[PinnedWheel, Path]) -> str:
    """All notices, for a dist/ made from these npm packages and these wheels."""
    notices = [
        _own(),
        *(_from_wheel(pinned, wheel) for pinned, wheel in wheels.items()),
        _pyodide(node_modules / "pyodide"),
        _cpython(),
        _micropython(node_modules / "@micropython" / "micropython-webassembly-pyscript"),
        *_pyscript(node_modules),
        *_sample_data(node_modules / "vega-datasets"),
    ]
    summary = "\n".join(f"  {notice.place:<28} {notice.part}: {notice.license}" for notice in notices)
    return "\n".join([f"What this folder holds, and under which licence:\n\n{summary}\n", *map(str, notices)])


def _own() -> Notice:
    return Notice("durable-web", "everything not listed below", "MIT", _OWN_LICENSE.read_text(encoding="utf-8"))


def _from_wheel(pinned: PinnedWheel, wheel: Path) -> Notice:
    """A package from PyPI, with all the texts of its licence."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if ".dist-info/licenses/" in name)
        text = "\n\n".join(archive.read(name).decode().strip() for name in names)
    return Notice(f"{pinned.name} ({wheel.name})", "vendor/pyodide/", pinned.license, text)


def _pyodide(package: Path) -> Notice:
    text = (
        "The text of the Mozilla Public License 2.0 stands above, at micropip. The source code of this version:\n"
        "https://github.com/pyodide/pyodide\n\n"
        "Its WebAssembly also contains CPython (below), the Emscripten runtime (MIT) with musl (MIT), SQLite\n"
        "(public domain), zlib (Zlib), bzip2 (bzip2-1.0.6), liblzma (0BSD), libffi (MIT) and HACL* (Apache-2.0)."
    )
    return Notice(_name_and_version(package), "vendor/pyodide/", "MPL-2.0", text)


def _cpython() -> Notice:
    text = _CPYTHON_LICENSE.read_text(encoding="utf-8")
    return Notice("CPython and its standard library", "vendor/pyodide/", "PSF-2.0", text)


def _micropython(package: Path) -> Notice:
    terms = _OWN_LICENSE.read_text(encoding="utf-8").partition("Permission is hereby granted")
    text = f"Copyright (c) 2013-2026 Damien P. George\n\n{terms[1]}{terms[2]}"
    return Notice(_name_and_version(package), "vendor/micropython/", "MIT", text)


def _pyscript(node_modules: Path) -> Iterator[Notice]:
    """PyScript, and the packages that its files were bundled from."""
    core = node_modules / "@pyscript" / "core"
    yield _from_package(core)
    for package in sorted(_dependencies(core, node_modules)):
        yield _from_package(package)
    text = "Bundled by PyScript for its editor and terminal, which this project's pages do not load."
    yield Notice("CodeMirror and xterm.js", "vendor/pyscript/", "MIT", text)


def _from_package(package: Path) -> Notice:
    file = next((file for file in sorted(package.glob("LICENSE*"))), None)
    text = file.read_text(encoding="utf-8") if file else "(The package carries no text of its licence.)"
    return Notice(_name_and_version(package), "vendor/pyscript/", _metadata(package)["license"], text)


def _dependencies(package: Path, node_modules: Path) -> set[Path]:
    """All packages that a package needs, directly or through others."""
    found: set[Path] = set()
    waiting = [package]
    while waiting:
        for name in _metadata(waiting.pop()).get("dependencies", {}):
            needed = node_modules / name
            if needed.exists() and needed not in found:
                found.add(needed)
                waiting.append(needed)
    return found


def _sample_data(package: Path) -> Iterator[Notice]:
    """The demo's CSV files, whose terms are their own and not those of the package that they come in."""
    catalogue = json.loads((package / "datapackage.json").read_text(encoding="utf-8"))
    for resource in catalogue["resources"]:
        if resource["path"] in _SAMPLE_DATA:
            titles = " and ".join(license["title"] for license in resource["licenses"])
            links = [license["path"] for license in resource["licenses"]]
            sources = [f"{source['title']}, {source['path']}" for source in resource["sources"]]
            collected = f"Collected and described by {_name_and_version(package)} ({_metadata(package)['license']})."
            description = resource["description"].strip()
            text = "\n".join([description, "", "Sources:", *sources, "", "Terms:", *links, "", collected])
            yield Notice(f"{resource['path']}, unchanged", f"demo/data/{resource['path']}", titles, text)


def _name_and_version(package: Path) -> str:
    metadata = _metadata(package)
    return f"{metadata['name']} {metadata['version']}"


def _metadata(package: Path) -> dict:
    return json.loads((package / "package.json").read_text(encoding="utf-8"))
