"""A node with several topics; vectors of the original's machines; whatever strangers send."""

from __future__ import annotations

import random

import pytest
from gossip_machines import peer
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey_gossip import GossipConfig, MembershipConfig, MessageTooLarge, TopicId
from dialkey_gossip.actions import Action, Delivered, PeerDown, PeerUp, Send, Tell
from dialkey_gossip.ids import MessageId, PeerId, message_id
from dialkey_gossip.messages import (
    Disconnect,
    ForwardJoin,
    Gossip,
    Graft,
    IHave,
    Join,
    Message,
    Neighbor,
    PeerInfo,
    Prune,
    Shuffle,
    ShuffleReply,
)
from dialkey_gossip.node import Node
from dialkey_gossip.simulation import TOPIC, Network

OTHER = TopicId.from_name("another")


def node(**membership: int) -> Node:
    config = GossipConfig(membership=MembershipConfig(**membership))  # type: ignore[arg-type]
    return Node(peer(0), config, random.Random(1))


def sends(actions: list[Action]) -> list[tuple[TopicId, PeerId, Message]]:
    return [(each.topic, each.peer, each.message) for each in actions if isinstance(each, Send)]


def test_topics_do_not_know_of_each_other() -> None:
    one = node()
    one.join(TOPIC, [], 0.0)
    one.join(OTHER, [], 0.0)
    one.receive(peer(1), TOPIC, Neighbor(True), 0.0)
    one.receive(peer(2), OTHER, Neighbor(True), 0.0)
    assert one.neighbors(TOPIC) == (peer(1),)
    assert one.neighbors(OTHER) == (peer(2),)
    actions = one.broadcast(TOPIC, b"x", 0.0)
    assert actions is not None
    assert [each[:2] for each in sends(actions)] == [(TOPIC, peer(1))]
    lost = one.peer_lost(peer(1), 0.0)
    assert Tell(TOPIC, PeerDown(peer(1))) in lost
    assert one.neighbors(OTHER) == (peer(2),)


def test_a_topic_that_was_not_entered_is_ignored() -> None:
    one = node()
    assert one.receive(peer(1), TOPIC, Join(), 0.0) == []
    one.join(TOPIC, [], 0.0)
    one.receive(peer(1), TOPIC, Join(), 0.0)
    assert sends(one.quit(TOPIC, 1.0))[-1] == (TOPIC, peer(1), Disconnect(False))
    assert one.receive(peer(1), TOPIC, Join(), 1.0) == []
    assert one.tick(1000.0) == []
    assert one.topics() == ()
    assert one.quit(TOPIC, 1.0) == []


def test_timers_of_a_topic_that_was_left_do_not_come_back() -> None:
    """Q5 of the original: leaving and entering again left a second shuffle timer behind."""
    one = node()
    for at in range(10):
        one.join(TOPIC, [], float(at))
        one.receive(peer(1), TOPIC, Neighbor(True), float(at))
        one.quit(TOPIC, at + 0.1)
    one.join(TOPIC, [], 20.0)
    one.receive(peer(1), TOPIC, Neighbor(True), 20.0)
    shuffles = 0
    now = 20.0
    while (deadline := one.deadline()) is not None and deadline < 620.0:
        now = max(now, deadline)
        shuffles += sum(isinstance(each[2], Shuffle) for each in sends(one.tick(now)))
    assert 8 <= shuffles <= 20


def test_own_data_that_fits_in_no_message_is_left_out() -> None:
    one = node()
    one.set_own_data(bytes(471))
    assert sends(one.join(TOPIC, [peer(1)], 0.0)) == [(TOPIC, peer(1), Join(None))]
    one.set_own_data(bytes(470))
    assert sends(one.join(TOPIC, [peer(2)], 0.0)) == [(TOPIC, peer(2), Join(bytes(470)))]


def test_sizes() -> None:
    one = node()
    one.join(TOPIC, [], 0.0)
    assert one.broadcast(TOPIC, bytes(4057), 0.0) is not None
    for content in (bytes(4058), bytes(10_000)):
        with pytest.raises(MessageTooLarge) as caught:
            one.broadcast(TOPIC, content, 0.0)
        assert caught.value.limit_bytes == 4057
        with pytest.raises(MessageTooLarge):
            one.broadcast_neighbors(TOPIC, content)


# --- the original's vectors, docs/wire/gossip.md 7 ---------------------------------------------


def swarm_of(count: int, capacity: int = 5) -> tuple[Network, list[PeerId]]:
    config = GossipConfig(membership=MembershipConfig(active_capacity=capacity))
    network = Network(1, config=config)
    return network, [network.add() for _ in range(count)]


def test_vector_b_hyparview_smoke() -> None:
    network, peers = swarm_of(4, capacity=2)
    events: list[tuple[PeerId, object]] = []
    for each in peers:
        network.join(each, [])
    network.join(peers[1], [peers[0]])
    network.run_for(1)
    network.join(peers[2], [peers[0]])
    network.run_for(1)
    assert set(network.neighbors(peers[0])) == {peers[1], peers[2]}
    assert set(network.neighbors(peers[1])) == {peers[0], peers[2]}
    network.on_event = lambda who, event: events.append((who, event))
    network.join(peers[3], [peers[0]])
    network.run_for(0.2)
    down = [(who, event.peer) for who, event in events if isinstance(event, PeerDown)]
    assert (peers[0], PeerUp(peers[3])) in events
    [dropped] = [other for who, other in down if who == peers[0]]
    assert dropped in peers[1:3]
    assert (dropped, peers[0]) in down
    assert peers[3] in network.neighbors(peers[0])
    assert peers[0] in network.neighbors(peers[3])


def test_vector_c_plumtree_smoke() -> None:
    network, peers = swarm_of(6)
    got: list[PeerId] = []

    def note(who: PeerId, event: object) -> None:
        if isinstance(event, Delivered):
            got.append(who)

    network.on_event = note
    for first in (0, 3):
        network.join(peers[first], [])
        network.join(peers[first + 1], [peers[first]])
        network.join(peers[first + 2], [peers[first]])
    network.run_for(2)
    network.broadcast(peers[1], b"first")
    network.run_for(1)
    assert sorted(got) == [peers[0], peers[2]]
    got.clear()
    network.join(peers[2], [peers[5]])
    network.run_for(2)
    network.broadcast(peers[1], b"second")
    network.run_for(1)
    # The group that was apart also learns of the first message, which is not old yet.
    assert sorted(got) == sorted([*(p for p in peers if p != peers[1]), *peers[3:]])


def test_vector_d_quit() -> None:
    network, peers = swarm_of(4)
    network.join(peers[0], [])
    for each in peers[1:]:
        network.join(each, [peers[0]])
    network.run_for(2)
    network.quit(peers[3])
    network.run_for(2)
    for each in peers[:3]:
        machine = network.nodes[each].topic(TOPIC)
        assert machine is not None
        assert peers[3] not in {*machine.membership.active, *machine.membership.passive}


# --- strangers ----------------------------------------------------------------------------------

peers = st.integers(0, 400).map(peer)
datas = st.none() | st.binary(max_size=8) | st.just(bytes(600))
infos = st.builds(PeerInfo, peers, datas)
nodes = st.lists(infos, max_size=60).map(tuple)
contents = st.integers(0, 60).map(lambda n: b"%d" % n)
rounds = st.integers(0, 0xFFFF)
ids = contents.map(message_id) | st.integers(0, 500).map(lambda n: MessageId(n.to_bytes(32, "big")))
messages = st.one_of(
    st.builds(Join, datas),
    st.builds(ForwardJoin, infos, rounds),
    st.builds(Shuffle, peers, nodes, rounds),
    st.builds(ShuffleReply, nodes),
    st.builds(Neighbor, st.booleans(), datas),
    st.builds(Disconnect, st.booleans()),
    st.builds(lambda c, r: Gossip(message_id(c), c, r), contents, st.none() | rounds),
    st.just(Prune()),
    st.builds(Graft, st.none() | ids, rounds),
    st.builds(IHave, st.lists(st.tuples(ids, rounds), max_size=30).map(tuple)),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("hear"), st.integers(0, 30).map(peer), messages),
        st.tuples(st.just("lose"), peers, st.booleans()),
        st.tuples(st.just("wait"), st.floats(0, 30), st.none()),
        st.tuples(st.just("say"), contents, st.none()),
        st.tuples(st.just("join"), peers, st.none()),
        st.tuples(st.just("hurry"), st.none(), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps, st.integers(2, 5))
def test_whatever_happens_a_node_keeps_its_limits(
    history: list[tuple[str, object, object]], capacity: int
) -> None:
    one = node(active_capacity=capacity)
    now = 0.0
    one.join(TOPIC, [peer(1)], now)
    machine = one.topic(TOPIC)
    assert machine is not None
    membership, broadcast = machine.membership, machine.broadcast
    view: set[PeerId] = set()
    for what, first, second in history:
        actions: list[Action] = []
        if what == "hear":
            actions = one.receive(first, TOPIC, second, now)  # type: ignore[arg-type]
        elif what == "lose":
            actions = one.peer_lost(first, now, is_clean=bool(second))  # type: ignore[arg-type]
        elif what == "say":
            actions = one.broadcast(TOPIC, first, now) or []  # type: ignore[arg-type]
        elif what == "join":
            actions = one.join(TOPIC, [first], now)  # type: ignore[list-item]
        elif what == "hurry":
            actions = one.hurry(now)
        else:
            end = now + first  # type: ignore[operator]
            ticks = 0
            while (deadline := one.deadline()) is not None and deadline <= end:
                now = max(now, deadline)
                actions += one.tick(now)
                ticks += 1
                assert ticks < 1000
            now = end
        for action in actions:
            if isinstance(action, Tell) and isinstance(action.event, PeerUp):
                assert action.event.peer not in view
                view.add(action.event.peer)
            elif isinstance(action, Tell) and isinstance(action.event, PeerDown):
                view.remove(action.event.peer)
            elif isinstance(action, Send):
                assert action.peer != one.me
        active = set(membership.active)
        assert view == active == {*broadcast.eager, *broadcast.lazy}
        assert not set(broadcast.eager) & set(broadcast.lazy)
        assert len(active) <= capacity
        assert one.me not in active | set(membership.passive) | set(membership.pending)
        assert active.isdisjoint(membership.passive)
        assert active.isdisjoint(membership.pending)
        assert len(membership.passive) <= 30
        assert len(membership.pending) + len(membership._late) <= 64
        known = len(active) + len(membership.passive) + len(membership.pending)
        assert len(membership._hearsay) <= known + len(membership._late)
        assert len(membership._contacts) <= 64 + 32
        assert set(broadcast._announced) <= active
        assert sum(broadcast._announced.values()) == sum(
            len(missing.announcers) for missing in broadcast._missing.values()
        )
        assert len(one._timers) < 2000
