"""Which paths of a connection are worth having: when to open, choose, leave and retry them. Sans-IO.

The client opens paths: one over each known relay, as a reserve, and over every direct address while no
direct path works. Each side chooses for itself where it sends. A path that stops answering is
*quarantined*: it is not chosen again for a time that doubles with each failure, however alive it looks,
so that a flapping path does not take the connection down. While nothing works at all, an address that has
answered before is tried repeatedly, until the connection's idle timeout.

An address that has never answered is hearsay: whoever signed it has a key, but need not be there. Each
attempt sends a stranger some full-size datagrams, so all ports of one IP address share a number of
attempts, at intervals that double; then the address is left alone until this machine's network changes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable, Sequence
from typing import Final

import attrs

from dialkey import limits
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress

RETRY_FIRST_S: Final = 5.0
RETRY_MOST_S: Final = 60.0
"""Between two attempts to open a path to one address: iroh's interval, then its upgrade interval. For an
address that never answered the wait doubles each time, without an upper limit."""
PUNCH_INTERVAL_S: Final = 60.0
"""Between two searches for a direct path while there is none and neither side has a new address; the same
as in iroh."""
QUARANTINE_FIRST_S: Final = 1.0
QUARANTINE_MOST_S: Final = 60.0
QUARANTINE_FORGET_S: Final = 120.0
"""An address that behaved for this long starts with a clean slate."""
MAX_DIRECT_ATTEMPTS: Final = 4
"""Direct paths being validated at a time; of eight paths, some must be left for relays."""
VALIDATION_TIMEOUT_S: Final = 5.0
RELAY_VALIDATION_TIMEOUT_S: Final = 10.0
"""Longer, because we may have to connect to the relay first."""
SETTLE_S: Final = 3.0
"""A path has to work for this long before another is abandoned: the peer validates it separately."""
MAX_RECORDS: Final = 64
"""How many addresses are remembered besides those that are known and in use."""


@attrs.frozen
class PathView:
    """An open path, as the policy sees it.

    Attributes:
        id: its number within the connection.
        remote: where it leads.
        is_relayed: whether a relay carries it.
        is_validated: whether the peer has answered there.
        is_suspect: whether it has stopped answering.
        is_selected: whether application data takes this path.
        tried_since: when its validation started, or None while it is not being validated.
    """

    id: int
    remote: PathAddress
    is_relayed: bool
    is_validated: bool
    is_suspect: bool = False
    is_selected: bool = False
    tried_since: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether it can carry data now."""
        return self.is_validated and not self.is_suspect

    @property
    def deadline(self) -> float | None:
        """When the attempt to open it has had its time; None if it is not an attempt."""
        if self.is_validated or self.tried_since is None:
            return None
        patience_s = RELAY_VALIDATION_TIMEOUT_S if self.is_relayed else VALIDATION_TIMEOUT_S
        return self.tried_since + patience_s


@attrs.frozen
class Leave:
    """A path to leave.

    Attributes:
        path_id: its id.
        is_attempt: whether it never worked, so that its id can be reused.
    """

    path_id: int
    is_attempt: bool


class _Record:
    """What is known about one address."""

    __slots__ = ("attempts", "failed_at", "failures", "has_answered", "next_try", "usable_at")

    def __init__(self) -> None:
        self.attempts = 0
        self.next_try = 0.0
        self.failures = 0
        self.failed_at = 0.0
        self.usable_at = 0.0
        self.has_answered = False


class PathPolicy:
    """See the module. One for each connection that speaks multipath.

    Call, in this order: `candidates`, and select one of them; then, as the client, `to_leave` and
    `to_open`; then `next_look`. The state of the paths is passed in each time, because each step changes
    it.

    Args:
        is_client: whether we dialled; only then are paths opened and left.
    """

    def __init__(self, *, is_client: bool) -> None:
        self._is_client = is_client
        self._records: dict[PathAddress, _Record] = {}
        self._known: dict[PathAddress, bool] = {}
        self._newest: PathAddress | None = None
        # Those that answered a probe, and to which no path has been opened since.
        self._punched: set[PathAddress] = set()
        # When probes were last asked for; None while there is a direct path.
        self._punched_at: float | None = None
        self._spent: dict[Hashable, int] = {}
        self._in_use: set[PathAddress] = set()
        self._validated_at: dict[int, float] = {}

    # --- what is learnt -------------------------------------------------------------------------

    def learn(self, address: PathAddress, *, is_relayed: bool, is_newest: bool = False) -> bool:
        """Add an address of the peer; False if it is known, or there are too many.

        If there are too many, one that never answered and has used up its attempts gives way. For an
        address that a lookup says is the newest, the unused one that was learnt first gives way.
        """
        if address in self._known:
            return False
        most = limits.MAX_PATH_RELAYS if is_relayed else limits.MAX_PATH_ADDRESSES
        alike = [each for each, relayed in self._known.items() if relayed == is_relayed]
        if len(alike) >= most:
            spent = next((each for each in alike if self._is_spent(each)), None)
            if spent is None and is_newest:
                spent = next((each for each in alike if each not in self._in_use), None)
            if spent is None:
                return False
            del self._known[spent]
        self._known[address] = is_relayed
        if is_newest:
            self._newest = address
        return True

    def on_answered(self, path_id: int, address: PathAddress, now: float) -> None:
        """Note that a path works: if it is lost, its address may be tried again at once."""
        record = self._record(address)
        record.attempts = 0
        record.has_answered = True
        self._spent.pop(_target(address), None)
        self._validated_at[path_id] = now

    def on_punched(self, address: PathAddress) -> None:
        """Note that an address has answered a probe: a path there is opened before all others."""
        self.learn(address, is_relayed=False, is_newest=True)
        self._punched.add(address)
        record = self._record(address)
        record.has_answered = True
        record.next_try = 0.0
        self._spent.pop(_target(address), None)

    def on_suspected(self, address: PathAddress, now: float) -> None:
        """Quarantine an address that stopped answering."""
        record = self._record(address)
        if now - record.failed_at > QUARANTINE_FORGET_S:
            record.failures = 0
        record.failed_at = now
        pause = min(QUARANTINE_FIRST_S * 2**record.failures, QUARANTINE_MOST_S)
        record.failures += 1
        record.usable_at = now + pause

    def on_network_changed(self) -> None:
        """Note that this machine's network has changed: everything may be tried again at once."""
        self._spent.clear()
        for record in self._records.values():
            record.attempts = 0
            record.next_try = 0.0

    @staticmethod
    def is_stranded(paths: Iterable[PathView]) -> bool:
        """Return whether no path works."""
        return _is_stranded(paths)

    def wants_punching(self, paths: Sequence[PathView], now: float) -> bool:
        """Return whether it is time to probe for a direct path again."""
        if _has_good_direct(paths):
            self._punched_at = None
            return False
        if self._punched_at is not None and now < self._punched_at + PUNCH_INTERVAL_S:
            return False
        self._punched_at = now
        return True

    # --- choosing -------------------------------------------------------------------------------

    def candidates(self, paths: Sequence[PathView], now: float) -> list[PathView]:
        """Return the paths from which to select; empty to leave things as they are."""
        self._in_use = {path.remote for path in paths}
        ids = {path.id for path in paths}
        self._validated_at = {id: at for id, at in self._validated_at.items() if id in ids}
        for path in paths:
            if path.is_good:
                self._record(path.remote).has_answered = True
        good = [path for path in paths if path.is_good]
        # With nothing good left, the suspect ones are as good as any: do not change.
        return [path for path in good if self._record(path.remote).usable_at <= now] or good

    # --- leaving and opening --------------------------------------------------------------------

    def to_leave(self, paths: Sequence[PathView], now: float) -> list[Leave]:
        """Return what is not needed: further direct paths, and attempts that lead nowhere."""
        selected = next((path for path in paths if path.is_selected), None)
        has_direct = _has_good_direct(paths)
        leave = []
        for path in paths:
            if path is selected:
                continue
            needless = has_direct and not path.is_relayed
            if not path.is_validated:
                deadline = path.deadline
                if needless or (deadline is not None and now >= deadline):
                    leave.append(Leave(path.id, is_attempt=True))
            elif needless and not path.is_suspect:
                assert selected is not None
                if self._is_settled(selected, now):
                    leave.append(Leave(path.id, is_attempt=False))
            elif any(
                other.id > path.id and other.remote == path.remote and self._is_settled(other, now)
                for other in paths
            ):
                leave.append(Leave(path.id, is_attempt=False))
        return leave

    def to_open(self, paths: Sequence[PathView], now: float) -> list[PathAddress]:
        """Return the addresses to open paths to, the one that has waited longest first.

        Tell `opened` of each to which a path could be opened.
        """
        stranded = _is_stranded(paths)
        # A silent path may be one that the peer gave up without being able to tell us.
        taken = {path.remote for path in paths if not (stranded and path.is_suspect)}
        validating = sum(not path.is_validated for path in paths)
        has_direct = _has_good_direct(paths)
        # All ports of one IP address share its attempts, including those of this round.
        spent = dict(self._spent)
        found = []
        waiting = [address for address in self._known if address not in taken]
        for address in sorted(waiting, key=lambda each: self._record(each).next_try):
            is_relayed = self._known[address]
            # Where a lookup says the peer is now does not wait for where it was.
            has_turn = (
                validating < MAX_DIRECT_ATTEMPTS
                or address in self._punched
                or (stranded and address == self._newest)
            )
            if not is_relayed and (has_direct or not has_turn):
                continue
            record = self._record(address)
            if record.next_try > now and not stranded:
                continue
            if not record.has_answered:
                target = _target(address)
                # A relay that was never reachable may be the last route that is left.
                last_way = stranded and is_relayed
                if spent.get(target, 0) >= limits.MAX_PATH_ATTEMPTS and not last_way:
                    continue
                spent[target] = spent.get(target, 0) + 1
            found.append(address)
            validating += 1
        return found

    def opened(self, address: PathAddress, paths: Sequence[PathView], now: float) -> None:
        """Note that an attempt has started; `paths` as they were before."""
        self._punched.discard(address)
        record = self._record(address)
        pause_s = RETRY_FIRST_S * 2**record.attempts
        if record.has_answered:
            pause_s = min(pause_s, RETRY_MOST_S)
        else:
            target = _target(address)
            self._spent[target] = self._spent.get(target, 0) + 1
        record.next_try = now + pause_s
        if not _is_stranded(paths):
            record.attempts += 1

    def next_look(self, paths: Sequence[PathView], now: float) -> float | None:
        """Return when to check again, if nothing happens before; None if not necessary."""
        if len(paths) <= 1 and not self._known:
            return None
        at = now + RETRY_MOST_S
        taken = {path.remote for path in paths}
        for address, record in self._records.items():
            if address in taken and record.usable_at > now:
                at = min(at, record.usable_at)
            elif address not in taken and self._is_client and record.next_try > now:
                at = min(at, record.next_try)
        for path in paths if self._is_client else ():
            deadline = path.deadline
            if deadline is not None and deadline > now:
                at = min(at, deadline)
            settled_at = self._validated_at.get(path.id, 0.0) + SETTLE_S
            if settled_at > now:
                at = min(at, settled_at)
        return at

    # --- inside ---------------------------------------------------------------------------------

    def _is_settled(self, path: PathView, now: float) -> bool:
        return path.is_validated and now >= self._validated_at.get(path.id, 0.0) + SETTLE_S

    def _is_spent(self, address: PathAddress) -> bool:
        record = self._records.get(address)
        if record is None or record.has_answered:
            return False
        return self._spent.get(_target(address), 0) >= limits.MAX_PATH_ATTEMPTS

    def _record(self, address: PathAddress) -> _Record:
        record = self._records.get(address)
        if record is None:
            if len(self._records) >= MAX_RECORDS:
                # A client's address may change any number of times.
                kept = self._in_use | self._known.keys()
                self._records = {a: r for a, r in self._records.items() if a in kept}
                targets = {_target(each) for each in kept}
                self._spent = {t: n for t, n in self._spent.items() if t in targets}
            record = self._records[address] = _Record()
        return record


def _target(address: PathAddress) -> Hashable:
    """Return who receives datagrams to an address: for UDP the machine, whatever the port."""
    if not isinstance(address, IpAddr):
        return address
    ip = address.ip
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _is_stranded(paths: Iterable[PathView]) -> bool:
    return not any(path.is_good for path in paths)


def _has_good_direct(paths: Iterable[PathView]) -> bool:
    return any(path.is_selected and path.is_good and not path.is_relayed for path in paths)
