"""Ties an engine to the page: requests come in as JSON text, answers and frames go out as JSON text.

Messages from the page: ``{"type": "request", "id", "method", "params"}``, ``{"type": "watch", "id", "runId", "from"}``,
``{"type": "unwatch", "id"}``. Messages to it: ``response``, ``frames``, ``end`` and ``engine``.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from ..clock import SystemClock
from ..codec import printable, to_json
from ..engine import Engine
from ..errors import DurableWebError, describe
from ..model import from_milliseconds, to_wire
from .modules import load_jobs

Send = Callable[[str], None]
_CAPITAL = re.compile(r"[A-Z]")
_TIMES = frozenset({"run_at", "deadline", "created_after", "created_before"})


class _WorkerClock(SystemClock):
    """The worker's clock. Pyodide's shortest sleeps take turns among themselves, before any message of the page."""

    async def turn(self) -> None:
        await asyncio.sleep(0.003)


class _OpfsFiles:
    """``ctx.files`` over the worker's storage, whose calls are JavaScript promises."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge

    async def create(self, name: str) -> str:
        return str(await self._bridge.create(name))

    async def remove(self, name: str) -> None:
        await self._bridge.remove(name)


async def _install(libraries: list[str]) -> None:
    """Load packages that the site's own lock file names; importing one that could not be had says what is missing."""
    import pyodide_js
    from pyodide.ffi import to_js

    await pyodide_js.loadPackage(to_js(libraries))


async def start(send: Send, options_json: str, files: Any) -> Host:
    """Load the jobs, start the engine, and serve the page.

    :param send: posts a text to the page.
    :param options_json: ``{"database": path, "jobs": [urls], "durability": "full" | "normal"}``.
    :param files: a JavaScript object with ``create(name)`` and ``remove(name)``.
    :raises JobModuleError: when a job module cannot be loaded.
    :raises StorageError: when the database cannot be used.
    """
    options = json.loads(options_json)
    jobs = await load_jobs(options["jobs"])
    host = Host(send)
    engine = Engine(
        options["database"],
        jobs,
        durability=options["durability"],
        exclusive=True,
        clock=_WorkerClock(),
        files=_OpfsFiles(files),
        on_state=host.tell_state,
        install=_install,
    )
    host.attach(engine)
    await engine.start()
    return host


class Host:
    """Serves one page's requests from one engine."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._tasks: dict[Any, asyncio.Task[None]] = {}

    def attach(self, engine: Engine) -> None:
        """Serve from this engine; parameters of its methods arrive by name, in camelCase."""
        self.engine = engine
        self._methods: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            "trigger": engine.trigger,
            "runs.get": engine.get_run,
            "runs.list": engine.list_runs,
            "runs.count": engine.count_runs,
            "runs.steps": engine.get_steps,
            "runs.event": engine.get_event,
            "runs.cancel": engine.cancel,
            "runs.retry": engine.retry,
            "runs.retryWithInput": engine.retry_with_input,
            "runs.retrigger": engine.retrigger,
            "runs.fork": engine.fork,
            "runs.delete": engine.delete_run,
            "schedules.create": engine.schedule,
            "schedules.list": engine.list_schedules,
            "schedules.pause": engine.pause_schedule,
            "schedules.resume": engine.resume_schedule,
            "schedules.delete": engine.delete_schedule,
        }

    def receive(self, text: str) -> None:
        """Take a message from the page."""
        message = json.loads(text)
        kind, request_id = message["type"], message["id"]
        if kind == "unwatch":
            task = self._tasks.get(request_id)
            if task is not None:
                task.cancel()
            return
        work = self._watch(request_id, message) if kind == "watch" else self._answer(request_id, message)
        task = self._tasks[request_id] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda done: self._tasks.pop(request_id, None))

    async def stop(self) -> None:
        """Give the executing runs back, end every watch, and close the database."""
        await self.engine.stop(drain=False)

    def tell_state(self, state: str, message: str) -> None:
        """Tell the page that the engine is running, or why it is not."""
        self._post({"type": "engine", "state": state, "message": message})

    async def _answer(self, request_id: Any, message: dict[str, Any]) -> None:
        try:
            method = self._methods.get(message["method"])
            if method is None:
                raise DurableWebError(f"The engine has no method {message['method']!r}.")
            result = to_wire(await method(**from_wire(message["params"])))
        except Exception as error:
            self._post({"type": "response", "id": request_id, "error": to_error(error)})
        else:
            self._post({"type": "response", "id": request_id, "result": result})

    async def _watch(self, request_id: Any, message: dict[str, Any]) -> None:
        head = to_json({"type": "frames", "id": request_id})[:-1]
        end: dict[str, Any] = {"type": "end", "id": request_id}
        try:
            async for batch in self.engine.watch_batches(message["runId"], message["from"]):
                self._send(f'{head},"frames":[{",".join(frame.to_json() for frame in batch)}]}}')
        except Exception as error:
            end["error"] = to_error(error)
        self._post(end)

    def _post(self, message: dict[str, Any]) -> None:
        self._send(to_json(message))


def from_wire(parameters: dict[str, Any]) -> dict[str, Any]:
    """What a page gives, as the engine takes it: names in snake_case, and times as datetimes."""
    named = {_CAPITAL.sub(lambda found: f"_{found[0].lower()}", name): value for name, value in parameters.items()}
    return {name: from_milliseconds(value) if name in _TIMES else value for name, value in named.items()}


def to_error(error: Exception) -> dict[str, Any]:
    """An error for the page: our own with their data, anything else with its traceback."""
    described = describe(error)
    told: dict[str, Any] = {"code": described["type"], "message": described["message"]}
    if isinstance(error, DurableWebError):
        told["data"] = {name: printable(value) for name, value in vars(error).items() if not name.startswith("_")}
    else:
        told["traceback"] = described["traceback"]
    return told
