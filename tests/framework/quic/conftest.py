"""Property tests take the same examples on each run, and as long as the machine needs."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("dialkey", deadline=None, derandomize=True, database=None)
settings.load_profile("dialkey")
