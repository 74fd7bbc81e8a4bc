"""Who gets no connection: peers with the wrong key, none, two, a weak one, or without the extensions.

Source: docs/wire/quic.md 1.2 to 1.9, which gives the close code of each case.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from quic_pair import ALPN, Pair, Side, secret_key

from dialkey.quic import events
from dialkey.quic.connection import State
from dialkey.quic.handshake import driver, machine
from dialkey.quic.handshake.tls import RawPublicKeyContext

SPKI = bytes.fromhex("302a300506032b6570032100")
SMALL_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
Tamper = Callable[[RawPublicKeyContext], None]


class Spki:
    """Something that stands where a certificate should."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def public_bytes(self, encoding: object) -> bytes:
        return self.data


@pytest.fixture
def tampered(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Tamper], Pair]:
    """Return a function that makes a pair in which one side's TLS engine was tampered with."""

    def make(role: str, tamper: Tamper) -> Pair:
        class Tampered(machine.Machine):
            def _initialize(self, peer_cid: bytes) -> None:
                super()._initialize(peer_cid)
                if self._is_client == (role == "client"):
                    assert isinstance(self.tls, RawPublicKeyContext)
                    tamper(self.tls)

        monkeypatch.setattr(driver, "Machine", Tampered)
        return Pair()

    return make


def refused(pair: Pair, victim: Side, code: int) -> None:
    """Check that a side refuses, with a code that the other side sees, and shows nobody a connection."""
    pair.run(lambda: victim.core is not None and victim.c.close_reason is not None, seconds=1)
    reason = victim.close_reason
    assert reason is not None
    assert (reason.cause, reason.error_code, reason.during_handshake) == ("protocol", code, True)
    assert not victim.seen(events.HandshakeCompleted)
    assert victim.c.peer_id is None
    other = pair.other(victim)
    pair.run(lambda: other.c.close_reason is not None, seconds=1)
    told = other.close_reason
    assert told is not None
    assert (told.cause, told.error_code) == ("peer", code)
    pair.run(lambda: all(side.c.state is State.GONE for side in pair.sides), seconds=10)


def side(pair: Pair, name: str) -> Side:
    found: Side = getattr(pair, name)
    return found


BOTH_ROLES = pytest.mark.parametrize(
    ("hostile", "victim"), [("client", "server"), ("server", "client")]
)


def test_the_client_dialled_another_key() -> None:
    pair = Pair(server={"secret_key": secret_key(3)})
    # The pair's client expects the key that its server has; make it expect another.
    assert pair.client.c.handshake is not None
    pair.client.c.handshake._machine.tls.expected_id = secret_key(4).id  # type: ignore[attr-defined]
    refused(pair, pair.client, 0x130)


@pytest.mark.parametrize("extension", [19, 20])
@BOTH_ROLES
def test_an_extension_is_missing(
    tampered: Callable[[str, Tamper], Pair], hostile: str, victim: str, extension: int
) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context.handshake_extensions = [
            each for each in context.handshake_extensions if each[0] != extension
        ]

    pair = tampered(hostile, tamper)
    refused(pair, side(pair, victim), 0x128)


@pytest.mark.parametrize("extension", [19, 20])
@pytest.mark.parametrize("body", [b"", b"\x00", b"\x01\x00", b"\x02\x02", b"\x05\x02"])
@BOTH_ROLES
def test_an_extension_names_another_type(
    tampered: Callable[[str, Tamper], Pair], hostile: str, victim: str, extension: int, body: bytes
) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context.handshake_extensions = [
            (extension, body) if each[0] == extension else each
            for each in context.handshake_extensions
        ]

    pair = tampered(hostile, tamper)
    refused(pair, side(pair, victim), 0x128)


def test_a_list_with_x509_beside_the_raw_key_is_accepted(
    tampered: Callable[[str, Tamper], Pair],
) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context.handshake_extensions = [
            (each[0], b"\x02\x02\x00") if each[0] in (19, 20) else each
            for each in context.handshake_extensions
        ]

    assert tampered("client", tamper).connect()


def test_a_client_without_a_key(tampered: Callable[[str, Tamper], Pair]) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context.certificate = None

    pair = tampered("client", tamper)
    # TLS lets a client finish first, and learn later that it was refused.
    refused(pair, pair.server, 0x174)


@BOTH_ROLES
def test_two_keys(tampered: Callable[[str, Tamper], Pair], hostile: str, victim: str) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        assert context.certificate is not None
        context.certificate_chain = [context.certificate]

    pair = tampered(hostile, tamper)
    refused(pair, side(pair, victim), 0x130)


@pytest.mark.parametrize("key", SMALL_ORDER, ids=lambda key: key[:2].hex())
@BOTH_ROLES
def test_a_key_of_small_order(
    tampered: Callable[[str, Tamper], Pair], hostile: str, victim: str, key: bytes
) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context.certificate = Spki(SPKI + key)  # type: ignore[assignment]

    pair = tampered(hostile, tamper)
    refused(pair, side(pair, victim), 0x12A)


@pytest.mark.parametrize(
    "spki",
    [
        b"",
        SPKI,
        SPKI + bytes(31),
        SPKI + bytes(33),
        bytes.fromhex("302a300506032b656e032100") + bytes(range(32)),
        SPKI + b"\x02" + bytes(31),
        bytes(1000),
    ],
    ids=["nothing", "no key", "31 bytes", "33 bytes", "x25519", "no point", "zeros"],
)
@BOTH_ROLES
def test_a_malformed_key(
    tampered: Callable[[str, Tamper], Pair], hostile: str, victim: str, spki: bytes
) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context.certificate = Spki(spki)  # type: ignore[assignment]

    pair = tampered(hostile, tamper)
    refused(pair, side(pair, victim), 0x12A)


@BOTH_ROLES
def test_somebody_elses_key(
    tampered: Callable[[str, Tamper], Pair], hostile: str, victim: str
) -> None:
    """The right key is shown, and signed for with another."""

    def tamper(context: RawPublicKeyContext) -> None:
        context.certificate_private_key = Ed25519PrivateKey.generate()

    pair = tampered(hostile, tamper)
    refused(pair, side(pair, victim), 0x133)


@pytest.mark.parametrize("alpns", [["other/1"], ["", "other/1"], ["PAIR/1"], ["pair/1 "]])
def test_no_protocol_in_common(alpns: list[str]) -> None:
    pair = Pair(alpns=alpns)
    refused(pair, pair.server, 0x178)


def test_a_client_that_names_no_protocol(tampered: Callable[[str, Tamper], Pair]) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context._alpn_protocols = None

    pair = tampered("client", tamper)
    refused(pair, pair.server, 0x178)


def test_a_server_that_chooses_no_protocol(tampered: Callable[[str, Tamper], Pair]) -> None:
    def tamper(context: RawPublicKeyContext) -> None:
        context._alpn_protocols = None

    pair = tampered("server", tamper)
    refused(pair, pair.client, 0x178)


def test_a_server_that_chooses_what_was_not_offered(
    tampered: Callable[[str, Tamper], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair()
    real = tls.push_encrypted_extensions

    def push(buf: object, extensions: tls.EncryptedExtensions) -> None:
        extensions.alpn_protocol = "other/1"
        real(buf, extensions)

    monkeypatch.setattr(tls, "push_encrypted_extensions", push)
    pair.run(lambda: pair.client.c.close_reason is not None, seconds=1)
    reason = pair.client.close_reason
    assert reason is not None
    assert reason.error_code in (0x178, 0x12F)
    assert not pair.client.seen(events.HandshakeCompleted)


def test_the_first_protocol_of_the_client_that_the_server_has() -> None:
    pair = Pair(alpns=["b/1", "a/1"], server_alpns=["a/1", "b/1"]).connect()
    assert pair.client.c.alpn == pair.server.c.alpn
    assert pair.client.c.alpn in (b"a/1", b"b/1")


@pytest.mark.parametrize(
    ("suite", "sealed"),
    [
        (tls.CipherSuite.AES_128_GCM_SHA256, 1 << 22),
        (tls.CipherSuite.AES_256_GCM_SHA384, 1 << 22),
        (tls.CipherSuite.CHACHA20_POLY1305_SHA256, 1 << 40),
    ],
)
def test_each_cipher(
    tampered: Callable[[str, Tamper], Pair], suite: tls.CipherSuite, sealed: int
) -> None:
    from quic_pair import transfer

    def tamper(context: RawPublicKeyContext) -> None:
        context._cipher_suites = [suite]

    pair = tampered("client", tamper).connect()
    for each in pair.sides:
        assert each.c.protection is not None
        assert each.c.protection._limit == sealed
    pair.settle()
    transfer((pair.client, 200_000), (pair.server, 200_000))
    assert pair.client.c.update_keys(pair.now)
    transfer((pair.client, 200_000), (pair.server, 200_000))


def test_what_the_client_hello_says() -> None:
    """Extensions 19 and 20 offer raw keys only; there is no server name and no session ticket."""
    pair = Pair()
    assert pair.client.c.handshake is not None
    context = pair.client.c.handshake._machine.tls
    assert (19, b"\x01\x02") in context.handshake_extensions
    assert (20, b"\x01\x02") in context.handshake_extensions
    assert context._server_name is None
    assert context._signature_algorithms == [tls.SignatureAlgorithm.ED25519]
    assert context._supported_groups == [tls.Group.X25519]
    pair.connect()
    assert pair.client.c.alpn == ALPN.encode()


def test_the_certificate_message_is_iroh_s() -> None:
    """57 bytes: see the table in docs/wire/quic.md 1.3."""
    from aioquic._buffer import Buffer
    from quic_pair import secret_key

    from dialkey.quic.handshake.tls import RawPublicKey

    key = secret_key(1)
    spki = RawPublicKey(key.signing_key().public_key()).public_bytes(None)
    assert spki == SPKI + bytes(key.id)
    buffer = Buffer(capacity=200)
    tls.push_certificate(buffer, tls.Certificate(request_context=b"", certificates=[(spki, b"")]))
    assert buffer.data == (
        bytes.fromhex("0b0000350000003100002c") + SPKI + bytes(key.id) + b"\x00\x00"
    )
