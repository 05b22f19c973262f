"""Under which name an operation of a job body is recorded: the same one in every execution, whichever branch is faster.

The body asks by name, and how often a name was asked for tells its operations apart. That is counted for each *scope*
of its own, because only there the order is the same in every execution: in the body's own task, and in every branch,
which is another task that the body has made; and likewise in every attempt at a step whose function asks for something
itself. A branch is known by its first operation; those of the branches that one task has made are counted together,
since they begin in the order in which they were made. Where the recorded name does not say all that, it is recorded
beside it, as the step's *place*.

Scopes are written so: ``""`` is the body's own task, ``*`` the first operations of its branches; ``by <path>`` is the
branch with that first operation, ``in <path>`` a step's own task, and ``by* <path>`` and ``in* <path>`` are the first
operations of the branches that these have made.
"""

from __future__ import annotations

import asyncio
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from .compensation import PREFIX
from .reports import current_step

if TYPE_CHECKING:
    from ..store import StepRecord
    from .executor import Execution

BODY, FIRST = "", "*"
_JOINTS = {"in": " >> ", "in*": " >> * ", "by": " .. ", "by*": " .. * "}
_ORDINAL = re.compile(r"#\d+$")


class _Branch(NamedTuple):
    task: ref[asyncio.Task[Any]]
    step: str  # the path of that which has made it, if it was one
    path: str


_branch: ContextVar[_Branch | None] = ContextVar("durable_web_branch", default=None)  # that of this task, or its maker


class Names:
    """What the operations of one execution are recorded as."""

    def __init__(self, execution: Execution) -> None:
        self.places: dict[str, str] = {}  # by recorded name: "<how often it was asked for> <scope>"
        self.homes: dict[str, asyncio.Task[Any] | None] = {}  # in which tasks steps are awaited now, by recorded name
        self._execution = execution
        self._names: dict[tuple[str, str, int], str] = {}  # by scope, name, and how often that was asked for
        self._counts: dict[Any, int] = {}
        self._given: set[str] = set()
        self._next_ordinals: dict[str, int] = {}
        self._founders: set[str] = set()  # the first operations of this execution's branches
        for record in execution.records.values():
            if record.place is not None:
                self._keep(_ORDINAL.sub("", record.name), record.name, record.place)

    def give(self, name: str) -> str:
        """The name under which this call of ``name`` is recorded: mostly that of the second one is ``name#2``.

        :raises ValueError: when it is none that a step can have.
        """
        if not isinstance(name, str) or not name or ("#" in name and _ORDINAL.search(name)) or name.startswith(PREFIX):
            raise ValueError(
                f"A step's name is a non-empty string that does not end in '#' and a number, not {name!r}: "
                f"the second step of one name is recorded as name#2. Nor does it begin with {PREFIX!r}."
            )
        step, task = current_step.get(), asyncio.current_task()
        if step is None and task is self._execution.task:
            scope = BODY
            count = self._counts[name] = self._counts.get(name, 0) + 1
        else:
            scope = self._scope(step, task)
            counted = (scope, name, 0 if step is None else step.attempt)
            count = self._counts[counted] = self._counts.get(counted, 0) + 1
        plain = name if count == 1 else f"{name}#{count}"
        if scope == BODY and not self._names and plain not in self._given:  # only the body's own task has asked so far
            self._given.add(plain)
            return plain
        is_in_step = step is not None
        given = self._recorded(scope, name, count, plain, is_in_step) or self._new(scope, name, count, plain)
        self._given.add(given)
        if task is not None and scope.partition(" ")[0].endswith(FIRST):
            _branch.set(_Branch(ref(task), "" if step is None else self.path(step.name), self.path(given)))
            self._founders.add(given)
        return given

    def path(self, given: str) -> str:
        """What tells an operation from all others of its run, the same in every execution, recorded or not yet."""
        count, _, scope = self.places.get(given, "").partition(" ")
        if scope in (BODY, FIRST):
            return given
        kind, _, path = scope.partition(" ")
        return path + _JOINTS[kind] + _numbered(_ORDINAL.sub("", given), int(count))

    def _scope(self, step: StepRecord | None, task: asyncio.Task[Any] | None) -> str:
        """In whose order this task asks: it is the body's or a step's own, a branch, or one that begins."""
        path = "" if step is None else self.path(step.name)
        if task is None or task is (self.homes.get(step.name) if step else self._execution.task):
            return f"in {path}" if step else BODY
        branch = _branch.get()
        if branch is None or branch.step != path:
            return f"in* {path}" if step else FIRST
        return f"by {branch.path}" if branch.task() is task else f"by* {branch.path}"

    def _recorded(self, scope: str, name: str, count: int, plain: str, is_in_step: bool) -> str | None:
        """Under what this is recorded, here or in an earlier execution; ``None`` when it is not."""
        recorded = self._names.get((scope, name, count))
        if recorded is not None and (
            recorded not in self._given or is_in_step
        ):  # there it is asked for by each attempt
            return recorded
        record = self._execution.records.get(plain)
        if record is None or plain in self._given or is_in_step:
            return None
        owner = (record.place or "").partition(" ")[2]
        is_mine = owner == BODY or (scope == BODY and count == 1 and self._is_left(owner))
        return plain if is_mine else None  # the code was changed: what is a branch now was none, or the other way round

    def _is_left(self, scope: str) -> bool:
        """Whether it is a branch's, and the body's own task has come to the first operation of that."""
        kind, _, first = scope.partition(" ")
        return kind == FIRST or (kind[:2] == "by" and first in self._given and first not in self._founders)

    def _new(self, scope: str, name: str, count: int, plain: str) -> str:
        """A name under which nothing is recorded yet."""
        records = self._execution.records
        if scope == BODY and plain not in records and plain not in self._given:
            return plain
        ordinal = self._next_ordinals.get(name, 1)
        while (key := _numbered(name, ordinal)) in records or key in self._given:
            ordinal += 1
        self._next_ordinals[name] = ordinal + 1
        self._keep(name, key, f"{count} {scope}")
        return key

    def _keep(self, name: str, key: str, place: str) -> None:
        count, _, scope = place.partition(" ")
        self.places[key] = place
        self._names[scope, name, int(count)] = key


def _numbered(name: str, count: int) -> str:
    return name if count == 1 else f"{name}#{count}"
