"""The extension beside plain Python: same bytes, and nothing but None for what is not a run."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import blake3
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from dialkey_blobs.hashing import group_cvs

# Not `importorskip`: an extension that is there and does not load is a failure.
try:
    import dialkey_native
except ModuleNotFoundError:
    pytest.skip("dialkey-native is not built; `make native` does it", allow_module_level=True)

native: ModuleType = dialkey_native
SUITES = {"aes-128-gcm": 16, "aes-256-gcm": 32, "chacha20-poly1305": 32}
CID = b"12345678"


def varint(value: int, width: int) -> bytes:
    return (value | {1: 0, 2: 1, 4: 2, 8: 3}[width] << (8 * width - 2)).to_bytes(width, "big")


class Oracle:
    """One direction's keys, one packet at a time, from `cryptography` alone."""

    def __init__(self, suite: str, seed: int = 1) -> None:
        chance = random.Random(seed)
        self.key = chance.randbytes(SUITES[suite])
        self.iv = chance.randbytes(12)
        self.header = chance.randbytes(SUITES[suite])
        self.chacha = suite.startswith("chacha")
        self.aead: Any = (ChaCha20Poly1305 if self.chacha else AESGCM)(self.key)
        self.native = native.PacketKey(suite, self.key, self.iv, self.header)

    def mask(self, sample: bytes) -> bytes:
        if self.chacha:
            cipher: Any = Cipher(algorithms.ChaCha20(self.header, sample), mode=None)
            mask: bytes = cipher.encryptor().update(bytes(5))
            return mask
        return Cipher(algorithms.AES(self.header), modes.ECB()).encryptor().update(sample)[:5]

    def seal(
        self, plain: bytes, number: int, path_id: int, *, first: int = 0x41, cid: bytes = CID
    ) -> bytes:
        nonce = int.from_bytes(self.iv, "big") ^ (path_id << 64 | number)
        head = bytes((first,)) + cid + (number & 0xFFFF).to_bytes(2, "big")
        body = self.aead.encrypt(nonce.to_bytes(12, "big"), plain, head)
        mask = self.mask(body[2:18])
        masked = bytes((head[0] ^ mask[0] & 0x1F,)) + cid
        return masked + bytes((head[9] ^ mask[1], head[10] ^ mask[2])) + body

    def run(self, data: bytes, size: int, number: int, path_id: int, offset: int) -> bytes:
        wide = offset + len(data) >= 1 << 30
        head = b"\x0c\x40\x44"
        room = size - 11 - 16 - len(head) - (8 if wide else 4)
        return b"".join(
            self.seal(
                head + varint(offset + at, 8 if wide else 4) + data[at : at + room],
                number + at // room,
                path_id,
            )
            for at in range(0, len(data), room)
        )


@pytest.mark.parametrize("suite", SUITES)
@given(seed=st.integers(0, 2**32), samples=st.integers(0, 50))
def test_masks_are_those_of_the_cipher(suite: str, seed: int, samples: int) -> None:
    oracle = Oracle(suite)
    data = random.Random(seed).randbytes(16 * samples)
    masks = oracle.native.masks(data)
    assert len(masks) == len(data)
    for at in range(0, len(data), 16):
        assert masks[at : at + 5] == oracle.mask(data[at : at + 16])


@pytest.mark.parametrize("suite", SUITES)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(100, 1500),
    packets=st.integers(1, 12),
    short=st.integers(0, 90),
    number=st.integers(0, 2**40),
    path_id=st.integers(0, 2**32 - 1),
    offset=st.one_of(st.integers(0, 2**20), st.integers(2**30 - 9999, 2**62 - 2**20)),
)
def test_a_run_is_sealed_and_opened_as_its_packets_are(
    suite: str,
    seed: int,
    size: int,
    packets: int,
    short: int,
    number: int,
    path_id: int,
    offset: int,
) -> None:
    oracle = Oracle(suite)
    wide = offset + packets * size >= 1 << 30
    room = size - 11 - 16 - 3 - (8 if wide else 4)
    data = random.Random(seed).randbytes(packets * room - min(short, room - 4))
    wide = offset + len(data) >= 1 << 30
    if room != size - 11 - 16 - 3 - (8 if wide else 4):
        return
    sealed = oracle.native.seal_run(
        0x41, CID, path_id, number, b"\x0c\x40\x44", offset, wide, memoryview(data), size
    )
    assert sealed == oracle.run(data, size, number, path_id, offset)
    whole = len(sealed) // size
    opened = oracle.native.open_run(sealed[: whole * size], size, path_id, 0, number)
    wraps = (number & 0xFFFF) + whole > 1 << 16
    if whole == 0 or wraps:
        assert opened is None
    else:
        assert opened == (number, 0x44, offset, data[: whole * room])


def base() -> tuple[Oracle, bytearray]:
    oracle = Oracle("aes-128-gcm")
    data = random.Random(4).randbytes(5 * (300 - 11 - 16 - 3 - 4))
    return oracle, bytearray(oracle.run(data, 300, 70, 2, 1000))


def test_the_base_of_the_hostile_tests_is_a_run() -> None:
    oracle, run = base()
    assert oracle.native.open_run(run, 300, 2, 0, 70) is not None
    assert oracle.native.open_run(run, 300, 2, 0, 60) is not None


@given(at=st.integers(0, 1499), bit=st.integers(0, 7))
def test_no_changed_bit_passes(at: int, bit: int) -> None:
    oracle, run = base()
    run[at] ^= 1 << bit
    assert oracle.native.open_run(run, 300, 2, 0, 70) is None


@given(st.binary(max_size=2000), st.integers(0, 2000), st.integers(0, 2**62))
def test_noise_is_not_a_run(noise: bytes, segment: int, expected: int) -> None:
    oracle, _ = base()
    assert oracle.native.open_run(noise, segment, 0, 0, expected) is None


@pytest.mark.parametrize(
    "change",
    [
        {"path_id": 3},
        {"phase": 1},
        {"expected": 71},
        {"segment": 250},
        {"segment": 0},
        {"segment": 1500 * 300},
    ],
)
def test_what_does_not_fit_is_not_a_run(change: dict[str, int]) -> None:
    oracle, run = base()
    how = {"segment": 300, "path_id": 2, "phase": 0, "expected": 70, **change}
    assert oracle.native.open_run(bytes(run), *how.values()) is None


@pytest.mark.parametrize(
    "plains",
    [
        # type, offset, length and end of stream that do not continue the first packet
        (b"\x0c\x04" + varint(0, 4), b"\x0c\x04" + varint(90, 4)),
        (b"\x0c\x04" + varint(0, 4), b"\x0c\x08" + varint(94, 4)),
        (b"\x0c\x04" + varint(0, 4), b"\x0d\x04" + varint(94, 4)),
        (b"\x0d\x04" + varint(0, 4), b"\x0d\x04" + varint(94, 4)),
        (b"\x08\x04" + varint(0, 4), b"\x08\x04" + varint(94, 4)),
        (b"\x01\x04" + varint(0, 4), b"\x01\x04" + varint(94, 4)),
        (b"\x0e\x04" + varint(0, 4) + b"\x40\x5b", b"\x0e\x04" + varint(93, 4) + b"\x40\x5b"),
        (b"\x0c\x04" + varint(2**30 - 95, 4), b"\x0c\x04" + varint(2**30 - 1, 4)),
        (b"\x0c\x04\x40\x20", b"\x0c\x04\x40\x82"),
        (b"\x0c", b"\x0c"),
    ],
)
def test_authentic_packets_that_are_no_run_go_the_general_way(plains: tuple[bytes, bytes]) -> None:
    oracle = Oracle("aes-128-gcm")
    size = 100
    batch = b"".join(
        oracle.seal(plain + bytes(size - len(plain)), 9 + i, 0) for i, plain in enumerate(plains)
    )
    assert oracle.native.open_run(batch, size + 27, 0, 0, 9) is None


def test_a_length_that_fills_the_packet_is_read() -> None:
    oracle = Oracle("aes-128-gcm")
    batch = b"".join(
        oracle.seal(b"\x0e\x04" + varint(92 * i, 4) + b"\x40\x5c" + bytes((i,)) * 92, 9 + i, 0)
        for i in range(3)
    )
    number, stream, offset, data = oracle.native.open_run(batch, 127, 0, 0, 9)
    assert (number, stream, offset) == (9, 4, 0)
    assert data == b"\0" * 92 + b"\1" * 92 + b"\2" * 92


@pytest.mark.parametrize(
    "change",
    [
        {"cid": b"short"},
        {"head": bytes(30)},
        {"size": 30},
        {"data": b""},
        {"offset": 2**30},
        {"offset": 2**63},
        {"number": 2**64 - 1},
    ],
)
def test_wrong_arguments_are_value_errors(change: dict[str, Any]) -> None:
    how = {
        "first": 0x41,
        "cid": CID,
        "path_id": 0,
        "number": 1,
        "head": b"\x0c\x04",
        "offset": 0,
        "wide": False,
        "data": b"x" * 500,
        "size": 200,
        **change,
    }
    with pytest.raises(ValueError, match=r"run|offset"):
        Oracle("aes-128-gcm").native.seal_run(*how.values())


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
