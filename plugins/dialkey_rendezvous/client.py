"""Offer and take a ticket by a code, for asyncio."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from dialkey.errors import (
    AlpnMismatch,
    ConnectionClosedByPeer,
    ConnectionLost,
    DialkeyError,
    StreamReset,
    StreamStopped,
)
from dialkey_rendezvous import limits
from dialkey_rendezvous.codes import Code, choose_words
from dialkey_rendezvous.errors import PartnerLeft
from dialkey_rendezvous.exchange import (
    Agreed,
    Delivered,
    Event,
    Named,
    Offering,
    Taking,
    TicketCame,
)
from dialkey_rendezvous.handler import ALPN

if TYPE_CHECKING:
    from dialkey import Connection, Endpoint, RecvStream, SendStream
    from dialkey.identity import EndpointAddr

__all__ = ["offer", "take"]

Compare = Callable[[tuple[str, ...], bool], Awaitable[bool]]
"""Shows the words, gets whether the other side compares them, and returns whether they are the same."""

READ_BYTES: Final = 4096

ANSWER_S: Final = 20.0
"""For a server or another program to answer: a round trip or two, and the work of SPAKE2."""


async def offer(
    endpoint: Endpoint,
    server: EndpointAddr | str,
    ticket: str,
    *,
    on_code: Callable[[Code, int], object],
    compare: Compare | None = None,
    lifetime_s: int = limits.LIFETIME_S,
    words: tuple[str, ...] | None = None,
) -> None:
    """Hand a ticket to one receiver, by a code.

    Args:
        endpoint: dials the server.
        server: where to meet.
        ticket: the text of a ticket of any kind, at most `limits.MAX_TICKET_CHARS`.
        on_code: gets the code when it is known, and for how many seconds it is good.
        compare: asked before the ticket is handed over; None for no question.
        lifetime_s: how long the code should wait; the server may want it shorter.
        words: of the code; by default two that nobody can guess.

    Raises:
        CodeRefused: the code led to nothing, and is burnt; the error says why.
        WordsDiffer: `compare` returned False.
        DialkeyError: the server could not be reached, or broke the rules.
    """
    chosen = choose_words(secrets.randbelow) if words is None else words
    side = Offering(chosen, lifetime_s=lifetime_s, compares=compare is not None, entropy=os.urandom)
    async with _stream(endpoint, server) as (send, recv):
        wait_s = ANSWER_S
        while not side.is_over:
            for event in await _step(side, send, recv, wait_s):
                match event:
                    case Named(code, granted_s):
                        on_code(code, granted_s)
                        # The server ends it; this is for a server that does not.
                        wait_s = granted_s + ANSWER_S
                    case Agreed(compared, other_compares):
                        if compare is not None and not await compare(compared, other_compares):
                            raise await _declined(side, send)
                        side.give(ticket)
                        wait_s = limits.EXCHANGE_S + ANSWER_S
                    case Delivered():
                        return


async def take(
    endpoint: Endpoint,
    server: EndpointAddr | str,
    code: Code,
    *,
    compare: Compare | None = None,
    show: Callable[[tuple[str, ...]], object] | None = None,
) -> str:
    """Get the ticket to which a code leads. Whatever happens, the code is of no more use.

    Args:
        endpoint: dials the server.
        server: where to meet.
        code: as somebody told it.
        compare: asked before the ticket is taken; None for no question.
        show: gets the words where only the other side compares them.

    Raises:
        CodeRefused: it leads to nothing; the error says why.
        WordsDiffer: `compare` returned False.
        DialkeyError: the server could not be reached, or broke the rules.
    """
    side = Taking(code, compares=compare is not None, entropy=os.urandom)
    async with _stream(endpoint, server) as (send, recv):
        wait_s = ANSWER_S
        while True:
            for event in await _step(side, send, recv, wait_s):
                match event:
                    case Agreed(words, other_compares):
                        if compare is not None:
                            if not await compare(words, other_compares):
                                raise await _declined(side, send)
                        elif other_compares and show is not None:
                            show(words)
                        wait_s = limits.EXCHANGE_S + ANSWER_S
                    case TicketCame(ticket):
                        side.confirm()
                        # Without it the other side would not know, but the ticket is here.
                        await _last_word(side, send)
                        return ticket


@asynccontextmanager
async def _stream(
    endpoint: Endpoint, server: EndpointAddr | str
) -> AsyncIterator[tuple[SendStream, RecvStream]]:
    try:
        connection: Connection = await endpoint.connect(server, ALPN)
    except AlpnMismatch as error:
        error.hint = "an endpoint answers there, but it is not a rendezvous server"
        raise
    async with connection:
        try:
            async with asyncio.timeout(ANSWER_S):
                send, recv = await connection.open_bi()
        except TimeoutError:
            raise PartnerLeft("the rendezvous server did not answer in time") from None
        yield send, recv


async def _step(
    side: Offering | Taking, send: SendStream, recv: RecvStream, wait_s: float
) -> list[Event]:
    """Send what is to be sent, and wait for what comes next."""
    try:
        if data := side.bytes_to_send():
            await _send(send, data)
        async with asyncio.timeout(wait_s):
            received = await recv.read(READ_BYTES)
    except TimeoutError:
        raise PartnerLeft("the rendezvous server did not answer in time") from None
    except (StreamReset, StreamStopped, ConnectionLost, ConnectionClosedByPeer) as error:
        raise PartnerLeft(f"the rendezvous server went away: {error}") from error
    try:
        events = await asyncio.to_thread(side.receive, received)
    except DialkeyError:
        await _last_word(side, send)
        raise
    # Before somebody is asked: the other side cannot show its words without it.
    if data := side.bytes_to_send():
        await _send(send, data)
    return events


async def _send(send: SendStream, data: bytes) -> None:
    try:
        async with asyncio.timeout(limits.WRITE_S):
            await send.write(data)
    except TimeoutError:
        raise PartnerLeft("the rendezvous server did not answer in time") from None
    except (StreamReset, StreamStopped, ConnectionLost, ConnectionClosedByPeer) as error:
        raise PartnerLeft(f"the rendezvous server went away: {error}") from error


async def _declined(side: Offering | Taking, send: SendStream) -> DialkeyError:
    error = side.decline()
    await _last_word(side, send)
    return error


async def _last_word(side: Offering | Taking, send: SendStream) -> None:
    """Tell the other side why it ends, if the server still listens."""
    if data := side.bytes_to_send():
        try:
            await send.write(data, finish=True)
            await _settle(send)
        except (StreamReset, StreamStopped, ConnectionLost, ConnectionClosedByPeer):
            pass  # it ends in any case, and the reason is what is raised


async def _settle(send: SendStream) -> None:
    try:
        async with asyncio.timeout(limits.WRITE_S):
            await send.stopped()
    except (TimeoutError, ConnectionLost, ConnectionClosedByPeer):
        pass  # what was to be told was told, as far as anybody can know
