"""The demo page of orders: place one, decide, change your mind, and see what becomes of it.

The address `#order=<id>` says which order is shown; without one it is the latest. All that is shown comes from the
database, most of it by the elements of `durable-elements.js` alone; so it is the same after a reload, and in every tab.
"""

import durable_page
import notices
from connection import Connection
from durable_page import TERMINAL, DurableError
from elements import find, listen, show, write
from notices import start
from pyscript import document

#: In MicroPython, `pyscript.window` is the module `js`, whose functions know no `this`: it cannot be listened to.
window = document.defaultView

DATABASE = "durable-web-orders"
JOBS = ["./orders.py"]
ELEMENTS = ("run", "steps", "log")
WAITING_FOR_APPROVAL = "waiting for approval"

STATES = {
    "preparing": "The items are reserved and charged.",
    WAITING_FOR_APPROVAL: "The order waits for you to approve or reject it, here or in another tab.",
    "about to be packed": "There is a moment to think again before it is packed.",
    "being packed": "Each item is packed in a run of its own.",
    "on its way": "The order is on its way.",
}
ENDINGS = {
    "failed": "It failed, and what was done is undone.",
    "cancelled": "It was cancelled, and what was done is undone.",
    "dead": "It was given up.",
}


class OrdersPage:
    """The page as a whole: its connection to the engine, and the order that is shown."""

    def __init__(self):
        self._connection = Connection(self._hear_status)
        self._orders = None
        self._shown = None
        self._is_placed = False
        listen(find("order-form"), "submit", self._on_submit)
        _on_press("approve", lambda: self._decide(True))
        _on_press("reject", lambda: self._decide(False))
        _on_press("pause", self._pause_or_resume)
        _on_press("cancel", self._cancel)
        listen(window, "hashchange", lambda event: start(self._route()))

    async def run(self):
        """Connect, and show the order that the address names, or the latest."""
        if not await self._connection.open(DATABASE, JOBS, "No order is lost."):
            return
        self._orders = durable_page.runs(self._durable, job="order", page_size=1)
        await self._route()

    @property
    def _durable(self):
        return self._connection.durable

    def _hear_status(self, status, phase):
        """Orders can be placed while there is an engine."""
        find("controls").disabled = status != "ready"

    # --- the order that is shown --------------------------------------------------------------------------------------

    async def _route(self):
        key, _, run_id = str(window.location.hash).partition("=")
        if key != "#order" or not run_id:
            await self._orders.hydrated()
            latest = self._orders.items
            run_id = latest[0].id if latest else None
        self._show(run_id)

    def _show(self, run_id):
        if self._shown is not None:
            self._shown.close()
            self._shown = None
        show("order-view", run_id is not None)
        if run_id is None:
            return
        for id in ELEMENTS:
            find(id).setAttribute("run-id", run_id)
        self._shown = durable_page.run(self._durable, run_id)
        self._shown.changed.add_listener(self._hear_of_run)

    def _hear_of_run(self, shown):
        if shown is not self._shown:
            return
        if shown.problem is not None:  # it was deleted
            show("order-view", False)
        elif shown.is_hydrated:
            self._draw(shown.run, shown.published.get("state"))

    def _draw(self, run, state):
        is_over = run.status in TERMINAL
        is_undoing = run.status == "cancelling"
        write("order-title", run.labels["title"])
        write("state", _sentence(run, state))
        _enable("approve", not is_over and not is_undoing and state == WAITING_FOR_APPROVAL)
        _enable("reject", not is_over and not is_undoing and state == WAITING_FOR_APPROVAL)
        _enable("pause", not is_over and not is_undoing)
        _enable("cancel", not is_over and not is_undoing)
        write("pause", "Resume" if run.paused else "Pause")
        if self._is_placed:
            self._is_placed = False
            find("order-title").focus()

    # --- what a person asks for ---------------------------------------------------------------------------------------

    def _on_submit(self, event):
        event.preventDefault()
        start(self._place())

    async def _place(self):
        notices.clear()
        chosen = [box for box in document.querySelectorAll('input[name="item"]') if box.checked]
        if not chosen:
            notices.tell(DurableError("NothingChosen", "An order has at least one item: choose one."))
            return
        order = {
            "items": [_item(box) for box in chosen],
            "approval_seconds": float(find("approval-seconds").value),
            "grace_seconds": float(find("grace-seconds").value),
        }
        title = ", ".join([item["name"] for item in order["items"]])
        placing = durable_page.job(self._durable, "order", auto_resume=False, follow_latest=False)
        try:
            run = await placing.trigger(order, labels={"title": title})
        finally:
            placing.close()
        self._is_placed = True
        window.location.hash = f"#order={run.id}"  # and on with the event of that

    async def _decide(self, is_approved):
        """Send the decision; that of a second tab, which comes too late, is the same signal and not delivered."""
        notices.clear()
        decision = {"approved": is_approved, "by": "you"}
        await durable_page.actions(self._durable).signal(self._shown.run_id, "approval", decision, signal_id="decision")

    async def _pause_or_resume(self):
        notices.clear()
        act = durable_page.actions(self._durable)
        await (act.resume if self._shown.run.paused else act.pause)(self._shown.run_id)

    async def _cancel(self):
        notices.clear()
        await durable_page.actions(self._durable).cancel(self._shown.run_id, compensate=True)


def _item(box):
    fragile = bool(box.hasAttribute("data-fragile"))
    return {"name": str(box.value), "price": float(box.getAttribute("data-price")), "fragile": fragile}


def _sentence(run, state):
    """How an order stands, for a person."""
    if run.status in ENDINGS:
        return ENDINGS[run.status]
    if run.status == "cancelling":
        return "What was done is being undone, the latest first."
    if run.paused:
        return "The order is paused: it takes no further step until you resume it."
    return STATES.get(state, "")


def _enable(id, is_enabled):
    """A button that cannot be pressed now stays where it is, and keeps the focus, which one that is disabled loses."""
    find(id).setAttribute("aria-disabled", "false" if is_enabled else "true")


def _on_press(id, make_work):
    """Do the work whenever the button of that id is pressed that can be."""

    def press(event):
        if find(id).getAttribute("aria-disabled") != "true":
            start(make_work())

    listen(find(id), "click", press)


start(OrdersPage().run())
