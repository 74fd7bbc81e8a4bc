"""What runs inside a host of a lab: an endpoint that receives, or one that sends.

``relay HOST PORT`` is a relay. ``serve [--relay URL]`` prints its ticket, then what it received.
``send TICKET SIZE [--relay URL]``
dials and sends. Both print path events and the longest time without progress. One JSON object per line.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import time

from dialkey import Connection, Endpoint
from dialkey.errors import DialkeyError

ALPN = "dialkey-lab/1"
PIECE = 1 << 16


def say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, "t": round(time.monotonic(), 3), **values}), flush=True)


def plugins(relay: str | None) -> list[object]:
    if relay is None:
        return []
    from dialkey_relay import Relay

    return [Relay(relay)]


async def report_paths(connection: Connection) -> None:
    async for event in connection.path_events():
        path = getattr(event, "path", None)
        say(
            "path",
            what=type(event).__name__,
            kind=path.kind if path is not None else None,
            remote=str(path.remote) if path is not None else None,
        )


def piece(number: int) -> bytes:
    return random.Random(number).randbytes(PIECE)


async def serve(relay: str | None, no_udp: bool) -> None:
    given = plugins(relay)
    async with Endpoint.bind(
        alpns=[ALPN],
        entry_points=False,
        plugins=given,
        transports=[] if no_udp else None,
    ) as endpoint:
        if relay is not None:
            await given[0].of(endpoint).online()  # type: ignore[attr-defined]
        say("ticket", ticket=str(endpoint.ticket()))
        async for connection in endpoint:
            watching = asyncio.create_task(report_paths(connection))
            digest = hashlib.sha256()
            size = 0
            longest = 0.0
            last = time.monotonic()
            try:
                recv = await connection.accept_uni()
                async for chunk in recv:
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now
                    digest.update(chunk)
                    before, size = size, size + len(chunk)
                    if before // (1 << 20) != size // (1 << 20):
                        say("progress", size=size)
                say(
                    "received",
                    size=size,
                    sha256=digest.hexdigest(),
                    longest_gap_s=round(longest, 3),
                )
            except DialkeyError as error:
                say("failed", error=str(error), code=error.code, size=size)
            watching.cancel()


async def send(ticket: str, size: int, relay: str | None, rate: int, no_udp: bool) -> None:
    async with Endpoint.bind(
        entry_points=False, plugins=plugins(relay), transports=[] if no_udp else None
    ) as endpoint:
        connection = await endpoint.connect(ticket, ALPN)
        say("connected", path=str(connection.paths()[0].remote), kind=connection.paths()[0].kind)
        watching = asyncio.create_task(report_paths(connection))
        digest = hashlib.sha256()
        stream = await connection.open_uni()
        for number in range(size // PIECE):
            data = piece(number)
            digest.update(data)
            await stream.write(data)
            if rate:
                await asyncio.sleep(PIECE / rate)
        await stream.finish()
        await stream.stopped()
        say("sent", size=size // PIECE * PIECE, sha256=digest.hexdigest())
        watching.cancel()
        connection.close()


async def run_relay(host: str, port: int) -> None:
    from dialkey_relay import Everyone, RelayOptions, RelayServer

    async with RelayServer([Everyone()], RelayOptions(http=(host, port), client_rate=None)):
        say("relay", url=f"http://{host}:{port}/")
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve")
    sending = commands.add_parser("send")
    sending.add_argument("ticket")
    sending.add_argument("size", type=int)
    sending.add_argument("--rate", type=int, default=0, help="bytes per second, 0 for all there is")
    for command in (serving, sending):
        command.add_argument("--relay")
        command.add_argument("--no-udp", action="store_true", help="open no UDP sockets")
    relaying = commands.add_parser("relay")
    relaying.add_argument("host")
    relaying.add_argument("port", type=int)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        asyncio.run(serve(arguments.relay, arguments.no_udp))
    elif arguments.command == "relay":
        asyncio.run(run_relay(arguments.host, arguments.port))
    else:
        asyncio.run(
            send(
                arguments.ticket,
                arguments.size,
                arguments.relay,
                arguments.rate,
                arguments.no_udp,
            )
        )


if __name__ == "__main__":
    main()
