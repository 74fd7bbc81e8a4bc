"""Protection of 1-RTT packets: keys, nonces per path, header masks, key update.

Sources: RFC 9001 sections 5 and 6, docs/wire/quic.md 3.4 and 3.13. One set of keys serves all
paths; only the nonce differs: path id and packet number, XORed into the IV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from aioquic.quic.crypto import derive_key_iv_hp
from aioquic.tls import CipherSuite, cipher_suite_hash, hkdf_expand_label
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dialkey import native
from dialkey.native import Bytes, RunKey
from dialkey.quic.handshake.machine import TrafficSecret
from dialkey.quic.packets.runs import ColumnKey

SAMPLE_LENGTH = 16

SEND_LIMIT_PACKETS = {
    CipherSuite.AES_128_GCM_SHA256: 1 << 22,
    CipherSuite.AES_256_GCM_SHA384: 1 << 22,
    CipherSuite.CHACHA20_POLY1305_SHA256: 1 << 40,
}
"""Packets sealed under one key before we update it: half of RFC 9001 section 6.6."""


_SUITES = {
    CipherSuite.AES_128_GCM_SHA256: "aes-128-gcm",
    CipherSuite.AES_256_GCM_SHA384: "aes-256-gcm",
    CipherSuite.CHACHA20_POLY1305_SHA256: "chacha20-poly1305",
}


@attrs.frozen(repr=False)
class TrafficKeys:
    """What is derived once from a traffic secret (RFC 9001 section 5.1).

    Attributes:
        suite: "aes-128-gcm", "aes-256-gcm" or "chacha20-poly1305".
        header: key of the header protection; it outlives key updates.
    """

    traffic: TrafficSecret
    suite: str
    key: bytes
    iv: bytes
    header: bytes

    @classmethod
    def derive(cls, traffic: TrafficSecret) -> TrafficKeys:
        """Derive the keys of the first phase."""
        suite = traffic.cipher_suite
        return cls(
            traffic,
            _SUITES[suite],
            *derive_key_iv_hp(cipher_suite=suite, secret=traffic.secret, version=1),
        )

    def next(self) -> TrafficKeys:
        """Return the keys of the next phase."""
        suite = self.traffic.cipher_suite
        algorithm = cipher_suite_hash(suite)
        secret = hkdf_expand_label(
            algorithm, self.traffic.secret, b"quic ku", b"", algorithm.digest_size
        )
        traffic = TrafficSecret(suite, secret)
        key, iv, _ = derive_key_iv_hp(cipher_suite=suite, secret=secret, version=1)
        return attrs.evolve(self, traffic=traffic, key=key, iv=iv)


class PacketKey:
    """One direction's AEAD key of one key phase."""

    __slots__ = ("aead", "decrypt", "decrypt_into", "encrypt", "encrypt_into", "iv", "keys")

    def __init__(self, keys: TrafficKeys) -> None:
        chacha = keys.suite == "chacha20-poly1305"
        self.aead: AESGCM | ChaCha20Poly1305 = (ChaCha20Poly1305 if chacha else AESGCM)(keys.key)
        self.encrypt = self.aead.encrypt
        self.decrypt = self.aead.decrypt
        self.encrypt_into: Callable[[Bytes, Bytes, Bytes, memoryview], int] = getattr(
            self.aead, "encrypt_into", self._encrypt_and_copy
        )
        self.decrypt_into: Callable[[Bytes, Bytes, Bytes, memoryview], int] = getattr(
            self.aead, "decrypt_into", self._decrypt_and_copy
        )
        self.iv = int.from_bytes(keys.iv, "big")
        self.keys = keys

    def _encrypt_and_copy(self, nonce: Bytes, data: Bytes, aad: Bytes, out: memoryview) -> int:
        out[:] = self.aead.encrypt(nonce, data, aad)
        return len(out)

    def _decrypt_and_copy(self, nonce: Bytes, data: Bytes, aad: Bytes, out: memoryview) -> int:
        out[:] = self.aead.decrypt(nonce, data, aad)
        return len(out)

    def next(self) -> PacketKey:
        """Return the key of the next phase."""
        return PacketKey(self.keys.next())


def header_masks(keys: TrafficKeys) -> Callable[[bytes], bytes]:
    """Return what turns samples of 16 bytes into as many masks; the first five bytes of each count."""
    key = keys.header
    if keys.suite == "chacha20-poly1305":

        def masks(samples: bytes) -> bytes:
            return b"".join(
                Cipher(algorithms.ChaCha20(key, samples[at : at + SAMPLE_LENGTH]), mode=None)
                .encryptor()
                .update(bytes(SAMPLE_LENGTH))
                for at in range(0, len(samples), SAMPLE_LENGTH)
            )

        return masks
    # ECB here is the raw block function that RFC 9001 section 5.4.3 asks for; one call masks a whole
    # run.
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update


class HeaderKey:
    """One direction's header-protection key; it outlives key updates."""

    __slots__ = ("masks",)

    def __init__(self, keys: TrafficKeys) -> None:
        self.masks = header_masks(keys)


def _run_key(key: PacketKey, header: HeaderKey) -> RunKey:
    part = native.part()
    if part is None:
        return ColumnKey(key.iv, key.encrypt_into, key.decrypt_into, header.masks)
    keys = key.keys
    return part.PacketKey(keys.suite, keys.key, keys.iv, keys.header)


class KeyUpdateRefused(Exception):
    """The peer changed its key phase in a way that RFC 9001 section 6 forbids."""


class PacketProtection:
    """The 1-RTT keys of one connection, with key updates in both roles.

    Attributes:
        send_phase: key phase bit of what we send.
        recv_phase: key phase bit of what we currently expect.
    """

    __slots__ = (
        "_limit",
        "_next_recv",
        "_previous_recv",
        "_previous_until",
        "_recv_run",
        "_sealed",
        "_send_run",
        "_update_unacknowledged",
        "_update_unseen",
        "recv",
        "recv_header",
        "recv_phase",
        "send",
        "send_header",
        "send_phase",
        "updates",
    )

    def __init__(self, send: TrafficSecret, recv: TrafficSecret) -> None:
        send_keys, recv_keys = TrafficKeys.derive(send), TrafficKeys.derive(recv)
        self.send = PacketKey(send_keys)
        self.send_header = HeaderKey(send_keys)
        self.recv = PacketKey(recv_keys)
        self.recv_header = HeaderKey(recv_keys)
        self.send_phase = 0
        self.recv_phase = 0
        self.updates = 0
        self._limit = SEND_LIMIT_PACKETS[send.cipher_suite]
        self._sealed = 0
        self._send_run: RunKey | None = None
        self._recv_run: RunKey | None = None
        self._next_recv: PacketKey | None = None
        self._previous_recv: PacketKey | None = None
        self._previous_until = 0.0
        # True from our own update until a packet of the new phase arrives.
        self._update_unseen = False
        # The number of the first packet of the current phase on each path, until one of them is
        # acknowledged: before that the peer might miss a whole phase.
        self._update_unacknowledged: Mapping[int, int] | None = None

    @property
    def send_run(self) -> RunKey:
        """What seals runs under the keys of `send`; few connections ever have one."""
        if self._send_run is None:
            self._send_run = _run_key(self.send, self.send_header)
        return self._send_run

    @property
    def recv_run(self) -> RunKey:
        """What opens runs under the keys of `recv`."""
        if self._recv_run is None:
            self._recv_run = _run_key(self.recv, self.recv_header)
        return self._recv_run

    def count_sealed(self, packets: int) -> bool:
        """Count packets sealed; return whether the key is due for an update."""
        self._sealed += packets
        return self._sealed >= self._limit and self._update_unacknowledged is None

    def initiate_update(self, now: float, keep_s: float, next_numbers: Mapping[int, int]) -> bool:
        """Start a key update; False while the peer has not acknowledged the current keys.

        Args:
            keep_s: how long the old keys stay usable for late packets.
            next_numbers: the next packet number of each path.
        """
        if self._update_unacknowledged is not None:
            return False
        self._turn(now, keep_s, next_numbers)
        self._update_unseen = True
        return True

    def open_other_phase(
        self,
        nonce_low: int,
        data: Bytes,
        aad: bytes,
        now: float,
        keep_s: float,
        next_numbers: Mapping[int, int],
    ) -> bytes:
        """Open a packet whose key phase bit differs from `recv_phase`.

        It is either late, of the previous phase, or the first of a key update by the peer.

        Raises:
            InvalidTag: it is neither.
        """
        # After our own update the peer goes on in the old phase until it has seen it.
        keep_previous = now < self._previous_until or self._update_unseen
        if self._previous_recv is not None and keep_previous:
            try:
                key = self._previous_recv
                return key.decrypt((key.iv ^ nonce_low).to_bytes(12, "big"), data, aad)
            except InvalidTag:
                pass
        if self._next_recv is None:
            self._next_recv = self.recv.next()
        key = self._next_recv
        plain = key.decrypt((key.iv ^ nonce_low).to_bytes(12, "big"), data, aad)
        if self._update_unseen:
            raise KeyUpdateRefused("a second key update before the first was acknowledged")
        self._turn(now, keep_s, next_numbers)
        return plain

    def confirm_update(self, now: float, keep_s: float) -> None:
        """Note that a packet of the current receive phase arrived.

        Only now has the peer stopped sending under the old keys; packets still on their way, perhaps on
        a slow path, may take up to `keep_s`.
        """
        self._update_unseen = False
        self._previous_until = now + keep_s

    @property
    def awaits_confirmation(self) -> bool:
        return self._update_unseen

    @property
    def awaits_acknowledgement(self) -> bool:
        return self._update_unacknowledged is not None

    def on_acknowledged(self, path_id: int, largest: int) -> None:
        """Note the largest packet number that the peer acknowledged on a path."""
        first = self._update_unacknowledged
        if first is not None and largest >= first.get(path_id, 0):
            self._update_unacknowledged = None

    def _turn(self, now: float, keep_s: float, next_numbers: Mapping[int, int]) -> None:
        self._previous_recv = self.recv
        self._previous_until = now + keep_s
        self.recv = self._next_recv or self.recv.next()
        self._next_recv = None
        self.recv_phase ^= 1
        self.send = self.send.next()
        self.send_phase ^= 1
        self._send_run = self._recv_run = None
        self._sealed = 0
        self._update_unacknowledged = next_numbers
        self.updates += 1
