"""The handshake of one connection: from the first datagram to the keys of 1-RTT.

The `machine` deals with what is in the packets; where they come from and go to is decided here. The
machine is given one symbolic address for all datagrams, because aioquic does not know the rules by which
the real address of a path is chosen (docs/wire/quic.md 6.2 and 3.7).

Sources: RFC 9000 sections 7 and 8, docs/wire/quic.md 6.2.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO

import attrs
from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.asymmetric import ed25519

from dialkey import limits
from dialkey.identity import EndpointId, SecretKey
from dialkey.quic import codes
from dialkey.quic.handshake.machine import Machine, TrafficSecret, split_datagram
from dialkey.quic.handshake.parameters import TransportParameters
from dialkey.quic.handshake.routes import Routes
from dialkey.quic.handshake.tls import CIPHER_SUITES, RawPublicKey, RawPublicKeyContext
from dialkey.quic.paths.amplification import Room
from dialkey.quic.paths.path import Address
from dialkey.quic.paths.recovery import MAX_PTO_STEP_S
from dialkey.quic.qlog import Qlog, Trace

if TYPE_CHECKING:
    from dialkey.quic.config import Send

_ADDRESS: Final = "path 0"
_NEVER_S: Final = 1e6
"""Idle and total deadlines are kept by the owner of the handshake, not by aioquic."""


class Received(NamedTuple):
    """What became of a datagram.

    Attributes:
        is_authentic: whether any of its packets was.
        short_packet: the 1-RTT packet at its end, or nothing.
    """

    is_authentic: bool
    short_packet: bytes


@attrs.frozen
class HandshakeFailure:
    """Why the handshake ended: the numbers of the CONNECTION_CLOSE, and who sent it."""

    error_code: int
    reason: str
    by_peer: bool


class Handshake:
    """Drive one handshake: datagrams in, datagrams out, `now` passed in.

    The owner reads `send_secret` and `recv_secret` as soon as they are there, and drops the object
    when `confirmed` and nothing is left to send.

    Attributes:
        remote: where its datagrams go, as far as is known; a client that is heard over several
            addresses has several.
        doubtful_room: how much may be sent to the address chosen by such a client until path 0 has
            validated it; None when there is nothing to validate.
        bytes_sent: in whole datagrams.
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
        remote: Address,
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
            machine = Machine(configuration)
        else:
            machine = Machine(
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
        self.remote = remote
        self.doubtful_room: Room | None = None
        self.bytes_sent = 0
        self._is_remote_fixed = False
        self._routes = None if is_client else Routes(remote)
        # 1-RTT packets that overtook the handshake, and where they came from.
        self._early: list[tuple[bytes, Address]] = []

    # --- driving it -----------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin as the client."""
        self._machine.connect(_ADDRESS, now)

    def receive(self, datagram: bytes, remote: Address, now: float) -> Received:
        """Process a datagram that begins with a long header; look at `failure` afterwards."""
        if not self._comes_by_a_way_of_ours(remote, len(datagram)):
            return Received(is_authentic=False, short_packet=b"")
        long_part, short_packet = split_datagram(datagram)
        machine = self._machine
        before = machine.authenticated_packets
        machine.receive_datagram(long_part, _ADDRESS, now)
        is_authentic = machine.authenticated_packets > before
        if is_authentic and self.is_client and not self._is_remote_fixed:
            # Even if it reports a failure: the owner wants to know who sent it.
            self.remote = remote
            self._is_remote_fixed = self.heard_handshake_packet
        if self.failure is not None:
            return Received(is_authentic, short_packet=b"")
        if is_authentic and self._routes is not None and self.heard_handshake_packet:
            # Our answer got there, and by this way the client goes on: it is path 0. If there
            # were others it may have got there by another, and this address may be forged.
            self.remote = remote
            rooms = self._routes.rooms()
            self.doubtful_room = rooms[remote] if len(rooms) > 1 else None
            self._routes = None
        return Received(is_authentic, short_packet)

    def _comes_by_a_way_of_ours(self, remote: Address, size: int) -> bool:
        if self.is_client:
            return not self._is_remote_fixed or remote == self.remote
        if self._routes is not None:
            return self._routes.heard(remote, size)
        if remote != self.remote:
            return False
        if self.doubtful_room is not None:
            self.doubtful_room.heard(size)
        return True

    def hold_early(self, data: memoryview, segment: int, remote: Address) -> None:
        """Keep 1-RTT packets that overtook the handshake, while there is room for them."""
        held = sum(len(each) for each, _ in self._early)
        for at in range(0, len(data), segment):
            packet = bytes(data[at : at + segment])
            # A packet of one byte costs as much as one of a hundred.
            held += max(len(packet), 100)
            if held > limits.MAX_EARLY_SHORT_BYTES:
                break
            self._early.append((packet, remote))

    def take_early(self) -> list[tuple[bytes, Address]]:
        """Return the packets that `hold_early` kept, and forget them."""
        early, self._early = self._early, []
        return early

    def send(self, now: float, send: Send) -> None:
        """Send the datagrams that are due, over every route that they may take."""

        def emit(remote: Address, datagram: bytes) -> None:
            self.bytes_sent += len(datagram)
            send(remote, datagram, len(datagram))

        datagrams = self.transmit(now)
        if self._routes is not None:
            self._routes.send(datagrams, emit)
            return
        for datagram in datagrams:
            if self.doubtful_room is None or self.doubtful_room.take(len(datagram)):
                emit(self.remote, datagram)

    def last_words(self, now: float) -> list[tuple[Address, bytes, Room | None]]:
        """Return the closing datagrams, their destinations, and how much may be sent to each."""
        rooms: Mapping[Address, Room | None] = (
            {self.remote: self.doubtful_room} if self._routes is None else self._routes.rooms()
        )
        return [
            (remote, datagram, room)
            for datagram in self.transmit(now)
            for remote, room in rooms.items()
        ]

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
        # Unlimited doubling would leave a dial through a lossy network only five tries in 20 s.
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

    def dismantle(self) -> None:
        """Free everything; the object is not used again."""
        self._machine.dismantle()

    # --- what is known --------------------------------------------------------------------------

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
        """Return why it failed, or None if it has not."""
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
