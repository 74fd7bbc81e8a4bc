"""Helpers for tests of the relay: certificates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Certificate, write_certificate


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """A certificate for localhost that nobody knows."""
    return write_certificate(tmp_path, "relay")


@pytest.fixture
def make_certificate(tmp_path: Path) -> Callable[[str], Certificate]:
    """Make further certificates for localhost, by name."""
    return lambda name: write_certificate(tmp_path, name)
