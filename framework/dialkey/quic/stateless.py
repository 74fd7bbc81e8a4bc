"""Packets sent without a connection: version negotiation, Retry, refusals, stateless resets.

Sources: RFC 9000 sections 6, 8.1.2, 10.3 and 17.2.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import attrs
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dialkey.quic import codes
from dialkey.quic.packets.frames import varint

VERSION_1 = 1
MIN_INITIAL_BYTES = 1200
RETRY_LIFETIME_S = 30.0
"""A client returns its token at once, and goes on repeating it for as long as its dial lasts."""
_MIN_RESET_BYTES = 21
_NONCE_BYTES = 12
_ADDRESS_BYTES = 16


@attrs.frozen
class InitialHeader:
    """What the header of a client's first datagram says in the clear."""

    version: int
    destination_cid: bytes
    source_cid: bytes
    token: bytes = attrs.field(repr=False)
    is_initial: bool


def parse_long_header(datagram: bytes) -> InitialHeader | None:
    """Read the header of a long-header datagram; None if it is malformed or of no use."""
    try:
        header = pull_quic_header(Buffer(data=datagram), host_cid_length=codes.CID_LENGTH)
    except ValueError:
        return _parse_invariant(datagram)
    if header.version is None or header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
        return None
    return InitialHeader(
        header.version,
        header.destination_cid,
        header.source_cid,
        header.token,
        header.version == VERSION_1 and header.packet_type == QuicPacketType.INITIAL,
    )


def _parse_invariant(datagram: bytes) -> InitialHeader | None:
    """Read the fields that are the same in every version of QUIC (RFC 8999), for version negotiation."""
    if len(datagram) < 7:
        return None
    version = int.from_bytes(datagram[1:5], "big")
    if version in (0, VERSION_1):
        return None
    end = 6 + datagram[5]
    if datagram[5] > 20 or end >= len(datagram) or datagram[end] > 20:
        return None
    source_end = end + 1 + datagram[end]
    if source_end > len(datagram):
        return None
    return InitialHeader(version, datagram[6:end], datagram[end + 1 : source_end], b"", False)


def have_one_destination(data: memoryview, segment: int) -> bool:
    """Whether all datagrams of a batch have short headers with the connection id of the first.

    Compared by column: in bulk transfers this is called for every datagram that arrives.
    """
    cid = bytes(data[1 : 1 + codes.CID_LENGTH])
    count, rest = divmod(len(data), segment)
    stop = count * segment
    if max(data[0:stop:segment].tobytes(), default=0x80) & 0x80:
        return False
    for i in range(codes.CID_LENGTH):
        if data[1 + i : stop : segment].tobytes() != cid[i : i + 1] * count:
            return False
    # The last datagram may be shorter.
    last = bytes(data[stop : stop + 1 + codes.CID_LENGTH])
    return not rest or (last[1:] == cid and not last[0] & 0x80)


def destination_cid(datagram: memoryview) -> bytes:
    """Return the destination connection id of a long-header datagram; empty if it is cut off."""
    if len(datagram) < 6:
        return b""
    return bytes(datagram[6 : 6 + datagram[5]])


def version_negotiation(header: InitialHeader) -> bytes:
    """Return the answer to a version that we do not speak."""
    return encode_quic_version_negotiation(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        supported_versions=[VERSION_1],
    )


def refusal(header: InitialHeader, error_code: int, reason: bytes) -> bytes:
    """Return an Initial packet that closes the connection before anything was spent on it."""
    pair = CryptoPair()
    pair.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        peer_cid=header.source_cid,
        version=header.version,
        is_client=False,
        max_datagram_size=MIN_INITIAL_BYTES,
    )
    builder.start_packet(QuicPacketType.INITIAL, pair)
    body = varint(error_code) + varint(0) + varint(len(reason)) + reason
    buffer = builder.start_frame(codes.CONNECTION_CLOSE, capacity=1 + len(body))
    buffer.push_bytes(body)
    datagrams, _ = builder.flush()
    return b"".join(datagrams)


@attrs.frozen
class Proof:
    """What a Retry token says.

    Attributes:
        original_cid: the destination id of the client's very first datagram.
        is_for_address: whether it was given to this address recently; if so, the client receives
            there. A dial over several addresses returns its one token over all of them.
    """

    original_cid: bytes
    is_for_address: bool


class Retry:
    """Makes and checks the tokens by which a client proves its address.

    A token contains the address, the client's first destination id, the one that the Retry gave it, and
    the time. Only we can read it. It is valid for as long as a dial lasts.

    Args:
        random_bytes: returns that many unpredictable bytes.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._cipher = AESGCM(random_bytes(16))

    def packet(self, header: InitialHeader, address: bytes, new_cid: bytes, now: float) -> bytes:
        """Return a Retry packet.

        Args:
            address: the client's, in any form that is always the same for the same address.
        """
        digest = hashlib.blake2b(address, digest_size=_ADDRESS_BYTES).digest()
        nonce = self._random_bytes(_NONCE_BYTES)
        inside = b"".join((int(now * 1000).to_bytes(8, "big"), digest, header.destination_cid))
        token = nonce + self._cipher.encrypt(nonce, inside, new_cid)
        return encode_quic_retry(
            version=header.version,
            source_cid=new_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )

    def check(self, header: InitialHeader, address: bytes, now: float) -> Proof | None:
        """Return what a token proves; None if it is not ours, or was given under another id."""
        token = header.token
        if len(token) < _NONCE_BYTES + 16:
            return None
        try:
            inside = self._cipher.decrypt(
                token[:_NONCE_BYTES], token[_NONCE_BYTES:], header.destination_cid
            )
        except InvalidTag:
            return None
        age_s = now - int.from_bytes(inside[:8], "big") / 1000
        digest = hashlib.blake2b(address, digest_size=_ADDRESS_BYTES).digest()
        same = hmac.compare_digest(inside[8 : 8 + _ADDRESS_BYTES], digest)
        return Proof(inside[8 + _ADDRESS_BYTES :], same and age_s <= RETRY_LIFETIME_S)


def stateless_reset(
    token: bytes, trigger_bytes: int, random_bytes: Callable[[int], bytes]
) -> bytes | None:
    """Return a stateless reset, shorter than what triggered it; None if that is impossible."""
    size = min(trigger_bytes - 1, 43)
    if size < _MIN_RESET_BYTES:
        return None
    head = random_bytes(size - codes.RESET_TOKEN_LENGTH)
    return bytes((0x40 | head[0] & 0x3F,)) + head[1:] + token
