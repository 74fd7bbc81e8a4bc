"""From datagrams to connections: told apart by connection id, whatever carried them.

Also the door for strangers: what arrives for no known connection is at most a client's first Initial,
which is checked, counted and filtered before anything is spent on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import limits
from dialkey.endpoint.connection import Connection
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress, Transport
from dialkey.quic import codes, stateless
from dialkey.quic.connection import Connection as Core
from dialkey.quic.stateless import InitialHeader

if TYPE_CHECKING:
    from dialkey.endpoint.endpoint import Endpoint

logger = logging.getLogger("dialkey.endpoint.demux")

_MAX_HELD_INITIALS: Final = 4
"""Datagrams of one client kept while filters look at it: its first flight and a repetition."""
_RESET_INTERVAL_S: Final = 0.02


@attrs.frozen
class Incoming:
    """A client that knocks, before anything was spent on it.

    Attributes:
        remote: where its first datagram came from. It may be forged, unless `validated`.
        validated: whether the client proved that it receives at `remote` (by Retry).
    """

    remote: PathAddress
    validated: bool


class Demux:
    """Routes datagrams of all transports of one endpoint."""

    def __init__(self, endpoint: Endpoint, static_key: bytes) -> None:
        self._endpoint = endpoint
        self._by_cid: dict[bytes, Connection] = {}
        self._reset_tokens: dict[bytes, Connection] = {}
        self._original_cids: dict[Connection, bytes] = {}
        self._half_open: dict[Connection, str] = {}
        self._half_open_hosts: Counter[str] = Counter()
        self._held: dict[bytes, list[bytes]] = {}
        self._filter_tasks: set[asyncio.Task[None]] = set()
        self._retry = stateless.Retry()
        self._reset_key = hashlib.blake2b(static_key, person=b"dialkey reset").digest()
        self._next_reset_at = 0.0
        self.counts: Counter[str] = Counter()

    # --- connection ids -------------------------------------------------------------------------

    @staticmethod
    def new_cid() -> bytes:
        return os.urandom(codes.CID_LENGTH)

    def reset_token(self, cid: bytes) -> bytes:
        """Derive the stateless-reset token of an id of ours.

        The same after a restart with the same secret key, so that peers learn of the restart at once.
        """
        digest = hmac.digest(self._reset_key, cid, "sha256")
        return digest[: codes.RESET_TOKEN_LENGTH]

    def route(self, cid: bytes, connection: Connection) -> None:
        self._by_cid[cid] = connection

    def unroute(self, cid: bytes) -> None:
        self._by_cid.pop(cid, None)

    def expect_reset(self, token: bytes, connection: Connection) -> None:
        """Note that a datagram ending in `token` means that the peer forgot `connection`."""
        self._reset_tokens[token] = connection

    def expect_no_reset(self, token: bytes) -> None:
        """Note that `token` means nothing any more."""
        self._reset_tokens.pop(token, None)

    def forget(self, connection: Connection) -> None:
        """Drop every route to a connection."""
        for cid in connection.core.cids:
            self._by_cid.pop(cid, None)
        original = self._original_cids.pop(connection, None)
        if original is not None:
            self._by_cid.pop(original, None)
        self._reset_tokens = {t: c for t, c in self._reset_tokens.items() if c is not connection}
        self.handshake_over(connection)

    def handshake_over(self, connection: Connection) -> None:
        """Count a handshake as done, one way or the other."""
        host = self._half_open.pop(connection, None)
        if host is not None:
            self._half_open_hosts[host] -= 1
            if not self._half_open_hosts[host]:
                del self._half_open_hosts[host]

    def close(self) -> None:
        """Stop asking filters; nothing new is let in."""
        for task in self._filter_tasks:
            task.cancel()

    # --- datagrams ------------------------------------------------------------------------------

    def receive(
        self, transport: Transport, data: memoryview, segment: int, remote: PathAddress
    ) -> None:
        """Route a batch that came from one address."""
        if data[0] & 0x80:
            for at in range(0, len(data), segment):
                self._receive_one(transport, data[at : at + segment], remote)
            return
        cid = bytes(data[1:9])
        total = len(data)
        at = segment
        # A batch is one sender's, but that sender may hold several connections with us.
        while at < total and data[at + 1 : at + 9] == cid and not data[at] & 0x80:
            at += segment
        if at >= total:
            connection = self._by_cid.get(cid)
            if connection is not None:
                self._deliver(connection, data, segment, remote)
                return
            at = segment
        for start in range(0, total, segment):
            self._receive_one(transport, data[start : start + segment], remote)

    def _receive_one(self, transport: Transport, data: memoryview, remote: PathAddress) -> None:
        if not data:
            return
        is_long = bool(data[0] & 0x80)
        cid = stateless.destination_cid(data) if is_long else bytes(data[1:9])
        connection = self._by_cid.get(cid)
        if connection is not None:
            self._deliver(connection, data, len(data), remote)
        elif is_long:
            self._on_unknown_long(transport, bytes(data), remote)
        else:
            self._on_unknown_short(transport, data, remote)

    def _deliver(
        self, connection: Connection, data: memoryview, segment: int, remote: PathAddress
    ) -> None:
        try:
            connection.core.receive(data, segment, remote, self._endpoint.now())
        except Exception:
            self._endpoint.on_internal_error(connection)
        self._endpoint.touched(connection)

    def _on_unknown_short(
        self, transport: Transport, data: memoryview, remote: PathAddress
    ) -> None:
        connection = self._reset_tokens.get(bytes(data[-codes.RESET_TOKEN_LENGTH :]))
        now = self._endpoint.now()
        if connection is not None:
            connection.core.receive_stateless_reset(now)
            self._endpoint.touched(connection)
            return
        self.counts["unknown_connection_ids"] += 1
        if now < self._next_reset_at:
            return
        reset = stateless.stateless_reset(self.reset_token(bytes(data[1:9])), len(data))
        if reset is not None:
            self._next_reset_at = now + _RESET_INTERVAL_S
            transport.send(remote, reset, len(reset))

    # --- strangers ------------------------------------------------------------------------------

    def _on_unknown_long(self, transport: Transport, data: bytes, remote: PathAddress) -> None:
        if len(data) < stateless.MIN_INITIAL_BYTES:
            return
        header = stateless.parse_long_header(data)
        if header is None:
            return
        if header.version != stateless.VERSION_1:
            answer = stateless.version_negotiation(header)
            transport.send(remote, answer, len(answer))
            return
        if not header.is_initial or len(header.destination_cid) < 8:
            return
        if not self._endpoint.is_accepting:
            self._refuse(transport, header, remote, b"this endpoint accepts no connections")
            return
        host = _host(remote)
        original: bytes | None = header.destination_cid
        retry_cid: bytes | None = None
        if header.token:
            original = self._retry.check(header, _token_address(remote), self._endpoint.now())
            if original is None:
                # A token of an earlier life of this endpoint, most likely: treat it as none.
                original = header.destination_cid
            else:
                retry_cid = header.destination_cid
        total = len(self._half_open) + len(self._filter_tasks)
        from_host = self._half_open_hosts.get(host, 0)
        if total >= limits.MAX_HALF_OPEN_HANDSHAKES or (
            retry_cid is not None and from_host >= limits.MAX_HALF_OPEN_PER_ADDRESS
        ):
            self.counts["refused_too_many"] += 1
            self._refuse(transport, header, remote, b"too many handshakes")
            return
        # Who writes another's address on its packets can neither get in nor keep the other out.
        is_busy = (
            total >= limits.RETRY_ABOVE_HALF_OPEN or from_host >= limits.MAX_HALF_OPEN_PER_ADDRESS
        )
        if is_busy and retry_cid is None:
            self.counts["retries"] += 1
            answer = self._retry.packet(
                header, _token_address(remote), self.new_cid(), self._endpoint.now()
            )
            transport.send(remote, answer, len(answer))
            return
        assert original is not None
        if self._endpoint.plugins.has("dialkey_before_accept"):
            self._ask_filters(transport, data, header, remote, original, retry_cid)
        else:
            self._accept([data], header, remote, original, retry_cid)

    def _refuse(
        self, transport: Transport, header: InitialHeader, remote: PathAddress, reason: bytes
    ) -> None:
        answer = stateless.refusal(header, codes.CONNECTION_REFUSED, reason)
        transport.send(remote, answer, len(answer))

    def _ask_filters(
        self,
        transport: Transport,
        data: bytes,
        header: InitialHeader,
        remote: PathAddress,
        original: bytes,
        retry_cid: bytes | None,
    ) -> None:
        held = self._held.get(header.destination_cid)
        if held is not None:
            if len(held) < _MAX_HELD_INITIALS:
                held.append(data)
            return
        held = self._held[header.destination_cid] = [data]

        async def ask() -> None:
            try:
                refusal = await self._endpoint.plugins.refusal(
                    "dialkey_before_accept", incoming=Incoming(remote, retry_cid is not None)
                )
            finally:
                del self._held[header.destination_cid]
            if refusal is not None:
                self.counts["refused_by_plugin"] += 1
                self._refuse(transport, header, remote, refusal.reason)
            elif self._endpoint.is_accepting:
                self._accept(held, header, remote, original, retry_cid)

        task = asyncio.create_task(ask(), name="dialkey-before-accept")
        self._filter_tasks.add(task)
        task.add_done_callback(self._filter_tasks.discard)

    def _accept(
        self,
        datagrams: list[bytes],
        header: InitialHeader,
        remote: PathAddress,
        original: bytes,
        retry_cid: bytes | None,
    ) -> None:
        endpoint = self._endpoint
        now = endpoint.now()
        core = Core.server(
            endpoint.quic_config,
            alpns=endpoint.alpns,
            remote=remote,
            original_destination_cid=original,
            retry_source_cid=retry_cid,
            now=now,
        )
        core.receive(memoryview(datagrams[0]), len(datagrams[0]), remote, now)
        if not core.has_heard_peer:
            # Nothing in it was authentic: no state is kept for it.
            self.counts["bad_initials"] += 1
            core.discard()
            return
        connection = Connection(endpoint, core)
        self.route(core.host_cid, connection)
        self.route(header.destination_cid, connection)
        self._original_cids[connection] = header.destination_cid
        host = _host(remote)
        self._half_open[connection] = host
        self._half_open_hosts[host] += 1
        self.counts["incoming"] += 1
        for datagram in datagrams[1:]:
            core.receive(memoryview(datagram), len(datagram), remote, now)
        endpoint.touched(connection)
        endpoint.flush_soon(connection)


def _host(remote: PathAddress) -> str:
    return str(remote.ip) if isinstance(remote, IpAddr) else repr(remote)


def _token_address(remote: PathAddress) -> tuple[str, int]:
    """Return what a Retry token is bound to; a hash in the form of an address if it is not UDP."""
    if isinstance(remote, IpAddr):
        return str(remote.ip), remote.port
    digest = hashlib.sha256(repr(remote).encode()).digest()
    return str(IpAddr.parse(f"[{_hex_groups(digest[:16])}]:0").ip), 0


def _hex_groups(data: bytes) -> str:
    return ":".join(data[i : i + 2].hex() for i in range(0, len(data), 2))
