"""The optional native part: found at import, never needed.

The distribution `dialkey-native` (folder `native/`) does in one call what pure Python does by column:
seal and open runs of packets, compute chaining values. Rooms that have a use for it ask `part()` and
keep a path in pure Python, which is always there and always tested.
"""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType
from typing import Final, Protocol, cast

from dialkey.printable import printable

__all__ = ["Bytes", "NativeKey", "NativePart", "Run", "RunKey", "describe", "part"]

_LOGGER = logging.getLogger("dialkey.native")

MODULE: Final = "dialkey_native"
API: Final = 1
"""The one version of its interface that this dialkey speaks: a stale build must not be called."""

Bytes = bytes | bytearray | memoryview
Run = tuple[int, int, int, bytes]
"""Of a run that was opened: first packet number, stream id, offset, data."""


class RunKey(Protocol):
    """Keys of one direction in one key phase, for whole runs."""

    def seal_run(
        self,
        first: int,
        cid: bytes,
        path_id: int,
        number: int,
        head: bytes,
        offset: int,
        wide: bool,
        data: Bytes,
        size: int,
    ) -> Bytes:
        """Seal `data` into consecutive packets of `size` bytes, the last one perhaps shorter.

        Args:
            first: first byte of every header; it says that the number has two bytes.
            head: the frame's type and stream id; the offset follows in 4 bytes, or 8 if `wide`.

        Returns:
            The packets behind each other; they stand there until the next call in this thread.
        """
        ...

    def open_run(
        self, data: Bytes, segment: int, path_id: int, phase: int, expected: int
    ) -> Run | None:
        """Open packets of `segment` bytes each, if all of them together are a run.

        Args:
            phase: the key phase bit that this key opens.
            expected: the packet number after the largest one received.
        """
        ...


class NativeKey(RunKey, Protocol):
    """What a `RunKey` of the native part offers beside runs; see `native/src/runs.rs`."""

    def masks(self, samples: bytes) -> bytes:
        """Return 16 bytes for each sample of 16; the first five are the header-protection mask."""
        ...


class NativePart(Protocol):
    """What the extension module offers."""

    API: int
    __version__: str

    def PacketKey(self, suite: str, key: bytes, iv: bytes, header: bytes) -> NativeKey:
        """Make the keys of "aes-128-gcm", "aes-256-gcm" or "chacha20-poly1305"."""
        ...

    def group_cvs(self, data: Bytes, start_chunk: int, size: int) -> bytes:
        """Return the chaining values of pieces of `size` bytes, 32 bytes each."""
        ...

    def parent_cvs(self, pairs: bytes, root: bool) -> bytes:
        """Return the chaining value of each pair of chaining values."""
        ...


def _find() -> tuple[ModuleType | None, str]:
    if os.environ.get("DIALKEY_NATIVE", "").strip().lower() in ("0", "no", "off", "false"):
        return None, "off (DIALKEY_NATIVE)"
    try:
        module = importlib.import_module(MODULE)
    except ModuleNotFoundError:
        return None, "not installed"
    except ImportError as exc:
        _LOGGER.warning(
            "dialkey-native is installed, but cannot be loaded: %s", printable(str(exc))
        )
        return None, f"cannot be loaded: {printable(str(exc))}"
    found = getattr(module, "API", None)
    if found != API:
        _LOGGER.warning(
            "dialkey-native speaks version %s of its interface, this dialkey version %s; "
            "it is not used. Install the matching one.",
            found,
            API,
        )
        return None, f"does not fit: interface {found} instead of {API}"
    return module, str(getattr(module, "__version__", "unknown version"))


_MODULE, _DESCRIPTION = _find()


def part() -> NativePart | None:
    """Return the native part, or None: not installed, turned off by DIALKEY_NATIVE=0, or unfit."""
    return cast("NativePart | None", _MODULE)


def describe() -> str:
    """Say in some words whether the native part is in use, and if not, why."""
    return _DESCRIPTION
