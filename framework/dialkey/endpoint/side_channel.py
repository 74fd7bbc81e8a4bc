"""Datagrams of another protocol over an endpoint's own sockets.

Only what leaves from the very socket that peers send to can reveal how a NAT treats that socket; address
discovery needs this. Datagrams from an address with a side channel go there, not to a connection.
"""

from __future__ import annotations

from collections.abc import Callable

from dialkey.errors import InvalidInput
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress

Receive = Callable[[bytes], None]
"""Takes a datagram."""


class SideChannel:
    """A side channel to one address. Made by `Endpoint.side_channel`; close it after use."""

    def __init__(self, channels: SideChannels, remote: IpAddr) -> None:
        self._channels = channels
        self._remote = remote

    @property
    def remote(self) -> IpAddr:
        """Where it leads."""
        return self._remote

    def send(self, data: bytes) -> None:
        """Send a datagram; it may be lost, like any other, and always is after `close`."""
        self._channels.send(self, data)

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        self._channels.close(self)


class SideChannels:
    """The side channels of one endpoint.

    Args:
        send: sends datagrams.
    """

    def __init__(self, send: Callable[[PathAddress, bytes, int], None]) -> None:
        self._send = send
        self._open: dict[PathAddress, tuple[SideChannel, Receive]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, remote: IpAddr, receive: Receive) -> SideChannel:
        """Open one.

        Raises:
            InvalidInput: there is already one to this address.
        """
        if remote in self._open:
            raise InvalidInput(f"there is a side channel to {remote} already")
        channel = SideChannel(self, remote)
        self._open[remote] = channel, receive
        return channel

    def receive(self, data: memoryview, segment: int, remote: PathAddress) -> bool:
        """Deliver datagrams; False if they are not for a side channel."""
        found = self._open.get(remote)
        if found is None:
            return False
        for at in range(0, len(data), segment):
            found[1](bytes(data[at : at + segment]))
        return True

    def send(self, channel: SideChannel, data: bytes) -> None:
        """Send for a channel that is open."""
        found = self._open.get(channel.remote)
        if found is not None and found[0] is channel:
            self._send(channel.remote, data, len(data))

    def close(self, channel: SideChannel) -> None:
        """Forget a channel."""
        found = self._open.get(channel.remote)
        if found is not None and found[0] is channel:
            del self._open[channel.remote]
