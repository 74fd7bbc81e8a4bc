"""Measure the discovery server beside the simplest one that dnspython makes, in one run.

    python benchmarks/dns.py [--records N] [--queries N] [--puts N] [--rounds N]

Each server has a process of its own on loopback; the clients run in this one. ``--records 1000000`` is a
full database. The same questions go to both DNS servers, in interleaved rounds, and every answer is
looked at. Questions are of two kinds: ``same``, as resolvers repeat them, and ``new``, where the letters
are in another case each time, so that nothing prepared helps.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import dns.flags
import dns.message
import dns.rrset

from dialkey.endpoint import EndpointInfo
from dialkey.identity import EndpointAddr, RelayAddr, RelayUrl, SecretKey
from dialkey_pkarr import SignedPacket
from dialkey_pkarr.server.server import DiscoveryServer
from dialkey_pkarr.server.store import SqliteStore
from dialkey_pkarr.server.zone import Zone

ORIGIN = "dns.example.org."
LOCAL = ("127.0.0.1", 0)
FREE = (1e9, 1e9)
WINDOW = 64
CONNECTIONS = 16
TIMEOUT_S = 60.0


def packet(key: SecretKey, at: float) -> SignedPacket:
    info = EndpointInfo(EndpointAddr(key.id, [RelayAddr(RelayUrl("https://relay.example./"))]))
    return SignedPacket.of_info(key, info, int(at * 1_000_000))


def keys(count: int) -> list[SecretKey]:
    return [SecretKey(number.to_bytes(32, "big")) for number in range(1, count + 1)]


# --- servers: processes that print their ports, and end with their input -----------------------------


async def until_input_ends() -> None:
    await asyncio.to_thread(sys.stdin.read)


async def serve_ours(path: Path) -> None:
    async with DiscoveryServer(
        SqliteStore(path),
        Zone([ORIGIN]),
        dns=LOCAL,
        http=LOCAL,
        puts_per_network=FREE,
        udp_answers_per_network=FREE,
    ) as server:
        print(server.addresses["dns"][1], server.addresses["http"][1], flush=True)
        await until_input_ends()


class Naive(asyncio.DatagramProtocol):
    """Answers from a dictionary, by dnspython alone."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        name = query.question[0].name
        text = self._texts[name.to_text().lower()]
        response.answer.append(dns.rrset.from_text(name, 30, "IN", "TXT", text))
        self._transport.sendto(response.to_wire(), addr)  # type: ignore[attr-defined]


async def serve_naive(count: int) -> None:
    texts = {
        f"_iroh.{key.id.to_z32()}.{ORIGIN}": '"relay=https://relay.example./"'
        for key in keys(count)
    }
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Naive(texts), local_addr=LOCAL)
    print(transport.get_extra_info("sockname")[1], 0, flush=True)
    await until_input_ends()


async def start(*arguments: str) -> tuple[asyncio.subprocess.Process, int, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    dns_port, http_port = map(int, (await process.stdout.readline()).split())
    return process, dns_port, http_port


# --- clients ----------------------------------------------------------------------------------------


class Asker(asyncio.DatagramProtocol):
    """Keeps some questions under way, and looks at every answer."""

    def __init__(self, queries: list[bytes]) -> None:
        self._left = iter(queries)
        self._expected = len(queries)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        for _ in range(WINDOW):
            self._next()

    def _next(self) -> None:
        query = next(self._left, None)
        if query is not None:
            self._transport.sendto(query)  # type: ignore[attr-defined]

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data[3] & 15 or data[6:8] != b"\0\1":
            self.done.set_exception(ValueError("a wrong answer"))
            return
        self._expected -= 1
        if not self._expected:
            self.done.set_result(None)
        self._next()


async def ask(port: int, queries: list[bytes]) -> float:
    """Return answers per second."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    transport, asker = await loop.create_datagram_endpoint(
        lambda: Asker(queries), remote_addr=("127.0.0.1", port)
    )
    try:
        await asyncio.wait_for(asker.done, TIMEOUT_S)
    finally:
        transport.close()
    return len(queries) / (time.perf_counter() - began)


async def put(port: int, packets: list[SignedPacket]) -> float:
    """Return accepted records per second."""
    left = iter(packets)

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for each in left:
            body = each.to_payload()
            head = (
                f"PUT /pkarr/{each.id.to_z32()} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}"
            )
            writer.write(head.encode() + b"\r\n\r\n" + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 204"):
                raise ValueError(answer)
        writer.close()

    began = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return len(packets) / (time.perf_counter() - began)


def mixed(query: bytes, chance: random.Random) -> bytes:
    """Write the letters of the name, which begins after the header, in another case."""
    return (
        query[:12]
        + bytes(
            each ^ 0x20 if 97 <= each <= 122 and chance.random() < 0.5 else each
            for each in query[12:-15]
        )
        + query[-15:]
    )


def fill(path: Path, count: int) -> None:
    store = SqliteStore(path)
    at = int(time.time() * 1_000_000)
    message = packet(keys(1)[0], 0).message
    chance = random.Random(1)
    for begin in range(0, count, 10_000):
        some = range(begin, min(count, begin + 10_000))
        # Nobody asks for these: what they say and who signed it does not matter.
        id = type(keys(1)[0].id)
        made = []
        while len(made) < len(some):
            try:
                made.append(SignedPacket(id(chance.randbytes(32)), bytes(64), at, message))
            except ValueError:
                continue
        store.put(made)
    store.close()


async def measure(arguments: argparse.Namespace, folder: Path) -> None:
    path = folder / "records.sqlite3"
    fill(path, arguments.records)
    asked = keys(min(1000, arguments.queries))
    store = SqliteStore(path)
    store.put([packet(key, time.time() - 3600) for key in asked])
    store.close()
    chance = random.Random(2)
    ours, our_dns, our_http = await start("--serve-ours", str(path))
    naive, naive_dns, _ = await start("--serve-naive", str(len(asked)))
    try:
        base = [
            dns.message.make_query(
                f"_iroh.{key.id.to_z32()}.{ORIGIN}", "TXT", use_edns=0, payload=1232
            ).to_wire()
            for key in asked
        ]
        found: dict[str, list[float]] = {"same": [], "new": []}
        ratios: dict[str, list[float]] = {"same": [], "new": []}
        puts: list[float] = []
        for number in range(arguments.rounds):
            same = [chance.choice(base) for _ in range(arguments.queries)]
            for kind, queries in {
                "same": same,
                "new": [mixed(each, chance) for each in same],
            }.items():
                ours_s, naive_s = await ask(our_dns, queries), await ask(naive_dns, queries)
                found[kind].append(ours_s)
                ratios[kind].append(ours_s / naive_s)
            at = time.time() + number
            puts.append(await put(our_http, [packet(key, at) for key in keys(arguments.puts)]))
        for kind, rates in found.items():
            ratio = statistics.median(ratios[kind])
            print(f"DNS, {kind}: {statistics.median(rates):,.0f}/s, {ratio:.2f} x naive dnspython")
        print(f"puts: {statistics.median(puts):,.0f}/s ({arguments.records:,} records stored)")
    finally:
        for process in (ours, naive):
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--puts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve-ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve-naive", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_ours is not None:
        asyncio.run(serve_ours(arguments.serve_ours))
    elif arguments.serve_naive is not None:
        asyncio.run(serve_naive(arguments.serve_naive))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(measure(arguments, Path(folder)))


if __name__ == "__main__":
    main()
