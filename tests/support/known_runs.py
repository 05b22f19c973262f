"""What the random histories know of runs, from the frames of their timelines alone: what may follow on what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from durable_web._identifiers import derive
from durable_web._model import StoredFrame

MAX_RECOVERIES = 2
SLOTS = 2
ENGINE_STOPPED = "its engine stopped"
COUNTED_DEATH = f"{ENGINE_STOPPED} in the step "
LEGAL = {
    None: {"pending"},
    "pending": {"pending", "running", "cancelled", "failed", "cancelling"},
    "running": {"running", "completed", "failed", "cancelled", "waiting", "pending", "dead", "cancelling"},
    "waiting": {"waiting", "pending", "cancelled", "failed", "cancelling"},
    "cancelling": {"cancelling", "cancelled", "failed", "dead"},
    "completed": set(),
    "failed": {"pending"},
    "cancelled": {"pending"},
    "dead": {"pending"},
}
PAUSABLE = ("pending", "running", "waiting")
ACTIVE = (*PAUSABLE, "cancelling")
RETRIABLE = ("failed", "cancelled", "dead")
TERMINAL = ("completed", *RETRIABLE)
SIGNALLED = ("signal", "patient", "race")
WAIT_NAMES = ("go", "news", "look", "change")
WAITS = ("sleep", "signal", "event", "breakpoint", "update", "webhook", "child", "start")
SHARED = "single"
"""The job of which one run at a time is active, whatever triggers it."""


@dataclass
class KnownRun:
    """What is known of a run."""

    id: str
    job: str
    script: list[str]
    key: str | None
    priority: int
    deadline: bool
    parent: str | None
    parent_step: str | None
    continues: str | None
    first_seq: int = 1
    status: str | None = None
    claims: int = 0
    recoveries: int = 0
    is_running: bool = False
    frames: list[StoredFrame] = field(default_factory=list)
    committed: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)  # failed steps whose failure the body does not catch
    seen: dict[str, Any] = field(default_factory=dict)  # what each step has given to the job's body
    waited: dict[str, Any] = field(default_factory=dict)  # what each wait has given to it
    begun: dict[str, int] = field(default_factory=dict)  # when each sleep was begun
    waits: dict[str, str] = field(default_factory=dict)  # name and kind of the open waits
    undoable: set[str] = field(default_factory=set)  # executing steps that can be undone if they complete
    to_undo: list[str] = field(default_factory=list)  # completed steps that can be undone, in that order
    not_undone: list[str] = field(default_factory=list)  # because their compensation failed
    places: dict[str, int] = field(default_factory=dict)  # of these, by completion
    sent: list[str] = field(default_factory=list)  # the signals, in order, also those of earlier links
    taken_before: int = 0  # how many of them earlier links have taken
    continued_as: str | None = None
    tokens: dict[str, str] = field(default_factory=dict)  # of webhooks
    paused: bool = False
    was_retried_by_hand: bool = False  # since it last ended
    was_undone: bool = False  # since it was triggered or retried
    is_undoing: bool = False  # its first compensation has begun
    was_cut_short: bool = False  # cancelled while it was being undone

    @property
    def is_new(self) -> bool:
        return self.claims == 0

    @property
    def is_executing(self) -> bool:
        return self.status == "running" or (self.status == "cancelling" and self.is_running)

    def word(self, step: str) -> str:
        """What the script says of a step; ``parallel`` ones end in a, b and c, a ``race``'s sleep in n."""
        name = step.partition("#")[0]
        if name in WAIT_NAMES:
            return "wait"
        if name.startswith("compensate:"):
            return "compensation"
        name = name.removeprefix("patch:").partition("[")[0]
        whole = {"a": "retried", "b": "step", "c": "row", "n": "race"}.get(name[-1]) or self.script[int(name)]
        return whole.partition(":")[0]

    @property
    def taken(self) -> list[Any]:
        """The signals that its waits have taken, in the order of its script."""
        waits = [self.waited.get(str(number)) for number, word in enumerate(self.script) if word in SIGNALLED]
        return [value for value in waits if value is not None]

    def forget_unsettled(self) -> None:
        """It is retried: what had not ended, or was undone, is begun again."""
        self.deadline = self.was_cut_short = self.was_undone = False
        self.broken.clear()
        self.undoable.clear()
        self.committed = {name for name in self.committed if not name.startswith("compensate:")}
        self.seen = {name: value for name, value in self.seen.items() if name in self.committed}
        self.begun = {name: begun for name, begun in self.begun.items() if name in self.committed}
        self.waited = {name: value for name, value in self.waited.items() if name in self.committed}
        self.tokens.clear()


class KnownRuns(dict[str, KnownRun]):
    """All runs that were ever seen, and the rules that every further frame has to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: set[str] = set()

    def alive(self) -> Iterable[KnownRun]:
        return (run for run in self.values() if run.id not in self.deleted)

    def meet(self, run: KnownRun) -> None:
        """A run is seen for the first time, or again after it was deleted: a child that its parent wants once more."""
        before = self.get(run.id)
        if before is not None:
            assert run.id in self.deleted
            assert run.parent is not None
            run.first_seq = before.first_seq + len(before.frames)
            self.deleted.discard(run.id)
        self._check_parent(run)
        self[run.id] = run
        if run.continues is not None:
            self._hand_on(self[run.continues], run)

    def _hand_on(self, run: KnownRun, successor: KnownRun) -> None:
        """A run goes on as another one, which has its signals."""
        run.continued_as = successor.id
        successor.taken_before = run.taken_before + len(run.taken)
        successor.sent, run.sent = run.sent, []

    def last_link(self, run_id: str) -> str:
        """The run that gets what is sent to this one: the last link of its chain, or one that was deleted."""
        while run_id not in self.deleted and (following := self[run_id].continued_as) is not None:
            run_id = following
        return run_id

    def _check_parent(self, run: KnownRun) -> None:
        """The id of a child is always the same for the same parent and step."""
        if run.parent is None or run.continues is not None:
            return
        steps = [run.parent_step] if run.parent_step is not None else [str(number) for number in range(9)]
        assert run.id in {derive(run.parent, step) for step in steps}

    def take(self, run: KnownRun, stored: StoredFrame) -> None:
        """One more frame of a run."""
        assert stored.seq == run.first_seq + len(run.frames)
        run.frames.append(stored)
        frame = stored.to_frame()
        if frame.kind == "run_deleted":
            assert run.status in TERMINAL
            self.deleted.add(run.id)
        elif frame.kind == "run_status":
            self._check_transition(run, frame)
            run.status = frame.status.value
        elif frame.kind == "step_status":
            self._check_step(run, frame)
        else:
            assert run.is_executing
            assert frame.kind == "log" or not run.is_undoing

    # --- steps -------------------------------------------------------------------------------------------------------

    def _check_step(self, run: KnownRun, frame: Any) -> None:
        if frame.type == "compensation":
            assert run.status == "cancelling"
            assert run.is_running or frame.status == "cancelled"
            run.is_undoing = True
        else:
            assert run.status in ACTIVE
            assert not run.is_undoing  # nothing of the body goes on when compensation has begun
            is_from_outside = frame.status == "cancelled" or (frame.type in WAITS and frame.status != "running")
            assert run.is_executing or is_from_outside
        if frame.status == "cancelled" and frame.type in WAITS:
            run.committed.discard(frame.name)  # it was given up in the moment in which it ended
        assert frame.name not in run.committed
        run.undoable.discard(frame.name)
        if frame.status == "running" and frame.type == "step" and run.word(frame.name) == "undo":
            run.undoable.add(frame.name)
        run.waits.pop(frame.name, None)
        if frame.status == "running" and frame.type in WAITS:
            run.waits[frame.name] = frame.type
        if frame.status == "completed":
            run.committed.add(frame.name)
        if frame.status in ("completed", "failed"):
            run.recoveries = 0
            self._check_order_of_undoing(run, frame)
        if frame.status == "failed" and self._is_not_caught(run, frame):
            run.broken.add(frame.name)

    def _check_order_of_undoing(self, run: KnownRun, frame: Any) -> None:
        """The latest first, each once."""
        if frame.type == "compensation":
            step = run.to_undo.pop()
            assert frame.name == f"compensate:{step}"
            if frame.status == "failed":
                run.not_undone.append(step)
        elif frame.status == "completed" and frame.type == "step" and run.word(frame.name) == "undo":
            run.to_undo.append(frame.name)
            run.places[frame.name] = len(run.frames)

    def _is_not_caught(self, run: KnownRun, frame: Any) -> bool:
        return frame.type != "compensation" and run.word(frame.name) not in ("caught", "wait", "tried", "shared")

    # --- runs --------------------------------------------------------------------------------------------------------

    def _check_transition(self, run: KnownRun, frame: Any) -> None:
        status = frame.status.value
        assert status in LEGAL[run.status], (run.status, status)
        if frame.reason in ("it is paused", "it is resumed", "retried"):
            run.paused = frame.reason == "it is paused"
        run.recoveries += (frame.reason or "").startswith(COUNTED_DEATH)
        if frame.reason == "retried":
            run.recoveries = 0
            self._put_back_what_was_undone(run)
            run.forget_unsettled()
        if status == "cancelling":
            self._check_undoing(run, frame)
        elif status == run.status:
            assert frame.reason in ("it is paused", "it is resumed")
        elif status == "running":
            self._check_turn(run)
            run.claims += 1
        elif status == "dead":
            assert run.recoveries >= MAX_RECOVERIES  # more, where an outcome without a frame came between
        elif status == "failed":
            assert not run.to_undo
            assert run.status in ("running", "cancelling") or frame.error.type == "DeadlineExceeded"
        elif status == "cancelled" and run.status == "cancelling":
            assert not run.to_undo or run.was_cut_short
        elif status == "pending":
            others = [other for other in self.alive() if other.status == "pending" and other.key == run.key]
            assert run.continues or run.key is None or not run.is_new or not any(other.is_new for other in others)
        run.was_retried_by_hand &= status not in TERMINAL
        run.is_running = status == "running" or (status == "cancelling" and run.is_running)
        run.is_undoing &= status == "cancelling"

    def _check_undoing(self, run: KnownRun, frame: Any) -> None:
        if run.status != "cancelling":
            assert run.to_undo or run.undoable
            run.was_undone = True
        elif (frame.reason or "").startswith((ENGINE_STOPPED, "the engine is stopping")):
            run.is_running = False
        else:
            assert not run.is_running
            self._check_turn(run)
            run.claims += 1
            run.is_running = True

    def _put_back_what_was_undone(self, run: KnownRun) -> None:
        """What was undone is called again; what was not can still be undone, or can be again."""
        run.to_undo = sorted(run.to_undo + run.not_undone, key=run.places.__getitem__)
        run.not_undone.clear()
        for name in [name for name in run.committed if f"compensate:{name}" in run.committed]:
            run.committed.discard(name)

    def _check_turn(self, run: KnownRun) -> None:
        """It is the turn of the first claimable run, by priority and age, its key is free, and so is a slot."""
        assert sum(other.is_executing for other in self.alive()) < SLOTS
        others = [other for other in self.alive() if other is not run]
        held = {other.key for other in others if other.is_executing} - {None}
        assert run.key not in held
        undone = {other.key for other in others if other.status == "cancelling"} - {None}
        assert run.status == "cancelling" or run.key not in undone
        claimable = [other for other in others if self._is_claimable(other, held)]
        assert all((-run.priority, run.id) < (-other.priority, other.id) for other in claimable)
        if run.job == SHARED:
            assert not any(other.job == SHARED and other.is_executing for other in others)

    def _is_claimable(self, run: KnownRun, held: set[str | None]) -> bool:
        if run.status == "cancelling":
            return not run.is_running and run.key not in held
        undone = {other.key for other in self.alive() if other.status == "cancelling"} - {None}
        is_free = run.status == "pending" and not run.paused and run.job != SHARED
        return is_free and run.key not in held | undone
