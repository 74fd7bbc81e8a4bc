"""An endpoint's addresses as TXT records, in a signed packet or in plain DNS.

Each record holds one ``key=value``. A reader of iroh refuses all of an endpoint's records for one key
that it does not know, so there are these three and no others: ``relay``, ``addr``, ``user-data``.

Source: docs/wire/discovery.md 5, 6.2 and 7.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.rrset

from dialkey.endpoint import EndpointInfo
from dialkey.errors import InvalidAddress
from dialkey.identity import (
    CustomAddr,
    EndpointAddr,
    EndpointId,
    IpAddr,
    RelayAddr,
    RelayUrl,
    TransportAddr,
)
from dialkey.limits import MAX_USER_DATA_BYTES
from dialkey_pkarr.errors import InvalidPacket, RecordTooLarge
from dialkey_pkarr.limits import MAX_ATTRIBUTES, MAX_DNS_BYTES, MAX_TXT_BYTES, RECORD_TTL_S

__all__ = [
    "LABEL",
    "info_of_message",
    "message_of_info",
    "parse_attributes",
    "read_message",
    "write_attributes",
]

LABEL: Final = "_iroh"
"""The label before an endpoint's id in the name of its records."""

_CLASSES: Final = frozenset({1, 2, 3, 4, 254})
"""Those that iroh takes for classes; one more makes it refuse the whole packet."""
_FLUSH: Final = 0x8000
_RESERVED: Final = 0x0040


# --- attributes ---------------------------------------------------------------------------------


def write_attributes(info: EndpointInfo) -> list[bytes]:
    """Return the TXT strings of an endpoint: relays, other addresses, user data.

    Raises:
        RecordTooLarge: one has more than 255 bytes.
    """
    texts = [f"relay={url}" for url in info.addr.relay_urls]
    texts += [f"addr={each}" for each in info.addr.addrs if not isinstance(each, RelayAddr)]
    if info.user_data is not None:
        texts.append(f"user-data={info.user_data}")
    strings = [text.encode() for text in texts]
    for each in strings:
        if len(each) > MAX_TXT_BYTES:
            raise RecordTooLarge(
                f"a record has at most {MAX_TXT_BYTES} bytes, {each[:24]!r}… has {len(each)}"
            )
    return strings


def parse_attributes(id: EndpointId, strings: Iterable[bytes]) -> EndpointInfo:
    """Read an endpoint's TXT strings; what is not UTF-8, or no address, is left out.

    Raises:
        InvalidPacket: a string is not ``key=value``, a key is unknown, or there are too many.
    """
    addrs: list[TransportAddr] = []
    user_data: str | None = None
    for number, raw in enumerate(strings):
        if number >= MAX_ATTRIBUTES:
            raise InvalidPacket(f"an endpoint has at most {MAX_ATTRIBUTES} records")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            continue
        key, equals, rest = text.partition("=")
        if not equals:
            raise InvalidPacket(f"a record of an endpoint is key=value, {text[:40]!r} is not")
        # As iroh does: a second equals sign ends the value.
        value = rest.partition("=")[0]
        if key == "relay":
            addrs += _relay(value)
        elif key == "addr":
            addrs += _addr(value)
        elif key == "user-data":
            if user_data is None:
                user_data = value
        else:
            raise InvalidPacket(f"a record of an endpoint has an unknown key: {key[:40]!r}")
    if user_data is not None and len(user_data.encode()) > MAX_USER_DATA_BYTES:
        user_data = None
    return EndpointInfo(EndpointAddr(id, addrs), user_data)


def _relay(value: str) -> list[TransportAddr]:
    try:
        return [RelayAddr(RelayUrl(value))]
    except InvalidAddress:
        return []


def _addr(value: str) -> list[TransportAddr]:
    try:
        return [CustomAddr.parse(value) if "_" in value else IpAddr.parse(value)]
    except InvalidAddress:
        return []


# --- messages -----------------------------------------------------------------------------------


def message_of_info(info: EndpointInfo, ttl_s: int = RECORD_TTL_S) -> bytes:
    """Return the DNS message that is signed: one TXT record for each attribute.

    Raises:
        RecordTooLarge: the message would have more than `limits.MAX_DNS_BYTES`.
    """
    message = dns.message.Message(id=0)
    message.flags = dns.flags.QR
    owner = dns.name.Name([LABEL.encode(), info.id.to_z32().encode(), b""])
    for each in write_attributes(info):
        rdata = dns.rdtypes.ANY.TXT.TXT(dns.rdataclass.IN, dns.rdatatype.TXT, [each])
        # One set for each: dnspython writes the members of a set in an order of its own.
        message.answer.append(dns.rrset.from_rdata(owner, ttl_s, rdata))
    try:
        return message.to_wire(max_size=MAX_DNS_BYTES)
    except dns.exception.TooBig:
        raise RecordTooLarge(
            f"the records of an endpoint take more than {MAX_DNS_BYTES} bytes",
            hint="publish fewer addresses, or a shorter user data",
        ) from None


def read_message(data: bytes) -> dns.message.Message:
    """Read the answers of a signed DNS message, one RRset for each record; the rest is not looked at.

    Id, flags and opcode mean nothing here, and bytes after the message are ignored, as in iroh.

    Raises:
        InvalidPacket: it is malformed, has a record of an unknown class, or a reserved header bit.
    """
    if len(data) < 12:
        raise InvalidPacket("a DNS message has at least 12 bytes")
    flags, questions, answers = struct.unpack_from(">HHH", data, 2)
    if flags & _RESERVED:
        raise InvalidPacket("a reserved bit of the DNS header is set")
    # Opcodes and sections of DNS updates and signatures would be read by rules of their own.
    head = struct.pack(">6H", 0, int(dns.flags.QR), questions, answers, 0, 0)
    try:
        message = dns.message.from_wire(
            head + data[12:], one_rr_per_rrset=True, ignore_trailing=True
        )
    except (dns.exception.DNSException, ValueError) as error:
        raise InvalidPacket(
            f"the DNS message is malformed: {str(error) or type(error).__name__}"
        ) from None
    for each in message.answer:
        if int(each.rdclass) & ~_FLUSH not in _CLASSES:
            raise InvalidPacket(f"a record has an unknown class: {int(each.rdclass)}")
    return message


def info_of_message(id: EndpointId, message: dns.message.Message) -> EndpointInfo:
    """Return what a message, as `read_message` returns it, says of an endpoint.

    Raises:
        InvalidPacket: see `parse_attributes`.
    """
    owner = (LABEL.encode(), id.to_z32().encode(), b"")
    return parse_attributes(
        id,
        (
            b"".join(rdata.strings)
            for each in message.answer
            # Names are case-sensitive here.
            if each.rdtype == dns.rdatatype.TXT and each.name.labels == owner
            for rdata in each
        ),
    )
