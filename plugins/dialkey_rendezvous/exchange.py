"""The two sides of a code: who offers a ticket, and who takes it. Sans-IO.

Both sides know the code, and agree on a key by SPAKE2. The taker speaks first and proves first that it
has the key, so an offerer that was reached with a wrong code says nothing that could be tried out. Then
the offerer proves that it has the key, seals the ticket with it, and the taker says that it has come.
A side of an exchange is of use once: whatever goes wrong, the code is burnt.

Source: docs/wire/rendezvous.md 4.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dialkey.errors import InvalidTicket, ProtocolViolation
from dialkey.extras import require_extra
from dialkey.limits import MAX_TICKET_CHARS
from dialkey_rendezvous import frames
from dialkey_rendezvous.codes import Code
from dialkey_rendezvous.errors import (
    CodeRefused,
    ExpiredCode,
    PartnerLeft,
    RendezvousBusy,
    UnknownCode,
    UsedCode,
    WordsDiffer,
    WrongCode,
)
from dialkey_rendezvous.frames import Failure, Frame, FrameReader, Reason, encode
from dialkey_rendezvous.words import WORDS

require_extra("codes", "a code", "spake2")

from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError  # noqa: E402

__all__ = ["Agreed", "Delivered", "Event", "Named", "Offering", "Taking", "TicketCame"]

Entropy = Callable[[int], bytes]

CONTEXT: Final = b"dialkey/rendezvous/1 "
OFFERER: Final = CONTEXT + b"offerer"
TAKER: Final = CONTEXT + b"taker"
COMPARED_WORDS: Final = 3
"""Two people read them to each other; 27 bits are more than an attacker in the middle can arrange,
who has one try."""


@attrs.frozen
class Named:
    """The code is known now; tell it to somebody.

    Attributes:
        code: the code.
        lifetime_s: for how long the server keeps it.
    """

    code: Code
    lifetime_s: int


@attrs.frozen
class Agreed:
    """Both sides know the code.

    Attributes:
        words: what both sides see if nobody is between them.
        other_compares: whether somebody on the other side compares them.
    """

    words: tuple[str, ...]
    other_compares: bool


@attrs.frozen
class TicketCame:
    """The ticket is here."""

    ticket: str


@attrs.frozen
class Delivered:
    """The taker has opened the ticket."""


Event = Named | Agreed | TicketCame | Delivered


class _Keys:
    """What both sides derive from the key that they agreed on."""

    def __init__(self, key: bytes, *, offerer_compares: bool, taker_compares: bool) -> None:
        salt = bytes([offerer_compares, taker_compares])

        def derive(label: bytes) -> bytes:
            return HKDF(SHA256(), 32, salt, CONTEXT + label).derive(key)

        self.taker_confirms = derive(b"taker confirms")
        self.offerer_confirms = derive(b"offerer confirms")
        self.taken = derive(b"taken")
        self.seal = ChaCha20Poly1305(derive(b"ticket"))
        number = int.from_bytes(derive(b"words"), "big")
        words: list[str] = []
        for _ in range(COMPARED_WORDS):
            number, index = divmod(number, len(WORDS))
            words.append(WORDS[index])
        self.words = tuple(words)


NONCE: Final = bytes(12)
"""A key seals one ticket and nothing else."""


class _Side:
    """What both sides have in common: frames in and out, and what ends an exchange."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._outgoing = bytearray()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be sent or expected."""
        return self._is_over

    def bytes_to_send(self) -> bytes:
        """Return what is to be sent now."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> list[Event]:
        """Take in what has come; empty at the end of the stream.

        After an error, `bytes_to_send` may have a last word for the other side.

        Raises:
            CodeRefused: this code leads to nothing; the error says why.
            WireError, ProtocolViolation, LimitExceeded: the server or the other side breaks the rules.
        """
        if self._is_over:
            return []
        try:
            if not data:
                raise PartnerLeft("the rendezvous server ended before the ticket was handed over")
            events: list[Event] = []
            for frame in self._reader.feed(data):
                self._check_end(frame)
                events += self._on_frame(frame)
            return events
        except Exception:
            self._is_over = True
            raise

    def decline(self) -> WordsDiffer:
        """Somebody says that the words differ: end it, and return the error that says so."""
        self._fail(Failure.WORDS_DIFFER)
        return WordsDiffer(
            "the words differ, so somebody may be between you; nothing was handed over",
            hint="take a new code",
        )

    def _on_frame(self, frame: Frame) -> list[Event]:
        raise NotImplementedError

    def _send(self, frame: Frame) -> None:
        self._outgoing += encode(frame)

    def _fail(self, failure: Failure) -> None:
        self._send(frames.Failed(failure))
        self._is_over = True

    def _check_end(self, frame: Frame) -> None:
        if isinstance(frame, frames.Refused):
            raise _refusal(frame)
        if isinstance(frame, frames.Gone):
            raise PartnerLeft("the other side went away, and the code with it", hint=NEW_CODE)
        if isinstance(frame, frames.Failed):
            if frame.failure is Failure.WRONG_CODE:
                raise _wrong_code()
            if frame.failure is Failure.WORDS_DIFFER:
                raise CodeRefused("somebody on the other side says that the words differ")
            raise PartnerLeft("the other side could not go on, and the code is burnt")

    def _agree(self, side: SPAKE2_A | SPAKE2_B, mark: bytes, message: bytes) -> bytes:
        try:
            key: bytes = side.finish(mark + message)
        except (SPAKEError, ValueError, AssertionError) as error:
            # The library checks what strangers send with assertions, too.
            self._fail(Failure.BROKEN)
            raise ProtocolViolation("the other side sent a number that SPAKE2 forbids") from error
        return key


NEW_CODE: Final = "ask for a new code"


class Offering(_Side):
    """Offer a ticket by a code.

    Args:
        words: of the code, chosen by `choose_words`.
        lifetime_s: how long the code should wait.
        compares: whether somebody compares words before the ticket is handed over.
        entropy: gives bytes that nobody can guess, as `os.urandom`.
    """

    def __init__(
        self, words: tuple[str, ...], *, lifetime_s: int, compares: bool, entropy: Entropy
    ) -> None:
        super().__init__()
        self._words = words
        self._compares = compares
        self._entropy = entropy
        self._state = "asking"
        self._code: Code
        self._spake: SPAKE2_A
        self._key = b""
        self._keys: _Keys
        self._send(frames.Offer(lifetime_s))

    def give(self, ticket: str) -> None:
        """Hand the ticket over, after `Agreed`."""
        if self._state != "agreed":
            raise RuntimeError(f"no ticket is handed over in state {self._state!r}")
        self._state = "given"
        self._send(frames.SealedTicket(self._keys.seal.encrypt(NONCE, ticket.encode(), OFFERER)))

    def _on_frame(self, frame: Frame) -> list[Event]:
        match self._state, frame:
            case "asking", frames.Allocated(nameplate, lifetime_s):
                self._state = "waiting"
                self._code = Code(nameplate, self._words)
                return [Named(self._code, lifetime_s)]
            case "waiting", frames.Claimed(message):
                self._state = "claimed"
                self._spake = SPAKE2_A(
                    str(self._code).encode(), OFFERER, TAKER, entropy_f=self._entropy
                )
                answer = self._spake.start()[1:]
                self._key = self._agree(self._spake, b"B", message)
                self._send(frames.Answer(self._compares, answer))
                return []
            case "claimed", frames.TakerConfirms(other_compares, mac):
                self._keys = _Keys(
                    self._key, offerer_compares=self._compares, taker_compares=other_compares
                )
                if not hmac.compare_digest(mac, self._keys.taker_confirms):
                    self._fail(Failure.WRONG_CODE)
                    raise WrongCode(
                        f"somebody used the number {self._code.nameplate} with wrong words,"
                        " and the code is burnt"
                    )
                self._state = "agreed"
                self._send(frames.OffererConfirms(self._keys.offerer_confirms))
                return [Agreed(self._keys.words, other_compares)]
            case "given", frames.Taken(mac):
                if not hmac.compare_digest(mac, self._keys.taken):
                    raise ProtocolViolation("the proof that the ticket has come is wrong")
                self._state = "delivered"
                self._is_over = True
                return [Delivered()]
        raise _unexpected(frame, self._state)


class Taking(_Side):
    """Take the ticket to which a code leads.

    Args:
        code: as somebody told it.
        compares: whether somebody compares words before the ticket is used.
        entropy: gives bytes that nobody can guess, as `os.urandom`.
    """

    def __init__(self, code: Code, *, compares: bool, entropy: Entropy) -> None:
        super().__init__()
        self._compares = compares
        self._state = "claiming"
        self._spake = SPAKE2_B(str(code).encode(), OFFERER, TAKER, entropy_f=entropy)
        self._other_compares = False
        self._keys: _Keys
        self._send(frames.Claim(code.nameplate, self._spake.start()[1:]))

    def _on_frame(self, frame: Frame) -> list[Event]:
        match self._state, frame:
            case "claiming", frames.Answer(other_compares, message):
                key = self._agree(self._spake, b"A", message)
                self._other_compares = other_compares
                self._keys = _Keys(
                    key, offerer_compares=other_compares, taker_compares=self._compares
                )
                self._state = "confirming"
                self._send(frames.TakerConfirms(self._compares, self._keys.taker_confirms))
                return []
            case "confirming", frames.OffererConfirms(mac):
                if not hmac.compare_digest(mac, self._keys.offerer_confirms):
                    self._fail(Failure.WRONG_CODE)
                    raise _wrong_code()
                self._state = "agreed"
                return [Agreed(self._keys.words, self._other_compares)]
            case "agreed", frames.SealedTicket(data):
                self._state = "taken"
                return [TicketCame(self._open(data))]
        raise _unexpected(frame, self._state)

    def confirm(self) -> None:
        """Say that the ticket has come, after `TicketCame`."""
        if self._state != "taken":
            raise RuntimeError(f"no ticket has come in state {self._state!r}")
        self._send(frames.Taken(self._keys.taken))
        self._is_over = True

    def _open(self, data: bytes) -> str:
        try:
            text = self._keys.seal.decrypt(NONCE, data, OFFERER).decode("ascii")
        except InvalidTag:
            self._fail(Failure.BROKEN)
            raise ProtocolViolation("the ticket was changed on its way") from None
        except UnicodeDecodeError:
            self._fail(Failure.BROKEN)
            raise InvalidTicket("what the other side handed over is not a ticket") from None
        if len(text) > MAX_TICKET_CHARS:
            self._fail(Failure.BROKEN)
            raise InvalidTicket("what the other side handed over is too long for a ticket")
        return text


def _unexpected(frame: Frame, state: str) -> ProtocolViolation:
    return ProtocolViolation(f"a frame {type(frame).__name__} came in state {state!r}")


def _wrong_code() -> WrongCode:
    return WrongCode(
        "the words are wrong, and a code may be tried only once: it is burnt", hint=NEW_CODE
    )


def _refusal(frame: frames.Refused) -> CodeRefused:
    match frame.reason:
        case Reason.UNKNOWN:
            return UnknownCode(
                "nobody offers anything under this number",
                hint="see that the number is right, and that both sides use the same server",
            )
        case Reason.EXPIRED:
            return ExpiredCode("the code has expired", hint=NEW_CODE)
        case Reason.WITHDRAWN:
            return ExpiredCode("the other side has ended, and its code with it", hint=NEW_CODE)
        case Reason.USED:
            return UsedCode("somebody has used this code already; it is good once", hint=NEW_CODE)
        case Reason.BURNT:
            return UsedCode(
                "somebody has tried this code with wrong words, so it is burnt", hint=NEW_CODE
            )
        case Reason.BUSY:
            return RendezvousBusy(
                "the rendezvous server has no room for another code",
                wait_s=frame.wait_s,
                hint="try again later, or give the ticket itself",
            )
        case Reason.TOO_OFTEN:
            return RendezvousBusy(
                "the rendezvous server was asked too often from here",
                wait_s=frame.wait_s,
                hint=f"try again in {frame.wait_s} s" if frame.wait_s else "try again later",
            )
