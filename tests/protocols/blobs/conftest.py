"""What the tests of blobs share."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from dialkey import native

# Not `importorskip`: an extension that is there and does not load is a failure.
try:
    import dialkey_native
except ModuleNotFoundError:
    dialkey_native = None

NATIVE: ModuleType | None = dialkey_native
NEEDS_NATIVE = pytest.mark.skipif(
    NATIVE is None, reason="dialkey-native is not built; `make native` does it"
)


@pytest.fixture(scope="module", params=["pure", pytest.param("native", marks=NEEDS_NATIVE)])
def each_hashing(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run with the hashing of pure Python, then with that of the native part."""
    part = NATIVE if request.param == "native" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "part", lambda: part)
        yield request.param
