"""Requests of the blobs protocol, and the codes that end streams.

Each bidirectional stream carries one request and its response. A request is a type byte and a body;
for all but Push it ends with the stream's sending side, so it can only be decoded then. A Push
carries its length, because the pushed blobs follow on the same stream.

Source: docs/wire/blobs.md 1.1 to 1.4, 1.6.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from dialkey.errors import InvalidInput, WireError
from dialkey.identity import postcard
from dialkey.limits import MAX_BLOB_REQUEST_BYTES
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.ranges import (
    ChunkRanges,
    ChunkRangesSeq,
    read_range_spec,
    read_ranges_seq,
    write_range_spec,
    write_ranges_seq,
)

__all__ = [
    "ALPN",
    "GetManyRequest",
    "GetRequest",
    "ObserveRequest",
    "PushRequest",
    "Request",
    "RequestReader",
    "StreamCode",
    "decode_request",
    "encode_request",
]

ALPN: Final = b"/iroh-bytes/4"

_HASH_BYTES: Final = 32
_MAX_HASHES: Final = MAX_BLOB_REQUEST_BYTES // _HASH_BYTES


class StreamCode(enum.IntEnum):
    """Application codes of resets, stops and closes.

    `INTERNAL` covers everything that is not policy: not found, held only in part, corrupt, malformed.
    """

    NONE = 0
    PERMISSION = 1
    LIMIT = 2
    INTERNAL = 3


class CloseCode(enum.IntEnum):
    """Application codes with which our getters close a connection.

    iroh's close with 0 and no reason, whatever became of the content. Ours report it: 0 and
    `COMPLETE_REASON` when everything is where it belongs, `FAILED` otherwise.
    """

    COMPLETE = 0
    FAILED = 4


COMPLETE_REASON: Final = b"complete"
FAILED_REASON: Final = b"failed"


class _RequestType(enum.IntEnum):
    GET = 0
    OBSERVE = 1
    PUSH = 8
    GET_MANY = 9


@attrs.frozen
class GetRequest:
    """Ask for a blob and, where `ranges` say so, for children of the hash sequence in it.

    Attributes:
        hash: the blob.
        ranges: index 0 is the blob, index i + 1 its child i.
    """

    hash: Hash
    ranges: ChunkRangesSeq

    @classmethod
    def blob(cls, hash: Hash, ranges: ChunkRanges | None = None) -> GetRequest:
        """Ask for one blob, or for ranges of it."""
        return cls(hash, ChunkRangesSeq.single(ChunkRanges.all() if ranges is None else ranges))

    @classmethod
    def all(cls, content: HashAndFormat) -> GetRequest:
        """Ask for all of a blob, or of a hash sequence and its children."""
        if content.format is BlobFormat.RAW:
            return cls.blob(content.hash)
        return cls(content.hash, ChunkRangesSeq.all())


@attrs.frozen
class GetManyRequest:
    """Ask for several blobs.

    Attributes:
        hashes: the blobs, in the order in which they will arrive.
        ranges: index i is for blob i.
    """

    hashes: tuple[Hash, ...]
    ranges: ChunkRangesSeq

    @classmethod
    def whole(cls, hashes: tuple[Hash, ...]) -> GetManyRequest:
        """Ask for all of several blobs."""
        return cls(hashes, ChunkRangesSeq.finite([ChunkRanges.all()] * len(hashes)))


@attrs.frozen
class ObserveRequest:
    """Ask what the other side holds of a blob, now and after each change.

    Attributes:
        hash: the blob.
        ranges: the chunks of interest; providers answer about all chunks anyway.
    """

    hash: Hash
    ranges: ChunkRanges = attrs.field(factory=ChunkRanges.all)


@attrs.frozen
class PushRequest:
    """Offer a blob, and children as in `GetRequest`; the blobs follow as in a response."""

    hash: Hash
    ranges: ChunkRangesSeq


Request = GetRequest | GetManyRequest | ObserveRequest | PushRequest


def encode_request(request: Request) -> bytes:
    """Encode a request; for a Push this is what comes before the blobs.

    Raises:
        InvalidInput: the request is larger than the protocol allows.
    """
    body = postcard.Writer()
    match request:
        case GetRequest():
            kind = _RequestType.GET
        case ObserveRequest():
            kind = _RequestType.OBSERVE
        case PushRequest():
            kind = _RequestType.PUSH
        case GetManyRequest():
            kind = _RequestType.GET_MANY
    if isinstance(request, GetManyRequest):
        body.varint(len(request.hashes))
        for hash in request.hashes:
            body.raw(hash.digest)
    else:
        body.raw(request.hash.digest)
    if isinstance(request, ObserveRequest):
        write_range_spec(body, request.ranges)
    else:
        write_ranges_seq(body, request.ranges)
    # iroh's getter counts the type byte towards the limit, its provider does not.
    if len(body) >= MAX_BLOB_REQUEST_BYTES:
        raise InvalidInput(
            f"the request takes {len(body) + 1} bytes; the protocol allows"
            f" {MAX_BLOB_REQUEST_BYTES}",
            hint="ask for fewer blobs or ranges at once",
        )
    head = postcard.Writer().u8(kind)
    if isinstance(request, PushRequest):
        head.varint(len(body))
    return bytes(head.raw(bytes(body)))


def decode_request(data: bytes) -> GetRequest | GetManyRequest | ObserveRequest:
    """Decode a request that ends with its stream.

    Bytes after the body are ignored, as in iroh.

    Raises:
        WireError: malformed, too large, a Push, or of a type that is not known.
    """
    request, _ = _decode(data, _kind(data))
    if isinstance(request, PushRequest):
        raise WireError("a push request does not end with its stream")
    return request


def _kind(data: bytes | bytearray) -> _RequestType:
    if not data:
        raise WireError("the stream ended before a request")
    try:
        return _RequestType(data[0])
    except ValueError:
        raise WireError(f"requests of type {data[0]:#04x} are not known") from None


def _decode(data: bytes, kind: _RequestType) -> tuple[Request, int]:
    """Decode the body in `data`; also return where the bytes of a Push begin."""
    if kind is not _RequestType.PUSH and len(data) > MAX_BLOB_REQUEST_BYTES + 1:
        raise WireError(f"a request exceeds {MAX_BLOB_REQUEST_BYTES} bytes")
    reader = postcard.Reader(data)
    reader.u8()
    match kind:
        case _RequestType.GET:
            return GetRequest(Hash(reader.take(_HASH_BYTES)), read_ranges_seq(reader)), len(data)
        case _RequestType.OBSERVE:
            return ObserveRequest(Hash(reader.take(_HASH_BYTES)), read_range_spec(reader)), len(
                data
            )
        case _RequestType.GET_MANY:
            count = reader.count(_MAX_HASHES)
            packed = reader.take(count * _HASH_BYTES)
            hashes = tuple(Hash(packed[i : i + 32]) for i in range(0, len(packed), 32))
            return GetManyRequest(hashes, read_ranges_seq(reader)), len(data)
        case _RequestType.PUSH:
            body = postcard.Reader(reader.byte_string(MAX_BLOB_REQUEST_BYTES))
            request = PushRequest(Hash(body.take(_HASH_BYTES)), read_ranges_seq(body))
            return request, len(data) - reader.remaining


class RequestReader:
    """Collect a stream's first bytes until they are a request.

    Feed what arrives; a Push is returned as soon as its header is complete, with the blobs' first
    bytes in `remainder`; any other request is returned by `finish`. At most the 1 MiB of a request
    is held.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = 0

    @property
    def buffered_bytes(self) -> int:
        """What is held now."""
        return len(self._buffer)

    @property
    def remainder(self) -> bytes:
        """After a Push: what was fed beyond its header."""
        return bytes(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> PushRequest | None:
        """Take the next bytes.

        Raises:
            WireError: the request is malformed, too large, or of a type that is not known.
        """
        self._buffer += data
        if not self._buffer:
            return None
        kind = _kind(self._buffer)
        if kind is _RequestType.PUSH:
            return self._feed_push()
        if len(self._buffer) > MAX_BLOB_REQUEST_BYTES + 1:
            raise WireError(f"a request exceeds {MAX_BLOB_REQUEST_BYTES} bytes")
        return None

    def finish(self) -> GetRequest | GetManyRequest | ObserveRequest:
        """Note that the stream's sending side has ended, and return the request.

        Raises:
            WireError: malformed, incomplete, or a Push that was cut off.
        """
        return decode_request(bytes(self._buffer))

    def _feed_push(self) -> PushRequest | None:
        if len(self._buffer) < self._wanted:
            return None
        head = postcard.Reader(self._buffer[:11])
        head.u8()
        try:
            length = head.varint()
        except WireError:
            if len(self._buffer) >= 11:
                raise
            return None
        if length > MAX_BLOB_REQUEST_BYTES:
            raise WireError(f"a request exceeds {MAX_BLOB_REQUEST_BYTES} bytes")
        end = min(len(self._buffer), 11) - head.remaining + length
        self._wanted = end
        if len(self._buffer) < end:
            return None
        request, end = _decode(bytes(self._buffer[:end]), _RequestType.PUSH)
        del self._buffer[:end]
        assert isinstance(request, PushRequest)
        return request
