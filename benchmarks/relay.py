"""Measure the relay: forwarding per core, and memory for each idle client.

Run ``python benchmarks/relay.py``. Each relay runs in a process of its own and is compared with two
others that are built here for the purpose: a *naive* one (asyncio streams, one frame at a time, mask
removed in Python) and one on the *websockets* package. Senders write prepared frames as fast as TCP
lets them, receivers count bytes; what a relay drops does not count. CPU time is that of the relay's
process, so that figures are per core whatever else the machine does.

Kernel memory of sockets is not part of the figures for idle clients.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import resource
import selectors
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import attrs
from measuring.parent import end_with_parent

from dialkey.identity import SecretKey
from dialkey_relay.client.machine import ClientMachine, Confirmed
from dialkey_relay.handshake import CONFIRMED, encode_challenge, verify_client_auth
from dialkey_relay.websocket import BINARY, binary_header, encode_frame

MASK = b"\x5a\x17\xc3\x08"
SIZES = {
    "10 x 1452 bytes (a batch)": (14_520, 1452),
    "1452 bytes": (1452, None),
    "100 bytes": (100, None),
}


# --- the relays ---------------------------------------------------------------------------------


class Naive:
    """What one writes first: a coroutine per client, a frame at a time, everything in Python."""

    def __init__(self) -> None:
        self.clients: dict[bytes, asyncio.StreamWriter] = {}

    async def start(self) -> int:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=1024)
        return int(server.sockets[0].getsockname()[1])

    async def frame(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(2)
        length = head[1] & 127
        if length == 126:
            length = int.from_bytes(await reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await reader.readexactly(8), "big")
        mask = await reader.readexactly(4)
        payload = await reader.readexactly(length)
        return bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self.upgrade(reader, writer)
            challenge = os.urandom(16)
            writer.write(encode_frame(BINARY, encode_challenge(challenge)))
            key = bytes(verify_client_auth(await self.frame(reader), challenge))
            writer.write(encode_frame(BINARY, CONFIRMED))
            self.clients[key] = writer
            while True:
                message = await self.frame(reader)
                if message[0] == 9:
                    writer.write(encode_frame(BINARY, b"\x0a" + message[1:]))
                    continue
                target = self.clients.get(message[1:33])
                if target is not None:
                    target.write(
                        encode_frame(BINARY, bytes((message[0] + 2,)) + key + message[33:])
                    )
                    await target.drain()

    async def upgrade(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from dialkey_relay.http1 import ServerHttp, Upgrade, check_upgrade, upgrade_response

        http = ServerHttp()
        http.feed(await reader.readuntil(b"\r\n\r\n"))
        request = http.next_request()
        assert request is not None
        upgrade = check_upgrade(request)
        assert isinstance(upgrade, Upgrade)
        writer.write(http.respond(upgrade_response(upgrade)))


class OnWebsockets:
    """The same on the server of the `websockets` package, with its C extension."""

    def __init__(self) -> None:
        self.clients: dict[bytes, object] = {}

    async def start(self) -> int:
        from websockets.asyncio.server import serve

        server = await serve(
            self.serve,
            "127.0.0.1",
            0,
            backlog=1024,
            compression=None,
            ping_interval=None,
            max_size=1 << 20,
            subprotocols=["iroh-relay-v2"],  # type: ignore[list-item]
        )
        return int(next(iter(server.sockets)).getsockname()[1])

    async def serve(self, connection: object) -> None:
        from websockets.asyncio.server import ServerConnection
        from websockets.exceptions import ConnectionClosed

        assert isinstance(connection, ServerConnection)
        challenge = os.urandom(16)
        with contextlib.suppress(ConnectionClosed):
            await connection.send(encode_challenge(challenge))
            answer = await connection.recv()
            assert isinstance(answer, bytes)
            key = bytes(verify_client_auth(answer, challenge))
            await connection.send(CONFIRMED)
            self.clients[key] = connection
            async for message in connection:
                assert isinstance(message, bytes)
                if message[0] == 9:
                    await connection.send(b"\x0a" + message[1:])
                    continue
                target = self.clients.get(message[1:33])
                if isinstance(target, ServerConnection):
                    await target.send(bytes((message[0] + 2,)) + key + message[33:])


class Ours:
    """The relay of this project."""

    def __init__(self, tls: bool = False) -> None:
        self.tls = tls

    async def start(self) -> int:
        from dialkey_relay import Everyone, RelayOptions, RelayServer, TlsFiles

        limits = RelayOptions(
            client_rate=None,
            accept_rate=None,
            accept_rate_per_address=None,
            max_unauthenticated=100_000,
        )
        if self.tls:
            chain, key = certificate()
            limits = attrs.evolve(
                limits, http=None, https=("127.0.0.1", 0), tls=TlsFiles(chain, key)
            )
        server = RelayServer([Everyone()], limits)
        await server.start()
        self.server = server
        return server.addresses[0][1]


RELAYS: dict[str, Callable[[], Naive | OnWebsockets | Ours]] = {
    "naive": Naive,
    "websockets": OnWebsockets,
    "dialkey": Ours,
    "dialkey, TLS": lambda: Ours(tls=True),
}


def certificate() -> tuple[Path, Path]:
    """Make a certificate for localhost."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    folder = Path(tempfile.mkdtemp(prefix="dialkey-bench-"))
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


def run_relay(name: str, pipe: Connection) -> None:
    """Be the relay's process: tell the port, end with the pipe."""
    end_with_parent()

    async def main() -> None:
        relay = RELAYS[name]()
        pipe.send(await relay.start())
        await asyncio.get_running_loop().run_in_executor(None, wait)

    def wait() -> None:
        with contextlib.suppress(EOFError):
            pipe.recv()

    asyncio.run(main())


@attrs.frozen
class Relay:
    """A relay in its process."""

    port: int
    pid: int
    tls: bool

    def cpu(self) -> float:
        """Return its CPU seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Return its resident bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()


@contextlib.contextmanager
def relay(name: str) -> Iterator[Relay]:
    """Start a relay and end it."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run_relay, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        port = ours.recv()
        assert process.pid is not None
        yield Relay(port, process.pid, "TLS" in name)
    finally:
        ours.close()
        process.join(10)
        process.kill()


# --- the clients --------------------------------------------------------------------------------


def trusting() -> ssl.SSLContext:
    """Make a TLS context that looks at nothing: this measures, it does not protect."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def join(target: Relay, key: SecretKey) -> socket.socket:
    """Connect, prove a key, and return the socket."""
    sock: socket.socket = socket.create_connection(("127.0.0.1", target.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target.tls:
        sock = trusting().wrap_socket(sock)
    machine = ClientMachine(
        key, host="127.0.0.1", target="/relay", random=random.Random(1), now=0.0
    )
    sock.sendall(machine.take_output())
    while True:
        events = machine.receive(memoryview(sock.recv(65_536)), 0.0)
        if any(isinstance(event, Confirmed) for event in events):
            return sock
        sock.sendall(machine.take_output())


def send_forever(sock: socket.socket, frames: bytes, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            sock.sendall(frames)


def drive(target: Relay, content: int, segment: int | None, pairs: int, seconds: float) -> float:
    """Send from one half of the clients to the other; return the delivered frames per second."""
    keys = [SecretKey(bytes((n + 1,)) * 32) for n in range(2 * pairs)]
    socks = [join(target, key) for key in keys]
    stop = threading.Event()
    senders = []
    head = 34 if segment is None else 36
    frame_bytes = len(binary_header(head + content - 1 + 1)) + head + content
    for n in range(pairs):
        kind = b"\x04" if segment is None else b"\x05"
        size = b"" if segment is None else segment.to_bytes(2, "big")
        message = kind + bytes(keys[pairs + n].id) + b"\0" + size + b"x" * content
        frames = encode_frame(BINARY, message, MASK) * max(1, 131_072 // len(message))
        senders.append(threading.Thread(target=send_forever, args=(socks[n], frames, stop)))
    received = 0
    buffer = bytearray(1 << 20)
    with selectors.DefaultSelector() as selector:
        for sock in socks[pairs:]:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        for sender in senders:
            sender.start()
        warm, end = time.perf_counter() + 0.3, None
        while end is None or time.perf_counter() < end:
            for entry, _ in selector.select(0.1):
                sock = entry.fileobj
                assert isinstance(sock, socket.socket)
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                    count = sock.recv_into(buffer)
                    received += count if end is not None else 0
            if end is None and time.perf_counter() >= warm:
                end = time.perf_counter() + seconds
                began_cpu = target.cpu()
        used_cpu = target.cpu() - began_cpu
    stop.set()
    for sock in socks:
        with contextlib.suppress(OSError):
            # Closing alone does not wake a thread that is sending.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
    for sender in senders:
        sender.join()
    for sock in socks:
        sock.close()
    print_rate(received / frame_bytes, content, seconds, used_cpu)
    return received / frame_bytes * content / used_cpu / 1e6


def print_rate(frames: float, content: int, seconds: float, cpu: float) -> None:
    mb = frames * content / 1e6
    print(
        f"{mb / seconds:>9.1f} MB/s {frames / seconds:>10.0f} frames/s "
        f"{mb / cpu:>9.1f} MB/s per core {frames / cpu:>10.0f} frames/s per core",
        end="",
    )


def forwarding(names: list[str], pairs: int, seconds: float, rounds: int) -> dict[str, object]:
    """Compare forwarding, interleaved; return medians of MB/s per core."""
    results: dict[str, object] = {}
    for label, (content, segment) in SIZES.items():
        figures: dict[str, list[float]] = {name: [] for name in names}
        print(f"\n{label}, {pairs} pairs")
        for _ in range(rounds):
            for name in names:
                with relay(name) as target:
                    print(f"  {name:<14}", end="", flush=True)
                    figures[name].append(drive(target, content, segment, pairs, seconds))
                    print()
        medians = {name: statistics.median(values) for name, values in figures.items()}
        for name, value in medians.items():
            print(f"  median {name:<14}{value:>9.1f} MB/s per core, "
                  f"{value / medians[names[0]]:.1f} x {names[0]}")  # fmt: skip
        results[label] = medians
    return results


async def crowd(target: Relay, count: int) -> float:
    """Connect that many clients; return the relay's bytes for each, when all are idle."""
    before = target.resident()
    machines: list[tuple[asyncio.StreamWriter, asyncio.StreamReader]] = []
    places = asyncio.Semaphore(100)
    context = trusting() if target.tls else None

    async def one(number: int) -> None:
        async with places:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", target.port, ssl=context, limit=4096
            )
            machine = ClientMachine(
                SecretKey(number.to_bytes(32, "big")),
                host="127.0.0.1",
                target="/relay",
                random=random.Random(number),
                now=0.0,
            )
            writer.write(machine.take_output())
            confirmed = False
            while not confirmed:
                data = await reader.read(4096)
                confirmed = bool(machine.receive(memoryview(data), 0.0))
                writer.write(machine.take_output())
            machines.append((writer, reader))

    await asyncio.gather(*(one(n) for n in range(1, count + 1)))
    await asyncio.sleep(1.0)
    after = target.resident()
    for writer, _ in machines:
        writer.transport.abort()
    return (after - before) / count


def idle(names: list[str], count: int) -> dict[str, float]:
    """Compare the memory of idle clients."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results: dict[str, float] = {}
    print(f"\n{count} idle clients in one process")
    for name in names:
        with relay(name) as target:
            began = time.perf_counter()
            results[name] = asyncio.run(crowd(target, count)) / 1024
            took = time.perf_counter() - began
            print(f"  {name:<14}{results[name]:>8.1f} KiB each ({count / took:.0f} joined per s)")
    return results


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--relays", nargs="+", choices=RELAYS, default=list(RELAYS))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=5000, help="idle clients; 0 for none")
    parser.add_argument("--no-forwarding", action="store_true")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    results: dict[str, object] = {"python": sys.version.split()[0]}
    if not options.no_forwarding:
        results["MB/s per core"] = forwarding(
            options.relays, options.pairs, options.seconds, options.rounds
        )
    if options.idle:
        results["KiB per idle client"] = idle(options.relays, options.idle)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
