"""What ``dialkey gossip`` does."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Final

from dialkey import Router
from dialkey.cli import Options, Output
from dialkey.errors import InvalidInput
from dialkey.identity import compact_ticket
from dialkey.printable import printable
from dialkey_gossip.errors import MessageTooLarge, NoNeighbors
from dialkey_gossip.events import Lagged, NeighborDown, NeighborUp, Received
from dialkey_gossip.gossip import Gossip
from dialkey_gossip.ids import TopicId
from dialkey_gossip.signing import Signing
from dialkey_gossip.tickets import TopicTicket
from dialkey_gossip.topic import Topic

__all__ = ["talk"]

JOIN_TIMEOUT_S: Final = 30.0
_READ_BYTES: Final = 65_536
_MAX_LINE_BYTES: Final = 1 << 20
_LINES_AHEAD: Final = 256


async def talk(
    output: Output,
    options: Options,
    topic: str,
    peers: Sequence[str],
    *,
    text: str | None,
    is_signed: bool,
) -> None:
    """Stay in a topic until cancelled or, if there is a `text`, until it is published.

    Raises:
        DialkeyError: the topic or a peer cannot be parsed, or nobody received the text.
    """
    named = _named(topic)
    signing = Signing() if is_signed else None
    async with options.open_endpoint() as endpoint, Router(endpoint) as router:
        await options.until_online(endpoint, output)
        gossip = router.add(Gossip())
        router.add_installed("ping")
        async with gossip.join(named, peers, signing=signing) as handle:
            if text is not None:
                await handle.joined(timeout=JOIN_TIMEOUT_S)
                await handle.broadcast(text.encode())
                output.result("sent", None, topic=str(handle.id), text=text)
                return
            ticket = str(handle.ticket())
            output.result("ready", ticket, ticket=ticket, topic=str(handle.id))
            output.remark("Lines that you type go to the topic; Ctrl-C leaves it.")
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(_publish(output, handle))
                await _show(output, handle)
                if output.has_lost_reader:
                    publishing.cancel()


def _named(text: str) -> TopicId | TopicTicket:
    text = text.strip()
    if re.fullmatch(TopicTicket.KIND + r"[a-z2-7]{40,}", compact_ticket(text)):
        return TopicTicket.parse(text)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return TopicId.parse(text)
    if not text:
        raise InvalidInput("the name of the topic is empty")
    return TopicId.from_name(text)


async def _show(output: Output, topic: Topic) -> None:
    async for event in topic:
        if isinstance(event, Received):
            text = event.content.decode("utf-8", "replace")
            author = event.author or event.delivered_from
            output.result(
                "received",
                f"{author.short()}: {printable(text)}",
                text=text,
                delivered_from=str(event.delivered_from),
                hops=event.hops,
                author=None if event.author is None else str(event.author),
            )
            if output.has_lost_reader:
                return
        elif isinstance(event, NeighborUp | NeighborDown):
            output.remark(f"{len(topic.neighbors())} neighbours")
        elif isinstance(event, Lagged):
            output.remark(f"{event.missed} events were missed")


async def _publish(output: Output, topic: Topic) -> None:
    async for line in _lines():
        try:
            if line and not await topic.broadcast(line):
                output.remark("not sent: the same was published within 90 seconds")
        except (MessageTooLarge, NoNeighbors) as error:
            output.remark(f"not sent: {error.message}")


async def _lines() -> AsyncIterator[bytes]:
    """Return the lines of standard input.

    An event loop cannot wait for every kind of standard input, so a thread reads it. The thread ends
    with the program, which must not wait for a line that never comes.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = threading.Semaphore(_LINES_AHEAD)
    threading.Thread(target=_read_lines, args=(loop, lines, room), daemon=True).start()
    while (line := await lines.get()) is not None:
        room.release()
        yield line


def _read_lines(
    loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes | None], room: threading.Semaphore
) -> None:
    buffer = b""
    try:
        source = sys.stdin.fileno()
        while len(buffer) < _MAX_LINE_BYTES and (data := os.read(source, _READ_BYTES)):
            *complete, buffer = (buffer + data).split(b"\n")
            for line in complete:
                room.acquire()
                loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, None)
    except (OSError, ValueError, AttributeError, RuntimeError):
        return  # there is no standard input, or the program ends
