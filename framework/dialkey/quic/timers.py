"""The idle timer of a connection. Every other timer belongs to the component whose work it starts."""

from __future__ import annotations


class IdleTimer:
    """When a connection is over because its peer is silent (RFC 9000 section 10.1).

    Whatever arrives restarts it, and so does the first packet sent after that which must be answered.
    During the handshake the deadline is absolute.

    Attributes:
        deadline: when it is over.
    """

    __slots__ = ("_has_asked", "deadline")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._has_asked = False

    def heard(self, now: float, period_s: float) -> None:
        """Note that something authentic arrived."""
        self.deadline = now + period_s
        self._has_asked = False

    @property
    def is_first_question(self) -> bool:
        """Whether nothing that must be answered was sent since something arrived."""
        return not self._has_asked

    def asked(self, now: float, period_s: float) -> None:
        """Note the first packet that must be answered."""
        self._has_asked = True
        self.deadline = now + period_s

    def restart(self, deadline: float) -> None:
        """Restart: the handshake is complete."""
        self.deadline = deadline

    def heard_in_handshake(self) -> None:
        """Note that something authentic arrived before the handshake is complete."""
        self._has_asked = False
