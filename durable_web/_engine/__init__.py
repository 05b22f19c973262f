"""The engine: its public interface, the order in which runs execute, and the delivery of messages to runs.

``engine`` is the class, ``runs`` and ``schedules`` are the groups of its methods, and ``running`` holds the parts that
exist only between start and stop.
``dispatcher`` executes runs while slots are free, and ``claiming`` chooses the next one. ``admission`` applies a job's
flow control to what is triggered, ``delivery`` brings signals, events and updates to runs, ``scheduler`` triggers the
runs of schedules, and ``dead_letters`` starts the handlers of dead runs.
"""

from .engine import Engine

__all__ = ["Engine"]
