"""The BLAKE3 compression function for many blocks at once, with NumPy.

A *lane* is one chunk or one parent. Lanes are independent: each has its own counter, so one batch
may hold chunks of many blobs. In every array the lane is the fast axis, and a row is one of the
sixteen words of state or message, so each NumPy call does one step of four quarter-rounds for all
lanes. A compression costs some 330 calls, about 0.1 ms however few the lanes; from about a thousand
lanes on the arithmetic dominates.

Three measures halve the time of the obvious version: the views that the calls work on are made once
and kept; shift distances are zero-dimensional arrays, which NumPy need not convert; and instead of
re-ordering all state between columns and diagonals, rows are copied past the end of buffers that
have room for them, and the views shifted.

Source: docs/wire/blobs.md 4.2, 4.4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from dialkey_blobs.compress import (
    BLOCK_BYTES,
    CHUNK_END,
    CHUNK_START,
    CHUNK_WORDS,
    INITIAL_WORDS,
    PARENT,
    ROOT,
    SCHEDULE,
)

__all__ = ["Words", "Workspace", "workspace"]

Words = npt.NDArray[np.uint32]
_Step = tuple[Callable[[Words, Words, Words], Words], Words, Words, Words]

_TRANSPOSE_TILE: Final = 256

_INITIAL: Final = np.array(INITIAL_WORDS, np.uint32)[:, np.newaxis]
_SHIFTS: Final = {distance: np.array(distance, np.uint32) for distance in range(32)}

# A round's sixteen words, reordered so that the two words of the four columns, then of the four
# diagonals, lie in four runs of four rows.
_GATHERS: Final = [
    np.array([order[i] for i in (0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)], np.intp)
    for order in SCHEDULE
]


def _rotate_right(row: Words, distance: int, scratch: Words) -> list[_Step]:
    return [
        (np.right_shift, row, _SHIFTS[distance], scratch),
        (np.left_shift, row, _SHIFTS[32 - distance], row),
        (np.bitwise_or, row, scratch, row),
    ]


def _quarter_rounds(
    a: Words, b: Words, c: Words, d: Words, x: Words, y: Words, scratch: Words
) -> list[_Step]:
    steps: list[_Step] = []
    for message, right_d, right_b in ((x, 16, 12), (y, 8, 7)):
        steps += [(np.add, a, b, a), (np.add, a, message, a), (np.bitwise_xor, d, a, d)]
        steps += _rotate_right(d, right_d, scratch)
        steps += [(np.add, c, d, c), (np.bitwise_xor, b, c, b)]
        steps += _rotate_right(b, right_b, scratch)
    return steps


class _Program:
    """The views and calls for one number of lanes, over memory that all numbers share."""

    def __init__(self, memory: Words, lanes: int) -> None:
        rows = memory[: 48 * lanes].reshape(48, lanes)
        self.cv = rows[0:8]
        self.a = rows[8:12]
        b, c, d = rows[12:17], rows[17:23], rows[23:28]
        self.b, self.c, self.d = b[0:4], c[0:4], d[1:5]
        self.message = rows[28:44]
        scratch = rows[44:48].reshape(-1)

        def flat(view: Words) -> Words:
            return view.reshape(-1)

        x0, y0, x1, y1 = (flat(self.message[i : i + 4]) for i in (0, 4, 8, 12))
        a = flat(self.a)
        self.columns = _quarter_rounds(a, flat(b[0:4]), flat(c[0:4]), flat(d[1:5]), x0, y0, scratch)
        self.diagonals = _quarter_rounds(
            a, flat(b[1:5]), flat(c[2:6]), flat(d[0:4]), x1, y1, scratch
        )
        # (to, from): the rows that wrap around when columns turn into diagonals, and back.
        moves = [(b[4], b[0]), (flat(c[4:6]), flat(c[0:2])), (d[0], d[4])]
        self.turn = moves
        self.turn_back = [(source, target) for target, source in moves]

    def compress(
        self,
        words: Words,
        counter_low: Words | int,
        counter_high: Words | int,
        length: Words | int,
        flags: Words | int,
    ) -> None:
        """Replace `self.cv` with the chaining values after one more block of each lane."""
        d = self.d
        self.a[:] = self.cv[0:4]
        self.b[:] = self.cv[4:8]
        self.c[:] = _INITIAL[0:4]
        d[0], d[1], d[2], d[3] = counter_low, counter_high, length, flags
        copy, take, message = np.copyto, words.take, self.message
        columns, diagonals, turn, turn_back = (
            self.columns,
            self.diagonals,
            self.turn,
            self.turn_back,
        )
        for gather in _GATHERS:
            take(gather, 0, message, "clip")
            for function, left, right, out in columns:
                function(left, right, out)
            for target, source in turn:
                copy(target, source)
            for function, left, right, out in diagonals:
                function(left, right, out)
            for target, source in turn_back:
                copy(target, source)
        np.bitwise_xor(self.a, self.c, self.cv[0:4])
        np.bitwise_xor(self.b, d, self.cv[4:8])


class Workspace:
    """Memory and calls for batches of up to `MAX_LANES` lanes.

    It grows to about 5 MB with the first full batch and is not safe for concurrent use:
    `workspace` hands out one for each thread.
    """

    def __init__(self) -> None:
        self._state: Words = np.empty(0, np.uint32)
        self._words: Words = np.empty(0, np.uint32)
        self._programs: dict[int, _Program] = {}

    def _program(self, lanes: int) -> _Program:
        if self._state.size < 48 * lanes:
            self._programs.clear()
            self._state = np.empty(48 * lanes, np.uint32)
        program = self._programs.get(lanes)
        if program is None:
            if len(self._programs) >= 16:
                self._programs.pop(next(iter(self._programs)))
            program = self._programs[lanes] = _Program(self._state, lanes)
        return program

    def message(self, lanes: int) -> Words:
        """Return memory for the words of `lanes` chunks, 256 rows; valid until the next call."""
        if self._words.size < CHUNK_WORDS * lanes:
            self._words = np.empty(CHUNK_WORDS * lanes, np.uint32)
        return self._words[: CHUNK_WORDS * lanes].reshape(CHUNK_WORDS, lanes)

    @staticmethod
    def transpose(chunks: Words, out: Words) -> None:
        """Copy whole chunks, one per row, to columns of `out`."""
        # A strip of columns at a time stays in the cache; the plain assignment takes 1.7 times as
        # long.
        for start in range(0, len(chunks), _TRANSPOSE_TILE):
            stop = start + _TRANSPOSE_TILE
            out[:, start:stop] = chunks[start:stop].T

    def chunks(
        self,
        words: Words,
        counters: npt.NDArray[np.uint64],
        lengths: npt.NDArray[np.int64] | None = None,
    ) -> Words:
        """Return the non-root chaining values of chunks.

        Args:
            words: message words, 256 rows of lanes, zero beyond a chunk's end.
            counters: each lane's chunk number in its blob.
            lengths: each lane's bytes, 0 to 1024; without it all lanes are whole chunks.

        Returns:
            8 rows of lanes; valid until the next call.
        """
        program = self._program(words.shape[1])
        low = (counters & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        high = (counters >> np.uint64(32)).astype(np.uint32)
        cv = program.cv
        cv[:] = _INITIAL
        if lengths is None:
            for block in range(16):
                flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if block == 15 else 0)
                program.compress(words[16 * block : 16 * block + 16], low, high, BLOCK_BYTES, flags)
            return cv
        last_blocks = np.maximum(lengths - 1, 0) // BLOCK_BYTES
        result = np.empty_like(cv)
        for block in range(int(last_blocks.max()) + 1):
            ends = last_blocks == block
            start = CHUNK_START if block == 0 else 0
            lane_flags = np.where(ends, np.uint32(start | CHUNK_END), np.uint32(start))
            sizes = np.clip(lengths - block * BLOCK_BYTES, 0, BLOCK_BYTES).astype(np.uint32)
            program.compress(words[16 * block : 16 * block + 16], low, high, sizes, lane_flags)
            # Lanes that ended earlier go on with garbage; their values were taken when they ended.
            np.copyto(result, cv, where=ends)
        return result

    def parents(self, words: Words, is_root: npt.NDArray[np.bool_] | None = None) -> Words:
        """Return the chaining values of parents.

        Args:
            words: the children's chaining values, 8 rows for the left and 8 for the right.
            is_root: which lanes are the root of their blob; without it none.

        Returns:
            8 rows of lanes; valid until the next call.
        """
        program = self._program(words.shape[1])
        program.cv[:] = _INITIAL
        flags: Words | int = PARENT
        if is_root is not None:
            flags = np.where(is_root, np.uint32(PARENT | ROOT), np.uint32(PARENT))
        program.compress(words, 0, 0, BLOCK_BYTES, flags)
        return program.cv


_per_thread = threading.local()


def workspace() -> Workspace:
    """Return this thread's workspace."""
    space: Workspace | None = getattr(_per_thread, "workspace", None)
    if space is None:
        space = _per_thread.workspace = Workspace()
    return space
