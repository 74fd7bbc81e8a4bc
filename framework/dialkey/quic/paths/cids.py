"""Connection ids: those that the peer gave us, those that we gave it, and the reset tokens with them.

Sources: RFC 9000 sections 5.1 and 10.3, docs/wire/quic.md 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from dialkey.quic import codes, events
from dialkey.quic.codes import TransportError
from dialkey.quic.events import Event

MAX_PEER_CIDS: Final = 8
"""How many of the peer's connection ids we hold for one path; our active_connection_id_limit."""
MAX_LOCAL_CIDS: Final = 5
"""How many connection ids we issue for one path, if the peer's limit allows: iroh holds five."""
MAX_PENDING_RETIREMENTS: Final = 100


@attrs.frozen
class PeerCid:
    """A connection id by which we address the peer."""

    sequence: int
    cid: bytes
    reset_token: bytes | None = attrs.field(default=None, repr=False)


class PeerCids:
    """The peer's connection ids for one path: one in use, the others spare."""

    __slots__ = ("_retire_prior_to", "_seen", "active", "retirements", "spare")

    def __init__(self, active: PeerCid | None) -> None:
        self.active = active
        self.spare: list[PeerCid] = []
        self.retirements: deque[int] = deque()
        self._retire_prior_to = 0
        self._seen = {active.sequence} if active is not None else set()

    def add(self, new: PeerCid, retire_prior_to: int) -> bool:
        """Take a NEW_CONNECTION_ID in; return whether the active one changed.

        Raises:
            TransportError: more ids than we allow, or a contradiction.
        """
        if retire_prior_to > new.sequence:
            raise TransportError(codes.PROTOCOL_VIOLATION, "retire_prior_to beyond the sequence")
        held = [self.active, *self.spare] if self.active is not None else self.spare
        for other in held:
            if other.sequence == new.sequence and other.cid != new.cid:
                raise TransportError(codes.PROTOCOL_VIOLATION, "one sequence, two ids")
            if other.cid == new.cid and other.sequence != new.sequence:
                raise TransportError(codes.PROTOCOL_VIOLATION, "one id, two sequences")
        if new.sequence not in self._seen:
            self._seen.add(new.sequence)
            if new.sequence < self._retire_prior_to:
                self._retire(new.sequence)
            elif self.active is None:
                self.active = new
            else:
                self.spare.append(new)
        changed = False
        if retire_prior_to > self._retire_prior_to:
            self._retire_prior_to = retire_prior_to
            self._seen = {s for s in self._seen if s >= retire_prior_to}
            gone = [c for c in self.spare if c.sequence < retire_prior_to]
            self.spare = [c for c in self.spare if c.sequence >= retire_prior_to]
            for cid in gone:
                self._retire(cid.sequence)
            if self.active is not None and self.active.sequence < retire_prior_to:
                changed = self.rotate()
        if len(self.spare) + (self.active is not None) > MAX_PEER_CIDS:
            raise TransportError(codes.CONNECTION_ID_LIMIT_ERROR, "too many connection ids")
        return changed

    def rotate(self) -> bool:
        """Use another id from now on and retire the one in use; False if there is no spare."""
        if not self.spare:
            return False
        if self.active is not None:
            self._retire(self.active.sequence)
        self.active = self.spare.pop(0)
        return True

    def forget(self) -> None:
        """Stop addressing the peer: the path is over."""
        self.active = None

    def _retire(self, sequence: int) -> None:
        if len(self.retirements) >= MAX_PENDING_RETIREMENTS:
            raise TransportError(codes.CONNECTION_ID_LIMIT_ERROR, "too many retired ids")
        self.retirements.append(sequence)


@attrs.define
class LocalCid:
    """A connection id that we issued to the peer."""

    sequence: int
    cid: bytes
    reset_token: bytes = attrs.field(repr=False)


class PathCids:
    """Connection ids of both sides for one path id; they exist before the path does.

    Attributes:
        id: the path id.
        local: ids of ours that the peer may use, oldest first.
        next_sequence: sequence number of the next id of ours.
        peer: ids that the peer gave us.
        published_token: the reset token that the connection's owner was told of.
        peer_available, peer_status_sequence: whether the peer intends to send data on the path, as it
            last told us.
    """

    __slots__ = (
        "id",
        "local",
        "next_sequence",
        "peer",
        "peer_available",
        "peer_status_sequence",
        "published_token",
    )

    def __init__(self, path_id: int, peer_cid: PeerCid | None = None) -> None:
        self.id = path_id
        self.local: list[LocalCid] = []
        self.next_sequence = 0
        self.peer = PeerCids(peer_cid)
        self.published_token: bytes | None = None
        self.peer_available = True
        self.peer_status_sequence = 0

    def publish(self, token: bytes | None) -> bytes | None:
        """Note the reset token that the owner is told of; return the one before."""
        before, self.published_token = self.published_token, token
        return before

    def on_status(self, sequence: int, available: bool) -> None:
        """Note whether the peer intends to send data on the path; only a hint."""
        if sequence > self.peer_status_sequence:
            self.peer_status_sequence = sequence
            self.peer_available = available


class ConnectionIds:
    """All connection ids of one connection.

    Args:
        new_cid: makes a fresh connection id.
        reset_token: derives the stateless-reset token of one.
        owe: queues a frame that the peer made us send.
        emit: tells the owner.

    Attributes:
        sets: the ids of each path id; they exist before the path does.
        by_cid: path id and sequence number of each id of ours.
    """

    def __init__(
        self,
        *,
        new_cid: Callable[[], bytes],
        reset_token: Callable[[bytes], bytes],
        host_cid: bytes,
        owe: Callable[[int, tuple[object, ...]], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._new_cid = new_cid
        self._reset_token = reset_token
        self._owe = owe
        self._emit = emit
        self._host_cid = host_cid
        self._most = 0
        self.sets: dict[int, PathCids] = {}
        self.by_cid: dict[bytes, tuple[int, int]] = {host_cid: (0, 0)}

    def start(self, peer_cid: PeerCid, most: int) -> PathCids:
        """Start with the ids of path 0, one from each side.

        Args:
            most: how many of our ids the peer holds for one path.
        """
        self._most = most
        cids = self.sets[0] = PathCids(0, peer_cid)
        cids.local.append(LocalCid(0, self._host_cid, self._reset_token(self._host_cid)))
        cids.next_sequence = 1
        return cids

    def of(self, path_id: int) -> PathCids:
        """Return the ids of a path id, which may be new."""
        cids = self.sets.get(path_id)
        if cids is None:
            cids = self.sets[path_id] = PathCids(path_id)
        return cids

    def issue(self, cids: PathCids, most: int = MAX_LOCAL_CIDS) -> None:
        """Issue ids for a path id until the peer holds enough."""
        wanted = min(most, self._most)
        while len(cids.local) < wanted:
            cid = self._new_cid()
            local = LocalCid(cids.next_sequence, cid, self._reset_token(cid))
            cids.next_sequence += 1
            cids.local.append(local)
            self.by_cid[cid] = (cids.id, local.sequence)
            self._emit(events.CidIssued(cid))
            self._owe(codes.NEW_CONNECTION_ID, (cids, local))

    def take(self, cids: PathCids, new: PeerCid, retire_prior_to: int, *, in_use: bool) -> bool:
        """Add an id that the peer issued; return whether its path had none before.

        Args:
            in_use: whether the path exists.
        """
        had_none = cids.peer.active is None
        cids.peer.add(new, retire_prior_to)
        if cids.peer.retirements:
            self._announce_retirements(cids)
        elif had_none and in_use:
            self.publish_reset_token(cids)
        return had_none

    def retire(self, path_id: int, sequence: int) -> PathCids | None:
        """Retire one of our ids that the peer gave up; return the ids of its path, if it was known.

        Raises:
            TransportError: it was never issued.
        """
        cids = self.sets.get(path_id)
        if cids is None:
            return None
        if sequence >= cids.next_sequence:
            raise TransportError(
                codes.PROTOCOL_VIOLATION,
                "an id never issued was retired",
                codes.RETIRE_CONNECTION_ID,
            )
        for index, local in enumerate(cids.local):
            if local.sequence == sequence:
                del cids.local[index]
                del self.by_cid[local.cid]
                self._emit(events.CidRetired(local.cid))
                return cids
        return None

    def rotate(self, cids: PathCids) -> None:
        """Address the peer by another id, if there is a spare one."""
        if cids.peer.rotate():
            self._announce_retirements(cids)

    def forget(self, path_id: int) -> None:
        """Forget all ids of a path that is over."""
        cids = self.sets.pop(path_id, None)
        if cids is not None:
            cids.peer.forget()
            self.publish_reset_token(cids)
            for local in cids.local:
                self.by_cid.pop(local.cid, None)
                self._emit(events.CidRetired(local.cid))

    def _announce_retirements(self, cids: PathCids) -> None:
        peer = cids.peer
        while peer.retirements:
            self._owe(codes.RETIRE_CONNECTION_ID, (cids, peer.retirements.popleft()))
        self.publish_reset_token(cids)

    def publish_reset_token(self, cids: PathCids) -> None:
        """Tell the owner which reset token is in force for a path, and which no longer is."""
        active = cids.peer.active
        token = active.reset_token if active is not None else None
        before = cids.publish(token)
        if token == before:
            return
        if before is not None:
            self._emit(events.PeerResetTokenRetired(before))
        if token is not None:
            self._emit(events.PeerResetToken(token))
