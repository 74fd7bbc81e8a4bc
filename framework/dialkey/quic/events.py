"""What a connection tells its owner. Each event is a small object; `type(event)` says which."""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from dialkey.identity import IpAddr
from dialkey.quic.streams.halves import RecvHalf, SendHalf


class Event:
    """The root of all events."""

    __slots__ = ()


class HandshakeCompleted(Event):
    """Both sides proved their keys; `Connection.peer_id` and `.alpn` are known."""

    __slots__ = ()


class StreamOpened(Event):
    """The peer opened a stream; `send` is None for a unidirectional one."""

    __slots__ = ("recv", "send")

    def __init__(self, send: SendHalf | None, recv: RecvHalf) -> None:
        self.send = send
        self.recv = recv


class Readable(Event):
    """A watched receiving half has data, its end, or a reset."""

    __slots__ = ("half",)

    def __init__(self, half: RecvHalf) -> None:
        self.half = half


class Writable(Event):
    """A watched sending half has sent what was queued, was stopped, or was fully acknowledged."""

    __slots__ = ("half",)

    def __init__(self, half: SendHalf) -> None:
        self.half = half


class Delivered(Event):
    """The peer has acknowledged everything that was written; see `watch_delivery`."""

    __slots__ = ()


class StreamsAvailable(Event):
    """The peer allows more streams."""

    __slots__ = ("unidirectional",)

    def __init__(self, unidirectional: bool) -> None:
        self.unidirectional = unidirectional


class DatagramReceived(Event):
    """A DATAGRAM frame arrived."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class CidIssued(Event):
    """Datagrams with this connection id belong to this connection from now on."""

    __slots__ = ("cid",)

    def __init__(self, cid: bytes) -> None:
        self.cid = cid


class CidRetired(Event):
    """The peer will no longer use this connection id."""

    __slots__ = ("cid",)

    def __init__(self, cid: bytes) -> None:
        self.cid = cid


class PeerResetToken(Event):
    """A datagram that ends in this token is the peer's stateless reset of this connection."""

    __slots__ = ("token",)

    def __init__(self, token: bytes) -> None:
        self.token = token


class PeerResetTokenRetired(Event):
    """The token belonged to a connection id that is no longer in use: it means nothing now."""

    __slots__ = ("token",)

    def __init__(self, token: bytes) -> None:
        self.token = token


class PathValidated(Event):
    """An address of the peer has proved that it receives what we send there."""

    __slots__ = ("path_id", "remote")

    def __init__(self, path_id: int, remote: Hashable) -> None:
        self.path_id = path_id
        self.remote = remote


class PathAdded(Event):
    """A path was opened; it is not validated yet."""

    __slots__ = ("path_id", "remote")

    def __init__(self, path_id: int, remote: Hashable) -> None:
        self.path_id = path_id
        self.remote = remote


class PathAbandoned(Event):
    """One side stopped using a path."""

    __slots__ = ("path_id", "remote")

    def __init__(self, path_id: int, remote: Hashable) -> None:
        self.path_id = path_id
        self.remote = remote


class AddressAnswered(Event):
    """A candidate of the peer answered our probe: a client opens a path there."""

    __slots__ = ("remote",)

    def __init__(self, remote: Hashable) -> None:
        self.remote = remote


class AddressObserved(Event):
    """The peer says that our packets come from this address."""

    __slots__ = ("address",)

    def __init__(self, address: IpAddr) -> None:
        self.address = address


class PathSuspected(Event):
    """A path has stopped answering; another should carry data."""

    __slots__ = ("path_id",)

    def __init__(self, path_id: int) -> None:
        self.path_id = path_id


class PathRecovered(Event):
    """A suspect path answered."""

    __slots__ = ("path_id",)

    def __init__(self, path_id: int) -> None:
        self.path_id = path_id


class PathsAvailable(Event):
    """Another path can be opened."""

    __slots__ = ()


class PathMigrated(Event):
    """The peer moved a path to another address."""

    __slots__ = ("path_id", "previous", "remote")

    def __init__(self, path_id: int, previous: Hashable, remote: Hashable) -> None:
        self.path_id = path_id
        self.previous = previous
        self.remote = remote


@attrs.frozen
class CloseReason:
    """Why a connection ended.

    Attributes:
        cause: "local", "overfull" (more is held unread than there is room for), "peer", "idle",
            "reset", "handshake" (no answer in time), "protocol" (the peer broke a rule and we closed),
            "no path" (the peer gave up the last one), "internal" (our own code failed).
        error_code: the number in the CONNECTION_CLOSE; 0 where none was sent.
        is_application: whether the number is the application's own.
        during_handshake: whether it ended before both sides had proved their keys.
    """

    cause: str
    error_code: int = 0
    reason: bytes = b""
    is_application: bool = False
    during_handshake: bool = False


class Closed(Event):
    """The connection is over: nothing more can be sent or received on it."""

    __slots__ = ("reason",)

    def __init__(self, reason: CloseReason) -> None:
        self.reason = reason


class Drained(Event):
    """Late packets of a closed connection no longer need an answer; it can be forgotten."""

    __slots__ = ()
