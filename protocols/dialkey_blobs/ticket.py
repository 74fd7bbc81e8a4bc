"""Blob tickets: an endpoint and a blob that it offers, as one word.

Source: docs/wire/blobs.md 7.1, docs/wire/discovery.md 4.3.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from dialkey.errors import InvalidTicket, WireError
from dialkey.identity import (
    EndpointAddr,
    EndpointId,
    RelayAddr,
    TransportAddr,
    decode_ticket,
    encode_ticket,
    postcard,
    read_relay_url,
    read_socket_addr,
    read_ticket_version,
    reading_ticket,
    write_relay_url,
    write_socket_addr,
)
from dialkey.limits import MAX_TICKET_ADDRESSES
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat

__all__ = ["BlobTicket"]


@attrs.frozen
class BlobTicket:
    """A ticket that names an endpoint and a blob, or a hash sequence with its children.

    The text carries the first relay and the socket addresses of the endpoint; further relays and
    custom addresses, which the format has no place for, are dropped when the ticket is made.

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
    _text: str = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if len(self.addr.ip_addrs) > MAX_TICKET_ADDRESSES:
            raise InvalidTicket(f"a ticket has at most {MAX_TICKET_ADDRESSES} socket addresses")
        relays = tuple(RelayAddr(url) for url in self.addr.relay_urls[:1])
        kept = EndpointAddr(self.addr.id, (*relays, *self.addr.ip_addrs))
        object.__setattr__(self, "addr", kept)
        object.__setattr__(self, "_text", encode_ticket(self.KIND, self.to_bytes()))

    @property
    def content(self) -> HashAndFormat:
        """The blob and its format."""
        return HashAndFormat(self.hash, self.format)

    @classmethod
    def parse(cls, text: str) -> BlobTicket:
        """Parse the text of a ticket, in capitals or lower case and wrapped or not.

        Raises:
            InvalidTicket: the text is something else; message and hint say where it looks wrong.
        """
        return cls.from_bytes(decode_ticket(cls.KIND, text))

    @classmethod
    def from_bytes(cls, payload: bytes) -> BlobTicket:
        """Decode the payload of a ticket; bytes after it are ignored, as in iroh.

        Raises:
            InvalidTicket: the payload is something else.
        """
        with reading_ticket(payload) as reader:
            read_ticket_version(reader)
            return cls._read(reader)

    @classmethod
    def _read(cls, reader: postcard.Reader) -> BlobTicket:
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

    def __str__(self) -> str:
        return self._text
