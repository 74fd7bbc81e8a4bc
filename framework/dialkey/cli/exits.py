"""Exit codes, and one helpful line for each thing that can go wrong."""

from __future__ import annotations

import enum
import errno

from dialkey.errors import (
    ConnectionClosedByPeer,
    ConnectionLost,
    DialError,
    DialkeyError,
    HandshakeError,
    InvalidInput,
    LocalError,
    RemoteError,
    ResolveError,
    StreamReset,
    StreamStopped,
)
from dialkey.printable import printable

__all__ = ["ExitCode", "exit_code_table", "explain"]


class ExitCode(enum.IntEnum):
    """What the exit code of a command says; numbers never change meaning."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    SUCCESS = 0, "everything was done"
    UNEXPECTED = 1, "an unexpected error; DIALKEY_DEBUG=1 shows where"
    USAGE = 2, "the command line is wrong, or a ticket, key or address in it"
    LOCAL = 3, "this machine: a file is missing or already exists, a disk is full, no socket"
    UNREACHABLE = 4, "the other endpoint could not be reached"
    LOST = 5, "the other endpoint went away or closed the connection before the end"
    REFUSED = 6, "the other endpoint refused: wrong key, unknown protocol, or a policy there"
    PEER_FAULT = 7, "the other endpoint broke the rules, or sent data that fails verification"
    HUNG_UP = 129, "ended by SIGHUP, as when its terminal is closed"
    INTERRUPTED = 130, "interrupted by Ctrl-C"
    TERMINATED = 143, "ended by SIGTERM"


_BY_ERROR: tuple[tuple[tuple[type[BaseException], ...], ExitCode], ...] = (
    ((InvalidInput,), ExitCode.USAGE),
    # An OSError as well, but of the other side.
    ((TimeoutError,), ExitCode.LOST),
    ((LocalError, OSError), ExitCode.LOCAL),
    ((ResolveError, DialError), ExitCode.UNREACHABLE),
    ((ConnectionLost, ConnectionClosedByPeer, StreamReset, StreamStopped), ExitCode.LOST),
    ((HandshakeError,), ExitCode.REFUSED),
    ((RemoteError,), ExitCode.PEER_FAULT),
    ((DialkeyError,), ExitCode.LOST),
)


def exit_code_table() -> str:
    """Return the exit codes as lines of text, for ``--help`` and the documentation."""
    return "\n".join(f"{code.value:>4}  {code.meaning}" for code in ExitCode)


def explain(error: BaseException) -> tuple[ExitCode, str]:
    """Turn an exception into an exit code and one line for the person at the terminal."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    code = next((code for kinds, code in _BY_ERROR if isinstance(error, kinds)), None)
    if code is None:
        text = f"unexpected {type(error).__name__}: {error}"
        return ExitCode.UNEXPECTED, _one_line(f"{text} (set DIALKEY_DEBUG=1 to see where)")
    if isinstance(error, OSError):
        return code, _one_line(_explain_os_error(error))
    text = str(error)
    if isinstance(error, DialError) and error.attempts:
        text = f"{DialkeyError.__str__(error)}: {'; '.join(error.attempts)}"
    return code, _one_line(text)


def _explain_os_error(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    if isinstance(error, FileNotFoundError):
        return f"no such file or folder{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where} (make room and run the command again: it resumes)"
    return f"{error.strerror or error or type(error).__name__}{where}"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
