"""Address lookups: we are published, others are found, changes are followed, and a dial ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from endpoints import ALPN, in_memory, network, seconds, virtual

from dialkey import (
    Endpoint,
    EndpointAddr,
    EndpointInfo,
    LookupAnswer,
    MemoryDirectory,
    SecretKey,
)
from dialkey.errors import InvalidInput, ResolveError
from dialkey.identity import EndpointId, IpAddr
from dialkey.testing import MemoryNetwork
from dialkey.testing.network import address_of

STRANGER = SecretKey(bytes(range(32))).id


class Recorder:
    """A lookup that remembers what it was told; it may fail or be slow."""

    name = "recorder"

    def __init__(self, *, fails: int = 0, delay_s: float = 0.0) -> None:
        self.told: list[tuple[float, EndpointInfo]] = []
        self.fails = fails
        self.delay_s = delay_s
        self.closed = False

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        for each in ():
            yield each

    async def publish(self, info: EndpointInfo) -> None:
        await asyncio.sleep(self.delay_s)
        if self.fails:
            self.fails -= 1
            raise OSError("the server is away")
        self.told.append((seconds(), info))

    async def close(self) -> None:
        self.closed = True


class Answers(Recorder):
    """A lookup that cannot watch, and says what is in `known` now."""

    name = "answers"

    def __init__(self, *known: LookupAnswer, delay_s: float = 0.0) -> None:
        super().__init__()
        self.known = list(known)
        self.pause_s = delay_s
        self.asked: list[float] = []

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        self.asked.append(seconds())
        await asyncio.sleep(self.pause_s)
        for each in list(self.known):
            yield each


class Broken(Recorder):
    name = "broken"

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        for each in ():
            yield each
        raise OSError("no route to the server")


class Silent(Recorder):
    name = "silent"

    async def resolve(self, id: EndpointId) -> AsyncGenerator[LookupAnswer, None]:
        await asyncio.Event().wait()
        for each in ():
            yield each


def answer(id: EndpointId, *names: str) -> LookupAnswer:
    return LookupAnswer(EndpointInfo(EndpointAddr(id, map(address_of, names))))


# --- publishing ---------------------------------------------------------------------------------


@virtual
async def test_what_we_are_is_published_at_once_and_whenever_it_changes() -> None:
    recorder = Recorder()
    net = network()
    transport = net.transport("here")
    async with in_memory(net, address_lookups=[recorder]) as nobody:
        await asyncio.sleep(1)
        assert recorder.told == [], "nothing to say: no address and no user data"
        nobody.set_user_data("a sensor")
        await asyncio.sleep(0.1)
        assert [each.user_data for _, each in recorder.told] == ["a sensor"]
    recorder = Recorder()
    async with Endpoint.bind(
        transports=[transport], address_lookups=[recorder], entry_points=False, user_data="one"
    ) as endpoint:
        await asyncio.sleep(0.1)
        assert recorder.told[0][1] == endpoint.info() == EndpointInfo(endpoint.addr(), "one")
        transport.move_to("there", announce=True)
        await asyncio.sleep(0.1)
        assert recorder.told[-1][1].addr.addrs == (address_of("there"),)
        endpoint.set_user_data("two")
        await asyncio.sleep(0.1)
        assert recorder.told[-1][1].user_data == "two"
        count = len(recorder.told)
        endpoint.network_changed()
        endpoint.set_user_data("two")
        await asyncio.sleep(10)
        assert len(recorder.told) == count, "nothing has changed"
        with pytest.raises(InvalidInput, match="245 bytes"):
            endpoint.set_user_data("é" * 123)
    assert recorder.closed


@virtual
async def test_a_slow_or_broken_lookup_delays_no_other_and_gets_the_newest() -> None:
    slow, broken, good = Recorder(delay_s=5), Recorder(fails=1), Recorder()
    slow.name, broken.name = "slow", "broken"
    async with in_memory(network(), "here", address_lookups=[slow, broken, good]) as endpoint:
        await asyncio.sleep(1)
        assert len(good.told) == 1
        assert endpoint.lookup_troubles() == {"broken": "the server is away"}
        for text in "abc":
            endpoint.set_user_data(text)
        await asyncio.sleep(20)
        assert [each.user_data for _, each in slow.told] == [None, "c"]
        assert [each.user_data for _, each in broken.told] == ["c"]
        assert endpoint.lookup_troubles() == {}


@virtual
async def test_closing_waits_for_no_lookup_that_publishes() -> None:
    slow = Recorder(delay_s=1000)
    async with in_memory(network(), "here", address_lookups=[slow]):
        await asyncio.sleep(0.1)
    assert seconds() < 1
    assert slow.closed


# --- finding ------------------------------------------------------------------------------------


@virtual
async def test_two_find_each_other_in_the_directory_of_their_network() -> None:
    net = network()
    async with (
        in_memory(net, "alice", address_lookups=[net.lookup()]) as alice,
        in_memory(net, "bob", alpns=[ALPN], address_lookups=[net.lookup()]) as bob,
    ):
        await asyncio.sleep(0)
        connection = await alice.connect(bob.id, ALPN)
        assert connection.remote_id == bob.id
        assert net.directory.get(bob.id) == bob.info()
    assert net.directory.get(bob.id) is None, "whoever is gone is not found"


@virtual
async def test_who_published_again_elsewhere_is_not_forgotten_when_the_old_one_closes() -> None:
    directory = MemoryDirectory()
    old, new = directory.lookup(), directory.lookup()
    info = EndpointInfo(EndpointAddr(STRANGER, [address_of("here")]))
    await old.publish(info)
    await new.publish(info)
    await old.close()
    assert directory.get(STRANGER) == info
    await new.close()
    await new.close()
    assert directory.get(STRANGER) is None


@virtual
async def test_every_answer_carries_its_source_and_its_age() -> None:
    directory = MemoryDirectory()
    bob = directory.lookup()
    await bob.publish(EndpointInfo(EndpointAddr(STRANGER, [address_of("bob")]), "hello"))
    elsewhere = LookupAnswer(answer(STRANGER, "x").info, source="dns.example")
    lookups = [directory.lookup(), Answers(elsewhere, delay_s=0.5), Broken(), Silent()]
    async with in_memory(network(), "alice", address_lookups=lookups) as alice:
        reports = {each.lookup: each for each in await alice.look_up(STRANGER, timeout=3)}
    (found,) = reports["memory"].answers
    assert found.source == "memory"
    assert found.info.user_data == "hello"
    assert found.updated_at is not None
    assert found.age_s(found.updated_at + 7) == pytest.approx(7)
    (found,) = reports["answers"].answers
    assert (found.source, found.updated_at, found.age_s(1.0)) == ("dns.example", None, None)
    assert reports["answers"].took_s == pytest.approx(0.5)
    assert reports["broken"].error == "no route to the server"
    assert not reports["silent"].is_done
    assert str(reports["silent"]) == "silent: no answer (3.0 s)"
    assert str(reports["static"]) == "static: does not know it (0.0 s)"


@virtual
async def test_an_answer_for_another_endpoint_is_ignored() -> None:
    other = SecretKey(b"\x05" * 32).id
    lookup = Answers(answer(other, "bob"))
    async with in_memory(network(), "alice", address_lookups=[lookup]) as alice:
        with pytest.raises(ResolveError):
            await alice.connect(STRANGER, ALPN)


@virtual
async def test_a_record_that_changes_during_a_dial_is_followed() -> None:
    """One lookup says so itself, one is asked again."""
    for watches in (True, False):
        net = MemoryNetwork()
        started = seconds()
        directory = MemoryDirectory()
        async with in_memory(net, "bob", alpns=[ALPN]) as bob:
            stale = answer(bob.id, "where bob was")
            asked = Answers(stale)
            told = directory.lookup()
            await told.publish(stale.info)
            lookup = directory.lookup() if watches else asked
            async with in_memory(net, "alice", address_lookups=[lookup]) as alice:
                dialling = asyncio.create_task(alice.connect(bob.id, ALPN))
                await asyncio.sleep(3)
                assert not dialling.done()
                asked.known = [answer(bob.id, "bob")]
                await told.publish(asked.known[0].info)
                await dialling
                assert seconds() - started < (3.5 if watches else 8)


# --- the end of a dial --------------------------------------------------------------------------


@virtual
async def test_a_dial_of_an_unknown_id_ends_after_ten_seconds_with_what_each_lookup_said() -> None:
    lookups = [Silent(), Broken(), MemoryDirectory().lookup()]
    async with in_memory(network(), "alice", address_lookups=lookups) as alice:
        started = seconds()
        with pytest.raises(ResolveError) as caught:
            await alice.connect(STRANGER, ALPN)
        assert seconds() - started == pytest.approx(10)
    text = str(caught.value)
    assert "lookup silent: no answer (10.0 s)" in text
    assert "lookup broken: no route to the server (0.0 s)" in text
    assert "lookup memory: does not know it (0.0 s)" in text


@virtual
async def test_a_dial_ends_at_once_when_every_lookup_fails_at_once() -> None:
    """As on a machine that is offline."""
    async with in_memory(network(), "alice", address_lookups=[Broken()]) as alice:
        started = seconds()
        with pytest.raises(ResolveError, match="no route to the server"):
            await alice.connect(STRANGER, ALPN)
        assert seconds() == started


async def _first_byte(dead: int, seed: int) -> float:
    """Return how long a dial by id takes until the first byte is back, with so many dead addresses."""
    net = network(seed, delay_s=0.02)
    directory = MemoryDirectory()
    names = [IpAddr.parse(f"10.9.{n}.1:{n + 1}") for n in range(dead)]
    good = IpAddr.parse("10.200.0.1:1")
    async with (
        in_memory(net, IpAddr.parse("10.0.0.1:1"), address_lookups=[directory.lookup()]) as alice,
        in_memory(net, good, alpns=[ALPN]) as bob,
    ):
        for number, each in enumerate(names):
            if number % 2:
                net.refuse(each, "no route to host")
        await directory.lookup().publish(EndpointInfo(EndpointAddr(bob.id, [*names, good])))
        started = seconds()
        connection = await alice.connect(bob.id, ALPN)
        send, recv = await connection.open_bi()
        await send.write(b"?")
        there = await bob.accept()
        assert there is not None
        their_send, their_recv = await there.accept_bi()
        assert await their_recv.read_exactly(1) == b"?"
        await their_send.write(b"!")
        assert await recv.read_exactly(1) == b"!"
        return seconds() - started


@virtual
async def test_one_good_address_among_32_dead_ones_is_as_fast_as_alone() -> None:
    for seed in range(5):
        alone = await _first_byte(0, seed)
        among = await _first_byte(32, seed)
        assert among <= 1.2 * alone


@virtual
async def test_an_address_that_comes_after_all_places_are_taken_is_tried() -> None:
    net = network()
    async with in_memory(net, "bob", alpns=[ALPN]) as bob:
        lookup = Answers(answer(bob.id, *(f"dead {n}" for n in range(200))))
        async with in_memory(net, "alice", address_lookups=[lookup]) as alice:
            dialling = asyncio.create_task(alice.connect(bob.id, ALPN))
            await asyncio.sleep(1.5)
            lookup.known = [answer(bob.id, "bob")]
            await dialling
            assert seconds() < 3
