"""The frames of one watch on their way to a client, against credit and at a pace.

Credit is counted in characters and given back by the client when its own code has taken the frames. So neither the
port nor the page holds more of a watch than was granted, however slow the page is.

What commits is sent on the spot, in the turn of its commit, unless something was sent a moment before: then it waits
for what comes after it, so that many small commits do not become as many messages.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..model import StoredFrame

PIECE_CHARACTERS = 64 * 1024
PIECE_FRAMES = 256
PACE_SECONDS = 0.004

Send = Callable[[str], None]


class FrameSender:
    """Sends the frames of one watch as ``{"type": "frames", "id", "size", "frames"}``, against credit.

    The message with the frame that ends the watch has ``"end": true``: none follows it.
    """

    def __init__(self, watch_id: Any, credit: int, send: Send, is_end: Callable[[StoredFrame], bool]) -> None:
        self.has_ended = False
        self._head = f'{{"type":"frames","id":{json.dumps(watch_id)},"size":'
        self._credit = credit
        self._granted = asyncio.Event()
        self._send = send
        self._is_end = is_end
        self._last_sent = 0.0

    def grant(self, characters: int) -> None:
        """The client takes so many more characters."""
        self._credit += characters
        self._granted.set()

    def offer(self, frames: list[StoredFrame]) -> bool:
        """Send what has just committed, if it may go on the spot; whether it was sent."""
        if self._credit <= 0 or time.perf_counter() - self._last_sent < PACE_SECONDS:
            return False
        if len(frames) > PIECE_FRAMES or sum(len(frame.body) for frame in frames) > PIECE_CHARACTERS:
            return False  # too much for one message
        self._post(",".join([frame.to_json() for frame in frames]), frames[-1])
        return True

    async def send(self, frames: list[StoredFrame]) -> None:
        """Send frames when there is credit for them.

        They are sent while there is any left, so that a frame which is longer than all of it gets through.
        """
        for text, last in pieces(frames):
            while self._credit <= 0:
                self._granted.clear()
                await self._granted.wait()
            self._post(text, last)

    def _post(self, text: str, last: StoredFrame) -> None:
        self.has_ended = self._is_end(last)
        self._credit -= len(text)
        self._last_sent = time.perf_counter()
        end = ',"end":true' if self.has_ended else ""
        self._send(f'{self._head}{len(text)}{end},"frames":[{text}]}}')


def pieces(batch: list[StoredFrame]) -> Iterator[tuple[str, StoredFrame]]:
    """A batch as JSON texts that a page reads in a moment each: frames separated by commas, and the last of them."""
    texts: list[str] = []
    characters = 0
    last = batch[-1]
    for frame in batch:
        text = frame.to_json()
        if texts and (characters + len(text) > PIECE_CHARACTERS or len(texts) == PIECE_FRAMES):
            yield ",".join(texts), last
            texts, characters = [], 0
        texts.append(text)
        characters += len(text)
        last = frame
    yield ",".join(texts), last
