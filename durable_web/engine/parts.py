"""What the parts of an engine's public interface share: each is a class of its own, and the engine is all of them."""

from __future__ import annotations

from ..clock import Clock
from ..errors import DurableWebError
from ..events import Events
from ..flow import Gate
from ..job import Job, Registry
from ..model import Run
from ..store import Store
from ..timeline import Timeline
from ..triggers import Trigger
from .admission import Admitted
from .delivery import Delivery
from .dispatcher import Dispatcher
from .scheduler import Scheduler


class EngineParts:
    """The parts of a running engine."""

    _store: Store | None
    _registry: Registry
    _clock: Clock
    _events: Events
    _dispatcher: Dispatcher
    _timeline: Timeline
    _delivery: Delivery
    _scheduler: Scheduler

    def _running_store(self) -> Store:
        if self._store is None:
            raise DurableWebError("The engine is not running: use `async with engine:` or `await engine.start()`.")
        return self._store

    def _make(
        self, store: Store, trigger: Trigger, job: Job, input_text: str, now: int, gates: tuple[Gate, ...] = ()
    ) -> Admitted:
        """Insert a run, or find the one that stands for it."""
        raise NotImplementedError

    def _make_all(self, store: Store, checked: list[tuple[Trigger, Job, str]]) -> list[Run]:
        """The same for several."""
        raise NotImplementedError
