"""Executing one run: its body, on an event loop of its own, and what that asks of its context.

The modules, each of which imports only those before it: ``history``, ``run_loop``, ``tenure``, ``reporting``,
``steps``, ``waits``, ``children``, ``compensation``, ``run``; ``commits``, ``services`` and ``leaving`` serve them all.
"""
