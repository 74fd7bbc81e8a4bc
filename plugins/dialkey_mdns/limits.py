"""Limits on what anybody in the local network may send or make us hold, with their reasons."""

from __future__ import annotations

from typing import Final

# --- messages -------------------------------------------------------------------------------------

MAX_SENT_BYTES: Final = 1400
"""Of one message that we send: fits into one packet, and into the 1,472 bytes that iroh reads."""

MAX_READ_BYTES: Final = 9000
"""Of one message that we read: RFC 6762 section 17 allows for jumbo frames, and no more."""

MAX_RECORDS: Final = 256
"""Read of one message, questions included. The fullest of ours has 70; 9,000 bytes hold some 600."""

MAX_ENDPOINTS: Final = 8
"""Read of one response: an endpoint speaks for itself, and a machine's responder for a few. To see that a
key is one takes longer than all the rest."""

MAX_KNOWN_LABELS: Final = 1024
"""Labels of which is remembered which key they are."""

MAX_ADDRESSES: Final = 32
"""Read and sent of one endpoint; a connection uses no more."""

MAX_TXT_BYTES: Final = 255
"""One character-string: a length byte comes before it."""

RECORD_TTL_S: Final = 120
"""Of the records that we send; RFC 6762 section 10 for records that name hosts, and iroh's own."""

# --- peers ----------------------------------------------------------------------------------------

PEER_LIFETIME_S: Final = 120.0
"""Since we heard of it last; then it is forgotten. Nothing is signed, so what a record says of its own
lifetime does not count."""

GOODBYE_S: Final = 1.0
"""Between a goodbye and its effect, in which whoever is there can say so (RFC 6762 section 10.1)."""

MAX_PEERS: Final = 2048
"""Held in all; the LAN of a large conference. Beyond it the oldest of the fullest source gives way."""

MAX_PEERS_PER_SOURCE: Final = 64
"""Of those, from one IP address: a machine with many apps; further ids from there are not believed."""

MAX_SOURCES_PER_PEER: Final = 4
"""Machines that claim to be one endpoint. All are told to whoever looks for it: only a handshake shows
which one has the key, and a liar must not displace the truth. Its IPv4 and its IPv6 count each."""

# --- rates ----------------------------------------------------------------------------------------

DATAGRAMS_PER_S: Final = 200.0
DATAGRAMS_BURST: Final = 600.0
"""About endpoints, read from one link; the rest of a flood is dropped unread. Reading one takes 0.2 ms,
or 0.7 ms where it names as many new keys as it may."""

SOURCE_DATAGRAMS_PER_S: Final = 20.0
SOURCE_DATAGRAMS_BURST: Final = 100.0
"""Of those, from one IP address: sixty apps on one machine that all start at once."""

MAX_KNOWN_SOURCES: Final = 1024
"""IP addresses of which is remembered how much they sent lately; the oldest are forgotten."""

SENDS_PER_S: Final = 3.0
SENDS_BURST: Final = 12.0
"""Messages that we send on one link, whatever anybody asks and the application looks for."""

# --- timers ---------------------------------------------------------------------------------------

ANSWER_AGAIN_S: Final = 1.0
"""Between two answers on one link (RFC 6762 section 6): those who missed the last one ask again."""

ANSWER_AGAIN_PER_PEER_S: Final = 0.3
"""And at least this for each endpoint in the network, when nobody in particular was asked for. Together
they answer three times a second, however often somebody asks; iroh asks every 0.7 s, and forgets whoever
was silent for 1.05 s times their number."""

QUIET_ANSWER_AGAIN_S: Final = 5.0
"""The same for whoever saves battery. Who looks for us in particular is always answered at once."""

ANSWER_WITHIN_S: Final = 0.1
"""Answers are spread over this time, so that those of many do not collide."""

DEFENCES_BURST: Final = 3
DEFENCES_PER_S: Final = 0.1
"""How often we contradict who says something else of us; whoever shares our key does the same."""

ANNOUNCEMENTS_AT_S: Final = (0.0, 1.0, 3.0)
"""After something has changed here, it is said so often: one datagram in a hundred is lost."""

SEARCH_AT_S: Final = (0.0, 0.3, 1.0, 2.0)
"""When somebody looked for is asked for, since the search began; then at intervals that double."""

SEARCH_MOST_S: Final = 30.0
"""Between two questions of a continuing search, as between two to any other lookup."""

SEARCH_ANSWERED_S: Final = 3.0
"""Then a search has said all that it knows: whoever is there was asked four times."""

SEARCH_ANSWERED_ALONE_S: Final = 1.0
"""The same where no network is but this machine itself."""

FRESH_S: Final = 5.0
"""Who was heard so lately is not asked for when somebody looks for it."""

REFRESH_S: Final = 50.0
"""Somebody in the network asks for everybody so often: before a record's lifetime of 120 s has passed,
there are two questions."""

RESCAN_S: Final = 5.0
"""How often the machine's interfaces are listed; it takes a fraction of a millisecond."""
