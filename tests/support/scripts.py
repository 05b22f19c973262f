"""The job under test: each word of its script is a step, a wait, a run of its own, or several at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from known_runs import SHARED, SIGNALLED, KnownRun

from durable_web import ChildFailed, Context, Retry, SignalTimeout, StepFailed

if TYPE_CHECKING:
    from scripted_world import World

RETRY = Retry(max_attempts=3, backoff=10, factor=2, jitter=0)
SLEEP_SECONDS = 15
WAITING = (*SIGNALLED, "sleep", "event", "breakpoint", "update", "webhook")
CHILDREN = ("child", "tried", "shared", "start", "map")
NOTHING = ("say", "patched")


class Scripts:
    """Performs scripts in a world, and notes what each of their operations has come to."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def perform_all(self, ctx: Context, script: list[str]) -> list[Any]:
        outputs = []
        for number, word in enumerate(script):
            ctx.log.info(f"line {number}")
            if word == "again":
                ctx.continue_as_new(script[number + 1 :])
            outputs.append(await self.perform(ctx, word, str(number)))
        return outputs

    async def perform(self, ctx: Context, word: str, name: str) -> Any:
        """What a word comes to; ``child:step`` is a child whose script is one step."""
        first, _, rest = word.partition(":")
        known = self._world.runs[ctx.run_id]
        if first == "parallel":
            branches = [("retried", f"{name}a"), ("step", f"{name}b"), ("row", f"{name}c")]
            return list(await asyncio.gather(*(self.perform(ctx, *branch) for branch in branches)))
        if first in WAITING:
            return self._note(known, known.waited, name, await self.wait(ctx, first, name))
        if first in CHILDREN:
            return self._note(known, known.waited, name, await self.family(ctx, first, rest, name))
        if first in NOTHING:
            return await self.small(ctx, first, name)
        return self._note(known, known.seen, name, await self.step(ctx, first, name))

    def _note(self, known: KnownRun, notes: dict[str, Any], name: str, value: Any) -> Any:
        if notes.setdefault(name, value) != value:
            self._world.wrong.append(f"{name} of {known.id} gave {notes[name]!r} first and {value!r} later")
        return value

    async def step(self, ctx: Context, word: str, name: str) -> Any:
        world = self._world
        match word:
            case "row":
                return await ctx.transaction(name, world.insert, ctx.run_id, name)
            case "retried":
                return await ctx.step(name, world.body, ctx.run_id, name, retry=RETRY)
            case "undo":
                undo = f"compensate:{name}"
                return await ctx.step(
                    name, world.body, ctx.run_id, name, compensate=lambda value: world.body(ctx.run_id, undo)
                )
            case "caught":
                try:
                    return await ctx.step(name, world.body, ctx.run_id, name)
                except StepFailed as failure:
                    return f"caught {failure.error_message}"
            case "stubborn":
                return await ctx.step(name, world.stubborn_body, ctx.run_id, name)
            case _:
                return await ctx.step(name, world.body, ctx.run_id, name)

    async def small(self, ctx: Context, word: str, name: str) -> Any:
        if word == "say":
            return await ctx.set_event("state", f"said {name}")
        is_new = await ctx.patched(name)
        if not is_new:
            self._world.wrong.append(f"{ctx.run_id} was not past {name}, and took the old way")
        return is_new

    # --- runs --------------------------------------------------------------------------------------------------------

    async def family(self, ctx: Context, word: str, rest: str, name: str) -> Any:
        match word:
            case "start":
                return await ctx.start_job(name, "scripted", [rest])
            case "map":
                return await ctx.map(name, "scripted", [[rest], ["step"]])
            case "child":
                return await ctx.run_job(name, "scripted", [rest])
            case _:
                try:
                    return await ctx.run_job(name, "scripted" if word == "tried" else SHARED, [rest])
                except ChildFailed as failure:
                    return f"{failure.error_type}: {failure.error_message}"

    # --- waits -------------------------------------------------------------------------------------------------------

    async def wait(self, ctx: Context, word: str, name: str) -> Any:
        """What a durable wait of the body comes to."""
        match word:
            case "signal":
                return await ctx.wait_for_signal("go")
            case "patient":
                try:
                    return await ctx.wait_for_signal("go", timeout=SLEEP_SECONDS)
                except SignalTimeout:
                    return None
            case "event":
                return await ctx.wait_for_event("news")
            case "breakpoint":
                return await ctx.breakpoint("look")
            case "race":
                return await self.race(ctx, name)
            case "update":
                update = await ctx.on_update("change", lambda value: not value.endswith("refused"))
                await update.answer(f"answer to {update.argument}")
                return update.argument
            case "webhook":
                return await self.webhook(ctx, name)
            case _:
                return await self.sleep(ctx, name)

    async def sleep(self, ctx: Context, name: str) -> None:
        now = self._world.clock.now
        begun = self._world.runs[ctx.run_id].begun.setdefault(name, now())
        await ctx.sleep(name, SLEEP_SECONDS)
        if now() < begun + SLEEP_SECONDS * 1000:
            self._world.wrong.append(f"sleep {name} of {ctx.run_id} was over early")

    async def race(self, ctx: Context, name: str) -> str | None:
        """The signal, if it comes before a sleep is over."""
        signal = asyncio.ensure_future(ctx.wait_for_signal("go"))
        nap = asyncio.ensure_future(self.sleep(ctx, f"{name}n"))
        _, pending = await asyncio.wait({signal, nap}, return_when=asyncio.FIRST_COMPLETED)
        for branch in pending:
            branch.cancel()
        return None if signal in pending else await signal

    async def webhook(self, ctx: Context, name: str) -> Any:
        hook = await ctx.webhook(name)
        tokens = self._world.runs[ctx.run_id].tokens
        if tokens.setdefault(name, hook.token) != hook.token:
            self._world.wrong.append(f"the token of {name} of {ctx.run_id} changed")
        return await hook.wait()

    # --- what must come of it ----------------------------------------------------------------------------------------

    def output(self, known: KnownRun, word: str, name: str) -> Any:
        first = word.partition(":")[0]
        if first in WAITING or first in CHILDREN:
            return known.waited[name]
        if first in NOTHING:
            return True if first == "patched" else None
        if first == "parallel":
            return [known.seen[f"{name}{branch}"] for branch in "abc"]
        return known.seen[name]

    def last_published(self, script: list[str]) -> str | None:
        said = [f"said {number}" for number, word in enumerate(script) if word == "say"]
        return said[-1] if said else None
