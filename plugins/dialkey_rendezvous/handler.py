"""The rendezvous server as a protocol handler of a router: a `Desk` with its network."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from dialkey.identity import IpAddr
from dialkey_rendezvous import limits
from dialkey_rendezvous.desk import Caller, Desk, DeskStats, Seat

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint, RecvStream, SendStream

__all__ = ["ALPN", "Rendezvous", "caller_of"]

ALPN: Final = b"dialkey/rendezvous/1"

READ_BYTES: Final = 4096
CLOSE_DONE: Final = 0


class Rendezvous:
    """The plugin that lets people hand over tickets by codes.

    A server is an endpoint with a router that serves it; both sides of a code dial its key.
    What it knows is who meets whom, and when: it hears no words and sees no ticket.

    Args:
        max_offers: codes that wait at a time.
        choose: gives a number below its argument that nobody can guess.
    """

    def __init__(
        self,
        *,
        max_offers: int = limits.MAX_OFFERS,
        choose: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._desk = Desk(choose, max_offers=max_offers)
        self._seats: dict[Seat, asyncio.Queue[tuple[bytes, bool]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def dialkey_protocols(self, endpoint: Endpoint) -> Mapping[str | bytes, Rendezvous]:
        """Serve ``dialkey/rendezvous/1``."""
        return {ALPN: self}

    def stats(self) -> DeskStats:
        """Return what happened so far."""
        return self._desk.stats()

    async def accept(self, connection: Connection) -> None:
        """Serve the streams of a connection, one after the other."""
        while True:
            try:
                async with asyncio.timeout(limits.FIRST_FRAME_S):
                    send, recv = await connection.accept_bi()
            except TimeoutError:
                connection.close(CLOSE_DONE, b"nothing was asked")
                return
            await self._serve(connection, send, recv)
            if connection.is_closed:
                return

    async def shutdown(self) -> None:
        """Stop looking at the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _serve(self, connection: Connection, send: SendStream, recv: RecvStream) -> None:
        seat = self._desk.sit(caller_of(connection), _now())
        outgoing: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()
        self._seats[seat] = outgoing
        self._act()
        reading = asyncio.create_task(self._read(seat, recv))
        try:
            await self._write(send, outgoing, reading)
        except TimeoutError:
            connection.close(CLOSE_DONE, b"too slow")
            return
        finally:
            del self._seats[seat]
            self._desk.leave(seat, _now())
            self._act()
            # Those who have been told the outcome have nothing more to say.
            recv.stop()
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()  # seen, even where something else is raised
        if not reading.cancelled():
            reading.result()

    async def _read(self, seat: Seat, recv: RecvStream) -> None:
        while data := await recv.read(READ_BYTES):
            try:
                self._desk.receive(seat, data, _now())
            finally:
                self._act()
        self._desk.leave(seat, _now())
        self._act()

    async def _write(
        self,
        send: SendStream,
        outgoing: asyncio.Queue[tuple[bytes, bool]],
        reading: asyncio.Task[None],
    ) -> None:
        """Write what the desk has for a seat, until it is the last or the seat's stream is over."""
        while True:
            getting = asyncio.ensure_future(outgoing.get())
            try:
                await asyncio.wait({getting, reading}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not getting.done():
                    getting.cancel()
            if not getting.done() or getting.cancelled():
                send.reset()
                return
            data, is_last = getting.result()
            async with asyncio.timeout(limits.WRITE_S):
                await send.write(data, finish=is_last)
                if is_last:
                    await send.stopped()
                    return

    def _act(self) -> None:
        """Do what the desk asks for, and see when it wants to be asked again."""
        while (output := self._desk.poll()) is not None:
            queue = self._seats.get(output.seat)
            if queue is not None:
                queue.put_nowait((output.data, output.is_last))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._desk.next_time()
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._desk.tick(_now())
        self._act()


def caller_of(connection: Connection) -> Caller:
    """Say on whose account a connection is: a direct address if there is one, else the relay."""
    paths = sorted(connection.paths(), key=lambda path: path.kind == "relay")
    id = bytes(connection.remote_id)
    if not paths:
        return Caller(id, "nowhere")
    remote = paths[0].remote
    if isinstance(remote, IpAddr):
        return Caller(id, _network_of(remote))
    counts_as: tuple[str, ...] = getattr(remote, "counts_as", ()) or (repr(remote),)
    # The widest: ids behind a relay cost nothing.
    return Caller(id, counts_as[-1], "relay" if paths[0].kind == "relay" else "address")


def _network_of(address: IpAddr) -> str:
    ip = address.ip
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
        ip = ip.ipv4_mapped
    return str(ip)


def _now() -> float:
    return asyncio.get_running_loop().time()
