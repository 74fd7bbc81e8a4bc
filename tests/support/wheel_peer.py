"""A real iroh endpoint, from the `iroh` wheel, behind a few helpers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import iroh
import iroh.iroh_ffi

from dialkey import EndpointAddr, EndpointId
from dialkey.identity import IpAddr


@asynccontextmanager
async def bind(*alpns: str, addr: str = "127.0.0.1:0") -> AsyncIterator[iroh.Endpoint]:
    """Bind a wheel endpoint without relay and discovery."""
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    endpoint = await iroh.Endpoint.bind(
        iroh.EndpointOptions(
            preset=iroh.preset_minimal(),
            bind_addr=addr,
            alpns=[alpn.encode() for alpn in alpns],
            relay_mode=iroh.RelayMode.disabled(),
        )
    )
    try:
        yield endpoint
    finally:
        await endpoint.close()


def id_of(endpoint: iroh.Endpoint) -> EndpointId:
    return EndpointId.parse(str(endpoint.id()))


def addr_of(endpoint: iroh.Endpoint) -> EndpointAddr:
    """Return where the wheel endpoint listens, as our address."""
    sockets = [IpAddr.parse(text) for text in endpoint.bound_sockets()]
    return EndpointAddr(id_of(endpoint), sockets)


def iroh_addr(addr: EndpointAddr) -> iroh.EndpointAddr:
    """Return an address of ours as the wheel wants it."""
    return iroh.EndpointAddr(
        iroh.EndpointId.from_bytes(bytes(addr.id)), None, [str(ip) for ip in addr.ip_addrs]
    )


async def accept(endpoint: iroh.Endpoint) -> iroh.Connection:
    """Accept one connection and finish its handshake."""
    incoming = await endpoint.accept_next()
    assert incoming is not None
    return await (await incoming.accept()).connect()
