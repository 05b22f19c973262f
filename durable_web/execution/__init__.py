"""One run, executed: what a job's ``Context`` stands on.

``executor`` is the run as a whole. ``operations`` are the steps that run code, ``waiting`` the durable waits,
``parking`` is how a run gives its slot up meanwhile, ``compensation`` undoes, ``fan_out`` maps over child runs,
``reports`` are log lines and progress, ``commits`` is how all of it reaches the store, together where it can.
"""
