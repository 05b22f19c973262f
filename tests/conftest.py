"""For every test: `async def` tests are run to their end, and the order of the tests.

This file also serves where the same tests run inside Pyodide: it imports nothing that is not there.
"""

import asyncio
import inspect
import os
import sys
from collections.abc import Coroutine, Generator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test in an event loop of its own; leave any other to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    _run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def _run(test: Coroutine[Any, Any, None]) -> None:
    if sys.platform != "emscripten":
        asyncio.run(test)
        return
    from pyodide.ffi import run_sync  # the one event loop there is goes on turning meanwhile

    run_sync(test)


def _hide_playwright(item: pytest.Item) -> Generator[None, object, object]:
    """Hide Playwright's event loop from a test without a browser, and from the fixtures that are set up for it.

    Playwright's synchronous API leaves its loop marked as the thread's running one until it is stopped, at the
    session's end; what follows in the same process could then start none of its own.
    """
    if sys.platform == "emscripten" or "playwright" in getattr(item, "fixturenames", ()):
        return (yield)
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return (yield)
    finally:
        asyncio._set_running_loop(before)


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_hide_playwright)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_hide_playwright)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The page that works for minutes comes first when tests are spread over processes; otherwise the fast ones do."""
    is_spread = "PYTEST_XDIST_WORKER" in os.environ

    def place(item: pytest.Item) -> int:
        if "browser" not in item.path.parent.name:
            return 2
        return 0 if item.path.name == "test_engine_suite.py" else 1

    items.sort(key=place, reverse=not is_spread)
