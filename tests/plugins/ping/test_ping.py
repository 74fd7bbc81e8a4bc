"""``dialkey/ping/1`` on real endpoints, and ``dialkey ping`` in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from dialkey import Connection, Endpoint, Router, SecretKey
from dialkey.errors import ConnectionClosedByPeer, ProtocolViolation, WireError
from dialkey.identity import EndpointTicket, RelayUrl
from dialkey.testing import MemoryNetwork, in_virtual_time
from dialkey_ping import ALPN, Ping, PingHandler, Pong, ping
from dialkey_relay import Everyone, RelayServer

UNKNOWN = str(SecretKey(bytes(32)).id)


async def pongs(connection: Connection, **options: float) -> list[Pong]:
    return [pong async for pong in ping(connection, interval_s=0.0, **options)]  # type: ignore[arg-type]


async def test_pings_are_answered_many_streams_at_once() -> None:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as here,
        Router(here) as router,
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as there,
    ):
        router.add(Ping())
        serving = asyncio.create_task(router.serve())
        async with await there.connect(here.addr(), ALPN) as connection:
            now = asyncio.get_running_loop().time
            began = now()
            rounds = await asyncio.gather(*(pongs(connection, count=3) for _ in range(5)))
            took = now() - began
        for answers in rounds:
            assert [pong.sequence for pong in answers] == [1, 2, 3]
            assert all(pong.round_trip_s > 0 for pong in answers)
            assert sum(pong.round_trip_s for pong in answers) < took
            assert all(pong.path.startswith("direct 127.0.0.1:") for pong in answers)
        serving.cancel()
        assert router.stats().failed == 0


class Liar:
    """Echoes something else, or nothing."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    async def accept(self, connection: Connection) -> None:
        send, _ = await connection.accept_bi()
        await send.write(self.answer)
        await send.finish()
        await connection.closed()


class Silent:
    async def accept(self, connection: Connection) -> None:
        await connection.closed()


class Trickler:
    """Sends a byte of the answer now and then."""

    async def accept(self, connection: Connection) -> None:
        send, _ = await connection.accept_bi()
        while True:
            await send.write(b"\0")
            await asyncio.sleep(5)


class Lingerer:
    """Answers every ping, and does not end the stream."""

    async def accept(self, connection: Connection) -> None:
        send, recv = await connection.accept_bi()
        async for data in recv:
            await send.write(data)
        await connection.closed()


@pytest.mark.parametrize("handler", [Silent(), Trickler()])
@in_virtual_time
async def test_a_peer_that_says_too_little_is_given_up(handler: Silent | Trickler) -> None:
    async with in_memory(handler) as connection:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await pongs(connection)
        assert asyncio.get_running_loop().time() - began < 6


@in_virtual_time
async def test_a_peer_that_leaves_the_stream_open_does_not_hold_up_the_end() -> None:
    async with in_memory(Lingerer()) as connection:
        began = asyncio.get_running_loop().time()
        assert len(await pongs(connection)) == 4
        assert asyncio.get_running_loop().time() - began < 6


@asynccontextmanager
async def in_memory(handler: object) -> AsyncIterator[Connection]:
    network = MemoryNetwork(seed=1)
    async with (
        Endpoint.bind(transports=[network.transport("a")], entry_points=False) as a,
        Endpoint.bind(transports=[network.transport("b")], entry_points=False) as b,
        Router(a, grace_s=0) as router,
    ):
        router.accept(ALPN, handler)
        async with b.connect(a.addr(), ALPN) as connection:
            yield connection


class Closer:
    async def accept(self, connection: Connection) -> None:
        await connection.accept_bi()
        connection.close(7, b"enough")


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (Liar(b"12345678"), ProtocolViolation),
        (Liar(b"123"), WireError),
        (Silent(), TimeoutError),
        (Closer(), ConnectionClosedByPeer),
    ],
)
async def test_wrong_answers(handler: Liar, error: type[Exception]) -> None:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as here,
        Router(here) as router,
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as there,
    ):
        router.accept(ALPN, handler)
        serving = asyncio.create_task(router.serve())
        async with await there.connect(here.addr(), ALPN) as connection:
            with pytest.raises(error):
                await pongs(connection, timeout_s=0.2 if error is TimeoutError else 5.0)
        serving.cancel()


async def test_a_caller_that_writes_much_is_answered_in_order() -> None:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as here,
        Router(here) as router,
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as there,
    ):
        router.accept(ALPN, PingHandler())
        serving = asyncio.create_task(router.serve())
        async with await there.connect(here.addr(), ALPN) as connection:
            send, recv = await connection.open_bi()
            data = bytes(range(256)) * 400
            writing = asyncio.create_task(send.write(data, finish=True))
            assert await recv.read_to_end(limit=len(data)) == data
            await writing
        serving.cancel()


# --- the command ----------------------------------------------------------------------------------


SCRIPT = """
import sys, types
from dialkey.cli import app
from dialkey.hooks import Plugins
import dialkey_ping.plugin
plugins = Plugins()
plugins.register(dialkey_ping.plugin)
build = app.build
app.build = lambda: build(plugins)
app.main(sys.argv[1:])
"""


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@pytest.fixture
def listener() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with command("ping", "--listen", "--bind", "127.0.0.1:0") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
        process.kill()


def test_command_pings_and_ctrl_c_ends_the_listener(
    listener: tuple[str, subprocess.Popen[str]],
) -> None:
    ticket, process = listener
    with command("ping", ticket, "--count", "2", "--interval", "0") as caller:
        out, err = caller.communicate(timeout=60)
    assert caller.returncode == 0, err
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["1", "2"]
    assert "ms, direct 127.0.0.1:" in lines[0]
    assert "2 answers from" in err

    with command("ping", ticket, "--count", "1", "--json") as caller:
        out, err = caller.communicate(timeout=60)
    assert json.loads(out)["event"] == "pong"
    assert err == ""

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ping"], 2, "give a ticket or an endpoint id"),
        (["ping", "x", "--listen"], 2, "give a ticket or an endpoint id"),
        (["ping", "nonsense"], 2, "dialkey: this text does not name an endpoint"),
        (["ping", "endpointaaa"], 2, "dialkey: "),
        (["ping", UNKNOWN], 4, "dialkey: "),
        (["ping", "--listen", "--secret-key", "missing.key"], 3, "no such key file"),
        (["ping", "--listen", "--bind", "nowhere"], 2, "dialkey: "),
    ],
)
def test_command_mistakes_are_one_line(arguments: list[str], code: int, message: str) -> None:
    with command(*arguments) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    if err.startswith("dialkey:"):
        assert err.count("\n") == 1


async def test_the_ticket_of_a_listener_names_its_relay() -> None:
    async with RelayServer([Everyone()]) as relay:
        words = ("ping", "--listen", "--bind", "127.0.0.1:0", "--relay", relay.url)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dialkey", *words), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                ticket = EndpointTicket.parse((await process.stdout.readline()).decode())
        finally:
            process.terminate()
            await process.communicate()
        assert ticket.addr.relay_urls == (RelayUrl(relay.url),)
