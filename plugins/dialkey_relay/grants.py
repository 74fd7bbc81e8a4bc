"""Signed grants: an application's own server decides who may use a relay, for how long, how much.

A relay URL in an app is not a secret, and one token for all installations cannot be revoked for just one
of them. So the application's server signs a short text for each endpoint id that it knows; the relay has
the server's *public* key and does not have to ask anybody. A stolen grant is worthless without the
endpoint's secret key, because a relay client proves that key first.

The text is ``dkg1_`` and base64url of

==============  ============  ====================================================================
version         1 byte        1
issuer          4 bytes       the first bytes of the issuer's public key: which key to try
endpoint id     32 bytes      who may use it
issued          varint        Unix seconds
lifetime        varint        seconds
rate            varint        bytes per second that may be sent; 0 for what the relay gives others
burst           varint        bytes at once; 0 for a tenth of a second's worth
signature       64 bytes      Ed25519 over ``dialkey relay grant v1``, a NUL, and all of the above
==============  ============  ====================================================================

Varints are LEB128, as everywhere in these formats. A grant's id is the first eight bytes of its
signature. It travels as ordinary bearer token, so every iroh endpoint can carry one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final

import attrs

from dialkey.errors import InvalidInput, WireError
from dialkey.identity import EndpointId, InvalidSignature, SecretKey
from dialkey.identity.postcard import Reader, Writer
from dialkey_relay.errors import InvalidGrant, RelayConfigError
from dialkey_relay.rates import Rate

__all__ = ["Grant", "GrantVerifier", "Revocations"]

PREFIX: Final = "dkg1_"
VERSION: Final = 1
CONTEXT: Final = b"dialkey relay grant v1\0"
SIGNATURE_BYTES: Final = 64
HINT_BYTES: Final = 4
ID_BYTES: Final = 8
MAX_TOKEN_CHARS: Final = 512
CLOCK_LEEWAY_S: Final = 60
"""How far the issuer's clock may be ahead of the relay's."""

DEFAULT_MAX_LIFETIME_S: Final = 7 * 86_400
"""A relay accepts no grant with a longer lifetime: it would be a password again."""

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")


@attrs.frozen
class Grant:
    """Permission for one endpoint to use relays that know the issuer.

    Attributes:
        endpoint_id: who may use it.
        issued_at: Unix seconds.
        lifetime_s: it expires this long after `issued_at`.
        bytes_per_second: what the endpoint may send; None for the relay's default.
        max_burst_bytes: what it may send at once; None for a tenth of a second's worth.
        issuer_hint: the first bytes of the issuer's public key.
        signature: of the issuer.
    """

    endpoint_id: EndpointId
    issued_at: int
    lifetime_s: int
    bytes_per_second: int | None
    max_burst_bytes: int | None
    issuer_hint: bytes
    # Whoever has it has the grant, for all the rest is known.
    signature: bytes = attrs.field(repr=False)

    @classmethod
    def issue(
        cls,
        issuer: SecretKey,
        endpoint_id: EndpointId,
        *,
        now: float,
        lifetime_s: int = 3600,
        bytes_per_second: int | None = None,
        max_burst_bytes: int | None = None,
    ) -> Grant:
        """Sign a grant; `str` of it is the token.

        Args:
            issuer: the key of the application's server.
            now: Unix seconds.
            lifetime_s: some minutes to some hours; clients fetch the next one in time.

        Raises:
            InvalidInput: a limit makes no sense.
        """
        if lifetime_s < 1:
            raise InvalidInput("a grant lives at least a second")
        if bytes_per_second is not None and bytes_per_second < 10:
            raise InvalidInput("a grant's rate is at least 10 bytes per second, or None")
        if max_burst_bytes is not None and (max_burst_bytes < 1 or bytes_per_second is None):
            raise InvalidInput("a grant's burst is positive and comes with a rate")
        unsigned = cls(
            endpoint_id,
            int(now),
            lifetime_s,
            bytes_per_second,
            max_burst_bytes,
            bytes(issuer.id)[:HINT_BYTES],
            b"",
        )
        signature = issuer.sign(CONTEXT + unsigned._body())
        return attrs.evolve(unsigned, signature=bytes(signature))

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Read a token without judging it.

        Raises:
            InvalidGrant: it is not a grant.
        """
        if not text.startswith(PREFIX) or len(text) > MAX_TOKEN_CHARS:
            raise InvalidGrant("this token is not a grant", hint=f"a grant begins with {PREFIX}")
        encoded = text[len(PREFIX) :]
        if not _BASE64URL.fullmatch(encoded):
            raise InvalidGrant("the grant is not base64url")
        try:
            raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        except (binascii.Error, ValueError):
            raise InvalidGrant("the grant is cut off") from None
        reader = Reader(raw)
        try:
            version = reader.u8()
            if version != VERSION:
                raise InvalidGrant(f"the grant has version {version}, which this relay cannot read")
            hint = reader.take(HINT_BYTES)
            endpoint_id = EndpointId.read(reader)
            issued_at, lifetime_s = reader.varint(), reader.varint(32)
            rate, burst = reader.varint(), reader.varint()
            signature = reader.take(SIGNATURE_BYTES)
        except InvalidGrant:
            raise
        except WireError as error:
            raise InvalidGrant(f"the grant is malformed: {error.message}") from None
        if not reader.finished or (rate and rate < 10) or (burst and not rate):
            raise InvalidGrant("the grant is malformed")
        grant = cls(
            endpoint_id, issued_at, lifetime_s, rate or None, burst or None, hint, signature
        )
        if str(grant) != text:
            # One grant is one text: whoever compares, counts or blocks texts must not be fooled.
            raise InvalidGrant("the grant is not written as its issuer writes it")
        return grant

    def _body(self) -> bytes:
        writer = Writer().u8(VERSION).raw(self.issuer_hint).raw(bytes(self.endpoint_id))
        writer.varint(self.issued_at).varint(self.lifetime_s)
        writer.varint(self.bytes_per_second or 0).varint(self.max_burst_bytes or 0)
        return bytes(writer)

    @property
    def expires_at(self) -> int:
        """When it ends, Unix seconds."""
        return self.issued_at + self.lifetime_s

    @property
    def id(self) -> bytes:
        """What it is revoked by."""
        return self.signature[:ID_BYTES]

    @property
    def rate(self) -> Rate | None:
        """Its limit, or None."""
        if self.bytes_per_second is None:
            return None
        return Rate.of_bytes(self.bytes_per_second, self.max_burst_bytes)

    def is_signed_by(self, issuer: EndpointId) -> bool:
        """Return whether `issuer` signed it."""
        if bytes(issuer)[:HINT_BYTES] != self.issuer_hint:
            return False
        try:
            issuer.verify(self.signature, CONTEXT + self._body())
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        raw = self._body() + self.signature
        return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


@attrs.frozen
class Revocations:
    """What is revoked before it expires.

    Attributes:
        grants: ids of grants.
        endpoints: endpoint ids, whoever signed for them.
        before: issuer → Unix seconds; what it signed earlier no longer counts.
    """

    grants: frozenset[bytes] = frozenset()
    endpoints: frozenset[EndpointId] = frozenset()
    before: tuple[tuple[EndpointId, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Revocations:
        """Read a list: one revocation in each line, ``#`` begins a comment.

        ::

            grant 5d1f0c3a9be24477
            endpoint 8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c
            before <issuer's endpoint id> 1790000000

        Raises:
            RelayConfigError: a line is none of these.
        """
        grants: set[bytes] = set()
        endpoints: set[EndpointId] = set()
        before: dict[EndpointId, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            try:
                match words:
                    case []:
                        pass
                    case ["grant", value] if len(value) == 2 * ID_BYTES:
                        grants.add(bytes.fromhex(value))
                    case ["endpoint", value]:
                        endpoints.add(EndpointId.parse(value))
                    case ["before", value, when]:
                        before[EndpointId.parse(value)] = int(when)
                    case _:
                        raise ValueError("expected grant ID, endpoint ID, or before ISSUER SECONDS")
            except ValueError as error:
                raise RelayConfigError(f"line {number} of the revocations: {error}") from None
        return cls(frozenset(grants), frozenset(endpoints), tuple(before.items()))

    def covers(self, grant: Grant, issuer: EndpointId) -> bool:
        """Return whether a grant of this issuer is revoked."""
        return (
            grant.id in self.grants
            or grant.endpoint_id in self.endpoints
            or any(who == issuer and grant.issued_at < when for who, when in self.before)
        )


class GrantVerifier:
    """A relay's knowledge of issuers and revocations; both can be replaced at any time.

    Args:
        issuers: public keys whose grants are accepted. Several, so that a key can be rotated.
        max_lifetime_s: grants that live longer are refused.

    Attributes:
        issuers, revocations: assign to them; `problem` tells what that means for admitted clients.
    """

    def __init__(
        self,
        issuers: Iterable[EndpointId],
        *,
        revocations: Revocations | None = None,
        max_lifetime_s: int = DEFAULT_MAX_LIFETIME_S,
    ) -> None:
        self.issuers = tuple(issuers)
        self.revocations = revocations if revocations is not None else Revocations()
        self.max_lifetime_s = max_lifetime_s

    def check(self, token: str, endpoint_id: EndpointId, now: float) -> Grant:
        """Judge a token that an endpoint shows.

        Args:
            endpoint_id: the key that it has proven.
            now: Unix seconds.

        Raises:
            InvalidGrant: it does not admit this endpoint; the message says why, for the client.
        """
        grant = Grant.parse(token)
        if grant.endpoint_id != endpoint_id:
            raise InvalidGrant("the grant is for another endpoint")
        problem = self.problem(grant, now)
        if problem is not None:
            raise InvalidGrant(problem)
        return grant

    def problem(self, grant: Grant, now: float) -> str | None:
        """Return why a grant does not count, now; None if it does."""
        if now >= grant.expires_at:
            return "the grant has expired"
        if grant.issued_at > now + CLOCK_LEEWAY_S:
            return "the grant is from the future: is a clock wrong?"
        if grant.lifetime_s > self.max_lifetime_s:
            return f"the grant lives longer than this relay allows ({self.max_lifetime_s} s)"
        issuer = next((each for each in self.issuers if grant.is_signed_by(each)), None)
        if issuer is None:
            return "the grant was not signed by a key that this relay knows"
        if self.revocations.covers(grant, issuer):
            return "the grant was revoked"
        return None
