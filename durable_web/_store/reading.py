"""Read runs: one, or those that pass a filter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._codec import decode, from_json
from .._errors import RunNotFound
from .._model import ErrorInfo, Progress, Run, RunFilter, RunStatus, from_milliseconds
from .database import Database
from .sql import listing as queries


@dataclass(frozen=True, slots=True)
class Outcome:
    """The status of a run, and its output as the codec's text."""

    run_id: str
    status: RunStatus
    output: str | None


class RunReading:
    """The verbs on runs that change nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, run_id: str, disposition: str | None = None) -> Run:
        """The run of that id.

        :param disposition: how a trigger found or made the run; see ``Run``.
        :raises RunNotFound: when there is none.
        """
        row = self._database.row(queries.GET_RUN, {"id": run_id})
        if row is None:
            raise RunNotFound(run_id)
        return _run(row, disposition)

    def exists(self, run_id: str) -> bool:
        """``True`` when a run of that id exists."""
        return self._value(queries.RUN_EXISTS, {"id": run_id}) is not None

    def serves_dead_letter(self, run_id: str) -> bool:
        """``True`` when a run handles a dead run, was started by a run that does, or continues one that does."""
        return self._value(queries.SERVES_DEAD_LETTER, {"id": run_id}) is not None

    def latest(self, run_id: str) -> Outcome | None:
        """The outcome of a run, or of the last run as which it continued; ``None`` when it does not exist."""
        found = None
        while (row := self._database.row(queries.RUN_OUTCOME, {"id": run_id})) is not None:
            found = Outcome(run_id, RunStatus(row[0]), row[1])
            if row[2] is None:
                break
            run_id = row[2]
        return found

    def last_link(self, run_id: str) -> Run:
        """The run of that id, or the last run as which it continued.

        :raises RunNotFound: when there is none.
        """
        run = self.get(run_id)
        while run.continued_as is not None:
            run = self.get(run.continued_as)
        return run

    def standing(self, run_id: str) -> tuple[RunStatus, int, bool] | None:
        """The status, the generation and the paused flag of a run; ``None`` when it does not exist."""
        row = self._database.row(queries.RUN_STANDING, {"id": run_id})
        return None if row is None else (RunStatus(row[0]), row[1], bool(row[2]))

    def list(
        self, wanted: RunFilter, *, oldest_first: bool, after: str | None, limit: int, payloads: bool = True
    ) -> list[Run]:
        """Runs that pass the filter, after the id ``after``; with their payloads, or without."""
        text, parameters = queries.list_runs(wanted, oldest_first, after, limit, payloads)
        return [_run(row) for row in self._database.rows(text, parameters)]

    def count(self, by: str) -> dict[str, int]:
        """How many runs there are for each value of the column ``by``."""
        return dict(self._database.rows(queries.count_runs(by)))

    def identity(self, run_id: str) -> tuple[str, dict[str, str]]:
        """The job's name and the labels of a run; empty when the run does not exist."""
        row = self._database.row(queries.RUN_IDENTITY, {"id": run_id})
        return ("", {}) if row is None else (row[0], json.loads(row[1]))

    def _value(self, text: str, parameters: dict[str, Any]) -> Any:
        row = self._database.row(text, parameters)
        return None if row is None else row[0]


_READERS: dict[str, Callable[[Any], Any]] = {
    "status": RunStatus,
    "input": decode,
    "output": decode,
    "error": lambda text: ErrorInfo(**json.loads(text)),
    "progress": lambda text: Progress(**json.loads(text)),
    "labels": from_json,
    "paused": bool,
    **dict.fromkeys(queries.TIMES, from_milliseconds),
}
_READ = [(queries.RUN_COLUMNS.index(name), read) for name, read in _READERS.items()]


def _run(row: tuple[Any, ...], disposition: str | None = None) -> Run:
    values: list[Any] = list(row)
    for index, read in _READ:
        if values[index] is not None:
            values[index] = read(values[index])
    return Run(*values, disposition=disposition)  # type: ignore[misc]
