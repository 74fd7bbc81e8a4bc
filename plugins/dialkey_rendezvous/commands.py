"""What commands do with codes: offer a ticket by one, or take one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dialkey.cli import NEEDS_RENDEZVOUS, Ask, Options, Output
from dialkey.errors import DialkeyError, InvalidInput, NetworkError
from dialkey.identity import EndpointAddr, parse_remote
from dialkey_rendezvous import client
from dialkey_rendezvous.codes import Code
from dialkey_rendezvous.errors import ExpiredCode, PartnerLeft, RendezvousBusy, WrongCode

if TYPE_CHECKING:
    from dialkey import Endpoint

__all__ = ["offer", "take"]

MAX_NEW_CODES: Final = 4
"""New codes after one was burnt, before somebody has to start the command again: who burns that many does
so on purpose."""

_OVER: Final = (WrongCode, PartnerLeft, ExpiredCode)
"""What ends a code, and does not speak against another one."""

MAX_WAIT_S: Final = 120.0
"""How long a server that was asked too often is waited for."""


async def offer(
    output: Output,
    endpoint: Endpoint,
    server: str | None,
    ticket: str,
    command: str,
    *,
    ask: Ask | None,
) -> None:
    """Offer a ticket by a code, and by a new one when it was burnt, until somebody has it.

    Raises:
        InvalidInput: no server is named.
        WordsDiffer: somebody compared the words and said that they differ.
        DialkeyError: the server cannot be used.
    """
    address = _server(server)
    is_given = False

    def announce(code: Code, lifetime_s: int) -> None:
        nonlocal is_given
        is_given = True
        output.result("code", str(code), code=str(code), lifetime_s=lifetime_s)
        output.remark(
            f"The code is good once, for {_minutes(lifetime_s)}. On the other machine: {command} {code}"
        )

    async def compare(words: tuple[str, ...], other_compares: bool) -> bool:
        assert ask is not None
        return await ask(_question(words))

    burnt = 0
    while True:
        try:
            await client.offer(
                endpoint,
                address,
                ticket,
                on_code=announce,
                compare=compare if ask is not None else None,
            )
        except DialkeyError as error:
            if isinstance(error, RendezvousBusy) and 0 < error.wait_s <= MAX_WAIT_S:
                output.remark(f"{_sentence(error)}; waiting {error.wait_s} s.")
                await asyncio.sleep(error.wait_s)
                continue
            if not is_given or not isinstance(error, (NetworkError, RendezvousBusy, *_OVER)):
                raise
            output.result("code_over", None, error=error.code, message=error.message)
            burnt += not isinstance(error, ExpiredCode)
            if burnt > MAX_NEW_CODES or not isinstance(error, _OVER):
                output.remark(
                    f"{_sentence(error)}. There are no more codes; the ticket is still good."
                )
                return
            output.remark(f"{_sentence(error)}. Here is a new one:")
        else:
            output.result("code_used", None)
            output.remark(
                "The other side has the ticket, and the code is used up. The ticket is good for others."
            )
            return


async def take(
    output: Output, options: Options, server: str | None, code: str, *, ask: Ask | None
) -> str:
    """Return the ticket to which a code leads.

    Raises:
        InvalidInput: it is not a code, or no server is named.
        CodeRefused: it leads to nothing; the error says why.
        WordsDiffer: somebody compared the words and said that they differ.
        DialkeyError: the server cannot be used.
    """
    parsed = Code.parse(code)
    address = _server(server)

    async def compare(words: tuple[str, ...], other_compares: bool) -> bool:
        assert ask is not None
        return await ask(_question(words))

    def show(words: tuple[str, ...]) -> None:
        output.result("words", None, words=words)
        output.remark(f"The other side compares; tell them these words: {' '.join(words)}")

    async with options.open_endpoint() as endpoint:
        return await client.take(
            endpoint,
            address,
            parsed,
            compare=compare if ask is not None else None,
            show=show,
        )


def _server(text: str | None) -> EndpointAddr:
    if not text:
        raise InvalidInput("a code needs a rendezvous server", hint=NEEDS_RENDEZVOUS)
    return parse_remote(text)


def _question(words: tuple[str, ...]) -> str:
    return f"Does the other side see the same words: {' '.join(words)}?"


def _sentence(error: DialkeyError) -> str:
    return error.message[:1].upper() + error.message[1:]


def _minutes(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min"
