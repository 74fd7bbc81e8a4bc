"""Several processes on one port: starting them, connecting them, ending them together.

Only where the kernel spreads connections over sockets that share a port (SO_REUSEPORT: Linux, BSD).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import attrs

from dialkey.errors import DialkeyError, LocalError
from dialkey_relay.counters import Counters
from dialkey_relay.errors import RelayConfigError, RelayWireError, cannot_listen
from dialkey_relay.mesh import MeshStream, ProcessMesh
from dialkey_relay.server.config import ServerConfig, load
from dialkey_relay.server.metrics import Snapshot
from dialkey_relay.server.server import Address, RelayServer, bind

__all__ = ["MeshLinks", "WorkerPlan", "run_workers"]

logger = logging.getLogger("dialkey.relay")

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
ASK_INTERVAL_S: Final = 2.0
MAX_WAITING_BYTES: Final = 8 << 20
"""Datagrams that may wait for a sibling; further ones are dropped. It reads as fast as it can."""

SMALL_MESSAGE_BYTES: Final = 256
"""Messages about who is where are never dropped."""


class _Link(asyncio.Protocol):
    """The stream to one sibling."""

    def __init__(self, links: MeshLinks, number: int) -> None:
        self._links = links
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._stream = MeshStream()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._waiting = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._links.mesh.add(self._number, self)

    def send(self, data: bytes) -> bool:
        """Send at the end of this turn of the loop."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if len(data) > SMALL_MESSAGE_BYTES:
            waiting = self._waiting + transport.get_write_buffer_size()
            if waiting > MAX_WAITING_BYTES:
                return False
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        self._waiting += len(data)
        return True

    def _flush(self) -> None:
        out, self._out, self._waiting = self._out, [], 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._stream.feed(data):
                self._links.mesh.receive(self._number, kind, body)
        except RelayWireError as error:
            logger.error("relay process %d is not understood: %s", self._number, error)
            if self._transport is not None:
                self._transport.abort()
        self._links.relay.flush_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._links.mesh.remove(self._number)
        self._links.relay.flush_ready()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _itself(link: _Link) -> _Link:
    return link


class MeshLinks:
    """One process's streams to all others.

    Args:
        relay: of this process.
        sockets: the streams, by the number of the process at the other end.
    """

    def __init__(self, relay: RelayServer, sockets: dict[int, socket.socket]) -> None:
        self.relay = relay
        self.mesh = ProcessMesh(relay.hub, time.monotonic_ns)
        self.mesh.on_ask = self._answer
        self.mesh.on_tell = self._note
        self._sockets = sockets
        self._links: list[_Link] = []
        self._numbers: dict[int, dict[str, int]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> MeshLinks:
        loop = asyncio.get_running_loop()
        for number, sock in self._sockets.items():
            link = _Link(self, number)
            self._links.append(link)
            await loop.create_unix_connection(functools.partial(_itself, link), sock=sock)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        for link in self._links:
            link.close()

    # --- numbers of all processes together ------------------------------------------------------

    def _own(self) -> dict[str, int]:
        hub = self.relay.hub
        return {
            **attrs.asdict(hub.counters),
            "endpoints": len(hub),
            "connections": self.relay.connection_count,
            "queued_bytes": hub.queued_bytes,
        }

    def _answer(self) -> bytes:
        return json.dumps(self._own()).encode()

    def _note(self, number: int, question: int, answer: bytes) -> None:
        self._numbers[number] = json.loads(answer)

    def collect(self) -> None:
        """Start asking the others for their numbers now and then."""
        self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            for number in self.mesh.siblings:
                self.mesh.ask(number, 0)
            await asyncio.sleep(ASK_INTERVAL_S)

    def snapshot(self) -> Snapshot:
        """Add up the numbers of all processes, those of others as of the last answer."""
        total = self._own()
        for numbers in self._numbers.values():
            for name in total:
                total[name] += numbers.get(name, 0)
        counters = Counters(**{field.name: total[field.name] for field in attrs.fields(Counters)})
        return Snapshot(counters, total["endpoints"], total["connections"], total["queued_bytes"])


# --- the parent ---------------------------------------------------------------------------------


@attrs.frozen
class WorkerPlan:
    """What a process needs to know to do its part.

    Attributes:
        path: the configuration.
        dev: plain HTTP on port 3340.
        http, https: addresses with the ports that all share.
        number: of this process; the first one serves metrics and address discovery.
        log_level: what it writes to standard error.
    """

    path: Path
    dev: bool
    http: Address | None
    https: Address | None
    number: int = 0
    log_level: int = logging.WARNING

    def read(self) -> ServerConfig:
        """Read the configuration for this process.

        Raises:
            RelayConfigError: it cannot be used.
        """
        config = load(self.path, dev=self.dev)
        options = attrs.evolve(
            config.options,
            http=self.http,
            https=self.https if config.options.https is not None else None,
            reuse_port=True,
        )
        config = attrs.evolve(config, options=options)
        return config if self.number == 0 else attrs.evolve(config, metrics=None, qad=None)


@contextlib.contextmanager
def _reserved(config: ServerConfig) -> Iterator[tuple[Address | None, Address | None]]:
    """Hold the ports while the processes start; port 0 becomes the same number for all."""
    with contextlib.ExitStack() as stack:
        found: list[Address | None] = []
        for address in (config.options.http, config.options.https):
            if address is None:
                found.append(None)
                continue
            if address[1] != 0:
                found.append(address)
                continue
            try:
                sock = stack.enter_context(bind(address, reuse_port=True))
            except OSError as error:
                raise cannot_listen("the relay", address, error) from error
            # It must not accept: connections would wait here for ever.
            port = sock.getsockname()[1]
            sock.close()
            found.append((address[0], port))
        yield found[0], found[1]


async def run_workers(
    path: Path,
    config: ServerConfig,
    announce: Callable[[list[Address]], None],
    *,
    dev: bool,
    log_level: int = logging.WARNING,
) -> None:
    """Run a relay in `config.workers` processes until cancelled.

    Args:
        announce: called with the addresses when all processes listen.
        log_level: what the processes write to standard error.

    Raises:
        RelayConfigError: this system cannot share a port.
        BindError: an address cannot be used.
        LocalError: a process ended by itself; the others have been ended, too.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise RelayConfigError("workers: this system cannot share a port between processes")
    count = config.workers
    context = multiprocessing.get_context("spawn")
    pairs = {(a, b): socket.socketpair() for a in range(count) for b in range(a + 1, count)}
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    with _reserved(config) as (http, https):
        for number in range(count):
            ours, theirs = context.Pipe()
            sockets = {
                (b if number == a else a): pair[0] if number == a else pair[1]
                for (a, b), pair in pairs.items()
                if number in (a, b)
            }
            plan = WorkerPlan(path, dev, http, https, number, log_level)
            process = context.Process(
                target=_worker, args=(plan, sockets, theirs), name=f"relay-{number}"
            )
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
    for pair in pairs.values():
        for sock in pair:
            sock.close()
    try:
        await _supervise(processes, pipes, announce)
    finally:
        await _stop(processes)
        for pipe in pipes:
            pipe.close()


async def _supervise(
    processes: list[BaseProcess], pipes: list[Connection], announce: Callable[[list[Address]], None]
) -> None:
    loop = asyncio.get_running_loop()
    addresses: list[Address] = []
    for pipe in pipes:
        answer = await loop.run_in_executor(None, _first_word, pipe)
        if isinstance(answer, str):
            raise LocalError(answer)
        addresses = answer
    announce(addresses)
    ended: asyncio.Future[str] = loop.create_future()
    for process in processes:
        loop.add_reader(process.sentinel, _note_end, process, ended)
    loop.add_signal_handler(signal.SIGHUP, _signal_all, processes, signal.SIGHUP)
    try:
        raise LocalError(f"{await ended} ended by itself; the relay stops")
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for process in processes:
            loop.remove_reader(process.sentinel)


def _first_word(pipe: Connection) -> list[Address] | str:
    try:
        if pipe.poll(START_TIMEOUT_S):
            answer: list[Address] | str = pipe.recv()
            return answer
    except EOFError:
        return "a relay process ended while it started"
    return "a relay process did not start in time"


def _note_end(process: BaseProcess, ended: asyncio.Future[str]) -> None:
    if not ended.done():
        ended.set_result(f"{process.name} (process {process.pid})")


def _signal_all(processes: list[BaseProcess], number: signal.Signals) -> None:
    import os

    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)


async def _stop(processes: list[BaseProcess]) -> None:
    _signal_all(processes, signal.SIGTERM)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + STOP_TIMEOUT_S
    for process in processes:
        left = max(0.0, deadline - loop.time())
        await loop.run_in_executor(None, process.join, left)
        if process.is_alive():
            logger.error("%s does not end and is killed", process.name)
            process.kill()
            process.join()


# --- a worker -----------------------------------------------------------------------------------


def _worker(plan: WorkerPlan, sockets: dict[int, socket.socket], pipe: Connection) -> None:
    """Be one process of a relay, until SIGTERM."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"dialkey [{plan.number}]: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(plan.log_level)
    # aioquic's; what its peers do wrong is counted.
    logging.getLogger("quic").setLevel(logging.CRITICAL)
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(_work(plan, sockets, pipe))


def _parent_is_gone(pipe: Connection, task: asyncio.Task[None]) -> None:
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    logger.error("the process that started this one is gone")
    task.cancel()


async def _work(plan: WorkerPlan, sockets: dict[int, socket.socket], pipe: Connection) -> None:
    from dialkey.hooks import Plugins
    from dialkey_relay.hookspecs import RelayHookSpecs
    from dialkey_relay.server.running import serve

    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    # The parent says nothing: the pipe is readable when it is gone. Without it nobody could end us,
    # and the next relay would have to share the port with us.
    loop.add_reader(pipe.fileno(), _parent_is_gone, pipe, task)
    plugins = Plugins(RelayHookSpecs)
    try:
        # None is skipped: it could be the one that keeps strangers out.
        plugins.load_entry_points()
        await serve(
            plan.read,
            lambda running: pipe.send(running.relay.addresses),
            plugins=plugins,
            siblings=sockets,
        )
    except DialkeyError as error:
        pipe.send(str(error))
