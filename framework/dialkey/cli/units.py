"""Numbers as people write them."""

from __future__ import annotations

__all__ = ["format_bytes", "format_duration", "format_rate"]


def format_bytes(count: int) -> str:
    """Write a number of bytes as people do: ``999 B``, ``1.5 kB``, ``100.0 MB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def format_rate(bytes_per_s: float) -> str:
    """Write a rate as people do: ``12.3 MB/s``."""
    return f"{format_bytes(round(bytes_per_s))}/s"


def format_duration(seconds: float) -> str:
    """Write a duration as people do: ``0:07``, ``12:34``, ``1:02:03``; days as hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
