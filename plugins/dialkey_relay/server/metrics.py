"""A relay's numbers for Prometheus, and the port where they are fetched.

Names that real relays have too (``relayserver_…_total``) are kept, so that their dashboards work;
ours alone are called ``dialkey_relay_…``.

Source: docs/wire/relay.md 1.4 and 4.9.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, cast

import attrs

from dialkey.limits import RELAY_HTTP_TIMEOUT_S
from dialkey_relay.counters import Counters
from dialkey_relay.errors import RelayWireError, cannot_listen
from dialkey_relay.http1 import Response, ServerHttp

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["MetricsServer", "Snapshot", "render"]

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_READERS: Final = 64

COUNTERS: Final = {
    "bytes_sent": "Bytes of datagrams sent to clients.",
    "bytes_recv": "Bytes of datagrams received from clients.",
    "send_packets_sent": "Datagram frames sent to clients.",
    "send_packets_recv": "Datagram frames received from clients.",
    "send_packets_dropped": "Datagram frames dropped, for any reason.",
    "got_ping": "Pings received from clients.",
    "sent_pong": "Pongs sent to clients.",
    "bytes_rx_ratelimited_total": "Bytes received that exceeded a client's rate.",
    "conns_rx_ratelimited_total": "Connections that exceeded their rate at least once.",
    "accepts": "Clients admitted.",
    "disconnects": "Admitted clients that left.",
    "unique_client_keys": "Distinct endpoint ids seen, as far as they are remembered.",
    "clients_inactive_added": "Connections replaced by a newer one of the same endpoint id.",
    "clients_inactive_removed": "Replaced connections that ended or became active again.",
    "qad_incoming": "QUIC address discovery: incoming handshakes.",
    "qad_incoming_error": "QUIC address discovery: handshakes that failed.",
    "qad_connections": "QUIC address discovery: connections established.",
    "qad_connections_closed": "QUIC address discovery: connections closed as they should be.",
    "qad_connections_errored": "QUIC address discovery: connections that ended otherwise.",
    "http_connections": "TCP connections accepted.",
    "http_connections_closed": "TCP connections closed.",
    "http_connections_errored": "TCP connections that failed before they became relay clients.",
}
"""Counters that real relays have."""

OUR_COUNTERS: Final = {
    "clients_denied": "Clients that the access rules turned away.",
    "clients_expired": "Clients disconnected because their grant ended.",
    "clients_revoked": "Clients disconnected because the access rules changed.",
    "admission_errors": "Access rules that failed or took too long.",
    "protocol_errors": "Connections ended because of what the client sent.",
    "handshake_timeouts": "Connections ended because no key was proven in time.",
    "ping_timeouts": "Clients ended because they did not answer a ping.",
    "write_timeouts": "Clients ended because they did not read.",
    "http_connections_refused": "TCP connections refused by a limit.",
    "http_connections_displaced": "TCP connections ended for those of networks that have fewer.",
    "http_requests": "HTTP requests answered.",
    "tls_errors": "TLS handshakes that failed.",
    "tls_reloads": "Certificates replaced while running.",
    "tls_reload_errors": "Certificates that could not be used.",
    "qad_incoming_refused": "QUIC address discovery: handshakes refused by a limit.",
    "dropped_control": "Control frames dropped because a client did not read.",
}

DROPS: Final = {
    "dropped_unknown_destination": "unknown_destination",
    "dropped_queue_full": "queue_full",
    "dropped_queues_full": "queues_full",
    "dropped_unsendable": "unsendable",
    "dropped_disconnected": "disconnected",
}
"""Why datagram frames were dropped: one counter with a label."""


@attrs.frozen
class Snapshot:
    """What a relay tells about itself at one moment.

    Attributes:
        endpoints: endpoint ids that are connected.
        connections: TCP connections.
        queued_bytes: bytes that wait for clients.
    """

    counters: Counters
    endpoints: int
    connections: int
    queued_bytes: int


class _Collector:
    """Gives a snapshot to the Prometheus library."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        yield from _families(self._snapshot)


def _families(snapshot: Snapshot) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    counters = snapshot.counters
    for name, text in COUNTERS.items():
        family = f"relayserver_{name.removesuffix('_total')}"
        yield CounterMetricFamily(family, text, value=getattr(counters, name))
    for name, text in OUR_COUNTERS.items():
        yield CounterMetricFamily(f"dialkey_relay_{name}", text, value=getattr(counters, name))
    drops = CounterMetricFamily(
        "dialkey_relay_dropped_frames", "Datagram frames dropped, by reason.", labels=["reason"]
    )
    for name, reason in DROPS.items():
        drops.add_metric([reason], getattr(counters, name))
    yield drops
    for name, text, value in (
        ("endpoints", "Endpoint ids connected.", snapshot.endpoints),
        ("connections", "TCP connections.", snapshot.connections),
        ("queued_bytes", "Bytes that wait for slow clients.", snapshot.queued_bytes),
    ):
        yield GaugeMetricFamily(f"dialkey_relay_{name}", text, value=value)


def prefers_openmetrics(accept: str) -> bool:
    """Return whether a reader with this ``Accept`` header gets OpenMetrics, or else Prometheus text.

    Source: RFC 9110 section 12.5.1. A reader that names neither gets the older format, which all read.
    """
    qualities = {"openmetrics": 0.0, "plain": 0.0}
    for member in accept.lower().split(","):
        media, *parameters = (part.strip() for part in member.split(";"))
        found = dict(part.partition("=")[::2] for part in parameters)
        try:
            quality = float(found.get("q", "1"))
        except ValueError:
            continue
        if not 0 <= quality <= 1:
            continue
        version = found.get("version", "").strip('"')
        if media == "application/openmetrics-text" and version in ("", "1.0.0"):
            qualities["openmetrics"] = max(qualities["openmetrics"], quality)
        elif media == "text/plain" and version in ("", "0.0.4"):
            qualities["plain"] = max(qualities["plain"], quality)
    return qualities["openmetrics"] > 0 and qualities["openmetrics"] >= qualities["plain"]


def render(snapshot: Snapshot, *, openmetrics: bool = True) -> bytes:
    """Write a snapshot as OpenMetrics or as Prometheus text."""
    from prometheus_client import CollectorRegistry, exposition
    from prometheus_client.openmetrics import exposition as openmetrics_exposition

    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    module = openmetrics_exposition if openmetrics else exposition
    # The library does not say the type of these functions.
    generate = cast("Callable[[CollectorRegistry], bytes]", module.generate_latest)
    return generate(registry)


class _Reader(asyncio.Protocol):
    """Answers every request with the metrics, whatever its method and path."""

    def __init__(self, server: MetricsServer) -> None:
        self._server = server
        self._http = ServerHttp()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self._server.readers) >= MAX_READERS:
            transport.abort()
            return
        self._transport = transport
        self._server.readers.add(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(RELAY_HTTP_TIMEOUT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        http = self._http
        try:
            http.feed(data)
            while not transport.is_closing() and (request := http.next_request()) is not None:
                openmetrics = prefers_openmetrics(",".join(request.values("accept")))
                headers = (
                    ("content-type", OPENMETRICS if openmetrics else PLAIN),
                    # A cache must not give one reader what another one asked for.
                    ("vary", "accept"),
                )
                body = render(self._server.snapshot(), openmetrics=openmetrics)
                transport.write(http.respond(Response(200, headers, body)))
                if http.is_over:
                    transport.close()
                    return
        except RelayWireError as error:
            transport.write(http.refuse(error))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._transport is not None:
            self._server.readers.discard(self._transport)


class MetricsServer:
    """The port where metrics are fetched.

    Args:
        address: where to listen.
        snapshot: gives the present numbers.
    """

    def __init__(self, address: tuple[str, int], snapshot: Callable[[], Snapshot]) -> None:
        self._address = address
        self.snapshot = snapshot
        self.readers: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> MetricsServer:
        host, port = self._address
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Reader(self), host, port
            )
        except OSError as error:
            raise cannot_listen("the metrics", self._address, error) from error
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        for transport in list(self.readers):
            transport.abort()
        await self._server.wait_closed()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        assert self._server is not None
        return [sock.getsockname()[:2] for sock in self._server.sockets]
