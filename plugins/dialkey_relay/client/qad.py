"""Address discovery as a client: relays tell which address our datagrams come from.

A short QUIC connection to a relay over the endpoint's own socket; the server's first 1-RTT packet holds
the answer. One connection of each family stays open: it keeps the NAT's port, and the server tells when
that changes all the same. The others are closed.

Two relays that see different ports show that the NAT gives each destination its own (`varies`); then
what they saw is of little use to others.

It is aioquic's client with one transport parameter and two frames more; the private names of aioquic that
this takes are the server's (`dialkey_relay.server.qad.PRIVATE_NAMES`), and two more.

Source: docs/wire/relay.md 4.10 and 6.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import attrs
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicReceiveContext
from aioquic.quic.events import ConnectionTerminated
from aioquic.tls import Epoch

from dialkey.errors import DialkeyError
from dialkey.identity import IpAddr
from dialkey.printable import printable
from dialkey_relay.observed import (
    ALPN,
    CLOSE_CODE,
    CLOSE_REASON,
    FRAME_IPV4,
    FRAME_IPV6,
    Observed,
    Role,
    encode_role_parameter,
)

__all__ = ["AddressDiscovery", "Channel", "OpenChannel", "Place", "roots_of"]

logger = logging.getLogger("dialkey.relay.client")

PROBE_TIMEOUT_S: Final = 3.0
KEEP_ALIVE_S: Final = 25.0
IDLE_TIMEOUT_S: Final = 35.0
"""These three are iroh's own numbers."""
MAX_PLACES: Final = 3
"""Relays that are asked: two tell whether the port varies, and one of them may be down."""
ROUND_INTERVAL_S: Final = 300.0
"""All relays are asked again this often; what is kept open tells of changes at once."""
LOST_RETRY_S: Final = 5.0
"""After a connection that was kept is lost, this long before the next round."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Channel(Protocol):
    """Datagrams to one address, over the endpoint's own socket."""

    def send(self, data: bytes) -> None: ...

    def close(self) -> None: ...


OpenChannel = Callable[[IpAddr, Callable[[bytes], None]], Channel]


@attrs.frozen
class Place:
    """Where a relay answers.

    Attributes:
        host: its name or address; its certificate names it.
        port: of UDP.
    """

    host: str
    port: int


@attrs.frozen
class Roots:
    """Whom to trust, as aioquic takes it."""

    verify: bool = True
    pem: bytes | None = None
    file: str | None = None
    folder: str | None = None


def roots_of(context: ssl.SSLContext | None) -> Roots:
    """Return what a TLS context trusts: the system's roots, and those that were added."""
    if context is not None and context.verify_mode is ssl.CERT_NONE:
        return Roots(verify=False)
    paths = ssl.get_default_verify_paths()
    folder = paths.capath if paths.capath is not None and os.listdir(paths.capath) else None
    # Whatever is given as text is read anew for each connection: only what the system does not have.
    pem = ""
    if context is not None:
        known = set(ssl.create_default_context().get_ca_certs(binary_form=True))
        added = set(context.get_ca_certs(binary_form=True)) - known
        pem = "".join(map(ssl.DER_cert_to_PEM_cert, sorted(added)))
    return Roots(pem=pem.encode() or None, file=None if folder else paths.cafile, folder=folder)


class _Asking(QuicConnection):
    """A client's connection that wants reports."""

    def __init__(self, configuration: QuicConfiguration) -> None:
        super().__init__(configuration=configuration)
        self.report: Observed | None = None
        handlers = self._QuicConnection__frame_handlers  # type: ignore[attr-defined]
        for kind in (FRAME_IPV4, FRAME_IPV6):
            handlers[kind] = (self._on_report, frozenset({Epoch.ONE_RTT}))

    def _serialize_transport_parameters(self) -> bytes:
        return super()._serialize_transport_parameters() + encode_role_parameter(Role.RECEIVES)

    def _on_report(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        sequence = buf.pull_uint_var()
        packed = buf.pull_bytes(4 if frame_type == FRAME_IPV4 else 16)
        port = buf.pull_uint16()
        if self.report is None or sequence > self.report.sequence:
            host = str(ipaddress.ip_address(packed))
            self.report = Observed.of(sequence, host, port)


class _Session:
    """A connection to one address of one relay."""

    def __init__(
        self,
        place: Place,
        remote: IpAddr,
        roots: Roots,
        open_channel: OpenChannel,
        on_change: Callable[[_Session], None],
    ) -> None:
        self.place = place
        self.remote = remote
        self.observed: IpAddr | None = None
        self.is_over = False
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[ALPN],
            server_name=place.host.removesuffix("."),
            idle_timeout=IDLE_TIMEOUT_S,
            verify_mode=None if roots.verify else ssl.CERT_NONE,
            cadata=roots.pem,
            cafile=roots.file,
            capath=roots.folder,
        )
        self._quic = _Asking(configuration)
        self._timer: asyncio.TimerHandle | None = None
        self._ping: asyncio.TimerHandle | None = None
        self._channel = open_channel(remote, self._receive)
        self._quic.connect((str(remote.ip), remote.port), now=self._loop.time())
        self._transmit()

    def _receive(self, data: bytes) -> None:
        if not self.is_over:
            address = (str(self.remote.ip), self.remote.port)
            self._quic.receive_datagram(data, address, now=self._loop.time())
            self._after()

    def _after(self) -> None:
        """See what has become of it."""
        while (event := self._quic.next_event()) is not None:
            if isinstance(event, ConnectionTerminated):
                if event.reason_phrase not in ("", CLOSE_REASON):
                    logger.debug("address discovery at %s: %s", self.remote, event.reason_phrase)
                self._transmit()
                self._finish()
                return
        report = self._quic.report
        if report is not None:
            observed = IpAddr(report.ip, report.port)
            if observed != self.observed:
                self.observed = observed
                self._on_change(self)
            if self._ping is None and not self.is_over:
                self._ping = self._loop.call_later(KEEP_ALIVE_S, self._keep_alive)
        self._transmit()

    def _transmit(self) -> None:
        if self.is_over:
            return
        for data, _ in self._quic.datagrams_to_send(now=self._loop.time()):
            self._channel.send(data)
        if self._timer is not None:
            self._timer.cancel()
        at = self._quic.get_timer()
        self._timer = self._loop.call_at(at, self._on_timer) if at is not None else None

    def _on_timer(self) -> None:
        self._timer = None
        self._quic.handle_timer(now=self._loop.time())
        self._after()

    def _keep_alive(self) -> None:
        self._ping = self._loop.call_later(KEEP_ALIVE_S, self._keep_alive)
        self._quic.send_ping(1)
        self._transmit()

    def close(self) -> None:
        """Leave. Idempotent."""
        if not self.is_over:
            self._quic.close(CLOSE_CODE, reason_phrase=CLOSE_REASON)
            self._transmit()
            self._finish(quietly=True)

    def _finish(self, *, quietly: bool = False) -> None:
        self.is_over = True
        for timer in (self._timer, self._ping):
            if timer is not None:
                timer.cancel()
        self._channel.close()
        if not quietly:
            self._on_change(self)


class AddressDiscovery:
    """Knows which addresses the outside sees us come from.

    Args:
        open_channel: see `dialkey.Endpoint.side_channel`.
        places: returns the relays to ask, the home first.
        roots: whom to trust.
        on_change: called when `addresses` has changed.

    Attributes:
        addresses: one of each family at most.
        varies: whether the NAT gives each destination another port; None while that is not known.
    """

    def __init__(
        self,
        open_channel: OpenChannel,
        places: Callable[[], Iterable[Place]],
        roots: Roots,
        on_change: Callable[[], None],
    ) -> None:
        self._open_channel = open_channel
        self._places = places
        self._roots = roots
        self._on_change = on_change
        self._sessions: list[_Session] = []
        self._settled = asyncio.Event()
        self._wake = asyncio.Event()
        self._is_asking = False
        self.addresses: tuple[IpAddr, ...] = ()
        self.varies: bool | None = None

    def ask_again(self) -> None:
        """Ask all relays again: the network, or the list of relays, may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Ask, now and then, until cancelled."""
        try:
            while True:
                self._wake.clear()
                await self._ask()
                try:
                    async with asyncio.timeout(ROUND_INTERVAL_S):
                        await self._wake.wait()
                except TimeoutError:
                    logger.debug("time to ask again for our addresses")
        finally:
            for session in self._sessions:
                session.close()

    async def _ask(self) -> None:
        """One round: ask some relays over both families, and keep one connection of each."""
        before, self._sessions = self._sessions, []
        for session in before:
            session.close()
        self._is_asking = True
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                found = await asyncio.gather(*map(self._resolve, list(self._places())[:MAX_PLACES]))
                for place, remote in dict.fromkeys(each for several in found for each in several):
                    self._begin(place, remote)
                while any(not each.is_over and each.observed is None for each in self._sessions):
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            logger.debug("not every relay told our address in time")
        finally:
            self._is_asking = False
        self._judge()
        kept: dict[int, _Session] = {}
        for session in self._sessions:
            observed = None if session.is_over else session.observed
            if observed is None or kept.setdefault(observed.ip.version, session) is not session:
                session.close()
        self._sessions = list(kept.values())
        self._update()

    def _begin(self, place: Place, remote: IpAddr) -> None:
        try:
            session = _Session(place, remote, self._roots, self._open_channel, self._on_session)
        except DialkeyError as error:
            # We have no socket of its family, or two relays are one.
            logger.debug("address discovery at %s: %s", remote, error)
        else:
            self._sessions.append(session)

    async def _resolve(self, place: Place) -> list[tuple[Place, IpAddr]]:
        """Return one address of each family."""
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            logger.debug("address discovery: %s: %s", place.host, printable(str(error)))
            return []
        found: dict[int, IpAddr] = {}
        for _, _, _, _, address in infos:
            ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
            found.setdefault(ip.version, IpAddr(ip, place.port))
        return [(place, each) for each in found.values()]

    def _judge(self) -> None:
        """Say whether two relays have seen different ports."""
        seen: dict[int, set[IpAddr]] = {}
        for session in self._sessions:
            if session.observed is not None:
                seen.setdefault(session.observed.ip.version, set()).add(session.observed)
        if any(len(each) > 1 for each in seen.values()):
            self.varies = True
        elif sum(each.observed is not None for each in self._sessions) > len(seen):
            self.varies = False

    def _on_session(self, session: _Session) -> None:
        self._settled.set()
        if not session.is_over:
            # The first answer is worth telling at once.
            self._update()
        elif not self._is_asking and session in self._sessions:
            self._sessions.remove(session)
            asyncio.get_running_loop().call_later(LOST_RETRY_S, self._wake.set)

    def _update(self) -> None:
        found: dict[int, IpAddr] = {}
        for session in self._sessions:
            if session.observed is not None and not session.is_over:
                found.setdefault(session.observed.ip.version, session.observed)
        addresses = tuple(found[version] for version in sorted(found))
        if self._is_asking and not addresses:
            return
        if addresses != self.addresses:
            self.addresses = addresses
            self._on_change()
