"""One endpoint with one router that carries everything, as workers and clients both have it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import EndpointId, Opening, Refusal, Router
from dialkey.cli import scratch_folder
from dialkey.errors import LimitExceeded
from dialkey_blobs import (
    Blobs,
    BlobTicket,
    GetRequest,
    Hash,
    Progress,
    ProviderFailed,
    Request,
)
from dialkey_gossip import Gossip, Signing, Topic, TopicId, TopicTicket

if TYPE_CHECKING:
    from dialkey import Endpoint

__all__ = ["Grants", "Site", "open_site"]

GRACE_S: Final = 1.0
"""For last answers to arrive. Jobs have had their time before, see `Worker.leave`; the dead get none."""


class Grants:
    """Who may fetch which blob now; nothing else in the store is given to anybody."""

    def __init__(self) -> None:
        self._granted: Counter[tuple[Hash, EndpointId]] = Counter()

    @contextlib.contextmanager
    def granted(self, hash: Hash, whom: EndpointId) -> Iterator[None]:
        """Let an endpoint fetch a blob within the context."""
        self._granted[hash, whom] += 1
        try:
            yield
        finally:
            self._granted[hash, whom] -= 1
            if not self._granted[hash, whom]:
                del self._granted[hash, whom]

    def authorize(self, asking: EndpointId, request: Request) -> Refusal | None:
        """Decide about a request; for `Blobs`."""
        # A blob may be read as a list of hashes. Who was granted one that says so would get the
        # blobs of others with it; hence single blobs only.
        if (
            isinstance(request, GetRequest)
            and request.ranges.is_single_blob
            and (request.hash, asking) in self._granted
        ):
            return None
        return Refusal()


@attrs.frozen
class Site:
    """An endpoint in a workshop.

    Attributes:
        endpoint: the endpoint.
        router: serves its protocols.
        blobs: inputs and results, kept in `folder`.
        gossip: the way of announcements.
        grants: who may fetch which blob.
        folder: for files; it ends with the site.
    """

    endpoint: Endpoint
    router: Router
    blobs: Blobs
    gossip: Gossip
    grants: Grants
    folder: Path

    def join(self, topic: TopicId | TopicTicket) -> Opening[Topic]:
        """Enter the topic of a workshop, in which every message is signed."""
        return self.gossip.join(topic, signing=Signing())

    async def fetch(
        self,
        ticket: BlobTicket,
        *,
        limit_bytes: int,
        patience_s: float,
        progress: Callable[[int], None],
    ) -> None:
        """Fetch a blob into the store, verified; pin it before.

        Args:
            ticket: what, and from whom.
            limit_bytes: the longest that is taken.
            patience_s: how long nothing may come.
            progress: is told how many bytes are here.

        Raises:
            LimitExceeded: it is too long.
            TimeoutError: nothing came.
            DialkeyError: as `Blobs.download`.
        """
        loop = asyncio.get_running_loop()
        async with (
            asyncio.timeout(patience_s) as watchdog,
            aclosing(aiter(self.blobs.download(ticket))) as events,
        ):
            async for event in events:
                watchdog.reschedule(loop.time() + patience_s)
                if isinstance(event, ProviderFailed):
                    raise event.error  # whether to try again is decided elsewhere
                if isinstance(event, Progress):
                    if max(event.held_bytes, event.total_bytes or 0) > limit_bytes:
                        raise LimitExceeded(f"the blob has more than {limit_bytes} bytes")
                    progress(event.held_bytes)


@contextlib.asynccontextmanager
async def open_site(endpoint: Endpoint) -> AsyncIterator[Site]:
    """Serve blobs and gossip on an endpoint, which stays the caller's; add what else there is."""
    grants = Grants()
    with scratch_folder("workshop") as folder:
        async with (
            Blobs.persistent(folder / "blobs", authorize=grants.authorize) as blobs,
            Router(endpoint, grace_s=GRACE_S) as router,
        ):
            gossip = Gossip()
            router.add(blobs)
            router.add(gossip)
            yield Site(endpoint, router, blobs, gossip, grants, folder)
