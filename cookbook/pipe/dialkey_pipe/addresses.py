"""The near side: TCP addresses, Unix sockets and the standard streams, all alike."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import stat
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs

from dialkey.errors import InvalidInput

__all__ = ["Local", "SocketNear", "StdioNear", "TcpAddress", "UnixPath"]

Serve = Callable[["SocketNear"], Awaitable[None]]
T = TypeVar("T")

STDIN: Final = 0
STDOUT: Final = 1


class SocketNear:
    """A connected socket as the near side of a pipe."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int) -> bytes:
        """Return what is there, up to `limit` bytes; empty at the end."""
        return await self._reader.read(limit)

    async def write(self, data: bytes) -> None:
        """Write all of `data`; wait while the reader is slow."""
        self._writer.write(data)
        await self._writer.drain()

    async def write_end(self) -> None:
        """Shut the socket down for writing."""
        # A peer that has closed both directions already wants no end.
        if not self._writer.is_closing():
            self._writer.write_eof()

    async def close(self) -> None:
        """Close in order, after what was written has gone out."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once; over TCP the program at the other end sees a reset, not an end."""
        with contextlib.suppress(OSError):
            sock = self._writer.get_extra_info("socket")
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


class StdioNear:
    """The standard streams of this process, which may be files, pipes or a terminal.

    Each read and write blocks a thread of its own: files cannot be polled, and a terminal shares
    its blocking mode with the shell. The threads are daemons, so that none of them, waiting for a
    key to be pressed, keeps the process from ending.
    """

    async def read(self, limit: int) -> bytes:
        """Return what is there, up to `limit` bytes; empty at the end."""
        return await _in_daemon(functools.partial(os.read, STDIN, limit))

    async def write(self, data: bytes) -> None:
        """Write all of `data`; wait while the reader is slow."""
        rest = memoryview(data)
        while rest:
            rest = rest[await _in_daemon(functools.partial(os.write, STDOUT, rest)) :]

    async def write_end(self) -> None:
        """Close standard output, so that the next program in the pipeline sees the end."""
        # Python flushes and closes its own view of descriptor 1 when it exits, so it stays valid.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, STDOUT)
        os.close(null)


async def _in_daemon(call: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is one

    def work() -> None:
        result, failure = None, None
        try:
            result = call()
        except OSError as error:
            failure = error
        # The loop is closed when the process is about to end.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True).start()
    return await done


@attrs.frozen
class TcpAddress:
    """A TCP address, as a target or to listen at."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> TcpAddress:
        """Read ``8000``, ``127.0.0.1:8000``, ``name:8000`` or ``[::1]:8000``.

        Raises:
            InvalidInput: it is none of these.
        """
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise InvalidInput(f"{text!r} is not an address and a port", hint="write [::1]:8000")
        if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise InvalidInput(
                f"{text!r} is not an address and a port", hint="write 127.0.0.1:8000"
            )
        return cls(host or "127.0.0.1", int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def open(self) -> SocketNear:
        """Connect to it. Raises OSError."""
        return SocketNear(*await asyncio.open_connection(self.host, self.port))

    @contextlib.asynccontextmanager
    async def listen(self, serve: Serve) -> AsyncIterator[str]:
        """Listen at it while in the context, whose value is the address with the port chosen."""
        async with _connections(serve) as accept:
            server = await asyncio.start_server(accept, self.host, self.port)
            async with _closing(server):
                host, port = server.sockets[0].getsockname()[:2]
                yield str(TcpAddress(host, port))


@attrs.frozen
class UnixPath:
    """A Unix socket, as a target or to listen at."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    async def open(self) -> SocketNear:
        """Connect to it. Raises OSError."""
        return SocketNear(*await asyncio.open_unix_connection(self.path))

    @contextlib.asynccontextmanager
    async def listen(self, serve: Serve) -> AsyncIterator[str]:
        """Listen at it while in the context; only this user can connect.

        A socket that a dead process left is replaced; one that answers, or any other file, is not.

        Raises:
            OSError: the path is taken or cannot be used.
        """
        sock = await self._bind()
        try:
            async with _connections(serve) as accept:
                server = await asyncio.start_unix_server(accept, sock=sock)
                async with _closing(server):
                    yield str(self)
        finally:
            sock.close()
            self.path.unlink(missing_ok=True)

    async def _bind(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(self.path.stat().st_mode):
                try:
                    (await self.open()).abort()
                except ConnectionRefusedError:
                    self.path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            sock.bind(str(self.path))
        except OSError as error:
            sock.close()
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        finally:
            os.umask(before)
        return sock


Local = TcpAddress | UnixPath


@contextlib.asynccontextmanager
async def _connections(
    serve: Serve,
) -> AsyncIterator[Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]]:
    """Run `serve` for each connection in a task of its own; at the end, cancel those that run."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(near: SocketNear) -> None:
        try:
            await serve(near)
        except BaseException:
            near.abort()
            raise

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(one(SocketNear(reader, writer)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        yield accept
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _closing(server: asyncio.Server) -> AsyncIterator[None]:
    # From Python 3.12 on, `Server.wait_closed` waits for connections, which end only afterwards.
    try:
        yield
    finally:
        server.close()
