"""Re-initialize per-process state (random seed, language, time zone) after restoring a memory snapshot.

The snapshot was made on another computer, and every worker restores the same memory: the state of ``random``, the time
zone, the language. Functions that ask the browser with each call (``os.urandom``, ``secrets``, ``uuid``, the clocks)
need no renewal. The seed of ``hash`` cannot be changed: sets of strings have the same order in every worker.
"""

from __future__ import annotations

import locale
import os
import random
import time

_HALF_A_YEAR = 365 * 24 * 60 * 60 // 2


def renew(language: str) -> None:
    """Seed ``random``, and set the language and the time zone of this browser.

    :param language: the browser's, such as "en-US".
    """
    random.seed()
    os.environ["LANG"] = f"{language.replace('-', '_')}.UTF-8"
    locale.setlocale(locale.LC_CTYPE, "")
    _renew_time_zone()


def _renew_time_zone() -> None:
    """Set the constants of ``time`` as CPython does on import: standard time is the one with the smaller UTC offset."""
    now = int(time.time())
    zones = [time.localtime(moment) for moment in (now, now + _HALF_A_YEAR)]
    standard, summer = sorted(zones, key=lambda moment: moment.tm_gmtoff)
    time.timezone, time.altzone = -standard.tm_gmtoff, -summer.tm_gmtoff
    time.tzname = (standard.tm_zone, summer.tm_zone)
    time.daylight = int(standard.tm_gmtoff != summer.tm_gmtoff)
