"""Connect an engine to its pages: requests, responses and frames are JSON texts.

Messages from a page: ``{"type": "request", "id", "method", "params"}``; ``{"type": "watch", "id", "from", "credit"}``
with ``"runId"``, or with ``"filters"`` for all runs; ``{"type": "credit", "id", "credit"}``; ``{"type": "unwatch",
"id"}``. Messages to it: ``response``, ``frames``, ``end`` and ``engine``.

A message is handled in the turn of the event loop in which it arrives, up to the first wait.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from .._clock import SystemClock
from .._codec import printable, to_json
from .._engine import Engine
from .._errors import DurableWebError, describe
from .._model import to_wire
from .methods import Method, methods_of
from .modules import load_jobs
from .sending import FrameSender, Send
from .turns import share_turns


class _WorkerClock(SystemClock):
    """The worker's clock. Its ``turn`` lets messages of the page go first, which Pyodide's shortest sleeps do not."""

    def __init__(self, give_way: Callable[[Any], None]) -> None:
        self._give_way = give_way

    async def turn(self) -> None:
        from pyodide.ffi import create_once_callable

        turn = asyncio.get_running_loop().create_future()

        def go_on() -> None:
            if not turn.done():
                turn.set_result(None)

        self._give_way(create_once_callable(go_on))
        await turn


class _OpfsFiles:
    """``ctx.files`` over the worker's storage, whose calls are JavaScript promises."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge

    async def create(self, name: str) -> str:
        return str(await self._bridge.create(name))

    async def remove(self, name: str) -> None:
        await self._bridge.remove(name)


async def _install(libraries: list[str]) -> None:
    """Load packages that the site's own lock file names. When one cannot be loaded, its import raises the error."""
    import pyodide_js
    from pyodide.ffi import to_js

    await pyodide_js.loadPackage(to_js(libraries))


async def start(send: Send, options_json: str, files: Any) -> Host:
    """Load the jobs, start the engine, and serve the page.

    :param send: posts a text to the page.
    :param options_json: ``{"database": path, "jobs": [urls], "durability": "full" | "normal", "maxRecoveries": number,
        "life": id, "ends": {id: "closed" | "died"}}``; the last three are optional, and described in :class:`Engine`.
    :param files: a JavaScript object with ``create(name)`` and ``remove(name)``.
    :raises JobModuleError: when a job module cannot be loaded.
    :raises StorageError: when the database cannot be used.
    """
    from durable_worker import askForTurn, giveWay

    share_turns(askForTurn, giveWay)
    options = json.loads(options_json)
    jobs = await load_jobs(options["jobs"])
    host = Host(send)
    engine = Engine(
        options["database"],
        jobs,
        durability=options["durability"],
        exclusive=True,
        max_recoveries=options.get("maxRecoveries", 5),
        life=options.get("life"),
        ends=options.get("ends", {}),
        clock=_WorkerClock(giveWay),
        files=_OpfsFiles(files),
        on_state=host.tell_state,
        install=_install,
    )
    host.attach(engine)
    await engine.start()
    gc.freeze()  # the modules live as long as the worker: the garbage collector need not scan them
    return host


class Host:
    """Serves the clients of one engine: the page that started it, and any other that connects."""

    def __init__(self, send: Send) -> None:
        self.is_stopping = False
        self._state = ("running", "")
        self._sessions: set[Session] = set()
        self._methods: dict[str, Method] = {}
        self._first = self.connect(send)

    def attach(self, engine: Engine) -> None:
        """Serve from this engine."""
        self.engine = engine
        self._methods |= methods_of(engine)
        self._methods["engine.watches"] = Method("engine.watches", self.watches)

    def connect(self, send: Send) -> Session:
        """Serve another client."""
        session = Session(self, self._methods, send)
        self._sessions.add(session)
        return session

    def receive(self, text: str) -> None:
        """Take a message from the page that started the engine."""
        self._first.receive(text)

    def greet(self) -> None:
        """Send the engine's state to the page that started the engine, when the page can receive messages."""
        self._first.greet()

    async def watches(self) -> list[int]:
        """How many watches each client has."""
        return sorted(session.watches for session in self._sessions)

    async def stop(self) -> None:
        """Release the executing runs, and close the database. Watches get no ``end``: they go on with the next
        engine."""
        self.is_stopping = True
        await self.engine.stop(drain=False)

    def tell_state(self, state: str, message: str) -> None:
        """Send the engine's state to every client."""
        self._state = (state, message)
        for session in self._sessions:
            session.tell_state(state, message)


class Session:
    """One client: its requests and its watches."""

    def __init__(self, host: Host, methods: dict[str, Method], send: Send) -> None:
        self._host = host
        self._methods = methods
        self._send = send
        self._tasks: dict[Any, asyncio.Task[None]] = {}
        self._senders: dict[Any, FrameSender] = {}

    @property
    def watches(self) -> int:
        """How many watches the client has."""
        return len(self._senders)

    def receive(self, text: str) -> None:
        """Take a message from the client."""
        if self._host.is_stopping:
            return  # the next engine answers it
        message = json.loads(text)
        kind, request_id = message["type"], message["id"]
        if kind == "credit":
            sender = self._senders.get(request_id)
            if sender is not None:
                sender.grant(message["credit"])
        elif kind == "unwatch":
            self._drop(request_id)
        elif kind == "watch":
            is_end = self._host.engine.runs.is_end if "runId" in message else lambda frame: False
            sender = self._senders[request_id] = FrameSender(request_id, message["credit"], self._send_text, is_end)
            self._begin(request_id, self._watch(request_id, message, sender))
        else:
            self._begin(request_id, self._answer(request_id, message))

    def _begin(self, request_id: Any, work: Coroutine[Any, Any, None]) -> None:
        """Start the work as a task; work that does not have to wait is done when this method returns."""

        def forget(done: object) -> None:
            self._tasks.pop(request_id, None)
            self._senders.pop(request_id, None)

        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)  # type: ignore[call-arg]
        if task.done():
            forget(task)
        else:
            self._tasks[request_id] = task
            task.add_done_callback(forget)

    def greet(self) -> None:
        """Send the engine's state to the client, unless the engine is running normally."""
        state, message = self._host._state
        if state != "running":
            self.tell_state(state, message)

    def tell_state(self, state: str, message: str) -> None:
        """Send the engine's state to the client."""
        self._post({"type": "engine", "state": state, "message": message})

    def close(self) -> None:
        """Drop the watches of a client that has disconnected. Its requests are completed all the same."""
        self._host._sessions.discard(self)
        self._send = lambda text: None
        for request_id in list(self._senders):
            self._drop(request_id)

    def _drop(self, request_id: Any) -> None:
        """Cancel a watch; does nothing when the watch has ended."""
        if self._senders.pop(request_id, None) is not None:
            self._tasks[request_id].cancel()

    async def _answer(self, request_id: Any, message: dict[str, Any]) -> None:
        try:
            method = self._methods.get(message["method"])
            if method is None:
                raise DurableWebError(f"The engine has no method {message['method']!r}.")
            result = to_wire(await method.call(message["params"]))
        except Exception as error:
            if not self._host.is_stopping:  # the stop itself may have caused the error
                self._post({"type": "response", "id": request_id, "error": to_error(error)})
        else:
            self._post({"type": "response", "id": request_id, "result": result})

    async def _watch(self, request_id: Any, message: dict[str, Any], sender: FrameSender) -> None:
        end: dict[str, Any] = {"type": "end", "id": request_id}
        try:
            async with aclosing(self._batches(request_id, message, sender)) as batches:
                async for batch in batches:
                    await sender.send(batch)
                    if sender.has_ended:
                        return
        except Exception as error:
            end["error"] = to_error(error)
        if not self._host.is_stopping and not sender.has_ended:
            self._post(end)

    def _batches(self, request_id: Any, message: dict[str, Any], sender: FrameSender) -> Any:
        engine = self._host.engine
        if "runId" in message:
            return engine.runs.watch_batches(message["runId"], message["from"], offer=sender.offer)
        from_id = message["from"]
        if from_id is None:  # the client needs the position to reconnect
            from_id = engine.runs.newest_frame_id()
            self._post({"type": "frames", "id": request_id, "size": 0, "cursor": from_id, "frames": []})
        return engine.runs.watch_all_batches(from_id, **message["filters"], offer=sender.offer)

    def _post(self, message: dict[str, Any]) -> None:
        self._send(to_json(message))

    def _send_text(self, text: str) -> None:
        self._send(text)


def to_error(error: Exception) -> dict[str, Any]:
    """An error as JSON data for a page: durable-web's errors with their attributes, others with their traceback."""
    described = describe(error)
    told: dict[str, Any] = {"code": described["type"], "message": described["message"]}
    if isinstance(error, DurableWebError):
        told["data"] = {name: printable(value) for name, value in vars(error).items() if not name.startswith("_")}
    else:
        told["traceback"] = described["traceback"]
    return told
