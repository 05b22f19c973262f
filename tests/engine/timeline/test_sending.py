"""Frames on their way to a page: at once, but not one message for each; and never more than the page will take."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from durable_web._browser.sending import PACE_SECONDS, PIECE_CHARACTERS, PIECE_FRAMES, FrameSender
from durable_web._model import StoredFrame


class Port:
    """A watch whose messages are kept, and whose time stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, credit: int) -> None:
        self.now = 1000.0
        self.messages: list[dict[str, Any]] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self.sender = FrameSender(7, credit, self._send, lambda frame: "completed" in frame.body)

    def _send(self, text: str) -> None:
        self.messages.append(json.loads(text))

    @property
    def seqs(self) -> list[int]:
        return [frame["seq"] for message in self.messages for frame in message["frames"]]


@pytest.fixture
def port(monkeypatch):
    def make(credit: int = 1 << 20) -> Port:
        return Port(monkeypatch, credit)

    return make


def frame(seq: int, message: str = "line") -> StoredFrame:
    return StoredFrame(seq, seq, 0, "run", "log", json.dumps({"message": message}))


async def test_what_commits_is_sent_on_the_spot_unless_something_was_sent_a_moment_before(port):
    watch = port()
    assert watch.sender.offer([frame(1)])
    assert not watch.sender.offer([frame(2)])
    watch.now += PACE_SECONDS
    assert watch.sender.offer([frame(2), frame(3)])
    assert [len(message["frames"]) for message in watch.messages] == [1, 2]
    assert watch.seqs == [1, 2, 3]


async def test_nothing_is_sent_on_the_spot_without_credit_or_when_it_is_too_much_for_one_message(port):
    watch = port(credit=10)
    assert watch.sender.offer([frame(1)])  # there was some credit
    watch.now += PACE_SECONDS
    assert not watch.sender.offer([frame(2)])
    watch.sender.grant(1 << 20)
    assert not watch.sender.offer([frame(seq) for seq in range(2, PIECE_FRAMES + 3)])
    assert not watch.sender.offer([frame(2, "x" * PIECE_CHARACTERS)])
    assert watch.sender.offer([frame(2)])


async def test_a_batch_is_sent_in_pieces_as_credit_comes_in(port):
    watch = port(credit=1)
    sending = asyncio.ensure_future(watch.sender.send([frame(seq) for seq in range(1, 2 * PIECE_FRAMES + 2)]))
    await asyncio.sleep(0)
    assert watch.seqs == list(range(1, PIECE_FRAMES + 1))
    watch.sender.grant(1 << 20)
    await sending
    assert watch.seqs == list(range(1, 2 * PIECE_FRAMES + 2))


async def test_the_message_with_the_frame_that_ends_the_watch_says_so(port):
    watch = port()
    await watch.sender.send([frame(1), frame(2, "completed"), frame(3)])
    assert not watch.sender.has_ended  # a retry has undone that end
    await watch.sender.send([frame(4, "completed")])
    assert watch.sender.has_ended
    assert ["end" in message for message in watch.messages] == [False, True]
