"""The endpoint: one key, its sockets, and all its connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO, cast

import attrs

from dialkey import limits
from dialkey.endpoint._driver import Driver
from dialkey.endpoint.congestion import Congestion, MakeController, maker_of
from dialkey.endpoint.connection import Connection
from dialkey.endpoint.dial import Dial
from dialkey.endpoint.dial_limits import DialLimits
from dialkey.endpoint.lookup import AddressLookup, EndpointInfo, StaticLookup
from dialkey.endpoint.publishing import Publishing
from dialkey.endpoint.searching import LookupReport, Search
from dialkey.endpoint.selection import PathSelector
from dialkey.endpoint.side_channel import Receive, SideChannel
from dialkey.errors import EndpointClosed, InvalidInput, LocalError, Offline, PluginError, Refused
from dialkey.hooks import Answer, Plugin, Plugins, RelayChoice
from dialkey.identity import (
    EndpointAddr,
    EndpointId,
    EndpointTicket,
    IpAddr,
    RelayUrl,
    Remote,
    SecretKey,
    TransportAddr,
    parse_remote,
)
from dialkey.network.transport import RendezvousTransport, Transport
from dialkey.network.udp import UdpTransport
from dialkey.opening import AsyncOnly, Opening, check_loop
from dialkey.presets import LocalDiscovery, Preset, minimal
from dialkey.printable import printable_bytes, printable_traceback
from dialkey.quic.paths.mtu import DEFAULT_MAX_BYTES
from dialkey.quic.qlog import Qlog

logger = logging.getLogger("dialkey.endpoint")

DIAL_TIMEOUT_S: Final = 30.0

_PUBLISHED_POLL_S: Final = 0.05
"""How often `published` asks lookups that cannot report when they have published."""

Bind = str | IpAddr | Sequence[str | IpAddr]


@attrs.frozen(kw_only=True)
class _Options:
    """The arguments of `Endpoint.bind`."""

    secret_key: SecretKey | None
    preset: Preset
    plugins: Iterable[Plugin]
    address_lookups: Iterable[AddressLookup]
    transports: Iterable[Transport] | None
    relays: Iterable[str | RelayChoice] | None
    bind: Bind
    alpns: Iterable[str | bytes]
    entry_points: bool
    idle_timeout_s: float
    keep_alive_s: float
    max_datagram_bytes: int
    make_controller: MakeController
    hole_punching: bool
    qlog_dir: str | Path | None
    key_log_file: TextIO | None
    user_data: str | None

    def qlog(self) -> Qlog | None:
        if self.qlog_dir is None:
            return None
        folder = Path(self.qlog_dir)

        def open_file(name: str) -> TextIO:
            return (folder / f"{name}.sqlog").open("w", encoding="utf-8")

        return Qlog(open_file, lambda: time.time() * 1000)


class Endpoint(AsyncOnly):
    """A key that dials and can be dialled.

    Made by `bind`, which is both awaitable and an asynchronous context manager. It belongs to the
    event loop in which it was bound; a process can have many, in one loop or in several.
    """

    @classmethod
    def bind(
        cls,
        *,
        secret_key: SecretKey | None = None,
        preset: Preset = minimal,
        plugins: Iterable[Plugin] = (),
        address_lookups: Iterable[AddressLookup] = (),
        transports: Iterable[Transport] | None = None,
        relays: Iterable[str | RelayChoice] | None = None,
        bind: Bind = (),
        alpns: Iterable[str | bytes] = (),
        entry_points: bool = True,
        idle_timeout_s: float = 30.0,
        keep_alive_s: float = 5.0,
        max_datagram_bytes: int = DEFAULT_MAX_BYTES,
        congestion: Congestion = "bbr",
        hole_punching: bool = True,
        qlog_dir: str | Path | None = None,
        key_log_file: TextIO | None = None,
        user_data: str | None = None,
    ) -> Opening[Endpoint]:
        """Open an endpoint.

        Args:
            secret_key: who we are; a fresh key if None.
            preset: defaults, see `dialkey.presets`.
            plugins: objects with hooks, see `dialkey.hooks`.
            address_lookups: further ways to find and publish addresses.
            transports: what carries datagrams, instead of UDP; plugins add theirs in any case.
            relays: the relays through which others reach us, of which the nearest becomes our home:
                URLs, or what else the relay plugin accepts (`RelayConfig`, with a token). With () nobody
                reaches us through a relay, but we still dial peers whose addresses name one. By default,
                the relays of the preset.
            bind: local addresses for UDP, such as "127.0.0.1:0"; all addresses, any port, if empty.
            alpns: protocols to accept; a `Router` sets them itself.
            entry_points: load the plugins of installed distributions (entry point group "dialkey"). Their
                protocols are served only if `Router.add_installed` is called.
            idle_timeout_s: a connection that is silent for this long is lost; if the peer's value is
                smaller, that one counts.
            keep_alive_s: a quiet connection is pinged this often.
            max_datagram_bytes: the largest UDP payload that path MTU discovery tries.
            congestion: "bbr", "cubic", or a function that makes the controller of a new path; a plugin
                may choose another (hook `dialkey_congestion`).
            hole_punching: tell peers at which IP addresses this machine may be reached, probe theirs, and
                move connections that started through a relay to a direct path.
            qlog_dir: write a qlog file (.sqlog) of each connection to this directory, which must
                exist: packets with their frames, and loss recovery. For analysis; it costs speed.
            key_log_file: write TLS secrets there (NSS format), to decrypt captures. Whoever reads this
                file can read all traffic.
            user_data: a short text that lookups publish with our addresses, see `set_user_data`.

        Raises:
            BindError: a socket cannot be opened. PluginError: a plugin failed to start.
            LocalError: a plugin cannot use what `relays` or the preset's `discovery` says.
            InvalidInput: there is no such `congestion` (raised by the call itself).
            InvalidAddress: text among `relays` is not a URL (raised by the call itself).
            LocalError: `relays` was given, but there is no plugin for relays.
        """
        options = _Options(
            secret_key=secret_key,
            preset=preset,
            plugins=plugins,
            address_lookups=address_lookups,
            transports=transports,
            relays=relays,
            bind=bind,
            alpns=alpns,
            entry_points=entry_points,
            idle_timeout_s=idle_timeout_s,
            keep_alive_s=keep_alive_s,
            max_datagram_bytes=max_datagram_bytes,
            make_controller=maker_of(congestion),
            hole_punching=hole_punching,
            qlog_dir=qlog_dir,
            key_log_file=key_log_file,
            user_data=user_data,
        )
        return Opening(
            cls(options)._start(),
            again="this endpoint was bound already; call Endpoint.bind() again",
        )

    def __init__(self, options: _Options) -> None:
        self._options = options
        self._secret_key = options.secret_key or SecretKey.generate()
        self._id = self._secret_key.id
        self._plugins = Plugins()
        self._udp: UdpTransport | None = None
        self._carriers: list[Transport]
        if options.transports is None and not options.preset.udp:
            self._carriers = []
        elif options.transports is None:
            self._udp = UdpTransport(_parse_bind(options.bind))
            self._carriers = [self._udp]
        else:
            self._carriers = list(options.transports)
        relays = options.relays if options.relays is not None else options.preset.relays
        self._relays = (
            tuple(RelayUrl(each) if isinstance(each, str) else each for each in relays)
            if relays is not None
            else None
        )
        self._known = StaticLookup()
        self._lookups: list[AddressLookup] = [self._known, *options.address_lookups]
        self._discovery = options.preset.discovery
        self._user_data = options.user_data
        self._publishing = Publishing()
        self._alpns = [_alpn_text(alpn) for alpn in options.alpns]
        self._driver: Driver
        self._state = "new"
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Endpoint {self._id.short()} {self._state}>"

    # --- life cycle -----------------------------------------------------------------------------

    async def _start(self) -> Endpoint:
        if self._state != "new":
            raise LocalError("this endpoint was bound already; call Endpoint.bind() again")
        check_loop()
        options = self._options
        plugins = self._plugins
        driver = self._driver = Driver(
            self._secret_key,
            plugins,
            lambda driver: Connection(self, driver),
            self._carriers,
            on_network_changed=self._publish,
            alpns=self._alpns,
            idle_timeout_s=options.idle_timeout_s,
            keep_alive_s=options.keep_alive_s,
            max_datagram_bytes=options.max_datagram_bytes,
            make_controller=options.make_controller,
            hole_punching=options.hole_punching,
            qlog=options.qlog(),
            key_log_file=options.key_log_file,
        )
        self._state = "starting"
        started: list[Transport] = []
        try:
            for plugin in (*options.preset.plugins, *options.plugins):
                plugins.register(plugin)
            if options.entry_points:
                plugins.load_entry_points()
            for answer in await plugins.collect("dialkey_transports", endpoint=self):
                _check_has(answer, "a transport", ("start", "close", "send", "owns"))
                driver.add_transport(cast("Transport", answer.value))
            if self._relays is not None:
                for transport in await self._relay_transport(self._relays):
                    driver.add_transport(transport)
            for answer in await plugins.collect("dialkey_address_lookups", endpoint=self):
                _check_has(answer, "an address lookup", ("resolve", "publish", "close"))
                self._lookups.append(cast("AddressLookup", answer.value))
            for service in self._discovery:
                self._lookups += await self._lookups_for(service)
            for answer in await plugins.call(
                "dialkey_congestion", must_succeed=True, endpoint=self
            ):
                if not callable(answer.value):
                    raise PluginError(
                        f"plugin {answer.plugin!r} returned {type(answer.value).__name__} from "
                        "dialkey_congestion, which is not a function that makes controllers"
                    )
                driver.set_congestion(cast("MakeController", answer.value))
            for answer in await plugins.call(
                "dialkey_path_selector", must_succeed=True, endpoint=self
            ):
                _check_has(answer, "a path selector", ("select",))
                driver.set_path_selector(cast("PathSelector", answer.value))
            for transport in driver.transports:
                started.append(transport)
                await driver.start(transport)
            self._state = "open"
            driver.open()
            self._publishing.start(self._lookups)
            self._publish()
            await plugins.call("dialkey_endpoint_started", must_succeed=True, endpoint=self)
        except BaseException:
            self._state = "closed"
            driver.stop_accepting()
            await plugins.call("dialkey_endpoint_closing", endpoint=self)
            for transport in started:
                await transport.close()
            await self._close_lookups()
            await plugins.close()
            raise
        return self

    async def _relay_transport(self, relays: tuple[RelayChoice, ...]) -> list[Transport]:
        with _what_was_given():
            answers = await self._plugins.call(
                "dialkey_relays", must_succeed=True, endpoint=self, relays=relays
            )
        for answer in answers:
            _check_has(answer, "a transport", ("start", "close", "send", "owns"))
            return [cast("Transport", answer.value)]
        if not relays:
            return []
        raise LocalError(
            "relays were given, but no plugin carries datagrams through relays",
            hint="leave entry_points=True, or pass plugins=[…] with such a plugin",
        )

    async def _lookups_for(self, service: object) -> list[AddressLookup]:
        with _what_was_given():
            answers = await self._plugins.collect(
                "dialkey_discovery", endpoint=self, service=service
            )
        for answer in answers:
            _check_has(answer, "an address lookup", ("resolve", "publish", "close"))
        if not answers and not isinstance(service, LocalDiscovery):
            raise LocalError(
                f"the preset wants discovery, and no plugin provides it: {service}",
                hint="leave entry_points=True, or pass plugins=[…] with such a plugin",
            )
        return [cast("AddressLookup", answer.value) for answer in answers]

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end(deliver=kind is None)

    async def close(self) -> None:
        """Close all connections with code 0 and free everything. Idempotent.

        First waits until peers have what was written (`Connection.delivered`, for all at the same time),
        then, at most a few seconds, until they have confirmed the close. Leaving ``async with`` by an
        exception skips the first wait. When cancelled, closing continues in the background.
        """
        await self._end(deliver=True)

    async def _end(self, *, deliver: bool) -> None:
        if self._state in ("new", "closed"):
            self._state = "closed"
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(deliver))
        await asyncio.shield(self._closing)

    async def _close(self, deliver: bool) -> None:
        self._state = "closing"
        driver = self._driver
        driver.stop_accepting()
        try:
            if deliver:
                await driver.deliver()
            await self._plugins.call("dialkey_endpoint_closing", endpoint=self)
            await driver.close_connections()
            await self._close_lookups()
            await self._plugins.close()
        finally:
            # Even when the loop itself is being shut down: leave nothing open.
            await driver.discard()
            self._state = "closed"

    async def _close_lookups(self) -> None:
        await self._publishing.close()
        for lookup in self._lookups:
            try:
                await lookup.close()
            except Exception as error:
                logger.error(
                    "lookup %s failed to close\n%s", lookup.name, printable_traceback(error)
                )

    def _check_open(self) -> None:
        if self._state != "open":
            raise EndpointClosed(
                "this endpoint is closed" if self._state != "new" else "this endpoint is not bound",
                hint="use it inside `async with Endpoint.bind()`",
            )

    # --- who and where --------------------------------------------------------------------------

    @property
    def id(self) -> EndpointId:
        """Our public key: what others dial."""
        return self._id

    @property
    def secret_key(self) -> SecretKey:
        """Our secret key, for plugins that prove who we are."""
        return self._secret_key

    @property
    def plugins(self) -> Plugins:
        """The plugins of this endpoint, in the order in which they are called."""
        return self._plugins

    @property
    def transports(self) -> tuple[Transport, ...]:
        """What carries our datagrams."""
        return tuple(self._driver.transports)

    def addr(self) -> EndpointAddr:
        """Return our id with every address at which we may be reached, as far as known now."""
        addrs: list[TransportAddr] = []
        for transport in self._driver.transports:
            addrs.extend(transport.local_addrs())
        return EndpointAddr(self._id, addrs)

    async def online(self, timeout: float | None = None) -> EndpointAddr:
        """Wait until others can reach us from anywhere, through a relay; then return our address.

        Args:
            timeout: seconds; by default this waits until a relay accepts us or all of them refuse us. The
                endpoint keeps trying in any case.

        Raises:
            Offline: the time is up, or every relay refuses us; the message says why for each relay.
            LocalError: nothing that could make us reachable was configured.
            EndpointClosed: the endpoint was closed.
        """
        self._check_open()
        ways = [
            transport
            for transport in self._driver.transports
            if isinstance(transport, RendezvousTransport) and transport.has_rendezvous
        ]
        waits = [asyncio.ensure_future(transport.online()) for transport in ways]
        if not waits:
            raise LocalError(
                "this endpoint has no relay to be reached through",
                hint="pass Endpoint.bind(relays=[…])",
            )
        until = None if timeout is None else self._driver.now() + timeout
        try:
            while True:
                left = None if until is None else max(0.0, until - self._driver.now())
                done, _ = await asyncio.wait(
                    waits, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    reasons = [reason for way in ways for reason in way.offline_reasons()]
                    raise Offline(
                        f"no relay accepted us within {timeout:g} s: {'; '.join(reasons)}",
                        hint="the endpoint keeps trying",
                    )
                if any(each.exception() is None for each in done):
                    return self.addr()
                waits = [each for each in waits if each not in done]
                if not waits:
                    self._check_open()
                    done.pop().result()  # raises
        finally:
            for each in waits:
                each.cancel()

    def ticket(self, *, short: bool = False) -> EndpointTicket:
        """Return a text that contains `addr()`: give it to those who are to dial us.

        Args:
            short: name only our id; whoever dials then needs a lookup that finds us, see `is_published`.
        """
        return EndpointTicket(EndpointAddr(self._id) if short else self.addr())

    def bound_addrs(self) -> list[IpAddr]:
        """Return the addresses to which our UDP sockets are bound."""
        return list(self._udp.bound) if self._udp is not None else []

    @property
    def connections(self) -> frozenset[Connection]:
        """All connections that are not over, also those still in their handshake."""
        return self._driver.connections

    @property
    def address_lookups(self) -> tuple[AddressLookup, ...]:
        """All ways to find addresses."""
        return tuple(self._lookups)

    def info(self) -> EndpointInfo:
        """Return what lookups are told about us: `addr()` and our user data."""
        return EndpointInfo(self.addr(), self._user_data)

    def set_user_data(self, text: str | None) -> None:
        """Publish a short text with our addresses, which anybody can read; None for none.

        Raises:
            InvalidInput: it has more than `limits.MAX_USER_DATA_BYTES` bytes.
        """
        self._user_data = EndpointInfo(EndpointAddr(self._id), text).user_data
        self._publish()

    def _publish(self) -> None:
        if self._state == "open":
            self._publishing.update(self.info())

    @property
    def is_published(self) -> bool:
        """Whether a lookup has published where we are now, so that our id alone is enough."""
        return self._publishing.is_done

    async def published(self, timeout: float) -> bool:
        """Wait until `is_published`, and return it; return at once if no lookup publishes.

        Args:
            timeout: seconds.
        """
        until = asyncio.get_running_loop().time() + timeout
        while self._publishing.may_publish and not self.is_published:
            if asyncio.get_running_loop().time() >= until or self._state != "open":
                break
            await asyncio.sleep(_PUBLISHED_POLL_S)
        return self.is_published

    def lookup_troubles(self) -> dict[str, str]:
        """Return what went wrong for each lookup that failed to publish us, by the lookup's name."""
        return self._publishing.troubles()

    async def look_up(
        self, id: EndpointId, timeout: float = limits.LOOKUP_TIMEOUT_S
    ) -> list[LookupReport]:
        """Ask all lookups where an endpoint is, without dialling it; return what each said.

        Args:
            timeout: seconds, after which lookups that have not answered are skipped.
        """
        self._check_open()
        everyone = asyncio.Event()

        async def ignore(answer: object) -> None:
            pass

        def one_done() -> None:
            if not search.pending:
                everyone.set()

        search = Search(id, self._lookups, on_answer=ignore, on_done=one_done)
        try:
            async with asyncio.timeout(timeout):
                await everyone.wait()
        except TimeoutError:
            pass
        finally:
            search.close()
        return search.reports()

    def add_addr(self, addr: EndpointAddr) -> None:
        """Remember where an endpoint is, for later dials by its id alone."""
        self._known.add(addr)

    def network_changed(self) -> None:
        """Note that this machine's network may have changed: every path is checked again.

        Call this on phones, where the system tells you more than any heuristics can find out.
        """
        self._driver.network_changed(self._driver.transports)

    def side_channel(self, remote: IpAddr, receive: Receive) -> SideChannel:
        """Send and receive datagrams of another protocol over our own UDP socket.

        Datagrams from `remote` go to `receive`, not to a connection, until the channel is closed.

        Raises:
            InvalidInput: there is already a channel to this address.
            LocalError: none of our sockets sends to addresses of this kind.
        """
        if not self._driver.path_addresses(self._id, remote):
            raise LocalError(f"no socket of this endpoint reaches {remote}")
        return self._driver.side_channels.open(remote, receive)

    @property
    def relay_urls(self) -> tuple[RelayUrl, ...]:
        """The relays that this endpoint was given when it was bound."""
        urls = (getattr(each, "url", each) for each in self._relays or ())
        return tuple(url for url in urls if isinstance(url, RelayUrl))

    # --- dialling -------------------------------------------------------------------------------

    def connect(
        self,
        remote: Remote,
        alpn: str | bytes,
        *,
        timeout: float = DIAL_TIMEOUT_S,
        limits: DialLimits | None = None,
    ) -> Opening[Connection]:
        """Dial an endpoint over all its addresses at once; await the result, or use ``async with``.

        Args:
            remote: a ticket, an `EndpointAddr`, an `EndpointId`, or one of them as text.
            alpn: the protocol; ASCII.
            timeout: seconds for everything: finding addresses, dialling, the handshake.
            limits: what may be sent to addresses that strangers have named; no limits by default.

        Returns:
            A connection whose peer has proved the key that was dialled.

        Raises:
            InvalidTicket, InvalidKey: `remote` cannot be used.
            ResolveError: no address is known or found.
            DialError, DialTimeout: nobody answered; `attempts` says what happened at each address.
            WrongKey, AlpnMismatch, Refused, HandshakeError: somebody answered, and it did not work out.
            EndpointClosed: this endpoint was closed.
        """
        return Opening(self._connect(remote, alpn, timeout, limits))

    async def _connect(
        self, remote: Remote, alpn: str | bytes, timeout: float, limits: DialLimits | None
    ) -> Connection:
        self._check_open()
        addr = parse_remote(remote)
        protocol = _alpn_text(alpn)
        if addr.id == self._id:
            raise InvalidInput("this is our own key", hint="dial another endpoint")
        refusal = await self._plugins.refusal(
            "dialkey_before_connect", endpoint=self, remote=addr, alpn=protocol.encode()
        )
        if refusal is not None:
            raise Refused(
                f"a plugin here forbids this dial: {printable_bytes(refusal.reason)}",
                endpoint_id=addr.id,
            )
        self._check_open()
        dial = Dial(self._driver, self._lookups, addr, protocol, limits)
        connection = await self._driver.dial(dial, timeout)
        if self._state != "open":
            connection.close()
            self._check_open()
        return connection

    # --- accepting ------------------------------------------------------------------------------

    @property
    def alpns(self) -> list[str]:
        """The protocols that are accepted; `set_alpns` changes them."""
        return list(self._driver.alpns)

    def set_alpns(self, alpns: Iterable[str | bytes]) -> None:
        """Set the protocols to accept; with none, every dial is refused."""
        self._driver.set_alpns([_alpn_text(alpn) for alpn in alpns])

    async def accept(self) -> Connection | None:
        """Wait for the next incoming connection; None when the endpoint is closed.

        Its peer has proved a key, and filters have accepted it. Cancellation loses no connection.
        """
        return await self._driver.accept()

    async def __aiter__(self) -> AsyncIterator[Connection]:
        while (connection := await self.accept()) is not None:
            yield connection


@contextlib.contextmanager
def _what_was_given() -> Iterator[None]:
    """Raise what a hook says about the caller's own values as it is, without plugin and hook.

    Only for hooks whose arguments are what the caller gave. Whatever else a plugin raises there stays a
    fault of the plugin.
    """
    try:
        yield
    except PluginError as error:
        cause = error.__cause__
        if isinstance(cause, LocalError) and not isinstance(cause, PluginError):
            raise cause from cause.__cause__
        raise


def _check_has(answer: Answer, what: str, methods: tuple[str, ...]) -> None:
    missing = [name for name in methods if not callable(getattr(answer.value, name, None))]
    if missing:
        raise PluginError(
            f"plugin {answer.plugin!r} returned {type(answer.value).__name__}, which is not {what}:"
            f" it has no method {missing[0]!r}"
        )


def _alpn_text(alpn: str | bytes) -> str:
    try:
        text = alpn if isinstance(alpn, str) else alpn.decode("ascii")
        encoded = text.encode("ascii")
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise InvalidInput(f"an ALPN is ASCII; {alpn!r} is not") from None
    if not 1 <= len(encoded) <= 255:
        raise InvalidInput(f"an ALPN has 1 to 255 bytes, not {len(encoded)}")
    return text


def _parse_bind(bind: Bind) -> list[IpAddr]:
    entries: Sequence[str | IpAddr] = [bind] if isinstance(bind, str | IpAddr) else bind
    return [each if isinstance(each, IpAddr) else IpAddr.parse(each) for each in entries]
