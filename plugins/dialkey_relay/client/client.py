"""A client of one relay that stays connected: dialling, coming back, changing tokens, watching itself.

What is promised:

- Every attempt ends within `DIAL_TIMEOUT_S`; attempts repeat forever, with back-off.
- An established connection is pinged; it is given up when a pong is late.
- A watchdog monitors all of that from outside. It ends a connection that is neither connected nor making
  progress, whatever the reason, and restarts the work if it died.
- A new token is used by a *second* connection. The relay makes that one the active one, and only
  then the first is closed, so that nothing is interrupted.

Source: docs/wire/relay.md 5.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from random import Random, SystemRandom
from typing import Final

import attrs

from dialkey.errors import DialkeyError, LocalError, NetworkError
from dialkey.identity import EndpointId, RelayUrl, SecretKey
from dialkey.printable import printable
from dialkey_relay.client.backoff import Backoff
from dialkey_relay.client.dial import Dialer, Target
from dialkey_relay.client.link import Link
from dialkey_relay.client.machine import ClientMachine, Established, Event
from dialkey_relay.client.status import ClientState, ClientStatus, Token
from dialkey_relay.client.tokens import fetch, refresh_in
from dialkey_relay.errors import RelayUnreachable
from dialkey_relay.frames import (
    HEALTH_TEXTS,
    Datagrams,
    Health,
    Restarting,
    Status,
    StatusCode,
)

__all__ = ["RelayClient"]

logger = logging.getLogger("dialkey.relay.client")

DIAL_TIMEOUT_S: Final = 10.0
"""For names, TCP, TLS, upgrade and handshake together; the same as in iroh."""

WATCHDOG_S: Final = 5.0
"""How often the watchdog checks."""

STUCK_S: Final = 30.0
"""No frame on a connection that is pinged after 15 s and given up 5 s later: something is broken."""

DRAIN_S: Final = 1.0
"""How long a replaced connection stays open for what is on its way to us."""

MIN_REFRESH_S: Final = 1.0
MAX_KEPT: Final = 32
KEEP_S: Final = 3.0
"""What is sent while a connection is being made waits this long for it: these are the first packets of
handshakes, whose loss would cost a second. Iroh empties its queues at this interval."""

MAX_QUEUED: Final = 512
"""Received batches that wait for `receive`; the same as in iroh."""


NOTICES: Final[dict[int, str]] = {
    StatusCode.SAME_ENDPOINT_ID_CONNECTED: HEALTH_TEXTS[StatusCode.SAME_ENDPOINT_ID_CONNECTED],
    StatusCode.RATE_LIMITED: "This endpoint sends more than the relay allows; it is slowed down.",
}


class RelayClient:
    """A connection to one relay that is kept alive.

    Args:
        url: the relay.
        secret_key: the endpoint's key.
        token: for the relay's access rules; a callable is asked before each attempt, and again in
            time before a grant expires.
        dialer: TLS roots and proxy.
        on_datagrams: called with what arrives together, in the event loop; without it, use `receive`.
        on_status: called after each change of `status`.
        random: for everything that must not be predicted, and for jitter.
        clock: gives Unix seconds, to see when a grant expires.
    """

    def __init__(
        self,
        url: RelayUrl | str,
        secret_key: SecretKey,
        *,
        token: Token = None,
        dialer: Dialer | None = None,
        on_datagrams: Callable[[list[Datagrams]], None] | None = None,
        on_status: Callable[[ClientStatus], None] | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = url if isinstance(url, RelayUrl) else RelayUrl(url)
        self._target = Target.of(self.url)
        self._secret_key = secret_key
        self._token = token
        self._dialer = dialer if dialer is not None else Dialer()
        self._on_datagrams = on_datagrams if on_datagrams is not None else self._enqueue
        self._on_status = on_status
        self._random = random if random is not None else SystemRandom()
        self._clock = clock
        self._backoff = Backoff(self._random)
        self._status = ClientStatus(ClientState.STOPPED)
        self._changed = asyncio.Event()
        self._link: Link | None = None
        self._draining: dict[Link, asyncio.TimerHandle] = {}
        self._main: asyncio.Task[None] | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[Link] | None = None
        self._attempt_since = 0.0
        self._poke = asyncio.Event()
        self._restarting: Restarting | None = None
        self._refresh_at: float | None = None
        self._queue: asyncio.Queue[Datagrams] = asyncio.Queue()
        self._closed = False
        self._is_close = False
        self._kept: deque[tuple[float, bytes, bytes, int]] = deque()

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start connecting; `connected` waits for it. Needs a running event loop."""
        if self._main is None and not self._closed:
            self._main = asyncio.create_task(self._run(), name=f"relay {self.url.redacted}")
            self._watchdog = asyncio.create_task(
                self._watch(), name=f"watch relay {self.url.redacted}"
            )

    async def close(self) -> None:
        """Close the connection to the relay and stop. Idempotent."""
        self._closed = True
        tasks = [task for task in (self._watchdog, self._main) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._main = self._watchdog = None
        for link in list(self._draining):
            self._drained(link)
        if self._link is not None:
            self._link.close()
            self._link = None
        self._set(
            attrs.evolve(
                self._status, state=ClientState.STOPPED, rtt_s=None, version=None, notice=None
            )
        )

    async def __aenter__(self) -> RelayClient:
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # --- status ---------------------------------------------------------------------------------

    @property
    def status(self) -> ClientStatus:
        """Its state now."""
        return self._status

    @property
    def is_connected(self) -> bool:
        """Whether datagrams can be sent."""
        return self._link is not None and self._link.is_open

    @property
    def last_sent_at(self) -> float:
        """When datagrams were last sent, in the loop's time; 0 for never."""
        return self._link.sent_at if self._link is not None else 0.0

    @property
    def attempted_at(self) -> float:
        """When the last attempt to connect began, in the loop's time; 0 for never."""
        return self._attempt_since

    def watch_closely(self, is_close: bool) -> None:
        """Notice within about 4 s when the relay falls silent; useful if there is another one."""
        if is_close == self._is_close:
            return
        self._is_close = is_close
        if self._link is not None:
            self._link.watch_closely(is_close)

    def retry(self) -> None:
        """If there is no connection, try at once instead of after the back-off."""
        self._poke.set()

    async def connected(self) -> None:
        """Wait until datagrams can be sent.

        Raises:
            LocalError: the client was closed.
        """
        while not self.is_connected:
            if self._closed:
                raise LocalError("the relay client is closed")
            await self._next_change()

    async def watch(self) -> AsyncIterator[ClientStatus]:
        """Yield its states, the current one first; a slow reader sees only the latest."""
        seen: ClientStatus | None = None
        while not self._closed:
            if self._status != seen:
                seen = self._status
                yield seen
            else:
                await self._next_change()

    async def _next_change(self) -> None:
        await self._changed.wait()

    def _set(self, status: ClientStatus) -> None:
        self._status = status
        # Everybody who waits now is woken; the next to wait get a new event.
        self._changed.set()
        self._changed = asyncio.Event()
        if self._on_status is not None:
            self._on_status(self._status)

    # --- datagrams ------------------------------------------------------------------------------

    def send(
        self, to: EndpointId | bytes, data: bytes | memoryview, segment_bytes: int | None = None
    ) -> bool:
        """Send datagrams to an endpoint that uses the same relay; never wait.

        While there is no connection some are kept and sent when there is one, if that is soon.

        Args:
            data: one or more datagrams in a row; copied.
            segment_bytes: the size of each but the last; one datagram if None.

        Returns:
            Whether they are being sent or kept. If not, they are dropped and counted.
        """
        peer, segment = bytes(to), segment_bytes or len(data)
        if self.is_connected:
            assert self._link is not None
            sent = self._link.send(peer, data, segment)
        else:
            sent = self._keep(peer, data, segment)
        if not sent:
            self._count_drop()
        return sent

    def _keep(self, peer: bytes, data: bytes | memoryview, segment_bytes: int) -> bool:
        if self._main is None:
            return False
        now = self._main.get_loop().time()
        self._kept.append((now, peer, bytes(data), segment_bytes))
        if len(self._kept) > MAX_KEPT:
            self._kept.popleft()
            self._count_drop()
        return True

    def _send_kept(self, link: Link) -> None:
        oldest = asyncio.get_running_loop().time() - KEEP_S
        while self._kept:
            at, peer, data, segment_bytes = self._kept.popleft()
            if at < oldest or not link.send(peer, data, segment_bytes):
                self._count_drop()

    async def receive(self) -> Datagrams:
        """Wait for the next datagrams. Cancellation loses none."""
        return await self._queue.get()

    def _enqueue(self, batches: list[Datagrams]) -> None:
        for batch in batches:
            if self._queue.qsize() >= MAX_QUEUED:
                self._queue.get_nowait()
                self._count_drop()
            self._queue.put_nowait(batch)

    def _count_drop(self, count: int = 1) -> None:
        self._status = attrs.evolve(self._status, dropped=self._status.dropped + count)

    def _on_events(self, link: Link, events: list[Event]) -> None:
        batches: list[Datagrams] = []
        for event in events:
            if isinstance(event, Datagrams):
                batches.append(event)
            elif isinstance(event, Established):
                if link is self._link:
                    self._set(attrs.evolve(self._status, rtt_s=event.rtt_s))
            elif isinstance(event, Restarting):
                self._restarting = event
                logger.info("relay %s restarts", self.url.redacted)
                link.abort("the relay restarts")
            elif isinstance(event, Status | Health):
                # While we replace it ourselves, being replaced is not news.
                if link is self._link and self._attempt is None:
                    self._note(event)
            else:
                logger.debug("relay %s: %s", self.url.redacted, event)
        if batches:
            self._on_datagrams(batches)

    def _note(self, remark: Status | Health) -> None:
        """Keep what the relay says about this connection, and log what somebody should know."""
        notice: str | None
        if isinstance(remark, Health):
            healthy = remark.text in ("", HEALTH_TEXTS[StatusCode.HEALTHY])
            notice = None if healthy else printable(remark.text)
        elif remark.code == StatusCode.HEALTHY:
            notice = None
        else:
            notice = NOTICES.get(remark.code, f"status {remark.code}")
        if notice is not None:
            logger.warning("relay %s: %s", self.url.redacted, notice)
        self._set(attrs.evolve(self._status, notice=notice))

    # --- from outside ---------------------------------------------------------------------------

    def set_token(self, token: Token) -> None:
        """Use another token from now on: a new connection replaces the present one when it is up."""
        self._token = token
        self._refresh_at = 0.0
        self._poke.set()

    def network_changed(self) -> None:
        """Check the connection at once, or try at once if there is none."""
        self._backoff.reset()
        if self._link is not None:
            self._link.ping()
        self._poke.set()

    # --- the work -------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            # Cleared here, so that a change during an attempt is not slept over after it.
            self._poke.clear()
            self._set(
                attrs.evolve(
                    self._status, state=ClientState.CONNECTING, attempts=self._status.attempts + 1
                )
            )
            try:
                link = await self._dial()
            except DialkeyError as error:
                self._log_failure(error)
                self._set(attrs.evolve(self._status, state=ClientState.WAITING, error=error))
                await self._pause(self._backoff.failed())
                continue
            self._adopt(link)
            reason = await self._serve()
            self._set(
                attrs.evolve(
                    self._status,
                    state=ClientState.WAITING,
                    error=reason,
                    rtt_s=None,
                    version=None,
                    notice=None,
                )
            )
            await self._pause(self._delay_after(link))

    def _log_failure(self, error: DialkeyError) -> None:
        # One line for an outage, not one for each of its attempts; and being offline is not a fault,
        # while a wrong token or a wrong URL waits for somebody to fix it.
        level = logging.DEBUG
        if type(error) is not type(self._status.error) or self._status.attempts == 1:
            is_away = isinstance(error, NetworkError)
            level = logging.INFO if is_away else logging.WARNING
        logger.log(level, "relay %s: %s", self.url.redacted, error)

    def _delay_after(self, link: Link) -> float:
        restarting, self._restarting = self._restarting, None
        if restarting is not None:
            wait = min(restarting.reconnect_in_ms, 60_000) / 1000
            return wait + self._random.uniform(0, wait)
        lasted = asyncio.get_running_loop().time() - link.connected_at
        return self._backoff.lost(lasted)

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the network or the token has changed."""
        try:
            async with asyncio.timeout(seconds):
                await self._poke.wait()
        except TimeoutError:
            return

    async def _dial(self) -> Link:
        """Make one attempt, in a task of its own that the watchdog can end."""
        self._attempt_since = asyncio.get_running_loop().time()
        self._attempt = asyncio.create_task(self._connect())
        try:
            return await self._attempt
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                self._attempt.cancel()
                # Whoever closes us may end the loop next, so the socket has to be closed by then.
                (link,) = await asyncio.gather(self._attempt, return_exceptions=True)
                if isinstance(link, Link):
                    link.abort("the attempt was given up")
                raise
            raise RelayUnreachable("the attempt made no progress") from None
        finally:
            self._attempt = None

    async def _connect(self) -> Link:
        source = self._token
        token = await fetch(source, DIAL_TIMEOUT_S)
        link: Link | None = None

        def make_machine(transport: asyncio.BaseTransport) -> ClientMachine:
            return ClientMachine(
                self._secret_key,
                host=self._target.host_header,
                target=self._target.relay_path,
                random=self._random,
                now=asyncio.get_running_loop().time(),
                token=token,
                is_close=self._is_close,
            )

        def make_link() -> Link:
            nonlocal link
            link = Link(make_machine, self._on_events)
            return link

        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self._dialer.open(self._target, make_link)
                assert link is not None
                await link.confirmed
        except BaseException as error:
            if link is not None:
                link.abort("the attempt was given up")
            if isinstance(error, TimeoutError):
                raise RelayUnreachable(
                    f"the relay did not answer within {DIAL_TIMEOUT_S:.0f} s"
                ) from None
            raise
        self._plan_refresh(token)
        if self._token is not source:
            # Another was set while this one was on its way.
            self._refresh_at = 0.0
        return link

    def _plan_refresh(self, token: str | None) -> None:
        """Find out from a grant when the next one is needed."""
        left = refresh_in(token, self._clock()) if callable(self._token) else None
        now = asyncio.get_running_loop().time()
        self._refresh_at = None if left is None else now + max(left, MIN_REFRESH_S)

    def _adopt(self, link: Link) -> None:
        previous, self._link = self._link, link
        if previous is not None and not previous.ended.done():
            # The relay sends to the new connection already; this one empties itself.
            loop = asyncio.get_running_loop()
            self._draining[previous] = loop.call_later(DRAIN_S, self._drained, previous)
        assert link.machine is not None
        logger.info("relay %s: connected", self.url.redacted)
        self._set(
            attrs.evolve(
                self._status,
                state=ClientState.CONNECTED,
                version=link.machine.version,
                error=None,
                notice=None,
                attempts=0,
                connects=self._status.connects + 1,
            )
        )
        self._send_kept(link)

    def _drained(self, link: Link) -> None:
        handle = self._draining.pop(link, None)
        if handle is not None:
            handle.cancel()
        link.close()

    async def _serve(self) -> DialkeyError:
        """Watch the connection, and those that replace it, until it is lost."""
        loop = asyncio.get_running_loop()
        while True:
            link = self._link
            assert link is not None
            self._poke.clear()
            timeout = None if self._refresh_at is None else max(0, self._refresh_at - loop.time())
            poke = asyncio.create_task(self._poke.wait())
            try:
                await asyncio.wait(
                    (link.ended, poke), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                poke.cancel()
            if link.ended.done():
                return link.ended.result()
            if self._refresh_at is not None and loop.time() >= self._refresh_at:
                await self._replace()

    async def _replace(self) -> None:
        """Connect a second time with a new token; if that fails, keep the first and try again."""
        try:
            self._adopt(await self._dial())
        except DialkeyError as error:
            logger.warning("relay %s: the new token did not work: %s", self.url.redacted, error)
            delay = max(MIN_REFRESH_S, self._backoff.failed())
            self._refresh_at = asyncio.get_running_loop().time() + delay

    # --- the watchdog ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCHDOG_S)
            reason = self.wedged(loop.time())
            if reason is None:
                continue
            logger.error("relay %s: the watchdog steps in: %s", self.url.redacted, reason)
            self._set(attrs.evolve(self._status, watchdog_kills=self._status.watchdog_kills + 1))
            if self._attempt is not None:
                self._attempt.cancel()
            if self._link is not None:
                self._link.abort(reason)
            if self._main is not None and self._main.done():
                self._main = asyncio.create_task(self._run(), name=f"relay {self.url.redacted}")

    def wedged(self, now: float) -> str | None:
        """Return what is stuck, None if all is well; `now` is in the loop's time."""
        if self._main is None or self._closed:
            return None
        if self._main.done():
            return "the work has stopped"
        if self._attempt is not None and now - self._attempt_since > 2 * DIAL_TIMEOUT_S + 5:
            return "an attempt does not end"
        link = self._link
        if link is not None and link.is_open and link.machine is not None:
            last = link.machine.last_frame_at
            if last is not None and now - last > STUCK_S:
                return "a connection is silent and nobody noticed"
        return None
