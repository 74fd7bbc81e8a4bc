"""The options that commands share, so that they are spelt and explained alike everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import attrs
import typer

from dialkey import presets

if TYPE_CHECKING:
    from dialkey.cli.output import Output
    from dialkey.endpoint import Endpoint

__all__ = ["BindOption", "JsonOption", "Options", "PresetOption", "RelayOption", "SecretKeyOption"]

ONLINE_TIMEOUT_S: Final = 10.0
"""A relay is reached within a second or two, or it has trouble."""


def _known_preset(name: str | None) -> str | None:
    if name is not None and name not in presets.BY_NAME:
        raise typer.BadParameter(f"{name!r} is none of: {', '.join(presets.BY_NAME)}")
    return name


def _as_tuple(relays: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(relays or ())


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
RelayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--relay",
        metavar="URL",
        help="Be reachable through this relay too; may be given several times. "
        "Relays that a ticket names are used in any case.",
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
        relays: URLs of relays to be reached through; None, as `RelayOption` gives it, for none.
    """

    json: bool = False
    secret_key: Path | None = None
    preset: str | None = None
    bind: str | None = None
    relays: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple)

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
            relays=self.relays or (None if self.preset is not None else ()),
            plugins=plugins,
        )

    async def until_online(self, endpoint: Endpoint, output: Output) -> None:
        """Wait until an endpoint can be reached through one of the relays that were named.

        After some seconds it says so and goes on: direct addresses may do, and the relay may come.
        """
        from dialkey.errors import Offline

        if not self.relays:
            return
        try:
            await endpoint.online(ONLINE_TIMEOUT_S)
        except Offline as error:
            output.remark(f"{error.message}; going on without.")
