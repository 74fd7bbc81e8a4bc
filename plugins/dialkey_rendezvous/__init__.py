"""Codes: a ticket told as a number and a few words, ``7-amber-violin``.

Two people who are not in reach of each other's clipboards meet at a rendezvous server: the sender gets a
number from it, chooses words, and says both aloud. The receiver types them, and the two programs prove
to each other that they know the same words (SPAKE2), without the server or anybody else learning them.
Then the ticket passes, sealed. There is one guess for each code.

`Rendezvous` is the server, a plugin for a router. `offer` and `take` are the two sides. As an entry point
it brings ``dialkey rendezvous serve``, and codes to ``dialkey send --code`` and ``dialkey receive``.
Names are imported when they are first used; the two sides need ``dialkey[codes]``.

Source: docs/wire/rendezvous.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dialkey.lazy import lazy_names

if TYPE_CHECKING:
    from dialkey_rendezvous.client import offer, take
    from dialkey_rendezvous.codes import Code
    from dialkey_rendezvous.desk import DeskStats
    from dialkey_rendezvous.errors import (
        CodeRefused,
        ExpiredCode,
        InvalidCode,
        PartnerLeft,
        RendezvousBusy,
        UnknownCode,
        UsedCode,
        WordsDiffer,
        WrongCode,
    )
    from dialkey_rendezvous.handler import ALPN, Rendezvous

_HOMES = {
    "client": (
        "offer",
        "take",
    ),
    "codes": ("Code",),
    "desk": ("DeskStats",),
    "errors": (
        "CodeRefused",
        "ExpiredCode",
        "InvalidCode",
        "PartnerLeft",
        "RendezvousBusy",
        "UnknownCode",
        "UsedCode",
        "WordsDiffer",
        "WrongCode",
    ),
    "handler": (
        "ALPN",
        "Rendezvous",
    ),
}

__all__ = [
    "ALPN",
    "Code",
    "CodeRefused",
    "DeskStats",
    "ExpiredCode",
    "InvalidCode",
    "PartnerLeft",
    "Rendezvous",
    "RendezvousBusy",
    "UnknownCode",
    "UsedCode",
    "WordsDiffer",
    "WrongCode",
    "offer",
    "take",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
