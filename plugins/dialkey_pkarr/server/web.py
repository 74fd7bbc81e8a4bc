"""HTTP/1.1 with small bodies, and the paths of a discovery server. Sans-IO but for the records.

Source: RFC 8484, 9110 and 9112; docs/wire/discovery.md 8.1 and 8.2.
"""

from __future__ import annotations

import base64
import binascii
import json
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

import attrs
import dns.exception
import dns.flags
import dns.message
import dns.rdatatype
import h11

from dialkey.errors import InvalidInput, InvalidKey, WireError
from dialkey.identity import EndpointId
from dialkey_pkarr.limits import MAX_REQUEST_BODY_BYTES, MAX_REQUEST_HEAD_BYTES

__all__ = [
    "DNS_JSON",
    "DNS_MESSAGE",
    "HttpConnection",
    "HttpFault",
    "Reply",
    "Request",
    "as_json",
    "doh_query",
    "fault",
    "key_of_path",
]

DNS_MESSAGE: Final = "application/dns-message"
DNS_JSON: Final = "application/dns-json"
_JSON_TYPES: Final = (DNS_JSON, "application/x-javascript", "application/json")
_JSON: Final = ("content-type", "application/json")
_CORS: Final = ("access-control-allow-origin", "*")


class HttpFault(WireError):
    """A request that gets an error for an answer.

    Attributes:
        status: of the answer.
    """

    code = "remote.wire.http"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen
class Request:
    """A request with its body.

    Attributes:
        headers: names in lower case.
    """

    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen
class Reply:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def fault(status: int, detail: str | None, *headers: tuple[str, str]) -> Reply:
    """Return an error in the form of iroh's server."""
    body = json.dumps({"status": str(status), "detail": detail}).encode()
    return Reply(status, body, (_JSON, *headers))


class HttpConnection:
    """The server's end of a connection: bytes in, requests out, and replies back to bytes."""

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_HEAD_BYTES)
        self._request: Request | None = None
        self._body = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes; none mean the end."""
        self._h11.receive_data(data)

    def take_continue(self) -> bytes:
        """Return what a client waits for before it sends a body."""
        if self._request is None or not self._h11.they_are_waiting_for_100_continue:
            return b""
        return self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def next_request(self) -> Request | None:
        """Take the next request; None while it is not complete, or when there is none any more.

        Raises:
            HttpFault: it cannot be read or is too large; the answer to it is the last.
        """
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise HttpFault(error.error_status_hint, f"this is not HTTP/1.1: {error}") from None
            if isinstance(event, h11.Request):
                target = event.target.decode("ascii")
                path, _, query = target.partition("?")
                headers = {
                    name.decode("ascii"): value.decode("latin-1") for name, value in event.headers
                }
                self._body.clear()
                self._request = Request(event.method.decode("ascii"), path, query, headers)
                length = headers.get("content-length", "0")
                if len(length) > 9 or int(length) > MAX_REQUEST_BODY_BYTES:
                    raise HttpFault(413, f"a body has at most {MAX_REQUEST_BODY_BYTES} bytes")
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_REQUEST_BODY_BYTES:
                    raise HttpFault(413, f"a body has at most {MAX_REQUEST_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                request, self._request = self._request, None
                assert request is not None
                return attrs.evolve(request, body=bytes(self._body))
            else:
                return None

    @property
    def is_idle(self) -> bool:
        """Whether no part of a request is here."""
        return self._h11.their_state is h11.IDLE and not self._h11.trailing_data[0]

    @property
    def is_over(self) -> bool:
        """Whether no further request can come."""
        return self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    def respond(self, reply: Reply, *, is_last: bool = False, is_head: bool = False) -> bytes:
        """Write a reply."""
        headers = [*reply.headers, _CORS]
        if reply.status != HTTPStatus.NO_CONTENT:
            headers.append(("content-length", str(len(reply.body))))
        if is_last:
            headers.append(("connection", "close"))
        data = (
            self._h11.send(
                h11.Response(
                    status_code=reply.status,
                    headers=headers,
                    reason=HTTPStatus(reply.status).phrase,
                )
            )
            or b""
        )
        if reply.body and not is_head:
            data += self._h11.send(h11.Data(data=reply.body)) or b""
        data += self._h11.send(h11.EndOfMessage()) or b""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return data


def key_of_path(text: str) -> EndpointId:
    """Read the key in ``/pkarr/KEY``.

    Raises:
        HttpFault: it is none.
    """
    try:
        return EndpointId.from_z32(text)
    except (InvalidKey, InvalidInput) as error:
        raise HttpFault(400, f"invalid key: {error}") from None


def doh_query(request: Request) -> tuple[bytes, bool]:
    """Return the DNS message of a request for ``/dns-query``, and whether JSON is wanted.

    Raises:
        HttpFault: there is none.
    """
    if request.method == "POST":
        return request.body, False
    accept = request.headers.get("accept", DNS_MESSAGE)
    kinds = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
    fields = parse_qs(request.query, keep_blank_values=True)
    if any(kind in _JSON_TYPES for kind in kinds):
        return _query_of_fields(fields), True
    if not any(kind in (DNS_MESSAGE, "*/*", "application/*") for kind in kinds):
        raise HttpFault(406, f"answers are {DNS_MESSAGE} or {DNS_JSON}")
    if "dns" not in fields and "name" in fields:
        return _query_of_fields(fields), True
    text = fields.get("dns", [""])[0]
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise HttpFault(400, "the parameter dns is not base64url") from None
    if not data:
        raise HttpFault(400, "the parameter dns is missing")
    return data, False


def _query_of_fields(fields: dict[str, list[str]]) -> bytes:
    name = fields.get("name", [""])[0]
    kind = fields.get("type", ["A"])[0]
    if not name:
        raise HttpFault(400, "the parameter name is missing")
    try:
        rdtype = dns.rdatatype.RdataType.make(
            int(kind) if kind.isascii() and kind.isdigit() else kind
        )
        message = dns.message.make_query(name, rdtype)
        message.id = 0
        return message.to_wire()
    except (dns.exception.DNSException, ValueError, UnicodeError) as error:
        raise HttpFault(400, f"this is not a DNS question: {error}") from None


def as_json(message: dns.message.Message) -> bytes:
    """Write a DNS answer as resolvers with a JSON interface do."""
    answer = [
        {
            "name": each.name.to_text(),
            "type": int(each.rdtype),
            "TTL": each.ttl,
            "data": (
                b"".join(rdata.strings).decode("utf-8", "replace")
                if each.rdtype == dns.rdatatype.TXT
                else rdata.to_text()
            ),
        }
        for each in message.answer
        for rdata in each
    ]
    fields: dict[str, object] = {
        "Status": int(message.rcode()),
        "TC": bool(message.flags & dns.flags.TC),
        "RD": bool(message.flags & dns.flags.RD),
        "RA": bool(message.flags & dns.flags.RA),
        "AD": bool(message.flags & dns.flags.AD),
        "CD": bool(message.flags & dns.flags.CD),
        "Question": [
            {"name": each.name.to_text(), "type": int(each.rdtype)} for each in message.question
        ],
        "Comment": None,
        "edns_client_subnet": None,
    }
    if answer:
        fields["Answer"] = answer
    return json.dumps(fields).encode()
