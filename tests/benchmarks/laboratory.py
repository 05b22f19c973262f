"""The Chromium in which the engine, the references and the peer are measured, and their pages.

    with laboratory(playwright, dist, bundles) as lab:
        page = lab.engine("bench")
        milliseconds = page.evaluate("() => engine.steps(500)")

The engine's pages come from a plain static server. The peer's come from one that sends the headers for cross-origin
isolation, which SQLocal needs; being of another origin, it has a storage of its own.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chromium import Chromium, launch
from environment import BUILD
from static_server import StaticServer

from .peers import WEB

if TYPE_CHECKING:
    from playwright.sync_api import Page, Playwright

ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
DEADLINE = 600.0
"""Seconds after which a measurement's Chromium is killed: a script that never answers fails its measurement alone."""

_CALL = "([name, url, method, params]) => workbench.call(name, url, method, params)"


class Laboratory:
    """Pages by what they are for; each is opened when it is first asked for."""

    def __init__(self, chromium: Chromium, plain: StaticServer, isolated: StaticServer) -> None:
        self.chromium = chromium
        self._plain = plain
        self._isolated = isolated
        self._pages: dict[str, Page] = {}

    def address(self, page: str) -> str:
        """The address of a page that is not isolated, such as ``engine.html?start=x``."""
        return f"{self._plain.url}bench/{page}"

    def engine(self, name: str, **options: Any) -> Page:
        """A page that is connected to the database ``name``, with these options of ``connect()``."""
        key = f"engine {name}"
        if key not in self._pages:
            page = self._pages[key] = self.open(self.address("engine.html"))
            page.evaluate("([name, options]) => engine.open(name, options)", [name, options])
        return self._pages[key]

    def close_engine(self, name: str) -> None:
        """Stop the engine of a database and close its page."""
        page = self._pages.pop(f"engine {name}")
        page.evaluate("() => engine.close()")
        page.close()

    def workbench(self) -> Page:
        """The page of the references."""
        if "workbench" not in self._pages:
            self._pages["workbench"] = self.open(self.address("workbench.html"))
        return self._pages["workbench"]

    def pyodide(self, name: str) -> Callable[..., Any]:
        """Calls functions of workbench.py, in a Pyodide over the storage ``name``."""
        return self._worker(f"pyodide {name}", "./pyodide-worker.js", {"name": name})

    def official_sqlite(self, synchronous: str) -> Callable[..., Any]:
        """Calls the official SQLite build on opfs-sahpool."""
        values = {"name": synchronous.lower(), "synchronous": synchronous}
        return self._worker(f"sahpool {synchronous}", "../peers/sahpool-worker.js", values)

    def end_pyodide(self, name: str) -> None:
        """Release the storage, and end the worker."""
        self.pyodide(name)("close")
        self.workbench().evaluate("(name) => workbench.end(name)", f"pyodide {name}")
        del self._pages[f"pyodide {name}"]

    def peer(self, name: str, *, poll: int = 50, at_once: int = 1, tuned: bool = False, lease: int = 30_000) -> Page:
        """The peer's page, started anew on the database ``name``.

        :param poll: its polling interval, in milliseconds.
        :param at_once: how many runs it executes at a time.
        :param tuned: whether its database has a write-ahead log and is locked once and for all.
        :param lease: milliseconds after which what a dead page has left is taken over.
        """
        if "peer" not in self._pages:
            self._pages["peer"] = self.open(f"{self._isolated.url}bench/peer.html")
        else:
            self._pages["peer"].reload()
        page = self._pages["peer"]
        _wait_until_loaded(page)
        options = {
            "pollingIntervalMs": poll,
            "maxConcurrentRuns": at_once,
            "leaseMs": lease,
            "leaseRenewIntervalMs": lease // 4,
        }
        page.evaluate("([name, options, tuned]) => peer.open(name, options, tuned)", [name, options, tuned])
        return page

    def rest_peer(self) -> None:
        """Leave the peer's page, which would go on polling while others have their turn."""
        if "peer" in self._pages:
            self._pages["peer"].evaluate("() => peer.close()")

    def open(self, url: str) -> Page:
        """Open one of the pages here, and wait until its functions are there."""
        page = self.chromium.open(url)
        _wait_until_loaded(page)
        return page

    def _worker(self, name: str, url: str, values: dict[str, Any]) -> Callable[..., Any]:
        page = self.workbench()

        def call(method: str, **parameters: Any) -> Any:
            return page.evaluate(_CALL, [name, url, method, parameters])

        if name not in self._pages:
            call("open", **values)
            self._pages[name] = page
        return call


def _wait_until_loaded(page: Page) -> None:
    page.wait_for_function("() => document.title === 'loaded'")


@contextlib.contextmanager
def servers(dist: Path, bundles: Path) -> Iterator[tuple[StaticServer, StaticServer]]:
    """dist/ with the benchmarks' pages: plain, and isolated."""
    overlays = {"bench/": WEB, "peers/": bundles}
    with (
        StaticServer(dist, overlays=overlays) as plain,
        StaticServer(dist, overlays=overlays, headers=ISOLATION) as isolated,
    ):
        yield plain, isolated


@contextlib.contextmanager
def laboratory(playwright: Playwright, dist: Path, bundles: Path, *, fine_clock: bool = False) -> Iterator[Laboratory]:
    """A laboratory on an empty profile; after ``DEADLINE`` its Chromium is killed.

    :param fine_clock: let the engine's pages be isolated too: only there does a page's clock count microseconds.
    """
    with (
        servers(dist, bundles) as (plain, isolated),
        tempfile.TemporaryDirectory(dir=BUILD, prefix="benchmark-", ignore_cleanup_errors=True) as folder,
        launch(playwright, Path(folder) / "profile") as chromium,
        deadline(chromium),
    ):
        yield Laboratory(chromium, isolated if fine_clock else plain, isolated)


@contextlib.contextmanager
def deadline(chromium: Chromium) -> Iterator[None]:
    """Kill a Chromium that is still wanted after ``DEADLINE``."""
    timer = threading.Timer(DEADLINE, chromium.kill_processes)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
