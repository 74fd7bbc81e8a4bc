"""The start of a connection: from the first datagram to the keys of 1-RTT, and path 0.

Where datagrams of the handshake come from and go to is decided here; what is in them is `handshake`'s
business.

Sources: RFC 9000 sections 7 and 8, wire/quic.md 6.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey import limits
from dialkey.quic import close, codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.config import Send, State
from dialkey.quic.events import CloseReason
from dialkey.quic.handshake.machine import Handshake, split_datagram
from dialkey.quic.packets import reader
from dialkey.quic.packets.protection import PacketProtection
from dialkey.quic.paths import multipath
from dialkey.quic.paths.path import Address, LocalCid, PathCids, PeerCid

if TYPE_CHECKING:
    from dialkey.quic.connection import Connection


def receive_long(c: Connection, datagram: bytes, remote: Address, now: float) -> None:
    """Process a datagram that begins with a long header."""
    handshake = c.handshake
    if handshake is None:
        return
    if c.is_client:
        if c.remote_fixed and remote != c.remote:
            return
    elif c.routes is not None:
        if not c.routes.heard(remote, len(datagram)):
            return
    elif remote != c.remote:
        return
    elif c.doubtful_room is not None:
        c.doubtful_room.heard(len(datagram))
    long_part, short_part = split_datagram(datagram)
    if datagram[0] & 0x80:
        authentic = handshake.receive(long_part, now)
        if authentic and c.is_client and not c.remote_fixed:
            # Also when it brings bad news: the owner wants to know who said so.
            c.remote = remote
            c.remote_fixed = handshake.heard_handshake_packet
        failure = handshake.failure
        if failure is not None:
            cause = "peer" if failure.by_peer else "protocol"
            close.end(
                c,
                CloseReason(
                    cause,
                    failure.error_code,
                    failure.reason.encode("utf-8", "replace"),
                    during_handshake=True,
                ),
                State.DRAINING if failure.by_peer else State.CLOSING,
                now,
            )
            return
        if authentic:
            c.heard(now)
            if c.routes is not None and handshake.heard_handshake_packet:
                # Our answer got there, and by this way the client goes on: it is path 0. If there
                # were others it may have got there by another, and this address may be forged.
                c.remote = remote
                c.doubtful_room = c.routes.rooms()[remote] if len(c.routes.rooms()) > 1 else None
                c.routes = None
        if c.protection is None and handshake.complete:
            _install_keys(c, handshake, now)
    if short_part:
        receive_short(c, memoryview(short_part), len(short_part), remote, now)


def receive_short(
    c: Connection, data: memoryview, segment: int, remote: Address, now: float
) -> None:
    """Process 1-RTT packets, or keep those that overtook the handshake."""
    if c.protection is None:
        held = sum(len(each) for each, _ in c.early_short)
        for at in range(0, len(data), segment):
            packet = bytes(data[at : at + segment])
            # A packet of one byte costs as much as one of a hundred.
            held += max(len(packet), 100)
            if held > limits.MAX_EARLY_SHORT_BYTES:
                break
            c.early_short.append((packet, remote))
        return
    reader.receive_packets(c, data, segment, remote, now)


def _install_keys(c: Connection, handshake: Handshake, now: float) -> None:
    """Begin the life after the handshake: keys, limits, path 0."""
    send, recv = handshake.send_secret, handshake.recv_secret
    assert send is not None
    assert recv is not None
    c.protection = PacketProtection(send, recv)
    c.peer_id = handshake.peer_id
    c.alpn = handshake.alpn
    if len(handshake.peer_cid) != codes.CID_LENGTH:
        raise TransportError(codes.PROTOCOL_VIOLATION, "connection ids must have 8 bytes")
    peer = c.peer_parameters = handshake.peer_parameters
    if peer.max_idle_timeout_ms:
        c.idle_timeout_s = min(c.idle_timeout_s, peer.max_idle_timeout_ms / 1000)
    c.peer_max_data = peer.initial_max_data
    c.bidi.peer_allows = peer.initial_max_streams_bidi
    c.uni.peer_allows = peer.initial_max_streams_uni
    token = peer.stateless_reset_token
    cids = c.cid_sets[0] = PathCids(0, PeerCid(0, handshake.peer_cid, token))
    cids.local.append(LocalCid(0, c.host_cid, c.config.reset_token(c.host_cid)))
    cids.next_sequence = 1
    path = c.new_path(cids, c.remote, validated=True, initial_rtt=handshake.rtt_sample_s)
    if c.doubtful_room is not None:
        path.doubt(c.doubtful_room, now)
    path.last_received = path.last_activity = now
    c.paths[0] = path
    if c.config.multipath and peer.initial_max_path_id is not None:
        local_max = multipath.MAX_CONCURRENT_PATHS - 1
        c.multipath = multipath.Multipath(local_max, peer.initial_max_path_id)
    c.state = State.OPEN
    c.deadline = now + c.idle_timeout_s
    c.events.append(events.HandshakeCompleted())
    c.publish_reset_token(cids)
    c.issue_cids(cids)
    if c.multipath is not None:
        multipath.issue_cids(c)
    if not c.is_client:
        c.confirmed = True
        c.control.append((codes.HANDSHAKE_DONE,))
    early, c.early_short = c.early_short, []
    for datagram, remote in early:
        reader.receive_packets(c, memoryview(datagram), len(datagram), remote, now)


def send_handshake(c: Connection, datagrams: list[bytes], send: Send) -> None:
    """Send datagrams of the handshake, over every way that it may take."""

    def emit(remote: Address, datagram: bytes) -> None:
        c.bytes_sent += len(datagram)
        send(remote, datagram, len(datagram))

    if c.routes is not None:
        c.routes.send(datagrams, emit)
    else:
        for datagram in datagrams:
            if c.doubtful_room is None or c.doubtful_room.take(len(datagram)):
                emit(c.remote, datagram)
