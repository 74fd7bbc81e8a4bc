"""The address lookup: the machine of `machine.Machine` with sockets, a clock and tasks.

Source: docs/wire/discovery.md 9.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Protocol

from dialkey.endpoint import EndpointInfo, LookupAnswer
from dialkey.identity import EndpointId
from dialkey.network import is_public
from dialkey_mdns.book import Entry
from dialkey_mdns.errors import NoMulticast
from dialkey_mdns.limits import RESCAN_S, SEARCH_ANSWERED_ALONE_S, SEARCH_ANSWERED_S
from dialkey_mdns.machine import Link, Machine
from dialkey_mdns.sockets import LinkSocket, links_here

__all__ = ["MdnsLookup"]

logger = logging.getLogger("dialkey.mdns")


class OpenLink(Protocol):
    """What a lookup needs of a socket; tests have a network in memory."""

    link: Link

    def fileno(self) -> int: ...
    def receive(self) -> Iterable[tuple[bytes, str]]: ...
    def send(self, data: bytes) -> bool: ...
    def close(self) -> None: ...


class MdnsLookup:
    """Finds endpoints in the local network, and lets them find one, over multicast DNS.

    On all interfaces, also those that come later. Where none carries multicast it finds nobody and says
    why. It belongs to the event loop in which it was started, by `start` or by its first use.

    Args:
        id: of the endpoint that it is for.
        announce: whether others find that endpoint.
        quiet: save battery: ask only for whom somebody looks, and answer questions for all less often.
        on_change: called when interfaces have come or gone: addresses of the endpoint may have, too.
        list_links: returns the links to use.
        open_link: opens a socket on one.
    """

    name = "mdns"

    def __init__(
        self,
        id: EndpointId,
        *,
        announce: bool = True,
        quiet: bool = False,
        on_change: Callable[[], None] = lambda: None,
        list_links: Callable[[], list[Link]] = links_here,
        open_link: Callable[[Link], OpenLink] = LinkSocket,
    ) -> None:
        self._id = id
        self._announce = announce
        self._quiet = quiet
        self._on_change = on_change
        self._list_links = list_links
        self._open_link = open_link
        self._machine: Machine | None = None
        self._sockets: dict[Link, OpenLink] = {}
        self._troubles: dict[Link, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._epoch: float  # Unix time minus the loop's clock
        self._wake = asyncio.Event()
        self._watchers: dict[EndpointId, set[asyncio.Event]] = {}
        self._rescan_at = -math.inf
        self._closed = False

    def start(self) -> None:
        """Open sockets and listen. Idempotent."""
        if self._task is None and not self._closed:
            self._loop = asyncio.get_running_loop()
            self._epoch = time.time() - self._loop.time()
            self._machine = Machine(
                self._id,
                self._loop.time(),
                random.uniform,
                announces=self._announce,
                is_quiet=self._quiet,
            )
            self._rescan()
            self._task = asyncio.create_task(self._run(), name="dialkey-mdns")

    # --- the lookup ------------------------------------------------------------------------------

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        self.start()
        machine = self._machine
        if machine is None:
            return
        self._rescan()
        if not machine.links:
            raise NoMulticast(self._trouble())
        alone = all(each.is_loopback for each in machine.links)
        wait_s = SEARCH_ANSWERED_ALONE_S if alone else SEARCH_ANSWERED_S
        deadline = self._loop.time() + wait_s
        async with contextlib.aclosing(self.watch(id)) as answers:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        answer = await anext(answers)
                except (TimeoutError, StopAsyncIteration):
                    return
                yield answer
                # Others may say something else, and it is not known who is right.
                deadline = min(deadline, self._loop.time() + _MORE_S)

    async def watch(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        """Yield what is known of an endpoint, then each change, until it is closed."""
        self.start()
        machine = self._machine
        if machine is None:
            return
        news = asyncio.Event()
        self._watchers.setdefault(id, set()).add(news)
        machine.search(id, self._loop.time())
        self._wake.set()
        said: dict[str, EndpointInfo] = {}
        try:
            while not self._closed:
                news.clear()
                entries = machine.entries(id)
                for source in said.keys() - {each.source for each in entries}:
                    del said[source]
                for entry in entries:
                    if said.get(entry.source) != entry.info:
                        said[entry.source] = entry.info
                        yield self._answer(entry)
                await news.wait()
        finally:
            machine.end_search(id)
            self._watchers[id].discard(news)
            if not self._watchers[id]:
                del self._watchers[id]

    def _answer(self, entry: Entry) -> LookupAnswer:
        # Nothing is signed: whoever names a relay must not make us send requests into this network.
        return LookupAnswer(
            entry.info,
            self._epoch + entry.heard_at,
            f"mdns, {entry.source}",
            may_reach=is_public,
        )

    async def publish(self, info: EndpointInfo) -> None:
        """Announce it from now on; returns at once."""
        self.start()
        if self._machine is not None:
            # Our addresses change when interfaces do.
            self._rescan()
            self._machine.publish(info, self._loop.time())
            self._wake.set()

    @property
    def is_published(self) -> bool:
        """Whether others in some network were told where we are now."""
        return self._machine is not None and self._machine.is_announced

    @property
    def publish_trouble(self) -> str:
        """Why nobody can be told; empty where somebody can."""
        if self._machine is None or self._machine.links:
            return ""
        return self._trouble()

    async def close(self) -> None:
        """Say goodbye, and stop."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._machine is not None:
            self._machine.close()
            self._flush()
        for link in list(self._sockets):
            self._close_link(link)
        for events in self._watchers.values():
            for each in events:
                each.set()

    # --- what drives the machine -----------------------------------------------------------------

    async def _run(self) -> None:
        machine = self._machine
        assert machine is not None
        while True:
            now = self._loop.time()
            if now >= self._rescan_at + RESCAN_S and self._rescan():
                self._on_change()
            machine.on_timer(now)
            self._flush()
            until = min(machine.timer(), self._rescan_at + RESCAN_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
            self._wake.clear()

    def _flush(self) -> None:
        assert self._machine is not None
        for each in self._machine.take_sends():
            sock = self._sockets.get(each.link)
            if sock is not None:
                sock.send(each.data)
        for id in self._machine.take_news():
            for event in self._watchers.get(id, ()):
                event.set()

    def _rescan(self) -> bool:
        """Open sockets on new links, close those of links that are gone; return whether there are any."""
        assert self._machine is not None
        self._rescan_at = self._loop.time()
        try:
            links = self._list_links()
        except OSError as error:
            logger.debug("interfaces cannot be listed: %s", error.strerror)
            return False
        for link in self._sockets.keys() - set(links):
            self._close_link(link)
        self._troubles = {link: text for link, text in self._troubles.items() if link in links}
        for link in links:
            if link not in self._sockets:
                self._open(link)
        if set(self._machine.links) == set(self._sockets):
            return False
        self._machine.set_links(self._sockets, self._loop.time())
        self._wake.set()
        return True

    def _open(self, link: Link) -> None:
        try:
            sock = self._open_link(link)
        except OSError as error:
            # Such as a tunnel, which carries no multicast; it is tried again.
            text = error.strerror or str(error)
            if self._troubles.get(link) != text:
                logger.debug("no multicast on %s, IPv%d: %s", link.name, link.family, text)
            self._troubles[link] = text
            return
        self._troubles.pop(link, None)
        self._sockets[link] = sock
        self._loop.add_reader(sock.fileno(), self._on_readable, sock)

    def _close_link(self, link: Link) -> None:
        sock = self._sockets.pop(link)
        self._loop.remove_reader(sock.fileno())
        sock.close()

    def _on_readable(self, sock: OpenLink) -> None:
        assert self._machine is not None
        now = self._loop.time()
        for data, source in sock.receive():
            self._machine.on_datagram(sock.link, source, data, now)
        # A timer may be nearer now.
        self._wake.set()

    def _trouble(self) -> str:
        if not self._troubles:
            return "no network interface is up"
        said = {f"{link.name}: {text}" for link, text in self._troubles.items()}
        return f"no network interface carries multicast ({'; '.join(sorted(said))})"


_MORE_S = 0.2
"""After one source has answered, for another that says something else: answers come within 0.1 s."""
