"""The command line: `dialkey` and ``python -m dialkey``.

The framework brings what needs no protocol (``key``, ``ticket``); every other subcommand comes from
a plugin through the hook `dialkey_commands`, which gets the `CommandLine`. For such plugins this
module is the public toolbox: option types that all commands share, `Output` for people and for
programs, `guard` and `run` that turn exceptions into one line and an exit code.

Nothing heavy is imported before a command runs: ``dialkey --help`` must answer within 0.3 s.
"""

from __future__ import annotations

from dialkey.cli.app import CommandLine, build, main
from dialkey.cli.children import child
from dialkey.cli.codes import (
    NEEDS_RENDEZVOUS,
    RENDEZVOUS_VARIABLE,
    Ask,
    RendezvousOption,
    TicketCodes,
)
from dialkey.cli.exits import ExitCode, explain
from dialkey.cli.options import (
    BindOption,
    JsonOption,
    Options,
    PresetOption,
    RelayOption,
    SecretKeyOption,
    endpoint_options,
)
from dialkey.cli.output import Output
from dialkey.cli.pasting import read_ticket
from dialkey.cli.progress import Progress
from dialkey.cli.running import guard, run
from dialkey.cli.scratch import scratch_folder
from dialkey.cli.units import format_bytes, format_rate

__all__ = [
    "NEEDS_RENDEZVOUS",
    "RENDEZVOUS_VARIABLE",
    "Ask",
    "BindOption",
    "CommandLine",
    "ExitCode",
    "JsonOption",
    "Options",
    "Output",
    "PresetOption",
    "Progress",
    "RelayOption",
    "RendezvousOption",
    "SecretKeyOption",
    "TicketCodes",
    "build",
    "child",
    "endpoint_options",
    "explain",
    "format_bytes",
    "format_rate",
    "guard",
    "main",
    "read_ticket",
    "run",
    "scratch_folder",
]
