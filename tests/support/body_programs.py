"""Random job bodies: a program is a tree, as JSON data, of what a body may do; ``Play`` does it.

Whatever a body comes to hold, it appends to one list, its decisions. At random places, and at its end, it writes that
list by a step. What the step gives back must be what the body holds: then every earlier execution held the same.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from durable_web import ChildFailed, Context, Retry, SignalTimeout, StepFailed

Node = list[Any]
"""The kind of a node, which is the name of a method of ``Play``, and its arguments."""

STYLES = ["plain", "quick", "turn", "slow", "slow", "stubborn", "fails", "flaky", "gives up", "writes"]
"""How the function of a step behaves; ``random_bodies.Functions`` has them."""
SIGNALS = ["go", "stop"]
MOMENTS = [0, 0.02, 0.6, 2, 8]
"""Seconds of the timers in a body: a run that waits for less than 1 s keeps its slot."""
RETRY = Retry(max_attempts=3, backoff=0.5, factor=4, jitter=0, timeout=6)
LEAVES = 13


class Random(Protocol):
    """What is asked of ``random.Random``, or of the one that hypothesis draws."""

    def randint(self, a: int, b: int) -> int:
        """A number from ``a`` to ``b``."""


def _choice(rnd: Random, of: list[Any]) -> Any:
    return of[rnd.randint(0, len(of) - 1)]


def run_input(rnd: Random, depth: int = 3) -> dict[str, Any]:
    """The input of a run: a program, those of the links as which it continues, if its tasks are eager (Python 3.12),
    and if it fails in the end."""
    return {
        "tree": program(rnd, depth),
        "links": [program(rnd, 1) for _ in range(_choice(rnd, [0, 0, 0, 0, 0, 0, 1, 2]))],
        "eager": rnd.randint(1, 6) == 6,
        "fails": rnd.randint(1, 6) == 6,
    }


def program(rnd: Random, depth: int) -> Node:
    """A random tree, at most so deep."""
    if depth == 0 or rnd.randint(1, 7) == 7:
        return _leaf(rnd)
    kind = _choice(rnd, _BRANCHING)
    if kind in ("timeout", "moved", "wait_for", "holding", "cleanup", "generator", "shielded", "later"):
        rest: Node = [program(rnd, depth - 1)]
    elif kind == "pool":
        return [kind, rnd.randint(2, 3), rnd.randint(3, 6), _choice(rnd, ["charge", None])]
    else:
        rest = [[program(rnd, depth - 1) for _ in range(rnd.randint(2, 3))]]
    if kind in ("timeout", "moved", "wait_for", "completed", "limited", "later"):
        return [kind, _choice(rnd, MOMENTS), *rest]
    if kind in ("group", "race", "all"):
        return [kind, rnd.randint(0, 1) == 1, *rest]
    return [kind, *rest]


_BRANCHING = [
    *("sequence", "sequence", "gather", "gather", "group", "completed", "race", "race", "limited", "all"),
    *("timeout", "timeout", "moved", "wait_for", "holding", "sharing", "pool", "cleanup", "generator", "shielded"),
    "later",
]


def _leaf(rnd: Random) -> Node:
    name = _choice(rnd, ["a", "b", None, None])  # None: a name of its own
    kind = rnd.randint(1, LEAVES + 6)
    match kind:
        case 1:
            return ["pause", _choice(rnd, MOMENTS)]
        case 2:
            return ["nap", _choice(rnd, MOMENTS)]
        case 3:
            return ["signal", _choice(rnd, SIGNALS)]
        case 4:
            return ["patient", _choice(rnd, SIGNALS), _choice(rnd, MOMENTS)]
        case 5:
            return ["child", program(rnd, rnd.randint(0, 1)), rnd.randint(1, 5) == 5]
        case 6:
            many = [[program(rnd, 0), rnd.randint(1, 5) == 5] for _ in range(rnd.randint(1, 3))]
            return ["children", many, _choice(rnd, [None, 1, 2]), _choice(rnd, ["all", "fail_fast"])]
        case 7:
            return ["start", program(rnd, 0)]
        case 8:
            return ["value"]
        case 9:
            return ["row", name]
        case 10:
            return ["say"]
        case 11 | 12:
            return ["decide"]
        case 13:
            return ["impatient", _choice(rnd, SIGNALS), _choice(rnd, MOMENTS)]
        case _:
            return ["step", name, _choice(rnd, STYLES)]


def takes_lock(node: Any) -> bool:
    """``True`` when a program, or a part of it, wants the body's lock or its semaphore."""
    if not isinstance(node, list):
        return False
    return (bool(node) and node[0] in ("holding", "sharing")) or any(map(takes_lock, node))


def has_undo(key: str) -> bool:
    """``True`` when the step of that key, in any program, has a compensation."""
    name = key.partition("#")[0]
    return name == "a" or (name[0] == "u" and name[1:].isdigit())


class Outer(Protocol):
    """What a program asks of the world around it."""

    def call(self, ctx: Context, style: str) -> Any:
        """The function of a step."""

    def insert(self, connection: Any, ctx: Context) -> int:
        """The function of a transaction."""

    def undo(self, ctx: Context, value: Any) -> Any:
        """The compensation of a step."""

    def note_call(self, ctx: Context) -> None:
        """The function of the step that asks is called."""

    def note_wrong(self, problem: str) -> None:
        """Something is not as it was promised."""


class Play:
    """One execution of a body."""

    def __init__(self, outer: Outer, ctx: Context) -> None:
        self.held: list[Any] = []
        """The decisions: what the body has come to hold."""
        self._outer = outer
        self._ctx = ctx
        self._unique = itertools.count()
        self._lock = asyncio.Lock()
        self._semaphore = asyncio.Semaphore(2)

    async def do(self, node: Node) -> None:
        """Do what a program says."""
        kind, *rest = node
        await getattr(self, kind)(*rest)

    def hold(self, *decision: Any) -> None:
        self.held.append(list(decision))

    # --- steps -------------------------------------------------------------------------------------------------------

    async def step(self, name: str | None, style: str) -> None:
        name = name or f"u{next(self._unique)}"
        undo = (lambda value: self._outer.undo(self._ctx, value)) if has_undo(name) else None
        retry = RETRY if style == "flaky" else None
        call = self._outer.call
        try:
            got = await self._ctx.step(name, call, self._ctx, style, retry=retry, compensate=undo)
            self.hold(name, got)
        except StepFailed as failure:
            self.hold(name, failure.error_message)

    async def decide(self) -> None:
        """Write the decisions; what was written first, by whichever execution, is what this one holds."""
        held = json.loads(json.dumps(self.held))

        def write() -> list[Any]:
            self._outer.note_call(self._ctx)
            return held

        written = await self._ctx.step("decide", write)
        if written != held:
            self._outer.note_wrong(f"{self._ctx.run_id} held {written} when it decided, and now {held}")

    async def row(self, name: str | None) -> None:
        self.hold("row", await self._ctx.transaction(f"row {name}", self._outer.insert, self._ctx))

    async def value(self) -> None:
        self.hold("value", await self._ctx.random(), str(await self._ctx.uuid()))

    async def say(self) -> None:
        await self._ctx.set_event("state", len(self.held))

    # --- waits and timers --------------------------------------------------------------------------------------------

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.hold("paused", asyncio.get_running_loop().time())

    async def nap(self, seconds: float) -> None:
        await self._ctx.sleep("nap", seconds)
        self.hold("napped", asyncio.get_running_loop().time())

    async def signal(self, name: str) -> None:
        self.hold("signal", await self._ctx.wait_for_signal(name))

    async def patient(self, name: str, seconds: float) -> None:
        try:
            self.hold("signal", await self._ctx.wait_for_signal(name, timeout=seconds))
        except SignalTimeout:
            self.hold("no signal")

    async def impatient(self, name: str, seconds: float) -> None:
        """What comes when the time is over is for the next one who waits."""
        try:
            async with asyncio.timeout(seconds):
                self.hold("signal", await self._ctx.wait_for_signal(name))
        except TimeoutError:
            self.hold("impatient")

    # --- other runs --------------------------------------------------------------------------------------------------

    async def child(self, tree: Node, fails: bool) -> None:
        try:
            output = await self._ctx.run_job("child", "body", {"tree": tree, "fails": fails, "links": []})
            self.hold("child", output)
        except ChildFailed as failure:
            self.hold("child failed", failure.error_type)

    async def children(self, many: list[Any], max_concurrent: int | None, mode: Any) -> None:
        inputs = [{"tree": tree, "fails": fails, "links": []} for tree, fails in many]
        try:
            outputs = await self._ctx.map("children", "body", inputs, max_concurrent=max_concurrent, mode=mode)
            self.hold("children", outputs)
        except* ChildFailed as failures:
            self.hold("children failed", [str(each.step) for each in failures.exceptions])  # type: ignore[attr-defined]

    async def start(self, tree: Node) -> None:
        run_id = await self._ctx.start_job("started", "body", {"tree": tree, "fails": False, "links": []})
        self.hold("started", run_id)

    # --- several -----------------------------------------------------------------------------------------------------

    async def sequence(self, nodes: list[Node]) -> None:
        for node in nodes:
            await self.do(node)

    async def gather(self, nodes: list[Node]) -> None:
        await asyncio.gather(*map(self.do, nodes))

    async def group(self, is_aborted: bool, nodes: list[Node]) -> None:
        async def last() -> None:
            await self.step(None, "slow")
            if is_aborted:
                raise LookupError

        task = asyncio.current_task()
        cancellations = task.cancelling()
        try:
            async with asyncio.TaskGroup() as group:
                for node in nodes:
                    group.create_task(self.cleanup(node))
                group.create_task(last())
        except* LookupError:
            self.hold("aborted")
            if sys.version_info < (3, 13) and task.cancelling() > cancellations:
                task.uncancel()  # which the group itself forgets: https://github.com/python/cpython/issues/116720

    async def completed(self, seconds: float, nodes: list[Node]) -> None:
        """``asyncio.as_completed``; what is not ready in time goes on."""
        tasks = [asyncio.create_task(self._numbered(node, number)) for number, node in enumerate(nodes)]
        try:
            for first in asyncio.as_completed(tasks, timeout=seconds or None):
                self.hold("completed", await first)
        except TimeoutError:
            self.hold("not completed")

    async def _numbered(self, node: Node, number: int) -> int:
        await self.do(node)
        return number

    async def race(self, calls_off: bool, nodes: list[Node]) -> None:
        """The first one wins; the others are called off, or kept."""
        tasks = [asyncio.create_task(self.cleanup(node), name=str(number)) for number, node in enumerate(nodes)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        self.hold("won", sorted(task.get_name() for task in done))
        if calls_off:
            for task in pending:
                task.cancel()

    async def limited(self, seconds: float, nodes: list[Node]) -> None:
        """``asyncio.wait`` with a timeout; its losers are called off and waited for."""
        tasks = [asyncio.create_task(self.cleanup(node), name=str(number)) for number, node in enumerate(nodes)]
        done, pending = await asyncio.wait(tasks, timeout=seconds)
        self.hold("in time", sorted(task.get_name() for task in done))
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    async def all(self, with_exceptions: bool, nodes: list[Node]) -> None:
        """``asyncio.gather`` of which one may fail."""

        async def failing() -> None:
            await self.step(None, "turn")
            raise LookupError

        many = [*(self.cleanup(node) for node in nodes), failing()]
        try:
            got = await asyncio.gather(*many, return_exceptions=with_exceptions)
            self.hold("all", [repr(each) for each in got])
        except LookupError:
            self.hold("one failed")

    # --- limits, locks, queues ---------------------------------------------------------------------------------------

    async def timeout(self, seconds: float, node: Node) -> None:
        await self._in_time(asyncio.timeout(seconds), node)

    async def moved(self, seconds: float, node: Node) -> None:
        """A timeout that is moved once the body is inside of it."""
        now = asyncio.get_running_loop().time()
        limit = asyncio.timeout_at(now + 100)
        await self._in_time(limit, node, lambda: limit.reschedule(now + seconds))

    async def _in_time(self, limit: asyncio.Timeout, node: Node, inside: Callable[[], None] = lambda: None) -> None:
        try:
            async with limit:
                inside()
                await self.do(node)
        except TimeoutError:
            self.hold("timeout")

    async def wait_for(self, seconds: float, node: Node) -> None:
        try:
            await asyncio.wait_for(self.do(node), seconds)
        except TimeoutError:
            self.hold("late")

    async def later(self, seconds: float, node: Node) -> None:
        """``loop.call_later`` beside something else."""
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        timer = loop.call_later(seconds, rung.set)
        await self.do(node)
        if seconds < 1:
            await rung.wait()
            self.hold("rung", loop.time())
        timer.cancel()

    async def shielded(self, node: Node) -> None:
        """What goes on when its waiter is called off."""
        await asyncio.shield(asyncio.create_task(self.do(node)))

    async def holding(self, node: Node) -> None:
        async with self._lock:
            if not takes_lock(node):
                await self.do(node)

    async def sharing(self, nodes: list[Node]) -> None:
        async def one(node: Node) -> None:
            async with self._semaphore:
                await self.step(None, "slow")
            await self.do(node)

        await asyncio.gather(*map(one, nodes))

    async def pool(self, workers: int, items: int, name: str | None) -> None:
        """Workers over a queue."""
        queue: asyncio.Queue[int] = asyncio.Queue()
        for item in range(items):
            queue.put_nowait(item)

        async def work(worker: int) -> None:
            while not queue.empty():
                item = queue.get_nowait()
                key = name or f"charge {item} of {len(self.held)}"
                style = ("slow", "quick", "plain")[item % 3]
                self.hold(worker, item, await self._ctx.step(key, self._outer.call, self._ctx, style))

        await asyncio.gather(*map(work, range(workers)))

    async def cleanup(self, node: Node) -> None:
        try:
            await self.do(node)
        finally:
            await self.step("cleanup", "quick")

    async def generator(self, node: Node) -> None:
        """An asynchronous generator that is left by ``break``."""

        async def numbers() -> AsyncIterator[int]:
            try:
                for number in range(3):
                    if number == 0:
                        await self.do(node)
                    yield number
            finally:
                await self.step("close", "quick")

        async for number in numbers():
            if number == 1:
                break


Body = Callable[[Context, dict[str, Any]], Awaitable[list[Any]]]


def body_of(outer: Outer) -> Body:
    """The job function that does what the program in its input says."""

    async def body(ctx: Context, wanted: dict[str, Any]) -> list[Any]:
        play = Play(outer, ctx)
        if wanted.get("eager"):
            asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory", None))
        try:
            await play.do(wanted["tree"])
        finally:
            await play.decide()
        if wanted["fails"]:
            raise ValueError("the body failed")
        if wanted["links"]:
            ctx.continue_as_new({**wanted, "tree": wanted["links"][0], "links": wanted["links"][1:]})
        return play.held

    return body
