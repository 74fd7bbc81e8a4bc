"""Dialling: addresses race, dead ones hold nobody up, and failures say what happened where."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from dialkey import Endpoint, EndpointAddr, Refusal, SecretKey, hookimpl
from dialkey.errors import (
    AlpnMismatch,
    BindError,
    DialError,
    DialTimeout,
    EndpointClosed,
    InvalidInput,
    Refused,
    ResolveError,
    WrongKey,
)
from dialkey.identity import IpAddr, RelayAddr, RelayUrl


def binding(*alpns: str, **options: object) -> object:
    return Endpoint.bind(bind="127.0.0.1:0", alpns=alpns, entry_points=False, **options)  # type: ignore[arg-type]


def closed_port() -> IpAddr:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return IpAddr(ipaddress.IPv4Address("127.0.0.1"), sock.getsockname()[1])


def silent_port() -> tuple[socket.socket, IpAddr]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock, IpAddr(ipaddress.IPv4Address("127.0.0.1"), sock.getsockname()[1])


async def test_dead_addresses_do_not_hold_up_the_good_one() -> None:
    sock, silent = silent_port()
    with sock:
        async with binding("a/1") as server, binding() as client:  # type: ignore[attr-defined]
            relay = RelayAddr(RelayUrl("https://relay.example"))
            addrs = [closed_port(), silent, relay, *server.addr().addrs]
            connection = await client.connect(EndpointAddr(server.id, addrs), "a/1", timeout=5)
            assert connection.remote_id == server.id
            assert connection.paths()[0].remote in server.addr().addrs


async def test_a_refused_dial_ends_early_and_says_where() -> None:
    async with binding() as client:  # type: ignore[attr-defined]
        nobody = EndpointAddr(SecretKey.generate().id, [closed_port()])
        with pytest.raises(DialError) as caught:
            await client.connect(nobody, "a/1", timeout=20)
        assert not isinstance(caught.value, DialTimeout)
        assert "connection refused" in caught.value.attempts[0]
        assert str(nobody.addrs[0]) in str(caught.value)


async def test_a_deadline_ends_a_dial_with_a_line_for_each_address() -> None:
    sock, silent = silent_port()
    with sock:
        async with binding() as client:  # type: ignore[attr-defined]
            relay = RelayAddr(RelayUrl("https://relay.example"))
            nobody = EndpointAddr(SecretKey.generate().id, [silent, relay])
            with pytest.raises(DialTimeout) as caught:
                await client.connect(nobody, "a/1", timeout=0.3)
            text = "\n".join(caught.value.attempts)
            assert "no answer to" in text
            assert "relay.example/: bind with relays=()" in text


async def test_errors_that_need_no_packet() -> None:
    async with binding() as client:  # type: ignore[attr-defined]
        with pytest.raises(ResolveError, match="no address"):
            await client.connect(SecretKey.generate().id, "a/1")
        with pytest.raises(InvalidInput, match="our own key"):
            await client.connect(client.ticket(), "a/1")
        with pytest.raises(InvalidInput, match="ALPN"):
            await client.connect(SecretKey.generate().id, "")
    with pytest.raises(EndpointClosed):
        await client.connect(SecretKey.generate().id, "a/1")


async def test_wrong_key_and_wrong_protocol() -> None:
    async with binding("a/1") as server, binding() as client:  # type: ignore[attr-defined]
        stranger = EndpointAddr(SecretKey.generate().id, server.addr().addrs)
        with pytest.raises(WrongKey) as wrong:
            await client.connect(stranger, "a/1")
        assert wrong.value.close_code == 0x130
        with pytest.raises(AlpnMismatch) as mismatch:
            await client.connect(server.ticket(), "b/1")
        assert mismatch.value.close_code == 0x178


async def test_an_endpoint_that_accepts_nothing_refuses_at_once() -> None:
    async with binding() as server, binding() as client:  # type: ignore[attr-defined]
        with pytest.raises(Refused, match="accepts no connections"):
            await client.connect(server.ticket(), "a/1")


async def test_filters_on_both_sides() -> None:
    class Filter:
        def __init__(self, hook: str) -> None:
            self.hook = hook

        @hookimpl
        def dialkey_before_accept(self, incoming: object) -> Refusal | None:
            return Refusal(5, b"not from there") if self.hook == "accept" else None

        @hookimpl
        async def dialkey_after_handshake(self, connection: object) -> Refusal | None:
            return Refusal(6, b"not you") if self.hook == "handshake" else None

        @hookimpl
        def dialkey_before_connect(
            self, endpoint: object, remote: object, alpn: bytes
        ) -> Refusal | None:
            return Refusal(7, b"not there") if self.hook == "connect" else None

    plugin = Filter("accept")
    server_plugins = [plugin]
    async with (
        binding("a/1", plugins=server_plugins) as server,  # type: ignore[attr-defined]
        binding(plugins=[Filter("")]) as client,  # type: ignore[attr-defined]
    ):
        with pytest.raises(Refused, match="not from there"):
            await client.connect(server.ticket(), "a/1")
        plugin.hook = "handshake"
        connection = await client.connect(server.ticket(), "a/1")
        error = await connection.closed()
        assert (error.error_code, error.reason) == (6, b"not you")  # type: ignore[attr-defined]
        plugin.hook = ""
        assert (await client.connect(server.ticket(), "a/1")).remote_id == server.id
    async with binding("a/1") as server, binding(plugins=[Filter("connect")]) as client:  # type: ignore[attr-defined]
        with pytest.raises(Refused, match="not there"):
            await client.connect(server.ticket(), "a/1")


async def test_a_restarted_endpoint_with_the_same_key_resets_old_connections() -> None:
    key = SecretKey.generate()
    async with binding() as client:  # type: ignore[attr-defined]
        server = await binding("a/1", secret_key=key)  # type: ignore[misc]
        port = server.bound_addrs()[0]
        connection = await client.connect(server.ticket(), "a/1")
        # As after a crash: the sockets vanish and nobody is told.
        for transport in server.transports:
            await transport.close()
        again = await Endpoint.bind(bind=port, secret_key=key, alpns=["a/1"], entry_points=False)
        try:
            send = await connection.open_uni()
            await send.write(b"are you there?")
            error = await connection.closed()
            assert "restarted" in str(error)
        finally:
            await again.close()
            await server.close()


async def test_a_port_in_use_is_an_error_with_a_hint() -> None:
    sock, taken = silent_port()
    with sock, pytest.raises(BindError, match="another program uses this port"):
        await Endpoint.bind(bind=taken, entry_points=False)
