"""Temp tags: protection from garbage collection that lasts as long as an object in this process.

Tags are made in the store's thread and in event loops, and dropped wherever Python drops an object,
possibly in the middle of anything. So dropping only appends to a queue, which needs no lock; the next
look at the pins processes it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat

__all__ = ["Batch", "Pins", "TempTag", "released_on_failure"]


class Pins:
    """The contents that temp tags protect, counted."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._counts: Counter[HashAndFormat] = Counter()
        self._dropped: deque[HashAndFormat] = deque()
        self._watch: list[HashAndFormat] | None = None

    def pin(self, content: HashAndFormat) -> TempTag:
        """Protect `content` until the returned tag is released or dropped."""
        with self._lock:
            self._counts[content] += 1
            if self._watch is not None:
                self._watch.append(content)
        return TempTag(self, content)

    def pin_many(self, contents: Sequence[HashAndFormat]) -> list[TempTag]:
        """Protect each of `contents` until its tag is released or dropped."""
        with self._lock:
            self._counts.update(contents)
            if self._watch is not None:
                self._watch += contents
        return [TempTag(self, content) for content in contents]

    def live(self) -> set[HashAndFormat]:
        """Return what is protected now."""
        with self._lock:
            while self._dropped:
                content = self._dropped.popleft()
                self._counts[content] -= 1
                if self._counts[content] <= 0:
                    del self._counts[content]
            return set(self._counts)

    def watch(self, added: list[HashAndFormat] | None) -> None:
        """Append contents that are pinned from now on to `added`, until another call."""
        with self._lock:
            self._watch = added

    def drop(self, content: HashAndFormat) -> None:
        """Take back one pin; safe at any time in any thread."""
        self._dropped.append(content)


class TempTag:
    """Protects a blob, and for a hash sequence its children, from garbage collection.

    The protection ends with `release`, with leaving the context, or when the object is dropped; it
    does not outlive the process. Set a named tag for what should be kept.

    Attributes:
        content: what is protected.
    """

    __slots__ = ("__weakref__", "_pins", "content")

    def __init__(self, pins: Pins, content: HashAndFormat) -> None:
        self._pins: Pins | None = pins
        self.content = content

    @property
    def hash(self) -> Hash:
        return self.content.hash

    @property
    def format(self) -> BlobFormat:
        return self.content.format

    def release(self) -> None:
        """End the protection. Idempotent."""
        pins, self._pins = self._pins, None
        if pins is not None:
            pins.drop(self.content)

    def leak(self) -> None:
        """Keep the protection until the process ends."""
        self._pins = None

    def __enter__(self) -> TempTag:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"TempTag({self.content})"


class Batch:
    """Temp tags that end together; use it as a context manager.

    Pass it to the operations that import, or add tags to it.
    """

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._tags: list[TempTag] = []

    def pin(self, content: HashAndFormat) -> TempTag:
        """Protect `content` until the batch ends, or the returned tag is released."""
        return self.add(self._pins.pin(content))

    def add(self, tag: TempTag) -> TempTag:
        """Let a tag end with the batch; return it."""
        self._tags.append(tag)
        return tag

    def release(self) -> None:
        """End the protection of all. Idempotent."""
        tags, self._tags = self._tags, []
        for tag in tags:
            tag.release()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@contextmanager
def released_on_failure() -> Iterator[list[TempTag]]:
    """Collect tags in the list that is yielded; if an exception leaves the context, release them.

    Dropping them is not enough: whoever keeps the exception, say to report it later, keeps with its
    traceback the frames that hold the tags.
    """
    tags: list[TempTag] = []
    try:
        yield tags
    except BaseException:
        for tag in tags:
            tag.release()
        raise
