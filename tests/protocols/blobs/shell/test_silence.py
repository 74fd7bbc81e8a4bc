"""How a download ends when the provider handshakes and then says nothing, or a byte now and then."""

from __future__ import annotations

import asyncio
import io
from contextlib import aclosing
from pathlib import Path

import pytest

from dialkey import Connection, Endpoint, Router
from dialkey.cli import Output
from dialkey.errors import ConnectionLost
from dialkey.identity import IpAddr
from dialkey.testing import MemoryNetwork, in_virtual_time
from dialkey_blobs import ALPN, BlobFormat, Blobs, BlobTicket, Hash
from dialkey_blobs.fetching import fetch
from dialkey_blobs.targets import Target

DAY_S = 86_400.0
PROVIDER, GETTER = IpAddr.parse("192.0.2.1:1"), IpAddr.parse("192.0.2.2:1")


class Provider:
    """Acts as `way` says on every stream."""

    def __init__(self, way: str) -> None:
        self._way = way

    async def accept(self, connection: Connection) -> None:
        while self._way != "ignores streams":
            send, _ = await connection.accept_bi()
            async with asyncio.TaskGroup() as tasks:
                if self._way == "trickles":
                    await send.write((1 << 24).to_bytes(8, "little"))
                    for _ in range(int(DAY_S / 5)):
                        await send.write(b"\0")
                        await asyncio.sleep(5)
                elif self._way == "announces":
                    await send.write((1 << 24).to_bytes(8, "little"))
                tasks.create_task(connection.closed())
        await connection.closed()


@pytest.mark.parametrize("way", ["is silent", "ignores streams", "trickles", "announces"])
@pytest.mark.parametrize("format", BlobFormat)
@pytest.mark.parametrize("target", ["-", "folder/"])
def test_a_provider_that_says_nothing_is_given_up_within_a_stated_time(
    way: str, format: BlobFormat, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()

    @in_virtual_time
    async def scenario() -> None:
        network = MemoryNetwork(seed=1)

        def bind(name: IpAddr) -> Endpoint:
            return Endpoint.bind(transports=[network.transport(name)], entry_points=False)  # type: ignore[return-value]

        async def opened() -> Endpoint:
            return await bind(GETTER)

        async with bind(PROVIDER) as provider, Router(provider, grace_s=0) as router:
            router.accept(ALPN, Provider(way))
            ticket = BlobTicket(provider.addr(), Hash(bytes(range(32))), format)
            began = asyncio.get_running_loop().time()
            with pytest.raises(ConnectionLost, match=r"sent (nothing|only \d+ bytes) for [36]0 s"):
                await fetch(
                    Output(stdout=io.TextIOWrapper(io.BytesIO()), stderr=said),
                    opened,
                    ticket,
                    Target.parse(target),
                    overwrite=False,
                )
            assert 30 <= asyncio.get_running_loop().time() - began < 65

    scenario()
    assert not list(tmp_path.rglob(".dialkey-*"))


@in_virtual_time
async def test_a_provider_without_room_for_a_request_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It allows no stream at all."""

    async def wait(connection: Connection) -> None:
        await connection.closed()

    monkeypatch.setattr(Connection, "open_bi", wait)
    network = MemoryNetwork(seed=1)
    async with (
        Endpoint.bind(transports=[network.transport(PROVIDER)], entry_points=False) as a,
        Endpoint.bind(transports=[network.transport(GETTER)], entry_points=False) as b,
        Router(a, grace_s=0) as router,
    ):
        router.accept(ALPN, Provider("is silent"))
        said = Output(stdout=io.StringIO(), stderr=io.StringIO())
        ticket = BlobTicket(a.addr(), Hash(bytes(range(32))), BlobFormat.RAW)

        async def opened() -> Endpoint:
            return b

        with pytest.raises(ConnectionLost, match="did not take our request for 30 s"):
            await fetch(said, opened, ticket, Target.parse("-"), overwrite=False)


@pytest.mark.parametrize("is_push", [False, True])
@in_virtual_time
async def test_an_observer_or_a_pusher_without_a_stream_does_not_wait_for_ever(
    is_push: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(connection: Connection) -> None:
        await connection.closed()

    monkeypatch.setattr(Connection, "open_bi", wait)
    network = MemoryNetwork(seed=1)
    async with (
        Endpoint.bind(transports=[network.transport(PROVIDER)], entry_points=False) as a,
        Endpoint.bind(transports=[network.transport(GETTER)], entry_points=False) as b,
        Router(a, grace_s=0) as router,
        Router(b, grace_s=0) as asking,
    ):
        router.accept(ALPN, Provider("is silent"))
        blobs = asking.add(Blobs.memory())
        content = await blobs.add_bytes(b"content")
        loop = asyncio.get_running_loop()
        began = loop.time()
        states = blobs.observe(a.addr(), content.hash)
        async with aclosing(states):
            call = blobs.push(a.addr(), content) if is_push else anext(states)
            with pytest.raises(ConnectionLost, match="for 30 s"):
                await call
        assert 30 <= loop.time() - began < 35


@in_virtual_time
async def test_a_pusher_gives_up_on_whoever_takes_the_stream_and_nothing_else() -> None:
    network = MemoryNetwork(seed=1)
    async with (
        Endpoint.bind(transports=[network.transport(PROVIDER)], entry_points=False) as a,
        Endpoint.bind(transports=[network.transport(GETTER)], entry_points=False) as b,
        Router(a, grace_s=0) as router,
        Router(b, grace_s=0) as asking,
    ):
        router.accept(ALPN, Provider("is silent"))
        blobs = asking.add(Blobs.memory())
        content = await blobs.add_bytes(bytes(4 << 20))
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ConnectionLost, match="took nothing of our push for 600 s"):
            await blobs.push(a.addr(), content)
        assert 600 <= loop.time() - began < 610
