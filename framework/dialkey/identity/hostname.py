"""Hosts of URLs: domain names, IPv4 in all its spellings, IPv6, opaque names.

Source: https://url.spec.whatwg.org, 3.5; Unicode Technical Standard 46 (by way of `idna`).
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Final
from urllib.parse import unquote_to_bytes

from dialkey.errors import InvalidAddress

__all__ = ["format_ipv6", "parse_opaque", "parse_special"]

_FORBIDDEN_HOST: Final = re.compile(r"[\x00\t\n\r #/:<>?@\[\\\]^|]")
_FORBIDDEN_DOMAIN: Final = re.compile(r"[\x00-\x20\x7f#%/:<>?@\[\\\]^|]")
_IPV6_CHARACTERS: Final = re.compile(r"[0-9A-Fa-f:.]+")
_HEX_NUMBER: Final = re.compile(r"0[xX]([0-9A-Fa-f]*)")
_ASCII_DIGITS: Final = re.compile(r"[0-9]+")


def format_ipv6(address: ipaddress.IPv6Address) -> str:
    """Write an IPv6 address without brackets, scope or dotted-quad notation.

    `str` would do, but since Python 3.13 it writes IPv4-mapped addresses with dots.
    """
    number = int(address)
    if number >> 32 == 0xFFFF:
        return f"::ffff:{number >> 16 & 0xFFFF:x}:{number & 0xFFFF:x}"
    return str(ipaddress.IPv6Address(number))


def parse_special(text: str) -> str:
    """Return the normal form of the host of an http, https, ws, wss, ftp or file URL.

    Raises:
        InvalidAddress: it is not a host.
    """
    if text.startswith("["):
        return _parse_ipv6(text)
    try:
        domain = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidAddress("the host of a relay URL is not UTF-8") from None
    domain = _to_ascii(domain)
    if not domain:
        raise InvalidAddress("a relay URL needs a host name")
    if match := _FORBIDDEN_DOMAIN.search(domain):
        raise InvalidAddress(f"the host of a relay URL holds {match[0]!r}")
    if _ends_in_number(domain):
        return str(_parse_ipv4(domain))
    return domain


def parse_opaque(text: str) -> str:
    """Return the normal form of the host of a URL of any other scheme; it may be empty.

    Raises:
        InvalidAddress: it is not a host.
    """
    if text.startswith("["):
        return _parse_ipv6(text)
    if match := _FORBIDDEN_HOST.search(text):
        raise InvalidAddress(f"the host of a relay URL holds {match[0]!r}")
    return "".join(
        character
        if " " <= character <= "~"
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))
        for character in text
    )


def _parse_ipv6(text: str) -> str:
    inner = text[1:-1]
    if not text.endswith("]") or not _IPV6_CHARACTERS.fullmatch(inner):
        raise InvalidAddress("the bracketed host of a relay URL is not an IPv6 address")
    try:
        return f"[{format_ipv6(ipaddress.IPv6Address(inner))}]"
    except ValueError:
        raise InvalidAddress("the bracketed host of a relay URL is not an IPv6 address") from None


def _ends_in_number(domain: str) -> bool:
    labels = domain.split(".")
    if not labels[-1]:
        if len(labels) == 1:
            return False
        labels.pop()
    return bool(_ASCII_DIGITS.fullmatch(labels[-1]) or _HEX_NUMBER.fullmatch(labels[-1]))


def _parse_ipv4(domain: str) -> ipaddress.IPv4Address:
    parts = domain.removesuffix(".").split(".")
    numbers = [_ipv4_number(part) for part in parts]
    *leading, final = numbers
    if len(parts) > 4 or any(n > 255 for n in leading) or final >= 256 ** (5 - len(parts)):
        raise InvalidAddress("the host of a relay URL ends in a number but is not an IPv4 address")
    value = final
    for index, number in enumerate(leading):
        value += number * 256 ** (3 - index)
    return ipaddress.IPv4Address(value)


def _ipv4_number(part: str) -> int:
    """Read decimal, octal (leading 0) or hex (leading 0x) as old resolvers do."""
    too_large = 1 << 32
    if match := _HEX_NUMBER.fullmatch(part):
        digits = match[1].lstrip("0")
        return int(digits or "0", 16) if len(digits) <= 8 else too_large
    if _ASCII_DIGITS.fullmatch(part):
        octal = len(part) > 1 and part.startswith("0")
        digits = part.lstrip("0") or "0"
        if not octal:
            return int(digits) if len(digits) <= 10 else too_large
        if not set(digits) & {"8", "9"}:
            return int(digits, 8) if len(digits) <= 11 else too_large
    raise InvalidAddress("the host of a relay URL ends in a number but is not an IPv4 address")


def _to_ascii(domain: str) -> str:
    """Bring a domain to its ASCII form by UTS 46, non-transitional, with the standard's leniency.

    `idna.encode` is stricter than browsers and iroh: it refuses emoji and names with hyphens in odd
    places, so only its mapping table and its checks are used.
    """
    if domain.isascii():
        lowered = domain.lower()
        if not any(label.startswith("xn--") for label in lowered.split(".")):
            return lowered
    # Imported late: its tables cost some milliseconds, and few relays have such names.
    import idna

    try:
        labels = [_to_unicode(label) for label in idna.uts46_remap(domain, False).split(".")]
        bidirectional = any(
            unicodedata.bidirectional(character) in ("R", "AL", "AN")
            for label in labels
            for character in label
        )
        for label in labels:
            if label:
                _check_label(label, bidirectional)
    except (idna.IDNAError, UnicodeError, ValueError, IndexError):
        raise InvalidAddress("the host of a relay URL is not a valid domain name") from None
    return ".".join(
        label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")
        for label in labels
    )


def _to_unicode(label: str) -> str:
    """Decode an ``xn--`` label, insisting that encoding it again would give the same."""
    import idna

    if not label.startswith("xn--"):
        return label
    decoded = label[4:].encode("ascii").decode("punycode")
    if (
        decoded.isascii()
        or decoded.encode("punycode") != label[4:].encode("ascii")
        or idna.uts46_remap(decoded, False) != decoded
    ):
        raise InvalidAddress("the host of a relay URL has a malformed xn-- label")
    return decoded


def _check_label(label: str, bidirectional: bool) -> None:
    import idna

    if not label.isascii():
        idna.check_initial_combiner(label)
    for position, character in enumerate(label):
        if character in "\u200c\u200d" and not idna.valid_contextj(label, position):
            raise InvalidAddress("the host of a relay URL has a misplaced joiner")
    if bidirectional:
        idna.check_bidi(label, check_ltr=True)
