"""How soon a page can work: first visit, repeat visit, and take-over after a killed leader."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chromium import launch
from environment import BUILD

from .laboratory import Laboratory, deadline, servers
from .scale import Scale
from .series import Bench, Measurement

if TYPE_CHECKING:
    from playwright.sync_api import Playwright

SNAPSHOT, PLAIN = "snapshot", "plain"
NO_SNAPSHOT = "dist/ has no memory snapshot, so only the plain start was measured"


def has_snapshot(dist: Path) -> bool:
    """Whether dist/ holds a memory snapshot to start from."""
    return any("snapshot" in path.name and path.suffix not in (".js", ".mjs", ".py") for path in dist.rglob("*"))


def measure_starts(bench: Bench, playwright: Playwright, dist: Path, bundles: Path, scale: Scale) -> list[Measurement]:
    """Navigation to the first committed step, with a browser that has never been here and with one that has."""
    first = Measurement("first-visit", "First visit: navigation to the first committed step")
    again = Measurement("repeat-visit", "Repeat visit: navigation to the first committed step")
    over = Measurement("take-over", "From the leader's crash to the next step, committed by another tab's engine")
    kinds = [SNAPSHOT, PLAIN] if has_snapshot(dist) else [PLAIN]
    with servers(dist, bundles) as (plain, isolated):

        def first_visit(kind: str) -> Callable[[], float]:
            def measure() -> float:
                with (
                    tempfile.TemporaryDirectory(dir=BUILD, prefix="benchmark-", ignore_cleanup_errors=True) as folder,
                    launch(playwright, Path(folder) / "profile") as chromium,
                    deadline(chromium),
                ):
                    return _visit(Laboratory(chromium, plain, isolated), kind)

            return measure

        first.series += bench.take_turns(
            "ms", {kind: first_visit(kind) for kind in kinds}, rounds=scale.starts
        ).values()
        with (
            tempfile.TemporaryDirectory(dir=BUILD, prefix="benchmark-", ignore_cleanup_errors=True) as folder,
            launch(playwright, Path(folder) / "profile") as chromium,
            deadline(chromium),
        ):
            lab = Laboratory(chromium, plain, isolated)
            visits: dict[str, Callable[[], float]] = {kind: lambda kind=kind: _visit(lab, kind) for kind in kinds}
            for visit in visits.values():
                visit()
            again.series += bench.take_turns("ms", visits, rounds=scale.starts).values()
            crashes = {"engine": lambda: _take_over(lab)}
            over.series += bench.take_turns("ms", crashes, rounds=min(scale.starts, 5)).values()
    first.notes.append("The server is on the same machine: what a network would add is not in these numbers.")
    if SNAPSHOT not in kinds:
        for found in (first, again):
            found.notes.append(NO_SNAPSHOT)
    return [first, again, over]


def _visit(lab: Laboratory, kind: str) -> float:
    if len(lab.chromium.context.pages) < 2:  # a browser whose last tab is closed may end
        lab.chromium.context.new_page()
    page = lab.open(lab.address("engine.html?start=start" + ("&plain" if kind == PLAIN else "")))
    told = page.evaluate("() => globalThis.started")
    if told.get("kind") not in (None, kind):
        raise RuntimeError(f"A {kind} start was asked for, and it was a {told['kind']} one: {told.get('reason')}.")
    page.evaluate("() => engine.close()")
    page.close()
    return told["milliseconds"]


def _take_over(lab: Laboratory) -> float:
    name = f"take-over-{time.time_ns()}"
    leader = lab.open(lab.address("engine.html"))
    leader.evaluate("(name) => engine.open(name)", name)
    leader.evaluate("() => engine.startInterrupted()")
    with lab.chromium.context.expect_page():
        # A tab without an opener has a process of its own, which does not die with the leader's.
        leader.evaluate("(url) => void open(url, '_blank', 'noopener')", lab.address("engine.html"))
    follower = lab.chromium.context.pages[-1]
    follower.wait_for_function("() => document.title === 'loaded'")
    follower.evaluate("(name) => void (globalThis.taken = engine.takeOver(name))", name)
    follower.wait_for_function("() => navigator.locks.query().then(({ pending }) => pending.length > 0)")
    died = time.time() * 1000
    lab.chromium.crash(leader)
    moment = follower.evaluate("() => globalThis.taken")
    follower.evaluate("() => engine.close()")
    follower.close()
    return moment - died
