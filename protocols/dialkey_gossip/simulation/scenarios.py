"""Measurements on a simulated swarm, with the original's figures beside them.

Source: docs/wire/gossip.md 6.2 to 6.5.
"""

from __future__ import annotations

import enum
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from dialkey_gossip.actions import Delivered, TopicEvent
from dialkey_gossip.config import GossipConfig
from dialkey_gossip.ids import PeerId
from dialkey_gossip.simulation.network import Counters, Latency, Network

__all__ = [
    "BASELINE",
    "CHURN_BASELINE",
    "Baseline",
    "ChurnResult",
    "ChurnScenario",
    "Kind",
    "Result",
    "Round",
    "Scenario",
    "bootstrap",
    "merge",
    "run_churn",
    "run_round",
    "run_scenario",
]

ROUND_TIMEOUT_S: Final = 5.0
"""What has not arrived by then counts as missed; the original's number."""

BOOTSTRAP_LATENCIES: Final = 20
"""How many times the highest latency passes before the first message; the original's number."""


class Kind(enum.Enum):
    """Who publishes in a round: always the same node, a random one, or every node at once."""

    SINGLE = "GossipSingle"
    MULTI = "GossipMulti"
    ALL = "GossipAll"


@attrs.frozen
class Scenario:
    """A swarm in which rounds of messages are measured.

    Attributes:
        kind: who publishes.
        nodes: how many there are.
        rounds: how many are measured, one after the other.
        latency: of the links.
        loss: the share of messages that are lost.
    """

    kind: Kind
    nodes: int
    rounds: int = 30
    latency: Latency = attrs.field(factory=Latency)
    loss: float = 0.0

    @property
    def label(self) -> str:
        """The name that the original gives to this scenario, and what is unusual."""
        label = f"{self.kind.value} n={self.nodes} r={self.rounds}"
        if self.latency != Latency():
            label += f" {self.latency.min_s * 1e3:.0f}-{self.latency.max_s * 1e3:.0f}ms"
        return f"{label} loss={self.loss:.0%}" if self.loss else label

    @property
    def baseline(self) -> Baseline | None:
        """The original's figures, where they are known."""
        if self.loss or self.latency.min_s != Latency().min_s:
            return None
        return BASELINE.get((self.kind, self.nodes, self.latency.max_s))


@attrs.frozen
class Round:
    """What one round of messages cost.

    Attributes:
        redundancy: payloads that arrived, for each delivery, beyond the first; the relative message
            redundancy (RMR). 0 is a perfect tree.
        last_hops: hops of the delivery that took most, 0 for a neighbour of the publisher (LDH).
        duration_s: from the broadcast to the last delivery.
        missed: deliveries that did not happen within `ROUND_TIMEOUT_S`.
        control: messages without content that arrived.
    """

    redundancy: float
    last_hops: int
    duration_s: float
    missed: int
    control: int


@attrs.frozen
class Result:
    """The rounds of one scenario under several seeds.

    Attributes:
        scenario: what was run.
        rounds: one sequence for each seed.
        degree: mean number of neighbours when the first round began.
        isolated: nodes without neighbours then, over all seeds.
    """

    scenario: Scenario
    rounds: tuple[tuple[Round, ...], ...]
    degree: float
    isolated: int

    def _mean(self, field: str) -> float:
        return statistics.fmean(
            statistics.fmean(getattr(round, field) for round in rounds) for rounds in self.rounds
        )

    @property
    def redundancy(self) -> float:
        """The mean of the seeds' means."""
        return self._mean("redundancy")

    @property
    def last_hops(self) -> float:
        """The mean of the seeds' means."""
        return self._mean("last_hops")

    @property
    def duration_s(self) -> float:
        """The mean of the seeds' means."""
        return self._mean("duration_s")

    @property
    def control(self) -> float:
        """The mean of the seeds' means."""
        return self._mean("control")

    @property
    def missed(self) -> int:
        """All missed deliveries together."""
        return sum(round.missed for rounds in self.rounds for round in rounds)

    @property
    def first_redundancy(self) -> float:
        """The mean over seeds of the first round, before there is a tree."""
        return statistics.fmean(rounds[0].redundancy for rounds in self.rounds)

    @property
    def settled_redundancy(self) -> float:
        """The mean over seeds of the last third of the rounds."""
        return statistics.fmean(
            round.redundancy
            for rounds in self.rounds
            for round in rounds[-(len(rounds) // 3 or 1) :]
        )


@attrs.frozen
class Baseline:
    """The original's figures: its state machines and simulator, 32 seeds, none missed."""

    redundancy: float
    last_hops: float
    duration_s: float


BASELINE: Final[Mapping[tuple[Kind, int, float], Baseline]] = {
    (Kind.SINGLE, 20, 0.05): Baseline(0.151, 3.1, 0.095),
    (Kind.SINGLE, 100, 0.05): Baseline(0.089, 6.0, 0.167),
    (Kind.SINGLE, 1000, 0.05): Baseline(0.074, 13.7, 0.353),
    (Kind.MULTI, 20, 0.05): Baseline(0.439, 5.3, 0.171),
    (Kind.MULTI, 100, 0.05): Baseline(0.462, 10.2, 0.309),
    (Kind.MULTI, 1000, 0.05): Baseline(0.462, 20.9, 0.610),
    (Kind.ALL, 20, 0.05): Baseline(1.385, 5.4, 0.442),
    (Kind.ALL, 100, 0.05): Baseline(1.058, 10.2, 0.718),
    (Kind.SINGLE, 100, 0.1): Baseline(0.087, 6.1, 0.300),
    (Kind.MULTI, 100, 0.1): Baseline(0.709, 10.4, 0.515),
    (Kind.ALL, 100, 0.1): Baseline(1.092, 11.6, 1.070),
}
"""By kind, nodes and the highest latency, the lowest being 10 ms; docs/wire/gossip.md 6.5."""


def bootstrap(network: Network, nodes: int) -> list[PeerId]:
    """Add nodes of which all join the first one at the same instant, and wait until that settles."""
    peers = [network.add() for _ in range(nodes)]
    network.join(peers[0], [])
    for peer in peers[1:]:
        network.join(peer, peers[:1])
    network.run_for(BOOTSTRAP_LATENCIES * network.latency.max_s)
    return peers


def run_round(
    network: Network,
    publishers: Sequence[PeerId],
    tag: str,
    *,
    timeout_s: float = ROUND_TIMEOUT_S,
) -> Round:
    """Let some nodes publish one message each and measure until everybody has all of them.

    As in the original, the round ends with the last delivery, and what is still under way then is
    counted in the next one.
    """
    network.counters = Counters()
    prefix = f"{tag}:".encode()
    expected = len(publishers) * (len(network.nodes) - 1)
    started_at = last_at = network.now
    delivered = 0

    def note(_: PeerId, event: TopicEvent) -> None:
        nonlocal delivered, last_at
        if isinstance(event, Delivered) and event.content.startswith(prefix):
            delivered += 1
            last_at = network.now

    network.on_event = note
    for publisher in publishers:
        network.broadcast(publisher, prefix + publisher)
    network.run_until(started_at + timeout_s, lambda: delivered >= expected)
    counters = network.counters
    return Round(
        redundancy=counters.payloads / (delivered - 1) - 1 if delivered > 1 else 0.0,
        last_hops=counters.last_hops,
        duration_s=last_at - started_at,
        missed=expected - delivered,
        control=counters.control,
    )


def run_scenario(
    scenario: Scenario, seeds: Sequence[int], config: GossipConfig | None = None
) -> Result:
    """Measure a scenario, once for each seed."""
    all_rounds: list[tuple[Round, ...]] = []
    degrees: list[float] = []
    isolated = 0
    for seed in seeds:
        network = Network(seed, config=config, latency=scenario.latency, loss=scenario.loss)
        peers = bootstrap(network, scenario.nodes)
        degrees.append(network.mean_degree())
        isolated += len(network.isolated())
        chance = random.Random(seed ^ 0x5EED)
        publisher = chance.choice(peers)
        rounds: list[Round] = []
        for index in range(scenario.rounds):
            if scenario.kind is Kind.MULTI:
                publisher = chance.choice(peers)
            publishers = peers if scenario.kind is Kind.ALL else [publisher]
            rounds.append(run_round(network, publishers, str(index)))
        all_rounds.append(tuple(rounds))
    return Result(scenario, tuple(all_rounds), statistics.fmean(degrees), isolated)


def merge(results: Sequence[Result]) -> Result:
    """Put the results of one scenario under several seeds together."""
    return Result(
        results[0].scenario,
        tuple(rounds for result in results for rounds in result.rounds),
        statistics.fmean(result.degree for result in results),
        sum(result.isolated for result in results),
    )


@attrs.frozen
class ChurnScenario:
    """A swarm of which many nodes vanish at once.

    Attributes:
        nodes: how many there are.
        killed: how many vanish after five rounds.
        wait_s: time from then to the broadcast that is measured.
    """

    nodes: int
    killed: int
    wait_s: float

    @property
    def label(self) -> str:
        """A name for tables."""
        return f"Churn n={self.nodes} k={self.killed} w={self.wait_s:g}"


@attrs.frozen
class ChurnResult:
    """What became of the broadcast.

    Attributes:
        scenario: what was run.
        missed: mean number of deliveries that did not happen.
        runs_with_missed: seeds in which any was missed.
        runs: seeds.
        degree: mean number of living neighbours at the end.
    """

    scenario: ChurnScenario
    missed: float
    runs_with_missed: int
    runs: int
    degree: float


CHURN_BASELINE: Final[Mapping[tuple[int, int, float], float]] = {
    (100, 30, 0.0): 0.0,
    (100, 30, 1.0): 0.0,
    (100, 50, 0.0): 6.4,
    (100, 50, 1.0): 0.0,
    (1000, 300, 0.0): 0.41,
    (1000, 300, 1.0): 0.0,
}
"""The original's mean of missed deliveries by nodes, killed and wait; docs/wire/gossip.md 6.5."""

_WARM_UP_ROUNDS: Final = 5


def run_churn(
    scenario: ChurnScenario, seeds: Sequence[int], config: GossipConfig | None = None
) -> ChurnResult:
    """Measure what a broadcast after a mass failure misses, once for each seed."""
    missed: list[int] = []
    degrees: list[float] = []
    for seed in seeds:
        network = Network(seed, config=config)
        peers = bootstrap(network, scenario.nodes)
        chance = random.Random(seed ^ 0x5EED)
        for index in range(_WARM_UP_ROUNDS):
            run_round(network, [chance.choice(peers)], str(index))
        victims = set(chance.sample(peers, scenario.killed))
        for victim in victims:
            network.kill(victim)
        network.run_for(scenario.wait_s)
        publisher = chance.choice([peer for peer in peers if peer not in victims])
        missed.append(run_round(network, [publisher], "after").missed)
        degrees.append(network.mean_degree())
    return ChurnResult(
        scenario,
        statistics.fmean(missed),
        sum(1 for count in missed if count),
        len(missed),
        statistics.fmean(degrees),
    )
