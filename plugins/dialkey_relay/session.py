"""One connection at a relay, from its first byte to its last: a state machine without I/O.

::

    HTTP ──GET /relay──> PROVING ──key proven──> ADMITTING ──admit()──> OPEN
      │                     │                        │                    │
      └─ other requests     └─ timeout, violation    └─ deny()            └─ hub.forward …
         are answered                                                        pings, limits

The owner of the socket calls `receive`, `on_timer` and `admit` or `deny`, and after each of them
looks at four things: `take_output` (what to send), `request` (access rules to ask), `closing`
(hang up when all is sent) and `deadline` (when to call `on_timer`).

Source: docs/wire/relay.md 2.1 and 4.1 to 4.6.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from typing import Final

import attrs

from dialkey.errors import RemoteError
from dialkey.identity import EndpointId
from dialkey.limits import (
    MAX_RELAY_MESSAGE_BYTES,
    RELAY_ADMISSION_TIMEOUT_S,
    RELAY_HANDSHAKE_TIMEOUT_S,
    RELAY_HTTP_TIMEOUT_S,
)
from dialkey.shares import network_of
from dialkey_relay import handshake, routes
from dialkey_relay.access import Admission, AdmitRequest
from dialkey_relay.errors import RelayViolation, RelayWireError
from dialkey_relay.frames import (
    FrameType,
    RelayVersion,
    Restarting,
    StatusCode,
    decode_client_frame,
    encode_server_frame,
    normalise_type,
)
from dialkey_relay.http1 import (
    Request,
    Response,
    ServerHttp,
    bearer_token,
    check_upgrade,
    upgrade_response,
)
from dialkey_relay.hub import Hub, Outlet, Peer
from dialkey_relay.keepalive import KeepAlive
from dialkey_relay.rates import Bucket, Rate
from dialkey_relay.websocket import BINARY, PONG, FrameReader, encode_close, encode_frame

__all__ = ["Exporter", "Session", "Settings", "State"]

Exporter = Callable[[bytes], bytes | None]
"""Gives the keying material of the TLS connection for a client's key, if it can."""

MAX_REQUESTS: Final = 64
"""Requests on one connection before it is closed; a probing client sends one or a few."""

CLOSE_POLICY: Final = 1008
CLOSE_RESTART: Final = 1012

_PLAIN: Final = int(FrameType.CLIENT_TO_RELAY_DATAGRAM)
_BATCH: Final = int(FrameType.CLIENT_TO_RELAY_BATCH)
_DATAGRAMS: Final = frozenset({_PLAIN, _BATCH})
_PING: Final = int(FrameType.PING)
_PONG: Final = int(FrameType.PONG)


class State(Enum):
    """Where a connection stands."""

    HTTP = "http"
    PROVING = "proving its key"
    ADMITTING = "waiting for admission"
    OPEN = "open"
    CLOSED = "closed"


@attrs.frozen
class Settings:
    """What all sessions of a relay share.

    Attributes:
        rate: bytes that one client may send, where its admission says nothing else; None for any.
        relays: whether this listener serves the relay itself, or only what is served without TLS.
        random: for challenges and the times of pings.
    """

    rate: Rate | None = None
    relays: bool = True
    random: random.Random = attrs.field(factory=random.SystemRandom)


class Session:
    """One connection at a relay.

    Args:
        hub: the registry that it joins.
        outlet: who sends for it.
        settings: what all sessions share.
        now: the time, monotonic seconds.
        remote: the client's address, for access rules and logs.
        connection_id: unique in this process.
        exporter: where the connection runs over TLS.

    Attributes:
        request: access rules are to be asked with this; whoever takes it sets it to None.
        closing: why the connection is to be closed once its output is sent, or None.
    """

    __slots__ = (
        "_bucket",
        "_challenge",
        "_deadline",
        "_expires_at",
        "_exporter",
        "_http",
        "_hub",
        "_keepalive",
        "_out",
        "_rate_limited",
        "_reader",
        "_requests",
        "_settings",
        "_upgrade_request",
        "_version",
        "admission",
        "closing",
        "connection_id",
        "endpoint_id",
        "outlet",
        "peer",
        "remote",
        "request",
        "state",
    )

    def __init__(
        self,
        hub: Hub,
        outlet: Outlet,
        settings: Settings,
        now: float,
        *,
        remote: str = "",
        connection_id: int = 0,
        exporter: Exporter | None = None,
    ) -> None:
        self._hub = hub
        self.outlet = outlet
        self._settings = settings
        self._exporter = exporter
        self.remote = remote
        self.connection_id = connection_id
        self.state = State.HTTP
        self.request: AdmitRequest | None = None
        self.closing: str | None = None
        self.peer: Peer | None = None
        self.endpoint_id: EndpointId | None = None
        self.admission: Admission | None = None
        self._deadline = now + RELAY_HTTP_TIMEOUT_S
        self._expires_at: float | None = None
        self._http: ServerHttp | None = ServerHttp()
        self._reader: FrameReader | None = None
        self._out: list[bytes] | None = None
        self._bucket: Bucket | None = None
        self._rate_limited = False
        self._keepalive: KeepAlive | None = None
        self._challenge = b""
        self._upgrade_request: Request | None = None
        self._version = RelayVersion.V1
        self._requests = 0

    # --- input ----------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> float:
        """Take what has arrived; the memory can be reused afterwards.

        Returns:
            For how many seconds to stop reading, because of the rate limit; mostly 0.
        """
        if self.closing is not None:
            return 0.0
        pause = 0.0
        if self._bucket is not None:
            pause = self._bucket.debit(len(data), now)
            if pause:
                self._note_rate_limit(len(data))
        try:
            if self.state is State.OPEN:
                self._receive_frames(data, now)
            elif self.state is State.HTTP:
                self._receive_http(data, now)
            elif self.state is State.PROVING:
                self._receive_proof(data, now)
            else:
                raise RelayViolation("a client went on before it was admitted")
        except RemoteError as error:
            self._fail(error)
        return pause

    def resumed(self, now: float) -> None:
        """Note that reading resumes after a pause: we caused the silence in between."""
        if self._keepalive is not None:
            self._keepalive.resume(now)

    def _fail(self, error: RemoteError) -> None:
        if self.state is State.HTTP:
            self._hub.counters.http_connections_errored += 1
        else:
            self._hub.counters.protocol_errors += 1
        self.close(error.message)

    def _receive_http(self, data: memoryview, now: float) -> None:
        http = self._http
        assert http is not None
        http.feed(data)
        while self.closing is None:
            try:
                request = http.next_request()
            except RelayWireError as error:
                self._send(http.refuse(error))
                raise
            if request is None:
                return
            self._hub.counters.http_requests += 1
            self._requests += 1
            response = (
                routes.answer(request)
                if self._settings.relays
                else routes.answer_beside_tls(request)
            )
            if response is None:
                self._upgrade(http, request, now)
                return
            self._send(http.respond(response, is_last=self._requests >= MAX_REQUESTS))
            if http.is_over:
                self.close("the last request is answered")

    def _upgrade(self, http: ServerHttp, request: Request, now: float) -> None:
        upgrade = check_upgrade(request)
        if isinstance(upgrade, Response):
            headers = (*upgrade.headers, *routes.FIXED_HEADERS)
            refusal = Response(upgrade.status, headers, upgrade.body)
            self._send(http.respond(refusal, is_last=True))
            self.close("the upgrade was refused")
            return
        if http.has_more:
            raise RelayViolation("a client sent frames before its upgrade was granted")
        self._send(http.respond(upgrade_response(upgrade, *routes.FIXED_HEADERS)))
        self._http = None
        self._version = upgrade.version
        self._upgrade_request = request
        self._reader = FrameReader(from_client=True, limit=MAX_RELAY_MESSAGE_BYTES)
        self._deadline = now + RELAY_HANDSHAKE_TIMEOUT_S
        if self._settings.rate is not None:
            self._bucket = Bucket(self._settings.rate, now)
        endpoint_id = self._proven_by_tls(request)
        if endpoint_id is not None:
            self._proven(endpoint_id, now)
            return
        self.state = State.PROVING
        self._challenge = self._settings.random.randbytes(handshake.CHALLENGE_BYTES)
        self._send_message(handshake.encode_challenge(self._challenge))

    def _proven_by_tls(self, request: Request) -> EndpointId | None:
        header = request.header(handshake.CLIENT_AUTH_HEADER)
        if header is None or self._exporter is None:
            return None
        try:
            proof = handshake.KeyingMaterialProof.decode(header)
        except RelayWireError:
            # The challenge that follows tells a broken client from a hostile one.
            return None
        keying_material = self._exporter(bytes(proof.endpoint_id))
        if keying_material is None or not proof.proves(keying_material):
            return None
        return proof.endpoint_id

    def _receive_proof(self, data: memoryview, now: float) -> None:
        assert self._reader is not None
        messages = self._reader.feed(data)
        self._answer_websocket()
        if not messages or self.closing is not None:
            return
        if len(messages) > 1:
            raise RelayViolation("a client went on before it was admitted")
        try:
            endpoint_id = handshake.verify_client_auth(messages[0], self._challenge)
        except RelayWireError:
            raise
        except RemoteError as error:
            self._send_message(handshake.encode_denial(handshake.INVALID_SIGNATURE))
            raise error
        self._proven(endpoint_id, now)

    def _proven(self, endpoint_id: EndpointId, now: float) -> None:
        request = self._upgrade_request
        assert request is not None
        self._upgrade_request = None
        self.state = State.ADMITTING
        self.endpoint_id = endpoint_id
        self._deadline = now + RELAY_ADMISSION_TIMEOUT_S
        self.request = AdmitRequest(
            endpoint_id=endpoint_id,
            token=bearer_token(request),
            remote=self.remote,
            target=request.target,
            headers=request.headers,
            version=self._version,
            connection_id=self.connection_id,
        )

    # --- access ---------------------------------------------------------------------------------

    def admit(self, admission: Admission, now: float) -> None:
        """Let the client in; it is registered with the hub.

        Args:
            admission: what the access rules said. Its expiry is in seconds from now.
        """
        if self.state is not State.ADMITTING or self.closing is not None:
            return
        assert self.endpoint_id is not None
        self._send_message(handshake.CONFIRMED)
        self.state = State.OPEN
        self.admission = admission
        if admission.expires_in_s is not None:
            self._expires_at = now + admission.expires_in_s
        if admission.rate is not None:
            self._bucket = Bucket(admission.rate, now)
        self._keepalive = KeepAlive(self._settings.random, now)
        self.peer = Peer(
            bytes(self.endpoint_id),
            self._version,
            self.outlet,
            self.connection_id,
            network_of(self.remote) if self.remote else None,
        )
        self._hub.register(self.peer)

    def deny(self, reason: str) -> None:
        """Turn the client away."""
        if self.state is not State.ADMITTING or self.closing is not None:
            return
        self._hub.counters.clients_denied += 1
        self._send_message(handshake.encode_denial(reason))
        self.close(f"denied: {reason}")

    def set_rate(self, rate: Rate | None, now: float) -> None:
        """Change how many bytes the client may send; the bucket starts full."""
        self._bucket = None if rate is None else Bucket(rate, now)

    # --- open -----------------------------------------------------------------------------------

    def _receive_frames(self, data: memoryview, now: float) -> None:
        reader = self._reader
        peer = self.peer
        keepalive = self._keepalive
        assert reader is not None
        assert peer is not None
        assert keepalive is not None
        messages = reader.feed(data)
        forward = self._hub.forward
        for message in messages:
            kind = message[0] if message else -1
            if kind in _DATAGRAMS:
                forward(peer, message)
            else:
                self._receive_rare(peer, message, now)
        if messages:
            keepalive.last_frame_at = now
        if reader.pings or reader.close_payload is not None:
            self._answer_websocket()

    def _receive_rare(self, peer: Peer, message: bytes, now: float) -> None:
        message = normalise_type(message)
        kind = message[0]
        if kind in _DATAGRAMS:
            self._hub.forward(peer, message)
            return
        decode_client_frame(message)
        payload = message[1:]
        if kind == _PING:
            self._hub.counters.got_ping += 1
            self._hub.counters.sent_pong += 1
            self._hub.send_control(peer, bytes((_PONG,)) + payload)
        elif self._keepalive is not None:
            self._keepalive.pong(payload, now)

    def _answer_websocket(self) -> None:
        reader = self._reader
        assert reader is not None
        for payload in reader.pings:
            if self.peer is not None:
                self._hub.send_raw(self.peer, encode_frame(PONG, payload))
        # Before its key is proven nobody has a reason to ping, and answers would pile up unread.
        reader.pings.clear()
        if reader.close_payload is not None:
            code = int.from_bytes(reader.close_payload[:2], "big") or 1000
            self._send(encode_close(code if 1000 <= code < 5000 else 1000))
            self.close("the client said goodbye")

    def _note_rate_limit(self, count: int) -> None:
        counters = self._hub.counters
        counters.bytes_rx_ratelimited_total += count
        if not self._rate_limited:
            self._rate_limited = True
            counters.conns_rx_ratelimited_total += 1
            if self.peer is not None:
                self._hub.tell(self.peer, StatusCode.RATE_LIMITED)

    # --- time -----------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When to call `on_timer`; since the last look it can only have moved later."""
        if self.closing is not None:
            return None
        if self._keepalive is None:
            return self._deadline
        if self._expires_at is not None:
            return min(self._keepalive.deadline, self._expires_at)
        return self._keepalive.deadline

    def on_timer(self, now: float) -> None:
        """Do what is due. Calling it too early is harmless."""
        if self.closing is not None:
            return
        counters = self._hub.counters
        if self._keepalive is None:
            if now >= self._deadline:
                if self.state is State.ADMITTING:
                    counters.admission_errors += 1
                    self.deny("the access rules took too long")
                else:
                    counters.handshake_timeouts += self.state is State.PROVING
                    self.close(f"timeout while {self.state.value}")
            return
        if self._expires_at is not None and now >= self._expires_at:
            counters.clients_expired += 1
            self.end("the grant has expired")
            return
        payload = self._keepalive.on_timer(now)
        if self._keepalive.timed_out:
            counters.ping_timeouts += 1
            self.close("the client did not answer a ping")
        elif payload is not None and self.peer is not None:
            self._hub.send_control(self.peer, bytes((_PING,)) + payload)

    # --- end ------------------------------------------------------------------------------------

    def end(self, reason: str, code: int = CLOSE_POLICY) -> None:
        """Say goodbye with a close frame and hang up; for clients that did nothing wrong."""
        if self.closing is None and self._reader is not None:
            self._send(encode_close(code))
        self.close(reason)

    def restart(self, notice: Restarting) -> None:
        """Announce that the relay restarts, and hang up."""
        if self.state is State.OPEN:
            self._send_message(encode_server_frame(notice))
        self.end("the relay restarts", CLOSE_RESTART)

    def close(self, reason: str) -> None:
        """Hang up once the output is sent. Idempotent: the first reason stays."""
        if self.closing is None:
            self.closing = reason
            self.request = None
            if self.peer is not None:
                self._hub.unregister(self.peer)

    def closed(self) -> None:
        """Note that the connection is gone."""
        self.close("the connection was lost")
        self.state = State.CLOSED

    # --- output ---------------------------------------------------------------------------------

    def _send_message(self, message: bytes) -> None:
        self._send(encode_frame(BINARY, message))

    def _send(self, data: bytes) -> None:
        if self._out is None:
            self._out = []
        self._out.append(data)

    def take_output(self, budget: int, out: list[bytes | memoryview]) -> None:
        """Move to `out` what is to be sent, datagrams up to about `budget` bytes."""
        if self._out is not None:
            out += self._out
            self._out = None
        if self.peer is not None and self.peer.has_output:
            self._hub.take_output(self.peer, budget, out)
