"""How calls end: deadlines, cancellation, back-pressure, shutdown, lost connections. Virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import dialkey_rpc as rpc
from dialkey import Connection, limits
from dialkey.errors import ConnectionClosed, ConnectionClosedByPeer, ConnectionLost, InvalidInput
from dialkey.testing import in_virtual_time

InMemory = Callable[..., contextlib.AbstractAsyncContextManager[Any]]

ROUND_TRIP_S = 0.1


def now() -> float:
    return asyncio.get_running_loop().time()


class Worker:
    """Notes when its calls begin and how they end."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: dict[str, float] = {}
        self.made = 0
        self.gate = asyncio.Event()

    @contextlib.contextmanager
    def _noting(self, name: str) -> Any:
        self.began.append(name)
        try:
            yield
        except BaseException as error:
            self.ended[f"{name}: {type(error).__name__}"] = now()
            raise
        self.ended[name] = now()

    async def work(self, seconds: float) -> str:
        with self._noting("work"):
            await asyncio.sleep(seconds)
            return "done"

    @rpc.method(idempotent=True)
    async def read(self, seconds: float) -> str:
        with self._noting("read"):
            await asyncio.sleep(seconds)
            return "read"

    async def stubborn(self, seconds: float) -> str:
        with self._noting("stubborn"):
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                pass
            return "done anyway"

    async def tick(self, pause_s: float) -> AsyncIterator[int]:
        with self._noting("tick"):
            number = 0
            while True:
                yield number
                number += 1
                await asyncio.sleep(pause_s)

    async def pour(self, count: int) -> AsyncIterator[bytes]:
        with self._noting("pour"):
            for _ in range(count):
                self.made += 1
                yield bytes(50_000)

    async def drink(self, drops: AsyncIterator[bytes], sips: int) -> int:
        with self._noting("drink"):
            drunk = 0
            async for drop in drops:
                drunk += len(drop)
                sips -= 1
                if not sips:
                    await self.gate.wait()
            return drunk

    async def refuse(self, drops: AsyncIterator[int]) -> AsyncIterator[int]:
        with self._noting("refuse"):
            async for drop in drops:
                yield drop
                if drop == 2:
                    raise rpc.PermissionDenied("enough")

    async def collect(self, drops: AsyncIterator[int]) -> int:
        with self._noting("collect"):
            return sum([drop async for drop in drops])

    async def own_timeout(self) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(5)

    async def unavailable(self) -> int:
        self.made += 1
        if self.made < 3:
            raise rpc.Unavailable("not yet")
        return self.made


@contextlib.asynccontextmanager
async def working(
    in_memory: InMemory, **options: Any
) -> AsyncIterator[tuple[Any, Worker, Worker, Any]]:
    worker = Worker()
    service = rpc.Rpc(worker, **options)
    async with in_memory(service) as world, world.connect(Worker) as client:
        yield world, worker, client, service


# --- cancellation -------------------------------------------------------------------------------


@in_virtual_time
async def test_the_caller_cancels(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, service):
        call = asyncio.create_task(client.work(100))
        await asyncio.sleep(5)
        assert service.active == 1
        call.cancel()
        cancelled = now()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert now() == cancelled
        await asyncio.sleep(ROUND_TRIP_S)
        assert worker.ended == {
            "work: CancelledError": pytest.approx(cancelled + ROUND_TRIP_S / 2, abs=0.01)
        }
        assert service.active == 0
        assert service.stats()["work"].ended == {"cancelled": 1}
        assert rpc.stats(client)["work"].ended == {"cancelled": 1}


@in_virtual_time
async def test_a_timeout_of_the_caller_cancels(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, _service):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.work(100)
        await asyncio.sleep(ROUND_TRIP_S)
        assert list(worker.ended) == ["work: CancelledError"]


@in_virtual_time
async def test_a_call_is_cancelled_before_it_left(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, _service):
        call = asyncio.create_task(client.work(100))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(1)
        assert set(worker.ended) <= {"work: CancelledError"}
        assert await client.work(1) == "done"


@in_virtual_time
async def test_a_method_that_ignores_its_cancellation(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, service):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.stubborn(100)
        await asyncio.sleep(1)
        assert list(worker.ended) == ["stubborn"]
        assert service.stats()["stubborn"].ended == {"cancelled": 1}
        assert await client.work(1) == "done"


@pytest.mark.parametrize("how", ["break", "aclose", "cancel", "drop"])
@in_virtual_time
async def test_the_caller_leaves_a_stream(in_memory: InMemory, how: str) -> None:
    async with working(in_memory) as (_, worker, client, service):
        stream: Any = client.tick(1.0)
        if how == "break":
            async for number in stream:
                if number == 3:
                    break
            del stream
        else:
            assert [await anext(stream) for _ in range(4)] == [0, 1, 2, 3]
            if how == "aclose":
                await stream.aclose()
                await stream.aclose()
            elif how == "drop":
                del stream
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await anext(stream)
        left = now()
        await asyncio.sleep(ROUND_TRIP_S)
        (ended,) = worker.ended.values()
        assert ended <= left + ROUND_TRIP_S / 2 + 0.01
        assert service.active == 0
        assert rpc.stats(client)["tick"].active == 0


@in_virtual_time
async def test_a_stream_that_is_never_begun_is_never_sent(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, _service):
        stream: Any = client.tick(1.0)
        await stream.aclose()
        del stream
        client.tick(1.0)
        await asyncio.sleep(1)
        assert worker.began == []


@in_virtual_time
async def test_the_service_ends_a_dialogue(in_memory: InMemory) -> None:
    closed: list[float] = []

    async def drops() -> AsyncIterator[int]:
        try:
            for number in range(1000):
                yield number
                await asyncio.sleep(1)
        finally:
            closed.append(now())

    async with working(in_memory) as (_, worker, client, _service):
        with pytest.raises(rpc.PermissionDenied, match="enough"):
            _ = [drop async for drop in client.refuse(drops())]
        assert list(worker.ended) == ["refuse: PermissionDenied"]
        (ended,) = worker.ended.values()
        await asyncio.sleep(ROUND_TRIP_S)
        assert closed[0] <= ended + ROUND_TRIP_S


@in_virtual_time
async def test_what_streams_up_fails(in_memory: InMemory) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(1)
        raise ValueError("mine")

    async def wrong() -> AsyncIterator[Any]:
        yield object()

    async with working(in_memory) as (_, _worker, client, service):
        with pytest.raises(ValueError, match="mine"):
            await client.collect(broken())
        with pytest.raises(rpc.CannotSend):
            await client.collect(wrong())
        with pytest.raises(ValueError, match="mine"):
            _ = [drop async for drop in client.refuse(broken())]
        await asyncio.sleep(1)
        assert service.active == 0
        assert await client.work(1) == "done"


@in_virtual_time
async def test_the_caller_is_gone(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, worker, client, service):
        call = asyncio.create_task(client.work(1000))
        stream: Any = client.tick(1000)
        await anext(stream)
        await asyncio.sleep(1)
        await rpc.close(client)
        with pytest.raises(Exception, match="this side closed"):
            await call
        await asyncio.sleep(1)
        assert set(worker.ended) == {"work: CancelledError", "tick: CancelledError"}
        assert service.active == 0
        assert world.router.stats().failed == 0


# --- deadlines ----------------------------------------------------------------------------------


@in_virtual_time
async def test_a_deadline_holds_where_the_service_allows_no_stream(
    in_memory: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(connection: Connection) -> None:
        await connection.closed()

    async with working(in_memory) as (_, worker, client, _service):
        monkeypatch.setattr(Connection, "open_bi", wait)
        hasty = rpc.with_options(client, timeout=2)
        began = now()
        with pytest.raises(rpc.DeadlineExceeded):
            await hasty.work(0)
        with pytest.raises(rpc.DeadlineExceeded):
            await anext(aiter(hasty.tick(0)))
        assert now() - began == pytest.approx(4, abs=0.01)
        assert worker.began == []


@in_virtual_time
async def test_a_deadline_holds_on_both_sides(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, worker, client, service):
        hasty = rpc.with_options(client, timeout=2)
        began = now()
        with pytest.raises(rpc.DeadlineExceeded):
            await hasty.work(100)
        assert now() - began == pytest.approx(2, abs=0.01)
        await asyncio.sleep(1)
        assert worker.ended == {"work: CancelledError": pytest.approx(began + 2.05, abs=0.01)}
        assert await hasty.work(1) == "done"

        # The service keeps to it even when it hears nothing more.
        worker.ended.clear()
        began = now()
        call = asyncio.create_task(hasty.work(100))
        await asyncio.sleep(1)
        world.network.link("client", "server").down()
        with pytest.raises(rpc.DeadlineExceeded):
            await call
        assert now() - began == pytest.approx(2, abs=0.01)
        await asyncio.sleep(0.2)
        assert worker.ended == {"work: CancelledError": pytest.approx(began + 2.05, abs=0.01)}
        assert service.stats()["work"].ended["remote.rpc.deadline"] >= 1


@in_virtual_time
async def test_no_time_is_left(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, _service):
        with rpc.deadline(0.5):
            await asyncio.sleep(1)
            with pytest.raises(rpc.DeadlineExceeded, match="no time left"):
                await client.work(1)
            stream: Any = client.tick(1)
            with pytest.raises(rpc.DeadlineExceeded, match="no time left"):
                await anext(stream)
        assert worker.began == []


@in_virtual_time
async def test_a_deadline_of_a_stream(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, _service):
        began = now()
        came = []
        with contextlib.suppress(rpc.DeadlineExceeded):
            async for number in rpc.with_options(client, timeout=3.5).tick(1):
                came.append(number)
        assert came == [0, 1, 2, 3]
        assert now() - began == pytest.approx(3.5, abs=0.01)
        await asyncio.sleep(1)
        assert list(worker.ended.values()) == [pytest.approx(began + 3.55, abs=0.02)]


@in_virtual_time
async def test_a_deadline_within_a_frame(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, _worker, client, service):
        stream: Any = rpc.with_options(client, timeout=5).pour(1000)
        await anext(stream)
        # Nobody reads: the service hangs in the middle of an item when the time is over.
        await asyncio.sleep(4)
        assert service.active == 1
        await asyncio.sleep(2)
        assert service.active == 0
        with pytest.raises(rpc.DeadlineExceeded):
            await anext(stream)
        assert service.stats()["pour"].ended == {"remote.rpc.deadline": 1}


@in_virtual_time
async def test_a_timeout_of_the_method_itself_is_not_a_deadline(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, _worker, client, _service):
        with pytest.raises(rpc.InternalError):
            await rpc.with_options(client, timeout=30).own_timeout()


class Relay:
    """A service that calls another one."""

    def __init__(self) -> None:
        self.worker: Any = None

    async def work(self, seconds: float) -> str:
        result: str = await self.worker.work(seconds)
        return result


@in_virtual_time
async def test_deadlines_and_cancellation_go_on_to_the_next_service(in_memory: InMemory) -> None:
    worker, relay = Worker(), Relay()
    async with (
        in_memory(rpc.Rpc(worker)) as world,
        world.connect(Worker) as relay.worker,
        in_memory(rpc.Rpc(relay)) as other,
        other.connect(Relay) as client,
    ):
        assert await client.work(1) == "done"
        worker.ended.clear()
        with pytest.raises(rpc.DeadlineExceeded):
            await rpc.with_options(client, timeout=2).work(100)
        await asyncio.sleep(0.2)
        assert list(worker.ended) == ["work: CancelledError"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.work(100)
        await asyncio.sleep(0.2)
        assert worker.began == ["work"] * 3
        assert len(worker.ended) == 1
        assert max(worker.ended.values()) == pytest.approx(now(), abs=0.2)


# --- back-pressure ------------------------------------------------------------------------------


@in_virtual_time
async def test_a_service_waits_for_a_slow_reader(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, worker, client, _service):
        stream: Any = client.pour(1000)
        await anext(stream)
        await asyncio.sleep(60)
        held = worker.made * 50_000
        most = limits.SEND_HIGH_WATER_BYTES + 2 * limits.STREAM_RECEIVE_WINDOW_BYTES
        assert 500_000 < held < most
        assert len([drop async for drop in stream]) == 999


@in_virtual_time
async def test_a_caller_waits_for_a_slow_service(in_memory: InMemory) -> None:
    made = 0

    async def drops() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(400):
            made += 1
            yield bytes(50_000)

    async with working(in_memory) as (_, worker, client, _service):
        call = asyncio.create_task(client.drink(drops(), 3))
        await asyncio.sleep(60)
        most = limits.SEND_HIGH_WATER_BYTES + 2 * limits.STREAM_RECEIVE_WINDOW_BYTES
        assert 500_000 < made * 50_000 < most
        worker.gate.set()
        assert await call == 400 * 50_000


@in_virtual_time
async def test_a_service_that_never_waits_lets_others_have_a_turn(in_memory: InMemory) -> None:
    async with working(in_memory) as (_, _worker, client, _service):
        stream: Any = client.pour(10)
        await anext(stream)
        assert await client.work(0) == "done"
        await stream.aclose()


# --- shutdown -----------------------------------------------------------------------------------


@in_virtual_time
async def test_shutdown_waits_for_calls_and_their_answers(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, worker, client, _service):
        call = asyncio.create_task(client.work(3))
        await asyncio.sleep(1)
        down = asyncio.create_task(world.router.shutdown())
        await asyncio.sleep(1)
        with pytest.raises((rpc.Unavailable, ConnectionClosedByPeer)):
            await client.work(0)
        assert await call == "done"
        await down
        assert now() < 5
        assert list(worker.ended) == ["work"]


@in_virtual_time
async def test_shutdown_does_not_wait_for_ever(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, worker, client, service):
        call = asyncio.create_task(client.work(1000))
        await asyncio.sleep(1)
        await world.router.shutdown()
        with pytest.raises((rpc.CallCancelled, ConnectionClosedByPeer)):
            await call
        assert list(worker.ended) == ["work: CancelledError"]
        assert service.active == 0


# --- lost connections ---------------------------------------------------------------------------


@in_virtual_time
async def test_the_next_call_dials_again(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, _worker, client, _service):
        assert await client.work(0) == "done"
        for connection in list(world.server.connections):
            connection.close(7, b"a test")
        await asyncio.sleep(1)
        found = await asyncio.gather(*(client.work(0) for _ in range(20)))
        assert found == ["done"] * 20
        assert len(list(world.server.connections)) == 1


@in_virtual_time
async def test_only_idempotent_calls_are_repeated(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, worker, client, _service):
        read, work = asyncio.create_task(client.read(5)), asyncio.create_task(client.work(5))
        await asyncio.sleep(1)
        for connection in list(world.server.connections):
            connection.close(7, b"a test")
        assert await read == "read"
        with pytest.raises(ConnectionClosedByPeer, match="nobody knows whether the call ran"):
            await work
        assert worker.began == ["read", "work", "read"]


@in_virtual_time
async def test_a_service_that_is_restarted(
    in_memory: InMemory, bind: Callable[..., Any], served: Callable[..., Any]
) -> None:
    async with in_memory(rpc.Rpc(Worker())) as world:
        reconnect = rpc.Reconnect(attempts=6, first_pause_s=0.5)
        async with world.connect(Worker, reconnect=reconnect) as client:
            call = asyncio.create_task(client.read(1000))
            await asyncio.sleep(1)
            await world.server.close()
            await asyncio.sleep(0.2)
            worker = Worker()
            async with bind(world.network, "server", 2) as server, served(server, rpc.Rpc(worker)):
                await asyncio.sleep(20)
                assert worker.began == ["read"]
                call.cancel()


@in_virtual_time
async def test_unavailable_is_repeated(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, worker, client, _service):
        assert await client.unavailable() == 3
        worker.made = 0
        async with world.connect(Worker, reconnect=rpc.Reconnect(attempts=2)) as impatient:
            with pytest.raises(rpc.Unavailable):
                await impatient.unavailable()


@in_virtual_time
async def test_a_network_that_is_gone(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, _worker, client, _service):
        assert await client.work(0) == "done"
        world.network.link("client", "server").down()
        with pytest.raises(rpc.DeadlineExceeded):
            await rpc.with_options(client, timeout=5).read(0)
        with pytest.raises(ConnectionLost):
            await client.work(0)
        world.network.link("client", "server").up()
        assert await client.read(0) == "read"


@in_virtual_time
async def test_a_client_is_closed_while_it_dials(in_memory: InMemory) -> None:
    async with working(in_memory) as (world, _worker, client, _service):
        world.network.link("client", "server").down()
        with pytest.raises(ConnectionLost):
            await client.work(0)
        calls = [asyncio.create_task(client.read(0)) for _ in range(3)]
        await asyncio.sleep(1)
        calls[0].cancel()
        await rpc.close(client)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in results] == [
            asyncio.CancelledError,
            ConnectionClosed,
            ConnectionClosed,
        ]


class Sleeper:
    async def remaining(self) -> float | None:
        return rpc.current_call().remaining_s()


@pytest.mark.parametrize("seconds", [math.inf, 1e300, 1e9, 2**80])
@in_virtual_time
async def test_a_time_that_never_comes_is_not_a_limit(in_memory: InMemory, seconds: float) -> None:
    async with (
        in_memory(rpc.Rpc(Sleeper())) as world,
        world.connect(Sleeper, timeout=seconds) as client,
    ):
        assert await client.remaining() is None
        short = rpc.with_options(client, timeout=5)
        assert await short.remaining() is not None
        assert await rpc.with_options(short, timeout=seconds).remaining() is None
        with rpc.deadline(seconds):
            assert await client.remaining() is None
            with rpc.deadline(5):
                assert await client.remaining() is not None
        with rpc.deadline(5), rpc.deadline(seconds):
            assert await client.remaining() is not None


@in_virtual_time
async def test_what_is_not_a_time_is_refused(in_memory: InMemory) -> None:
    async with in_memory(rpc.Rpc(Sleeper())) as world:
        for wrong in (math.nan, 0, -1, -math.inf):
            with pytest.raises(InvalidInput, match="positive number of seconds"):
                world.connect(Sleeper, timeout=wrong)
        async with world.connect(Sleeper) as client:
            with pytest.raises(InvalidInput, match="nan"), rpc.deadline(math.nan):
                pass
            with pytest.raises(InvalidInput, match="positive"):
                rpc.with_options(client, timeout=math.nan)
            with pytest.raises(rpc.DeadlineExceeded), rpc.deadline(-math.inf):
                await client.remaining()
