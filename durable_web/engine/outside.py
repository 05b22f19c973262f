"""The calls with which the world talks to runs: signals, events, webhooks, updates, pausing and resuming."""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import RunNotActive
from ..job import Job
from ..model import Run
from ..triggers import Trigger
from .parts import EngineParts


class Outside(EngineParts):
    """How the world talks to runs."""

    async def signal(self, run_id: str, name: str, payload: Any = None, signal_id: str | None = None) -> bool:
        """Send a signal to a run; it is kept until ``ctx.wait_for_signal`` takes it, first in, first out.

        :param signal_id: a second signal of that id is not delivered.
        :returns: ``False`` when one of that id was delivered before.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        :raises InvalidInput, SerializationError: when the payload does not fit its declared type, or cannot be stored.
        """
        store = self._running_store()
        self._dispatcher.commits.flush()  # an earlier signal may be on its way back from a wait that was called off
        with store.transaction():
            return self._delivery.signal(run_id, name, payload, signal_id)

    async def trigger_with_signal(
        self, job: Job | str, input: Any, name: str, payload: Any = None, signal_id: str | None = None, **options: Any
    ) -> Run:
        """``trigger`` a run, or find the one that stands for it, and send it a signal, in one transaction.

        Raises what these two raise; then neither has happened.
        """
        store = self._running_store()
        trigger = Trigger(job, input, **options)
        checked = (trigger, *trigger.check(self._registry))
        self._dispatcher.commits.flush()
        with store.transaction():
            (run,) = self._make_all(store, [checked])
            self._delivery.signal(run.id, name, payload, signal_id)
        self._dispatcher.look_at_the_time()
        return run

    async def publish(self, topic: str, payload: Any = None, event_id: str | None = None) -> list[str]:
        """Let an event reach every run that waits for it (``ctx.wait_for_event``), and start the jobs with
        ``on_event=topic``, in one transaction; returns the ids of these runs.

        :param event_id: a second event of that id within 30 days reaches nobody.
        :raises InvalidInput, SerializationError: when the payload does not fit the input of a job that it starts, or
            cannot be stored.
        :raises RateLimited: when the rate limit of a job that it starts has no room. The event has reached nobody then.
        """
        with self._running_store().transaction():
            reached = self._delivery.publish(topic, payload, event_id)
        self._dispatcher.look_at_the_time()
        return reached

    async def deliver_webhook(self, token: str, body: Any = None) -> bool:
        """Deliver what was sent to a webhook of ``ctx.webhook``; ``False`` when it was delivered before.

        :raises WebhookNotFound: when the token is wrong, or its run has ended.
        :raises SerializationError: when the body cannot be stored.
        """
        with self._running_store().transaction():
            return self._delivery.webhook(token, body)

    async def update(
        self,
        run_id: str,
        name: str,
        argument: Any = None,
        *,
        update_id: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send an update to a run, and wait for its answer (``ctx.on_update``, ``Update.answer``).

        :param update_id: a second update of that id is not sent; its answer is that of the first.
        :param timeout: seconds to wait for the answer; the update itself stays sent.
        :raises UpdateRejected: when the run does not accept it, or ends without answering.
        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        :raises TimeoutError: when there is no answer by then.
        """
        with self._running_store().transaction():
            message_id = self._delivery.update(run_id, name, argument, update_id)
        async with asyncio.timeout(timeout):
            return await self._delivery.answer(run_id, name, message_id)

    async def pause(self, run_id: str) -> Run:
        """Let a run start no further step until it is resumed; the step under way is finished.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended or is being compensated.
        """
        store = self._running_store()
        with store.transaction():
            store.runs.pause(run_id, self._clock.now())
        return store.runs.get(run_id)

    async def resume(self, run_id: str) -> Run:
        """Let a run go on that is paused, or stands at a breakpoint; does nothing to another one.

        :raises RunNotFound, RunNotActive: when there is no such run, or it has ended.
        """
        store = self._running_store()
        with store.transaction():
            run = store.runs.get(run_id)
            if not run.is_active:
                raise RunNotActive(run_id, run.status.value, "resumed")
            store.runs.unpause(run_id, self._clock.now())
            store.waits.resume_breakpoints(run_id, self._clock.now())
        self._dispatcher.look_at_the_time()
        return store.runs.get(run_id)
