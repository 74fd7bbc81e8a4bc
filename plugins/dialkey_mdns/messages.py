"""Multicast DNS messages about endpoints, as iroh's ``swarm-discovery`` writes and reads them.

dnspython reads and writes names, with their compression; records are few enough to be read here, as
iroh compares classes exactly, and multicast DNS has a bit of its own in them.

Source: docs/wire/discovery.md 9.1; RFC 6762 sections 10.2 and 18.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Final

import attrs
import dns.exception
import dns.name
import dns.wire

from dialkey.endpoint import EndpointInfo
from dialkey.errors import InvalidAddress, InvalidKey
from dialkey.identity import EndpointAddr, EndpointId, IpAddr, RelayAddr, RelayUrl, TransportAddr
from dialkey_mdns.errors import InvalidMessage
from dialkey_mdns.limits import (
    MAX_ADDRESSES,
    MAX_ENDPOINTS,
    MAX_KNOWN_LABELS,
    MAX_READ_BYTES,
    MAX_RECORDS,
    MAX_SENT_BYTES,
    MAX_TXT_BYTES,
    RECORD_TTL_S,
)

__all__ = [
    "SERVICE",
    "Claim",
    "Message",
    "Question",
    "concerns",
    "goodbye",
    "instance_name",
    "is_host_of",
    "label_of",
    "query",
    "read",
    "response",
]

SERVICE: Final = dns.name.from_text("_irohv1._udp.local.")

A: Final = 1
PTR: Final = 12
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
ANY: Final = 255

_LOCAL: Final = dns.name.from_text("local.")
_IN: Final = 1
_ANY_CLASS: Final = 255
_TOP_BIT: Final = 0x8000
"""Of a class: a record replaces all that were known, or a question asks for unicast; we need neither."""
_RESPONSE: Final = 0x8000
_AUTHORITATIVE: Final = 0x0400
_OPCODE: Final = 0x7800
_RCODE: Final = 0x000F
_HEAD: Final = struct.Struct(">HHHHHH")
_RECORD: Final = struct.Struct(">HHIH")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Record = tuple[dns.name.Name, int, int, bytes]
"""Owner, type, lifetime, data; names within the data are spelt out."""


@attrs.frozen
class Question:
    """What a query asks for.

    Attributes:
        name: compares without regard to case.
        type: `PTR`, `SRV` and so on; `ANY`.
    """

    name: dns.name.Name
    type: int


@attrs.frozen
class Claim:
    """What somebody says of an endpoint; nothing proves it.

    Attributes:
        info: the endpoint as it would be reached.
        said_goodbye: it says that this endpoint goes; `info` names no address then.
    """

    info: EndpointInfo
    said_goodbye: bool = False


@attrs.frozen
class Message:
    """A message, as far as it is about endpoints.

    Attributes:
        is_response: whether it answers.
        questions: of a query about our service, or names under ``local.``.
        known: labels of those whom the asker knows already, and wants no answer from, in lower case.
        claims: of a response.
    """

    is_response: bool
    questions: tuple[Question, ...] = ()
    known: frozenset[bytes] = frozenset()
    claims: tuple[Claim, ...] = ()


def label_of(id: EndpointId) -> bytes:
    """Return what an endpoint is called in names."""
    return id.to_base32().lower().encode()


def concerns(data: bytes, own_label: bytes) -> bool:
    """Say whether a message may be about endpoints, without reading it: most of what comes is not."""
    lower = data.lower()
    return SERVICE.labels[0] in lower or own_label in lower


def instance_name(id: EndpointId) -> dns.name.Name:
    """Return the name of an endpoint's service records."""
    return dns.name.Name((label_of(id), *SERVICE.labels))


def _host_name(id: EndpointId, port: int) -> dns.name.Name:
    return dns.name.Name((label_of(id) + b"-%d" % port, *_LOCAL.labels))


def is_host_of(id: EndpointId, name: dns.name.Name) -> bool:
    """Return whether addresses of an endpoint have this name; there is one for each port."""
    start = label_of(id) + b"-"
    return (
        len(name.labels) == len(_LOCAL.labels) + 1
        and name.labels[0].lower().startswith(start)
        and name.parent() == _LOCAL
    )


# --- writing ------------------------------------------------------------------------------------


class _Writer:
    """Writes records with compressed names."""

    def __init__(self) -> None:
        self.buffer = BytesIO(bytes(_HEAD.size))
        self.buffer.seek(_HEAD.size)
        self._names: dict[dns.name.Name, int] = {}

    def name(self, name: dns.name.Name) -> None:
        name.to_wire(self.buffer, self._names)

    def record(
        self, owner: dns.name.Name, type: int, ttl_s: int, data: bytes, target: dns.name.Name | None
    ) -> None:
        self.name(owner)
        length_at = self.buffer.tell() + _RECORD.size - 2
        self.buffer.write(_RECORD.pack(type, _IN, ttl_s, 0) + data)
        if target is not None:
            self.name(target)
        end = self.buffer.tell()
        self.buffer.seek(length_at)
        self.buffer.write(struct.pack(">H", end - length_at - 2))
        self.buffer.seek(end)

    def finish(self, flags: int, questions: int, answers: int, additional: int) -> bytes:
        self.buffer.seek(0)
        self.buffer.write(_HEAD.pack(0, flags, questions, answers, 0, additional))
        return self.buffer.getvalue()


def query(wanted: EndpointId | None = None) -> bytes:
    """Return a query for all endpoints; with `wanted`, one that this endpoint answers at once.

    It has both questions: iroh knows the first only.
    """
    writer = _Writer()
    questions = [(SERVICE, PTR)]
    if wanted is not None:
        questions.append((instance_name(wanted), SRV))
    for name, type in questions:
        writer.name(name)
        writer.buffer.write(struct.pack(">HH", type, _IN))
    return writer.finish(0, len(questions), 0, 0)


def response(info: EndpointInfo) -> bytes | None:
    """Return what an endpoint says of itself; None if it has no IP address to be reached at.

    Addresses that do not fit into a packet are left out from the end, as are relays and user data that
    do not fit into a TXT string, and addresses of other kinds.
    """
    addrs = list(info.addr.ip_addrs[:MAX_ADDRESSES])
    while addrs:
        data = _response(info, addrs)
        if len(data) <= MAX_SENT_BYTES:
            return data
        addrs.pop()
    return None


def _response(info: EndpointInfo, addrs: Iterable[IpAddr]) -> bytes:
    by_port: dict[int, list[IpAddress]] = {}
    for addr in addrs:
        by_port.setdefault(addr.port, []).append(addr.ip)
    instance = instance_name(info.id)
    writer = _Writer()
    writer.record(SERVICE, PTR, RECORD_TTL_S, b"", instance)
    for port in sorted(by_port):
        head = struct.pack(">HHH", 0, 0, port)
        writer.record(instance, SRV, RECORD_TTL_S, head, _host_name(info.id, port))
    strings = b"".join(bytes([len(each)]) + each for each in _attributes(info)) or b"\0"
    writer.record(instance, TXT, RECORD_TTL_S, strings, None)
    hosts = 0
    for port in sorted(by_port):
        owner = _host_name(info.id, port)
        for ip in by_port[port]:
            type = A if ip.version == 4 else AAAA
            writer.record(owner, type, RECORD_TTL_S, ip.packed, None)
            hosts += 1
    return writer.finish(_RESPONSE | _AUTHORITATIVE, 0, 2 + len(by_port), hosts)


def _attributes(info: EndpointInfo) -> list[bytes]:
    texts = [f"relay={url}" for url in info.addr.relay_urls[:1]]
    if info.user_data is not None:
        texts.append(f"user-data={info.user_data}")
    # iroh refuses a string of 255 bytes, too.
    return [each for each in (text.encode() for text in texts) if len(each) < MAX_TXT_BYTES]


def goodbye(id: EndpointId) -> bytes:
    """Return what an endpoint says when it goes.

    Nothing but the pointer, with no lifetime left. iroh looks at no lifetime, and would take the other
    records for a sign of life; of an answer without addresses it takes no notice.
    """
    writer = _Writer()
    writer.record(SERVICE, PTR, 0, b"", instance_name(id))
    return writer.finish(_RESPONSE | _AUTHORITATIVE, 0, 1, 0)


# --- reading ------------------------------------------------------------------------------------


def read(data: bytes) -> Message:
    """Read a message; what is not about endpoints is left out.

    Linear in its length: there is a limit on records, and names are compressed by pointers that only
    go backwards, with 255 bytes at most.

    Raises:
        InvalidMessage: it is not a DNS message, or has more than the limits allow.
    """
    if len(data) > MAX_READ_BYTES:
        raise InvalidMessage(f"an mDNS message has at most {MAX_READ_BYTES} bytes")
    try:
        return _read(dns.wire.Parser(data))
    except (dns.exception.DNSException, struct.error, ValueError) as error:
        raise InvalidMessage(f"not a DNS message: {error or type(error).__name__}") from None


def _read(parser: dns.wire.Parser) -> Message:
    _, flags, questions, answers, authorities, additional = parser.get_struct("!HHHHHH")
    if flags & (_OPCODE | _RCODE):
        # RFC 6762 section 18.3 and 18.11: silently ignored.
        return Message(is_response=bool(flags & _RESPONSE))
    if questions + answers + authorities + additional > MAX_RECORDS:
        raise InvalidMessage(f"an mDNS message has at most {MAX_RECORDS} records")
    asked = []
    for _ in range(questions):
        name = dns.name.from_wire_parser(parser)
        type, cls = parser.get_struct("!HH")
        if cls & ~_TOP_BIT in (_IN, _ANY_CLASS) and name.is_subdomain(_LOCAL):
            asked.append(Question(name, type))
    said = list(_records(parser, answers))
    if not flags & _RESPONSE:
        known = frozenset(
            label.lower()
            for label, type, ttl, _ in _ours(said)
            if type == PTR and 2 * ttl >= RECORD_TTL_S
        )
        return Message(is_response=False, questions=tuple(asked), known=known)
    for _ in _records(parser, authorities):
        pass
    hosts: dict[dns.name.Name, list[IpAddress]] = {}
    # Others put addresses among the answers.
    for owner, type, _, raw in [*said, *_records(parser, additional)]:
        if type in (A, AAAA):
            hosts.setdefault(owner, []).append(_ip(type, raw))
    return Message(is_response=True, claims=tuple(_claims(said, hosts)))


def _records(parser: dns.wire.Parser, count: int) -> Iterator[Record]:
    for _ in range(count):
        owner = dns.name.from_wire_parser(parser)
        type, cls, ttl, length = parser.get_struct("!HHIH")
        with parser.restrict_to(length):
            if type == PTR:
                raw = dns.name.from_wire_parser(parser).to_wire()
            elif type == SRV:
                raw = parser.get_bytes(6) + (dns.name.from_wire_parser(parser).to_wire() or b"")
            else:
                raw = parser.get_remaining()
        if cls & ~_TOP_BIT == _IN and raw is not None:
            yield owner, type, ttl, raw


def _ours(records: Iterable[Record]) -> Iterator[tuple[bytes, int, int, bytes]]:
    """Yield pointers to endpoints and what these own, each with the endpoint's label."""
    for owner, type, ttl, raw in records:
        name = owner
        if type == PTR:
            if owner != SERVICE:
                continue
            name, _ = dns.name.from_wire(raw, 0)
        if len(name.labels) == len(SERVICE.labels) + 1 and name.is_subdomain(SERVICE):
            yield name.labels[0], type, ttl, raw


@functools.lru_cache(MAX_KNOWN_LABELS)
def _parse_id(label: bytes) -> EndpointId | None:
    try:
        return EndpointId.parse(label.decode("ascii"))
    except (InvalidKey, UnicodeDecodeError):
        return None


@attrs.define
class _Said:
    """The records of one endpoint in one response."""

    goes: bool = False
    addrs: dict[TransportAddr, None] = attrs.Factory(dict)
    strings: list[bytes] = attrs.Factory(list)


def _claims(
    records: Iterable[Record], hosts: dict[dns.name.Name, list[IpAddress]]
) -> Iterator[Claim]:
    by_label: dict[bytes, _Said] = {}
    for label, type, ttl, raw in _ours(records):
        label = label.lower()
        if label not in by_label and len(by_label) >= MAX_ENDPOINTS:
            continue
        said = by_label.setdefault(label, _Said())
        if type == PTR:
            said.goes = ttl == 0
        elif type == SRV:
            _add_addresses(said, raw, hosts)
        elif type == TXT:
            said.strings += _strings(raw)
    for label, said in by_label.items():
        id = _parse_id(label)
        if id is None:
            continue
        if said.addrs:
            relay, user_data = _parse_attributes(said.strings)
            yield Claim(EndpointInfo(EndpointAddr(id, [*relay, *said.addrs]), user_data))
        elif said.goes:
            yield Claim(EndpointInfo(EndpointAddr(id)), said_goodbye=True)


def _add_addresses(said: _Said, raw: bytes, hosts: dict[dns.name.Name, list[IpAddress]]) -> None:
    port = int.from_bytes(raw[4:6], "big")
    target, _ = dns.name.from_wire(raw, 6)
    if not port or len(target.labels) != len(_LOCAL.labels) + 1 or target.parent() != _LOCAL:
        return
    for ip in hosts.get(target, ()):
        if len(said.addrs) >= MAX_ADDRESSES:
            return
        if not (ip.is_unspecified or ip.is_multicast or ip in _BROADCAST):
            said.addrs[IpAddr(ip, port)] = None


_BROADCAST: Final = ipaddress.ip_network("255.255.255.255/32")


def _ip(type: int, raw: bytes) -> IpAddress:
    if len(raw) != (4 if type == A else 16):
        raise InvalidMessage(f"an address has 4 or 16 bytes, not {len(raw)}")
    return ipaddress.IPv4Address(raw) if type == A else ipaddress.IPv6Address(raw)


def _strings(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        end = at + 1 + raw[at]
        if end > len(raw):
            raise InvalidMessage("a TXT string is cut off")
        yield raw[at + 1 : end]
        at = end


def _parse_attributes(strings: Iterable[bytes]) -> tuple[list[RelayAddr], str | None]:
    """Read the TXT strings; the first of each key counts, and what is not understood is left out."""
    values: dict[bytes, str] = {}
    for each in strings:
        key, _, value = each.partition(b"=")
        if key not in values:
            try:
                values[key] = value.decode()
            except UnicodeDecodeError:
                continue
    relay = []
    try:
        if b"relay" in values:
            relay.append(RelayAddr(RelayUrl(values[b"relay"])))
    except InvalidAddress:
        pass
    # It fits: the string that it is in has at most 255 bytes.
    return relay, values.get(b"user-data")
