"""Drives the machines of one endpoint: datagrams in, flushes and timers out, and who is let in.

Behind the public `Endpoint`. Received datagrams come in batches; the connections that they belong to
are served at the end of the batch. What tasks write is sent when the current callbacks are done. Each
connection has one timer. A connection in which our own code fails is ended without affecting others.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TextIO

from dialkey import limits
from dialkey.endpoint._connection_driver import ConnectionDriver
from dialkey.endpoint._waiting import Turns
from dialkey.endpoint.capacity import Capacity
from dialkey.endpoint.congestion import MakeController
from dialkey.endpoint.demux import Demux
from dialkey.endpoint.dial import AllAddresses, Dial
from dialkey.endpoint.paths import NetworkChanged
from dialkey.endpoint.selection import DirectFirst, PathSelector
from dialkey.endpoint.side_channel import SideChannels
from dialkey.errors import Refused
from dialkey.hooks import Plugins
from dialkey.identity import EndpointId, IpAddr, SecretKey, TransportAddr
from dialkey.network.reach import MayReach
from dialkey.network.transport import (
    ExplainingTransport,
    HearsayTransport,
    PathAddress,
    Transport,
)
from dialkey.printable import printable_bytes, printable_traceback
from dialkey.quic.connection import Config
from dialkey.quic.connection import Connection as Core
from dialkey.quic.qlog import Qlog

if TYPE_CHECKING:
    from dialkey.endpoint.connection import Connection

logger = logging.getLogger("dialkey.endpoint")

CLOSE_TIMEOUT_S: Final = 3.0
"""How long closing waits for peers to confirm; a peer that is gone never will."""

_BLOCKED_RETRY_S: Final = 0.05
"""How often a connection with a blocked transport checks its timers, unless `on_writable` is called."""


class Driver:
    """See the module. One for each endpoint, in the event loop in which it was bound.

    Args:
        secret_key: who we are.
        plugins: what filters and observes.
        make_connection: makes what an application sees of a connection.
        transports: what carries datagrams; `add_transport` adds further ones.
        on_network_changed: called when our addresses may have changed.
        alpns: the protocols to accept.

    Attributes:
        plugins: as given.
        transports: what carries datagrams.
        demux: tells connections apart.
        config: for all future connections.
        path_selector: decides which path carries data.
        alpns: the protocols to accept.
        capacity: counts connections and what they hold.
        side_channels: other protocols that use the sockets.
    """

    def __init__(
        self,
        secret_key: SecretKey,
        plugins: Plugins,
        make_connection: Callable[[ConnectionDriver], Connection],
        transports: Iterable[Transport],
        *,
        on_network_changed: Callable[[], None],
        alpns: list[str],
        idle_timeout_s: float,
        keep_alive_s: float,
        max_datagram_bytes: int,
        make_controller: MakeController,
        hole_punching: bool,
        qlog: Qlog | None,
        key_log_file: TextIO | None,
    ) -> None:
        self.plugins = plugins
        self.make_connection = make_connection
        self._on_network_changed = on_network_changed
        self.transports = list(transports)
        self._make_controller = make_controller
        static_key = hashlib.blake2b(bytes(secret_key), person=b"dialkey static").digest()
        self.demux = Demux(self, static_key)
        self.config = Config(
            secret_key=secret_key,
            new_cid=self.demux.new_cid,
            reset_token=self.demux.reset_token,
            make_controller=lambda max_datagram: self._make_controller(max_datagram),
            idle_timeout_s=idle_timeout_s,
            keep_alive_s=keep_alive_s,
            max_datagram=max_datagram_bytes,
            traversal=hole_punching,
            qlog=qlog,
            secrets_log_file=key_log_file,
        )
        self.path_selector: PathSelector = DirectFirst()
        self.alpns = alpns
        self._loop = asyncio.get_running_loop()
        self._is_open = False
        self._connections: set[ConnectionDriver] = set()
        # What peers have seen us come from, of each family.
        self._observed: dict[int, IpAddr] = {}
        self._dirty: dict[ConnectionDriver, None] = {}
        self._touched: dict[ConnectionDriver, None] = {}
        self._flush_scheduled = False
        self._dials: set[Dial] = set()
        self._accepted: deque[Connection] = deque()
        self._accepting = Turns()
        self._handshakes: set[asyncio.Task[None]] = set()
        self.capacity = Capacity()
        self.side_channels = SideChannels(self._send)

    def now(self) -> float:
        """Return the time of the loop, in seconds; that of every machine here."""
        return self._loop.time()

    # --- life cycle -----------------------------------------------------------------------------

    def add_transport(self, transport: Transport) -> None:
        """Add a transport, which is started later."""
        self.transports.append(transport)

    def set_congestion(self, make_controller: MakeController) -> None:
        """Choose another congestion control for the paths of future connections."""
        self._make_controller = make_controller

    def set_path_selector(self, selector: PathSelector) -> None:
        """Set what chooses the path that carries data."""
        self.path_selector = selector

    async def start(self, transport: Transport) -> None:
        """Start a transport that is in `transports`."""
        await transport.start(_Inlet(self, transport))

    def open(self) -> None:
        """Start accepting connections."""
        self._is_open = True

    def stop_accepting(self) -> None:
        """Stop accepting connections, and end the dials in progress."""
        self._is_open = False
        self._accepting.all()
        for dial in list(self._dials):
            dial.end()

    async def deliver(self) -> None:
        """Wait until peers have what was written on all connections, with the deadline of each."""
        waits = [
            asyncio.ensure_future(each.delivered(limits.DELIVERY_TIMEOUT_S))
            for each in self._connections
            if not each.core.is_delivered
        ]
        if waits:
            try:
                await asyncio.wait(waits)
            finally:
                for each in waits:
                    each.cancel()

    async def close_connections(self) -> None:
        """Close all connections with code 0, and wait a little until peers have confirmed."""
        self.demux.close()
        for task in list(self._handshakes):
            task.cancel()
        connections = list(self._connections)
        for connection in connections:
            connection.close(0, b"")
        self._flush_all()
        # For a failed handshake, everybody has been told already.
        told = [each for each in connections if each.core.protection is not None]
        if told:
            waits = [asyncio.ensure_future(each.drained()) for each in told]
            _, pending = await asyncio.wait(waits, timeout=CLOSE_TIMEOUT_S)
            for each in pending:
                each.cancel()

    async def discard(self) -> None:
        """Forget everything at once, and close the transports."""
        for connection in list(self._connections):
            connection.discard()
        self._connections.clear()
        self._dirty.clear()
        for transport in self.transports:
            await transport.close()

    @property
    def connections(self) -> frozenset[Connection]:
        """All connections that are not over, also those still in their handshake."""
        return frozenset(each.connection for each in self._connections)

    def network_changed(self, transports: Iterable[Transport]) -> None:
        """Check every path again, and make the transports do the same."""
        for transport in transports:
            transport.network_changed()
        now = self.now()
        for connection in self._connections:
            connection.network_changed(now)
        self.plugins.emit(NetworkChanged())
        self._observed.clear()
        self.candidates_changed()

    def candidates(self) -> list[IpAddr]:
        """Return the IP addresses at which this machine may be reached, as known now."""
        addrs = (each for transport in self.transports for each in transport.local_addrs())
        known = [each for each in addrs if isinstance(each, IpAddr)]
        # Behind a NAT whose outer address nobody else has told us yet.
        return known + [
            seen
            for version, seen in self._observed.items()
            if all(each.ip.is_private for each in known if each.ip.version == version)
        ]

    def observed(self, address: IpAddr) -> None:
        """Note which address a peer that we dialled sees us come from.

        Other peers are told on their connections; it is not published, because it may be a lie.
        """
        version = address.ip.version
        if address.ip.is_loopback or self._observed.get(version) == address:
            return
        self._observed[version] = address
        self._tell_candidates()

    def candidates_changed(self) -> None:
        """Tell everybody where this machine may be reached now."""
        self._tell_candidates()
        self._on_network_changed()

    def _tell_candidates(self) -> None:
        candidates = self.candidates()
        for connection in self._connections:
            if connection.path_manager is not None:
                connection.path_manager.set_candidates(candidates)

    # --- dialling -------------------------------------------------------------------------------

    async def dial(self, dial: Dial, timeout_s: float) -> Connection:
        """Run a dial, and the filters for it."""
        self._dials.add(dial)
        try:
            driver = await dial.run(timeout_s)
        finally:
            self._dials.discard(dial)
        try:
            await self._after_handshake(driver.connection)
        except BaseException:
            driver.close(0, b"")
            raise
        return driver.connection

    def begin_handshake(self, core: Core, expected_id: EndpointId) -> ConnectionDriver:
        """Drive a handshake that we start."""
        connection = ConnectionDriver(self, core, expected_id)
        self.demux.route(core.host_cid, connection)
        self.flush_soon(connection)
        return connection

    def path_addresses(
        self, id: EndpointId, addr: TransportAddr, may_reach: MayReach | None = None
    ) -> list[PathAddress]:
        """Return the path addresses, of any transport, that lead to an address.

        Args:
            id: the endpoint.
            addr: its address.
            may_reach: if strangers named the address, says to which IP addresses it may lead.
        """
        found: list[PathAddress] = []
        for transport in self.transports:
            if may_reach is not None and isinstance(transport, HearsayTransport):
                found += transport.paths_of_hearsay(id, addr, may_reach)
            else:
                found += transport.path_addresses(id, addr)
        return found

    def trouble_with(self, remote: PathAddress) -> str | None:
        """Return what prevents sending to an address now; None if nothing is known to."""
        for transport in self.transports:
            if isinstance(transport, ExplainingTransport) and transport.owns(remote):
                return transport.trouble_with(remote)
        return None

    # --- accepting ------------------------------------------------------------------------------

    @property
    def is_accepting(self) -> bool:
        """Whether anyone may connect."""
        return bool(self.alpns) and self._is_open

    @property
    def is_backlogged(self) -> bool:
        """Whether the limit on connections that wait to be accepted, or soon will, is reached."""
        waiting = len(self._accepted) + self.demux.half_open
        return bool(self._accepted) and waiting >= limits.MAX_PENDING_ACCEPTS

    def set_alpns(self, alpns: list[str]) -> None:
        """Set the protocols to accept."""
        self.alpns = alpns

    async def accept(self) -> Connection | None:
        """Wait for the next incoming connection; None when the endpoint is closed."""
        while not self._accepted:
            if not self._is_open:
                return None
            await self._accepting.wait()
        return self._accepted.popleft()

    def on_handshake(self, connection: ConnectionDriver) -> None:
        """Admit a connection whose handshake is complete."""
        self.demux.handshake_over(connection, failed=False)
        if not self.capacity.enter(connection):
            self.demux.counts["refused_too_many"] += 1
            return
        if connection.core.is_client:
            return
        if self.plugins.has("dialkey_after_handshake"):
            task = asyncio.create_task(self._admit(connection), name="dialkey-after-handshake")
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
        else:
            self._let_in(connection)

    async def _admit(self, connection: ConnectionDriver) -> None:
        try:
            await self._after_handshake(connection.connection)
        except Refused as refusal:
            logger.info("%s", refusal)
            return
        self._let_in(connection)

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

    def _let_in(self, connection: ConnectionDriver) -> None:
        if len(self._accepted) >= limits.MAX_PENDING_ACCEPTS:
            self.demux.count("refused_not_accepted")
            connection.close(0, b"busy")
            return
        self._accepted.append(connection.connection)
        self._accepting.next()

    def on_closed(self, connection: ConnectionDriver) -> None:
        """Note that a connection is over; it lingers in the routes until it is drained."""
        self.demux.handshake_over(connection, failed=True)
        self.capacity.leave(connection)

    # --- datagrams in, flushes and timers out ---------------------------------------------------

    def touched(self, connection: ConnectionDriver) -> None:
        """Note that a connection received something; it is served at the end of the batch."""
        self._touched[connection] = None
        if connection.core.events:
            connection.process_events()

    def flush_soon(self, connection: ConnectionDriver) -> None:
        """Send what a connection has queued, when the current callbacks are done."""
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

    def _flush(self, connection: ConnectionDriver, now: float) -> None:
        core = connection.core
        blocked = self._is_blocked(core.remote)
        if blocked:
            # What the sockets do not accept would only be lost; `on_writable` resumes.
            self._dirty[connection] = None
        else:
            try:
                core.flush(now, self._send)
            except Exception as error:
                self.on_internal_error(connection, error)
        if core.events:
            connection.process_events()
        at = core.timer()
        if at is None:
            self._connections.discard(connection)
            connection.cancel_timer()
            return
        self._connections.add(connection)
        if blocked:
            # What is due cannot be sent; checking again at once would only burn time.
            at = max(at, now + _BLOCKED_RETRY_S)
        connection.set_timer(at, self._on_timer)

    def on_internal_error(self, connection: ConnectionDriver, error: Exception) -> None:
        """End a connection in which our own code failed, so that it takes no other with it."""
        self.demux.count("internal_errors")
        logger.error("%r failed\n%s", connection, printable_traceback(error))
        core = connection.core
        if core.close_reason is None:
            try:
                core.fail_internally(self.now())
                return
            except Exception as again:
                logger.error(
                    "%r failed while it was being closed\n%s",
                    connection,
                    printable_traceback(again),
                )
        core.discard()

    def _is_blocked(self, remote: PathAddress) -> bool:
        """Whether the transport that carries most of a connection takes nothing now."""
        for transport in self.transports:
            if transport.is_blocked and transport.owns(remote):
                return True
        return False

    def _on_timer(self, connection: ConnectionDriver) -> None:
        connection.timer_fired()
        now = self.now()
        at = connection.core.timer()
        if at is not None and at > now:
            # What it was set for is no longer due; only set the timer again.
            connection.set_timer(at, self._on_timer)
            return
        if at is not None:
            try:
                connection.core.on_timer(now)
            except Exception as error:
                self.on_internal_error(connection, error)
        self._flush(connection, now)

    def _send(self, remote: PathAddress, data: bytes | memoryview, segment: int) -> None:
        if isinstance(remote, AllAddresses):
            remote.last_sent = (bytes(data), segment)
            for candidate in remote.candidates.values():
                if candidate.take(-(-len(data) // segment)):
                    self._send(candidate.address, data, segment)
            return
        for transport in self.transports:
            if transport.owns(remote):
                transport.send(remote, data, segment)
                return

    def send_to_late(self, target: AllAddresses, address: PathAddress) -> None:
        """Send to an address that was found only now what all others of the dial got."""
        if target.last_sent is not None and target.candidates[address].take(1):
            self._send(address, *target.last_sent)

    def on_writable(self) -> None:
        """Send what waited for a transport that accepts datagrams again."""
        if self._dirty:
            self._flush_all()

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        """Tell the dials in progress what the network said about an address."""
        for dial in self._dials:
            dial.target.on_unreachable(remote, reason)

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        """Send no larger datagrams to an address."""
        for connection in self._connections:
            connection.core.on_too_large(remote, max_datagram_bytes)


class _Inlet:
    """The endpoint, as one transport sees it."""

    def __init__(self, driver: Driver, transport: Transport) -> None:
        self._driver = driver
        self._transport = transport

    def on_datagrams(self, data: memoryview, segment_bytes: int, remote: PathAddress) -> None:
        driver = self._driver
        if driver.side_channels and driver.side_channels.receive(data, segment_bytes, remote):
            return
        driver.demux.receive(self._transport, data, segment_bytes, remote)

    def on_batch_end(self) -> None:
        self._driver.end_of_batch()

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        self._driver.on_unreachable(remote, reason)

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        self._driver.on_too_large(remote, max_datagram_bytes)

    def on_writable(self) -> None:
        self._driver.on_writable()

    def on_candidates_changed(self) -> None:
        self._driver.candidates_changed()

    def on_addresses_changed(self) -> None:
        # Not the transport that reports it: it knows already, and would notify itself forever.
        others = [each for each in self._driver.transports if each is not self._transport]
        self._driver.network_changed(others)
