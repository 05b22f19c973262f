"""Deliver messages to runs from outside: signals, events, webhooks and updates."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .._clock import Clock
from .._codec import check_name, decode, encode
from .._errors import DurableWebError, RunNotActive, RunNotFound, UpdateRejected, WebhookNotFound
from .._jobs import Job, Registry, rejection
from .._model import Run, StepStatus
from .._store import Store
from .._triggers import Trigger
from .admission import Admitted

MakeRun = Callable[[Store, Trigger, Job, str, int], Admitted]


class Delivery:
    """Delivers to the runs of one store; each delivery is one transaction."""

    def __init__(
        self, store: Store, registry: Registry, clock: Clock, new_id: Callable[[], str], make: MakeRun
    ) -> None:
        """``make`` makes a run as ``engine.trigger`` does, inside a transaction."""
        self._store = store
        self._registry = registry
        self._clock = clock
        self._new_id = new_id
        self._make = make
        self._answers: dict[tuple[str, str, str], asyncio.Future[None]] = {}

    # --- signals -----------------------------------------------------------------------------------------------------

    def signal(self, run_id: str, name: str, payload: Any, signal_id: str | None) -> bool:
        """Deliver a signal, inside a transaction; ``False`` when one of that id was delivered before."""
        _check("A signal", name, signal_id)
        run = self._store.runs.last_link(run_id)
        run_id, text = run.id, self._check_signal(run, name, payload)
        now = self._clock.now()
        topic = f"signal:{name}"
        message_id = signal_id or self._new_id()
        if not self._store.messages.send(run_id, topic, message_id, text, now):
            return False
        self._store.waits.hand_out(run_id, topic, now, f"signal {name!r} has come")
        return True

    def _check_signal(self, run: Run, name: str, payload: Any) -> str:
        if not run.is_active:
            raise RunNotActive(run.id, run.status.value, "signalled")
        declared: Any = Any
        job = self._job_of(run)
        if job is not None:
            payload, declared = job.validate_signal(name, payload), job.signals.get(name, Any)
        return encode(payload, declared, path=f"payload of signal {name!r}")

    def _job_of(self, run: Run) -> Job | None:
        """The job of a run, in its version if that is registered here; ``None`` when the job is not."""
        found = self._registry.find(run.job, run.version)
        if found is None and run.job in self._registry:
            found = self._registry[run.job]
        return found

    # --- events ------------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: Any, event_id: str | None) -> list[str]:
        """Deliver an event to the runs that wait for it, and start its jobs; returns the ids of all these runs.

        Inside a transaction.
        """
        check_name("An event's topic", topic)
        if event_id is not None:
            check_name("An event's id", event_id)
        for job in self._registry:
            if topic in job.events:
                job.validate_event(topic, payload)
        text = encode(payload, path=f"payload of event {topic!r}")
        now = self._clock.now()
        if event_id is not None and not self._store.messages.publish(event_id, topic, now):
            return []
        reached = []
        for run_id, name, detail in self._store.waits.find(f"event:{topic}"):
            if detail is None or includes(decode(text), decode(detail)):
                reason = f"an event on {topic!r} has come"
                self._store.waits.settle(run_id, name, now, output=text, reason=reason)
                reached.append(run_id)
        triggers = [Trigger(job, payload) for job in self._registry.started_by(topic)]
        started = [self._make(self._store, trigger, *trigger.check(self._registry), now).run_id for trigger in triggers]
        return list(dict.fromkeys(reached + started))

    # --- webhooks ----------------------------------------------------------------------------------------------------

    def webhook(self, token: str, body: Any) -> bool:
        """Deliver the body of a webhook, inside a transaction; ``False`` when it was delivered before."""
        topic = f"webhook:{token}"
        found = self._store.waits.status(topic)
        if found is None:
            raise WebhookNotFound
        run_id, name, status = found
        if status == StepStatus.COMPLETED:
            return False
        text = encode(body, path="body of the webhook")
        reason = f"webhook {name!r} was called"
        if not self._store.waits.settle(run_id, name, self._clock.now(), output=text, reason=reason):
            raise WebhookNotFound
        return True

    # --- updates -----------------------------------------------------------------------------------------------------

    def update(self, run_id: str, name: str, argument: Any, update_id: str | None) -> str:
        """Send an update, inside a transaction, and return its id. An update that was sent before is not sent again."""
        _check("An update", name, update_id)
        run = self._store.runs.last_link(run_id)
        run_id = run.id
        message_id = update_id or os.urandom(16).hex()
        topic = f"update:{name}"
        if self._store.messages.outcome(run_id, topic, message_id) is not None:
            return message_id
        if not run.is_active:
            raise RunNotActive(run_id, run.status.value, "updated")
        text = self._check_update(run, name, argument)
        now = self._clock.now()
        self._store.messages.send(run_id, topic, message_id, text, now)
        self._store.waits.poke(run_id, now, f"update {name!r} has come")
        return message_id

    def _check_update(self, run: Run, name: str, argument: Any) -> str:
        """The argument as text.

        :raises InvalidInput, UpdateRejected: as the declared type and validator decide.
        """
        job = self._job_of(run)
        if job is None:
            return encode(argument, path=f"argument of update {name!r}")
        argument, declared = job.validate_update(name, argument), job.updates.get(name, Any)
        reason = rejection(job.validators.get(name), argument)
        if reason is not None:
            raise UpdateRejected(run.id, name, reason)
        return encode(argument, declared, path=f"argument of update {name!r}")

    async def answer(self, run_id: str, name: str, message_id: str) -> Any:
        """Wait for the run's answer to an update, and return it.

        :raises UpdateRejected: when the run does not accept the update, or ends without an answer.
        """
        while True:
            with suppress(RunNotFound):
                run_id = self._store.runs.last_link(run_id).id  # it may have gone on as another run meanwhile
            key = run_id, name, message_id
            found = self._store.messages.outcome(run_id, f"update:{name}", message_id)
            status, outcome = ("gone", None) if found is None else found
            if status == "answered":
                return decode(outcome or "null")
            if status == "rejected":
                raise UpdateRejected(run_id, name, decode(outcome or "null"))
            if found is None or not self._store.runs.get(run_id).is_active:
                raise UpdateRejected(run_id, name, "the run ended without answering it")
            changed = self._answers.setdefault(key, asyncio.get_running_loop().create_future())
            await asyncio.shield(changed)

    def look_again(self, run_ids: set[str] | None = None) -> None:
        """Recheck the pending answers of these runs, or of all runs."""
        for key in list(self._answers):
            if run_ids is None or key[0] in run_ids:
                self._answers.pop(key).set_result(None)

    def close(self) -> None:
        """Fail every pending answer, because the engine stops."""
        for waiting in self._answers.values():
            waiting.set_exception(
                DurableWebError(
                    "The engine stopped before the update was answered. The update stays sent: give the next engine "
                    "the same update_id to receive the answer."
                )
            )
            waiting.exception()  # marks it as retrieved: there may be no waiter any more
        self._answers.clear()


def _check(what: str, name: object, message_id: object) -> None:
    """:raises ValueError: when the name or the id of a message is not a non-empty text."""
    check_name(f"{what}'s name", name)
    if message_id is not None:
        check_name(f"{what}'s id", message_id)


def includes(whole: Any, part: Any) -> bool:
    """``True`` when ``whole`` contains ``part``: of dictionaries the keys of ``part`` are compared, other values are
    equal."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and includes(whole[key], part[key]) for key in part)
    return _equal(whole, part)


def _equal(one: Any, other: Any) -> bool:
    """Equality that distinguishes ``True`` from ``1``, at every depth."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other
