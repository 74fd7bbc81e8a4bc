"""What is installed only on request, such as ``dialkey[relay]`` or ``dialkey[all]``."""

from __future__ import annotations

import importlib.util

from dialkey.errors import MissingExtra

__all__ = ["MissingExtra", "has_modules", "require_extra"]


def has_modules(*modules: str) -> bool:
    """Return whether modules are installed, without importing them."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def require_extra(extra: str, what: str, *modules: str) -> None:
    """See that what an extra brings is installed; call it before the imports that need it.

    Args:
        extra: its name, such as ``"rpc"``.
        what: the part that needs it, as people call it.
        modules: what is imported.

    Raises:
        MissingExtra: a module is not installed.
    """
    missing = [module for module in modules if not has_modules(module)]
    if missing:
        raise MissingExtra(
            f"{what} needs {', '.join(missing)}, which dialkey installs on request only",
            hint=f'pip install "dialkey[{extra}]"; pipx and uv take the same name',
        )
