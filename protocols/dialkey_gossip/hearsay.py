"""What members say about where other members are, as opaque bytes that are passed on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dialkey.limits import MAX_GOSSIP_PEER_DATA_BYTES
from dialkey_gossip.ids import PeerId
from dialkey_gossip.messages import PeerInfo

__all__ = ["Hearsay", "kept"]

_LIST_OVERHEAD_BYTES: Final = 48
"""An upper bound on what surrounds the list of nodes in a shuffle: layer, kind, origin, count, walk."""


def kept(data: bytes | None) -> bytes | None:
    """Return the data if it is short enough to keep and to pass on, otherwise None."""
    return data if data is None or len(data) <= MAX_GOSSIP_PEER_DATA_BYTES else None


class Hearsay:
    """Data by peer. Its user drops what is no longer needed.

    Args:
        max_message_bytes: the limit on a message's encoding.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._data: dict[PeerId, bytes] = {}

    def __len__(self) -> int:
        return len(self._data)

    def store(self, peer: PeerId, data: bytes | None) -> bytes | None:
        """Keep what is said about a peer, and return it if it is new."""
        data = kept(data)
        if not data or self._data.get(peer) == data:
            return None
        self._data[peer] = data
        return data

    def has(self, peer: PeerId) -> bool:
        """Return whether anything is known of a peer."""
        return peer in self._data

    def drop(self, peer: PeerId) -> None:
        """Forget what was said about a peer."""
        self._data.pop(peer, None)

    def info(self, peer: PeerId) -> PeerInfo:
        """Return a peer with what is known about it."""
        return PeerInfo(peer, self._data.get(peer))

    def fit(self, nodes: Sequence[PeerInfo]) -> tuple[PeerInfo, ...]:
        """Drop data, then nodes, that would not fit in one message."""
        room = self._max_message_bytes - _LIST_OVERHEAD_BYTES
        fitting: list[PeerInfo] = []
        for node in nodes:
            data = kept(node.data)
            size = 33 + (0 if data is None else 2 + len(data))
            if size > room and data is not None:
                data, size = None, 33
            if size > room:
                break
            room -= size
            fitting.append(PeerInfo(node.id, data))
        return tuple(fitting)
