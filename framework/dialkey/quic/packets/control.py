"""Frames on their way into packets: those that wait, the payload that they go into, and their owners.

A frame that may have to be sent again is a tuple: its owner, its type, and what is needed to write it.
The owner writes it with current values when the packet is built, and learns whether it arrived.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from dialkey.quic import codes
from dialkey.quic.codes import TransportError
from dialkey.quic.paths.recovery import Frame

MAX_OWED_FRAMES: Final = 1000
"""Frames that answer the peer's and wait to be sent. An honest peer causes some 60 at the start."""

_OWED_FRAMES: Final = frozenset(
    {
        codes.NEW_CONNECTION_ID,
        codes.RETIRE_CONNECTION_ID,
        codes.PATH_ABANDON,
        codes.MAX_PATH_ID,
    }
)


class FrameOwner(Protocol):
    """The component that a frame belongs to."""

    def encode(self, frame: Frame) -> bytes | None:
        """Write a frame with current values; None if it is no longer needed."""

    def on_frame_acked(self, frame: Frame) -> None:
        """Note that a frame arrived."""

    def on_frame_lost(self, frame: Frame) -> None:
        """Note that a frame was lost; what still matters is sent again."""


class Payload:
    """What goes into one packet.

    Attributes:
        parts: the bytes so far.
        frames: the frames whose owners learn whether they arrived.
        used, budget: bytes so far, and at most.
    """

    __slots__ = ("budget", "frames", "parts", "used")

    def __init__(self, budget: int) -> None:
        self.parts: list[bytes] = []
        self.frames: list[Frame] = []
        self.used = 0
        self.budget = budget

    @property
    def room(self) -> int:
        return self.budget - self.used

    def append(self, data: bytes) -> None:
        """Add bytes that nobody needs to track, whether there is room or not."""
        self.parts.append(data)
        self.used += len(data)

    def add(self, data: bytes, frame: Frame) -> bool:
        """Add a frame, if there is room for it."""
        if self.used + len(data) > self.budget:
            return False
        self.parts.append(data)
        self.used += len(data)
        self.frames.append(frame)
        return True


class ControlFrames:
    """Frames that wait to be sent, whatever they are about, in the order in which they were queued."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, frame: Frame) -> None:
        """Queue a frame."""
        self._frames.append(frame)

    def owe(self, frame: Frame) -> None:
        """Queue a frame that the peer made us send.

        Raises:
            TransportError: it causes many frames, and never lets us send them.
        """
        frames = self._frames
        frames.append(frame)
        if len(frames) > MAX_OWED_FRAMES:
            owed = sum(1 for each in frames if each[1] in _OWED_FRAMES)
            if owed > MAX_OWED_FRAMES:
                raise TransportError(codes.PROTOCOL_VIOLATION, "too many frames are owed")

    def clear(self) -> None:
        """Forget all of them."""
        self._frames.clear()

    def write(self, payload: Payload) -> None:
        """Put as many as fit into a packet."""
        frames = self._frames
        while frames:
            frame = frames[0]
            data = frame[0].encode(frame)
            if data is not None and not payload.add(data, frame):
                break
            frames.popleft()
