"""Running a command: the event loop, signals, and exceptions that become one line and a code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Final, cast

import typer

from dialkey.cli.exits import ExitCode, explain
from dialkey.cli.output import Output
from dialkey.printable import printable, printable_traceback
from dialkey.signals import on_ending_signal

__all__ = ["guard", "is_debugging", "logging_to_stderr", "run"]


# typer shows these by itself, with the usage of the command. It has no public name for their base
# class, which lives in click or in a copy of it inside typer, depending on typer's version.
_USAGE_ERRORS: Final = cast(
    type[Exception],
    next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"),
)


def is_debugging() -> bool:
    """Return whether DIALKEY_DEBUG asks for tracebacks and debug logs."""
    return os.environ.get("DIALKEY_DEBUG", "") not in ("", "0")


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show the log of dialkey on standard error: errors as one line each, all when debugging.

    At the end the loggers are as they were, for a process that goes on after the command.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    if is_debugging():
        handler.setFormatter(_Escaped("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # "quic" is aioquic's; what it warns about reaches people as the exception of the command.
    before: list[tuple[logging.Logger, list[logging.Handler], int, bool]] = []
    for name, level in (("dialkey", logging.ERROR), ("quic", logging.CRITICAL)):
        log = logging.getLogger(name)
        before.append((log, list(log.handlers), log.level, log.propagate))
        log.handlers[:] = [handler]
        log.setLevel(logging.DEBUG if is_debugging() else level)
        log.propagate = False
    try:
        yield
    finally:
        for log, handlers, old_level, propagate in before:
            log.handlers[:] = handlers
            log.setLevel(old_level)
            log.propagate = propagate


class _Escaped(logging.Formatter):
    """Lets no control character through, whatever a record quotes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        first, *rest = record.getMessage().splitlines() or [""]
        text = " ".join(first.split())
        # Behind the first line there may be a traceback; its last words say what happened.
        cause_line = next((line for each in reversed(rest) if (line := each.strip(" |+-"))), "")
        if cause_line and cause_line not in text:
            text += f": {cause_line}"
        if record.exc_info and record.exc_info[1] is not None:
            cause = record.exc_info[1]
            if str(cause) not in text:
                text += f": {type(cause).__name__}: {' '.join(str(cause).split())}"
        return printable(f"dialkey: {text}")


@contextlib.contextmanager
def guard(output: Output) -> Iterator[None]:
    """Turn what a command raises into one line on standard error and its exit code.

    With ``--json`` the error is a JSON line on standard output, too.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (typer.Exit, typer.Abort, _USAGE_ERRORS):
        raise
    except Exception as error:
        code, line = explain(error)
        if is_debugging():
            print(printable_traceback(error), file=output.stderr, flush=True)
        if output.json:
            name = getattr(error, "code", type(error).__name__)
            output.result("error", None, code=name, message=line, exit_code=int(code))
        output.complain(f"dialkey: {line}")
        raise typer.Exit(code) from None


def run(output: Output, work: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run a command's coroutine to its end in a new event loop, inside a `guard`.

    Ctrl-C, SIGTERM and SIGHUP cancel it, so that its ``async with`` blocks end in order; a second Ctrl-C
    or SIGTERM does not wait for them. SIGHUP does so unless it was ignored at the start, as under
    ``nohup``.
    """
    import asyncio

    asked_by: signal.Signals | None = None

    async def with_signals() -> None:
        task = asyncio.current_task()

        def ask(number: signal.Signals) -> None:
            nonlocal asked_by
            if task is not None and (asked_by is None or number is signal.SIGTERM):
                task.cancel()
            asked_by = asked_by or number

        with on_ending_signal(ask):
            await work()

    with guard(output):
        try:
            asyncio.run(with_signals())
        except asyncio.CancelledError:
            if asked_by is not None:
                raise typer.Exit(128 + asked_by) from None
            raise
