"""The registry: duplicate ids, forwarding, farewells, bounds; docs/wire/relay.md 4.3 and 4.4."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dialkey_relay.errors import RelayWireError
from dialkey_relay.frames import (
    Datagrams,
    EndpointGone,
    Health,
    RelayVersion,
    Status,
    decode_server_frame,
    encode_to_relay,
)
from dialkey_relay.hub import Hub, Peer
from dialkey_relay.websocket import FrameReader

KEYS = [bytes((n,)) * 32 for n in range(6)]


class Outlet:
    """A socket that takes nothing."""

    def __init__(self) -> None:
        self.ended: str | None = None
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1

    def end(self, reason: str) -> None:
        self.ended = reason


def join(hub, key, version=RelayVersion.V2, network=None):
    peer = Peer(key, version, Outlet(), network=network)
    hub.register(peer)
    return peer


def output(hub, peer, budget=1 << 30):
    out = []
    hub.take_output(peer, budget, out)
    reader = FrameReader(from_client=False, limit=1 << 20)
    messages = reader.feed(memoryview(b"".join(out)))
    return [decode_server_frame(message, peer.version) for message in messages]


def send(hub, peer, to, content=b"hello", segment=None, ecn=0):
    hub.forward(peer, encode_to_relay(Datagrams(to, content, segment, ecn)))


def test_datagrams_arrive_with_the_senders_key() -> None:
    hub = Hub()
    a, b = join(hub, KEYS[0]), join(hub, KEYS[1])
    send(hub, a, KEYS[1], b"one", ecn=2)
    send(hub, a, KEYS[1], b"xxxxyyyyz", segment=4)
    assert hub.take_ready() == [b]
    assert output(hub, b) == [
        Datagrams(KEYS[0], b"one", None, 2),
        Datagrams(KEYS[0], b"xxxxyyyyz", 4),
    ]
    assert hub.counters.send_packets_sent == hub.counters.send_packets_recv == 2
    assert hub.counters.bytes_sent == hub.counters.bytes_recv == 12
    assert hub.queued_bytes == 0
    assert not b.has_output


def test_datagrams_to_oneself_are_delivered() -> None:
    hub = Hub()
    a = join(hub, KEYS[0])
    send(hub, a, KEYS[0])
    assert output(hub, a) == [Datagrams(KEYS[0], b"hello")]


def test_odd_frames_are_made_regular() -> None:
    hub = Hub()
    a, b = join(hub, KEYS[0]), join(hub, KEYS[1])
    hub.forward(a, b"\x05" + KEYS[1] + b"\x01\0\0abc")
    hub.forward(a, b"\x04" + KEYS[1] + b"\x07abc")
    hub.forward(a, b"\x05" + KEYS[1] + b"\xff\0\x02abc")
    assert output(hub, b) == [
        Datagrams(KEYS[0], b"abc", None, 1),
        Datagrams(KEYS[0], b"abc", None, 3),
        Datagrams(KEYS[0], b"abc", 2, 3),
    ]
    assert hub.counters.bytes_sent == 9


@pytest.mark.parametrize("size", [65_536 - 35, 65_536 - 36])
def test_the_largest_frames_pass_and_larger_ones_harm_nobody(size) -> None:
    hub = Hub()
    a, b = join(hub, KEYS[0]), join(hub, KEYS[1])
    fits = size == 65_536 - 36
    hub.forward(a, b"\x05" + KEYS[1] + b"\0\x04\0" + b"x" * size)
    assert [len(frame.content) for frame in output(hub, b)] == ([size] if fits else [])
    assert hub.counters.dropped_unsendable == (0 if fits else 1)
    with pytest.raises(RelayWireError):
        hub.forward(a, b"\x05" + KEYS[1] + b"\0\x04\0" + b"x" * (65_537 - 35))


@pytest.mark.parametrize("head", [b"\x04" + KEYS[1] + b"\0", b"\x05" + KEYS[1] + b"\0\0\x05"])
def test_empty_datagrams_are_dropped_and_counted(head) -> None:
    hub = Hub()
    a, b = join(hub, KEYS[0]), join(hub, KEYS[1])
    hub.forward(a, head)
    assert output(hub, b) == []
    assert hub.counters.dropped_unsendable == 1
    with pytest.raises(RelayWireError):
        hub.forward(a, head[:-1])


def test_unknown_destinations_are_dropped_silently() -> None:
    hub = Hub()
    a = join(hub, KEYS[0])
    send(hub, a, KEYS[3])
    assert output(hub, a) == []
    assert hub.counters.dropped_unknown_destination == hub.counters.send_packets_dropped == 1


def test_the_newest_connection_of_an_id_receives() -> None:
    hub = Hub()
    sender = join(hub, KEYS[1])
    old, new = join(hub, KEYS[0]), join(hub, KEYS[0])
    assert output(hub, old) == [Status(1)]
    assert output(hub, new) == []
    send(hub, sender, KEYS[0])
    assert output(hub, old) == []
    assert output(hub, new) == [Datagrams(KEYS[1], b"hello")]
    send(hub, old, KEYS[1], b"I can still send")
    assert output(hub, sender) == [Datagrams(KEYS[0], b"I can still send")]
    assert hub.peers_of(KEYS[0]) == [new, old]
    hub.unregister(new)
    assert output(hub, old) == [Status(0)]
    assert output(hub, sender) == []
    send(hub, sender, KEYS[0])
    assert output(hub, old) == [Datagrams(KEYS[1], b"hello")]
    assert hub.counters.clients_inactive_added == hub.counters.clients_inactive_removed == 1


def test_connections_of_an_id_come_back_in_reverse_order() -> None:
    hub = Hub()
    peers = [join(hub, KEYS[0]) for _ in range(4)]
    hub.unregister(peers[1])
    hub.unregister(peers[3])
    assert hub.peers_of(KEYS[0]) == [peers[2], peers[0]]
    hub.unregister(peers[2])
    assert hub.peers_of(KEYS[0]) == [peers[0]]
    assert output(hub, peers[0]) == [Status(1), Status(0)]


def test_too_many_connections_of_an_id_end_the_oldest() -> None:
    hub = Hub()
    peers = [join(hub, KEYS[0]) for _ in range(9)]
    assert peers[0].outlet.ended is not None
    assert all(peer.outlet.ended is None for peer in peers[1:])


def test_version_1_gets_words() -> None:
    hub = Hub()
    old, new = join(hub, KEYS[0], RelayVersion.V1), join(hub, KEYS[0], RelayVersion.V1)
    (health,) = output(hub, old)
    assert isinstance(health, Health)
    hub.unregister(new)
    (health,) = output(hub, old)
    assert isinstance(health, Health)


def test_the_last_connection_says_goodbye_to_whom_it_wrote() -> None:
    hub = Hub()
    a, b, c = (join(hub, key) for key in KEYS[:3])
    send(hub, a, KEYS[1])
    send(hub, c, KEYS[0])
    output(hub, b)
    hub.unregister(a)
    hub.unregister(a)
    assert output(hub, b) == [EndpointGone(KEYS[0])]
    assert output(hub, c) == []
    hub.unregister(c)
    assert len(hub) == 1
    assert hub.counters.disconnects == 2


def test_what_waits_for_a_client_that_leaves_is_counted() -> None:
    hub = Hub()
    a, b = join(hub, KEYS[0]), join(hub, KEYS[1])
    send(hub, a, KEYS[1])
    hub.unregister(b)
    assert hub.counters.dropped_disconnected == 1
    assert hub.queued_bytes == 0


def test_a_slow_client_loses_frames_and_nobody_else_does() -> None:
    hub = Hub()
    a, slow, quick = (join(hub, key) for key in KEYS[:3])
    for n in range(600):
        send(hub, a, KEYS[1], n.to_bytes(2, "big"))
        send(hub, a, KEYS[2])
        assert len(output(hub, quick)) == 1
    frames = output(hub, slow)
    assert [int.from_bytes(frame.content, "big") for frame in frames] == list(range(88, 600))
    assert hub.counters.dropped_queue_full == 88


def test_a_burst_is_sent_before_it_overflows_the_queue() -> None:
    hub = Hub()
    a, b = join(hub, KEYS[0]), join(hub, KEYS[1])
    for _ in range(127):
        send(hub, a, KEYS[1])
    assert b.outlet.flushes == 0
    send(hub, a, KEYS[1])
    assert b.outlet.flushes == 1


def test_all_queues_together_are_bounded() -> None:
    hub = Hub(max_queued_bytes=10_000)
    peers = [join(hub, key) for key in KEYS]
    for key in KEYS[1:]:
        for _ in range(10):
            send(hub, peers[0], key, b"x" * 1000)
    assert hub.queued_bytes <= 10_000
    assert hub.counters.dropped_queues_full == 40


def test_many_slow_readers_do_not_starve_the_others() -> None:
    """285 of them held all memory for queues, and nothing more was passed on for anybody."""
    hub = Hub(max_queued_bytes=1 << 20)
    sender = join(hub, KEYS[0], network="192.0.2.1")
    slow = [join(hub, n.to_bytes(32, "big"), network=f"10.0.0.{n % 7}") for n in range(1, 40)]
    for _ in range(40):
        for peer in slow:
            send(hub, sender, peer.key, b"x" * 1200)
    assert hub.queued_bytes <= 1 << 20
    honest = join(hub, KEYS[1], network="192.0.2.2")
    for n in range(50):
        send(hub, sender, honest.key, bytes((n,)) * 1200)
        for peer in slow:
            send(hub, sender, peer.key, b"x" * 1200)
    assert [frame.content[0] for frame in output(hub, honest)] == list(range(50))
    assert hub.queued_bytes <= 1 << 20
    assert hub.queued_bytes == sum(peer.queue.size for peer in slow if peer.queue)
    assert hub.counters.dropped_queues_full > 0


def test_many_keys_of_one_network_are_one_reader() -> None:
    """Keys cost nothing: whose many queues are short holds as much as whose one is long."""
    hub = Hub(max_queued_bytes=100_000)
    sender = join(hub, KEYS[0], network="192.0.2.1")
    crowd = [join(hub, n.to_bytes(32, "big"), network="10.0.0.1") for n in range(1, 31)]
    honest = join(hub, KEYS[1], network="192.0.2.2")
    for _ in range(20):
        send(hub, sender, honest.key, b"x" * 1000)
        for peer in crowd:
            send(hub, sender, peer.key, b"x" * 1000)
    assert len(output(hub, honest)) == 20


def test_memory_comes_back() -> None:
    hub = Hub(max_queued_bytes=100_000)
    peers = [join(hub, key, network=n) for n, key in enumerate(KEYS)]
    for _ in range(5):
        for peer in peers[1:]:
            for _ in range(15):
                send(hub, peers[0], peer.key, b"x" * 1000)
        output(hub, peers[1], budget=5000)
        hub.unregister(peers[2])
        peers[2] = join(hub, KEYS[2], network=2)
        for peer in peers[1:]:
            assert output(hub, peer) or peer is peers[2]
    assert hub.queued_bytes == 0
    assert hub.counters.dropped_queues_full == 0


def test_control_frames_are_bounded_too() -> None:
    hub = Hub()
    a = join(hub, KEYS[0])
    for _ in range(2000):
        hub.send_control(a, b"\x0a12345678")
    assert len(output(hub, a)) == 512
    assert hub.counters.dropped_control == 2000 - 512


def test_correspondents_are_bounded() -> None:
    hub = Hub()
    a = join(hub, KEYS[0])
    others = [join(hub, n.to_bytes(32, "big")) for n in range(1, 5001)]
    for other in others:
        send(hub, a, other.key)
        output(hub, other)
    hub.unregister(a)
    told = sum(output(hub, other) == [EndpointGone(KEYS[0])] for other in others)
    assert told == 4096
    for other in others:
        hub.unregister(other)
    assert len(hub) == 0


def test_distinct_keys_are_counted_once() -> None:
    hub = Hub()
    for _ in range(3):
        hub.unregister(join(hub, KEYS[0]))
    join(hub, KEYS[1])
    assert hub.counters.unique_client_keys == 2
    assert hub.counters.accepts == 4


@attrs.define(eq=False)
class Client:
    key: bytes
    peer: Peer


class HubMachine(RuleBasedStateMachine):
    """Random joining, leaving, sending and reading against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub()
        self.clients: list[Client] = []
        self.sent_to: dict[bytes, set[bytes]] = {}
        self.expected: dict[Client, list] = {}

    def active(self, key):
        mine = [client for client in self.clients if client.key == key]
        return mine[-1] if mine else None

    @rule(key=st.sampled_from(KEYS[:4]))
    def connect(self, key):
        if len([client for client in self.clients if client.key == key]) >= 7:
            return
        previous = self.active(key)
        if previous is not None:
            self.expected[previous].append(Status(1))
        client = Client(key, join(self.hub, key))
        self.clients.append(client)
        self.expected[client] = []

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data):
        client = data.draw(st.sampled_from(self.clients))
        was_active = self.active(client.key) is client
        self.clients.remove(client)
        self.hub.unregister(client.peer)
        del self.expected[client]
        heir = self.active(client.key)
        if heir is not None:
            if was_active:
                self.expected[heir].append(Status(0))
            return
        for key in self.sent_to.pop(client.key, ()):
            other = self.active(key)
            if other is not None:
                self.expected[other].append(EndpointGone(client.key))
        for keys in self.sent_to.values():
            keys.discard(client.key)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), to=st.sampled_from(KEYS[:5]), content=st.binary(min_size=1, max_size=9))
    def send(self, data, to, content):
        client = data.draw(st.sampled_from(self.clients))
        send(self.hub, client.peer, to, content)
        other = self.active(to)
        if other is not None:
            self.expected[other].append(Datagrams(client.key, content))
            self.sent_to.setdefault(client.key, set()).add(to)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def read(self, data):
        client = data.draw(st.sampled_from(self.clients))
        frames = output(self.hub, client.peer)
        expected, self.expected[client] = self.expected[client], []

        def control(all_frames):
            # The order of farewells is not promised.
            return sorted(str(f) for f in all_frames if not isinstance(f, Datagrams))

        assert control(frames) == control(expected)
        for key in KEYS:
            assert [f for f in frames if isinstance(f, Datagrams) and f.peer == key] == [
                f for f in expected if isinstance(f, Datagrams) and f.peer == key
            ]

    @invariant()
    def registry_is_right(self):
        assert len(self.hub) == len({client.key for client in self.clients})
        waiting = sum(client.peer.queue.size for client in self.clients if client.peer.queue)
        assert self.hub.queued_bytes == waiting
        for key in KEYS:
            active = self.active(key)
            assert [p.active for p in self.hub.peers_of(key)][:1] == ([True] if active else [])


TestHubMachine = HubMachine.TestCase
TestHubMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
