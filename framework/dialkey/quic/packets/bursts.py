"""Bursts: runs of full packets with consecutive pieces of one stream, sealed into one buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dialkey.quic import codes
from dialkey.quic.codes import CID_LENGTH, TAG_LENGTH
from dialkey.quic.packets.frames import varint
from dialkey.quic.paths.recovery import Sent
from dialkey.quic.streams.halves import SendHalf
from dialkey.quic.streams.scheduler import rotate, take

if TYPE_CHECKING:
    from dialkey.quic.config import Send
    from dialkey.quic.connection import Connection
    from dialkey.quic.paths.path import Path

MAX_BURST: Final = 44
"""Packets in one burst: as many 1452-byte ones as fit the 64 KiB that one system call may carry."""
BURST_BYTES: Final = 65_535
SHORT_NUMBER_RANGE: Final = 1 << 14


def count_sent(c: Connection, path: Path, size: int, packets: int, now: float) -> None:
    """Count what was sent, and change the keys if they have sealed enough."""
    c.packet_bytes_sent += size
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
) -> int:
    """Send a burst of one stream, if it has at least two full packets waiting; return its bytes."""
    size = path.mtu.current
    if half.reset_code is not None or c.control:
        return 0
    offset = half.retransmit[0][0] if half.retransmit else half.offset
    # One width of offset for the whole burst, so that all packets hold equally much.
    wide = offset + BURST_BYTES >= 1 << 30
    head = bytes((codes.STREAM | 0x04,)) + varint(half.id)
    per_packet = size - 1 - CID_LENGTH - 2 - TAG_LENGTH - len(head) - (8 if wide else 4)
    if half.retransmit:
        waiting = len(half.retransmit[0][1])
    else:
        waiting = min(half.queued, half.limit - offset, c.peer_max_data - c.data_sent)
    if waiting < 2 * per_packet:
        return 0
    if path.next_number - path.recovery.largest_acked > SHORT_NUMBER_RANGE:
        return 0
    # Whole packets only: a remainder goes into a lone packet, together with other frames.
    count = min(waiting // per_packet, MAX_BURST, BURST_BYTES // size, room // size)
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
    protection = c.protection
    assert protection is not None
    first = 0x41 | protection.send_phase << 2
    sealed = protection.send_run.seal_run(
        first, cid, path.id, number, head, offset, wide, data, size
    )
    path.next_number = number + count
    used = len(sealed)
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
    send(path.remote, memoryview(sealed), size)
    rotate(c, half)
    return used
