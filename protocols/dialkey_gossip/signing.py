"""Signed messages: they prove their author, that they are unchanged, and that they are not replayed.

Gossip itself attributes a message to the neighbour that passes it on. The members of a topic may agree to
put this envelope around every content instead; it is an extension of ours, off by default, and members
without it see envelopes as ordinary contents::

    envelope := 'DKS1' || author [32] || session varint || sequence varint || sent varint
                || payload || signature [64]

`session` is when the author started, `sent` when it wrote the message, both in milliseconds of Unix
time; `sequence` counts from 1 in each session. The Ed25519 signature covers a domain separator, the
topic id and all of the envelope before it.

A receiver accepts each (author, session, sequence) once. It remembers the latest session of an author and
a window of sequences in it, for as long as any message of that author is young enough to be accepted.
Older sessions, sequences before the window, and messages that by its own clock were sent too long ago or
in the future are refused. Refused messages are not passed on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

import attrs

from dialkey.errors import InvalidInput, InvalidKey, WireError
from dialkey.identity import EndpointId, InvalidSignature, SecretKey
from dialkey.identity.postcard import Reader, Writer
from dialkey.limits import MAX_GOSSIP_AUTHORS
from dialkey_gossip.ids import PeerId, TopicId
from dialkey_gossip.quota import Quota

__all__ = ["ENVELOPE_OVERHEAD_BYTES", "Envelope", "Opener", "Signer", "Signing", "read_envelope"]

_MAGIC: Final = b"DKS1"
_DOMAIN: Final = b"dialkey gossip signed message v1\x00"
_SIGNATURE_BYTES: Final = 64
_MAX_VARINT_BYTES: Final = 10

ENVELOPE_OVERHEAD_BYTES: Final = len(_MAGIC) + 32 + 3 * _MAX_VARINT_BYTES + _SIGNATURE_BYTES
"""What an envelope adds at most."""

_EXPIRY_STEPS: Final = 32
"""Into how many steps the time is divided in which a message may still be accepted."""

WINDOW: Final = 1024
"""Sequences below the highest that may still arrive; gossip does not keep messages in order."""

_WINDOW_MASK: Final = (1 << WINDOW) - 1


@attrs.frozen
class Signing:
    """That the messages of a topic are signed, and how.

    Attributes:
        secret_key: what to sign with; the endpoint's own key if None.
        max_age_s: messages sent longer ago, or further in the future, are refused. It limits how long a
            message can be replayed to somebody who has not seen it, and how far the clocks of
            members may differ.

    Raises:
        InvalidInput: `max_age_s` is not a positive, finite number.
    """

    secret_key: SecretKey | None = None
    max_age_s: float = 600.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.max_age_s < float("inf"):
            raise InvalidInput(f"max_age_s is a positive number of seconds, not {self.max_age_s}")


@attrs.frozen
class Envelope:
    """A signed message. Attributes as in the format above; times in milliseconds."""

    author: EndpointId
    session: int
    sequence: int
    sent_at_ms: int
    payload: bytes
    signed: bytes
    signature: bytes


def read_envelope(content: bytes) -> Envelope:
    """Read an envelope without checking its signature.

    Raises:
        WireError: the content is something else.
    """
    if not content.startswith(_MAGIC) or len(content) < len(_MAGIC) + _SIGNATURE_BYTES:
        raise WireError("the content is not a signed message")
    signed, signature = content[:-_SIGNATURE_BYTES], content[-_SIGNATURE_BYTES:]
    reader = Reader(signed[len(_MAGIC) :])
    try:
        author = EndpointId(reader.take(32))
    except InvalidKey as error:
        raise WireError(error.message) from None
    session, sequence, sent_at_ms = reader.varint(), reader.varint(), reader.varint()
    payload = reader.take(reader.remaining)
    return Envelope(author, session, sequence, sent_at_ms, payload, signed, signature)


def _to_sign(topic: TopicId, signed: bytes) -> bytes:
    return _DOMAIN + bytes(topic) + signed


class Signer:
    """Sign our messages in one topic.

    Args:
        secret_key: ours.
        topic: the topic; a message signed for one is not valid in another.
        now_s: Unix time; it names the session, so it must be later than that of the last one.
    """

    def __init__(self, secret_key: SecretKey, topic: TopicId, now_s: float) -> None:
        self._secret_key = secret_key
        self._topic = topic
        self._session = int(now_s * 1000)
        self._sequence = 0

    def seal(self, payload: bytes, now_s: float) -> bytes:
        """Put a payload into the next envelope."""
        self._sequence += 1
        writer = Writer().raw(_MAGIC).raw(bytes(self._secret_key.id)).varint(self._session)
        writer.varint(self._sequence).varint(int(now_s * 1000)).raw(payload)
        signed = bytes(writer)
        return signed + bytes(self._secret_key.sign(_to_sign(self._topic, signed)))


@attrs.define
class _Author:
    """What is remembered about an author.

    Attributes:
        brought_by: the peer that brought its first message.
        session: the latest one.
        latest_ms: the latest time at which any of its messages was sent.
        bucket: where it is in the order of expiry.
        highest: the highest sequence of the session.
        window: bit n says whether sequence `highest` - n has arrived.
    """

    brought_by: PeerId
    session: int
    latest_ms: int
    bucket: int
    highest: int = 0
    window: int = 0

    def has(self, sequence: int) -> bool:
        behind = self.highest - sequence
        return behind >= WINDOW or (behind >= 0 and bool(self.window >> behind & 1))

    def add(self, sequence: int) -> None:
        ahead = sequence - self.highest
        if ahead <= 0:
            self.window |= 1 << -ahead
            return
        self.window = (self.window << ahead if ahead < WINDOW else 0) & _WINDOW_MASK | 1
        self.highest = sequence


class Opener:
    """Decides which signed messages of a topic are genuine and new.

    An author is remembered until all of its messages are too old to be accepted again. There is room for
    `limits.MAX_GOSSIP_AUTHORS`; when it runs short, new authors are refused, first from the peers that
    brought most of them (`dialkey_gossip.quota`). Known authors are not affected.

    Args:
        topic: the topic.
        max_age_s: see `Signing`.
        clock: Unix time.
    """

    def __init__(self, topic: TopicId, max_age_s: float, clock: Callable[[], float]) -> None:
        self.max_age_s = max_age_s
        self._topic = topic
        self._clock = clock
        self._authors: dict[EndpointId, _Author] = {}
        self._quota = Quota(MAX_GOSSIP_AUTHORS)
        # Authors by when they are to be forgotten, in steps, and a heap of those steps.
        self._step_s = max_age_s / _EXPIRY_STEPS
        self._buckets: dict[int, set[EndpointId]] = {}
        self._order: list[int] = []
        # When the clock is set back, messages of forgotten authors look young again.
        self._forgotten_ms = -1

    def admit(self, sender: PeerId, content: bytes) -> bool:
        """Return whether a content is a genuine message that was not admitted before.

        Takes constant time apart from the signature, which is checked last.

        Args:
            sender: the peer that brings it.
            content: what it brings.
        """
        try:
            envelope = read_envelope(content)
        except WireError:
            return False
        now_s = self._clock()
        self._forget(now_s)
        age_s = now_s - envelope.sent_at_ms / 1000
        if abs(age_s) > self.max_age_s or not self._may_take(sender, envelope):
            return False
        try:
            envelope.author.verify(envelope.signature, _to_sign(self._topic, envelope.signed))
        except InvalidSignature:
            return False
        self._note(sender, envelope)
        return True

    def is_empty(self) -> bool:
        """Return whether there is nothing left to remember."""
        self._forget(self._clock())
        return not self._authors

    def _may_take(self, sender: PeerId, envelope: Envelope) -> bool:
        author = self._authors.get(envelope.author)
        if author is None:
            return envelope.sent_at_ms > self._forgotten_ms and self._quota.has_room(sender)
        if envelope.session != author.session:
            return envelope.session > author.session
        return not author.has(envelope.sequence)

    def _note(self, sender: PeerId, envelope: Envelope) -> None:
        id = envelope.author
        latest_ms = envelope.sent_at_ms
        known = self._authors.get(id)
        if known is None:
            self._quota.take(sender)
        else:
            sender = known.brought_by
            latest_ms = max(latest_ms, known.latest_ms)
        bucket = int((latest_ms / 1000 + self.max_age_s) / self._step_s) + 1
        if known is not None and known.session == envelope.session:
            author = known
            author.latest_ms = latest_ms
        else:
            author = _Author(sender, envelope.session, latest_ms, bucket)
            self._authors[id] = author
        if known is not None and known.bucket != bucket:
            self._buckets[known.bucket].discard(id)
        author.bucket = bucket
        author.add(envelope.sequence)
        if bucket not in self._buckets:
            self._buckets[bucket] = set()
            heapq.heappush(self._order, bucket)
        self._buckets[bucket].add(id)

    def _forget(self, now_s: float) -> None:
        while self._order and self._order[0] * self._step_s < now_s:
            for id in self._buckets.pop(heapq.heappop(self._order)):
                author = self._authors.pop(id)
                self._quota.give(author.brought_by)
                self._forgotten_ms = max(self._forgotten_ms, author.latest_ms)
