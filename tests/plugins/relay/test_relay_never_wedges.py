"""Whatever a relay does or fails to do, and wherever it stops, the client gets connected in the end."""

from __future__ import annotations

import asyncio

import pytest

from dialkey.identity import SecretKey
from dialkey_relay import keepalive as keepalive_module
from dialkey_relay.access import Everyone
from dialkey_relay.client import client as client_module
from dialkey_relay.client import machine as machine_module
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer
from dialkey_relay.server.server import RelayOptions, RelayServer

A = SecretKey(b"\x01" * 32)
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)

CUTS = [*range(0, 380, 60), *range(380, 440, 4)]
"""Bytes from the relay after which it misbehaves: in the answer, the challenge, the verdict, the
first pong, and behind that."""


class Saboteur:
    """Stands in front of a relay; each connection goes wrong after the next number of bytes."""

    def __init__(self, relay, how):
        self.relay = relay
        self.how = how
        self.cuts = list(CUTS)
        self.passed = []
        self._tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *exc_info):
        self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        left = cut = self.cuts.pop(0) if self.cuts else None
        done = len(self.passed)
        far_reader, far_writer = await asyncio.open_connection(*self.relay.addresses[0])
        try:
            await asyncio.gather(
                self.upwards(reader, far_writer), self.downwards(far_reader, writer, left)
            )
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            if cut is not None and len(self.passed) == done:
                # On a busy machine the client's patience can end before the cut is reached.
                self.cuts.insert(0, cut)
            for each in (writer, far_writer):
                each.transport.abort()

    async def upwards(self, reader, writer):
        while data := await reader.read(65_536):
            writer.write(data)
        raise ConnectionResetError

    async def downwards(self, reader, writer, left):
        passed = 0
        while data := await reader.read(65_536):
            if left is not None:
                data = data[:left]
                left -= len(data)
            writer.write(data)
            passed += len(data)
            if left == 0:
                self.passed.append(passed)
                if self.how == "hangs up":
                    raise ConnectionResetError
                if self.how == "talks nonsense":
                    writer.write(bytes(range(256)))
                # Else: nothing at all. The client has to notice by itself.
                await asyncio.Event().wait()
        raise ConnectionResetError


@pytest.mark.parametrize("how", ["hangs up", "talks nonsense", "falls silent"])
async def test_a_relay_that_goes_wrong_anywhere(monkeypatch, how) -> None:
    # The same limits, only shorter.
    monkeypatch.setattr(client_module, "DIAL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(machine_module, "HANDSHAKE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(keepalive_module, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(keepalive_module, "MIN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(keepalive_module, "MAX_TIMEOUT_S", 0.1)
    async with RelayServer([Everyone()], OPEN) as relay, Saboteur(relay, how) as saboteur:
        client = RelayClient(saboteur.url, A, dialer=Dialer(proxy=""))
        client._backoff.failed = lambda: 0.0
        async with client, asyncio.timeout(60):
            async for status in client.watch():
                if len(saboteur.passed) == len(CUTS) and status.rtt_s is not None:
                    break
            assert client.send(A.id, b"it works")
            assert (await client.receive()).content == b"it works"
            # None of that needed the watchdog: every wait has its own end.
            assert client.status.watchdog_kills == 0
