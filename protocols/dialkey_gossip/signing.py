"""Signed messages: who wrote it, that it is unchanged, and that it is not an old one again.

Gossip itself attributes a message to the neighbour that passes it on. A topic may agree on this
envelope around every content instead; it is an extension of ours, off by default, and members
without it see envelopes as ordinary contents::

    envelope := 'DKS1' || author [32] || session varint || sequence varint || sent varint
                || payload || signature [64]

`session` is when the author began, `sent` when it wrote the message, both in milliseconds of Unix
time; `sequence` counts from 1 in each session. The Ed25519 signature covers a domain separator, the
topic id and all of the envelope before it.

A receiver takes each (author, session, sequence) once. It remembers the latest session of an author
and a window of sequences in it; older sessions, sequences before the window, and messages that were
sent too long ago or in the future by its own clock are refused. Refused messages are not passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from dialkey.errors import InvalidKey, WireError
from dialkey.identity import EndpointId, InvalidSignature, SecretKey
from dialkey.identity.postcard import Reader, Writer
from dialkey.limits import MAX_GOSSIP_AUTHORS
from dialkey_gossip.ids import TopicId

__all__ = ["ENVELOPE_OVERHEAD_BYTES", "Envelope", "Opener", "Signer", "Signing", "read_envelope"]

_MAGIC: Final = b"DKS1"
_DOMAIN: Final = b"dialkey gossip signed message v1\x00"
_SIGNATURE_BYTES: Final = 64
_MAX_VARINT_BYTES: Final = 10

ENVELOPE_OVERHEAD_BYTES: Final = len(_MAGIC) + 32 + 3 * _MAX_VARINT_BYTES + _SIGNATURE_BYTES
"""What an envelope adds at most."""

WINDOW: Final = 1024
"""Sequences behind the highest that may still arrive; gossip keeps no order among messages."""


@attrs.frozen
class Signing:
    """That the messages of a topic are signed, and how.

    Attributes:
        secret_key: what to sign with; the endpoint's own key if None.
        max_age_s: messages sent longer ago, or further in the future, are refused. It bounds for how
            long a message can be replayed to somebody who has not seen it, and how wrong the clocks
            of members may be.
    """

    secret_key: SecretKey | None = None
    max_age_s: float = 600.0


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
        topic: the topic; a message signed for one is no good in another.
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
    session: int
    highest: int = 0
    seen: set[int] = attrs.field(factory=set)


class Opener:
    """Decide which signed messages of a topic are genuine and new.

    Args:
        topic: the topic.
        max_age_s: see `Signing`.
        clock: Unix time.
    """

    def __init__(self, topic: TopicId, max_age_s: float, clock: Callable[[], float]) -> None:
        self._topic = topic
        self._max_age_s = max_age_s
        self._clock = clock
        self._authors: dict[EndpointId, _Author] = {}

    def admit(self, content: bytes) -> bool:
        """Say whether a content is a genuine message that was not admitted before."""
        try:
            envelope = read_envelope(content)
        except WireError:
            return False
        age_s = self._clock() - envelope.sent_at_ms / 1000
        if abs(age_s) > self._max_age_s or not self._is_new(envelope):
            return False
        try:
            envelope.author.verify(envelope.signature, _to_sign(self._topic, envelope.signed))
        except InvalidSignature:
            return False
        self._note(envelope)
        return True

    def _is_new(self, envelope: Envelope) -> bool:
        author = self._authors.get(envelope.author)
        if author is None or envelope.session > author.session:
            return True
        if envelope.session < author.session or envelope.sequence <= author.highest - WINDOW:
            return False
        return envelope.sequence not in author.seen

    def _note(self, envelope: Envelope) -> None:
        author = self._authors.pop(envelope.author, None)
        if author is None or envelope.session > author.session:
            author = _Author(envelope.session)
        self._authors[envelope.author] = author
        author.seen.add(envelope.sequence)
        if envelope.sequence > author.highest:
            author.highest = envelope.sequence
        if len(author.seen) > 2 * WINDOW:
            floor = author.highest - WINDOW
            author.seen = {sequence for sequence in author.seen if sequence > floor}
        if len(self._authors) > MAX_GOSSIP_AUTHORS:
            del self._authors[next(iter(self._authors))]
