"""One run, executed: what a job's ``Context`` stands on.

``executor`` is the run as a whole, ``leaving`` how the engine ends its body, ``services`` what it has of the engine.
``operations`` are the steps that run code, ``waiting`` the durable waits, ``parking`` is how a run gives its slot up
meanwhile, ``timeouts`` and ``suspended`` keep the timers of asyncio around waits, ``compensation`` undoes, ``fan_out``
maps over child runs, ``reports`` are log lines and progress, and ``commits`` is how all of it reaches the store,
together where it can.
"""
