"""A room over real endpoints, without a screen: relays, liars, those who come, go and move."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import attrs
import msgpack
import pytest
from dialkey_chat import Arrived, Chat, Departed, Notice, Remark, RoomTicket, Settings, Written
from dialkey_chat.commands import perform
from dialkey_chat.history import ALPN, ask_history
from dialkey_chat.messages import File, pack, write_letter
from dialkey_chat.room import Room
from dialkey_chat.session import open_chat
from endpoints import on_loopback

from dialkey import Connection, Endpoint, EndpointAddr, Router, SecretKey
from dialkey.errors import DialkeyError
from dialkey.identity import IpAddr
from dialkey_blobs import BlobTicket, FsStore
from dialkey_gossip import Gossip, Signing, Topic
from dialkey_relay import Everyone, RelayServer

TIMEOUT_S = 15.0
CALM_S = TIMEOUT_S
"""The heartbeat of those whose goodbye is awaited; with a short one, a busy machine loses them first."""
N = TypeVar("N", bound=Notice)


@attrs.define
class Member:
    """A chat with everything that it has told, of which any part can be waited for."""

    chat: Chat
    seen: list[Notice] = attrs.field(factory=list)

    async def expect(self, kind: type[N], found: Callable[[N], bool]) -> N:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for notice in self.seen:
                    if isinstance(notice, kind) and found(notice):
                        return notice
                self.seen.append(await anext(self.chat.notices))

    async def reads(self, text: str) -> Written:
        return await self.expect(Written, lambda notice: notice.letter.body == text)

    async def sees(self, name: str) -> Arrived:
        return await self.expect(Arrived, lambda notice: notice.person.name == name)

    async def misses(self, name: str) -> Departed:
        return await self.expect(Departed, lambda notice: notice.person.name == name)

    async def is_told(self, part: str) -> Remark:
        return await self.expect(Remark, lambda notice: part in notice.text)


@contextlib.asynccontextmanager
async def member(
    name: str,
    folder: Path,
    place: RoomTicket,
    endpoint: Endpoint | None = None,
    heartbeat_s: float = 0.3,
    history_patience_s: float = 5.0,
) -> AsyncIterator[Member]:
    settings = Settings(name, folder / name, heartbeat_s, history_patience_s)
    async with contextlib.AsyncExitStack() as stack:
        if endpoint is None:
            endpoint = await stack.enter_async_context(on_loopback())
        yield Member(await stack.enter_async_context(open_chat(endpoint, place, settings)))


@contextlib.asynccontextmanager
async def stranger(
    place: RoomTicket, history: object | None = None
) -> AsyncIterator[tuple[Endpoint, Topic]]:
    """Somebody in the topic who runs other software."""
    async with on_loopback() as endpoint, Router(endpoint, grace_s=0.0) as router:
        gossip = router.add(Gossip())
        if history is not None:
            router.accept(ALPN, history)  # type: ignore[arg-type]
        async with await gossip.join(place.members, signing=Signing()) as topic:
            yield endpoint, topic


def new_room() -> RoomTicket:
    return RoomTicket.create("tea")


def ticket_of(place: RoomTicket, *endpoints: Endpoint) -> RoomTicket:
    return attrs.evolve(place, peers=tuple(each.addr() for each in endpoints))


def remember(who: Member, text: str) -> None:
    """Let somebody know of a letter that was written in another time, so gossip has it no more."""
    key = SecretKey(bytes([7]) * 32)
    room = who.chat.room
    room.add(write_letter(key, room.topic, "old friend", text, 1_000), 1_000)


# --- ways -----------------------------------------------------------------------------------------


async def test_over_a_relay_and_nothing_else(tmp_path: Path) -> None:
    async with (
        RelayServer([Everyone()]) as server,
        Endpoint.bind(relays=[server.url], transports=()) as a,
        Endpoint.bind(relays=[server.url], transports=()) as b,
    ):
        async with asyncio.timeout(TIMEOUT_S):
            await a.online()
        async with member("alice", tmp_path, new_room(), a) as alice:
            alice.chat.say("before")
            ticket = alice.chat.ticket()
            assert all(not addr.ip_addrs and addr.relay_urls for addr in ticket.peers)
            async with member("bob", tmp_path, ticket, b, CALM_S) as bob:
                await bob.reads("before")
                await alice.sees("bob")
                bob.chat.say("through the relay")
                await alice.reads("through the relay")
                source = tmp_path / "file"
                source.write_bytes(bytes(300_000))
                bob.chat.send(source)
                offer = await alice.expect(Written, lambda each: each.number is not None)
                assert offer.number is not None
                alice.chat.get(offer.number)
                await alice.is_told("saved")
                assert (tmp_path / "alice" / "file").read_bytes() == source.read_bytes()
                bob.chat.say("last words")
            await alice.reads("last words")
            assert not (await alice.misses("bob")).is_silent


async def test_those_who_joined_through_somebody_stay_when_it_leaves(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        alice_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        alice = await alice_stack.enter_async_context(
            member("alice", tmp_path, new_room(), heartbeat_s=CALM_S)
        )
        ticket = alice.chat.ticket()
        bob = await stack.enter_async_context(member("bob", tmp_path, ticket))
        carol = await stack.enter_async_context(member("carol", tmp_path, ticket))
        for each in (bob, carol):
            await each.sees("alice")
        await bob.sees("carol")
        await carol.sees("bob")
        alice.chat.say("goodbye")
        await carol.reads("goodbye")
        await bob.reads("goodbye")
        await alice_stack.aclose()
        for each in (bob, carol):
            assert not (await each.misses("alice")).is_silent
        bob.chat.say("she is gone")
        await carol.reads("she is gone")

        remember(carol, "long ago")
        # Alice's ticket leads nowhere now; one that bob makes does, also to those who are not in it.
        dave = await stack.enter_async_context(member("dave", tmp_path, bob.chat.ticket()))
        assert (await dave.reads("goodbye")).letter.name == "alice"
        assert (await dave.reads("long ago")).is_history
        await dave.sees("carol")
        await dave.sees("bob")


async def test_what_was_said_alone_reaches_those_whom_one_meets(tmp_path: Path) -> None:
    """Two halves of a room, each with words of its own, come together."""
    place = new_room()
    async with member("alice", tmp_path, place) as alice, member("bob", tmp_path, place) as bob:
        alice.chat.say("alone a")
        bob.chat.say("alone b")
        ticket = attrs.evolve(place, peers=(*alice.chat.ticket().peers, *bob.chat.ticket().peers))
        async with member("carol", tmp_path, ticket) as carol:
            for each in (alice, bob, carol):
                await each.reads("alone a")
                await each.reads("alone b")
        assert alice.chat.room.letters == bob.chat.room.letters, "in the same order, too"


async def test_a_file_is_fetched_where_its_sender_is_now(tmp_path: Path) -> None:
    async with on_loopback() as endpoint, member("alice", tmp_path, new_room(), endpoint) as alice:
        ticket = alice.chat.ticket()
        async with member("bob", tmp_path, ticket) as bob:
            (tmp_path / "song").write_bytes(b"la" * 50_000)
            alice.chat.send(tmp_path / "song")
            offer = await bob.expect(Written, lambda each: each.number is not None)
            await bob.sees("alice")
            assert isinstance(offer.letter.body, File)
            # As if alice had moved since: her old address is nobody's.
            gone = EndpointAddr(endpoint.id, [IpAddr.parse("127.0.0.1:1")])
            moved = attrs.evolve(
                offer.letter.body,
                ticket=BlobTicket(
                    gone, offer.letter.body.ticket.hash, offer.letter.body.ticket.format
                ),
            )
            key = endpoint.secret_key
            letter = write_letter(key, ticket.topic, "alice", moved, offer.letter.at_ms + 1)
            (notice,) = bob.chat.room.add(letter, letter.at_ms)
            assert isinstance(notice, Written)
            assert notice.number is not None
            bob.chat.get(notice.number)
            await bob.is_told("saved")
            assert (tmp_path / "bob" / "song").read_bytes() == b"la" * 50_000


async def test_a_folder_and_files_that_are_not_there(tmp_path: Path) -> None:
    async with (
        member("alice", tmp_path, new_room()) as alice,
        member("bob", tmp_path, alice.chat.ticket()) as bob,
    ):
        folder = tmp_path / "photos"
        (folder / "deep").mkdir(parents=True)
        (folder / "one").write_bytes(b"1")
        (folder / "deep" / "two").write_bytes(b"2")
        perform(alice.chat, f"/send {folder}")
        await bob.expect(Written, lambda each: each.number == 1)
        perform(bob.chat, f"/get 1 '{tmp_path / 'to here'}'")
        await bob.is_told("two")
        assert (tmp_path / "to here" / "photos" / "deep" / "two").read_bytes() == b"2"
        perform(alice.chat, "/send /nowhere/at all")
        await alice.is_told("that did not work")
        for line, answer in (
            ("/get 9", "no file"),
            ("/get x", "say which"),
            ("/wow", "what is /wow"),
        ):
            perform(bob.chat, line)
            await bob.is_told(answer)
        perform(alice.chat, "//slash")
        await bob.reads("/slash")


async def test_a_ticket_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialkey_chat.session.PATIENCE_S", 0.05)
    nobody = EndpointAddr(SecretKey(bytes(32)).id, [IpAddr.parse("127.0.0.1:1")])
    place = attrs.evolve(new_room(), peers=(nobody,))
    async with member("alice", tmp_path, place) as alice:
        await alice.is_told("nobody in the ticket answers yet")


async def test_what_a_killed_chat_has_left_is_removed(tmp_path: Path) -> None:
    downloads = tmp_path / "alice"
    dead, living, young = (downloads / f".dialkey-chat-{each}" for each in ("a", "b", "c"))
    for folder in (dead, living, young):
        async with FsStore(folder) as store:
            await store.add_bytes(bytes(100_000))
    async with FsStore(living):
        for folder in (dead, living):
            os.utime(folder, (1, 1))
        async with member("alice", tmp_path, new_room()):
            left = set(os.listdir(downloads))
    assert {living.name, young.name} < left
    assert dead.name not in left


# --- strangers ------------------------------------------------------------------------------------


class Hanging:
    """Takes the question for history, and never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def accept(self, connection: Connection) -> None:
        _, recv = await connection.accept_bi()
        await recv.read_to_end(limit=1 << 20)
        self.asked.set()
        await connection.closed()


class Lying:
    """Answers with something that is not a history."""

    def __init__(self, answer: bytes) -> None:
        self.asked = asyncio.Event()
        self._answer = answer

    async def accept(self, connection: Connection) -> None:
        send, recv = await connection.accept_bi()
        await recv.read_to_end(limit=1 << 20)
        self.asked.set()
        with contextlib.suppress(DialkeyError):
            await send.write(self._answer, finish=True)
        await connection.closed()


FORGED = [bytes(96), msgpack.packb([bytes(32), b"", bytes(64)]), b"\xc1"]


@pytest.mark.parametrize(
    "make",
    [
        Hanging,
        lambda: Lying(b"\xc1 no msgpack"),
        lambda: Lying(bytes(2 << 20)),
        lambda: Lying(msgpack.packb({"v": 1, "letters": [1, {}]})),
        lambda: Lying(msgpack.packb({"v": 1, "letters": FORGED})),
    ],
    ids=["hangs", "junk", "giant", "types", "forged"],
)
async def test_history_is_asked_elsewhere_if_a_peer_does_not_tell_it(
    tmp_path: Path, make: Callable[[], Hanging | Lying]
) -> None:
    place, bad = new_room(), make()
    async with (
        stranger(place, bad) as (endpoint, _),
        # Who hangs is left after this time; whoever is honest must answer within it on a busy machine.
        member("bob", tmp_path, ticket_of(place, endpoint), history_patience_s=2.0) as bob,
    ):
        async with asyncio.timeout(TIMEOUT_S):
            await bad.asked.wait()
        async with member("alice", tmp_path, ticket_of(place, endpoint)) as alice:
            remember(alice, "the truth")
            assert (await bob.reads("the truth")).is_history
            assert [each.body for each in bob.chat.room.letters] == ["the truth"]


async def test_hostile_messages_harm_nobody(tmp_path: Path) -> None:
    async with member("alice", tmp_path, new_room()) as alice:
        ticket = alice.chat.ticket()
        async with stranger(ticket) as (endpoint, topic):
            await topic.joined(TIMEOUT_S)
            key = endpoint.secret_key
            hostile = [
                b"",
                b"\xc1",
                b"\x93" * 3_000,
                bytes(topic.max_payload_bytes),
                msgpack.packb({"v": 1, "kind": "letter", "letter": b"x" * 3_000}),
                msgpack.packb({"v": 1, "kind": "hello", "name": 7, "addr": None, "at": 1}),
                msgpack.packb({"v": 99, "kind": "hello"}),
                msgpack.packb([[[[]]]] * 100),
                msgpack.packb({"v": 1, "kind": "bye", "at": -1}),
            ]
            for data in hostile:
                await topic.broadcast(data)
            name, text = (
                "mal\x1b[2J\u202elory",
                "\x1b]0;owned\x07\x9b31mfake\r\n12:00 alice: I agree",
            )
            letter = write_letter(key, ticket.topic, "x", "placeholder", 1)
            # As a client would send it that cleans nothing.
            content = msgpack.packb(
                {"v": 1, "at": letter.at_ms, "name": name, "kind": "text", "text": text}
            )
            signed = b"dialkey-chat letter v1\x00" + bytes(ticket.topic) + content
            wire = msgpack.packb([bytes(key.id), content, bytes(key.sign(signed))])
            await topic.broadcast(pack(attrs.evolve(letter, wire=wire)))
            shown = await alice.reads("]0;owned31mfake 12:00 alice: I agree")
            assert shown.letter.name == "mal[2Jlory"
            assert shown.letter.author == endpoint.id
            assert alice.chat.room.ignored == len(hostile)
            assert alice.chat.room.people == []
            # And the room goes on.
            async with member("bob", tmp_path, alice.chat.ticket()) as bob:
                bob.chat.say("all is well")
                await alice.reads("all is well")


async def test_what_the_caller_raises_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with member("alice", tmp_path, new_room()):
            raise KeyError
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0), member("alice", tmp_path, new_room()) as alice:
                await alice.sees("nobody")
    assert os.listdir(tmp_path) == []


async def test_history_is_for_members(tmp_path: Path) -> None:
    async with (
        on_loopback() as endpoint,
        on_loopback() as asking,
        member("alice", tmp_path, new_room(), endpoint) as alice,
    ):
        alice.chat.say("among us")
        knows = Room(asking.id, alice.chat.room.topic, "tea")
        assert len(await ask_history(asking, endpoint.addr(), knows)) == 1
        guesses = Room(asking.id, new_room().topic, "tea")
        with pytest.raises(DialkeyError, match="another room"):
            await ask_history(asking, endpoint.addr(), guesses)
        for question in (b"", b"\xc1", msgpack.packb({"v": 1, "room": 5}), msgpack.packb([])):
            async with await asking.connect(endpoint.addr(), ALPN) as connection:
                send, recv = await connection.open_bi()
                await send.write(question, finish=True)
                with pytest.raises(DialkeyError):
                    await recv.read_to_end(limit=1_000)
        assert len(await ask_history(asking, endpoint.addr(), knows)) == 1
