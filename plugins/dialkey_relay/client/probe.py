"""How far away a relay is: the time of a request for ``/ping``.

Source: relay wire reference 6.3. Other than iroh's, a probe makes its requests over one connection
and takes the fastest, so that it measures the round trip and not the handshakes before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from dialkey.errors import DialkeyError
from dialkey.identity import RelayUrl
from dialkey_relay.client.dial import Dialer, Target
from dialkey_relay.errors import RelayUnreachable, RelayWireError
from dialkey_relay.http1 import HeadReader

__all__ = ["probe", "probe_all"]

logger = logging.getLogger("dialkey.relay.client")

PROBE_TIMEOUT_S: Final = 3.0
REQUESTS: Final = 3
MAX_BODY_BYTES: Final = 8192
SETTLE_S: Final = 0.3
"""After the first relay has answered the others get so long; the nearest is among the first."""


class _Pinger(asyncio.Protocol):
    """Sends requests one after another and times the answers."""

    def __init__(self, target: Target) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = f"GET /ping HTTP/1.1\r\nHost: {target.host_header}\r\nAccept: */*\r\n\r\n"
        self._head = HeadReader()
        self._asked_at = 0.0
        self._left = REQUESTS
        self._body = 0
        self._best: float | None = None
        self._transport: asyncio.Transport | None = None
        self.result: asyncio.Future[float] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask(transport)

    def _ask(self, transport: asyncio.Transport) -> None:
        self._left -= 1
        self._asked_at = self._loop.time()
        transport.write(self._request.encode("latin-1"))

    def data_received(self, data: bytes) -> None:
        if self._body:
            skipped = min(self._body, len(data))
            self._body -= skipped
            data = data[skipped:]
        try:
            self._head.feed(data)
            response = self._head.next_response() if not self._body else None
        except RelayWireError as error:
            self._fail(error.message)
            return
        if response is None:
            return
        if not 200 <= response.status < 300:
            self._fail(f"it answered {response.status} to a ping")
            return
        took = self._loop.time() - self._asked_at
        self._best = took if self._best is None else min(self._best, took)
        length = response.header("content-length") or "0"
        plain = length.isdigit() and int(length) <= MAX_BODY_BYTES
        again = plain and response.header("connection") != "close"
        if self._left and again and self._transport is not None:
            self._body = max(0, int(length) - len(self._head.rest()))
            self._ask(self._transport)
        elif not self.result.done():
            self.result.set_result(self._best)

    def _fail(self, reason: str) -> None:
        if not self.result.done():
            self.result.set_exception(RelayUnreachable(f"no answer to a ping: {reason}"))
            # Whoever asked may have given up already.
            self.result.exception()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._best is not None and not self.result.done():
            self.result.set_result(self._best)
        self._fail("the connection was closed")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def probe(url: RelayUrl, dialer: Dialer, timeout_s: float = PROBE_TIMEOUT_S) -> float:
    """Measure the round-trip time to a relay, seconds.

    Raises:
        RelayUnreachable: it does not answer, or not in time.
        InvalidAddress: the URL cannot be dialled.
    """
    target = Target.of(url)
    pinger: _Pinger | None = None

    def make() -> _Pinger:
        nonlocal pinger
        pinger = _Pinger(target)
        return pinger

    try:
        async with asyncio.timeout(timeout_s):
            await dialer.open(target, make)
            assert pinger is not None
            return await pinger.result
    except TimeoutError:
        raise RelayUnreachable(f"no answer to a ping within {timeout_s:.0f} s") from None
    finally:
        if pinger is not None:
            pinger.close()


async def probe_all(urls: Iterable[RelayUrl], dialer: Dialer) -> dict[RelayUrl, float]:
    """Measure several relays at once; return the round-trip times of those that answered, seconds.

    Those that answer much later than the first one are missing, too.
    """
    latencies: dict[RelayUrl, float] = {}

    async def measure(url: RelayUrl) -> None:
        try:
            latencies[url] = await probe(url, dialer)
        except DialkeyError as error:
            logger.debug("relay %s: %s", url, error)

    pending = {asyncio.create_task(measure(url)) for url in urls}
    try:
        while pending and not latencies:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=SETTLE_S)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return latencies
