"""What a relay counts."""

from __future__ import annotations

import attrs

__all__ = ["Counters"]


@attrs.define
class Counters:
    """What a relay counts since it started.

    The names are those of real relays where these have the same thing (docs/wire/relay.md 4.9).
    """

    bytes_sent: int = 0
    bytes_recv: int = 0
    send_packets_sent: int = 0
    send_packets_recv: int = 0
    send_packets_dropped: int = 0
    dropped_unknown_destination: int = 0
    dropped_queue_full: int = 0
    dropped_queues_full: int = 0
    dropped_unsendable: int = 0
    dropped_disconnected: int = 0
    dropped_control: int = 0
    got_ping: int = 0
    sent_pong: int = 0
    bytes_rx_ratelimited_total: int = 0
    conns_rx_ratelimited_total: int = 0
    accepts: int = 0
    disconnects: int = 0
    unique_client_keys: int = 0
    clients_inactive_added: int = 0
    clients_inactive_removed: int = 0
    clients_denied: int = 0
    clients_expired: int = 0
    clients_revoked: int = 0
    protocol_errors: int = 0
    handshake_timeouts: int = 0
    ping_timeouts: int = 0
    write_timeouts: int = 0
    http_connections: int = 0
    http_connections_closed: int = 0
    http_connections_errored: int = 0
    http_connections_refused: int = 0
    http_connections_displaced: int = 0
    http_requests: int = 0
    tls_errors: int = 0
    tls_reloads: int = 0
    tls_reload_errors: int = 0
    admission_errors: int = 0
    qad_incoming: int = 0
    qad_incoming_error: int = 0
    qad_incoming_refused: int = 0
    qad_connections: int = 0
    qad_connections_closed: int = 0
    qad_connections_errored: int = 0
