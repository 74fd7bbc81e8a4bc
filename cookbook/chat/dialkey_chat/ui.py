"""The room on the whole terminal, with Textual."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import ClassVar, Final

import attrs
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import Resize
from textual.widgets import Input, RichLog, Static

from dialkey import EndpointId
from dialkey.cli import format_bytes
from dialkey_chat.commands import clock, describe, perform
from dialkey_chat.room import Notice, Written
from dialkey_chat.session import Chat

__all__ = ["run_ui"]

MAX_LINES: Final = 2_000
_COLOURS: Final = ("cyan", "green", "magenta", "yellow", "blue", "red")


async def run_ui(chat: Chat) -> None:
    """Show the room until the user leaves; the terminal is as before then."""
    app = ChatApp(chat)
    with _log_to(chat):
        await app.run_async()
    # Textual takes a cancellation for the wish to leave, and says nothing of it.
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    if app.return_code:
        raise RuntimeError("the screen failed; the reason stands above")


@attrs.frozen(order=True)
class _Line:
    """A line of the room, sorted by time."""

    at_ms: int
    number: int
    text: Text = attrs.field(order=False)


class Lines(RichLog):
    """What was written and what happened, by time; wrapped again when its width changes."""

    def __init__(self, id: str) -> None:
        # Never with markup: brackets that others write are not our styles.
        super().__init__(wrap=True, min_width=1, markup=False, max_lines=MAX_LINES, id=id)
        self._shown: list[_Line] = []
        self._count = 0
        self._width = 0

    def add(self, at_ms: int, text: Text) -> None:
        """Put a line where it belongs."""
        self._count += 1
        line = _Line(at_ms, self._count, text)
        is_last = not self._shown or self._shown[-1] < line
        bisect.insort(self._shown, line)
        del self._shown[:-MAX_LINES]
        if is_last:
            self.write(text)
        else:
            self._redraw()

    def on_resize(self, event: Resize) -> None:
        """Wrap the lines again, after the log itself has learnt its size."""
        if event.size.width != self._width:
            self._width = event.size.width
            self.call_next(self._redraw)

    def _redraw(self) -> None:
        self.clear()
        for line in self._shown:
            self.write(line.text)


class ChatApp(App[None]):
    """Who is here on the right, what was written on the left, what you type below."""

    TITLE = "dialkey chat"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title { height: 1; background: $primary; color: $text; padding: 0 1; text-style: bold; }
    #room { height: 1fr; }
    #lines { width: 1fr; padding: 0 1; scrollbar-size-vertical: 1; overflow-x: hidden; }
    #people { width: 26; height: 100%; max-width: 40%; padding: 0 1; border-left: solid $primary; }
    #entry { height: 3; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+d", "quit", "Leave", priority=True),
        Binding("pageup", "page(-1)", "Earlier", priority=True),
        Binding("pagedown", "page(1)", "Later", priority=True),
    ]

    def __init__(self, chat: Chat) -> None:
        super().__init__()
        self._chat = chat

    def compose(self) -> ComposeResult:
        """Lay it out."""
        yield Static(id="title", markup=False)
        with Horizontal(id="room"):
            yield Lines("lines")
            yield Static(id="people", markup=False)
        yield Input(id="entry", placeholder="say something, or /help", max_length=3_000)

    def on_mount(self) -> None:
        """Begin to show what happens."""
        self.query_one(Input).focus()
        self._show_people()
        self.run_worker(self._follow(), exit_on_error=True)

    async def _follow(self) -> None:
        async for notice in self._chat.notices:
            self._show(notice)
            self._show_people()
        self.exit()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Do what was typed."""
        line, event.input.value = event.value, ""
        if line.strip() == "/ticket":
            # A ticket is longer than a line; selecting it on the screen would cut it in pieces.
            self.copy_to_clipboard(str(self._chat.ticket()))
        if not perform(self._chat, line):
            self.exit()

    def action_page(self, direction: int) -> None:
        """Scroll."""
        lines = self.query_one(Lines)
        lines.scroll_page_up() if direction < 0 else lines.scroll_page_down()

    # --- showing --------------------------------------------------------------------------------

    def _show(self, notice: Notice) -> None:
        at_ms = notice.letter.at_ms if isinstance(notice, Written) else time.time_ns() // 1_000_000
        self.query_one(Lines).add(at_ms, _styled(notice))

    def _show_people(self) -> None:
        chat = self._chat
        people = chat.room.people
        self.query_one("#title", Static).update(Text(f"{chat.room.name}: {len(people) + 1} here"))
        text = Text(no_wrap=True, overflow="ellipsis")
        for name, id in [(chat.name, chat.id), *((each.name, each.id) for each in people)]:
            text.append(name, style=_colour(id)).append(f" {id.short()}\n", style="dim")
        self.query_one("#people", Static).update(text)


def _styled(notice: Notice) -> Text:
    if not isinstance(notice, Written):
        return Text(describe(notice), style="dim")
    letter = notice.letter
    text = Text(f"{clock(letter.at_ms)} ", style="dim")
    text.append(letter.name, style=f"bold {_colour(letter.author)}")
    text.append(f" {letter.author.short()}", style="dim")
    if isinstance(letter.body, str):
        return text.append(f" {letter.body}", style="not dim")
    text.append(f" offers {letter.body.name}, {format_bytes(letter.body.size)}:", style="not dim")
    return text.append(f" /get {notice.number}", style="bold not dim")


def _colour(id: EndpointId) -> str:
    return _COLOURS[bytes(id)[0] % len(_COLOURS)]


@contextlib.contextmanager
def _log_to(chat: Chat) -> Iterator[None]:
    """Show what dialkey logs in the room: written to standard error it would break the screen."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            chat.remark(f"{record.name}: {record.getMessage()}")

    handler = Handler()
    loggers = [logging.getLogger(name) for name in ("dialkey", "quic")]
    before = [(logger, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
    try:
        yield
    finally:
        for logger, handlers in before:
            logger.handlers[:] = handlers
