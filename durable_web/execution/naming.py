"""Under which name an operation of a job body is recorded: the same one in every execution, whichever branch is faster.

The body asks by name, and how often a name was asked for tells its operations apart. That is counted for each *scope*
of its own, because only there the order is the same in every execution: in the body's own task, together with the first
operations of its branches, which are the other tasks that it has made; in every branch, which is known by its first
operation; and likewise in every attempt at a step whose function asks for something itself. Where the recorded name
does not say all that, it is recorded beside it, as the step's *place*: ``<count> <scope>``.

Scopes are written so: ``""`` is the body's own task, ``*`` the first operations of its branches; ``by <path>`` is the
branch with that first operation, and ``by* <path>`` the first operations of branches that this one has made. ``in1
<path>`` is the first attempt at a step, ``in1* <path>`` the first operations of its branches, ``in.by <path>`` one of
these. Records of before this was recorded have the place ``?``: their runs count as they did, over the whole body.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from .compensation import PREFIX
from .reports import current_step

if TYPE_CHECKING:
    from ..store import StepRecord
    from .executor import Execution

BODY, FIRST, UNKNOWN = "", "*", "?"
LONGEST_PATH = 200
_ORDINAL = re.compile(r"#\d+$")
_JOINT = re.compile(r" (?=(?:\.\.|>>))")


class _Branch(NamedTuple):
    names: ref[Names]
    step: str  # the scope of the step that has made it, if it was one
    path: str


_maker: ContextVar[_Branch | None] = ContextVar("durable_web_branch", default=None)  # of the tasks that are made here


def is_of_step(place: str | None) -> bool:
    """Whether it is the place of what a step's function has asked for: a replay does not come to it."""
    return place is not None and place.partition(" ")[2].startswith("in")


class Names:
    """What the operations of one execution are recorded as."""

    def __init__(self, execution: Execution) -> None:
        self.homes: dict[str, asyncio.Task[Any] | None] = {}  # in which tasks steps are awaited now, by recorded name
        self._execution = execution
        self._places: dict[str, str] = {}  # by recorded name
        self._names: dict[tuple[str, str, int], str] = {}  # by scope, name, and how often that was asked for
        self._counts: dict[Any, int] = {}
        self._given: set[str] = set()
        self._next_ordinals: dict[str, int] = {}
        self._branches: WeakKeyDictionary[asyncio.Task[Any], _Branch] = WeakKeyDictionary()
        self._were_branches: dict[str, None] = {}  # by first operations to which the body has come itself
        self._were_body: set[str] = set()  # branches whose first operation the body had come to itself
        self._is_old = False
        for record in execution.records.values():
            if record.place is not None:
                self._is_old = self._is_old or record.place == UNKNOWN
                self._keep(record.name, record.place)

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
        is_body = self._is_old or (step is None and task is self._execution.task)
        scope = BODY if is_body else self._scope(step, task)
        pool = BODY if scope == FIRST else scope
        counted = (pool, name) if pool else name
        count = self._counts[counted] = self._counts.get(counted, 0) + 1
        plain = name if count == 1 else f"{name}#{count}"
        if self._is_old or (scope == BODY and not self._names and plain not in self._given):
            given = plain  # mostly: only the body's own task has asked so far
        else:
            given = self._recorded(scope, pool, name, count, plain) or self._new(scope, name, count, plain)
        self._given.add(given)
        if scope.partition(" ")[0].endswith(FIRST) and task is not None:
            self._begin_branch(task, step, given)
        return given

    def place(self, given: str) -> str | None:
        """What is recorded beside a name; ``None`` where that says it all."""
        return UNKNOWN if self._is_old else self._places.get(given)

    def path(self, given: str) -> str:
        """What tells an operation from all others of its run, the same in every execution, recorded or not yet."""
        if self._is_old:
            return given
        place = self._places.get(given)
        if place is None:
            return _JOINT.sub("%20", given)
        count, _, scope = place.partition(" ")
        own = _numbered(_JOINT.sub("%20", _ORDINAL.sub("", given)), int(count))
        if scope in (BODY, FIRST):
            return own
        kind, _, path = scope.partition(" ")
        path = f"{path}{_joint(kind)}{own}"
        if len(path) <= LONGEST_PATH:
            return path
        return f"{path[: LONGEST_PATH // 2]}~{hashlib.sha256(path.encode()).hexdigest()[:32]}"

    def _scope(self, step: StepRecord | None, task: asyncio.Task[Any] | None) -> str:
        """In whose order this task asks: it is the body's or a step's own, a branch, or one that begins."""
        home = self._execution.task if step is None else self.homes.get(step.name)
        own = BODY if step is None else _scope_of(step, self.path(step.name))
        if task is None or task is home:
            return own
        by = "in.by" if own else "by"
        branch = self._branches.get(task)
        if branch is not None and branch.step == own:
            return f"{by} {branch.path}"
        maker = _maker.get()
        if maker is not None and maker.step == own and maker.names() is self:
            return f"{by}* {maker.path}"
        kind, _, path = own.partition(" ")
        return f"{kind}* {path}" if own else FIRST

    def _begin_branch(self, task: asyncio.Task[Any], step: StepRecord | None, given: str) -> None:
        path = self.path(given)
        own = BODY if step is None else _scope_of(step, self.path(step.name))
        branch = self._branches[task] = _Branch(ref(self), own, path)
        _maker.set(branch)
        if given in self._execution.records and self._places.get(given) is None:
            self._were_body.add(path)

    def _recorded(self, scope: str, pool: str, name: str, count: int, plain: str) -> str | None:
        """Under what this is recorded, here or in an earlier execution; ``None`` when it is not."""
        recorded = self._names.get((pool, name, count))
        if recorded is None and pool == BODY and self._is_plain(plain):
            recorded = plain
        if recorded is None:
            recorded = self._moved(scope, name, plain)
        if recorded is None or recorded in self._given:
            return None
        if scope == BODY and self._places.get(recorded, "").partition(" ")[2] == FIRST:
            self._were_branches[self.path(recorded)] = None
        return recorded

    def _is_plain(self, plain: str) -> bool:
        """Whether that is recorded of the body's own task."""
        return plain in self._execution.records and self._places.get(plain) is None

    def _moved(self, scope: str, name: str, plain: str) -> str | None:
        """Under what it is recorded where the code, or Python's, was changed: what is a branch now was none, or the
        other way round. That shows in the first operation, to which not the same kind of task has come.
        """
        if scope == BODY:
            for first in self._were_branches:
                count = 1
                while (recorded := self._names.get((f"by {first}", name, count))) is not None:
                    if recorded not in self._given:
                        return recorded
                    count += 1
            return None
        kind, _, first = scope.partition(" ")
        return plain if kind == "by" and first in self._were_body and self._is_plain(plain) else None

    def _new(self, scope: str, name: str, count: int, plain: str) -> str:
        """A name under which nothing is recorded yet."""
        records = self._execution.records
        if scope == BODY and plain not in records and plain not in self._given:
            return plain
        ordinal = self._next_ordinals.get(name, 1)
        while (key := _numbered(name, ordinal)) in records or key in self._given:
            ordinal += 1
        self._next_ordinals[name] = ordinal + 1
        self._keep(key, f"{count} {scope}")
        return key

    def _keep(self, given: str, place: str) -> None:
        self._places[given] = place
        if place != UNKNOWN:
            count, _, scope = place.partition(" ")
            self._names[BODY if scope == FIRST else scope, _ORDINAL.sub("", given), int(count)] = given


def _scope_of(step: StepRecord, path: str) -> str:
    """The scope of an attempt at a step: what completed is kept by a person's retry."""
    return f"in{step.attempt - step.attempts_before} {path}"


def _joint(kind: str) -> str:
    """What comes between the path of a scope and the names in it."""
    of_first = "* " if kind.endswith(FIRST) else ""
    kind = kind.rstrip(FIRST)
    if kind.endswith("by"):
        return f" .. {of_first}"
    return f" >>{'' if kind == 'in1' else kind[2:]} {of_first}"


def _numbered(name: str, count: int) -> str:
    return name if count == 1 else f"{name}#{count}"
