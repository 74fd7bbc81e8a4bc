"""Blobs on an endpoint: a store, a provider for it, and downloads into it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import attrs

from dialkey import Connection, DialLimits, Endpoint, hookimpl
from dialkey.errors import InvalidInput, LocalError
from dialkey.identity import EndpointAddr, EndpointId, Remote, parse_remote
from dialkey.opening import AsyncOnly, check_loop
from dialkey_blobs.bitfield import Bitfield
from dialkey_blobs.collecting import LeftOut, collect
from dialkey_blobs.collection import Collection
from dialkey_blobs.download import PATIENCE_S, Download
from dialkey_blobs.files import (
    Export,
    Exported,
    FolderExporter,
    complete_sizes,
    open_folder,
    place_below,
)
from dialkey_blobs.getting import get, observe, push
from dialkey_blobs.hash import BlobFormat, Hash, HashAndFormat
from dialkey_blobs.hash_seq import HashSeq
from dialkey_blobs.names import check_own_names
from dialkey_blobs.protocol import ALPN, GetManyRequest, GetRequest
from dialkey_blobs.provider import Authorize, Provider, ProviderEvents, ProviderLimits
from dialkey_blobs.receiving import STALL_TIMEOUT_S, Received
from dialkey_blobs.responder import load_hash_seq
from dialkey_blobs.store import FsStore, ImportMode, MemoryStore, Store, TempTag
from dialkey_blobs.ticket import BlobTicket

__all__ = ["Blobs", "Entry", "Export", "Exported"]

logger = logging.getLogger("dialkey.blobs")

Source = BlobTicket | str


@attrs.frozen
class Entry:
    """A file of a collection.

    Attributes:
        name: components joined by "/".
        hash: its content.
        size: its bytes.
    """

    name: str
    hash: Hash
    size: int


class Blobs(AsyncOnly):
    """The blobs protocol as a plugin: ``blobs = router.add(Blobs.persistent("share"))``.

    Everything in the store is offered to anybody who connects and knows a hash, unless `authorize` says
    otherwise. Adding and downloading works as soon as the plugin is added; without a router, call
    `attach`.

    Args:
        store: where blobs are kept.
        authorize: asked about each request of others; a `Refusal` turns it away.
        allow_push: let others add blobs. They are garbage-collected unless you protect them.
        limits: how much is served at a time.
        owns_store: close the store with the endpoint.
    """

    def __init__(
        self,
        store: Store,
        *,
        authorize: Authorize | None = None,
        allow_push: bool = False,
        limits: ProviderLimits | None = None,
        owns_store: bool = False,
    ) -> None:
        self.store = store
        self._provider = Provider(store, authorize=authorize, allow_push=allow_push, limits=limits)
        self._owns_store = owns_store
        self._endpoint: Endpoint | None = None

    @classmethod
    def memory(
        cls,
        *,
        authorize: Authorize | None = None,
        allow_push: bool = False,
        limits: ProviderLimits | None = None,
    ) -> Blobs:
        """Keep blobs in memory; they are lost when the process ends."""
        return cls(
            MemoryStore(),
            authorize=authorize,
            allow_push=allow_push,
            limits=limits,
            owns_store=True,
        )

    @classmethod
    def persistent(
        cls,
        path: str | Path,
        *,
        authorize: Authorize | None = None,
        allow_push: bool = False,
        limits: ProviderLimits | None = None,
    ) -> Blobs:
        """Keep blobs in a folder, which is created if missing; one process at a time can use it.

        It is opened with the endpoint, which fails to start if the folder cannot be used.
        """
        return cls(
            FsStore(path),
            authorize=authorize,
            allow_push=allow_push,
            limits=limits,
            owns_store=True,
        )

    # --- being a plugin -------------------------------------------------------------------------

    @hookimpl
    def dialkey_protocols(self, endpoint: Endpoint) -> Mapping[str | bytes, Provider]:
        """Serve the store."""
        self.attach(endpoint)
        return {ALPN: self._provider}

    @hookimpl
    async def dialkey_endpoint_started(self, endpoint: Endpoint) -> None:
        """Open the store, so that a problem with it is noticed at once."""
        await self.store.ready()

    @hookimpl
    async def dialkey_endpoint_closing(self, endpoint: Endpoint) -> None:
        """Close the store, if it is ours."""
        await self.close()

    def attach(self, endpoint: Endpoint) -> None:
        """Use an endpoint for tickets and downloads."""
        self._endpoint = endpoint

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint in use.

        Raises:
            LocalError: there is none yet.
        """
        if self._endpoint is None:
            raise LocalError(
                "these blobs do not belong to an endpoint yet",
                hint="router.add(blobs), or blobs.attach",
            )
        return self._endpoint

    async def close(self) -> None:
        """Close the store if it is ours. Idempotent."""
        if self._owns_store:
            await self.store.close()

    async def __aenter__(self) -> Blobs:
        check_loop()
        try:
            await self.store.ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def provider_events(self) -> ProviderEvents:
        """Start listening to what others request; iterate over the result."""
        return self._provider.events()

    # --- adding ---------------------------------------------------------------------------------

    async def add_bytes(self, data: bytes) -> TempTag:
        """Add a blob from memory. It is kept at least as long as the returned tag; see `store`."""
        return await self.store.add_bytes(data)

    async def add_path(self, path: str | Path, mode: ImportMode = ImportMode.COPY) -> TempTag:
        """Add a file.

        Raises:
            StorageError: it cannot be read.
        """
        return await self.store.add_path(Path(path), mode)

    async def add_collection(self, entries: Sequence[tuple[str, Hash]]) -> TempTag:
        """Add a collection: names, and blobs that are in the store.

        Raises:
            UnsendableName: a name would be refused by every receiver.
        """
        check_own_names([name for name, _ in entries])
        metadata, children = Collection(tuple(entries)).to_blobs()
        with await self.store.add_bytes(metadata):
            return await self.store.add_bytes(children.data, BlobFormat.HASH_SEQ)

    async def add_files(
        self,
        paths: Iterable[str | Path],
        mode: ImportMode = ImportMode.REFERENCE,
        *,
        progress: Callable[[int], None] | None = None,
        on_left_out: Callable[[LeftOut], None] | None = None,
    ) -> tuple[TempTag, list[Entry]]:
        """Add files and folders as one collection.

        A folder goes in with all regular files below it. Links, special files, empty folders and the
        state of our own downloads are left out, and so are modes and times, which collections cannot
        hold. Names start with the last component of the path that was given.

        Args:
            paths: taken literally: ``~`` is the name of a file.
            mode: copy the files, or refer to them.
            progress: called with the number of bytes read so far.
            on_left_out: called for each thing below a folder that is left out.

        Returns:
            (the collection, its entries in order)

        Raises:
            InvalidInput: there is no file, two have the same name, or one is not a file.
            UnsendableName: a name would be refused by every receiver.
            StorageError: a file or folder cannot be read.
        """
        collected = await asyncio.to_thread(collect, list(paths))
        for each in collected.left_out:
            logger.info("%s is left out: %s", each.path, each.kind)
            if on_left_out is not None:
                on_left_out(each)
        found = collected.files
        with self.store.batch() as batch:
            paths = [path for _, path in found]
            tags = await self.store.add_paths(paths, mode, progress=progress)
            hashes = [batch.add(tag).hash for tag in tags]
            names = [name for name, _ in found]
            collection = await self.add_collection(list(zip(names, hashes, strict=True)))
        statuses = await self.store.statuses(hashes)
        entries = [
            Entry(name, hash, status.size or 0)
            for name, hash, status in zip(names, hashes, statuses, strict=True)
        ]
        return collection, entries

    def ticket(
        self, content: HashAndFormat | TempTag | Hash, addr: EndpointAddr | None = None
    ) -> BlobTicket:
        """Return a ticket with which others can fetch content from us.

        Args:
            content: what they fetch.
            addr: where to reach us; by default all our addresses.
        """
        if isinstance(content, Hash):
            content = HashAndFormat(content, BlobFormat.RAW)
        elif isinstance(content, TempTag):
            content = content.content
        return BlobTicket(addr or self.endpoint.addr(), content.hash, content.format)

    # --- fetching -------------------------------------------------------------------------------

    def download(
        self,
        source: Source | HashAndFormat,
        *,
        providers: Iterable[Remote] = (),
        connection: Connection | None = None,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        dial_limits: Callable[[EndpointId], DialLimits | None] | None = None,
    ) -> Download:
        """Fetch content into the store: iterate over the result, or await it.

        Only what is missing is fetched. To keep the content beyond the download, set a tag.

        Args:
            source: a ticket, or content together with `providers`.
            providers: further endpoints that may have it; they are tried in order.
            connection: an open connection to the first provider, with the ALPN of blobs.
            stall_timeout_s: a provider that sends nothing for this long is given up.
            patience_s: a provider that has delivered is asked again for this long without progress,
                through lost connections and while it is busy, restarting or without the content.
            dial_limits: gives the limits of a dial to a provider; for providers whose addresses
                strangers have named.

        Raises:
            InvalidTicket: the text is not a blob ticket.
            InvalidInput: no provider is named.
        """
        addrs = [parse_remote(provider) for provider in providers]
        if isinstance(source, str):
            source = BlobTicket.parse(source)
        if isinstance(source, BlobTicket):
            addrs.insert(0, source.addr)
            content = source.content
        else:
            content = source
        if connection is not None and not addrs:
            addrs.append(EndpointAddr(connection.remote_id))
        if not addrs:
            raise InvalidInput("no provider is named for this content")
        return Download(
            self.endpoint,
            self.store,
            content,
            addrs,
            connection=connection,
            stall_timeout_s=stall_timeout_s,
            patience_s=patience_s,
            dial_limits=dial_limits,
        )

    async def read_bytes(self, hash: Hash, *, limit: int = 64 << 20) -> bytes:
        """Return a complete blob.

        Raises:
            BlobMissing, BlobIncomplete: it is not held (in full).
            InvalidInput: it is larger than `limit` bytes.
        """
        status = await self.store.status(hash)
        if status.size is not None and status.size > limit:
            raise InvalidInput(f"the blob has {status.size} bytes, more than {limit}")
        return await self.store.read(hash)

    async def load_collection(self, hash: Hash) -> Collection:
        """Return a collection that is in the store; its names are not checked.

        Raises:
            WireError: it is not a collection.
            BlobMissing, BlobIncomplete: its list is not held.
        """
        children: HashSeq = await self.store.run(lambda core: load_hash_seq(core, hash))
        if not len(children):
            raise InvalidInput("an empty hash sequence is not a collection")
        metadata = await self.store.read(children[0])
        return Collection.from_blobs(metadata, children)

    async def entries(self, content: HashAndFormat) -> list[Entry]:
        """Return the files of a collection with their sizes, as far as proven (else 0)."""
        collection = await self.load_collection(content.hash)
        statuses = await self.store.statuses([hash for _, hash in collection])
        return [
            Entry(name, hash, status.size or 0)
            for (name, hash), status in zip(collection, statuses, strict=True)
        ]

    def export(
        self,
        content: HashAndFormat | Hash,
        target: str | Path,
        *,
        overwrite: bool = False,
        durable: bool = False,
        move: bool = False,
    ) -> Export:
        """Write content to files: iterate over them as they are done, or await all of them.

        A name that the file system of `target` cannot hold, or cannot distinguish from another one, is
        changed; the path in `Exported` shows the new one.

        Args:
            content: a blob, which goes to the file `target`; or a collection, whose files go below
                the folder `target`.
            overwrite: replace files that exist. Otherwise nothing at all is written if one exists
                with other content; one that has the right content already is left as it is.
            durable: wait for the disk, so that not even a power failure leaves a file incomplete.
            move: move the stored content itself there if the file system can, which takes no extra
                space; the store then refers to it, as with `ImportMode.REFERENCE`. A file that
                already has the right content is left as it is, so that an interrupted export can be
                repeated.

        Raises:
            BlobMissing, BlobIncomplete: not all of it is held; nothing is written then.
            UnsafeName: a name leads elsewhere, or conflicts with another.
            TargetExists: a file exists with other content, and `overwrite` is false.
            DiskFull: there is not enough space for a copy of a file; noticed before copying starts.
            StorageError: a file cannot be written. Partial data never has a final name.
        """
        options = {"overwrite": overwrite, "durable": durable, "move": move}
        return Export(partial(self._export, content, Path(target), **options))

    async def _export(
        self,
        content: HashAndFormat | Hash,
        target: Path,
        *,
        overwrite: bool,
        durable: bool,
        move: bool,
    ) -> AsyncGenerator[Exported, None]:
        if isinstance(content, Hash):
            content = HashAndFormat(content)
        if content.format is BlobFormat.RAW:
            size = (await self.store.status(content.hash)).size
            may_be_there = move or not overwrite
            if (
                size is None
                or not may_be_there
                or not await self._is_there(content.hash, size, target)
            ):
                size = await self.store.export(
                    content.hash, target, overwrite=overwrite, durable=durable, move=move
                )
            yield Exported(target, size)
            return
        collection = await self.load_collection(content.hash)
        sizes = await self.store.run(lambda core: complete_sizes(core, collection))
        placed = await asyncio.to_thread(place_below, target, collection.names)
        hashes = (hash for _, hash in collection)
        entries = list(zip(zip(placed.names, hashes, strict=True), sizes, strict=True))
        if move or not overwrite:
            there = await self.store.already_there(
                [(hash, size, target / name) for (name, hash), size in entries]
            )
            for (name, _), size in entries:
                if target / name in there:
                    yield Exported(target / name, size)
            entries = [entry for entry in entries if target / entry[0][0] not in there]
        names = [name for (name, _), _ in entries]
        folder = await asyncio.to_thread(open_folder, target, names, overwrite)
        with folder:
            exporter = FolderExporter(folder, overwrite=overwrite, durable=durable, move=move)
            async for file in exporter.export(self.store, entries):
                yield file

    async def _is_there(self, hash: Hash, size: int, path: Path) -> bool:
        return path in await self.store.already_there([(hash, size, path)])

    # --- other requests -------------------------------------------------------------------------

    async def get(
        self, remote: Remote | Connection, request: GetRequest | GetManyRequest
    ) -> Received:
        """Make a single request and store the response, whatever is already held.

        For ranges of blobs, or many blobs at once; `download` is for everything else.

        Args:
            remote: whom to ask: an address, or an open connection with the ALPN of blobs.
            request: for what.

        Returns:
            What was received.

        Raises:
            DialError: it cannot be reached.
            DialkeyError: as `dialkey_blobs.getting.get`.
        """
        async with self._connection(remote) as connection:
            last = Received(0, 0, None)
            async with aclosing(get(self.store, connection, request)) as responses:
                async for received in responses:
                    last = received
            return last

    async def observe(
        self, remote: Remote | Connection, hash: Hash
    ) -> AsyncGenerator[Bitfield, None]:
        """Yield what another endpoint holds of a blob, now and whenever it holds more; never ends.

        Close the iterator (`contextlib.aclosing`) to stop.

        Raises:
            DialError, ConnectionLost, ConnectionClosedByPeer, StreamReset: it cannot be asked.
            WireError: its answer is malformed.
        """
        async with (
            self._connection(remote) as connection,
            aclosing(observe(connection, hash)) as states,
        ):
            async for state in states:
                yield state

    async def push(self, remote: Remote | Connection, content: HashAndFormat | TempTag) -> None:
        """Send content to an endpoint that allows it; return when its transport has everything.

        There is no other acknowledgement in the protocol: use `observe` to see whether it was stored.

        Raises:
            DialError: it cannot be reached.
            StreamStopped: it refuses, or did not accept the content; `error_code` says which.
            BlobMissing, BlobIncomplete: we do not hold it (in full).
        """
        if isinstance(content, TempTag):
            content = content.content
        async with self._connection(remote) as connection:
            await push(self.store, connection, content, self._provider.caches)

    @asynccontextmanager
    async def _connection(self, remote: Remote | Connection) -> AsyncIterator[Connection]:
        if isinstance(remote, Connection):
            yield remote
            return
        async with await self.endpoint.connect(remote, ALPN) as connection:
            yield connection
