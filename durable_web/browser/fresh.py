"""What a Python that was restored from a memory snapshot must not have in common with every other one.

Everything in memory is as it was when the snapshot was made, on another computer, and the same in every worker: the
state of ``random``, the time zone, the language. What asks the browser at the time (``os.urandom``, ``secrets``,
``uuid``, the clocks) needs no renewal. The seed of ``hash`` cannot be renewed: sets of strings have the same order in
every worker.
"""

from __future__ import annotations

import locale
import os
import random
import time

_HALF_A_YEAR = 365 * 24 * 60 * 60 // 2


def renew(language: str) -> None:
    """Make this Python one of its own, in this place.

    :param language: the browser's, such as "en-US".
    """
    random.seed()
    os.environ["LANG"] = f"{language.replace('-', '_')}.UTF-8"
    locale.setlocale(locale.LC_CTYPE, "")
    _renew_time_zone()


def _renew_time_zone() -> None:
    """Set the constants of ``time`` as CPython does when it is imported: standard time is what is further behind."""
    now = int(time.time())
    zones = [time.localtime(moment) for moment in (now, now + _HALF_A_YEAR)]
    standard, summer = sorted(zones, key=lambda moment: moment.tm_gmtoff)
    time.timezone, time.altzone = -standard.tm_gmtoff, -summer.tm_gmtoff
    time.tzname = (standard.tm_zone, summer.tm_zone)
    time.daylight = int(standard.tm_gmtoff != summer.tm_gmtoff)
