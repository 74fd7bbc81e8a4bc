"""The relay as a carrier of datagrams: `RelayTransport`, for `Endpoint`.

It keeps one relay as *home*, where others find us, and opens connections to other relays when
datagrams are to go there. A path address is a relay and an endpoint id (`RelayPath`).

Two promises about what is advertised: it names only the home relay, and only while we are connected
to it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from random import Random, SystemRandom
from typing import Final

import attrs

from dialkey.errors import DialkeyError, InvalidAddress, InvalidKey, LocalError, Offline
from dialkey.identity import EndpointId, IpAddr, RelayAddr, RelayUrl, SecretKey, TransportAddr
from dialkey.network import MayReach, PathAddress, Receiver, is_public
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer, Target
from dialkey_relay.client.home import HomeSelector, Report
from dialkey_relay.client.probe import probe_all
from dialkey_relay.client.qad import AddressDiscovery, OpenChannel, Place, roots_of
from dialkey_relay.client.status import ClientState, ClientStatus, Token
from dialkey_relay.errors import RelaySilent, is_final
from dialkey_relay.frames import Datagrams

__all__ = [
    "HomeRelay",
    "HomeRelayChanged",
    "RelayConfig",
    "RelayConnected",
    "RelayDisconnected",
    "RelayPath",
    "RelayTransport",
]

logger = logging.getLogger("dialkey.relay.client")

REPORT_INTERVAL_S: Final = 300.0
REPORT_JITTER_S: Final = 30.0
TRIAL_S: Final = 10.0
"""How long a relay that is to become home may take to let us in: as long as an attempt may take."""

FAILOVER_S: Final = 4.5
"""A home relay without a connection for this long is given up for one that answers: long enough for a
restart. One that is silent or refuses us is given up at once."""

MAX_TRIALS: Final = 8
"""Relays that are dialled at once when the home is lost, the nearest."""

IDLE_S: Final = 60.0
"""A relay that is not home is left this long after the last datagram; iroh's own number."""

HOUSEKEEPING_S: Final = 5.0
MAX_RELAYS: Final = 32
"""Connections to relays at a time: their URLs come from addresses that strangers make up."""

MAX_RELAYS_OF_HEARSAY: Final = 16
"""Of those, such that others than the application and its lookups have named; they make room for the
rest, so that strangers cannot keep us from a relay that a ticket names."""

ATTEMPTS_TO_BELIEVE: Final = 2
"""How often in a row a relay has to refuse us before a dial through it fails; about 30 ms apart."""

ASK_AGAIN_S: Final = 0.25
"""A relay that refused us this long ago is asked again when somebody dials through it: its rules may have
changed. Shorter would hammer it, longer would keep the dial waiting."""

QAD_PORT: Final = 7842
"""The UDP port on which relays tell clients their address; the same as in iroh."""

MAX_PATHS: Final = 4096
"""Path addresses remembered, so that each is made once."""


def _url(value: RelayUrl | str) -> RelayUrl:
    return value if isinstance(value, RelayUrl) else RelayUrl(value)


def _standard_port(url: RelayUrl) -> int | None:
    return QAD_PORT if url.scheme in ("https", "wss") else None


@attrs.frozen
class RelayConfig:
    """A relay that may become home.

    Attributes:
        url: where it is.
        token: for its access rules.
        discovery_port: where it tells us our own address (UDP), with a certificate for the host of the
            URL; None if it does not. By default 7842 for a relay with TLS.

    Raises:
        InvalidAddress: the URL is not one of a relay.
    """

    url: RelayUrl = attrs.field(converter=_url)
    token: Token = attrs.field(default=None, repr=False)
    discovery_port: int | None = attrs.field(
        default=attrs.Factory(lambda config: _standard_port(config.url), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        # Now, while somebody can still fix it, rather than as a relay that never answers.
        Target.of(self.url)


@attrs.frozen
class RelayPath:
    """The path to an endpoint through a relay."""

    url: RelayUrl
    endpoint_id: EndpointId

    @property
    def path_kind(self) -> str:
        """What such paths are called."""
        return "relay"

    @property
    def counts_as(self) -> tuple[str, ...]:
        """What limits on strangers count: the id, which the relay has checked, and the relay."""
        return f"id {self.endpoint_id}", f"relay {self.url}"

    def __str__(self) -> str:
        return f"{self.url.redacted} → {self.endpoint_id.short()}"


@attrs.frozen
class HomeRelay:
    """Where others find us, and the state of that connection.

    Attributes:
        url: the relay, None where none has been chosen.
        status: of the connection to it.
    """

    url: RelayUrl | None
    status: ClientStatus


@attrs.frozen
class RelayConnected:
    """An event: a relay accepted us."""

    url: RelayUrl
    is_home: bool


@attrs.frozen
class RelayDisconnected:
    """An event: the connection to a relay was lost, or an attempt failed."""

    url: RelayUrl
    is_home: bool
    error: DialkeyError


@attrs.frozen
class HomeRelayChanged:
    """An event: from now on others find us at another relay."""

    url: RelayUrl | None
    previous: RelayUrl | None


_STOPPED: Final = ClientStatus(ClientState.STOPPED)


class RelayTransport:
    """Carries datagrams through relays.

    Args:
        secret_key: of the endpoint.
        relays: those that may become home; others are used when an address names them.
        dialer: TLS roots and proxy.
        emit: gets events.
        open_channel: sends over the endpoint's own UDP socket, to learn our address from relays; None
            to do without.
        random: for everything that must not be predicted, and for jitter.
    """

    name = "relay"

    def __init__(
        self,
        secret_key: SecretKey,
        relays: Iterable[RelayConfig],
        *,
        dialer: Dialer | None = None,
        emit: Callable[[object], None] | None = None,
        open_channel: OpenChannel | None = None,
        random: Random | None = None,
    ) -> None:
        self._secret_key = secret_key
        self._configs = {config.url: config for config in relays}
        self._dialer = dialer if dialer is not None else Dialer()
        self._emit = emit if emit is not None else _ignore
        self._random = random if random is not None else SystemRandom()
        self._receiver: Receiver | None = None
        self._clients: dict[RelayUrl, RelayClient] = {}
        self._used_at: dict[RelayUrl, float] = {}
        self._paths: dict[tuple[RelayUrl, bytes], RelayPath] = {}
        # By relay: where its name may lead; None: anywhere, because the application named it.
        self._reach: dict[RelayUrl, MayReach | None] = {}
        self._selector = HomeSelector()
        self._home: RelayUrl | None = None
        self._home_lost_at: float | None = None
        self._failover: asyncio.Task[None] | None = None
        self._failover_timer: asyncio.TimerHandle | None = None
        self._advertised: RelayUrl | None = None
        self._changed = asyncio.Event()
        self._report_now = asyncio.Event()
        self._full_report = True
        self._discovery: AddressDiscovery | None = None
        self._discovering: asyncio.Task[None] | None = None
        if open_channel is not None:
            self._discovery = AddressDiscovery(
                open_channel,
                self._discovery_places,
                roots_of(self._dialer.tls),
                self._on_discovered,
            )
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.dropped = 0

    # --- life -----------------------------------------------------------------------------------

    async def start(self, receiver: Receiver) -> None:
        """Start carrying datagrams and looking for a home; `online` waits until there is one."""
        self._receiver = receiver
        self._report_now.set()
        self._spawn(self._report_loop())
        self._spawn(self._housekeeping_loop())
        if self._discovery is not None and any(self._discovery_places()):
            self._discovering = self._spawn(self._discovery.run())

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Leave all relays. Idempotent."""
        self._closed = True
        self._set_failover_timer(None)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.close() for client in clients.values()))
        self._wake()

    # --- the Transport interface ----------------------------------------------------------------

    def path_addresses(self, id: EndpointId, addr: TransportAddr) -> list[PathAddress]:
        """Return the path to an endpoint through the relay that an address names."""
        if not isinstance(addr, RelayAddr):
            return []
        self._trust(addr.url, None)
        return [self._path(addr.url, bytes(id))]

    def paths_of_hearsay(
        self, id: EndpointId, addr: TransportAddr, may_reach: MayReach
    ) -> list[PathAddress]:
        """Return the same for an address that strangers named: its relay is connected to with care."""
        if not isinstance(addr, RelayAddr):
            return []
        # Strangers repeat the names of relays that we trust, which takes nothing from these.
        if self._reach.get(addr.url, may_reach) is not None:
            self._trust(addr.url, may_reach)
        return [self._path(addr.url, bytes(id))]

    def _trust(self, url: RelayUrl, may_reach: MayReach | None) -> None:
        self._reach.pop(url, None)
        if len(self._reach) >= MAX_PATHS:
            # Those named by strangers first: what is unknown here is not trusted either.
            heard = (each for each, reach in self._reach.items() if reach is not None)
            del self._reach[next(heard, None) or next(iter(self._reach))]
        self._reach[url] = may_reach

    def _guard(self, url: RelayUrl) -> MayReach | None:
        return None if url in self._configs else self._reach.get(url, is_public)

    def owns(self, remote: PathAddress) -> bool:
        """Return whether a path address leads through a relay."""
        return isinstance(remote, RelayPath)

    def send(self, remote: PathAddress, data: bytes | memoryview, segment_bytes: int) -> None:
        """Send datagrams; a connection to their relay is opened if there is none.

        While it is being opened, some are kept; the rest is dropped and counted.
        """
        assert isinstance(remote, RelayPath)
        client = self._clients.get(remote.url)
        if client is None:
            client = self._open(remote.url)
            if client is None:
                self.dropped += 1
                return
        client.send(bytes(remote.endpoint_id), data, segment_bytes)
        if self._keeps_us_out(client.status):
            # It may pause for seconds, and somebody is waiting now; they are told what it says.
            now = asyncio.get_running_loop().time()
            if now - client.attempted_at > ASK_AGAIN_S:
                client.retry()

    def _report_trouble(self, remote: RelayPath) -> None:
        trouble = self.trouble_with(remote)
        if trouble is not None and self._receiver is not None and not self._closed:
            self._receiver.on_unreachable(remote, trouble)

    def _keeps_us_out(self, status: ClientStatus) -> bool:
        # A single refusal may come from a restart.
        return (
            status.state is ClientState.WAITING
            and status.attempts >= ATTEMPTS_TO_BELIEVE
            and is_final(status.error)
        )

    def trouble_with(self, remote: PathAddress) -> str | None:
        """Return what keeps us from the relay of a path now; None where nothing is known to."""
        assert isinstance(remote, RelayPath)
        client = self._clients.get(remote.url)
        if client is None or client.is_connected or client.status.error is None:
            return None
        return f"relay {remote.url.redacted}: {client.status.error}"

    @property
    def is_blocked(self) -> bool:
        """Never: a blocked relay must not hold up direct paths, so it loses datagrams instead."""
        return False

    def local_addrs(self) -> list[TransportAddr]:
        """Return the home relay, while we are connected to it, and what relays see us come from."""
        # A relay on this very machine sees what nobody else can use.
        seen: list[TransportAddr] = [each for each in self.seen_addrs if not each.ip.is_loopback]
        return [RelayAddr(self._advertised), *seen] if self._advertised is not None else seen

    @property
    def seen_addrs(self) -> tuple[IpAddr, ...]:
        """The addresses that relays have seen our datagrams come from, one of each family at most."""
        return self._discovery.addresses if self._discovery is not None else ()

    @property
    def port_varies(self) -> bool | None:
        """Whether the NAT before us uses another port for each destination; None while unknown."""
        return self._discovery.varies if self._discovery is not None else None

    def _discovery_places(self) -> Iterator[Place]:
        """Go through the relays that may tell us our address, the home first."""
        for config in sorted(self._configs.values(), key=lambda each: each.url != self._home):
            if config.discovery_port is not None:
                yield Place(Target.of(config.url).host, config.discovery_port)

    def _on_discovered(self) -> None:
        if self._receiver is not None and not self._closed:
            self._receiver.on_candidates_changed()

    def _ask_for_addresses(self) -> None:
        if self._discovery is None or self._closed:
            return
        if self._discovering is None and any(self._discovery_places()):
            self._discovering = self._spawn(self._discovery.run())
        self._discovery.ask_again()

    def network_changed(self) -> None:
        """Check all connections at once, and measure all relays again."""
        for client in self._clients.values():
            client.network_changed()
        self._full_report = True
        self._report_now.set()
        self._ask_for_addresses()

    # --- relays ---------------------------------------------------------------------------------

    @property
    def home(self) -> HomeRelay:
        """Where others find us, and the state of that connection."""
        client = self._clients.get(self._home) if self._home is not None else None
        return HomeRelay(self._home, client.status if client is not None else _STOPPED)

    async def watch_home(self) -> AsyncIterator[HomeRelay]:
        """Go through the states of the home relay, the current one first."""
        seen: HomeRelay | None = None
        while not self._closed:
            if self.home != seen:
                seen = self.home
                yield seen
            else:
                await self._changed.wait()

    @property
    def has_rendezvous(self) -> bool:
        """Whether any relay is configured that could become home."""
        return bool(self._configs)

    def offline_reasons(self) -> list[str]:
        """Say for each relay that may become home what keeps us from it now."""
        reasons = []
        for url in self._configs:
            client = self._clients.get(url)
            if client is None:
                reasons.append(f"{url.redacted}: no answer")
            elif not client.is_connected:
                error = client.status.error
                reasons.append(
                    f"{url.redacted}: {error if error is not None else 'still connecting'}"
                )
        return reasons

    async def online(self) -> RelayUrl:
        """Wait until others can reach us through a relay; return which.

        Raises:
            Offline: every relay refuses us, in a way that waiting does not change.
            LocalError: the transport was closed, or has no relays.
        """
        if not self._configs:
            raise LocalError("no relay is configured", hint="give Relay(…) at least one URL")
        known = self._ask_again()
        while self._advertised is None:
            if self._closed:
                raise LocalError("the endpoint is closed")
            if all(self._refuses(url, known.get(url, 0)) for url in self._configs):
                raise Offline(
                    f"no relay accepts us: {'; '.join(self.offline_reasons())}",
                    hint="the endpoint keeps trying",
                )
            await self._changed.wait()
        return self._advertised

    def _ask_again(self) -> dict[RelayUrl, int]:
        """Dial those that refused us some time ago; return how many attempts to disregard."""
        now = asyncio.get_running_loop().time()
        asked: dict[RelayUrl, int] = {}
        for url in self._configs:
            client = self._clients.get(url)
            if (
                client is not None
                and self._keeps_us_out(client.status)
                and now - client.attempted_at > ASK_AGAIN_S
            ):
                asked[url] = client.status.attempts
                client.retry()
        return asked

    def _refuses(self, url: RelayUrl, known_attempts: int) -> bool:
        """Say whether a relay has turned us away, more than once and after that many attempts."""
        client = self._clients.get(url)
        if client is None or not is_final(client.status.error):
            return False
        under_way = client.status.state is ClientState.CONNECTING
        return client.status.attempts - under_way >= max(ATTEMPTS_TO_BELIEVE, known_attempts + 1)

    def statuses(self) -> dict[RelayUrl, ClientStatus]:
        """Return the state of every open connection to a relay."""
        return {url: client.status for url, client in self._clients.items()}

    def insert(self, config: RelayConfig) -> None:
        """Add a relay, or change its token; home is chosen again."""
        previous = self._configs.get(config.url)
        self._configs[config.url] = config
        client = self._clients.get(config.url)
        if client is not None and (previous is None or previous.token != config.token):
            client.set_token(config.token)
        self._watch_home_closely()
        self._full_report = True
        self._report_now.set()
        self._ask_for_addresses()

    def remove(self, url: RelayUrl) -> bool:
        """Take a relay off the list; if it is home, another becomes it. Tell whether it was there."""
        if self._configs.pop(url, None) is None:
            return False
        self._selector.forget(url)
        if self._home == url:
            self._set_home(None)
        self._watch_home_closely()
        self._full_report = True
        self._report_now.set()
        self._ask_for_addresses()
        return True

    def _open(self, url: RelayUrl) -> RelayClient | None:
        if self._closed or not self._make_room(url):
            return None
        config = self._configs.get(url)
        try:
            client = RelayClient(
                url,
                self._secret_key,
                token=config.token if config is not None else None,
                dialer=self._dialer.guarded(lambda: self._guard(url)),
                on_datagrams=lambda batches: self._on_datagrams(url, batches),
                on_status=lambda status: self._on_status(url, status),
                random=self._random,
            )
        except InvalidAddress as error:
            logger.warning("%s", error)
            return None
        self._clients[url] = client
        self._used_at[url] = asyncio.get_running_loop().time()
        client.start()
        return client

    def _make_room(self, url: RelayUrl) -> bool:
        """Say whether one more relay may be connected to; for one that we trust, another may be left."""
        heard = [each for each in self._clients if self._guard(each) is not None]
        if self._guard(url) is not None and len(heard) >= MAX_RELAYS_OF_HEARSAY:
            return False
        if len(self._clients) < MAX_RELAYS:
            return True
        if not heard or self._guard(url) is not None:
            return False
        loser = min(heard, key=self._last_used_at)
        self._used_at.pop(loser, None)
        self._spawn(self._clients.pop(loser).close())
        return True

    def _last_used_at(self, url: RelayUrl) -> float:
        return max(self._clients[url].last_sent_at, self._used_at.get(url, 0.0))

    # --- receiving ------------------------------------------------------------------------------

    def _path(self, url: RelayUrl, peer: bytes) -> RelayPath:
        path = self._paths.get((url, peer))
        if path is None:
            path = RelayPath(url, EndpointId(peer))
            if len(self._paths) >= MAX_PATHS:
                del self._paths[next(iter(self._paths))]
            self._paths[url, peer] = path
        return path

    def _on_datagrams(self, url: RelayUrl, batches: list[Datagrams]) -> None:
        receiver = self._receiver
        if receiver is None or self._closed:
            return
        self._used_at[url] = asyncio.get_running_loop().time()
        for batch in batches:
            content = batch.content
            if not content:
                continue
            try:
                path = self._path(url, batch.peer)
            except InvalidKey:
                # A relay admits nobody without a key, so this one invents things.
                self.dropped += 1
                continue
            receiver.on_datagrams(memoryview(content), batch.segment_size or len(content), path)
        receiver.on_batch_end()

    # --- home -----------------------------------------------------------------------------------

    def _on_status(self, url: RelayUrl, status: ClientStatus) -> None:
        is_home = url == self._home
        if status.state is ClientState.CONNECTED and status.rtt_s is None:
            self._emit(RelayConnected(url, is_home))
        elif status.state is ClientState.WAITING and status.error is not None:
            self._emit(RelayDisconnected(url, is_home, status.error))
            if self._keeps_us_out(status):
                for path in [each for each in self._paths.values() if each.url == url]:
                    self._report_trouble(path)
        if is_home:
            self._update_home()
            if isinstance(status.error, RelaySilent) or self._keeps_us_out(status):
                self._leave_home()
        self._wake()

    def _update_home(self) -> None:
        """Bring what is advertised in line with whether we are connected."""
        client = self._clients.get(self._home) if self._home is not None else None
        connected = client is not None and client.is_connected
        if connected:
            self._home_lost_at = None
            self._set_failover_timer(None)
        elif self._home_lost_at is None and not self._closed:
            self._home_lost_at = asyncio.get_running_loop().time()
            self._set_failover_timer(FAILOVER_S)
        advertised = self._home if connected else None
        if advertised != self._advertised:
            self._advertised = advertised
            self._wake()
            if self._receiver is not None and not self._closed:
                self._receiver.on_addresses_changed()

    def _set_home(self, url: RelayUrl | None) -> None:
        if url == self._home:
            return
        previous, self._home = self._home, url
        self._home_lost_at = None
        logger.info("home relay: %s", url.redacted if url is not None else "none")
        if url is not None and url not in self._clients:
            self._open(url)
        self._watch_home_closely()
        self._emit(HomeRelayChanged(url, previous))
        self._update_home()
        self._wake()

    def _watch_home_closely(self) -> None:
        """Notice soon when the home relay falls silent, if there is another to go to."""
        for url, client in self._clients.items():
            client.watch_closely(url == self._home and len(self._configs) > 1)

    def _set_failover_timer(self, after_s: float | None) -> None:
        if self._failover_timer is not None:
            self._failover_timer.cancel()
            self._failover_timer = None
        if after_s is not None:
            loop = asyncio.get_running_loop()
            self._failover_timer = loop.call_later(after_s, self._leave_home)

    def _leave_home(self) -> None:
        """Look for another home, while the present one is still being dialled."""
        is_busy = self._failover is not None and not self._failover.done()
        if self._closed or self._home is None or len(self._configs) < 2 or is_busy:
            return
        self._failover = self._spawn(self._fail_over(self._home))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _report_loop(self) -> None:
        while True:
            jitter = self._random.uniform(-REPORT_JITTER_S, REPORT_JITTER_S)
            try:
                async with asyncio.timeout(REPORT_INTERVAL_S + jitter):
                    await self._report_now.wait()
            except TimeoutError:
                logger.debug("time for another look at the relays")
            self._report_now.clear()
            full, self._full_report = self._full_report, False
            await self._report(full)

    async def _report(self, full: bool) -> None:
        """Measure all relays and choose the home."""
        urls = sorted(self._configs)
        if not urls:
            return
        loop = asyncio.get_running_loop()
        if len(urls) == 1:
            # Nothing to choose from: connecting is a better test than probing.
            self._set_home(urls[0])
            return
        report = Report(https=await probe_all(urls, self._dialer))
        choice = self._selector.add(report, loop.time(), full=full)
        if choice is None:
            # None of them answers. One will some day; until then try the first.
            choice = self._home if self._home is not None else urls[0]
        home = self._home
        if choice == home:
            return
        # While we can be reached at one relay, do not leave it for one that might refuse us.
        if self._advertised is None or choice in await self._let_in({choice}):
            if self._home == home and choice in self._configs:
                self._set_home(choice)
        else:
            logger.info("relay %s is nearer, but does not accept us", choice.redacted)
            self._selector.stay(self._home)

    async def _let_in(self, urls: set[RelayUrl]) -> set[RelayUrl]:
        """Connect to relays; return those that have let us in when the first one has, or none."""
        clients = {url: self._clients.get(url) or self._open(url) for url in urls}
        waits = []
        for client in clients.values():
            if client is not None:
                if not client.is_connected:
                    # It may be pausing after failures.
                    client.network_changed()
                waits.append(asyncio.create_task(client.connected()))
        try:
            if waits:
                await asyncio.wait(waits, timeout=TRIAL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        return {url for url, each in clients.items() if each is not None and each.is_connected}

    # --- housekeeping ---------------------------------------------------------------------------

    async def _housekeeping_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            await self.housekeep(loop.time())

    async def housekeep(self, now: float) -> None:
        """Leave relays that nobody uses, and a home that is gone; `now` is in the loop's time."""
        for url, client in list(self._clients.items()):
            if url != self._home and now - self._last_used_at(url) > IDLE_S:
                del self._clients[url]
                self._used_at.pop(url, None)
                await client.close()
        lost_at = self._home_lost_at
        if lost_at is not None and now - lost_at > FAILOVER_S:
            # It may still answer pings although it does not accept us; no longer prefer it.
            self._leave_home()
            if self._failover is not None:
                await asyncio.wait([self._failover])

    async def _fail_over(self, lost: RelayUrl) -> None:
        """Make the nearest of those relays home that let us in; answering pings is not enough.

        They are dialled without being measured first: that would cost round trips without a home.
        """
        known = self._selector.latencies()
        others = sorted(
            (url for url in self._configs if url != lost),
            key=lambda url: (known.get(url, math.inf), url),
        )
        open_to_us = await self._let_in(set(others[:MAX_TRIALS]))
        if not open_to_us and len(others) > MAX_TRIALS:
            open_to_us = await self._let_in(set(await probe_all(others, self._dialer)))
        if not open_to_us or self._home != lost or self._advertised is not None:
            return
        self._selector.forget(lost)
        choice = next((url for url in others if url in open_to_us and url in self._configs), None)
        if choice is not None:
            self._selector.stay(choice)
            self._set_home(choice)


def _ignore(event: object) -> None:
    return
