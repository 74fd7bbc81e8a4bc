"""TLS 1.3 with raw Ed25519 public keys (RFC 7250), on aioquic's TLS engine.

Both sides prove an Ed25519 key; there is no X.509 anywhere. The client compares the key with the one
it dialled while the handshake runs, so a connection to a stranger never exists. Source:
docs/wire/quic.md 1.2 to 1.7 and 1.10.
"""

from __future__ import annotations

from aioquic import tls
from aioquic._buffer import Buffer
from cryptography.hazmat.primitives.asymmetric import ed25519

from dialkey.errors import InvalidKey
from dialkey.identity import EndpointId
from dialkey.quic.handshake.work import check_message

_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
_CLIENT_CERTIFICATE_TYPE = 19
_SERVER_CERTIFICATE_TYPE = 20
_RAW_PUBLIC_KEY = 2

CIPHER_SUITES = [
    tls.CipherSuite.AES_128_GCM_SHA256,
    tls.CipherSuite.AES_256_GCM_SHA384,
    tls.CipherSuite.CHACHA20_POLY1305_SHA256,
]
"""AES-128 first: the cheapest where the processor has AES instructions, and iroh follows our order."""


class AlertUnknownCa(tls.Alert):
    """The key is not the one that was dialled; iroh closes with the same alert."""

    description = tls.AlertDescription.unknown_ca


class AlertCertificateRequired(tls.Alert):
    """The client proved no key at all."""

    description = tls.AlertDescription.certificate_required


class RawPublicKey:
    """An Ed25519 public key, presented as the certificate that the TLS engine expects."""

    def __init__(self, public_key: ed25519.Ed25519PublicKey) -> None:
        self._public_key = public_key

    def public_bytes(self, encoding: object) -> bytes:
        """Return the SubjectPublicKeyInfo, 44 bytes DER, whatever the encoding asked for."""
        return _SPKI_PREFIX + self._public_key.public_bytes_raw()

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public_key


class RawPublicKeyContext(tls.Context):
    """The TLS engine, changed so that it offers, demands and checks raw public keys only."""

    expected_id: EndpointId | None = None
    peer_id: EndpointId | None = None
    unread: bytearray
    """The start of a message; aioquic would copy its whole buffer for each piece that arrives."""

    @classmethod
    def adopt(cls, context: tls.Context, expected_id: EndpointId | None) -> RawPublicKeyContext:
        """Turn the fresh engine that the QUIC connection has made into one of this class."""
        context.__class__ = cls
        assert isinstance(context, cls)
        context.expected_id = expected_id
        context.unread = bytearray()
        context._signature_algorithms = [tls.SignatureAlgorithm.ED25519]
        context._supported_groups = [tls.Group.X25519]
        context._request_client_certificate = not context._is_client
        return context

    def handle_message(self, input_data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        if self.state == tls.State.CLIENT_HANDSHAKE_START:
            super().handle_message(input_data, output_buf)
            return
        pending = self.unread
        pending += input_data
        while len(pending) >= 4:
            length = 4 + int.from_bytes(pending[1:4], "big")
            check_message(length)
            if len(pending) < length:
                break
            message = bytes(pending[:length])
            del pending[:length]
            super().handle_message(message, output_buf)

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        if len(certificate.certificates) != 1:
            raise AlertUnknownCa("a raw public key comes alone")
        spki = certificate.certificates[0][0]
        if len(spki) != 44 or not spki.startswith(_SPKI_PREFIX):
            raise tls.AlertBadCertificate("not an Ed25519 public key")
        try:
            peer_id = EndpointId(bytes(spki[12:]))
        except InvalidKey as exc:
            raise tls.AlertBadCertificate("not a valid Ed25519 public key") from exc
        if peer_id.is_weak:
            # Anybody can sign for a key of small order.
            raise tls.AlertBadCertificate("a key of small order proves nothing")
        if self.expected_id is not None and peer_id != self.expected_id:
            raise AlertUnknownCa(f"the peer holds the key {peer_id.short()}")
        self.peer_id = peer_id
        public_key = ed25519.Ed25519PublicKey.from_public_bytes(bytes(peer_id))
        self._peer_certificate = RawPublicKey(public_key)  # type: ignore[assignment]
        self._peer_certificate_chain = []


def certificate_type_extensions(is_client: bool) -> list[tuple[int, bytes]]:
    """Return the extensions 19 and 20 as they stand in ClientHello or EncryptedExtensions."""
    body = bytes((1, _RAW_PUBLIC_KEY)) if is_client else bytes((_RAW_PUBLIC_KEY,))
    return [(_CLIENT_CERTIFICATE_TYPE, body), (_SERVER_CERTIFICATE_TYPE, body)]


def check_certificate_types(received: list[tuple[int, bytes]], *, is_client: bool) -> None:
    """Refuse a peer that did not negotiate raw public keys in both directions.

    Raises:
        tls.AlertHandshakeFailure: an extension is missing or names another type.
    """
    found = dict(received)
    for extension in (_CLIENT_CERTIFICATE_TYPE, _SERVER_CERTIFICATE_TYPE):
        body = found.get(extension)
        if body is None:
            raise tls.AlertHandshakeFailure(f"certificate type extension {extension} is missing")
        if is_client:
            good = body == bytes((_RAW_PUBLIC_KEY,))
        else:
            good = len(body) == body[0] + 1 and _RAW_PUBLIC_KEY in body[1:] if body else False
        if not good:
            raise tls.AlertHandshakeFailure("incorrect certificate type extension")
