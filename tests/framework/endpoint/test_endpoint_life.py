"""Endpoints from bind to close: accepting, closing at any moment, limits on strangers, survival."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import socket
import warnings
from pathlib import Path

import pytest
from endpoints import (
    ALPN,
    connect,
    connected,
    in_memory,
    network,
    on_loopback,
    seconds,
    stream,
    two,
    virtual,
)
from quic_pair import Pair

from dialkey import Endpoint, EndpointAddr, NetworkChanged, SecretKey, hookimpl
from dialkey.endpoint import paths as endpoint_paths
from dialkey.errors import (
    BindError,
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionLost,
    EndpointClosed,
    LocalError,
    PluginError,
)
from dialkey.identity import IpAddr
from dialkey.quic import stateless
from dialkey.testing.network import address_of

KEY = SecretKey(bytes(range(32)))


# --- binding and closing --------------------------------------------------------------------------


@virtual
async def test_bind_can_be_awaited_or_entered() -> None:
    net = network()
    endpoint = await in_memory(net, "alice", secret_key=KEY)
    assert endpoint.id == KEY.id
    assert endpoint.addr().addrs == (address_of("alice"),)
    assert endpoint.ticket().addr == endpoint.addr()
    assert str(KEY.id.short()) in repr(endpoint)
    await endpoint.close()
    async with endpoint:
        """Entering it again changes nothing; it is closed."""
    async with in_memory(net, "alice") as again:
        assert again.id != KEY.id


@virtual
async def test_a_binding_is_for_once() -> None:
    binding = in_memory(network(), "alice")
    endpoint = await binding
    with pytest.raises(LocalError, match="bound already"):
        await binding
    await endpoint.close()


@virtual
async def test_close_tells_all_peers_and_is_idempotent() -> None:
    async with two(network()) as (alice, bob):
        pairs = [await connect(alice, bob) for _ in range(5)]
        closing = [asyncio.create_task(bob.close()) for _ in range(3)]
        await asyncio.wait(closing)
        assert seconds() < 1, "peers that answer are not waited for any longer"
        for here, there in pairs:
            error = await here.closed()
            assert isinstance(error, ConnectionClosedByPeer)
            assert (error.error_code, error.reason) == (0, b"")
            assert isinstance(await there.closed(), ConnectionClosed)
        assert not bob.connections
        assert await bob.accept() is None
        with pytest.raises(EndpointClosed):
            await bob.connect(alice.addr(), ALPN)


@virtual
async def test_close_does_not_wait_long_for_a_peer_that_is_gone() -> None:
    net = network()
    async with two(net) as (alice, bob):
        await connect(alice, bob)
        net.link("alice", "bob").down()
        begin = seconds()
        await alice.close()
        assert seconds() - begin <= 3.1


@virtual
async def test_everybody_who_waits_is_woken_by_close() -> None:
    async with two(network()) as (alice, bob):
        here, there = await connect(alice, bob)
        send, recv, *_theirs = await stream(here, there)
        for _ in range(99):
            await here.open_bi()
        waiting = {
            "accept": asyncio.create_task(alice.accept()),
            "accept_bi": asyncio.create_task(here.accept_bi()),
            "accept_uni": asyncio.create_task(here.accept_uni()),
            "open": asyncio.create_task(here.open_bi()),
            "read": asyncio.create_task(recv.read()),
            "write": asyncio.create_task(send.write(bytes(10_000_000))),
            "datagram": asyncio.create_task(here.read_datagram()),
            "closed": asyncio.create_task(here.closed()),
        }
        await asyncio.sleep(1)
        assert not any(task.done() for task in waiting.values())
        await alice.close()
        await asyncio.wait(waiting.values(), timeout=1)
        assert waiting.pop("accept").result() is None
        assert isinstance(waiting.pop("closed").result(), ConnectionClosed)
        for name, task in waiting.items():
            assert isinstance(task.exception(), ConnectionClosed), name
        errors = [task.exception() for task in waiting.values()]
        assert len(set(map(id, errors))) == len(errors), "a shared exception collects tracebacks"


@virtual
async def test_a_cancelled_close_goes_on() -> None:
    net = network()
    async with two(net) as (alice, bob):
        await connect(alice, bob)
        net.link("alice", "bob").down()
        closing = asyncio.create_task(alice.close())
        await asyncio.sleep(0.1)
        closing.cancel()
        await asyncio.wait([closing])
        await asyncio.sleep(5)
        assert repr(alice).endswith("closed>")
        net.transport("alice")
        async with in_memory(net, "alice"):
            """The address is free again."""


@virtual
async def test_leaving_with_an_exception_closes_too() -> None:
    net = network()
    here = None

    async def fail() -> None:
        nonlocal here
        async with two(net) as (alice, bob):
            here, _ = await connect(alice, bob)
            raise KeyError("x")

    with pytest.raises(KeyError):
        await fail()
    assert here is not None
    assert here.is_closed


@virtual
async def test_a_connection_closes_when_its_context_ends() -> None:
    async with two(network()) as (alice, bob):
        async with await alice.connect(bob.addr(), ALPN) as here:
            there = await bob.accept()
            assert there is not None
            assert not here.is_closed
        assert here.is_closed
        assert isinstance(await there.closed(), ConnectionClosedByPeer)


class FailsToStart:
    @hookimpl
    async def dialkey_endpoint_started(self, endpoint: Endpoint) -> None:
        raise RuntimeError("no")


@virtual
async def test_a_start_that_fails_half_way_frees_what_it_took() -> None:
    net = network()
    with pytest.raises(PluginError, match="FailsToStart"):
        await in_memory(net, "alice", plugins=[FailsToStart()])
    async with in_memory(net, "alice") as alice:
        with pytest.raises(BindError, match="taken"):
            await in_memory(net, "bob", "alice")
        async with in_memory(net, "bob"):
            assert alice.addr()


# --- accepting -------------------------------------------------------------------------------------


@virtual
async def test_accepting_in_a_loop_ends_with_the_endpoint() -> None:
    async with two(network()) as (alice, bob):
        got = []

        async def accept() -> None:
            async for connection in bob:
                got.append(connection.remote_id)

        accepting = asyncio.create_task(accept())
        for _ in range(3):
            await alice.connect(bob.addr(), ALPN)
        await asyncio.sleep(1)
        await bob.close()
        await accepting
        assert got == [alice.id] * 3


@virtual
async def test_a_cancelled_accept_loses_no_connection() -> None:
    async with two(network()) as (alice, bob):
        accepting = [asyncio.create_task(bob.accept()) for _ in range(3)]
        await asyncio.sleep(0.1)
        dialling = asyncio.create_task(alice.connect(bob.addr(), ALPN))
        await asyncio.sleep(0.03)
        for task in accepting[:2]:
            task.cancel()
        await dialling
        connections = [
            task.result()
            for task in (await asyncio.wait(accepting, timeout=1))[0]
            if not task.cancelled()
        ]
        if not connections:
            connections = [await bob.accept()]
        assert len(connections) == 1
        accepting[2].cancel()


@virtual
async def test_connections_that_nobody_accepts_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    from dialkey import limits

    monkeypatch.setattr(limits, "MAX_PENDING_ACCEPTS", 3)
    async with two(network()) as (alice, bob):
        good = [await alice.connect(bob.addr(), ALPN) for _ in range(3)]
        # The fourth is not told off: it goes on knocking, and is let in when there is room again.
        late = asyncio.create_task(alice.connect(bob.addr(), ALPN))
        await asyncio.sleep(5)
        assert not late.done()
        assert bob._driver.demux.counts["dropped_not_accepted"] >= 3
        assert await bob.accept() is not None
        assert not (await late).is_closed
        assert not any(each.is_closed for each in good)


# --- strangers -------------------------------------------------------------------------------------


def knock(bob: Endpoint, count: int, name: str = "stranger") -> None:
    """Let so many first flights from one address arrive, and nothing after them."""
    (transport,) = bob.transports
    for _ in range(count):
        pair = Pair(server={"secret_key": KEY}, alpns=[ALPN])
        pair.flush()
        transport.inject(name, pair.sent[0].data)  # type: ignore[attr-defined]


def stranger_addr() -> EndpointAddr:
    return EndpointAddr(KEY.id, [address_of("bob")])


@virtual
async def test_one_address_has_few_handshakes_at_a_time_and_others_are_not_locked_out() -> None:
    net = network()
    async with two(net, bob={"secret_key": KEY}) as (alice, bob):
        knock(bob, 30)
        assert bob._driver.demux.half_open == 16
        assert bob._driver.demux.counts["retries"] >= 10
        await connect(alice, bob)


@virtual
async def test_under_many_handshakes_clients_prove_their_address_first() -> None:
    net = network()
    async with two(net, bob={"secret_key": KEY}) as (alice, bob):
        for i in range(5):
            knock(bob, 16, f"stranger {i}")
        assert bob._driver.demux.half_open == 64
        before = bob._driver.demux.counts["retries"]
        begin = seconds()
        here, there = await connect(alice, bob)
        assert bob._driver.demux.counts["retries"] == before + 1
        assert seconds() - begin == pytest.approx(0.06, abs=0.02), "one round trip more"
        send, _, _, recv = await stream(here, there)
        await send.write(b"and it works", finish=True)
        assert await recv.read_to_end(100) == b"and it works"
        # Handshakes that go nowhere are forgotten.
        await asyncio.sleep(20)
        assert not bob._driver.demux.half_open
        assert len(bob.connections) == 1


@virtual
async def test_rubbish_that_looks_like_a_first_flight_leaves_nothing_behind() -> None:
    net = network()
    async with two(net) as (alice, bob):
        (transport,) = bob.transports
        rng = __import__("random").Random(0)
        for _ in range(200):
            head = bytes.fromhex("c000000001 08") + rng.randbytes(8) + b"\x08" + rng.randbytes(8)
            data = head + b"\x00\x44\x9e" + rng.randbytes(1300)
            transport.inject("stranger", data[:1252])  # type: ignore[attr-defined]
        # It costs us something each time, so after some the sender has to prove its address.
        assert bob._driver.demux.counts["bad_initials"] == 16
        assert bob._driver.demux.counts["retries"] == 184
        assert not bob._driver.demux._by_cid
        assert not bob._driver.demux.half_open
        assert not bob.connections
        await connect(alice, bob)


@virtual
async def test_other_versions_are_told_ours() -> None:
    net = network()
    async with two(net) as (_, bob):
        (transport,) = bob.transports
        head = bytes.fromhex("c0 1a2a3a4a 08 0102030405060708 04 0a0b0c0d")
        before = net.one_way("bob", "stranger").sent
        transport.inject("stranger", head + bytes(1200))  # type: ignore[attr-defined]
        transport.inject("stranger", head + bytes(100))  # type: ignore[attr-defined]
        assert net.one_way("bob", "stranger").sent == before + 1
        assert not bob.connections


@pytest.mark.parametrize("size", [1, 8, 20, 21, 22, 100, 1200])
def test_random_datagrams_are_answered_by_little_or_nothing(size: int) -> None:
    @virtual
    async def scenario() -> None:
        net = network()
        async with two(net) as (alice, bob):
            (transport,) = bob.transports
            for i in range(256):
                transport.inject("stranger", bytes([i]) * size)  # type: ignore[attr-defined]
            link = net.one_way("bob", "stranger")
            assert link.sent_bytes <= 256 * size
            assert link.sent <= 1, "one reset at a time"
            await connect(alice, bob)

    scenario()


# --- survival --------------------------------------------------------------------------------------


@virtual
async def test_a_peer_that_restarts_is_noticed_at_once() -> None:
    """It has the same key and address, knows nothing of the connection, and says so."""
    net = network()
    async with in_memory(net, "alice") as alice:
        bob = await in_memory(net, "bob", alpns=[ALPN], secret_key=KEY)
        here, _ = await connect(alice, bob)
        await asyncio.sleep(1)
        net.link("alice", "bob").down()
        await bob.close()
        net.link("alice", "bob").up()
        async with in_memory(net, "bob", alpns=[ALPN], secret_key=KEY) as again:
            begin = seconds()
            send = await here.open_uni()
            await send.write(b"are you there?")
            error = await here.closed()
            assert isinstance(error, ConnectionLost)
            assert "restarted" in str(error)
            assert seconds() - begin < 0.1
            assert (await alice.connect(again.addr(), ALPN)).remote_id == KEY.id


@virtual
async def test_without_the_key_no_reset_can_be_made() -> None:
    async with connected(network()) as (here, there):
        await asyncio.sleep(1)
        endpoint = here.endpoint
        (transport,) = endpoint.transports
        cid = next(iter(here._driver.core.paths.ids.by_cid))
        for token in (bytes(16), os.urandom(16), endpoint._driver.demux.reset_token(cid)):
            reset = stateless.stateless_reset(token, 60, os.urandom)
            assert reset is not None
            transport.inject("bob", reset)  # type: ignore[attr-defined]
        assert not here.is_closed
        assert not there.is_closed


@virtual
async def test_idle_connections_are_kept_and_lost_ones_noticed() -> None:
    net = network()
    async with connected(net) as (here, there):
        await asyncio.sleep(3600)
        assert not here.is_closed
        assert not there.is_closed
        net.link("alice", "bob").down()
        begin = seconds()
        errors = await asyncio.gather(here.closed(), there.closed())
        assert 20 < seconds() - begin < 40
        for error in errors:
            assert isinstance(error, ConnectionLost)
        assert here.stats().sent_packets > 700
        assert not here.endpoint.connections


@virtual
async def test_the_smaller_idle_timeout_of_both_counts() -> None:
    net = network()
    async with connected(net, bob={"idle_timeout_s": 7.0}) as (here, _):
        net.link("alice", "bob").down()
        begin = seconds()
        await here.closed()
        assert 6 < seconds() - begin < 13


@virtual
async def test_a_nat_that_forgets_us_in_the_middle_of_a_transfer() -> None:
    net = network(delay_s=0.02)
    async with connected(net) as (here, there):
        (transport,) = here.endpoint.transports
        size = 3_000_000

        async def write() -> None:
            send = await here.open_uni()
            await send.write(bytes(size), finish=True)

        writing = asyncio.create_task(write())
        recv = await there.accept_uni()
        got = 0
        moves = 0
        async for chunk in recv:
            got += len(chunk)
            if got > (moves + 1) * 500_000 and moves < 4:
                moves += 1
                transport.move_to(f"alice {moves}")  # type: ignore[attr-defined]
        await writing
        assert got == size
        assert moves == 4
        assert there.paths()[0].remote == address_of("alice 4")


@virtual
async def test_a_client_that_says_its_network_changed() -> None:
    net = network()
    async with connected(net) as (here, there):
        (transport,) = here.endpoint.transports
        await asyncio.sleep(1)
        transport.move_to("elsewhere", announce=True)  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
        assert there.paths()[0].remote == address_of("elsewhere"), "without a word from the app"
        await stream(there, here)
        heard: list[object] = []

        class Listener:
            def dialkey_events(self, event: object) -> None:
                heard.append(event)

        here.endpoint.plugins.register(Listener())
        here.endpoint.network_changed()
        assert NetworkChanged() in heard
        await asyncio.sleep(1)
        assert not here.is_closed


@virtual
async def test_path_events() -> None:
    net = network()
    async with connected(net) as (here, there):
        seen: list[object] = []

        async def watch() -> None:
            async for event in there.path_events():
                seen.append(event)

        watching = asyncio.create_task(watch())
        (transport,) = here.endpoint.transports
        await asyncio.sleep(1)
        transport.move_to("elsewhere", announce=True)  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        here.close()
        await watching
        kinds = [type(event) for event in seen]
        assert kinds[0] is endpoint_paths.PathOpened
        assert endpoint_paths.PathMoved in kinds
        assert kinds[-1] is endpoint_paths.PathClosed


@virtual
async def test_path_events_of_a_lost_connection_end_too() -> None:
    net = network()
    async with connected(net) as (here, _):
        net.link("alice", "bob").down()
        events = [event async for event in here.path_events()]
        assert isinstance(events[-1], endpoint_paths.PathClosed)
        async for _ in here.path_events():
            pass


@virtual
async def test_a_transport_that_takes_nothing_for_a_while() -> None:
    """Nothing is lost, and the loop does not run hot while it waits."""
    net = network()
    async with connected(net) as (here, there):
        send, _, _, recv = await stream(here, there)
        (transport,) = here.endpoint.transports
        transport.block()  # type: ignore[attr-defined]
        before = net.one_way("alice", "bob").sent
        await send.write(b"later", finish=True)
        await asyncio.sleep(10)
        assert net.one_way("alice", "bob").sent == before
        transport.unblock()  # type: ignore[attr-defined]
        assert await recv.read_to_end(100) == b"later"
        assert not here.is_closed


@virtual
async def test_a_transport_that_is_blocked_for_ever_loses_its_connections_only() -> None:
    net = network()
    here_ip, there_ip = IpAddr.parse("10.0.0.1:1"), IpAddr.parse("10.0.0.2:1")
    async with (
        in_memory(net, "alice", here_ip) as alice,
        in_memory(net, "bob", alpns=[ALPN]) as bob,
        in_memory(net, there_ip, alpns=[ALPN]) as carol,
    ):
        stuck, _ = await connect(alice, bob)
        free, there = await connect(alice, carol)
        memory, _ = alice.transports
        memory.block()  # type: ignore[attr-defined]
        await stream(free, there)
        error = await stuck.closed()
        assert isinstance(error, ConnectionLost)
        assert not free.is_closed
        memory.unblock()  # type: ignore[attr-defined]


@virtual
async def test_a_peer_that_breaks_the_rules_is_named() -> None:
    from quic_pair import builder_of

    from dialkey.errors import ProtocolViolation

    async with connected(network()) as (here, there):
        await asyncio.sleep(1)
        core = here._driver.core
        path = next(iter(core.paths.values()))
        cid = path.cid
        assert cid is not None
        packet = builder_of(core).seal(path, b"\x21", cid)
        (transport,) = there.endpoint.transports
        transport.inject("alice", packet)  # type: ignore[attr-defined]
        error = await there.closed()
        assert isinstance(error, ProtocolViolation)
        assert "unknown frame type" in str(error)
        assert here.remote_id == there.endpoint.id
        seen = await here.closed()
        assert isinstance(seen, ConnectionClosedByPeer)
        assert not seen.is_application


@pytest.mark.parametrize("where", ["receive", "flush", "on_timer"])
def test_a_bug_of_ours_ends_one_connection_and_no_other(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def scenario() -> None:
        async with two(network()) as (alice, bob):
            bad, seen = await connect(alice, bob)
            good, there = await connect(alice, bob)

            def fail(*_: object) -> None:
                raise ZeroDivisionError("a bug")

            monkeypatch.setattr(bad._driver.core, where, fail)
            await asyncio.sleep(6)
            error = await bad.closed()
            assert isinstance(error, ConnectionClosed)
            assert "failed" in str(error)
            monkeypatch.undo()
            await stream(good, there)
            assert alice._driver.demux.counts["internal_errors"] >= 1
            assert "a bug" in caplog.text
            await asyncio.sleep(40)
            assert seen.is_closed
            assert not good.is_closed

    scenario()


# --- logs for analysis -------------------------------------------------------------------------------


@virtual
async def test_qlog_files_are_written_and_closed(tmp_path: Path) -> None:
    async with connected(network(), alice={"qlog_dir": tmp_path}) as (here, there):
        send, _, _, recv = await stream(here, there)
        await send.write(bytes(50_000), finish=True)
        assert len(await recv.read_to_end(100_000)) == 50_000
        lost = asyncio.create_task(here.endpoint.connect(stranger_addr(), ALPN, timeout=1))
        await asyncio.wait([lost])
        assert lost.exception()
    files = [tmp_path / name for name in os.listdir(tmp_path)]
    assert len(files) == 2
    assert {file.suffix for file in files} == {".sqlog"}
    names: set[str] = set()
    for file in files:
        records = [json.loads(line) for line in file.read_text().split("\x1e")[1:]]
        assert records[0]["qlog_format"] == "JSON-SEQ"
        names.update(record["name"] for record in records[1:])
    assert {"transport:packet_sent", "recovery:metrics_updated"} <= names


@virtual
async def test_the_key_log_has_the_secrets_of_both_directions() -> None:
    log = io.StringIO()
    async with connected(network(), alice={"key_log_file": log}):
        """The handshake is all it takes."""
    labels = {line.split()[0] for line in log.getvalue().splitlines()}
    assert {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    } <= labels
    for line in log.getvalue().splitlines():
        _, random, secret = line.split()
        assert len(random) == 64
        assert len(secret) in (64, 96)


# --- on a real network ----------------------------------------------------------------------------------


async def test_a_restart_is_noticed_on_loopback() -> None:
    async with on_loopback() as alice:
        bob = await on_loopback(alpns=[ALPN], secret_key=KEY)
        (address,) = bob.bound_addrs()
        here, _ = await connect(alice, bob)
        send = await here.open_uni()
        await send.write(b"x")
        await send.delivered()
        # It dies without a word: its sockets vanish.
        for each in bob._udp._sockets:
            each.close()
        bob._udp._sockets.clear()
        async with Endpoint.bind(bind=address, alpns=[ALPN], secret_key=KEY, entry_points=False):
            await send.write(b"are you there?")
            # If it does not learn of it, the connection ends as well, but says that nobody answered.
            assert "restarted" in str(await here.closed())
        await bob.close()


async def test_a_socket_is_replaced_in_the_middle_of_a_transfer_on_loopback() -> None:
    async with connected() as (here, there):
        udp = here.endpoint._udp
        assert udp is not None
        size, got = 8_000_000, 0
        ports = {addr.port for addr in udp.bound}

        async def write() -> None:
            send = await here.open_uni()
            await send.write(bytes(size), finish=True)

        writing = asyncio.create_task(write())
        async for chunk in await there.accept_uni():
            got += len(chunk)
            if got > 1_000_000 * len(ports):
                udp._sockets.pop().close()
                udp._open(IpAddr.parse("127.0.0.1:0"))
                asyncio.get_running_loop().add_reader(
                    udp._sockets[0].sock.fileno(), udp._sockets[0].on_readable
                )
                ports.add(udp.bound[0].port)
                here.endpoint.network_changed()
        await writing
        assert got == size
        assert len(ports) > 3
        # The last move may have come when all data was on its way already.
        for _ in range(1000):
            if there.paths()[0].remote == udp.bound[0]:
                break
            await asyncio.sleep(0.01)
        assert there.paths()[0].remote == udp.bound[0]


def test_nothing_is_left_open() -> None:
    """No socket, file, task or future is left to the garbage collector."""

    async def scenario() -> None:
        async with connected() as (here, there):
            send, _, _, recv = await stream(here, there)
            await send.write(bytes(100_000), finish=True)
            assert len(await recv.read_to_end(100_000)) == 100_000
            with pytest.raises(Exception, match="nobody answered"):
                await here.endpoint.connect(silent(), ALPN, timeout=0.05)

    def silent() -> EndpointAddr:
        return EndpointAddr(KEY.id, [IpAddr.parse(f"127.0.0.1:{port}")])

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as quiet:
        quiet.bind(("127.0.0.1", 0))
        port = quiet.getsockname()[1]
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asyncio.run(scenario())
            gc.collect()
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before


def test_an_interrupted_program_leaves_nothing_open() -> None:
    """The main task is cancelled, as by Ctrl-C, with connections and dials under way."""

    async def main() -> None:
        async with connected() as (here, there):
            send, *_others = await stream(here, there)
            writing = asyncio.create_task(send.write(bytes(10_000_000)))
            await asyncio.sleep(0.05)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await writing

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
        gc.collect()
