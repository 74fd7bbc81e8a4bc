"""QR codes of tickets, for terminals."""

from __future__ import annotations

import io
from typing import Final

from dialkey.extras import require_extra

__all__ = ["qr_code"]

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
