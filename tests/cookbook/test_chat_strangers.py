"""What strangers in a room make others send: one dial for each hello, and no relay of their choice."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from dialkey_chat import Remark, RoomTicket, Settings, Written, session
from dialkey_chat.messages import File, Hello, pack, write_letter
from dialkey_chat.session import open_chat
from endpoints import on_loopback

from dialkey import DialLimits, Endpoint, EndpointAddr, SecretKey, hookimpl
from dialkey.errors import DialError
from dialkey.identity import IpAddr, RelayAddr, RelayUrl
from dialkey_blobs import BlobTicket, Hash
from dialkey_relay import RelayDisconnected

STRANGER = SecretKey(bytes([9]) * 32)


class Listener:
    """Hears why relays are not connected to."""

    def __init__(self) -> None:
        self.failures: asyncio.Queue[str] = asyncio.Queue()

    @hookimpl
    def dialkey_events(self, event: object) -> None:
        if isinstance(event, RelayDisconnected):
            self.failures.put_nowait(str(event.error))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_one_hello_is_good_for_one_dial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dials: list[tuple[EndpointAddr, DialLimits]] = []

    async def ask(endpoint: Endpoint, addr: EndpointAddr, room: object, limits: DialLimits) -> Any:
        dials.append((addr, limits))
        raise DialError("nobody")

    monkeypatch.setattr(session, "ask_history", ask)
    where = EndpointAddr(STRANGER.id, [IpAddr.parse("192.0.2.1:1"), IpAddr.parse("192.0.2.2:1")])
    settings = Settings("alice", tmp_path / "alice")
    async with (
        on_loopback() as endpoint,
        open_chat(endpoint, RoomTicket.create("tea"), settings) as chat,
    ):

        def hears_hello(at_ms: int) -> None:
            hello = Hello("stranger", where, 60.0, at_ms)
            chat.room.hear(STRANGER.id, pack(hello), asyncio.get_running_loop().time(), now_ms())

        async def ask_often() -> int:
            dials.clear()
            for _ in range(5):
                assert not await chat._ask_one(STRANGER.id)
            return len(dials)

        assert await ask_often() == 0, "nobody has said where the stranger is"
        begin = now_ms()
        hears_hello(begin)
        assert await ask_often() == 1
        ((addr, limits),) = dials
        assert addr.id == STRANGER.id
        assert limits.max_addresses == 1
        assert all(limits.applies_to(each) for each in addr.addrs)
        hears_hello(begin)
        assert await ask_often() == 0, "the same hello again"
        hears_hello(begin + 1)
        assert await ask_often() == 1


@pytest.mark.parametrize("host", ["relay.example", "127.0.0.1"])
async def test_a_file_offer_makes_nobody_knock_at_machines_around_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    loop = asyncio.get_running_loop()
    original = loop.getaddrinfo
    knocked, listener = asyncio.Event(), Listener()

    async def knock(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocked.set()
        writer.close()

    async def getaddrinfo(name: Any, port: Any, **options: Any) -> Any:
        if name != "relay.example":
            return await original(name, port, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("NO_PROXY", "*")
    server = await asyncio.start_server(knock, "127.0.0.1", 0)
    url = RelayUrl(f"https://{host}:{server.sockets[0].getsockname()[1]}")
    async with (
        server,
        Endpoint.bind(relays=(), bind="127.0.0.1:0", plugins=[listener]) as endpoint,
        open_chat(
            endpoint, RoomTicket.create("tea"), Settings("alice", tmp_path / "alice")
        ) as chat,
    ):
        ticket = BlobTicket(EndpointAddr(STRANGER.id, [RelayAddr(url)]), Hash.of(b"song"))
        offer = write_letter(
            STRANGER, chat.room.topic, "stranger", File("song", 4, ticket), now_ms()
        )
        (notice,) = chat.room.add(offer, now_ms())
        assert isinstance(notice, Written)
        assert notice.number is not None
        chat.get(notice.number)
        async with asyncio.timeout(10):
            if host == "relay.example":
                assert "strangers must not send us" in await listener.failures.get()
            else:
                async for told in chat.notices:
                    if isinstance(told, Remark) and "that did not work" in told.text:
                        break
        assert not knocked.is_set()
        _, writer = await asyncio.open_connection("127.0.0.1", url.port)
        await asyncio.wait_for(knocked.wait(), 10)
        writer.close()
        await writer.wait_closed()
