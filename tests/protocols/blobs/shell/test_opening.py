"""Blobs that are opened and closed by themselves, without an endpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dialkey_blobs import Blobs


async def test_a_store_whose_opening_was_cancelled_is_closed(tmp_path: Path) -> None:
    for turns in range(6):

        async def opening() -> None:
            async with Blobs.persistent(tmp_path):
                await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(opening())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # A process can open a folder once; this would fail.
        async with Blobs.persistent(tmp_path) as blobs:
            (await blobs.add_bytes(b"free")).release()
