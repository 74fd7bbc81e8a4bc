"""The handshake between two connections, whatever the network does to its datagrams."""

from __future__ import annotations

import itertools

import pytest
from quic_pair import ALPN, CLIENT_ADDRESS, START, Datagram, Pair, secret_key, transfer

from dialkey.quic import codes, events
from dialkey.quic.connection import State
from dialkey.testing import Conditions


class DropNth:
    """Let the nth datagram of one side vanish."""

    def __init__(self, sender: str, *numbers: int) -> None:
        self.sender = sender
        self.numbers = numbers
        self.count = 0

    def __call__(self, datagram: Datagram) -> bool:
        if datagram.sender != self.sender:
            return False
        self.count += 1
        return self.count - 1 in self.numbers


def test_both_sides_learn_the_other_key_and_the_protocol() -> None:
    pair = Pair(server_alpns=["other/1", ALPN]).connect()
    assert pair.client.c.peer_id == secret_key(2).id
    assert pair.server.c.peer_id == secret_key(1).id
    assert pair.client.c.alpn == pair.server.c.alpn == ALPN.encode()
    # Two round trips until both know that both know; the first byte could have left after one.
    assert pair.now - START == pytest.approx(0.04)
    for side in pair.sides:
        assert len(side.seen(events.HandshakeCompleted)) == 1


def test_the_handshake_machine_is_dropped() -> None:
    pair = Pair().connect()
    pair.settle()
    assert pair.client.c.handshake is None
    assert pair.server.c.handshake is None


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("number", range(10))
def test_any_single_datagram_may_be_lost(sender: str, number: int) -> None:
    pair = Pair(drop=DropNth(sender, number)).connect(seconds=3)
    transfer((pair.client, 3000), (pair.server, 3000), seconds=3)


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(1, 5))
def test_any_two_datagrams_of_each_side_may_be_lost(first: int, second: int) -> None:
    client = DropNth("client", first, first + second)
    server = DropNth("server", second - 1, first + second)
    pair = Pair(drop=lambda datagram: client(datagram) | server(datagram)).connect(seconds=10)
    transfer((pair.client, 3000), (pair.server, 3000), seconds=10)


@pytest.mark.parametrize("seed", range(40))
def test_a_third_of_all_datagrams_may_be_lost(seed: int) -> None:
    conditions = Conditions(delay_s=0.02, jitter_s=0.02, loss=0.33, duplicate=0.1, reorder=0.1)
    pair = Pair(
        seed=seed,
        conditions=conditions,
        server={"handshake_timeout_s": 60.0},
        dial_timeout_s=60.0,
    )
    pair.connect(seconds=60)
    transfer((pair.client, 3000), (pair.server, 3000), seconds=60)


def test_repeated_first_flights_make_one_connection() -> None:
    """The way back is down for a while: the server gets the same Initial several times."""
    pair = Pair()
    pair.to_client.is_up = False
    pair.run(seconds=5)
    pair.to_client.is_up = True
    pair.connect(seconds=5)
    transfer((pair.client, 3000), (pair.server, 3000))


def test_repetitions_come_at_least_every_two_seconds() -> None:
    pair = Pair(dial_timeout_s=60.0)
    pair.to_server.is_up = False
    pair.run(seconds=30)
    times = [each.time - START for each in pair.sent]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 2.0
    assert len(set(times)) < 30


def test_a_server_sends_at_most_three_times_what_it_received() -> None:
    pair = Pair(drop=lambda datagram: datagram.sender == "server" or len(pair.sent) > 2)
    pair.run(seconds=9)
    received = pair.to_server.sent_bytes
    assert received == 1200
    sent = sum(each.size for each in pair.sent if each.sender == "server")
    assert 0 < sent <= 3 * received


def test_nobody_answers() -> None:
    pair = Pair()
    pair.to_server.is_up = False
    pair.run(lambda: pair.client.c.state is State.GONE, seconds=11)
    assert pair.now - START == pytest.approx(10)
    reason = pair.client.close_reason
    assert reason is not None
    assert (reason.cause, reason.during_handshake) == ("handshake", True)


def test_the_server_gives_up_on_a_silent_client() -> None:
    pair = Pair(drop=DropNth("client", *range(1, 100)))
    pair.run(lambda: pair.server.core is not None and pair.server.c.state is State.GONE)
    assert pair.now - START == pytest.approx(10, abs=0.1)


def test_packets_that_overtake_the_handshake_are_kept() -> None:
    """The client's Finished is late; its first stream data is there before."""

    def is_finished(datagram: Datagram) -> bool:
        late = START + 0.01 < datagram.time < START + 0.05
        return datagram.sender == "client" and datagram.is_long and late

    pair = Pair(drop=is_finished)
    pair.run(lambda: pair.client.c.state is State.OPEN)
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"early", finish=True)
    pair.run(seconds=0.03)
    assert pair.server.c.state is State.HANDSHAKE
    pair.run(lambda: stream in pair.server.ended, seconds=2)
    assert pair.server.data[stream] == b"early"
    assert pair.server.c.packets_undecryptable == 0


def test_data_sent_at_once_arrives_with_the_handshake() -> None:
    pair = Pair()
    pair.run(lambda: pair.client.c.state is State.OPEN)
    stream = pair.client.must_open(uni=True)
    pair.client.write(stream, b"hello", finish=True)
    pair.run(lambda: stream in pair.server.ended, seconds=1)
    assert pair.now - START == pytest.approx(0.03)


def test_a_lost_confirmation_is_made_up_for_by_an_acknowledgement() -> None:
    """Only the server's first 1-RTT packet has HANDSHAKE_DONE; without it an ACK will do."""
    pair = Pair()
    pair.run(lambda: pair.server.core is not None and pair.server.c.state is State.OPEN)
    lost_until = pair.now + 0.015
    pair.drop = lambda datagram: datagram.sender == "server" and datagram.time < lost_until
    pair.connect(seconds=1)
    assert pair.client.c.handshake is None


def test_a_retry_proves_the_address() -> None:
    pair = Pair(retry=True).connect()
    assert pair.now - START == pytest.approx(0.06)
    transfer((pair.client, 3000), (pair.server, 3000))


@pytest.mark.parametrize("seed", range(5))
def test_a_retry_under_loss(seed: int) -> None:
    pair = Pair(
        seed=seed,
        retry=True,
        conditions=Conditions(loss=0.2, duplicate=0.2),
        dial_timeout_s=60.0,
    )
    pair.connect(seconds=30)
    transfer((pair.client, 3000), (pair.server, 3000))


def test_closing_in_the_middle_tells_the_server() -> None:
    pair = Pair()
    pair.run(lambda: pair.client.c.state is State.OPEN)
    pair.client.close(7, b"changed my mind")
    pair.settle()
    assert pair.server.close_reason is not None
    # An application's code and reason do not go into packets that others can read.
    assert pair.server.close_reason.cause == "peer"
    assert pair.server.close_reason.error_code in (codes.APPLICATION_ERROR, 7)


def test_closing_before_anything_was_heard() -> None:
    pair = Pair()
    pair.run(seconds=0.005)
    pair.client.close()
    pair.run(lambda: pair.client.c.state is State.GONE, seconds=5)
    pair.run(lambda: pair.server.core is not None and pair.server.c.state is State.GONE, seconds=20)


def test_the_server_may_refuse_in_the_middle() -> None:
    pair = Pair()
    pair.run(lambda: pair.server.core is not None)
    pair.server.c.turn_away(b"not today", pair.now)
    assert pair.server.c.handshake is None, "nothing of it is kept"
    pair.wants_flush(pair.server)
    pair.settle()
    reason = pair.client.close_reason
    assert reason is not None
    assert (reason.cause, reason.error_code) == ("peer", codes.CONNECTION_REFUSED)
    assert reason.reason == b"not today"


def test_a_copy_of_the_first_flight_from_elsewhere_is_ignored() -> None:
    pair = Pair()
    pair.run(lambda: pair.server.core is not None)
    first = pair.sent[0].data
    pair.deliver(pair.server, "another way", [first])
    pair.connect()
    assert pair.server.path.remote == CLIENT_ADDRESS


def test_the_client_goes_where_the_first_answer_came_from() -> None:
    pair = Pair()
    pair.run(lambda: pair.server.core is not None)
    sent: list[bytes] = []
    pair.drop = lambda datagram: datagram.sender == "server"
    pair.flush()
    sent = [each.data for each in pair.sent if each.sender == "server"]
    pair.drop = None
    pair.server.address = "server's other address"
    pair.deliver(pair.client, pair.server.address, sent)
    pair.connect()
    assert pair.client.path.remote == "server's other address"
    # From then on it stays there.
    stray = pair.server.craft(b"\x01")
    before = pair.client.c.packets_received
    pair.deliver(pair.client, "somewhere else", [stray])
    assert pair.client.c.packets_received == before
