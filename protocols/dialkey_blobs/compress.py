"""The BLAKE3 compression function for one block at a time, in plain Python.

NumPy needs about three hundred calls for a compression, however few lanes take part; for up to three
blocks, plain integers are faster. The seven rounds are written out once, at import, as the source of
one function without loops, look-ups or calls: that is four times faster than loops over lists.

Source: docs/wire/blobs.md 4.1 to 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, cast

__all__ = [
    "BLOCK_BYTES",
    "CHUNK_END",
    "CHUNK_START",
    "CHUNK_WORDS",
    "INITIAL_WORDS",
    "MAX_LANES",
    "PARENT",
    "ROOT",
    "SCHEDULE",
    "chunk_cv",
    "parent_cv",
]

BLOCK_BYTES: Final = 64

CHUNK_WORDS: Final = 256

MAX_LANES: Final = 4096
"""Lanes of one batch in `lanes`: 4 MiB of chunks, whose state (650 KiB) still fits in a core's cache."""


CHUNK_START: Final = 1
CHUNK_END: Final = 2
PARENT: Final = 4
ROOT: Final = 8

INITIAL_WORDS: Final = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
_PERMUTATION: Final = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)

# Which state words the eight quarter-rounds of a round work on: columns, then diagonals.
_COLUMNS: Final = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS: Final = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _schedule() -> Iterator[tuple[int, ...]]:
    order = tuple(range(16))
    for _ in range(7):
        yield order
        order = tuple(order[source] for source in _PERMUTATION)


SCHEDULE: Final = tuple(_schedule())
"""For each of the seven rounds, the message words in the order in which the round takes them."""

_Compress = Callable[[tuple[int, ...], tuple[int, ...], int, int, int], tuple[int, ...]]


def _write_compress() -> _Compress:
    state = [f"v{number}" for number in range(16)]
    message = [f"m{number}" for number in range(16)]
    lines = [
        "def compress(cv, words, counter, length, flags):",
        f" {', '.join(state[:8])} = cv",
        f" {', '.join(message)} = words",
        f" {', '.join(state[8:12])} = {', '.join(str(word) for word in INITIAL_WORDS[:4])}",
        " v12, v13, v14, v15 = counter & 4294967295, counter >> 32, length, flags",
    ]
    for order in SCHEDULE:
        sources = iter(order)
        for a, b, c, d in _COLUMNS + _DIAGONALS:
            for right_d, right_b in ((16, 12), (8, 7)):
                lines += [
                    f" v{a} = (v{a} + v{b} + m{next(sources)}) & 4294967295",
                    f" v{d} ^= v{a}",
                    f" v{d} = v{d} >> {right_d} | v{d} << {32 - right_d} & 4294967295",
                    f" v{c} = (v{c} + v{d}) & 4294967295",
                    f" v{b} ^= v{c}",
                    f" v{b} = v{b} >> {right_b} | v{b} << {32 - right_b} & 4294967295",
                ]
    lines.append(f" return {', '.join(f'v{i} ^ v{i + 8}' for i in range(8))}")
    namespace: dict[str, object] = {}
    exec("\n".join(lines), namespace)
    return cast("_Compress", namespace["compress"])


_compress: Final = _write_compress()
_BLOCK: Final = struct.Struct("<16I")
_CV: Final = struct.Struct("<8I")


def chunk_cv(chunk: bytes | bytearray | memoryview, counter: int) -> bytes:
    """Return the non-root chaining value of one chunk.

    Args:
        chunk: at most 1024 bytes.
        counter: the chunk's number in its blob.
    """
    data = bytes(chunk)
    block_count = max(1, -(-len(data) // BLOCK_BYTES))
    padded = data.ljust(block_count * BLOCK_BYTES, b"\0")
    cv: tuple[int, ...] = INITIAL_WORDS
    for block in range(block_count):
        start = block * BLOCK_BYTES
        flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if block == block_count - 1 else 0)
        length = min(BLOCK_BYTES, len(data) - start)
        cv = _compress(cv, _BLOCK.unpack_from(padded, start), counter, length, flags)
    return _CV.pack(*cv)


def parent_cv(pair: bytes | bytearray | memoryview, is_root: bool = False) -> bytes:
    """Return the chaining value of a parent; for the root of a blob that is its hash.

    Args:
        pair: the chaining values of the left and the right child, 64 bytes.
        is_root: whether this is the root of the whole blob.
    """
    flags = PARENT | ROOT if is_root else PARENT
    return _CV.pack(*_compress(INITIAL_WORDS, _BLOCK.unpack(pair), 0, BLOCK_BYTES, flags))
