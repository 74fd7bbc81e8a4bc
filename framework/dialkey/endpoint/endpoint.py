"""The endpoint: one key, its sockets, and all its connections."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO, cast

import attrs

from dialkey import limits
from dialkey.endpoint.connection import Connection
from dialkey.endpoint.demux import Demux
from dialkey.endpoint.dial import AllAddresses, Dial
from dialkey.endpoint.dial_limits import DialLimits
from dialkey.endpoint.lookup import AddressLookup, EndpointInfo, StaticLookup
from dialkey.endpoint.paths import NetworkChanged
from dialkey.endpoint.publishing import Publishing
from dialkey.endpoint.searching import LookupReport, Search
from dialkey.endpoint.selection import DirectFirst, PathSelector
from dialkey.errors import EndpointClosed, InvalidInput, LocalError, Offline, PluginError, Refused
from dialkey.hooks import Answer, Plugins
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
from dialkey.network.transport import (
    ExplainingTransport,
    PathAddress,
    RendezvousTransport,
    Transport,
)
from dialkey.network.udp import UdpTransport
from dialkey.opening import AsyncOnly, Opening
from dialkey.presets import Preset, minimal
from dialkey.printable import printable_bytes
from dialkey.quic.connection import Config
from dialkey.quic.paths.bbr import Bbr
from dialkey.quic.paths.mtu import DEFAULT_MAX_BYTES
from dialkey.quic.qlog import Qlog

logger = logging.getLogger("dialkey.endpoint")

DIAL_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 3.0
"""How long `Endpoint.close` waits for peers to confirm; a peer that is gone never will."""

_BLOCKED_RETRY_S: Final = 0.05
"""How often a connection whose transport takes nothing looks at its timers; `on_writable` comes first."""

Bind = str | IpAddr | Sequence[str | IpAddr]


@attrs.frozen(kw_only=True)
class _Options:
    """The arguments of `Endpoint.bind`."""

    secret_key: SecretKey | None
    preset: Preset
    plugins: Iterable[object]
    address_lookups: Iterable[AddressLookup]
    transports: Iterable[Transport] | None
    relays: Iterable[object] | None
    bind: Bind
    alpns: Iterable[str | bytes]
    entry_points: bool
    idle_timeout_s: float
    keep_alive_s: float
    max_datagram_bytes: int
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
        plugins: Iterable[object] = (),
        address_lookups: Iterable[AddressLookup] = (),
        transports: Iterable[Transport] | None = None,
        relays: Iterable[object] | None = None,
        bind: Bind = (),
        alpns: Iterable[str | bytes] = (),
        entry_points: bool = True,
        idle_timeout_s: float = 30.0,
        keep_alive_s: float = 5.0,
        max_datagram_bytes: int = DEFAULT_MAX_BYTES,
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
            transports: what carries datagrams, in place of UDP; plugins add theirs in any case.
            relays: URLs of relays through which others reach us, of which the nearest becomes
                home, or what else the plugin for relays takes (`RelayConfig`, with a token). With
                () nobody reaches us through a relay, but we dial those whose addresses name one.
                By default what the preset says.
            bind: local addresses for UDP, such as "127.0.0.1:0"; all addresses, any port, if empty.
            alpns: protocols to accept; a `Router` sets them itself.
            entry_points: load the plugins of installed distributions (entry point group "dialkey"). Their
                protocols are served only where `Router.add_installed` says so.
            idle_timeout_s: a connection that is silent for this long is lost; the peer's
                value counts too, if it is smaller.
            keep_alive_s: a quiet connection is pinged this often.
            max_datagram_bytes: upper end of path MTU discovery, UDP payload.
            qlog_dir: write a qlog file (.sqlog) of each connection into this directory, which must
                exist: packets with their frames, and loss recovery. For analysis; it slows down.
            key_log_file: write TLS secrets there (NSS format), to decrypt captures. Who reads it
                reads everything.
            user_data: a short text that lookups publish with our addresses, see `set_user_data`.

        Raises:
            BindError: a socket cannot be opened. PluginError: a plugin failed to start.
            InvalidAddress: text among `relays` is no URL (raised by the call itself).
            LocalError: `relays` was given, and no plugin for relays is there.
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
            qlog_dir=qlog_dir,
            key_log_file=key_log_file,
            user_data=user_data,
        )
        return Opening(
            cls(options)._start(),
            again="this endpoint was bound already; call Endpoint.bind() again",
        )

    def __init__(self, options: _Options) -> None:
        self._secret_key = options.secret_key or SecretKey.generate()
        self._id = self._secret_key.id
        self._given_plugins = [*options.preset.plugins, *options.plugins]
        self._entry_points = options.entry_points
        self.plugins = Plugins()
        self._udp: UdpTransport | None = None
        if options.transports is None:
            self._udp = UdpTransport(_parse_bind(options.bind))
            self._transports: list[Transport] = [self._udp]
        else:
            self._transports = list(options.transports)
        relays = options.relays if options.relays is not None else options.preset.relays
        self._relays = (
            tuple(RelayUrl(each) if isinstance(each, str) else each for each in relays)
            if relays is not None
            else None
        )
        self.static_lookup = StaticLookup()
        self._lookups: list[AddressLookup] = [self.static_lookup, *options.address_lookups]
        self._user_data = options.user_data
        self._publishing = Publishing()
        self._alpns = [_alpn_text(alpn) for alpn in options.alpns]
        self._reset_static_key = hashlib.blake2b(
            bytes(self._secret_key), person=b"dialkey static"
        ).digest()
        self.demux = Demux(self, self._reset_static_key)
        self.quic_config = Config(
            secret_key=self._secret_key,
            new_cid=self.demux.new_cid,
            reset_token=self.demux.reset_token,
            make_controller=lambda max_datagram: Bbr(max_datagram, random.random),
            idle_timeout_s=options.idle_timeout_s,
            keep_alive_s=options.keep_alive_s,
            max_datagram=options.max_datagram_bytes,
            qlog=options.qlog(),
            secrets_log_file=options.key_log_file,
        )
        self.path_selector: PathSelector = DirectFirst()
        self._connections: set[Connection] = set()
        self._dirty: dict[Connection, None] = {}
        self._touched: dict[Connection, None] = {}
        self._flush_scheduled = False
        self._dials: set[Dial] = set()
        self._accepted: deque[Connection] = deque()
        self._accept_waiters: deque[asyncio.Future[None]] = deque()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._state = "new"
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Endpoint {self._id.short()} {self._state}>"

    # --- life cycle -----------------------------------------------------------------------------

    async def _start(self) -> Endpoint:
        if self._state != "new":
            raise LocalError("this endpoint was bound already; call Endpoint.bind() again")
        self._loop = _running_loop()
        self._state = "starting"
        started: list[Transport] = []
        try:
            for plugin in self._given_plugins:
                self.plugins.register(plugin)
            if self._entry_points:
                self.plugins.load_entry_points()
            for answer in await self.plugins.collect("dialkey_transports", endpoint=self):
                _check_has(answer, "a transport", ("start", "close", "send", "owns"))
                self._transports.append(answer.value)  # type: ignore[arg-type]
            if self._relays is not None:
                self._transports.extend(await self._relay_transport(self._relays))
            for answer in await self.plugins.collect("dialkey_address_lookups", endpoint=self):
                _check_has(answer, "an address lookup", ("resolve", "publish", "close"))
                self._lookups.append(answer.value)  # type: ignore[arg-type]
            for answer in await self.plugins.call(
                "dialkey_path_selector", must_succeed=True, endpoint=self
            ):
                _check_has(answer, "a path selector", ("select",))
                self.path_selector = answer.value  # type: ignore[assignment]
            for transport in self._transports:
                started.append(transport)
                await transport.start(_Inlet(self, transport))
            self._state = "open"
            self._publishing.start(self._lookups)
            self._publish()
            await self.plugins.call("dialkey_endpoint_started", must_succeed=True, endpoint=self)
        except BaseException:
            self._state = "closed"
            await self.plugins.call("dialkey_endpoint_closing", endpoint=self)
            for transport in started:
                await transport.close()
            await self._close_lookups()
            await self.plugins.close()
            raise
        return self

    async def _relay_transport(self, relays: tuple[object, ...]) -> list[Transport]:
        for answer in await self.plugins.call(
            "dialkey_relays", must_succeed=True, endpoint=self, relays=relays
        ):
            _check_has(answer, "a transport", ("start", "close", "send", "owns"))
            return [cast("Transport", answer.value)]
        if not relays:
            return []
        raise LocalError(
            "relays were given, but no plugin carries datagrams through relays",
            hint="leave entry_points=True, or pass plugins=[…] with such a plugin",
        )

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

        Waits first until peers have what was written (`Connection.delivered`, for all at the same
        time), then, at most some seconds, until they have confirmed. Leaving ``async with`` by an
        exception does not wait for the former. When cancelled, the closing goes on.
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
        self._wake_acceptors()
        for dial in list(self._dials):
            dial.end()
        try:
            if deliver:
                await self._deliver()
            await self._close_gracefully()
        finally:
            # Also when the loop itself is being shut down: nothing of ours stays open.
            for connection in list(self._connections):
                connection.discard()
            self._connections.clear()
            self._dirty.clear()
            for transport in self._transports:
                await transport.close()
            self._state = "closed"

    async def _deliver(self) -> None:
        waits = [
            asyncio.ensure_future(each.delivered())
            for each in self._connections
            if not each.core.is_delivered
        ]
        if waits:
            try:
                await asyncio.wait(waits)
            finally:
                for each in waits:
                    each.cancel()

    async def _close_gracefully(self) -> None:
        await self.plugins.call("dialkey_endpoint_closing", endpoint=self)
        self.demux.close()
        for task in list(self._handshakes):
            task.cancel()
        connections = list(self._connections)
        for connection in connections:
            connection.close()
        self._flush_all()
        # A handshake that failed has nobody who would have to be told again.
        told = [each for each in connections if each.core.protection is not None]
        if told:
            waits = [asyncio.ensure_future(each.drained()) for each in told]
            _, pending = await asyncio.wait(waits, timeout=CLOSE_TIMEOUT_S)
            for each in pending:
                each.cancel()
        await self._close_lookups()
        await self.plugins.close()

    async def _close_lookups(self) -> None:
        await self._publishing.close()
        for lookup in self._lookups:
            try:
                await lookup.close()
            except Exception:
                logger.exception("lookup %s failed to close", lookup.name)

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
    def transports(self) -> tuple[Transport, ...]:
        """What carries our datagrams."""
        return tuple(self._transports)

    def addr(self) -> EndpointAddr:
        """Return our id with every address at which we may be reached, as known now."""
        addrs: list[TransportAddr] = []
        for transport in self._transports:
            addrs.extend(transport.local_addrs())
        return EndpointAddr(self._id, addrs)

    async def online(self, timeout: float | None = None) -> EndpointAddr:
        """Wait until others reach us from anywhere: through a relay. Return our address then.

        Args:
            timeout: seconds; by default this waits for as long as no relay lets us in. The endpoint
                goes on trying in any case.

        Raises:
            Offline: time is up; the message says what keeps us out of each relay.
            LocalError: nothing that could make us reachable was configured.
            EndpointClosed: the endpoint was closed.
        """
        self._check_open()
        ways = [
            transport
            for transport in self._transports
            if isinstance(transport, RendezvousTransport) and transport.has_rendezvous
        ]
        waits = [asyncio.ensure_future(transport.online()) for transport in ways]
        if not waits:
            raise LocalError(
                "this endpoint has no relay to be reached through",
                hint="pass Endpoint.bind(relays=[…])",
            )
        until = None if timeout is None else self.now() + timeout
        try:
            while True:
                left = None if until is None else max(0.0, until - self.now())
                done, _ = await asyncio.wait(
                    waits, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    reasons = [reason for way in ways for reason in way.offline_reasons()]
                    raise Offline(
                        f"no relay let us in within {timeout:g} s: {'; '.join(reasons)}",
                        hint="the endpoint goes on trying",
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

    def ticket(self) -> EndpointTicket:
        """Return a text that contains `addr()`: give it to those who shall dial us."""
        return EndpointTicket(self.addr())

    def bound_addrs(self) -> list[IpAddr]:
        """Return the addresses to which our UDP sockets are bound."""
        return list(self._udp.bound) if self._udp is not None else []

    @property
    def connections(self) -> frozenset[Connection]:
        """All connections that are not over, also those still in their handshake."""
        return frozenset(self._connections)

    @property
    def address_lookups(self) -> tuple[AddressLookup, ...]:
        """All ways to find addresses."""
        return tuple(self._lookups)

    def info(self) -> EndpointInfo:
        """Return what lookups are told of us: `addr()` and our user data."""
        return EndpointInfo(self.addr(), self._user_data)

    def set_user_data(self, text: str | None) -> None:
        """Publish a short text with our addresses, which everybody can read; None for none.

        Raises:
            InvalidInput: it has more than `limits.MAX_USER_DATA_BYTES` bytes.
        """
        self._user_data = EndpointInfo(EndpointAddr(self._id), text).user_data
        self._publish()

    def _publish(self) -> None:
        if self._state == "open":
            self._publishing.update(self.info())

    def lookup_troubles(self) -> dict[str, str]:
        """Say for each lookup that failed to publish us what was wrong, by the lookup's name."""
        return self._publishing.troubles()

    async def look_up(
        self, id: EndpointId, timeout: float = limits.LOOKUP_TIMEOUT_S
    ) -> list[LookupReport]:
        """Ask all lookups where an endpoint is, without dialling it; return what each has said.

        Args:
            timeout: seconds, after which those that have not answered are left.
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
        self.static_lookup.add(addr)

    def network_changed(self) -> None:
        """Tell that this machine's network may have changed: every path is looked at anew.

        Phones that know better than any heuristics call this.
        """
        self._look_anew(self._transports)

    def on_addresses_changed(self, source: Transport) -> None:
        # Not to the one who says so: it knows, and would go on asking itself.
        self._look_anew([each for each in self._transports if each is not source])

    def _look_anew(self, transports: Iterable[Transport]) -> None:
        for transport in transports:
            transport.network_changed()
        now = self.now()
        for connection in self._connections:
            connection.core.network_changed(now)
            if connection.path_manager is not None:
                connection.path_manager.network_changed()
            self.flush_soon(connection)
        self.plugins.emit(NetworkChanged())
        self._publish()

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
        """Dial an endpoint over all its addresses at once: await it, or enter it.

        Args:
            remote: a ticket, an `EndpointAddr`, an `EndpointId`, or one of them as text.
            alpn: the protocol; ASCII.
            timeout: seconds for everything: finding addresses, dialling, the handshake.
            limits: on what is sent to addresses that strangers have named; none by default.

        Returns:
            A connection whose peer has proved the key that was dialled.

        Raises:
            InvalidTicket, InvalidKey: `remote` cannot be used.
            ResolveError: no address is known or found.
            DialError, DialTimeout: nobody answered; `attempts` says what happened at each address.
            WrongKey, AlpnMismatch, Refused, HandshakeError: somebody answered, but not as needed.
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
        refusal = await self.plugins.refusal(
            "dialkey_before_connect", endpoint=self, remote=addr, alpn=protocol.encode()
        )
        if refusal is not None:
            raise Refused(
                f"a plugin here forbids this dial: {printable_bytes(refusal.reason)}",
                endpoint_id=addr.id,
            )
        self._check_open()
        dial = Dial(self, addr, protocol, limits)
        self._dials.add(dial)
        connection = await dial.run(timeout)
        try:
            await self._after_handshake(connection)
            self._check_open()
        except BaseException:
            connection.close()
            raise
        return connection

    def path_addresses(self, id: EndpointId, addr: TransportAddr) -> list[PathAddress]:
        """Return the path addresses, of any transport, that lead to an address."""
        return [each for t in self._transports for each in t.path_addresses(id, addr)]

    def dial_over(self, dial: Dial) -> None:
        self._dials.discard(dial)

    async def _after_handshake(self, connection: Connection) -> None:
        if not self.plugins.has("dialkey_after_handshake"):
            return
        refusal = await self.plugins.refusal("dialkey_after_handshake", connection=connection)
        if refusal is not None:
            connection.close(refusal.code, refusal.reason)
            reason = printable_bytes(refusal.reason)
            raise Refused(
                f"a plugin here refused the connection: {reason}", endpoint_id=connection.remote_id
            )

    # --- accepting ------------------------------------------------------------------------------

    @property
    def alpns(self) -> list[str]:
        """The protocols that are accepted; `set_alpns` changes them."""
        return list(self._alpns)

    def set_alpns(self, alpns: Iterable[str | bytes]) -> None:
        """Set the protocols to accept; with none, whoever dials is refused."""
        self._alpns = [_alpn_text(alpn) for alpn in alpns]

    @property
    def is_accepting(self) -> bool:
        """Whether anyone may connect."""
        return bool(self._alpns) and self._state == "open"

    @property
    def is_backlogged(self) -> bool:
        """Whether as many connections wait to be accepted, or will soon, as may."""
        waiting = len(self._accepted) + self.demux.half_open
        return bool(self._accepted) and waiting >= limits.MAX_PENDING_ACCEPTS

    async def accept(self) -> Connection | None:
        """Wait for the next connection that somebody made to us; None when the endpoint is closed.

        Its peer has proved a key, filters have passed it. Cancellation loses no connection.
        """
        while not self._accepted:
            if self._state != "open":
                return None
            waiter = self._loop.create_future()
            self._accept_waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._accept_waiters:
                    self._accept_waiters.remove(waiter)
        return self._accepted.popleft()

    async def __aiter__(self) -> AsyncIterator[Connection]:
        while (connection := await self.accept()) is not None:
            yield connection

    def _wake_acceptors(self) -> None:
        for waiter in self._accept_waiters:
            if not waiter.done():
                waiter.set_result(None)

    def on_handshake(self, connection: Connection) -> None:
        """Let a connection whose handshake is complete in."""
        self.demux.handshake_over(connection, failed=False)
        if connection.is_client:
            return
        if self.plugins.has("dialkey_after_handshake"):
            task = asyncio.create_task(self._admit(connection), name="dialkey-after-handshake")
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
        else:
            self._let_in(connection)

    async def _admit(self, connection: Connection) -> None:
        try:
            await self._after_handshake(connection)
        except Refused as refusal:
            logger.info("%s", refusal)
            return
        self._let_in(connection)

    def _let_in(self, connection: Connection) -> None:
        if len(self._accepted) >= limits.MAX_PENDING_ACCEPTS:
            self.demux.counts["refused_not_accepted"] += 1
            connection.close(0, b"busy")
            return
        self._accepted.append(connection)
        self._wake_acceptors()

    def on_closed(self, connection: Connection) -> None:
        """Note that a connection is over; it lingers in the routes until it is drained."""
        self.demux.handshake_over(connection, failed=True)

    # --- driving the machines -------------------------------------------------------------------

    def now(self) -> float:
        return self._loop.time()

    def touched(self, connection: Connection) -> None:
        """Note that a connection received something; it is served at the end of the batch."""
        self._touched[connection] = None
        if connection.core.events:
            connection.process_events()

    def flush_soon(self, connection: Connection) -> None:
        """Send what a connection has, when the current callbacks are done."""
        self._dirty[connection] = None
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_all)

    def end_of_batch(self) -> None:
        """Answer everything that was received."""
        touched, self._touched = self._touched, {}
        now = self.now()
        for connection in touched:
            if connection.core.has_urgent_work:
                self._dirty.pop(connection, None)
                self._flush(connection, now)
            else:
                # Let the tasks that were just woken go first: what they write, the acknowledgement
                # and the timer then cost one flush and one packet.
                self.flush_soon(connection)

    def _flush_all(self) -> None:
        self._flush_scheduled = False
        dirty, self._dirty = self._dirty, {}
        now = self.now()
        for connection in dirty:
            self._flush(connection, now)

    def _flush(self, connection: Connection, now: float) -> None:
        core = connection.core
        blocked = self._is_blocked(core.remote)
        if blocked:
            # What the sockets do not take would only be lost; `on_writable` resumes.
            self._dirty[connection] = None
        else:
            try:
                core.flush(now, self._send)
            except Exception:
                self.on_internal_error(connection)
        if core.events:
            connection.process_events()
        at = core.timer()
        if at is None:
            self._connections.discard(connection)
            if connection.timer is not None:
                connection.timer.cancel()
                connection.timer = None
            return
        self._connections.add(connection)
        if blocked:
            # What is due cannot be sent; looking again at once would only burn time.
            at = max(at, now + _BLOCKED_RETRY_S)
        timer = connection.timer
        # An earlier timer stays: it fires in vain and sets the right one, which is cheaper than
        # cancelling one for each packet.
        if timer is not None:
            if connection.timer_at <= at:
                return
            timer.cancel()
        connection.timer_at = at
        connection.timer = self._loop.call_at(at, self._on_timer, connection)

    def on_internal_error(self, connection: Connection) -> None:
        """End a connection in which our own code failed, so that it takes no other with it."""
        self.demux.counts["internal_errors"] += 1
        logger.exception("%r failed", connection)
        core = connection.core
        if core.close_reason is None:
            try:
                core.fail_internally(self.now())
                return
            except Exception:
                logger.exception("%r failed while it was being closed", connection)
        core.discard()

    def _is_blocked(self, remote: PathAddress) -> bool:
        """Whether the transport that carries most of a connection takes nothing now."""
        for transport in self._transports:
            if transport.is_blocked and transport.owns(remote):
                return True
        return False

    def _on_timer(self, connection: Connection) -> None:
        connection.timer = None
        now = self.now()
        at = connection.core.timer()
        if at is not None and at <= now:
            try:
                connection.core.on_timer(now)
            except Exception:
                self.on_internal_error(connection)
        self._flush(connection, now)

    def _send(self, remote: PathAddress, data: bytes | memoryview, segment: int) -> None:
        if isinstance(remote, AllAddresses):
            remote.last_sent = (bytes(data), segment)
            for candidate in remote.candidates.values():
                if candidate.take(-(-len(data) // segment)):
                    self._send(candidate.address, data, segment)
            return
        for transport in self._transports:
            if transport.owns(remote):
                transport.send(remote, data, segment)
                return

    def send_to_late(self, target: AllAddresses, address: PathAddress) -> None:
        """Send what all addresses of a dial got to one that was found only now."""
        if target.last_sent is not None and target.candidates[address].take(1):
            self._send(address, *target.last_sent)

    def on_writable(self) -> None:
        if self._dirty:
            self._flush_all()

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        for dial in self._dials:
            dial.target.on_unreachable(remote, reason)

    def trouble_with(self, remote: PathAddress) -> str | None:
        """Say what keeps datagrams from an address now; None where nothing is known to."""
        for transport in self._transports:
            if isinstance(transport, ExplainingTransport) and transport.owns(remote):
                return transport.trouble_with(remote)
        return None

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        for connection in self._connections:
            for path in connection.core.paths.values():
                if path.remote == remote:
                    path.mtu.on_too_large(max_datagram_bytes + 1)


class _Inlet:
    """What one transport of an endpoint talks to."""

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        self._endpoint = endpoint
        self._transport = transport

    def on_datagrams(self, data: memoryview, segment_bytes: int, remote: PathAddress) -> None:
        self._endpoint.demux.receive(self._transport, data, segment_bytes, remote)

    def on_batch_end(self) -> None:
        self._endpoint.end_of_batch()

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        self._endpoint.on_unreachable(remote, reason)

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        self._endpoint.on_too_large(remote, max_datagram_bytes)

    def on_writable(self) -> None:
        self._endpoint.on_writable()

    def on_addresses_changed(self) -> None:
        self._endpoint.on_addresses_changed(self._transport)


def _check_has(answer: Answer, what: str, methods: tuple[str, ...]) -> None:
    missing = [name for name in methods if not callable(getattr(answer.value, name, None))]
    if missing:
        raise PluginError(
            f"plugin {answer.plugin!r} returned {type(answer.value).__name__}, which is not {what}:"
            f" it has no method {missing[0]!r}"
        )


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "dialkey needs a running asyncio loop: start your program with asyncio.run(main()); from"
            " trio or curio, run it in a thread of its own"
        ) from None


def _alpn_text(alpn: str | bytes) -> str:
    try:
        text = alpn if isinstance(alpn, str) else alpn.decode("ascii")
        encoded = text.encode("ascii")
    except (UnicodeDecodeError, UnicodeEncodeError):
        raise InvalidInput(f"an ALPN is ASCII, {alpn!r} is not") from None
    if not 1 <= len(encoded) <= 255:
        raise InvalidInput(f"an ALPN has 1 to 255 bytes, not {len(encoded)}")
    return text


def _parse_bind(bind: Bind) -> list[IpAddr]:
    entries: Sequence[str | IpAddr] = [bind] if isinstance(bind, str | IpAddr) else bind
    return [each if isinstance(each, IpAddr) else IpAddr.parse(each) for each in entries]
