"""Runs: full packets with consecutive numbers that carry consecutive pieces of one stream.

Bulk data goes in runs. What would be paid for each packet is paid once for a run: header protection is
applied and removed by column; numbers, nonces and frame heads are compared and written by column.
`RunKey` is the seam: the native part implements it in one call (`PacketKey` in `native/src/runs.rs`),
`ColumnKey` here in pure Python, and both produce the same bytes. Opening is all or nothing: whatever is
not exactly a run gives None and changes nothing, and single packets are the general case.

Every packet is: first byte, connection id, packet number of two bytes, then sealed one STREAM frame
(type, stream id, offset, perhaps a length, data). Sources: RFC 9000 sections 17.3 and 19.8, RFC 9001
sections 5.3 and 5.4, docs/wire/quic.md 3.4.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from operator import add
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag

from dialkey.native import Bytes, Run
from dialkey.quic import codes
from dialkey.quic.codes import CID_LENGTH, TAG_LENGTH
from dialkey.quic.packets.frames import VARINT_MAX, read_varint

MOST: Final = 64
"""Packets in one run: as many as the kernel joins (GRO)."""
HEADER: Final = 1 + CID_LENGTH + 2
_NUMBER_AT: Final = 1 + CID_LENGTH
_SAMPLE: Final = slice(2, 18)
"""Where the sample starts in the sealed part: four bytes after the start of the packet number."""
_MOST_HEAD: Final = 1 + 8 + 8 + 8
SMALLEST: Final = HEADER + TAG_LENGTH + _MOST_HEAD + 1
"""Packets smaller than this are never part of a run: they would have no room for data."""
_BUFFER: Final = 65_535
_KNOWN_SIZES: Final = 16
"""Sizes of packets for which views are kept; a connection has one or two."""
_FIRST: Final = 0x41
_SPIN: Final = 0x20
_NARROW: Final = 1 << 30
_WIDE: Final = 1 << 62

_RAMP: Final = bytes(range(256)) * 2
_XOR: Final = [bytes([a ^ b for b in range(256)]) for a in range(256)]
_LOW_FIVE: Final = bytes([b & 0x1F for b in range(256)])


Cipher = Callable[[Bytes, Bytes, Bytes, memoryview], int]
"""An AEAD with a key: nonce, text, associated data, and where the result goes."""


class _Columns:
    """Buffers for runs, and views into them that are made once; each thread has its own."""

    def __init__(self) -> None:
        self.buffer = bytearray(_BUFFER)
        self._view = memoryview(self.buffer)
        self._nonces = bytearray(12 * MOST)
        self._aads = bytearray(HEADER * MOST)
        nonces, aads = memoryview(self._nonces), memoryview(self._aads)
        self.nonces = [nonces[12 * i : 12 * i + 12] for i in range(MOST)]
        self.aads = [aads[HEADER * i : HEADER * (i + 1)] for i in range(MOST)]
        self._slots: dict[tuple[int, int, int], list[memoryview]] = {}

    def slots(self, size: int, start: int, stop: int) -> list[memoryview]:
        """Return bytes `start` to `stop` of each piece of `size` bytes in the buffer."""
        found = self._slots.get((size, start, stop))
        if found is None:
            if len(self._slots) >= 4 * _KNOWN_SIZES:
                self._slots.clear()
            count = min(MOST, _BUFFER // size)
            found = [self._view[at + start : at + stop] for at in range(0, count * size, size)]
            self._slots[size, start, stop] = found
        return found

    def fill(self, iv: int, path_id: int, header: bytes, number: int, count: int) -> bytes:
        """Set the nonces and associated data of packets from `number` on; return the latter in one piece.

        Args:
            header: first byte and connection id.
        """
        iv ^= path_id << 64
        nonces = self._nonces
        if (number & 0xFFFF) + count > 0x1_0000:
            numbers = range(number, number + count)
            ends = b"".join([(each & 0xFFFF).to_bytes(2, "big") for each in numbers])
            highs, lows = ends[0::2], ends[1::2]
            nonces[: 12 * count] = b"".join([(iv ^ each).to_bytes(12, "big") for each in numbers])
        else:
            low, high = number & 0xFF, number >> 8 & 0xFF
            lows = _RAMP[low : low + count]
            before = min(count, 0x100 - low)
            highs = bytes((high,)) * before + bytes((high + 1 & 0xFF,)) * (count - before)
            stop = 12 * count
            nonces[:stop] = (iv ^ (number & ~0xFFFF)).to_bytes(12, "big") * count
            nonces[10:stop:12] = highs.translate(_XOR[iv >> 8 & 0xFF])
            nonces[11:stop:12] = lows.translate(_XOR[iv & 0xFF])
        stop = HEADER * count
        aads = self._aads
        aads[:stop] = (header + b"\0\0") * count
        aads[_NUMBER_AT:stop:HEADER] = highs
        aads[_NUMBER_AT + 1 : stop : HEADER] = lows
        return bytes(aads[:stop])


class _Local(threading.local):
    def __init__(self) -> None:
        self.sealing = _Columns()
        self.opening = _Columns()


_LOCAL = _Local()
_cutters: dict[int, Struct] = {}


def _cutter(head: int, size: int) -> Struct:
    """Return the pattern that splits packets of `size` bytes into head and body."""
    found = _cutters.get(size << 8 | head)
    if found is None:
        if len(_cutters) >= 4 * _KNOWN_SIZES:
            _cutters.clear()
        found = _cutters[size << 8 | head] = Struct(f"{head}s{size - head}s")
    return found


class ColumnKey:
    """`RunKey` in pure Python, on `cryptography`."""

    __slots__ = ("_decrypt_into", "_encrypt_into", "_iv", "_masks")

    def __init__(
        self, iv: int, encrypt_into: Cipher, decrypt_into: Cipher, masks: Callable[[bytes], bytes]
    ) -> None:
        self._iv = iv
        self._encrypt_into = encrypt_into
        self._decrypt_into = decrypt_into
        self._masks = masks

    def seal_run(
        self,
        first: int,
        cid: bytes,
        path_id: int,
        number: int,
        head: bytes,
        offset: int,
        wide: bool,
        data: Bytes,
        size: int,
    ) -> memoryview:
        """Seal a run, see `RunKey`.

        Raises:
            ValueError: these are not the parameters of a run.
        """
        width, flag, limit = (8, 3 << 62, _WIDE) if wide else (4, 2 << 30, _NARROW)
        head_length = len(head) + width
        room = size - HEADER - TAG_LENGTH - head_length
        total = len(data)
        if len(cid) != CID_LENGTH or head_length > _MOST_HEAD + width or room <= 4 or not total:
            raise ValueError("no such run")
        whole, rest = divmod(total, room)
        count = whole + (rest > 0)
        columns = _LOCAL.sealing
        slots = columns.slots(size, HEADER, size)
        if count > len(slots):
            raise ValueError("no such run: too long")
        if offset + total > limit or number + count > VARINT_MAX:
            raise ValueError("no such offset")
        if rest and HEADER + head_length + rest + TAG_LENGTH < HEADER + _SAMPLE.stop:
            raise ValueError("the last packet of the run is too short")
        aads = columns.fill(self._iv, path_id, bytes((first,)) + cid, number, count)
        starts = range(offset | flag, (offset | flag) + total, room)
        heads = [head + start.to_bytes(width, "big") for start in starts]
        cut = whole * room
        pieces = [piece for (piece,) in Struct(f"{room}s").iter_unpack(memoryview(data)[:cut])]
        deque(
            map(self._encrypt_into, columns.nonces, map(add, heads, pieces), columns.aads, slots),
            maxlen=0,
        )
        used = whole * size
        samples = columns.slots(size, HEADER + _SAMPLE.start, HEADER + _SAMPLE.stop)
        if rest:
            last = slots[whole][: head_length + rest + TAG_LENGTH]
            piece = heads[whole] + data[cut:]
            self._encrypt_into(columns.nonces[whole], piece, columns.aads[whole], last)
            used += HEADER + len(last)
        headers = _mask(aads, self._masks(b"".join(samples[:count])), count)
        out = columns.buffer
        stop = (count - 1) * size + 1
        for i in range(HEADER):
            out[i : stop + i : size] = headers[i::HEADER]
        return memoryview(out)[:used]

    def open_run(
        self, data: Bytes, segment: int, path_id: int, phase: int, expected: int
    ) -> Run | None:
        """Open a run, see `RunKey`."""
        count, rest = divmod(len(data), segment or 1)
        if segment < SMALLEST or rest or not 1 <= count <= MOST or len(data) > _BUFFER:
            return None
        heads, bodies = zip(*_cutter(HEADER, segment).iter_unpack(data), strict=True)
        masks = self._masks(b"".join([body[_SAMPLE] for body in bodies]))
        headers = _mask(b"".join(heads), masks, count)
        first = headers[0]
        if first & ~_SPIN != _FIRST | (phase & 1) << 2:
            return None
        truncated = int.from_bytes(headers[_NUMBER_AT:HEADER], "big")
        number = expand_number(truncated, 16, expected)
        # The numbers of a run are new, and none of them wraps the two bytes.
        if number < expected or truncated + count > 1 << 16 or number + count > _WIDE:
            return None
        columns = _LOCAL.opening
        if columns.fill(self._iv, path_id, headers[:_NUMBER_AT], number, count) != headers:
            return None
        size = segment - HEADER - TAG_LENGTH
        slots = columns.slots(size, 0, size)
        try:
            deque(map(self._decrypt_into, columns.nonces, bodies, columns.aads, slots), maxlen=0)
        except InvalidTag:
            return None
        found = _read_pieces(columns, size, count)
        return found and (number, *found)


def _mask(headers: bytes, masks: bytes, count: int) -> bytes:
    """Put header protection on headers, or take it off."""
    column = bytearray(HEADER * count)
    column[0::HEADER] = masks[0::16].translate(_LOW_FIVE)
    column[_NUMBER_AT::HEADER] = masks[1::16]
    column[_NUMBER_AT + 1 :: HEADER] = masks[2::16]
    mixed = int.from_bytes(headers, "big") ^ int.from_bytes(column, "big")
    return mixed.to_bytes(HEADER * count, "big")


def _read_pieces(columns: _Columns, size: int, count: int) -> tuple[int, int, bytes] | None:
    """Return stream id, offset and data, if `count` packets of `size` bytes hold consecutive pieces."""
    plain = bytes(columns.buffer[: min(size, _MOST_HEAD)])
    kind = plain[0]
    # It has an offset, and is not the end of the stream.
    if kind & ~0x02 != codes.STREAM | 0x04:
        return None
    stream_id, offset_at = read_varint(plain, 1)
    offset, offset_end = read_varint(plain, offset_at)
    width = offset_end - offset_at
    if width < 4:
        return None
    start = offset_end
    if kind & 0x02:
        length, start = read_varint(plain, offset_end)
        if start + length != size:
            return None
    room = size - start
    if room < 1 or offset + room * count > (_NARROW if width == 4 else _WIDE):
        return None
    # The head of the first frame determines those of all others.
    expected = bytearray(plain[:start] * count)
    flag = 2 << 30 if width == 4 else 3 << 62
    offsets = _OFFSETS[width][count].pack(
        *range(offset | flag, (offset | flag) + room * count, room)
    )
    for i in range(width):
        expected[offset_at + i :: start] = offsets[i::width]
    if b"".join(columns.slots(size, 0, start)[:count]) != expected:
        return None
    return stream_id, offset, b"".join(columns.slots(size, start, size)[:count])


_OFFSETS: Final = {
    4: [Struct(f">{count}I") for count in range(MOST + 1)],
    8: [Struct(f">{count}Q") for count in range(MOST + 1)],
}


def expand_number(truncated: int, bits: int, expected: int) -> int:
    """Return the packet number nearest to `expected` with these low bits (RFC 9000 appendix A.3)."""
    window = 1 << bits
    half = window >> 1
    number = (expected & ~(window - 1)) | truncated
    if number <= expected - half and number < VARINT_MAX + 1 - window:
        return number + window
    if number > expected + half and number >= window:
        return number - window
    return number
