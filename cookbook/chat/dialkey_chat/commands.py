"""What a line that the user has typed means, and how things are put in words.

Both faces of the app use it, so that they understand and say the same.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Final

from dialkey import EndpointId
from dialkey.cli import format_bytes
from dialkey.errors import DialkeyError
from dialkey_chat.room import Arrived, Departed, Notice, Remark, Renamed, Written
from dialkey_chat.session import Chat

__all__ = ["HELP", "clock", "describe", "label", "perform", "typed_path"]

HELP: Final = """\
/who            who is here
/send PATH      offer a file or folder to all
/get N [FOLDER] fetch the file with number N
/nick NAME      be called something else
/ticket         a ticket to this room, as of now
/help           these lines
/quit           leave
Everything else is said to all; begin with // to say something that begins with /."""


def perform(chat: Chat, line: str) -> bool:
    """Carry out a line; results appear as notices. Return False if it says to leave."""
    line = line.strip()
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    match command:
        case "":
            pass
        case "/quit" | "/q":
            return False
        case "/help":
            _remarks(chat, HELP)
        case "/who":
            _who(chat)
        case "/ticket":
            chat.remark(str(chat.ticket()))
        case "/nick" if rest:
            chat.rename(rest)
        case "/send" if rest:
            chat.send(typed_path(rest))
        case "/get" if rest:
            _get(chat, rest)
        case _ if line.startswith("/") and not line.startswith("//"):
            chat.remark(f"what is {command}? /help lists what there is")
        case _:
            _say(chat, line[1:] if line.startswith("//") else line)
    return True


def _say(chat: Chat, text: str) -> None:
    try:
        chat.say(text)
    except DialkeyError as error:
        chat.remark(str(error))


def _get(chat: Chat, rest: str) -> None:
    number, _, folder = rest.partition(" ")
    if number.isascii() and number.isdigit() and len(number) < 10:
        chat.get(int(number), typed_path(folder) if folder.strip() else None)
    else:
        chat.remark("say which: /get 1")


def _who(chat: Chat) -> None:
    chat.remark(f"{label(chat.name, chat.id)}, that is you")
    for person in chat.room.people:
        chat.remark(label(person.name, person.id))


def _remarks(chat: Chat, text: str) -> None:
    for line in text.splitlines():
        chat.remark(line)


def typed_path(text: str) -> Path:
    """Return the path that was typed into the chat.

    No shell has seen it, so ``~/`` means the home folder here, unless it is quoted. Quotes are taken
    off: terminals add them to the name of a file that is dropped on them.
    """
    text = text.strip()
    if text == "~" or text.startswith("~/"):
        return Path.home() / text[2:]
    try:
        words = shlex.split(text)
    except ValueError:
        return Path(text)
    return Path(words[0] if len(words) == 1 else text)


# --- in words -------------------------------------------------------------------------------------


def label(name: str, id: EndpointId) -> str:
    """Put a claimed name beside the id that is proven."""
    return f"{name} ({id.short()})"


def clock(at_ms: int) -> str:
    """Return the time of day here, with the date if it was another day."""
    then, now = time.localtime(at_ms / 1000), time.localtime()
    is_today = then[:3] == now[:3]
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", then)


def describe(notice: Notice) -> str:
    """Say in a line what has happened."""
    match notice:
        case Written(letter=letter):
            when = clock(letter.at_ms)
            who = label(letter.name, letter.author)
            if isinstance(letter.body, str):
                return f"{when} {who}: {letter.body}"
            size = format_bytes(letter.body.size)
            return f"{when} {who} offers {letter.body.name}, {size}: /get {notice.number}"
        case Arrived(person=person):
            return f"* {label(person.name, person.id)} is here"
        case Renamed(person=person):
            return f"* {notice.before} is {label(person.name, person.id)} now"
        case Departed(person=person):
            how = "is gone" if notice.is_silent else "has left"
            return f"* {label(person.name, person.id)} {how}"
        case Remark():
            return f"- {notice.text}"
