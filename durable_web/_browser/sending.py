"""Send the frames of one watch to a client, limited by credit and batched over time.

Credit is counted in characters. The client grants it again when its own code has taken the frames. So neither the port
nor the page holds more of a watch than was granted, however slow the page is.

Frames are sent in the turn of their commit, unless other frames were sent a moment before: then they wait for later
frames, so that many small commits share one message.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from .._model import StoredFrame

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
        """Add credit for so many more characters."""
        self._credit += characters
        self._granted.set()

    def offer(self, frames: list[StoredFrame]) -> bool:
        """Send frames that were just committed, if they may be sent at once; returns ``True`` when they were sent."""
        if self._credit <= 0 or time.perf_counter() - self._last_sent < PACE_SECONDS:
            return False
        if len(frames) > PIECE_FRAMES or sum(len(frame.body) for frame in frames) > PIECE_CHARACTERS:
            return False  # too much for one message
        self._post(",".join([frame.to_json() for frame in frames]), frames[-1])
        return True

    async def send(self, frames: list[StoredFrame]) -> None:
        """Send frames when there is credit for them.

        Frames are sent while any credit is left, so that a frame which is longer than the whole credit is sent too.
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
    """Split a batch into JSON texts of limited length: frames separated by commas, each with its last frame."""
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
