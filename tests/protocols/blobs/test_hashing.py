"""Chaining values and outboards, in lanes, in plain Python and against the blake3 package."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dialkey import native
from dialkey.errors import InvalidInput
from dialkey_blobs import compress
from dialkey_blobs.hashing import (
    group_cvs,
    parent_cv,
    parent_cvs,
    parent_rows,
    subtree_cv,
    subtree_cvs,
    subtree_levels,
)
from dialkey_blobs.outboard import OutboardBuilder, outboard, outboards
from dialkey_blobs.tree import left_length, outboard_size

pytestmark = pytest.mark.usefixtures("each_hashing")


def counting(size: int) -> bytes:
    """Return the official test input: byte i is i mod 251."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def letters(size: int) -> bytes:
    """Return the other side's test data: each chunk is one letter, A to Z and again."""
    chunks = -(-size // 1024)
    return b"".join(bytes([65 + i % 26]) * 1024 for i in range(chunks))[:size]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def naive_cv(data: bytes, start: int) -> bytes:
    if len(data) <= 1024:
        return compress.chunk_cv(data, start)
    left = left_length(len(data))
    return compress.parent_cv(
        naive_cv(data[:left], start) + naive_cv(data[left:], start + left // 1024)
    )


# --- vectors: docs/wire/blobs.md 9.1, 9.2 --------------------------------------------------------

LETTERS = [
    (
        1,
        "32684bfa28c0c84d6f210511aace0efc5171c7889148ba89208d5aa29705fa98",
        None,
    ),
    (
        1024,
        "f7314bcd4f08b945da46890d4abcbe9bd78905369461379ed5ab893eaccff236",
        None,
    ),
    (
        16383,
        "eed1f8762cade3e87900e09b36198013bc892efcc8b6116df0f0ea3f41010573",
        None,
    ),
    (
        16384,
        "86e4285d19bee1141aae6de3dc496a0e16ecf5873d8a9dbe83d3568f94dba1fc",
        None,
    ),
    (
        16385,
        "2b0431903e5967a081fa64e6210c0684c734a3ca02c7b2582c39f0be117bace8",
        "f7dac24093b3d30fe5c2266431687008f3e92f0f7a645723b53c328a494b6d4e",
    ),
    (
        1 << 20,
        "3dd77abb6c0125fb748313704ccd74ce9a7e94247dcf917bd96118b4f549534b",
        "8e83925f83921be8eff9db86a7ea107c3cd90bbedcbb1c58666145b2f33540e3",
    ),
    (
        8 << 20,
        "389192a6cb69a6bafd5586cac3e82cd640150686c64bb348ab75ff255dae275e",
        "9706df15ed82d555e6442c4e0251e9f6deac789eb5aca381b375754f8d25b5da",
    ),
]


@pytest.mark.parametrize(("size", "hash", "outboard_hash"), LETTERS)
def test_outboards_of_letters(size: int, hash: str, outboard_hash: str | None) -> None:
    made = outboard(letters(size))
    assert str(made.hash) == hash
    assert len(made.data) == outboard_size(size)
    if outboard_hash is None:
        assert made.data == b""
    else:
        assert blake3(made.data).hexdigest() == outboard_hash


COUNTING = [
    (
        16385,
        "1dabe216be2578830263b049de1639f39f05a4da616b9b78c7a5e4e41662fd1f",
        "5626a11c3fae62894290bd6e4fdd50f8",
    ),
    (
        32769,
        "da589428d9b32c97658a04a21c0c8a38aad2ac402120819d956fd6d62bbfa36e",
        "c3ad0ba7856e58e961f4509cb5eb57b7",
    ),
    (
        49153,
        "447d09cdb7cc2b870f041eda4d9b759195db784047b12666ec29e6905d38ac9c",
        "44955c19904806711ffaed3cc31282e3",
    ),
    (
        70000,
        "5a8ef06db0fc4e6c27f6e4a44e333916934b860d747d8d65f56df4597f0421bf",
        "7486e30aea8a8c8db7ff9d9db1c6e73d",
    ),
    (
        100000,
        "d93c23eedaf165a7e0be908ba86f1a7a520d568d2d13cde787c8580c5c72cc54",
        "5cd8e354c507dcd17e7d4c9fac4c1d59",
    ),
    (
        1 << 20,
        "74cb441fd087764ca9c3694da742ebe30cbeb3060a17009ca81825c7a8d10343",
        "01080dfc8610ed993ae7911421eb1ff9",
    ),
    (
        (10 << 20) + 7,
        "72a0cc1ad8a3bcfc68379cc04c66d958107bcb3b519bad05693862523c25b0c6",
        "381ace3c78499ecd6907db4896856ba0",
    ),
]


@pytest.mark.parametrize(("size", "hash", "outboard_hash"), COUNTING)
def test_outboards_of_counting_bytes(size: int, hash: str, outboard_hash: str) -> None:
    made = outboard(counting(size))
    assert str(made.hash) == hash == blake3(counting(size)).hexdigest()
    assert blake3(made.data).hexdigest()[:32] == outboard_hash


def test_chunk_and_parent_vectors() -> None:
    data = counting(65536)
    expected = {
        0: "5c9e654411e393d1f4bec710ccd5bc5669ab177d610a0eb691fcfee92fb4e8b1",
        1: "5b1f23b8390368a2c15095910389d1b716eb52a6dfd34d0aa66a22a21b761ca7",
        15: "14e4b9a8c2343a2332b76cf060f6d36abdd1deefe818546883e6087ce4dd9045",
        16: "6373581c55261be4604bc742fb40413f957bac84f55c25880b949d321a44208d",
    }
    chunks = {i: data[1024 * i : 1024 * i + 1024] for i in expected}
    for i, value in expected.items():
        assert compress.chunk_cv(chunks[i], i).hex() == value
        assert subtree_cv(chunks[i], i).hex() == value
    left, right = bytes.fromhex(expected[0]), bytes.fromhex(expected[1])
    assert (
        parent_cv(left, right).hex()
        == "811f7d4f1735258e27c68b9214ff7c4aac866d47f73deef1fd8908b5e38f804f"
    )
    assert (
        parent_cv(left, right, is_root=True).hex()
        == "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a"
    )
    assert parent_cv(left, right, is_root=True) == blake3(data[:2048]).digest()


def test_group_vectors() -> None:
    groups = [row.tobytes().hex() for row in group_cvs(counting(65536))]
    assert groups == [
        "5384f9b342c6cb86badedcbe662b0e980476a8db17db3cc1f13b19329749ab1f",
        "406632eceb31aa6735f072ad0554f5963f4082b5139978455b44f67732cf949d",
        "bccbba6c1168012dc733c21a85cc8500576e28489a119e848307770260b3c87f",
        "762831a5a6c2ca9fad845da11b211517d966e798daa3de1a9cb06e2e61cbf785",
    ]


@pytest.mark.parametrize(
    ("data", "start_chunk", "expected"),
    [
        (
            counting(70000)[65536:],
            64,
            "620a39052da00f422ba1183399877919a28233b275e3de519415b2d1f436f9f6",
        ),
        (
            counting(16384),
            16 << 32,
            "e5d1daae19f68735e7dca37088ff10d6e7e2e128cdae1ab6756533c47b102669",
        ),
        (
            bytes(16384),
            0,
            "97d5904f808b1050b96e65fd7d254feafc434931da41d1215415bb2adc890475",
        ),
        (
            bytes(16384),
            16,
            "1bbec3b0da531ff4151be9809d18c7a4da37e75ca806a08c9635c5d53057043e",
        ),
        (b"", 0, "b4686b3c8d953f4d185d51bc9cd7bce6d9782d7659f8c06068d4c3ffa6e56841"),
    ],
)
def test_subtree_vectors(data: bytes, start_chunk: int, expected: str) -> None:
    assert subtree_cv(data, start_chunk).hex() == expected
    # Enough company to go through the lanes rather than through plain Python.
    batch = subtree_cvs([(data, start_chunk)] * 5)
    assert {value.hex() for value in batch} == {expected}


# --- lanes against plain Python --------------------------------------------------------------------

piece_sizes = st.sampled_from([0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 5120, 16383, 16384])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(piece_sizes | st.integers(0, 16384), st.integers(0, 2**54)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_mixed_pieces_agree_with_the_naive_tree(shapes: list[tuple[int, int]], seed: int) -> None:
    pieces = [(noise(size, seed + i), start) for i, (size, start) in enumerate(shapes)]
    assert subtree_cvs(pieces) == [naive_cv(data, start) for data, start in pieces]


@pytest.mark.parametrize("start", [2**32 - 1, 2**32, 2**34, 2**37 + 5, 2**54 - 16])
def test_counters_beyond_32_bits(start: int) -> None:
    data = noise(16384)
    assert subtree_cv(data, start) == naive_cv(data, start)


@pytest.mark.parametrize("count", [1, 3, 4, 50])
def test_many_parents(count: int) -> None:
    pairs = [noise(64, seed) for seed in range(count)]
    roots = [seed % 3 == 0 for seed in range(count)]
    assert parent_cvs(pairs, roots) == [
        compress.parent_cv(pair, root) for pair, root in zip(pairs, roots, strict=True)
    ]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 50, 5000])
def test_rows_of_parents(count: int) -> None:
    joined = noise(64 * count, count)
    pairs = [joined[i : i + 64] for i in range(0, len(joined), 64)]
    rows = parent_rows(joined)
    assert rows.shape == (count, 32)
    assert [row.tobytes() for row in rows] == parent_cvs(pairs, [False] * count)


def test_batches_larger_than_the_lanes() -> None:
    data = noise((5 << 20) + 3333)
    whole = [row.tobytes() for row in group_cvs(data, 32)]
    pieces = [(data[i : i + 16384], 32 + i // 1024) for i in range(0, len(data), 16384)]
    assert subtree_cvs(pieces) == whole
    assert [whole[0], whole[256], whole[-1]] == [
        naive_cv(*pieces[0]),
        naive_cv(*pieces[256]),
        naive_cv(*pieces[-1]),
    ]


def test_pieces_above_a_group_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk group"):
        subtree_cvs([(bytes(16385), 0)])


@pytest.mark.parametrize("size", [20000, (3 << 20) + 5])
def test_views_and_bytearrays_are_taken(size: int) -> None:
    data = noise(size)
    shifted = memoryview(b"x" + data)[1:]
    assert group_cvs(bytearray(data)).tolist() == group_cvs(shifted).tolist()
    assert group_cvs(data).tolist() == group_cvs(shifted).tolist()
    assert len(group_cvs(b"")) == 0


@pytest.mark.parametrize("size", [1, 1024, 1025, 3000, 5 * 1024, 16384])
def test_levels_hold_every_node(size: int) -> None:
    data = noise(size)
    (levels,) = subtree_levels([(data, 48)])
    for number, level in enumerate(levels):
        step = 1024 << number
        expected = [
            naive_cv(data[offset : offset + step], 48 + offset // 1024)
            for offset in range(0, size, step)
        ]
        assert level == b"".join(expected)
    assert len(levels) == max(0, (-(-size // 1024) - 1).bit_length())


# --- the native part against both ------------------------------------------------------------------


def without_native(work: Callable[[], object]) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "part", lambda: None)
        return work()


# A few of them are above what the native part counts to, and many no place of a subtree.
starts = st.sampled_from([0, 1, 16, 48, 2**32, 2**54 - 32, 2**54 - 16, 2**54]) | st.integers(
    0, 2**54
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(piece_sizes | st.integers(0, 16384), starts), max_size=12),
    st.integers(0, 2**32),
)
def test_it_makes_the_same_of_any_pieces(shapes: list[tuple[int, int]], seed: int) -> None:
    pieces = [(noise(size, seed + i), start) for i, (size, start) in enumerate(shapes)]
    assert subtree_cvs(pieces) == without_native(lambda: subtree_cvs(pieces))
    assert subtree_levels(pieces) == without_native(lambda: subtree_levels(pieces))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40 * 16384), starts, st.integers(0, 2**32))
def test_it_makes_the_same_of_any_groups(size: int, start: int, seed: int) -> None:
    data, start = noise(size, seed), start // 16 * 16
    made = without_native(lambda: group_cvs(data, start).tolist())
    assert group_cvs(data, start).tolist() == made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=64, max_size=64), st.booleans()), max_size=30))
def test_it_makes_the_same_of_any_pairs(given_pairs: list[tuple[bytes, bool]]) -> None:
    pairs, roots = [pair for pair, _ in given_pairs], [root for _, root in given_pairs]
    assert parent_cvs(pairs, roots) == without_native(lambda: parent_cvs(pairs, roots))
    for pair, root in given_pairs:
        assert parent_cv(pair[:32], pair[32:], root) == compress.parent_cv(pair, root)


# --- outboards -------------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 4 * MIB, 4 * MIB + 1, 8 * MIB, 9 * MIB + 77])
@pytest.mark.parametrize("step", [100_003, 4 * MIB])
def test_builders_agree(size: int, step: int) -> None:
    data = noise(size)
    in_memory = outboard(data)
    assert in_memory.hash.digest == blake3(data).digest()
    assert in_memory.size == size
    written = bytearray(outboard_size(size))

    def write(offset: int, run: bytes) -> None:
        written[offset : offset + len(run)] = run

    builder = OutboardBuilder(size, write)
    for offset in range(0, size, step):
        builder.update(data[offset : offset + step])
    finished = builder.finish()
    assert finished.hash == in_memory.hash
    assert finished.data == b""
    assert bytes(written) == in_memory.data


def test_outboards_share_batches() -> None:
    blobs = [noise(size) for size in (5, 20_000, 0, 70_000, 300_000, 16_384, 16_385)]
    assert outboards(blobs) == [outboard(blob) for blob in blobs]
    assert outboards([]) == []


def test_a_size_that_is_not_kept_is_noticed() -> None:
    builder = OutboardBuilder(10, lambda offset, run: None)
    with pytest.raises(InvalidInput, match="more bytes"):
        builder.update(bytes(11))
    builder = OutboardBuilder(10, lambda offset, run: None)
    builder.update(bytes(9))
    with pytest.raises(InvalidInput, match="instead of"):
        builder.finish()
    with pytest.raises(InvalidInput, match="only if"):
        OutboardBuilder(10)
