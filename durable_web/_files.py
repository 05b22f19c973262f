"""Durable files beside the database: uploads that a job reads, and results that it writes.

On CPython the files are in an ordinary folder. In a browser a file must be opened by an awaited call before synchronous
code can use it. So the engine gets its ``Files`` through the constructor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Makes and removes durable files."""

    async def create(self, name: str) -> str:
        """Make an empty file, or empty the file of that name, and return its absolute path for ``open``.

        :raises ValueError: when ``name`` is not a plain name without folders.
        """
        ...

    async def remove(self, name: str) -> None:
        """Remove a file; does nothing when there is no file of that name.

        :raises ValueError: when ``name`` is not a plain name without folders.
        """


class LocalFiles:
    """Files in an ordinary folder, which is made when the first file is.

    :param directory: the folder's path.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory).absolute()

    async def create(self, name: str) -> str:
        """See :meth:`Files.create`; also raises the ``OSError`` of the folder or the file."""
        path = self._path(name)
        self._directory.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return str(path)

    async def remove(self, name: str) -> None:
        """See :meth:`Files.remove`; also raises the ``OSError`` of the file."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if Path(name).name != name:
            raise ValueError(f"A durable file's name is a plain name without folders, not {name!r}.")
        return self._directory / name
