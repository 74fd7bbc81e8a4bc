"""What the tests of serving and fetching share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blob_peers import Pair, make_blobs, pair


@pytest.fixture(params=["memory", "files"])
async def peers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """A provider and a getter, both on stores of each kind."""
    sharing = make_blobs(request.param, tmp_path, "sharing-store")
    fetching = make_blobs(request.param, tmp_path, "fetching-store")
    async with pair(sharing, fetching) as peers:
        yield peers


@pytest.fixture
async def memory_peers(tmp_path: Path) -> AsyncIterator[Pair]:
    """A provider and a getter on stores in memory."""
    async with pair(
        make_blobs("memory", tmp_path, ""), make_blobs("memory", tmp_path, "")
    ) as peers:
        yield peers
