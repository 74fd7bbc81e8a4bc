"""Blob tickets: an endpoint and a blob that it offers, as one word.

Source: docs/wire/blobs.md 7.1, docs/wire/discovery.md 4.3.
"""

from __future__ import annotations

from typing import ClassVar, Self

import attrs

from dialkey.errors import InvalidTicket, WireError
from dialkey.identity import (
    EndpointAddr,
    EndpointId,
    RelayAddr,
    Ticket,
    TransportAddr,
    postcard,
    read_relay_url,
    read_socket_addr,
    read_ticket_version,
    write_relay_url,
    write_socket_addr,
)
from dialkey.limits import MAX_TICKET_ADDRESSES
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat

__all__ = ["BlobTicket"]


@attrs.frozen
class BlobTicket(Ticket):
    """A ticket that names an endpoint and a blob, or a hash sequence with its children.

    The text carries the first relay and the socket addresses of the endpoint; further relays and
    custom addresses, which the format has no place for, are dropped when the ticket is made.
    Bytes after the payload are ignored, as in iroh.

    Args:
        addr: the endpoint that offers it.
        hash: the blob.
        format: whether it is a single blob or a hash sequence.

    Raises:
        InvalidTicket: there are more addresses than a ticket may have.
    """

    KIND: ClassVar[str] = "blob"

    addr: EndpointAddr
    hash: Hash
    format: BlobFormat = BlobFormat.RAW

    def __attrs_post_init__(self) -> None:
        if len(self.addr.ip_addrs) > MAX_TICKET_ADDRESSES:
            raise InvalidTicket(f"a ticket has at most {MAX_TICKET_ADDRESSES} socket addresses")
        relays = tuple(RelayAddr(url) for url in self.addr.relay_urls[:1])
        kept = EndpointAddr(self.addr.id, (*relays, *self.addr.ip_addrs))
        object.__setattr__(self, "addr", kept)
        super().__attrs_post_init__()

    @property
    def content(self) -> HashAndFormat:
        """The blob and its format."""
        return HashAndFormat(self.hash, self.format)

    @classmethod
    def read(cls, reader: postcard.Reader) -> Self:
        """Read the payload."""
        read_ticket_version(reader)
        endpoint_id = EndpointId.read(reader)
        addrs: list[TransportAddr] = []
        if reader.option():
            addrs.append(RelayAddr(read_relay_url(reader)))
        addrs += [read_socket_addr(reader) for _ in range(reader.count(MAX_TICKET_ADDRESSES))]
        number = reader.varint(32)
        try:
            blob_format = BlobFormat(number)
        except ValueError:
            raise WireError(f"a blob format is 0 or 1, not {number}") from None
        return cls(EndpointAddr(endpoint_id, addrs), Hash(reader.take(32)), blob_format)

    def to_bytes(self) -> bytes:
        """Encode the payload."""
        writer = postcard.Writer().varint(0).raw(bytes(self.addr.id))
        relays = self.addr.relay_urls
        writer.option(bool(relays))
        if relays:
            write_relay_url(writer, relays[0])
        writer.varint(len(self.addr.ip_addrs))
        for addr in self.addr.ip_addrs:
            write_socket_addr(writer, addr)
        return bytes(writer.varint(self.format).raw(self.hash.digest))
