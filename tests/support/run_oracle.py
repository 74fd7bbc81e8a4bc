"""Sealing 1-RTT packets one at a time, from `cryptography` alone: what runs are compared with."""

from __future__ import annotations

import random
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

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
        self.suite = suite
        self.chacha = suite.startswith("chacha")
        self.aead: Any = (ChaCha20Poly1305 if self.chacha else AESGCM)(self.key)

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
