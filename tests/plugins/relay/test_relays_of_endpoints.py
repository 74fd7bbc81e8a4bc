"""``Endpoint.bind(relays=…)`` and ``endpoint.online()``."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import attrs
import pytest

from dialkey import Connection, Endpoint, Router, hookimpl, presets
from dialkey.cli import Options, Output
from dialkey.errors import (
    DialError,
    DialkeyError,
    DialTimeout,
    EndpointClosed,
    InvalidAddress,
    LocalError,
    Offline,
    ResolveError,
)
from dialkey.identity import EndpointAddr, IpAddr, RelayAccess, RelayAddr, RelayUrl, SecretKey
from dialkey_relay import (
    Everyone,
    Relay,
    RelayConfig,
    RelayDisconnected,
    RelayOptions,
    RelayServer,
    SharedTokens,
    TlsFiles,
    relay_of,
)
from dialkey_relay.errors import RelayConfigError

ALPN = "dialkey-test/shout"
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


class Shout:
    async def accept(self, connection: Connection) -> None:
        while True:
            try:
                send, recv = await connection.accept_bi()
            except DialkeyError:
                return
            await send.write((await recv.read_to_end(limit=1000)).upper(), finish=True)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with RelayServer([Everyone()], OPEN) as server:
        yield server.url


async def shout(connection: Connection) -> bytes:
    send, recv = await connection.open_bi()
    await send.write(b"hello", finish=True)
    return await recv.read_to_end(limit=1000)


async def test_urls_are_enough(url: str) -> None:
    async with Endpoint.bind(relays=[url], bind="127.0.0.1:0") as server, Router(server) as router:
        router.accept(ALPN, Shout())
        addr = await server.online()
        assert addr.relay_urls == (RelayUrl(url),)
        assert addr == server.addr()
        assert relay_of(server).home.url == RelayUrl(url)
        # Whoever is reached through no relay dials through those of others.
        async with Endpoint.bind(relays=(), bind="127.0.0.1:0", hole_punching=False) as client:
            assert client.addr().relay_urls == ()
            only_relay = EndpointAddr(server.id, [RelayAddr(RelayUrl(url))])
            async with await client.connect(only_relay, ALPN) as connection:
                assert await shout(connection) == b"HELLO"
                assert [path.kind for path in connection.paths()] == ["relay"]


async def test_without_udp_all_goes_through_the_relay(url: str) -> None:
    async with (
        Endpoint.bind(relays=[url], transports=()) as server,
        Endpoint.bind(relays=[url], transports=()) as client,
        Router(server) as router,
    ):
        router.accept(ALPN, Shout())
        addr = await server.online()
        assert addr.ip_addrs == ()
        async with await client.connect(addr, ALPN) as connection:
            assert await shout(connection) == b"HELLO"


async def test_a_preset_can_name_relays(url: str) -> None:
    ours = presets.Preset("ours", relays=(url,))
    async with Endpoint.bind(preset=ours, bind="127.0.0.1:0") as endpoint:
        assert (await endpoint.online()).relay_urls == (RelayUrl(url),)
    # What is said at the place wins.
    async with Endpoint.bind(preset=ours, relays=(), bind="127.0.0.1:0") as endpoint:
        with pytest.raises(LocalError, match="no relay"):
            await endpoint.online()


async def test_tokens_come_as_configurations() -> None:
    async with RelayServer([SharedTokens(["sesame"])], OPEN) as server:
        relays = [RelayConfig(server.url, token="sesame")]
        async with Endpoint.bind(relays=relays, bind="127.0.0.1:0") as endpoint:
            await endpoint.online()


async def test_the_plugin_says_online_too(url: str) -> None:
    async with Endpoint.bind(plugins=[Relay(url)], bind="127.0.0.1:0") as endpoint:
        assert (await endpoint.online()).relay_urls == (RelayUrl(url),)


async def test_relays_come_from_one_place(url: str) -> None:
    with pytest.raises(LocalError, match=r"^relays were given twice"):
        await Endpoint.bind(relays=[url], plugins=[Relay(url)], bind="127.0.0.1:0")
    async with Endpoint.bind(relays=(), plugins=[Relay(url)], bind="127.0.0.1:0") as endpoint:
        assert (await endpoint.online()).relay_urls == (RelayUrl(url),)


async def test_one_relay_of_two_is_enough(url: str) -> None:
    dead = "http://127.0.0.1:1"
    async with Endpoint.bind(relays=[dead, url], bind="127.0.0.1:0") as endpoint:
        assert (await endpoint.online()).relay_urls == (RelayUrl(url),)


async def test_online_can_be_cancelled_and_ends_with_the_endpoint() -> None:
    async with Endpoint.bind(relays=["http://127.0.0.1:1"], bind="127.0.0.1:0") as endpoint:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await endpoint.online()
        with pytest.raises(Offline, match=r"within 0.05 s: http://127\.0\.0\.1:1/: "):
            await endpoint.online(0.05)
        waiting = asyncio.create_task(endpoint.online())
        await asyncio.sleep(0)
        await endpoint.close()
        with pytest.raises(EndpointClosed):
            await waiting
    with pytest.raises(EndpointClosed):
        await endpoint.online()


async def test_who_is_kept_out_is_told_why() -> None:
    async with (
        RelayServer([SharedTokens(["sesame"])], OPEN) as server,
        Endpoint.bind(relays=[server.url], bind="127.0.0.1:0") as endpoint,
    ):
        async for home in relay_of(endpoint).watch_home():
            if home.status.error is not None:
                break
        with pytest.raises(Offline, match="requires a token"):
            await endpoint.online(0)


async def test_without_relays() -> None:
    async with Endpoint.bind(bind="127.0.0.1:0") as endpoint:
        with pytest.raises(LocalError, match="no relay") as caught:
            await endpoint.online()
        assert "relays=" in str(caught.value.hint)
        with pytest.raises(LocalError, match="no relays"):
            relay_of(endpoint)
        only_relay = EndpointAddr(endpoint.id, [RelayAddr(RelayUrl("https://relay.example"))])
        async with Endpoint.bind(bind="127.0.0.1:0") as other:
            with pytest.raises(ResolveError) as failed:
                await other.connect(only_relay, ALPN)
            assert "relays=" in str(failed.value.hint)


async def test_what_is_not_a_relay_is_refused() -> None:
    with pytest.raises(InvalidAddress):
        Endpoint.bind(relays=["no url"])
    with pytest.raises(InvalidAddress, match=r"^ftp://relay\.example/ cannot be dialled"):
        await Endpoint.bind(relays=["ftp://relay.example"], bind="127.0.0.1:0")
    with pytest.raises(LocalError, match=r"^int is not a relay"):
        await Endpoint.bind(relays=[7])
    with pytest.raises(LocalError, match="no plugin"):
        await Endpoint.bind(relays=["https://relay.example"], entry_points=False)
    # Nothing was asked for, so nothing is missing.
    async with Endpoint.bind(relays=(), entry_points=False, bind="127.0.0.1:0"):
        pass


class Listener:
    """Keeps the events of an endpoint."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[object] = asyncio.Queue()

    @hookimpl
    def dialkey_events(self, event: object) -> None:
        self.events.put_nowait(event)


async def test_one_token_for_all_relays_that_are_named() -> None:
    async with RelayServer([SharedTokens(["letmein"])], OPEN) as relay:
        async with Endpoint.bind(
            relays=[relay.url, RelayAccess("letmein")], transports=()
        ) as endpoint:
            assert (await endpoint.online()).relay_urls == (RelayUrl(relay.url),)
        # A relay that only an address names is shown nothing: anybody can write an address.
        listener = Listener()
        async with Endpoint.bind(
            relays=[RelayAccess("letmein")], transports=(), plugins=[listener]
        ) as endpoint:
            transport = relay_of(endpoint)
            (path,) = transport.path_addresses(endpoint.id, RelayAddr(RelayUrl(relay.url)))
            transport.send(path, b"hello", 5)
            async with asyncio.timeout(10):
                event = await listener.events.get()
            assert isinstance(event, RelayDisconnected)
            assert "this relay requires a token" in str(event.error)


async def test_an_authority_of_its_own(certificate) -> None:
    files = TlsFiles(certificate.chain, certificate.key)
    options = RelayOptions(http=None, https=("127.0.0.1", 0), tls=files, client_rate=None)
    async with (
        RelayServer([Everyone()], options) as relay,
        Endpoint.bind(
            relays=[relay.url, RelayAccess(roots=[certificate.chain])], transports=()
        ) as endpoint,
    ):
        assert (await endpoint.online()).relay_urls == (RelayUrl(relay.url),)
    for file, message in ((certificate.key, "does not hold certificates"), ("gone", "No such")):
        with pytest.raises(RelayConfigError, match=message):
            async with Endpoint.bind(relays=[RelayAccess(roots=[file])]):
                raise AssertionError


# --- a relay that refuses us ----------------------------------------------------------------------


async def dial_in_vain(client: Endpoint, addr: EndpointAddr) -> tuple[DialError, float]:
    """Dial, and give the error and how many seconds it took to come."""
    began = asyncio.get_running_loop().time()
    with pytest.raises(DialError) as caught:
        await client.connect(addr, ALPN, timeout=60)
    assert not isinstance(caught.value, DialTimeout)
    return caught.value, asyncio.get_running_loop().time() - began


def silent_address() -> tuple[socket.socket, IpAddr]:
    """Open a UDP port of this machine that never answers."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    host, port = sock.getsockname()
    return sock, IpAddr.parse(f"{host}:{port}")


@pytest.mark.parametrize("number", [1, 2])
async def test_being_refused_by_every_relay_ends_the_wait(number: int) -> None:
    """Rather than the whole time that somebody is willing to wait for a relay that is starting."""
    tokens = SharedTokens(["letmein"])
    async with AsyncExitStack() as stack:
        relays = [
            await stack.enter_async_context(RelayServer([tokens], OPEN)) for _ in range(number)
        ]
        endpoint = await stack.enter_async_context(
            Endpoint.bind(
                relays=[RelayConfig(relay.url, "wrong") for relay in relays], transports=()
            )
        )
        with pytest.raises(Offline, match="not authorized") as caught:
            await endpoint.online()
        assert caught.value.message.count("not authorized") == number
        # What was said before is not believed for ever.
        tokens.replace(["letmein", "wrong"])
        async with asyncio.timeout(60):
            while True:
                try:
                    assert (await endpoint.online()).relay_urls
                    break
                except Offline:
                    # It was asked again a moment ago, and is not hammered.
                    await asyncio.sleep(0.05)


async def test_a_command_goes_on_without_a_relay_that_refuses_it() -> None:
    said = io.StringIO()
    async with RelayServer([SharedTokens(["letmein"])], OPEN) as relay:
        options = Options(relays=(relay.url,), bind="127.0.0.1:0", preset="minimal")
        async with options.open_endpoint() as endpoint:
            await options.until_online(endpoint, Output(stdout=said, stderr=said))
    assert "this relay requires a token" in said.getvalue()
    assert "continuing without it" in said.getvalue()
    # It did not wait until its time was up.
    assert "within" not in said.getvalue()


async def test_a_relay_that_is_away_does_not_end_the_wait(url: str) -> None:
    """It may be starting: a refusal by one of two says nothing of the other."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with (
        RelayServer([SharedTokens(["letmein"])], OPEN) as refusing,
        Endpoint.bind(relays=[refusing.url, f"http://127.0.0.1:{port}"], transports=()) as endpoint,
    ):
        message = ""
        async with asyncio.timeout(60):
            while "requires a token" not in message:
                with pytest.raises(Offline, match=r"within 0\.2 s") as caught:
                    await endpoint.online(0.2)
                message = caught.value.message
        options = attrs.evolve(OPEN, http=("127.0.0.1", port))
        async with RelayServer([Everyone()], options), asyncio.timeout(60):
            assert (await endpoint.online()).relay_urls


@pytest.mark.parametrize("is_direct_known", [False, True])
async def test_a_dial_ends_with_the_sentence_of_the_relay(is_direct_known: bool) -> None:
    """Rather than with "nobody answered" after the whole time."""
    sock, silent = silent_address()
    with sock:
        async with (
            RelayServer([SharedTokens(["letmein"])], OPEN) as relay,
            Endpoint.bind(relays=(), bind="127.0.0.1:0") as client,
        ):
            addrs = [RelayAddr(RelayUrl(relay.url)), *([silent] if is_direct_known else [])]
            addr = EndpointAddr(SecretKey.generate().id, addrs)
            for _ in range(2):
                # The second time while the relay's answer to the first dial is known.
                error, took = await dial_in_vain(client, addr)
                assert took < 30
                assert "this relay requires a token" in error.message
                assert "--relay-token" in error.message


async def test_an_old_refusal_is_not_believed() -> None:
    """The relay may have been told to let us in since."""
    tokens = SharedTokens(["letmein"])
    key = SecretKey.generate()
    async with (
        RelayServer([tokens], OPEN) as relay,
        Endpoint.bind(relays=[relay.url, RelayAccess("letmein")], transports=()) as server,
        Router(server) as router,
        Endpoint.bind(
            secret_key=key, relays=[RelayConfig(relay.url, "wrong")], transports=()
        ) as client,
    ):
        router.accept(ALPN, Shout())
        addr = await server.online()
        error, _ = await dial_in_vain(client, addr)
        assert "not authorized" in error.message
        tokens.replace(["letmein", "wrong"])
        relay_of(client).network_changed()
        async with await client.connect(addr, ALPN, timeout=60) as connection:
            assert await shout(connection) == b"HELLO"


async def test_a_certificate_that_is_not_trusted_ends_a_dial(certificate) -> None:
    files = TlsFiles(certificate.chain, certificate.key)
    options = RelayOptions(http=None, https=("127.0.0.1", 0), tls=files, client_rate=None)
    async with (
        RelayServer([Everyone()], options) as relay,
        Endpoint.bind(relays=(), transports=()) as client,
    ):
        addr = EndpointAddr(SecretKey.generate().id, [RelayAddr(RelayUrl(relay.url))])
        error, _ = await dial_in_vain(client, addr)
        assert "is not trusted: self-signed certificate" in error.message
        assert "--relay-ca" in error.message


async def test_a_relay_that_is_away_is_named_when_the_time_is_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = RelayUrl(f"http://127.0.0.1:{port}")
    async with Endpoint.bind(relays=(), transports=()) as client:
        addr = EndpointAddr(SecretKey.generate().id, [RelayAddr(url)])
        with pytest.raises(DialTimeout) as caught:
            # It may come back within the time: it is not given up early.
            await client.connect(addr, ALPN, timeout=0.5)
    assert "Connection refused" in "; ".join(caught.value.attempts)
