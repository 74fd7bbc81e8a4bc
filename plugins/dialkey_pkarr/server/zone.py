"""What an authoritative server answers for names below its origins. Sans-IO.

A name is ``<inside>.<z-base-32 key>.<origin>``; the records are those that the key has signed. What the
key does not have is NXDOMAIN, and NODATA where the name has records of other types, both with the SOA
that says for how long this may be believed.

Source: RFC 1035, 2308 and 6891; docs/wire/discovery.md 7.1 and 8.3.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import attrs
import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from dialkey.errors import InvalidInput, InvalidKey
from dialkey.identity import EndpointId
from dialkey_pkarr.errors import InvalidPacket
from dialkey_pkarr.limits import (
    APEX_TTL_S,
    EDNS_PAYLOAD_BYTES,
    MAX_DNS_ANSWER_BYTES,
    MAX_READ_RECORDS,
    NEGATIVE_TTL_S,
)
from dialkey_pkarr.packets import SignedPacket

__all__ = ["Question", "Zone"]

_MIN_UDP_BYTES: Final = 512
_ANY: Final = dns.rdatatype.ANY
_TRANSFERS: Final = frozenset({dns.rdatatype.AXFR, dns.rdatatype.IXFR})
_NOT_THEIRS: Final = frozenset({dns.rdatatype.SOA, dns.rdatatype.NS})
"""Types that say who answers for a zone, which is not for a record's key to say."""


_Record = tuple[tuple[bytes, ...], dns.rdatatype.RdataType, int, list[dns.rdata.Rdata]]


@attrs.frozen
class Question:
    """A question that has been read.

    Attributes:
        query: the message.
        origin: the origin that the name is below, or None.
        inside: the labels left of the key, in lower case.
        id: the key that is asked for, or None.
        rcode: what it gets in any case; NOERROR where it depends on the records.
    """

    query: dns.message.Message
    origin: dns.name.Name | None = None
    inside: tuple[bytes, ...] = ()
    id: EndpointId | None = None
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR


class Zone:
    """The origins that a server answers for.

    Args:
        origins: domains, such as ``dns.example.org``; ``.`` is one, too.
        nameservers: who answers for them, in NS records.
        hostmaster: the SOA's mailbox, written as a domain.
        addresses: IP addresses of the origins themselves.

    Raises:
        InvalidInput: a name or an address is not one.
    """

    def __init__(
        self,
        origins: Sequence[str],
        *,
        nameservers: Sequence[str] = (),
        hostmaster: str | None = None,
        addresses: Iterable[str] = (),
    ) -> None:
        names = [_name(each) for each in origins]
        if not names:
            raise InvalidInput("a DNS server answers for one origin at least")
        # The longest suffix decides.
        self._origins = sorted(names, key=len, reverse=True)
        self._signed = functools.lru_cache(MAX_READ_RECORDS)(_records_of)
        servers = [_name(each) for each in nameservers]
        try:
            given = [ipaddress.ip_address(each) for each in addresses]
        except ValueError as error:
            raise InvalidInput(f"addresses: {error}") from None
        self._apex: dict[dns.name.Name, list[dns.rrset.RRset]] = {}
        self._negative: dict[dns.name.Name, dns.rrset.RRset] = {}
        for origin in names:
            first = servers[0] if servers else origin
            mailbox = _name(hostmaster) if hostmaster else _hostmaster(origin)
            soa = f"{first} {mailbox} 1 10800 3600 604800 {NEGATIVE_TTL_S}"
            sets = [dns.rrset.from_text(origin, APEX_TTL_S, "IN", "SOA", soa)]
            if servers:
                sets.append(
                    dns.rrset.from_text_list(
                        origin, APEX_TTL_S, "IN", "NS", [str(each) for each in servers]
                    )
                )
            for kind, version in (("A", 4), ("AAAA", 6)):
                found = [str(each) for each in given if each.version == version]
                if found:
                    sets.append(dns.rrset.from_text_list(origin, APEX_TTL_S, "IN", kind, found))
            self._apex[origin] = sets
            self._negative[origin] = dns.rrset.from_text(origin, NEGATIVE_TTL_S, "IN", "SOA", soa)

    def read(self, data: bytes) -> Question | bytes | None:
        """Read a message: a question, the answer to what cannot be read, or nothing to say."""
        if len(data) < 12 or data[2] & 0x80:
            # An answer to an answer would go to and fro for ever.
            return None
        try:
            query = dns.message.from_wire(data)
        except (dns.exception.DNSException, ValueError):
            return _bare(data, dns.rcode.FORMERR)
        if query.opcode() != dns.opcode.QUERY:
            return _bare(data, dns.rcode.NOTIMP)
        if len(query.question) != 1:
            return _bare(data, dns.rcode.FORMERR)
        if query.edns > 0:
            return Question(query, rcode=dns.rcode.BADVERS)
        asked = query.question[0]
        if asked.rdclass != dns.rdataclass.IN or asked.rdtype in _TRANSFERS:
            return Question(query, rcode=dns.rcode.REFUSED)
        origin = next((each for each in self._origins if asked.name.is_subdomain(each)), None)
        if origin is None:
            return Question(query, rcode=dns.rcode.REFUSED)
        labels = asked.name.labels[: len(asked.name.labels) - len(origin.labels)]
        if not labels:
            return Question(query, origin)
        try:
            id = EndpointId.from_z32(labels[-1].lower().decode("ascii"))
        except (InvalidKey, InvalidInput, UnicodeDecodeError):
            return Question(query, origin, rcode=dns.rcode.NXDOMAIN)
        return Question(query, origin, tuple(label.lower() for label in labels[:-1]), id)

    def answer(self, question: Question, packet: SignedPacket | None) -> dns.message.Message:
        """Answer a question.

        Args:
            packet: what the key has signed, None if nothing is known of it.
        """
        response = _response(question.query)
        response.set_rcode(question.rcode)
        if question.origin is None:
            return response
        response.flags |= dns.flags.AA
        asked = question.query.question[0]
        if question.id is None:
            if question.rcode == dns.rcode.NOERROR:
                response.answer += [
                    each
                    for each in self._apex[question.origin]
                    if asked.rdtype in (each.rdtype, _ANY)
                ]
        else:
            exists = self._fill(response, asked, question, packet)
            if not exists:
                response.set_rcode(dns.rcode.NXDOMAIN)
        if not response.answer:
            response.authority.append(self._negative[question.origin])
        return response

    def _fill(
        self,
        response: dns.message.Message,
        asked: dns.rrset.RRset,
        question: Question,
        packet: SignedPacket | None,
    ) -> bool:
        """Put the records that are asked for into an answer; tell whether the name exists."""
        if packet is None or question.id is None:
            return False
        depth = len(question.inside)
        exists = False
        for inside, rdtype, ttl, rdatas in self._signed(packet):
            # A name between two others exists, although it has no records.
            if inside[len(inside) - depth :] == question.inside and len(inside) >= depth:
                exists = True
            if inside == question.inside and asked.rdtype in (rdtype, _ANY):
                # The name as it was asked: resolvers compare how its letters are written.
                response.answer.append(dns.rrset.from_rdata_list(asked.name, ttl, rdatas))
        return exists

    def failed(self, question: Question) -> dns.message.Message:
        """Say that the records cannot be had now."""
        response = _response(question.query)
        response.set_rcode(dns.rcode.SERVFAIL)
        return response

    def to_wire(self, response: dns.message.Message, question: Question, *, by_udp: bool) -> bytes:
        """Write an answer; what is too long for UDP becomes the hint to come over TCP."""
        most = MAX_DNS_ANSWER_BYTES
        if by_udp:
            given = question.query.payload if question.query.edns >= 0 else _MIN_UDP_BYTES
            most = max(_MIN_UDP_BYTES, min(given, EDNS_PAYLOAD_BYTES))
        try:
            return response.to_wire(max_size=most, want_shuffle=False)
        except dns.exception.TooBig:
            return self.truncated(question)

    def truncated(self, question: Question) -> bytes:
        """Write the hint to come over TCP."""
        response = _response(question.query)
        response.flags |= dns.flags.AA | dns.flags.TC
        return response.to_wire()


def _records_of(packet: SignedPacket) -> tuple[_Record, ...]:
    """Return what a key has signed: labels before the key, type, TTL, data."""
    try:
        signed = packet.dns_message().answer
    except InvalidPacket:
        return ()
    tail = (packet.id.to_z32().encode(), b"")
    found: list[_Record] = []
    for each in signed:
        labels = tuple(label.lower() for label in each.name.labels)
        is_theirs = labels[-2:] == tail and each.rdtype not in _NOT_THEIRS
        if is_theirs and each.rdclass == dns.rdataclass.IN:
            found.append((labels[:-2], each.rdtype, each.ttl, list(each)))
    return tuple(found)


def _name(text: str) -> dns.name.Name:
    try:
        name = dns.name.from_text(text)
        if name.is_wild():
            raise InvalidInput(f"{text!r} is not a domain: it has a wildcard")
    except (dns.exception.DNSException, UnicodeError) as error:
        raise InvalidInput(f"{text!r} is not a domain: {error}") from None
    return name


def _hostmaster(origin: dns.name.Name) -> dns.name.Name:
    try:
        return dns.name.Name((b"hostmaster", *origin.labels))
    except dns.exception.DNSException:
        return origin


def _response(query: dns.message.Message) -> dns.message.Message:
    return dns.message.make_response(query, our_payload=EDNS_PAYLOAD_BYTES)


def _bare(data: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """Answer a message without repeating a question that cannot be read."""
    flags = 0x8000 | ((data[2] & 0x79) << 8) | int(rcode)
    return data[:2] + struct.pack(">5H", flags, 0, 0, 0, 0)
