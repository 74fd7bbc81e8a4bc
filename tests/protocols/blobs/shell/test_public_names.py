"""What the package offers, and that importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dialkey_blobs


def test_every_public_name_is_there() -> None:
    assert dialkey_blobs.__all__ == sorted(dialkey_blobs.__all__)
    for name in dialkey_blobs.__all__:
        assert getattr(dialkey_blobs, name) is not None
        # Found once, a name is an ordinary attribute.
        assert name in vars(dialkey_blobs)
    assert set(dialkey_blobs.__all__) == set(dir(dialkey_blobs))
    homes = dialkey_blobs._HOMES.values()
    assert sorted(dialkey_blobs.__all__) == sorted(name for names in homes for name in names)


def test_other_names_are_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Blob'"):
        _ = dialkey_blobs.Blob  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["dialkey_blobs", "dialkey_blobs.plugin", "dialkey_blobs.cli"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout
    loaded = {name.split(".")[0] for name in out.split()}
    assert not loaded & {"numpy", "aioquic", "blake3", "sqlite3", "cryptography"}


SMALL_TRANSFER = """
import asyncio, sys
from dialkey import Endpoint, Router
from dialkey.testing import MemoryNetwork
from dialkey_blobs import Blobs
from dialkey_blobs.protocol import ALPN

async def main():
    network = MemoryNetwork()
    async with (
        await Endpoint.bind(transports=[network.transport("a")], entry_points=False) as a,
        await Endpoint.bind(transports=[network.transport("b")], entry_points=False) as b,
    ):
        theirs, ours = Blobs.memory(), Blobs.memory()
        router = Router(a)
        router.add(theirs)
        async with router, ours:
            ours.attach(b)
            tag = await theirs.add_bytes(b"x" * 10_000)
            connection = await b.connect(a.ticket(), ALPN)
            await ours.download(theirs.ticket(tag), connection=connection)
            assert await ours.read_bytes(tag.hash) == b"x" * 10_000

asyncio.run(main())
print(*sys.modules)
"""


def test_small_blobs_do_without_numpy() -> None:
    """Its import takes longer than the transfer."""
    out = subprocess.run(
        [sys.executable, "-c", SMALL_TRANSFER],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout
    loaded = {name.split(".")[0] for name in out.split()}
    assert "dialkey_blobs" in loaded
    assert "numpy" not in loaded
