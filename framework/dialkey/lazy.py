"""Names of a package that are imported when they are first used, so that starting stays quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, Collection[str]], modules: Collection[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package whose `__init__` imports nothing.

    Args:
        package: the `__name__` of the package, which has an `__all__`.
        homes: the names of each module, which is given relative to the package.
        modules: modules of the package that are names of it themselves.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> object:
        value: object
        if name in modules:
            value = importlib.import_module(f"{package}.{name}")
        elif name in home_of:
            value = getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Only the first use comes this way.
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        public: list[str] = sys.modules[package].__all__
        return sorted(public)

    return get, names
