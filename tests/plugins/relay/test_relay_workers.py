"""A relay in several processes on one port."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import urllib.request

import pytest

from dialkey.identity import SecretKey
from dialkey_relay.client.client import RelayClient
from dialkey_relay.client.dial import Dialer

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "SO_REUSEPORT"), reason="this system cannot share a port"
)

PROGRAM = """
from dialkey.cli import CommandLine
from dialkey_relay import plugin
if __name__ == "__main__":
    cli = CommandLine()
    plugin.dialkey_commands(cli)
    cli()
"""


@pytest.fixture
async def start(tmp_path):
    processes = []

    async def begin(text, *options):
        program, path = tmp_path / "program.py", tmp_path / "relay.toml"
        program.write_text(PROGRAM)
        path.write_text(text)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program), "relay", "--config", str(path), "--json", *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        async with asyncio.timeout(60):
            return process, json.loads(await process.stdout.readline())

    yield begin
    for process in processes:
        if process.returncode is None:
            process.kill()
        # Not only its end, but that of its pipes.
        await process.communicate()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


async def test_clients_of_all_processes_reach_each_other(start) -> None:
    metrics = free_port()
    process, hello = await start(
        'access = "everyone"\nhttp_bind_addr = "127.0.0.1:0"\nworkers = 2\n'
        f'metrics_bind_addr = "127.0.0.1:{metrics}"\n'
        '[limits]\naccept_per_address_limit = "unlimited"\n',
        "--verbose",
    )
    host, port = hello["addresses"][0]
    keys = [SecretKey(bytes((n + 1,)) * 32) for n in range(12)]
    clients = [RelayClient(f"http://{host}:{port}", key, dialer=Dialer(proxy="")) for key in keys]
    for client in clients:
        client.start()
    async with asyncio.timeout(30):
        await asyncio.gather(*(client.connected() for client in clients))
        # Twelve clients are not all in one process; the first datagrams may come before the news
        # of where everybody is, so everyone is greeted until all have heard it.
        for client in clients:
            for key in keys:
                heard = asyncio.create_task(clients[keys.index(key)].receive())
                while not heard.done():
                    client.send(key.id, b"hello")
                    await asyncio.wait((heard,), timeout=0.05)
    loop = asyncio.get_running_loop()
    url = f"http://127.0.0.1:{metrics}/"

    def endpoints():
        with urllib.request.urlopen(url, timeout=10) as reply:
            text = reply.read().decode()
        line = next(each for each in text.splitlines() if each.startswith("dialkey_relay_endp"))
        return float(line.split()[1])

    for _ in range(300):
        found = await loop.run_in_executor(None, endpoints)
        if found == 12:
            break
        await asyncio.sleep(0.1)
    assert found == 12
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        log = (await process.stderr.read()).decode()
        assert await process.wait() == 143
        assert "dialkey [0]: relay listens" in log
        assert "dialkey [1]: relay listens" in log
        async for status in clients[0].watch():
            if status.error is not None:
                break
    await asyncio.gather(*(client.close() for client in clients))


async def test_an_address_that_is_taken_is_told(start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process, line = await start(
            f'access = "everyone"\nhttp_bind_addr = "127.0.0.1:{port}"\nworkers = 2\n'
            "enable_metrics = false\n"
        )
        assert line["event"] == "error"
        assert "cannot listen" in line["message"]
        async with asyncio.timeout(30):
            assert await process.wait() != 0


async def test_processes_do_not_outlive_their_parent(start) -> None:
    """Else they would keep the port, and nobody would end them."""
    process, hello = await start(
        'access = "everyone"\nhttp_bind_addr = "127.0.0.1:0"\nworkers = 2\n'
        'enable_metrics = false\nlimits.accept_per_address_limit = "unlimited"\n'
    )
    (url,) = hello["urls"]
    async with RelayClient(url, SecretKey(b"\x01" * 32), dialer=Dialer(proxy="")) as client:
        await client.connected()
        process.kill()
        async with asyncio.timeout(30):
            async for status in client.watch():
                if status.error is not None:
                    break
            # All of them hold the other end.
            assert (await process.stderr.read()).count(b"is gone") == 2
        assert "restart" in str(status.error)
