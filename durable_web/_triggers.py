"""The options of a trigger, checked before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict

from ._codec import check_name, decode, encode, refuse_surrogates
from ._flow_control import Gate, gates_of
from ._jobs import Job, Registry
from ._model import to_milliseconds
from ._store import NewRun

Coalesce = Literal["skip", "active"]


class ChildOptions(TypedDict, total=False):
    """The options of a run that another run starts; see :class:`Trigger`."""

    labels: dict[str, str]
    priority: int
    run_at: datetime | None
    deadline: datetime | None


class TriggerOptions(ChildOptions, total=False):
    """The options of a run; see :class:`Trigger`."""

    idempotency_key: str | None
    concurrency_key: str | None
    coalesce: Coalesce | None


_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]+")


@dataclass(frozen=True)
class Trigger:
    """The job, the input and the options of a run to be made; for ``engine.trigger_many``.

    :param job: a job, or the name of one.
    :param input: what the job function gets.
    :param idempotency_key: unique per job for ever: a second trigger with the key returns the run of the first,
        whatever its status. The key is free again when that run is deleted or purged.
    :param concurrency_key: at most one run of the job with the key is pending, and executing runs with the key never
        overlap, across jobs and engines. A run that is cancelled or overdue has up to 5 seconds to clean up before the
        same engine begins the next run; an engine in another process does not wait for that.
    :param coalesce: what to do when a run of the job with the concurrency key exists: ``"skip"`` returns a pending run,
        ``"active"`` a pending, else a running, else a waiting run.
    :param labels: texts by which runs can be found; keys of letters, digits and ``._/-``.
    :param priority: runs of higher priority begin first; among equals, the oldest.
    :param run_at: the run does not begin before this time.
    :param deadline: the run fails with ``DeadlineExceeded`` when it has not ended by then.
    """

    job: Job | str
    input: Any = None
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    coalesce: Coalesce | None = None
    labels: dict[str, str] = field(default_factory=dict)
    priority: int = 0
    run_at: datetime | None = None
    deadline: datetime | None = None

    def check(self, registry: Registry) -> tuple[Job, str]:
        """Check the trigger; returns the job, and the input as the codec's text.

        :raises JobNotFound: when no such job is registered.
        :raises InvalidInput: when the input does not fit the job's type.
        :raises SerializationError: when the input cannot be stored.
        :raises ValueError: when a label, a time or the combination of parameters is wrong.
        """
        job = registry.get(self.job.name, self.job.version) if isinstance(self.job, Job) else registry[self.job]
        if self.coalesce not in (None, "skip", "active"):
            raise ValueError(f'coalesce is "skip" or "active", not {self.coalesce!r}.')
        if self.coalesce is not None and self.concurrency_key is None:
            raise ValueError("coalesce needs a concurrency_key: it says which runs are the same.")
        for name in ("idempotency_key", "concurrency_key"):
            if getattr(self, name) is not None:
                check_name(name, getattr(self, name))
        if type(self.priority) is not int or abs(self.priority) >= 1 << 63:
            raise ValueError(f"priority is a whole number of at most 64 bits, not {self.priority!r}.")
        for moment in (self.run_at, self.deadline):
            to_milliseconds(moment)
        if not isinstance(self.labels, dict):
            raise ValueError(f"labels are a dictionary of strings, not {self.labels!r}.")
        for key, value in self.labels.items():
            if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
                raise ValueError(f"The label key {key!r} is not made of letters, digits and . _ / - alone.")
            if not isinstance(value, str):
                raise ValueError(f"The value of the label {key!r} is {value!r}; it has to be a string.")
            refuse_surrogates(f"The value of the label {key!r}", value)
        return job, checked_input(job, self.input)

    def new_run(self, run_id: str, job: Job, input_text: str, gates: tuple[Gate, ...] = ()) -> NewRun:
        """The run to be inserted, with the gates of its job's flow control, and further ones.

        :raises InvalidInput: when a key of the flow control cannot be found in the input.
        """
        return NewRun(
            run_id,
            job.name,
            job.version,
            input_text,
            dict(self.labels),
            self.idempotency_key,
            self.concurrency_key,
            self.priority,
            to_milliseconds(self.run_at),
            to_milliseconds(self.deadline),
            gates=gates if job.flow.is_free else gates_of(job.name, job.flow, stored_input(job, input_text)) + gates,
        )


def checked_input(job: Job, value: Any) -> str:
    """Validate an input by the job's type, and return it as the codec's text.

    :raises InvalidInput: when the input does not fit the job's type.
    :raises SerializationError: when the input cannot be stored.
    """
    return encode(job.validate_input(value), job.input_type, path=f"input of job {job.name!r}")


def stored_input(job: Job, input_text: str) -> Any:
    """Decode a stored input to the job's type."""
    return job.validate_input(decode(input_text))
