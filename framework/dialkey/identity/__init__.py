"""Who an endpoint is and where it may be reached: keys, addresses, tickets and their encodings.

All of this is values and pure functions; only `SecretKey.load`, `save` and `load_or_create` touch a
disk. Malformed text raises `InvalidKey`, `InvalidAddress` or `InvalidTicket`, malformed bytes met
while decoding raise `WireError`.
"""

from __future__ import annotations

from dialkey.identity import base32, postcard
from dialkey.identity.addresses import (
    CustomAddr,
    EndpointAddr,
    IpAddr,
    RelayAddr,
    TransportAddr,
    read_relay_url,
    read_socket_addr,
    read_transport_addr,
    write_relay_url,
    write_socket_addr,
    write_transport_addr,
)
from dialkey.identity.keys import EndpointId, InvalidSignature, SecretKey, Signature
from dialkey.identity.relay_access import RelayAccess
from dialkey.identity.relay_url import RelayUrl
from dialkey.identity.remote import HasAddr, Remote, parse_remote
from dialkey.identity.tickets import (
    EndpointTicket,
    Ticket,
    compact_ticket,
    decode_ticket,
    encode_ticket,
    read_ticket_version,
    reading_ticket,
    ticket_kind,
)

__all__ = [
    "CustomAddr",
    "EndpointAddr",
    "EndpointId",
    "EndpointTicket",
    "HasAddr",
    "InvalidSignature",
    "IpAddr",
    "RelayAccess",
    "RelayAddr",
    "RelayUrl",
    "Remote",
    "SecretKey",
    "Signature",
    "Ticket",
    "TransportAddr",
    "base32",
    "compact_ticket",
    "decode_ticket",
    "encode_ticket",
    "parse_remote",
    "postcard",
    "read_relay_url",
    "read_socket_addr",
    "read_ticket_version",
    "read_transport_addr",
    "reading_ticket",
    "ticket_kind",
    "write_relay_url",
    "write_socket_addr",
    "write_transport_addr",
]
