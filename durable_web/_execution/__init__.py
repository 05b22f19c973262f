"""Executing one run: its body, on an event loop of its own, and what that asks of its context.

Each module owns a part of the run's state, and imports only those before it: ``history``, ``run_loop``, ``tenure``,
``reporting``, ``outcomes``, ``steps``, ``writes``, ``waits``, ``children``, ``compensation``, ``parking``, ``run``.
``commits``, ``services`` and ``leaving`` serve them all.
"""
