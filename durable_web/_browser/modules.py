"""Loading the author's job modules: fetch them, install the packages that they declare, import them.

A module declares its packages as inline script metadata (PEP 723)::

    # /// script
    # dependencies = ["attrs", "tabulate @ ./wheels/tabulate-0.9.0-py3-none-any.whl"]
    # ///

A name alone is resolved by micropip, which may mean a request to PyPI; a direct reference, relative to the module,
stays on the site.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import tomllib
import traceback
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urljoin, urlsplit

from .._errors import JobModuleError
from .._jobs import Job

FOLDER = Path("/durable-jobs")

# The pattern is the one that the specification gives, for the type `script`.
_METADATA = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_DIRECT_REFERENCE = re.compile(r"^\s*[A-Za-z0-9._-]+(?:\[[^\]]*\])?\s*@\s*(?P<url>\S+)")


async def load_jobs(urls: list[str]) -> list[Job]:
    """Load the modules at ``urls``, in that order, and return the jobs that they define or import.

    All modules are written to one folder on ``sys.path``, so a module may import those listed before it.

    :raises JobModuleError: when a module cannot be fetched, a package cannot be installed, or the code cannot be
        imported.
    """
    sources = await asyncio.gather(*(_fetch(url) for url in urls))
    FOLDER.mkdir(exist_ok=True)
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    for url, source in zip(urls, sources, strict=True):
        (FOLDER / f"{module_name(url)}.py").write_bytes(source)
    sys.path_importer_cache.pop(str(FOLDER), None)  # far cheaper than importlib.invalidate_caches()
    jobs: list[Job] = []
    for url, source in zip(urls, sources, strict=True):
        await _install(url, source)
        jobs += [item for item in vars(_import(url)).values() if isinstance(item, Job)]
    return jobs


def module_name(url: str) -> str:
    """The name under which the module at ``url`` is imported.

    :raises JobModuleError: when its file name is not one that Python can import, or hides a standard module.
    """
    path = Path(unquote(urlsplit(url).path))
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier():
        raise JobModuleError(url, f"{path.name!r} is not the name of a Python module, such as 'jobs.py'.")
    if name in sys.stdlib_module_names or name == "durable_web":
        raise JobModuleError(url, f"its name hides the module {name!r} that comes with Python; rename the file.")
    return name


def dependencies(url: str, source: str) -> list[str]:
    """The packages that a module declares: package names, or absolute URLs of wheels.

    :raises JobModuleError: when the declaration cannot be read.
    """
    blocks = list(_METADATA.finditer(source.replace("\r\n", "\n")))
    if not blocks:
        return []
    if len(blocks) > 1:
        raise JobModuleError(url, "it has more than one `# /// script` block.")
    lines = blocks[0]["content"].splitlines()
    try:
        metadata = tomllib.loads("\n".join(line[2:] for line in lines))
    except tomllib.TOMLDecodeError as error:
        raise JobModuleError(url, f"its `# /// script` block is not valid TOML: {error}") from None
    return [_resolve(url, item) for item in metadata.get("dependencies", [])]


def _resolve(url: str, requirement: str) -> str:
    direct = _DIRECT_REFERENCE.match(requirement)
    return requirement if direct is None else urljoin(url, direct["url"])


async def _fetch(url: str) -> bytes:
    from durable_worker import fetch  # it has begun while Python started
    from pyodide.ffi import JsException

    try:
        response = await fetch(url)
    except JsException as error:
        raise JobModuleError(url, f"it could not be fetched ({error}).") from error
    if not response.ok:
        raise JobModuleError(url, f"the server answered {response.status} {response.statusText}".rstrip() + ".")
    found: bytes = (await response.arrayBuffer()).to_bytes()
    return found


async def _install(url: str, source: bytes) -> None:
    wanted = dependencies(url, source.decode("utf-8", "replace"))
    if not wanted:
        return
    from pyodide_js import loadPackage

    for requirement in wanted:
        try:
            await loadPackage("micropip", messageCallback=lambda _: None)
            import micropip

            await micropip.install(requirement)
        except Exception as error:
            raise JobModuleError(url, f"its package {requirement!r} could not be installed: {error}") from error


def _import(url: str) -> ModuleType:
    try:
        return importlib.import_module(module_name(url))
    except JobModuleError:
        raise
    except BaseException as error:
        _forget_importlib(error)
        problem = "".join(traceback.format_exception_only(error)).strip()
        raise JobModuleError(url, problem) from error


def _forget_importlib(error: BaseException) -> None:
    """Remove the frames of importlib from a traceback, so that it begins at the author's code."""
    step = error.__traceback__
    while step is not None and not step.tb_frame.f_code.co_filename.startswith(str(FOLDER)):
        step = step.tb_next
    error.__traceback__ = step
