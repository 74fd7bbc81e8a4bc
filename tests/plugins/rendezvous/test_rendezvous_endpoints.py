"""Codes between endpoints: a server on a router, in a network in memory."""

from __future__ import annotations

import asyncio

import pytest

from dialkey import Connection, Endpoint, Router
from dialkey.errors import AlpnMismatch
from dialkey.testing import MemoryNetwork, in_virtual_time
from dialkey_rendezvous import (
    Code,
    CodeRefused,
    ExpiredCode,
    PartnerLeft,
    Rendezvous,
    UnknownCode,
    UsedCode,
    WordsDiffer,
    WrongCode,
    offer,
    take,
)
from dialkey_rendezvous.client import ANSWER_S
from dialkey_rendezvous.frames import Claim, encode
from dialkey_rendezvous.handler import ALPN
from dialkey_rendezvous.limits import FIRST_FRAME_S

TICKET = "endpointaeaaaaaaa"


def bind(network: MemoryNetwork, name: str) -> Endpoint:
    return Endpoint.bind(transports=[network.transport(name)])  # type: ignore[return-value]


@in_virtual_time
async def test_a_ticket_by_a_code() -> None:
    network = MemoryNetwork(seed=1)
    rendezvous = Rendezvous()
    async with (
        bind(network, "server") as server,
        Router(server) as router,
        bind(network, "alice") as alice,
        bind(network, "bob") as bob,
    ):
        router.add(rendezvous)
        codes: asyncio.Queue[tuple[Code, int]] = asyncio.Queue()
        shown: list[tuple[str, ...]] = []

        async def compare(words: tuple[str, ...], other_compares: bool) -> bool:
            assert not other_compares
            shown.append(words)
            return True

        async with asyncio.TaskGroup() as tasks:
            offering = tasks.create_task(
                offer(
                    alice,
                    server.addr(),
                    TICKET,
                    on_code=lambda code, lifetime_s: codes.put_nowait((code, lifetime_s)),
                    compare=compare,
                )
            )
            code, lifetime_s = await codes.get()
            assert lifetime_s == 3600
            assert not offering.done()
            ticket = await take(bob, server.addr(), Code.parse(str(code)), show=shown.append)
        assert ticket == TICKET
        assert len(shown) == 2
        assert shown[0] == shown[1]
        assert rendezvous.stats().delivered == 1
        with pytest.raises(UsedCode, match="used this code already"):
            await take(bob, server.addr(), code)


@in_virtual_time
async def test_both_sides_are_asked_at_the_same_time() -> None:
    network = MemoryNetwork(seed=1)
    async with (
        bind(network, "server") as server,
        Router(server) as router,
        bind(network, "alice") as alice,
        bind(network, "bob") as bob,
    ):
        router.add(Rendezvous())
        codes: asyncio.Queue[Code] = asyncio.Queue()
        both = asyncio.Barrier(2)
        seen: list[tuple[str, ...]] = []

        async def compare(words: tuple[str, ...], other_compares: bool) -> bool:
            seen.append(words)
            await both.wait()
            return True

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                offer(
                    alice,
                    server.addr(),
                    TICKET,
                    on_code=lambda code, _: codes.put_nowait(code),
                    compare=compare,
                )
            )
            assert await take(bob, server.addr(), await codes.get(), compare=compare) == TICKET
        assert len(seen) == 2
        assert seen[0] == seen[1]


@in_virtual_time
async def test_what_goes_wrong_reaches_both_sides() -> None:
    network = MemoryNetwork(seed=1)
    async with (
        bind(network, "server") as server,
        Router(server) as router,
        bind(network, "alice") as alice,
        bind(network, "bob") as bob,
    ):
        rendezvous = router.add(Rendezvous())
        codes: asyncio.Queue[Code] = asyncio.Queue()

        def begin(**options: object) -> asyncio.Task[None]:
            return asyncio.create_task(
                offer(
                    alice,
                    server.addr(),
                    TICKET,
                    on_code=lambda code, _: codes.put_nowait(code),
                    **options,  # type: ignore[arg-type]
                )
            )

        offering = begin(words=("amber", "violin"))
        code = await codes.get()
        with pytest.raises(WrongCode, match="it is burnt"):
            await take(bob, server.addr(), Code(code.nameplate, ("amber", "walnut")))
        with pytest.raises(WrongCode, match="with wrong words"):
            await offering

        async def differ(words: tuple[str, ...], other_compares: bool) -> bool:
            return False

        offering = begin()
        code = await codes.get()
        with pytest.raises(WordsDiffer):
            await take(bob, server.addr(), code, compare=differ)
        with pytest.raises(CodeRefused, match="the words differ"):
            await offering

        offering = begin(lifetime_s=30)
        code = await codes.get()
        with pytest.raises(ExpiredCode):
            await offering
        with pytest.raises(ExpiredCode):
            await take(bob, server.addr(), code)
        with pytest.raises(UnknownCode):
            await take(bob, server.addr(), Code(99_999, code.words))

        offering = begin()
        code = await codes.get()
        offering.cancel()
        await asyncio.wait({offering})
        with pytest.raises(ExpiredCode, match="the other side has ended"):
            await take(bob, server.addr(), code)
        assert rendezvous.stats().waiting == 0


@in_virtual_time
async def test_a_server_that_goes_away_is_said() -> None:
    network = MemoryNetwork(seed=1)
    async with bind(network, "alice") as alice:
        codes: asyncio.Queue[Code] = asyncio.Queue()
        async with bind(network, "server") as server, Router(server) as router:
            router.add(Rendezvous())
            offering = asyncio.create_task(
                offer(alice, server.addr(), TICKET, on_code=lambda code, _: codes.put_nowait(code))
            )
            await codes.get()
        with pytest.raises(PartnerLeft, match="the rendezvous server went away"):
            await offering


@in_virtual_time
async def test_an_endpoint_without_a_rendezvous_is_said() -> None:
    network = MemoryNetwork(seed=1)
    async with (
        bind(network, "server") as server,
        Router(server) as router,
        bind(network, "alice") as alice,
    ):
        router.accept("echo/1", Rendezvous())
        with pytest.raises(AlpnMismatch, match="it is not a rendezvous server"):
            await offer(alice, server.addr(), TICKET, on_code=print)


@in_virtual_time
async def test_a_caller_that_no_longer_listens_is_nobody_s_fault() -> None:
    network = MemoryNetwork(seed=1)
    async with (
        bind(network, "server") as server,
        Router(server) as router,
        bind(network, "bob") as bob,
    ):
        rendezvous = router.add(Rendezvous())
        connection = await bob.connect(server.addr(), ALPN)
        send, _ = await connection.open_bi()
        (there,) = server.connections
        network.one_way("server", "bob").down()
        await send.write(encode(Claim(5, bytes(32))))
        await there.closed()
        assert rendezvous.stats().refused == {"unknown": 1}
    assert (router.stats().failed, router.stats().active) == (0, 0)


@in_virtual_time
async def test_a_caller_that_asks_nothing_is_closed() -> None:
    network = MemoryNetwork(seed=1)
    async with (
        bind(network, "server") as server,
        Router(server) as router,
        bind(network, "bob") as bob,
    ):
        router.add(Rendezvous())
        connection = await bob.connect(server.addr(), ALPN)
        began = asyncio.get_running_loop().time()
        assert "nothing was asked" in str(await connection.closed())
        connection = await bob.connect(server.addr(), ALPN)
        send, _ = await connection.open_bi()
        await send.write(b"\x01")
        assert "nothing was asked" in str(await connection.closed())
        assert asyncio.get_running_loop().time() - began <= 4 * FIRST_FRAME_S


@pytest.mark.parametrize("calls", ["offer", "take"])
@in_virtual_time
async def test_a_server_that_allows_no_stream_is_given_up(
    calls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(connection: Connection) -> None:
        await connection.closed()

    monkeypatch.setattr(Connection, "open_bi", wait)
    network = MemoryNetwork(seed=1)
    async with (
        bind(network, "server") as server,
        Router(server) as router,
        bind(network, "bob") as bob,
    ):

        class Waiting:
            """Takes the connection, and nothing else."""

            async def accept(self, connection: Connection) -> None:
                await connection.closed()

        router.accept(ALPN, Waiting())
        loop = asyncio.get_running_loop()
        began = loop.time()
        if calls == "offer":
            call = offer(bob, server.addr(), TICKET, on_code=lambda *_: None)
        else:
            call = take(bob, server.addr(), Code.parse("7-apple-anchor"))
        with pytest.raises(PartnerLeft, match="did not answer in time"):
            await call
        assert loop.time() - began == pytest.approx(ANSWER_S, abs=2)
