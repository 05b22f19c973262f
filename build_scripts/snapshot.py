"""The memory snapshot: Python as it is when it has started and imported the engine, so that no browser has to do that.

`snapshot.mjs` does it once, in Node.js, and writes down the WebAssembly memory. What is shipped are the words of it
that differ from the memory of a Pyodide that has not started: `web/worker/memory-snapshot.js` writes them into one.
This is the file before it is compressed with gzip. Numbers are unsigned, of 32 bits, little-endian; every section's
size is a multiple of 4:

    8 bytes     "DWSNAP01"
    4 numbers   the sizes of the four sections, in bytes
    8 bytes     zero
    32 bytes    SHA-256 of the four sections
    section 1   JSON: for which files it was made, and how large the memory is; padded with spaces
    section 2   runs, as pairs of numbers: how many words to leave as they are, how many to write
    section 3   the words to write
    section 4   the durable-web wheel, from which Python imports what is not imported yet; padded with zeros
"""

import gzip
import hashlib
import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from environment import BUILD, ROOT
from packages import NODE_MODULES, digest, find_node, read_stamp, scratch_folder, sha256
from progress import SetupError, run, stage, write_atomically

PYODIDE_FILES = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")

_SCRIPT = Path(__file__).with_name("snapshot.mjs")
_FOLDER = BUILD / "snapshot"
_SHORTEST_GAP = 5
"""Words; a shorter gap between two runs is written too, because it costs less than another run."""
_BLOCK = 4096
"""Bytes that are compared at once, as most of them are the same."""


def make_snapshot(own_wheel: Path) -> Path:
    """The compressed snapshot, made again only if Pyodide, the engine or the way it is made have changed.

    :raises SetupError: when Node.js cannot make it.
    """
    snapshot = _FOLDER / "snapshot.bin.gz"
    stamp_file = _FOLDER / "stamp"
    pyodide = NODE_MODULES / "pyodide"
    stamp = digest([*(pyodide / name for name in PYODIDE_FILES), own_wheel, Path(__file__), _SCRIPT])
    with stage("memory snapshot"):
        if read_stamp(stamp_file) != stamp or not snapshot.exists():
            with scratch_folder() as folder:
                wheel_path = f"/lib/{own_wheel.name}"
                run([find_node(), _SCRIPT, pyodide, own_wheel, wheel_path, folder], cwd=ROOT)
                content = _pack(folder, own_wheel, wheel_path)
            write_atomically(snapshot, gzip.compress(content, mtime=0))
            write_atomically(stamp_file, stamp.encode())
    return snapshot


def _pack(folder: Path, wheel: Path, wheel_path: str) -> bytes:
    """The snapshot, from what snapshot.mjs has left in a folder."""
    description = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    description |= {"wheelPath": wheel_path, "wheelSha256": sha256(wheel)}
    python, *starts = ((folder / name).read_bytes() for name in ("python.bin", "start-1.bin", "start-2.bin"))
    if {len(python)} != {len(start) for start in starts}:
        raise SetupError("Pyodide's memory has another size before its start than after: the snapshot cannot be made.")
    runs = list(_runs(_changed_words(python, *starts)))
    ends = itertools.chain([0], (end for _, end in runs))
    pairs = [
        number for (start, end), before in zip(runs, ends, strict=False) for number in (start - before, end - start)
    ]
    words = b"".join(python[4 * start : 4 * end] for start, end in runs)
    text, content = json.dumps(description).encode(), wheel.read_bytes()
    sections = (
        text + b" " * (-len(text) % 4),
        struct.pack(f"<{len(pairs)}I", *pairs),
        words,
        content + bytes(-len(content) % 4),
    )
    body = b"".join(sections)
    preamble = struct.pack("<8s4I8x", b"DWSNAP01", *map(len, sections)) + hashlib.sha256(body).digest()
    return preamble + body


def _changed_words(python: bytes, first: bytes, second: bytes) -> Iterator[int]:
    """The words that are not as they are before every start, by their number.

    What differs between one start and another (the time, random numbers, the environment) is taken along as well, so
    that all of it is of one piece.
    """
    for offset in range(0, len(python), _BLOCK):
        blocks = [memory[offset : offset + _BLOCK] for memory in (python, first, second)]
        if blocks[0] == blocks[1] == blocks[2]:
            continue
        words = zip(*(memoryview(block).cast("I") for block in blocks), strict=True)
        yield from (offset // 4 + index for index, (a, b, c) in enumerate(words) if not a == b == c)


def _runs(words: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring words, as (first, one after the last)."""
    start = end = next(words)
    for word in words:
        if word - end >= _SHORTEST_GAP:
            yield start, end
            start = word
        end = word + 1
    yield start, end
