"""Random bodies of branches and nested steps that share their names see the same wherever their engine dies."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from watching import on_a_desk_only

from durable_web import Context, job
from durable_web.testing import crash_at, engine, restart

Item = Any  # a name; ["in", name, items]: a step that asks for these itself; ["both", items, items]: branches

NAMES = st.sampled_from(["a", "b", "uuid"])
bodies = st.lists(
    st.recursive(
        NAMES,
        lambda items: st.one_of(
            st.tuples(st.just("in"), NAMES.filter("uuid".__ne__), st.lists(items, max_size=3)).map(list),
            st.tuples(st.just("both"), st.lists(items, max_size=3), st.lists(items, max_size=3)).map(list),
        ),
        max_leaves=10,
    ),
    min_size=1,
    max_size=4,
)


class World:
    """What was seen at each place of a body, and what has been called there."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seen: dict[str, Any] = {}
        self.numbers = itertools.count()

    def see(self, place: str, value: Any) -> Any:
        """A body that has got a value has it for ever: it was committed."""
        assert self.seen.setdefault(place, value) == value, place
        return value

    async def some_turns(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def play(self, ctx: Context, items: list[Item], place: str) -> list[Any]:
        outcome: list[Any] = []
        for number, item in enumerate(items):
            here = f"{place}.{number}"
            if item == "uuid":
                outcome.append(self.see(here, str(await ctx.uuid())))
            elif isinstance(item, str):
                outcome.append(self.see(here, await ctx.step(item, self.call, here)))
            elif item[0] == "in":
                outcome.append(self.see(here, await ctx.step(item[1], self.play, ctx, item[2], here)))
            else:
                # A branch is known by its first operation, so it has one before it makes branches of its own.
                halves = [
                    self.play(ctx, ["begin", *half], f"{here}{side}") for side, half in zip("lr", item[1:], strict=True)
                ]
                outcome.append(list(await asyncio.gather(*halves)))
        return outcome

    async def call(self, here: str) -> list[Any]:
        await self.some_turns()
        assert here not in self.seen, f"{here} is called again"
        return [here, next(self.numbers)]


@on_a_desk_only("some thousand engines take minutes there")
@settings(max_examples=25)
@given(items=bodies, seed=st.integers(0, 1000))
def test_any_body_sees_the_same_at_the_same_place_wherever_its_engine_dies(items, seed):
    async def check() -> None:
        for when in ("before", "after"):
            for number in itertools.count(1):
                world = World(seed + number)

                @job("body")
                async def body(ctx: Context, _: None, world: World = world) -> list[Any]:
                    return await world.play(ctx, items, "")

                async with engine(body, max_recoveries=9) as e:
                    run = await e.trigger("body")
                    deaths = 0
                    for _ in range(2):
                        point = crash_at(e, **{when: number})
                        ended = asyncio.ensure_future(e.wait_for_run(run.id))
                        dead = asyncio.ensure_future(asyncio.wait_for(point, 5))
                        await asyncio.wait([ended, dead], return_when=asyncio.FIRST_COMPLETED)
                        for task in (ended, dead):
                            task.cancel()
                        await asyncio.wait([ended, dead])
                        deaths += point.is_reached
                        await restart(e)
                    run = await e.wait_for_run(run.id, timeout=5)
                    assert run.error is None, run.error
                    assert run.status == "completed"
                if not deaths:
                    break
            assert number > 1, "no engine ever died"

    asyncio.run(check())
