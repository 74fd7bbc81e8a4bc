"""A swarm on virtual time: the state machines of many nodes and a network between them.

Everything is drawn from one seed, so the same parameters repeat a run exactly. There is no QUIC here; a
message takes the latency of its link, may be lost, and links may be cut.

`Network` is the swarm; `scenarios` holds the measurements of ``benchmarks/gossip.py``.

Source: docs/wire/gossip.md 6.
"""

from __future__ import annotations

from dialkey_gossip.simulation.network import TOPIC, Counters, Latency, Network
from dialkey_gossip.simulation.scenarios import (
    BASELINE,
    CHURN_BASELINE,
    Baseline,
    ChurnResult,
    ChurnScenario,
    Kind,
    Result,
    Round,
    Scenario,
    bootstrap,
    merge,
    run_churn,
    run_round,
    run_scenario,
)

__all__ = [
    "BASELINE",
    "CHURN_BASELINE",
    "TOPIC",
    "Baseline",
    "ChurnResult",
    "ChurnScenario",
    "Counters",
    "Kind",
    "Latency",
    "Network",
    "Result",
    "Round",
    "Scenario",
    "bootstrap",
    "merge",
    "run_churn",
    "run_round",
    "run_scenario",
]
