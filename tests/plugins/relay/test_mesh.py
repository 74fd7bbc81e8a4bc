"""Several relay processes behind one port, without processes: messages in a random order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dialkey_relay.errors import RelayWireError
from dialkey_relay.frames import (
    Datagrams,
    EndpointGone,
    RelayVersion,
    Status,
    decode_server_frame,
    encode_to_relay,
)
from dialkey_relay.hub import Hub, Peer
from dialkey_relay.mesh import MeshStream, ProcessMesh, encode
from dialkey_relay.websocket import FrameReader

KEYS = [bytes((n,)) * 32 for n in range(4)]


class Outlet:
    def flush(self):
        pass

    def end(self, reason):
        pass


class Located(Peer):
    """A connection that knows its process."""

    __slots__ = ("process",)


class Wire:
    """A stream from one process to another."""

    def __init__(self, cluster, source, target):
        self.cluster, self.source, self.target = cluster, source, target
        self.messages = deque()
        self.is_full = False

    def send(self, data):
        if self.is_full and len(data) > 200:
            return False
        self.messages.append(data)
        return True

    def carry(self):
        """Deliver the oldest message."""
        stream = MeshStream()
        for kind, body in stream.feed(self.messages.popleft()):
            self.cluster.meshes[self.target].receive(self.source, kind, body)


class Cluster:
    def __init__(self, count=3):
        self.now = 100
        self.hubs = [Hub() for _ in range(count)]
        self.meshes = [ProcessMesh(hub, self.clock) for hub in self.hubs]
        self.wires = []
        for a in range(count):
            for b in range(count):
                if a != b:
                    wire = Wire(self, a, b)
                    self.wires.append(wire)
                    self.meshes[a].add(b, wire)

    def clock(self):
        self.now += 1
        return self.now

    def settle(self):
        while any(wire.messages for wire in self.wires):
            for wire in self.wires:
                if wire.messages:
                    wire.carry()

    def join(self, process, key):
        peer = Located(key, RelayVersion.V2, Outlet())
        peer.process = process
        self.hubs[process].register(peer)
        return peer

    def leave(self, peer):
        self.hubs[peer.process].unregister(peer)

    def send(self, peer, to, content=b"hello"):
        self.hubs[peer.process].forward(peer, encode_to_relay(Datagrams(to, content)))

    def output(self, peer):
        out = []
        self.hubs[peer.process].take_output(peer, 1 << 30, out)
        reader = FrameReader(from_client=False, limit=1 << 20)
        return [
            decode_server_frame(message, RelayVersion.V2)
            for message in reader.feed(memoryview(b"".join(out)))
        ]


def test_datagrams_find_their_way_between_processes() -> None:
    cluster = Cluster()
    a, b = cluster.join(0, KEYS[0]), cluster.join(2, KEYS[1])
    cluster.settle()
    cluster.send(a, KEYS[1])
    cluster.send(b, KEYS[0], b"x" * 5000)
    cluster.settle()
    assert cluster.output(b) == [Datagrams(KEYS[0], b"hello")]
    assert cluster.output(a) == [Datagrams(KEYS[1], b"x" * 5000)]
    cluster.leave(a)
    cluster.settle()
    assert cluster.output(b) == [EndpointGone(KEYS[0])]
    cluster.send(b, KEYS[0])
    assert cluster.hubs[2].counters.dropped_unknown_destination == 1


def test_the_newest_connection_receives_wherever_it_is() -> None:
    cluster = Cluster()
    sender = cluster.join(1, KEYS[1])
    first = cluster.join(0, KEYS[0])
    cluster.settle()
    second = cluster.join(2, KEYS[0])
    cluster.settle()
    assert cluster.output(first) == [Status(1)]
    third = cluster.join(0, KEYS[0])
    cluster.settle()
    assert cluster.output(first) == []
    assert cluster.output(second) == [Status(1)]
    cluster.send(sender, KEYS[0])
    cluster.settle()
    assert cluster.output(third) == [Datagrams(KEYS[1], b"hello")]
    cluster.leave(third)
    cluster.settle()
    assert cluster.output(first) == []
    assert cluster.output(second) == [Status(0)]
    cluster.send(sender, KEYS[0])
    cluster.send(first, KEYS[1], b"old ones may send")
    cluster.settle()
    assert cluster.output(second) == [Datagrams(KEYS[1], b"hello")]
    assert cluster.output(sender) == [Datagrams(KEYS[0], b"old ones may send")]
    cluster.leave(second)
    cluster.settle()
    assert cluster.output(first) == [Status(0)]
    assert cluster.output(sender) == []
    cluster.leave(first)
    cluster.settle()
    assert cluster.output(sender) == [EndpointGone(KEYS[0])]


def test_a_full_stream_drops_and_counts() -> None:
    cluster = Cluster(2)
    a, b = cluster.join(0, KEYS[0]), cluster.join(1, KEYS[1])
    cluster.settle()
    for wire in cluster.wires:
        wire.is_full = True
    cluster.send(a, KEYS[1], b"x" * 1000)
    cluster.settle()
    assert cluster.output(b) == []
    assert cluster.hubs[0].counters.dropped_queue_full == 1


def test_a_process_that_ends_takes_its_clients_along() -> None:
    cluster = Cluster()
    old = cluster.join(0, KEYS[0])
    cluster.settle()
    cluster.join(1, KEYS[0])
    cluster.settle()
    assert cluster.output(old) == [Status(1)]
    for mesh in (cluster.meshes[0], cluster.meshes[2]):
        mesh.remove(1)
    assert cluster.output(old) == [Status(0)]
    assert cluster.meshes[0].siblings == [2]


def test_questions_and_answers() -> None:
    cluster = Cluster(2)
    told = []
    cluster.meshes[0].on_tell = lambda *answer: told.append(answer)
    cluster.meshes[1].on_ask = lambda: b"numbers"
    cluster.meshes[0].ask(1, 7)
    cluster.settle()
    assert told == [(1, 7, b"numbers")]


def test_streams_are_cut_anywhere() -> None:
    data = encode(3, b"abc") + encode(4, b"") + encode(5, b"x" * 1000)
    stream = MeshStream()
    found = []
    for byte in data:
        found += stream.feed(bytes((byte,)))
    assert found == [(3, b"abc"), (4, b""), (5, b"x" * 1000)]
    with pytest.raises(RelayWireError):
        MeshStream().feed(b"\x01\xff\xff\xff\xff")
    with pytest.raises(RelayWireError):
        Cluster(2).meshes[0].receive(1, 9, b"")
    with pytest.raises(RelayWireError):
        Cluster(2).meshes[0].receive(1, 1, b"short")


class ClusterMachine(RuleBasedStateMachine):
    """Clients come and go while messages are on their way; in the end all agree."""

    def __init__(self):
        super().__init__()
        self.cluster = Cluster()
        self.peers = []

    @rule(process=st.integers(0, 2), key=st.sampled_from(KEYS))
    def join(self, process, key):
        if sum(peer.key == key for peer in self.peers) < 6:
            self.peers.append(self.cluster.join(process, key))

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def leave(self, data):
        peer = data.draw(st.sampled_from(self.peers))
        self.peers.remove(peer)
        self.cluster.leave(peer)

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), to=st.sampled_from(KEYS))
    def send(self, data, to):
        self.cluster.send(data.draw(st.sampled_from(self.peers)), to)

    @rule(data=st.data())
    def carry(self, data):
        busy = [wire for wire in self.cluster.wires if wire.messages]
        if busy:
            data.draw(st.sampled_from(busy)).carry()

    @rule()
    def agree(self):
        """When all messages have arrived, exactly the newest connection of each id receives."""
        self.cluster.settle()
        for key in KEYS:
            mine = [peer for peer in self.peers if peer.key == key]
            if not mine:
                continue
            newest = max(mine, key=lambda peer: peer.joined_at)
            assert newest is mine[-1]
            for process, hub in enumerate(self.cluster.hubs):
                entry = hub.entry_of(key)
                here = [peer for peer in mine if peer.process == process]
                assert (entry is not None) == bool(here)
                if entry is not None:
                    assert entry.is_overruled == (newest.process != process)

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), to=st.sampled_from(KEYS))
    def deliver(self, data, to):
        """Then a datagram reaches it from anywhere."""
        self.cluster.settle()
        mine = [peer for peer in self.peers if peer.key == to]
        for peer in self.peers:
            self.cluster.output(peer)
        sender = data.draw(st.sampled_from(self.peers))
        self.cluster.send(sender, to, b"now")
        self.cluster.settle()
        for peer in self.peers:
            expected = [Datagrams(sender.key, b"now")] if mine and peer is mine[-1] else []
            assert self.cluster.output(peer) == expected

    @invariant()
    def queues_are_accounted(self):
        for process, hub in enumerate(self.cluster.hubs):
            here = [peer for peer in self.peers if peer.process == process]
            assert hub.queued_bytes == sum(peer.queue.size for peer in here if peer.queue)


TestClusterMachine = ClusterMachine.TestCase
TestClusterMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
