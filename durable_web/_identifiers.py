"""Identifiers of runs: globally unique, and ordered by time of creation.

ULIDs (https://github.com/ulid/spec): 48 bits of milliseconds and 80 bits of randomness, as 26 characters of Crockford's
base 32. Within one millisecond the random part counts up, as the specification's monotonic factory does, so that runs
triggered in one burst keep their order. The randomness comes from the operating system (in a browser, from
``crypto.getRandomValues``) and never from ``random``, whose state a restored memory snapshot would repeat.
"""

from __future__ import annotations

import hashlib
import os

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_RANDOM_BITS = 80


class IdentifierFactory:
    """Makes run ids."""

    def __init__(self) -> None:
        self._last = 0

    def new(self, milliseconds: int) -> str:
        """A new id for the time ``milliseconds`` since 1970-01-01 UTC; greater than every earlier id of this
        factory."""
        if milliseconds > self._last >> _RANDOM_BITS:
            self._last = (milliseconds << _RANDOM_BITS) | int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
        else:
            self._last += 1
        return _text(self._last)


def derive(parent: str, name: str) -> str:
    """The id of the run that the run ``parent`` starts under ``name``: deterministic, and ordered beside its parent.

    The time part is the parent's; the other part is a SHA-256 of the parent's id and the name.
    """
    digest = hashlib.sha256(f"{parent}/{name}".encode()).digest()[: _RANDOM_BITS // 8]
    return parent[:-16] + _text(int.from_bytes(digest, "big"))[-16:]


def _text(number: int) -> str:
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])
