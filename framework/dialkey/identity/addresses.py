"""Where an endpoint can be reached: socket addresses, relays, custom transports.

A `TransportAddr` is one of `RelayAddr`, `IpAddr`, `CustomAddr`; an `EndpointAddr` is an endpoint id
with a set of them. All are frozen values with one total order, which is also the order on the wire:
relays by URL, then IPv4, IPv6, then custom addresses.

Source: docs/wire/discovery.md 2 and 3.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

import attrs

from dialkey.errors import InvalidAddress, WireError
from dialkey.identity.hostname import format_ipv6
from dialkey.identity.keys import EndpointId
from dialkey.identity.postcard import Reader, Writer
from dialkey.identity.relay_url import RelayUrl
from dialkey.limits import (
    MAX_CUSTOM_ADDRESS_BYTES,
    MAX_RELAY_URL_BYTES,
    MAX_SOCKET_ADDRESS_CHARS,
    MAX_TICKET_ADDRESSES,
)

__all__ = [
    "CustomAddr",
    "EndpointAddr",
    "IpAddr",
    "RelayAddr",
    "TransportAddr",
    "read_relay_url",
    "read_socket_addr",
    "read_transport_addr",
    "write_relay_url",
    "write_socket_addr",
    "write_transport_addr",
]

_IPV4_TEXT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3}){3}):([0-9]+)")
_IPV6_TEXT: Final = re.compile(r"\[([0-9A-Fa-f:.]+)(?:%([0-9]+))?\]:([0-9]+)")
_CUSTOM_ID: Final = re.compile(r"\+?([0-9A-Fa-f]+)")
_CUSTOM_DATA: Final = re.compile(r"(?:[0-9a-f]{2})*")

_TAG_RELAY: Final = 0
_TAG_IP: Final = 1
_TAG_CUSTOM: Final = 2

# iroh stores so many bytes inside the value and orders those values by length first.
_INLINE_CUSTOM_BYTES: Final = 30

_SortKey: TypeAlias = tuple[int | str | bytes, ...]


class _Ordered:
    """The one order of all transport addresses."""

    __slots__ = ()

    def _sort_key(self) -> _SortKey:
        raise NotImplementedError

    def __lt__(self, other: TransportAddr) -> bool:
        return (
            self._sort_key() < other._sort_key() if isinstance(other, _Ordered) else NotImplemented
        )

    def __le__(self, other: TransportAddr) -> bool:
        return (
            self._sort_key() <= other._sort_key() if isinstance(other, _Ordered) else NotImplemented
        )

    def __gt__(self, other: TransportAddr) -> bool:
        return (
            self._sort_key() > other._sort_key() if isinstance(other, _Ordered) else NotImplemented
        )

    def __ge__(self, other: TransportAddr) -> bool:
        return (
            self._sort_key() >= other._sort_key() if isinstance(other, _Ordered) else NotImplemented
        )


@attrs.frozen(order=False)
class RelayAddr(_Ordered):
    """Reachable through a relay.

    Args:
        url: the relay.
    """

    url: RelayUrl

    def _sort_key(self) -> _SortKey:
        return (_TAG_RELAY, str(self.url))

    def labelled(self) -> str:
        """Return the form with its kind in front, as iroh displays it: ``relay:<url>``."""
        return f"relay:{self.url}"

    def __str__(self) -> str:
        return str(self.url)


@attrs.frozen(order=False)
class IpAddr(_Ordered):
    """A UDP socket address.

    Args:
        ip: the address. A numeric scope inside an `IPv6Address` moves to `scope_id`.
        port: 0 to 65535.
        scope_id: the number of the interface for an IPv6 link-local address, else 0. It is kept in
            text, and lost in postcard.

    Raises:
        InvalidAddress: a value is out of range.
    """

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    scope_id: int = 0

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.ip, ipaddress.IPv4Address | ipaddress.IPv6Address):
            raise TypeError("ip is an IPv4Address or IPv6Address; IpAddr.parse takes text")
        if not 0 <= self.port <= 65535:
            raise InvalidAddress(f"port {self.port} is not between 0 and 65535")
        if isinstance(self.ip, ipaddress.IPv6Address) and self.ip.scope_id is not None:
            scope = self.ip.scope_id
            if self.scope_id or not (scope.isascii() and scope.isdigit() and len(scope) <= 10):
                raise InvalidAddress("the scope of an address is the number of an interface")
            object.__setattr__(self, "scope_id", int(scope))
            object.__setattr__(self, "ip", ipaddress.IPv6Address(int(self.ip)))
        if not 0 <= self.scope_id < 1 << 32:
            raise InvalidAddress(f"scope id {self.scope_id} does not fit 32 bits")
        if self.scope_id and self.ip.version == 4:
            raise InvalidAddress("an IPv4 address has no scope id")

    @classmethod
    def parse(cls, text: str) -> IpAddr:
        """Parse ``1.2.3.4:443``, ``[2001:db8::1]:443`` or ``[fe80::1%3]:443``.

        The scope is a number, there are no host names, and no white space is removed.

        Raises:
            InvalidAddress: the text is something else.
        """
        if not isinstance(text, str):
            raise TypeError(f"a socket address is parsed from str, not {type(text).__name__}")
        if len(text) > MAX_SOCKET_ADDRESS_CHARS:
            raise InvalidAddress("a socket address is shorter than this text")
        ip: ipaddress.IPv4Address | ipaddress.IPv6Address
        try:
            if match := _IPV4_TEXT.fullmatch(text):
                ip, scope, port = ipaddress.IPv4Address(match[1]), 0, int(match[2])
            elif match := _IPV6_TEXT.fullmatch(text):
                ip, scope, port = (
                    ipaddress.IPv6Address(match[1]),
                    int(match[2] or 0),
                    int(match[3]),
                )
            else:
                raise InvalidAddress(
                    "this is not a socket address", hint=_socket_address_hint(text)
                )
        except ipaddress.AddressValueError:
            raise InvalidAddress(
                "the address part is not an IP address", hint="octets have no leading zeros"
            ) from None
        return cls(ip, port, scope)

    # Written out rather than generated: hashing an ipaddress object formats it as text first.
    def __hash__(self) -> int:
        return hash((int(self.ip), self.port, self.scope_id))

    def _sort_key(self) -> _SortKey:
        return (_TAG_IP, self.ip.version, int(self.ip), self.port, self.scope_id)

    def labelled(self) -> str:
        """Return the form with its kind in front, as iroh displays it: ``ip:<address>``."""
        return f"ip:{self}"

    def __str__(self) -> str:
        if isinstance(self.ip, ipaddress.IPv4Address):
            return f"{self.ip}:{self.port}"
        mapped = self.ip.ipv4_mapped
        host = f"::ffff:{mapped}" if mapped is not None else format_ipv6(self.ip)
        scope = f"%{self.scope_id}" if self.scope_id else ""
        return f"[{host}{scope}]:{self.port}"


def _socket_address_hint(text: str) -> str:
    if text != text.strip():
        return "remove the white space around it"
    if "%" in text:
        return "the scope is the number of the interface, not its name, as in [fe80::1%3]:443"
    if text.count(":") > 1 and not text.startswith("["):
        return "put an IPv6 address in brackets, as in [2001:db8::1]:443"
    if ":" not in text:
        return "the port is missing; write it as in 192.0.2.1:443"
    return "write it as 192.0.2.1:443 or [2001:db8::1]:443; host names are not resolved here"


def _opaque_bytes(data: bytes | bytearray | memoryview) -> bytes:
    # `bytes(5)` would be five zero bytes.
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"the data of a custom address is bytes, not {type(data).__name__}")
    return bytes(data)


@attrs.frozen(order=False)
class CustomAddr(_Ordered):
    """An address of a transport that is neither IP nor relay (Tor, Bluetooth …).

    Args:
        id: the registered number of the transport, 64 bits.
        data: what that transport understands; not looked into.

    Raises:
        InvalidAddress: the id does not fit, or the data is too long.
    """

    id: int
    data: bytes = attrs.field(converter=_opaque_bytes)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.id < 1 << 64:
            raise InvalidAddress("the id of a custom address does not fit 64 bits")
        if len(self.data) > MAX_CUSTOM_ADDRESS_BYTES:
            raise InvalidAddress(
                f"a custom address has at most {MAX_CUSTOM_ADDRESS_BYTES} bytes of data"
            )

    @classmethod
    def parse(cls, text: str) -> CustomAddr:
        """Parse ``<id in hex>_<data in lower hex>``, for example ``544f52_00ff``.

        Raises:
            InvalidAddress: the text is something else.
        """
        id_text, separator, data_text = text.partition("_")
        if not separator:
            raise InvalidAddress("a custom address has an underscore between id and data")
        match = _CUSTOM_ID.fullmatch(id_text)
        digits = match[1].lstrip("0") if match else ""
        if match is None or len(digits) > 16:
            raise InvalidAddress("the id of a custom address is not a 64-bit number in hex")
        if not _CUSTOM_DATA.fullmatch(data_text):
            raise InvalidAddress("the data of a custom address is not lower-case hex")
        return cls(int(digits or "0", 16), bytes.fromhex(data_text))

    @classmethod
    def from_bytes(cls, data: bytes) -> CustomAddr:
        """Decode the bare binary form: the id as 8 bytes, little-endian, then the data.

        Raises:
            WireError: there are fewer than 8 bytes or too many.
        """
        if len(data) < 8:
            raise WireError("a custom address has at least 8 bytes")
        try:
            return cls(int.from_bytes(data[:8], "little"), data[8:])
        except InvalidAddress as error:
            raise WireError(error.message) from None

    def to_bytes(self) -> bytes:
        """Encode to the bare binary form."""
        return self.id.to_bytes(8, "little") + self.data

    def _sort_key(self) -> _SortKey:
        size = len(self.data)
        if size <= _INLINE_CUSTOM_BYTES:
            return (_TAG_CUSTOM, self.id, 0, size, self.data)
        return (_TAG_CUSTOM, self.id, 1, 0, self.data)

    def labelled(self) -> str:
        """Return the form with its kind in front, as iroh displays it: ``custom:<address>``."""
        return f"custom:{self}"

    def __str__(self) -> str:
        return f"{self.id:x}_{self.data.hex()}"


TransportAddr: TypeAlias = RelayAddr | IpAddr | CustomAddr


def write_socket_addr(writer: Writer, addr: IpAddr) -> None:
    """Append a bare socket address (no transport tag); the scope id is not carried."""
    if addr.ip.version == 4:
        writer.varint(0)
    else:
        writer.varint(1)
    writer.raw(addr.ip.packed).varint(addr.port)


def read_socket_addr(reader: Reader) -> IpAddr:
    """Read a bare socket address.

    Raises:
        WireError: the bytes are something else.
    """
    family = reader.varint(32)
    if family == 0:
        return IpAddr(ipaddress.IPv4Address(reader.take(4)), reader.varint(16))
    if family == 1:
        return IpAddr(ipaddress.IPv6Address(reader.take(16)), reader.varint(16))
    raise WireError(f"a socket address is of family 0 or 1, not {family}")


def write_relay_url(writer: Writer, url: RelayUrl) -> None:
    """Append a relay URL as its normal form."""
    writer.string(str(url))


def read_relay_url(reader: Reader) -> RelayUrl:
    """Read a relay URL and normalise it.

    Raises:
        WireError: the bytes are something else.
    """
    text = reader.string(MAX_RELAY_URL_BYTES)
    try:
        return RelayUrl(text)
    except InvalidAddress as error:
        raise WireError(error.message) from None


def write_transport_addr(writer: Writer, addr: TransportAddr) -> None:
    """Append an address with its transport tag."""
    if isinstance(addr, RelayAddr):
        writer.varint(_TAG_RELAY)
        write_relay_url(writer, addr.url)
    elif isinstance(addr, IpAddr):
        writer.varint(_TAG_IP)
        write_socket_addr(writer, addr)
    else:
        writer.varint(_TAG_CUSTOM).varint(addr.id).byte_string(addr.data)


def read_transport_addr(reader: Reader) -> TransportAddr:
    """Read an address with its transport tag.

    Custom addresses are read in the form of iroh releases after 1.0.3; the older form cannot be
    told from it and yields a wrong value or an error.

    Raises:
        WireError: the bytes are something else, or of a transport kind that is not known.
    """
    tag = reader.varint(32)
    if tag == _TAG_RELAY:
        return RelayAddr(read_relay_url(reader))
    if tag == _TAG_IP:
        return read_socket_addr(reader)
    if tag == _TAG_CUSTOM:
        return CustomAddr(reader.varint(64), reader.byte_string(MAX_CUSTOM_ADDRESS_BYTES))
    raise WireError(f"a transport address is of kind 0 to 2, not {tag}")


def _sorted_set(addrs: Iterable[TransportAddr]) -> tuple[TransportAddr, ...]:
    unique = set(addrs)
    for addr in unique:
        if not isinstance(addr, _Ordered):
            raise TypeError(
                "addresses are RelayAddr, IpAddr or CustomAddr, "
                f"not {type(addr).__name__}; parse text first"
            )
    return tuple(sorted(unique))


@attrs.frozen
class EndpointAddr:
    """An endpoint id and the addresses where it may be reached.

    Args:
        id: the endpoint.
        addrs: any number of addresses; kept sorted and without duplicates.
    """

    id: EndpointId
    addrs: tuple[TransportAddr, ...] = attrs.field(default=(), converter=_sorted_set)

    @property
    def relay_urls(self) -> tuple[RelayUrl, ...]:
        """The URLs of the relay addresses, in order."""
        return tuple(addr.url for addr in self.addrs if isinstance(addr, RelayAddr))

    @property
    def ip_addrs(self) -> tuple[IpAddr, ...]:
        """The socket addresses, in order."""
        return tuple(addr for addr in self.addrs if isinstance(addr, IpAddr))

    @property
    def custom_addrs(self) -> tuple[CustomAddr, ...]:
        """The addresses of custom transports, in order."""
        return tuple(addr for addr in self.addrs if isinstance(addr, CustomAddr))

    def with_addrs(self, addrs: Iterable[TransportAddr]) -> EndpointAddr:
        """Return the same endpoint with these addresses beside those it has."""
        return EndpointAddr(self.id, (*self.addrs, *addrs))

    def write(self, writer: Writer) -> None:
        """Append id, count and addresses."""
        self.id.write(writer)
        writer.varint(len(self.addrs))
        for addr in self.addrs:
            write_transport_addr(writer, addr)

    @classmethod
    def read(cls, reader: Reader) -> EndpointAddr:
        """Read id, count and addresses; any order and duplicates are accepted.

        Raises:
            WireError: the bytes are something else, or there are more than
                `limits.MAX_TICKET_ADDRESSES` addresses.
        """
        endpoint_id = EndpointId.read(reader)
        count = reader.count(MAX_TICKET_ADDRESSES)
        return cls(endpoint_id, [read_transport_addr(reader) for _ in range(count)])
