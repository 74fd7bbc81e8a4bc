"""Which path of a connection carries application data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from dialkey.endpoint.paths import PathInfo
from dialkey.identity import IpAddr

IPV6_ADVANTAGE_S: Final = 0.003
HYSTERESIS_S: Final = 0.005
"""Both numbers are the same as in iroh (docs/wire/quic.md 6.5)."""


class PathSelector(Protocol):
    """Chooses a path; a plugin can replace the built-in one (hook `dialkey_path_selector`)."""

    def select(self, paths: Sequence[PathInfo]) -> PathInfo | None:
        """Return the path to use.

        Args:
            paths: those that are validated and not suspect, at least one. One of them may already be
                selected.

        Returns:
            One of `paths`; None to leave things as they are.
        """


class DirectFirst:
    """Prefers direct paths to relayed ones, and among equals the one with the lower round-trip time.

    A path is left for one of the same kind only if that is faster by a margin, so that two nearly equal
    ones do not take turns.
    """

    def select(self, paths: Sequence[PathInfo]) -> PathInfo | None:
        best = min(paths, key=_rank)
        current = next((path for path in paths if path.is_selected), None)
        if current is None or _tier(current) != _tier(best):
            return best
        return best if _biased_rtt(best) + HYSTERESIS_S <= _biased_rtt(current) else current


def _tier(path: PathInfo) -> int:
    return 1 if path.kind == "relay" else 0


def _biased_rtt(path: PathInfo) -> float:
    is_v6 = isinstance(path.remote, IpAddr) and path.remote.ip.version == 6
    return path.rtt_s - (IPV6_ADVANTAGE_S if is_v6 else 0.0)


def _rank(path: PathInfo) -> tuple[int, float]:
    return _tier(path), _biased_rtt(path)
