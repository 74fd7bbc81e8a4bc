"""The UDP transport: sockets, read and written in batches.

asyncio's own datagram transport reads one datagram per turn of the loop, which costs more than all of
QUIC. Here a readable socket is drained, the batch is handed over, and answers leave once at its end.
On Linux the kernel joins received datagrams (GRO) and cuts up sent ones (GSO); both are tried when a
socket is opened and again when they fail, with plain calls in their place.

Whoever dials one of several addresses of a machine must be answered from that one, or a firewall on the
way drops the answer. So the socket tells where a datagram arrived, and answers leave from there (Linux).

Errors that the network reports (ICMP) are read from the socket's error queue, with the address that
they are about, so that a dial to a port where nobody listens can say so.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

from dialkey.errors import BindError
from dialkey.identity import EndpointId, IpAddr, TransportAddr
from dialkey.network.interfaces import candidates
from dialkey.network.transport import PathAddress, Receiver

logger = logging.getLogger("dialkey.network.udp")

_IS_LINUX = sys.platform == "linux"
_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_PROBE = 3
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50
_MSG_ERRQUEUE = 0x2000
_SEGMENT = struct.Struct("@H")
_PKTINFO = struct.Struct("@I4s4s")
_PKTINFO6 = struct.Struct("@16sI")
_EXTENDED_ERROR = struct.Struct("@IBBBBII")

RECEIVE_BUFFER_BYTES = 65_536
SOCKET_BUFFER_BYTES = 4 << 20
"""Asked of the kernel, which may give less: room for what arrives while Python is busy elsewhere."""
MAX_READS_PER_TURN = 32
"""Reads before other tasks get their turn; up to 2 MiB where the kernel joins datagrams."""
MAX_QUEUED_SENDS = 512
MAX_KNOWN_PEERS = 4096

SocketAddress = tuple[Any, ...]
Ancillary = tuple[tuple[int, int, bytes], ...]


class UdpSocket:
    """One bound socket of one family."""

    def __init__(self, sock: socket.socket, owner: UdpTransport) -> None:
        self.sock = sock
        self.family = sock.family
        self._owner = owner
        self._buffer = bytearray(RECEIVE_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._iov = [self._buffer]
        self._queue: deque[tuple[bytes, SocketAddress, int, Ancillary]] = deque()
        self._segment_messages: dict[int, list[tuple[int, int, bytes]]] = {}
        self.dropped = 0
        self.gro = _try_option(sock, _SOL_UDP, _UDP_GRO, 1)
        self.gso = _try_option(sock, _SOL_UDP, _UDP_SEGMENT, 0)
        is_wild = self.name[0].is_unspecified
        if self.family == socket.AF_INET:
            if is_wild:
                _try_option(sock, socket.IPPROTO_IP, _IP_PKTINFO, 1)
            _try_option(sock, socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            self._has_error_queue = _try_option(sock, socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            if is_wild:
                _try_option(sock, socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            _try_option(sock, socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            self._has_error_queue = _try_option(sock, socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)

    @property
    def name(self) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
        ip, port = self.sock.getsockname()[:2]
        return ipaddress.ip_address(ip), port

    # --- receiving ------------------------------------------------------------------------------

    def on_readable(self) -> None:
        receiver = self._owner.receiver
        if self.gro:
            self._drain_joined(receiver)
        else:
            self._drain_single(receiver)
        receiver.on_batch_end()

    def _drain_joined(self, receiver: Receiver) -> None:
        recvmsg_into = self.sock.recvmsg_into
        for count in range(MAX_READS_PER_TURN):
            try:
                length, ancillary, _, address = recvmsg_into(self._iov, 128)
            except BlockingIOError:
                if not count:
                    # Woken, but not for data: the error queue keeps a socket readable.
                    self._read_errors(receiver)
                return
            except OSError:
                self._read_errors(receiver)
                continue
            segment = length
            local = None
            for level, kind, data in ancillary:
                if level == _SOL_UDP and kind == _UDP_GRO:
                    segment = int.from_bytes(data[:2], sys.byteorder)
                elif kind == _IP_PKTINFO and level == socket.IPPROTO_IP:
                    local = data[4:8]
                elif kind == _IPV6_PKTINFO and level == socket.IPPROTO_IPV6:
                    local = data[:16]
            if length:
                remote = self._owner.path_address(address)
                if local is not None:
                    self._owner.heard_at(remote, local)
                receiver.on_datagrams(self._view[:length], segment, remote)

    def _drain_single(self, receiver: Receiver) -> None:
        """Read datagram by datagram, but hand over runs of equal size from one sender as one batch."""
        recvfrom_into = self.sock.recvfrom_into
        view = self._view
        filled = segment = 0
        sender: SocketAddress | None = None
        for count in range(MAX_READS_PER_TURN * 4):
            if RECEIVE_BUFFER_BYTES - filled < 2048:
                receiver.on_datagrams(view[:filled], segment, self._owner.path_address(sender))
                filled = 0
            try:
                length, address = recvfrom_into(view[filled:])
            except BlockingIOError:
                if not count:
                    self._read_errors(receiver)
                break
            except OSError:
                self._read_errors(receiver)
                continue
            if not length:
                continue
            if filled and (address != sender or length > segment):
                receiver.on_datagrams(view[:filled], segment, self._owner.path_address(sender))
                self._buffer[:length] = view[filled : filled + length]
                filled = 0
            if not filled:
                sender, segment = address, length
            filled += length
            if length < segment:
                receiver.on_datagrams(view[:filled], segment, self._owner.path_address(sender))
                filled = 0
        if filled:
            receiver.on_datagrams(view[:filled], segment, self._owner.path_address(sender))

    def _read_errors(self, receiver: Receiver) -> None:
        if not self._has_error_queue:
            return
        for _ in range(MAX_READS_PER_TURN):
            try:
                _, ancillary, _, address = self.sock.recvmsg(512, 512, _MSG_ERRQUEUE)
            except OSError:
                return
            for _, kind, data in ancillary:
                if kind not in (_IP_RECVERR, _IPV6_RECVERR) or len(data) < _EXTENDED_ERROR.size:
                    continue
                number, _, _, _, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
                if not address:
                    continue
                remote = self._owner.path_address(address)
                if number == errno.EMSGSIZE:
                    overhead = 28 if self.family == socket.AF_INET else 48
                    receiver.on_too_large(remote, max(0, info - overhead))
                else:
                    receiver.on_unreachable(remote, os.strerror(number).lower())

    # --- sending --------------------------------------------------------------------------------

    def send(
        self,
        data: bytes | memoryview,
        address: SocketAddress,
        segment: int,
        source: Ancillary = (),
    ) -> None:
        """Send or queue; `source` says from which address, see `source_of`."""
        if self._queue:
            self._enqueue(data, address, segment, source)
            return
        self._send_now(data, address, segment, source)

    def source_of(self, local: bytes) -> Ancillary:
        """Return what makes datagrams leave from one of this machine's addresses."""
        if len(local) == 4:
            data = _PKTINFO.pack(0, local, bytes(4))
            return ((socket.IPPROTO_IP, _IP_PKTINFO, data),)
        return ((socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(local, 0)),)

    def _send_now(
        self, data: bytes | memoryview, address: SocketAddress, segment: int, source: Ancillary
    ) -> None:
        if len(data) <= segment:
            self._send_one(data, address, source)
            return
        if self.gso:
            message = self._segment_messages.get(segment)
            if message is None:
                if len(self._segment_messages) > 64:
                    self._segment_messages.clear()
                message = [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(segment))]
                self._segment_messages[segment] = message
            try:
                self.sock.sendmsg((data,), [*message, *source] if source else message, 0, address)
                return
            except BlockingIOError:
                self._enqueue(data, address, segment, source)
                return
            except OSError as exc:
                refused = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP)
                if exc.errno in refused and not source:
                    # The device or a later kernel filter cannot cut up datagrams.
                    self.gso = False
                    logger.info("segmentation offload is off: %s", exc.strerror)
                # Otherwise one datagram at a time says what is wrong.
        for at in range(0, len(data), segment):
            if self._queue:
                self._enqueue(data[at:], address, segment, source)
                return
            source = self._send_one(data[at : at + segment], address, source)

    def _send_one(
        self, data: bytes | memoryview, address: SocketAddress, source: Ancillary
    ) -> Ancillary:
        try:
            if source:
                self.sock.sendmsg((data,), source, 0, address)
            else:
                self.sock.sendto(data, address)
        except BlockingIOError:
            self._enqueue(data, address, len(data), source)
        except OSError:
            # Most likely the fate of an earlier datagram, to another address perhaps. The kernel tells
            # of it on this call and throws this datagram away: send it again. Or the address that it
            # was to leave from is gone: then from any.
            self._read_errors(self._owner.receiver)
            if source:
                self._owner.forget_local(self._owner.path_address(address))
            self._send_again(data, address)
            return ()
        return source

    def _send_again(self, data: bytes | memoryview, address: SocketAddress) -> None:
        try:
            self.sock.sendto(data, address)
        except BlockingIOError:
            self._enqueue(data, address, len(data), ())
        except OSError as exc:
            remote = self._owner.path_address(address)
            if exc.errno == errno.EMSGSIZE:
                self._owner.receiver.on_too_large(remote, len(data) - 1)
            elif exc.errno != errno.ECONNREFUSED or not self._has_error_queue:
                reason = (exc.strerror or str(exc)).lower()
                self._owner.receiver.on_unreachable(remote, reason)

    def _enqueue(
        self, data: bytes | memoryview, address: SocketAddress, segment: int, source: Ancillary
    ) -> None:
        if len(self._queue) >= MAX_QUEUED_SENDS:
            self.dropped += -(-len(data) // segment)
            return
        if not self._queue:
            self._owner.loop.add_writer(self.sock.fileno(), self._on_writable)
        self._queue.append((bytes(data), address, segment, source))

    @property
    def is_blocked(self) -> bool:
        return bool(self._queue)

    def _on_writable(self) -> None:
        queue, self._queue = self._queue, deque()
        while queue:
            data, address, segment, source = queue.popleft()
            self._send_now(data, address, segment, source)
            if self._queue:
                self._queue.extend(queue)
                return
        self._owner.loop.remove_writer(self.sock.fileno())
        self._owner.receiver.on_writable()

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self._owner.loop.remove_reader(self.sock.fileno())
            self._owner.loop.remove_writer(self.sock.fileno())
            self.sock.close()


class UdpTransport:
    """All UDP sockets of one endpoint; path addresses are `IpAddr`.

    Args:
        bind: addresses to bind; none means port 0 of all IPv4 and, where the machine has it, all IPv6.
    """

    name = "udp"

    def __init__(self, bind: Iterable[IpAddr] = ()) -> None:
        self._bind = tuple(bind)
        self._sockets: list[UdpSocket] = []
        self._known: dict[SocketAddress, IpAddr] = {}
        self._targets: dict[IpAddr, tuple[UdpSocket, SocketAddress, Ancillary] | None] = {}
        self._last_remote: IpAddr | None = None
        self._last_target: tuple[UdpSocket, SocketAddress, Ancillary] | None = None
        # Where those who spoke first reached us; None for those to whom we spoke first: there the
        # kernel's choice, made again with each route, is right.
        self._locals: dict[IpAddr, bytes | None] = {}
        self._last_heard: tuple[IpAddr, bytes] | None = None
        self._local: list[IpAddr] | None = None

    async def start(self, receiver: Receiver) -> None:
        """Open the sockets.

        Raises:
            BindError: an address that was asked for cannot be bound, or none at all could.
        """
        self.receiver = receiver
        self.loop = asyncio.get_running_loop()
        try:
            if self._bind:
                for addr in self._bind:
                    self._open(addr)
            else:
                self._open(IpAddr(ipaddress.IPv4Address("0.0.0.0"), 0))
                try:
                    self._open(IpAddr(ipaddress.IPv6Address("::"), 0))
                except BindError as exc:
                    logger.debug("no IPv6: %s", exc)
        except BindError:
            await self.close()
            raise
        for each in self._sockets:
            self.loop.add_reader(each.sock.fileno(), each.on_readable)

    def _open(self, addr: IpAddr) -> None:
        family = socket.AF_INET if addr.ip.version == 4 else socket.AF_INET6
        address: SocketAddress = (str(addr.ip), addr.port)
        if family == socket.AF_INET6:
            address = (str(addr.ip), addr.port, 0, addr.scope_id)
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as exc:
            raise BindError(f"no socket for {addr}: {exc.strerror}") from exc
        try:
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
        except OSError as exc:
            sock.close()
            hint = "another program uses this port" if exc.errno == errno.EADDRINUSE else None
            if exc.errno == errno.EADDRNOTAVAIL:
                hint = "this machine does not have the address"
            raise BindError(f"cannot bind {addr}: {exc.strerror}", hint=hint) from exc
        self._sockets.append(UdpSocket(sock, self))

    async def close(self) -> None:
        """Close the sockets. Idempotent."""
        sockets, self._sockets = self._sockets, []
        self._last_remote = None
        self._targets.clear()
        for each in sockets:
            each.close()

    def path_addresses(self, id: EndpointId, addr: TransportAddr) -> list[PathAddress]:
        if isinstance(addr, IpAddr) and self._target(addr) is not None:
            return [addr]
        return []

    def owns(self, remote: PathAddress) -> bool:
        return isinstance(remote, IpAddr)

    def path_address(self, address: SocketAddress | None) -> IpAddr:
        """Return the value for a socket's address; the same object for the same address."""
        assert address is not None
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= MAX_KNOWN_PEERS:
                self._known.clear()
            ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
            known = IpAddr(ip, address[1], address[3] if len(address) > 3 else 0)
            self._known[address] = known
        return known

    def heard_at(self, remote: IpAddr, local: bytes) -> None:
        """Note at which of this machine's addresses a datagram arrived."""
        last = self._last_heard
        if last is not None and last[0] is remote and last[1] == local:
            return
        self._last_heard = remote, local
        if remote in self._locals and self._locals[remote] in (None, local):
            return
        self._note_local(remote, local)
        self._forget_target(remote)

    def forget_local(self, remote: IpAddr) -> None:
        """Let the kernel choose from which address this remote hears us."""
        self._locals[remote] = None
        self._forget_target(remote)

    def _note_local(self, remote: IpAddr, local: bytes | None) -> None:
        if len(self._locals) >= MAX_KNOWN_PEERS:
            self._locals.clear()
        self._locals[remote] = local

    def _forget_target(self, remote: IpAddr) -> None:
        self._targets.pop(remote, None)
        self._last_remote = None

    def _target(self, addr: IpAddr) -> tuple[UdpSocket, SocketAddress, Ancillary] | None:
        if addr in self._targets:
            return self._targets[addr]
        if len(self._targets) >= MAX_KNOWN_PEERS:
            self._targets.clear()
        family = socket.AF_INET if addr.ip.version == 4 else socket.AF_INET6
        found: UdpSocket | None = None
        for each in self._sockets:
            # A socket bound to loopback reaches nothing else, and others not it.
            name, _ = each.name
            if each.family == family and (found is None or name.is_loopback == addr.ip.is_loopback):
                found = each
        target: tuple[UdpSocket, SocketAddress, Ancillary] | None = None
        if found is not None:
            address: SocketAddress = (str(addr.ip), addr.port)
            if family == socket.AF_INET6:
                address = (str(addr.ip), addr.port, 0, addr.scope_id)
            local = self._locals.get(addr)
            target = (found, address, found.source_of(local) if local is not None else ())
        self._targets[addr] = target
        return target

    def send(self, remote: PathAddress, data: bytes | memoryview, segment_bytes: int) -> None:
        assert isinstance(remote, IpAddr)
        if remote is not self._last_remote:
            # Hashing an address for each packet costs more than a system call.
            self._last_remote, self._last_target = remote, self._target(remote)
            if remote not in self._locals:
                self._note_local(remote, None)
        target = self._last_target
        if target is not None:
            target[0].send(data, target[1], segment_bytes, target[2])

    @property
    def is_blocked(self) -> bool:
        for each in self._sockets:
            if each.is_blocked:
                return True
        return False

    @property
    def bound(self) -> list[IpAddr]:
        """The addresses to which the sockets are bound."""
        return [IpAddr(*each.name) for each in self._sockets]

    @property
    def dropped(self) -> int:
        """Datagrams that were discarded because the machine could not take them in time."""
        return sum(each.dropped for each in self._sockets)

    def local_addrs(self) -> list[TransportAddr]:
        if self._local is None:
            self._local = candidates(each.name for each in self._sockets)
        return list(self._local)

    def network_changed(self) -> None:
        self._local = None
        self._last_remote = self._last_heard = None
        self._targets.clear()


def _try_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    if not _IS_LINUX:
        return False
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True
