"""A provider that delivered before is asked again while it restarts, and is told how it ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

import pytest
from blob_peers import Pair, handmade, response, ticket

from dialkey import SendStream
from dialkey.errors import ConnectionClosedByPeer, DialkeyError, StreamReset
from dialkey_blobs import (
    Blobs,
    Downloaded,
    GetManyRequest,
    GetRequest,
    Hash,
    ProviderFailed,
    StreamCode,
    download,
)
from dialkey_blobs.protocol import COMPLETE_REASON, FAILED_REASON, CloseCode

DATA = os.urandom(400_000)
HASH = Hash.of(DATA)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_MOST_S", 0.001)


def acting(script: Sequence[str]) -> Callable[..., object]:
    """Do as the script says, one word for each request; the last word for all that follow."""
    words = list(script)

    async def answer(request: GetRequest | GetManyRequest, send: SendStream, recv: object) -> None:
        word = words.pop(0) if len(words) > 1 else words[0]
        whole = response({HASH: DATA}, request)
        if word == "part":
            await send.write(whole[:200_000])
            await send.delivered()
            send.connection.close(0, b"shutting down")
        elif word == "whole":
            await send.write(whole, finish=True)
        elif word == "nothing":
            await send.finish()
        elif word == "bye":
            send.connection.close(0, b"shutting down")
        else:
            send.reset(StreamCode[word])

    return answer


async def outcome(fetching: Blobs, endpoint: object, **options: float) -> list[object]:
    """Download; return the failures on the way, and the error at the end if there is one."""
    seen: list[object] = []
    try:
        async for event in fetching.download(ticket(endpoint, HASH), **options):
            if isinstance(event, ProviderFailed | Downloaded):
                seen.append(event)
    except DialkeyError as error:
        seen.append(error)
    return seen


@pytest.mark.parametrize("word", ["INTERNAL", "LIMIT", "nothing", "bye"])
async def test_who_delivered_before_is_asked_again(memory_peers: Pair, word: str) -> None:
    """It says "not found", "busy", nothing, or "shutting down", more often than a new one may."""
    async with handmade(acting(["part", *[word] * 9, "whole"])) as (_, endpoint):
        seen = await outcome(memory_peers.fetching, endpoint)
    assert isinstance(seen[-1], Downloaded)
    assert len(seen) == 11
    assert await memory_peers.fetching.read_bytes(HASH) == DATA


async def test_patience_ends(memory_peers: Pair) -> None:
    async with handmade(acting(["part", "INTERNAL"])) as (_, endpoint):
        seen = await outcome(memory_peers.fetching, endpoint, patience_s=0.05)
    assert isinstance(seen[-1], StreamReset)
    assert len(seen) > 2


async def test_what_an_earlier_download_left_counts(memory_peers: Pair) -> None:
    async with handmade(acting(["part", "INTERNAL", "INTERNAL", "whole"])) as (_, endpoint):
        first = await outcome(memory_peers.fetching, endpoint, patience_s=0)
        assert isinstance(first[-1], ConnectionClosedByPeer)
        second = await outcome(memory_peers.fetching, endpoint)
    assert isinstance(second[-1], Downloaded)


@pytest.mark.parametrize("script", [["INTERNAL"], ["nothing"], ["part", "PERMISSION"]])
async def test_a_final_answer_is_final(memory_peers: Pair, script: list[str]) -> None:
    """Who has never delivered does not have it; and a refusal is meant."""
    async with handmade(acting(script)) as (provider, endpoint):
        seen = await outcome(memory_peers.fetching, endpoint)
    assert isinstance(seen[-1], DialkeyError)
    assert len(provider.requests) == len(script)


# --- the last word to the provider ----------------------------------------------------------------


def closing(peers: Pair) -> asyncio.Task[DialkeyError]:
    """Wait for the first request, then for the end of the connection that it came over."""
    requests = peers.sharing.provider_events()

    async def end() -> DialkeyError:
        await anext(aiter(requests))
        [connection] = peers.provider.connections
        return await connection.closed()

    return asyncio.create_task(end())


@pytest.mark.parametrize("way", ["iterated", "awaited", "left at the end"])
async def test_the_provider_is_told_of_success(memory_peers: Pair, way: str) -> None:
    tag = await memory_peers.sharing.add_bytes(DATA)
    ended = closing(memory_peers)
    fetching = memory_peers.fetching.download(memory_peers.sharing.ticket(tag))
    if way == "awaited":
        await fetching
    else:
        async for event in fetching:
            if isinstance(event, Downloaded):
                assert not ended.done()
                if way == "left at the end":
                    break
    error = await ended
    assert isinstance(error, ConnectionClosedByPeer)
    assert (error.error_code, error.reason) == (CloseCode.COMPLETE, COMPLETE_REASON)


async def test_the_provider_is_told_of_failure(memory_peers: Pair) -> None:
    tag = await memory_peers.sharing.add_bytes(DATA)
    ended = closing(memory_peers)
    fetching = memory_peers.fetching.download(memory_peers.sharing.ticket(tag))
    async for event in fetching:
        if isinstance(event, Downloaded):
            fetching.spoil()
    error = await ended
    assert isinstance(error, ConnectionClosedByPeer)
    assert (error.error_code, error.reason) == (CloseCode.FAILED, FAILED_REASON)
