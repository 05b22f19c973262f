"""The connection of a page to its engine, and how the head of the page tells of it."""

import notices
from durable_page import DurableError, connect
from elements import find, write

TEXTS = {"ready": "Ready", "failed": "Failed", "closed": "Stopped"}


class Connection:
    """Calls ``hear(status, phase)`` whenever the engine's status changes: ``"ready"`` only once there is a client."""

    def __init__(self, hear):
        self.durable = None
        self._hear = hear

    async def open(self, database, jobs, promise):
        """Connect; returns whether that is done. When it cannot be, the page says so, and that ``promise`` holds."""
        self._promise = promise
        try:
            self.durable = await connect(database, jobs, on_status=self._hear_status, on_engine=notices.tell_storage)
        except DurableError as error:
            notices.tell_start_failed(error, promise)
            return False
        self._hear_status("ready", "", None)
        return True

    def _hear_status(self, status, message, phase):
        find("engine").setAttribute("data-status", status)
        write("engine-text", TEXTS.get(status, f"Starting: {message}"))
        if status != "ready" or self.durable is not None:
            self._hear(status, phase)
        if status == "failed" and self.durable is not None:
            notices.tell_start_failed(DurableError("Failed", message), self._promise)
