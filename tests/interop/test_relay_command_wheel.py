"""Real iroh endpoints at the command ``dialkey relay``, as one runs it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys

import pytest

from dialkey.identity import SecretKey

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]

A, B = SecretKey(b"\x51" * 32), SecretKey(b"\x52" * 32)


@pytest.fixture
async def command(tmp_path):
    """Start ``dialkey relay`` with a configuration; gives the process and its URL."""
    path = tmp_path / "relay.toml"
    processes = []

    async def start(text):
        path.write_text(text)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dialkey", "relay", "--config", str(path), "--json"),
            stdout=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        async with asyncio.timeout(60):
            hello = json.loads(await process.stdout.readline())
        assert hello["event"] == "listening"
        return process, hello["urls"][0]

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        # Not only its end, but that of its pipes.
        await process.communicate()


def configuration(port=0, workers=1):
    return (
        f'http_bind_addr = "127.0.0.1:{port}"\nenable_metrics = false\nworkers = {workers}\n'
        'access.shared_token = ["open sesame"]\n'
    )


async def meet(wheel, server_url, client_url, size=200_000):
    """Let two endpoints that know one relay each find each other there."""
    token = ("--token", "open sesame")
    client = await wheel(
        *("--secret", B.to_hex(), "--relay", client_url, "--remote-relay", server_url, *token),
        *("--dial", str(A.id), "--bytes", str(size)),
    )
    assert (await client.line())["online"]
    assert (await client.line())["same"]
    await client.stop()


@pytest.mark.parametrize(
    "workers",
    [
        1,
        pytest.param(
            3,
            marks=pytest.mark.skipif(
                not hasattr(socket, "SO_REUSEPORT"), reason="this system cannot share a port"
            ),
        ),
    ],
)
async def test_endpoints_meet_and_return_when_it_is_started_anew(wheel, command, workers) -> None:
    process, url = await command(configuration(workers=workers))
    server = await wheel(
        *("--secret", A.to_hex(), "--relay", url, "--token", "open sesame", "--serve")
    )
    assert (await server.line())["online"]
    # Often enough for them to be in different processes of the relay, too.
    for _ in range(workers):
        await meet(wheel, url, url)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        assert await process.wait() == 143
    port = int(url.rstrip("/").rpartition(":")[2])
    _, again = await command(configuration(port, workers))
    assert again == url
    await meet(wheel, url, url)
