"""What goes wrong, told where the person looks: in the alert at the top of the page, or in place of the whole page."""

import asyncio
import sys

from durable_page import DurableError
from elements import find, listen, make, show
from pyscript import document

TITLES = {
    "StorageFullError": "The storage of this browser is full",
    "RunNotFound": "This import is not on this device",
    "EngineStoppedError": "The engine stopped",
    "WorkerError": "The engine stopped",
    "FileNotFoundError": "The file is not on this device any more",
    "FileChangedError": "The file has changed",
    "UnreadableFile": "This file could not be read",
    "PageError": "This page has a defect",
}

ENDINGS = {
    "failed": "This file could not be imported",
    "cancelled": "The import was cancelled",
    "dead": "The import was given up",
}


def start(work):
    """Run a coroutine to its end; what it raises is told in the alert."""
    return asyncio.create_task(_told(work))


async def _told(work):
    try:
        await work
    except DurableError as error:
        tell(error)
    except Exception as error:
        message = "It is not your doing, and nothing that was committed is lost."
        tell(DurableError("PageError", message, _traceback(error)))


def tell(error):
    """Show an error in the alert, until it is dismissed or something else is begun."""
    close = make("button", {"type": "button", "class": "button button-secondary"}, "Dismiss")
    listen(close, "click", lambda event: clear())
    notice = make(
        "div",
        {"class": "notice notice-error"},
        make("h2", None, TITLES.get(error.code, "That did not work")),
        make("p", {"class": "prewrap"}, error.message),
    )
    if error.traceback:
        notice.append(_details(error.traceback))
    notice.append(make("p", None, close))
    find("alert").replaceChildren(notice)
    find("alert").scrollIntoView()


def clear():
    """Take the alert away."""
    find("alert").replaceChildren()


def tell_run_ended(run, again):
    """Show in place of its result why an import has none; ``again`` is a button to try once more, or None."""
    error = run.error
    kind = "info" if run.status == "cancelled" else "error"
    reason = error.message if error else "It stopped at its last committed step."
    notice = make(
        "div",
        {"class": f"notice notice-{kind}"},
        make("h2", None, ENDINGS[run.status]),
        make("p", {"class": "prewrap"}, reason),
    )
    if error and getattr(error, "traceback", "") and error.type not in ("FatalError", "StepFailed"):
        notice.append(_details(error.traceback))
    if again is not None:
        notice.append(again)
    notice.append(make("p", None, make("a", {"href": "#all"}, "Choose another file")))
    find("run-ended").replaceChildren(notice)


def tell_start_failed(error, promise):
    """Show, once and for all, that there is no engine, and what holds all the same."""
    reload = make("button", {"type": "button", "class": "button button-secondary"}, "Reload the page")
    listen(reload, "click", lambda event: document.defaultView.location.reload())
    notice = make(
        "section",
        {"class": "notice notice-error", "aria-labelledby": "failed-title"},
        make("h2", {"id": "failed-title"}, "The engine could not start"),
        make("p", {"class": "prewrap", "id": "failed-message"}, error.message),
        make("p", None, f"{promise} Once the cause is mended, reload this page."),
    )
    if error.traceback:
        notice.append(_details(error.traceback))
    notice.append(make("p", None, reload))
    find("failed").replaceChildren(notice)


def tell_storage(state, message):
    """Show that the engine waits for storage, or that it goes on."""
    find("storage").replaceChildren()
    show("storage", state != "running")
    if state == "running":
        return
    kind = "is full" if state == "storage_full" else "does not work"
    title = make("h2", None, f"The storage of this browser {kind}")
    find("storage").append(title, make("p", {"class": "prewrap"}, message or ""))


def _details(traceback):
    summary = make("summary", None, "Technical details")
    return make("details", None, summary, make("pre", {"tabindex": "0"}, traceback))


def _traceback(error):
    if hasattr(sys, "print_exception"):  # MicroPython
        import io

        text = io.StringIO()
        sys.print_exception(error, text)
        return text.getvalue()
    import traceback

    return "".join(traceback.format_exception(error))
