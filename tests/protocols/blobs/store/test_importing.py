"""Hashing a file while it is read: the next slice is read beside the last one's hashing."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from dialkey_blobs.hash import Hash
from dialkey_blobs.outboard import outboard
from dialkey_blobs.store import ReferenceChanged
from dialkey_blobs.store import importing as module
from dialkey_blobs.store.core import SLICE_BYTES
from dialkey_blobs.store.errors import FileFailed
from dialkey_blobs.store.files import FileOps
from dialkey_blobs.store.importing import Hashed, hash_file
from dialkey_blobs.store.values import Steps, finish

pytestmark = pytest.mark.usefixtures("each_hashing")

SIZES = [1, SLICE_BYTES, SLICE_BYTES + 1, 2 * SLICE_BYTES, 2 * SLICE_BYTES + 16385]


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("dialkey-blobs-read")]


class File:
    """An open file of random bytes, to be hashed as one of `claimed` bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.path = folder / "file"
        self.data = random.Random(size).randbytes(size)
        self.path.write_bytes(self.data)
        self.descriptor = os.open(self.path, os.O_RDONLY)
        self._folder = folder

    def hash(self, claimed: int) -> Steps[Hashed]:
        return hash_file(
            FileOps(), self.descriptor, self.path, claimed, lambda: self._folder / "outboard"
        )


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_file_is_hashed(tmp_path: Path, size: int) -> None:
    file = File(tmp_path, size)
    hashed = finish(file.hash(size))
    assert hashed.built.hash == Hash.of(file.data)
    pairs = hashed.built.data
    if hashed.outboard_file is not None:
        hashed.outboard_file.move_to(tmp_path / "kept", durable=False)
        pairs = (tmp_path / "kept").read_bytes()
    assert pairs == outboard(file.data).data
    assert readers() == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_does_not_pass(tmp_path: Path, size: int, change: int) -> None:
    file = File(tmp_path, size)
    with pytest.raises(ReferenceChanged):
        finish(file.hash(size + change))
    assert readers() == []
    assert not (tmp_path / "outboard").exists()


def test_who_stops_in_the_middle_can_close_the_file(tmp_path: Path) -> None:
    file = File(tmp_path, 4 * SLICE_BYTES)
    steps = file.hash(4 * SLICE_BYTES)
    next(steps)
    assert len(readers()) == 1
    steps.close()
    assert readers() == []
    os.close(file.descriptor)
    assert not (tmp_path / "outboard").exists()


def test_a_failure_to_read_is_an_error_of_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_at = module.read_at

    def failing(descriptor: int, length: int, offset: int, path: Path) -> bytes:
        if offset:
            raise FileFailed(f"cannot read {path}: a bad sector", path=path)
        return read_at(descriptor, length, offset, path)

    monkeypatch.setattr(module, "read_at", failing)
    file = File(tmp_path, 3 * SLICE_BYTES)
    with pytest.raises(FileFailed, match="bad sector"):
        finish(file.hash(3 * SLICE_BYTES))
    assert readers() == []
