"""A discovery server's numbers in the text format of Prometheus.

The library for this is not asked: there are some counters and no labels, and so the server needs
nothing that dialkey does not bring along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from dialkey_pkarr.server.records import Records

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

HELP: Final = {
    "puts_updated": "Records taken that were newer than what was known.",
    "puts_not_newer": "Good records that were not newer than what was known.",
    "puts_refused": "Records refused: signature, time, form, or a key that has no access.",
    "puts_limited": "Records refused by a rate limit.",
    "gets": "Records asked for over HTTP.",
    "evicted": "Records forgotten because they were old.",
    "store_errors": "Calls of the database that failed.",
    "dns_queries_udp": "DNS messages over UDP.",
    "dns_queries_tcp": "DNS messages over TCP.",
    "dns_queries_https": "DNS messages over HTTP.",
    "dns_found": "DNS answers with records.",
    "dns_not_found": "DNS answers NXDOMAIN or NODATA.",
    "dns_errors": "DNS answers REFUSED, SERVFAIL and the like.",
    "dns_udp_limited": "DNS questions over UDP that were told to come over TCP.",
    "http_requests": "HTTP requests answered.",
    "connections_displaced": "Connections ended for those of networks that have fewer.",
    "timeouts": "Connections ended because a client was slow or idle.",
}


def render(records: Records, connections: int) -> bytes:
    """Write the present numbers."""
    lines = []
    for name, value in attrs.asdict(records.counters).items():
        full = f"dialkey_dns_{name}_total"
        lines += [f"# HELP {full} {HELP[name]}", f"# TYPE {full} counter", f"{full} {value}"]
    gauges = {
        "records": ("Records in the database when they were last counted.", records.stored),
        "connections": ("Connections over TCP.", connections),
        "store_up": ("Whether the database answers.", int(records.trouble is None)),
    }
    for name, (text, value) in gauges.items():
        full = f"dialkey_dns_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} gauge", f"{full} {value}"]
    return ("\n".join(lines) + "\n").encode()
