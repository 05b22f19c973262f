"""Recurring times: those of a cron expression in a time zone, or a fixed interval.

Cron expressions are read by CronSim (https://github.com/cuu508/cronsim), which follows Debian's cron, also where clocks
are changed. A time with a fixed hour that a change of the clocks skips comes right after the change, and a time that
the change repeats comes once. Times every so many minutes or hours follow the elapsed time. CronSim is imported when it
is needed, and so is the package ``tzdata`` where the system has no time zone data (in a browser).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from ._errors import LibraryMissing

UTC_NAME = "UTC"
_INSTEAD = 'A schedule with every="1h" needs none.'
_FIVE_FIELDS = (
    'It has five fields, minute, hour, day of the month, month and day of the week, such as "30 7 * * MON-FRI".'
)
_LOOK_BACK = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366))


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Either ``cron``, in the time zone of that name, or ``every`` so many milliseconds from ``anchor`` on.

    Times are milliseconds since 1970-01-01 UTC.
    """

    cron: str | None
    every: int | None
    anchor: int
    timezone: str = UTC_NAME

    @property
    def libraries(self) -> list[str]:
        """The packages that are needed to compute the times."""
        if self.cron is None:
            return []
        return ["cronsim"] if self.timezone == UTC_NAME else ["cronsim", "tzdata"]

    def check(self) -> None:
        """Check that the times can be computed.

        :raises ValueError: when the expression or the time zone is wrong, or the expression matches no date.
        :raises LibraryMissing: when the library that computes the times is not installed.
        """
        if self.next_after(self.anchor) is None:
            raise ValueError(f"The cron expression {self.cron!r} never comes: there is no such date.")

    def next_after(self, moment: int) -> int | None:
        """The first time strictly after a moment; ``None`` when there is none."""
        if self.every is not None:
            return self.anchor + ((moment - self.anchor) // self.every + 1) * self.every
        times = self._times_after(moment)
        following = next(times, None)
        while following is not None and following <= moment:  # the first of two hours with the same local time
            following = next(times, None)
        return following

    def latest_until(self, due: int, now: int) -> int:
        """The last time that is not after ``now``; ``due`` is a time that is not after ``now``."""
        if self.every is not None:
            return due + (now - due) // self.every * self.every
        for span in _LOOK_BACK:
            start = now - round(span.total_seconds() * 1000)
            if start <= due:
                break
            found = self.next_after(start)
            if found is not None and found <= now:
                due = found
                break
        while (following := self.next_after(due)) is not None and following <= now:
            due = following
        return due

    def _times_after(self, moment: int) -> Any:
        """The times of the cron expression after a moment, in milliseconds."""
        try:
            from cronsim import CronSim, CronSimError
        except ImportError:
            raise LibraryMissing("cronsim", "A cron schedule", _INSTEAD) from None
        if len((self.cron or "").split()) != 5:
            raise ValueError(f"{self.cron!r} is no cron expression. {_FIVE_FIELDS}")
        start = datetime.fromtimestamp(moment / 1000, UTC).astimezone(_zone(self.timezone))
        try:
            times = CronSim(_without_star_in_named_hours(self.cron or ""), start)
        except CronSimError as error:
            raise ValueError(f"{self.cron!r} is no cron expression: {error}. {_FIVE_FIELDS}") from None
        return (round(time.timestamp() * 1000) for time in times)


def _without_star_in_named_hours(cron: str) -> str:
    """The same expression with minutes that are spelled without a star, where it names hours.

    CronSim takes a star in the minutes for an interval, which follows the elapsed time where clocks are changed, so
    ``*/15 2 * * *`` would come never on one day and twice as often on another, unlike ``0,15,30,45 2 * * *``.
    """
    minutes, hours, *days = cron.split()
    return " ".join([minutes if "*" in hours else minutes.replace("*", "0-59"), hours, *days])


def _zone(name: str) -> tzinfo:
    if name == UTC_NAME:
        return UTC
    from zoneinfo import TZPATH, ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        if not TZPATH and not available_timezones():
            raise LibraryMissing("tzdata", f"The time zone {name!r}", "Without it, UTC is the only one.") from error
        raise ValueError(f'{name!r} is no time zone; their names are such as "Europe/Berlin" or "UTC".') from error
