"""Measure how fast blobs are hashed, encoded and verified on one core.

Run `python benchmarks/blob_hashing.py`. It prints the best of several runs, in MB/s of 10**6 bytes;
content is random, and nothing is read from disk or network.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from blake3 import blake3

from dialkey_blobs import compress
from dialkey_blobs.decoder import Decoder
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.hashing import group_cvs
from dialkey_blobs.outboard import outboard, outboards
from dialkey_blobs.protocol import GetManyRequest
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.response import ResponseDecoder

FEED_BYTES = 64 * 1024
RUNS = 5


def best(work: Callable[[], object], runs: int = RUNS) -> float:
    """Return the seconds of the fastest run."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def show(what: str, size: int, seconds: float) -> None:
    print(f"{what:<52}{size / seconds / 1e6:>9.0f} MB/s")


def verify(stream: bytes, decoder: Decoder | ResponseDecoder) -> None:
    """Feed a stream as a connection would, without keeping what comes out."""
    view = memoryview(stream)
    for offset in range(0, len(view), FEED_BYTES):
        decoder.feed(view[offset : offset + FEED_BYTES])
    decoder.finish()


def show_streaming(data: bytes) -> None:
    """Measure both ends of a whole blob."""
    made = outboard(data)

    def encode() -> list[bytes]:
        return list(
            Encoder(
                made.hash,
                len(data),
                ChunkRanges.all(),
                lambda offset, length: data[offset : offset + length],
                lambda offset, length: made.data[offset : offset + length],
            )
        )

    stream = b"".join(encode())
    size = len(data)
    show(f"encode {size / 1e6:.1f} MB", size, best(encode))
    seconds = best(lambda: verify(stream, Decoder(made.hash)))
    show(f"decode and verify {size / 1e6:.1f} MB", size, seconds)


def main() -> None:
    """Print the table."""
    content = random.Random(0).randbytes(64 << 20)
    show(
        "blake3 package, whole hash of 64 MiB", len(content), best(lambda: blake3(content).digest())
    )
    for size in (16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20):
        part = content[:size]
        show(
            f"group values, {size >> 10} KiB a call", size, best(lambda part=part: group_cvs(part))
        )
    show("hash and outboard of 64 MiB", len(content), best(lambda: outboard(content)))
    small = [content[i : i + 100_000] for i in range(0, 10_000_000, 100_000)]
    show(
        "hash and outboard of 100 blobs of 100 KB, batched",
        10_000_000,
        best(lambda: outboards(small)),
    )
    for size in (100_000, 1 << 20, 4 << 20, 16 << 20, 64 << 20):
        show_streaming(content[:size])
    tiny = [content[i : i + 1024] for i in range(0, 10_240_000, 1024)]
    request = GetManyRequest.whole(tuple(outboard(data).hash for data in tiny))
    stream = b"".join(len(data).to_bytes(8, "little") + data for data in tiny)
    seconds = best(lambda: verify(stream, ResponseDecoder(request)), 3)
    print(f"{'decode and verify 10,000 blobs of 1 KiB':<52}{len(tiny) / seconds:>9.0f} blobs/s")
    pair = content[:64]
    seconds = best(lambda: [compress.parent_cv(pair) for _ in range(1000)]) / 1000
    print(f"{'one pair in plain Python':<52}{seconds * 1e6:>9.0f} µs")


if __name__ == "__main__":
    main()
