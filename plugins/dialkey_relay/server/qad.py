"""The server of QUIC address discovery: a client connects and learns where its packets come from.

It is aioquic's own server with one transport parameter and one frame more. aioquic has no door for
either, so `ReportingConnection` overrides some of its methods whose names begin with an underscore;
`PRIVATE_NAMES` lists all that is touched, and a test tells when one of them is gone.

A client sends nothing but the handshake, so the server costs little; what it does cost is limited by
address, and a client has to prove its address first (Retry) as soon as many handshakes are open.

Source: docs/wire/relay.md 4.10.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from aioquic._buffer import Buffer
from aioquic.asyncio.protocol import QuicConnectionProtocol, QuicStreamHandler
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnection,
    QuicConnectionError,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.tls import Epoch

from dialkey.limits import MAX_HANDSHAKE_CRYPTO_BYTES
from dialkey_relay.counters import Counters
from dialkey_relay.errors import RelayWireError, cannot_listen
from dialkey_relay.observed import (
    ALPN,
    CLOSE_CODE,
    CLOSE_REASON,
    Observed,
    Role,
    encode_role_parameter,
    find_role,
)
from dialkey_relay.rates import AddressLimiter, Rate
from dialkey_relay.server.tls import TlsFiles

__all__ = ["PRIVATE_NAMES", "QadServer", "ReportingConnection"]

logger = logging.getLogger("dialkey.relay")

PRIVATE_NAMES: Final = {
    QuicConnection: (
        "_handle_crypto_frame",
        "_payload_received",
        "_serialize_transport_parameters",
        "_parse_transport_parameters",
        "_write_application",
        "_send_probing_frames",
        "_write_handshake_done_frame",
        "_write_path_challenge_frame",
        "_write_path_response_frame",
        "_write_ping_frame",
    ),
    QuicServer: ("_connection_id_issued", "_connection_id_retired", "_connection_terminated"),
}

FRAME_HANDLERS: Final = "_QuicConnection__frame_handlers"
"""A private attribute: frame type to its handler and where it may stand."""

IDLE_TIMEOUT_S: Final = 30.0
MAX_CONNECTIONS: Final = 10_000
MAX_HALF_OPEN: Final = 1024
RETRY_ABOVE_HALF_OPEN: Final = 64
"""With more handshakes open than this, clients have to prove their address first."""

HANDSHAKE_TIMEOUT_S: Final = 10.0
"""From a client's first datagram on, whatever it says in between."""

MAX_HANDSHAKE_PACKETS: Final = 64
"""Packets of one handshake that are looked at; a client that repeats everything four times sends 12."""

MAX_HANDSHAKE_CRYPTO_FRAMES: Final = 256
"""TLS comes in one to three frames; in single bytes it would cost a hundred times as much."""

HANDSHAKE_RATE: Final = Rate(5, 20)
"""Handshakes of one address: a client makes one in some 25 s, an office has many clients."""

_FRAME_BYTES: Final = 4 + 8 + 16 + 2
_LONG_HEADER: Final = 0x80
_TYPE_BITS: Final = 0x30


class ReportingConnection(QuicConnection):
    """A server's connection that reports to the client where it comes from.

    aioquic's server makes a plain connection whose class is then changed to this one, so that all
    state has its defaults here.
    """

    _handshake_packets = 0
    _crypto_frames = 0
    _wants_reports = False
    _report_due = False
    _reported = 0
    _report_path: QuicNetworkPath | None = None

    @classmethod
    def adopt(cls, connection: QuicConnection) -> None:
        """Turn a fresh connection into one of this class."""
        connection.__class__ = cls
        # It has looked up the handlers of frames already.
        handlers = getattr(connection, FRAME_HANDLERS)
        _, epochs = handlers[QuicFrameType.CRYPTO]
        handlers[QuicFrameType.CRYPTO] = (connection._handle_crypto_frame, epochs)

    # What a handshake may cost: aioquic buffers half a MiB with gaps, and any length in order.

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        if context.epoch is not Epoch.ONE_RTT:
            self._handshake_packets += 1
            if self._handshake_packets > MAX_HANDSHAKE_PACKETS:
                raise QuicConnectionError(
                    QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "too many packets"
                )
        return super()._payload_received(context, plain, crypto_frame_required)

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._crypto_frames += 1
        at = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(at)
        if end > MAX_HANDSHAKE_CRYPTO_BYTES or self._crypto_frames > MAX_HANDSHAKE_CRYPTO_FRAMES:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too many bytes of TLS"
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    def _serialize_transport_parameters(self) -> bytes:
        # There is nothing to say on streams.
        self._local_max_streams_bidi.value = 0
        self._local_max_streams_uni.value = 0
        return super()._serialize_transport_parameters() + encode_role_parameter(Role.SENDS)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        try:
            role = find_role(data)
        except RelayWireError as error:
            raise QuicConnectionError(
                error_code=QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                frame_type=QuicFrameType.CRYPTO,
                reason_phrase=error.message,
            ) from None
        self._wants_reports = role in (Role.RECEIVES, Role.BOTH)

    # Both note which path the frames below are written for.

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        self._report_path = network_path
        super()._write_application(builder, network_path, now)

    def _send_probing_frames(
        self, network_path: QuicNetworkPath, now: float
    ) -> list[tuple[bytes, NetworkAddress]]:
        self._report_path = network_path
        return super()._send_probing_frames(network_path, now)

    # With each of these goes a report, as the protocol says; with a ping where one was lost.

    def _write_handshake_done_frame(self, builder: QuicPacketBuilder) -> None:
        super()._write_handshake_done_frame(builder)
        self._write_report(builder)

    def _write_path_challenge_frame(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath
    ) -> None:
        super()._write_path_challenge_frame(builder, network_path)
        self._write_report(builder)

    def _write_path_response_frame(self, builder: QuicPacketBuilder, challenge: bytes) -> None:
        super()._write_path_response_frame(builder, challenge)
        self._write_report(builder)

    def _write_ping_frame(
        self, builder: QuicPacketBuilder, uids: list[int] | None = None, comment: str = ""
    ) -> None:
        super()._write_ping_frame(builder, uids if uids is not None else [], comment)
        if self._report_due:
            self._write_report(builder)

    def _write_report(self, builder: QuicPacketBuilder) -> None:
        path = self._report_path
        if not self._wants_reports or path is None:
            return
        host, port = path.addr[0], path.addr[1]
        report = Observed.of(self._reported, host, port)
        try:
            buffer = builder.start_frame(
                report.frame_type, capacity=_FRAME_BYTES, handler=self._on_report_delivery
            )
        except QuicPacketBuilderStop:
            # No room in this packet: it goes with a ping of its own.
            self._owe_report()
            return
        buffer.push_bytes(report.encode_body())
        self._reported += 1
        self._report_due = False

    def _owe_report(self) -> None:
        if not self._report_due:
            self._report_due = True
            self.send_ping(0)

    def _on_report_delivery(self, delivery: QuicDeliveryState) -> None:
        if delivery is QuicDeliveryState.LOST:
            self._owe_report()


class _Protocol(QuicConnectionProtocol):
    """Counts what becomes of a connection."""

    server: QadServer
    established = False

    def quic_event_received(self, event: QuicEvent) -> None:
        counters = self.server.counters
        if isinstance(event, HandshakeCompleted):
            self.established = True
            self.server.completed(self)
            counters.qad_connections += 1
        elif isinstance(event, ConnectionTerminated):
            self.server.ended(self)
            finished = event.error_code == CLOSE_CODE and event.reason_phrase == CLOSE_REASON
            if not self.established:
                counters.qad_incoming_error += 1
            elif finished:
                counters.qad_connections_closed += 1
            else:
                counters.qad_connections_errored += 1


class _Server(QuicServer):
    """aioquic's server with limits in front of it."""

    def __init__(self, owner: QadServer) -> None:
        super().__init__(configuration=owner.configuration, create_protocol=self._adopt)
        self._owner = owner
        self._retry_handler = QuicRetryTokenHandler()

    def _adopt(
        self, connection: QuicConnection, stream_handler: QuicStreamHandler | None
    ) -> _Protocol:
        ReportingConnection.adopt(connection)
        protocol = _Protocol(connection, stream_handler)
        protocol.server = self._owner
        self._owner.begun(protocol)
        return protocol

    def datagram_received(self, data: bytes | str, addr: NetworkAddress) -> None:
        assert isinstance(data, bytes)
        if _is_first(data) and data[6 : 6 + data[5]] not in self._protocols:
            if not self._owner.may_enter(addr[0]):
                return
            # Who brings a token was sent away with it while we were busy.
            busy = len(self._owner.half_open) >= RETRY_ABOVE_HALF_OPEN or _has_token(data)
            # The base class takes None, although it does not declare it.
            self._retry = self._retry_handler if busy else cast(QuicRetryTokenHandler, None)
        super().datagram_received(data, addr)


def _is_first(data: bytes) -> bool:
    """Return whether a datagram begins with an Initial packet of QUIC version 1."""
    return (
        len(data) > 6
        and data[0] & (_LONG_HEADER | _TYPE_BITS) == _LONG_HEADER
        and data[1:5] == b"\0\0\0\1"
    )


def _has_token(data: bytes) -> bool:
    """Return whether an Initial packet carries a token."""
    source_cid_at = 6 + data[5]
    if len(data) <= source_cid_at:
        return False
    token_length_at = source_cid_at + 1 + data[source_cid_at]
    return len(data) > token_length_at and data[token_length_at] != 0


class QadServer:
    """Tells clients their address, on a UDP port.

    Args:
        address: where to listen.
        tls: the relay's certificate.
        counters: where connections are counted.
        reuse_port: let other processes listen on the same port.
    """

    def __init__(
        self,
        address: tuple[str, int],
        tls: TlsFiles,
        counters: Counters,
        *,
        reuse_port: bool = False,
    ) -> None:
        self._address = address
        self._tls = tls
        self._reuse_port = reuse_port
        self.counters = counters
        self.configuration = QuicConfiguration(
            is_client=False, alpn_protocols=[ALPN], idle_timeout=IDLE_TIMEOUT_S
        )
        # With the timer that ends it; the oldest first.
        self.half_open: dict[_Protocol, asyncio.TimerHandle] = {}
        self._open: set[_Protocol] = set()
        self._limiter = AddressLimiter(HANDSHAKE_RATE)
        self._server: _Server | None = None
        self._context: object = None
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> QadServer:
        self.use_certificate()
        loop = asyncio.get_running_loop()
        try:
            self._transport, self._server = await loop.create_datagram_endpoint(
                lambda: _Server(self),
                local_addr=self._address,
                reuse_port=self._reuse_port or None,
            )
        except OSError as error:
            raise cannot_listen("address discovery (UDP)", self._address, error) from error
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for protocol in list(self._open):
            self.completed(protocol)
            protocol.close(CLOSE_CODE, CLOSE_REASON)
        if self._transport is not None:
            self._transport.close()
            # asyncio closes the socket in the next turn of the loop; then the port is free.
            await asyncio.sleep(0)

    def use_certificate(self) -> None:
        """Read the certificate files; new connections get what they hold now."""
        self._context = self._tls.context
        self.configuration.load_cert_chain(self._tls.certificate, self._tls.key)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
        return str(host), int(port)

    def may_enter(self, host: str) -> bool:
        """Count a new handshake in, if the limits allow."""
        self.counters.qad_incoming += 1
        if self._context is not self._tls.context:
            # The relay has read the files again and found them good.
            self.use_certificate()
        now = asyncio.get_running_loop().time()
        allowed = len(self._open) < MAX_CONNECTIONS and self._limiter.allow(host, now)
        if not allowed:
            self.counters.qad_incoming_refused += 1
        return allowed

    def begun(self, protocol: _Protocol) -> None:
        """Note a new connection; the oldest unfinished handshake makes room for it, if need be."""
        if len(self.half_open) >= MAX_HALF_OPEN:
            self._give_up(next(iter(self.half_open)))
        self._open.add(protocol)
        loop = asyncio.get_running_loop()
        self.half_open[protocol] = loop.call_later(HANDSHAKE_TIMEOUT_S, self._give_up, protocol)

    def completed(self, protocol: _Protocol) -> None:
        """Note that a handshake is over."""
        timer = self.half_open.pop(protocol, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self, protocol: _Protocol) -> None:
        self.completed(protocol)
        protocol.close(QuicErrorCode.CONNECTION_REFUSED, "the handshake took too long")

    def ended(self, protocol: _Protocol) -> None:
        """Note the end of a connection."""
        self._open.discard(protocol)
        self.completed(protocol)
