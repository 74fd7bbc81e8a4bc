"""Bundles of defaults for `Endpoint.bind`.

A preset names what an endpoint is made of beside UDP. Only `minimal` exists in this version: others
need discovery. An app makes its own::

    ours = Preset("ours", relays=("https://relay.example",))
    async with Endpoint.bind(preset=ours) as endpoint: ...
"""

from __future__ import annotations

import attrs

__all__ = ["BY_NAME", "Preset", "minimal"]


@attrs.frozen
class Preset:
    """Defaults of an endpoint.

    Attributes:
        name: as on the command line.
        plugins: plugins that every endpoint of this kind gets, before its own.
        relays: see `Endpoint.bind`; None for no relays at all.
    """

    name: str
    plugins: tuple[object, ...] = ()
    relays: tuple[object, ...] | None = None


minimal = Preset("minimal")
"""Direct UDP to addresses that the caller knows: no relay, no discovery, nothing sent unasked."""

BY_NAME = {preset.name: preset for preset in (minimal,)}
"""Presets by the name that the command line uses."""
