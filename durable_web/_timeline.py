"""Watch timelines: replay the stored frames, then follow new commits, without a gap and without a duplicate.

A watcher has one cursor: the run's ``seq``, or the ``id`` over all runs. The watcher gets its frames from a short tail
of recent frames that all watchers of a run (or of all runs) share. A watcher that is further behind reads pages from
the store. So a slow watcher costs the engine nothing, loses nothing, and holds at most one page.

A watcher may pass an ``Offer``: while the watcher waits, each commit offers its frames directly, without a turn of the
event loop. Frames that the offer does not take come in the next batch.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter

from ._clock import Clock
from ._errors import RunNotFound
from ._jobs import Job
from ._model import FRAME_TYPES, TERMINAL, RunDeletedFrame, StoredFrame, job_names, names
from ._store import Store

TAIL_FRAMES = 256
TAIL_CHARACTERS = 1 << 20
PAGE_FRAMES = 512
TURN_SECONDS = 0.01
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_WINDOW = 2000
REMEMBERED_RUNS = 10_000
_ENDS = re.compile(f'"status":"(?:{"|".join(sorted(TERMINAL))})"')
_EVERYTHING = ""  # the key of the tail of all runs; no run has this id

Offer = Callable[[list[StoredFrame]], bool]
"""Called with frames right after their commit; returns ``True`` when it takes them. It may not raise."""


@dataclass(slots=True)
class _Waiting:
    """A watcher that has all frames up to its cursor, and may take new frames directly."""

    cursor: int
    offer: Offer
    last: StoredFrame | None = None  # the last frame that it took


class _Tail:
    """The latest frames of one run, or of all runs, and the watchers that wait for the next ones."""

    def __init__(self, cursor: str) -> None:
        self.position = attrgetter(cursor)
        self.frames: deque[StoredFrame] = deque()
        self.characters = 0
        self.watchers = 0
        self.waiting: list[_Waiting] = []
        self._changed: asyncio.Event | None = None  # of the watchers that wait since the last change

    def push(self, frame: StoredFrame) -> None:
        frames = self.frames
        if frames and self.position(frames[-1]) + 1 != self.position(frame):
            self.clear()
        frames.append(frame)
        self.characters += len(frame.body)
        while len(frames) > TAIL_FRAMES or (self.characters > TAIL_CHARACTERS and len(frames) > 1):
            self.characters -= len(frames.popleft().body)

    def clear(self) -> None:
        self.frames.clear()
        self.characters = 0

    def wake(self) -> None:
        """Offer new frames to the waiting watchers; wake those that do not take them, or have reached the end."""
        are_content = [self._offer(waiting) for waiting in self.waiting]
        if self._changed is not None and (self.watchers > len(are_content) or not all(are_content)):
            self.wake_all()

    def wake_all(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    @property
    def changed(self) -> asyncio.Event:
        """An event that the next change sets."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def _offer(self, waiting: _Waiting) -> bool:
        """Offer new frames to a watcher; ``True`` when it has taken all of them and waits for more."""
        frames = self.after(waiting.cursor)
        if not frames:
            return frames is not None
        try:
            if not waiting.offer(frames):
                return False
        except Exception:  # the error comes again in the watcher's own task, which raises it to its caller
            return False
        waiting.cursor = self.position(frames[-1])
        waiting.last = frames[-1]
        return not ends_run(frames[-1])

    @contextmanager
    def offering(self, waiting: _Waiting) -> Iterator[None]:
        """Offer new frames to a watcher inside the ``with`` block."""
        self.waiting.append(waiting)
        try:
            yield
        finally:
            self.waiting.remove(waiting)

    def after(self, cursor: int) -> list[StoredFrame] | None:
        """The frames after the cursor; ``None`` when the tail does not reach back so far."""
        if not self.frames:
            return None
        known = cursor + 1 - self.position(self.frames[0])
        return None if known < 0 else list(islice(self.frames, known, None))


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter of the frames of all runs: a frame passes when it passes every given part.

    :param jobs: names of jobs; ``None`` means every job, an empty set none.
    :param labels: labels that a frame's run must have, all of them.
    :param kinds: kinds of frames; ``None`` means every kind, an empty set none.
    """

    jobs: frozenset[str] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    kinds: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        jobs: Job | str | Iterable[Job | str] | None,
        labels: dict[str, str] | None,
        kinds: str | Iterable[str] | None,
    ) -> Selection:
        """:raises ValueError: when a kind is unknown."""
        wanted_kinds = None if kinds is None else frozenset(names(kinds))
        for kind in wanted_kinds or ():
            if kind not in FRAME_TYPES:
                raise ValueError(f"A frame's kind is one of {', '.join(FRAME_TYPES)}, not {kind!r}.")
        return cls(None if jobs is None else frozenset(job_names(jobs)), dict(labels or {}), wanted_kinds)

    @property
    def asks_for_runs(self) -> bool:
        """``True`` when the filter needs the job or the labels of the frame's run."""
        return self.jobs is not None or bool(self.labels)

    def takes_run(self, job: str, labels: dict[str, str]) -> bool:
        return (self.jobs is None or job in self.jobs) and self.labels.items() <= labels.items()


class Timeline:
    """The frames of one store, for the watchers in this process."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._tails: dict[str, _Tail] = {}
        self._newest = 0  # the id of the last frame that the tails got, while there are tails
        self._reading = 0.0  # seconds spent on reading and sending histories since the last pause for it
        self._closed = False

    # --- publishing --------------------------------------------------------------------------------------------------

    def publish(self, frames: list[StoredFrame]) -> None:
        """Publish committed frames to the watchers."""
        if not self._tails or not frames:
            return
        if frames[0].id == self._newest + 1:
            self._hand_out(frames)
        else:
            self.look_again()  # another process has committed in between

    def look_again(self) -> None:
        """Publish the frames that another process has committed: read them once for all watchers."""
        if not self._tails:
            return
        newest = self._store.newest_frame_id()
        frames = self._store.read_all_frames(self._newest, PAGE_FRAMES)
        if frames and frames[-1].id == newest:
            self._hand_out(frames)
        elif frames:  # too many for the tails: each watcher reads pages from the store
            self._newest = newest
            for tail in self._tails.values():
                tail.clear()
                tail.wake_all()

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        for tail in self._tails.values():
            tail.wake_all()

    def _hand_out(self, frames: list[StoredFrame]) -> None:
        self._newest = frames[-1].id
        everything = self._tails.get(_EVERYTHING)
        touched: dict[_Tail, None] = {} if everything is None else {everything: None}  # in this order
        for frame in frames:
            tail = self._tails.get(frame.run_id)
            if tail is not None:
                tail.push(frame)
                touched[tail] = None
            if everything is not None:
                everything.push(frame)
        for tail in touched:
            tail.wake()

    # --- watching ----------------------------------------------------------------------------------------------------

    async def watch(
        self, run_id: str, from_seq: int = 0, offer: Offer | None = None
    ) -> AsyncIterator[list[StoredFrame]]:
        """Batches of a run's frames strictly after ``from_seq``, in order, until the run ends.

        :param offer: takes new frames directly while the watch waits; the frames that it takes are in no batch.
        :raises RunNotFound: when there is no such run.
        """
        if not self._store.runs.exists(run_id):
            raise RunNotFound(run_id)
        seq = from_seq
        has_ended = False
        with self._tail(run_id, "seq") as tail:
            while not self._closed and not has_ended:
                changed = tail.changed  # taken before reading: what commits meanwhile sets this one
                frames = tail.after(seq)
                if frames is None:
                    await self._may_read(is_first=seq == from_seq)
                    with _Counted(self):
                        frames = self._store.read_frames(run_id, seq, PAGE_FRAMES)
                    if not frames and self._has_ended(run_id):
                        frames = self._store.read_frames(run_id, seq, PAGE_FRAMES)  # written since, by another process
                        has_ended = not frames
                if frames:
                    seq = frames[-1].seq
                    with _Counted(self):
                        yield frames
                    has_ended = self.is_end(frames[-1])
                elif not self._closed and not has_ended:
                    seq, has_ended = await self._news(tail, changed, seq, offer)

    def is_end(self, frame: StoredFrame) -> bool:
        """``True`` when a frame has ended its run, and no later frame exists, as there is after a retry."""
        return ends_run(frame) and self._store.newest_seq(frame.run_id) == frame.seq

    def _has_ended(self, run_id: str) -> bool:
        """``True`` when a run has ended, or does not exist."""
        standing = self._store.runs.standing(run_id)
        return standing is None or standing[0].is_terminal

    async def _news(self, tail: _Tail, changed: asyncio.Event, cursor: int, offer: Offer | None) -> tuple[int, bool]:
        """Wait for frames that ``offer`` does not take; returns the new cursor, and ``True`` if it took the end."""
        if offer is None:
            await changed.wait()
            return cursor, False
        waiting = _Waiting(cursor, offer)
        with tail.offering(waiting):
            await changed.wait()
        return waiting.cursor, waiting.last is not None and self.is_end(waiting.last)

    def watch_all(
        self, from_id: int | None, selection: Selection, offer: Offer | None = None
    ) -> AsyncIterator[list[StoredFrame]]:
        """Batches of the frames of all runs strictly after ``from_id``, in commit order, until the engine stops.

        :param from_id: ``None`` for the frames that are committed from this call on.
        :param offer: as in ``watch``.
        """
        return self._watch_all(self._store.newest_frame_id() if from_id is None else from_id, selection, offer)

    async def _watch_all(
        self, cursor: int, selection: Selection, offer: Offer | None
    ) -> AsyncIterator[list[StoredFrame]]:
        chosen = _Chosen(self._store, selection)

        def offer_chosen(frames: list[StoredFrame]) -> bool:
            wanted = chosen.among(frames)
            return not wanted or (offer is not None and offer(wanted))

        begin = cursor
        with self._tail(_EVERYTHING, "id") as tail:
            while not self._closed:
                changed = tail.changed
                frames = tail.after(cursor)
                if frames is None:
                    await self._may_read(is_first=cursor == begin)
                    with _Counted(self):
                        frames = self._store.read_all_frames(cursor, PAGE_FRAMES)
                if frames:
                    cursor = frames[-1].id
                    wanted = chosen.among(frames)
                    if wanted:
                        with _Counted(self):
                            yield wanted
                elif not self._closed:
                    cursor, _ = await self._news(tail, changed, cursor, offer and offer_chosen)

    async def logs(self, run_id: str, from_seq: int, limit: int, levels: list[str]) -> list[StoredFrame]:
        """The first ``limit`` log lines of a run after ``from_seq`` whose level is one of ``levels``.

        A run's frames are numbered without gaps, so they are read in windows, with pauses for other work between them.

        :raises RunNotFound: when there is no such run.
        """
        if not self._store.runs.exists(run_id):
            raise RunNotFound(run_id)
        found: list[StoredFrame] = []
        last = self._store.newest_seq(run_id)
        while from_seq < last and len(found) < limit and not self._closed:
            until = min(from_seq + LOG_WINDOW, last)
            await self._may_read(is_first=not from_seq)
            with _Counted(self):
                found += self._store.read_logs(run_id, from_seq, until, levels, limit - len(found))
            from_seq = until
        return found

    @contextmanager
    def _tail(self, key: str, cursor: str) -> Iterator[_Tail]:
        """The tail of a run, or of all runs, while it has a watcher."""
        if not self._tails:
            self._newest = self._store.newest_frame_id()
        tail = self._tails.get(key)
        if tail is None:
            tail = self._tails[key] = _Tail(cursor)
        tail.watchers += 1
        try:
            yield tail
        finally:
            tail.watchers -= 1
            if not tail.watchers:
                self._tails.pop(key, None)

    async def _may_read(self, *, is_first: bool) -> None:
        """Pause for other work between the pages of a long history, and from time to time for messages from outside.

        The first page of a watcher is read at once, unless much was read without a pause.
        """
        if self._reading > TURN_SECONDS:
            self._reading = 0.0
            await self._clock.turn()
        elif not is_first:
            await asyncio.sleep(0)

    def count(self, seconds: float) -> None:
        """Count the time that was spent on reading a history, or on sending it."""
        self._reading += seconds


class _Counted:
    """Counts the time that its block takes. A class and not a generator, because one is used for every batch."""

    __slots__ = ("_began", "_timeline")

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._timeline.count(time.perf_counter() - self._began)


class _Chosen:
    """Chooses the frames of a selection, and caches which of the latest runs belong to it."""

    def __init__(self, store: Store, selection: Selection) -> None:
        self._store = store
        self._selection = selection
        self._runs: OrderedDict[str, bool] = OrderedDict()

    def among(self, frames: list[StoredFrame]) -> list[StoredFrame]:
        kinds = self._selection.kinds
        if kinds is not None:
            frames = [frame for frame in frames if frame.kind in kinds]
        if self._selection.asks_for_runs:
            frames = [frame for frame in frames if self._takes(frame)]
        return frames

    def _takes(self, frame: StoredFrame) -> bool:
        if frame.kind == "run_deleted":  # its run is not in the store any more
            told = frame.to_frame()
            assert isinstance(told, RunDeletedFrame)
            self._runs.pop(frame.run_id, None)
            return self._selection.takes_run(told.job, told.labels)
        takes = self._runs.get(frame.run_id)
        if takes is None:
            takes = self._runs[frame.run_id] = self._selection.takes_run(*self._store.runs.identity(frame.run_id))
            if len(self._runs) > REMEMBERED_RUNS:
                self._runs.popitem(last=False)
        return takes


def at_least(level: str | None) -> list[str]:
    """The levels that are at least as severe as ``level``; all of them for ``None``.

    :raises ValueError: when there is no such level.
    """
    if level is None:
        return list(LOG_LEVELS)
    if level not in LOG_LEVELS:
        raise ValueError(f"A level is one of {', '.join(LOG_LEVELS)}, not {level!r}.")
    return list(LOG_LEVELS[LOG_LEVELS.index(level) :])


def ends_run(frame: StoredFrame) -> bool:
    """``True`` when the frame says that its run has ended, or was deleted."""
    if frame.kind == "run_deleted":
        return True
    return frame.kind == "run_status" and _ENDS.search(frame.body) is not None
