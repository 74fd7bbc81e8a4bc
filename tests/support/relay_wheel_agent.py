"""A real iroh endpoint in a process of its own, which knows nothing but a relay.

``serve`` echoes whole streams and prints its id; ``dial ID BYTES`` sends random bytes there, and
prints one JSON line with what came of it. It ends when its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
from typing import Any

import iroh

ALPN = b"dialkey-test/echo"
LIMIT = 100_000_000


class Echo(iroh.ProtocolHandler):
    async def accept(self, connection: Any) -> None:
        while True:
            try:
                stream = await connection.accept_bi()
            except iroh.IrohError:
                return
            data = await stream.recv().read_to_end(LIMIT)
            await stream.send().write_all(data)
            await stream.send().finish()

    async def shutdown(self) -> None:
        return


class Creator(iroh.ProtocolCreator):
    def create(self, endpoint: Any) -> Echo:
        return Echo()


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


async def until_stdin_ends() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def dial(endpoint: Any, relay: str, remote: str, size: int) -> None:
    began = time.perf_counter()
    address = iroh.EndpointAddr(iroh.EndpointId.from_string(remote), relay, [])
    connection = await endpoint.connect(address, ALPN)
    connected = time.perf_counter() - began
    data = os.urandom(size)
    began = time.perf_counter()
    stream = await connection.open_bi()
    await stream.send().write_all(data)
    await stream.send().finish()
    back = await stream.recv().read_to_end(LIMIT)
    took = time.perf_counter() - began
    say(
        connected_s=connected,
        took_s=took,
        same=hashlib.sha256(back).digest() == hashlib.sha256(data).digest(),
    )
    connection.close(0, b"done")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--secret", required=True)
    parser.add_argument("--relay", required=True)
    parser.add_argument("--token")
    parser.add_argument("--online-timeout", type=float, default=10)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--dial")
    parser.add_argument("--remote-relay", help="where to dial; by default our own relay")
    parser.add_argument("--bytes", type=int, default=1000)
    options = parser.parse_args()
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())  # type: ignore[arg-type]
    relays = iroh.RelayMap.empty()
    relays.insert(iroh.RelayConfig(url=options.relay, quic_port=None, auth_token=options.token))
    endpoint = await iroh.Endpoint.bind(
        iroh.EndpointOptions(
            preset=iroh.preset_minimal(),
            relay_mode=iroh.RelayMode.custom(relays),
            secret_key=bytes.fromhex(options.secret),
            protocols={ALPN: Creator()},
        )
    )
    began = time.perf_counter()
    try:
        await asyncio.wait_for(endpoint.online(), options.online_timeout)
    except TimeoutError:
        say(id=str(endpoint.id()), online=False)
    else:
        say(id=str(endpoint.id()), online=True, online_s=time.perf_counter() - began)
        if options.dial:
            await dial(endpoint, options.remote_relay or options.relay, options.dial, options.bytes)
    await until_stdin_ends()
    await endpoint.close()


asyncio.run(main())
