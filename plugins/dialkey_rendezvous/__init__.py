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

import importlib
from typing import TYPE_CHECKING

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
    "dialkey_rendezvous.client": (
        "offer",
        "take",
    ),
    "dialkey_rendezvous.codes": ("Code",),
    "dialkey_rendezvous.desk": ("DeskStats",),
    "dialkey_rendezvous.errors": (
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
    "dialkey_rendezvous.handler": (
        "ALPN",
        "Rendezvous",
    ),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
