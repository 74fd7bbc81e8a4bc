"""Which path a connection uses, what is told of it, and how a bad one is left and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from endpoints import ALPN, connect, virtual
from two_ways import HERE, THERE, ViaRelay, World

from dialkey import Connection, hookimpl
from dialkey.endpoint import path_manager, path_policy
from dialkey.endpoint.paths import (
    MAX_PENDING_PATH_EVENTS,
    PathClosed,
    PathDemoted,
    PathEvent,
    PathInfo,
    PathOpened,
    PathSelected,
)
from dialkey.endpoint.selection import DirectFirst
from dialkey.event_queue import EventQueue, Lagged
from dialkey.identity import IpAddr
from dialkey.network.transport import PathAddress
from dialkey.quic import codes
from dialkey.quic.paths.path import HUSH_S
from dialkey.testing import Conditions

RELAY = ViaRelay("bob")


@contextlib.asynccontextmanager
async def joined(
    world: World, alice: dict[str, object] | None = None
) -> AsyncIterator[tuple[Connection, Connection]]:
    async with (
        world.bind(HERE, "alice", **(alice or {})) as one,
        world.bind(THERE, "bob", alpns=[ALPN]) as other,
    ):
        yield await connect(one, other)


def selected(connection: Connection) -> PathAddress:
    return connection.paths()[0].remote


def info(
    remote: PathAddress = THERE,
    rtt_ms: float = 10,
    *,
    kind: str = "direct",
    is_selected: bool = False,
) -> PathInfo:
    return PathInfo(
        id=0,
        remote=remote,
        kind=kind,
        is_selected=is_selected,
        state="usable",
        rtt_s=rtt_ms / 1000,
        lost_packets=0,
        sent_packets=0,
        sent_bytes=0,
        received_bytes=0,
        mtu_bytes=1200,
        congestion_window_bytes=12_000,
    )


# --- the rule ----------------------------------------------------------------------------------------

V4, V6 = IpAddr.parse("10.0.0.2:1"), IpAddr.parse("[2001:db8::2]:1")


@pytest.mark.parametrize(
    ("paths", "best"),
    [
        # Direct, however slow, before a relay, whichever is in use.
        ([info(rtt_ms=300), info(RELAY, 5, kind="relay", is_selected=True)], 0),
        ([info(rtt_ms=300, is_selected=True), info(RELAY, 5, kind="relay")], 0),
        # Without any in use: the faster one.
        ([info(V4, 20), info(V4, 10)], 1),
        # IPv6 may be slower by up to 3 ms.
        ([info(V4, 10), info(V6, 12.9)], 1),
        ([info(V4, 10), info(V6, 13.1)], 0),
        # A path of the same kind is left only for one that is 5 ms faster.
        ([info(V4, 14.9, is_selected=True), info(V4, 10)], 0),
        ([info(V4, 15.1, is_selected=True), info(V4, 10)], 1),
        ([info(V6, 17.9, is_selected=True), info(V4, 10)], 0),
        ([info(V6, 18.1, is_selected=True), info(V4, 10)], 1),
        ([info(V4, 11.9, is_selected=True), info(V6, 10)], 0),
        ([info(V4, 12.1, is_selected=True), info(V6, 10)], 1),
        # Relays among each other alike.
        ([info(RELAY, 30, kind="relay", is_selected=True), info(RELAY, 24, kind="relay")], 1),
        ([info(RELAY, 30, kind="relay", is_selected=True), info(RELAY, 26, kind="relay")], 0),
    ],
)
def test_direct_first_then_by_round_trip_time_with_hysteresis(
    paths: list[PathInfo], best: int
) -> None:
    assert DirectFirst().select(paths) is paths[best]
    assert DirectFirst().select(paths[::-1]) is paths[best]


def test_two_nearly_equal_paths_do_not_take_turns() -> None:
    rule, current, changes = DirectFirst(), 0, 0
    for tick in range(100):
        rtts = [10 + 2 * (tick % 3), 10 + 2 * ((tick + 1) % 3)]
        paths = [info(V4, rtt, is_selected=i == current) for i, rtt in enumerate(rtts)]
        chosen = rule.select(paths)
        changes += chosen is not paths[current]
        current = next(i for i, path in enumerate(paths) if path is chosen)
    assert changes == 0


class RelayFirst:
    """A plugin's own rule."""

    def __init__(self) -> None:
        self.asked = 0

    def select(self, paths: Sequence[PathInfo]) -> PathInfo | None:
        self.asked += 1
        return min(paths, key=lambda path: path.kind != "relay")

    @hookimpl
    def dialkey_path_selector(self) -> object:
        return self


class Broken(RelayFirst):
    def select(self, paths: Sequence[PathInfo]) -> PathInfo | None:
        raise ZeroDivisionError("a bug in a plugin")


class Undecided(RelayFirst):
    def select(self, paths: Sequence[PathInfo]) -> PathInfo | None:
        return None if self.asked else info()


@virtual
async def test_a_plugin_replaces_the_rule() -> None:
    rule = RelayFirst()
    world = World(1, relayed=True)
    async with joined(world, {"plugins": [rule]}) as (here, there):
        await asyncio.sleep(5)
        assert rule.asked
        assert selected(here) == RELAY
        assert selected(there) == HERE, "each side decides alone"
        server = there._driver.core.paths
        assert [path.cids.peer_available for path in server.values()] == [False, True], "and tells"


@virtual
async def test_a_plugin_that_fails_costs_no_connection() -> None:
    async with joined(World(1, relayed=True), {"plugins": [Broken()]}) as (here, there):
        await asyncio.sleep(5)
        assert selected(here) == THERE
        assert not there.is_closed
        failures = here.endpoint.plugins.failures()
        assert failures["Broken", "dialkey_path_selector"] > 0


@virtual
async def test_a_plugin_that_names_no_path_of_ours_changes_nothing() -> None:
    async with joined(World(1, relayed=True), {"plugins": [Undecided()]}) as (here, _):
        await asyncio.sleep(5)
        assert selected(here) == THERE


# --- leaving and coming back --------------------------------------------------------------------------


async def talk(here: Connection, seconds: float) -> None:
    """Send something from here all the time."""
    send = await here.open_uni()
    for _ in range(int(seconds / 0.1)):
        await send.write(b"x")
        await asyncio.sleep(0.1)
    send.reset(0)


async def selection(events: AsyncIterator[PathEvent], kind: str) -> None:
    """Wait until a path of this kind is selected."""
    async for event in events:
        if isinstance(event, PathSelected) and event.path.kind == kind:
            return


@virtual
async def test_a_path_that_died_comes_back_by_itself() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, there):
        await asyncio.sleep(5)
        world.first.down()
        await talk(here, 3)
        assert selected(here) == RELAY
        # For as long as it may take: its path is abandoned meanwhile, and opened anew.
        await talk(here, 60)
        assert selected(here) == RELAY
        world.first.up()
        await talk(here, 61)
        assert selected(here) == THERE
        await talk(there, 3)
        assert selected(there) == HERE


@virtual
async def test_a_path_that_was_dark_for_a_moment_is_back_within_seconds() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, _):
        await asyncio.sleep(5)
        world.first.down()
        await talk(here, 2)
        assert selected(here) == RELAY
        world.first.up()
        await talk(here, 4)
        assert selected(here) == THERE


@virtual
async def test_a_flapping_path_is_kept_away_for_twice_as_long_each_time() -> None:
    """It works for a second whenever it is used: each failure doubles the time until the next chance."""
    world = World(1, relayed=True)
    async with joined(world) as (here, _):
        await asyncio.sleep(5)
        away: list[float] = []
        loop = asyncio.get_running_loop()
        talking = asyncio.create_task(talk(here, 400))
        changes = here.path_events()
        for _ in range(6):
            world.first.down()
            await selection(changes, "relay")
            left = loop.time()
            world.first.up()
            await selection(changes, "direct")
            away.append(loop.time() - left)
        await changes.aclose()  # type: ignore[attr-defined]
        talking.cancel()
        for number, seconds in enumerate(away):
            pause = path_policy.QUARANTINE_FIRST_S * 2**number
            assert pause <= seconds + 0.1 < pause + 3, away


@virtual
async def test_the_quarantine_is_forgotten_after_good_behaviour() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, _):
        await asyncio.sleep(5)
        for _ in range(3):
            world.first.down()
            await talk(here, 2)
            world.first.up()
            await talk(here, 15)
        assert selected(here) == THERE
        await asyncio.sleep(path_policy.QUARANTINE_FORGET_S)
        world.first.down()
        await talk(here, 2)
        world.first.up()
        await talk(here, 4)
        assert selected(here) == THERE


@virtual
async def test_with_everything_dark_all_known_ways_are_tried_until_one_works() -> None:
    """No back-off of half a minute when there is nothing else."""
    world = World(1, relayed=False)
    async with joined(world) as (here, there):
        await asyncio.sleep(60)
        world.first.down()
        world.second.down()
        talking = asyncio.create_task(talk(here, 40))
        await asyncio.sleep(20)
        assert not here.is_closed
        world.second.up()
        await asyncio.sleep(3)
        assert selected(here) != THERE
        assert there.stats().received_bytes
        await talking
        assert not there.is_closed


@virtual
async def test_attempts_over_dead_ways_use_up_no_path_ids() -> None:
    world = World(1, relayed=True)
    world.first.down()
    async with joined(world) as (here, _):
        assert selected(here) == RELAY
        await asyncio.sleep(600)
        state = here._driver.core.paths.multipath
        assert state is not None
        assert state.next_id == 2
        assert [path.remote for path in here.paths()] == [RELAY]
        world.first.up()
        await asyncio.sleep(61)
        assert selected(here) == THERE
        assert state.next_id == 2


@virtual
async def test_a_path_that_the_peer_gave_up_without_being_heard() -> None:
    """The client goes on using it: that is no reason for a stateless reset, and it finds another."""
    world = World(1, relayed=True)
    async with joined(world) as (here, there):
        await asyncio.sleep(5)
        world.net.one_way(THERE, HERE).down()
        relay = next(
            path for path in there._driver.core.paths.values() if path.remote == ViaRelay("alice")
        )
        assert there._driver.core.paths.abandon(
            relay, codes.APPLICATION_ABANDON_PATH, there.endpoint._driver.now()
        )
        await talk(here, 10)
        assert not here.is_closed
        assert not there.is_closed
        recv = await there.accept_uni()
        send = await here.open_uni()
        await send.write(b"still here", finish=True)
        recv = await there.accept_uni()
        assert await recv.read_to_end(10) == b"still here"
        assert selected(here) == RELAY
        world.net.one_way(THERE, HERE).up()
        await asyncio.sleep(70)
        assert sum(path.remote == RELAY for path in here.paths()) == 1
        assert selected(here) == THERE


# --- the first flight ----------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [True, False], ids=["nothing gets out", "nothing comes back"])
@pytest.mark.parametrize("relayed", [True, False])
def test_the_first_flight_takes_every_known_way(up: bool, relayed: bool) -> None:
    """One of them carries nothing in one direction; the dial does not wait for it."""

    @virtual
    async def scenario() -> None:
        world = World(1, relayed=relayed)
        world.net.one_way(*((HERE, THERE) if up else (THERE, HERE))).down()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with joined(world) as (here, there):
            assert loop.time() - begin < 0.2
            assert selected(here) != THERE
            await talk(here, 1)
            await talk(there, 1)
            assert there.stats().received_bytes > 1000

    scenario()


@virtual
async def test_nobody_looks_at_paths_without_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that takes long is not looked at again and again, on either side."""
    counts = {True: 0, False: 0}
    update = path_manager.PathManager.update

    def counted(manager: path_manager.PathManager) -> None:
        counts[manager._core.is_client] += 1
        update(manager)

    monkeypatch.setattr(path_manager.PathManager, "update", counted)
    world = World(1, relayed=True)
    async with joined(world):
        await asyncio.sleep(5)
        world.second.down()
        await asyncio.sleep(35)
        world.net.one_way(ViaRelay("alice"), RELAY).up()  # type: ignore[arg-type]
        await asyncio.sleep(120)
        assert max(counts.values()) < 100, counts


@virtual
async def test_a_relay_path_may_be_silent_for_longer() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, there):
        await asyncio.sleep(5)
        world.second.down()
        await asyncio.sleep(24)
        assert [path.kind for path in here.paths()] == ["direct", "relay"]
        await asyncio.sleep(7)
        for side in (here, there):
            usable = [path.kind for path in side.paths() if path.state != "validating"]
            assert usable == ["direct"]
        # Attempts are made at longer and longer intervals, and cost little.
        up = world.net.one_way(ViaRelay("alice"), RELAY)  # type: ignore[arg-type]
        before = up.sent
        await asyncio.sleep(600)
        assert 10 < up.sent - before < 250
        world.second.up()
        await asyncio.sleep(71)
        for side in (here, there):
            assert [path.kind for path in side.paths()] == ["direct", "relay"]


# --- a client that only receives ----------------------------------------------------------------------


@pytest.mark.parametrize("relayed", [True, False])
def test_a_client_that_only_receives_leaves_a_dark_path(relayed: bool) -> None:
    @virtual
    async def scenario() -> None:
        world = World(1, relayed=relayed)
        async with joined(world) as (here, there):
            await asyncio.sleep(5)
            talking = asyncio.create_task(talk(there, 20))
            recv = await here.accept_uni()
            for _ in range(20):
                await recv.read(10)
            world.first.down()
            loop = asyncio.get_running_loop()
            last, longest = loop.time(), 0.0
            for _ in range(60):
                await recv.read(10)
                longest = max(longest, loop.time() - last)
                last = loop.time()
            assert longest < 2
            assert selected(here) != THERE
            talking.cancel()
            await asyncio.wait([talking])

    scenario()


@virtual
async def test_a_client_asks_once_when_data_stops_and_not_for_ever() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, there):
        await asyncio.sleep(5)
        send = await there.open_uni()
        await send.write(b"some")
        recv = await here.accept_uni()
        await recv.read(4)
        up = world.net.one_way(HERE, THERE)
        await asyncio.sleep(HUSH_S - 0.1)
        before = up.sent
        await asyncio.sleep(0.3)
        assert up.sent == before + 1, "the stream is open and silent: is the path still there?"
        await asyncio.sleep(60)
        # From then on keep-alives of both sides only.
        assert up.sent - before < 30


@virtual
async def test_a_client_whose_streams_are_over_asks_nothing() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, there):
        await asyncio.sleep(5)
        send = await there.open_uni()
        await send.write(b"all", finish=True)
        recv = await here.accept_uni()
        assert await recv.read_to_end(10) == b"all"
        up = world.net.one_way(HERE, THERE)
        await asyncio.sleep(0.2)
        before = up.sent
        await asyncio.sleep(3)
        assert up.sent == before


# --- what is told --------------------------------------------------------------------------------------


@virtual
async def test_paths_tell_kind_address_times_and_bytes() -> None:
    world = World(1, relayed=True, delay_s=0.05)
    async with joined(world) as (here, there):
        await asyncio.sleep(5)
        await talk(here, 2)
        await asyncio.sleep(1)
        direct, relay = here.paths()
        assert (direct.kind, direct.remote, direct.is_selected) == ("direct", THERE, True)
        assert (relay.kind, relay.remote, relay.is_selected) == ("relay", RELAY, False)
        assert (direct.state, relay.state) == ("usable", "usable")
        assert direct.rtt_s == pytest.approx(0.1, rel=0.1)
        assert relay.rtt_s == pytest.approx(0.17, rel=0.15)
        stats = here.stats()
        carried = direct.sent_bytes + relay.sent_bytes
        assert 0 < stats.sent_bytes - carried < 5000, "all but the handshake"
        assert direct.received_bytes == there.paths()[0].sent_bytes
        assert direct.lost_packets + relay.lost_packets == stats.lost_packets
        assert stats.rtt_s == direct.rtt_s
        world.first.set(Conditions(delay_s=0.05, loss=0.5))
        await talk(here, 2)
        assert here.stats().lost_packets > 0


@virtual
async def test_path_events_in_their_order() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, _):
        seen: list[PathEvent] = []

        async def follow() -> None:
            async for event in here.path_events():
                seen.append(event)

        following = asyncio.create_task(follow())
        await asyncio.sleep(5)
        world.first.down()
        await talk(here, 30)
        here.close()
        await following
        told = [(type(event), event.path.kind) for event in seen if not isinstance(event, Lagged)]
        assert told == [
            (PathOpened, "direct"),
            (PathOpened, "relay"),
            (PathDemoted, "direct"),
            (PathSelected, "relay"),
            (PathClosed, "direct"),
            (PathClosed, "relay"),
        ]
        chosen = next(event for event in seen if isinstance(event, PathSelected))
        assert chosen.previous == THERE


@virtual
async def test_a_reader_that_lags_is_told_how_much_it_missed() -> None:
    reader = EventQueue[PathEvent](MAX_PENDING_PATH_EVENTS)
    for number in range(MAX_PENDING_PATH_EVENTS + 10):
        reader.put(PathOpened(info(rtt_ms=number)))
    events = aiter(reader)
    assert await anext(events) == Lagged(10)
    first = await anext(events)
    assert isinstance(first, PathOpened)
    assert first.path.rtt_s == 0.010
    for _ in range(MAX_PENDING_PATH_EVENTS - 1):
        assert isinstance(await anext(events), PathOpened)
    reader.end()
    with pytest.raises(StopAsyncIteration):
        await anext(events)


@virtual
async def test_a_lagging_reader_of_a_connection_holds_little() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, _):
        events = aiter(here.path_events())
        assert isinstance(await anext(events), PathOpened)
        for number in range(500):
            here._driver._emit_path(PathOpened(info(rtt_ms=number)))
        (reader,) = here._driver._path_readers
        assert len(reader._events) == MAX_PENDING_PATH_EVENTS
        event = await anext(events)
        assert isinstance(event, Lagged)
        assert event.missed >= 500 - MAX_PENDING_PATH_EVENTS
        await events.aclose()  # type: ignore[attr-defined]


# --- limits --------------------------------------------------------------------------------------------


@virtual
async def test_a_client_that_moves_without_end_leaves_no_trace() -> None:
    world = World(1, relayed=True)
    async with joined(world) as (here, there):
        await asyncio.sleep(5)
        transport = here.endpoint.transports[0]
        # One stream for all of it: nobody accepts them, and the peer allows a hundred.
        send = await here.open_uni()
        for number in range(300):
            transport.move_to(IpAddr.parse(f"10.0.1.{number % 250}:{number + 1000}"))  # type: ignore[attr-defined]
            for _ in range(3):
                await send.write(b"x")
                await asyncio.sleep(0.1)
        manager = there._driver.path_manager
        assert manager is not None
        assert len(manager._policy._records) <= path_policy.MAX_RECORDS + 8
        demux = there.endpoint._driver.demux
        await asyncio.sleep(5)
        assert len(demux._reset_tokens) <= 10
        assert len(demux._by_cid) <= 60
        assert not there.is_closed
