"""The extension beside plain Python. Runs: `tests/framework/quic/test_runs.py`, for both alike."""

from __future__ import annotations

import random
from types import ModuleType

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_oracle import SUITES, Oracle

from dialkey_blobs.hashing import group_cvs

# Not `importorskip`: an extension that is there and does not load is a failure.
try:
    import dialkey_native
except ModuleNotFoundError:
    pytest.skip("dialkey-native is not built; `make native` does it", allow_module_level=True)

native: ModuleType = dialkey_native


@pytest.mark.parametrize("suite", SUITES)
@given(seed=st.integers(0, 2**32), samples=st.integers(0, 50))
def test_masks_are_those_of_the_cipher(suite: str, seed: int, samples: int) -> None:
    oracle = Oracle(suite)
    data = random.Random(seed).randbytes(16 * samples)
    masks = native.PacketKey(suite, oracle.key, oracle.iv, oracle.header).masks(data)
    assert len(masks) == len(data)
    for at in range(0, len(data), 16):
        assert masks[at : at + 5] == oracle.mask(data[at : at + 16])


@pytest.mark.parametrize(
    ("suite", "key", "iv", "header"),
    [
        ("rot13", 16, 12, 16),
        ("aes-128-gcm", 15, 12, 16),
        ("aes-128-gcm", 16, 11, 16),
        ("aes-256-gcm", 32, 12, 16),
    ],
)
def test_wrong_keys_are_value_errors(suite: str, key: int, iv: int, header: int) -> None:
    with pytest.raises(ValueError, match=r"suite|length|bytes"):
        native.PacketKey(suite, bytes(key), bytes(iv), bytes(header))


@given(size=st.integers(1, 200_000), start=st.integers(0, 2**40), seed=st.integers(0, 99))
def test_chaining_values_are_those_of_the_lanes(size: int, start: int, seed: int) -> None:
    data = random.Random(seed).randbytes(size)
    start *= 16
    assert native.group_cvs(data, start, 16384) == group_cvs(data, start).tobytes()


@given(st.integers(1, 6), st.integers(0, 99))
def test_parents_reach_the_hash(height: int, seed: int) -> None:
    data = random.Random(seed).randbytes(16384 << height)
    level = native.group_cvs(data, 0, 16384)
    while len(level) > 64:
        level = native.parent_cvs(level, False)
    assert native.parent_cvs(level, True) == blake3.blake3(data).digest()
    assert native.group_cvs(data, 0, 16384 << height) == native.parent_cvs(level, False)


@pytest.mark.parametrize(
    ("start", "size"), [(0, 0), (0, 1000), (0, 3 * 1024), (1, 2048), (2**64 - 16, 16384)]
)
def test_what_is_not_a_subtree_is_refused(start: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"subtree|chunk"):
        native.group_cvs(b"x" * 5000, start, size)


@pytest.mark.parametrize(("pairs", "root"), [(63, False), (96, False), (128, True), (0, True)])
def test_what_is_not_a_pair_is_refused(pairs: int, root: bool) -> None:
    with pytest.raises(ValueError, match="pairs"):
        native.parent_cvs(bytes(pairs), root)
