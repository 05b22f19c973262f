"""Durable jobs for the Python of a page, under PyScript's Pyodide and MicroPython alike.

    from durable_page import connect

    durable = await connect("accounts", jobs=["./jobs.py"])
    run = await durable.trigger("import-csv", {"path": path})
    async for frame in durable.watch(run.id):
        print(frame.kind, frame)

The page's PyScript configuration names this file under ``files`` and ``python-bridge.js`` under ``js_modules.main`` as
``durable_web_bridge``. The jobs themselves run elsewhere, in the engine's worker; this module only talks to it.
MicroPython has neither dataclasses nor asynchronous generators, which is why there are none here.
"""

import json

from pyscript.ffi import create_proxy
from pyscript.js_modules import durable_web_bridge as bridge

TERMINAL = ("completed", "failed", "cancelled", "dead")

_names = {}


class DurableError(Exception):
    """Something went wrong, in the client, the engine or a job module.

    Attributes: ``code``, the kind of error, such as ``"JobNotFound"``; ``message``, for a person; ``traceback``,
    Python's own where the error comes from the engine's side, else an empty string.
    """

    def __init__(self, code, message, traceback=""):
        super().__init__(message)
        self.code = code
        self.message = message
        self.traceback = traceback


class Record:
    """A run, a step, a frame or a file: its fields as attributes in snake_case, times in milliseconds since 1970."""

    def __init__(self, fields):
        for name, value in fields.items():
            if name in ("error", "progress") and isinstance(value, dict):
                value = Record(value)
            setattr(self, _snake_case(name), value)

    def __repr__(self):
        return "Record({})".format(", ".join(f"{name}={value!r}" for name, value in self.__dict__.items()))


async def connect(name, jobs, durability="full", on_status=None, on_engine=None):
    """Connect to the database ``name``, in which the jobs of the modules at the URLs ``jobs`` are run.

    Returns a ``Durable`` when the engine is ready, or when another tab runs it (its ``status`` is then ``"blocked"``).
    ``on_status`` is called with the status, a message, and the phase of starting, now and whenever they change.
    ``on_engine`` is called with a state and a message when the engine stops claiming runs (``"storage_full"`` or
    ``"storage_error"``) and when it goes on (``"running"``).

    :raises DurableError: when the engine cannot start; a Python error in a job module comes with its traceback.
    """
    durable = Durable(on_status, on_engine)
    options = json.dumps({"jobs": jobs, "durability": durability})
    hear_status, take_client = create_proxy(durable._hear_status), create_proxy(durable._take_client)
    await _result(bridge.connect(name, options, hear_status, take_client))
    return durable


class Durable:
    """A connection to one database; ``connect`` makes it.

    ``status`` is ``"starting"``, ``"ready"``, ``"blocked"`` (another tab runs the database), ``"failed"`` or
    ``"closed"``; ``status_message`` says it in words.
    """

    def __init__(self, on_status=None, on_engine=None):
        self.status = "starting"
        self.status_message = ""
        self._on_status = on_status
        self._on_engine = on_engine
        self._client = None

    @property
    def client(self):
        """The JavaScript client, for what this class does not offer."""
        return self._client

    async def trigger(self, job, input=None, **options):
        """Make a run of a job; ``input`` is made of JSON values. Returns the run.

        Options: ``idempotency_key``, ``concurrency_key``, ``coalesce``, ``labels``, ``priority``, and ``run_at`` and
        ``deadline`` in milliseconds since 1970 UTC.
        """
        return Record(await self._call("trigger", job, input, options))

    async def get_run(self, run_id):
        """The run of that id."""
        return Record(await self._call("runs.get", run_id))

    async def list_runs(self, **filters):
        """Runs, newest first. Filters: ``status`` and ``job`` (one or a list), ``labels``, ``search``,
        ``cursor`` (the id of the last run of the page before), ``limit``."""
        return [Record(run) for run in await self._call("runs.list", filters)]

    async def get_steps(self, run_id):
        """The steps of a run, in the order of first recording."""
        return [Record(step) for step in await self._call("runs.steps", run_id)]

    async def retry(self, run_id):
        """Let a run that did not complete go on from its failed step, and return it."""
        return Record(await self._call("runs.retry", run_id))

    async def retrigger(self, run_id):
        """Make a new run with the same input and labels, and return it."""
        return Record(await self._call("runs.retrigger", run_id))

    async def delete_run(self, run_id):
        """Delete a run that has ended, and everything of it."""
        await self._call("runs.delete", run_id)

    async def cancel(self, run_id):
        """Cancel an active run, and return it."""
        return Record(await self._call("runs.cancel", run_id))

    def watch(self, run_id, from_seq=0):
        """Every frame of a run after ``from_seq``, each exactly once, to the run's end: ``async for frame in ...``."""
        return Watch(self._client.runs.watch(run_id, _to_js({"from": from_seq})))

    async def put_file(self, blob, name=None):
        """Make a JavaScript ``File`` or ``Blob`` durable; returns its unique ``name``, ``path`` for jobs, ``size``."""
        return Record(await _result(bridge.putFile(self._client, blob, name)))

    async def get_file(self, name):
        """A durable file as a JavaScript ``Blob``."""
        taken = []
        await _result(bridge.getFile(self._client, name, create_proxy(taken.append)))
        return taken[0]

    async def list_files(self):
        """The durable files: records with ``name``, ``path`` and ``size`` in bytes."""
        return [Record(file) for file in await self._call("files.list")]

    async def delete_file(self, name):
        """Delete a durable file; does nothing when there is none of that name."""
        await self._call("files.delete", name)

    async def when_ready(self):
        """Wait until this tab runs the engine: at once when it does, or when the tab that does has gone away."""
        await _result(bridge.whenReady(self._client))

    async def close(self):
        """Stop the engine, or stop waiting for it. Runs go on when someone connects again."""
        await self._call("close")

    async def _call(self, method, *parameters):
        return await _result(bridge.call(self._client, method, json.dumps(parameters)))

    def _take_client(self, client):
        self._client = client
        if self._on_engine is not None:
            client.addEventListener("engine", create_proxy(self._hear_engine))

    def _hear_engine(self, event):
        self._on_engine(event.detail.state, event.detail.message)

    def _hear_status(self, text):
        detail = json.loads(text)
        self.status = detail["status"]
        self.status_message = detail["message"]
        if self._on_status is not None:
            self._on_status(self.status, self.status_message, detail.get("phase"))


class Watch:
    """The frames of one run, for one ``async for`` loop. Call ``close`` when leaving the loop early."""

    def __init__(self, watch):
        self._watch = watch
        self._frames = []

    def __aiter__(self):
        return self

    async def __anext__(self):
        return (await self.next_batch(1))[0]

    async def next_batch(self, limit=None):
        """The frames that have arrived, at least one and at most ``limit``.

        :raises StopAsyncIteration: when the run has ended.
        """
        if not self._frames:
            self._frames = await _result(bridge.nextBatch(self._watch))
        if not self._frames:
            raise StopAsyncIteration
        batch, self._frames = self._frames[:limit], self._frames[limit:] if limit else []
        return [Record(frame) for frame in batch]

    def close(self):
        """Unsubscribe."""
        self._frames = []
        getattr(self._watch, "return")()


async def _result(promise):
    """What the bridge's promise of JSON text came to."""
    told = json.loads(await promise)
    if "error" in told:
        error = told["error"]
        raise DurableError(error["code"], error["message"], error.get("traceback") or "")
    return told.get("result")


def _to_js(value):
    import js

    return js.JSON.parse(json.dumps(value))


def _snake_case(name):
    found = _names.get(name)
    if found is None:
        found = _names[name] = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
    return found
