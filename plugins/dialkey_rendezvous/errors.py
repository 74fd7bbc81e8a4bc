"""What can go wrong with codes, placed in the tree of `dialkey.errors`.

::

    LocalError
    ├── InvalidInput
    │   └── InvalidCode          the text is not a code
    └── WordsDiffer              somebody compared the words and said that they differ
    Refused
    └── CodeRefused              the code did not lead to a ticket
        ├── UnknownCode          nobody offers anything under its number
        ├── ExpiredCode          nobody came for it in time
        ├── UsedCode             somebody has used it, or is using it
        ├── WrongCode            its words are wrong; it is burnt
        ├── PartnerLeft          the other side went away in the middle
        └── RendezvousBusy       the server has no room, or was asked too often
"""

from __future__ import annotations

from dialkey.errors import InvalidInput, LocalError, Refused

__all__ = [
    "CodeRefused",
    "ExpiredCode",
    "InvalidCode",
    "PartnerLeft",
    "RendezvousBusy",
    "UnknownCode",
    "UsedCode",
    "WordsDiffer",
    "WrongCode",
]


class InvalidCode(InvalidInput):
    code = "local.input.code"


class WordsDiffer(LocalError):
    """Somebody compared the words on both sides and said that they are not the same."""

    code = "local.words_differ"


class CodeRefused(Refused):
    code = "remote.handshake.refused.code"


class UnknownCode(CodeRefused):
    code = "remote.handshake.refused.code.unknown"


class ExpiredCode(CodeRefused):
    code = "remote.handshake.refused.code.expired"


class UsedCode(CodeRefused):
    code = "remote.handshake.refused.code.used"


class WrongCode(CodeRefused):
    code = "remote.handshake.refused.code.wrong"


class PartnerLeft(CodeRefused):
    code = "remote.handshake.refused.code.left"


class RendezvousBusy(CodeRefused):
    """The server has no room, or was asked too often.

    Attributes:
        wait_s: seconds after which it may be asked again, or 0 if it did not say.
    """

    code = "remote.handshake.refused.code.busy"

    def __init__(self, message: str, *, wait_s: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.wait_s = wait_s
