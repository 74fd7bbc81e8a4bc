"""Limits of codes and of the server where they meet, with their reasons."""

from __future__ import annotations

from typing import Final

from dialkey.limits import MAX_TICKET_CHARS

# --- codes ----------------------------------------------------------------------------------------

WORDS_PER_CODE: Final = 2
"""Two of 512 words: a guess is right once in 262,144 times, and there is one guess."""

MAX_WORDS_PER_CODE: Final = 6
MAX_CODE_CHARS: Final = 100
"""Six of the longest words with a number and everything that people write between them."""

MAX_NAMEPLATE: Final = 99_999
"""The first number that is written with more than five digits is not one that a server gives out."""

# --- frames ---------------------------------------------------------------------------------------

MAX_BODY_BYTES: Final = MAX_TICKET_CHARS + 16
"""The largest body is a sealed ticket."""

# --- the server -----------------------------------------------------------------------------------

MAX_OFFERS: Final = 2048
"""Codes that wait at a time. Each costs a few kilobytes, most of them for its connection."""

MAX_OFFERS_PER_ID: Final = 4
"""Somebody who sends several things at a time has one code for each."""

MAX_OFFERS_PER_ADDRESS: Final = 32
"""An office behind one address."""

MAX_OFFERS_PER_RELAY: Final = 512
"""Everybody who is reached through one relay; the relay hides their addresses."""

MAX_REMEMBERED: Final = 2048
"""Codes that are over and whose numbers are not given out again yet, so that whoever types an old code
learns what became of it instead of burning somebody else's."""

REMEMBERED_S: Final = 900.0

LIFETIME_S: Final = 3600
"""How long a code waits for its receiver, at most."""

FIRST_FRAME_S: Final = 10.0
"""From the connection, or the end of one code, to the first frame about another."""

EXCHANGE_S: Final = 180.0
"""From the claim to the end, during which two people may compare words."""

WRITE_S: Final = 10.0
"""For somebody to take what was written to them: at most one ticket."""

CLAIMS_PER_ID: Final = (6.0, 1 / 20)
CLAIMS_PER_ADDRESS: Final = (20.0, 1 / 10)
CLAIMS_PER_RELAY: Final = (120.0, 1.0)
"""Claims at once, and per second in the long run, that did not end with a ticket. People mistype a number
now and then; who tries numbers one after the other burns the codes of others."""

OFFERS_PER_ID: Final = (12.0, 1 / 20)
OFFERS_PER_ADDRESS: Final = (64.0, 1 / 5)
OFFERS_PER_RELAY: Final = (240.0, 2.0)
"""The same for codes that are asked for: each takes a number for some time."""

MAX_CALLERS: Final = 8192
"""Callers of whom it is remembered how often they called. Those who come when there are that many share
one allowance, unless somebody is forgotten who has theirs in full."""
