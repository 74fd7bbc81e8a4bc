"""Single requests to a provider, over an open connection.

Source: docs/wire/blobs.md 1.3 to 1.7.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from dialkey import Connection, RecvStream
from dialkey.errors import ConnectionLost, RemoteError, StreamReset, StreamStopped
from dialkey.identity import EndpointId
from dialkey_blobs.bitfield import Bitfield, ObserveReader
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.protocol import (
    GetManyRequest,
    GetRequest,
    ObserveRequest,
    PushRequest,
    StreamCode,
    encode_request,
)
from dialkey_blobs.ranges import ChunkRangesSeq
from dialkey_blobs.receiving import STALL_TIMEOUT_S, Received, receive
from dialkey_blobs.responder import CannotServe, Responder, ResponderCaches, release

if TYPE_CHECKING:
    from dialkey_blobs.store import Store

__all__ = ["get", "observe", "push"]

PUSH_STALL_TIMEOUT_S: Final = 600.0
"""How long the receiver of a push may take nothing: its application may ask a person first."""


async def get(
    store: Store,
    connection: Connection,
    request: GetRequest | GetManyRequest,
    *,
    max_root_size: int | None = None,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> AsyncGenerator[Received, None]:
    """Ask a provider and put what it sends into a store; yield progress.

    Close the iterator (`contextlib.aclosing`) if you leave it early: the provider is then told to
    stop.

    Args:
        store: where to.
        connection: to the provider.
        request: what to ask for, including what is already held.
        max_root_size: the largest hash sequence to accept, in bytes.
        stall_timeout_s: how long the provider may be silent.

    Raises:
        StreamReset: the provider refuses, or has not (all of) what is asked for.
        VerificationError: it sent something else; the error names the first item.
        BlobNotFound, ItemNotFound, BlobTruncated: its response ended early.
        ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection ended first.
        StorageError: the store failed.
    """
    recv: RecvStream | None = None
    try:
        recv = await _ask(connection, encode_request(request), stall_timeout_s)
        async with aclosing(
            receive(
                store,
                request,
                recv,
                max_root_size=max_root_size,
                stall_timeout_s=stall_timeout_s,
            )
        ) as responses:
            async for received in responses:
                yield received
    except StreamReset as error:
        raise _explain(error, connection.remote_id) from error
    except RemoteError as error:
        if error.endpoint_id is None:
            error.endpoint_id = connection.remote_id
        raise
    finally:
        if recv is not None:
            recv.stop(StreamCode.NONE)


async def _ask(connection: Connection, request: bytes, timeout_s: float) -> RecvStream:
    try:
        async with asyncio.timeout(timeout_s):
            send, recv = await connection.open_bi()
            try:
                await send.write(request, finish=True)
            except BaseException:
                send.reset(StreamCode.NONE)
                recv.stop(StreamCode.NONE)
                raise
            return recv
    except TimeoutError as error:
        raise ConnectionLost(
            f"the provider did not take our request for {timeout_s:g} s",
            endpoint_id=connection.remote_id,
            hint="try again to continue",
        ) from error


def _explain(error: StreamReset, remote_id: EndpointId) -> StreamReset:
    reasons: dict[int, str] = {
        StreamCode.PERMISSION: "the provider does not give us this content",
        StreamCode.LIMIT: "the provider is too busy",
        StreamCode.INTERNAL: "the provider does not have (all of) this content",
    }
    message = reasons.get(
        error.error_code, f"the provider ended the transfer with code {error.error_code}"
    )
    return StreamReset(message, error_code=error.error_code, endpoint_id=remote_id)


async def observe(connection: Connection, hash: Hash) -> AsyncGenerator[Bitfield, None]:
    """Yield what the other side holds of a blob, now and whenever it holds more; never ends.

    Close the iterator (`contextlib.aclosing`) to stop.

    Raises:
        ConnectionClosed, ConnectionClosedByPeer, ConnectionLost, StreamReset: it cannot go on.
        WireError: the answer is malformed.
    """
    recv = await _ask(connection, encode_request(ObserveRequest(hash)), STALL_TIMEOUT_S)
    reader = ObserveReader()
    current: Bitfield | None = None
    try:
        while chunk := await recv.read():
            for item in reader.feed(chunk):
                current = item if current is None else current.combine(item)
                yield current
    except StreamReset as error:
        raise _explain(error, connection.remote_id) from error
    finally:
        recv.stop(StreamCode.NONE)


async def push(
    store: Store, connection: Connection, content: HashAndFormat, caches: ResponderCaches
) -> None:
    """Send content to an endpoint that allows it; return when its transport has everything.

    There is no other acknowledgement in the protocol: use `observe` to see whether it was stored.

    Raises:
        StreamStopped: it refuses, or did not accept the content; `error_code` says which.
        BlobMissing, BlobIncomplete, RangeMissing: the store does not hold it (in full).
        ConnectionClosed, ConnectionClosedByPeer, ConnectionLost: the connection ended first, or nothing
            was taken for `PUSH_STALL_TIMEOUT_S`.
        StorageError: the store failed.
    """
    is_single = content.format is BlobFormat.RAW
    sequence = ChunkRangesSeq.single() if is_single else ChunkRangesSeq.all()
    try:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            send, recv = await connection.open_bi()
    except TimeoutError as late:
        raise ConnectionLost(
            f"the other side did not allow a stream for our push for {STALL_TIMEOUT_S:g} s",
            endpoint_id=connection.remote_id,
            hint="try again later",
        ) from late
    responder = Responder(GetRequest(content.hash, sequence), caches)
    recv.stop(StreamCode.NONE)
    try:
        async with asyncio.timeout(PUSH_STALL_TIMEOUT_S) as patience:
            await send.write(encode_request(PushRequest(content.hash, sequence)))
            over = False
            while not over:
                pieces, _, error, over = await store.run(responder.step)
                for piece in pieces:
                    await send.write(piece)
                    patience.reschedule(asyncio.get_running_loop().time() + PUSH_STALL_TIMEOUT_S)
                if error is not None:
                    raise error.reason if isinstance(error, CannotServe) else error
            await send.finish()
            stopped = await send.stopped()
        if stopped is not None:
            raise StreamStopped(
                "the other side does not accept pushes"
                if stopped == StreamCode.PERMISSION
                else f"the other side stopped the push (code {stopped})",
                error_code=stopped,
                endpoint_id=connection.remote_id,
            )
    except TimeoutError as late:
        raise ConnectionLost(
            f"the other side took nothing of our push for {PUSH_STALL_TIMEOUT_S:g} s",
            endpoint_id=connection.remote_id,
            hint="try again later",
        ) from late
    finally:
        # Has no effect after a complete push.
        send.reset(StreamCode.INTERNAL)
        await release(store, responder)
