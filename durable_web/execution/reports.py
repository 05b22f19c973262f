"""What an executing run tells: log lines and progress."""

from __future__ import annotations

import math
from collections import Counter, deque
from contextlib import suppress
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ..clock import TimerHandle
from ..codec import printable, shown
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

    Other threads may tell something too: it is handed to the thread of the event loop, to which the database belongs.
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
        self._thread = get_ident()
        self._lines_elsewhere: deque[tuple[int, dict[str, Any]]] = deque()  # of other threads, to be taken over
        self._progress_elsewhere: deque[tuple[dict[str, Any], bool]] = deque(maxlen=1)  # the same; the latest counts
        self._is_taking_over = False

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """Write a durable line, attached to the step that writes it."""
        self._execution.check()
        step = current_step.get()
        message = _text(message)
        is_elsewhere = get_ident() != self._thread
        if step is None and not is_elsewhere and self._was_told(level, message):
            return
        ts = self._clock.now()
        body = {
            "level": level,
            "message": message,
            "fields": {name: printable(value) for name, value in fields.items()},
            "step": None if step is None else step.name,
            "attempt": self._execution.claim.attempt if step is None else step.attempt,
        }
        if is_elsewhere:
            self._lines_elsewhere.append((ts, body))
            self._take_over_soon()
        else:
            self._append(ts, body)

    def _append(self, ts: int, body: dict[str, Any]) -> None:
        run_id = self._execution.claim.run_id
        self._execution.announce()
        self._execution.ride_along(lambda: self._steps.append_log(run_id, ts, body), simple=True)

    def _was_told(self, level: str, message: str) -> bool:
        """Whether an earlier attempt wrote this line of the body already; each such line is passed over once."""
        if self._told is None:
            return False
        self._told[level, message] -= 1
        return self._told[level, message] >= 0

    def progress(self, current: float, total: float | None, message: str | None) -> None:
        """Keep the latest progress; write at most one frame in 100 ms, and the last one always."""
        self._execution.check()
        progress = {
            "current": _finite("current", current),
            "total": None if total is None else _finite("total", total),
            "message": None if message is None else _text(message),
        }
        of_body = current_step.get() is None
        if get_ident() != self._thread:
            self._progress_elsewhere.append((progress, of_body))
            self._take_over_soon()
        else:
            self._keep(progress, of_body)

    def _keep(self, progress: dict[str, Any], of_body: bool) -> None:
        self._progress = progress
        wait = self._progress_at + PROGRESS_SECONDS - self._clock.monotonic()
        if of_body and self._execution.is_replaying:
            wait = max(wait, PROGRESS_SECONDS)  # what an earlier attempt told passes by at once, and is not told again
        if wait <= 0:
            self._execution.announce()
            self.write_progress()
        elif self._timer is None:
            self._timer = self._clock.call_later(wait, self.write_progress)

    def _take_over_soon(self) -> None:
        """In another thread: let that of the event loop take over what was told."""
        task = self._execution.task
        if self._is_taking_over or task is None:  # it has not begun to yet, and will find this as well
            return
        self._is_taking_over = True
        with suppress(RuntimeError):  # the event loop is closed, and with it the engine
            task.get_loop().call_soon_threadsafe(self._take_over_while_ours)

    def _take_over_while_ours(self) -> None:
        if not self._execution.is_abandoned:
            self.take_over()

    def take_over(self) -> None:
        """Tell what other threads have handed over by now."""
        self._is_taking_over = False  # first: what comes from here on is announced anew
        for _ in range(len(self._lines_elsewhere)):
            ts, body = self._lines_elsewhere.popleft()
            if body["step"] is not None or not self._was_told(body["level"], body["message"]):
                self._append(ts, body)
        if self._progress_elsewhere:
            self._keep(*self._progress_elsewhere.pop())

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
