"""What the engine's tests share. They run on CPython over a file, and inside Pyodide over OPFS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from watching import IN_PYODIDE

from durable_web import Engine, Job
from durable_web.testing import MockClock


@pytest.fixture
def database_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A path for a new database: in a temporary folder, or on OPFS when the suite runs inside Pyodide."""
    if not IN_PYODIDE:
        yield str(tmp_path_factory.mktemp("engine") / "database.sqlite3")
        return
    from opfs_home import storage  # tests/browser/opfs_home.py, which is there only inside Pyodide

    with storage() as folder:
        yield f"{folder}/database.sqlite3"


EngineFactory = Callable[..., Any]


@pytest.fixture
def running(database_path: str) -> EngineFactory:
    """``async with running(job, ..., option=...) as engine``: an engine on the test's own database."""

    @asynccontextmanager
    async def start(*jobs: Job, **options: Any) -> AsyncIterator[Engine]:
        options.setdefault("exclusive", True)
        async with Engine(database_path, jobs, **options) as engine:
            yield engine

    return start


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still until the test moves it."""
    return MockClock()
