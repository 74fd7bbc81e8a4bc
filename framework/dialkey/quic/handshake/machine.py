"""The handshake of one connection: Initial and Handshake packets, TLS, transport parameters.

aioquic does this part. Its connection object is run until the keys for 1-RTT packets exist, those are
taken from it before it could use them, and everything after that is `dialkey.quic.connection`. So each
packet-number space has exactly one owner, and a nonce is never used twice. When the handshake is
confirmed the whole object is dropped, with its memory.

aioquic gets one symbolic address for all datagrams: which address a path really has is decided in
`dialkey.quic.path`, by rules that aioquic does not know (wire/quic.md sections 6.2 and 8.4).
"""

from __future__ import annotations

import logging
import ssl
from typing import Any, TextIO

import attrs
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionError, QuicReceiveContext
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import pull_quic_header
from cryptography.hazmat.primitives.asymmetric import ed25519

from dialkey import limits
from dialkey.identity import EndpointId, SecretKey
from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.handshake import parameters
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.handshake.tls import (
    CIPHER_SUITES,
    AlertCertificateRequired,
    RawPublicKey,
    RawPublicKeyContext,
    certificate_type_extensions,
    check_certificate_types,
)
from dialkey.quic.handshake.work import HandshakeWork, check_crypto
from dialkey.quic.paths.recovery import MAX_PTO_STEP_S
from dialkey.quic.qlog import Qlog, Trace

# aioquic warns on its own logger, which prints to stderr in a program that configures no logging.
logging.getLogger("quic").addHandler(logging.NullHandler())

logger = logging.getLogger("dialkey.quic")

_ADDRESS = "path 0"
MAX_COALESCED_PACKETS = 8
"""Long-header packets in one datagram that are looked at; three is what peers send, one per level."""
_NEVER_S = 1e6
"""Idle and total deadlines are kept by the owner of the handshake, not by aioquic."""


@attrs.frozen
class TrafficSecret:
    """What 1-RTT keys of one direction are derived from."""

    cipher_suite: tls.CipherSuite
    secret: bytes = attrs.field(repr=False)


@attrs.frozen
class HandshakeFailure:
    """Why the handshake ended: the numbers of the CONNECTION_CLOSE, and who sent it."""

    error_code: int
    reason: str
    by_peer: bool


class _MachineLog(logging.LoggerAdapter[logging.Logger]):
    """aioquic warns of what strangers send; here that is nothing to wake anybody for."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(logging.DEBUG, msg, *args, **kwargs)


class _Machine(QuicConnection):
    """aioquic's connection, reduced to the handshake and taught raw public keys."""

    def __init__(self, owner: Handshake, configuration: QuicConfiguration, **kwargs: Any) -> None:
        super().__init__(configuration=configuration, **kwargs)
        self._logger = _MachineLog(logger, {})  # type: ignore[assignment]
        self.owner = owner
        self.local_parameters = TransportParameters()
        self.expected_id: EndpointId | None = None
        self.secrets: dict[tls.Direction, TrafficSecret] = {}
        self.remote_parameters: TransportParameters | None = None
        self.authenticated_packets = 0
        self.authenticated_handshake_packets = 0
        self._work = HandshakeWork(is_client=self._is_client)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls = RawPublicKeyContext.adopt(self.tls, self.expected_id)
        # What we send is short; aioquic sets 48 KiB aside for it.
        for epoch in self._crypto_buffers:
            self._crypto_buffers[epoch] = Buffer(capacity=limits.MAX_TLS_MESSAGE_BYTES)
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
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)
        if epoch == tls.Epoch.ONE_RTT:
            self.secrets[direction] = TrafficSecret(cipher_suite, secret)
            # Leave nothing here that could encrypt: the 1-RTT space has another owner.
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

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        at = buf.tell()
        check_crypto(buf.pull_uint_var(), buf.pull_uint_var())
        buf.seek(at)
        super()._handle_crypto_frame(context, frame_type, buf)


class Handshake:
    """Drive one handshake: datagrams in, datagrams out, `now` passed in.

    The owner reads `send_secret` and `recv_secret` as soon as they are there, and drops the object
    when `confirmed` and nothing is left to send.
    """

    def __init__(
        self,
        *,
        secret_key: SecretKey,
        alpns: list[str],
        local_parameters: TransportParameters,
        expected_id: EndpointId | None = None,
        is_client: bool,
        host_cid: bytes,
        reset_token: bytes,
        original_destination_cid: bytes | None = None,
        retry_source_cid: bytes | None = None,
        initial_rtt_s: float = 0.333,
        qlog: Qlog | None = None,
        secrets_log_file: TextIO | None = None,
    ) -> None:
        key: ed25519.Ed25519PrivateKey = secret_key.signing_key()
        configuration = QuicConfiguration(
            is_client=is_client,
            alpn_protocols=alpns,
            cipher_suites=CIPHER_SUITES,
            connection_id_length=codes.CID_LENGTH,
            idle_timeout=_NEVER_S,
            initial_rtt=initial_rtt_s,
            max_datagram_size=1200,
            quic_logger=qlog,
            secrets_log_file=secrets_log_file,
            supported_versions=[1],
            verify_mode=ssl.CERT_NONE,
        )
        configuration.certificate = RawPublicKey(key.public_key())
        configuration.private_key = key
        if is_client:
            machine = _Machine(self, configuration)
        else:
            machine = _Machine(
                self,
                configuration,
                original_destination_connection_id=original_destination_cid,
                retry_source_connection_id=retry_source_cid,
            )
        machine.expected_id = expected_id
        machine.local_parameters = local_parameters
        machine.host_cid = host_cid
        machine._host_cids[0].cid = host_cid
        machine._host_cids[0].stateless_reset_token = reset_token
        machine._local_initial_source_connection_id = host_cid
        self._machine = machine
        self.is_client = is_client

    # --- driving it -----------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin as the client."""
        self._machine.connect(_ADDRESS, now)

    def receive(self, datagram: bytes, now: float) -> int:
        """Process the long-header packets of a datagram; return how many were authentic."""
        before = self._machine.authenticated_packets
        self._machine.receive_datagram(datagram, _ADDRESS, now)
        return self._machine.authenticated_packets - before

    def transmit(self, now: float) -> list[bytes]:
        """Return the datagrams that are to be sent now."""
        if not self._machine._network_paths:
            # A server whose client's first datagram could not be used.
            return []
        return [data for data, _ in self._machine.datagrams_to_send(now)]

    def timer(self) -> float | None:
        """Return when `handle_timer` wants to be called."""
        return self._machine.get_timer() if self._machine._close_at is not None else None

    def handle_timer(self, now: float) -> None:
        self._machine.handle_timer(now)
        # Doubling without end would leave a dial through a lossy network with five tries in 20 s.
        loss = self._machine._loss
        while loss._pto_count and loss.get_probe_timeout() * 2**loss._pto_count > MAX_PTO_STEP_S:
            loss._pto_count -= 1

    def confirm(self) -> None:
        """Note that the server has confirmed (HANDSHAKE_DONE): drop the Handshake keys."""
        if not self._machine._handshake_confirmed:
            self._machine._confirm_handshake()

    def close(self, error_code: int, reason: str, *, is_application: bool) -> None:
        """Queue a CONNECTION_CLOSE in Initial and Handshake packets."""
        frame_type = None if is_application else 0
        self._machine.close(error_code=error_code, frame_type=frame_type, reason_phrase=reason)

    # --- what it knows --------------------------------------------------------------------------

    @property
    def send_secret(self) -> TrafficSecret | None:
        return self._machine.secrets.get(tls.Direction.ENCRYPT)

    @property
    def recv_secret(self) -> TrafficSecret | None:
        return self._machine.secrets.get(tls.Direction.DECRYPT)

    @property
    def complete(self) -> bool:
        return self._machine._handshake_complete and self.failure is None

    @property
    def confirmed(self) -> bool:
        return self._machine._handshake_confirmed

    @property
    def failure(self) -> HandshakeFailure | None:
        """Return why it failed, or None while it has not."""
        event = self._machine._close_event
        if event is None:
            return None
        by_peer = self._machine._state.name == "DRAINING"
        return HandshakeFailure(event.error_code, event.reason_phrase, by_peer)

    @property
    def peer_id(self) -> EndpointId | None:
        context = getattr(self._machine, "tls", None)
        return context.peer_id if isinstance(context, RawPublicKeyContext) else None

    @property
    def alpn(self) -> bytes:
        return (self._machine.tls.alpn_negotiated or "").encode("ascii")

    @property
    def peer_parameters(self) -> TransportParameters:
        assert self._machine.remote_parameters is not None
        return self._machine.remote_parameters

    @property
    def peer_cid(self) -> bytes:
        return self._machine._peer_cid.cid

    @property
    def original_destination_cid(self) -> bytes:
        return self._machine.original_destination_connection_id

    @property
    def heard_peer(self) -> bool:
        """Whether any packet of the peer was authentic."""
        return self._machine.authenticated_packets > 0

    @property
    def heard_handshake_packet(self) -> bool:
        """Whether a Handshake packet was authentic: from then on the address is fixed."""
        return self._machine.authenticated_handshake_packets > 0

    @property
    def rtt_sample_s(self) -> float | None:
        """Return the smoothed round-trip time of the handshake, if one was measured."""
        loss = self._machine._loss
        return loss._rtt_smoothed if loss._rtt_initialized else None

    @property
    def trace(self) -> Trace | None:
        """Return the qlog trace, if one is written."""
        trace = self._machine._quic_logger
        return trace if isinstance(trace, Trace) else None

    @property
    def key_log_id(self) -> bytes:
        """Return the client random, which names the connection in a key log."""
        return self._machine.tls.client_random or b""


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
