"""What an execution needs of its engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..clock import Clock
from ..errors import StorageError
from ..files import Files
from ..job import Registry
from ..store import Claim, NewRun, Store
from .commits import GroupCommit

if TYPE_CHECKING:
    from .executor import Execution


@dataclass(frozen=True, slots=True)
class Services:
    """What an execution needs of its engine."""

    store: Store
    commits: GroupCommit
    clock: Clock
    files: Files
    preserve_steps: bool
    is_alone: Callable[[], bool]  # whether this is the only run executing
    claim: Callable[[str], None]  # inside a transaction: runs for the free slots, also that of the run that ends in it
    on_settled: Callable[[Execution], None]  # and the runs are claimed for which that makes room
    on_parked: Callable[[Execution], None]
    on_wanted: Callable[[Execution], None]  # a parked body wants to go on before its time
    on_timer: Callable[[], None]  # there is a new time at which a wait is over
    registry: Registry
    webhook_url: Callable[[str], str] | None
    new_id: Callable[[], str]
    admit_child: Callable[[NewRun, int, bool], str]  # inserts it, or finds the run that stands for it
    on_storage_trouble: Callable[[Claim, StorageError], None]
