"""Limits on what servers and publishers may send, with their reasons."""

from __future__ import annotations

from typing import Final

MAX_DNS_BYTES: Final = 1000
"""The DNS message inside a signed packet, as BEP 44 allows for a value."""

HEAD_BYTES: Final = 32 + 64 + 8
"""Key, signature and timestamp before the DNS message."""

MAX_PACKET_BYTES: Final = HEAD_BYTES + MAX_DNS_BYTES
MAX_PAYLOAD_BYTES: Final = MAX_PACKET_BYTES - 32
"""The body of an HTTP request or response: without the key, which the path names."""

MAX_TXT_BYTES: Final = 255
"""One character-string: a length byte comes before it."""

MAX_ATTRIBUTES: Final = 256
"""TXT strings that are read of one endpoint; 1,000 bytes hold fewer than 80, an answer over TCP more."""

RECORD_TTL_S: Final = 30
"""Of the records that we publish; iroh's own."""

# --- HTTP -----------------------------------------------------------------------------------------

HTTP_TIMEOUT_S: Final = 8.0
"""For one request, names and TLS included: less than a dial waits for lookups, so that it can say why."""

MAX_HTTP_HEAD_BYTES: Final = 16_384
"""Of a response; servers in front of servers add headers of their own."""

MAX_HTTP_BODY_BYTES: Final = 65_536
"""Of a response: a packet has 1,072 bytes, an error page of a proxy some thousands."""

REPUBLISH_S: Final = 300.0
"""A record is signed and put anew so often, also when nothing has changed: servers forget after days,
and a server that lost its records has them back soon. iroh's own."""

RETRY_MOST_S: Final = 60.0
"""After a failure we wait a second, then two, and so on up to this: a server that comes back after a
minute must not wait longer for its records than it was away."""

# --- DNS ------------------------------------------------------------------------------------------

DNS_TIMEOUT_S: Final = 6.0
"""For all servers together; the sixth datagram would leave after 4.8 s, and nobody waits for that one."""

UDP_AT_S: Final = (0.0, 0.3, 0.6, 1.2, 2.4)
"""When the same question is sent to one server, each time from a port of its own: one datagram in a
hundred is lost, and a resolver may take a second over a name that nobody asked for before."""

TCP_AFTER_S: Final = 0.9
"""A server that has not answered by then is asked over TCP as well: some networks drop UDP."""

NEXT_SERVER_S: Final = 0.5
"""A server that has not answered by then gets company."""

MAX_DNS_SERVERS: Final = 3
"""As other resolvers do; a question goes to no more."""

EDNS_PAYLOAD_BYTES: Final = 1232
"""Fits into one packet everywhere (DNS flag day 2020)."""

MAX_DNS_ANSWER_BYTES: Final = 65_535
"""TCP has two bytes for the length."""

# --- the server -----------------------------------------------------------------------------------

EVICT_AFTER_S: Final = 7 * 86_400.0
"""A record that was signed longer ago is forgotten, as iroh's server does; publishers sign every five
minutes."""

EVICT_EVERY_S: Final = 60.0

AHEAD_MOST_S: Final = 86_400.0
"""How far a signer's clock may be ahead of ours. A record from the far future would stand in the way of
all that its key signs later; a clock in the wrong time zone must do no harm."""

NEGATIVE_TTL_S: Final = 30
"""How long resolvers may remember that a key is not known: a new endpoint is found after that time."""

APEX_TTL_S: Final = 3600
"""Of the SOA, NS and address records of an origin, which hardly ever change."""

MAX_CACHED_RECORDS: Final = 65_536
"""Records kept in memory; at most 1.1 kB each."""

MAX_REPEATED_ANSWERS: Final = 8192
"""Answers over UDP that are kept as bytes, of 1.3 kB each at most: resolvers ask the same question in
the same bytes, but for the id, and reading and writing messages is most of the work."""

MAX_READ_RECORDS: Final = 4096
"""Records whose DNS messages are kept as they were read; some kB each."""

MAX_PENDING_PUTS: Final = 4096
"""Records that wait for one transaction; more are asked to come again."""

MAX_PENDING_GETS: Final = 1024
"""Questions that wait for the store; more are answered with SERVFAIL, and resolvers ask again."""

PUTS_PER_NETWORK: Final = (60.0, 10.0)
"""Burst and rate per second for one address (IPv6: one /64): an office of some hundred endpoints
publishes once or twice a second. What fails counts as well."""

PUTS_PER_KEY: Final = (6.0, 0.5)
"""Burst and rate per second for one key: a fresh endpoint publishes twice within a second."""

UDP_ANSWERS_PER_NETWORK: Final = (400.0, 200.0)
"""Burst and rate per second of full answers over UDP for one address. What is above is told to come over
TCP, so that forged questions bring their victim no more than they cost."""

MAX_NETWORKS: Final = 65_536
"""Addresses and keys that a limit remembers; the ones least recently seen are forgotten first."""

REQUEST_TIMEOUT_S: Final = 10.0
"""From when a connection is opened, or from the first byte of a later request, until all of it is here:
a packet fits into one segment. Also for a TLS handshake, and for taking an answer."""

IDLE_TIMEOUT_S: Final = 20.0
"""How long a connection may wait for its next request."""

MAX_SERVER_CONNECTIONS: Final = 2048
"""HTTP and DNS connections together, so that some thousand files that a process may open suffice. When
there are more, the network that has most loses its oldest."""

MAX_REQUEST_HEAD_BYTES: Final = 16_384
MAX_REQUEST_BODY_BYTES: Final = 65_535
"""A DNS message has no more; a packet has 1,072."""

MAX_REQUESTS_PER_CONNECTION: Final = 1000
"""Then the connection is closed, and others have their turn."""

LISTEN_BACKLOG: Final = 1024
"""As iroh's server; the kernel may allow less."""

STORE_RETRY_S: Final = 1.0
"""How long a store that failed is left alone before it is tried again."""
