"""What members of a workshop tell each other by gossip. Sans-IO.

A message is a MessagePack map of at most 2,048 bytes with a version ``v`` and a ``kind``:

- ``here``: a worker is there, where it is, and how busy. Again every few seconds, and at changes.
- ``bye``: it takes no more jobs.
- ``hello``: somebody looks for workers; they answer with ``here``.

Keys that are not known are skipped, other versions are ignored. The topic's messages are signed, so
nobody can speak for a worker but itself.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, TypeAlias

import attrs
import msgpack  # type: ignore[import-untyped]  # it has no annotations
from attrs.validators import and_, deep_iterable, ge, instance_of, le, matches_re, max_len

from dialkey import EndpointAddr, EndpointId, EndpointTicket
from dialkey.errors import InvalidInput, WireError
from dialkey_workshop.jobs import JOB_NAME

__all__ = ["ANNOUNCE_INTERVAL_S", "Board", "Bye", "Hello", "Here", "Message", "decode", "encode"]

VERSION: Final = 1

MAX_MESSAGE_BYTES: Final = 2048
"""Gossip carries 4,000; some 64 jobs and a ticket with 16 addresses fit in half of that."""

MAX_JOBS: Final = 64
MAX_SLOTS: Final = 1024
MAX_WORKERS: Final = 512
"""Workers that a client remembers; anybody who knows the topic can invent any number."""

ANNOUNCE_INTERVAL_S: Final = 5.0
EXPIRY_S: Final = 3.5 * ANNOUNCE_INTERVAL_S
"""Three announcements may get lost; intervals are up to a tenth longer than their mean."""

_size = and_(instance_of(int), ge(0), le(2**63 - 1))
_count = and_(instance_of(int), ge(0), le(MAX_SLOTS))


def _jobs(names: object) -> object:
    return tuple(names) if isinstance(names, list) else names


def _addr(ticket: object) -> object:
    return EndpointTicket.parse(ticket).addr if isinstance(ticket, str) else ticket


@attrs.frozen
class Here:
    """A worker is there.

    Attributes:
        addr: where.
        slots: jobs that it does at a time.
        active: jobs that it has now.
        jobs: the names of those that it can do.
        max_input_bytes: the longest input that it takes.
        at_ms: when this was said, by its own clock; a later one replaces an earlier one.
    """

    addr: EndpointAddr = attrs.field(converter=_addr, validator=instance_of(EndpointAddr))
    slots: int = attrs.field(validator=_count)
    active: int = attrs.field(validator=_count)
    jobs: tuple[str, ...] = attrs.field(
        converter=_jobs,
        validator=[
            max_len(MAX_JOBS),
            deep_iterable(and_(instance_of(str), matches_re(JOB_NAME)), instance_of(tuple)),
        ],
    )
    max_input_bytes: int = attrs.field(validator=_size)
    at_ms: int = attrs.field(validator=_size)

    @property
    def id(self) -> EndpointId:
        """Who it is."""
        return self.addr.id


@attrs.frozen
class Bye:
    """A worker takes no more jobs. Attributes: at_ms: as of `Here`."""

    at_ms: int = attrs.field(validator=_size)


@attrs.frozen
class Hello:
    """Somebody looks for workers."""


Message: TypeAlias = Here | Bye | Hello

_KINDS: Final[dict[str, type[Message]]] = {"here": Here, "bye": Bye, "hello": Hello}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """Write a message down.

    Raises:
        InvalidInput: it would be too long.
    """
    fields = {field.name: getattr(message, field.name) for field in attrs.fields(type(message))}
    if isinstance(message, Here):
        fields["addr"] = str(EndpointTicket(message.addr))
    data: bytes = msgpack.packb({"v": VERSION, "kind": _NAMES[type(message)], **fields})
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidInput(
            f"the announcement has {len(data)} bytes, and {MAX_MESSAGE_BYTES} fit",
            hint="offer fewer jobs, or bind fewer addresses",
        )
    return data


def decode(author: EndpointId, content: bytes) -> Message:
    """Read a message.

    Args:
        author: who signed it.
        content: what came.

    Raises:
        WireError: it is none, or of another version, or speaks of somebody else than its author.
    """
    if len(content) > MAX_MESSAGE_BYTES:
        raise WireError("the announcement is too long", endpoint_id=author)
    try:
        plain = msgpack.unpackb(content)
        if not isinstance(plain, dict) or plain.get("v") != VERSION:
            raise WireError("this is not an announcement of a known version", endpoint_id=author)
        kind = _KINDS[plain["kind"]]
        message = kind(**{each.name: plain[each.name] for each in attrs.fields(kind)})
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise WireError(f"the announcement is malformed: {error!r}", endpoint_id=author) from error
    if isinstance(message, Here) and message.id != author:
        raise WireError("the announcement is about somebody else", endpoint_id=author)
    return message


@attrs.define
class _Entry:
    here: Here | None
    at_ms: int
    expires_at: float


class Board:
    """Who is there, by what was heard.

    Args:
        allowed: the workers that count; None for all.
    """

    def __init__(self, allowed: Container[EndpointId] | None = None) -> None:
        self._allowed = allowed
        self._entries: dict[EndpointId, _Entry] = {}
        self.ignored = 0

    @property
    def workers(self) -> list[Here]:
        """The workers that take jobs, by id."""
        found = [entry.here for entry in self._entries.values() if entry.here is not None]
        return sorted(found, key=lambda here: here.id)

    def hear(self, author: EndpointId, content: bytes, now: float) -> Message | None:
        """Take what came by gossip; return it if it says something new."""
        try:
            message = decode(author, content)
        except WireError:
            self.ignored += 1
            return None
        if isinstance(message, Hello):
            return message
        entry = self._entries.get(author)
        is_welcome = self._allowed is None or author in self._allowed
        if entry is None and (not is_welcome or len(self._entries) >= MAX_WORKERS):
            self.ignored += 1
            return None
        # Gossip keeps no order: what was said before a goodbye may come after it.
        if entry is not None and message.at_ms <= entry.at_ms:
            return None
        here = message if isinstance(message, Here) else None
        self._entries[author] = _Entry(here, message.at_ms, now + EXPIRY_S)
        return message

    def expire(self, now: float) -> list[EndpointId]:
        """Forget, and return, those who have not renewed their announcement."""
        gone = [id for id, entry in self._entries.items() if entry.expires_at <= now]
        for id in gone:
            del self._entries[id]
        return gone

    def next_expiry(self) -> float | None:
        """Return when `expire` has something to do next."""
        return min((entry.expires_at for entry in self._entries.values()), default=None)
