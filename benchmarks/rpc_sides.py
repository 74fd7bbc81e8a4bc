"""One side of `rpc.py` in a process of its own: serves or calls, over dialkey or grpcio.

    python benchmarks/rpc_sides.py {dialkey,grpcio} serve
    python benchmarks/rpc_sides.py {dialkey,grpcio} call ADDRESS

The server prints where it is. The caller reads commands as JSON lines and prints results. Both ends
speak msgpack: grpcio's generic handlers take any encoding, so what is compared are the calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

import attrs
from measuring.parent import end_with_stdin

BLOCK_BYTES = 1 << 16


@attrs.frozen
class Point:
    """An argument of the kind that services have."""

    x: int
    y: int
    label: str


class Service:
    """What both serve."""

    async def move(self, point: Point, by: int) -> Point:
        """Return another point."""
        return Point(point.x + by, point.y + by, point.label)

    async def blocks(self, count: int) -> AsyncIterator[bytes]:
        """Stream blocks down."""
        block = bytes(BLOCK_BYTES)
        for _ in range(count):
            yield block

    async def numbers(self, count: int) -> AsyncIterator[int]:
        """Stream small items down."""
        for number in range(count):
            yield number


class Caller(ABC):
    """The calls, on one connection."""

    @abstractmethod
    async def move(self, point: Point, by: int) -> Point: ...

    @abstractmethod
    def blocks(self, count: int) -> AsyncIterator[bytes]: ...

    @abstractmethod
    def numbers(self, count: int) -> AsyncIterator[int]: ...


# --- dialkey ------------------------------------------------------------------------------------


async def serve_dialkey() -> None:
    from dialkey import Endpoint, Router
    from dialkey_rpc import Rpc

    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        Router(endpoint) as router,
    ):
        router.add(Rpc(Service()))
        print(endpoint.ticket(), flush=True)
        await router.serve()


async def call_dialkey(address: str) -> None:
    from dialkey import Endpoint
    from dialkey_rpc import connect

    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        connect(Service, endpoint, address) as client,
    ):
        await obey(client)


# --- grpcio -------------------------------------------------------------------------------------


async def serve_grpcio() -> None:
    import grpc
    import msgpack

    service = Service()

    async def move(request: list[Any], _: object) -> object:
        point = Point(**request[0])
        return attrs.asdict(await service.move(point, request[1]))

    async def blocks(request: int, _: object) -> AsyncIterator[bytes]:
        async for block in service.blocks(request):
            yield block

    async def numbers(request: int, _: object) -> AsyncIterator[int]:
        async for number in service.numbers(request):
            yield number

    codec = {"request_deserializer": msgpack.unpackb, "response_serializer": msgpack.packb}
    handlers = {
        "move": grpc.unary_unary_rpc_method_handler(move, **codec),
        "blocks": grpc.unary_stream_rpc_method_handler(
            blocks, request_deserializer=msgpack.unpackb
        ),
        "numbers": grpc.unary_stream_rpc_method_handler(numbers, **codec),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Service", handlers),))
    key, chain = _certificate()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    print(json.dumps({"port": port, "chain": chain.decode()}), flush=True)
    await server.wait_for_termination()


def _certificate() -> tuple[bytes, bytes]:
    """Return a key and a certificate; grpcio takes no Ed25519, P-256 is what it likes best."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return secret, signed.public_bytes(serialization.Encoding.PEM)


class GrpcCaller(Caller):
    """The calls over grpcio."""

    def __init__(self, channel: Any) -> None:
        import msgpack

        codec = {"request_serializer": msgpack.packb, "response_deserializer": msgpack.unpackb}
        self._move = channel.unary_unary("/Service/move", **codec)
        self._blocks = channel.unary_stream("/Service/blocks", request_serializer=msgpack.packb)
        self._numbers = channel.unary_stream("/Service/numbers", **codec)

    async def move(self, point: Point, by: int) -> Point:
        return Point(**await self._move([attrs.asdict(point), by]))

    def blocks(self, count: int) -> AsyncIterator[bytes]:
        found: AsyncIterator[bytes] = self._blocks(count)
        return found

    def numbers(self, count: int) -> AsyncIterator[int]:
        found: AsyncIterator[int] = self._numbers(count)
        return found


async def call_grpcio(address: str) -> None:
    import grpc

    where = json.loads(address)
    credentials = grpc.ssl_channel_credentials(where["chain"].encode())
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{where['port']}", credentials, options
    ) as channel:
        await obey(GrpcCaller(channel))


# --- what is measured ---------------------------------------------------------------------------


async def calls(client: Any, count: int, in_flight: int) -> dict[str, object]:
    """Make calls, some at a time; return when each took how long."""
    left = count
    took: list[float] = []
    clock = time.perf_counter

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            point = Point(left, -left, "a label of the usual length")
            began = clock()
            moved = await client.move(point, 3)
            took.append(clock() - began)
            if moved != Point(point.x + 3, point.y + 3, point.label):
                raise ValueError(f"a wrong answer: {moved}")

    began = clock()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    seconds = clock() - began
    took.sort()
    return {
        "rate": count / seconds,
        "p50_us": took[len(took) // 2] * 1e6,
        "p99_us": took[len(took) * 99 // 100] * 1e6,
    }


async def blocks(client: Any, count: int) -> dict[str, object]:
    """Stream blocks down."""
    began = time.perf_counter()
    total = 0
    async for block in client.blocks(count):
        total += len(block)
    if total != count * BLOCK_BYTES:
        raise ValueError(f"{total} bytes came")
    return {"rate": total / (time.perf_counter() - began) / 1e6}


async def numbers(client: Any, count: int) -> dict[str, object]:
    """Stream small items down."""
    began = time.perf_counter()
    expected = 0
    async for number in client.numbers(count):
        if number != expected:
            raise ValueError(f"{number} came instead of {expected}")
        expected += 1
    if expected != count:
        raise ValueError(f"{expected} items came")
    return {"rate": count / (time.perf_counter() - began)}


COMMANDS = {"calls": calls, "blocks": blocks, "numbers": numbers}


async def obey(client: Any) -> None:
    """Do as told until the input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command = json.loads(line)
        cpu = time.process_time()
        found = await COMMANDS[command.pop("do")](client, **command)
        print(json.dumps({**found, "cpu_s": time.process_time() - cpu}), flush=True)


SIDES = {
    ("dialkey", "serve"): serve_dialkey,
    ("dialkey", "call"): call_dialkey,
    ("grpcio", "serve"): serve_grpcio,
    ("grpcio", "call"): call_grpcio,
}


def main() -> None:
    end_with_stdin()
    stack, side, *rest = sys.argv[1:]
    try:
        asyncio.run(SIDES[stack, side](*rest))
    except KeyboardInterrupt:
        os._exit(0)


if __name__ == "__main__":
    main()
