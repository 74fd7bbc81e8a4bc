"""Keeps the paths of one connection: opens what is worth having, leaves what is dead, comes back.

The client opens paths: one over each known relay, as a reserve, and over every direct address while no
direct path works. Both sides choose for themselves where they send. A path that stops answering is
*quarantined*: it is not chosen again before a time that doubles with each failure, however lively it
looks, so that a flapping path does not take the connection with it. While nothing works at all, there is
no back-off: every known address is tried over and over, until the connection's idle timeout.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dialkey.endpoint.paths import PathInfo, kind_of
from dialkey.endpoint.selection import DirectFirst
from dialkey.network.transport import PathAddress
from dialkey.quic import codes
from dialkey.quic.connection import State
from dialkey.quic.paths import multipath
from dialkey.quic.paths.path import Path

if TYPE_CHECKING:
    from dialkey.endpoint._connection_driver import ConnectionDriver

RETRY_FIRST_S: Final = 5.0
RETRY_MOST_S: Final = 60.0
"""Between two attempts to open a path to one address: iroh's own interval, then its own upgrade
interval."""
QUARANTINE_FIRST_S: Final = 1.0
QUARANTINE_MOST_S: Final = 60.0
QUARANTINE_FORGET_S: Final = 120.0
"""An address that behaved for this long starts with a clean slate."""
MAX_DIRECT_ATTEMPTS: Final = 4
"""Direct paths being validated at a time; of eight paths some must be left for relays."""
VALIDATION_TIMEOUT_S: Final = 5.0
RELAY_VALIDATION_TIMEOUT_S: Final = 10.0
"""Longer, because we may have to connect to the relay first."""
SETTLE_S: Final = 3.0
"""A path works for this long before another is given up for it: the peer proves it in its own time."""
MAX_RECORDS: Final = 64
"""Addresses remembered beyond those that are known and in use."""
RELAY_IDLE_TIMEOUT_S: Final = 30.0
"""A path over a relay may be silent for this long: it survives that we connect to the relay anew."""


class _Record:
    """What is known of one address."""

    __slots__ = ("attempts", "failed_at", "failures", "next_try", "usable_at")

    def __init__(self) -> None:
        self.attempts = 0
        self.next_try = 0.0
        self.failures = 0
        self.failed_at = 0.0
        self.usable_at = 0.0


class PathManager:
    """See the module. One for each connection that speaks multipath."""

    def __init__(self, connection: ConnectionDriver) -> None:
        self._connection = connection
        self._core = connection.core
        self._driver = connection.driver
        self._fallback = DirectFirst()
        self._records: dict[PathAddress, _Record] = {}
        self._known: dict[PathAddress, None] = {}
        self._validated_at: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add_addresses(self, addresses: list[PathAddress]) -> None:
        """Learn of addresses of the peer."""
        self._known.update(dict.fromkeys(addresses))
        self.update()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_suspected(self, path_id: int) -> None:
        """Quarantine a path that stopped answering."""
        path = self._core.paths.get(path_id)
        if path is not None:
            now = self._driver.now()
            record = self._record(path.remote)
            if now - record.failed_at > QUARANTINE_FORGET_S:
                record.failures = 0
            record.failed_at = now
            pause = min(QUARANTINE_FIRST_S * 2**record.failures, QUARANTINE_MOST_S)
            record.failures += 1
            record.usable_at = now + pause
        self.update()

    def on_validated(self, path_id: int) -> None:
        """Note that a path works: its address need not be waited for when it is lost again."""
        path = self._core.paths.get(path_id)
        if path is not None:
            self._record(path.remote).attempts = 0
            self._validated_at = {
                id: at for id, at in self._validated_at.items() if id in self._core.paths
            }
            self._validated_at[path_id] = self._driver.now()
        self.update()

    def network_changed(self) -> None:
        """Try everything again at once."""
        for record in self._records.values():
            record.attempts = 0
            record.next_try = 0.0
        self.update()

    def update(self) -> None:
        """Look at all paths: select, open, abandon; and set the time of the next look."""
        core = self._core
        if core.multipath is None or core.state is not State.OPEN:
            return
        now = self._driver.now()
        for path in core.paths.values():
            if kind_of(path.remote) == "relay":
                path.tolerate_silence(RELAY_IDLE_TIMEOUT_S)
        self._select(now)
        self._connection.announce_selection()
        if core.is_client and core.confirmed:
            self._prune(now)
            self._open_missing(now)
        self._connection.flush_soon()
        self._schedule(now)

    # --- choosing -------------------------------------------------------------------------------

    def _select(self, now: float) -> None:
        usable = [p for p in self._core.paths.values() if p.validated and not p.abandoned]
        good = [p for p in usable if not p.suspect and self._record(p.remote).usable_at <= now]
        # With nothing good left, the suspect ones are as good as any: stay where we are.
        candidates = good or [p for p in usable if not p.suspect]
        if not candidates:
            return
        infos = [self._connection.path_info(path) for path in candidates]
        choice = self._ask(infos)
        if choice is not None and any(choice.id == info.id for info in infos):
            self._connection.select_path(choice.id)

    def _ask(self, infos: list[PathInfo]) -> PathInfo | None:
        selector = self._driver.path_selector
        try:
            return selector.select(infos)
        except Exception as exc:
            # A plugin that chooses badly must not cost the connection.
            name = type(selector).__name__
            self._driver.plugins.count_failure(name, "dialkey_path_selector", exc)
            return self._fallback.select(infos)

    # --- opening and abandoning -----------------------------------------------------------------

    def _open_paths(self) -> list[Path]:
        paths = self._core.paths.values()
        return [path for path in paths if not path.abandoned and not path.parked]

    def _is_stranded(self) -> bool:
        return not any(path.validated and not path.suspect for path in self._open_paths())

    def _has_good_direct(self) -> bool:
        selected = self._core.selected_path
        return (
            selected is not None
            and selected.validated
            and not selected.suspect
            and kind_of(selected.remote) != "relay"
        )

    def _open_missing(self, now: float) -> None:
        paths = self._open_paths()
        stranded = self._is_stranded()
        # A path that is silent may be one that the peer gave up and could not tell us of.
        taken = {path.remote for path in paths if not (stranded and path.suspect)}
        validating = sum(not path.validated for path in paths)
        has_direct = self._has_good_direct()
        # Whoever waits longest is next: of many addresses each gets its turn.
        waiting = [address for address in self._known if address not in taken]
        for address in sorted(waiting, key=lambda each: self._record(each).next_try):
            is_relay = kind_of(address) == "relay"
            if not is_relay and (has_direct or validating >= MAX_DIRECT_ATTEMPTS):
                continue
            record = self._record(address)
            if record.next_try > now and not stranded:
                continue
            if multipath.open_path(self._core, address, now) is None:
                # There are no ids: PathsAvailable follows.
                return
            validating += 1
            record.next_try = now + min(RETRY_FIRST_S * 2**record.attempts, RETRY_MOST_S)
            if not stranded:
                record.attempts += 1
        self._connection.flush_soon()

    def _prune(self, now: float) -> None:
        """Abandon what is not needed: further direct paths, and attempts that lead nowhere."""
        selected = self._core.selected_path
        for path in self._open_paths():
            if path is selected:
                continue
            is_relay = kind_of(path.remote) == "relay"
            needless = not is_relay and self._has_good_direct()
            if not path.validated:
                deadline = _validation_deadline(path)
                if needless or (deadline is not None and now >= deadline):
                    multipath.give_up(self._core, path, now)
            elif needless and not path.suspect:
                assert selected is not None
                if self._is_settled(selected, now):
                    multipath.abandon(self._core, path, codes.APPLICATION_ABANDON_PATH, now)
            elif self._has_newer_twin(path, now):
                multipath.abandon(self._core, path, codes.APPLICATION_ABANDON_PATH, now)

    def _has_newer_twin(self, path: Path, now: float) -> bool:
        return any(
            other.id > path.id and other.remote == path.remote and self._is_settled(other, now)
            for other in self._open_paths()
        )

    def _is_settled(self, path: Path, now: float) -> bool:
        return path.validated and now >= self._validated_at.get(path.id, 0.0) + SETTLE_S

    def _record(self, address: PathAddress) -> _Record:
        record = self._records.get(address)
        if record is None:
            if len(self._records) >= MAX_RECORDS:
                # A client's address may change without end.
                kept = {path.remote for path in self._core.paths.values()} | self._known.keys()
                self._records = {a: r for a, r in self._records.items() if a in kept}
            record = self._records[address] = _Record()
        return record

    def _schedule(self, now: float) -> None:
        at = now + RETRY_MOST_S
        taken = {path.remote for path in self._open_paths()}
        for address, record in self._records.items():
            if address in taken and record.usable_at > now:
                at = min(at, record.usable_at)
            elif address not in taken and self._core.is_client and record.next_try > now:
                at = min(at, record.next_try)
        for path in self._open_paths() if self._core.is_client else ():
            deadline = _validation_deadline(path)
            if deadline is not None and deadline > now:
                at = min(at, deadline)
            settled_at = self._validated_at.get(path.id, 0.0) + SETTLE_S
            if settled_at > now:
                at = min(at, settled_at)
        if len(self._core.paths) == 1 and not self._known:
            return
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.01, at - now)
        self._timer = asyncio.get_running_loop().call_later(delay, self.update)


def _validation_deadline(path: Path) -> float | None:
    """Return when an attempt has had its time; None if the path is none."""
    if path.validated or path.challenge is None:
        return None
    is_relay = kind_of(path.remote) == "relay"
    patience_s = RELAY_VALIDATION_TIMEOUT_S if is_relay else VALIDATION_TIMEOUT_S
    return path.challenge.started_at + patience_s
