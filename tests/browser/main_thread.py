"""What a page asks of its main thread, measured as the time for which the processor was at work on it.

    with traced_tasks(page) as tasks:
        page.evaluate(FLOOD)
    assert max(tasks) < sum(tasks) / 6  # the work comes in pieces

The durations that a page can see are those of a clock on the wall: on a busy machine the thread is suspended in the
middle of a task, and a short one looks long. Chromium's own trace tells the processor time of the thread as well. On a
busy machine that grows too, several times over: it is compared with what was measured beside it, and with nothing else.
How many milliseconds the longest task takes is the benchmark's to tell.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Page

_CATEGORIES = ["disabled-by-default-devtools.timeline", "blink.user_timing"]
_BEGINNING = "traced tasks begin"
_END = "traced tasks end"


@contextlib.contextmanager
def traced_tasks(page: Page) -> Iterator[list[float]]:
    """Trace the tasks of a page's main thread; the list is filled when the block is left.

    Each number is the processor time of one task in milliseconds. One trace at a time in a browser.
    """
    tasks: list[float] = []
    browser = page.context.browser
    browser.start_tracing(page=page, categories=_CATEGORIES)
    try:
        _mark(page, _BEGINNING)
        yield tasks
        _mark(page, _END)
    finally:
        events = json.loads(browser.stop_tracing())["traceEvents"]
    # The marks tell which thread it is; that the last one is there tells that the trace was not cut short.
    (process, thread), end = (_thread_of(events, mark) for mark in (_BEGINNING, _END))
    assert end == (process, thread), "the page has moved to another process while it was traced"
    tasks += [
        event.get("tdur", 0) / 1000  # left out where it is nothing
        for event in events
        if event["name"] == "RunTask" and event["ph"] == "X" and (event["pid"], event["tid"]) == (process, thread)
    ]


def _mark(page: Page, name: str) -> None:
    page.evaluate("(name) => { performance.mark(name); }", name)


def _thread_of(events: list[dict[str, Any]], mark: str) -> tuple[int, int]:
    return next((event["pid"], event["tid"]) for event in events if event["name"] == mark)
