"""From datagrams to connections, which are found by connection id, whatever carried the datagram.

Also the door for strangers: a datagram for no known connection is at most a client's first Initial, which
is checked, counted and filtered before anything is spent on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import limits
from dialkey.allowance import Allowance
from dialkey.endpoint._connection_driver import ConnectionDriver
from dialkey.endpoint.door import Door, Sources, Verdict, sources_of
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress, Transport
from dialkey.quic import codes, stateless
from dialkey.quic.connection import Connection as Core
from dialkey.quic.stateless import InitialHeader

if TYPE_CHECKING:
    from dialkey.endpoint._driver import Driver

logger = logging.getLogger("dialkey.endpoint.demux")

_MAX_INITIAL_BYTES: Final = 4096
"""Limit on a client's first datagram: usual are 1,200 to 1,472 bytes, but a relay would carry 64 KiB."""
_BUSY: Final = b"busy"
"""The reason given to a client that had to make room for others; it makes `Dial` try again."""
_RESET_INTERVAL_S: Final = 0.02


@attrs.frozen
class Incoming:
    """A client that wants to connect, before anything was spent on it.

    Attributes:
        remote: where its first datagram came from. It may be forged, unless `validated`.
        validated: whether the client has proved that it receives at `remote` (by Retry).
    """

    remote: PathAddress
    validated: bool


class _Knock:
    """A client whose handshake is not over, from its first datagram on."""

    __slots__ = ("connection", "datagrams", "header", "original_cid", "retry_cid", "since", "task")

    def __init__(
        self, header: InitialHeader, original_cid: bytes, retry_cid: bytes | None, since: float
    ) -> None:
        self.header = header
        self.original_cid = original_cid
        self.retry_cid = retry_cid
        self.since = since
        # Datagrams that are kept while filters decide, and where they came from.
        self.datagrams: list[tuple[bytes, PathAddress]] = []
        self.task: asyncio.Task[None] | None = None
        self.connection: ConnectionDriver | None = None

    def add(self, data: bytes, remote: PathAddress) -> None:
        """Keep a datagram, if there is room for it."""
        held = sum(len(each) for each, _ in self.datagrams)
        if held + len(data) <= limits.MAX_HELD_INITIAL_BYTES:
            self.datagrams.append((data, remote))


class Demux:
    """Routes datagrams of all transports of one endpoint."""

    def __init__(self, driver: Driver, static_key: bytes) -> None:
        self._driver = driver
        self._by_cid: dict[bytes, ConnectionDriver] = {}
        self._reset_tokens: dict[bytes, ConnectionDriver] = {}
        self._original_cids: dict[ConnectionDriver, bytes] = {}
        self._door = Door()
        self._knocks: dict[ConnectionDriver, _Knock] = {}
        self._held: dict[bytes, _Knock] = {}
        self._answers = Allowance(
            limits.STATELESS_ANSWERS_PER_S, limits.STATELESS_ANSWERS_PER_S, 0.0
        )
        self._filter_tasks: set[asyncio.Task[None]] = set()
        self._retry = stateless.Retry(os.urandom)
        self._reset_key = hashlib.blake2b(static_key, person=b"dialkey reset").digest()
        self._next_reset_at = 0.0
        self.counts: Counter[str] = Counter()

    # --- connection ids -------------------------------------------------------------------------

    @staticmethod
    def new_cid() -> bytes:
        return os.urandom(codes.CID_LENGTH)

    def reset_token(self, cid: bytes) -> bytes:
        """Derive the stateless-reset token of one of our connection ids.

        It is the same after a restart with the same secret key, so that peers notice the restart at
        once.
        """
        digest = hmac.digest(self._reset_key, cid, "sha256")
        return digest[: codes.RESET_TOKEN_LENGTH]

    def route(self, cid: bytes, connection: ConnectionDriver) -> None:
        self._by_cid[cid] = connection

    def unroute(self, cid: bytes) -> None:
        self._by_cid.pop(cid, None)

    def expect_reset(self, token: bytes, connection: ConnectionDriver) -> None:
        """Note that a datagram ending in `token` means that the peer forgot `connection`."""
        self._reset_tokens[token] = connection

    def expect_no_reset(self, token: bytes) -> None:
        """Note that `token` no longer means anything."""
        self._reset_tokens.pop(token, None)

    def forget(self, connection: ConnectionDriver) -> None:
        """Drop every route to a connection."""
        for cid in connection.core.paths.ids.by_cid:
            self._by_cid.pop(cid, None)
        original = self._original_cids.pop(connection, None)
        if original is not None:
            self._by_cid.pop(original, None)
        self._reset_tokens = {t: c for t, c in self._reset_tokens.items() if c is not connection}
        self.handshake_over(connection, failed=True)

    def handshake_over(self, connection: ConnectionDriver, *, failed: bool) -> None:
        """Note that a handshake is over, with whatever outcome."""
        knock = self._knocks.pop(connection, None)
        if knock is not None:
            self._door.leave(knock, self._driver.now(), failed=failed)

    @property
    def half_open(self) -> int:
        """How many incoming handshakes are in progress."""
        return len(self._door)

    def count(self, what: str) -> None:
        """Count an event."""
        self.counts[what] += 1

    def close(self) -> None:
        """Stop asking filters; nobody new is let in."""
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
        # A batch comes from one sender, but that sender may have several connections with us.
        if len(data) <= segment or stateless.have_one_destination(data, segment):
            connection = self._by_cid.get(cid)
            if connection is not None:
                self._deliver(connection, data, segment, remote)
                return
        for start in range(0, len(data), segment):
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
        self,
        connection: ConnectionDriver,
        data: memoryview,
        segment: int,
        remote: PathAddress,
    ) -> None:
        try:
            connection.core.receive(data, segment, remote, self._driver.now())
        except Exception as error:
            self._driver.on_internal_error(connection, error)
        self._driver.touched(connection)

    def _on_unknown_short(
        self, transport: Transport, data: memoryview, remote: PathAddress
    ) -> None:
        connection = self._reset_tokens.get(bytes(data[-codes.RESET_TOKEN_LENGTH :]))
        now = self._driver.now()
        if connection is not None:
            connection.core.receive_stateless_reset(now)
            self._driver.touched(connection)
            return
        self.count("unknown_connection_ids")
        if now < self._next_reset_at:
            return
        reset = stateless.stateless_reset(self.reset_token(bytes(data[1:9])), len(data), os.urandom)
        if reset is not None:
            self._next_reset_at = now + _RESET_INTERVAL_S
            transport.send(remote, reset, len(reset))

    # --- strangers ------------------------------------------------------------------------------

    def _on_unknown_long(self, transport: Transport, data: bytes, remote: PathAddress) -> None:
        if not stateless.MIN_INITIAL_BYTES <= len(data) <= _MAX_INITIAL_BYTES:
            return
        header = stateless.parse_long_header(data)
        if header is None:
            return
        if header.version != stateless.VERSION_1:
            self._answer(transport, remote, lambda: stateless.version_negotiation(header))
            return
        if not header.is_initial or len(header.destination_cid) < 8:
            return
        if not self._driver.is_accepting:
            self._refuse(transport, header, remote, b"this endpoint accepts no connections")
            return
        sources = sources_of(remote)
        now = self._driver.now()
        original, retry_cid, proved = header.destination_cid, None, False
        proof = self._retry.check(header, _token_address(remote), now) if header.token else None
        # A token that is not ours most likely comes from before a restart of this endpoint.
        if proof is not None:
            original, retry_cid = proof.original_cid, header.destination_cid
            proved = proof.is_for_address
        held = self._held.get(header.destination_cid)
        if held is not None:
            held.add(data, remote)
            return
        if self._driver.is_backlogged:
            # Its client asks again; by then some may have been accepted.
            self.count("dropped_not_accepted")
            return
        verdict = self._door.ask(sources, now, proved=proved)
        if verdict is Verdict.LATER:
            self.count("dropped_too_many")
        elif verdict is Verdict.PROVE:
            # A client takes one Retry only; a copy by another way than the one that was proved is
            # of no use now.
            if proof is None:
                self.count("retries")
                answer = self._retry.packet(header, _token_address(remote), self.new_cid(), now)
                transport.send(remote, answer, len(answer))
        else:
            knock = _Knock(header, original, retry_cid, now)
            knock.add(data, remote)
            if self._driver.plugins.has("dialkey_before_accept"):
                self._enter(knock, sources)
                self._ask_filters(transport, knock, remote, proved=proved)
            else:
                self._accept(knock, sources)

    def _enter(self, knock: _Knock, sources: Sources) -> None:
        """Give a place to a handshake, and end the one that makes room for it, if any."""
        evicted = self._door.enter(knock, sources, self._driver.now())
        if evicted is None:
            return
        assert isinstance(evicted, _Knock)
        self.count("evicted")
        if evicted.task is not None:
            evicted.task.cancel()
        connection = evicted.connection
        if connection is not None:
            self._knocks.pop(connection, None)
            connection.core.turn_away(_BUSY, self._driver.now())
            self._driver.touched(connection)
            self._driver.flush_soon(connection)

    def _refuse(
        self, transport: Transport, header: InitialHeader, remote: PathAddress, reason: bytes
    ) -> None:
        self._answer(
            transport, remote, lambda: stateless.refusal(header, codes.CONNECTION_REFUSED, reason)
        )

    def _answer(self, transport: Transport, remote: PathAddress, make: Callable[[], bytes]) -> None:
        """Send an answer for which no state is kept, unless there have been many recently."""
        if self._answers.take(self._driver.now()):
            answer = make()
            transport.send(remote, answer, len(answer))

    def _ask_filters(
        self, transport: Transport, knock: _Knock, remote: PathAddress, *, proved: bool
    ) -> None:
        header = knock.header
        self._held[header.destination_cid] = knock

        async def ask() -> None:
            let_in = False
            try:
                async with asyncio.timeout_at(knock.since + limits.HANDSHAKE_TIMEOUT_S):
                    refusal = await self._driver.plugins.refusal(
                        "dialkey_before_accept", incoming=Incoming(remote, proved)
                    )
                knock.task = None
                if refusal is not None:
                    self.count("refused_by_plugin")
                    self._refuse(transport, header, remote, refusal.reason)
                else:
                    let_in = self._driver.is_accepting
            except TimeoutError:
                self.count("filters_too_slow")
            finally:
                del self._held[header.destination_cid]
                if not let_in:
                    self._door.leave(knock, self._driver.now(), failed=True)
            if let_in:
                self._accept(knock, None)

        task = knock.task = asyncio.create_task(ask(), name="dialkey-before-accept")
        self._filter_tasks.add(task)
        task.add_done_callback(self._filter_tasks.discard)

    def _accept(self, knock: _Knock, sources: Sources | None) -> None:
        """Start the handshake; with `sources`, it has no place yet."""
        driver = self._driver
        now = driver.now()
        first, remote = knock.datagrams[0]
        core = Core.server(
            driver.config,
            alpns=list(driver.alpns),
            remote=remote,
            original_destination_cid=knock.original_cid,
            retry_source_cid=knock.retry_cid,
            now=now,
            began_at=knock.since,
        )
        core.receive(memoryview(first), len(first), remote, now)
        if not core.has_heard_peer:
            # Nothing in it was authentic: no state is kept for it, but its cost is counted.
            self.count("bad_initials")
            core.discard()
            if sources is None:
                self._door.leave(knock, now, failed=True)
            else:
                self._door.failed(sources, now)
            return
        if sources is not None:
            self._enter(knock, sources)
        connection = knock.connection = ConnectionDriver(driver, core)
        self.route(core.host_cid, connection)
        self.route(knock.header.destination_cid, connection)
        self._original_cids[connection] = knock.header.destination_cid
        self._knocks[connection] = knock
        self.count("incoming")
        datagrams, knock.datagrams = knock.datagrams[1:], []
        for datagram, source in datagrams:
            core.receive(memoryview(datagram), len(datagram), source, now)
        driver.touched(connection)
        driver.flush_soon(connection)


def _token_address(remote: PathAddress) -> bytes:
    """Return what a Retry token is bound to."""
    return str(remote).encode() if isinstance(remote, IpAddr) else repr(remote).encode()
