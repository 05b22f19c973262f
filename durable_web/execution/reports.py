"""What an executing run tells: log lines and progress."""

from __future__ import annotations

import math
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ..clock import TimerHandle
from ..codec import printable
from ..lowering import shown
from ..store import StepRecord

if TYPE_CHECKING:
    from .executor import Execution
    from .services import Services

PROGRESS_SECONDS = 0.1

current_step: ContextVar[StepRecord | None] = ContextVar("durable_web_current_step", default=None)


class Reports:
    """The log lines and the progress of one execution.

    A line of the job body that an earlier attempt wrote is not written again; while the body replays, neither is
    progress. What is told rides along with the run's next commit.
    """

    def __init__(self, execution: Execution, services: Services) -> None:
        claim = execution.claim
        self._execution = execution
        self._steps = services.store.steps
        self._clock = services.clock
        self._told = Counter(self._steps.body_lines(claim.run_id)) if claim.attempt > 1 else None
        self._progress: dict[str, Any] | None = None
        self._progress_at = float("-inf")
        self._timer: TimerHandle | None = None

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """Write a durable line, attached to the step that writes it."""
        self._execution.check()
        step = current_step.get()
        message = _text(message)
        if step is None and self._was_told(level, message):
            return
        claim = self._execution.claim
        ts = self._clock.now()
        body = {
            "level": level,
            "message": message,
            "fields": {name: printable(value) for name, value in fields.items()},
            "step": None if step is None else step.name,
            "attempt": claim.attempt if step is None else step.attempt,
        }
        self._execution.announce()
        self._execution.ride_along(lambda: self._steps.append_log(claim.run_id, ts, body), simple=True)

    def _was_told(self, level: str, message: str) -> bool:
        """Whether an earlier attempt wrote this line of the body already; each such line is passed over once."""
        if self._told is None:
            return False
        self._told[level, message] -= 1
        return self._told[level, message] >= 0

    def progress(self, current: float, total: float | None, message: str | None) -> None:
        """Keep the latest progress; write at most one frame in 100 ms, and the last one always."""
        self._execution.check()
        self._progress = {
            "current": _finite("current", current),
            "total": None if total is None else _finite("total", total),
            "message": None if message is None else _text(message),
        }
        wait = self._progress_at + PROGRESS_SECONDS - self._clock.monotonic()
        if self._execution.is_replaying and current_step.get() is None:
            wait = max(wait, PROGRESS_SECONDS)  # what an earlier attempt told passes by at once, and is not told again
        if wait <= 0:
            self._execution.announce()
            self.write_progress()
        elif self._timer is None:
            self._timer = self._clock.call_later(wait, self.write_progress)

    def write_progress(self) -> None:
        """Let the latest progress ride along with the next commit, where there is any that was not written."""
        self.stop()
        if self._progress is None:
            return
        progress, self._progress = self._progress, None
        self._progress_at = self._clock.monotonic()
        run_id, now = self._execution.claim.run_id, self._clock.now()
        self._execution.ride_along(lambda: self._steps.set_progress(run_id, now, progress), simple=True)

    def stop(self) -> None:
        """Set no timer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _text(message: object) -> str:
    try:
        return str(message)
    except Exception:
        return shown(message)


def _finite(name: str, value: float) -> float:
    """:raises TypeError, ValueError: when it is not a finite number."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"ctx.progress: {name} is a number, not {value!r}; convert it with float().")
    try:
        if math.isfinite(value):
            return value
    except OverflowError:  # a whole number beyond all floats, and JavaScript has no others
        pass
    raise ValueError(f"ctx.progress: {name} is a finite number, not {shown(value)}; leave out what is not known.")
