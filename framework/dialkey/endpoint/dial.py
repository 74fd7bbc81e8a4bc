"""Dialling: one handshake, started over every known address at once.

The first flight goes to all addresses; the first one that brings an authentic answer becomes the path. So
no address can hold up or abort a dial, and the dial is over when all have failed or the time is up.
Source: docs/wire/quic.md 6.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from dialkey import limits
from dialkey.endpoint.dial_limits import DialLimits, LimitedAddresses
from dialkey.endpoint.lookup import AddressLookup, LookupAnswer, StaticLookup
from dialkey.endpoint.searching import Search
from dialkey.errors import (
    DialError,
    DialTimeout,
    EndpointClosed,
    HandshakeError,
    Refused,
    ResolveError,
)
from dialkey.identity import EndpointAddr, RelayAddr, TransportAddr
from dialkey.network.reach import MayReach
from dialkey.network.transport import PathAddress
from dialkey.quic.connection import Connection as Core

if TYPE_CHECKING:
    from dialkey.endpoint._connection_driver import ConnectionDriver
    from dialkey.endpoint._driver import Driver

logger = logging.getLogger("dialkey.endpoint.dial")

_REFUSALS_TO_GIVE_UP: Final = 2
"""How often each address must have been refused before a dial ends early: a restart takes a moment."""
_MAX_HANDSHAKES: Final = 4
"""Handshakes per dial. Somebody else may answer at a stale address while the right peer is elsewhere."""
_BUSY_REASONS: Final = (b"busy", b"too many handshakes")
"""What a peer says that has no place at the moment."""
_UNEXPLAINED_REFUSALS: Final = 4
"""Tries with a peer that refuses without a reason, as iroh does when it is full or when its application
refuses."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 2.0
_MAX_NOTES: Final = 64
_MAX_SEEN: Final = 1024
"""How many addresses of one dial are remembered as examined; beyond that, some are examined twice."""
_WITHOUT_RELAYS_S: Final = 1.0
"""How long direct addresses still have when every relay of a dial has refused us: long enough to lose one
first flight. After that, people get the relay's own message instead of waiting for the timeout."""
_SECOND_CHANCE_S: Final = 5.0
"""How long the other addresses have after a wrong peer answered; then the dial fails with the reason."""


class Candidate:
    """One address that is being tried."""

    __slots__ = ("address", "failed", "max_datagrams", "refused", "sent", "trouble")

    def __init__(self, address: PathAddress, max_datagrams: int | None = None) -> None:
        self.address = address
        self.max_datagrams = max_datagrams
        self.sent = 0
        self.refused = 0
        self.failed = False
        self.trouble = ""

    def take(self, datagrams: int) -> bool:
        """Return whether this many datagrams may be sent to it, and count them if so."""
        if self.failed:
            return False
        if self.max_datagrams is not None and self.sent + datagrams > self.max_datagrams:
            return False
        self.sent += datagrams
        return True

    @property
    def is_relayed(self) -> bool:
        """Whether it leads through a relay."""
        return getattr(self.address, "path_kind", None) == "relay"

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing more is expected from it."""
        return self.failed or self.refused >= _REFUSALS_TO_GIVE_UP

    def __str__(self) -> str:
        if self.trouble:
            return f"{self.address}: {self.trouble}"
        if not self.sent:
            return f"{self.address}: nothing was sent"
        return f"{self.address}: no answer to {self.sent} datagrams"


class AllAddresses:
    """The path address of a dial before anyone has answered: it stands for all candidates."""

    def __init__(self) -> None:
        self.candidates: dict[PathAddress, Candidate] = {}
        self.notes: list[str] = []
        self.gave_up: asyncio.Future[None] | None = None
        self.lookups_pending = 0
        self._last_chance: asyncio.TimerHandle | None = None
        # What was last sent to all of them, for those that are found later.
        self.last_sent: tuple[bytes, int] | None = None

    def add(self, address: PathAddress, max_datagrams: int | None = None) -> bool:
        """Add an address; False if it is known or there are too many.

        If there are too many, one that has had its chance gives way, so that later ones get theirs.
        """
        if address in self.candidates:
            return False
        if len(self.candidates) >= limits.MAX_DIAL_ADDRESSES:
            tried = [each for each in self.candidates.values() if each.is_hopeless or each.sent > 1]
            if not tried:
                return False
            least = max(tried, key=lambda each: (each.is_hopeless, each.sent))
            del self.candidates[least.address]
        self.candidates[address] = Candidate(address, max_datagrams)
        return True

    def on_unreachable(self, address: PathAddress, reason: str) -> None:
        """Note what the network said about an address."""
        candidate = self.candidates.get(address)
        if candidate is None:
            return
        candidate.refused += 1
        candidate.trouble = reason
        self.check_hopeless()

    def check_hopeless(self) -> None:
        """End the dial early when no address is left to wait for, or soon when few are."""
        if self.lookups_pending or self.gave_up is None or self.gave_up.done():
            return
        candidates = self.candidates.values()
        if all(candidate.is_hopeless for candidate in candidates):
            self.gave_up.set_result(None)
        elif self._last_chance is None and self.relay_refusals():
            loop = asyncio.get_running_loop()
            self._last_chance = loop.call_later(_WITHOUT_RELAYS_S, self._end_last_chance)

    def relay_refusals(self) -> list[str]:
        """Return what each relay said, if all relays among the addresses have refused us."""
        relayed = [each for each in self.candidates.values() if each.is_relayed]
        if not all(each.is_hopeless for each in relayed):
            return []
        return [each.trouble for each in relayed if each.trouble]

    def _end_last_chance(self) -> None:
        self._last_chance = None
        # Addresses found in the meantime may include another relay.
        if self.lookups_pending or not self.relay_refusals():
            return
        if self.gave_up is not None and not self.gave_up.done():
            self.gave_up.set_result(None)

    def end_of_handshake(self) -> None:
        """Note that somebody has answered, or that the dial is over: stop the early deadline."""
        if self._last_chance is not None:
            self._last_chance.cancel()
            self._last_chance = None

    def exclude(self, address: PathAddress, reason: str) -> bool:
        """Stop trying an address; return whether there are others."""
        candidate = self.candidates.get(address)
        if candidate is None:
            return False
        candidate.failed = True
        candidate.trouble = reason
        others = any(not each.is_hopeless for each in self.candidates.values())
        return others or self.lookups_pending > 0

    def worth_keeping(self, answered: PathAddress) -> list[PathAddress]:
        """Return the addresses to open paths to later, the one that answered first; no other hearsay."""
        known = [each.address for each in self.candidates.values() if each.max_datagrams is None]
        return list(dict.fromkeys([answered, *known]))

    def attempts(self, explain: Callable[[PathAddress], str | None]) -> list[str]:
        """Return one line for each address; `explain` knows what prevents sending to one."""
        for candidate in self.candidates.values():
            candidate.trouble = candidate.trouble or explain(candidate.address) or ""
        return [*map(str, self.candidates.values()), *self.notes]


class Dial:
    """One call of `Endpoint.connect`."""

    def __init__(
        self,
        driver: Driver,
        lookups: Iterable[AddressLookup],
        remote: EndpointAddr,
        alpn: str,
        dial_limits: DialLimits | None = None,
    ) -> None:
        self._driver = driver
        self._ways = tuple(lookups)
        self._limited = LimitedAddresses(dial_limits)
        self._id = remote.id
        self._addrs = remote.addrs
        self._alpn = alpn
        self.target = AllAddresses()
        self._connection: ConnectionDriver | None = None
        self._search: Search | None = None
        # Lookups are asked repeatedly, and mostly say the same.
        self._seen: set[tuple[TransportAddr, bool]] = set()
        self._news = asyncio.Event()
        self._endpoint_closed = asyncio.Event()
        self._was_refused = False

    def end(self) -> None:
        """Give up because the endpoint closes."""
        self._endpoint_closed.set()
        if self.target.gave_up is not None and not self.target.gave_up.done():
            self.target.gave_up.set_result(None)
        self._news.set()

    async def run(self, timeout_s: float) -> ConnectionDriver:
        """Connect.

        Raises:
            ResolveError, DialError, DialTimeout, HandshakeError, ConnectionClosedByPeer,
            EndpointClosed
        """
        connection = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._run(timeout_s)
                return connection
        except TimeoutError:
            if self._was_refused:
                message = f"the peer had no room for us within {timeout_s:g} s"
                hint = "it is overloaded; try again later"
            else:
                message = f"nobody answered within {timeout_s:g} s"
                hint = "is the other side running and online?"
            raise DialTimeout(
                message,
                attempts=self._attempts(),
                endpoint_id=self._id,
                hint=hint,
            ) from None
        finally:
            if connection is None and self._connection is not None:
                # It must not become a connection when nobody waits for it any more.
                self._connection.close(0, b"")
            self.target.end_of_handshake()
            if self._search is not None:
                self._search.close()

    async def _run(self, timeout_s: float) -> ConnectionDriver:
        await self._add(self._addrs)
        self._search = Search(
            self._id,
            self._ways,
            on_answer=self._on_answer,
            on_done=self._on_lookup_done,
        )
        self.target.lookups_pending = self._search.pending
        if not self.target.candidates:
            await self._find_first_address()
        try:
            return await self._shake_hands_patiently(timeout_s)
        except HandshakeError as error:
            if not self._exclude(error):
                raise
            first_error = error
        logger.info("dial of %s goes on without %s", self._id.short(), first_error)
        try:
            async with asyncio.timeout(_SECOND_CHANCE_S):
                for _ in range(_MAX_HANDSHAKES - 1):
                    try:
                        return await self._shake_hands_patiently(timeout_s)
                    except HandshakeError as error:
                        if not self._exclude(error):
                            break
        except (DialError, TimeoutError):
            # The others do not answer: the one answer we got says more.
            pass
        raise first_error

    def _exclude(self, error: HandshakeError) -> bool:
        """Exclude the address at which a handshake failed; return whether to go on."""
        assert self._connection is not None
        return self.target.exclude(self._connection.core.remote, error.message)

    def _check_endpoint(self) -> None:
        if self._endpoint_closed.is_set():
            raise EndpointClosed("this endpoint was closed while it dialled", endpoint_id=self._id)

    async def _shake_hands_patiently(self, timeout_s: float) -> ConnectionDriver:
        """Run a handshake; repeat it, after a pause, while the peer only has no place at the moment."""
        pause_s = _FIRST_PAUSE_S
        for tries in itertools.count(1):
            try:
                return await self._shake_hands(timeout_s)
            except Refused as error:
                assert self._connection is not None
                reason = self._connection.core.close_reason
                said = reason.reason if reason is not None else b""
                if said not in _BUSY_REASONS and (said or tries >= _UNEXPLAINED_REFUSALS):
                    raise
                self._was_refused = True
                note = f"{self._connection.core.remote}: {error.message}"
                if note not in self.target.notes and len(self.target.notes) < _MAX_NOTES:
                    self.target.notes.append(note)
            # Those who were refused together should not come back together.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.5)):
                    await self._endpoint_closed.wait()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise AssertionError("the loop has no end")

    async def _shake_hands(self, timeout_s: float) -> ConnectionDriver:
        """Run one handshake with the first address that answers."""
        driver = self._driver
        gave_up = self.target.gave_up = asyncio.get_running_loop().create_future()
        self._check_endpoint()
        self.target.last_sent = None
        core = Core.client(
            driver.config,
            expected_id=self._id,
            alpns=[self._alpn],
            remote=self.target,
            now=driver.now(),
            # The deadline of the dial is the one that counts.
            timeout_s=timeout_s + 1,
        )
        connection = self._connection = driver.begin_handshake(core, self._id)
        handshake = asyncio.ensure_future(connection.handshake_done())
        try:
            await asyncio.wait([handshake, gave_up], return_when=asyncio.FIRST_COMPLETED)
            while not (
                handshake.done() or self._endpoint_closed.is_set() or core.remote is self.target
            ):
                # Somebody has answered after all, and what the others said no longer matters.
                gave_up = self.target.gave_up = asyncio.get_running_loop().create_future()
                await asyncio.wait([handshake, gave_up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not handshake.done():
                handshake.cancel()
                await asyncio.wait([handshake])
        if self._endpoint_closed.is_set() and not handshake.cancelled():
            handshake.exception()
        self._check_endpoint()
        if handshake.cancelled():
            raise self._nobody_answered()
        handshake.result()
        if connection.path_manager is not None:
            if not self._limited.is_limited:
                connection.path_manager.follow(self._ways)
            connection.path_manager.add_addresses(self.target.worth_keeping(core.remote))
        return connection

    def _nobody_answered(self) -> DialError:
        refusals = self.target.relay_refusals()
        attempts = self._attempts()
        if not refusals:
            return DialError(
                "no address of this endpoint answers",
                attempts=attempts,
                endpoint_id=self._id,
                hint="is the other side running?",
            )
        return DialError(
            f"no way leads there without the relay, and {'; '.join(dict.fromkeys(refusals))}",
            attempts=attempts,
            endpoint_id=self._id,
        )

    async def _add(self, addrs: Iterable[TransportAddr], may_reach: MayReach | None = None) -> None:
        is_hearsay = may_reach is not None and not self._limited.is_limited
        for addr in addrs:
            # Somebody whom we trust may repeat what strangers said first.
            if (addr, is_hearsay) in self._seen:
                continue
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen.add((addr, is_hearsay))
            may_try, max_datagrams = await self._limited.admit(addr)
            if not may_try:
                continue
            guard = may_reach if max_datagrams is None else self._limited.may_reach
            found = self._driver.path_addresses(self._id, addr, guard)
            if not found:
                note = f"{addr}: no transport of this endpoint can reach it"
                if isinstance(addr, RelayAddr):
                    note = f"{addr}: bind with relays=() to dial through the relays of others"
                if note not in self.target.notes and len(self.target.notes) < _MAX_NOTES:
                    self.target.notes.append(note)
            for each in found:
                if self.target.add(each, max_datagrams):
                    self._driver.send_to_late(self.target, each)
        self._news.set()

    async def _on_answer(self, answer: LookupAnswer) -> None:
        await self._add(answer.info.addr.addrs, answer.may_reach)

    def _on_lookup_done(self) -> None:
        assert self._search is not None
        self.target.lookups_pending = self._search.pending
        self.target.check_hopeless()
        self._news.set()

    async def _find_first_address(self) -> None:
        """Wait until a lookup has found an address.

        Raises:
            ResolveError: none did in time.
        """
        try:
            async with asyncio.timeout(limits.LOOKUP_TIMEOUT_S):
                while not self.target.candidates and self.target.lookups_pending:
                    self._news.clear()
                    await self._news.wait()
                    self._check_endpoint()
        except TimeoutError:
            pass
        if self.target.candidates:
            return
        notes = [*self.target.notes, *self._lookups_said()]
        raise ResolveError(
            "no address is known for this endpoint",
            endpoint_id=self._id,
            hint="; ".join(notes)
            or "dial its ticket, which carries addresses, or enable an address lookup",
        )

    def _attempts(self) -> list[str]:
        """Return what became of each address, and what each lookup said."""
        return [*self.target.attempts(self._driver.trouble_with), *self._lookups_said()]

    def _lookups_said(self) -> list[str]:
        """Return one line for each lookup except the static one, which only repeats what it was told."""
        if self._search is None:
            return []
        own = StaticLookup.name
        return [f"lookup {each}" for each in self._search.reports() if each.lookup != own]
