"""Text of strangers, made fit for terminals, logs and messages.

What a peer says ends up on somebody's screen. A terminal obeys control characters (ESC starts a
sequence that sets the title, moves the cursor, or answers on stdin), a log takes a line break for the
end of a record, and bidirectional controls make a text look like another one.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["escaped_json", "printable", "printable_bytes", "printable_traceback"]

_DANGEROUS: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # bidirectional and deprecated format controls
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ufff9-\ufffb"  # interlinear annotation, which hides text
    "\ud800-\udfff"  # lone surrogates, which no output can encode
    "]"
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, keep: str = "", max_chars: int | None = None) -> str:
    r"""Return text with the dangerous characters escaped as in Python: ``\x1b``, ``\u202e``, ``\n``.

    Everything else stays as people write it, joiners in emoji among it. Call it where a message is
    built from what somebody else said; doing so twice changes nothing.

    Args:
        text: whatever came.
        keep: characters to leave alone: ``"\n\t"`` for text in several lines.
        max_chars: longer text is cut off, and ends in an ellipsis.
    """
    if max_chars is not None and len(text) > max_chars:
        text = text[: max(max_chars - 1, 0)] + "…"
    if text.isascii() and text.isprintable():
        return text

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        if char in keep:
            return char
        number = ord(char)
        return _SHORT.get(char) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")

    return _DANGEROUS.sub(escape, text)


def printable_bytes(data: bytes, *, max_chars: int | None = None) -> str:
    r"""Return bytes that are meant to be UTF-8 text as `printable` does; others show as ``\xff``."""
    return printable(data.decode("utf-8", "backslashreplace"), max_chars=max_chars)


def printable_traceback(error: BaseException) -> str:
    """Return the traceback of an error for a log, indented, so that no line of it looks like a record.

    Foreign exceptions often repeat what they were given, and that may be a stranger's text.
    """
    import textwrap  # as is traceback: not for every start of the command line
    import traceback

    lines = "".join(traceback.format_exception(error)).rstrip("\n")
    return textwrap.indent(printable(lines, keep="\n\t"), "    ", lambda line: True)


def escaped_json(text: str) -> str:
    r"""Return JSON text with the dangerous characters that JSON itself lets pass as ``\u202e``."""
    return _DANGEROUS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
