"""The discovery server: its stores, HTTP, DNS over everything, and what strangers do to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import ssl
import struct
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import pytest
from certificates import write_certificate
from typer.testing import CliRunner

from dialkey.cli import CommandLine
from dialkey.endpoint import EndpointInfo
from dialkey.identity import EndpointAddr, RelayAddr, RelayUrl, SecretKey
from dialkey_pkarr import SignedPacket, plugin
from dialkey_pkarr.errors import InvalidPacket, ServerConfigError, StoreFailed
from dialkey_pkarr.limits import AHEAD_MOST_S, EVICT_AFTER_S, PUTS_PER_KEY, UDP_ANSWERS_PER_NETWORK
from dialkey_pkarr.server.config import parse
from dialkey_pkarr.server.records import Records
from dialkey_pkarr.server.running import reload
from dialkey_pkarr.server.server import DiscoveryServer, TlsFiles
from dialkey_pkarr.server.store import MemoryStore, RecordStore, SqliteStore
from dialkey_pkarr.server.zone import Zone

ORIGIN = "dns.example.org."
KEY = SecretKey(b"\x01" * 32)
OTHER = SecretKey(b"\x02" * 32)
NOW = 1_800_000_000.0
LOCAL = ("127.0.0.1", 0)


def packet(
    key: SecretKey = KEY, at: float = NOW, relay: str = "https://one.example./"
) -> SignedPacket:
    info = EndpointInfo(EndpointAddr(key.id, [RelayAddr(RelayUrl(relay))]))
    return SignedPacket.of_info(key, info, int(at * 1_000_000))


# --- stores ---------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    made: RecordStore = (
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "a" / "records.db")
    )
    yield made
    made.close()


def test_the_newest_record_is_kept(store: RecordStore) -> None:
    first, later = packet(at=NOW), packet(at=NOW + 1)
    assert store.get(KEY.id) is None
    assert store.put([first]) == [True]
    assert store.put([first, later, first, packet(OTHER)]) == [False, True, False, True]
    assert store.get(KEY.id) == later
    assert store.count() == 2


def test_at_one_time_the_larger_message_is_newer(store: RecordStore) -> None:
    a, b = packet(relay="https://a.example./"), packet(relay="https://b.example./")
    assert store.put([b, a]) == [True, False]
    assert store.get(KEY.id) == b
    assert store.put([packet(OTHER, relay="https://a.example./")]) == [True]
    assert store.put([packet(OTHER, relay="https://b.example./")]) == [True]


def test_times_are_compared_as_64_bits(store: RecordStore) -> None:
    message = packet().message
    largest = SignedPacket.sign(KEY, message, 2**64 - 1)
    assert store.put([largest, packet()]) == [True, False]
    found = store.get(KEY.id)
    assert found is not None
    assert found.timestamp_us == 2**64 - 1


def test_old_records_are_evicted(store: RecordStore) -> None:
    store.put([packet(at=NOW), packet(OTHER, at=NOW + 10)])
    assert store.evict(int((NOW + 10) * 1_000_000)) == 1
    assert store.get(KEY.id) is None
    assert store.count() == 1
    assert store.evict(-1) == 0


def test_sqlite_keeps_records_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    for kept in ([True], [False]):
        store = SqliteStore(path)
        assert store.put([packet()]) == kept
        store.close()


def test_a_file_that_was_moved_away_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "records.db"
    store = SqliteStore(path)
    store.put([packet()])
    path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreFailed):
        store.put([packet(OTHER)])
    (tmp_path / "elsewhere").rename(path.parent)
    assert store.put([packet(OTHER)]) == [True]
    assert store.get(KEY.id) == packet()
    store.close()


# --- records --------------------------------------------------------------------------------------


async def test_time_is_checked_before_anything_is_stored() -> None:
    store = MemoryStore()
    async with Records(store, lambda: NOW) as records:
        for at in (NOW - EVICT_AFTER_S - 1, NOW + AHEAD_MOST_S + 1):
            with pytest.raises(InvalidPacket):
                await records.put(packet(at=at))
        assert store.count() == 0
        assert await records.put(packet(at=NOW + AHEAD_MOST_S - 1))


async def test_an_old_record_is_not_answered_and_goes() -> None:
    now = NOW
    store = MemoryStore()
    async with Records(store, lambda: now) as records:
        assert await records.put(packet())
        assert await records.get(KEY.id) == packet()
        now += EVICT_AFTER_S + 1
        assert await records.get(KEY.id) is None
        assert await records.evict() == 1
        assert records.stored == store.count() == 0


async def test_puts_that_come_together_share_transactions() -> None:
    class Counting(MemoryStore):
        batches: list[int] = []  # noqa: RUF012

        def put(self, packets):
            self.batches.append(len(packets))
            return super().put(packets)

    store = Counting()
    keys = [SecretKey(bytes([n]) * 32) for n in range(50)]
    async with Records(store, lambda: NOW) as records:
        assert all(await asyncio.gather(*(records.put(packet(key)) for key in keys)))
    assert sum(store.batches) == 50
    assert len(store.batches) < 5


class Failing(MemoryStore):
    """A store that fails while it is told to."""

    broken = False

    def _check(self) -> None:
        if self.broken:
            raise StoreFailed("the database is away")

    def get(self, id):
        self._check()
        return super().get(id)

    def put(self, packets):
        self._check()
        return super().put(packets)


async def test_without_its_database_it_answers_from_memory_and_comes_back() -> None:
    store = Failing()
    async with serving(store) as server, aiohttp.ClientSession() as http:
        assert await put(http, server, packet()) == 204
        store.broken = True
        assert await put(http, server, packet(OTHER)) == 503
        assert await get(http, server, KEY) == packet().to_payload()
        assert await get(http, server, OTHER) == 503
        assert len((await udp(server, KEY)).answer) == 1
        assert (await udp(server, OTHER)).rcode() == dns.rcode.SERVFAIL
        async with http.get(url(server, "/healthz")) as answer:
            assert answer.status == 503
            assert (await answer.json())["status"] == "degraded"
        # What was lost with the database is given back to it from memory.
        store.evict(2**63)
        store.broken = False
        await server.records.recover()
        assert store.get(KEY.id) == packet()
        assert await put(http, server, packet(OTHER)) == 204
        async with http.get(url(server, "/healthz")) as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})


# --- the server -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(store: RecordStore | None = None, **options) -> AsyncIterator[DiscoveryServer]:
    async with DiscoveryServer(
        store if store is not None else MemoryStore(),
        Zone([ORIGIN]),
        **{"dns": LOCAL, "http": LOCAL, "clock": lambda: NOW, **options},
    ) as server:
        yield server


def url(server: DiscoveryServer, path: str, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.addresses[scheme][1]}{path}"


async def put(http: aiohttp.ClientSession, server: DiscoveryServer, what: SignedPacket) -> int:
    path = f"/pkarr/{what.id.to_z32()}"
    async with http.put(url(server, path), data=what.to_payload()) as answer:
        return answer.status


async def get(http: aiohttp.ClientSession, server: DiscoveryServer, key: SecretKey) -> bytes | int:
    async with http.get(url(server, f"/pkarr/{key.id.to_z32()}")) as answer:
        if answer.status != 200:
            return answer.status
        assert answer.content_type == "application/x-pkarr-signed-packet"
        return await answer.read()


def question(key: SecretKey, kind: str = "TXT") -> dns.message.Message:
    return dns.message.make_query(f"_iroh.{key.id.to_z32()}.{ORIGIN}", kind)


async def udp(server: DiscoveryServer, key: SecretKey) -> dns.message.Message:
    host, port = server.addresses["dns"]
    return await dns.asyncquery.udp(question(key), host, port=port, timeout=20)


async def test_put_and_get() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        assert await get(http, server, KEY) == 404
        assert await put(http, server, packet()) == 204
        assert await put(http, server, packet(at=NOW - 1)) == 204, "older: nothing to complain of"
        assert await get(http, server, KEY) == packet().to_payload()
        assert server.records.counters.puts_not_newer == 1


async def test_what_is_not_a_record_is_refused() -> None:
    body = packet().to_payload()
    z32 = KEY.id.to_z32()
    async with serving() as server, aiohttp.ClientSession() as http:
        for path, data, status in [
            (z32, body[:-1] + b"x", 400),
            (OTHER.id.to_z32(), body, 400),
            (z32, b"", 400),
            (z32, body + bytes(1001), 400),
            (z32, bytes(70_000), 413),
            (z32.upper(), body, 400),
            (f"/{z32}", body, 400),
            ("nokey", body, 400),
        ]:
            async with http.put(url(server, f"/pkarr/{path}"), data=data) as answer:
                assert answer.status == status, path
                assert (await answer.json())["status"] == str(status)
        async with http.delete(url(server, f"/pkarr/{z32}")) as answer:
            assert answer.status == 405
        async with http.get(url(server, "/other")) as answer:
            assert answer.status == 404
        assert server.records.counters.puts_updated == 0


async def test_a_key_publishes_only_so_often_and_nobody_else_uses_that_up() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        forged = SignedPacket(KEY.id, bytes(64), 1, packet().message)
        for _ in range(10):
            assert await put(http, server, forged) == 400
        found = [await put(http, server, packet(at=NOW + n)) for n in range(10)]
        assert found[: int(PUTS_PER_KEY[0])] == [204] * int(PUTS_PER_KEY[0])
        assert 429 in found
        assert await put(http, server, packet(OTHER)) == 204


async def test_only_allowed_keys_publish() -> None:
    async with serving(allowed=frozenset([KEY.id])) as server, aiohttp.ClientSession() as http:
        assert await put(http, server, packet()) == 204
        assert await put(http, server, packet(OTHER)) == 403
        assert await get(http, server, OTHER) == 404


async def test_dns_over_udp_and_tcp() -> None:
    store = MemoryStore()
    store.put([packet()])
    async with serving(store) as server:
        for _ in range(2):  # from the store, then from memory
            assert '"relay=https://one.example./"' in str((await udp(server, KEY)).answer[0])
        assert (await udp(server, OTHER)).rcode() == dns.rcode.NXDOMAIN
        host, port = server.addresses["dns"]
        answer = await dns.asyncquery.tcp(question(KEY), host, port=port, timeout=20)
        assert len(answer.answer) == 1
        assert server.records.counters.dns_queries_tcp == 1


async def test_a_flood_over_udp_is_told_to_come_over_tcp() -> None:
    async with serving() as server:
        await server.records.put(packet())
        answers: list[bytes] = []
        query = question(KEY).to_wire()
        for _ in range(int(UDP_ANSWERS_PER_NETWORK[0]) + 50):
            server.datagram(query, "198.51.100.7", answers.append, 0.0)
        last = dns.message.from_wire(answers[-1])
        assert last.flags & dns.flags.TC
        assert not last.answer
        server.datagram(query, "198.51.100.8", answers.append, 0.0)
        assert dns.message.from_wire(answers[-1]).answer


async def test_a_repeated_question_is_answered_with_the_record_of_now() -> None:
    async with serving() as server:
        answers: list[bytes] = []

        def asked(query: bytes) -> dns.message.Message:
            server.datagram(query, "198.51.100.7", answers.append, 0.0)
            return dns.message.from_wire(answers[-1])

        queries = [question(KEY) for _ in range(3)]
        await server.records.put(packet())
        for query in queries:
            answer = asked(query.to_wire())
            assert query.is_response(answer)
            assert "https://one.example./" in str(answer.answer[0])
        await server.records.put(packet(at=NOW + 1, relay="https://two.example./"))
        assert "https://two.example./" in str(asked(queries[0].to_wire()).answer[0])
        server.use(Zone(["other.example."]), None, None)
        assert asked(queries[0].to_wire()).rcode() == dns.rcode.REFUSED


async def test_dns_over_https() -> None:
    store = MemoryStore()
    store.put([packet()])
    wire = question(KEY).to_wire()
    text = base64.urlsafe_b64encode(wire).rstrip(b"=").decode()
    name = f"_iroh.{KEY.id.to_z32()}.{ORIGIN}"
    async with serving(store) as server, aiohttp.ClientSession() as http:
        path = url(server, "/dns-query")
        async with http.post(path, data=wire) as answer:
            assert answer.content_type == "application/dns-message"
            assert len(dns.message.from_wire(await answer.read()).answer) == 1
        async with http.get(path, params={"dns": text}) as answer:
            assert answer.headers["cache-control"] == "s-maxage=30"
            assert len(dns.message.from_wire(await answer.read()).answer) == 1
        accept = {"accept": "application/dns-json"}
        async with http.get(path, params={"name": name, "type": "txt"}, headers=accept) as answer:
            found = await answer.json(content_type="application/dns-json")
            assert found["Status"] == 0
            assert found["Question"] == [{"name": name, "type": 16}]
            assert [each["data"] for each in found["Answer"]] == ["relay=https://one.example./"]
        for params, headers, status in [
            ({"dns": "!"}, {}, 400),
            ({}, {}, 400),
            ({"dns": text}, {"accept": "text/html"}, 406),
            ({"name": "a..b"}, accept, 400),
            ({"name": name, "type": "nothing"}, accept, 400),
        ]:
            async with http.get(path, params=params, headers=headers) as answer:
                assert answer.status == status, params
        async with http.post(path, data=b"no question") as answer:
            assert answer.status == 400


async def test_metrics_say_what_happened() -> None:
    async with serving(metrics=LOCAL) as server, aiohttp.ClientSession() as http:
        await put(http, server, packet())
        async with http.get(f"http://127.0.0.1:{server.addresses['metrics'][1]}/metrics") as answer:
            text = await answer.text()
    assert "dialkey_dns_puts_updated_total 1\n" in text
    assert "dialkey_dns_store_up 1\n" in text


def certificate(folder: Path) -> TlsFiles:
    made = write_certificate(folder, "localhost")
    return TlsFiles(made.chain.rename(folder / "cert.pem"), made.key.rename(folder / "key.pem"))


async def test_https_and_a_certificate_that_is_replaced(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    async with serving(https=LOCAL, tls=files) as server:

        async def works() -> bool:
            context = ssl.create_default_context(cafile=files.certificate)
            async with aiohttp.ClientSession() as http:
                path = url(server, "/healthz", "https")
                try:
                    async with http.get(path, ssl=context) as answer:
                        return answer.status == 200
                except aiohttp.ClientConnectorCertificateError:
                    return False

        assert await works()
        certificate(tmp_path)
        assert not await works()
        server.use(Zone([ORIGIN]), None, files)
        assert await works()
        files.key.write_text("no key")
        with pytest.raises(ServerConfigError):
            server.use(Zone(["other.example"]), None, files)


@pytest.mark.parametrize(
    ("where", "bytes_sent"),
    [
        ("http", b""),
        ("http", b"PUT /pkarr/x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf"),
        ("http", b"GET / HTTP/1.1\r\n"),
        ("https", b""),
        ("https", b"\x16\x03\x01"),
        ("dns", b""),
        ("dns", b"\x00\x40half"),
    ],
)
async def test_slow_clients_are_let_go(tmp_path: Path, where: str, bytes_sent: bytes) -> None:
    options = {"https": LOCAL, "tls": certificate(tmp_path)} if where == "https" else {}
    async with serving(request_timeout_s=0.2, **options) as server:
        reader, writer = await asyncio.open_connection(*server.addresses[where])
        writer.write(bytes_sent)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        assert server.records.counters.timeouts == 1


async def test_idle_connections_and_those_of_one_network_stop_nobody() -> None:
    async with serving(connections=8) as server, aiohttp.ClientSession() as http:
        idle = [
            await asyncio.open_connection(*server.addresses[each]) for each in ["http", "dns"] * 6
        ]
        assert await put(http, server, packet()) == 204
        reads = [asyncio.create_task(reader.read()) for reader, _ in idle]
        await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        assert server.records.counters.connections_displaced >= 1
        for _, writer in idle:
            writer.close()
        await asyncio.gather(*reads, return_exceptions=True)
    async with serving(idle_timeout_s=0.1) as server:
        reader, writer = await asyncio.open_connection(*server.addresses["http"])
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        async with asyncio.timeout(30):
            assert b"200" in await reader.read()
        writer.close()


async def test_a_client_that_leaves_before_its_body_is_through_changes_nothing() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        for _ in range(20):
            _, writer = await asyncio.open_connection(*server.addresses["http"])
            path = f"/pkarr/{KEY.id.to_z32()}".encode()
            writer.write(
                b"PUT " + path + b" HTTP/1.1\r\nhost: a\r\ncontent-length: 180\r\n\r\nhalf"
            )
            writer.transport.abort()
        assert await put(http, server, packet()) == 204


async def test_several_questions_over_one_connection() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection(*server.addresses["dns"])
        wire = question(KEY).to_wire()
        writer.write((struct.pack(">H", len(wire)) + wire) * 3)
        for _ in range(3):
            (size,) = struct.unpack(">H", await reader.readexactly(2))
            answer = dns.message.from_wire(await reader.readexactly(size))
            assert answer.rcode() == dns.rcode.NXDOMAIN
        writer.close()


async def said(path: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(path, *arguments, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    return out.decode()


@pytest.mark.parametrize("program", ["dig", "kdig"])
async def test_strangers_ask(program: str) -> None:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    store = MemoryStore()
    store.put([packet()])
    name = f"_iroh.{KEY.id.to_z32()}.{ORIGIN}"
    mixed = name.upper().replace("IROH", "iRoH")
    async with serving(store) as server:
        port = str(server.addresses["dns"][1])
        found = "relay=https://one.example./"
        for arguments, words in [
            ([name, "TXT"], found),
            ([name, "TXT", "+tcp"], found),
            ([name, "TXT", "+bufsize=4096"], found),
            ([name, "ANY", "+tcp"], found),
            ([mixed, "TXT"], found),
            ([name, "TYPE4711"], "NOERROR"),
            ([name, "A"], "SOA"),
            ([f"x.{name}", "TXT"], "NXDOMAIN"),
            ([ORIGIN, "SOA"], "hostmaster.dns.example.org."),
            (["example.com.", "A"], "REFUSED"),
        ]:
            assert words in await said(path, "@127.0.0.1", "-p", port, *arguments), arguments


# --- the command ----------------------------------------------------------------------------------

PROGRAM = """
from dialkey.cli import CommandLine
from dialkey_pkarr import plugin
cli = CommandLine()
cli.callback()(lambda: None)
plugin.dialkey_commands(cli)
cli()
"""


@contextlib.asynccontextmanager
async def command(config: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        "dns",
        "--config",
        str(config),
        "--json",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            said = json.loads(await process.stdout.readline())
        yield process, f"http://127.0.0.1:{said['addresses']['http'][1]}/pkarr/"
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(60):
            await process.wait()


async def test_kill_9_loses_no_accepted_record(tmp_path: Path) -> None:
    config = tmp_path / "dns.toml"
    config.write_text(
        'access = "everyone"\norigins = ["dns.example.org"]\nenable_metrics = false\n'
        'dns_bind_addr = "127.0.0.1:0"\nhttp_bind_addr = "127.0.0.1:0"\n'
    )
    keys = [SecretKey(bytes([n]) * 32) for n in range(40)]
    at = time.time()
    accepted: list[SecretKey] = []
    async with command(config) as (process, base), aiohttp.ClientSession() as http:

        async def publish(key: SecretKey) -> None:
            body = packet(key, at).to_payload()
            with contextlib.suppress(aiohttp.ClientError):
                async with http.put(base + key.id.to_z32(), data=body) as answer:
                    if answer.status == 204:
                        accepted.append(key)
                if len(accepted) == 20:
                    process.send_signal(signal.SIGKILL)

        await asyncio.gather(*map(publish, keys))
        assert len(accepted) >= 20
    async with command(config) as (process, base), aiohttp.ClientSession() as http:
        for key in accepted:
            async with http.get(base + key.id.to_z32()) as answer:
                assert await answer.read() == packet(key, at).to_payload()
        process.send_signal(signal.SIGHUP)
        async with http.get(base + KEY.id.to_z32()) as answer:
            assert answer.status in (200, 404), "SIGHUP ends nothing"


def test_checking_a_configuration(tmp_path: Path) -> None:
    cli = CommandLine()
    cli.callback()(lambda: None)
    plugin.dialkey_commands(cli)
    path = tmp_path / "dns.toml"
    path.write_text('access = "everyone"\norigins = ["dns.example.org"]\n')
    result = CliRunner().invoke(cli, ["dns", "--config", str(path), "--check"])
    assert result.exit_code == 0, result.output
    path.write_text('acces = "everyone"\n')
    result = CliRunner().invoke(cli, ["dns", "--config", str(path), "--check"])
    assert result.exit_code != 0
    assert "access: missing" in result.stderr
    assert CliRunner().invoke(cli, ["dns"]).exit_code == 2


GOOD = 'access = "everyone"\norigins = ["dns.example.org"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "access: missing"),
        ('access = "all"', 'access: is "everyone"'),
        ('access = "everyone"', "origins: missing"),
        ('access = "everyone"\norigins = ["a..b"]', "not a domain"),
        (GOOD + 'http_bind_addr = "80"', "http_bind_addr: '80' is not an address"),
        (GOOD + "orogins = []", "orogins: is unknown"),
        (GOOD + 'http_bind_addr = "off"', "nobody could publish"),
        (GOOD + 'store = "postgresql://x"', "not supported yet"),
        (GOOD + 'addresses = ["x.y"]', "addresses"),
        (GOOD + 'tls = {manual_cert_path = "a"}', "tls.manual_key_path: is missing"),
        ('origins = ["a"]\n[access]\nallowlist = ["x"]', "access.allowlist"),
        ("=", "not TOML"),
    ],
)
def test_what_a_configuration_may_not_say(text: str, words: str) -> None:
    with pytest.raises(ServerConfigError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_the_configurations_of_the_documentation_are_good(tmp_path: Path) -> None:
    certificate(tmp_path)
    page = Path(__file__).parents[3] / "docs" / "dns-server.md"
    blocks = page.read_text(encoding="utf-8").split("```toml\n")[1:]
    assert blocks
    for block in blocks:
        parse(block.partition("```")[0], folder=tmp_path)


async def test_a_configuration_is_read_again() -> None:
    allowed = f'origins = ["dns.example.org"]\n[access]\nallowlist = ["{KEY.id}"]\n'
    first, second = parse(GOOD), parse(allowed)

    def bad():
        return parse("=")

    async with serving() as server, aiohttp.ClientSession() as http:
        assert await put(http, server, packet(OTHER)) == 204
        assert reload(server, first, lambda: second) is second
        assert await put(http, server, packet(OTHER, at=NOW + 1)) == 403
        assert reload(server, second, bad) is second
        assert await put(http, server, packet()) == 204
