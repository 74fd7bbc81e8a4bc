"""NumPy, imported when first used: that takes longer than receiving a small file, which needs none."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["np"]


class _Numpy(ModuleType):
    def __getattr__(self, name: str) -> object:
        value = getattr(importlib.import_module("numpy"), name)
        setattr(self, name, value)
        return value


np = _Numpy("numpy")
