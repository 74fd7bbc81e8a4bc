"""Packet protection: vectors, nonces of paths, key phases."""

from __future__ import annotations

import pytest
from aioquic.tls import CipherSuite
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dialkey.quic.handshake.machine import TrafficSecret
from dialkey.quic.packets.protection import (
    HeaderKey,
    KeyUpdateRefused,
    PacketKey,
    PacketProtection,
    TrafficKeys,
)

AES = CipherSuite.AES_128_GCM_SHA256
CHACHA = CipherSuite.CHACHA20_POLY1305_SHA256


def protections(suite: CipherSuite = AES) -> tuple[PacketProtection, PacketProtection]:
    size = 48 if suite == CipherSuite.AES_256_GCM_SHA384 else 32
    a, b = TrafficSecret(suite, bytes([1]) * size), TrafficSecret(suite, bytes([2]) * size)
    return PacketProtection(a, b), PacketProtection(b, a)


def seal(protection: PacketProtection, number: int, data: bytes = b"data") -> bytes:
    nonce = (protection.send.iv ^ number).to_bytes(12, "big")
    return protection.send.encrypt(nonce, data, b"header")


def open_same(protection: PacketProtection, number: int, data: bytes) -> bytes:
    nonce = (protection.recv.iv ^ number).to_bytes(12, "big")
    return protection.recv.decrypt(nonce, data, b"header")


def test_chacha20_vector() -> None:
    """RFC 9001 appendix A.5: a short-header packet, its key, and the key of the next phase."""
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    key = PacketKey(TrafficKeys.derive(TrafficSecret(CHACHA, secret)))
    assert key.iv == int("e0459b3474bdd0e44a41c144", 16)
    header = bytes.fromhex("4200bff4")
    body = key.encrypt((key.iv ^ 654360564).to_bytes(12, "big"), b"\x01", header)
    assert body.hex() == "655e5cd55c41f69080575d7999c25a5bfb"
    mask = HeaderKey(TrafficKeys.derive(TrafficSecret(CHACHA, secret))).masks(body[1:17])
    assert mask[:5].hex() == "aefefe7d03"
    assert key.next().keys.traffic.secret.hex() == (
        "1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"
    )


def test_multipath_vector() -> None:
    """docs/wire/quic.md 3.4: the path id is part of the nonce."""
    key, hp = bytes(range(16)), bytes(range(0x20, 0x30))
    iv = int.from_bytes(bytes(range(0x10, 0x1C)), "big")
    path, number = 3, 0xAEAD
    nonce = (iv ^ (path << 64 | number)).to_bytes(12, "big")
    assert nonce.hex() == "10111210141516171819b4b6"
    header = bytes.fromhex("410102030405060708aead")
    body = AESGCM(key).encrypt(nonce, bytes.fromhex("7e77030101"), header)
    assert body.hex() == "4d9452f2f94c08c632984e3eb674cd8f685e07df49"
    mask = Cipher(algorithms.AES(hp), modes.ECB()).encryptor().update(body[2:18])
    packet = bytes((header[0] ^ mask[0] & 0x1F,)) + header[1:9]
    packet += bytes((header[9] ^ mask[1], header[10] ^ mask[2])) + body
    assert packet.hex() == "420102030405060708fb7d4d9452f2f94c08c632984e3eb674cd8f685e07df49"


@pytest.mark.parametrize("suite", [AES, CipherSuite.AES_256_GCM_SHA384, CHACHA])
def test_many_masks_at_once_are_those_of_each(suite: CipherSuite) -> None:
    size = 48 if suite == CipherSuite.AES_256_GCM_SHA384 else 32
    header = HeaderKey(TrafficKeys.derive(TrafficSecret(suite, bytes(size))))
    samples = [bytes([i]) * 16 for i in range(5)]
    assert header.masks(b"".join(samples)) == b"".join(header.masks(each) for each in samples)


@pytest.mark.parametrize("suite", [AES, CipherSuite.AES_256_GCM_SHA384, CHACHA])
def test_sealing_into_a_buffer_is_sealing(suite: CipherSuite) -> None:
    here, there = protections(suite)
    buffer = bytearray(20)
    nonce = (here.send.iv ^ 7).to_bytes(12, "big")
    here.send.encrypt_into(nonce, b"data", b"header", memoryview(buffer))
    assert bytes(buffer) == seal(here, 7)
    assert open_same(there, 7, bytes(buffer)) == b"data"


def test_a_cipher_without_encrypt_into_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    key = PacketKey(TrafficKeys.derive(TrafficSecret(AES, bytes(32))))
    buffer = bytearray(20)
    key._encrypt_and_copy(bytes(12), b"data", b"", memoryview(buffer))
    assert bytes(buffer) == key.encrypt(bytes(12), b"data", b"")


def test_an_update_turns_both_directions_of_both_sides() -> None:
    here, there = protections()
    old = seal(here, 1)
    assert here.initiate_update(0.0, 1.0, {0: 5})
    assert (here.send_phase, here.recv_phase) == (1, 1)
    assert here.awaits_confirmation
    new = seal(here, 5)
    with pytest.raises(InvalidTag):
        open_same(there, 5, new)
    assert there.open_other_phase(5, new, b"header", 0.0, 1.0, {0: 9}) == b"data"
    assert (there.send_phase, there.recv_phase) == (1, 1)
    assert not there.awaits_confirmation
    # Late packets of the old phase, for a while.
    assert there.open_other_phase(1, old, b"header", 0.5, 1.0, {}) == b"data"
    with pytest.raises(InvalidTag):
        there.open_other_phase(1, old, b"header", 2.0, 1.0, {})
    assert open_same(here, 9, seal(there, 9)) == b"data"


def test_the_next_update_waits_until_the_peer_acknowledged_this_one() -> None:
    here, _ = protections()
    assert here.initiate_update(0.0, 1.0, {0: 5, 1: 2})
    here.confirm_update(0.0, 1.0)
    assert not here.initiate_update(0.0, 1.0, {})
    here.on_acknowledged(0, 4)
    here.on_acknowledged(1, 1)
    assert here.awaits_acknowledgement
    here.on_acknowledged(1, 2)
    assert not here.awaits_acknowledgement
    assert here.initiate_update(0.0, 1.0, {})


def test_an_update_that_we_follow_must_be_acknowledged_too() -> None:
    here, there = protections()
    here.initiate_update(0.0, 1.0, {})
    there.open_other_phase(0, seal(here, 0), b"header", 0.0, 1.0, {0: 3})
    assert not there.initiate_update(0.0, 1.0, {})
    there.on_acknowledged(0, 3)
    assert there.initiate_update(0.0, 1.0, {})


def test_a_peer_that_runs_ahead_is_refused() -> None:
    here, there = protections()
    there.initiate_update(0.0, 1.0, {})
    for _ in range(2):
        here.send = here.send.next()
    with pytest.raises(KeyUpdateRefused):
        there.open_other_phase(0, seal(here, 0), b"header", 0.0, 1.0, {})


def test_rubbish_of_the_other_phase_changes_nothing() -> None:
    _, there = protections()
    for _ in range(3):
        with pytest.raises(InvalidTag):
            there.open_other_phase(0, bytes(30), b"header", 0.0, 1.0, {})
    assert there.updates == 0


def test_a_key_is_due_for_an_update_after_so_many_packets() -> None:
    here, _ = protections()
    assert not here.count_sealed((1 << 22) - 1)
    assert here.count_sealed(1)
    here.initiate_update(0.0, 1.0, {})
    assert not here.count_sealed(1)


def test_secrets_are_not_shown() -> None:
    assert "\\x01" not in repr(TrafficSecret(AES, bytes([1]) * 32))
