"""Request and response heads, upgrade rules (relay wire reference 1.5), tokens (2.5)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey.errors import RemoteError
from dialkey_relay.errors import RelayUpgradeError, RelayWireError
from dialkey_relay.frames import RelayVersion
from dialkey_relay.http1 import (
    HeadReader,
    Request,
    Response,
    ResponseHead,
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
    reader = HeadReader()
    reader.feed(data)
    return reader.next_request()


def request(headers, target="/relay"):
    return Request("GET", target, tuple(headers.items()))


def test_a_request_arrives_byte_by_byte() -> None:
    reader = HeadReader()
    data = b"GET /ping?x=1?2 HTTP/1.1\r\nHost: a\r\nX-Y:  two words \r\n\r\nrest"
    found = None
    for n, byte in enumerate(data):
        reader.feed(bytes((byte,)))
        found = reader.next_request() if found is None else found
        assert (found is not None) == (n >= len(data) - 5)
    assert found.path == "/ping"
    assert found.query == "x=1?2"
    assert found.header("x-y") == "two words"
    assert found.keep_alive
    assert reader.rest() == b"rest"


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [("1.1", "", True), ("1.1", "Connection: Close\r\n", False), ("1.0", "", False)],
)
def test_keep_alive(version, connection, keeps) -> None:
    head = f"GET / HTTP/{version}\r\n{connection}\r\n"
    assert read(head.encode()).keep_alive is keeps


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"\x16\x03\x01 hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nspace : x\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\rc\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 65 + b"\r\n",
        b"GET /" + b"x" * 20_000,
    ],
)
def test_malformed_requests(data) -> None:
    with pytest.raises(RelayWireError):
        read(data)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_heads_raise_one_error_family(data) -> None:
    for take in (HeadReader.next_request, HeadReader.next_response):
        reader = HeadReader()
        reader.feed(data + b"\r\n\r\n")
        try:
            take(reader)
        except RemoteError:
            pass


def test_responses_are_framed() -> None:
    response = Response(404, (("x", "y"),), b"Not Found")
    assert response.encode() == (
        b"HTTP/1.1 404 Not Found\r\nx: y\r\ncontent-length: 9\r\n\r\nNot Found"
    )
    assert Response(204).encode() == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert b"connection: close" in Response(200).encode(keep_alive=False)


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
    "change",
    [
        {"upgrade": None},
        {"upgrade": "WebSocket"},
        {"sec-websocket-key": None},
        {"sec-websocket-version": None},
        {"sec-websocket-version": "12"},
        {"sec-websocket-protocol": None},
        {"sec-websocket-protocol": "IROH-RELAY-V2"},
        {"sec-websocket-protocol": "iroh-relay-v3"},
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
    for bad in ("", "a\nb", "ä"):
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
