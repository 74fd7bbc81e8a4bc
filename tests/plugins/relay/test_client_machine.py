"""The client's machine against the server's, without sockets; docs/wire/relay.md 3.4 and 5.3."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import DialkeyError
from dialkey.identity import RelayUrl, SecretKey
from dialkey_relay.access import Admission
from dialkey_relay.client.backoff import Backoff
from dialkey_relay.client.dial import Target, proxy_from_environment
from dialkey_relay.client.machine import (
    ClientMachine,
    Confirmed,
    Established,
    MachineState,
)
from dialkey_relay.errors import RelayDenied, RelayLost, RelayUnreachable, RelayUpgradeError
from dialkey_relay.frames import (
    Datagrams,
    EndpointGone,
    Health,
    RelayVersion,
    Restarting,
    Status,
)
from dialkey_relay.hub import Hub
from dialkey_relay.keepalive import KeepAlive
from dialkey_relay.session import Session, Settings
from dialkey_relay.websocket import encode_frame

A = SecretKey(b"\x01" * 32)
B = SecretKey(b"\x02" * 32)


class Pair:
    """A client machine and a server session with a perfect wire between them."""

    def __init__(self, hub=None, key=A, answer=None, now=0.0, **options):
        self.hub = hub if hub is not None else Hub()
        self.now = now
        self.answer = answer if answer is not None else Admission()
        self.events = []
        shared = Settings(random=random.Random(1))
        exporter = (lambda key: b"k" * 32) if options.get("keying_material") else None
        self.session = Session(self.hub, self, shared, now, exporter=exporter)
        self.client = ClientMachine(
            key,
            host="relay.example",
            target="/relay",
            random=random.Random(2),
            now=now,
            **options,
        )
        self.upwards = 0

    def flush(self):
        pass

    def end(self, reason):
        self.session.end(reason)

    def run(self):
        """Carry bytes both ways until nobody has anything to say."""
        while True:
            up = self.client.take_output()
            if up:
                self.upwards += 1
                self.session.receive(memoryview(up), self.now)
            if self.session.request is not None:
                self.session.request = None
                if isinstance(self.answer, Admission):
                    self.session.admit(self.answer, self.now)
                else:
                    self.session.deny(self.answer)
            out = []
            self.session.take_output(1 << 30, out)
            down = b"".join(out)
            if down:
                self.events += self.client.receive(memoryview(down), self.now)
            if not up and not down:
                events, self.events = self.events, []
                return events


def test_connecting_and_talking() -> None:
    hub = Hub()
    a, b = Pair(hub, A), Pair(hub, B)
    assert a.run() == [Confirmed(RelayVersion.V2), Established(0.0)]
    assert a.client.state is MachineState.ESTABLISHED
    b.run()
    a.client.send(bytes(B.id), b"one", 3)
    a.client.send(bytes(B.id), b"aabbc", 2)
    a.run()
    assert b.run() == [Datagrams(bytes(A.id), b"one"), Datagrams(bytes(A.id), b"aabbc", 2)]


def test_a_proof_from_tls_saves_the_challenge() -> None:
    plain, fast = Pair(), Pair(keying_material=b"k" * 32)
    plain.run()
    fast.run()
    assert fast.client.state is MachineState.ESTABLISHED
    assert fast.upwards == plain.upwards - 1


def test_a_denial_is_an_error_with_the_reason() -> None:
    with pytest.raises(RelayDenied) as caught:
        Pair(answer="pay first").run()
    assert caught.value.reason == "pay first"


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.integers(1, 200))
def test_datagrams_of_any_size_and_number_arrive(sizes, count) -> None:
    hub = Hub()
    a, b = Pair(hub, A), Pair(hub, B)
    a.run()
    b.run()
    expected = []
    for size in sizes:
        data = random.Random(size).randbytes(size * count - size // 2)
        a.client.send(bytes(B.id), data, size)
        expected += [data[at : at + size] for at in range(0, len(data), size)]
    a.run()
    got = [part for event in b.run() for part in event.split()]
    assert got == expected


def test_nothing_can_be_sent_before_the_relay_lets_us_in() -> None:
    client = Pair().client
    client.take_output()
    assert not client.send(bytes(B.id), b"x", 1)
    assert client.take_output() == b""


def established():
    pair = Pair()
    pair.run()
    return pair


def give(pair, message):
    return pair.client.receive(memoryview(encode_frame(2, message)), pair.now)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (b"\x0d\x01", Status(1)),
        (b"\x0d\x09more", Status(9)),
        (b"\x0c" + bytes(7) + b"\x05", Restarting(0, 5)),
        (b"\x08" + b"\xff" * 32, EndpointGone(b"\xff" * 32)),
        (b"\x06" + b"\xff" * 32 + b"\x07", Datagrams(b"\xff" * 32, b"", None, 3)),
    ],
)
def test_odd_frames_that_a_client_survives(message, event) -> None:
    assert give(established(), message) == [event]


def test_pongs_that_nobody_asked_for_are_ignored() -> None:
    assert give(established(), b"\x0a12345678") == []


@pytest.mark.parametrize(
    "message",
    [b"\x0e", b"\x02", b"\x04" + bytes(40), b"", b"\x0bhealth", b"\x0d", b"\x09short", b"\x08x"],
)
def test_frames_that_end_the_connection(message) -> None:
    with pytest.raises(DialkeyError):
        give(established(), message)


def test_version_1() -> None:
    pair = Pair()
    pair.client.take_output()
    accept = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\n"
        "sec-websocket-protocol: iroh-relay-v1\r\nsec-websocket-accept: {}\r\n\r\n"
    )
    from dialkey_relay.http1 import accept_value

    head = accept.format(accept_value(pair.client._key)).encode()
    confirmed = encode_frame(2, b"\x02")
    # The first frame may follow the answer at once.
    assert pair.client.receive(memoryview(head + confirmed), 0.0) == [Confirmed(RelayVersion.V1)]
    assert give(pair, b"\x0bhello") == [Health("hello")]
    with pytest.raises(DialkeyError):
        give(pair, b"\x0d\x01")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 No\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_is_not_a_relay(answer) -> None:
    with pytest.raises(RelayUpgradeError):
        Pair().client.receive(memoryview(answer), 0.0)


def test_a_close_frame_is_a_loss_with_its_code() -> None:
    pair = established()
    with pytest.raises(RelayLost, match="1008"):
        pair.client.receive(memoryview(encode_frame(8, (1008).to_bytes(2, "big"))), 0.0)


def test_every_state_has_a_deadline() -> None:
    pair = Pair(now=50.0)
    assert pair.client.deadline == 60.0
    pair.client.on_timer(59.9)
    with pytest.raises(RelayUnreachable, match="upgrade"):
        pair.client.on_timer(60.0)
    pair = Pair(now=50.0)
    pair.answer = Admission()
    pair.run()
    assert pair.client.deadline == 65.0
    pair.client.on_timer(65.0)
    assert pair.client.take_output()
    # A pong came at once, so the next one has half a second.
    assert pair.client.deadline == 65.5
    with pytest.raises(RelayLost, match="ping"):
        pair.client.on_timer(65.5)


def test_a_ping_can_be_sent_at_any_time() -> None:
    pair = established()
    pair.now = 3.0
    pair.client.ping(3.0)
    assert pair.run() == [Established(0.0)]
    assert pair.client.last_frame_at == 3.0


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
def test_arbitrary_bytes_from_a_relay_raise_one_error_family(chunks, joined) -> None:
    pair = established() if joined else Pair()
    try:
        for chunk in chunks:
            pair.client.receive(memoryview(chunk), 0.0)
            if joined:
                give(pair, chunk)
    except DialkeyError:
        pass


# --- keep-alive and back-off --------------------------------------------------------------------


def test_relays_spread_their_pings() -> None:
    intervals = {KeepAlive(random.Random(n), 0.0).deadline for n in range(50)}
    assert intervals == {16.0, 17.0, 18.0, 19.0, 20.0}
    assert KeepAlive(random.Random(1), 0.0, jitter=False).deadline == 15.0


def test_the_time_for_a_pong_follows_the_round_trip() -> None:
    keepalive = KeepAlive(random.Random(1), 0.0)
    assert keepalive.timeout_s == 5.0
    for rtt, timeout in ((0.01, 0.5), (0.3, 0.9), (9.0, 5.0)):
        payload = keepalive.ping(0.0)
        assert not keepalive.pong(b"x" * 8, rtt)
        assert keepalive.pong(payload, rtt)
        assert keepalive.timeout_s == pytest.approx(timeout)


def test_delays_double_up_to_a_limit_with_jitter() -> None:
    backoff = Backoff(random.Random(3))
    low = 0.01
    for _ in range(20):
        assert low <= backoff.failed() <= 2 * low
        low = min(16.0, low * 2)
    assert backoff.lost(lasted_s=100.0) <= 0.1
    assert backoff.failed() <= 0.02


def test_a_relay_that_drops_us_at_once_is_not_dialled_in_a_loop() -> None:
    backoff = Backoff(random.Random(3))
    delays = [backoff.lost(lasted_s=0.1) for _ in range(12)]
    assert delays[-1] >= 16.0
    backoff.reset()
    assert backoff.failed() <= 0.02


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:39401", ("127.0.0.1", 39401, False, "127.0.0.1:39401", "/relay")),
        ("HTTPS://Relay.Example./a/b?x=1", ("relay.example.", 443, True, "relay.example.",
                                            "/relay?x=1")),
        ("http://[::1]:80/", ("::1", 80, False, "[::1]", "/relay")),
        ("wss://[::1]:8443", ("::1", 8443, True, "[::1]:8443", "/relay")),
    ],
)  # fmt: skip
def test_where_a_url_leads(url, target) -> None:
    found = Target.of(RelayUrl(url))
    assert (found.host, found.port, found.is_tls, found.host_header, found.relay_path) == target


def test_names_in_certificates_have_no_final_dot() -> None:
    assert Target.of(RelayUrl("https://relay.example./")).server_name == "relay.example"


@pytest.mark.parametrize("url", ["ftp://x/", "localhost:300", "mailto:x"])
def test_urls_that_no_relay_has(url) -> None:
    with pytest.raises(DialkeyError, match="cannot be dialled"):
        Target.of(RelayUrl(url))


def test_proxies_from_the_environment(monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    tls = Target.of(RelayUrl("https://relay.example/"))
    plain = Target.of(RelayUrl("http://relay.example/"))
    assert proxy_from_environment(tls) is None
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    assert proxy_from_environment(plain) == "http://proxy:1"
    monkeypatch.setenv("https_proxy", "http://proxy:2")
    assert proxy_from_environment(tls) == "http://proxy:2"
    assert proxy_from_environment(plain) == "http://proxy:1"
    monkeypatch.setenv("no_proxy", "relay.example")
    assert proxy_from_environment(tls) is None
