"""Check today's code against the recorded history of an earlier run.

A run that is active during a new release goes on by replay: the new code is called from the top, and its operations
return what the old code has recorded. ``assert_replays`` tests before the release that the new code asks for the same
operations.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from .._codec import encode, to_json
from .._context import Context
from .._engine import Engine
from .._execution.run import Execution
from .._files import Files
from .._jobs import Job
from .._model import OperationKind, Run, RunStatus, StepStatus, to_milliseconds
from .._store import NewRun, StepRecord
from ._clock import MockClock, settle
from ._engines import engine as new_engine

FORMAT = 2

_OF_THE_END = frozenset({OperationKind.COMPENSATION, OperationKind.COMPENSATING, OperationKind.CANCEL})
"""Operations of these kinds depend on how the run has ended, so a replay does not compare them."""


@dataclass(frozen=True)
class Replay:
    """The result of replaying a history with code that agrees with the history.

    ``unvisited`` are the names of the recorded operations that the code no longer calls, which is allowed: their
    effects stay. ``new`` are the operations that the code calls at the end of the history, where a run would go on.
    ``output`` is the job's result, ``None`` if the job did not end.
    """

    unvisited: list[str]
    new: list[str]
    output: Any = None


def record_history(engine: Engine, run_id: str) -> dict[str, Any]:
    """The history of a run, as JSON data: to be kept in a file beside the tests, for ``assert_replays``.

    It contains the run's input and the results of its steps: check it for secrets before you keep it.

    :raises RunNotFound: when there is no such run.

    >>> run = await e.trigger(order, "A-1")
    >>> file = Path(folder) / "order.json"
    >>> file.write_text(json.dumps(record_history(e, run.id)))
    """
    store = engine.internals.store
    run = store.runs.get(run_id)
    return {
        "format": FORMAT,
        "run_id": run_id,
        "job": run.job,
        "version": run.version,
        "status": run.status.value,
        "started_at": to_milliseconds(run.started_at),
        "input": json.loads(encode(run.input)),
        "steps": [_step_to_json(record) for record in store.steps.load(run_id).values()],
    }


def _step_to_json(record: StepRecord) -> dict[str, Any]:
    written = record._asdict()
    return {**written, "output": None if record.output is None else json.loads(record.output)}


def _step_from_json(written: dict[str, Any]) -> StepRecord:
    output = written["output"]
    has_output = output is not None or written["status"] == StepStatus.COMPLETED
    return StepRecord(**{**written, "output": to_json(output) if has_output else None})


async def assert_replays(history: dict[str, Any], job: Job, *others: Job, patience: float = 1.0) -> Replay:
    """Check that today's code of a job can continue the run whose ``history`` is given.

    The job's function is called and its operations return the recorded outcomes; no step's function is called. The job
    may skip recorded operations, and may call new ones at the end of the history; see :class:`Replay`.

    :param history: the data that ``record_history`` returned.
    :param others: the jobs of the child runs that the job starts.
    :param patience: seconds to wait for job code that awaits objects which neither its context nor asyncio provides.
    :raises AssertionError: with the first operation that differs: recorded as another kind, or new and called before
        the end of the history; or when a run that completed now fails.
    :raises ValueError: when the history is of another job.

    >>> run = await e.trigger(order, "A-1")
    >>> await settle()
    >>> history = record_history(e, run.id)
    >>> assert (await assert_replays(history, order)).new == ["approval"]
    """
    if (history.get("format"), history.get("job")) != (FORMAT, job.name):
        raise ValueError(f"This is no history of format {FORMAT} of job {job.name!r}: record one with record_history.")
    replay = _Replaying(history)
    jobs = [*others, dataclasses.replace(job, version=history["version"])]
    async with new_engine(*jobs, clock=MockClock(replay.began_at)) as engine:
        dispatcher = engine.internals.dispatcher
        dispatcher.new_context = replay.new_context
        replay.insert(engine)
        dispatcher.claim()
        await replay.come_to_rest(patience)
        replay.check(await engine.runs.get(history["run_id"]))
        run = await engine.runs.get(history["run_id"])
    return Replay(replay.unvisited, list(replay.new), run.output)


class _Replaying:
    """Compares one execution with its history."""

    def __init__(self, history: dict[str, Any]) -> None:
        self.history = history
        self._records = {written["name"]: _step_from_json(written) for written in history["steps"]}
        self._execution: Execution | None = None

    @property
    def new(self) -> dict[str, OperationKind]:
        """Name and kind of the operations that the body awaits and that have no recorded outcome."""
        assert self._execution is not None
        awaited = [each for each in self._execution.history.open_operations() if each.kind != OperationKind.TIMER]
        return {each.key: each.kind for each in awaited if self._is_new(each.key)}

    def _is_new(self, key: str) -> bool:
        record = self._records.get(key)
        return record is None or record.status == StepStatus.RUNNING

    @property
    def unvisited(self) -> list[str]:
        """The names of the recorded operations that the body has not called."""
        assert self._execution is not None
        unasked = self._execution.history.unasked()
        return [name for name, record in self._records.items() if name in unasked and record.is_settled]

    @property
    def began_at(self) -> int:
        """When the run began, in milliseconds since 1970-01-01 UTC. The time of the body's event loop starts there."""
        return self.history["started_at"] or 0

    def insert(self, engine: Engine) -> None:
        """Insert the run into the engine's database with all of its recorded steps."""
        history, store = self.history, engine.internals.store
        made = NewRun(history["run_id"], history["job"], history["version"], to_json(history["input"]), {})
        with store.transaction():
            store.runs.insert(made, 0)
            for record in self._records.values():
                if record.kind not in _OF_THE_END:
                    store.steps.record(made.id, record, 0)

    def new_context(self, execution: Execution, files: Files) -> Context:
        """The context of an execution that begins no operation which is not recorded."""
        execution.replay_only()
        self._execution = execution
        return Context(execution, files)

    async def come_to_rest(self, patience: float) -> None:
        """Wait until the job has ended, or waits for an operation that is not recorded."""
        execution, loop = self._execution, asyncio.get_running_loop()
        assert execution is not None
        until = loop.time() + patience
        while True:
            await settle()
            if execution.left.done() or execution.history.broken or (self.new and not self.unvisited):
                return
            if loop.time() >= until:
                return
            await asyncio.sleep(0.01)

    def check(self, run: Run) -> None:
        """:raises AssertionError: when the code does not agree with the history."""
        assert self._execution is not None
        difference = self._execution.history.broken
        if difference is not None:
            raise AssertionError(f"The job does not replay: {difference}") from difference
        if run.error is not None and self.history["status"] == RunStatus.COMPLETED:
            raise AssertionError(
                f"The job does not replay: the run has completed, and would now fail with {run.error.type}: "
                f"{run.error.message}"
            )
        if not run.is_terminal:
            self._check_where_it_stands()

    def _check_where_it_stands(self) -> None:
        if not self.unvisited:
            return
        recorded = self._records[self.unvisited[0]]
        if not self.new:
            raise AssertionError(
                f"The job does not replay: it did not come to {recorded.name!r} ({recorded.kind}), which is recorded, "
                "and waits for something that is none of its context's."
            )
        name, kind = next(iter(self.new.items()))
        raise AssertionError(
            f"The job does not replay: {name!r} ({kind}) is called where {recorded.name!r} ({recorded.kind}) is "
            "recorded. Let active runs skip it: `if await ctx.patched(...)`, or give the job a version."
        )
