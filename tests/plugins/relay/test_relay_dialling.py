"""How the client gets to a relay: TLS roots, proxies from the environment, names that are none."""

from __future__ import annotations

import asyncio
import base64
import ssl

import pytest

from dialkey.errors import InvalidInput
from dialkey.identity import RelayUrl, SecretKey
from dialkey_relay.access import Everyone
from dialkey_relay.client import dial
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer, Target, default_tls, proxy_from_environment
from dialkey_relay.errors import RelayUnreachable
from dialkey_relay.server.server import RelayOptions, RelayServer
from dialkey_relay.server.tls import TlsFiles

A = SecretKey(b"\x01" * 32)
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)


def tls_relay(certificate):
    options = RelayOptions(
        http=None, https=("127.0.0.1", 0), tls=TlsFiles(certificate.chain, certificate.key)
    )
    return RelayServer([Everyone()], options)


def client(relay, **options):
    return RelayClient(relay if isinstance(relay, str) else relay.url, A, **options)


async def until(client, condition):
    async with asyncio.timeout(15):
        async for status in client.watch():
            if condition(status):
                return status
    raise AssertionError("the client ended")


async def passes_a_datagram(client):
    async with asyncio.timeout(10):
        await client.connected()
        assert client.send(A.id, b"through")
        assert (await client.receive()).content == b"through"


# --- TLS ----------------------------------------------------------------------------------------


async def test_tls_with_added_roots(certificate) -> None:
    dialer = Dialer(tls=default_tls(str(certificate.chain)), proxy="")
    async with tls_relay(certificate) as relay:
        port = relay.addresses[0][1]
        async with client(f"https://localhost:{port}/", dialer=dialer) as a:
            await passes_a_datagram(a)
        # A name that ends in a dot is the same in a certificate.
        async with client(f"https://localhost.:{port}/", dialer=Elsewhere(dialer)) as a:
            await passes_a_datagram(a)


@pytest.mark.parametrize("is_tls", [False, True])
async def test_addresses_of_ipv6(certificate, is_tls) -> None:
    address = ("::1", 0)
    files = TlsFiles(certificate.chain, certificate.key)
    options = (
        RelayOptions(http=None, https=address, tls=files) if is_tls else RelayOptions(http=address)
    )
    dialer = Dialer(tls=default_tls(str(certificate.chain)), proxy="")
    async with RelayServer([Everyone()], options) as relay:
        assert relay.url.startswith("https://[::1]:" if is_tls else "http://[::1]:")
        async with client(relay, dialer=dialer) as a:
            await passes_a_datagram(a)


async def test_tls_with_the_roots_of_the_system(certificate, monkeypatch) -> None:
    # This is where OpenSSL looks for them.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.chain))
    dial._system_tls.cache_clear()
    try:
        async with tls_relay(certificate) as relay, client(relay, dialer=Dialer(proxy="")) as a:
            await passes_a_datagram(a)
    finally:
        dial._system_tls.cache_clear()


async def test_an_unknown_authority_is_named_as_the_reason(certificate) -> None:
    async with tls_relay(certificate) as relay, client(relay, dialer=Dialer(proxy="")) as a:
        status = await until(a, lambda status: status.error is not None)
        assert "not trusted" in str(status.error)


async def test_a_certificate_for_another_name_is_refused(certificate) -> None:
    dialer = Dialer(tls=default_tls(str(certificate.chain)), proxy="")
    async with tls_relay(certificate) as relay:
        port = relay.addresses[0][1]
        async with client(f"https://127.0.0.2:{port}/", dialer=Elsewhere(dialer)) as a:
            status = await until(a, lambda status: status.error is not None)
            assert "127.0.0.2 is not trusted" in str(status.error)


class Elsewhere(Dialer):
    """Connects to 127.0.0.1, whatever the name; the certificate is checked for the name."""

    def __init__(self, dialer):
        super().__init__(tls=dialer.tls, proxy="")

    async def open(self, target, protocol):
        loop = asyncio.get_running_loop()
        genuine = loop.create_connection

        def connect(protocol, host, *arguments, **options):
            return genuine(protocol, "127.0.0.1", *arguments, **options)

        loop.create_connection = connect
        try:
            await super().open(target, protocol)
        finally:
            del loop.create_connection


# --- proxies ------------------------------------------------------------------------------------


class Proxy:
    """An HTTP proxy that knows CONNECT; with or without a password, with or without TLS."""

    def __init__(self, password=None, certificate=None):
        self.password = password
        self.certificate = certificate
        self.requests = []
        self._tasks = set()

    async def __aenter__(self):
        context = None
        if self.certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.certificate.chain, self.certificate.key)
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info):
        self.server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            wanted = base64.b64encode(f"user:{self.password}".encode()).decode()
            if self.password and f"Proxy-Authorization: Basic {wanted}" not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, _, port = head.split()[1].rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.pump(reader, far_writer))
                    group.create_task(self.pump(far_reader, writer))
            finally:
                far_writer.close()
        finally:
            writer.close()

    async def pump(self, reader, writer):
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@pytest.fixture
def environment(monkeypatch):
    """An environment without proxies; call it to set variables."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("password", [None, "p@ss"])
@pytest.mark.parametrize("is_tls", [False, True])
async def test_through_the_proxy_of_the_environment(
    certificate, environment, is_tls, password
) -> None:
    relay = tls_relay(certificate) if is_tls else RelayServer([Everyone()], OPEN)
    async with Proxy(password) as proxy, relay:
        user = "user:p%40ss@" if password else ""
        name = "HTTPS_PROXY" if is_tls else "http_proxy"
        environment(**{name: f"http://{user}127.0.0.1:{proxy.port}"})
        dialer = Dialer(tls=default_tls(str(certificate.chain)))
        async with client(relay, dialer=dialer) as a:
            await passes_a_datagram(a)
        port = relay.addresses[0][1]
        assert proxy.requests[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n")
        assert ("Proxy-Authorization" in proxy.requests[0]) == (password is not None)


async def test_hosts_that_need_no_proxy_are_dialled_directly(environment) -> None:
    async with Proxy() as proxy, RelayServer([Everyone()], OPEN) as relay:
        environment(http_proxy=f"http://127.0.0.1:{proxy.port}", NO_PROXY="127.0.0.1,localhost")
        async with client(relay) as a:
            await passes_a_datagram(a)
        assert proxy.requests == []


async def test_no_proxy_can_be_asked_for(environment) -> None:
    async with RelayServer([Everyone()], OPEN) as relay:
        environment(http_proxy="http://127.0.0.1:1")
        async with client(relay, dialer=Dialer(proxy="")) as a:
            await passes_a_datagram(a)


@pytest.mark.parametrize("is_tls", [False, True])
async def test_through_a_proxy_that_speaks_tls(certificate, is_tls) -> None:
    relay = tls_relay(certificate) if is_tls else RelayServer([Everyone()], OPEN)
    async with Proxy("secret", certificate) as proxy, relay:
        dialer = Dialer(
            tls=default_tls(str(certificate.chain)),
            proxy=f"https://user:secret@localhost:{proxy.port}",
        )
        async with client(relay, dialer=dialer) as a:
            await passes_a_datagram(a)
        assert len(proxy.requests) == 1


async def test_a_proxy_that_refuses() -> None:
    async with Proxy(password="x") as proxy, RelayServer([Everyone()], OPEN) as relay:
        dialer = Dialer(proxy=f"http://127.0.0.1:{proxy.port}")
        async with client(relay, dialer=dialer) as a:
            status = await until(a, lambda status: status.error is not None)
            assert "407" in str(status.error)
            assert "credentials" in str(status.error)


async def test_a_proxy_that_is_away_is_named() -> None:
    async with client("http://relay.invalid/", dialer=Dialer(proxy="http://127.0.0.1:1")) as a:
        status = await until(a, lambda status: status.error is not None)
        assert "the proxy 127.0.0.1 port 1" in str(status.error)


NO_PROXIES = ["socks5://127.0.0.1:1", "http://127.0.0.1:port", "http://[::1", "http://"]


@pytest.mark.parametrize("text", NO_PROXIES)
async def test_what_is_not_a_proxy_is_told_and_ends_nothing(environment, text) -> None:
    with pytest.raises(InvalidInput, match="proxy"):
        Dialer(proxy=text)
    environment(http_proxy=text)
    async with RelayServer([Everyone()], OPEN) as relay, client(relay) as a:
        status = await until(a, lambda status: status.error is not None)
        assert isinstance(status.error, InvalidInput)
        environment(http_proxy="")
        await passes_a_datagram(a)


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(Dialer(proxy="http://user:secret@proxy.example"))


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b"])
async def test_names_that_no_host_has_are_one_failed_attempt(host) -> None:
    """A stranger's address may hold them; the client must outlive that."""
    async with client(f"http://{host}/", dialer=Dialer(proxy="")) as a:
        status = await until(a, lambda status: status.attempts >= 2 and status.error is not None)
        assert isinstance(status.error, RelayUnreachable)
        assert a.wedged(asyncio.get_running_loop().time()) is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "exempt"),
    [
        ("10.0.0.0/8", "http://10.1.2.3:3340/", True),
        ("10.0.0.0/8", "http://11.1.2.3:3340/", False),
        ("10.1.2.99/8", "http://10.1.2.3/", True),
        ("10.1.2.3", "http://10.1.2.3:3340/", True),
        ("10.1.2.3:3340", "http://10.1.2.3:3340/", True),
        ("10.1.2.3:80", "http://10.1.2.3:3340/", False),
        ("::1", "http://[::1]:3340/", True),
        ("[::1]", "http://[::1]:3340/", True),
        ("[::1]:3340", "http://[::1]:3340/", True),
        ("[::1]:443", "http://[::1]:3340/", False),
        ("::1", "https://[::1]/", True),
        ("0:0:0:0:0:0:0:1", "https://[::1]/", True),
        ("fd00::/8", "http://[fd00::1]:3340/", True),
        ("[fd00::/8]", "http://[fd00::1]:3340/", True),
        ("[fd00::]/8", "http://[fd00::1]:3340/", True),
        ("fd00::/8", "http://[fe00::1]:3340/", False),
        ("fd00::1", "http://[FD00::1]:3340/", True),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", True),
        ("::ffff:10.0.0.0/104", "http://10.1.2.3/", True),
        ("::/0", "http://10.1.2.3/", False),
        ("0.0.0.0/0", "http://[fd00::1]/", False),
        ("localhost", "http://localhost:3340/", True),
        (".example.com", "https://relay.example.com/", True),
        ("*.example.com", "https://relay.example.com/", True),
        ("example.com", "https://relay.example.com./", True),
        ("example.com.", "https://relay.example.com/", True),
        ("example.com:443", "https://relay.example.com/", True),
        ("example.com:8443", "https://relay.example.com/", False),
        ("ample.com", "https://relay.example.com/", False),
        ("*", "https://a.b/", True),
        ("EXAMPLE.com", "https://relay.Example.COM/", True),
        (" a , relay.example ", "https://relay.example/", True),
        ("a relay.example", "https://relay.example/", True),
        ("bücher.example", "https://bücher.example/", True),
        ("xn--bcher-kva.example", "https://bücher.example/", True),
        ("127.0.0.1,localhost", "http://127.0.0.1:3340/", True),
        ("", "http://127.0.0.1:3340/", False),
        (",., .,:,[,]:1,/8,10.0.0.0/99", "http://127.0.0.1:3340/", False),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_hosts_that_need_no_proxy(environment, variable, no_proxy, url, exempt) -> None:
    environment(
        https_proxy="http://proxy:3128", http_proxy="http://proxy:3128", **{variable: no_proxy}
    )
    found = proxy_from_environment(Target.of(RelayUrl(url)))
    assert found == (None if exempt else "http://proxy:3128")


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY"])
def test_a_proxy_is_found_in_either_case(environment, variable) -> None:
    environment(**{variable: "http://proxy:3128"})
    assert proxy_from_environment(Target.of(RelayUrl("https://a.b/"))) == "http://proxy:3128"


def test_lower_case_wins(environment) -> None:
    environment(https_proxy="http://one:1", HTTPS_PROXY="http://two:2", no_proxy="x", NO_PROXY="*")
    assert proxy_from_environment(Target.of(RelayUrl("https://a.b/"))) == "http://one:1"
