"""Being in a room: gossip, history and files on one endpoint with one router, and no screen.

`open_chat` is the whole app but its looks. What happens comes as notices; what the user wants is a
method. `dialkey_chat.plain` and `dialkey_chat.ui` are two ways to show it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from dialkey import DialLimits, EndpointAddr, EndpointId, Router
from dialkey.errors import DialkeyError
from dialkey.identity import RelayAddr
from dialkey_blobs import TargetExists
from dialkey_chat.files import Files, in_order, open_files
from dialkey_chat.history import ALPN, History, ask_history
from dialkey_chat.messages import Bye, File, Hello, Letter, pack, write_letter
from dialkey_chat.notices import Notices
from dialkey_chat.room import Arrived, Remark, Room
from dialkey_chat.text import clean_name, clean_text
from dialkey_chat.ticket import RoomTicket
from dialkey_gossip import (
    Gossip,
    Lagged,
    NeighborDown,
    NeighborUp,
    NoNeighbors,
    Received,
    Signing,
    Topic,
)

if TYPE_CHECKING:
    from dialkey import Endpoint

__all__ = ["Chat", "Settings", "open_chat"]

GRACE_S: Final = 1.0
HELLO_GAP_S: Final = 0.2
"""News about ourselves within this time are told together."""

OUTBOX_LETTERS: Final = 100
PACE_S: Final = 0.1
"""Between letters, when there are several: slower than what others ignore, see `RoomLimits.burst`."""

PATIENCE_S: Final = 5.0
"""When somebody who waits for the others is told that they do not answer."""

LAST_WORDS_S: Final = 1.0
LINGER_S: Final = 0.6
"""After the last letter: gossip only announces a message to some neighbours, who then ask for it."""

TICKET_PEERS: Final = 3
MAX_TRANSFERS: Final = 4
MAX_PROVIDERS: Final = 16
REPORT_INTERVAL_S: Final = 1.0
FALLBACK_PEERS: Final = 3
"""Members who are asked for history when the neighbour that we wanted to ask fails."""

FILE_RELAYS: Final = 2
FILE_DATAGRAMS: Final = 20
"""For each dial to somebody who may have a file, of relays that a stranger has named."""

MAX_DIALLED: Final = 1_000
"""People of whom we remember for which hello we dialled them; more than a room shows."""

logger = logging.getLogger("dialkey.chat")


@attrs.frozen
class Settings:
    """How to be in a room.

    Attributes:
        name: what to be called.
        downloads: where files go.
        heartbeat_s: how often to say that we are here; others believe it three times as long.
        history_patience_s: how long a peer may take to tell what was written.
    """

    name: str = attrs.field(default="guest", converter=clean_name)
    downloads: Path = attrs.field(default=Path("chat-downloads"), converter=Path)
    heartbeat_s: float = 10.0
    history_patience_s: float = 5.0


@contextlib.asynccontextmanager
async def open_chat(
    endpoint: Endpoint, place: RoomTicket, settings: Settings | None = None
) -> AsyncIterator[Chat]:
    """Be in a room while in the context; leaving it says goodbye.

    Args:
        endpoint: stays the caller's; it must not have a router.
        place: the room; with peers we join it through them, without we wait for others.
        settings: how.

    Raises:
        StorageError, OSError: the folder for downloads cannot be used.
    """
    settings = settings if settings is not None else Settings()
    room = Room(endpoint.id, place.topic, place.name)
    try:
        async with (
            open_files(settings.downloads) as files,
            Router(endpoint, grace_s=GRACE_S) as router,
        ):
            router.add(files.blobs)
            gossip = router.add(Gossip())
            router.accept(ALPN, History(room))
            async with (
                gossip.join(place.members, signing=Signing()) as topic,
                asyncio.TaskGroup() as tasks,
            ):
                chat = Chat(
                    endpoint,
                    room,
                    gossip,
                    topic,
                    files,
                    settings,
                    tasks,
                    is_joining=bool(place.peers),
                )
                try:
                    yield chat
                finally:
                    await chat.leave()
    except BaseExceptionGroup as group:
        # The task group wraps what is raised in it, also what the caller raises.
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


class Chat:
    """A room that we are in; made by `open_chat`."""

    def __init__(
        self,
        endpoint: Endpoint,
        room: Room,
        gossip: Gossip,
        topic: Topic,
        files: Files,
        settings: Settings,
        tasks: asyncio.TaskGroup,
        *,
        is_joining: bool,
    ) -> None:
        self.room = room
        self.notices = Notices()
        """What happens, for one reader."""
        self._endpoint = endpoint
        self._gossip = gossip
        self._topic = topic
        self._files = files
        self._settings = settings
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()
        self._transfers = 0
        self._name = settings.name
        self._last_ms = 0
        self._spoke_at = float("-inf")
        self._news = asyncio.Event()
        self._outbox: deque[Letter] = deque()
        self._posted = asyncio.Event()
        self._delivered = asyncio.Event()
        self._delivered.set()
        self._has_space = asyncio.Event()
        self._has_space.set()
        self._dialled: dict[EndpointId, int] = {}
        self._to_ask: deque[EndpointId] = deque()
        self._asking = asyncio.Event()
        for work in (self._listen, self._announce, self._deliver, self._expire, self._ask):
            self._spawn(work())
        if is_joining:
            self._spawn(self._tell_if_alone())

    # --- who and where --------------------------------------------------------------------------

    @property
    def id(self) -> EndpointId:
        """Who we are."""
        return self._endpoint.id

    @property
    def name(self) -> str:
        """What we are called."""
        return self._name

    def ticket(self) -> RoomTicket:
        """Return a ticket to the room that names us and some neighbours, as of now."""
        ticket = self._topic.ticket(TICKET_PEERS)
        return RoomTicket(self.room.name, ticket.topic, ticket.peers)

    # --- what the user does ---------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Write to all. It is shown at once, and sent as soon as somebody is there to hear it.

        Raises:
            InvalidInput: it is empty, or too long; nothing was written.
        """
        self._post(text)

    def rename(self, name: str) -> None:
        """Be called something else from now on."""
        self._name = clean_name(name)
        self._news.set()
        self.remark(f"you are {self._name} now")

    def remark(self, text: str) -> None:
        """Show something to our own user."""
        self.notices.put([Remark(text)])

    def send(self, path: Path) -> None:
        """Offer a file or folder to all; the result appears as a notice."""
        self._transfer(self._send(path))

    def get(self, number: int, folder: Path | None = None) -> None:
        """Fetch the file with a number; results appear as remarks."""
        offer = self.room.file(number)
        if offer is None:
            self.remark(f"there is no file with number {number}")
        elif offer[0].author == self.id:
            self.remark("this file is yours")
        else:
            self._transfer(self._get(number, *offer, folder))

    async def space(self) -> None:
        """Wait while much of what was said is still to be sent; for those who say more than people."""
        await self._has_space.wait()

    async def delivered(self) -> None:
        """Wait until everything that we wrote has gone to somebody."""
        await self._delivered.wait()

    async def leave(self) -> None:
        """Send what is to be sent, stop everything and say goodbye. Idempotent; `open_chat` does it.

        Takes about a second at most; what nobody is there to hear stays unsent.
        """
        if not self._topic.is_left and self._topic.neighbors():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.delivered()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if not self._topic.is_left:
            await asyncio.sleep(self._spoke_at + LINGER_S - self._now())
            await self._say_goodbye()
            await self._topic.leave()
        self.notices.close()

    async def _say_goodbye(self) -> None:
        bye = pack(Bye(self._now_ms()))
        if await self._publish(bye):
            # And to all neighbours as it is: those who get only announcements could not ask for it.
            with contextlib.suppress(NoNeighbors):
                await self._topic.broadcast_neighbors(bye)

    # --- writing --------------------------------------------------------------------------------

    def _post(self, body: str | File) -> None:
        letter = write_letter(
            self._endpoint.secret_key, self.room.topic, self._name, body, self._now_ms()
        )
        self.notices.put(self.room.add(letter, letter.at_ms))
        self._outbox.append(letter)
        if len(self._outbox) > OUTBOX_LETTERS:
            # What nobody is there to hear is not lost: those who come ask for history.
            self._outbox.popleft()
        if len(self._outbox) >= OUTBOX_LETTERS // 2:
            self._has_space.clear()
        self._delivered.clear()
        self._posted.set()

    async def _deliver(self) -> None:
        while True:
            while self._outbox:
                await self._topic.joined()
                letter = self._outbox.popleft()
                if not await self._publish(pack(letter)):
                    self._outbox.appendleft(letter)
                    continue
                self._spoke_at = self._now()
                if len(self._outbox) < OUTBOX_LETTERS // 2:
                    self._has_space.set()
                if self._outbox:
                    await asyncio.sleep(PACE_S)
            self._delivered.set()
            self._posted.clear()
            await self._posted.wait()

    async def _publish(self, data: bytes) -> bool:
        try:
            await self._topic.broadcast(data)
        except NoNeighbors:
            return False
        return True

    def _now_ms(self) -> int:
        # What we say later is later, also when the clock was set back.
        self._last_ms = max(self._last_ms + 1, _wall_ms())
        return self._last_ms

    # --- presence -------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for event in self._topic:
            match event:
                case Received(author=EndpointId() as author):
                    notices = self.room.hear(author, event.content, self._now(), _wall_ms())
                    self.notices.put(notices)
                    if any(isinstance(each, Arrived) for each in notices):
                        self._news.set()
                case NeighborUp():
                    self._want_history(event.peer)
                    self._news.set()
                case NeighborDown():
                    self.room.doubt(event.peer, self._now())
                case Lagged():
                    self.remark(f"{event.missed} messages came too fast")
                    for peer in self._topic.neighbors():
                        self._want_history(peer)

    async def _announce(self) -> None:
        """Say that we are here: regularly, and when there is somebody new to tell."""
        lifetime_s = 3.5 * self._settings.heartbeat_s
        while True:
            self._news.clear()
            hello = Hello(self._name, self._endpoint.addr(), lifetime_s, self._now_ms())
            await self._publish(pack(hello))
            # In a large room, not all answer a newcomer in the same moment.
            await asyncio.sleep(HELLO_GAP_S * random.uniform(0.5, 1.5))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.heartbeat_s):
                    await self._news.wait()

    async def _tell_if_alone(self) -> None:
        """Report it when nobody in the ticket can be reached; attempts continue."""
        try:
            await self._topic.joined(PATIENCE_S)
        except NoNeighbors:
            self.remark("nobody in the ticket answers yet; still trying")

    async def _expire(self) -> None:
        step_s = min(1.0, self._settings.heartbeat_s / 2)
        while True:
            await asyncio.sleep(step_s)
            self.notices.put(self.room.expire(self._now()))

    # --- history --------------------------------------------------------------------------------

    def _want_history(self, peer: EndpointId) -> None:
        if peer not in self._to_ask:
            self._to_ask.append(peer)
            self._asking.set()

    async def _ask(self) -> None:
        """Ask each new neighbour for what we are missing; there is no other way to learn of the past.

        A peer that fails, lies or hangs is left after a while, and others are asked.
        """
        while True:
            while self._to_ask:
                peer = self._to_ask.popleft()
                if not await self._ask_one(peer):
                    others = [each.id for each in self.room.people if each.id != peer]
                    for other in random.sample(others, min(FALLBACK_PEERS, len(others))):
                        if await self._ask_one(other):
                            break
            self._asking.clear()
            await self._asking.wait()

    async def _ask_one(self, peer: EndpointId) -> bool:
        addr = next((addr for addr in self._neighbors() if addr.id == peer), None)
        limits = self._gossip.dial_limits(peer)
        if addr is None:
            person = self.room.person(peer)
            if person is None or person.at_ms <= self._dialled.get(peer, -1):
                return False
            # Each hello is good for one dial to one address: it is about what it cost to send.
            self._dialled.pop(peer, None)
            self._dialled[peer] = person.at_ms
            if len(self._dialled) > MAX_DIALLED:
                del self._dialled[next(iter(self._dialled))]
            addr, limits = person.addr, self._gossip.dial_limits(peer, 1)
        try:
            async with asyncio.timeout(self._settings.history_patience_s):
                letters = await ask_history(self._endpoint, addr, self.room, limits)
        except (DialkeyError, TimeoutError) as error:
            logger.info(
                "%s does not give us the history: %s", peer.short(), error or "no answer in time"
            )
            return False
        self.notices.put(self.room.merge(letters, _wall_ms()))
        return True

    def _neighbors(self) -> list[EndpointAddr]:
        ticket = self._topic.ticket(len(self._topic.neighbors()))
        return [addr for addr in ticket.peers if addr.id != self.id]

    def _others(self) -> list[EndpointAddr]:
        """List where others are. We may have neighbours whose hello has not come yet."""
        known = {addr.id: addr for addr in self._neighbors()}
        known |= {person.id: person.addr for person in self.room.people}
        return list(known.values())[:MAX_PROVIDERS]

    # --- files ----------------------------------------------------------------------------------

    def _transfer(self, work: Coroutine[object, object, None]) -> None:
        if self._transfers >= MAX_TRANSFERS:
            work.close()
            self.remark(f"{MAX_TRANSFERS} transfers are running; wait for one of them")
            return
        self._transfers += 1
        self._spawn(self._guarded(work))

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except (DialkeyError, OSError) as error:
            self.remark(f"that did not work: {clean_text(str(error), 500)}")
        finally:
            self._transfers -= 1

    async def _send(self, path: Path) -> None:
        self._post(await self._files.offer(path))

    async def _get(self, number: int, letter: Letter, file: File, folder: Path | None) -> None:
        author = self.room.person(letter.author)
        providers = in_order(
            author.addr if author is not None else None, file.ticket.addr, self._others()
        )
        reported_at = self._now()

        def progress(done: int, total: int) -> None:
            nonlocal reported_at
            if self._now() - reported_at >= REPORT_INTERVAL_S:
                reported_at = self._now()
                self.remark(f"file {number}: {100 * done // max(done, total, 1)} %")

        self.remark(f"file {number}: fetching {file.name}")
        try:
            paths = await self._files.fetch(file, providers, folder, progress, self._file_limits)
        except TargetExists as error:
            path = clean_text(str(error.path), 500)
            self.remark(f"{path} already exists; /get {number} FOLDER puts it elsewhere")
            return
        for each in paths:
            self.remark(f"file {number}: saved {clean_text(str(each), 500)}")

    def _file_limits(self, provider: EndpointId) -> DialLimits:
        """Say which relays a dial for a file may use that nobody but a stranger has named.

        What it costs is not limited: somebody here has asked for the file.
        """
        limits = self._gossip.dial_limits(provider, FILE_RELAYS)
        return attrs.evolve(
            limits,
            max_datagrams=FILE_DATAGRAMS,
            applies_to=lambda addr: isinstance(addr, RelayAddr) and limits.applies_to(addr),
        )

    # --- inside ---------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
