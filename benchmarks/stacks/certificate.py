"""A self-signed Ed25519 certificate: the same kind of key that endpoints have."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID


@contextmanager
def certificate(*, p256: bool = False) -> Iterator[tuple[Path, Path]]:
    """Yield the files of a fresh certificate and of its key; they are removed afterwards.

    Args:
        p256: make a key on that curve, for a stack that knows no Ed25519.
    """
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    if p256:
        key, digest = ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    else:
        key, digest = Ed25519PrivateKey.generate(), None
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, digest)
    )
    with tempfile.TemporaryDirectory() as folder:
        chain, secret = Path(folder, "chain.pem"), Path(folder, "key.pem")
        chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        yield chain, secret
