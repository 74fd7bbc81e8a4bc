"""``dialkey pipe`` in processes of its own: what goes in at one end comes out at the other."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import os
import signal
import socket
import socketserver
import stat
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dialkey import SecretKey

TIMEOUT_S = 30
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing sends a reset instead of an end."""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start ``dialkey pipe …`` with pipes as its standard streams; end it after the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "dialkey", "pipe", *arguments],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                )
            )
            stack.callback(process.kill)
            return process

        yield start


def line(stream: object) -> str:
    text: bytes = stream.readline()  # type: ignore[attr-defined]
    return text.decode().strip()


def exactly(process: subprocess.Popen[bytes], length: int) -> bytes:
    data = b""
    while len(data) < length and (more := process.stdout.read(length - len(data))):  # type: ignore[union-attr]
        data += more
    return data


def listen(start: Start, *arguments: str) -> tuple[subprocess.Popen[bytes], str]:
    process = start("listen", "--bind", "127.0.0.1:0", *arguments)
    is_socket = {"--tcp", "--unix"} & set(arguments)
    return process, line(process.stdout if is_socket else process.stderr)


def tcp_through(start: Start, port: int) -> tuple[str, int]:
    """Make a TCP port reachable through two processes; return the address to connect to."""
    _, ticket = listen(start, "--tcp", str(port))
    connecting = start("connect", ticket, "--tcp", "0", "--bind", "127.0.0.1:0")
    host, _, near_port = line(connecting.stdout).rpartition(":")
    return host, int(near_port)


class Threaded(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def serving(
    handle: Callable[[socket.socket], None], server: type = Threaded, where: object = None
) -> Iterator[int]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            handle(self.request)

    with _running(server(where or ("127.0.0.1", 0), Handler)) as port:
        yield port


@contextlib.contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.02))
    thread.start()
    try:
        address = server.server_address
        yield address[1] if isinstance(address, tuple) else 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def hash_of_all(sock: socket.socket) -> None:
    """Answer only after the end: needs half-close."""
    sock.sendall(hashlib.sha256(read_all(sock)).digest())


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


# --- standard streams -----------------------------------------------------------------------------


def test_standard_streams_interactive_then_large_then_half_closed(start: Start) -> None:
    listening, ticket = listen(start)
    connecting = start("connect", ticket, "--bind", "127.0.0.1:0")
    for word in (b"a", b"line\n", b"\0\xff"):
        connecting.stdin.write(word)  # type: ignore[union-attr]
        assert exactly(listening, len(word)) == word
        listening.stdin.write(word.upper())  # type: ignore[union-attr]
        assert exactly(connecting, len(word)) == word.upper()

    # The listener's input ends; the other direction goes on, with much in it.
    listening.stdin.close()  # type: ignore[union-attr]
    assert exactly(connecting, 1) == b""
    large = os.urandom(3_000_000)
    with ThreadPoolExecutor() as pool:
        received = pool.submit(exactly, listening, len(large) + 1)
        rest = memoryview(large)
        while rest:
            rest = rest[connecting.stdin.write(rest) :]  # type: ignore[union-attr]
        connecting.stdin.close()  # type: ignore[union-attr]
        assert received.result(TIMEOUT_S) == large
    assert connecting.wait(TIMEOUT_S) == 0
    assert listening.wait(TIMEOUT_S) == 0


def test_what_has_arrived_is_written_also_after_the_sender_has_gone(start: Start) -> None:
    listening, ticket = listen(start)
    listening.stdin.close()  # type: ignore[union-attr]
    connecting = start("connect", ticket, "--bind", "127.0.0.1:0")
    # More than the pipe to this process holds, less than an endpoint takes in unread.
    data = os.urandom(250_000)
    rest = memoryview(data)
    while rest:
        rest = rest[connecting.stdin.write(rest) :]  # type: ignore[union-attr]
    connecting.stdin.close()  # type: ignore[union-attr]
    assert connecting.wait(TIMEOUT_S) == 0
    assert exactly(listening, len(data) + 1) == data
    assert listening.wait(TIMEOUT_S) == 0


def test_a_pipe_serves_one_and_an_interrupted_one_is_not_a_success(start: Start) -> None:
    listening, ticket = listen(start)
    first = start("connect", ticket, "--bind", "127.0.0.1:0")
    first.stdin.write(b"1")  # type: ignore[union-attr]
    assert exactly(listening, 1) == b"1"

    second = start("connect", ticket, "--bind", "127.0.0.1:0")
    assert second.wait(TIMEOUT_S) == 5
    assert "somebody else is using this pipe" in second.stderr.read().decode()  # type: ignore[union-attr]

    first.stdin.write(b"2")  # type: ignore[union-attr]
    assert exactly(listening, 1) == b"2"
    first.send_signal(signal.SIGTERM)
    assert first.wait(TIMEOUT_S) == 143
    assert listening.wait(TIMEOUT_S) == 5


# --- sockets --------------------------------------------------------------------------------------


def test_a_web_server_and_many_connections_at_once(start: Start, tmp_path: Path) -> None:
    page = os.urandom(200_000)
    (tmp_path / "page").write_bytes(page)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with _running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        host, near_port = tcp_through(start, port)

        def get(_: int) -> bytes:
            with urllib.request.urlopen(
                f"http://{host}:{near_port}/page", timeout=TIMEOUT_S
            ) as got:
                data: bytes = got.read()
                return data

        with ThreadPoolExecutor(20) as pool:
            assert set(pool.map(get, range(20))) == {page}


def choose(sock: socket.socket) -> None:
    """Speak first, then do what the client says."""
    sock.sendall(b"which?")
    {b"echo": echo, b"hash": hash_of_all, b"half": break_off}[sock.recv(4, socket.MSG_WAITALL)](
        sock
    )


def break_off(sock: socket.socket) -> None:
    sock.sendall(b"half")
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    sock.close()


def ask(near: tuple[str, int], what: bytes) -> socket.socket:
    sock = socket.create_connection(near, TIMEOUT_S)
    assert sock.recv(6, socket.MSG_WAITALL) == b"which?"
    sock.sendall(what)
    return sock


def test_half_close_large_and_interactive_traffic_and_what_breaks_off(start: Start) -> None:
    with serving(choose) as port:
        near = tcp_through(start, port)
        with ask(near, b"echo") as chat:
            with ask(near, b"hash") as bulk, ThreadPoolExecutor() as pool:
                large = os.urandom(5_000_000)
                sending = pool.submit(bulk.sendall, large)
                # One key after the other, beside the bulk of the other connection.
                for key in b"interactive":
                    chat.sendall(bytes([key]))
                    assert chat.recv(1) == bytes([key])
                sending.result(TIMEOUT_S)
                bulk.shutdown(socket.SHUT_WR)
                assert read_all(bulk) == hashlib.sha256(large).digest()
            with ask(near, b"half") as broken:
                assert broken.recv(4, socket.MSG_WAITALL) == b"half"
                broken.sendall(b"x")
                with pytest.raises(ConnectionResetError):
                    broken.recv(1)
            chat.shutdown(socket.SHUT_WR)
            assert read_all(chat) == b""


def test_unix_sockets_on_both_sides(start: Start, tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    with serving(hash_of_all, socketserver.ThreadingUnixStreamServer, str(far)):
        _, ticket = listen(start, "--unix", str(far))
        connecting = start("connect", ticket, "--unix", str(near), "--bind", "127.0.0.1:0")
        assert line(connecting.stdout) == str(near)
        assert stat.S_IMODE(near.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(near))
            sock.sendall(b"to the end")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == hashlib.sha256(b"to the end").digest()

        # A living socket is nobody else's.
        other = start("connect", ticket, "--unix", str(near), "--bind", "127.0.0.1:0")
        assert other.wait(TIMEOUT_S) == 3
        connecting.send_signal(signal.SIGTERM)
        assert connecting.wait(TIMEOUT_S) == 143
        assert not near.exists()


def test_a_target_that_is_not_there_is_a_reset_not_an_end(start: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        near = tcp_through(start, unused.getsockname()[1])
        for _ in range(2):  # and the way stays open for others
            with (
                socket.create_connection(near, TIMEOUT_S) as sock,
                pytest.raises(ConnectionResetError),
            ):
                sock.recv(1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_listener_may_be_restarted(
    start: Start, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    key = tmp_path / "key"
    SecretKey.generate().save(key)
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    with serving(hash_of_all) as port:
        again = ("listen", "--tcp", str(port), "--secret-key", str(key), "--bind", bind)
        listening = start(*again)
        ticket = line(listening.stdout)
        connecting = start("connect", ticket, "--tcp", "0", "--bind", "127.0.0.1:0")
        host, _, near_port = line(connecting.stdout).rpartition(":")
        for restart in (False, True):
            if restart:
                listening.send_signal(number)
                assert listening.wait(TIMEOUT_S) == code
                assert line(start(*again).stdout) == ticket
            with socket.create_connection((host, int(near_port)), TIMEOUT_S) as sock:
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == hashlib.sha256(b"").digest()


def test_only_those_on_the_list(start: Start) -> None:
    with serving(echo) as port:
        _, ticket = listen(start, "--tcp", str(port), "--allow", str(SecretKey.generate().id))
        connecting = start("connect", ticket, "--bind", "127.0.0.1:0")
        assert connecting.wait(TIMEOUT_S) != 0
        assert "this key is not on the list" in connecting.stderr.read().decode()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["listen", "--json"], "stdout is the pipe"),
        (["listen", "--tcp", "nowhere"], "not an address and a port"),
    ],
)
def test_wrong_use(start: Start, arguments: list[str], says: str) -> None:
    process = start(*arguments)
    assert process.wait(TIMEOUT_S) == 2
    assert says in process.stderr.read().decode()  # type: ignore[union-attr]
