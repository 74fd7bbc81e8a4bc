"""Whole blobs over several batches: checked by the hash of the prefix, and still exact about faults."""

from __future__ import annotations

import random

import pytest

from dialkey import native
from dialkey_blobs import verifying
from dialkey_blobs.decoder import Decoder
from dialkey_blobs.encoder import Encoder
from dialkey_blobs.errors import LeafMismatch, VerificationError
from dialkey_blobs.events import VerifiedLeaf
from dialkey_blobs.outboard import outboard
from dialkey_blobs.ranges import ChunkRanges

GROUP = 16_384

pytestmark = pytest.mark.usefixtures("each_hashing")


def encoded(data: bytes) -> tuple[object, bytes]:
    made = outboard(data)
    encoder = Encoder(
        made.hash,
        len(data),
        ChunkRanges.all(),
        lambda offset, length: data[offset : offset + length],
        lambda offset, length: made.data[offset : offset + length],
    )
    return made.hash, b"".join(encoder)


@pytest.mark.parametrize("groups", [5, 6, 7, 8, 9, 11, 16, 21])
@pytest.mark.parametrize("batch_groups", [1, 2, 3, 4])
def test_good_content_needs_no_chaining_values(
    groups: int, batch_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(groups).randbytes(groups * GROUP - 1000)
    hash, stream = encoded(data)
    hashed: list[int] = []
    original = verifying.subtree_cvs

    def counting(pieces: list[tuple[bytes, int]]) -> list[bytes]:
        hashed.extend(start for _, start in pieces)
        return original(pieces)

    monkeypatch.setattr(verifying, "subtree_cvs", counting)
    # It makes chaining values as fast as the package hashes, and is asked for them all.
    monkeypatch.setattr(native, "part", lambda: None)
    decoder = Decoder(hash, batch_bytes=batch_groups * GROUP)  # type: ignore[arg-type]
    out = b"".join(e.data for e in decoder.feed(stream) if isinstance(e, VerifiedLeaf))
    assert out == data
    assert decoder.done
    # The first group alone has no children from whose values its hash could follow.
    assert set(hashed) <= {0}


def feed_all(decoder: Decoder, stream: bytes, out: list[bytes]) -> None:
    for start in range(0, len(stream), 5000):
        events = decoder.feed(stream[start : start + 5000])
        out.extend(event.data for event in events if isinstance(event, VerifiedLeaf))


@pytest.mark.parametrize("batch_groups", [1, 2, 3])
def test_every_bad_group_is_named_and_nothing_bad_comes_out(batch_groups: int) -> None:
    groups = 7
    data = random.Random(7).randbytes(groups * GROUP - 5)
    hash, stream = encoded(data)
    for group in range(groups):
        at = stream.index(data[group * GROUP : group * GROUP + 32])
        bad = bytearray(stream)
        bad[at + 100] ^= 1
        decoder = Decoder(hash, batch_bytes=batch_groups * GROUP)  # type: ignore[arg-type]
        out: list[bytes] = []
        with pytest.raises(LeafMismatch) as caught:
            feed_all(decoder, bytes(bad), out)
        good = b"".join(out)
        assert caught.value.item.start_chunk == group * 16
        good += b"".join(e.data for e in caught.value.verified if isinstance(e, VerifiedLeaf))
        assert good == data[: group * GROUP]


def test_a_bad_pair_is_found_although_the_content_is_good() -> None:
    data = random.Random(3).randbytes(9 * GROUP)
    hash, stream = encoded(data)
    for at in range(8, 8 + 4 * 64, 16):
        bad = bytearray(stream)
        bad[at] ^= 128
        decoder = Decoder(hash, batch_bytes=2 * GROUP)  # type: ignore[arg-type]
        with pytest.raises(VerificationError):
            decoder.feed(bad)
