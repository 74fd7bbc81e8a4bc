"""dialkey and a real iroh endpoint, each dialling the other."""

from __future__ import annotations

import asyncio
import hashlib
import random

import iroh
import pytest
import wheel_peer as wheel

from dialkey import Endpoint, EndpointAddr, SecretKey
from dialkey.errors import AlpnMismatch, ConnectionClosedByPeer, WrongKey

pytestmark = pytest.mark.interop

ALPN = "dialkey-test/1"
SIZE = 64 << 20


def binding(*alpns: str) -> object:
    return Endpoint.bind(bind="127.0.0.1:0", alpns=alpns, entry_points=False)


def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def read_hash(recv: iroh.RecvStream) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    while chunk := await recv.read(1 << 18):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


async def test_we_dial_it_and_talk_both_ways() -> None:
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
        theirs = await accepting
        assert ours.remote_id == wheel.id_of(rust)
        assert bytes(theirs.remote_id().to_bytes()) == bytes(endpoint.id)

        send, recv = await ours.open_bi()
        await send.write(b"ping", finish=True)
        bi = await theirs.accept_bi()
        assert await bi.recv().read_to_end(100) == b"ping"
        await bi.send().write_all(b"pong")
        await bi.send().finish()
        assert await recv.read_to_end(100) == b"pong"
        assert await send.stopped() is None

        bi = await theirs.open_bi()
        await bi.send().write_all(b"from rust")
        await bi.send().finish()
        send, recv = await ours.accept_bi()
        assert await recv.read_to_end(100) == b"from rust"
        await send.write(b"to rust", finish=True)
        assert await bi.recv().read_to_end(100) == b"to rust"


async def test_it_dials_us_and_talks_both_ways() -> None:
    async with wheel.bind() as rust, binding(ALPN) as endpoint:
        dialling = asyncio.ensure_future(
            rust.connect(wheel.iroh_addr(endpoint.addr()), ALPN.encode())
        )
        ours = await endpoint.accept()
        assert ours is not None
        theirs = await dialling
        assert ours.remote_id == wheel.id_of(rust)
        assert ours.alpn == ALPN.encode()

        uni = await theirs.open_uni()
        await uni.write_all(b"one way")
        await uni.finish()
        recv = await ours.accept_uni()
        assert await recv.read_to_end(100) == b"one way"

        send = await ours.open_uni()
        await send.write(b"and back", finish=True)
        assert await (await theirs.accept_uni()).read_to_end(100) == b"and back"


async def test_many_of_its_dials_at_once_all_get_in() -> None:
    """More than one address may begin before it has to prove itself: it takes our Retry."""
    async with wheel.bind() as rust, binding(ALPN) as endpoint:
        addr = wheel.iroh_addr(endpoint.addr())
        dialling = [asyncio.ensure_future(rust.connect(addr, ALPN.encode())) for _ in range(60)]
        accepted = [await endpoint.accept() for _ in range(60)]
        theirs = await asyncio.gather(*dialling)
        assert len(theirs) == 60
        assert all(each is not None for each in accepted)
        assert endpoint._driver.demux.counts["retries"] > 0
        # No fewer; on a slow machine some have to make room while they are unfinished, and come again.
        assert endpoint._driver.demux.counts["incoming"] >= 60
        for each in theirs:
            each.close(0, b"")


async def test_it_acknowledges_no_number_that_was_left_out() -> None:
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
        theirs = await accepting
        send = await ours.open_uni()
        data = random_bytes(2_000_000, 5)
        writing = asyncio.ensure_future(send.write(data, finish=True))
        uni = await theirs.accept_uni()
        assert await uni.read_to_end(len(data)) == data
        await writing
        assert any(path.skips._numbers for path in ours._driver.core.paths.values())
        assert not ours.is_closed


@pytest.mark.parametrize("size", [1, 1000, 1150])
async def test_datagrams_both_ways(size: int) -> None:
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
        theirs = await accepting
        data = random_bytes(size, size)
        ours.send_datagram(data)
        assert await theirs.read_datagram() == data
        theirs.send_datagram(data)
        assert await ours.read_datagram() == data


@pytest.mark.slow
async def test_64_mib_to_it() -> None:
    data = random_bytes(SIZE, 1)
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
        theirs = await accepting
        send = await ours.open_uni()
        writing = asyncio.ensure_future(send.write(data, finish=True))
        size, digest = await read_hash(await theirs.accept_uni())
        await writing
        assert size == SIZE
        assert digest == hashlib.sha256(data).hexdigest()


@pytest.mark.slow
async def test_64_mib_from_it_across_its_key_update() -> None:
    data = random_bytes(SIZE, 2)
    async with wheel.bind() as rust, binding(ALPN) as endpoint:
        dialling = asyncio.ensure_future(
            rust.connect(wheel.iroh_addr(endpoint.addr()), ALPN.encode())
        )
        ours = await endpoint.accept()
        assert ours is not None
        theirs = await dialling

        async def write() -> None:
            uni = await theirs.open_uni()
            for at in range(0, SIZE, 1 << 20):
                await uni.write_all(data[at : at + (1 << 20)])
            await uni.finish()

        writing = asyncio.ensure_future(write())
        digest = hashlib.sha256()
        size = 0
        async for chunk in await ours.accept_uni():
            digest.update(chunk)
            size += len(chunk)
        await writing
        assert size == SIZE
        assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
        # iroh changes its keys after 10 to 1000 packets.
        assert ours.stats().key_updates >= 1


async def test_our_key_update_is_followed() -> None:
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
        theirs = await accepting
        for round_number in range(3):
            send, recv = await ours.open_bi()
            await send.write(b"x" * 5000, finish=True)
            bi = await theirs.accept_bi()
            assert len(await bi.recv().read_to_end(10_000)) == 5000
            await bi.send().write_all(b"y")
            await bi.send().finish()
            assert await recv.read_to_end(10) == b"y"
            assert ours.request_key_update(), round_number


@pytest.mark.parametrize("closer", ["us", "it"])
async def test_close_code_and_reason_arrive(closer: str) -> None:
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
        theirs = await accepting
        if closer == "us":
            ours.close(7, b"done")
            text = str(await theirs.closed())
            assert "done" in text
            assert "7" in text
        else:
            theirs.close(7, b"done")
            error = await ours.closed()
            assert isinstance(error, ConnectionClosedByPeer)
            assert (error.error_code, error.reason, error.is_application) == (7, b"done", True)


async def test_its_endpoint_close_is_seen_as_code_zero() -> None:
    async with binding() as endpoint:
        async with wheel.bind(ALPN) as rust:
            accepting = asyncio.ensure_future(wheel.accept(rust))
            ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
            await accepting
        error = await ours.closed()
        assert isinstance(error, ConnectionClosedByPeer)
        assert (error.error_code, error.reason) == (0, b"")


async def test_we_dial_a_wrong_id() -> None:
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        stranger = EndpointAddr(SecretKey.generate().id, wheel.addr_of(rust).addrs)
        with pytest.raises(WrongKey) as caught:
            await endpoint.connect(stranger, ALPN)
        assert caught.value.close_code == 0x130
        with pytest.raises(iroh.IrohError):
            await accepting


async def test_it_dials_a_wrong_id() -> None:
    async with wheel.bind() as rust, binding(ALPN) as endpoint:
        stranger = EndpointAddr(SecretKey.generate().id, endpoint.addr().addrs)
        with pytest.raises(iroh.IrohError):
            await rust.connect(wheel.iroh_addr(stranger), ALPN.encode())


async def test_wrong_alpn_both_ways() -> None:
    async with wheel.bind("other/1") as rust, binding("other/2") as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        with pytest.raises(AlpnMismatch) as caught:
            await endpoint.connect(wheel.addr_of(rust), ALPN)
        assert caught.value.close_code == 0x178
        with pytest.raises(iroh.IrohError):
            await accepting
        with pytest.raises(iroh.IrohError):
            await rust.connect(wheel.iroh_addr(endpoint.addr()), ALPN.encode())


async def test_reset_and_stop_codes() -> None:
    async with wheel.bind(ALPN) as rust, binding() as endpoint:
        accepting = asyncio.ensure_future(wheel.accept(rust))
        ours = await endpoint.connect(wheel.addr_of(rust), ALPN)
        theirs = await accepting
        send, recv = await ours.open_bi()
        await send.write(b"begin")
        bi = await theirs.accept_bi()
        await bi.recv().stop(33)
        assert await send.stopped() == 33
        await bi.send().reset(44)
        with pytest.raises(Exception, match="44"):
            await recv.read()
