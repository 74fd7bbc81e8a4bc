"""Programs that do not run asyncio, or write a plain `with`, are told what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from dialkey import Endpoint
from dialkey_blobs import Blobs
from dialkey_relay import Everyone, RelayServer

HELP = r"needs a running asyncio loop: .*asyncio\.run\(main\(\)\).*trio"


async def bind() -> None:
    async with Endpoint.bind():
        raise AssertionError


async def bind_without_leaving() -> None:
    await Endpoint.bind()


async def blobs() -> None:
    async with Blobs.memory():
        raise AssertionError


async def relay() -> None:
    async with RelayServer([Everyone()]):
        raise AssertionError


CALLS = [bind, bind_without_leaving, blobs, relay]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("call", CALLS)
def test_without_any_loop(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """As any other framework begins a coroutine: it resumes it, and waits for what it yields."""
    with pytest.raises(RuntimeError, match=HELP):
        call().send(None)


@pytest.mark.parametrize("call", CALLS)
def test_under_trio(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    trio = pytest.importorskip("trio")
    with pytest.raises(RuntimeError, match=HELP):
        trio.run(call)


@pytest.mark.parametrize(
    "make",
    [Endpoint.bind, Blobs.memory, lambda: Blobs.memory().store, lambda: RelayServer([Everyone()])],
    ids=["Endpoint.bind", "Blobs", "Store", "RelayServer"],
)
def test_a_plain_with(make: Callable[[], Any]) -> None:
    made = make()
    with pytest.raises(TypeError, match="is asynchronous: write `async with`, not `with`"), made:
        raise AssertionError
    if hasattr(made, "send"):
        made.close()
