"""What can go wrong with gossip; where each error belongs in the tree of `dialkey.errors`::

    LocalError
    ├── InvalidInput
    │   └── MessageTooLarge          the content does not fit in one message of this swarm
    └── TopicLeft                    the topic was left, or gossip was shut down
    NetworkError
    └── NoNeighbors                  nobody is connected in this topic

Malformed frames raise `WireError` internally and never reach the application.
"""

from __future__ import annotations

from dialkey.errors import InvalidInput, LocalError, NetworkError

__all__ = ["MessageTooLarge", "NoNeighbors", "TopicLeft"]


class MessageTooLarge(InvalidInput):
    """The content is longer than one message may carry; nothing was sent.

    Attributes:
        size_bytes: the length of the content.
        limit_bytes: the longest that fits.
    """

    code = "local.input.gossip_too_large"

    def __init__(self, *, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the message has {size_bytes} bytes, and {limit_bytes} fit",
            hint="publish large data as a blob and broadcast its ticket",
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class TopicLeft(LocalError):
    """The call needs a topic that this handle has left."""

    code = "local.gossip.topic_left"


class NoNeighbors(NetworkError):
    """Nobody is connected in this topic, so a broadcast would reach nobody."""

    code = "network.gossip.no_neighbors"
