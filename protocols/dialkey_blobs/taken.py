"""Following getters on the side of the sender, until one has taken everything."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from dialkey import Connection, Endpoint
from dialkey.cli import Output, format_bytes
from dialkey.errors import ConnectionClosedByPeer, DialkeyError
from dialkey.identity import EndpointId
from dialkey_blobs.listing import path_in_words
from dialkey_blobs.protocol import (
    COMPLETE_REASON,
    CloseCode,
    GetManyRequest,
    GetRequest,
    Request,
)
from dialkey_blobs.provider import ProviderEvents, RequestEnded, RequestStarted
from dialkey_blobs.ranges import ChunkRanges
from dialkey_blobs.tree import CHUNK_BYTES

__all__ = ["Taken"]

MAX_CANDIDATES: Final = 64
"""How many getters may be leaving with everything at one time; one is enough to end."""

SHOW_INTERVAL_S: Final = 0.25
"""How often progress is reported to programs; people do not need more either."""

LEAVING_S: Final = 10.0
"""A getter that has everything writes its files and leaves. One that stays for this long, and one more
second for each 100 MB, has another use for the connection."""
WRITING_BYTES_PER_S: Final = 100_000_000
MAX_LEAVING_S: Final = 60.0
"""Even if its disk is slower than that: a getter can write what it has without the sender."""
TELL_AFTER_S: Final = 1.0
"""After this long, the user is told what the command is waiting for."""


class Taken:
    """Follows what getters ask for, and notices when one has taken everything.

    A getter asks in several requests, of which the first ones are for names and sizes. One that was
    interrupted comes back, perhaps with another key, for the rest only; so byte counts say nothing. What
    counts is that it has acknowledged the answer to its last request, and how it leaves. A dialkey getter
    says whether it has everything where it belongs. For others it has to suffice that they asked for
    content and left without an error.

    Args:
        output: where to report.
        endpoint: the one that serves.
        sizes: of the files, in bytes.
    """

    def __init__(self, output: Output, endpoint: Endpoint, sizes: Collection[int]) -> None:
        self._output = output
        self._endpoint = endpoint
        self._largest_bytes = max(sizes, default=0)
        self._leaving_s = min(MAX_LEAVING_S, LEAVING_S + sum(sizes) / WRITING_BYTES_PER_S)
        self._is_awaited = False
        self._running: dict[int, tuple[Request, list[Connection]]] = {}
        self._is_busy = asyncio.Event()
        self._latest: dict[EndpointId, int] = {}
        self._judging: set[asyncio.Task[None]] = set()
        self._is_done = asyncio.Event()

    async def follow(self, events: ProviderEvents) -> None:
        """Report the requests that reach files; runs until cancelled."""
        try:
            async for event in events:
                if isinstance(event, RequestStarted):
                    self._begin(event)
                elif isinstance(event, RequestEnded) and event.request_id in self._running:
                    self._end(event)
        finally:
            for task in self._judging:
                task.cancel()

    async def show(self) -> None:
        """Show how much is being sent, and over which path, while anything is; runs until cancelled."""
        while True:
            await self._is_busy.wait()
            sent: dict[Connection, int] = {}
            before = {each: each.stats().sent_bytes for each in self._endpoint.connections}
            with self._output.progress("sending") as progress:
                progress.update(0)
                while self._is_busy.is_set():
                    note = None
                    for each in self._endpoint.connections:
                        sent[each] = each.stats().sent_bytes - before.get(each, 0)
                        ways = [path for path in each.paths() if path.is_selected]
                        note = path_in_words(ways[0]) if ways else note
                    progress.update(sum(sent.values()), note=note)
                    await asyncio.sleep(SHOW_INTERVAL_S)

    async def once(self) -> None:
        """Wait for the end of the first complete transfer."""
        self._is_awaited = True
        await self._is_done.wait()

    def _begin(self, event: RequestStarted) -> None:
        if not isinstance(event.request, GetRequest | GetManyRequest):
            return
        # The next request often begins before the end of the last one is acknowledged; and when the
        # end is known here, the connection may be over.
        connections = [
            connection
            for connection in self._endpoint.connections
            if connection.remote_id == event.remote_id
        ]
        self._running[event.request_id] = event.request, connections
        if _reaches_files(event.request):
            self._is_busy.set()
        self._latest[event.remote_id] = event.request_id

    def _end(self, event: RequestEnded) -> None:
        request, connections = self._running.pop(event.request_id)
        if not any(_reaches_files(other) for other, _ in self._running.values()):
            self._is_busy.clear()
        if _reaches_files(request):
            self._report(event)
        if self._latest.get(event.remote_id) != event.request_id:
            return
        if len(self._judging) >= MAX_CANDIDATES:
            del self._latest[event.remote_id]
            return
        task = asyncio.create_task(self._judge(event, request, connections))
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)

    def _report(self, event: RequestEnded) -> None:
        outcome = "" if event.error is None else f"; it ended early: {event.error}"
        self._output.result(
            "sent",
            None,
            endpoint_id=str(event.remote_id),
            payload_bytes=event.payload_bytes,
            error=event.error,
        )
        self._output.remark(
            f"sent {format_bytes(event.payload_bytes)} to {event.remote_id.short()}{outcome}"
        )

    async def _judge(
        self, event: RequestEnded, request: Request, connections: list[Connection]
    ) -> None:
        ends = [asyncio.ensure_future(connection.closed()) for connection in connections]
        if ends:
            await self._wait_until_gone(event.remote_id, ends)
        for end in ends:
            end.cancel()
        if self._latest.get(event.remote_id) != event.request_id:
            return
        del self._latest[event.remote_id]
        errors = [end.result() for end in ends if end.done() and not end.cancelled()]
        if _has_failed(errors):
            self._output.result("not_received", None, endpoint_id=str(event.remote_id))
            self._output.remark(
                f"{event.remote_id.short()} could not use what it got; it can try again"
            )
        elif _is_complete(errors) or (
            # A getter that finds everything in place already breaks its request off, and says so.
            event.error is None and self._fetches_content(request) and all(map(_is_clean, errors))
        ):
            self._is_done.set()

    async def _wait_until_gone(
        self, remote_id: EndpointId, ends: Sequence[asyncio.Future[DialkeyError]]
    ) -> None:
        until = asyncio.get_running_loop().time() + self._leaving_s
        _, pending = await asyncio.wait(ends, timeout=TELL_AFTER_S)
        if not pending:
            return
        if self._is_awaited and not self._running:
            self._output.remark(
                f"{remote_id.short()} has all that it asked for;"
                f" waiting for up to {self._leaving_s:.0f} s until it has put it in place"
            )
        await asyncio.wait(pending, timeout=until - asyncio.get_running_loop().time())

    def _fetches_content(self, request: Request) -> bool:
        """Return whether a request is for more than the sizes of files, which their last chunks prove."""
        if self._largest_bytes == 0:
            return True
        if not _reaches_files(request):
            return False
        assert isinstance(request, GetRequest | GetManyRequest)
        return self._largest_bytes <= CHUNK_BYTES or any(
            ranges not in (ChunkRanges.last_chunk(), ChunkRanges.empty())
            for _, end, ranges in request.ranges.runs()
            if end is None or end > 2
        )


def _reaches_files(request: Request) -> bool:
    """Return whether a request goes beyond a collection's list (index 0) and its names (index 1)."""
    if not isinstance(request, GetRequest | GetManyRequest):
        return False
    return any(
        ranges != ChunkRanges.empty() and (end is None or end > 2)
        for _, end, ranges in request.ranges.runs()
    )


def _is_application_close(error: DialkeyError) -> bool:
    return isinstance(error, ConnectionClosedByPeer) and error.is_application


def _has_failed(errors: list[DialkeyError]) -> bool:
    return any(
        isinstance(error, ConnectionClosedByPeer) and error.error_code == CloseCode.FAILED
        for error in errors
        if _is_application_close(error)
    )


def _is_complete(errors: list[DialkeyError]) -> bool:
    return any(
        isinstance(error, ConnectionClosedByPeer)
        and error.error_code == CloseCode.COMPLETE
        and error.reason == COMPLETE_REASON
        for error in errors
        if _is_application_close(error)
    )


def _is_clean(error: DialkeyError) -> bool:
    return isinstance(error, ConnectionClosedByPeer) and error.error_code == 0
