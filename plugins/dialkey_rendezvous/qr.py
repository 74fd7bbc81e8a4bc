"""QR codes of tickets, for terminals."""

from __future__ import annotations

import io
import shutil
from typing import Final

from dialkey.cli import Output
from dialkey.extras import has_modules, require_extra

__all__ = ["draw", "qr_code"]

BORDER_MODULES: Final = 2
"""Four are what the standard asks for; cameras take two, and a ticket fits into 80 columns longer."""


def qr_code(text: str, *, columns: int, lines: int) -> str | None:
    """Draw a text of ASCII as a QR code of half blocks, light on dark.

    Tickets are read in capitals, too, and as such take a smaller code.

    Args:
        text: what it says.
        columns, lines: of the terminal.

    Returns:
        Lines of text, or None if it does not fit.
    """
    require_extra("codes", "a QR code", "segno")
    import segno

    try:
        made = segno.make_qr(text, error="l", boost_error=False)
    except segno.DataOverflowError:
        return None
    width, height = made.symbol_size(border=BORDER_MODULES)
    if width > columns or (height + 1) // 2 > lines:
        return None
    drawn = io.StringIO()
    made.terminal(out=drawn, border=BORDER_MODULES, compact=True)
    return drawn.getvalue().rstrip("\n")


def draw(output: Output, ticket: str) -> None:
    """Show a ticket as a QR code, if standard error is a terminal that can show it.

    It is a bonus: without the extra that draws it there is none.
    """
    stream = output.stderr
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")
    if output.json or not stream.isatty() or encoding not in ("utf8", "utf8sig"):
        return
    if not has_modules("segno"):
        return
    columns, lines = shutil.get_terminal_size()
    drawn = qr_code(ticket.upper(), columns=columns, lines=lines - 1)
    if drawn is None:
        output.remark("The ticket is too long for a QR code in this window.")
    else:
        print(drawn, file=stream, flush=True)
