"""A room as one member knows it: who is here, and what was written. Without I/O and clocks.

What came is given to it together with the time, and it answers with what has changed, as
`Notice` values to be shown. Everything that others can make it hold is bounded.

Times: `now` is seconds of any clock that runs evenly, `wall_ms` is milliseconds of Unix time.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import attrs

from dialkey import EndpointAddr, EndpointId
from dialkey.errors import WireError
from dialkey_chat.messages import Bye, File, Hello, Letter, open_letter, unpack
from dialkey_gossip import TopicId

__all__ = [
    "Arrived",
    "Departed",
    "Notice",
    "Person",
    "Remark",
    "Renamed",
    "Room",
    "RoomLimits",
    "Written",
]

MAX_LIFETIME_S: Final = 120.0
DOUBT_S: Final = 2.0
"""A neighbour that was lost may be here still, connected to others. Then its next hello comes by."""


@attrs.frozen
class RoomLimits:
    """How much a room holds.

    Attributes:
        people: those who are shown as being here; further ones can still be read.
        letters: how many of the latest ones, at most.
        letter_bytes: and how many bytes of them, at most.
        files: offers that can be fetched by their number.
        skew_ms: letters from further in the future are refused.
        burst: messages of an author that are heard within `burst_s`; further ones are ignored.
        burst_s: see there.
    """

    people: int = 256
    letters: int = 500
    letter_bytes: int = 512 << 10
    files: int = 100
    skew_ms: int = 600_000
    burst: int = 200
    burst_s: float = 10.0


@attrs.frozen
class Person:
    """Somebody who is here.

    Attributes:
        id: proven.
        name: claimed; two people may have the same.
        addr: where they said they are.
        expires_at: when they are gone if nothing is heard.
        at_ms: when they spoke of themselves last.
    """

    id: EndpointId
    name: str
    addr: EndpointAddr
    expires_at: float
    at_ms: int


@attrs.frozen
class Written:
    """A letter is in the room that was not.

    Attributes:
        letter: which.
        number: the number with which its file is fetched; None if it is a text.
        is_history: it came from a peer's memory, not from its author now.
    """

    letter: Letter
    number: int | None = None
    is_history: bool = False


@attrs.frozen
class Arrived:
    """Somebody is here."""

    person: Person


@attrs.frozen
class Renamed:
    """Somebody has another name now."""

    person: Person
    before: str


@attrs.frozen
class Departed:
    """Somebody has left. Attributes: is_silent: without having said goodbye."""

    person: Person
    is_silent: bool


@attrs.frozen
class Remark:
    """The app has something to say to its own user."""

    text: str


Notice: TypeAlias = Written | Arrived | Renamed | Departed | Remark


class Room:
    """Who is here, and what was written.

    Args:
        me: our own id; what is heard of it is ignored, as we know better.
        topic: the room's.
        name: what it is called.
        limits: how much to hold.
    """

    def __init__(
        self, me: EndpointId, topic: TopicId, name: str, limits: RoomLimits | None = None
    ) -> None:
        self.me = me
        self.topic = topic
        self.name = name
        self.ignored = 0
        """Messages that were malformed, forged or too many."""
        self._limits = limits if limits is not None else RoomLimits()
        self._people: dict[EndpointId, Person] = {}
        self._departed: dict[EndpointId, int] = {}
        self._letters: list[Letter] = []
        self._ids: set[bytes] = set()
        self._letter_bytes = 0
        self._files: dict[int, Letter] = {}
        self._next_file = 1
        self._bursts: dict[EndpointId, deque[float]] = {}

    # --- what is known --------------------------------------------------------------------------

    @property
    def people(self) -> list[Person]:
        """Who is here besides us, by name."""
        return sorted(self._people.values(), key=lambda each: (each.name.casefold(), each.id))

    def person(self, id: EndpointId) -> Person | None:
        """Return somebody who is here."""
        return self._people.get(id)

    @property
    def letters(self) -> Sequence[Letter]:
        """What was written, the oldest first."""
        return tuple(self._letters)

    def letter_ids(self) -> frozenset[bytes]:
        """Return the ids of all letters that are held."""
        return frozenset(self._ids)

    def file(self, number: int) -> tuple[Letter, File] | None:
        """Return the offer of a number, and the letter that it stands in."""
        letter = self._files.get(number)
        return (letter, letter.body) if letter and isinstance(letter.body, File) else None

    # --- what happens ---------------------------------------------------------------------------

    def hear(self, author: EndpointId, data: bytes, now: float, wall_ms: int) -> list[Notice]:
        """Take what `author` has published; return what it changes."""
        if author == self.me:
            return []
        if self._is_burst(author, now):
            self.ignored += 1
            return []
        try:
            message = unpack(self.topic, author, data)
        except WireError:
            self.ignored += 1
            return []
        match message:
            case Hello():
                return self._hello(author, message, now)
            case Bye():
                return self._bye(author, message)
            case Letter():
                return self.add(message, wall_ms)

    def add(self, letter: Letter, wall_ms: int, *, is_history: bool = False) -> list[Notice]:
        """Put a letter where it belongs by its time, if it is not there already."""
        if letter.at_ms > wall_ms + self._limits.skew_ms:
            self.ignored += 1
            return []
        if letter.id in self._ids or self._is_too_old(letter):
            return []
        bisect.insort(self._letters, letter, key=lambda each: each.order)
        self._ids.add(letter.id)
        self._letter_bytes += len(letter.wire)
        while (
            len(self._letters) > self._limits.letters
            or self._letter_bytes > self._limits.letter_bytes
        ):
            oldest = self._letters.pop(0)
            self._ids.discard(oldest.id)
            self._letter_bytes -= len(oldest.wire)
        return [Written(letter, self._number(letter), is_history)]

    def merge(self, wires: Iterable[bytes], wall_ms: int) -> list[Notice]:
        """Add letters from a peer's memory, each of which has to be signed by its author."""
        notices: list[Notice] = []
        for wire in wires:
            try:
                letter = open_letter(self.topic, wire)
            except WireError:
                self.ignored += 1
                continue
            notices += self.add(letter, wall_ms, is_history=True)
        return notices

    def recent(self, known: frozenset[bytes], count: int, max_bytes: int) -> list[bytes]:
        """Return letters for a peer's memory: the latest that it does not know, the oldest first."""
        chosen: list[bytes] = []
        for letter in reversed(self._letters):
            if letter.id in known:
                continue
            max_bytes -= len(letter.wire)
            if len(chosen) == count or max_bytes < 0:
                break
            chosen.append(letter.wire)
        return chosen[::-1]

    def doubt(self, id: EndpointId, now: float) -> None:
        """Hear that a neighbour was lost: unless it speaks soon, it is gone."""
        person = self._people.get(id)
        if person is not None and person.expires_at > now + DOUBT_S:
            self._people[id] = attrs.evolve(person, expires_at=now + DOUBT_S)

    def expire(self, now: float) -> list[Notice]:
        """Let go of those who have been silent for too long."""
        gone = [person for person in self._people.values() if person.expires_at <= now]
        for person in gone:
            del self._people[person.id]
        return [Departed(person, is_silent=True) for person in gone]

    def next_expiry(self) -> float | None:
        """Return when `expire` has something to do next."""
        return min((person.expires_at for person in self._people.values()), default=None)

    # --- inside ---------------------------------------------------------------------------------

    def _hello(self, id: EndpointId, hello: Hello, now: float) -> list[Notice]:
        before = self._people.get(id)
        # Gossip keeps no order: a hello may come after the goodbye that was said later.
        last_ms = before.at_ms if before is not None else self._departed.get(id, -1)
        if hello.at_ms <= last_ms:
            return []
        if before is None and len(self._people) >= self._limits.people:
            self.ignored += 1
            return []
        expires_at = now + min(hello.lifetime_s, MAX_LIFETIME_S)
        person = Person(id, hello.name, hello.addr, expires_at, hello.at_ms)
        self._people[id] = person
        if before is None:
            return [Arrived(person)]
        return [Renamed(person, before.name)] if before.name != person.name else []

    def _bye(self, id: EndpointId, bye: Bye) -> list[Notice]:
        person = self._people.get(id)
        if person is not None and bye.at_ms < person.at_ms:
            return []
        self._departed.pop(id, None)
        self._departed[id] = bye.at_ms
        if len(self._departed) > self._limits.people:
            del self._departed[next(iter(self._departed))]
        if person is None:
            return []
        del self._people[id]
        return [Departed(person, is_silent=False)]

    def _is_too_old(self, letter: Letter) -> bool:
        """Whether it would be the first to go."""
        is_full = len(self._letters) >= self._limits.letters or (
            self._letter_bytes + len(letter.wire) > self._limits.letter_bytes
        )
        return is_full and letter.order < self._letters[0].order

    def _number(self, letter: Letter) -> int | None:
        if not isinstance(letter.body, File):
            return None
        number, self._next_file = self._next_file, self._next_file + 1
        self._files[number] = letter
        if len(self._files) > self._limits.files:
            del self._files[next(iter(self._files))]
        return number

    def _is_burst(self, author: EndpointId, now: float) -> bool:
        times = self._bursts.pop(author, None)
        if times is None:
            times = deque(maxlen=self._limits.burst)
        self._bursts[author] = times
        if len(self._bursts) > self._limits.people:
            del self._bursts[next(iter(self._bursts))]
        if len(times) == self._limits.burst and now - times[0] < self._limits.burst_s:
            return True
        times.append(now)
        return False
