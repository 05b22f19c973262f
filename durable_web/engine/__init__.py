"""The engine: its public interface, which run executes when, and what reaches runs from outside.

``engine`` is the class, ``runs`` and ``schedules`` are the groups of its methods; ``running`` holds what exists only
between start and stop. ``dispatcher`` has runs executed as slots are free, and ``claiming`` says which one is next.
``admission`` applies a job's flow control to what is triggered, ``delivery`` brings signals, events and updates to
runs, ``scheduler`` triggers what schedules say, and ``dead_letters`` the handlers of dead runs.
"""

from .engine import Engine

__all__ = ["Engine"]
