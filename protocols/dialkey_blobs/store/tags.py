"""Named tags, for use in event loops."""

from __future__ import annotations

from datetime import UTC, datetime

from dialkey_blobs.hash import BlobFormat, HashAndFormat
from dialkey_blobs.store.core import prefix_end
from dialkey_blobs.store.values import Tag
from dialkey_blobs.store.worker import Worker

__all__ = ["Tags"]


class Tags:
    """The named tags of a store: byte strings that keep blobs from garbage collection.

    Text is encoded as UTF-8.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def set(self, name: str | bytes, content: HashAndFormat) -> None:
        """Add a tag, or replace it."""
        await self._worker.call(lambda core: core.set_tag(_name(name), content))

    async def create(self, content: HashAndFormat) -> bytes:
        """Add a tag with a name made from the time; return the name."""
        now = datetime.now(UTC)
        return await self._worker.call(lambda core: core.create_tag(content, now))

    async def get(self, name: str | bytes) -> HashAndFormat | None:
        """Return what a tag names, or None."""
        return await self._worker.call(lambda core: core.tag(_name(name)))

    async def list(
        self,
        *,
        prefix: str | bytes = b"",
        start: str | bytes = b"",
        end: str | bytes | None = None,
        format: BlobFormat | None = None,
    ) -> list[Tag]:
        """Return tags, by name.

        Args:
            prefix: what names begin with.
            start: the first name.
            end: the first name that is left out.
            format: what they name.
        """
        first, stop = _span(prefix, start, end)
        tags = await self._worker.call(lambda core: core.tags(first, stop))
        return [tag for tag in tags if format is None or tag.format is format]

    async def rename(self, old: str | bytes, new: str | bytes) -> None:
        """Rename a tag.

        Raises:
            TagMissing: there is no such tag.
            TagExists: the new name is in use.
        """
        await self._worker.call(lambda core: core.rename_tag(_name(old), _name(new)))

    async def delete(self, name: str | bytes) -> bool:
        """Delete a tag; return whether it was there."""
        first = _name(name)
        return await self._worker.call(lambda core: core.delete_tags(first, first + b"\0")) > 0

    async def delete_many(
        self,
        *,
        prefix: str | bytes = b"",
        start: str | bytes = b"",
        end: str | bytes | None = None,
    ) -> int:
        """Delete tags, chosen as in `list`; return how many."""
        first, stop = _span(prefix, start, end)
        return await self._worker.call(lambda core: core.delete_tags(first, stop))


def _name(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else bytes(name)


def _span(
    prefix: str | bytes, start: str | bytes, end: str | bytes | None
) -> tuple[bytes, bytes | None]:
    prefix = _name(prefix)
    first = max(prefix, _name(start))
    ends = [limit for limit in (prefix_end(prefix), end) if limit is not None]
    return first, min(map(_name, ends), default=None)
