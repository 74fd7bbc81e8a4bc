"""A bounded queue in front of one slow client, fair among those who write to it.

Every sender has a line of its own. Lines are served in turn, some 16 KiB each (surplus round robin:
who overshoots waits longer). When the queue is full, the *oldest* frame of the *longest* line is
dropped: a flood displaces itself, the others pass, and what is delivered is recent. Every drop is
the caller's to count.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from dialkey.limits import MAX_RELAY_QUEUE_BYTES, MAX_RELAY_QUEUE_FRAMES

__all__ = ["FairQueue"]

QUANTUM_BYTES: Final = 16_384
"""One batch of ten full datagrams; smaller turns would only change the line more often."""

Frame = tuple[bytes, bytes, int, int]
"""A header to send first, a message, where in that message the rest begins, and a size."""


class _Line:
    __slots__ = ("credit", "frames", "size")

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self.size = 0
        self.credit = QUANTUM_BYTES


class FairQueue:
    """Frames for one receiver, in one line for each sender.

    Args:
        max_frames: frames in all lines together.
        max_bytes: bytes in all lines together.

    Attributes:
        frames: the number of frames that wait.
        size: the sum of the sizes of the frames that wait.
    """

    __slots__ = ("_lines", "_max_bytes", "_max_frames", "frames", "size")

    def __init__(
        self,
        max_frames: int = MAX_RELAY_QUEUE_FRAMES,
        max_bytes: int = MAX_RELAY_QUEUE_BYTES,
    ) -> None:
        # In order: the first line is the one being served.
        self._lines: dict[bytes, _Line] = {}
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self.frames = 0
        self.size = 0

    def __bool__(self) -> bool:
        return self.frames > 0

    def push(self, sender: bytes, header: bytes, message: bytes, start: int, size: int) -> int:
        """Add a frame: `header`, then `message` from `start` on.

        Args:
            size: what it counts for; its content, say.

        Returns:
            How many frames were dropped to make room.
        """
        line = self._lines.get(sender)
        if line is None:
            line = self._lines[sender] = _Line()
        line.frames.append((header, message, start, size))
        line.size += size
        self.frames += 1
        self.size += size
        dropped = 0
        while self.frames > self._max_frames or self.size > self._max_bytes:
            self._drop(sender, line)
            dropped += 1
        return dropped

    def _drop(self, sender: bytes, line: _Line) -> None:
        # Who holds more than an equal share pays itself; that spares the search for the longest
        # line whenever one sender floods.
        if line.size * len(self._lines) <= self.size:
            sender, line = max(self._lines.items(), key=lambda item: item[1].size)
        size = line.frames.popleft()[3]
        line.size -= size
        self.frames -= 1
        self.size -= size
        if not line.frames:
            del self._lines[sender]

    def pop(self, budget: int, out: list[bytes | memoryview]) -> int:
        """Move frames to `out` until their sizes reach `budget`, or all are out.

        Returns:
            The number of frames moved.
        """
        moved = 0
        taken = 0
        lines = self._lines
        while lines and taken < budget:
            sender, line = next(iter(lines.items()))
            frames = line.frames
            while frames and line.credit > 0 and taken < budget:
                header, message, start, size = frames.popleft()
                out.append(header)
                out.append(memoryview(message)[start:])
                line.credit -= size
                line.size -= size
                taken += size
                moved += 1
            if not frames:
                del lines[sender]
            elif line.credit <= 0:
                line.credit += QUANTUM_BYTES
                # To the end of the line.
                del lines[sender]
                lines[sender] = line
        self.size -= taken
        self.frames -= moved
        return moved

    def clear(self) -> int:
        """Drop everything; return how many frames that was."""
        dropped = self.frames
        self._lines.clear()
        self.frames = 0
        self.size = 0
        return dropped
