"""Relay URLs, kept in the normal form of the WHATWG URL standard.

iroh compares, orders and serialises relay URLs by that normal form, so two endpoints agree that
they share a relay only when both normalise alike. ``urllib.parse`` does not; this is the standard's
parser without a base URL, reshaped: because nothing can follow a fragment and a query may not hold
``#``, the text is first cut into scheme, middle, query and fragment, and each part then has a
function of its own. There is no restriction on the scheme at this layer.

Where iroh's parser departs from the standard we follow it: ``^`` stays as it is in paths, ``..``
does not remove a drive letter, ``file`` paths lose empty segments at their front. Not followed are
its other habits with drive letters in ``file`` URLs and with ``@`` or a backslash behind the host
of unknown schemes: no relay has such a URL.

Source: docs/wire/discovery.md 2.3; https://url.spec.whatwg.org, 3 and 4.
"""

from __future__ import annotations

import re
from functools import total_ordering
from typing import Final

import attrs

from dialkey.errors import InvalidAddress
from dialkey.identity import hostname
from dialkey.limits import MAX_RELAY_URL_BYTES

__all__ = ["RelayUrl"]

_SPECIAL_PORTS: Final[dict[str, int | None]] = {
    "ftp": 21,
    "file": None,
    "http": 80,
    "https": 443,
    "ws": 80,
    "wss": 443,
}
_CONTROL_OR_SPACE: Final = "".join(map(chr, range(0x21)))
_REMOVED: Final = str.maketrans("", "", "\t\n\r")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_DRIVE_LETTER: Final = re.compile(r"[A-Za-z][:|]")
_SINGLE_DOT: Final = frozenset({".", "%2e"})
_DOUBLE_DOT: Final = frozenset({"..", ".%2e", "%2e.", "%2e%2e"})

# The standard's percent-encode sets: ASCII characters encoded beside controls and non-ASCII.
_FRAGMENT_SET: Final = frozenset(' "<>`')
_QUERY_SET: Final = frozenset(' "#<>')
_SPECIAL_QUERY_SET: Final = _QUERY_SET | {"'"}
_PATH_SET: Final = _QUERY_SET | frozenset("?`{}")
_USERINFO_SET: Final = _PATH_SET | frozenset("/:;=@[\\]^|")
_NOTHING: Final[frozenset[str]] = frozenset()


@attrs.frozen
class _Url:
    scheme: str
    host: str | None
    port: int | None
    path: str
    text: str


@attrs.frozen
class _Authority:
    credentials: str
    host: str
    port: int | None


def _encode(text: str, encode_set: frozenset[str]) -> str:
    if text.isascii() and text.isprintable() and encode_set.isdisjoint(text):
        return text
    return "".join(
        character
        if " " <= character <= "~" and character not in encode_set
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))
        for character in text
    )


def _parse(text: str) -> _Url:
    text = text.strip(_CONTROL_OR_SPACE).translate(_REMOVED)
    match = _SCHEME.match(text)
    if match is None:
        raise InvalidAddress(
            "a relay URL starts with a scheme", hint="for example https://relay.example"
        )
    scheme = match[1].lower()
    special = scheme in _SPECIAL_PORTS
    rest, has_fragment, fragment = text[match.end() :].partition("#")
    rest, has_query, query = rest.partition("?")

    authority: _Authority | None = None
    if scheme == "file":
        authority, path = _file_parts(rest)
    elif special:
        authority, path = _special_parts(scheme, rest)
    elif rest.startswith("//"):
        authority, path = _other_parts(rest[2:])
    elif rest.startswith("/"):
        path = _normal_path(rest[1:].split("/"))
        if path.startswith("//"):
            path = "/." + path  # otherwise the path would read as an authority
    else:
        path = _encode(rest, _NOTHING)

    result = scheme + ":"
    if authority is not None:
        result += "//" + authority.credentials + authority.host
        if authority.port is not None:
            result += f":{authority.port}"
    result += path
    if has_query:
        result += "?" + _encode(query, _SPECIAL_QUERY_SET if special else _QUERY_SET)
    if has_fragment:
        result += "#" + _encode(fragment, _FRAGMENT_SET)
    host = authority.host if authority is not None else None
    port = authority.port if authority is not None else None
    if port is None:
        port = _SPECIAL_PORTS.get(scheme)
    return _Url(scheme, host or None, port, path, result)


def _special_parts(scheme: str, rest: str) -> tuple[_Authority, str]:
    rest = rest.replace("\\", "/").lstrip("/")
    written, _, path = rest.partition("/")
    credentials, host, port = _split_authority(written)
    if not host:
        raise InvalidAddress("a relay URL needs a host name")
    if port == _SPECIAL_PORTS[scheme]:
        port = None
    parsed = hostname.parse_special(host)
    return _Authority(credentials, parsed, port), _normal_path(path.split("/"))


def _other_parts(rest: str) -> tuple[_Authority, str]:
    written, slash, path = rest.partition("/")
    credentials, host, port = _split_authority(written)
    if written and not host:
        raise InvalidAddress("a relay URL has a user or a port but no host name")
    parsed = hostname.parse_opaque(host)
    return _Authority(credentials, parsed, port), _normal_path(path.split("/")) if slash else ""


def _file_parts(rest: str) -> tuple[_Authority, str]:
    rest = rest.replace("\\", "/")
    host = ""
    if rest.startswith("//"):
        written, _, path = rest[2:].partition("/")
        if written:
            host = hostname.parse_special(written)
            host = "" if host == "localhost" else host
    else:
        path = rest.removeprefix("/")
    return _Authority("", host, None), _normal_path(path.split("/"), is_file=True)


def _split_authority(text: str) -> tuple[str, str, int | None]:
    """Cut ``user:password@host:port``; the credentials come back encoded, ending in ``@``."""
    userinfo, has_userinfo, location = text.rpartition("@")
    credentials = ""
    if has_userinfo:
        user, _, password = userinfo.partition(":")
        user, password = _encode(user, _USERINFO_SET), _encode(password, _USERINFO_SET)
        if user or password:
            credentials = user + (":" + password if password else "") + "@"
        if not location:
            raise InvalidAddress("a relay URL has a user but no host name")
    # A colon inside brackets belongs to an IPv6 address.
    bracket = location.rfind("]")
    colon = location.find(":", bracket + 1)
    if colon < 0:
        return credentials, location, None
    host, digits = location[:colon], location[colon + 1 :]
    if not digits:
        if not host:
            raise InvalidAddress("a relay URL has a port but no host name")
        return credentials, host, None
    digits = digits.lstrip("0") or "0"
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 5 or int(digits) > 65535:
        raise InvalidAddress("the port of a relay URL is not a number from 0 to 65535")
    return credentials, host, int(digits)


def _normal_path(segments: list[str], *, is_file: bool = False) -> str:
    """Resolve dot segments and encode; the result starts with a slash."""
    result: list[str] = []
    last = len(segments) - 1
    for index, segment in enumerate(segments):
        folded = segment.lower()
        if folded in _DOUBLE_DOT:
            if result and not _DRIVE_LETTER.fullmatch(result[-1]):
                result.pop()
            if index == last:
                result.append("")
        elif folded in _SINGLE_DOT:
            if index == last:
                result.append("")
        else:
            result.append(_encode(segment, _PATH_SET))
    path = "/".join(result)
    # The standard keeps empty segments at the front of file URLs; iroh's parser drops them.
    return "/" + (path.lstrip("/") if is_file else path)


def _normalise(text: str) -> _Url:
    if not isinstance(text, str):
        raise TypeError(f"a relay URL is parsed from str, not {type(text).__name__}")
    if len(text) > MAX_RELAY_URL_BYTES:
        raise InvalidAddress(f"a relay URL has at most {MAX_RELAY_URL_BYTES} characters")
    try:
        url = _parse(text)
    except UnicodeEncodeError:
        raise InvalidAddress("a relay URL holds half of a surrogate pair") from None
    if len(url.text) > MAX_RELAY_URL_BYTES:
        raise InvalidAddress(f"a relay URL has at most {MAX_RELAY_URL_BYTES} bytes when encoded")
    return url


@total_ordering
@attrs.frozen(repr=False, eq=False, order=False, init=False)
class RelayUrl:
    """The URL of a relay, always in normal form.

    Equality, hashing and order are on the normal form. ``https://example.com`` and
    ``https://example.com/`` are equal; ``https://example.com./`` is another relay.

    Args:
        text: a URL with a scheme; white space around it is removed, as the standard says.

    Raises:
        InvalidAddress: the text is not a URL.
    """

    _url: _Url

    def __init__(self, text: str) -> None:
        self.__attrs_init__(_normalise(text))

    @classmethod
    def parse(cls, text: str) -> RelayUrl:
        """Parse and normalise; the same as the constructor.

        Raises:
            InvalidAddress: the text is not a URL.
        """
        return cls(text)

    @property
    def scheme(self) -> str:
        """The scheme in lower case, without the colon."""
        return self._url.scheme

    @property
    def host(self) -> str | None:
        """The host in normal form, an IPv6 address in brackets; None where there is none."""
        return self._url.host

    @property
    def port(self) -> int | None:
        """The port, or the scheme's own; None where neither is known."""
        return self._url.port

    @property
    def path(self) -> str:
        """The path, percent-encoded."""
        return self._url.path

    def __str__(self) -> str:
        return self._url.text

    @property
    def redacted(self) -> str:
        """The URL for logs and messages: without user name, password, query and fragment.

        A relay takes its token from the query, too.
        """
        scheme, slashes, rest = self._url.text.partition("://")
        found = re.match(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL)
        assert found is not None
        _, at, host = found[1].rpartition("@")
        hidden = f"{found[3][0]}…" if found[3] else ""
        return f"{scheme}{slashes}{'…@' if at else ''}{host}{found[2]}{hidden}"

    def __repr__(self) -> str:
        return f"RelayUrl({self.redacted!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RelayUrl):
            return NotImplemented
        return self._url.text == other._url.text

    def __hash__(self) -> int:
        return hash(self._url.text)

    def __lt__(self, other: RelayUrl) -> bool:
        if not isinstance(other, RelayUrl):
            return NotImplemented
        return self._url.text < other._url.text
