"""Frames: how messages stand on a stream. Sans-IO. Source: docs/rpc-wire.md, "Frames".

A frame is a head of eight bytes, a table with the lengths of its parts, an envelope of msgpack, and
the parts: byte strings too large to be copied into the envelope, which refers to them by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

import attrs

from dialkey import limits
from dialkey_rpc.errors import CannotSend, MalformedMessage, MessageTooLarge

__all__ = [
    "CALL",
    "ERROR",
    "ITEM",
    "RESULT",
    "Budget",
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
"""Kinds from here on are for extensions: who does not know one skips the frame."""

HEAD: Final = Struct(">BBHI")
HEAD_BYTES: Final = HEAD.size
MAX_U16: Final = 0xFFFF
MAX_U32: Final = 0xFFFF_FFFF

READ_BYTES: Final = 65_536
MAX_READ_BYTES: Final = 1 << 20

UNBUDGETED_BYTES: Final = 65_536
"""Smaller messages are not counted: a hundred streams of them are less than a connection's window."""

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
        buffered_bytes: messages above 64 KiB in memory at once, for each connection.
        total_buffered_bytes: the same for all connections of a service.
        parts: byte strings beside one envelope.
        depth: containers within containers.
    """

    envelope_bytes: int = limits.MAX_RPC_ENVELOPE_BYTES
    message_bytes: int = limits.MAX_RPC_MESSAGE_BYTES
    buffered_bytes: int = limits.MAX_RPC_BUFFERED_BYTES
    total_buffered_bytes: int = limits.MAX_RPC_TOTAL_BUFFERED_BYTES
    parts: int = limits.MAX_RPC_PARTS
    depth: int = limits.MAX_RPC_DEPTH


class Budget:
    """What the large messages of one connection may take together.

    Args:
        total: bytes.
        parent: the budget of all connections, of which this one is a part.
    """

    __slots__ = ("left", "parent")

    def __init__(self, total: int, parent: Budget | None = None) -> None:
        self.left = total
        self.parent = parent

    def take(self, size: int) -> None:
        """Set bytes aside.

        Raises:
            MessageTooLarge: there are not enough left.
        """
        if size > self.left:
            raise MessageTooLarge(
                f"a message of {size} bytes does not fit beside those that are under way",
                hint="send fewer large messages at once, or stream them",
            )
        if self.parent is not None:
            self.parent.take(size)
        self.left -= size

    def give(self, size: int) -> None:
        """Put bytes back."""
        self.left += size
        if self.parent is not None:
            self.parent.give(size)


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
        budget: shared by the streams of a connection.
    """

    __slots__ = (
        "_budget",
        "_envelope",
        "_envelope_bytes",
        "_handed_on",
        "_have",
        "_kind",
        "_lengths",
        "_limits",
        "_part_count",
        "_parts",
        "_pieces",
        "_reserved",
        "_small",
        "_stage",
        "_want",
    )

    def __init__(self, limits: RpcLimits, budget: Budget | None = None) -> None:
        self._limits = limits
        self._budget = budget
        # Bytes of the budget: for the frame that arrives, and for those that did.
        self._reserved = 0
        self._handed_on = 0
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
        """Whether nothing of an unfinished frame is held."""
        return self._want == HEAD_BYTES and not self._have and self._stage == self._on_head

    def feed(self, data: bytes) -> list[Frame]:
        """Take in what arrived; return the frames that it completes.

        Raises:
            MalformedMessage: it is no frame.
            MessageTooLarge: a frame is over the limits. The reader is of no use after either.
        """
        frames: list[Frame] = []
        at = 0
        size = len(data)
        while True:
            if self._have + size - at < self._want:
                if at < size:
                    self._hold(data[at:] if at else data)
                return frames
            end = at + self._want - self._have
            piece = data[at:end]
            at = end
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

    def release(self) -> None:
        """Give back what was set aside for the frames that `feed` has returned."""
        if self._handed_on and self._budget is not None:
            self._budget.give(self._handed_on)
            self._handed_on = 0

    def close(self) -> None:
        """Give back everything, also for a frame that is unfinished and will stay so. Idempotent."""
        self._handed_on += self._reserved
        self._reserved = 0
        self.release()

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
            self._reserve(envelope_bytes)
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
        self._reserve(total)
        self._parts = []
        self._stage = self._on_envelope
        self._want = self._envelope_bytes
        return None

    def _reserve(self, size: int) -> None:
        if size > UNBUDGETED_BYTES and self._budget is not None:
            self._budget.take(size)
            self._reserved = size

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
        self._handed_on += self._reserved
        self._reserved = 0
        self._stage = self._on_head
        self._want = HEAD_BYTES
        return frame
