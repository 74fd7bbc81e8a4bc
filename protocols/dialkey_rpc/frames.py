"""Frames: how messages are laid out on a stream. Sans-IO. Source: docs/rpc-wire.md, "Frames".

A frame is a head of eight bytes, a table with the lengths of its parts, an envelope of msgpack, and
the parts: byte strings too large to be copied into the envelope, which refers to them by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

import attrs

from dialkey_rpc import limits
from dialkey_rpc.budget import Account
from dialkey_rpc.errors import CannotSend, MalformedMessage, MessageTooLarge

__all__ = [
    "CALL",
    "ERROR",
    "ITEM",
    "RESULT",
    "Frame",
    "FrameReader",
    "RpcLimits",
    "StopCode",
    "join_head",
    "whole_frame",
]

CALL: Final = 1
ITEM: Final = 2
RESULT: Final = 3
ERROR: Final = 4
FIRST_IGNORED_KIND: Final = 128
"""Kinds from here on are for extensions: a reader that does not know one skips the frame."""

HEAD: Final = Struct(">BBHI")
HEAD_BYTES: Final = HEAD.size
MAX_U16: Final = 0xFFFF
MAX_U32: Final = 0xFFFF_FFFF

READ_BYTES: Final = 65_536
MAX_READ_BYTES: Final = 1 << 20

UNBUDGETED_BYTES: Final = 65_536
"""The bytes of smaller messages are not counted: a hundred streams of them are less than a connection's
window."""

SMALL_PIECE_BYTES: Final = 1024
"""Smaller pieces are joined while they wait: a message that trickles in byte by byte must not cost
an object for each."""


class StopCode:
    """The numbers in RESET_STREAM and STOP_SENDING. Source: docs/rpc-wire.md, "Ending a call"."""

    DONE: Final = 0
    CANCELLED: Final = 1
    DEADLINE: Final = 2
    MALFORMED: Final = 3
    LIMIT: Final = 4
    UNAVAILABLE: Final = 5


@attrs.frozen
class RpcLimits:
    """What a peer may make us hold.

    Attributes:
        envelope_bytes: msgpack of one message.
        message_bytes: one message with its parts.
        buffered_bytes: messages in memory at once, from one endpoint: the bytes of those above 64 KiB,
            as far as they have come, and the values that envelopes above 1 KiB unfold to.
        total_buffered_bytes: the same for all callers of a service. When it is reached, the endpoint
            with most gives way: one of its calls ends with `ResourceExhausted`.
        parts: byte strings that belong to one envelope.
        depth: containers within containers.
    """

    envelope_bytes: int = limits.MAX_RPC_ENVELOPE_BYTES
    message_bytes: int = limits.MAX_RPC_MESSAGE_BYTES
    buffered_bytes: int = limits.MAX_RPC_BUFFERED_BYTES
    total_buffered_bytes: int = limits.MAX_RPC_TOTAL_BUFFERED_BYTES
    parts: int = limits.MAX_RPC_PARTS
    depth: int = limits.MAX_RPC_DEPTH


@attrs.frozen
class Frame:
    """One message as it arrived.

    Attributes:
        kind: `CALL`, `ITEM`, `RESULT` or `ERROR`.
        envelope: msgpack.
        parts: the byte strings that it refers to.
    """

    kind: int
    envelope: bytes
    parts: Sequence[bytes] = ()


def join_head(kind: int, envelope: bytes, parts: Sequence[bytes] = ()) -> bytes:
    """Return the beginning of a frame, to which `parts` are to be written one after another.

    Raises:
        CannotSend: it is larger than a frame can be.
    """
    if not parts:
        if len(envelope) > MAX_U32:
            raise CannotSend("a message of more than 4 GiB")
        return HEAD.pack(kind, 0, 0, len(envelope)) + envelope
    if len(parts) > MAX_U16:
        raise CannotSend(f"{len(parts)} large byte strings in one message; {MAX_U16} fit")
    try:
        table = Struct(f">{len(parts)}I").pack(*map(len, parts))
    except OverflowError:
        raise CannotSend("a byte string of more than 4 GiB") from None
    return b"".join((HEAD.pack(kind, 0, len(parts), len(envelope)), table, envelope))


def whole_frame(data: bytes, limits: RpcLimits) -> Frame | None:
    """Return the frame that `data` is, if it is exactly one without parts.

    A short cut for short messages, which arrive in one piece; `FrameReader` takes all others.
    """
    if len(data) < HEAD_BYTES:
        return None
    kind, reserved, part_count, envelope_bytes = HEAD.unpack_from(data)
    if (
        reserved
        or part_count
        or len(data) != HEAD_BYTES + envelope_bytes
        or envelope_bytes > limits.envelope_bytes
        or envelope_bytes > UNBUDGETED_BYTES
        or not CALL <= kind <= ERROR
    ):
        return None
    return Frame(kind, data[HEAD_BYTES:])


class FrameReader:
    """Cut the bytes of a stream into frames.

    Takes linear time and holds at most one unfinished frame. A part that arrives in one piece is
    handed on as that piece; one that arrives in several is joined, once.

    Args:
        limits: beyond them a frame is refused when its head has arrived, before its body does.
        account: charged for the bytes of large frames, as they come.
    """

    __slots__ = (
        "_account",
        "_charged",
        "_envelope",
        "_envelope_bytes",
        "_have",
        "_is_large",
        "_kind",
        "_lengths",
        "_limits",
        "_part_count",
        "_parts",
        "_pieces",
        "_small",
        "_stage",
        "_want",
    )

    def __init__(self, limits: RpcLimits, account: Account | None = None) -> None:
        self._limits = limits
        self._account = account
        self._is_large = False
        self._charged = 0
        self._pieces: list[bytes] = []
        self._small = bytearray()
        self._have = 0
        self._want = HEAD_BYTES
        self._stage = self._on_head
        self._kind = 0
        self._part_count = 0
        self._envelope_bytes = 0
        self._envelope = b""
        self._lengths: Sequence[int] = ()
        self._parts: list[bytes] = []

    @property
    def read_bytes(self) -> int:
        """How much to read next, so that large parts come in few pieces."""
        return min(max(self._want - self._have, READ_BYTES), MAX_READ_BYTES)

    @property
    def is_between_frames(self) -> bool:
        """Whether no part of an unfinished frame is held."""
        return self._want == HEAD_BYTES and not self._have and self._stage == self._on_head

    def feed(self, data: bytes) -> list[Frame]:
        """Take in what arrived; return the frames that it completes.

        Raises:
            MalformedMessage: it is not a frame.
            MessageTooLarge: a frame is over the limits. The reader is of no use after either.
        """
        frames: list[Frame] = []
        at = 0
        size = len(data)
        while True:
            if self._have + size - at < self._want:
                if at < size:
                    piece = data[at:] if at else data
                    if self._is_large:
                        self._charge(len(piece))
                    self._hold(piece)
                return frames
            end = at + self._want - self._have
            piece = data[at:end]
            at = end
            if self._is_large:
                self._charge(len(piece))
            if self._have:
                self._hold(piece)
                piece = b"".join((*self._pieces, self._small))
                self._pieces.clear()
                self._small.clear()
            self._have = 0
            frame = self._stage(piece)
            if frame is not None and frame.kind < FIRST_IGNORED_KIND:
                frames.append(frame)

    def _hold(self, piece: bytes) -> None:
        self._have += len(piece)
        if len(piece) < SMALL_PIECE_BYTES:
            self._small += piece
            if len(self._small) < SMALL_PIECE_BYTES:
                return
            piece = b""
        if self._small:
            self._pieces.append(bytes(self._small))
            self._small.clear()
        if piece:
            self._pieces.append(piece)

    def finish(self) -> None:
        """Note the end of the stream.

        Raises:
            MalformedMessage: it cuts a frame in two.
        """
        if not self.is_between_frames:
            raise MalformedMessage("the stream ended within a message")

    # --- stages ---------------------------------------------------------------------------------

    def _on_head(self, piece: bytes) -> Frame | None:
        kind, reserved, part_count, envelope_bytes = HEAD.unpack(piece)
        if reserved or not (CALL <= kind <= ERROR or kind >= FIRST_IGNORED_KIND):
            raise MalformedMessage(f"not the head of a message: {piece.hex()}")
        limits = self._limits
        if envelope_bytes > limits.envelope_bytes:
            raise MessageTooLarge(
                f"a message with an envelope of {envelope_bytes} bytes; "
                f"the limit is {limits.envelope_bytes}",
                hint="stream it, or send large contents as bytes",
            )
        if part_count > limits.parts:
            raise MessageTooLarge(f"a message in {part_count} parts; the limit is {limits.parts}")
        self._kind = kind
        self._envelope_bytes = envelope_bytes
        self._part_count = part_count
        if part_count:
            self._stage = self._on_table
            self._want = 4 * part_count
        else:
            self._expect(envelope_bytes)
            self._stage = self._on_envelope
            self._want = envelope_bytes
        return None

    def _on_table(self, piece: bytes) -> Frame | None:
        self._lengths = Struct(f">{self._part_count}I").unpack(piece)
        total = self._envelope_bytes + sum(self._lengths)
        if total > self._limits.message_bytes:
            raise MessageTooLarge(
                f"a message of {total} bytes; the limit is {self._limits.message_bytes}",
                hint="stream it",
            )
        self._expect(total)
        self._parts = []
        self._stage = self._on_envelope
        self._want = self._envelope_bytes
        return None

    def _expect(self, size: int) -> None:
        self._is_large = size > UNBUDGETED_BYTES and self._account is not None

    def _charge(self, size: int) -> None:
        assert self._account is not None
        self._account.charge(size)
        self._charged += size

    def _on_envelope(self, piece: bytes) -> Frame | None:
        self._envelope = piece
        if self._part_count:
            self._stage = self._on_part
            self._want = self._lengths[0]
            return None
        return self._complete(())

    def _on_part(self, piece: bytes) -> Frame | None:
        parts = self._parts
        parts.append(piece)
        if len(parts) < self._part_count:
            self._want = self._lengths[len(parts)]
            return None
        self._parts = []
        return self._complete(parts)

    def _complete(self, parts: Sequence[bytes]) -> Frame:
        frame = Frame(self._kind, self._envelope, parts)
        self._envelope = b""
        if self._account is not None and self._charged:
            self._account.hand_on(self._charged)
        self._is_large = False
        self._charged = 0
        self._stage = self._on_head
        self._want = HEAD_BYTES
        return frame
