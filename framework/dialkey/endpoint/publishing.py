"""Tells address lookups where we can be reached, whenever that changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from dialkey.endpoint.lookup import AddressLookup, EndpointInfo, ReportingLookup
from dialkey.printable import printable

__all__ = ["Publishing"]

logger = logging.getLogger("dialkey.endpoint.publishing")


class Publishing:
    """One worker per lookup, so that a slow one does not delay others; only the newest is published.

    Lives in the event loop of its endpoint.
    """

    def __init__(self) -> None:
        self._info: EndpointInfo | None = None
        self._workers: list[_Worker] = []

    def start(self, lookups: Iterable[AddressLookup]) -> None:
        """Start publishing to these lookups."""
        self._workers = [_Worker(lookup) for lookup in lookups]

    def update(self, info: EndpointInfo) -> None:
        """Publish, unless this is what was published last."""
        if info == self._info:
            return
        # Nothing to publish, and nothing was published before: an endpoint that only dials.
        if self._info is None and not info.addr.addrs and info.user_data is None:
            return
        self._info = info
        for worker in self._workers:
            worker.tell(info)

    def troubles(self) -> dict[str, str]:
        """Return the last error of each lookup that failed to publish."""
        troubles = {each.name: each.trouble_now for each in self._workers}
        return {name: trouble for name, trouble in troubles.items() if trouble}

    @property
    def may_publish(self) -> bool:
        """Whether any lookup reports how publishing goes."""
        return any(each.reports for each in self._workers)

    @property
    def is_done(self) -> bool:
        """Whether any lookup reports that others can find what it published."""
        return any(each.is_published for each in self._workers)

    async def close(self) -> None:
        """Stop publishing. Idempotent."""
        workers, self._workers = self._workers, []
        for worker in workers:
            await worker.close()


class _Worker:
    def __init__(self, lookup: AddressLookup) -> None:
        self._lookup = lookup
        self._news: EndpointInfo | None = None
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""

    @property
    def name(self) -> str:
        return self._lookup.name

    @property
    def trouble_now(self) -> str:
        lookup = self._lookup
        own = lookup.publish_trouble if isinstance(lookup, ReportingLookup) else ""
        return self.trouble or own

    @property
    def reports(self) -> bool:
        return isinstance(self._lookup, ReportingLookup)

    @property
    def is_published(self) -> bool:
        return isinstance(self._lookup, ReportingLookup) and self._lookup.is_published

    def tell(self, info: EndpointInfo) -> None:
        self._news = info
        # With eager tasks one that waits for nothing is over before it stands here.
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"dialkey-publish-{self.name}")

    async def _run(self) -> None:
        while self._news is not None:
            info, self._news = self._news, None
            try:
                await self._lookup.publish(info)
                self.trouble = ""
            except Exception as error:
                # One way less to be found; the others are told all the same.
                self.trouble = printable(str(error)) or type(error).__name__
                logger.warning("lookup %s failed to publish: %s", self.name, self.trouble)

    async def close(self) -> None:
        task = self._task
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
