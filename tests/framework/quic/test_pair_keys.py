"""Key updates, from either side, while the network loses and reorders."""

from __future__ import annotations

import pytest
from quic_pair import START, Pair, Transfer, are_over, transfer

from dialkey.quic import codes
from dialkey.quic.connection import State
from dialkey.testing import Conditions


def update(pair: Pair, who: str) -> bool:
    side = getattr(pair, who)
    started: bool = side.c.update_keys(pair.now)
    pair.wants_flush(side)
    return started


def phases(pair: Pair) -> tuple[int, int]:
    protections = [side.c.protection for side in pair.sides]
    assert protections[0] is not None
    assert protections[1] is not None
    return protections[0].updates, protections[1].updates


@pytest.mark.parametrize("who", ["client", "server"])
def test_one_side_changes_its_keys_and_the_other_follows(who: str) -> None:
    pair = Pair().connect()
    pair.settle()
    assert update(pair, who)
    transfer((pair.client, 10_000), (pair.server, 10_000))
    assert phases(pair) == (1, 1)
    pair.settle(0.1)
    assert update(pair, who)
    transfer((pair.client, 10_000), (pair.server, 10_000))
    assert phases(pair) == (2, 2)


def test_both_change_their_keys_at_the_same_time() -> None:
    pair = Pair().connect()
    pair.settle()
    assert update(pair, "client")
    assert update(pair, "server")
    transfer((pair.client, 10_000), (pair.server, 10_000))
    assert phases(pair) == (1, 1)


def test_another_update_waits_for_an_acknowledgement() -> None:
    pair = Pair(conditions=Conditions(delay_s=0.1)).connect()
    pair.settle()
    assert update(pair, "client")
    assert not update(pair, "client")
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"x")
    pair.settle(0.15)
    assert not update(pair, "client"), "nothing can have been acknowledged yet"
    pair.settle(0.2)
    assert update(pair, "client")


@pytest.mark.parametrize("seed", range(8))
def test_many_updates_while_packets_are_lost_and_overtake(seed: int) -> None:
    conditions = Conditions(delay_s=0.02, loss=0.05, jitter_s=0.03, duplicate=0.05, reorder=0.05)
    pair = Pair(seed=seed, conditions=conditions).connect(seconds=60)
    running = [Transfer(side, 600_000, seed=seed) for side in pair.sides]
    done = 0

    def pump() -> bool:
        nonlocal done
        who = "client" if pair.rng.random() < 0.5 else "server"
        if pair.rng.random() < 0.05 and update(pair, who):
            done += 1
        return are_over(running)

    pair.run(pump, seconds=300)
    for each in running:
        each.check()
    assert done >= 5
    assert phases(pair)[0] >= 5
    for side in pair.sides:
        assert side.close_reason is None


@pytest.mark.parametrize(("late_s", "readable"), [(0.05, True), (10.0, False)])
def test_a_packet_of_the_old_phase_arrives_late(late_s: float, readable: bool) -> None:
    pair = Pair().connect()
    pair.settle()
    stream = pair.client.must_open(uni=True)
    old = pair.client.craft(bytes((codes.PING,)))
    assert update(pair, "client")
    pair.client.write(stream, b"new keys", finish=True)
    pair.run(lambda: stream in pair.server.ended)
    pair.settle(late_s)
    before = pair.server.c.packets_received
    pair.deliver(pair.server, pair.client.address, [old])
    assert pair.server.c.packets_received == before + readable
    assert pair.server.close_reason is None


def test_the_server_may_change_keys_before_its_confirmation_arrives() -> None:
    """HANDSHAKE_DONE is lost and comes again under new keys; the client must be able to read it."""
    pair = Pair()
    pair.run(lambda: pair.server.core is not None and pair.server.c.state is State.OPEN)
    until = pair.now + 0.02
    pair.drop = lambda datagram: datagram.sender == "server" and datagram.time < until
    pair.run(seconds=0.021)
    assert update(pair, "server")
    pair.connect(seconds=5)
    transfer((pair.client, 10_000), (pair.server, 10_000))
    assert phases(pair) == (1, 1)


def test_a_client_starts_none_before_the_handshake_is_confirmed() -> None:
    pair = Pair()
    pair.run(lambda: pair.client.c.state is State.OPEN)
    assert not pair.client.c.confirmed
    assert not update(pair, "client")


def test_keys_are_changed_when_they_have_sealed_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair().connect()
    for side in pair.sides:
        assert side.c.protection is not None
        monkeypatch.setattr(side.c.protection, "_limit", 100)
    transfer((pair.client, 2_000_000))
    # The last one may have been made for packets that the peer has yet to see.
    transfer((pair.client, 1), (pair.server, 1))
    assert phases(pair)[0] == phases(pair)[1] >= 3


def test_two_updates_in_a_row_by_a_hostile_peer_are_refused() -> None:
    """Our update was not seen by it yet, and it is two phases ahead: that cannot be honest."""
    pair = Pair().connect()
    pair.settle()
    client, server = pair.client.c.protection, pair.server.c.protection
    assert client is not None
    assert server is not None
    assert update(pair, "server")
    for _ in range(2):
        client._update_unacknowledged = None
        assert client.initiate_update(pair.now, 1.0, {})
    pair.client.inject(bytes((codes.PING,)))
    reason = pair.server.close_reason
    assert reason is not None
    assert reason.error_code == codes.KEY_UPDATE_ERROR


def test_a_packet_with_a_wrong_tag_changes_nothing() -> None:
    pair = Pair().connect()
    pair.settle()
    for phase in (0, 1):
        packet = bytearray(pair.client.craft(bytes((codes.PING,))))
        packet[0] ^= phase << 2
        packet[-1] ^= 1
        before = pair.server.c.packets_undecryptable
        pair.deliver(pair.server, pair.client.address, [bytes(packet)])
        assert pair.server.c.packets_undecryptable == before + 1
    assert phases(pair) == (0, 0)
    assert pair.now > START
