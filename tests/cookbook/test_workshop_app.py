"""The workshop: ``dialkey workshop`` in processes of its own, and its worker as a peer sees it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import attrs
import pytest
from dialkey_workshop.announcements import Bye, Here, encode
from dialkey_workshop.client import Assigned, Completed, Event, Failed, HandedOver, Limits, run
from dialkey_workshop.errors import NoWorkers
from dialkey_workshop.jobs import load_jobs
from dialkey_workshop.service import JobFailed, Order, Report, Step, Workshop
from dialkey_workshop.site import Site, open_site
from dialkey_workshop.worker import Terms, Worker, announce

import dialkey_rpc as rpc
from dialkey import Endpoint, EndpointAddr, SecretKey
from dialkey.errors import InvalidInput, StreamReset
from dialkey_blobs import ALPN, BlobFormat, BlobTicket, GetRequest, HashAndFormat
from dialkey_gossip import TopicId, TopicTicket
from dialkey_relay import Everyone, Relay, RelayServer

JOBS = Path(__file__).with_name("workshop_jobs.py")
DIALKEY = [sys.executable, "-m", "dialkey"]
SIZES = [3, 4, 1024, 1025, 16_384, 50_000, 80_000, 90_000, 1 << 20, 3 << 20]
TIMEOUT_S = 30
PROCESS_ENDS_S = 5.0


# --- processes ------------------------------------------------------------------------------------


class Process:
    """A ``dialkey workshop …`` whose JSON lines are read as they come."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.events: list[dict[str, object]] = []

    def until(self, match: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            event: dict[str, object] = json.loads(line)
            self.events.append(event)
            if match(event):
                return event
        raise AssertionError(f"it ended before: {self.events}\n{self.popen.stderr.read()}")  # type: ignore[union-attr]

    def next(self, name: str, **fields: object) -> dict[str, object]:
        return self.until(lambda event: event["event"] == name and fields.items() <= event.items())

    def ends(self) -> int:
        out, err = self.popen.communicate(timeout=TIMEOUT_S)
        self.events += map(json.loads, out.splitlines())
        assert "Traceback" not in err, err
        return self.popen.returncode

    def all(self, name: str) -> list[dict[str, object]]:
        return [event for event in self.events if event["event"] == name]


class Shop:
    """A workshop of processes."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.folder = folder
        # Workers that are killed leave their folders behind.
        temp = folder / "temp"
        temp.mkdir()
        own = {"WORKSHOP_TEST_FOLDER": str(folder), "TMPDIR": str(temp)}
        self._environment = {**environment, **own}
        self._processes: list[subprocess.Popen[str]] = []
        self.ticket = ""

    def start(self, *arguments: str, address: str = "127.0.0.1:0") -> Process:
        bind = ["--bind", address] if address else []
        popen = subprocess.Popen(
            [*DIALKEY, "workshop", *arguments, "--json", *bind],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append(popen)
        return Process(popen)

    def open(self, *arguments: str) -> Process:
        opener = self.start("open", "--jobs", str(JOBS), *arguments)
        self.ticket = str(opener.next("ready")["ticket"])
        return opener

    def work(self, *arguments: str) -> Process:
        return self.start("work", "-t", self.ticket, "--jobs", str(JOBS), *arguments)

    def run(self, job: str, *arguments: object) -> Process:
        return self.start(
            "run", job, *map(str, arguments), "-t", self.ticket, "-o", str(self.folder)
        )

    def input(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def held(self, name: str) -> int:
        """Wait until `hold` has read the half of an input; return the id of its process."""
        return int(self.wait_for(f"{name}.*.pid").name.split(".")[1])

    def wait_for(self, pattern: str) -> Path:
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := next(self.folder.glob(pattern), None)):
            assert time.monotonic() < deadline, f"there is no {pattern}"
            time.sleep(0.01)
        return found

    def close(self) -> None:
        for popen in self._processes:
            if popen.poll() is None:
                os.killpg(popen.pid, signal.SIGKILL)  # the demo has processes of its own
            popen.communicate()


@pytest.fixture
def shop(environment: dict[str, str], tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(environment, tmp_path)
    try:
        yield shop
    finally:
        shop.close()


@pytest.fixture(scope="module", autouse=True)
def demo(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shop, Process]]:
    """Start the demo; it mostly waits, so it may do so beside the other tests."""
    shop = Shop(environment, tmp_path_factory.mktemp("demo"))
    try:
        yield shop, shop.start("demo", "--files", "3", "--size", "1", address="")
    finally:
        shop.close()


def text(name: str, size: int) -> bytes:
    chance = random.Random(name)
    words = [name, *chance.choices(["to", "be", "or", "not", "question"], k=size // 3)]
    return " ".join(words).encode()[:size]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # dead; whoever inherited it has not asked yet


def pid_in(folder: Path) -> int | None:
    return next((int(path.name.split(".")[1]) for path in folder.glob("*.pid")), None)


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + PROCESS_ENDS_S
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.01)


def test_three_workers_ten_inputs_and_one_worker_dies_at_work(shop: Shop) -> None:
    workers = {}
    opener = shop.open()
    for worker in (opener, shop.work(), shop.work()):
        ready = worker.events[0] if worker.events else worker.next("ready")
        workers[ready["endpoint_id"]] = worker
    listing = shop.start("workers", "-t", shop.ticket, "--expect", "3", "--wait", str(TIMEOUT_S))

    inputs = {f"w{number}": text(f"w{number}", size) for number, size in enumerate(SIZES)}
    paths = [shop.input(name, data) for name, data in inputs.items()]
    client = shop.run("hold", *paths, "--patience", "2")
    assert listing.ends() == 0
    assert {each["endpoint_id"] for each in listing.all("worker")} == set(workers)
    assert all("hold" in each["jobs"] for each in listing.all("worker"))  # type: ignore[operator]

    # All slots are held: two jobs at each of the three, and nobody goes on before the test says so.
    began = [client.next("assigned") for _ in range(6)]
    doomed = next(each for each in began if workers[each["worker"]] is not opener)
    pids = [shop.held(each["name"]) for each in began if each["worker"] == doomed["worker"]]  # type: ignore[arg-type]
    workers[doomed["worker"]].popen.kill()
    for pid in pids:  # what ran there has nobody to work for
        until_gone(pid)
    (shop.folder / "go").touch()

    assert client.ends() == 0
    done = client.all("done")
    assert sorted(str(each["name"]) for each in done) == sorted(inputs)
    for name, data in inputs.items():
        assert (shop.folder / f"{name}.hold").read_bytes() == b"held " + data
    replaced = {each["name"] for each in client.all("handed_over")}
    assert {each["name"] for each in began if each["worker"] == doomed["worker"]} <= replaced
    assert all(each["worker"] != doomed["worker"] for each in done)


def test_who_may_come_and_ctrl_c_at_either_side(shop: Shop) -> None:
    key = shop.folder / "key"
    friend = SecretKey.generate()
    friend.save(key)
    worker = shop.open("--allow", str(friend.id))
    stranger = shop.run("gz", shop.input("theirs", b"theirs"), "--wait", "0.5")
    client = shop.run("hold", shop.input("mine", text("mine", 100_000)), "--secret-key", key)
    pid = shop.held("mine")
    assert stranger.ends() == 6
    assert "--allow" in str(stranger.all("error")[0]["message"])
    assert not stranger.all("working")

    client.popen.send_signal(signal.SIGINT)
    assert client.ends() == 130
    worker.next("job", what="cancelled")
    until_gone(pid)

    # Both slots are free again.
    data = text("more", 200_000)
    more = shop.run("gz", shop.input("more", data), shop.input("none", b""), "--secret-key", key)
    assert more.ends() == 0
    assert gzip.decompress((shop.folder / "more.gz").read_bytes()) == data
    assert gzip.decompress((shop.folder / "none.gz").read_bytes()) == b""
    worker.popen.send_signal(signal.SIGINT)
    assert worker.ends() == 130
    assert [each["what"] for each in worker.all("job")].count("done") == 2


def test_workers_that_leave_finish_or_hand_back(shop: Shop) -> None:
    workers = {}
    for worker in (shop.open("--grace", "30"), shop.work("--grace", "30")):
        ready = worker.events[0] if worker.events else worker.next("ready")
        workers[ready["endpoint_id"]] = worker
    client = shop.run("hold", shop.input("last", text("last", 100_000)))
    first = workers.pop(client.next("assigned")["worker"])
    [second] = workers.values()
    pid = shop.held("last")
    first.popen.send_signal(signal.SIGTERM)
    assert first.next("leaving")["active"] == 1
    first.popen.send_signal(signal.SIGTERM)  # and now at once
    assert "leaving" in str(client.next("handed_over")["reason"])
    until_gone(pid)
    (shop.folder / f"last.{pid}.pid").unlink()

    shop.held("last")
    second.popen.send_signal(signal.SIGTERM)
    second.next("leaving")
    (shop.folder / "go").touch()
    assert client.ends() == 0
    assert [worker.ends() for worker in (first, second)] == [143, 143]
    assert len(client.all("done")) == 1
    assert (shop.folder / "last.hold").read_bytes() == b"held " + text("last", 100_000)


def test_the_demo(demo: tuple[Shop, Process]) -> None:
    shop, process = demo
    assert process.ends() == 0
    assert process.all("demo") == [{"event": "demo", "files": 3, "size_bytes": 1_000_000}]
    assert list((shop.folder / "temp").iterdir()) == []


# --- a worker as its peers see it -----------------------------------------------------------------


@attrs.frozen
class Place:
    """A worker and a client in this process."""

    site: Site
    worker: Worker
    client: Site
    proxy: Workshop
    changed: asyncio.Event

    async def order(self, job: str, data: bytes, **changes: object) -> Order:
        tag = await self.client.blobs.add_bytes(data)
        tag.leak()
        stack.enter_context(self.client.grants.granted(tag.hash, self.site.endpoint.id))
        ticket = str(self.client.blobs.ticket(tag))
        return attrs.evolve(Order(uuid4(), job, ticket, len(data)), **changes)

    async def until_idle(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.worker.active:
                await self.changed.wait()
                self.changed.clear()

    async def is_empty(self) -> bool:
        return not await self.site.blobs.store.blobs()


stack = contextlib.ExitStack()


@asynccontextmanager
async def a_site() -> AsyncIterator[Site]:
    async with (
        Endpoint.bind(bind="127.0.0.1:0", entry_points=False) as endpoint,
        open_site(endpoint) as site,
    ):
        yield site


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setenv("WORKSHOP_TEST_FOLDER", str(tmp_path))
    load_jobs(JOBS)
    terms = Terms(slots=1, max_input_bytes=300_000, jobs_file=JOBS)
    async with a_site() as site, a_site() as client:
        changed = asyncio.Event()
        worker = Worker(site, terms, changed=changed.set)
        site.router.add(rpc.Rpc(worker, Workshop))
        once = rpc.Reconnect(attempts=1)
        connecting = rpc.connect(Workshop, client.endpoint, site.endpoint.addr(), reconnect=once)
        with stack:
            async with connecting as proxy:
                yield Place(site, worker, client, proxy, changed)


async def to_result(reports: AsyncGenerator[Report, None]) -> bytes:
    async for report in reports:
        if report.result is not None:
            return report.result
    raise AssertionError("there is no result")


async def test_the_same_order_twice_is_one_job_and_nothing_stays(place: Place) -> None:
    order = await place.order("sha256", b"data")
    async with (
        aclosing(place.proxy.run(order)) as one,
        aclosing(place.proxy.run(order)) as two,
    ):
        results = await asyncio.gather(to_result(one), to_result(two))
        assert results[0] == results[1]
        assert place.worker.active == 1
        await place.proxy.release(order.id)
        await place.proxy.release(order.id)
        for reports in (one, two):
            assert [report async for report in reports if report.result is None] == []
    assert place.worker.active == 0
    assert await place.is_empty()


async def test_a_busy_worker_says_so_and_a_job_without_followers_is_cancelled(
    place: Place, tmp_path: Path
) -> None:
    order = await place.order("hold", text("busy", 100_000))
    reports = place.proxy.run(order)
    while (pid := pid_in(tmp_path)) is None:
        await anext(reports)
    with pytest.raises(rpc.ResourceExhausted):
        await anext(place.proxy.run(await place.order("sha256", b"")))
    await reports.aclose()
    await place.until_idle()
    assert gone(pid)
    assert place.worker.active == 0
    assert await place.is_empty()


async def test_orders_that_are_not_taken(place: Place) -> None:
    ours = BlobTicket.parse((await place.order("sha256", b"x")).input)
    stranger = EndpointAddr(SecretKey.generate().id, place.client.endpoint.addr().addrs)
    large = await place.order("sha256", bytes(300_001), input_bytes=1)
    orders = {
        "unknown job": await place.order("nothing", b"x"),
        "too long": await place.order("sha256", b"x", input_bytes=300_001),
        "less than nothing": await place.order("sha256", b"x", input_bytes=-1),
        "longer than it says": large,
        "no ticket": await place.order("sha256", b"x", input="blobaaaa"),
        "somebody else's": await place.order(
            "sha256", b"x", input=str(BlobTicket(stranger, ours.hash))
        ),
        "a collection": await place.order(
            "sha256", b"x", input=str(BlobTicket(ours.addr, ours.hash, BlobFormat.HASH_SEQ))
        ),
    }
    for what, order in orders.items():
        with pytest.raises(rpc.InvalidArgument):
            await to_result(place.proxy.run(order))
        assert place.worker.active == 0, what
    assert await place.is_empty()


async def test_how_a_job_can_fail(place: Place) -> None:
    with pytest.raises(JobFailed) as failed:
        await to_result(place.proxy.run(await place.order("choosy", b"abc")))
    assert failed.value.reason == "no abc today"
    with pytest.raises(rpc.InternalError):
        await to_result(place.proxy.run(await place.order("crash", b"")))
    assert place.worker.active == 0
    assert await place.is_empty()


async def test_a_result_is_for_the_caller_alone_and_gives_nothing_else(place: Place) -> None:
    with await place.site.blobs.add_bytes(b"of somebody else" * 2000) as other:
        order = await place.order("forge", bytes(other.hash))
        async with aclosing(place.proxy.run(order)) as reports:
            content = HashAndFormat(type(other.hash)(await to_result(reports)), BlobFormat.HASH_SEQ)
            async with a_site() as stranger:
                for site, request in (
                    (stranger, GetRequest.blob(content.hash)),
                    (place.client, GetRequest.all(content)),
                    (place.client, GetRequest.blob(other.hash)),
                ):
                    to_blobs = site.endpoint.connect(place.site.endpoint.addr(), ALPN)
                    async with await to_blobs as connection:
                        with pytest.raises(StreamReset):
                            await site.blobs.get(connection, request)
            await place.client.blobs.download(BlobTicket(place.site.endpoint.addr(), content.hash))


async def test_what_has_no_result_does_not_hold_up_the_rest(place: Place, tmp_path: Path) -> None:
    files = [tmp_path / "abc", tmp_path / "xyz"]
    for file in files:
        file.write_text(file.name)
    topic = TopicId(os.urandom(32))
    events: list[Event] = []
    async with (
        await place.site.join(topic) as at_worker,
        await place.client.join(TopicTicket(topic, [place.site.endpoint.addr()])) as at_client,
    ):
        announcing = asyncio.create_task(announce(at_worker, place.worker, place.changed))
        await at_client.joined()

        async def do(job: str, *files: Path, **options: bool) -> None:
            await run(place.client, at_client, job, files, tmp_path, events.append, **options)

        await do("choosy", *files)
        assert [event.reason for event in events if isinstance(event, Failed)] == ["no abc today"]
        assert [event.path.name for event in events if isinstance(event, Completed)] == [
            "xyz.choosy"
        ]

        # Nothing is replaced unasked, and nothing is done for a result that could not be written.
        events.clear()
        with pytest.raises(InvalidInput, match="already"):
            await do("choosy", files[1])
        with pytest.raises(InvalidInput, match="two results"):
            await do("sha256", files[0], files[0])
        with pytest.raises(InvalidInput, match="not the name"):
            await do("../sha256", files[0])
        assert events == []
        await do("choosy", files[1], overwrite=True)
        with pytest.raises(NoWorkers):
            await run(
                place.client,
                at_client,
                "nothing",
                files,
                tmp_path,
                events.append,
                limits=Limits(wait_s=0.2),
            )
        announcing.cancel()
        await asyncio.wait({announcing})


# --- hostile members of the workshop --------------------------------------------------------------


class Liar:
    """Takes every order."""

    def __init__(self, kind: str, when_asked: Callable[[], None] = lambda: None) -> None:
        self.kind = kind
        self.asked = 0
        self._when_asked = when_asked

    async def run(self, order: Order) -> AsyncGenerator[Report, None]:
        self.asked += 1
        self._when_asked()
        yield Report(Step.WORKING, 1 << 62)
        if self.kind == "says nothing more":
            await asyncio.Event().wait()
        elif self.kind == "has no result":
            return
        yield Report(Step.FINISHED, -1, b"x" if self.kind == "says nonsense" else bytes(32))

    async def release(self, order_id: UUID) -> None:
        raise AssertionError("it had nothing to release")


@pytest.mark.parametrize(
    "kind", ["says nothing more", "has no result", "says nonsense", "has not what it says"]
)
async def test_liars_and_noise_cost_time_and_no_more(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"be it so")
    topic = TopicId(os.urandom(32))
    async with a_site() as honest, a_site() as liar, a_site() as client:
        worker = Worker(honest, Terms(slots=1))
        events: list[object] = []
        limits = Limits()

        # The client has little patience with the liar, but only once it has been asked. Whoever is
        # honest may take as long as a busy machine needs.
        def be_patient(seconds: float) -> None:
            object.__setattr__(limits, "patience_s", seconds)

        def tell(event: object) -> None:
            events.append(event)
            if isinstance(event, Assigned):
                be_patient(TIMEOUT_S)

        lies = Liar(kind, lambda: be_patient(0.5))
        honest.router.add(rpc.Rpc(worker, Workshop))
        liar.router.add(rpc.Rpc(lies, Workshop))
        where = TopicTicket(topic, [honest.endpoint.addr()])
        async with (
            await honest.join(where) as at_honest,
            await liar.join(where) as at_liar,
            await client.join(where) as at_client,
            asyncio.TaskGroup() as group,
        ):

            async def lie() -> None:
                await at_liar.joined()
                for number in range(1_000_000):
                    for data in (b"noise", encode(Bye(1 << 62))[:-1], noise(number)):
                        await at_liar.broadcast(data)
                    await asyncio.sleep(0.05)

            def noise(number: int) -> bytes:
                return encode(Here(liar.endpoint.addr(), 9, 0, ["wordcount"], 99, number))

            lying = group.create_task(lie())
            await at_client.joined()
            # The liar is the only one there, until it has been tried.
            working = asyncio.create_task(
                run(
                    client,
                    at_client,
                    "wordcount",
                    [path],
                    tmp_path,
                    tell,
                    limits=limits,
                )
            )
            while not any(isinstance(event, HandedOver) for event in events):
                assert not working.done()
                await asyncio.sleep(0.01)
            announcing = group.create_task(announce(at_honest, worker, asyncio.Event()))
            await working
            announcing.cancel()
            lying.cancel()
    assert (tmp_path / "input.wordcount").read_bytes() == b"1 be\n1 it\n1 so\n"
    assert [type(event) for event in events].count(Completed) == 1
    assert not any(isinstance(event, Failed) for event in events)
    assert lies.asked >= 1
    assert worker.active == 0


@pytest.mark.parametrize("says", ["no\x1b[2Jthing\n" + "x" * 9999])
async def test_what_strangers_say_does_nothing_to_a_terminal(says: str, tmp_path: Path) -> None:
    class Rude(Liar):
        async def run(self, order: Order) -> AsyncGenerator[Report, None]:
            yield Report(Step.WORKING)
            raise JobFailed(says)

    (tmp_path / "input").write_bytes(b"")
    topic = TopicId(os.urandom(32))
    events: list[Event] = []
    async with a_site() as rude, a_site() as client:
        rude.router.add(rpc.Rpc(Rude(""), Workshop))
        async with (
            await rude.join(topic) as at_rude,
            await client.join(TopicTicket(topic, [rude.endpoint.addr()])) as at_client,
        ):
            announcing = asyncio.create_task(
                announce(at_rude, Worker(rude, Terms()), asyncio.Event())
            )
            await run(client, at_client, "gz", [tmp_path / "input"], tmp_path, events.append)
            announcing.cancel()
            await asyncio.wait({announcing})
    [reason] = [event.reason for event in events if isinstance(event, Failed)]
    assert reason.isprintable()
    assert len(reason) < 1000


async def test_everything_goes_over_a_relay_where_there_is_no_other_way(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(text("relayed", 200_000))
    events: list[Event] = []
    async with RelayServer([Everyone()]) as server, contextlib.AsyncExitStack() as sites:
        endpoints = [
            await sites.enter_async_context(
                Endpoint.bind(plugins=[Relay(server.url)], transports=[], entry_points=False)
            )
            for _ in range(2)
        ]
        here, there = [await sites.enter_async_context(open_site(each)) for each in endpoints]
        for endpoint in endpoints:
            await endpoint.online()
        worker = Worker(here, Terms())
        here.router.add(rpc.Rpc(worker, Workshop))
        topic = TopicId(os.urandom(32))
        async with (
            await here.join(topic) as at_here,
            await there.join(TopicTicket(topic, [here.endpoint.addr()])) as at_there,
        ):
            announcing = asyncio.create_task(announce(at_here, worker, asyncio.Event()))
            await run(there, at_there, "gz", [path], tmp_path, events.append)
            announcing.cancel()
            await asyncio.wait({announcing})
    assert gzip.decompress((tmp_path / "input.gz").read_bytes()) == path.read_bytes()


def test_only_public_names_are_used() -> None:
    import ast

    public = {"dialkey", "dialkey.cli", "dialkey.errors", "dialkey.printable"}
    public |= {"dialkey_blobs", "dialkey_gossip", "dialkey_rpc"}
    for path in Path(sys.modules["dialkey_workshop"].__file__ or "").parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dialkey"):
                home = node.module or ""
                if home.split(".")[0] != "dialkey_workshop":
                    assert home in public, f"{path.name} imports {home}"
                    names = set(sys.modules[home].__all__) if home in sys.modules else set()
                    assert {name.name for name in node.names} <= names or not names, path.name
