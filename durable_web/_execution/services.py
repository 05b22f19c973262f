"""What an execution needs of its engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from .._clock import Clock
from .._errors import StorageError
from .._jobs import Registry
from .._store import Claim, NewRun, Store
from .commits import GroupCommit


@dataclass(frozen=True, slots=True)
class Services:
    """What an execution needs of its engine.

    Attributes:
    ``loop``: the event loop on which everything but job bodies is executed.
    ``is_alone``: ``True`` when no other run is executing.
    ``claim``: inside a transaction, leases runs for the free slots, also that of the run which ends in it.
    ``on_due``: called with a time, in milliseconds, at which a wait is over.
    ``admit_child``: inserts a run, or finds the one that stands for it.
    ``mark_step``: called with run and key before the function of a step is called.
    ``report_defect``: called with a failure of the engine itself, and the run.
    """

    store: Store
    commits: GroupCommit
    clock: Clock
    loop: asyncio.AbstractEventLoop
    preserve_steps: bool
    is_alone: Callable[[], bool]
    claim: Callable[[str], None]
    on_due: Callable[[int], None]
    registry: Registry
    webhook_url: Callable[[str], str] | None
    new_id: Callable[[], str]
    admit_child: Callable[[NewRun, int, bool], str]
    on_storage_trouble: Callable[[Claim, StorageError], None]
    mark_step: Callable[[str, str], None]
    report_defect: Callable[[BaseException, str], None]
