"""As much of HTTP/1.1 as a relay speaks: request heads, short responses, the WebSocket upgrade.

A relay answers a handful of GET requests without bodies, so this is a reader of heads with strict
limits and functions from a request to a response. Nothing here does I/O.

Source: RFC 9112; RFC 6455 section 4; relay wire reference 1.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final
from urllib.parse import unquote

import attrs

from dialkey.limits import MAX_RELAY_HEADERS, MAX_RELAY_REQUEST_HEAD_BYTES, MAX_RELAY_TOKEN_CHARS
from dialkey_relay.errors import RelayUpgradeError, RelayWireError
from dialkey_relay.frames import RelayVersion

__all__ = [
    "HeadReader",
    "Request",
    "Response",
    "ResponseHead",
    "Upgrade",
    "accept_value",
    "bearer_token",
    "check_upgrade",
    "check_upgrade_response",
    "is_token",
    "upgrade_request",
    "upgrade_response",
]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) (\S+) HTTP/1\.([0-9])")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.[0-9] ([0-9]{3})(?: (.*))?")
_PHRASES: Final = {
    101: "Switching Protocols",
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    429: "Too Many Requests",
    503: "Service Unavailable",
}

SUBPROTOCOLS: Final = {version.subprotocol: version for version in RelayVersion}

Headers = tuple[tuple[str, str], ...]


def _find(headers: Headers, name: str) -> str | None:
    return next((value for key, value in headers if key == name), None)


@attrs.frozen
class Request:
    """The head of a request.

    Attributes:
        target: path and query as sent.
        headers: names in lower case, values without white space around, decoded as Latin-1.
        keep_alive: whether the client wants to send another request.
    """

    method: str
    target: str
    headers: Headers
    keep_alive: bool = True

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the first question mark; empty where there is none."""
        return self.target.partition("?")[2]

    def header(self, name: str) -> str | None:
        """Return the first header of that (lower-case) name."""
        return _find(self.headers, name)


@attrs.frozen
class ResponseHead:
    """The head of a response.

    Attributes:
        headers: as in `Request`.
    """

    status: int
    phrase: str
    headers: Headers

    def header(self, name: str) -> str | None:
        """Return the first header of that (lower-case) name."""
        return _find(self.headers, name)


@attrs.frozen
class Response:
    """A response to send.

    Attributes:
        headers: in order, names as they shall appear.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""

    def encode(self, *, keep_alive: bool = True) -> bytes:
        """Encode head and body, with the headers that frame them."""
        lines = [f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.status not in (101, 204):
            lines.append(f"content-length: {len(self.body)}")
        if not keep_alive and self.status != 101:
            lines.append("connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


class HeadReader:
    """Collect the head of a request or response from a byte stream."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._buffer += data

    def next_lines(self) -> list[str] | None:
        """Take one whole head out of the buffer, as lines; None while it is incomplete.

        Raises:
            RelayWireError: it is longer than a head may be.
        """
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_RELAY_REQUEST_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_RELAY_REQUEST_HEAD_BYTES:
                raise RelayWireError(f"a request head exceeds {MAX_RELAY_REQUEST_HEAD_BYTES} bytes")
            return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        return lines

    def next_request(self) -> Request | None:
        """Take the next request; None while it is incomplete.

        Raises:
            RelayWireError: it is malformed, too long, or announces a body.
        """
        lines = self.next_lines()
        if lines is None:
            return None
        match = _REQUEST_LINE.fullmatch(lines[0])
        if match is None:
            raise RelayWireError("a request line is malformed")
        headers = parse_headers(lines[1:])
        if _find(headers, "transfer-encoding") or _find(headers, "content-length") not in (
            None,
            "0",
        ):
            raise RelayWireError("a request has a body")
        connection = (_find(headers, "connection") or "").lower()
        keep_alive = match[3] != "0" and "close" not in connection
        return Request(match[1], match[2], headers, keep_alive)

    def next_response(self) -> ResponseHead | None:
        """Take the next response head; None while it is incomplete.

        Raises:
            RelayWireError: it is malformed or too long.
        """
        lines = self.next_lines()
        if lines is None:
            return None
        match = _STATUS_LINE.fullmatch(lines[0])
        if match is None:
            raise RelayWireError("the answer is not HTTP")
        return ResponseHead(int(match[1]), match[2] or "", parse_headers(lines[1:]))

    @property
    def has_more(self) -> bool:
        """Whether bytes beyond the heads taken so far have arrived."""
        return bool(self._buffer)

    def rest(self) -> bytes:
        """Take all bytes beyond the heads taken so far."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


def parse_headers(lines: list[str]) -> Headers:
    """Parse header lines, strictly: no folding, no space before the colon.

    Raises:
        RelayWireError: a line is malformed, or there are too many.
    """
    if len(lines) > MAX_RELAY_HEADERS:
        raise RelayWireError(f"a head has more than {MAX_RELAY_HEADERS} headers")
    headers: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or "\r" in value or "\0" in value:
            raise RelayWireError("a header line is malformed")
        headers.append((name.lower(), value.strip(" \t")))
    return tuple(headers)


def accept_value(key: str) -> str:
    """Compute Sec-WebSocket-Accept for a Sec-WebSocket-Key."""
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


# --- the upgrade, server side -------------------------------------------------------------------


@attrs.frozen
class Upgrade:
    """An upgrade request that can be granted.

    Attributes:
        version: the highest version that both sides speak.
        key: the client's Sec-WebSocket-Key.
    """

    version: RelayVersion
    key: str


def _bad(text: str, *headers: tuple[str, str]) -> Response:
    return Response(400, (("content-type", "text/plain; charset=utf-8"), *headers), text.encode())


def check_upgrade(request: Request) -> Upgrade | Response:
    """Check a request for ``/relay``; return what to do, or the refusal to send."""
    if request.header("upgrade") != "websocket":
        return _bad("This path is a relay: it needs the header Upgrade: websocket.\n")
    key = request.header("sec-websocket-key")
    if key is None:
        return _bad("The header Sec-WebSocket-Key is missing.\n")
    version = request.header("sec-websocket-version")
    if version != "13":
        return _bad(
            "The header Sec-WebSocket-Version must be 13.\n", ("sec-websocket-version", "13")
        )
    offered = request.header("sec-websocket-protocol")
    if offered is None:
        return _bad("The header Sec-WebSocket-Protocol is missing.\n")
    names = [name.strip() for name in offered.split(",")]
    known = [SUBPROTOCOLS[name] for name in names if name in SUBPROTOCOLS]
    if not known:
        return _bad(f"Offer one of these sub-protocols: {', '.join(SUBPROTOCOLS)}.\n")
    return Upgrade(max(known), key)


def upgrade_response(upgrade: Upgrade, *headers: tuple[str, str]) -> Response:
    """Grant an upgrade."""
    return Response(
        101,
        (
            ("upgrade", "websocket"),
            ("sec-websocket-accept", accept_value(upgrade.key)),
            ("sec-websocket-protocol", upgrade.version.subprotocol),
            ("connection", "upgrade"),
            *headers,
        ),
    )


def bearer_token(request: Request) -> str | None:
    """Find the access token: ``Authorization: Bearer …``, else the query parameter ``token``."""
    for name, value in request.headers:
        if name != "authorization":
            continue
        if not all(" " <= character <= "~" for character in value):
            return None
        scheme, space, token = value.partition(" ")
        if space and scheme.lower() == "bearer":
            return token if len(token) <= MAX_RELAY_TOKEN_CHARS else None
    for pair in request.query.split("&"):
        name, equals, value = pair.partition("=")
        if equals and name == "token":
            return unquote(value) if len(value) <= MAX_RELAY_TOKEN_CHARS else None
    return None


# --- the upgrade, client side -------------------------------------------------------------------


def is_token(value: object) -> bool:
    """Say whether a header can carry this as a bearer token."""
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()


def upgrade_request(
    host: str,
    target: str,
    key: str,
    *,
    token: str | None = None,
    headers: Headers = (),
    versions: tuple[RelayVersion, ...] = (RelayVersion.V2, RelayVersion.V1),
) -> bytes:
    """Encode the request that opens a relay connection.

    Args:
        host: host and, unless it is the scheme's own, port.
        target: path and query.
        key: base64 of 16 random bytes.
        token: what to send as bearer token.

    Raises:
        ValueError: the token holds characters that no header can carry.
    """
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        f"sec-websocket-protocol: {', '.join(version.subprotocol for version in versions)}",
    ]
    if token is not None:
        if not is_token(token):
            raise ValueError("a relay token is made of printable ASCII characters")
        lines.append(f"authorization: Bearer {token}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def check_upgrade_response(response: ResponseHead, key: str) -> RelayVersion:
    """Check a relay's answer to the upgrade request; return the version it chose.

    Raises:
        RelayUpgradeError: the server is no relay, or does not let us in.
    """
    if response.status != 101:
        hint = None
        if response.status in (401, 403):
            hint = "the relay, or something before it, wants other credentials"
        elif response.status == 404:
            hint = "is this the URL of a relay?"
        raise RelayUpgradeError(
            f"the relay answered the upgrade with {response.status} {response.phrase[:80]}",
            hint=hint,
        )
    if (response.header("upgrade") or "").lower() != "websocket":
        raise RelayUpgradeError("the answer to the upgrade names no WebSocket")
    if response.header("sec-websocket-accept") != accept_value(key):
        raise RelayUpgradeError(
            "the answer to the upgrade was made for another request",
            hint="a proxy between us and the relay may have cached it",
        )
    chosen = response.header("sec-websocket-protocol")
    if chosen is None or chosen not in SUBPROTOCOLS:
        raise RelayUpgradeError(
            f"the relay chose the sub-protocol {chosen!r}, which we do not speak",
            hint="this version of dialkey may be too old for the relay",
        )
    return SUBPROTOCOLS[chosen]
