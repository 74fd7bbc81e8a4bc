"""What an address gets that has not proved that it receives: three times what came from it, and no more.

The attacker here is a real client with a key and a line of its own, who writes a victim's address on
some of its packets (RFC 9000 sections 8.1, 9.3 and 21.1).
"""

from __future__ import annotations

import pytest
from quic_pair import Datagram, Pair, builder_of, frame, peer_cid_of, stream_frame

from dialkey.quic import codes, events
from dialkey.quic.close import Farewell
from dialkey.quic.connection import State
from dialkey.quic.paths.amplification import Room

VICTIM = "victim"


class Spoof:
    """A pair whose client also sends as somebody else."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.from_victim = 0

    def craft(self, payload: bytes, number: int | None = None) -> bytes:
        """Seal a payload; with a number of the past or the future, if given."""
        path = self.pair.client.path
        if number is None:
            return self.pair.client.craft(payload)
        keep, path.next_number = path.next_number, number
        packet = builder_of(self.pair.client.c).seal(path, payload, peer_cid_of(path))
        path.next_number = keep
        return packet

    def deliver(self, source: str, *packets: bytes) -> None:
        if source == VICTIM:
            self.from_victim += sum(map(len, packets))
        self.pair.deliver(self.pair.server, source, list(packets))
        self.pair.flush()

    @property
    def to_victim(self) -> int:
        return sum(each.size for each in self.pair.sent if each.destination == VICTIM)

    def live(self, seconds: float) -> None:
        """Let the server's timers run, and nothing of it arrive."""
        core = self.pair.server.c
        end = self.pair.now + seconds
        while (at := core.timer()) is not None and at <= end:
            self.pair.now = max(at, self.pair.now)
            core.on_timer(self.pair.now)
            self.pair.server.drain_events()
            self.pair.wants_flush(self.pair.server)
            self.pair.flush()
        self.pair.now = end


def serving() -> Spoof:
    """A server that has megabytes to send, to a client that has opened all windows."""
    pair = Pair(client={"stream_window": 1 << 26, "connection_window": 1 << 26}).connect()
    pair.settle()
    stream = pair.client.must_open()
    pair.client.write(stream, b"get", finish=True)
    pair.settle(0.2)
    pair.to_client.is_up = False
    pair.server.write(stream, bytes(4 << 20))
    return Spoof(pair)


def test_bytes_from_elsewhere_make_no_room() -> None:
    spoof = serving()
    newest = spoof.pair.client.path.next_number + 127
    spoof.deliver(VICTIM, spoof.craft(bytes((codes.PING,)) + bytes(20), newest))
    assert spoof.pair.server.path.remote == VICTIM
    for number in range(newest - 127, newest):
        spoof.deliver("client", spoof.craft(bytes(1100), number))
        spoof.live(0.01)
    assert spoof.pair.server.path.remote == VICTIM, "numbers of the past lead nowhere"
    assert 0 < spoof.to_victim <= 3 * spoof.from_victim


def test_bytes_from_there_do_make_room() -> None:
    spoof = serving()
    for _ in range(20):
        spoof.deliver(VICTIM, spoof.craft(bytes((codes.PING,)) + bytes(1000)))
    assert 3 * 1200 < spoof.to_victim <= 3 * spoof.from_victim


def test_a_path_led_to_and_fro() -> None:
    spoof = serving()
    for _ in range(50):
        spoof.deliver(VICTIM, spoof.craft(bytes((codes.PING,))))
        spoof.deliver("client", spoof.craft(bytes((codes.PING,)) + bytes(1100)))
        spoof.live(0.02)
    assert 0 < spoof.to_victim <= 3 * spoof.from_victim


def test_the_address_that_was_good_is_good_at_once() -> None:
    """Whoever leads a path away by one forged packet does not slow down its true client."""
    pair = Pair().connect()
    pair.settle()
    spoof = Spoof(pair)
    spoof.deliver(VICTIM, spoof.craft(bytes((codes.PING,))))
    assert pair.server.path.remote == VICTIM
    assert not pair.server.path.validated
    spoof.deliver("client", spoof.craft(bytes((codes.PING,))))
    pair.server.drain_events()
    assert pair.server.path.remote == "client"
    assert pair.server.path.validated
    assert pair.server.path.challenge is None
    assert [each.remote for each in pair.server.seen(events.PathValidated)][-1] == "client"


def test_many_challenges_and_then_another_address_in_one_batch() -> None:
    pair = Pair().connect()
    pair.settle()
    spoof = Spoof(pair)
    spoof.deliver(VICTIM, spoof.craft(bytes((codes.PING,))))
    before = spoof.from_victim, spoof.to_victim
    asks = spoof.craft(frame(codes.PATH_CHALLENGE, b"12345678") * 100)
    pings = spoof.craft(bytes((codes.PING,)))
    spoof.from_victim += len(asks)
    pair.deliver(pair.server, VICTIM, [asks])
    pair.deliver(pair.server, "client", [pings])
    pair.flush()
    assert pair.server.path.remote == "client"
    assert spoof.to_victim - before[1] <= 3 * (spoof.from_victim - before[0])


@pytest.mark.parametrize("says", ["the application", "a rule that was broken"])
def test_the_word_that_all_is_over_counts(says: str) -> None:
    spoof = serving()
    spoof.deliver(VICTIM, spoof.craft(bytes((codes.PING,))))
    assert spoof.pair.server.path.remote == VICTIM
    if says == "the application":
        spoof.pair.server.close(7, b"a long reason " * 20)
    else:
        spoof.deliver("client", spoof.craft(stream_frame(1, 0, b"not yours")))
    spoof.pair.flush()
    assert spoof.pair.server.c.state is State.CLOSING
    for _ in range(300):
        spoof.deliver("client", spoof.craft(bytes(1100)))
    assert spoof.to_victim <= 3 * spoof.from_victim


def test_the_word_that_all_is_over_still_gets_to_a_true_client() -> None:
    pair = Pair().connect()
    pair.settle()
    pair.server.close(7, b"over")
    pair.flush()
    at = len(pair.sent)
    for _ in range(8):
        pair.deliver(pair.server, "client", [pair.client.craft(bytes(100))])
        pair.flush()
    assert len(pair.sent) - at == 3, "for the 1st, 3rd and 7th"


def test_last_words_by_several_ways_have_a_room_each() -> None:
    poor, rich = Room(), Room()
    poor.heard(40)
    rich.heard(1200)
    farewell = Farewell()
    for datagram in (bytes(100), bytes(50)):
        farewell.add("poor", datagram, poor)
        farewell.add("rich", datagram, rich)
    said: list[tuple[object, int]] = []
    for _ in range(16):
        farewell.send(lambda remote, datagram: said.append((remote, len(datagram))))
        farewell.heard("rich", 10)
    assert said.count(("poor", 100)) == 1
    assert said.count(("rich", 100)) == 5
    assert sum(size for remote, size in said if remote == "poor") <= 120


# --- the handshake --------------------------------------------------------------------------------


def two_ways(pair: Pair) -> Spoof:
    """Let a client's first flight arrive from its own address and, forged, from the victim's."""
    spoof = Spoof(pair)
    pair.flush()
    flight = pair.sent[0].data
    pair._arriving.clear()
    pair.deliver(pair.server, "client", [flight])
    spoof.deliver(VICTIM, flight)
    return spoof


def test_a_handshake_packet_from_a_way_that_carried_nothing() -> None:
    """The answer got to the attacker; what it says from the victim's address proves nothing of it."""
    pair = Pair(client={"stream_window": 1 << 26, "connection_window": 1 << 26})
    spoof = two_ways(pair)
    pair.client.address = VICTIM

    def drop(datagram: Datagram) -> bool:
        if datagram.sender == "client":
            spoof.from_victim += datagram.size
        # The attacker hears what goes to its own address, and nothing that goes to the victim.
        return datagram.destination == VICTIM

    pair.drop = drop
    pair.run(lambda: pair.server.c.state is State.OPEN)
    path = pair.server.path
    assert path.remote == VICTIM
    assert not path.validated
    stream = pair.server.must_open()
    pair.server.write(stream, bytes(1 << 20))
    pair.flush()
    spoof.live(5)
    assert path.remote == VICTIM
    assert 0 < spoof.to_victim <= 3 * spoof.from_victim


def test_a_true_client_of_two_ways_gets_data_at_once() -> None:
    pair = Pair()
    two_ways(pair)
    begin = pair.now
    pair.run(lambda: pair.server.c.state is State.OPEN)
    assert not pair.server.path.validated
    stream = pair.server.must_open(uni=True)
    pair.server.write(stream, b"at once", finish=True)
    pair.run(lambda: pair.client.accepted == [stream])
    assert pair.now - begin < 0.05, "no round trip more than with one way"
    pair.run(lambda: pair.server.path.validated, seconds=0.1)
    stream = pair.server.must_open(uni=True)
    pair.server.write(stream, bytes(1 << 20), finish=True)
    pair.run(lambda: stream in pair.client.ended)
