"""Jobs that pages of tests show, and what such jobs may say."""

JOBS = """
import asyncio
from durable_web import FatalError, job

@job("count")
async def count(ctx, input):
    for number in range(input["to"]):
        await ctx.step(f"step {number}", lambda: number)
        ctx.log.info(f"line {number}")
        ctx.progress(number + 1, input["to"], f"at {number}")
    return {"counted": input["to"]}

@job("hold")
async def hold(ctx, name):
    ctx.log.info(f"holding {name}")
    ctx.progress(1, 4, "held")
    await asyncio.Event().wait()

calls = []

@job("fail once")
async def fail_once(ctx, _):
    async def call():
        if not calls:
            calls.append(1)
            raise FatalError("not yet")
        return "now"
    ctx.log.info("before")
    return await ctx.step("call", call)

@job("slow")
async def slow(ctx, steps):
    for number in range(steps):
        ctx.log.info(f"line {number}")
        await ctx.step(f"step {number}", asyncio.sleep, 0.02)

@job("ask")
async def ask(ctx, question):
    await ctx.set_event("question", {"text": question})
    await ctx.set_event("__proto__", "a key like any other")
    answer = await ctx.wait_for_signal("answer")
    await ctx.set_event("question", None)
    return answer

@job("say")
async def say(ctx, texts):
    for text in texts:
        ctx.log.warning(text, seen=text[:50])
    ctx.progress(1, 2, texts[0])
    return texts[0]
"""

NASTY = [
    "<img src=x onerror=alert(1)>",
    "grüße 🎉 👩\u200d👩\u200d👧",
    "nul \0, bell \a, escape \x1b[31m",
    "turned \u202e around",
    "x" * 1_000_000,
]
"""What log lines and names may hold."""
