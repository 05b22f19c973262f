"""Dead letters: when a run is marked dead, start its dead-letter job exactly once, in the same transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from .._clock import Clock
from .._codec import decode, encode
from .._errors import DurableWebError, InvalidInput, JobNotFound
from .._flow_control import FREE
from .._jobs import Job, Registry
from .._notifications import Events
from .._store import NewRun, Store
from .._triggers import Trigger
from .admission import Admission


class DeadLetters:
    """Starts the runs that handle dead ones.

    A dead run starts no handler when it is itself a handler, a run that a handler has started, or the continuation of
    one. So two jobs may handle each other's dead runs without a loop. A job does not handle its own dead runs.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        clock: Clock,
        events: Events,
        default: Job | str | None,
        new_id: Callable[[], str],
    ) -> None:
        """``default`` handles the dead runs of jobs that declare no ``dead_letter``."""
        self._store = store
        self._registry = registry
        self._clock = clock
        self._events = events
        self._default = default
        self._new_id = new_id

    def send(self, run_id: str, job: str, input_text: str, error: dict[str, str]) -> None:
        """Start the run that handles a dead one, if the job has a handler; once per dead run."""
        try:
            handler = self._registry.dead_letter_of(job, self._default)
        except JobNotFound as trouble:
            self._report(trouble, run_id)
            return
        if handler is None or handler.name == job or self._store.runs.serves_dead_letter(run_id):
            return
        key = f"dlq:{run_id}"
        if self._store.runs.find_by_idempotency_key(handler.name, key) is not None:
            return
        letter = {"run_id": run_id, "job": job, "input": decode(input_text), "error": error}
        made = self._new_run(handler, Trigger(handler, letter, idempotency_key=key), run_id)
        self._store.runs.link_dead_letter(run_id, made.id)

    def _new_run(self, handler: Job, trigger: Trigger, run_id: str) -> NewRun:
        """Make the run, without gates if the job's flow control rejects the input, so that no letter is lost."""
        text, now = encode(trigger.input), self._clock.now()
        try:
            run = dataclasses.replace(trigger.new_run(self._new_id(), handler, text), dead_letter_of=run_id)
            Admission(self._store, handler, run, now).admit_dead_letter()
        except InvalidInput as trouble:
            self._report(trouble, run_id)
            free = dataclasses.replace(handler, flow=FREE)
            run = dataclasses.replace(trigger.new_run(self._new_id(), free, text), dead_letter_of=run_id)
            self._store.runs.insert(run, now)
        return run

    def _report(self, trouble: DurableWebError, run_id: str) -> None:
        self._events.report(trouble, "handling a dead run", self._clock.now(), run_id)
