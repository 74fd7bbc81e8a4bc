"""What runs inside a home of a lab: endpoints that meet at a relay and go over to a direct path.

``relay HOST CERTIFICATE KEY`` is a relay with address discovery. ``serve`` answers, and prints its id.
``dial ID…`` dials all of these ids at the same time, by the relay alone; it prints for each when the
first data had gone to and fro, and when data went directly. With ``--wheel`` the real iroh wheel does it,
and is told its public address. One JSON object per line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

ALPN = "dialkey-punch/1"
ASK = b"are you there?"
PORT = 45678


def say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


# --- dialkey ------------------------------------------------------------------------------------


def bind(arguments: argparse.Namespace, **options: Any) -> Any:
    from dialkey import Endpoint
    from dialkey_relay import Relay, RelayConfig
    from dialkey_relay.client.dial import default_tls

    config = RelayConfig(arguments.url, discovery_port=7842)
    relay = Relay(config, tls=default_tls(arguments.ca), proxy="")
    return relay, Endpoint.bind(plugins=[relay], entry_points=False, **options)


async def ready(relay: Any, endpoint: Any) -> None:
    """Wait until a relay let us in and told us our address."""
    transport = relay.of(endpoint)
    await transport.online()
    for _ in range(500):
        if transport.seen_addrs:
            return
        await asyncio.sleep(0.02)
    raise RuntimeError("the relay does not tell our address")


async def serve(arguments: argparse.Namespace) -> None:
    relay, binding = bind(arguments, alpns=[ALPN])
    async with binding as endpoint:
        await ready(relay, endpoint)
        say("serving", id=str(endpoint.id), addrs=[str(each) for each in endpoint.addr().addrs])
        async with asyncio.TaskGroup() as tasks:
            async for connection in endpoint:
                tasks.create_task(answer(connection))


async def answer(connection: Any) -> None:
    from dialkey.errors import DialkeyError

    try:
        while True:
            send, recv = await connection.accept_bi()
            await send.write(await recv.read_to_end(limit=100))
            await send.finish()
    except DialkeyError:
        return


async def dial(arguments: argparse.Namespace) -> None:
    relay, binding = bind(arguments)
    async with binding as endpoint:
        await ready(relay, endpoint)
        say("dialling", addrs=[str(each) for each in endpoint.addr().addrs])
        dials = (dial_one(endpoint, each, arguments) for each in arguments.ids)
        await asyncio.gather(*dials)


async def dial_one(endpoint: Any, id: str, arguments: argparse.Namespace) -> None:
    from dialkey.identity import EndpointAddr, EndpointId, RelayAddr, RelayUrl

    began = time.monotonic()
    addr = EndpointAddr(EndpointId.parse(id), [RelayAddr(RelayUrl(arguments.url))])
    connection = await endpoint.connect(addr, ALPN, timeout=20)
    send, recv = await connection.open_bi()
    await send.write(ASK, finish=True)
    assert await recv.read_to_end(limit=100) == ASK
    first_s = time.monotonic() - began
    direct_s: float | None = None
    remote = None
    try:
        async with asyncio.timeout(arguments.wait):
            async for event in connection.path_events():
                path = getattr(event, "path", None)
                if path is not None and path.is_selected and path.kind == "direct":
                    direct_s = time.monotonic() - began
                    remote = str(path.remote)
                    break
    except TimeoutError:
        remote = None
    send, recv = await connection.open_bi()
    await send.write(ASK, finish=True)
    assert await recv.read_to_end(limit=100) == ASK
    say("met", id=id, first_s=first_s, direct_s=direct_s, remote=remote)


# --- the wheel ----------------------------------------------------------------------------------


async def wheel_endpoint(arguments: argparse.Namespace) -> Any:
    import iroh

    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    endpoint = await iroh.Endpoint.bind(
        iroh.EndpointOptions(
            preset=iroh.preset_minimal(),
            bind_addr=f"0.0.0.0:{PORT}",
            alpns=[ALPN.encode()],
            relay_mode=iroh.RelayMode.custom_from_urls([arguments.url]),
        )
    )
    await endpoint.online()
    if arguments.public:
        await endpoint.add_external_addr(f"{arguments.public}:{PORT}")
    return endpoint


async def wheel_serve(arguments: argparse.Namespace) -> None:
    endpoint = await wheel_endpoint(arguments)
    say("serving", id=str(endpoint.id()))
    async with asyncio.TaskGroup() as tasks:
        while (incoming := await endpoint.accept_next()) is not None:
            tasks.create_task(wheel_answer(await (await incoming.accept()).connect()))


async def wheel_answer(connection: Any) -> None:
    import iroh

    try:
        while True:
            stream = await connection.accept_bi()
            await stream.send().write_all(await stream.recv().read_to_end(100))
            await stream.send().finish()
    except iroh.IrohError:
        return


async def wheel_dial_one(endpoint: Any, id: str, arguments: argparse.Namespace) -> None:
    import iroh

    began = time.monotonic()
    addr = iroh.EndpointAddr(iroh.EndpointId.from_string(id), arguments.url, [])
    connection = await endpoint.connect(addr, ALPN.encode())
    first_s = direct_s = None
    while time.monotonic() - began < arguments.wait and direct_s is None:
        stream = await connection.open_bi()
        await stream.send().write_all(ASK)
        await stream.send().finish()
        assert bytes(await stream.recv().read_to_end(100)) == ASK
        first_s = first_s or time.monotonic() - began
        if any(each.is_selected and not each.is_relay for each in connection.paths()):
            direct_s = time.monotonic() - began
        await asyncio.sleep(0.05)
    say("met", id=id, first_s=first_s, direct_s=direct_s)


async def wheel_dial(arguments: argparse.Namespace) -> None:
    endpoint = await wheel_endpoint(arguments)
    await asyncio.gather(*(wheel_dial_one(endpoint, each, arguments) for each in arguments.ids))
    await endpoint.close()


# --- the relay ----------------------------------------------------------------------------------


async def run_relay(arguments: argparse.Namespace) -> None:
    from dialkey_relay import Everyone, RelayOptions, RelayServer
    from dialkey_relay.server.qad import QadServer
    from dialkey_relay.server.tls import TlsFiles

    host = arguments.host
    files = TlsFiles(arguments.certificate, arguments.key)
    options = RelayOptions(http=(host, 80), client_rate=None, accept_rate_per_address=None)
    async with (
        RelayServer([Everyone()], options) as relay,
        QadServer((host, 7842), files, relay.hub.counters),
    ):
        say("relay")
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    relaying = commands.add_parser("relay")
    relaying.add_argument("host")
    relaying.add_argument("certificate", type=Path)
    relaying.add_argument("key", type=Path)
    serving = commands.add_parser("serve")
    dialling = commands.add_parser("dial")
    dialling.add_argument("ids", nargs="+")
    dialling.add_argument("--wait", type=float, default=8.0)
    for command in (serving, dialling):
        command.add_argument("--url", required=True)
        command.add_argument("--ca")
        command.add_argument("--wheel", action="store_true")
        command.add_argument("--public", help="what the wheel is told of its address")
    arguments = parser.parse_args()
    if arguments.command == "relay":
        asyncio.run(run_relay(arguments))
    elif arguments.command == "serve":
        asyncio.run(wheel_serve(arguments) if arguments.wheel else serve(arguments))
    else:
        asyncio.run(wheel_dial(arguments) if arguments.wheel else dial(arguments))


if __name__ == "__main__":
    main()
