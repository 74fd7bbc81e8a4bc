"""Request and response heads, upgrade rules (docs/wire/relay.md 1.5), tokens (2.5)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import RemoteError
from dialkey_relay.errors import RelayUpgradeError, RelayWireError
from dialkey_relay.frames import RelayVersion
from dialkey_relay.http1 import (
    ClientHttp,
    Request,
    Response,
    ResponseHead,
    ServerHttp,
    Upgrade,
    bearer_token,
    check_upgrade,
    check_upgrade_response,
    upgrade_request,
)

GOOD = {
    "upgrade": "websocket",
    "sec-websocket-key": "OeAe5QzRiuGv8h+FIM6xkw==",
    "sec-websocket-version": "13",
    "sec-websocket-protocol": "iroh-relay-v2, iroh-relay-v1",
}


def read(data):
    http = ServerHttp()
    http.feed(data)
    return http.next_request()


def request(headers, target="/relay"):
    return Request("GET", target, tuple(headers.items()))


def test_a_request_arrives_byte_by_byte() -> None:
    http = ServerHttp()
    data = b"GET /ping?x=1?2 HTTP/1.1\r\nHost: a\r\nX-Y:  two words \r\n\r\nrest"
    found = None
    for n, byte in enumerate(data):
        http.feed(bytes((byte,)))
        found = http.next_request() if found is None else found
        assert (found is not None) == (n >= len(data) - 5)
    assert found.path == "/ping"
    assert found.query == "x=1?2"
    assert found.header("x-y") == "two words"
    assert http.has_more
    assert http.rest() == b"rest"


@pytest.mark.parametrize(
    ("version", "connection", "is_over"),
    [
        ("1.1", "", False),
        ("1.1", "Connection: Close\r\n", True),
        ("1.1", "Connection: keep-alive, close\r\n", True),
        ("1.0", "", True),
    ],
)
def test_keep_alive(version, connection, is_over) -> None:
    http = ServerHttp()
    http.feed(f"GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n".encode())
    assert http.next_request() is not None
    reply = http.respond(Response(200))
    assert http.is_over is is_over
    assert (b"close" in reply) is is_over


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://relay.example/relay?a=b", "/relay?a=b"),
        ("HTTPS://relay.example:8080/ping", "/ping"),
        ("http://relay.example", "/"),
        ("http://relay.example?a=/b", "/?a=/b"),
        ("/http://relay.example", "/http://relay.example"),
        ("*", "*"),
    ],
)
def test_targets_in_absolute_form(target, expected) -> None:
    """RFC 9112 3.2.2: a server must accept them."""
    assert read(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).target == expected


def host(rest):
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + rest + b"\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01 hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # RFC 9112 3.2: without Host
        (host(b"Host: b\r\n"), 400),
        (host(b"no colon\r\n"), 400),
        (host(b"space : x\r\n"), 400),
        (host(b": nameless\r\n"), 400),
        (host(b"a: b\rc\r\n"), 400),
        (host(b"a: b\0c\r\n"), 400),
        (host(b"a: \x1b]0;title\x07\r\n"), 400),
        (host(b"a: b\x7f\r\n"), 400),
        (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (host(b"content-length: 5\r\n") + b"hello", 400),
        (host(b"content-length: 0\r\ncontent-length: 5\r\n"), 400),
        (host(b"content-length: 5\r\ncontent-length: 0\r\n"), 400),
        (host(b"content-length: 0, 5\r\n"), 400),
        (host(b"content-length: +0\r\n"), 400),
        (host(b"content-length: 0x0\r\n"), 400),
        (host(b"content-length: -1\r\n"), 400),
        (host(b"transfer-encoding: chunked\r\n"), 400),
        (host(b"transfer-encoding: gzip, chunked\r\n"), 501),
        (host(b"transfer-encoding: chunked\r\ncontent-length: 0\r\n"), 400),
        (host(b"a: b\r\n" * 65), 400),
        (b"GET /" + b"x" * 20_000, 431),
    ],
)
def test_malformed_requests(data, status) -> None:
    http = ServerHttp()
    http.feed(data)
    with pytest.raises(RelayWireError) as caught:
        http.next_request()
    reply = http.refuse(caught.value)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in reply
    assert reply.endswith(b"\r\n\r\n" + caught.value.message.encode())
    assert http.is_over


@pytest.mark.parametrize("length", [b"", b"content-length: 0\r\n", b"content-length: 0\r\n" * 2])
def test_a_body_of_no_bytes_is_none(length) -> None:
    assert read(host(length)) is not None


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_heads_raise_one_error_family(data) -> None:
    client = ClientHttp()
    client.request("GET", "/", (("Host", "a"),))
    for http, take in ((ServerHttp(), "next_request"), (client, "next_response")):
        http.feed(data + b"\r\n\r\n")
        try:
            getattr(http, take)()
        except RemoteError:
            pass


def reply_to(method, response, **options):
    http = ServerHttp()
    http.feed(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert http.next_request() is not None
    return http.respond(response, **options)


def test_responses_are_framed() -> None:
    response = Response(404, (("x", "y"),), b"Not Found")
    assert reply_to("GET", response) == (
        b"HTTP/1.1 404 Not Found\r\nx: y\r\ncontent-length: 9\r\n\r\nNot Found"
    )
    assert reply_to("GET", Response(204)) == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert b"connection: close" in reply_to("GET", Response(200), is_last=True)


def test_the_answer_to_head_has_no_body() -> None:
    """RFC 9110 9.3.2: whoever reads on would take it for the next answer."""
    http = ServerHttp()
    http.feed(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
    response = Response(200, (), b"hello")
    assert http.next_request().method == "HEAD"
    assert http.respond(response) == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
    assert http.next_request().method == "GET"
    assert http.respond(response).endswith(b"content-length: 5\r\n\r\nhello")


def test_a_client_reads_answers_one_after_another() -> None:
    http = ClientHttp()
    for _ in range(2):
        assert http.request("GET", "/", (("Host", "a"),)) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        http.feed(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        assert http.next_response().status == 200
        assert not http.skip_body(5)
        http.feed(b"llo")
        assert http.skip_body(5)
        assert http.next_cycle()


def test_a_body_that_is_too_long_is_not_read() -> None:
    http = ClientHttp()
    http.request("GET", "/", (("Host", "a"),))
    http.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    assert http.next_response() is not None
    with pytest.raises(RelayWireError, match="exceeds 4 bytes"):
        http.skip_body(4)


def test_what_http_cannot_carry_is_not_sent() -> None:
    for target, value in (("/a b", "x"), ("/", "x\r\nY: z"), ("/", "\u20ac")):
        with pytest.raises(ValueError, match="HTTP cannot carry this"):
            ClientHttp().request("GET", target, (("Host", "a"), ("X", value)))


@pytest.mark.parametrize(
    ("offered", "version"),
    [
        ("iroh-relay-v2, iroh-relay-v1", RelayVersion.V2),
        ("iroh-relay-v1,iroh-relay-v2", RelayVersion.V2),
        ("iroh-relay-v1", RelayVersion.V1),
        ("iroh-relay-v9, iroh-relay-v1", RelayVersion.V1),
    ],
)
def test_the_highest_common_version_wins(offered, version) -> None:
    upgrade = check_upgrade(request(GOOD | {"sec-websocket-protocol": offered}))
    assert upgrade == Upgrade(version, GOOD["sec-websocket-key"])


@pytest.mark.parametrize(
    "lines",
    [
        [("upgrade", "WebSocket")],
        [("upgrade", "websocket, h2c")],
        [("upgrade", "h2c"), ("upgrade", "WEBSOCKET")],
        [("sec-websocket-protocol", "other"), ("sec-websocket-protocol", "iroh-relay-v2")],
        [("sec-websocket-protocol", ", ,iroh-relay-v2 ,")],
    ],
)
def test_list_headers_are_read_as_lists(lines) -> None:
    """RFC 9110 5.6.1, RFC 6455 4.2.1: as proxies and other clients write them."""
    others = [(name, value) for name, value in GOOD.items() if name != lines[0][0]]
    upgrade = check_upgrade(Request("GET", "/relay", (*others, *lines)))
    assert upgrade == Upgrade(RelayVersion.V2, GOOD["sec-websocket-key"])


def test_two_keys_are_not_one() -> None:
    lines = (*GOOD.items(), ("sec-websocket-key", GOOD["sec-websocket-key"]))
    assert isinstance(check_upgrade(Request("GET", "/relay", lines)), Response)


def test_a_proxy_that_speaks_http_1_0_is_named() -> None:
    answer = check_upgrade(Request("GET", "/relay", tuple(GOOD.items()), "1.0"))
    assert b"proxy_http_version 1.1" in answer.body


@pytest.mark.parametrize(
    "change",
    [
        {"upgrade": None},
        {"upgrade": "h2c"},
        {"upgrade": "websockets"},
        {"sec-websocket-key": None},
        {"sec-websocket-key": "x"},
        {"sec-websocket-key": "OeAe5QzRiuGv8h+FIM6xkw"},
        {"sec-websocket-version": None},
        {"sec-websocket-version": "12"},
        {"sec-websocket-protocol": None},
        {"sec-websocket-protocol": "IROH-RELAY-V2"},
        {"sec-websocket-protocol": "iroh-relay-v3"},
        {"sec-websocket-version": "13, 8"},
    ],
)
def test_refused_upgrades(change) -> None:
    headers = {name: value for name, value in (GOOD | change).items() if value is not None}
    answer = check_upgrade(request(headers))
    assert isinstance(answer, Response)
    assert answer.status == 400
    assert answer.body
    names_version = ("sec-websocket-version", "13") in answer.headers
    assert names_version == ("sec-websocket-version" in change)


@pytest.mark.parametrize(
    ("headers", "target", "token"),
    [
        ((), "/relay", None),
        ((("authorization", "Bearer a b c"),), "/relay", "a b c"),
        ((("authorization", "bEaReR x"),), "/relay?token=y", "x"),
        ((("authorization", "Basic x"), ("authorization", "Bearer y")), "/relay", "y"),
        ((("authorization", "Basic x"),), "/relay?a=b&token=a%20b%2Bc&token=d", "a b+c"),
        ((("authorization", "Bearer \xe4"),), "/relay?token=y", None),
        ((("authorization", "Bearer"),), "/relay?token=y", "y"),
        ((("authorization", "Bearer " + "x" * 5000),), "/relay", None),
    ],
)
def test_where_a_token_is_found(headers, target, token) -> None:
    assert bearer_token(Request("GET", target, headers)) == token


def test_the_client_sends_its_token() -> None:
    data = upgrade_request("relay.example:8080", "/relay?x=1", "key", token="a b")
    found = read(data)
    assert bearer_token(found) == "a b"
    assert found.target == "/relay?x=1"
    for bad in ("", "a\nb", "ä", " a", "a "):
        with pytest.raises(ValueError, match="printable"):
            upgrade_request("relay.example", "/relay", "key", token=bad)


ANSWER = {
    "upgrade": "WebSocket",
    "connection": "Upgrade",
    "sec-websocket-accept": "/CAQv2Xq0cuGAILGBpJCEqBoDIQ=",
    "sec-websocket-protocol": "iroh-relay-v1",
}


def test_the_client_accepts_version_1_and_any_case() -> None:
    head = ResponseHead(101, "", tuple(ANSWER.items()))
    assert check_upgrade_response(head, GOOD["sec-websocket-key"]) is RelayVersion.V1


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (403, {}),
        (404, {}),
        (200, {}),
        (101, {"sec-websocket-accept": "wrong"}),
        (101, {"sec-websocket-protocol": "iroh-relay-v3"}),
        (101, {"sec-websocket-protocol": ""}),
        (101, {"upgrade": "h2c"}),
    ],
)
def test_the_client_refuses_other_answers(status, change) -> None:
    head = ResponseHead(status, "No", tuple((ANSWER | change).items()))
    with pytest.raises(RelayUpgradeError):
        check_upgrade_response(head, GOOD["sec-websocket-key"])
