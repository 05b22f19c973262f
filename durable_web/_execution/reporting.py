"""Log and progress of an executing run."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any

from .._clock import Clock, TimerHandle
from .._codec import printable, shown
from .._store import Store
from .history import History
from .tenure import Tenure, current_step

PROGRESS_SECONDS = 0.1


class Reporting:
    """The log lines and the progress of one run. What is reported is written with the run's next commit.

    A line of the job body that an earlier execution wrote is not written again; while the body replays, neither is
    progress. Other threads may report too: it is passed to the thread of the event loop, to which the database belongs.
    """

    def __init__(
        self, store: Store, clock: Clock, loop: asyncio.AbstractEventLoop, history: History, tenure: Tenure
    ) -> None:
        self.announce: Callable[[], None] = lambda: None
        """Called before a line or progress is written: the news that the step has begun comes first."""
        self._steps = store.steps
        self._clock = clock
        self._loop = loop
        self._history = history
        self._tenure = tenure
        self._written: Counter[tuple[str, str]] | None = None  # lines of the body, by earlier executions
        self._progress: dict[str, Any] | None = None
        self._progress_at = float("-inf")
        self._timer: TimerHandle | None = None
        self._thread = get_ident()
        self._lines_elsewhere: deque[tuple[int, dict[str, Any]]] = deque()  # of other threads
        self._progress_elsewhere: deque[tuple[dict[str, Any], bool]] = deque(maxlen=1)  # the same; the latest counts
        self._is_taking_over = False

    def log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """Write a durable line, attached to the step that writes it.

        :raises Detached: when the run is no longer executed here.
        """
        self._tenure.check()
        step = current_step.get()
        message = _text(message)
        is_elsewhere = get_ident() != self._thread
        if step is None and not is_elsewhere and self._was_written(level, message):
            return
        ts = self._clock.now()
        body = {
            "level": level,
            "message": message,
            "fields": {name: printable(value) for name, value in fields.items()},
            "step": None if step is None else step.name,
            "attempt": self._tenure.claim.attempt if step is None else step.attempt,
        }
        if is_elsewhere:
            self._lines_elsewhere.append((ts, body))
            self._take_over_soon()
        else:
            self._append(ts, body)

    def note(self, level: str, message: str) -> None:
        """Write a line of the engine's own about the run; one that an earlier execution wrote is not repeated."""
        if not self._tenure.is_detached and not self._was_written(level, message):
            body: dict[str, Any] = {"level": level, "message": message, "fields": {}, "step": None}
            self._append(self._clock.now(), {**body, "attempt": self._tenure.claim.attempt})

    def _append(self, ts: int, body: dict[str, Any]) -> None:
        run_id = self._tenure.run_id
        self.announce()
        self._tenure.later(lambda: self._steps.append_log(run_id, ts, body), simple=True)

    def _was_written(self, level: str, message: str) -> bool:
        """``True`` when an earlier execution wrote this line of the body; each such line is passed over once."""
        if self._tenure.claim.attempt <= 1:
            return False
        if self._written is None:
            self._written = Counter(self._steps.body_lines(self._tenure.run_id))
        self._written[level, message] -= 1
        return self._written[level, message] >= 0

    def progress(self, current: float, total: float | None, message: str | None) -> None:
        """Keep the latest progress; write at most one frame in 100 ms, and the last one always.

        :raises Detached: when the run is no longer executed here.
        :raises TypeError, ValueError: when ``current`` or ``total`` is not a finite number.
        """
        self._tenure.check()
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
        if of_body and not self._history.is_live:
            wait = max(wait, PROGRESS_SECONDS)  # what an earlier execution reported is soon replaced
        if wait <= 0:
            self.announce()
            self.write_progress()
        elif self._timer is None:
            self._timer = self._clock.call_later(wait, self.write_progress)

    def _take_over_soon(self) -> None:
        """In another thread: let that of the event loop take over what was reported."""
        if self._is_taking_over:
            return
        self._is_taking_over = True
        with suppress(RuntimeError):  # the event loop is closed, and with it the engine
            self._loop.call_soon_threadsafe(self._take_over_while_ours)

    def _take_over_while_ours(self) -> None:
        if not self._tenure.is_detached:
            self.take_over()

    def take_over(self) -> None:
        """Write what other threads have reported by now."""
        self._is_taking_over = False  # first: what comes from here on is announced anew
        for _ in range(len(self._lines_elsewhere)):
            ts, body = self._lines_elsewhere.popleft()
            if body["step"] is not None or not self._was_written(body["level"], body["message"]):
                self._append(ts, body)
        if self._progress_elsewhere:
            self._keep(*self._progress_elsewhere.pop())

    def write_progress(self) -> None:
        """Write the latest progress with the next commit, unless it was written."""
        self.stop()
        if self._progress is None:
            return
        progress, self._progress = self._progress, None
        self._progress_at = self._clock.monotonic()
        run_id, now = self._tenure.run_id, self._clock.now()
        self._tenure.later(lambda: self._steps.set_progress(run_id, now, progress), simple=True)

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
    except OverflowError:  # an integer beyond all floats, and JavaScript has no others
        pass
    raise ValueError(f"ctx.progress: {name} is a finite number, not {shown(value)}; leave out what is not known.")
