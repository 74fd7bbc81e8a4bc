"""Two QUIC connections and the network between them, in one thread and in virtual time.

Nothing here sleeps or opens a socket: `Pair.run` jumps from one event to the next. Every fault is drawn
from one seed, so a failing run can be repeated.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from dialkey.identity import SecretKey
from dialkey.limits import HANDSHAKE_TIMEOUT_S
from dialkey.quic import codes, events, stateless
from dialkey.quic.connection import Config, Connection, State
from dialkey.quic.events import CloseReason
from dialkey.quic.packets.builder import Builder
from dialkey.quic.paths.path import Address, Path
from dialkey.quic.streams.halves import RecvHalf, SendHalf
from dialkey.testing import Channel, Conditions

ALPN = "pair/1"
START = 1000.0
CLIENT_ADDRESS = "client"
SERVER_ADDRESS = "server"


@attrs.frozen
class HostPort:
    """An address with a host part, for rules that depend on it."""

    ip: str
    port: int


def secret_key(number: int) -> SecretKey:
    return SecretKey(hashlib.sha256(b"pair %d" % number).digest())


@attrs.frozen
class Datagram:
    """One datagram that was sent, for tests that look at the traffic."""

    time: float
    sender: str
    destination: Address
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def is_long(self) -> bool:
        return bool(self.data[0] & 0x80)


class Side:
    """One end: a connection, what its application did and saw, and its address."""

    def __init__(self, pair: Pair, name: str, address: Address, config: Config) -> None:
        self.pair = pair
        self.name = name
        self.address = address
        self.config = config
        self.core: Connection | None = None
        self.log: list[events.Event] = []
        self.auto_read = True
        self.auto_accept = True
        self.accepted: list[int] = []
        self.send: dict[int, SendHalf] = {}
        self.recv: dict[int, RecvHalf] = {}
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.reset_codes: dict[int, int] = {}
        self.datagrams: list[bytes] = []
        self.reset_tokens: set[bytes] = set()

    # --- what an application does ---------------------------------------------------------------

    @property
    def c(self) -> Connection:
        assert self.core is not None, f"the {self.name} has no connection"
        return self.core

    @property
    def path(self) -> Path:
        return next(iter(self.c.paths.values()))

    def open(self, *, uni: bool = False) -> int | None:
        """Open a stream; return its id, or None when the peer allows no more now."""
        opened = self.c.streams.open(unidirectional=uni)
        if opened is None:
            return None
        send, recv = opened
        self.send[send.id] = send
        if recv is not None:
            self._own_recv(recv)
        return send.id

    def must_open(self, *, uni: bool = False) -> int:
        stream = self.open(uni=uni)
        assert stream is not None, "the peer allows no more streams"
        return stream

    def accept(self, stream: int) -> None:
        """Take a stream that the other side opened."""
        self.accepted.append(stream)
        self.c.streams.taken(stream)
        self.pair.wants_flush(self)

    def write(self, stream: int, data: bytes, *, finish: bool = False) -> None:
        half = self.send[stream]
        half.write(data)
        if finish:
            half.finish()
        self.c.streams.wake(half)
        self.pair.wants_flush(self)

    def finish(self, stream: int) -> None:
        self.write(stream, b"", finish=True)

    def reset(self, stream: int, code: int) -> None:
        self.c.streams.reset(self.send[stream], code)
        self.pair.wants_flush(self)

    def stop(self, stream: int, code: int) -> None:
        self.c.streams.stop(self.recv[stream], code)
        self.pair.wants_flush(self)

    def read(self, stream: int, limit: int = 1 << 30) -> bytes:
        """Take what is there now, and note the end."""
        half = self.recv[stream]
        data = half.read(limit)
        self.data[stream] += data
        if data:
            self.c.streams.consumed(half, len(data))
        if half.reset_code is not None:
            self.reset_codes.setdefault(stream, half.reset_code)
        elif half.at_end and half.stop_code is None and stream not in self.ended:
            self.c.streams.consumed(half, 0)
            self.ended.add(stream)
        self.pair.wants_flush(self)
        return data

    def close(self, code: int = 0, reason: bytes = b"") -> None:
        self.c.close(code, reason, self.pair.now)
        self.pair.wants_flush(self)

    def send_datagram(self, data: bytes) -> None:
        self.c.datagrams.send(data)
        self.pair.wants_flush(self)

    @property
    def close_reason(self) -> CloseReason | None:
        return self.c.close_reason

    def seen(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.log if type(event) is kind]

    # --- driving --------------------------------------------------------------------------------

    def _own_recv(self, half: RecvHalf) -> None:
        self.recv[half.id] = half
        self.data[half.id] = bytearray()
        half.watched = True

    def drain_events(self) -> None:
        queue = self.c.events
        while queue:
            event = queue.popleft()
            self.log.append(event)
            match event:
                case events.StreamOpened(send=send, recv=recv):
                    if self.auto_accept:
                        self.accept(recv.id)
                    if send is not None:
                        self.send[send.id] = send
                    self._own_recv(recv)
                    if self.auto_read:
                        self._read_and_watch(recv)
                case events.Readable(half=half):
                    if self.auto_read:
                        self._read_and_watch(half)
                case events.DatagramReceived(data=data):
                    self.datagrams.append(data)
                case events.PeerResetToken(token=token):
                    self.reset_tokens.add(token)
                case events.PeerResetTokenRetired(token=token):
                    self.reset_tokens.remove(token)

    def _read_and_watch(self, half: RecvHalf) -> None:
        if half.readable:
            self.read(half.id)
        half.watched = not half.finished

    # --- as a hostile peer ----------------------------------------------------------------------

    def craft(self, payload: bytes) -> bytes:
        """Seal any payload as the next 1-RTT packet of this side."""
        path = self.path
        return builder_of(self.c).seal(path, payload, peer_cid_of(path))

    def inject(self, payload: bytes) -> None:
        """Let the other side receive a payload of ours now, whatever it says."""
        self.pair.deliver(self.pair.other(self), self.address, [self.craft(payload)])


def builder_of(core: Connection) -> Builder:
    """Return what seals a connection's packets, for tests that seal their own."""
    assert core.builder is not None, "the handshake is not complete"
    return core.builder


def peer_cid_of(path: Path) -> bytes:
    cid = path.cid
    assert cid is not None
    return cid


class Pair:
    """A client, a server, and two channels between them.

    Attributes:
        to_server, to_client: what the network does; replace `.conditions` at any time.
        drop: called for each datagram before the channel; true makes it vanish.
        sent: every datagram that left either side, in order.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        conditions: Conditions | None = None,
        client: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        alpns: list[str] | None = None,
        server_alpns: list[str] | None = None,
        drop: Callable[[Datagram], bool] | None = None,
        retry: bool = False,
        remote: Address = SERVER_ADDRESS,
        dial_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = START
        self.sent: list[Datagram] = []
        self.drop = drop
        conditions = conditions or Conditions(delay_s=0.01)
        self.to_server = Channel(conditions, self.rng)
        self.to_client = Channel(conditions, self.rng)
        self._retry = stateless.Retry(os.urandom) if retry else None
        self._arriving: list[tuple[float, int, str, Address, Address, bytes]] = []
        self._order = itertools.count()
        self._dirty: dict[Side, None] = {}
        self._transfers: list[Transfer] = []
        self._server_alpns = server_alpns if server_alpns is not None else [ALPN]
        self.client = Side(self, "client", CLIENT_ADDRESS, self._config(1, client))
        self.server = Side(self, "server", SERVER_ADDRESS, self._config(2, server))
        self.client.core = Connection.client(
            self.client.config,
            expected_id=self.server.config.secret_key.id,
            alpns=alpns if alpns is not None else [ALPN],
            remote=remote,
            now=self.now,
            timeout_s=dial_timeout_s,
        )
        self.wants_flush(self.client)

    def _config(self, number: int, extra: dict[str, Any] | None) -> Config:
        rng = random.Random(self.rng.random())
        return Config(
            **{
                "secret_key": secret_key(number),
                "draw": random.Random(number).randrange,
                "random_bytes": random.Random(-number).randbytes,
                "new_cid": lambda: rng.randbytes(8),
                "reset_token": lambda cid: hashlib.sha256(b"%d" % number + cid).digest()[:16],
                **(extra or {}),
            }
        )

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.client, self.server

    def other(self, side: Side) -> Side:
        return self.server if side is self.client else self.client

    def wants_flush(self, side: Side) -> None:
        self._dirty[side] = None

    # --- the network ----------------------------------------------------------------------------

    def _send_from(self, side: Side) -> Callable[[Address, bytes | memoryview, int], None]:
        def send(remote: Address, data: bytes | memoryview, segment: int) -> None:
            for at in range(0, len(data), segment):
                self._carry(side, remote, bytes(data[at : at + segment]))

        return send

    def _carry(self, side: Side, remote: Address, data: bytes) -> None:
        datagram = Datagram(self.now, side.name, remote, data)
        self.sent.append(datagram)
        if self.drop is not None and self.drop(datagram):
            return
        channel = self.to_server if side is self.client else self.to_client
        other = self.other(side)
        for at in channel.arrivals(len(data), self.now):
            heapq.heappush(
                self._arriving, (at, next(self._order), other.name, side.address, remote, data)
            )

    def deliver(self, side: Side, source: Address, datagrams: list[bytes]) -> None:
        """Let a side receive datagrams from one address, as one batch."""
        for segment, data in _batches(datagrams):
            self._receive(side, source, segment, data)
        if side.core is not None:
            side.drain_events()
            self.wants_flush(side)

    def _receive(self, side: Side, source: Address, segment: int, data: bytes) -> None:
        if side.core is None:
            self._accept(side, source, data)
            return
        core = side.core
        if not data[0] & 0x80 and len(data) == segment:
            if core.state is State.GONE:
                return
            known = data[1:9] in core.paths.ids.by_cid
            if not known and data[-16:] in side.reset_tokens:
                core.receive_stateless_reset(self.now)
                return
        core.receive(memoryview(data), segment, source, self.now)

    def _accept(self, side: Side, source: Address, data: bytes) -> None:
        header = stateless.parse_long_header(data)
        if side is not self.server or header is None or not header.is_initial:
            return
        original, retry_cid = header.destination_cid, None
        if self._retry is not None:
            token_address = b"192.0.2.1"
            found = self._retry.check(header, token_address, self.now) if header.token else None
            if found is None:
                new_cid = self.rng.randbytes(8)
                packet = self._retry.packet(header, token_address, new_cid, self.now)
                self._carry(side, source, packet)
                return
            original, retry_cid = found.original_cid, header.destination_cid
        side.core = Connection.server(
            side.config,
            alpns=self._server_alpns,
            remote=source,
            original_destination_cid=original,
            retry_source_cid=retry_cid,
            now=self.now,
        )
        side.core.receive(memoryview(data), len(data), source, self.now)

    # --- time -----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Let every side that has something to say say it."""
        while self._dirty:
            side = next(iter(self._dirty))
            del self._dirty[side]
            if side.core is not None:
                side.core.flush(self.now, self._send_from(side))
                side.drain_events()

    def next_time(self) -> float | None:
        """Return when something happens next."""
        times = [self._arriving[0][0]] if self._arriving else []
        for side in self.sides:
            at = side.core.timer() if side.core is not None else None
            if at is not None:
                times.append(at)
        return max(min(times), self.now) if times else None

    def step(self) -> bool:
        """Go to the next event and handle it; False when there is none."""
        self.flush()
        at = self.next_time()
        if at is None:
            return False
        self._go_to(at)
        return True

    def _go_to(self, at: float) -> None:
        self.now = at
        for side in self.sides:
            runs: list[tuple[Address, list[bytes]]] = []
            for source, data in self._due(side):
                if runs and runs[-1][0] == source:
                    runs[-1][1].append(data)
                else:
                    runs.append((source, [data]))
            for source, datagrams in runs:
                self.deliver(side, source, datagrams)
        for side in self.sides:
            due = side.core.timer() if side.core is not None else None
            if due is not None and due <= self.now:
                side.c.on_timer(self.now)
                side.drain_events()
                self.wants_flush(side)
        self.flush()

    def _due(self, side: Side) -> Iterator[tuple[Address, bytes]]:
        later = []
        while self._arriving and self._arriving[0][0] <= self.now:
            entry = heapq.heappop(self._arriving)
            _, _, name, source, destination, data = entry
            if name != side.name:
                later.append(entry)
            elif destination == side.address:
                yield source, data
        for entry in later:
            heapq.heappush(self._arriving, entry)

    def run(
        self,
        until: Callable[[], bool] | None = None,
        *,
        seconds: float = 60.0,
        steps: int = 200_000,
    ) -> None:
        """Run until a condition holds.

        Without one, run for so many seconds. With one, fail if it does not hold by then.
        """
        deadline = self.now + seconds
        stuck = 0
        self.flush()
        for _ in range(steps):
            if until is not None and until():
                return
            at = self.next_time()
            if at is None or at > deadline:
                break
            stuck = stuck + 1 if at <= self.now else 0
            assert stuck < 1000, f"time stands still at {self.now - START:.6f}: {self}"
            self._go_to(at)
            self.pump()
        else:
            raise AssertionError(f"still busy after {steps} steps: {self}")
        if until is not None:
            raise AssertionError(f"it did not happen within {seconds} s: {self}")
        self.now = deadline

    def pump(self) -> None:
        """Write more where a transfer has room."""
        for transfer in self._transfers:
            transfer.pump()
        self.flush()

    def pumps(self, transfer: Transfer) -> None:
        """Serve a transfer from now on."""
        self._transfers.append(transfer)

    def connect(self, *, seconds: float = 20.0) -> Pair:
        """Run until both sides have confirmed the handshake."""
        self.run(self.is_connected, seconds=seconds)
        return self

    def is_connected(self) -> bool:
        return all(
            side.core is not None and side.core.state is State.OPEN and side.core.confirmed
            for side in self.sides
        )

    def settle(self, seconds: float = 1.0) -> None:
        """Let late packets arrive."""
        self.run(seconds=seconds)

    def __str__(self) -> str:
        parts = []
        for side in self.sides:
            core = side.core
            state = "no connection" if core is None else f"{core.state.name} {core.close_reason}"
            parts.append(f"{side.name}: {state}")
        return f"t={self.now - START:.3f} {len(self.sent)} datagrams; " + "; ".join(parts)


def _batches(datagrams: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Join runs of equal size with a short header, the last may be shorter, as a kernel does."""
    run: list[bytes] = []
    for data in datagrams:
        if not data:
            continue
        joins = (
            run
            and not data[0] & 0x80
            and not run[0][0] & 0x80
            and len(data) <= len(run[0]) == len(run[-1])
        )
        if run and not joins:
            yield len(run[0]), b"".join(run)
            run = []
        run.append(data)
    if run:
        yield len(run[0]), b"".join(run)


class Transfer:
    """One stream with random data, written as the sender's queue empties, and checked by its hash."""

    HIGH_WATER = 256 * 1024

    def __init__(self, sender: Side, size: int, *, seed: int = 0, uni: bool = True) -> None:
        self.sender = sender
        self.receiver = sender.pair.other(sender)
        self.size = size
        self.stream = sender.must_open(uni=uni)
        self._rng = random.Random(seed)
        self._left = size
        self._digest = hashlib.sha256()
        self._finished = False
        sender.pair.pumps(self)
        self.pump()

    def pump(self) -> None:
        """Write more, if there is room."""
        half = self.sender.send[self.stream]
        while not self._finished and not half.closed and half.queued < self.HIGH_WATER:
            piece = self._rng.randbytes(min(self._left, 65_536))
            self._digest.update(piece)
            self._left -= len(piece)
            self._finished = not self._left
            self.sender.write(self.stream, piece, finish=self._finished)

    @property
    def is_over(self) -> bool:
        """Whether the receiver has the end."""
        return self.stream in self.receiver.ended

    def check(self) -> None:
        got = self.receiver.data[self.stream]
        assert len(got) == self.size
        assert hashlib.sha256(got).digest() == self._digest.digest()


def are_over(transfers: list[Transfer]) -> bool:
    return all(each.is_over for each in transfers)


def transfer(*sizes: tuple[Side, int], seconds: float = 600.0) -> list[Transfer]:
    """Send so much from each side at the same time; run until everything has arrived whole."""
    pair = sizes[0][0].pair
    running = [Transfer(side, size, seed=i) for i, (side, size) in enumerate(sizes)]
    pair.run(lambda: are_over(running), seconds=seconds)
    for each in running:
        each.check()
    return running


def frame_varint(value: int) -> bytes:
    from dialkey.quic.packets.frames import varint

    return varint(value)


def frame(kind: int, *fields: int | bytes) -> bytes:
    """Encode a frame from its type and its fields: numbers as varints, bytes as they are."""
    return b"".join(
        each if isinstance(each, bytes) else frame_varint(each) for each in (kind, *fields)
    )


def stream_frame(stream: int, offset: int, data: bytes, *, finish: bool = False) -> bytes:
    kind = codes.STREAM | 0x06 | int(finish)
    return frame(kind, stream, offset, len(data), data)
