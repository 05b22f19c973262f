"""How a command shows its work: one line per stage, silence on success, everything on failure.

    with stage("npm packages") as progress:
        run(["npm", "ci"], cwd=WEB)

prints "npm packages ............ ready (2.3 s)". What is written is written whole: `write_atomically` and `exclusive`
keep an interrupted or a second command from leaving half a file behind.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_WIDTH = 26


class SetupError(Exception):
    """The set-up cannot go on. The message says what is wrong and what to do about it."""


class Stage:
    """One line of progress; `result` is the word it ends with."""

    def __init__(self) -> None:
        self.result = "ready"


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Announce a stage, and end its line with the stage's result, and with the seconds if it took more than one."""
    print(f"{name + ' ':.<{_WIDTH}} ", end="", flush=True)
    started = time.monotonic()
    current = Stage()
    try:
        yield current
    except BaseException:
        print("failed", flush=True)
        raise
    seconds = time.monotonic() - started
    print(current.result + (f" ({seconds:.1f} s)" if seconds >= 1 else ""), flush=True)


def run(command: Sequence[str | Path], *, cwd: Path | None = None) -> None:
    """Run a program silently.

    :raises SetupError: when it cannot be started or fails, with all that it printed.
    """
    words = [str(word) for word in command]
    try:
        finished = subprocess.run(
            words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise SetupError(f"Cannot start {words[0]}: {error.strerror}.") from error
    if finished.returncode != 0:
        output = finished.stdout.decode(errors="replace").strip()
        raise SetupError(f"{' '.join(words)}\nfailed with exit code {finished.returncode}:\n\n{output}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that any reader, and any later run, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock file while two commands started at once would build the same thing. (No lock on Windows.)"""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Waiting for another command that is building ...", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
