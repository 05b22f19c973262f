"""For tests of jobs: a clock that is moved by hand, an engine in memory, crashes at named points, and more.

>>> async with engine(order) as e:
...     run = await e.trigger(order, "A-1")
...     await crash_at(e, after="charge")
...     await restart(e)
...     await e.runs.signal(run.id, "approval", "by Ada")
...     assert (await e.runs.wait(run.id)).output == "shipped"

``MockClock`` stands still until it is moved, and fires timers in order; ``settle`` lets everything that is ready come
to rest. ``engine`` runs jobs over SQLite in memory. ``crash``, ``restart`` and ``crash_at`` let it die, on the spot or
at a named point, and come back. ``stub_steps`` gives steps results without calling their functions. ``record_history``
and ``assert_replays`` hold today's code against the history of a run of yesterday.

Time, faults and the functions of steps are all that is ever faked: the database is SQLite, and the engine the real one.
"""

from .clock import MockClock, settle
from .crashes import CrashPoint, SimulatedCrash, crash, crash_at, restart
from .engines import engine
from .histories import Replay, assert_replays, record_history
from .stubs import stub_steps

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
