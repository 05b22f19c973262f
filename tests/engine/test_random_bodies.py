"""Random bodies go the same way in every execution, whatever becomes of their engines.

Hypothesis draws programs (``body_programs``) and the noise, from which everything else follows: deaths at random
commits, evictions, other processes, places at which a run gives way (``random_bodies``). Each example is at least
``HISTORIES`` histories, a history being that of one run that was triggered, with the children and the further links
that it makes; so there are at least 3,000 of them here. ``$DURABLE_WEB_BODIES`` says how many examples there are.
"""

from __future__ import annotations

import os
from typing import Any

from body_programs import Random, run_input
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_bodies import live_through
from watching import on_a_desk_only

EXAMPLES = int(os.environ.get("DURABLE_WEB_BODIES", "500"))
HISTORIES = 6


@st.composite
def several_inputs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The inputs of some runs that execute beside each other; of one, alone."""
    rnd: Random = draw(st.randoms(use_true_random=False))
    count = (6, 6, 6, 3, 2, 1)[rnd.randint(0, 5)]
    return [run_input(rnd, rnd.randint(0, 3)) for _ in range(count)]


@on_a_desk_only("three thousand histories take minutes there, and time is simulated by an event loop of its own")
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(inputs=several_inputs(), noise=st.integers(0, 10**9))
def test_a_body_goes_the_same_way_in_every_execution_and_all_of_it_is_replayed_without_a_call(inputs, noise):
    live_through(inputs, noise, histories=HISTORIES // len(inputs))
