"""Who may use a relay: rules, each of which can deny.

All rules of a relay must agree. They are evaluated once for each connection, when its key is proven;
rules that can change (`GrantRule`, `SharedTokens`, lists) are asked again about connected clients,
through `recheck`, whenever they have changed.

Source: docs/wire/relay.md 4.7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import attrs

from dialkey.identity import EndpointId
from dialkey_relay.errors import InvalidGrant
from dialkey_relay.frames import RelayVersion
from dialkey_relay.grants import Grant, GrantVerifier
from dialkey_relay.handshake import DEFAULT_DENIAL
from dialkey_relay.http1 import without_query
from dialkey_relay.rates import Rate

__all__ = [
    "AccessRule",
    "Admission",
    "AdmitRequest",
    "AllowList",
    "Denial",
    "DenyList",
    "Everyone",
    "GrantRule",
    "SharedTokens",
    "check_all",
    "recheck_all",
]


@attrs.frozen
class AdmitRequest:
    """What is known of a client that wants to use the relay; the key is proven.

    Attributes:
        endpoint_id: its key.
        token: the bearer token it sent, or None.
        remote: the IP address it comes from.
        target: path and query of its request.
        headers: of its request, names in lower case.
        version: of the relay protocol.
        connection_id: a number, unique in the relay process.
    """

    endpoint_id: EndpointId
    token: str | None = attrs.field(default=None, repr=False)
    remote: str = ""
    # A token may stand in the query.
    target: str = attrs.field(default="/relay", repr=without_query)
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    version: RelayVersion = RelayVersion.V2
    connection_id: int = 0


@attrs.frozen
class Admission:
    """Permission to use the relay.

    Attributes:
        rate: bytes that the client may send; None for the relay's default.
        expires_in_s: seconds until it is disconnected; None for never.
        grant: the grant that it presented.
        token_digest: of the shared token that it presented.
    """

    rate: Rate | None = None
    expires_in_s: float | None = None
    grant: Grant | None = None
    token_digest: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Denial:
    """A refusal; the client is told the reason."""

    reason: str = DEFAULT_DENIAL


class AccessRule(Protocol):
    """One rule."""

    async def check(self, request: AdmitRequest) -> Admission | Denial:
        """Judge a client. An exception counts as a refusal."""

    def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
        """Return why a client that is connected may not stay; None if it may. Immediate."""


class Everyone:
    """Admits everybody."""

    async def check(self, request: AdmitRequest) -> Admission | Denial:
        """Admit the client."""
        return Admission()

    def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
        """Always let it stay."""
        return None


class AllowList:
    """Admits only these endpoint ids.

    Attributes:
        endpoint_ids: assign to it to change the list.
    """

    def __init__(self, endpoint_ids: Iterable[EndpointId]) -> None:
        self.endpoint_ids = frozenset(endpoint_ids)

    async def check(self, request: AdmitRequest) -> Admission | Denial:
        """Look the client up."""
        return Admission() if request.endpoint_id in self.endpoint_ids else Denial()

    def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
        """Look the client up again."""
        return None if endpoint_id in self.endpoint_ids else "no longer on the allow list"


class DenyList:
    """Admits all but these endpoint ids.

    Attributes:
        endpoint_ids: assign to it to change the list.
    """

    def __init__(self, endpoint_ids: Iterable[EndpointId]) -> None:
        self.endpoint_ids = frozenset(endpoint_ids)

    async def check(self, request: AdmitRequest) -> Admission | Denial:
        """Look the client up."""
        return Denial() if request.endpoint_id in self.endpoint_ids else Admission()

    def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
        """Look the client up again."""
        return "now on the deny list" if endpoint_id in self.endpoint_ids else None


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), digest_size=16).digest()


class SharedTokens:
    """Admits whoever presents one of these tokens. Anybody who has one can pass it on.

    Only digests are kept, so that the timing of a look-up reveals nothing about the tokens.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests: frozenset[bytes] = frozenset()
        self.replace(tokens)

    def replace(self, tokens: Iterable[str]) -> None:
        """Change the tokens."""
        self._digests = frozenset(map(_digest, tokens))

    async def check(self, request: AdmitRequest) -> Admission | Denial:
        """Compare the token."""
        if request.token is None:
            return Denial("this relay requires a token")
        digest = _digest(request.token)
        return Admission(token_digest=digest) if digest in self._digests else Denial()

    def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
        """Compare the token that it presented."""
        if admission.token_digest in self._digests:
            return None
        return "its token is no longer valid"


class GrantRule:
    """Admits whoever presents a signed grant; see `dialkey_relay.grants`.

    Args:
        verifier: knows issuers and revocations.
        clock: returns Unix seconds.
    """

    def __init__(self, verifier: GrantVerifier, clock: Callable[[], float]) -> None:
        self.verifier = verifier
        self._clock = clock

    async def check(self, request: AdmitRequest) -> Admission | Denial:
        """Judge the grant."""
        if request.token is None:
            return Denial("this relay requires a grant")
        now = self._clock()
        try:
            grant = self.verifier.check(request.token, request.endpoint_id, now)
        except InvalidGrant as error:
            return Denial(error.message)
        return Admission(rate=grant.rate, expires_in_s=grant.expires_at - now, grant=grant)

    def recheck(self, endpoint_id: EndpointId, admission: Admission) -> str | None:
        """Judge the grant that it presented, by what is known now."""
        if admission.grant is None:
            return "this relay now requires a grant"
        return self.verifier.problem(admission.grant, self._clock())


def _merge(first: Admission, second: Admission) -> Admission:
    """Combine two rules' permissions: the narrower of each limit."""
    rates = [each.rate for each in (first, second) if each.rate is not None]
    ends = [each.expires_in_s for each in (first, second) if each.expires_in_s is not None]
    return Admission(
        rate=min(rates, key=lambda rate: rate.per_second, default=None),
        expires_in_s=min(ends, default=None),
        grant=first.grant or second.grant,
        token_digest=first.token_digest or second.token_digest,
    )


async def check_all(rules: Sequence[AccessRule], request: AdmitRequest) -> Admission | Denial:
    """Ask rules in order until one denies; what all admit is combined.

    Without any rules, everybody is denied: an open relay has to be explicit (`Everyone`).
    """
    if not rules:
        return Denial()
    result = Admission()
    for rule in rules:
        answer = await rule.check(request)
        if isinstance(answer, Denial):
            return answer
        result = _merge(result, answer)
    return result


def recheck_all(
    rules: Sequence[AccessRule], endpoint_id: EndpointId, admission: Admission
) -> str | None:
    """Return why a connected client may not stay; None if it may."""
    if not rules:
        return DEFAULT_DENIAL
    for rule in rules:
        reason = rule.recheck(endpoint_id, admission)
        if reason is not None:
            return reason
    return None
