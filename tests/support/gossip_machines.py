"""A stage for single gossip machines: records what they want done, and holds their timers."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from dialkey_gossip import GossipConfig, MembershipConfig
from dialkey_gossip.actions import Delivered
from dialkey_gossip.hyparview import Membership, SwarmMessage
from dialkey_gossip.ids import PeerId, message_id
from dialkey_gossip.messages import Gossip, Message, Neighbor, PeerInfo
from dialkey_gossip.plumtree import Broadcast, Validate


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


ME = peer(0)


class Stage:
    """What the machines of one topic talk to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[tuple[PeerId, Message]] = []
        self.up: list[PeerId] = []
        self.down: list[PeerId] = []
        self.delivered: list[Delivered] = []
        self.released: list[PeerId] = []
        self.sources: dict[PeerId, PeerId] = {}
        self.learnt: list[tuple[PeerId, bytes]] = []
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0

    # --- Output ---------------------------------------------------------------------------------

    def send(self, peer: PeerId, message: Message) -> None:
        self.sent.append((peer, message))

    def neighbor_up(self, peer: PeerId, now: float, *, high: bool) -> None:
        self.up.append(peer)

    def neighbor_down(self, peer: PeerId, now: float) -> None:
        self.down.append(peer)

    def deliver(self, event: Delivered) -> None:
        self.delivered.append(event)

    def release(self, peer: PeerId) -> None:
        self.released.append(peer)

    def learned(self, peer: PeerId, data: bytes | None, source: PeerId) -> None:
        self.sources[peer] = source
        if data is not None:
            self.learnt.append((peer, data))

    def call_at(self, at: float, timer: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._timers, (at, self._count, timer))

    # --- for tests ------------------------------------------------------------------------------

    @property
    def timers(self) -> int:
        return len(self._timers)

    def taken(self) -> list[tuple[PeerId, Message]]:
        """Return what was sent since the last time, and forget it."""
        sent, self.sent = self.sent, []
        return sent

    def run_for(self, duration_s: float) -> None:
        """Let time pass."""
        end = self.now + duration_s
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            timer(self.now)
        self.now = end


class Swarmer(Stage):
    """A membership machine on its stage."""

    def __init__(self, seed: int = 1, **membership: float) -> None:
        super().__init__()
        config = GossipConfig(membership=MembershipConfig(**membership))  # type: ignore[arg-type]
        self.machine = Membership(ME, config, random.Random(seed), self)

    @property
    def active(self) -> set[PeerId]:
        return set(self.machine.active)

    @property
    def passive(self) -> set[PeerId]:
        return set(self.machine.passive)

    def hear(self, sender: PeerId, message: SwarmMessage) -> list[tuple[PeerId, Message]]:
        """Deliver a message, and return what is sent because of it."""
        self.taken()
        self.machine.receive(sender, message, self.now)
        return self.taken()

    def lose(self, sender: PeerId, *, is_clean: bool = False) -> list[tuple[PeerId, Message]]:
        self.taken()
        self.machine.peer_lost(sender, self.now, is_clean=is_clean)
        return self.taken()

    def with_neighbors(self, *numbers: int) -> Swarmer:
        """Have these neighbours, of which none has been heard of otherwise."""
        for number in numbers:
            self.hear(peer(number), Neighbor(True))
        self.run_for(20)
        self.taken()
        self.up.clear()
        self.down.clear()
        self.released.clear()
        assert self.active == {peer(number) for number in numbers}
        return self

    def with_passive(self, *numbers: int) -> Swarmer:
        for number in numbers:
            self.machine._add_passive(PeerInfo(peer(number)), ME)
        return self


class Spreader(Stage):
    """A broadcast machine on its stage."""

    def __init__(
        self,
        *neighbors: int,
        validate: Validate | None = None,
        config: GossipConfig | None = None,
    ) -> None:
        super().__init__()
        self.machine = Broadcast(config or GossipConfig(), random.Random(1), self, validate)
        for number in neighbors:
            self.machine.neighbor_up(peer(number), self.now, high=True)

    @property
    def eager(self) -> set[PeerId]:
        return set(self.machine.eager)

    @property
    def lazy(self) -> set[PeerId]:
        return set(self.machine.lazy)

    def make_lazy(self, *numbers: int) -> Spreader:
        for number in numbers:
            self.machine._make_lazy(peer(number))
        return self

    def hear(self, number: int, message: Message) -> list[tuple[PeerId, Message]]:
        self.taken()
        self.machine.receive(peer(number), message, self.now)  # type: ignore[arg-type]
        return self.taken()

    def publish(self, content: bytes) -> list[tuple[PeerId, Message]]:
        self.taken()
        assert self.machine.broadcast(content, self.now)
        return self.taken()


def gossip(content: bytes, round: int | None = 0) -> Gossip:
    return Gossip(message_id(content), content, round)
