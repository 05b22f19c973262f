"""Holding today's code against the history of a run of yesterday.

A run that is under way when a new release comes goes on by replaying: the new code is called from the top, and given
what the old code has recorded. Whether it then asks for the same things can be tested before it is released.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ..codec import encode, to_json
from ..context import Context
from ..engine import Engine
from ..execution.run import Execution
from ..files import Files
from ..job import Job
from ..model import OperationKind, Run, RunStatus, StepStatus, to_milliseconds
from ..store import NewRun, StepRecord
from .clock import MockClock, settle
from .engines import engine as new_engine

FORMAT = 2

_OF_THE_END = frozenset({OperationKind.COMPENSATION, OperationKind.COMPENSATING, OperationKind.CANCEL})
"""Which of these come depends on how the run was ended."""


@dataclass(frozen=True)
class Replay:
    """What came of replaying a history that today's code agrees with.

    ``unvisited`` are the names of the recorded operations that the code no longer calls, which is allowed: what they
    have done stays done. ``new`` are those that it calls at the end of what is recorded: there a run would go on.
    ``output`` is what the job has returned, ``None`` if it did not end.
    """

    unvisited: list[str]
    new: list[str]
    output: Any = None


def record_history(engine: Engine, run_id: str) -> dict[str, Any]:
    """The history of a run, as JSON data: to be kept in a file beside the tests, for ``assert_replays``.

    It has the run's input and the results of its steps as they are; see to it that they may be kept.

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
    """Make sure that today's code of a job goes on with a run of which ``history`` is recorded.

    The job's function is called with what is recorded, and no function of a step is. It may ask for less than is
    recorded, and for more where the record ends; see :class:`Replay`.

    :param history: what ``record_history`` gave.
    :param others: the jobs that it starts runs of.
    :param patience: seconds to wait for job code that awaits other things than those of its context and of asyncio.
    :raises AssertionError: which names the first operation that differs: one that is recorded as another kind, or a
        new one that comes before what is recorded is at its end; or says that a run which completed now fails.
    :raises ValueError: when it is the history of another job.

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
    """Follows one execution along its history."""

    def __init__(self, history: dict[str, Any]) -> None:
        self.history = history
        self._records = {written["name"]: _step_from_json(written) for written in history["steps"]}
        self._execution: Execution | None = None

    @property
    def new(self) -> dict[str, OperationKind]:
        """Name and kind of what the body awaits, and of which no outcome is recorded."""
        assert self._execution is not None
        awaited = [each for each in self._execution.history.open_operations() if each.kind != OperationKind.TIMER]
        return {each.key: each.kind for each in awaited if self._is_new(each.key)}

    def _is_new(self, key: str) -> bool:
        record = self._records.get(key)
        return record is None or record.status == StepStatus.RUNNING

    @property
    def unvisited(self) -> list[str]:
        """The names of what is recorded, and was not asked for."""
        assert self._execution is not None
        unasked = self._execution.history.unasked()
        return [name for name, record in self._records.items() if name in unasked and record.is_settled]

    @property
    def began_at(self) -> int:
        """When the run began; milliseconds since 1970-01-01 UTC. The time of its event loop counts from there."""
        return self.history["started_at"] or 0

    def insert(self, engine: Engine) -> None:
        """Put the run into the engine's database, as it was when all of its steps were recorded."""
        history, store = self.history, engine.internals.store
        made = NewRun(history["run_id"], history["job"], history["version"], to_json(history["input"]), {})
        with store.transaction():
            store.runs.insert(made, 0)
            for record in self._records.values():
                if record.kind not in _OF_THE_END:
                    store.steps.record(made.id, record, 0)

    def new_context(self, execution: Execution, files: Files) -> Context:
        """The context of an execution that begins nothing which is not recorded."""
        execution.replay_only()
        self._execution = execution
        return Context(execution, files)

    async def come_to_rest(self, patience: float) -> None:
        """Wait until the job has ended, or waits for what is not recorded."""
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
