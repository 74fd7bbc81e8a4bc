"""The options that commands share, so that they are spelt and explained alike everywhere."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, overload

import attrs
import typer

from dialkey import presets
from dialkey.opening import Opening

if TYPE_CHECKING:
    from dialkey.cli.output import Output
    from dialkey.endpoint import Endpoint
    from dialkey.hookspecs import RelayChoice
    from dialkey.identity import EndpointAddr

__all__ = [
    "BindOption",
    "JsonOption",
    "Options",
    "PresetOption",
    "RelayOption",
    "SecretKeyOption",
    "ServicesOption",
    "endpoint_options",
]

ONLINE_TIMEOUT_S: Final = 10.0
"""A relay is reached within a second or two, or it has trouble."""

PRESET_ONLINE_TIMEOUT_S: Final = 5.0
"""For relays that nobody named: while offline, commands wait no longer than this before they go on."""

PUBLISHED_TIMEOUT_S: Final = 3.0
"""One request to a discovery server; after that a ticket says where we are itself."""

SERVICES_VARIABLE: Final = "DIALKEY_SERVICES"
PRESET_VARIABLE: Final = "DIALKEY_PRESET"

TOKEN_VARIABLE: Final = "DIALKEY_RELAY_TOKEN"
"""Holds the token itself, as services are given secrets; a file is safer among several users."""

MAX_TOKEN_FILE_BYTES: Final = 16_384
"""A token travels in one header of a request; whatever is longer is another file by mistake."""

Command = Callable[..., None]


def _known_preset(name: str | None) -> str | None:
    if name is not None and name not in presets.BY_NAME:
        raise typer.BadParameter(f"{name!r} is not one of: {', '.join(presets.BY_NAME)}")
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
        help="How to be found and to find others; public unless a relay or services of your own are "
        f"named. {PRESET_VARIABLE} may say it instead.",
    ),
]
ServicesOption = Annotated[
    str | None,
    typer.Option(
        "--services",
        metavar="URL",
        help="Use the relay and the discovery server under this URL, your own; "
        f"{SERVICES_VARIABLE} may name it instead.",
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
        envvar="DIALKEY_RELAY",
        show_envvar=False,
        help="Be reachable through this relay too; may be given several times. "
        "Relays that a ticket names are used in any case.",
    ),
]
RelayTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--relay-token",
        metavar="FILE",
        envvar=f"{TOKEN_VARIABLE}_FILE",
        show_envvar=False,
        help="Show the token or grant in this file to the relays of --relay, and to no others. "
        f"{TOKEN_VARIABLE} may hold it instead.",
    ),
]
RelayCaOption = Annotated[
    Path | None,
    typer.Option(
        "--relay-ca",
        metavar="FILE",
        envvar="DIALKEY_RELAY_CA",
        show_envvar=False,
        help="Trust the authorities in this PEM file, too, when a relay shows its certificate.",
    ),
]


@attrs.frozen
class Options:
    """The values of the shared options.

    Attributes:
        json: write for programs.
        secret_key: a key file, or None for a new key.
        preset: the bundle of defaults, or None for the endpoint's own default.
        services: URL of services of one's own, in place of a preset; or None for what the environment
            variable ``DIALKEY_SERVICES`` names, if there is no preset either.
        bind: the local address and port, or None for all addresses and any port.
        relays: URLs of relays to be reached through; None, as `RelayOption` gives it, for none.
        relay_token: a file with what those relays want to see, or None for what the environment
            variable ``DIALKEY_RELAY_TOKEN`` holds.
        relay_ca: a PEM file of further authorities for the certificates of relays, or None.
    """

    json: bool = False
    secret_key: Path | None = None
    preset: str | None = None
    bind: str | None = None
    relays: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple)
    relay_token: Path | None = None
    relay_ca: Path | None = None
    services: str | None = None

    def chosen_preset(self) -> presets.Preset:
        """Return the preset that these options and the environment choose.

        The first that says something: ``--preset`` or ``--services``, ``DIALKEY_SERVICES``,
        ``DIALKEY_PRESET``, ``--relay``. Who names a relay wants no public services beside it.

        Raises:
            InvalidInput: there are two, there is no such preset, or the URL of services is not one.
        """
        from dialkey.errors import InvalidInput

        if self.preset is not None and self.services is not None:
            raise InvalidInput("give either --preset or --services")
        if self.preset is not None:
            return presets.BY_NAME[self.preset]
        url = self.services or os.environ.get(SERVICES_VARIABLE)
        if url:
            return presets.services(url)
        name = os.environ.get(PRESET_VARIABLE)
        if not name:
            return presets.minimal if self.relays else presets.public
        if name not in presets.BY_NAME:
            known = ", ".join(presets.BY_NAME)
            raise InvalidInput(f"{PRESET_VARIABLE} is {name!r}, which is not one of: {known}")
        return presets.BY_NAME[name]

    def _say_whose_services(self) -> None:
        """Say in one line whose relays and discovery are used, if any."""
        from dialkey.cli.output import Output

        preset = self.chosen_preset()
        if preset in (presets.public, presets.relay_only):
            text = (
                "Using iroh's public relays and discovery, run by n0;"
                f" --preset, --services URL or {SERVICES_VARIABLE} choose others."
            )
        elif preset.discovery and preset.relays:
            text = f"Using the services at {preset.relays[0]}"
        elif preset is presets.local:
            text = (
                "Using this local network and no server; the other side needs --preset local, too."
            )
        else:
            return
        Output(json=self.json).remark(text)

    async def own_addr(self, endpoint: Endpoint) -> EndpointAddr:
        """Return what a ticket says of us: the id alone where a lookup publishes us, else all.

        Waits a moment for that to happen, unless it will not: without a home relay servers have nothing
        to publish.
        """
        from dialkey.identity import EndpointAddr

        preset = self.chosen_preset()
        may_publish = endpoint.addr().relay_urls if preset.relays else preset.discovery
        if may_publish and await endpoint.published(PUBLISHED_TIMEOUT_S):
            return EndpointAddr(endpoint.id)
        return endpoint.addr()

    def open_endpoint(self, *plugins: object) -> Opening[Endpoint]:
        """Bind an endpoint as these options say, with ``async with`` or ``await``.

        Says in one line whose services it uses, if any.

        Raises:
            LocalError: a file cannot be used, or no socket can be opened.
        """
        return Opening(self._open_endpoint(plugins))

    async def _open_endpoint(self, plugins: tuple[object, ...]) -> Endpoint:
        from dialkey.endpoint import Endpoint
        from dialkey.identity import SecretKey

        self._say_whose_services()
        return await Endpoint.bind(
            secret_key=SecretKey.load(self.secret_key) if self.secret_key is not None else None,
            preset=self.chosen_preset(),
            bind=self.bind if self.bind is not None else (),
            relays=self.endpoint_relays(),
            plugins=plugins,
        )

    def endpoint_relays(self) -> tuple[str | RelayChoice, ...] | None:
        """Return what `Endpoint.bind` is told about relays; None for what its preset says.

        Raises:
            InvalidInput: a token cannot be used, or there is no relay to show it to.
            OSError: its file cannot be read.
        """
        from dialkey.identity import RelayAccess

        given: tuple[str | RelayChoice, ...] | None = self.relays
        preset = self.chosen_preset()
        if not self.relays and (self.preset is not None or preset is not presets.minimal):
            given = preset.relays
        roots: tuple[Path, ...] = () if self.relay_ca is None else (self.relay_ca,)
        access = RelayAccess(self._token(), roots)
        if given is None or access == RelayAccess():
            return given
        return (*given, access)

    def _token(self) -> str | None:
        from dialkey.errors import InvalidInput

        if self.relay_token is None:
            # Without --relay there is nobody to show it to, so it is not needed.
            return os.environ.get(TOKEN_VARIABLE) or None if self.relays else None
        if not self.relays:
            raise InvalidInput(
                "--relay-token was given without --relay",
                hint="a token is shown only to relays that you name, "
                "not to those that somebody else's ticket names",
            )
        with self.relay_token.open("rb") as file:
            raw = file.read(MAX_TOKEN_FILE_BYTES + 1)
        try:
            token = raw.decode("ascii").strip()
        except UnicodeDecodeError:
            token = ""
        if not token or len(raw) > MAX_TOKEN_FILE_BYTES or not token.isprintable():
            raise InvalidInput(
                f"{self.relay_token} does not hold a relay token",
                hint="the file holds the token or grant on one line, and nothing else",
            )
        return token

    async def until_online(self, endpoint: Endpoint, output: Output) -> None:
        """Wait until an endpoint can be reached through one of its relays.

        After some seconds, or at once if this machine is offline, it says so and goes on: addresses
        of our own may do, and the relay may come.
        """
        from dialkey.errors import Offline
        from dialkey.network.interfaces import has_way_out

        if self.relays:
            output.remark(f"connecting to {', '.join(self.relays)} …")
            try:
                await endpoint.online(ONLINE_TIMEOUT_S)
            except Offline as error:
                output.remark(f"{error.message}; continuing without it.")
        elif self.chosen_preset().relays:
            try:
                # Offline, a relay that nobody named is neither waited for nor complained about.
                await endpoint.online(PRESET_ONLINE_TIMEOUT_S if has_way_out() else 0.0)
            except Offline:
                output.remark(
                    "No relay can be reached: for now the ticket works in this network only."
                )


_SHARED: Final[dict[str, tuple[object, object]]] = {
    "json": (JsonOption, False),
    "secret_key": (SecretKeyOption, None),
    "preset": (PresetOption, None),
    "services": (ServicesOption, None),
    "bind": (BindOption, None),
    "relay": (RelayOption, None),
    "relay_token": (RelayTokenOption, None),
    "relay_ca": (RelayCaOption, None),
}
"""Parameters that `endpoint_options` adds, each with its option and its default."""


@overload
def endpoint_options(command: Command) -> Command: ...


@overload
def endpoint_options(*, json: bool) -> Callable[[Command], Command]: ...


def endpoint_options(
    command: Command | None = None, *, json: bool = True
) -> Command | Callable[[Command], Command]:
    """Add all options of an endpoint to a command; it gets their values as one `Options`.

    ::

        @endpoint_options
        def listen(name: NameOption = "guest", *, options: Options) -> None: ...

    The command line then shows ``--secret-key``, ``--preset``, ``--services``, ``--bind``, ``--relay``,
    ``--relay-token`` and ``--relay-ca``, and options that come later appear in all commands at once.

    Args:
        command: has a keyword parameter `options`.
        json: whether ``--json`` is among them.

    Raises:
        TypeError: the command has no keyword parameter `options`.
    """
    if command is None:
        return functools.partial(_with_options, json=json)
    return _with_options(command, json=json)


def _with_options(command: Command, *, json: bool) -> Command:
    # Annotations are text in the commands' modules; typer wants the objects.
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.name != "options"]
    if len(own) == len(signature.parameters):
        raise TypeError(f"{command.__qualname__} has no parameter `options` to be given")
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in _SHARED.items()
        if json or name != "json"
    ]

    @functools.wraps(command)
    def with_options(*args: object, **values: object) -> None:
        shared = {each.name: values.pop(each.name, each.default) for each in added}
        shared["relays"] = shared.pop("relay")
        make: Callable[..., Options] = Options
        command(*args, options=make(**shared), **values)

    # typer reads both; `wraps` has copied those of the command.
    with_options.__annotations__ = {each.name: each.annotation for each in (*own, *added)}
    with_options.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    del with_options.__dict__["__wrapped__"]
    return with_options
