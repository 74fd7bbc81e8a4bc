"""A room in the terminal: messages by gossip, history from a peer, files as blobs.

The app in layers, each of which knows only those above it:

- `text`, `messages`, `ticket`: what travels, checked and cleaned.
- `room`: who is here and what was written, without I/O.
- `history`: a protocol of our own; `files`: blobs.
- `session`: all of it on one endpoint, with no screen.
- `commands`, then `plain` and `ui`: two faces.
"""

from __future__ import annotations

from dialkey_chat.room import Arrived, Departed, Notice, Person, Remark, Renamed, Room, Written
from dialkey_chat.session import Chat, Settings, open_chat
from dialkey_chat.ticket import RoomTicket

__all__ = [
    "Arrived",
    "Chat",
    "Departed",
    "Notice",
    "Person",
    "Remark",
    "Renamed",
    "Room",
    "RoomTicket",
    "Settings",
    "Written",
    "open_chat",
]
