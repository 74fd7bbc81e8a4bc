from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialkey import limits
from dialkey.errors import InvalidAddress
from dialkey.identity import RelayUrl

# Wire document, section 2.3.
TABLE = [
    ("https://example.com", "https://example.com/"),
    ("https://example.com.", "https://example.com./"),
    ("HTTPS://EXAMPLE.com:443/", "https://example.com/"),
    ("http://example.com:80", "http://example.com/"),
    ("wss://example.com:443", "wss://example.com/"),
    ("https://example.com:0443", "https://example.com/"),
    ("https://example.com/relay", "https://example.com/relay"),
    ("https://example.com/relay/", "https://example.com/relay/"),
    ("https://example.com/a/../b/./c", "https://example.com/b/c"),
    ("https://example.com?x=1#f", "https://example.com/?x=1#f"),
    ("https://0x7f.1", "https://127.0.0.1/"),
    ("https://2130706433", "https://127.0.0.1/"),
    ("https://127.0.0.1.", "https://127.0.0.1/"),
    ("https://[0:0:0:0:0:0:0:1]", "https://[::1]/"),
    ("https://bücher.example", "https://xn--bcher-kva.example/"),
    ("  https://example.com  ", "https://example.com/"),
    ("https:example.com", "https://example.com/"),
    ("https:///example.com", "https://example.com/"),
    ("https:\t//example.com", "https://example.com/"),
    ("https://example.com\t/", "https://example.com/"),
    ("https://example.com/ü", "https://example.com/%C3%BC"),
    ("https://example.com/%7E", "https://example.com/%7E"),
    ("relay.example:443", "relay.example:443"),
    ("HTTP://127.0.0.1:80/", "http://127.0.0.1/"),
    ("http://127.0.0.1", "http://127.0.0.1/"),
    ("https://use1-1.relay.n0.iroh.link.", "https://use1-1.relay.n0.iroh.link./"),
    ("http://127.0.0.1:3340", "http://127.0.0.1:3340/"),
]

# Beyond the table; checked against iroh's parser by the interop tests.
MORE = [
    ("https:\\\\example.com\\a\\b", "https://example.com/a/b"),
    ("https://example.com:", "https://example.com/"),
    ("https://example.com:0", "https://example.com:0/"),
    ("https://example.com:8443/x", "https://example.com:8443/x"),
    ("http://example.com:443", "http://example.com:443/"),
    ("https://user@example.com", "https://user@example.com/"),
    ("https://us:er:pa@ss@example.com", "https://us:er%3Apa%40ss@example.com/"),
    ("https://user:@example.com", "https://user@example.com/"),
    ("https://:@example.com", "https://example.com/"),
    ("https://example.com/..", "https://example.com/"),
    ("https://example.com/a/..", "https://example.com/"),
    ("https://example.com/a/%2E%2e/b", "https://example.com/b"),
    ("https://example.com/a/%2e", "https://example.com/a/"),
    ("https://example.com//a", "https://example.com//a"),
    ("https://example.com/c:/..", "https://example.com/c:/"),
    ('https://example.com/a b"<>`{}^|', "https://example.com/a%20b%22%3C%3E%60%7B%7D^|"),
    ("https://example.com/?a'b c", "https://example.com/?a%27b%20c"),
    ("https://example.com/?", "https://example.com/?"),
    ("https://example.com/#", "https://example.com/#"),
    ("https://example.com/#a`b?c#d", "https://example.com/#a%60b?c#d"),
    ("https://example.com/%zz%", "https://example.com/%zz%"),
    ("https://ex%41mple.com", "https://example.com/"),
    ("https://0x7f000001", "https://127.0.0.1/"),
    ("https://0177.0.0.01", "https://127.0.0.1/"),
    ("https://1.2", "https://1.0.0.2/"),
    ("https://0x.0x", "https://0.0.0.0/"),
    ("https://[::ffff:1.2.3.4]:443", "https://[::ffff:102:304]/"),
    ("https://[2001:DB8::0:1]:8443", "https://[2001:db8::1]:8443/"),
    ("https://faß.example", "https://xn--fa-hia.example/"),
    ("https://BÜCHER.example。", "https://xn--bcher-kva.example./"),
    ("https://ｅxample.com", "https://example.com/"),
    ("https://XN--BCHER-KVA.example", "https://xn--bcher-kva.example/"),
    ("https://💩.example", "https://xn--ls8h.example/"),
    ("https://ex\u00adample.com", "https://example.com/"),
    ("https://-a_b-.example", "https://-a_b-.example/"),
    ("https://example.com\n", "https://example.com/"),
    ("\x00https://exa\nmple.com\x1f", "https://example.com/"),
    ("foo://Host.Example", "foo://Host.Example"),
    ("foo://host:443/a/../b", "foo://host:443/b"),
    ("foo://[::1]/", "foo://[::1]/"),
    ("foo://hü/ü?'#x", "foo://h%C3%BC/%C3%BC?'#x"),
    ("foo:///x", "foo:///x"),
    ("foo:/x/../y", "foo:/y"),
    ("foo:/.//x", "foo:/.//x"),
    ("foo:x ü?q", "foo:x %C3%BC?q"),
    ("file://localhost/a", "file:///a"),
    ("file:a", "file:///a"),
    ("file:////a", "file:///a"),
    ("file://host/a", "file://host/a"),
]

BAD = [
    "",
    "example.com",
    "//example.com",
    "/x",
    "https://",
    "https:",
    "https:///",
    "https://exa mple.com",
    "https://example.com:99999",
    "https://example.com:65536",
    "https://example.com:-1",
    "https://example.com:8a",
    "https://example.com:٨",
    "https://:443",
    "https://user@",
    "https://user@:443",
    "https://a<b",
    "https://a|b",
    "https://a%00b",
    "https://a%",
    "https://%ff",
    "https://[::1",
    "https://::1",
    "https://[::1]x",
    "https://[fe80::1%3]",
    "https://[1.2.3.4]",
    "https://[]",
    "https://1.2.3.4.5",
    "https://256.1.1.1",
    "https://1.2.3.256",
    "https://4294967296",
    "https://08.1",
    "https://1..2",
    "https://a.1",
    "https://xn--",
    "https://xn--a",
    "https://xn---wss",
    "https://xn--bcher-kvaü",
    "https://\u0300a",
    "https://a\u200db",
    "https://אa",
    "https://\u00ad",
    "https://\ud800",
    "https://example.com/\ud800",
    "1https://example.com",
    "foo://a b",
    "foo://u@/x",
    "foo://:80/",
    "ht tps://example.com",
    "https://" + "a" * 3000,
    "https://example.com/" + "ü" * 1000,
]


@pytest.mark.parametrize(("text", "normal"), TABLE + MORE)
def test_normal_forms(text, normal):
    url = RelayUrl(text)
    assert str(url) == normal
    assert RelayUrl.parse(text) == url == RelayUrl(normal)
    assert hash(url) == hash(RelayUrl(normal))
    assert str(RelayUrl(str(url))) == normal


@pytest.mark.parametrize("text", BAD)
def test_texts_that_are_not_urls(text):
    with pytest.raises(InvalidAddress):
        RelayUrl(text)


def test_the_final_dot_makes_another_relay():
    assert RelayUrl("https://example.com.") != RelayUrl("https://example.com")


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "path"),
    [
        ("https://Relay.example", "https", "relay.example", 443, "/"),
        ("http://127.0.0.1:3340/a/b?q#f", "http", "127.0.0.1", 3340, "/a/b"),
        ("https://[::1]:0", "https", "[::1]", 0, "/"),
        ("foo://h", "foo", "h", None, ""),
        ("foo:x", "foo", None, None, "x"),
        ("file:///x", "file", None, None, "/x"),
    ],
)
def test_parts(text, scheme, host, port, path):
    url = RelayUrl(text)
    assert (url.scheme, url.host, url.port, url.path) == (scheme, host, port, path)


def test_value():
    a, b = RelayUrl("https://a.example"), RelayUrl("https://b.example")
    assert a < b
    assert b >= a
    assert a != "https://a.example/"
    assert repr(a) == "RelayUrl('https://a.example/')"
    assert pickle.loads(pickle.dumps(a)) == a
    with pytest.raises(TypeError):
        a < "x"  # noqa: B015
    with pytest.raises(TypeError):
        RelayUrl(b"https://a.example")


PIECES = st.sampled_from(
    [
        *"/\\?#@:.%[]^|{}`'\"<> \t\n\x00\x7f",
        *"aZ019-_üß☃。",
        "https:",
        "foo:",
        "file:",
        "//",
        "%2e",
        "%41",
        "xn--",
        "[::1]",
        "127.0.0.1",
        "0x",
        "C:",
        ":443",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40))
def test_normal_form_is_a_fixed_point(text):
    try:
        url = RelayUrl("https:" + text)
    except InvalidAddress:
        return
    normal = str(url)
    assert str(RelayUrl(normal)) == normal
    assert normal.isascii()
    assert normal.isprintable()
    assert len(normal) <= limits.MAX_RELAY_URL_BYTES
    assert normal.startswith("https://")
    assert url.host
    assert url.path.startswith("/")
    assert " " not in normal
