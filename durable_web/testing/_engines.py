"""An engine over SQLite in memory."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

from .._engine import Engine
from .._files import LocalFiles
from .._jobs import Job

_numbers = itertools.count(1)


@asynccontextmanager
async def engine(*jobs: Job, **options: Any) -> AsyncIterator[Engine]:
    """A running engine over a new database in memory, which is deleted at the end.

    The options are those of :class:`Engine`; it is ``exclusive`` by default. The database survives a ``crash`` and a
    ``restart``, as a file would. The end of the block does not wait for executing runs.

    >>> async with engine(greet) as e:
    ...     assert (await e.trigger_and_wait(greet, "Ada")).output == "Hello, Ada!"
    """
    path = f"file:durable-web-testing-{next(_numbers)}?mode=memory&cache=shared"
    options.setdefault("exclusive", True)
    with closing(sqlite3.connect(path, uri=True)), tempfile.TemporaryDirectory() as folder:
        options.setdefault("files", LocalFiles(folder))
        made = Engine(path, jobs, **options)
        await made.start()
        try:
            yield made
        finally:
            await made.stop(drain=False)
