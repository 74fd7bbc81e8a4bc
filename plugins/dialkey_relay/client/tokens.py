"""The token that a relay's access rules want: fetching it, and when its successor is needed."""

from __future__ import annotations

import asyncio
from typing import Final

from dialkey.errors import DialkeyError, InvalidInput
from dialkey_relay.client.status import Token
from dialkey_relay.errors import InvalidGrant, RelayUnreachable
from dialkey_relay.grants import PREFIX, Grant
from dialkey_relay.http1 import is_token

__all__ = ["fetch", "refresh_in"]

REFRESH_AT: Final = 0.75
"""The part of a grant's lifetime after which the next one is fetched."""


async def fetch(token: Token, timeout_s: float) -> str | None:
    """Return a token as text, asking the application for it where it gave a function.

    Raises:
        InvalidInput: no header can carry it.
        RelayUnreachable: the application's function failed, or took too long.
    """
    found = await _ask(token, timeout_s)
    if found is not None and not is_token(found):
        raise InvalidInput(
            "the token for the relay is not made of printable ASCII characters",
            hint="a function for tokens is asynchronous and returns text",
        )
    return found


async def _ask(token: Token, timeout_s: float) -> str | None:
    if not callable(token):
        return token
    try:
        async with asyncio.timeout(timeout_s):
            return await token()
    except DialkeyError:
        raise
    except Exception as error:
        # The application's own code; its failure is one failed attempt, not the end.
        raise RelayUnreachable(f"no token could be fetched: {error!r}") from error


def refresh_in(token: str | None, unix_now: float) -> float | None:
    """Return after how many seconds a grant's successor is needed; None for any other token."""
    if token is None or not token.startswith(PREFIX):
        return None
    try:
        grant = Grant.parse(token)
    except InvalidGrant:
        return None
    return grant.issued_at + grant.lifetime_s * REFRESH_AT - unix_now
