"""How an endpoint gets in at relays: what it shows to them, and whose certificates it trusts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

__all__ = ["RelayAccess"]


def _paths(values: Iterable[str | Path]) -> tuple[Path, ...]:
    return tuple(map(Path, values))


@attrs.frozen
class RelayAccess:
    """What relays want to see, and which certificates of theirs are trusted.

    Give it to ``Endpoint.bind(relays=["https://relay.example", RelayAccess(token=…)])``.

    Attributes:
        token: shown to the relays that are given beside it and bring no token of their own; never
            to a relay that only an address names, because anybody can write an address.
        roots: PEM files of authorities that are trusted beside those of the system, for all relays.
    """

    token: str | None = attrs.field(default=None, repr=False)
    roots: tuple[Path, ...] = attrs.field(default=(), converter=_paths)
