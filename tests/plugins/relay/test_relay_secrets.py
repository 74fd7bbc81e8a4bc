"""What is secret is not shown: in a `repr`, which logs and tracebacks print, nor in messages."""

from __future__ import annotations

import pytest

from dialkey.identity import (
    EndpointAddr,
    EndpointTicket,
    RelayAccess,
    RelayAddr,
    RelayUrl,
    SecretKey,
)
from dialkey.network import HttpProxy
from dialkey_relay import RelayConfig, SharedTokens
from dialkey_relay.access import Admission, AdmitRequest
from dialkey_relay.client.dial import Dialer, Target
from dialkey_relay.client.transport import RelayPath
from dialkey_relay.grants import Grant, Revocations
from dialkey_relay.http1 import Request, bearer_token
from dialkey_relay.server.callout import HttpCallout

SECRET = "hunter2"
KEY = SecretKey(b"\x07" * 32)
URL = RelayUrl(f"https://user:{SECRET}@relay.example/a?token={SECRET}#{SECRET}")
GRANT = Grant.issue(KEY, KEY.id, now=0)

SHOWN = [
    Request("GET", f"/relay?token={SECRET}", (("authorization", f"Bearer {SECRET}"),)),
    AdmitRequest(
        KEY.id,
        SECRET,
        target=f"/relay?token={SECRET}",
        headers=(("authorization", f"Bearer {SECRET}"),),
    ),
    URL,
    RelayAddr(URL),
    EndpointAddr(KEY.id, [RelayAddr(URL)]),
    EndpointTicket(EndpointAddr(KEY.id, [RelayAddr(URL)])),
    RelayConfig(URL, SECRET),
    RelayAccess(SECRET),
    RelayPath(URL, KEY.id),
    Target.of(URL),
    Dialer(proxy=f"http://user:{SECRET}@proxy.example"),
    HttpProxy.parse(f"http://user:{SECRET}@proxy.example"),
    SharedTokens([SECRET]),
    HttpCallout("https://callout.example", SECRET),
    Revocations(),
]


@pytest.mark.parametrize("value", SHOWN, ids=lambda value: type(value).__name__)
def test_no_secret_is_shown(value: object) -> None:
    assert SECRET not in repr(value)
    assert "aHVudGVyMg" not in repr(value)
    assert "dXNlcjpodW50ZXIy" not in repr(value)


def test_who_holds_a_signature_holds_the_grant() -> None:
    for value in (GRANT, Admission(grant=GRANT, token_digest=b"digest")):
        assert repr(GRANT.signature) not in repr(value)
        assert str(GRANT) not in repr(value)
        assert "b'digest'" not in repr(value)


def test_a_url_keeps_what_tells_relays_apart() -> None:
    assert URL.redacted == "https://…@relay.example/a?…"
    assert str(RelayPath(URL, KEY.id)) == f"https://…@relay.example/a?… → {KEY.id.short()}"
    plain = RelayUrl("https://relay.example:8443/a/b")
    assert plain.redacted == str(plain)
    assert RelayUrl("https://relay.example/#x").redacted == "https://relay.example/#…"
    # An @ behind the host is not a password.
    assert RelayUrl("https://relay.example/a@b").redacted == "https://relay.example/a@b"


def test_what_is_hidden_is_still_there() -> None:
    assert bearer_token(SHOWN[0]) == SECRET
    assert SECRET in str(URL)
