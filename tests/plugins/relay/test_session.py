"""One connection at a relay, driven without sockets: states, deadlines, limits, routes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.identity import SecretKey
from dialkey_relay.access import Admission
from dialkey_relay.frames import (
    Datagrams,
    Ping,
    Pong,
    RelayVersion,
    Restarting,
    Status,
    decode_server_frame,
    encode_to_relay,
)
from dialkey_relay.handshake import (
    CLIENT_AUTH_HEADER,
    CONFIRMED,
    KeyingMaterialProof,
    encode_client_auth,
    encode_denial,
)
from dialkey_relay.hub import Hub
from dialkey_relay.rates import Rate
from dialkey_relay.session import Session, Settings, State
from dialkey_relay.websocket import BINARY, CLOSE, PING, FrameReader, encode_frame

A = SecretKey(b"\x01" * 32)
B = SecretKey(b"\x02" * 32)
MASK = b"\xa1\xb2\xc3\xd4"


class Link:
    """A client without a socket, and the session that serves it."""

    def __init__(self, hub=None, *, exporter=None, **settings):
        self.hub = hub if hub is not None else Hub()
        self.now = 100.0
        options = Settings(random=random.Random(7), **settings)
        self.session = Session(self.hub, self, options, self.now, exporter=exporter)
        self.reader = None
        self.pauses = []

    def flush(self):
        pass

    def end(self, reason):
        self.session.end(reason)

    def feed(self, data):
        self.pauses.append(self.session.receive(memoryview(data), self.now))

    def get(self, target, **headers):
        lines = [f"GET {target} HTTP/1.1", "Host: relay.example"]
        lines += [*(f"{k}: {v}" for k, v in headers.items()), "", ""]
        self.feed("\r\n".join(lines).encode())

    def raw(self):
        out = []
        self.session.take_output(1 << 30, out)
        return b"".join(out)

    def messages(self):
        return self.reader.feed(memoryview(self.raw()))

    def frames(self):
        return [decode_server_frame(m, RelayVersion.V2) for m in self.messages()]

    def upgrade(self, **headers):
        defaults = {
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "OeAe5QzRiuGv8h+FIM6xkw==",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "iroh-relay-v2, iroh-relay-v1",
        }
        self.get("/relay", **(defaults | headers))
        self.reader = FrameReader(from_client=False, limit=1 << 20)
        head, _, rest = self.raw().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        return self.reader.feed(memoryview(rest))

    def say(self, message):
        self.feed(encode_frame(BINARY, message, MASK))

    def send(self, frame):
        self.say(encode_to_relay(frame))

    def prove(self, key=A, **headers):
        (challenge,) = self.upgrade(**headers)
        assert challenge[0] == 0
        self.say(encode_client_auth(key, challenge[1:]))

    def join(self, key=A, admission=None):
        self.prove(key)
        self.session.admit(admission or Admission(), self.now)
        assert self.messages() == [CONFIRMED]
        return self

    def later(self, seconds):
        self.now += seconds
        self.session.on_timer(self.now)


def test_the_whole_way_to_a_delivered_datagram() -> None:
    hub = Hub()
    a, b = Link(hub).join(A), Link(hub).join(B)
    a.send(Datagrams(bytes(B.id), b"hello"))
    assert b.frames() == [Datagrams(bytes(A.id), b"hello")]
    a.send(Ping(b"12345678"))
    assert a.frames() == [Pong(b"12345678")]
    assert hub.counters.got_ping == hub.counters.sent_pong == 1


def test_routes() -> None:
    link = Link()
    link.get("/ping?x=1")
    head, _, body = link.raw().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"access-control-allow-origin: *" in head
    assert b"strict-transport-security: max-age=63072000; includeSubDomains" in head
    assert body == b""
    link.get("/healthz")
    reply = link.raw()
    assert b"content-type: application/json" in reply
    assert b'{"status":"ok","version":"' in reply
    link.get("/generate_204", **{"X-Iroh-Challenge": "ts_relay.example"})
    reply = link.raw()
    assert reply.startswith(b"HTTP/1.1 204 No Content")
    assert b"x-iroh-response: response ts_relay.example\r\n" in reply
    assert b"content-length" not in reply
    for bad in ("", "a b", "x" * 64, "a/b"):
        link.get("/generate_204", **{"X-Iroh-Challenge": bad})
        assert b"x-iroh-response" not in link.raw()
    for path in ("/", "/index.html"):
        link.get(path)
        assert b"content-type: text/html; charset=utf-8" in link.raw()
    link.get("/robots.txt")
    assert link.raw().endswith(b"User-agent: *\nDisallow: /\n")
    link.get("/derp")
    reply = link.raw()
    assert reply.startswith(b"HTTP/1.1 404")
    assert reply.count(b"strict-transport-security") == 1
    link.feed(b"HEAD /ping HTTP/1.1\r\nHost: relay.example\r\n\r\n")
    assert link.raw().startswith(b"HTTP/1.1 404")
    assert link.session.closing is None


def test_the_plain_listener_beside_tls_only_answers_portal_checks() -> None:
    link = Link(relays=False)
    link.get("/generate_204", **{"X-Iroh-Challenge": "c"})
    reply = link.raw()
    assert b"x-iroh-response: response c" in reply
    assert b"strict-transport-security" not in reply
    for path in ("/ping", "/relay", "/healthz", "/"):
        link.get(path)
        assert link.raw().startswith(b"HTTP/1.1 404")


def test_requests_on_one_connection_are_bounded() -> None:
    link = Link()
    for _ in range(63):
        link.get("/ping")
    assert link.session.closing is None
    link.get("/ping")
    assert link.session.closing is not None
    assert link.raw().endswith(b"connection: close\r\n\r\n")


def test_a_malformed_request_gets_400_and_the_end() -> None:
    link = Link()
    link.feed(b"\x16\x03\x01\x02\x00\r\n\r\n")
    assert link.raw().startswith(b"HTTP/1.1 400")
    assert link.session.closing is not None
    assert link.hub.counters.http_connections_errored == 1


def test_a_refused_upgrade() -> None:
    link = Link()
    link.get("/relay", Upgrade="websocket")
    reply = link.raw()
    assert reply.startswith(b"HTTP/1.1 400")
    assert link.session.closing is not None


def test_frames_before_the_upgrade_is_granted_end_the_connection() -> None:
    link = Link()
    lines = (
        "GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: OeAe5QzRiuGv8h+FIM6xkw==\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: iroh-relay-v2\r\n\r\n"
    )
    link.feed(lines.encode() + b"\x82\x80")
    assert link.session.closing is not None
    assert not link.raw().startswith(b"HTTP/1.1 101")


def test_a_denial() -> None:
    link = Link()
    link.prove()
    assert link.session.request is not None
    assert link.session.request.endpoint_id == A.id
    link.session.deny("not authorized")
    assert link.messages() == [encode_denial()]
    assert link.session.closing is not None
    assert len(link.hub) == 0
    assert link.hub.counters.clients_denied == 1


def test_the_request_for_admission_carries_the_token() -> None:
    link = Link()
    link.prove(Authorization="Bearer abc def")
    request = link.session.request
    assert request.token == "abc def"
    assert request.version is RelayVersion.V2
    assert ("upgrade", "websocket") in request.headers


def test_a_wrong_signature_is_told() -> None:
    link = Link()
    link.upgrade()
    link.say(encode_client_auth(A, b"\0" * 16))
    assert link.messages() == [encode_denial("signature invalid")]
    assert link.session.closing is not None


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x09" + b"x" * 8, b"\x00" + b"x" * 97])
def test_other_answers_to_the_challenge_end_the_connection(message) -> None:
    link = Link()
    link.upgrade()
    link.say(message)
    assert link.session.closing is not None
    assert link.session.request is None


def test_going_on_before_admission_ends_the_connection() -> None:
    link = Link()
    link.prove()
    link.send(Ping(b"12345678"))
    assert link.session.closing is not None
    link.session.admit(Admission(), link.now)
    assert len(link.hub) == 0
    link = Link()
    (challenge,) = link.upgrade()
    answer = encode_frame(BINARY, encode_client_auth(A, challenge[1:]), MASK)
    link.feed(answer + encode_frame(BINARY, b"\x0912345678", MASK))
    assert link.session.closing is not None


KEYING_MATERIAL = bytes(range(32))


def proof(key=A, material=KEYING_MATERIAL):
    return {CLIENT_AUTH_HEADER: KeyingMaterialProof.make(key, material).encode()}


def test_keying_material_replaces_the_challenge() -> None:
    asked = []

    def exporter(client_key):
        asked.append(client_key)
        return KEYING_MATERIAL

    link = Link(exporter=exporter)
    assert link.upgrade(**proof()) == []
    assert asked == [bytes(A.id)]
    assert link.session.state is State.ADMITTING
    link.session.admit(Admission(), link.now)
    assert link.messages() == [CONFIRMED]


@pytest.mark.parametrize(
    ("headers", "exporter"),
    [
        (proof(), None),
        (proof(), lambda key: None),
        (proof(material=bytes(32)), lambda key: KEYING_MATERIAL),
        ({CLIENT_AUTH_HEADER: "garbage"}, lambda key: KEYING_MATERIAL),
        ({}, lambda key: KEYING_MATERIAL),
    ],
)
def test_without_a_fitting_proof_there_is_a_challenge(headers, exporter) -> None:
    link = Link(exporter=exporter)
    (challenge,) = link.upgrade(**headers)
    assert challenge[0] == 0
    assert link.session.state is State.PROVING


def test_every_phase_has_a_deadline() -> None:
    link = Link()
    link.later(29.9)
    assert link.session.closing is None
    link.later(0.2)
    assert "http" in link.session.closing
    link = Link()
    link.upgrade()
    assert link.session.deadline == link.now + 10
    link.later(10)
    assert "proving" in link.session.closing
    assert link.hub.counters.handshake_timeouts == 1
    link = Link()
    link.prove()
    assert link.session.deadline == link.now + 8
    link.later(8)
    assert link.messages() == [encode_denial("the access rules took too long")]


def test_a_silent_client_is_pinged_and_then_let_go() -> None:
    link = Link().join()
    assert 16 <= link.session.deadline - link.now <= 20
    link.later(15.9)
    assert link.frames() == []
    link.later(4.1)
    (ping,) = link.frames()
    assert isinstance(ping, Ping)
    link.later(0.2)
    link.send(Pong(ping.payload))
    link.later(20)
    (ping,) = link.frames()
    # The round trip took 0.2 s, so the next one may take 0.6.
    assert link.session.deadline == pytest.approx(link.now + 0.6)
    link.send(Pong(b"not this"))
    link.later(0.59)
    assert link.session.closing is None
    link.later(0.02)
    assert "ping" in link.session.closing
    assert link.hub.counters.ping_timeouts == 1
    assert len(link.hub) == 0


def test_any_frame_postpones_the_ping() -> None:
    link = Link().join()
    for _ in range(10):
        link.later(10)
        link.send(Ping(b"abcdefgh"))
    assert [frame for frame in link.frames() if isinstance(frame, Ping)] == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x0e",
        b"\x06" + b"x" * 40,
        b"\x0d\x00",
        b"\x09short",
        b"\x04" + b"x" * 32,
        b"\x05" + b"x" * 34,
        b"\x04" + b"x" * 65_537,
        b"\x04" + b"x" * 70_000,
    ],
)
def test_a_hostile_frame_ends_its_sender_and_harms_nobody_else(message) -> None:
    hub = Hub()
    a, b = Link(hub).join(A), Link(hub).join(B)
    a.send(Datagrams(bytes(B.id), b"before"))
    a.say(message)
    assert a.session.closing is not None
    assert hub.counters.protocol_errors == 1
    assert b.session.closing is None
    frames = b.frames()
    assert Datagrams(bytes(A.id), b"before") in frames or frames == []
    assert hub.peers_of(bytes(A.id)) == []


@pytest.mark.parametrize(
    "message",
    [
        b"\x04" + bytes(B.id) + b"\0",
        b"\x05" + bytes(B.id) + b"\0\0\x05",
        b"\x04" + bytes(B.id) + b"\0" + b"x" * (65_536 - 33),
        b"\x04" + b"\xff" * 32 + b"\0hello",
    ],
)
def test_what_cannot_be_delivered_is_dropped_and_all_go_on(message) -> None:
    hub = Hub()
    a, b = Link(hub).join(A), Link(hub).join(B)
    a.say(message)
    assert a.session.closing is None
    assert b.frames() == []
    assert hub.counters.send_packets_dropped == 1
    a.send(Datagrams(bytes(B.id), b"next"))
    assert b.frames() == [Datagrams(bytes(A.id), b"next")]


def test_long_type_encodings_are_taken() -> None:
    hub = Hub()
    a, b = Link(hub).join(A), Link(hub).join(B)
    a.say(bytes.fromhex("4009") + b"12345678")
    assert a.frames() == [Pong(b"12345678")]
    a.say(bytes.fromhex("4004") + bytes(B.id) + b"\0x")
    assert b.frames() == [Datagrams(bytes(A.id), b"x")]


def test_websocket_control_frames() -> None:
    link = Link().join()
    link.feed(encode_frame(PING, b"are you there", MASK))
    assert link.raw() == b"\x8a\x0dare you there"
    link.feed(encode_frame(1, b"text is skipped", MASK))
    link.feed(encode_frame(CLOSE, b"\x03\xe8", MASK))
    assert link.raw() == b"\x88\x02\x03\xe8"
    assert link.session.closing == "the client said goodbye"


def test_pings_that_nobody_reads_the_answers_of_do_not_pile_up() -> None:
    link = Link().join()
    for _ in range(1000):
        link.feed(encode_frame(PING, b"x" * 100, MASK) * 16)
        link.send(Ping(b"12345678"))
    assert len(link.raw()) < 120 * 600
    assert link.hub.counters.dropped_control > 0


def test_the_rate_limit_pauses_and_tells_once() -> None:
    link = Link(rate=Rate(100_000, 10_000)).join()
    link.pauses.clear()
    for _ in range(3):
        link.send(Datagrams(bytes(B.id), b"x" * 9000))
    assert link.pauses[0] == 0
    assert link.pauses[1] > 0
    assert link.pauses[2] > link.pauses[1]
    assert link.frames() == [Status(2)]
    counters = link.hub.counters
    assert counters.conns_rx_ratelimited_total == 1
    assert counters.bytes_rx_ratelimited_total > 18_000
    assert counters.send_packets_recv == 3


def test_an_admission_brings_its_own_rate() -> None:
    link = Link(rate=Rate(100, 10)).join(admission=Admission(rate=Rate(10**9, 10**9)))
    link.pauses.clear()
    link.send(Datagrams(bytes(B.id), b"x" * 60_000))
    assert link.pauses == [0]
    link.session.set_rate(Rate(100, 10), link.now)
    link.send(Datagrams(bytes(B.id), b"x" * 60_000))
    assert link.pauses[-1] > 0
    link.session.set_rate(None, link.now)
    link.send(Datagrams(bytes(B.id), b"x" * 60_000))
    assert link.pauses[-1] == 0


def test_a_pause_is_not_silence() -> None:
    link = Link().join()
    link.later(20)
    link.frames()
    link.session.resumed(link.now + 4)
    link.later(6)
    assert link.session.closing is None


def test_an_expired_admission_ends_with_a_close_frame() -> None:
    link = Link().join(admission=Admission(expires_in_s=5))
    assert link.session.deadline == link.now + 5
    link.later(5)
    assert link.raw() == b"\x88\x02" + (1008).to_bytes(2, "big")
    assert link.session.closing == "the grant has expired"
    assert link.hub.counters.clients_expired == 1


def test_a_restart_is_announced() -> None:
    link = Link().join()
    link.session.restart(Restarting(500, 60_000))
    raw = link.raw()
    assert raw.endswith(b"\x88\x02" + (1012).to_bytes(2, "big"))
    assert link.reader.feed(memoryview(raw)) == [bytes.fromhex("0c000001f40000ea60")]
    link = Link()
    link.session.restart(Restarting(500, 60_000))
    assert link.raw() == b""
    assert link.session.closing is not None


def test_a_second_connection_is_told_to_the_first() -> None:
    hub = Hub()
    first, second = Link(hub).join(A), Link(hub).join(A)
    assert first.frames() == [Status(1)]
    second.session.closed()
    assert first.frames() == [Status(0)]
    assert second.session.state is State.CLOSED


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=6), st.integers(0, 3))
def test_arbitrary_bytes_in_any_state(chunks, stage) -> None:
    hub = Hub()
    bystander = Link(hub).join(B)
    link = Link(hub)
    if stage == 1:
        link.upgrade()
    elif stage == 2:
        link.prove()
    elif stage == 3:
        link.join()
    for chunk in chunks:
        link.feed(chunk)
        if stage:
            link.feed(encode_frame(BINARY, chunk, MASK))
    link.session.closed()
    assert bystander.session.closing is None
    assert len(hub) == 1
