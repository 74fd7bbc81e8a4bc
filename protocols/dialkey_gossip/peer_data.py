"""Where a peer is, as members tell each other: at most one relay and some socket addresses.

This is hearsay about third parties. A wrong address costs a failed dial and nothing else, because the
dial demands the key.

Source: docs/wire/gossip.md 4.
"""

from __future__ import annotations

from dialkey.errors import WireError
from dialkey.identity import (
    EndpointAddr,
    EndpointId,
    RelayAddr,
    TransportAddr,
    read_relay_url,
    read_socket_addr,
    write_relay_url,
    write_socket_addr,
)
from dialkey.identity.postcard import Reader, Writer
from dialkey.limits import MAX_GOSSIP_OWN_DATA_BYTES, MAX_GOSSIP_PEER_ADDRESSES

__all__ = ["decode_peer_data", "encode_peer_data", "peer_data_or_none"]

_MIN_SOCKET_ADDR_BYTES = 6


def encode_peer_data(addr: EndpointAddr, limit: int = MAX_GOSSIP_OWN_DATA_BYTES) -> bytes:
    """Encode the first relay and the socket addresses of an endpoint.

    Addresses of custom transports are not included. Socket addresses that do not fit are left out, the
    last first; then the relay, if even that does not fit.

    Args:
        addr: the endpoint.
        limit: the longest encoding, in bytes.
    """
    relay = next(iter(addr.relay_urls), None)
    direct = addr.ip_addrs[:MAX_GOSSIP_PEER_ADDRESSES]
    while True:
        writer = Writer().option(relay is not None)
        if relay is not None:
            write_relay_url(writer, relay)
        writer.varint(len(direct))
        for ip_addr in direct:
            write_socket_addr(writer, ip_addr)
        if len(writer) <= limit or (relay is None and not direct):
            return bytes(writer)
        if direct:
            direct = direct[:-1]
        else:
            relay = None


def decode_peer_data(peer: EndpointId, data: bytes) -> EndpointAddr:
    """Decode what somebody said about where a peer is.

    Trailing bytes are ignored, and so are addresses beyond `limits.MAX_GOSSIP_PEER_ADDRESSES`.

    Raises:
        WireError: the bytes are something else.
    """
    reader = Reader(data)
    addrs: list[TransportAddr] = []
    if reader.option():
        addrs.append(RelayAddr(read_relay_url(reader)))
    count = reader.count(reader.remaining // _MIN_SOCKET_ADDR_BYTES)
    for _ in range(min(count, MAX_GOSSIP_PEER_ADDRESSES)):
        addrs.append(read_socket_addr(reader))
    return EndpointAddr(peer, addrs)


def peer_data_or_none(peer: EndpointId, data: bytes) -> EndpointAddr | None:
    """Decode as `decode_peer_data` does, or return None for what cannot be read."""
    try:
        return decode_peer_data(peer, data)
    except WireError:
        return None
