"""How a client proves its key to a relay: two short state machines and their four frames.

The relay sends 16 random bytes, the client signs a digest of them; or, over TLS, the client signs
keying material of that very TLS connection and sends the proof in a header of the upgrade request,
which saves a round trip. A relay may ignore the header and challenge all the same::

    relay                                         client
      |  101                                        |
      |-- header proves the key: nothing            |
      |   otherwise 00 challenge[16] -------------->|
      |<------------ 01 key[32] 40 signature[64] ---|
      |-- 02 confirmed, or 03 length reason ------->|

Source: docs/wire/relay.md 2.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from enum import Enum
from typing import Final

import attrs
from blake3 import blake3

from dialkey.errors import InvalidKey, WireError
from dialkey.identity import EndpointId, InvalidSignature, SecretKey, Signature
from dialkey.identity.postcard import Reader, Writer
from dialkey.limits import MAX_RELAY_DENIAL_BYTES
from dialkey.printable import printable
from dialkey_relay.errors import RelayDenied, RelayViolation, RelayWireError
from dialkey_relay.frames import FrameType, split_type

__all__ = [
    "CHALLENGE_BYTES",
    "CLIENT_AUTH_HEADER",
    "CONFIRMED",
    "DEFAULT_DENIAL",
    "EXPORTER_BYTES",
    "EXPORTER_LABEL",
    "ClientHandshake",
    "KeyingMaterialProof",
    "encode_challenge",
    "encode_client_auth",
    "encode_denial",
    "signed_message",
    "verify_client_auth",
]

CHALLENGE_BYTES: Final = 16
CHALLENGE_CONTEXT: Final = "iroh-relay handshake v1 challenge signature"
EXPORTER_LABEL: Final = b"iroh-relay handshake v1"
EXPORTER_BYTES: Final = 32
CLIENT_AUTH_HEADER: Final = "x-iroh-relay-client-auth-v1"
CONFIRMED: Final = bytes((FrameType.SERVER_CONFIRMS_AUTH,))
DEFAULT_DENIAL: Final = "not authorized"
INVALID_SIGNATURE: Final = "signature invalid"

_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_SUFFIX_BYTES: Final = 16


def signed_message(challenge: bytes) -> bytes:
    """Return the 32 bytes that a client signs for a challenge."""
    return blake3(challenge, derive_key_context=CHALLENGE_CONTEXT).digest()


def encode_challenge(challenge: bytes) -> bytes:
    """Encode the relay's challenge; it has 16 bytes."""
    if len(challenge) != CHALLENGE_BYTES:
        raise ValueError(f"a challenge has {CHALLENGE_BYTES} bytes, not {len(challenge)}")
    return bytes((FrameType.SERVER_CHALLENGE,)) + challenge


def encode_denial(reason: str = DEFAULT_DENIAL) -> bytes:
    """Encode the relay's refusal; the reason is cut at `MAX_RELAY_DENIAL_BYTES`."""
    cut = reason.encode()[:MAX_RELAY_DENIAL_BYTES].decode("utf-8", "ignore")
    return bytes(Writer().u8(FrameType.SERVER_DENIES_AUTH).string(cut))


def encode_client_auth(secret_key: SecretKey, challenge: bytes) -> bytes:
    """Encode the client's answer to a challenge."""
    signature = secret_key.sign(signed_message(challenge))
    writer = Writer().u8(FrameType.CLIENT_AUTH).raw(bytes(secret_key.id))
    return bytes(writer.byte_string(bytes(signature)))


def _read_key_and_signature(reader: Reader) -> tuple[EndpointId, Signature]:
    try:
        endpoint_id = EndpointId(reader.take(_KEY_BYTES))
        return endpoint_id, Signature(reader.byte_string(_SIGNATURE_BYTES))
    except InvalidKey as error:
        raise RelayWireError(f"the client's key or signature is unusable: {error}") from None


def verify_client_auth(message: bytes, challenge: bytes) -> EndpointId:
    """Check a client's answer to a challenge.

    Returns:
        The endpoint id that it has proven.

    Raises:
        RelayWireError: the message is malformed.
        RelayViolation: it is another frame.
        InvalidSignature: the client does not hold the key.
    """
    frame_type, start = split_type(message)
    if frame_type != FrameType.CLIENT_AUTH:
        raise RelayViolation("a client answered the challenge with another frame")
    try:
        endpoint_id, signature = _read_key_and_signature(Reader(message[start:]))
    except RelayWireError:
        raise
    except WireError as error:
        raise RelayWireError(f"the client's answer is malformed: {error.message}") from None
    endpoint_id.verify(signature, signed_message(challenge))
    return endpoint_id


@attrs.frozen
class KeyingMaterialProof:
    """The header that proves a key over TLS without a challenge.

    Attributes:
        endpoint_id: who claims to connect.
        signature: over the first half of the keying material.
        suffix: the second half, in clear; it tells a wrong TLS connection from a wrong signature.
    """

    endpoint_id: EndpointId
    signature: Signature
    suffix: bytes

    @classmethod
    def make(cls, secret_key: SecretKey, keying_material: bytes) -> KeyingMaterialProof:
        """Sign keying material, exported with `EXPORTER_LABEL` and our key as context."""
        if len(keying_material) != EXPORTER_BYTES:
            raise ValueError(f"keying material has {EXPORTER_BYTES} bytes")
        head, suffix = keying_material[:_SUFFIX_BYTES], keying_material[_SUFFIX_BYTES:]
        return cls(secret_key.id, secret_key.sign(head), suffix)

    @classmethod
    def decode(cls, header: str) -> KeyingMaterialProof:
        """Decode the header's value.

        Raises:
            RelayWireError: it is not such a proof.
        """
        try:
            raw = base64.b64decode(header + "=" * (-len(header) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise RelayWireError(f"the header {CLIENT_AUTH_HEADER} is not base64url") from None
        reader = Reader(raw)
        try:
            endpoint_id, signature = _read_key_and_signature(reader)
            return cls(endpoint_id, signature, reader.take(_SUFFIX_BYTES))
        except WireError as error:
            raise RelayWireError(
                f"the header {CLIENT_AUTH_HEADER} is malformed: {error.message}"
            ) from None

    def encode(self) -> str:
        """Encode the header's value."""
        writer = Writer().raw(bytes(self.endpoint_id)).byte_string(bytes(self.signature))
        return base64.urlsafe_b64encode(bytes(writer.raw(self.suffix))).decode().rstrip("=")

    def proves(self, keying_material: bytes) -> bool:
        """Return whether the proof fits the keying material that our side of TLS exported."""
        head, suffix = keying_material[:_SUFFIX_BYTES], keying_material[_SUFFIX_BYTES:]
        if len(keying_material) != EXPORTER_BYTES or not hmac.compare_digest(suffix, self.suffix):
            return False
        try:
            self.endpoint_id.verify(self.signature, head)
        except InvalidSignature:
            return False
        return True


class _State(Enum):
    FIRST_FRAME = "waiting for the relay's first frame"
    ANSWERED = "waiting for the verdict on our key"
    DONE = "finished"


class ClientHandshake:
    """The client's side, from the upgrade to the relay's verdict.

    Args:
        secret_key: the endpoint's key.
    """

    def __init__(self, secret_key: SecretKey) -> None:
        self._secret_key = secret_key
        self._state = _State.FIRST_FRAME

    @property
    def done(self) -> bool:
        """Whether the relay has confirmed us."""
        return self._state is _State.DONE

    def receive(self, message: bytes) -> bytes | None:
        """Take the relay's next message.

        Returns:
            What to send in answer, if anything.

        Raises:
            RelayDenied: the relay refuses us.
            RelayWireError: the message is malformed.
            RelayViolation: the relay may not send it now.
        """
        if self._state is _State.DONE:
            raise RuntimeError("the handshake is over")
        frame_type, start = split_type(message)
        try:
            return self._receive(frame_type, Reader(message[start:]))
        except RelayWireError:
            raise
        except WireError as error:
            raise RelayWireError(f"a handshake frame is malformed: {error.message}") from None

    def _receive(self, frame_type: int, reader: Reader) -> bytes | None:
        if frame_type == FrameType.SERVER_CHALLENGE and self._state is _State.FIRST_FRAME:
            answer = encode_client_auth(self._secret_key, reader.take(CHALLENGE_BYTES))
            self._state = _State.ANSWERED
            return answer
        if frame_type == FrameType.SERVER_CONFIRMS_AUTH:
            self._state = _State.DONE
            return None
        if frame_type == FrameType.SERVER_DENIES_AUTH:
            reason = reader.string(MAX_RELAY_DENIAL_BYTES)
            raise RelayDenied(
                f"the relay refused this endpoint: “{printable(reason)}”",
                reason=reason,
                hint="it may require a token (--relay-token), or our endpoint id on its access list",
            )
        raise RelayViolation(
            f"the relay sent frame type {frame_type} while we were {self._state.value}"
        )
