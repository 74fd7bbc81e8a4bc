"""The relay server: `RelayServer` listens, admits, watches and restarts."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import attrs

from dialkey.allowance import Allowance
from dialkey.errors import BindError
from dialkey.hooks import Plugins
from dialkey.identity import EndpointId
from dialkey.limits import MAX_RELAY_UNAUTHENTICATED, RELAY_WRITE_TIMEOUT_S
from dialkey.opening import AsyncOnly, check_loop
from dialkey.printable import printable, printable_traceback
from dialkey.shares import Claim, FairShares, network_of
from dialkey_relay.access import AccessRule, Admission, AdmitRequest, Denial, check_all, recheck_all
from dialkey_relay.errors import RelayConfigError, cannot_listen
from dialkey_relay.frames import Restarting
from dialkey_relay.hookspecs import RelayHookSpecs
from dialkey_relay.hub import Hub
from dialkey_relay.rates import AddressLimiter, Rate
from dialkey_relay.server.listener import ClientConnection
from dialkey_relay.server.tls import TlsFiles
from dialkey_relay.session import Session, Settings, State

__all__ = ["Listener", "RelayOptions", "RelayServer"]

logger = logging.getLogger("dialkey.relay")

RECEIVE_BYTES: Final = 262_144
SWEEP_S: Final = 0.5
RELOAD_CHECK_S: Final = 60.0
RESTART_GRACE_S: Final = 2.0
BACKLOG: Final = 1024

ACCEPT_RATE: Final = Rate(500, 2000)
"""After a restart a fleet of 60,000 is back within two minutes."""

ACCEPT_RATE_PER_ADDRESS: Final = Rate(20, 100)
"""An office behind one address, not a flood."""

Address = tuple[str, int]


@attrs.frozen
class RelayOptions:
    """What a relay listens on and how much it takes.

    Attributes:
        http: where to listen without TLS: for everything if there is no TLS, else for what must
            be served without it. None for not at all.
        https: where to listen with TLS; needs `tls`.
        tls: the certificate.
        client_rate: bytes that one client may send, where its grant says nothing; None for as many as
            get through.
        accept_rate: new TCP connections; None for any.
        accept_rate_per_address: the same, from one address; None for any.
        max_unauthenticated: connections whose key is not proven yet. When they are as many, the network
            (an IPv4 address, or the /64 of an IPv6 one) that has most of them gives way.
        max_connections: TCP connections in all, shared in the same way; None for as many as the system
            has.
        reload_s: how often to look whether the certificate files have changed; None for never.
        reuse_port: let other processes listen on the same port.
    """

    http: Address | None = ("127.0.0.1", 0)
    https: Address | None = None
    tls: TlsFiles | None = None
    client_rate: Rate | None = None
    accept_rate: Rate | None = ACCEPT_RATE
    accept_rate_per_address: Rate | None = ACCEPT_RATE_PER_ADDRESS
    max_unauthenticated: int = MAX_RELAY_UNAUTHENTICATED
    max_connections: int | None = None
    reload_s: float | None = RELOAD_CHECK_S
    reuse_port: bool = False

    def __attrs_post_init__(self) -> None:
        if (self.https is None) != (self.tls is None):
            raise RelayConfigError("a TLS listener needs an address and a certificate")
        if self.http is None and self.https is None:
            raise RelayConfigError("a relay needs an address to listen on")


def bind(address: Address, *, reuse_port: bool = False) -> socket.socket:
    """Open a listening TCP socket; the address ``::`` means IPv4, too, where the system can.

    Raises:
        OSError: the address cannot be used.
    """
    host, port = address
    if host == "::":
        dual = socket.has_dualstack_ipv6()
        return socket.create_server(
            ("::", port) if dual else ("0.0.0.0", port),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=BACKLOG,
            reuse_port=reuse_port,
        )
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, place = found[0]
    return socket.create_server(
        (str(place[0]), int(place[1])), family=family, backlog=BACKLOG, reuse_port=reuse_port
    )


class Listener:
    """One port of a relay, and what its connections share."""

    def __init__(self, relay: RelayServer, settings: Settings, tls: TlsFiles | None) -> None:
        self.relay = relay
        self.settings = settings
        self.tls = tls
        self.server: asyncio.Server | None = None

    async def open(self, address: Address, reuse_port: bool) -> None:
        """Start listening.

        Raises:
            BindError: the address cannot be used.
        """
        try:
            self.server = await self.relay.loop.create_server(
                lambda: ClientConnection(self), sock=bind(address, reuse_port=reuse_port)
            )
        except OSError as error:
            raise cannot_listen("the relay", address, error) from error

    @property
    def addresses(self) -> list[Address]:
        """Where it listens."""
        if self.server is None:
            return []
        return [sock.getsockname()[:2] for sock in self.server.sockets]


class RelayServer(AsyncOnly):
    """A relay, embeddable in any asyncio program.

    ::

        async with RelayServer([Everyone()]) as relay:
            print(relay.url)
            await relay.serve_forever()

    Args:
        rules: who may use it; all must agree; without rules nobody gets in.
        options: addresses and limits.
        plugins: asked in hook `dialkey_relay_admit` after the rules; made with
            ``Plugins(RelayHookSpecs)``, or with the relay plugin in it.
        clock: gives Unix seconds.
    """

    def __init__(
        self,
        rules: Sequence[AccessRule],
        options: RelayOptions | None = None,
        *,
        plugins: Plugins | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.options = options if options is not None else RelayOptions()
        self.rules = list(rules)
        self.hub = Hub()
        self.plugins = plugins
        if plugins is not None:
            plugins.add_specs(RelayHookSpecs)
        self.clock = clock
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.plain_buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._connections: set[ClientConnection] = set()
        # Places of those who have not proven a key yet, and of all.
        self._waiting_places: FairShares[Hashable] = FairShares(self.options.max_unauthenticated)
        self._waiting: dict[ClientConnection, Claim] = {}
        self._places: FairShares[Hashable] = FairShares(self.options.max_connections or sys.maxsize)
        self._placed: dict[ClientConnection, Claim] = {}
        self._stalled: dict[ClientConnection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._last_connection_id = 0
        self._listeners: list[Listener] = []
        self._reloader: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._gone = asyncio.Event()
        self._accept: Allowance | None = None
        self._accept_per_address: AddressLimiter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    # --- life -----------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it runs in."""
        if self._loop is None:
            raise RuntimeError("the relay has not been started")
        return self._loop

    async def start(self) -> None:
        """Listen.

        Raises:
            BindError: an address cannot be used; nothing is open then.
        """
        if self._loop is not None:
            raise RuntimeError("a relay is started once")
        self._loop = asyncio.get_running_loop()
        options = self.options
        if options.accept_rate is not None:
            self._accept = options.accept_rate.allowance(self._loop.time())
        if options.accept_rate_per_address is not None:
            self._accept_per_address = AddressLimiter(options.accept_rate_per_address)
        serving = Settings(rate=options.client_rate)
        beside = Settings(relays=False)
        try:
            if options.https is not None:
                await self._listen(options.https, serving, options.tls)
            if options.http is not None:
                await self._listen(options.http, beside if options.https else serving, None)
        except BindError:
            await self.close()
            raise
        if options.tls is not None and options.reload_s is not None:
            self._reloader = self._loop.create_task(self._watch_files(options.reload_s))

    async def _listen(self, address: Address, settings: Settings, tls: TlsFiles | None) -> None:
        listener = Listener(self, settings, tls)
        await listener.open(address, self.options.reuse_port)
        self._listeners.append(listener)
        for host, port in listener.addresses:
            logger.info("relay listens on %s port %d%s", host, port, " (TLS)" if tls else "")

    async def __aenter__(self) -> RelayServer:
        check_loop()
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def serve_forever(self) -> None:
        """Wait until the relay is closed."""
        await self._closed.wait()

    async def close(self) -> None:
        """Stop listening and drop all clients. Idempotent."""
        self._closing = True
        self._stop_listening()
        if self._reloader is not None:
            self._reloader.cancel()
            await asyncio.gather(self._reloader, return_exceptions=True)
            self._reloader = None
        for connection in list(self._connections):
            connection.abort("the relay was closed")
        for listener in self._listeners:
            if listener.server is not None:
                await listener.server.wait_closed()
        await self._all_gone()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._closed.set()

    async def _all_gone(self) -> None:
        while self._connections:
            self._gone.clear()
            await self._gone.wait()

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            if listener.server is not None:
                listener.server.close()

    async def restart(
        self,
        *,
        reconnect_in_ms: int = 500,
        try_for_ms: int = 60_000,
        grace_s: float = RESTART_GRACE_S,
    ) -> None:
        """Tell all clients that the relay goes down and comes back, then close.

        Clients of dialkey wait `reconnect_in_ms` and spread their return; those of iroh only see a
        proper close, and return at once.

        Args:
            grace_s: how long to wait until all have taken the message.
        """
        self._stop_listening()
        notice = Restarting(reconnect_in_ms, try_for_ms)
        for connection in list(self._connections):
            if connection.session is not None:
                connection.session.restart(notice)
                connection.flush()
        try:
            async with asyncio.timeout(grace_s):
                await self._all_gone()
        except TimeoutError:
            logger.info("%d clients did not leave in time", len(self._connections))
        await self.close()

    # --- where ----------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[Address]:
        """Where it listens: the TLS listener first, if there is one."""
        return [address for listener in self._listeners for address in listener.addresses]

    @property
    def url(self) -> str:
        """A URL of this relay by its own address; behind names and proxies others are right."""
        host, port = self.addresses[0]
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1" if host == "0.0.0.0" else "::1"
        if ":" in host:
            host = f"[{host}]"
        return f"{'https' if self.options.https else 'http'}://{host}:{port}/"

    def __len__(self) -> int:
        """Return the number of endpoint ids that are connected."""
        return len(self.hub)

    @property
    def connection_count(self) -> int:
        """The number of TCP connections."""
        return len(self._connections)

    # --- connections ----------------------------------------------------------------------------

    def next_connection_id(self) -> int:
        """Number a connection."""
        self._last_connection_id += 1
        return self._last_connection_id

    def may_enter(self, connection: ClientConnection) -> bool:
        """Count a new connection in, if the limits allow."""
        self.hub.counters.http_connections += 1
        now = self.loop.time()
        network = network_of(connection.remote)
        self._connections.add(connection)
        if not self._closing and self._within_rates(connection.remote, now):
            give_way = functools.partial(self._give_way, connection)
            waiting = self._waiting_places.claim(network, give_way)
            place = self._places.claim(network, give_way)
            if waiting.take(1) and place.take(1):
                self._waiting[connection] = waiting
                self._placed[connection] = place
                return True
            waiting.release()
            place.release()
        self.hub.counters.http_connections_refused += 1
        return False

    def _within_rates(self, address: str, now: float) -> bool:
        """Count a new connection against the rates; tell whether they allow it."""
        per_address = self._accept_per_address
        is_rare = per_address is not None and per_address.is_rare(address, now)
        if per_address is not None and not per_address.allow(address, now):
            return False
        # Many addresses within their own rates can use up the total; those that rarely connect get in.
        return self._accept is None or self._accept.take(now) or is_rare

    def _give_way(self, connection: ClientConnection) -> None:
        """End a connection, because its network has the most and places are short."""
        self.hub.counters.http_connections_displaced += 1
        # Not at once: another one is just arriving.
        self.loop.call_soon(connection.abort, "other networks have fewer connections")

    def left(self, connection: ClientConnection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        for places in (self._waiting, self._placed):
            if (place := places.pop(connection, None)) is not None:
                place.release()
        self._stalled.pop(connection, None)
        self.hub.counters.http_connections_closed += 1
        if not self._connections:
            self._gone.set()

    def flush_ready(self) -> None:
        """Send to all clients that something came in for."""
        for peer in self.hub.take_ready():
            peer.outlet.flush()

    def disconnect(self, endpoint_id: EndpointId, reason: str = "disconnected by the relay") -> int:
        """End all connections of an endpoint; return how many there were."""
        peers = self.hub.peers_of(bytes(endpoint_id))
        for peer in peers:
            peer.outlet.end(reason)
        self.flush_ready()
        return len(peers)

    # --- access ---------------------------------------------------------------------------------

    async def judge(self, request: AdmitRequest) -> Admission | Denial:
        """Ask the rules, then the plugins. A rule that fails says no, and is counted."""
        try:
            answer = await check_all(self.rules, request)
        except Exception as error:
            self.hub.counters.admission_errors += 1
            logger.error(
                "an access rule failed for %s\n%s",
                request.endpoint_id.short(),
                printable_traceback(error),
            )
            return Denial("the access rules failed")
        if isinstance(answer, Denial) or self.plugins is None:
            return answer
        refusal = await self.plugins.refusal("dialkey_relay_admit", request=request)
        if refusal is not None:
            return Denial(refusal.reason.decode("utf-8", "replace") or Denial().reason)
        return answer

    def settle(
        self, connection: ClientConnection, session: Session, answer: Admission | Denial
    ) -> None:
        """Tell a session the verdict."""
        if isinstance(answer, Denial):
            if session.endpoint_id is not None:
                reason = printable(answer.reason)
                logger.info("denied %s: %s", session.endpoint_id.short(), reason)
            session.deny(answer.reason)
            return
        session.admit(answer, self.loop.time())
        if session.state is State.OPEN:
            self._waiting.pop(connection).release()

    def recheck(self) -> int:
        """Ask the rules again about everybody, because they changed; return how many were ended."""
        ended = 0
        for connection in list(self._connections):
            session = connection.session
            if session is None or session.admission is None or session.endpoint_id is None:
                continue
            reason = recheck_all(self.rules, session.endpoint_id, session.admission)
            if reason is not None and session.closing is None:
                logger.info("%s has to leave: %s", connection, printable(reason))
                self.hub.counters.clients_revoked += 1
                connection.end(reason)
                ended += 1
        self.flush_ready()
        return ended

    def set_client_rate(self, rate: Rate | None) -> None:
        """Change how many bytes a client may send, also for those connected without a grant's."""
        self.options = attrs.evolve(self.options, client_rate=rate)
        for listener in self._listeners:
            listener.settings = attrs.evolve(listener.settings, rate=rate)
        now = self.loop.time()
        for connection in self._connections:
            session = connection.session
            admission = session.admission if session is not None else None
            if session is not None and admission is not None and admission.rate is None:
                session.set_rate(rate, now)

    # --- clients that do not read ---------------------------------------------------------------

    def watch_stalled(self, connection: ClientConnection) -> None:
        """Look from time to time whether a client takes what waits for it."""
        connection.stalled_at = self.loop.time()
        connection.unsent = connection.unsent_bytes()
        self._stalled[connection] = None
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def unwatch_stalled(self, connection: ClientConnection) -> None:
        """Note that a client takes data again."""
        self._stalled.pop(connection, None)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self.loop.time()
        for connection in list(self._stalled):
            unsent = connection.unsent_bytes()
            if unsent < connection.unsent:
                connection.unsent = unsent
                connection.stalled_at = now
            elif now - connection.stalled_at >= RELAY_WRITE_TIMEOUT_S:
                self.hub.counters.write_timeouts += 1
                del self._stalled[connection]
                connection.abort("the client does not read")
        if self._stalled:
            self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        self.flush_ready()

    # --- certificates ---------------------------------------------------------------------------

    def reload_tls(self) -> bool:
        """Read the certificate files again if they changed; tell whether a new one is in use.

        A certificate that cannot be used is logged and counted; the old one stays.
        """
        if self.options.tls is None:
            return False
        try:
            changed = self.options.tls.reload_if_changed()
        except RelayConfigError as error:
            self.hub.counters.tls_reload_errors += 1
            logger.error("the new certificate is not used: %s", error)
            return False
        if changed:
            self.hub.counters.tls_reloads += 1
            logger.info("the certificate was replaced")
        return changed

    async def _watch_files(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            self.reload_tls()
