"""One way to say whom to dial, whatever the application has at hand."""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from dialkey.errors import InvalidKey, InvalidTicket
from dialkey.identity.addresses import EndpointAddr
from dialkey.identity.keys import EndpointId
from dialkey.identity.tickets import EndpointTicket, ticket_kind, without_space

__all__ = ["HasAddr", "Remote", "parse_remote"]


@runtime_checkable
class HasAddr(Protocol):
    """Anything that knows the address of one endpoint; tickets of every kind do."""

    @property
    def addr(self) -> EndpointAddr:
        """The endpoint."""
        ...


Remote: TypeAlias = str | EndpointId | EndpointAddr | HasAddr
"""What `parse_remote` accepts."""


def parse_remote(remote: Remote) -> EndpointAddr:
    """Turn whatever names an endpoint into its address.

    Args:
        remote: an `EndpointAddr`; an `EndpointId`; a ticket object of any kind (an object with an
            `addr`); or text: an endpoint ticket, or an endpoint id in hex or base32. White space
            in text is removed.

    Raises:
        InvalidTicket: the text is neither ticket nor id, or a ticket that cannot be read.
        InvalidKey: the text has the length of an id but is none.
        TypeError: the object is none of these.
    """
    if isinstance(remote, EndpointAddr):
        return remote
    if isinstance(remote, EndpointId):
        return EndpointAddr(remote)
    if isinstance(remote, str):
        return _parse_text(without_space(remote))
    if isinstance(remote, HasAddr) and isinstance(remote.addr, EndpointAddr):
        return remote.addr
    raise TypeError(
        "an endpoint is named by a ticket, an EndpointAddr, an EndpointId or text, "
        f"not by {type(remote).__name__}"
    )


def _parse_text(text: str) -> EndpointAddr:
    kind = ticket_kind(text)
    # No ticket is as short as 52 characters, and none of 64 is hex: ids cannot be taken for one.
    if len(text) == 52 or (len(text) == 64 and kind is None):
        return EndpointAddr(EndpointId.parse(text))
    if kind == EndpointTicket.KIND:
        return EndpointTicket.parse(text).addr
    if kind is not None:
        raise InvalidTicket(
            f"this looks like a ticket of kind {kind!r}, which names more than an endpoint",
            hint="parse it with the class of that kind and pass the object",
        )
    if len(text) in (51, 53, 63, 65) and text.isalnum():
        raise InvalidKey(
            f"an endpoint id has 64 characters (hex) or 52 (base32), not {len(text)}",
            hint="a character is missing or doubled",
        )
    raise InvalidTicket(
        "this text does not name an endpoint",
        hint=f"give an endpoint id, or a ticket, which begins with {EndpointTicket.KIND!r}",
    )
