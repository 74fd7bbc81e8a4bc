"""HTTP/1.1 as a relay and its clients use it: heads, short answers, the WebSocket upgrade.

h11 reads and writes the bytes. What is added here are the limits, the few rules of a relay (it takes
no bodies), the forms in which a target can come, and functions from a request to a response. Nothing
here does I/O.

Source: RFC 9110 and 9112; RFC 6455 section 4; docs/wire/relay.md 1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import attrs
import h11

from dialkey.limits import MAX_RELAY_HEADERS, MAX_RELAY_REQUEST_HEAD_BYTES, MAX_RELAY_TOKEN_CHARS
from dialkey_relay.errors import RelayUnreachable, RelayUpgradeError, RelayWireError
from dialkey_relay.frames import RelayVersion

__all__ = [
    "ClientHttp",
    "Request",
    "Response",
    "ResponseHead",
    "ServerHttp",
    "Upgrade",
    "accept_value",
    "bearer_token",
    "check_upgrade",
    "check_upgrade_response",
    "is_token",
    "upgrade_request",
    "upgrade_response",
    "without_query",
]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_ABSOLUTE: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
TEXT: Final = ("content-type", "text/plain; charset=utf-8")

SUBPROTOCOLS: Final = {version.subprotocol: version for version in RelayVersion}

Headers = tuple[tuple[str, str], ...]


def without_query(target: str) -> str:
    """Show a target with what may be secret in it left out."""
    path, mark, _ = target.partition("?")
    return repr(f"{path}?…" if mark else path)


class _Head:
    """What requests and responses have in common."""

    __slots__ = ()

    headers: Headers

    def header(self, name: str) -> str | None:
        """Return the first header of that (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)

    def values(self, name: str) -> list[str]:
        """Return all headers of that (lower-case) name."""
        return [value for key, value in self.headers if key == name]

    def listed(self, name: str) -> list[str]:
        """Return the members of a list header, which may be spread over several lines."""
        members = ",".join(self.values(name)).split(",")
        return [member for each in members if (member := each.strip(" \t"))]


@attrs.frozen
class Request(_Head):
    """The head of a request.

    Attributes:
        target: path and query; of a target in absolute form, what follows the host.
        headers: names in lower case, values without white space around, decoded as Latin-1.
        version: of HTTP, "1.0" or "1.1".
    """

    method: str
    # A token may stand in the query.
    target: str = attrs.field(repr=without_query)
    # Tokens travel in headers.
    headers: Headers = attrs.field(repr=False)
    version: str = "1.1"

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the first question mark; empty where there is none."""
        return self.target.partition("?")[2]


@attrs.frozen
class ResponseHead(_Head):
    """The head of a response.

    Attributes:
        headers: as in `Request`.
    """

    status: int
    phrase: str
    headers: Headers


@attrs.frozen
class Response:
    """A response to send.

    Attributes:
        headers: in order, names as they are to appear; those that frame the body are added.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""


def _parsed(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    found = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in headers)
    if len(found) > MAX_RELAY_HEADERS:
        raise RelayWireError(f"a head has more than {MAX_RELAY_HEADERS} headers")
    # h11 accepts control characters that no header needs and that would garble logs.
    for _, value in found:
        if not all(character >= " " or character == "\t" for character in value) or "\x7f" in value:
            raise RelayWireError("a header holds a control character")
    return found


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]


class _Http:
    """An h11 connection that raises our errors."""

    __slots__ = ("_connection", "_status")

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self._connection = h11.Connection(
            role, max_incomplete_event_size=MAX_RELAY_REQUEST_HEAD_BYTES
        )
        # How to answer what cannot be read.
        self._status = HTTPStatus.BAD_REQUEST

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes; the memory can be reused afterwards."""
        # To h11, no bytes mean the end.
        if data:
            self._connection.receive_data(bytes(data))

    def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._connection.next_event()
        except h11.RemoteProtocolError as error:
            self._status = HTTPStatus(error.error_status_hint)
            if self._status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                limit = MAX_RELAY_REQUEST_HEAD_BYTES
                raise RelayWireError(f"a head exceeds {limit} bytes") from None
            raise RelayWireError(f"this is not HTTP/1.1: {error}") from None

    @property
    def has_more(self) -> bool:
        """Whether bytes beyond what was read so far have arrived."""
        return bool(self._connection.trailing_data[0])

    def rest(self) -> bytes:
        """Return all bytes beyond what was read so far; call it once, at the end."""
        return self._connection.trailing_data[0]


class ServerHttp(_Http):
    """The server's end of a connection that carries requests without bodies."""

    __slots__ = ("_is_head_request",)

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._is_head_request = False

    def next_request(self) -> Request | None:
        """Take the next request; None while it is incomplete. Each wants its `respond` first.

        Raises:
            RelayWireError: it is malformed, too long, or announces a body; `refuse` says so.
        """
        event = self._next()
        if not isinstance(event, h11.Request):
            return None
        self._is_head_request = event.method == b"HEAD"
        version = event.http_version.decode("ascii")
        if version not in ("1.0", "1.1"):
            self._status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
            raise RelayWireError("this server speaks HTTP/1.1")
        target = event.target.decode("ascii")
        if absolute := _ABSOLUTE.match(target):
            rest = target[absolute.end() :]
            target = rest if rest.startswith("/") else f"/{rest}"
        request = Request(event.method.decode("ascii"), target, _parsed(event.headers), version)
        lengths = request.values("content-length")
        if request.header("transfer-encoding") is not None or any(int(each) for each in lengths):
            raise RelayWireError("a request has a body")
        end = self._next()
        assert isinstance(end, h11.EndOfMessage)
        return request

    def respond(self, response: Response, *, is_last: bool = False) -> bytes:
        """Encode the response to the request that was taken last.

        Args:
            is_last: the connection is closed afterwards.
        """
        headers = list(response.headers)
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return self._encode(
                h11.InformationalResponse(
                    status_code=101, headers=_raw(tuple(headers)), reason=_phrase(101)
                )
            )
        if response.status != HTTPStatus.NO_CONTENT:
            headers.append(("content-length", str(len(response.body))))
        if is_last:
            headers.append(("connection", "close"))
        connection = self._connection
        data = self._encode(
            h11.Response(
                status_code=response.status,
                headers=_raw(tuple(headers)),
                reason=_phrase(response.status),
            )
        )
        if response.body and not self._is_head_request:
            data += self._encode(h11.Data(data=response.body))
        data += self._encode(h11.EndOfMessage())
        if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            connection.start_next_cycle()
        return data

    def refuse(self, error: RelayWireError) -> bytes:
        """Encode the last response of a connection, after `next_request` failed."""
        return self.respond(Response(self._status, (TEXT,), error.message.encode()), is_last=True)

    def _encode(self, event: h11.Event) -> bytes:
        return self._connection.send(event) or b""

    @property
    def is_over(self) -> bool:
        """Whether the connection carries no further request: hang up when all is sent."""
        return self._connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE)


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode("ascii")


class ClientHttp(_Http):
    """The client's end of a connection that carries requests without bodies."""

    __slots__ = ("_body_bytes",)

    def __init__(self) -> None:
        super().__init__(h11.CLIENT)
        self._body_bytes = 0

    def request(self, method: str, target: str, headers: Headers) -> bytes:
        """Encode a request.

        Raises:
            ValueError: the target or a header holds characters that HTTP cannot carry.
        """
        try:
            head = h11.Request(method=method, target=target, headers=_raw(headers))
        except (h11.LocalProtocolError, UnicodeError) as error:
            raise ValueError(f"HTTP cannot carry this: {error}") from None
        sent = self._connection.send(head), self._connection.send(h11.EndOfMessage())
        return b"".join(each for each in sent if each)

    def next_response(self) -> ResponseHead | None:
        """Take the head of the response; None while it is incomplete.

        Raises:
            RelayWireError: it is malformed or too long.
        """
        while True:
            event = self._next()
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse)
                and event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
            ):
                phrase = bytes(event.reason).decode("ascii", "replace")
                return ResponseHead(event.status_code, phrase, _parsed(event.headers))
            # Other informational responses come before the real one.
            if not isinstance(event, h11.InformationalResponse):
                return None

    def skip_body(self, limit: int) -> bool:
        """Skip the body of the response; tell whether its end has come.

        Raises:
            RelayWireError: it is malformed, or longer than `limit` bytes.
        """
        while True:
            event = self._next()
            if isinstance(event, h11.Data):
                self._body_bytes += len(event.data)
                if self._body_bytes > limit:
                    raise RelayWireError(f"the body of an answer exceeds {limit} bytes")
            elif isinstance(event, h11.EndOfMessage):
                self._body_bytes = 0
                return True
            else:
                return False

    def next_cycle(self) -> bool:
        """Prepare for another request on this connection; return whether there can be one."""
        connection = self._connection
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return False
        connection.start_next_cycle()
        return True


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
    return Response(400, (TEXT, *headers), text.encode())


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def check_upgrade(request: Request) -> Upgrade | Response:
    """Check a request for ``/relay``; return what to do, or the refusal to send."""
    if "websocket" not in map(str.lower, request.listed("upgrade")):
        return _bad("This path is a relay: it needs the header Upgrade: websocket.\n")
    if request.version == "1.0":
        return _bad(
            "The upgrade needs HTTP/1.1. "
            "A proxy in front of the relay may need to be told (nginx: proxy_http_version 1.1).\n"
        )
    keys = request.values("sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        return _bad("The header Sec-WebSocket-Key must be there once: 16 bytes in base64.\n")
    if request.values("sec-websocket-version") != ["13"]:
        return _bad(
            "The header Sec-WebSocket-Version must be 13.\n", ("sec-websocket-version", "13")
        )
    offered = request.listed("sec-websocket-protocol")
    known = [SUBPROTOCOLS[name] for name in offered if name in SUBPROTOCOLS]
    if not known:
        return _bad(
            "The header Sec-WebSocket-Protocol must offer one of these: "
            f"{', '.join(SUBPROTOCOLS)}.\n"
        )
    return Upgrade(max(known), keys[0])


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
    for value in request.values("authorization"):
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
    """Return whether a header can carry this as a bearer token."""
    return (
        isinstance(value, str)
        and value != ""
        and value.isascii()
        and value.isprintable()
        and value == value.strip()
    )


def upgrade_request(
    host: str,
    target: str,
    key: str,
    *,
    token: str | None = None,
    headers: Headers = (),
    versions: tuple[RelayVersion, ...] = (RelayVersion.V2, RelayVersion.V1),
    http: ClientHttp | None = None,
) -> bytes:
    """Encode the request that opens a relay connection.

    Args:
        host: host and, unless it is the scheme's own, port.
        target: path and query.
        key: base64 of 16 random bytes.
        token: what to send as bearer token.
        http: reads the answer; None where somebody else does.

    Raises:
        ValueError: the token holds characters that no header can carry.
    """
    found: list[tuple[str, str]] = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Version", "13"),
        ("sec-websocket-protocol", ", ".join(version.subprotocol for version in versions)),
    ]
    if token is not None:
        if not is_token(token):
            raise ValueError("a relay token is made of printable ASCII characters")
        found.append(("authorization", f"Bearer {token}"))
    http = http if http is not None else ClientHttp()
    return http.request("GET", target, (*found, *headers))


def check_upgrade_response(response: ResponseHead, key: str) -> RelayVersion:
    """Check a relay's answer to the upgrade request; return the version it chose.

    Raises:
        RelayUpgradeError: the server is not a relay, or does not let us in.
        RelayUnreachable: the relay is busy, or not there at the moment.
    """
    if response.status == 429 or response.status >= 500:
        # As a proxy answers while the relay behind it restarts: the next attempt may succeed.
        raise RelayUnreachable(
            f"the relay answered the upgrade with {response.status} {response.phrase[:80]}"
        )
    if response.status != 101:
        hint = None
        if response.status in (401, 403):
            hint = "the relay, or something before it, requires other credentials"
        elif response.status == 404:
            hint = "is this the URL of a relay?"
        raise RelayUpgradeError(
            f"the relay answered the upgrade with {response.status} {response.phrase[:80]}",
            hint=hint,
        )
    if "websocket" not in map(str.lower, response.listed("upgrade")):
        raise RelayUpgradeError("the answer to the upgrade does not name WebSocket")
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
