"""Durable jobs for the Python of a page, under PyScript's Pyodide and MicroPython alike.

    from durable_page import connect

    durable = await connect("accounts", jobs=["./jobs.py"])
    run = await durable.trigger("import-csv", {"path": path})
    async for frame in durable.runs.watch(run.id):
        print(frame.kind, frame)

The page's PyScript configuration names this file under ``files`` and ``python-bridge.js`` under ``js_modules.main`` as
``durable_web_bridge``. The jobs themselves run elsewhere, in the engine's worker; this module only talks to it.
MicroPython has neither dataclasses nor asynchronous generators, which is why there are none here.
"""

import json

from pyscript import Event
from pyscript.ffi import create_proxy
from pyscript.js_modules import durable_web_bridge as bridge

TERMINAL = ("completed", "failed", "cancelled", "dead")
#: How many log lines a binding keeps, unless told otherwise.
MOST_LINES = 1000

_names = {}
_SAME = object()  # the input that the run has


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


async def connect(name, jobs=None, *, durability=None, on_status=None, on_engine=None, max_recoveries=None):
    """Connect to the database ``name``, in which the jobs of the modules at the URLs ``jobs`` are run.

    Returns a ``Durable`` when the engine is ready, in this tab or in another one that runs the database. Without
    ``jobs`` the page uses the engine of another tab, with that tab's jobs. ``durability`` is ``"full"`` (the default:
    it survives a power cut) or ``"normal"`` (faster; it survives any death of the browser).
    ``on_status`` is called with the status, a message, and the phase of starting, now and whenever they change.
    ``on_engine`` is called with a state and a message when the engine stops claiming runs (``"storage_full"`` or
    ``"storage_error"``) and when it goes on (``"running"``).
    A run is dead when more than ``max_recoveries`` (5) deaths of the engine in one of its steps count against it.

    :raises DurableError: when the engine cannot start; a Python error in a job module comes with its traceback.
    """
    durable = Durable(on_status, on_engine)
    options = json.dumps(_given(jobs=jobs, durability=durability, max_recoveries=max_recoveries))
    hear_status, take_client = create_proxy(durable._hear_status), create_proxy(durable._take_client)
    await _result(bridge.connect(name, options, hear_status, take_client))
    return durable


class Durable:
    """A connection to one database; ``connect`` makes it.

    ``status`` is ``"starting"`` (also while another tab takes over), ``"ready"``, ``"failed"`` or ``"closed"``;
    ``status_message`` says it in words. ``role`` is ``"leader"`` where this tab runs the engine, ``"follower"`` where
    another one does, and None while neither is known.
    """

    def __init__(self, on_status=None, on_engine=None):
        self.status = "starting"
        self.status_message = ""
        self.role = None
        self._on_status = on_status
        self._on_engine = on_engine
        self._client = None
        self.runs = Runs(self)
        self.schedules = Schedules(self)
        self.files = Files(self)

    @property
    def client(self):
        """The JavaScript client, for what this class does not offer."""
        return self._client

    # --- calls --------------------------------------------------------------------------------------------------------

    async def trigger(
        self,
        job,
        input=None,
        *,
        idempotency_key=None,
        concurrency_key=None,
        coalesce=None,
        labels=None,
        priority=None,
        run_at=None,
        deadline=None,
    ):
        """Make a run of a job; ``input`` is made of JSON values. Returns the run.

        :param idempotency_key: a second trigger of the job with the same key gives the first one's run.
        :param concurrency_key: at most one run of the job with that key executes at a time.
        :param coalesce: ``"skip"`` or ``"active"``: a waiting (or active) run with that key stands for the new one.
        :param labels: a dict of texts; ``priority``: a whole number, the higher goes first.
        :param run_at, deadline: milliseconds since 1970-01-01 UTC.
        """
        options = _given(
            idempotency_key=idempotency_key,
            concurrency_key=concurrency_key,
            coalesce=coalesce,
            labels=labels,
            priority=priority,
            run_at=run_at,
            deadline=deadline,
        )
        return Record(await self._call("trigger", job, input, options))

    async def trigger_with_signal(
        self,
        job,
        input,
        name,
        payload=None,
        *,
        signal_id=None,
        idempotency_key=None,
        concurrency_key=None,
        coalesce=None,
        labels=None,
        priority=None,
        run_at=None,
        deadline=None,
    ):
        """Make a run of a job, or find the active one with its key, and send it a signal, all or nothing. Returns it.

        A second signal of one ``signal_id`` is not delivered; the other options are those of ``trigger``.
        """
        signal = {"name": name, "payload": payload, "signalId": signal_id}
        options = _given(
            idempotency_key=idempotency_key,
            concurrency_key=concurrency_key,
            coalesce=coalesce,
            labels=labels,
            priority=priority,
            run_at=run_at,
            deadline=deadline,
        )
        return Record(await self._call("triggerWithSignal", job, input, signal, options))

    async def publish(self, topic, payload=None, event_id=None):
        """Let an event reach every run that waits for it, and start the jobs that it starts; the ids of these runs."""
        return await self._call("publish", topic, payload, {"eventId": event_id})

    async def deliver_webhook(self, token, body=None):
        """Deliver what was sent to a run's webhook; False when it was delivered before."""
        return await self._call("deliverWebhook", token, body)

    async def when_ready(self):
        """Wait until the engine is ready, in this tab or in another: at once, unless one is just taking over."""
        await _result(bridge.whenReady(self._client))

    async def close(self):
        """Leave the database. Runs go on in another tab that is connected, or when someone connects again."""
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
        self.role = detail.get("role")
        if self._on_status is not None:
            self._on_status(self.status, self.status_message, detail.get("phase"))


class Runs:
    """The runs of a database; ``durable.runs``."""

    def __init__(self, durable):
        self._durable = durable

    async def get(self, run_id):
        """The run of that id."""
        return Record(await self._durable._call("runs.get", run_id))

    async def list(
        self,
        *,
        status=None,
        job=None,
        labels=None,
        search=None,
        created_after=None,
        created_before=None,
        parent=None,
        order=None,
        cursor=None,
        limit=None,
        payloads=None,
    ):
        """A page of runs.

        :param status, job: one, or a list; ``labels``: those that a run must have; ``search``: in ids, jobs and labels.
        :param created_after, created_before: milliseconds since 1970-01-01 UTC.
        :param parent: the id of the run that has started them.
        :param order: ``"newest"`` (the default) or ``"oldest"`` first.
        :param cursor: the id of the last run of the page before; ``limit``: at most so many.
        :param payloads: False leaves out their input and output.
        """
        filters = _given(
            status=status,
            job=job,
            labels=labels,
            search=search,
            created_after=created_after,
            created_before=created_before,
            parent=parent,
            order=order,
            cursor=cursor,
            limit=limit,
            payloads=payloads,
        )
        return [Record(run) for run in await self._durable._call("runs.list", filters)]

    async def count(self, by="status"):
        """How many runs there are for each ``"status"`` or ``"job"``, as a dict."""
        return await self._durable._call("runs.count", by)

    async def steps(self, run_id):
        """The steps of a run, in the order of first recording."""
        return [Record(step) for step in await self._durable._call("runs.steps", run_id)]

    async def value(self, run_id, key, default=None):
        """The value that a run has published last under a key, or ``default``."""
        return await self._durable._call("runs.value", run_id, key, {"default": default})

    async def logs(self, run_id, from_seq=0, limit=100, level=None):
        """A page of a run's log lines, oldest first: those after ``from_seq``, at least as severe as ``level``."""
        options = {"from": from_seq, "limit": limit}
        if level is not None:
            options["level"] = level
        return [Record(line) for line in await self._durable._call("runs.logs", run_id, options)]

    async def cancel(self, run_id, compensate=False):
        """Cancel an active run and those it has started, and return it; with ``compensate``, its completed steps are
        undone first."""
        return Record(await self._durable._call("runs.cancel", run_id, {"compensate": compensate}))

    async def pause(self, run_id):
        """Let a run start no further step until it is resumed, and return it."""
        return Record(await self._durable._call("runs.pause", run_id))

    async def resume(self, run_id):
        """Let a run go on that is paused or stands at a breakpoint, and return it."""
        return Record(await self._durable._call("runs.resume", run_id))

    async def signal(self, run_id, name, payload=None, signal_id=None):
        """Send a signal to a run; False when one of that ``signal_id`` was delivered before."""
        return await self._durable._call("runs.signal", run_id, name, payload, {"signalId": signal_id})

    async def update(self, run_id, name, argument=None, update_id=None, timeout=None):
        """Send an update to a run, and return its answer; ``timeout`` in seconds."""
        return await self._durable._call(
            "runs.update", run_id, name, argument, {"updateId": update_id, "timeout": timeout}
        )

    async def retry(self, run_id, *, input=_SAME):
        """Let a run that did not complete go on from its failed step, and return it; ``input`` gives it another."""
        return Record(await self._durable._call("runs.retry", run_id, {} if input is _SAME else {"input": input}))

    async def retrigger(self, run_id):
        """Make a new run with the same input and labels, and return it."""
        return Record(await self._durable._call("runs.retrigger", run_id))

    async def fork(self, run_id, from_step):
        """Make a new run that has the steps before the one named, and return it."""
        return Record(await self._durable._call("runs.fork", run_id, from_step))

    async def delete(self, run_id):
        """Delete a run that has ended, and everything of it."""
        await self._durable._call("runs.delete", run_id)

    def watch(self, run_id, from_seq=0):
        """Every frame of a run after ``from_seq``, each exactly once, to the run's end: ``async for frame in ...``."""
        return Watch(self._durable._client.runs.watch(run_id, _to_js({"from": from_seq})))

    def watch_all(self, from_id=0, jobs=None, labels=None, kinds=None):
        """The frames of all runs after the one whose ``id`` is ``from_id``, each exactly once, without end.

        :param from_id: ``"now"`` for what happens from now on.
        :param jobs: names of jobs; ``labels``: those that a run must have; ``kinds``: such as ``["run_status"]``.
        """
        wanted = {"from": from_id, "jobs": jobs, "labels": labels, "kinds": kinds}
        given = {name: value for name, value in wanted.items() if value is not None}
        return Watch(self._durable._client.runs.watchAll(_to_js(given)))


class Schedules:
    """The schedules of a database; ``durable.schedules``."""

    def __init__(self, durable):
        self._durable = durable

    async def create(
        self,
        name,
        job,
        *,
        cron=None,
        every=None,
        timezone=None,
        input=None,
        overlap=None,
        catch_up=None,
        jitter=None,
        labels=None,
    ):
        """Trigger a job again and again; the same name again changes the schedule. Returns it.

        :param cron: five fields, with a ``timezone`` such as ``"Europe/Berlin"``; or ``every``.
        :param every, jitter: seconds, or a text such as ``"15m"``.
        :param overlap: ``"skip"``, ``"queue"`` or ``"allow"``, when the run before has not ended.
        :param catch_up: ``"none"``, ``"latest"`` or ``"all"`` of the due times at which no tab was open.
        """
        options = _given(
            cron=cron,
            every=every,
            timezone=timezone,
            input=input,
            overlap=overlap,
            catch_up=catch_up,
            jitter=jitter,
            labels=labels,
        )
        return Record(await self._durable._call("schedules.create", name, job, options))

    async def list(self):
        """All schedules, by name."""
        return [Record(schedule) for schedule in await self._durable._call("schedules.list")]

    async def pause(self, name):
        """Let a schedule trigger nothing until it is resumed, and return it."""
        return Record(await self._durable._call("schedules.pause", name))

    async def resume(self, name):
        """Let a schedule go on with its next due time, and return it."""
        return Record(await self._durable._call("schedules.resume", name))

    async def delete(self, name):
        """Delete a schedule; the runs that it has made stay."""
        await self._durable._call("schedules.delete", name)


class Files:
    """The durable files of a database; ``durable.files``."""

    def __init__(self, durable):
        self._durable = durable

    async def put(self, blob, name=None):
        """Make a JavaScript ``File`` or ``Blob`` durable; returns its unique ``name``, ``path`` for jobs, ``size``."""
        return Record(await _result(bridge.putFile(self._durable._client, blob, name)))

    async def get(self, name):
        """A durable file as a JavaScript ``Blob``."""
        taken = []
        await _result(bridge.getFile(self._durable._client, name, create_proxy(taken.append)))
        return taken[0]

    async def list(self):
        """The durable files: records with ``name``, ``path`` and ``size`` in bytes."""
        return [Record(file) for file in await self._durable._call("files.list")]

    async def delete(self, name):
        """Delete a durable file; does nothing when there is none of that name."""
        await self._durable._call("files.delete", name)


def job(durable, name, auto_resume=True, follow_latest=True, max=MOST_LINES):
    """The runs of a job, live: a ``JobBinding``."""
    options = {"autoResume": auto_resume, "followLatest": follow_latest, "max": max}
    return JobBinding(bridge.bindJob(durable.client, name, json.dumps(options)))


def run(durable, run_id, max=MOST_LINES):
    """One run, live: a ``RunBinding``, which keeps the latest ``max`` log lines."""
    return RunBinding(bridge.bindRun(durable.client, run_id, json.dumps({"max": max})))


def logs(durable, run_id, max=MOST_LINES):
    """The latest ``max`` log lines of a run, live: a ``LogsBinding``."""
    return LogsBinding(bridge.bindLogs(durable.client, run_id, json.dumps({"max": max})))


def runs(
    durable,
    *,
    page_size=20,
    realtime=True,
    payloads=False,
    status=None,
    job=None,
    labels=None,
    search=None,
    created_after=None,
    created_before=None,
    parent=None,
    order=None,
):
    """The runs that pass the filters of ``durable.runs.list``, live, a page at a time: a ``RunsBinding``. They come
    without their input and output, unless ``payloads`` asks for them."""
    options = _given(
        page_size=page_size,
        realtime=realtime,
        payloads=payloads,
        status=status,
        job=job,
        labels=labels,
        search=search,
        created_after=created_after,
        created_before=created_before,
        parent=parent,
        order=order,
    )
    return RunsBinding(bridge.bindRuns(durable.client, json.dumps(options)))


def actions(durable):
    """What can be done with runs, live: an ``ActionsBinding``."""
    return ActionsBinding(bridge.bindActions(durable.client))


class Watch:
    """Frames, for one ``async for`` loop. Call ``close`` when leaving the loop early."""

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


class _Binding:
    """What is live on the page. ``changed`` is a ``pyscript.Event``, triggered with the binding at most once per
    animation frame: ``@when(binding.changed)`` calls a function then.

    What it shows is worked out in JavaScript; here it is fetched when something is asked for after a change.
    """

    def __init__(self, binding):
        self._binding = binding
        self._state = None
        self._proxy = create_proxy(self._hear)
        self.changed = Event()
        binding.addEventListener("changed", self._proxy)

    @property
    def problem(self):
        """Why it cannot show what it should, as a ``DurableError``; else None."""
        return _to_error(self._get("problem"))

    @property
    def text(self):
        """What ``bind`` writes into an element."""
        return self._binding.text

    @property
    def is_hydrated(self):
        """Whether the database was asked for all that it shows."""
        return self._get("isHydrated")

    async def hydrated(self):
        """Wait until it shows what is in the database, or has a ``problem``."""
        await self._do("hydrated")

    def bind(self, element):
        """Render it into an element, now and whenever it changes: as text, never as HTML. A ``<progress>`` shows how
        far the run has come."""
        self._binding.bind(element)

    def close(self):
        """End it: it follows nothing any more."""
        self._binding.removeEventListener("changed", self._proxy)
        self._binding.close()

    def _hear(self, event):
        self._state = None
        self.changed.trigger(self)

    def _get(self, name):
        if self._state is None:
            self._state = json.loads(bridge.stateOf(self._binding))
        return self._state[name]

    async def _do(self, method, *parameters):
        try:
            return await _result(bridge.call(self._binding, method, json.dumps(parameters)))
        finally:
            self._state = None  # what was done shows at once


class RunBinding(_Binding):
    """One run, live: hydrated from the database, then kept up to date."""

    def __init__(self, binding):
        super().__init__(binding)
        self._lines = []
        self._lines_of = None

    @property
    def run(self):
        """The run as a ``Record``, or None."""
        run = self._get("run")
        return None if run is None else Record(run)

    @property
    def run_id(self):
        """The id of the run that is shown, or None."""
        return self._get("runId")

    @property
    def status(self):
        """``"pending"``, ``"running"``, ``"waiting"``, ``"cancelling"``, ``"completed"``, ``"failed"``,
        ``"cancelled"``, ``"dead"``; None when there is no run."""
        return (self._get("run") or {}).get("status")

    @property
    def output(self):
        """What the job has returned, when the run is completed."""
        return (self._get("run") or {}).get("output")

    @property
    def error(self):
        """Why the run failed: a ``Record`` with ``type`` and ``message``, or None."""
        error = (self._get("run") or {}).get("error")
        return None if error is None else Record(error)

    @property
    def progress(self):
        """A ``Record`` with ``current``, ``total`` and ``message``, or None."""
        progress = (self._get("run") or {}).get("progress")
        return None if progress is None else Record(progress)

    @property
    def percentage(self):
        """How much is done, in percent; None where the end is not known."""
        return self._get("percentage")

    @property
    def step_count(self):
        """How many steps have ended."""
        return self._get("stepCount")

    @property
    def interruptions(self):
        """How often the run was executing when its engine went away."""
        return self._get("interruptions")

    @property
    def steps(self):
        """The latest ends of steps, oldest first: records with ``name``, ``status``, ``attempt``, ``duration`` in
        seconds, and ``interruptions``: how often the run had been interrupted before."""
        return [Record(step) for step in json.loads(bridge.stepsOf(self._binding))]

    @property
    def published(self):
        """What the run has published last under each key, as a dict."""
        return json.loads(bridge.publishedOf(self._binding))

    @property
    def dropped_logs(self):
        """How many older log lines are not kept."""
        return self._get("droppedLogs")

    @property
    def logs(self):
        """The latest log lines, oldest first: records with ``ts``, ``level``, ``message``, ``fields``, ``step``."""
        known = self._lines[-1].seq if self._lines else 0
        told = json.loads(bridge.linesOf(self._binding, json.dumps([self._lines_of, known])))
        new = [Record(line) for line in told["lines"]]
        if told["runId"] != self._lines_of:
            self._lines_of = told["runId"]
            self._lines = new
        else:
            self._lines = (self._lines + new)[len(self._lines) + len(new) - told["kept"] :]
        return self._lines

    @property
    def is_pending(self):
        return self.status == "pending"

    @property
    def is_running(self):
        return self.status == "running"

    @property
    def is_waiting(self):
        return self.status == "waiting"

    @property
    def is_completed(self):
        return self.status == "completed"

    @property
    def is_failed(self):
        return self.status == "failed"

    @property
    def is_cancelled(self):
        return self.status == "cancelled"

    @property
    def is_dead(self):
        return self.status == "dead"

    @property
    def is_active(self):
        return self.status is not None and not self.is_terminal

    @property
    def is_terminal(self):
        return self.status in TERMINAL


class LogsBinding(RunBinding):
    """The log lines of a run, live; ``bind`` writes them into an element such as ``<pre>``."""


class JobBinding(RunBinding):
    """The runs of a job, one at a time: the one that was triggered here last; with ``auto_resume`` one that has not
    ended when the page is opened; with ``follow_latest`` also each that is triggered elsewhere, as in another tab."""

    async def trigger(
        self,
        input=None,
        *,
        idempotency_key=None,
        concurrency_key=None,
        coalesce=None,
        labels=None,
        priority=None,
        run_at=None,
        deadline=None,
    ):
        """Make a run, and show it. The options are those of ``Durable.trigger``. Returns the run."""
        options = _given(
            idempotency_key=idempotency_key,
            concurrency_key=concurrency_key,
            coalesce=coalesce,
            labels=labels,
            priority=priority,
            run_at=run_at,
            deadline=deadline,
        )
        return Record(await self._do("trigger", input, options))

    async def trigger_and_wait(
        self,
        input=None,
        *,
        idempotency_key=None,
        concurrency_key=None,
        coalesce=None,
        labels=None,
        priority=None,
        run_at=None,
        deadline=None,
    ):
        """The same, but returns the run when it has ended, however."""
        options = _given(
            idempotency_key=idempotency_key,
            concurrency_key=concurrency_key,
            coalesce=coalesce,
            labels=labels,
            priority=priority,
            run_at=run_at,
            deadline=deadline,
        )
        return Record(await self._do("triggerAndWait", input, options))

    def reset(self):
        """Show no run, until there is a new one. The run goes on."""
        self._binding.reset()
        self._state = None


class RunsBinding(_Binding):
    """The runs that pass a filter, a page at a time."""

    @property
    def items(self):
        """The runs of the page that is shown, as records."""
        return [Record(run) for run in self._get("items")]

    @property
    def page(self):
        """The number of the page that is shown, from 1."""
        return self._get("page")

    @property
    def has_more(self):
        """Whether there is a page after the one that is shown."""
        return self._get("hasMore")

    @property
    def has_previous(self):
        """Whether there is a page before the one that is shown."""
        return self._get("hasPrevious")

    async def next(self):
        """Show the runs after those that are shown."""
        await self._do("next")

    async def previous(self):
        """Show the runs before those that are shown."""
        await self._do("previous")

    async def go_to_page(self, page):
        """Show a page, or the last one where there are not so many; ``page`` counts from 1."""
        await self._do("goToPage", page)

    async def refresh(self):
        """Read the page that is shown again."""
        await self._do("refresh")


class ActionsBinding(_Binding):
    """What a person may do with runs. ``is_busy`` while something is being done; ``error`` is what went wrong last."""

    @property
    def is_busy(self):
        return self._get("isBusy")

    @property
    def error(self):
        """A ``DurableError``, or None."""
        return _to_error(self._get("error"))

    async def retry(self, run_id, *, input=_SAME):
        """Let a run that did not complete go on from its failed step, and return it; ``input`` gives it another."""
        return Record(await self._do("retry", run_id, {} if input is _SAME else {"input": input}))

    async def retrigger(self, run_id):
        """Make a new run with the same input and labels, and return it."""
        return Record(await self._do("retrigger", run_id))

    async def fork(self, run_id, from_step):
        """Make a new run that has the steps before the one named, and return it."""
        return Record(await self._do("fork", run_id, from_step))

    async def cancel(self, run_id, compensate=False):
        """Cancel an active run, and return it; with ``compensate``, its completed steps are undone first."""
        return Record(await self._do("cancel", run_id, {"compensate": compensate}))

    async def pause(self, run_id):
        """Let a run start no further step until it is resumed, and return it."""
        return Record(await self._do("pause", run_id))

    async def resume(self, run_id):
        """Let a run go on that is paused or stands at a breakpoint, and return it."""
        return Record(await self._do("resume", run_id))

    async def signal(self, run_id, name, payload=None, signal_id=None):
        """Send a signal to a run; False when one of that ``signal_id`` was delivered before."""
        return await self._do("signal", run_id, name, payload, {"signalId": signal_id})

    async def delete(self, run_id):
        """Delete a run that has ended, and everything of it."""
        await self._do("delete", run_id)

    async def get(self, run_id):
        """The run of that id."""
        return Record(await self._do("get", run_id))

    async def steps(self, run_id):
        """The steps of a run, in the order of first recording."""
        return [Record(step) for step in await self._do("steps", run_id)]


async def _result(promise):
    """What the bridge's promise of JSON text came to."""
    told = json.loads(await promise)
    if "error" in told:
        raise _to_error(told["error"])
    return told.get("result")


def _to_error(told):
    return None if told is None else DurableError(told["code"], told["message"], told.get("traceback") or "")


def _to_js(value):
    import js

    return js.JSON.parse(json.dumps(value))


def _given(**options):
    """The options that are not None, by their names in JavaScript."""
    return {_camel_case(name): value for name, value in options.items() if value is not None}


def _camel_case(name):
    head, *tail = name.split("_")
    return head + "".join(part[0].upper() + part[1:] for part in tail)


def _snake_case(name):
    found = _names.get(name)
    if found is None:
        found = _names[name] = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
    return found
