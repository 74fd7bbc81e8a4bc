"""Which packet numbers of one packet-number space have arrived: for duplicates and for ACK frames."""

from __future__ import annotations

from dialkey.quic.packets.frames import MAX_ACK_RANGES

_WINDOW = 2 * MAX_ACK_RANGES
_MASK = (1 << _WINDOW) - 1


class ReceivedPackets:
    """Received packet numbers as a run of ranges, with a bit mask over the newest 128.

    A number further back than the mask counts as a duplicate: it may have been acknowledged and
    forgotten (RFC 9000 section 13.2.3).
    """

    __slots__ = ("_bits", "_ranges", "largest")

    def __init__(self) -> None:
        self.largest = -1
        self._bits = 0
        # Oldest first, each [first, one past the last].
        self._ranges: list[list[int]] = []

    def __contains__(self, number: int) -> bool:
        back = self.largest - number
        return back >= _WINDOW or (back >= 0 and bool(self._bits >> back & 1))

    def add(self, number: int) -> None:
        """Record one packet number that is not yet contained."""
        if number > self.largest:
            step = number - self.largest
            self._bits = ((self._bits << step) | 1) & _MASK if step < _WINDOW else 1
            self.largest = number
            ranges = self._ranges
            if ranges and ranges[-1][1] == number:
                ranges[-1][1] = number + 1
            else:
                ranges.append([number, number + 1])
                if len(ranges) > MAX_ACK_RANGES:
                    del ranges[0]
        else:
            self._bits |= 1 << (self.largest - number)
            self._insert(number)

    def add_run(self, number: int, stop: int) -> None:
        """Record the numbers from `number` to below `stop`, all of them beyond the largest one."""
        step = stop - 1 - self.largest
        run = (1 << (stop - number)) - 1
        self._bits = ((self._bits << step if step < _WINDOW else 0) | run) & _MASK
        self.largest = stop - 1
        ranges = self._ranges
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] = stop
        else:
            ranges.append([number, stop])
            if len(ranges) > MAX_ACK_RANGES:
                del ranges[0]

    def _insert(self, number: int) -> None:
        ranges = self._ranges
        index = len(ranges)
        while index > 0 and ranges[index - 1][0] > number:
            index -= 1
        before = ranges[index - 1] if index else None
        after = ranges[index] if index < len(ranges) else None
        joins_before = before is not None and before[1] == number
        joins_after = after is not None and after[0] == number + 1
        if before is not None and before[1] > number:
            return
        if joins_before and joins_after:
            assert before is not None
            assert after is not None
            before[1] = after[1]
            del ranges[index]
        elif joins_before:
            assert before is not None
            before[1] = number + 1
        elif joins_after:
            assert after is not None
            after[0] = number
        elif before is not None or len(ranges) < MAX_ACK_RANGES:
            ranges.insert(index, [number, number + 1])
            if len(ranges) > MAX_ACK_RANGES:
                del ranges[0]

    def ranges(self) -> list[tuple[int, int]]:
        """Return (first, one past the last) pairs, newest first."""
        return [(low, high) for low, high in reversed(self._ranges)]

    @property
    def has_gaps(self) -> bool:
        """Whether more than one range is held."""
        return len(self._ranges) > 1

    def forget_below(self, number: int) -> None:
        """Drop ranges that end below `number`: the peer knows that they arrived."""
        ranges = self._ranges
        while len(ranges) > 1 and ranges[0][1] <= number:
            del ranges[0]
