"""A client whose socket fails while the relay has much to send it."""

from __future__ import annotations

import asyncio
import contextlib
import random

from dialkey.identity import SecretKey
from dialkey_relay.access import Everyone
from dialkey_relay.client.machine import ClientMachine, Confirmed
from dialkey_relay.frames import Datagrams
from dialkey_relay.server import server as server_module
from dialkey_relay.server.listener import ClientConnection
from dialkey_relay.server.server import RelayOptions, RelayServer

A, B = (SecretKey(bytes((n,)) * 32) for n in (1, 2))


class FailingSocket(asyncio.Transport):
    """A transport whose writes begin to fail: the first one closes it, as asyncio's does."""

    def __init__(self, transport):
        super().__init__()
        self.transport = transport
        self.is_failing = False
        self.writes_that_failed = 0

    def write(self, data):
        if not self.is_failing:
            self.transport.write(data)
            return
        self.writes_that_failed += 1
        self.transport.abort()

    def is_closing(self):
        return self.transport.is_closing()

    def get_extra_info(self, name, default=None):
        return self.transport.get_extra_info(name, default)

    def get_write_buffer_size(self):
        return self.transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high=None, low=None):
        self.transport.set_write_buffer_limits(high, low)

    def pause_reading(self):
        self.transport.pause_reading()

    def resume_reading(self):
        self.transport.resume_reading()

    def close(self):
        self.transport.close()

    def abort(self):
        self.transport.abort()


class Watched(ClientConnection):
    """A connection of the relay whose transport a test can break."""

    def __init__(self, listener, made):
        super().__init__(listener)
        made.append(self)

    def connection_made(self, transport):
        self.socket = FailingSocket(transport)
        super().connection_made(self.socket)


async def join(relay, key):
    reader, writer = await asyncio.open_connection(*relay.addresses[0][:2])
    machine = ClientMachine(
        key, host="127.0.0.1", target="/relay", random=random.Random(5), now=0.0
    )
    events = []
    writer.write(machine.take_output())
    while not any(isinstance(event, Confirmed) for event in events):
        events += machine.receive(memoryview(await reader.read(65_536)), 0.0)
        writer.write(machine.take_output())
    return reader, writer, machine


async def until_datagrams(reader, machine):
    while not any(
        isinstance(event, Datagrams)
        for event in machine.receive(memoryview(await reader.read(65_536)), 0.0)
    ):
        pass


async def test_nothing_more_is_written_once_a_write_has_failed(monkeypatch) -> None:
    made = []
    monkeypatch.setattr(server_module, "ClientConnection", lambda listener: Watched(listener, made))
    options = RelayOptions(client_rate=None, accept_rate_per_address=None)
    async with asyncio.timeout(20), RelayServer([Everyone()], options) as relay:
        b_reader, b_writer, _ = await join(relay, B)
        a_reader, a_writer, a = await join(relay, A)
        b_connection = made[0]
        b_connection.pause_writing()
        for _ in range(20):
            a.send(bytes(B.id), b"x" * 60_000, 60_000)
        a.send(bytes(A.id), b"the relay has read the rest", 27)
        a_writer.write(a.take_output())
        await until_datagrams(a_reader, a)
        b_connection.socket.is_failing = True
        b_connection.resume_writing()
        with contextlib.suppress(ConnectionResetError):
            await b_reader.read()
        assert b_connection.socket.writes_that_failed == 1
        for writer in (a_writer, b_writer):
            writer.transport.abort()
