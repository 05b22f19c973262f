"""How much is measured: everything, or a quick look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """Counts of one benchmark run.

    :param rounds: turns of every subject.
    :param steps, peer_steps: of the run whose steps are counted.
    :param runs, peer_runs: of one step each, triggered and executed.
    :param latencies: single triggers in one turn.
    :param replayed, peer_replayed: recorded steps; the peers' time is told for ``replayed`` of them.
    :param starts: navigations of each kind.
    :param frames: log lines that are written, and then replayed to the page.
    :param pasts: finished runs in the database.
    :param memory_steps: after which memory and database are weighed.
    """

    name: str
    rounds: int
    steps: int
    peer_steps: int
    runs: int
    peer_runs: int
    latencies: int
    replayed: int
    peer_replayed: int
    starts: int
    frames: int
    pasts: tuple[int, ...]
    memory_steps: int


FULL = Scale(
    name="full",
    rounds=5,
    steps=500,
    peer_steps=500,
    runs=200,
    peer_runs=200,
    latencies=15,
    replayed=1000,
    peer_replayed=1000,
    starts=7,
    frames=20_000,
    pasts=(0, 10_000, 100_000),
    memory_steps=100_000,
)
QUICK = Scale(
    name="quick",
    rounds=3,
    steps=200,
    peer_steps=40,
    runs=60,
    peer_runs=15,
    latencies=6,
    replayed=1000,
    peer_replayed=100,
    starts=3,
    frames=5_000,
    pasts=(0, 1_000, 10_000),
    memory_steps=5_000,
)
