"""The relay behind nginx, haproxy and Apache: real programs, each on a free port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from dialkey.identity import RelayUrl, SecretKey
from dialkey_relay import Everyone, RelayClient, RelayOptions, RelayServer, SharedTokens
from dialkey_relay.client.dial import Dialer
from dialkey_relay.client.probe import probe
from dialkey_relay.errors import RelayDenied

A, B = SecretKey(b"\x01" * 32), SecretKey(b"\x02" * 32)
OPEN = RelayOptions(client_rate=None, accept_rate_per_address=None)
DIRECT = Dialer(proxy="")
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
ATTEMPTS = 5
"""Between looking for a free port and the program's taking it somebody else may be faster."""

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{relay};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
        }}
    }}
}}
"""

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
frontend public
    bind 127.0.0.1:{port}
    default_backend relay
backend relay
    option httpchk
    http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host relay.example
    server relay 127.0.0.1:{relay} check
"""

APACHE = """
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
DefaultRuntimeDir {folder}
Mutex file:{folder}
ErrorLog {folder}/error.log
{user}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
LoadModule proxy_wstunnel_module {modules}/mod_proxy_wstunnel.so
ProxyPass "/relay" "ws://127.0.0.1:{relay}/relay"
ProxyPass "/" "http://127.0.0.1:{relay}/"
"""

APACHE_MODULES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules")


@attrs.frozen
class Proxy:
    """A program that stands before a relay.

    Attributes:
        config: its configuration, with places for folder, ports, modules and user.
        arguments: how it is told to use that file and to stay in the foreground.
        user: lines for the configuration where root runs it.
    """

    programs: tuple[str, ...]
    config: str
    arguments: tuple[str, ...]
    user: str = ""


PROXIES = {
    "nginx": Proxy(("nginx",), NGINX, ("-c", "{file}", "-e", "stderr"), "user root;"),
    "haproxy": Proxy(("haproxy",), HAPROXY, ("-db", "-f", "{file}")),
    "apache": Proxy(
        ("apache2", "httpd"),
        APACHE,
        ("-f", "{file}", "-DFOREGROUND"),
        "User nobody\nGroup nogroup",
    ),
}


def find(proxy: Proxy) -> tuple[str, str]:
    """Find the program and the folder of Apache's modules, or skip the test."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = next((p for each in proxy.programs if (p := shutil.which(each, path=path))), None)
    if program is None:
        pytest.skip(f"{proxy.programs[0]} is not installed")
    modules = next((each for each in APACHE_MODULES if Path(each).is_dir()), "")
    if "{modules}" in proxy.config and not modules:
        pytest.skip("the modules of Apache were not found")
    return program, modules


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def answers(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until a program listens; tell whether it does, rather than having ended."""
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                # It says nowhere that it is ready.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 0.05)
                continue
            writer.close()
            return True
    return False


@contextlib.asynccontextmanager
async def running(proxy: Proxy, relay: RelayServer, folder: Path) -> AsyncIterator[str]:
    """Run a proxy before a relay; give the URL at which it takes requests."""
    program, modules = find(proxy)
    for _ in range(ATTEMPTS):
        port = free_port()
        file = folder / "proxy.conf"
        file.write_text(
            proxy.config.format(
                folder=folder,
                port=port,
                relay=relay.addresses[0][1],
                modules=modules,
                user=proxy.user if IS_ROOT else "",
            )
        )
        process = await asyncio.create_subprocess_exec(
            program,
            *(each.format(file=file) for each in proxy.arguments),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            if await answers(process, port):
                yield f"http://127.0.0.1:{port}/"
                return
            said = await process.stderr.read()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()
    pytest.fail(f"{program} does not start: {said.decode(errors='replace')}")


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> Proxy:
    return PROXIES[request.param]


async def exchange(url: str, method: str, path: str) -> tuple[str, bytes]:
    """Make one request; return the head and the body of the answer."""
    host = url.removeprefix("http://").rstrip("/")
    name, port = host.split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(30):
        reply = await reader.read()
    writer.close()
    head, _, body = reply.partition(b"\r\n\r\n")
    return head.decode("latin-1"), body


async def test_clients_meet_behind_a_proxy(proxy: Proxy, tmp_path: Path) -> None:
    async with RelayServer([Everyone()], OPEN) as relay, running(proxy, relay, tmp_path) as url:
        async with (
            RelayClient(url, A, dialer=DIRECT) as a,
            RelayClient(url, B, dialer=DIRECT) as b,
            asyncio.timeout(60),
        ):
            await asyncio.gather(a.connected(), b.connected())
            for size in (1, 1200, 60_000):
                assert a.send(B.id, b"x" * size)
                assert (await b.receive()).content == b"x" * size
                assert b.send(A.id, b"y" * size)
                assert (await a.receive()).content == b"y" * size
        assert await probe(RelayUrl(url), DIRECT, timeout_s=30) > 0
        head, body = await exchange(url, "GET", "/healthz")
        assert head.startswith("HTTP/1.1 200")
        assert body.startswith(b'{"status":"ok"')
        # A body after HEAD would be taken for the next answer by whatever stands in between.
        head, body = await exchange(url, "HEAD", "/healthz")
        assert head.startswith("HTTP/1.1 ")
        assert body == b""


async def test_a_refusal_comes_through_a_proxy(proxy: Proxy, tmp_path: Path) -> None:
    async with (
        RelayServer([SharedTokens(["letmein"])], OPEN) as relay,
        running(proxy, relay, tmp_path) as url,
        asyncio.timeout(60),
    ):
        async with RelayClient(url, A, dialer=DIRECT) as stranger:
            async for status in stranger.watch():
                if status.error is not None:
                    break
        assert isinstance(status.error, RelayDenied)
        assert status.error.reason == "this relay requires a token"
        async with RelayClient(url, A, token="letmein", dialer=DIRECT) as friend:
            await friend.connected()
