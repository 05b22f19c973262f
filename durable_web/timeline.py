"""Watching timelines: replay what is stored, then follow what commits, without a gap and without a duplicate.

A watcher has one cursor. It is served from a short tail of fresh frames that all watchers of a run share, or, when it
is further behind than that, from the store; so a slow watcher costs the engine nothing and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from .model import TERMINAL, StoredFrame
from .store import Store

TAIL_FRAMES = 256
PAGE_FRAMES = 512
_TERMINAL_MARKS = tuple(f'"status":"{status}"' for status in TERMINAL)


class _Tail:
    """The latest frames of one watched run, and who is waiting for the next."""

    def __init__(self) -> None:
        self.frames: deque[StoredFrame] = deque(maxlen=TAIL_FRAMES)
        self.watchers = 0
        self.changed = asyncio.Event()

    def push(self, frame: StoredFrame) -> None:
        if self.frames and self.frames[-1].seq + 1 != frame.seq:  # another process has written in between
            self.frames.clear()
        self.frames.append(frame)
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, seq: int) -> list[StoredFrame] | None:
        """The frames after ``seq``; ``None`` when the tail does not reach back so far."""
        if not self.frames or self.frames[0].seq > seq + 1:
            return None
        return [frame for frame in self.frames if frame.seq > seq]


class Timeline:
    """The frames of one store, for those who watch in this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tails: dict[str, _Tail] = {}
        self._closed = False

    def publish(self, frames: list[StoredFrame]) -> None:
        """Hand freshly committed frames to the watchers."""
        for frame in frames:
            tail = self._tails.get(frame.run_id)
            if tail is not None:
                tail.push(frame)

    def look_again(self) -> None:
        """Let every watcher read the store: another process has committed to it."""
        for tail in self._tails.values():
            tail.frames.clear()
            tail.wake()

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        for tail in self._tails.values():
            tail.wake()

    async def watch(self, run_id: str, from_seq: int = 0) -> AsyncIterator[list[StoredFrame]]:
        """Batches of a run's frames strictly after ``from_seq``, in order; ends with the run.

        :raises RunNotFound: when there is no such run.
        """
        run = self._store.runs.get(run_id)
        tail = self._tails.setdefault(run_id, _Tail())
        tail.watchers += 1
        seq = from_seq
        ended = run.is_terminal
        try:
            while not self._closed:
                changed = tail.changed  # taken before reading: what commits meanwhile sets this one
                frames = tail.after(seq)
                if frames is None:
                    frames = self._store.read_frames(run_id, seq, PAGE_FRAMES)
                    ended = ended or not (frames or self._store.runs.exists(run_id))
                    await asyncio.sleep(0)  # a long history leaves room for other work between its pages
                if frames:
                    seq = frames[-1].seq
                    yield frames
                    ended = ends_run(frames[-1])
                elif ended:
                    return
                elif not self._closed:
                    await changed.wait()
        finally:
            tail.watchers -= 1
            if not tail.watchers:
                self._tails.pop(run_id, None)


def ends_run(frame: StoredFrame) -> bool:
    """Whether the frame says that its run has ended, or is gone."""
    if frame.kind == "run_deleted":
        return True
    return frame.kind == "run_status" and any(mark in frame.body for mark in _TERMINAL_MARKS)
