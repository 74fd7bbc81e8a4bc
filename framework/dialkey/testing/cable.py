"""UDP of this machine with a plug that can be pulled."""

from __future__ import annotations

from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress, Receiver
from dialkey.network.udp import UdpTransport

__all__ = ["Cable"]


class Cable(UdpTransport):
    """Carries datagrams over real UDP sockets until it is cut, and says nothing when that happens.

    A path that dies this way is the worst there is: no error comes back, datagrams just vanish in
    both directions, as behind a router that lost power. ::

        cable = Cable("127.0.0.1:0")
        async with Endpoint.bind(transports=[cable], relays=[url]) as endpoint:
            ...
            cable.cut()         # streams go on through the relay
            cable.restore()

    Args:
        bind: local addresses, such as "127.0.0.1:0".
        is_cut: whether it starts out cut.
    """

    def __init__(self, *bind: IpAddr | str, is_cut: bool = False) -> None:
        super().__init__([IpAddr.parse(each) if isinstance(each, str) else each for each in bind])
        self._is_cut = is_cut

    @property
    def is_cut(self) -> bool:
        """Whether datagrams vanish."""
        return self._is_cut

    def cut(self) -> None:
        """Let all datagrams vanish from now on, and network errors too."""
        self._is_cut = True

    def restore(self) -> None:
        """Carry again. The endpoint is not told; `Endpoint.network_changed` does that."""
        self._is_cut = False

    async def start(self, receiver: Receiver) -> None:
        """Open the sockets.

        Raises:
            BindError: an address cannot be bound.
        """
        await super().start(_End(receiver, self))

    def send(self, remote: PathAddress, data: bytes | memoryview, segment_bytes: int) -> None:
        """Send datagrams, or lose them."""
        if not self._is_cut:
            super().send(remote, data, segment_bytes)


class _End:
    """The receiving end of a cable."""

    def __init__(self, receiver: Receiver, cable: Cable) -> None:
        self._receiver = receiver
        self._cable = cable
        self.on_batch_end = receiver.on_batch_end
        self.on_writable = receiver.on_writable
        self.on_addresses_changed = receiver.on_addresses_changed
        self.on_candidates_changed = receiver.on_candidates_changed

    def on_datagrams(self, data: memoryview, segment_bytes: int, remote: PathAddress) -> None:
        if not self._cable.is_cut:
            self._receiver.on_datagrams(data, segment_bytes, remote)

    def on_unreachable(self, remote: PathAddress, reason: str) -> None:
        if not self._cable.is_cut:
            self._receiver.on_unreachable(remote, reason)

    def on_too_large(self, remote: PathAddress, max_datagram_bytes: int) -> None:
        if not self._cable.is_cut:
            self._receiver.on_too_large(remote, max_datagram_bytes)
