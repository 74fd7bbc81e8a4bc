"""The options that commands share, so that they are spelt and explained alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from dialkey import presets

if TYPE_CHECKING:
    from dialkey.endpoint import Endpoint

__all__ = ["BindOption", "JsonOption", "Options", "PresetOption", "SecretKeyOption"]


def _known_preset(name: str | None) -> str | None:
    if name is not None and name not in presets.BY_NAME:
        raise typer.BadParameter(f"{name!r} is none of: {', '.join(presets.BY_NAME)}")
    return name


JsonOption = Annotated[
    bool, typer.Option("--json", help="Write JSON lines for programs to standard output.")
]
SecretKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--secret-key",
        metavar="FILE",
        help="Be the endpoint of this key file ('dialkey key new FILE' makes one); "
        "by default a new key each time.",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="|".join(presets.BY_NAME),
        callback=_known_preset,
        help="How to be found and to find others.",
    ),
]
BindOption = Annotated[
    str | None,
    typer.Option(
        "--bind", metavar="ADDRESS:PORT", help="Use this local address, such as 0.0.0.0:4433."
    ),
]


@attrs.frozen
class Options:
    """The values of the shared options.

    Attributes:
        json: write for programs.
        secret_key: a key file, or None for a new key.
        preset: the bundle of defaults, or None for the endpoint's own default.
        bind: the local address and port, or None for all addresses and any port.
    """

    json: bool = False
    secret_key: Path | None = None
    preset: str | None = None
    bind: str | None = None

    async def open_endpoint(self, *plugins: object) -> Endpoint:
        """Bind an endpoint as these options say; the caller closes it.

        Raises:
            LocalError: the key file cannot be used, or no socket can be opened.
        """
        from dialkey.endpoint import Endpoint
        from dialkey.identity import SecretKey

        return await Endpoint.bind(
            secret_key=SecretKey.load(self.secret_key) if self.secret_key is not None else None,
            preset=presets.BY_NAME[self.preset] if self.preset is not None else presets.minimal,
            bind=self.bind if self.bind is not None else (),
            plugins=plugins,
        )
