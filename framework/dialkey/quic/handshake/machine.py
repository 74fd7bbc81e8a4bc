"""The state machine of a handshake: Initial and Handshake packets, TLS, transport parameters.

aioquic does this part. Its connection object runs until the keys for 1-RTT packets exist; they are taken
from it before it can use them, and everything after that is our own code. So each packet-number space has
exactly one owner, and a nonce is never used twice. When the handshake is confirmed, the whole object is
dropped and its memory freed.
"""

from __future__ import annotations

import logging
from typing import Any

import attrs
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionError, QuicReceiveContext
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import pull_ack_frame, pull_quic_header

from dialkey import limits
from dialkey.identity import EndpointId
from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.handshake import parameters
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.handshake.tls import (
    AlertCertificateRequired,
    RawPublicKeyContext,
    certificate_type_extensions,
    check_certificate_types,
)
from dialkey.quic.handshake.work import HandshakeWork, check_crypto, check_gaps

# aioquic warns on its own logger, which prints to stderr in a program that configures no logging.
logging.getLogger("quic").addHandler(logging.NullHandler())

logger = logging.getLogger("dialkey.quic")

MAX_COALESCED_PACKETS = 8
"""How many long-header packets are read from one datagram; peers send at most three, one per level."""


@attrs.frozen
class TrafficSecret:
    """What 1-RTT keys of one direction are derived from."""

    cipher_suite: tls.CipherSuite
    secret: bytes = attrs.field(repr=False)


class _MachineLog(logging.LoggerAdapter[logging.Logger]):
    """aioquic warns about what strangers send; that is not worth anybody's attention here."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(logging.DEBUG, msg, *args, **kwargs)


class _Buffers(dict[tls.Epoch, Buffer]):
    """What TLS has to say, by level; aioquic sets 48 KiB aside, also for those who get no answer."""

    def __missing__(self, epoch: tls.Epoch) -> Buffer:
        buffer = self[epoch] = Buffer(capacity=limits.MAX_TLS_MESSAGE_BYTES)
        return buffer


class Machine(QuicConnection):
    """aioquic's connection, reduced to the handshake and taught raw public keys."""

    def __init__(self, configuration: QuicConfiguration, **kwargs: Any) -> None:
        super().__init__(configuration=configuration, **kwargs)
        self._logger = _MachineLog(logger, {})  # type: ignore[assignment]
        self.local_parameters = TransportParameters()
        self.expected_id: EndpointId | None = None
        self.secrets: dict[tls.Direction, TrafficSecret] = {}
        self.remote_parameters: TransportParameters | None = None
        self.authenticated_packets = 0
        self.authenticated_handshake_packets = 0
        self._work = HandshakeWork(is_client=self._is_client)
        self._sent: dict[tls.Epoch, set[int]] = {epoch: set() for epoch in tls.Epoch}

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls = RawPublicKeyContext.adopt(self.tls, self.expected_id)
        self._crypto_buffers = _Buffers()
        self.tls.handshake_extensions = [
            *certificate_type_extensions(self._is_client),
            *self.tls.handshake_extensions,
        ]

    def _alpn_handler(self, alpn_protocol: str) -> None:
        super()._alpn_handler(alpn_protocol)
        assert self.tls.received_extensions is not None
        check_certificate_types(
            [(int(kind), bytes(body)) for kind, body in self.tls.received_extensions],
            is_client=self._is_client,
        )

    def dismantle(self) -> None:
        """Free everything; the object is not used again.

        Its parts refer to each other. Left to the garbage collector, they would make it run more often,
        each time over all connections of the process.
        """
        if (engine := vars(self).get("tls")) is not None:
            vars(engine).clear()
        vars(self).clear()

    def _serialize_transport_parameters(self) -> bytes:
        local = self.local_parameters
        local.initial_source_cid = self._local_initial_source_connection_id
        if not self._is_client:
            local.original_destination_cid = self._original_destination_connection_id
            local.retry_source_cid = self._retry_source_connection_id
            local.stateless_reset_token = self._host_cids[0].stateless_reset_token
        return local.encode()

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        try:
            self.remote_parameters = parameters.decode(data)
        except TransportError as exc:
            raise QuicConnectionError(exc.error_code, codes.CRYPTO, exc.reason) from exc
        super()._parse_transport_parameters(data, from_session_ticket)

    def _update_traffic_key(
        self,
        direction: tls.Direction,
        epoch: tls.Epoch,
        cipher_suite: tls.CipherSuite,
        secret: bytes,
    ) -> None:
        if epoch != tls.Epoch.ONE_RTT:
            super()._update_traffic_key(direction, epoch, cipher_suite, secret)
            return
        self.secrets[direction] = TrafficSecret(cipher_suite, secret)
        if self._configuration.secrets_log_file is not None:
            # It writes the log, and derives keys that nobody needs.
            super()._update_traffic_key(direction, epoch, cipher_suite, secret)
            # Leave nothing here that could encrypt: the 1-RTT space belongs to other code.
            self._cryptos[tls.Epoch.ONE_RTT] = CryptoPair()

    def _confirm_handshake(self) -> None:
        assert isinstance(self.tls, RawPublicKeyContext)
        if not self._is_client and self.tls.peer_id is None:
            code = codes.CRYPTO_ERROR + int(AlertCertificateRequired.description)
            raise QuicConnectionError(code, codes.CRYPTO, "the client proved no key")
        super()._confirm_handshake()

    def _replenish_connection_ids(self) -> None:
        """Leave connection ids to the owner of the 1-RTT space."""

    def _write_application(self, *args: object, **kwargs: object) -> None:
        """Leave 1-RTT packets to their owner."""

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        self._work.charge(plain)
        result = super()._payload_received(context, plain, crypto_frame_required)
        self.authenticated_packets += 1
        if context.epoch == tls.Epoch.HANDSHAKE:
            self.authenticated_handshake_packets += 1
        return result

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        datagrams = super().datagrams_to_send(now)
        for epoch, space in self._spaces.items():
            self._sent[epoch].update(space.sent_packets)
        return datagrams

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """Refuse acknowledgements of what was never sent; aioquic takes all that lies below for lost.

        Both spaces count with one counter, so each has gaps that show who claims everything.
        """
        at = buf.tell()
        sent = self._sent[context.epoch]
        try:
            ranges = list(pull_ack_frame(buf)[0])
        except ValueError:
            ranges = []  # aioquic says what is wrong with it
        for each in ranges:
            if len(each) > len(sent) or not sent.issuperset(each):
                raise QuicConnectionError(
                    codes.PROTOCOL_VIOLATION, frame_type, "an unsent packet was acknowledged"
                )
        buf.seek(at)
        super()._handle_ack_frame(context, frame_type, buf)

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        at = buf.tell()
        check_crypto(buf.pull_uint_var(), buf.pull_uint_var())
        buf.seek(at)
        super()._handle_crypto_frame(context, frame_type, buf)
        check_gaps(len(self._crypto_streams[context.epoch].receiver._ranges))


def split_datagram(datagram: bytes) -> tuple[bytes, bytes]:
    """Split a datagram into its long-header packets and the short-header packet behind them.

    Returns:
        (the datagram with the short packet, if any, replaced by padding, so that its size still
        counts; the short packet or nothing). A malformed datagram counts as long.
    """
    buffer = Buffer(data=datagram)
    for _ in range(MAX_COALESCED_PACKETS):
        start = buffer.tell()
        if buffer.eof():
            return datagram, b""
        if not datagram[start] & 0x80:
            if not datagram[start] & 0x40:
                break
            return datagram[:start] + bytes(len(datagram) - start), datagram[start:]
        try:
            header = pull_quic_header(buffer, host_cid_length=codes.CID_LENGTH)
        except ValueError:
            break
        buffer.seek(start + header.packet_length)
    else:
        start = buffer.tell()
        return datagram[:start] + bytes(len(datagram) - start), b""
    return datagram, b""
