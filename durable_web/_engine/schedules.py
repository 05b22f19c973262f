"""``engine.schedules``: making, listing, pausing and deleting schedules."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from .._durations import Duration
from .._jobs import Job
from .._model import Schedule
from .running import RunningEngine
from .scheduler import checked_schedule, with_next_due


class Schedules:
    """The schedules of an engine: how jobs are triggered again and again.

    :param running: returns the running engine's parts; raises when the engine is not running.
    """

    def __init__(self, running: Callable[[], RunningEngine]) -> None:
        self._running = running

    async def create(
        self,
        name: str,
        job: Job | str,
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | None = None,
        input: Any = None,
        overlap: str = "skip",
        catch_up: str = "none",
        jitter: Duration | None = None,
        labels: dict[str, str] | None = None,
    ) -> Schedule:
        """Trigger a job repeatedly, from now on, also after restarts; each due time at most once.

        A second call with a name changes the schedule of that name. The schedule keeps its next due time unless
        ``cron``, ``every`` or ``timezone`` changes, and stays paused if it is paused. Runs carry the labels
        ``durable/schedule``, the name, and ``durable/scheduled-at``, the due time in ISO format.

        :param cron: five fields, as ``"30 7 * * MON-FRI"``. For hours that a change of the clocks skips or repeats, see
            :mod:`durable_web._recurrence`.
        :param every: instead, a ``timedelta``, a number of seconds or a text such as ``"15m"``, counted from now.
        :param timezone: of ``cron``: a name such as ``"Europe/Berlin"``; by default UTC.
        :param overlap: what happens while a run of this schedule is still active: ``"skip"`` skips the due time,
            ``"queue"`` begins its run when the earlier ones have ended, in order, ``"allow"`` begins it at once.
        :param catch_up: what happens to due times at which no engine was running (nor within a minute after):
            ``"none"`` skips them, ``"latest"`` makes one run for the latest of them, ``"all"`` one for each.
        :param jitter: delay each run by up to this long; the delay depends only on the name and the due time.
        :raises JobNotFound, InvalidInput, SerializationError: as ``trigger`` does.
        :raises ValueError: when the timing, the zone or another option is wrong.
        :raises LibraryMissing: when the library that ``cron`` or ``timezone`` needs is not installed.
        """
        options = {"overlap": overlap, "catch_up": catch_up, "jitter": jitter, "labels": labels, "input": input}
        timing = {"cron": cron, "every": every, "timezone": timezone}
        running = self._running()
        now = running.clock.now()
        checked = checked_schedule(running.registry, now, name, job, **timing, **options)  # type: ignore[arg-type]
        if checked.recurrence.libraries:
            await running.settings.install(checked.recurrence.libraries)
        made = running.scheduler.put(with_next_due(checked, now))
        running.dispatcher.look_at_the_time()
        return made

    async def list(self) -> builtins.list[Schedule]:
        """All schedules, by name."""
        return self._running().scheduler.list()

    async def pause(self, name: str) -> Schedule:
        """Pause a schedule: it triggers nothing until it is resumed.

        :raises ScheduleNotFound: when there is none of that name.
        """
        return self._running().scheduler.pause(name)

    async def resume(self, name: str) -> Schedule:
        """Resume a schedule at its next due time. The due times of the pause are skipped, whatever ``catch_up`` is.

        :raises ScheduleNotFound: when there is none of that name.
        """
        running = self._running()
        resumed = running.scheduler.resume(name)
        running.dispatcher.look_at_the_time()
        return resumed

    async def delete(self, name: str) -> None:
        """Delete a schedule; its runs stay.

        :raises ScheduleNotFound: when there is none of that name.
        """
        self._running().scheduler.delete(name)
