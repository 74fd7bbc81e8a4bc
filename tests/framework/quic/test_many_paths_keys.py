"""Key updates across several paths: one set of keys for all, and packets that are late on a slow one."""

from __future__ import annotations

import random

import pytest
from quic_pair import Side, Transfer, are_over, builder_of, transfer
from quic_paths import PathPair, footprint

from dialkey.quic import codes
from dialkey.quic.paths.congestion import Cubic
from dialkey.testing import Conditions

FAST = Conditions(delay_s=0.01)
SLOW = Conditions(delay_s=0.2)


def update(pair: PathPair, side: Side) -> bool:
    started = side.c.update_keys(pair.now)
    pair.wants_flush(side)
    return started


def updates(side: Side) -> int:
    assert side.c.protection is not None
    return side.c.protection.updates


def sealed_on(side: Side, path_id: int) -> bytes:
    """Return a packet of one path, sealed with the keys of this moment."""
    path = side.c.paths[path_id]
    cid = path.cid
    assert cid is not None
    return builder_of(side.c).seal(path, bytes((codes.PING,)), cid)


def arrives(pair: PathPair, receiver: Side, way: int, packet: bytes) -> bool:
    """Deliver a packet; return whether it could be read."""
    before = receiver.c.packets_received
    source = pair.ways[way].client if receiver is pair.server else pair.ways[way].server
    pair.deliver(receiver, source, [packet])
    return receiver.c.packets_received == before + 1


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("first_on", [0, 1])
def test_any_path_may_be_the_first_in_the_new_phase(who: str, first_on: int) -> None:
    pair = PathPair(FAST, SLOW).with_paths()
    side = getattr(pair, who)
    pair.select(first_on)
    assert update(pair, side)
    transfer((pair.client, 20_000), (pair.server, 20_000))
    assert (updates(pair.client), updates(pair.server)) == (1, 1)
    pair.select(1 - first_on)
    transfer((pair.client, 20_000), (pair.server, 20_000))
    assert update(pair, pair.other(side))
    transfer((pair.client, 20_000), (pair.server, 20_000))
    assert (updates(pair.client), updates(pair.server)) == (2, 2)


@pytest.mark.parametrize("who", ["client", "server"])
def test_an_old_packet_is_late_on_the_slow_path(who: str) -> None:
    pair = PathPair(FAST, SLOW).with_paths()
    side = getattr(pair, who)
    pair.select(0)
    late, too_late = sealed_on(side, 1), sealed_on(side, 1)
    assert update(pair, side)
    transfer((side, 5000))
    assert updates(pair.other(side)) == 1
    pair.settle(0.4)
    assert arrives(pair, pair.other(side), 1, late)
    pair.settle(10)
    assert not arrives(pair, pair.other(side), 1, too_late)
    assert all(each.close_reason is None for each in pair.sides)


def test_old_keys_are_kept_from_when_the_peer_stopped_to_use_them() -> None:
    """Our update takes long to reach the peer; what it sent before is late on top of that."""
    pair = PathPair(FAST, SLOW).with_paths()
    pair.chooses = False
    pair.select(0)
    pair.settle()
    assert update(pair, pair.server)
    for way in pair.ways:
        way.cut(up=False)
    pair.client.send_datagram(b"before it knows")
    pair.settle(4)
    late = sealed_on(pair.client, 1)
    for way in pair.ways:
        way.mend()
    pair.server.send_datagram(b"in the new phase")
    protection = pair.server.c.protection
    assert protection is not None
    pair.run(lambda: not protection.awaits_confirmation, seconds=5)
    assert arrives(pair, pair.server, 1, late)


def test_packets_of_a_phase_long_past_are_dropped_without_a_word() -> None:
    pair = PathPair(FAST, SLOW).with_paths()
    pair.select(0)
    old = [sealed_on(pair.client, 1) for _ in range(2)]
    for _ in range(2):
        assert update(pair, pair.client)
        transfer((pair.client, 5000), (pair.server, 5000))
        pair.settle(0.1)
    assert not arrives(pair, pair.server, 1, old[0]), "its phase bit is that of today"
    assert update(pair, pair.client)
    transfer((pair.client, 5000), (pair.server, 5000))
    assert not arrives(pair, pair.server, 1, old[1])
    assert pair.server.close_reason is None


@pytest.mark.parametrize("seed", range(4))
def test_many_updates_while_data_takes_three_unlike_ways(seed: int) -> None:
    # CUBIC sends slowly here: a faster sender would have more on its way than two phases cover.
    slow = {"make_controller": Cubic}
    pair = PathPair(
        Conditions(delay_s=0.02, loss=0.05, jitter_s=0.02),
        (Conditions(delay_s=0.15), Conditions(delay_s=0.03, reorder=0.2)),
        (Conditions(delay_s=0.05, duplicate=0.1), Conditions(delay_s=0.1, jitter_s=0.08)),
        seed=seed,
        client=slow,
        server=slow,
    ).with_paths()
    running = [Transfer(side, 500_000, seed=seed) for side in pair.sides]
    done = 0

    def change() -> bool:
        nonlocal done
        side = pair.rng.choice(pair.sides)
        if pair.rng.random() < 0.05:
            pair.select(pair.rng.choice([0, 1, 2]), side)
        if pair.rng.random() < 0.05:
            done += update(pair, side)
        return are_over(running)

    pair.run(change, seconds=300)
    for each in running:
        each.check()
    assert done >= 5
    assert updates(pair.client) == pytest.approx(updates(pair.server), abs=1)
    for side in pair.sides:
        # Late packets of an old phase are read, or lost and sent again; none of them does harm.
        assert side.c.packets_undecryptable < 0.05 * side.c.packets_received


@pytest.mark.parametrize("seed", [1, 2])
def test_four_minutes_of_traffic_with_updates_and_changing_paths(seed: int) -> None:
    """Every few seconds another path, every few seconds other keys; and nothing piles up."""
    pair = PathPair(
        Conditions(delay_s=0.02, loss=0.02),
        (Conditions(delay_s=0.1), Conditions(delay_s=0.04, jitter_s=0.02)),
        Conditions(delay_s=0.06, reorder=0.1),
        seed=seed,
    ).with_paths()
    rng = random.Random(seed)
    written = {side.name: bytearray() for side in pair.sides}
    streams = {side.name: side.must_open(uni=True) for side in pair.sides}
    opened = changed = 0
    for turn in range(480):
        for side in pair.sides:
            piece = rng.randbytes(5000)
            written[side.name] += piece
            side.write(streams[side.name], piece, finish=turn == 479)
        if turn % 5 == 0:
            changed += update(pair, rng.choice(pair.sides))
        if turn % 8 == 0:
            usable = [p.id for p in pair.client.c.paths.values() if p.validated and not p.abandoned]
            there = {p.id for p in pair.server.c.paths.values() if p.validated and not p.abandoned}
            both = [path_id for path_id in usable if path_id in there]
            if len(both) >= 3:
                pair.abandon(rng.choice(pair.sides), both[0], codes.APPLICATION_ABANDON_PATH)
                pair.select(both[1], pair.client)
                pair.select(both[2], pair.server)
            opened += pair.open_path(rng.choice(pair.ways)) is not None
        pair.run(seconds=0.5)
    for side in pair.sides:
        receiver = pair.other(side)
        stream = streams[side.name]
        pair.run(lambda r=receiver, s=stream: s in r.ended, seconds=60)  # type: ignore[misc]
        assert receiver.data[stream] == written[side.name]
    assert changed > 60
    assert opened > 40
    pair.settle(10)
    for side in pair.sides:
        assert side.close_reason is None
        sizes = footprint(side)
        assert sizes["paths"] <= 8
        assert sizes["ranges of ids that are over"] <= 9
        assert sizes["owed frames"] == 0
