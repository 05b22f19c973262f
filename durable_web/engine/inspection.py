"""Reading runs, steps and timelines: the part of an engine that answers questions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from ..job import Job
from ..model import Frame, LogFrame, Run, RunFilter, Step, StoredFrame
from ..timeline import Offer, Selection, at_least
from .parts import EngineParts

COUNTABLE = ("status", "job")


class Inspection(EngineParts):
    """What can be asked of an engine."""

    async def get_run(self, run_id: str) -> Run:
        """The run of that id.

        :raises RunNotFound: when there is none.
        """
        return self._running_store().runs.get(run_id)

    async def list_runs(
        self,
        *,
        order: str = "newest",
        limit: int = 50,
        cursor: str | None = None,
        payloads: bool = True,
        **filters: Any,
    ) -> list[Run]:
        """A page of runs; the filters are those of :class:`RunFilter`.

        :param order: ``"newest"`` or ``"oldest"`` first; the order is stable.
        :param limit: at most so many, from 1 to 1,000.
        :param cursor: the id of the last run of the page before this one.
        :param payloads: whether the runs come with their ``input`` and ``output``; without, both are ``None``, and a
            page of runs is small however much they hold.
        :raises ValueError: when a status, the order or the limit is none.
        :raises TypeError: when it is no text that is searched for.
        """
        if type(limit) is not int or not 1 <= limit <= 1000:
            raise ValueError(f"limit is a number from 1 to 1000, not {limit!r}")
        if order not in ("newest", "oldest"):
            raise ValueError(f'order is "newest" or "oldest", not {order!r}')
        wanted = RunFilter(**filters)
        oldest_first = order == "oldest"
        runs = self._running_store().runs
        return runs.list(wanted, oldest_first=oldest_first, after=cursor, limit=limit, payloads=payloads)

    async def count_runs(self, by: str = "status") -> dict[str, int]:
        """How many runs there are for each ``"status"`` or ``"job"``.

        :raises ValueError: when ``by`` is something else.
        """
        if by not in COUNTABLE:
            raise ValueError(f"runs are counted by one of {', '.join(COUNTABLE)}, not by {by!r}")
        return self._running_store().runs.count(by)

    async def get_steps(self, run_id: str) -> list[Step]:
        """The steps of a run, in the order of first recording, with their failed attempts.

        :raises RunNotFound: when there is no such run.
        """
        store = self._running_store()
        store.runs.get(run_id)
        return store.steps.get(run_id)

    async def get_event(self, run_id: str, key: str, default: Any = None) -> Any:
        """The value that a run has published last under ``key`` (``ctx.set_event``), or ``default``.

        :raises RunNotFound: when there is no such run.
        """
        store = self._running_store()
        store.runs.get(run_id)
        return store.steps.get_value(run_id, key, default)

    async def watch(self, run_id: str, from_seq: int = 0) -> AsyncIterator[Frame]:
        """Every frame of a run strictly after ``from_seq``: first the history, then what commits; ends with the run.

        :raises RunNotFound: when there is no such run.
        """
        async for frame in _frames(self.watch_batches(run_id, from_seq)):
            yield frame

    def watch_batches(
        self, run_id: str, from_seq: int = 0, *, offer: Offer | None = None
    ) -> AsyncIterator[list[StoredFrame]]:
        """What ``watch`` gives, in batches of stored frames; for forwarding to another process or a page.

        :param offer: is called with frames right after their commit, when all before them were taken, and returns
            whether it has taken these; they come in no batch then. It may not raise.
        """
        self._running_store()
        return self._timeline.watch(run_id, from_seq, offer)

    def is_end(self, frame: StoredFrame) -> bool:
        """Whether a frame has ended its run, and nothing has followed it by now: with it a watch of the run ends."""
        self._running_store()
        return self._timeline.is_end(frame)

    def watch_all(
        self,
        from_id: int | None = 0,
        *,
        jobs: Job | str | Iterable[Job | str] | None = None,
        labels: dict[str, str] | None = None,
        kinds: str | Iterable[str] | None = None,
    ) -> AsyncIterator[Frame]:
        """Every run's frames in commit order: first the history, then what commits; ends when the engine stops.

        Of a run that was deleted the history has one frame, of the kind ``run_deleted``, for 30 days.

        :param from_id: the ``id`` of the last frame that is known already; ``None`` for what is committed from now on.
        :param jobs: only frames of runs of these jobs: one or its name, or several; an empty list passes none.
        :param labels: only frames of runs that have these labels, all of them.
        :param kinds: only frames of these kinds: ``"run_status"``, or several; an empty list passes none.
        :raises ValueError: when there is no such kind.
        """
        return _frames(self.watch_all_batches(from_id, jobs=jobs, labels=labels, kinds=kinds))

    def watch_all_batches(
        self,
        from_id: int | None = 0,
        *,
        jobs: Job | str | Iterable[Job | str] | None = None,
        labels: dict[str, str] | None = None,
        kinds: str | Iterable[str] | None = None,
        offer: Offer | None = None,
    ) -> AsyncIterator[list[StoredFrame]]:
        """What ``watch_all`` gives, in batches of stored frames; ``offer`` as ``watch_batches`` has it."""
        self._running_store()
        return self._timeline.watch_all(from_id, Selection.of(jobs, labels, kinds), offer)

    def newest_frame_id(self) -> int:
        """The ``id`` of the frame that was committed last, after which all is new; 0 before any."""
        return self._running_store().newest_frame_id()

    async def logs(self, run_id: str, from_seq: int = 0, limit: int = 100, level: str | None = None) -> list[LogFrame]:
        """A page of the lines that a run has written, oldest first.

        :param from_seq: the ``seq`` of the last line of the page before; 0 for the first page.
        :param limit: at most so many, from 1 to 1,000; fewer come when there are no more.
        :param level: only lines at least so severe: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
        :raises RunNotFound: when there is no such run.
        :raises ValueError: when the limit or the level is none.
        """
        if type(limit) is not int or not 1 <= limit <= 1000:
            raise ValueError(f"limit is a number from 1 to 1000, not {limit!r}")
        self._running_store()
        found = await self._timeline.logs(run_id, from_seq, limit, at_least(level))
        return [frame.to_frame() for frame in found]  # type: ignore[misc]


async def _frames(batches: AsyncIterator[list[StoredFrame]]) -> AsyncIterator[Frame]:
    """The frames of batches one by one; leaving them leaves the batches at once."""
    async with aclosing(batches):  # type: ignore[type-var]
        async for batch in batches:
            for frame in batch:
                yield frame.to_frame()
