"""The `CommandLine`: built-in commands, plugins' commands, and `main`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer
import typer.main

from dialkey import native
from dialkey.cli.children import end_with_parent
from dialkey.cli.exits import ExitCode, exit_code_table
from dialkey.cli.output import Output
from dialkey.cli.running import is_debugging, logging_to_stderr
from dialkey.cli.streams import standard_streams
from dialkey.cli.usage import without_types
from dialkey.errors import InvalidInput, InvalidTicket, PluginError
from dialkey.hooks import Plugins

if TYPE_CHECKING:
    from dialkey.cli.codes import TicketCodes
    from dialkey.identity import HasAddr

__all__ = ["CommandLine", "build", "main"]

HELP: Final = """Dial keys, not IP addresses.

Every endpoint is named by a key; a ticket tells others the key and where it may be found. Results
go to standard output, everything else to standard error.
"""


class CommandLine(typer.Typer):
    """The program `dialkey`, as plugins see it in the hook `dialkey_commands`.

    A `typer.Typer` with a few more methods; ``@cli.command()`` and ``cli.add_typer`` add subcommands. A
    command that has a parameter of type `typer.Context` gets at it with `CommandLine.of`.
    """

    def __init__(self) -> None:
        super().__init__(
            name="dialkey",
            epilog="\b\nExit codes:\n" + exit_code_table(),
            no_args_is_help=True,
            invoke_without_command=True,
            # Subcommands and groups inherit this.
            context_settings={"help_option_names": ["-h", "--help"], "obj": self},
            # Without markup nothing imports rich for a page of help.
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
        )
        self._ticket_kinds: dict[str, tuple[_Parse, _Describe | None]] = {}
        self._codes: TicketCodes | None = None
        self.callback(help=HELP)(_top)

    @classmethod
    def of(cls, context: typer.Context) -> CommandLine:
        """Return the command line that a command belongs to."""
        found = context.find_root().obj
        assert isinstance(found, cls)
        return found

    @property
    def codes(self) -> TicketCodes | None:
        """What hands over tickets by codes, if a plugin brought it."""
        return self._codes

    def add_codes(self, codes: TicketCodes) -> None:
        """Let commands that take and give tickets do so by codes.

        Raises:
            InvalidInput: another plugin does so already.
        """
        if self._codes is not None:
            raise InvalidInput("codes are handled by another plugin already")
        self._codes = codes

    def add_ticket_kind(
        self,
        kind: str,
        parse: Callable[[str], HasAddr],
        describe: Callable[[HasAddr], Mapping[str, object]] | None = None,
    ) -> None:
        """Teach all commands that take a ticket another kind of ticket.

        Args:
            kind: what its text begins with.
            parse: makes a ticket object with an `addr` from text; called only when needed.
            describe: gives what ``dialkey ticket inspect`` shows beside the address.

        Raises:
            InvalidInput: the kind is known already.
        """
        if kind in self._ticket_kinds:
            raise InvalidInput(f"tickets of kind {kind!r} are known already")
        self._ticket_kinds[kind] = (parse, describe)

    def parse_ticket(self, text: str) -> tuple[str, HasAddr, Mapping[str, object]]:
        """Parse a ticket of any known kind.

        Returns:
            Its kind, the ticket object, and what describes it beside its address.

        Raises:
            InvalidTicket: it is of no known kind, or cannot be read.
        """
        from dialkey.identity import EndpointTicket, compact_ticket

        text = compact_ticket(text)
        for kind, (parse, describe) in self._ticket_kinds.items():
            if text.startswith(kind):
                ticket = parse(text)
                return kind, ticket, describe(ticket) if describe is not None else {}
        if not text.startswith(EndpointTicket.KIND):
            known = ", ".join(sorted((EndpointTicket.KIND, *self._ticket_kinds)))
            raise InvalidTicket(
                "this is not a ticket", hint=f"a ticket begins with one of: {known}"
            )
        return EndpointTicket.KIND, EndpointTicket.parse(text), {}

    def command_names(self) -> list[str]:
        """Return the names of all subcommands, with repetitions where a name was taken twice."""
        commands = [
            info.name or typer.main.get_command_name(getattr(info.callback, "__name__", ""))
            for info in self.registered_commands
        ]
        # A group's name is given to `add_typer` or else to the group itself.
        groups = [
            info.name if isinstance(info.name, str) else str(info.typer_instance.info.name)
            for info in self.registered_groups
            if info.typer_instance is not None
        ]
        return commands + groups


_Parse = Callable[[str], "HasAddr"]
_Describe = Callable[["HasAddr"], Mapping[str, object]]


def _top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        import importlib.metadata

        try:
            print(f"dialkey {importlib.metadata.version('dialkey')}")
        except importlib.metadata.PackageNotFoundError:
            print("dialkey, from a source tree that is not installed")
        print(f"native part: {native.describe()}")
        raise typer.Exit


def build(plugins: Plugins | None = None) -> CommandLine:
    """Make the command line: the built-in commands, then those of plugins.

    A plugin that fails, or takes a name that is taken, is reported on standard error and left out;
    all other commands work.

    Args:
        plugins: where to ask for commands; by default what entry points offer.
    """
    from dialkey.cli import keys, lookups, tickets

    if plugins is None:
        plugins = Plugins()
        plugins.load_entry_points(skip_broken=True)
    cli = CommandLine()
    keys.add_commands(cli)
    tickets.add_commands(cli)
    lookups.add_commands(cli)
    for name in plugins.names():
        _ask(cli, plugins, name)
    return cli


def _ask(cli: CommandLine, plugins: Plugins, name: str) -> None:
    commands, groups = list(cli.registered_commands), list(cli.registered_groups)
    taken = set(cli.command_names())
    try:
        plugins.call_now("dialkey_commands", only=plugins.get(name), cli=cli)
        added = cli.command_names()
        twice = sorted({command for command in added if added.count(command) > 1} & taken)
        if twice:
            raise PluginError(
                f"plugin {name!r} adds the command {twice[0]!r}, which already exists",
                hint="its commands are left out",
            )
    except PluginError as error:
        cli.registered_commands[:], cli.registered_groups[:] = commands, groups
        # While a shell completes a word, any line would end up in the middle of it.
        if "_DIALKEY_COMPLETE" not in os.environ:
            Output().complain(f"dialkey: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        argv: the arguments without the program's name; by default those of the process.
    """
    end_with_parent()
    with standard_streams(), logging_to_stderr():
        sys.exit(_exit_code(argv))


def _exit_code(argv: Sequence[str] | None) -> int | str:
    try:
        command = typer.main.get_command(build())
        without_types(command)
        try:
            command.main(args=list(argv) if argv is not None else None, prog_name="dialkey")
        except SystemExit as ended:
            if ended.code:
                return ended.code
        sys.stdout.flush()
    except Exception as error:
        # Commands run in a guard; this is for a page of help, and a plugin's command without one.
        from dialkey.cli.exits import explain

        if is_debugging():
            raise
        code, line = explain(error)
        Output().complain(f"dialkey: {line}")
        return code
    return ExitCode.SUCCESS
