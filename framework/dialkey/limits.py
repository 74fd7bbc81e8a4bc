"""Every limit on what strangers may send or make us hold, with its reason.

One module per package, so that a reviewer sees all of them at once; those of blobs, gossip and the relay
stand here, those of other packages in a `limits.py` of their own. Units are in the names.
"""

from __future__ import annotations

from typing import Final

# --- identity -----------------------------------------------------------------------------------

MAX_TICKET_CHARS: Final = 8192
"""A ticket is typed, scanned or pasted; 32 addresses and 8 relays fit in 3,000 characters."""

MAX_PASTED_TICKET_CHARS: Final = 4 * MAX_TICKET_CHARS
"""A ticket with the line breaks, indents and characters of no width that pasting put into it."""

MAX_TICKET_ADDRESSES: Final = 256
"""Far above the 32 that anyone dials; bounds what a hostile ticket makes us allocate."""

# --- dialling -----------------------------------------------------------------------------------

MAX_DIAL_ADDRESSES: Final = 48
"""First-flight copies sent for one dial; iroh keeps 30 addresses of a remote, and lookups may find what
is stale beside what a ticket says. Of more, those that had their chance give way."""

# --- address lookups ----------------------------------------------------------------------------

LOOKUP_TIMEOUT_S: Final = 10.0
"""A dial that knows no address waits this long for lookups: a lost datagram and a slow server are made up
for by then, and a lookup that never answers must not keep anyone waiting."""

MAX_LOOKUP_ANSWERS: Final = 16
"""Kept of one lookup in one search, the newest; each is used when it comes."""

MAX_USER_DATA_BYTES: Final = 245
"""One TXT string of 255 bytes holds "user-data=" before it; the same limit as iroh's."""

# --- paths --------------------------------------------------------------------------------------

MAX_PATH_ADDRESSES: Final = 32
"""Direct addresses of a peer to which one connection opens paths; iroh keeps 30 of a remote."""

MAX_TRAVERSAL_ADDRESSES: Final = 32
"""Candidates that either side of a connection holds of the other for hole punching: iroh's own number."""

PROBE_ROOM_FACTOR: Final = 3
"""Bytes of probes that a connection sends to addresses which its peer has only named, for each byte that
the peer has sent us: the factor of RFC 9000 for whatever is unproven. A handshake alone pays for two
hundred probes."""

PROBES_PER_TARGET: Final = 64
PROBES_PER_TARGET_PER_S: Final = 4.0
"""Probes to one IP address (IPv6: /64) that has not answered, whoever named it: at once, and in the long
run. A round sends nine to each of its ports; 36 bytes each."""

PROBES_IN_ALL: Final = 2048
PROBES_IN_ALL_PER_S: Final = 512.0
"""Probes of all connections of one endpoint, some 30 kB a second with their headers."""

MAX_PROBE_TARGETS: Final = 4096
"""IP addresses of which is remembered how many probes they got lately; the oldest are forgotten."""

MAX_FOREIGN_PRIVATE_ADDRESSES: Final = 4
FOREIGN_PRIVATE_ATTEMPTS: Final = 3
"""Private addresses of a range in which we have none ourselves, in one round, and probes to each: most
likely they are of somebody else's network, and may be a stranger's in ours."""

MAX_PATH_RELAYS: Final = 4
"""Relays of a peer over which it does so: an endpoint has one home, and changes it now and then."""

MAX_PATH_ATTEMPTS: Final = 8
"""To open a path to one IP address that never answered, whatever the port: 24 datagrams within eleven
minutes, at intervals that double. Whoever signs an address record need not be there, and whoever is there
has not asked for them."""

# --- handshakes ---------------------------------------------------------------------------------

MAX_HALF_OPEN_HANDSHAKES: Final = 256
"""Handshakes in progress on one endpoint; each costs up to 100 KiB and 5 ms until it ends. When all
places are taken the oldest of the source that holds most makes room."""

MAX_HALF_OPEN_PER_ADDRESS: Final = 16
"""Of those, from one IPv4 address, IPv6 /64 or endpoint id, before it must prove its address: a
household behind one NAT, not a flood."""

RETRY_ABOVE_HALF_OPEN: Final = 64
"""From this many half-open handshakes on, a client must first prove its address (Retry)."""

FAILED_HANDSHAKE_COUNTS_S: Final = 5.0
"""A handshake that came to nothing counts as half-open for this long: with RETRY_ABOVE_HALF_OPEN that
makes thirteen a second, or 3 % of a processor, from addresses that prove nothing."""

HANDSHAKE_BURST_PER_ADDRESS: Final = 256
"""Handshakes that one address may begin at once: a school behind one NAT after a power cut."""

HANDSHAKES_PER_ADDRESS_PER_S: Final = 64.0
"""And then this many a second, a seventh of a processor, beside those that succeed; further clients are
let in when they repeat."""

STATELESS_ANSWERS_PER_S: Final = 200.0
"""Refusals and version negotiations, which cost a third of a millisecond and change nothing."""

MAX_HELD_INITIAL_BYTES: Final = 8192
"""Datagrams of one client kept while filters look at it: its first flight, by several ways, and a
repetition."""

HANDSHAKE_TIMEOUT_S: Final = 10.0
"""From a client's first datagram on; a handshake that has not completed by then is dropped, whatever
has been exchanged in between, and whoever is still deciding about it."""

MAX_TLS_MESSAGE_BYTES: Final = 4096
"""One TLS message, as its head announces it. A ClientHello of iroh has some 300 bytes, one with a
post-quantum key share 1,700; reading 4 KiB of the smallest list entries takes 3 ms."""

MAX_HANDSHAKE_CRYPTO_BYTES: Final = 16_384
"""TLS bytes of one encryption level during the handshake, in order or with gaps; RFC 9000 section 7.5
asks for room for 4,096, and both sides together send 2,000."""

MAX_HANDSHAKE_CRYPTO_PIECES: Final = 64
"""Pieces with gaps between them, at some 120 bytes each beside what they hold; a flight has two or three
packets, and browsers that deal a ClientHello out at random make twenty."""

MAX_INCOMING_HANDSHAKE_WORK: Final = 384
"""Frames of one handshake that somebody begins with us, where a packet counts as eight: about 40
packets or 3 ms. A client that is answered at its seventh try, each over four ways, needs 28."""

MAX_DIAL_HANDSHAKE_WORK: Final = 4 * MAX_INCOMING_HANDSHAKE_WORK
"""The same where we dialled: a server's flight is three packets, and comes back by each of four ways."""

MAX_EARLY_SHORT_BYTES: Final = 24_576
"""1-RTT packets that overtook the handshake, kept until the keys are there: sixteen full ones."""

MAX_POST_HANDSHAKE_CRYPTO_BYTES: Final = 16_384
"""TLS messages after the handshake: session tickets of some hundred bytes each, which we ignore."""

MAX_CONNECTIONS: Final = 4096
"""Connections that others made to one endpoint, at a time. An idle one costs up to 100 KiB. When all
places are taken, the youngest of the address that has most makes room."""

MAX_CONNECTIONS_PER_ADDRESS: Final = 1024
"""Of those, from one IPv4 address, IPv6 /64, or endpoint id behind a relay: a campus behind one NAT."""

MAX_CONNECTIONS_PER_ID: Final = 512
"""Of those, from one endpoint id, which can have many streams on each."""

MAX_PENDING_ACCEPTS: Final = 1024
"""Connections that nobody has accepted yet; beyond it new ones are closed as refused."""

# --- streams and datagrams ----------------------------------------------------------------------

MAX_INCOMING_STREAMS: Final = 100
"""Concurrent streams of each direction that a peer may open; iroh's own number."""

STREAM_RECEIVE_WINDOW_BYTES: Final = 1_250_000
"""Unread bytes held for one stream of which nobody has read; iroh's own number."""

CONNECTION_RECEIVE_WINDOW_BYTES: Final = 8 * STREAM_RECEIVE_WINDOW_BYTES
"""Unread bytes held for one connection of which nobody reads, whatever its number of streams: some
that wait do not hold up the others. It begins with what one stream may have, as the peer is not known."""

MAX_STREAM_RECEIVE_WINDOW_BYTES: Final = 100_000_000
"""What the window of a stream grows to while the application keeps up: 1 Gbit/s over a round trip of
300 ms is 37.5 MB, the same once more for what is sent again, and some on top until it is renewed."""

MAX_CONNECTION_RECEIVE_WINDOW_BYTES: Final = (
    MAX_STREAM_RECEIVE_WINDOW_BYTES + CONNECTION_RECEIVE_WINDOW_BYTES
)
"""The same for a connection: one such stream, and what the others had before."""

MAX_RECEIVE_WINDOWS_PER_ID_BYTES: Final = 134_000_000
"""All windows of one endpoint id, and what it may have unread: one connection at full speed and some
beside it, or a hundred of which nobody reads. Only with more than that can one of them be closed."""

KEPT_FOR_WAITING_READERS_BYTES: Final = 16 * STREAM_RECEIVE_WINDOW_BYTES
"""Beyond that share, for connections of one endpoint id whose window is full of what nobody reads while
the application waits for another stream: one window of a stream for each of sixteen connections, or for
each of sixteen unread streams of one."""

MAX_UNREAD_BYTES: Final = 512 << 20
"""Received bytes that nobody has read, of all connections of an endpoint; when half of it is used no
window grows any more, and at the end the fullest connection of the fullest id is closed."""

MAX_UNREAD_BYTES_PER_ADDRESS: Final = MAX_UNREAD_BYTES // 2
"""Of those, from one IPv4 address, IPv6 /64, or endpoint id behind a relay: keys cost nothing."""

SEND_HIGH_WATER_BYTES: Final = 1_000_000
"""`SendStream.write` waits while more than this is queued and not yet sent on that stream."""

MAX_SEND_QUEUES_BYTES: Final = 16 * SEND_HIGH_WATER_BYTES
"""What all streams of a connection may have queued and not yet sent before writers wait for each other:
sixteen that are full. It costs no speed, for each keeps its part of it."""

SEND_QUEUE_SHARE_BYTES: Final = 256 * 1024
"""Of that, what a stream may have queued in any case: a peer that does not read some streams must not
stop the writers of others. As much as a writer leaves in the queue when it goes on."""

DELIVERY_TIMEOUT_S: Final = 30.0
"""Leaving `async with` waits at most this long until the peer has what was written, while it keeps taking
bytes: a megabyte, which is what a stream may hold when `write` returns, at 270 kbit/s."""

DELIVERY_SILENCE_S: Final = 3.0
"""An exit ends when the peer has taken nothing for this long, because it is gone or because it does not
read: five to ten probes went unanswered."""

DELIVERY_LOOK_S: Final = 0.5
"""How often an exit looks whether the peer has taken anything."""

MAX_DATAGRAM_QUEUE_BYTES: Final = 1_250_000
"""Received datagrams not yet read, or ours not yet sent; beyond it the oldest is dropped and counted."""

DATAGRAM_OVERHEAD_BYTES: Final = 48
"""What an empty datagram costs in memory: a flood of them must not cost more than it seems."""

# --- blobs --------------------------------------------------------------------------------------

MAX_BLOB_REQUEST_BYTES: Final = 1 << 20
"""The body of a blob request after its type byte; iroh's own number."""

MAX_BLOB_REQUESTS: Final = 256
"""Requests answered at a time; each holds about 1 MiB. Further ones wait their turn."""

MAX_BLOB_REQUESTS_PER_PEER: Final = 64
"""Of those, from one endpoint, over all its connections."""

MAX_LARGE_BLOB_REQUESTS: Final = 16
"""Of those, ones of more than 64 KiB, of which each may take 10 MiB once decoded."""

MAX_LARGE_BLOB_REQUESTS_PER_PEER: Final = 4
"""Of those, from one endpoint, so that it takes from nobody else the places for them."""

MAX_BLOB_OBSERVERS: Final = 1024
"""Answers to Observe that are open; each costs two tasks and otherwise nothing."""

MAX_BLOB_OBSERVERS_SHARE: Final = 4
"""One endpoint may have a quarter of them, so that it cannot take everybody else's places."""

MIN_BLOB_OBSERVERS_PER_PEER: Final = 16
"""What it may have at least, as long as nobody else wants to observe."""

MAX_BLOB_RANGE_BOUNDARIES: Final = 1 << 18
"""Boundaries in one request, over all its blobs: 131,072 holes, about 10 MiB once decoded."""

MAX_BLOB_RANGE_ENTRIES: Final = 1 << 17
"""Blobs with ranges of their own in one request: a directory of 100,000 half-received files."""

MAX_OBSERVE_ITEM_BYTES: Final = 1 << 20
"""One frame of an answer to Observe; iroh's own number."""

MAX_HASH_SEQ_BYTES: Final = 32 << 20
"""A hash sequence that we load whole: a million children; sendme's own number."""

MAX_COLLECTION_ENTRIES: Final = MAX_HASH_SEQ_BYTES // 32 - 1
"""Names in a collection; its first child is the list of names."""

MAX_COLLECTION_METADATA_BYTES: Final = 64 << 20
"""The list of names of a collection, which we hold in memory: 64 bytes each for a million."""

MAX_COLLECTION_NAME_BYTES: Final = 4096
"""A relative path of a received file; PATH_MAX of Linux."""

MAX_COLLECTION_NAME_COMPONENTS: Final = 64
"""Directories that one received name may create."""

# --- addresses ----------------------------------------------------------------------------------

MAX_RELAY_URL_BYTES: Final = 2048
"""As long as browsers and proxies let a URL be; n0's own have 36 bytes."""

MAX_CUSTOM_ADDRESS_BYTES: Final = 1024
"""Registered custom transports use 6 and 32 bytes; iroh sets no limit."""

MAX_SOCKET_ADDRESS_CHARS: Final = 128
"""The longest sensible text, IPv6 with scope and port, has 58 characters."""

# --- relay --------------------------------------------------------------------------------------

MAX_RELAY_PAYLOAD_BYTES: Final = 65_536
"""A relay frame after its type: the wire format's own number."""

MAX_RELAY_MESSAGE_BYTES: Final = MAX_RELAY_PAYLOAD_BYTES + 8
"""A WebSocket message: one relay frame whose type may be written in up to eight bytes."""

MAX_RELAY_REQUEST_HEAD_BYTES: Final = 16_384
"""Request line and headers; a token is part of them."""

MAX_RELAY_HEADERS: Final = 64
"""Header lines of one request or response; iroh's own client reads 25."""

MAX_RELAY_TOKEN_CHARS: Final = 4096
"""An access token; a signed grant has about 200 characters."""

MAX_RELAY_DENIAL_BYTES: Final = 4096
"""The reason in a denial, which goes to a log."""

MAX_RELAY_HEALTH_BYTES: Final = 4096
"""The text in a health frame, which goes to a log."""

RELAY_HTTP_TIMEOUT_S: Final = 30.0
"""From accepting a TCP connection to the end of its WebSocket upgrade; iroh's own number."""

RELAY_HANDSHAKE_TIMEOUT_S: Final = 10.0
"""From the upgrade to the proof of the key; real servers set none, which holds sockets for ever."""

RELAY_ADMISSION_TIMEOUT_S: Final = 8.0
"""For the access rules, which may ask a server elsewhere; below the client's 10 s for all."""

RELAY_WRITE_TIMEOUT_S: Final = 2.0
"""A client that takes no byte for this long while frames wait is disconnected; iroh's own number."""

MAX_RELAY_QUEUE_FRAMES: Final = 512
"""Frames waiting for one slow client; iroh's own number."""

MAX_RELAY_QUEUE_BYTES: Final = 2 << 20
"""Of those, bytes: 100 Mbit/s over a round trip of 160 ms."""

MAX_RELAY_QUEUES_BYTES: Final = 512 << 20
"""Bytes waiting for all clients of one relay process together, shared fairly among the networks that they
come from."""

MAX_RELAY_CONTROL_FRAMES: Final = 512
"""Pongs and notices waiting for one client that does not read."""

MAX_RELAY_CORRESPONDENTS: Final = 4096
"""Endpoints that are told when a client leaves; the ones it wrote to last."""

MAX_RELAY_CONNECTIONS_PER_ID: Final = 8
"""Connections of one endpoint id at a time; beyond it the oldest inactive one is ended."""

MAX_RELAY_UNAUTHENTICATED: Final = 4096
"""Connections of one relay process that have not proven a key yet, shared in the same way."""

# --- gossip -------------------------------------------------------------------------------------

MAX_GOSSIP_PEER_DATA_BYTES: Final = 512
"""Hearsay about where a third endpoint is, kept and passed on; iroh sets no limit of its own."""

MAX_GOSSIP_OWN_DATA_BYTES: Final = 470
"""What we say of ourselves: eight of these fit in one shuffle of iroh's 4,096 bytes."""

MAX_GOSSIP_PEER_ADDRESSES: Final = 16
"""Socket addresses taken from one such hearsay; iroh endpoints announce fewer than ten."""

MAX_GOSSIP_NODES: Final = 32
"""Peers taken from one shuffle; iroh sends at most eight."""

MAX_GOSSIP_WALK_HOPS: Final = 6
"""Longest random walk that we continue, whatever a message asks for; iroh's own number."""

MAX_GOSSIP_CACHE_BYTES: Final = 16 << 20
"""Payloads of one topic held for neighbours that ask: 4,096 messages of the largest size."""

MAX_GOSSIP_MESSAGE_IDS: Final = 1 << 17
"""Ids of one topic remembered against duplicates for 90 seconds, about 40 MB. Alone, a neighbour may
bring four fifths of them, 1,100 messages a second; when they are used up, new messages are refused."""

MAX_GOSSIP_ANNOUNCED_IDS: Final = 4096
"""Ids that one neighbour announced and nobody delivered yet; beyond it new ones are ignored."""

MAX_GOSSIP_DIALS: Final = 16
"""Dials under way at once: a message can name any endpoint id and so make us dial it. As many again are
kept for peers that the application named."""

MAX_GOSSIP_DIALS_PER_SOURCE: Final = 32
"""Dials under way or waiting because of what one and the same peer told us; an eighth of it once half of
`MAX_GOSSIP_PENDING_PEERS` are taken. Only a quarter of `MAX_GOSSIP_DIALS` is under way for one peer."""

MAX_GOSSIP_HEARSAY_ADDRESSES: Final = 3
"""Addresses of hearsay that one dial tries: a relay, and two more that differ in kind."""

MAX_GOSSIP_HEARSAY_DATAGRAMS: Final = 2
"""Datagrams to each of them before it answers: the first one, and one repetition."""

GOSSIP_DIAL_BYTES_PER_BYTE: Final = 6
"""What a byte from a peer may make us send to addresses that it named; a datagram is lost now and then,
and a smaller number than the ten that we promise leaves room for the allowance below."""

GOSSIP_DIAL_ALLOWANCE_BYTES: Final = 4_800
"""And what it may make us send before it has said much: two addresses. It paid with a handshake."""

MAX_GOSSIP_DIAL_CREDIT_BYTES: Final = 64 << 10
"""What a peer may save up: 27 addresses."""

MAX_GOSSIP_PENDING_PEERS: Final = 256
"""Peers that wait to be dialled, for the same reason."""

MAX_GOSSIP_PEERS: Final = 1024
"""Peers connected for gossip at once; a topic needs five, strangers come and go."""

MAX_GOSSIP_CONNECTIONS_PER_PEER: Final = 8
"""Of one peer; two are usual when both dial at once, and iroh peers leave some behind."""

MAX_GOSSIP_QUEUE_BYTES: Final = 1 << 20
"""Frames of one topic waiting for one peer; beyond it the peer is too slow and is let go."""

MAX_GOSSIP_BAD_STREAMS: Final = 8
"""Malformed streams that one connection may bring before it is closed."""

MAX_GOSSIP_TICKET_PEERS: Final = 16
"""Bootstrap peers in a topic ticket; four are plenty, and each costs some 100 characters."""

MAX_GOSSIP_AUTHORS: Final = 16_384
"""Authors of signed messages in one topic that are remembered until their messages are too old to be
replayed, some 8 MB. Alone, a neighbour may bring four fifths of them; then further ones are refused."""
