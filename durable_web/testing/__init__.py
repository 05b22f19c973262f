"""For tests of jobs: a clock that is moved by hand, an engine in memory, crashes at named points, and more.

>>> async with engine(order) as e:
...     run = await e.trigger(order, "A-1")
...     await crash_at(e, after="charge")
...     await restart(e)
...     await e.runs.signal(run.id, "approval", "by Ada")
...     assert (await e.runs.wait(run.id)).output == "shipped"

``MockClock`` stands still until it is moved, and fires timers in order; ``settle`` waits until all ready tasks have
run. ``engine`` runs jobs over SQLite in memory. ``crash`` and ``crash_at`` kill the engine, at once or at a named
commit, and ``restart`` starts it again. ``stub_steps`` gives steps results without calling their functions.
``record_history`` and ``assert_replays`` check today's code against the history of an earlier run.

Only time, faults and the functions of steps are simulated: the database is SQLite, and the engine is the real one.
"""

from ._clock import MockClock, settle
from ._crashes import CrashPoint, SimulatedCrash, crash, crash_at, restart
from ._engines import engine
from ._histories import Replay, assert_replays, record_history
from ._stubs import stub_steps

__all__ = [
    "CrashPoint",
    "MockClock",
    "Replay",
    "SimulatedCrash",
    "assert_replays",
    "crash",
    "crash_at",
    "engine",
    "record_history",
    "restart",
    "settle",
    "stub_steps",
]
