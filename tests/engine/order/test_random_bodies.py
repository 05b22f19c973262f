"""Random bodies go the same way in every execution, whatever becomes of their engines.

Hypothesis draws programs (``body_programs``) and the noise, from which everything else follows: deaths at random
commits, evictions, other processes, places at which a run gives way (``random_bodies``). A history is that of one run
which is triggered, with its children and its further links. Each example has six of them, beside each other or one
after another: 3,000 here. ``$DURABLE_WEB_BODIES`` says how many examples there are, 500 by default.

A failure names the noise and the inputs: give both to ``random_bodies.live_through`` to see it again.
"""

from __future__ import annotations

import os
from typing import Any

from body_programs import Random, run_input
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_bodies import live_through
from watching import cpython_only

EXAMPLES = int(os.environ.get("DURABLE_WEB_BODIES", "500"))
HISTORIES = 6


@st.composite
def several_inputs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The inputs of some runs that execute beside each other; of one, alone."""
    rnd: Random = draw(st.randoms(use_true_random=False))
    count = (6, 6, 6, 6, 6, 3, 2, 1)[rnd.randint(0, 7)]
    return [run_input(rnd, (1, 1, 2, 2, 3)[rnd.randint(0, 4)]) for _ in range(count)]


@cpython_only("three thousand histories take minutes there, and time is simulated by an event loop of its own")
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(inputs=several_inputs(), noise=st.integers(0, 10**9))
def test_a_body_goes_the_same_way_in_every_execution_and_all_of_it_is_replayed_without_a_call(inputs, noise):
    live_through(inputs, noise, worlds=HISTORIES // len(inputs))
