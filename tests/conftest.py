"""For every test: `async def` tests are run to their end, and the fast tests run before those with a browser.

This file also serves where the same tests run inside Pyodide: it imports nothing that is not there.
"""

import asyncio
import inspect
import sys
from collections.abc import Coroutine
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: Playwright's event loop, once started, would be in the way of `asyncio.run`."""
    items.sort(key=lambda item: "browser" in item.path.parent.name)
