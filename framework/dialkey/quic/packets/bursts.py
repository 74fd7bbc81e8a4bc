"""Bursts: runs of full packets with consecutive pieces of one stream, sealed into one buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dialkey.quic import codes
from dialkey.quic.codes import CID_LENGTH
from dialkey.quic.packets.frames import varint
from dialkey.quic.packets.protection import TAG_LENGTH
from dialkey.quic.paths.recovery import Sent
from dialkey.quic.streams.halves import Bytes, SendHalf
from dialkey.quic.streams.scheduler import rotate, take

if TYPE_CHECKING:
    from dialkey.quic.config import Send
    from dialkey.quic.connection import Connection
    from dialkey.quic.paths.path import Path

MAX_BURST: Final = 44
"""Packets in one burst: as many 1452-byte ones as fit the 64 KiB that one system call may carry."""
SCRATCH_BYTES: Final = 65_535
SHORT_NUMBER_RANGE: Final = 1 << 14


class Scratch:
    """The buffer in which bursts are sealed; one serves all connections of a thread."""

    __slots__ = ("_slots", "buffer", "view")

    def __init__(self) -> None:
        self.buffer = bytearray(SCRATCH_BYTES)
        self.view = memoryview(self.buffer)
        self._slots: dict[int, list[memoryview]] = {}

    def slots(self, size: int) -> list[memoryview]:
        """Return where the protected part of each packet of `size` bytes stands."""
        slots = self._slots.get(size)
        if slots is None:
            if len(self._slots) > 16:
                self._slots.clear()
            count = min(MAX_BURST, SCRATCH_BYTES // size)
            head = 1 + CID_LENGTH + 2
            slots = [self.view[i * size + head : (i + 1) * size] for i in range(count)]
            self._slots[size] = slots
        return slots


def count_sent(c: Connection, path: Path, size: int, packets: int, now: float) -> None:
    """Count what was sent, and change the keys if they have sealed enough."""
    c.bytes_sent += size
    path.count_sent(size)
    protection = c.protection
    assert protection is not None
    if protection.count_sealed(packets):
        c.update_keys(now)


def try_burst(
    c: Connection,
    path: Path,
    half: SendHalf,
    cid: bytes,
    room: int,
    now: float,
    send: Send,
    scratch: Scratch,
) -> int:
    """Send a burst of one stream, if it has at least two full packets waiting; return its bytes."""
    size = path.mtu.current
    if half.reset_code is not None or c.control:
        return 0
    offset = half.retransmit[0][0] if half.retransmit else half.offset
    # One width of offset for the whole burst, so that all packets hold equally much.
    wide = offset + SCRATCH_BYTES >= 1 << 30
    head = bytes((codes.STREAM | 0x04,)) + varint(half.id)
    per_packet = size - 1 - CID_LENGTH - 2 - TAG_LENGTH - len(head) - (8 if wide else 4)
    if half.retransmit:
        waiting = len(half.retransmit[0][1])
    else:
        waiting = min(half.queued, half.limit - offset, c.peer_max_data - c.data_sent)
    if waiting < 2 * per_packet:
        return 0
    slots = scratch.slots(size)
    if path.next_number - path.recovery.largest_acked > SHORT_NUMBER_RANGE:
        return 0
    # Whole packets only: a remainder goes into a lone packet, together with other frames.
    count = min(waiting // per_packet, len(slots), room // size)
    if count < 2:
        return 0
    offset, data, fin = take(c, half, count * per_packet)
    if fin:
        # The last piece fills its packet exactly; the end of the stream follows on its own.
        fin = False
        if half.fin_sent:
            half.fin_sent = False
    count = -(-len(data) // per_packet)
    number = path.begin_run()
    used = _seal_burst(c, path, scratch, slots, cid, head, offset, data, per_packet, wide)
    record = Sent(number, number + count, now, size, used)
    record.stream = half
    record.offset = offset
    record.room = per_packet
    record.data = data
    if c.qlog is not None:
        c.qlog.burst_sent(path, record)
    path.recovery.on_sent(record, now)
    count_sent(c, path, used, count, now)
    c.sent_eliciting(now)
    path.last_activity = now
    if path.waiting_since is None:
        path.waiting_since = now
    send(path.remote, scratch.view[:used], size)
    rotate(c, half)
    return used


def _seal_burst(
    c: Connection,
    path: Path,
    scratch: Scratch,
    slots: list[memoryview],
    cid: bytes,
    head: bytes,
    offset: int,
    data: Bytes,
    per_packet: int,
    wide: bool,
) -> int:
    """Seal `data` into consecutive packets in the scratch buffer; return the bytes used."""
    protection = c.protection
    assert protection is not None
    size = path.mtu.current
    key = protection.send
    encrypt_into = key.encrypt_into
    base = key.iv ^ path.id << 64
    first = 0x41 | protection.send_phase << 2
    aad_head = bytes((first,)) + cid
    number = start_number = path.next_number
    width, flag = (8, 0xC000000000000000) if wide else (4, 0x80000000)
    at = 0
    total = len(data)
    for slot in slots:
        piece = head + ((offset + at) | flag).to_bytes(width, "big") + data[at : at + per_packet]
        if len(piece) + TAG_LENGTH < len(slot):
            slot = slot[: len(piece) + TAG_LENGTH]
        encrypt_into(
            (base ^ number).to_bytes(12, "big"),
            piece,
            aad_head + (number & 0xFFFF).to_bytes(2, "big"),
            slot,
        )
        number += 1
        at += per_packet
        if at >= total:
            break
    count = number - start_number
    path.next_number = number
    used = (count - 1) * size + 1 + CID_LENGTH + 2 + len(slot)
    # Header protection by columns: the same byte of every packet in one strided assignment.
    masks = protection.send_header.masks(b"".join([s[2:18] for s in slots[:count]]))
    out = scratch.buffer
    last = (count - 1) * size + 1
    out[0:last:size] = bytes([first ^ (m & 0x1F) for m in masks[0::16]])
    for i in range(CID_LENGTH):
        out[1 + i : last + 1 + i : size] = bytes((cid[i],)) * count
    numbers = range(start_number, number)
    high, low = 1 + CID_LENGTH, 2 + CID_LENGTH
    out[high : last + high : size] = bytes(
        [(n >> 8 & 0xFF) ^ m for n, m in zip(numbers, masks[1::16], strict=True)]
    )
    out[low : last + low : size] = bytes(
        [(n & 0xFF) ^ m for n, m in zip(numbers, masks[2::16], strict=True)]
    )
    return used
