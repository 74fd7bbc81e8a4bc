"""What is sent comes back: ``echo/1``, the smallest protocol.

Each bidirectional stream carries back what it brings, and ends when the caller has ended it.
`Echo` answers, `echo` asks. As an entry point it brings the command ``dialkey echo``, and answers where
an application says ``router.add_installed("echo")``.
"""

from __future__ import annotations

from dialkey_echo.protocol import ALPN, Echo, echo

__all__ = ["ALPN", "Echo", "echo"]
