"""What a stack must offer to be measured, and what is measured the same way on all of them.

Every request has `HEAD_BYTES` bytes: what is wanted, a size, a seed, filling. The answers:

- ECHO: the same 64 bytes.
- CONSTANT: `size` zero bytes. Timed passes use it, so that no time goes into making data.
- MESSAGES: `size` times a hundred bytes, each written on its own.
- UPLOAD: how many bytes came after the request; there should be `size`.
- RANDOM: `size` bytes that only depend on the seed. The integrity pass uses it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

HEAD_BYTES = 64
BLOCK_BYTES = 1 << 18
"""How much is written, and asked for, in one call; large enough that no stack is call-bound."""

ECHO, CONSTANT, RANDOM, UPLOAD, MESSAGES = 1, 2, 3, 4, 5
MESSAGE = bytes(100)

_COUNT = struct.Struct("!Q")
_HEAD = struct.Struct("!BQQ")


class Mismatch(Exception):
    """What arrived is not what was sent: any figure of this stack would be worthless."""


class Stream(Protocol):
    """Both directions of one stream.

    Attributes:
        ends: whether a request and its answer end the stream; a TLS connection goes on.
    """

    @property
    def ends(self) -> bool: ...

    async def read(self, limit: int) -> bytes:
        """Return up to `limit` bytes; empty at the end."""

    async def write(self, data: bytes, *, finish: bool = False) -> None:
        """Write all of `data`, then end this direction if asked to."""


Answer = Callable[[Stream], Awaitable[bool]]


class Session(ABC):
    """A client's connection.

    Attributes:
        has_streams: whether each `open` gives a new stream; else requests follow each other on one.
    """

    has_streams = True

    @abstractmethod
    async def open(self) -> Stream:
        """Return a stream for one request; where streams do not end, always the same."""

    async def datagrams(self, count: int) -> None:
        """Send `count` datagrams and take as many that come back."""
        raise NotImplementedError("not measured on this stack")

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""


class Stack(ABC):
    """One library, on one side of a measurement."""

    @abstractmethod
    async def serve(self, answer: Answer) -> str:
        """Listen on loopback, give each incoming stream to `answer`; return where, as text."""

    @abstractmethod
    async def dial(self, address: str) -> Session:
        """Connect to what another process's `serve` returned."""

    @abstractmethod
    async def close(self) -> None:
        """Free everything."""


class Offering(ABC):
    """A stack that moves named things instead of answering requests on streams: blobs."""

    @abstractmethod
    async def offer(self, size: int, seed: int) -> str:
        """Hold `random_blocks(size, seed)` ready; return what to fetch it by."""

    @abstractmethod
    async def fetch(self, session: Session, offer: str) -> None:
        """Take what another process's `offer` returned."""

    @abstractmethod
    async def check(self, session: Session, offer: str, size: int, seed: int) -> None:
        """Compare what was fetched with what was offered.

        Raises:
            Mismatch: it differs.
        """


# --- the server's side --------------------------------------------------------------------------


async def answer(stream: Stream) -> bool:
    """Serve one request; return whether there was one."""
    head = await stream.read(HEAD_BYTES)
    while 0 < len(head) < HEAD_BYTES:
        more = await stream.read(HEAD_BYTES - len(head))
        if not more:
            raise Mismatch("half a request")
        head += more
    if not head:
        return False
    kind, size, seed = _HEAD.unpack_from(head)
    if kind == UPLOAD:
        got = 0
        while got < size and (data := await stream.read(BLOCK_BYTES)):
            got += len(data)
        await stream.write(_COUNT.pack(got), finish=True)
        return True
    if stream.ends and await stream.read(1):
        raise Mismatch("more than a request")
    if kind == MESSAGES:
        for left in range(size - 1, -1, -1):
            await stream.write(MESSAGE, finish=not left)
        return True
    if kind == ECHO:
        await stream.write(head, finish=True)
        return True
    blocks = _constant_blocks(size) if kind == CONSTANT else random_blocks(size, seed)
    for block, is_last in blocks:
        await stream.write(block, finish=is_last)
    return True


def _constant_blocks(size: int) -> Iterator[tuple[bytes, bool]]:
    block = bytes(BLOCK_BYTES)
    for at in range(0, size, BLOCK_BYTES):
        rest = size - at
        yield (block if rest >= BLOCK_BYTES else bytes(rest)), rest <= BLOCK_BYTES


def random_blocks(size: int, seed: int) -> Iterator[tuple[bytes, bool]]:
    """Yield blocks that depend on nothing but the seed, and whether each is the last."""
    source = random.Random(seed)
    for at in range(0, size, BLOCK_BYTES):
        yield source.randbytes(min(BLOCK_BYTES, size - at)), size - at <= BLOCK_BYTES


# --- the client's side --------------------------------------------------------------------------


def head(kind: int, size: int = 0, seed: int = 0, filling: bytes = b"") -> bytes:
    return (_HEAD.pack(kind, size, seed) + filling).ljust(HEAD_BYTES, b"\0")


async def _take(session: Session, request: bytes, size: int, sink: Callable[[bytes], None]) -> None:
    stream = await session.open()
    await stream.write(request, finish=True)
    got = 0
    # Where streams end, the end is waited for; a connection that goes on only has a size.
    while got < size or stream.ends:
        data = await stream.read(BLOCK_BYTES)
        if not data:
            break
        got += len(data)
        sink(data)
    if got != size:
        raise Mismatch(f"{got} of {size} bytes arrived")


async def download(session: Session, size: int) -> None:
    """Take `size` bytes and check that so many came."""
    await _take(session, head(CONSTANT, size), size, lambda data: None)


async def messages(session: Session, count: int) -> None:
    """Take `count` messages of a hundred bytes that the other side writes one by one."""
    size = count * len(MESSAGE)
    await _take(session, head(MESSAGES, count), size, lambda data: None)


async def upload(session: Session, size: int) -> None:
    """Send `size` bytes and wait until the other side has counted them."""
    stream = await session.open()
    await stream.write(head(UPLOAD, size))
    for block, is_last in _constant_blocks(size):
        await stream.write(block, finish=is_last)
    reply = b""
    while len(reply) < _COUNT.size and (data := await stream.read(_COUNT.size)):
        reply += data
    if reply != _COUNT.pack(size):
        raise Mismatch("not every byte that was sent has arrived")


async def check_download(session: Session, size: int, seed: int) -> None:
    """Take `size` random bytes and compare their hash.

    Raises:
        Mismatch: they are not what the server sent.
    """
    expected = hashlib.sha256()
    for block, _ in random_blocks(size, seed):
        expected.update(block)
    found = hashlib.sha256()
    await _take(session, head(RANDOM, size, seed), size, found.update)
    if found.digest() != expected.digest():
        raise Mismatch(f"{size} bytes arrived, but not those that were sent")


async def _read_all(stream: Stream) -> bytes:
    reply = b""
    while data := await stream.read(BLOCK_BYTES):
        reply = reply + data if reply else data
    return reply


async def requests(
    session: Session, count: int, in_flight: int, *, seed: int | None = None
) -> None:
    """Make `count` requests of 64 bytes, `in_flight` at a time, each on a stream of its own.

    Args:
        seed: fill each request with random bytes and compare all of the reply, not its length only.
    """
    source = random.Random(seed)

    def body() -> bytes:
        return head(
            ECHO, filling=b"" if seed is None else source.randbytes(HEAD_BYTES - _HEAD.size)
        )

    def check(sent: bytes, reply: bytes) -> None:
        if len(reply) != HEAD_BYTES or (seed is not None and reply != sent):
            raise Mismatch("a reply is not what was sent")

    if not session.has_streams:
        await _requests_in_line(await session.open(), count, in_flight, body, check)
        return
    left = count
    constant = head(ECHO)

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            request = constant if seed is None else body()
            stream = await session.open()
            await stream.write(request, finish=True)
            check(request, await _read_all(stream))

    if in_flight == 1:
        await work()
        return
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())


async def _requests_in_line(
    stream: Stream,
    count: int,
    in_flight: int,
    body: Callable[[], bytes],
    check: Callable[[bytes, bytes], None],
) -> None:
    """Make requests on one stream: `in_flight` are sent before the first reply must be there."""
    waiting: list[bytes] = []
    pending = b""
    sent = done = 0
    while done < count:
        while sent < count and len(waiting) < in_flight:
            waiting.append(body())
            await stream.write(waiting[-1])
            sent += 1
        pending += await stream.read(BLOCK_BYTES)
        whole = len(pending) // HEAD_BYTES
        for at in range(whole):
            check(waiting[at], pending[at * HEAD_BYTES : (at + 1) * HEAD_BYTES])
        del waiting[:whole]
        pending = pending[whole * HEAD_BYTES :]
        done += whole
