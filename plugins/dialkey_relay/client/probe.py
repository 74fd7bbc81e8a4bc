"""How far away a relay is: the time of a request for ``/ping``.

Source: docs/wire/relay.md 6.1. Unlike iroh's, a probe makes its requests over one connection and takes
the fastest, so that it measures the round trip and not the handshakes before it.
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
from dialkey_relay.http1 import ClientHttp

__all__ = ["probe", "probe_all"]

logger = logging.getLogger("dialkey.relay.client")

PROBE_TIMEOUT_S: Final = 3.0
REQUESTS: Final = 3
MAX_BODY_BYTES: Final = 8192
SETTLE_S: Final = 0.3
"""After the first relay has answered, the others get this long; the nearest is among the first."""


class _Pinger(asyncio.Protocol):
    """Sends requests one after another and times the answers."""

    def __init__(self, target: Target) -> None:
        self._loop = asyncio.get_running_loop()
        self._headers = (("Host", target.host_header), ("Accept", "*/*"))
        self._http = ClientHttp()
        self._asked_at = 0.0
        self._left = REQUESTS
        self._is_answered = False
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
        self._is_answered = False
        transport.write(self._http.request("GET", "/ping", self._headers))

    def data_received(self, data: bytes) -> None:
        try:
            self._http.feed(data)
            if not self._is_answered and not self._take_answer():
                return
            is_read = self._http.skip_body(MAX_BODY_BYTES)
        except RelayWireError as error:
            self._finish(error.message)
            return
        if is_read and self._left and self._http.next_cycle() and self._transport is not None:
            self._ask(self._transport)
        elif is_read or not self._left:
            self._finish("")

    def _take_answer(self) -> bool:
        """Take the head of an answer and the time; tell whether it was there."""
        response = self._http.next_response()
        if response is None:
            return False
        if not 200 <= response.status < 300:
            raise RelayWireError(f"it answered {response.status} to a ping")
        self._is_answered = True
        took = self._loop.time() - self._asked_at
        self._best = took if self._best is None else min(self._best, took)
        return True

    def _finish(self, reason: str) -> None:
        """Return the best time, or fail where there is none."""
        if self._best is not None and not self.result.done():
            self.result.set_result(self._best)
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        if not self.result.done():
            self.result.set_exception(RelayUnreachable(f"no answer to a ping: {reason}"))
            # Whoever asked may have given up already.
            self.result.exception()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish("the connection was closed")

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
            logger.debug("relay %s: %s", url.redacted, error)

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
