from __future__ import annotations

import errno
import os
import stat
import threading

import pytest

from dialkey.errors import InvalidKey, StorageError
from dialkey.identity import SecretKey, keyfile

KEY = SecretKey(bytes(range(32)))

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_save_writes_one_line_that_only_the_owner_reads(tmp_path):
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        KEY.save(path)
    finally:
        os.umask(old)
    assert path.read_bytes() == KEY.to_hex().encode() + b"\n"
    assert mode(path) == 0o600
    assert os.listdir(tmp_path) == ["key"]
    assert SecretKey.load(path) == KEY
    assert SecretKey.load(str(path)) == KEY


@pytest.mark.parametrize(
    "text",
    [
        KEY.to_hex(),
        KEY.to_hex() + "\r\n",
        "  " + KEY.to_hex() + "\n\n",
        "AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5DYPQ\n",
    ],
)
def test_load_takes_hex_and_base32(tmp_path, text):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    assert SecretKey.load(path) == KEY


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610])
def test_a_file_open_to_others_is_refused(tmp_path, bits):
    path = tmp_path / "key"
    KEY.save(path)
    path.chmod(bits)
    for load in (SecretKey.load, SecretKey.load_or_create):
        with pytest.raises(InvalidKey, match=f"mode {bits:04o}.*chmod 600"):
            load(path)


def test_a_read_only_file_is_fine(tmp_path):
    path = tmp_path / "key"
    KEY.save(path)
    path.chmod(0o400)
    assert SecretKey.load(path) == KEY


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"00", KEY.to_hex().upper().encode(), b"\xff" * 64, b"0" * 5000]
)
def test_a_file_without_a_key_is_refused_without_quoting_it(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidKey) as caught:
        SecretKey.load(path)
    assert str(path) in str(caught.value)
    assert KEY.to_hex().upper()[:10] not in str(caught.value)
    with pytest.raises(InvalidKey):
        SecretKey.load_or_create(path)
    assert path.read_bytes() == content


def test_save_leaves_an_existing_file_alone(tmp_path):
    path = tmp_path / "key"
    KEY.save(path)
    with pytest.raises(StorageError, match="already exists"):
        SecretKey(bytes(32)).save(path)
    assert SecretKey.load(path) == KEY
    SecretKey(bytes(32)).save(path, overwrite=True)
    assert SecretKey.load(path) == SecretKey(bytes(32))
    assert mode(path) == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_overwriting_a_lax_file_tightens_it(tmp_path):
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o666)
    KEY.save(path, overwrite=True)
    assert mode(path) == 0o600


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(StorageError, match="no such key file"):
        SecretKey.load(tmp_path / "none")
    with pytest.raises(StorageError):
        KEY.save(tmp_path / "none" / "key")


def test_load_or_create(tmp_path):
    path = tmp_path / "config" / "dialkey" / "key"
    key = SecretKey.load_or_create(path)
    assert SecretKey.load_or_create(path) == key == SecretKey.load(path)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_a_path_is_taken_as_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for path in ("~/key", "~no-such-user-here/key"):
        key = SecretKey.load_or_create(path)
        assert SecretKey.load(tmp_path / path) == key
    assert not (tmp_path / "home").exists()


def test_starting_many_at_once_ends_with_one_key(tmp_path):
    path = tmp_path / "key"
    start = threading.Barrier(8)
    found = []

    def run():
        start.wait()
        found.append(SecretKey.load_or_create(path))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("kind", ["folder", "fifo", "nul", "root"])
def test_what_is_not_a_file_is_refused(tmp_path, kind):
    path = tmp_path / "key"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    else:
        path = {"nul": "a\0b", "root": "/"}[kind]
    with pytest.raises(StorageError):
        SecretKey.load(path)
    with pytest.raises(StorageError):
        KEY.save(path)


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(keyfile.os, "link", no_links)
    path = tmp_path / "key"
    KEY.save(path)
    assert SecretKey.load(path) == KEY
    assert mode(path) == 0o600
    with pytest.raises(StorageError, match="already exists"):
        KEY.save(path)
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_failing_disk_leaves_nothing_behind(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keyfile.os, call, full)
    with pytest.raises(StorageError, match="No space left"):
        KEY.save(tmp_path / "key")
    assert os.listdir(tmp_path) == []
